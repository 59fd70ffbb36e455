/* The table of optimizers and how each appends its nodes. Papers: see core/ops/ops.h at kn_adamw and kn_muon. */
#include "train/update_graph.h"

#include "core/base/error.h"
#include "core/ops/ops.h"
#include "dist/sharding.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A run of parameters of one block that one node updates. */
typedef struct Segment {
    int block;
    int64_t offset;               /* in the block */
    int64_t count, rows, columns; /* matrices: a stack; else rows = columns = 0 and count elements */
} Segment;

typedef struct Builder {
    KnUpdateGraph *update;
    const KnOptimizerConfig *config;
    const KnLayout *layout;
    KnUpdateAttributes attributes;
} Builder;

static KnTensor *leaf(Builder *b, KnUpdateBuffer buffer, const Segment *segment)
{
    static const char *const names[] = {[KN_UPDATE_WEIGHTS] = "weights",
                                        [KN_UPDATE_GRADIENTS] = "gradients",
                                        [KN_UPDATE_MOMENT1] = "moment1",
                                        [KN_UPDATE_MOMENT2] = "moment2",
                                        [KN_UPDATE_AVERAGE] = "average"};
    KnUpdateGraph *u = b->update;
    int matrices = segment->rows > 0;
    int64_t shape[3] = {segment->count, segment->rows, segment->columns};
    char name[64];
    snprintf(name, sizeof name, "%s.%d.%lld", names[buffer], segment->block, (long long)segment->offset);
    KnTensor *made = kn_leaf(u->graph, KN_ROLE_STATE, KN_F32, matrices ? 3 : 1, shape, name);
    KN_RESERVE(u->bindings, u->binding_count, u->binding_capacity);
    u->bindings[u->binding_count++] = (KnUpdateBinding){made, buffer, segment->block, segment->offset};
    return made;
}

static void update_adamw(Builder *b, const Segment *segment)
{
    KnUpdateGraph *u = b->update;
    kn_adamw(u->graph, leaf(b, KN_UPDATE_WEIGHTS, segment), leaf(b, KN_UPDATE_GRADIENTS, segment),
             leaf(b, KN_UPDATE_MOMENT1, segment), leaf(b, KN_UPDATE_MOMENT2, segment), u->hyper, u->norm2,
             &b->attributes);
}

static void update_muon(Builder *b, const Segment *segment)
{
    KnUpdateGraph *u = b->update;
    if (!segment->rows) {
        update_adamw(b, segment);
        return;
    }
    kn_muon(u->graph, leaf(b, KN_UPDATE_WEIGHTS, segment), leaf(b, KN_UPDATE_GRADIENTS, segment),
            leaf(b, KN_UPDATE_MOMENT1, segment), u->hyper, u->norm2, &b->attributes);
}

static const struct {
    const char *name;
    void (*update)(Builder *b, const Segment *segment);
    int whole_matrices;
} optimizers[] = {
    {"adamw", update_adamw, 0}, /* everywhere */
    {"muon", update_muon, 1},   /* the blocks' matrices; AdamW for the rest */
};
enum { OPTIMIZER_COUNT = sizeof optimizers / sizeof optimizers[0] };

static int find_optimizer(const char *name)
{
    for (int i = 0; i < OPTIMIZER_COUNT; i++)
        if (!strcmp(optimizers[i].name, name))
            return i;
    return kn_fail(KN_EINPUT, "optimizer.name is \"%s\": there are adamw and muon", name);
}

/* This rank's range of a block: what it updates. */
static Segment owned(const Builder *b, int block)
{
    const KnZero *zero = &b->layout->zero;
    const int64_t *cuts = kn_zero_cuts(zero, block);
    int cut = zero->stage > 0;
    int64_t first = cut ? cuts[zero->rank] : 0, end = cut ? cuts[zero->rank + 1] : cuts[zero->ranks];
    return (Segment){.block = block, .offset = first, .count = end - first};
}

/* The next run in `rest`, which loses it. Matrices of one shape that touch form a stack; everything that is no matrix,
 * alignment gaps included, forms one run to the end. */
static Segment next_segment(const KnParameterSet *set, Segment *rest)
{
    int64_t last = rest->offset + rest->count, end = rest->offset;
    Segment segment = {.block = rest->block};
    for (int i = 0; i < set->count; i++) {
        const KnParameter *p = &set->list[i];
        if (p->block != rest->block || !p->matrix || p->offset < end || p->offset >= last || p->elements == 0)
            continue;
        if (segment.count && (p->offset != end || p->shape[0] != segment.rows || p->shape[1] != segment.columns))
            break;
        if (!segment.count)
            segment.offset = p->offset;
        segment.rows = p->shape[0];
        segment.columns = p->shape[1];
        segment.count++;
        end = p->offset + p->elements;
    }
    if (!segment.count) {
        segment.offset = rest->offset;
        segment.count = rest->count;
        end = last;
    }
    KN_ASSERT(end <= last);
    rest->offset = end;
    rest->count = last - end;
    return segment;
}

/* --- The global norm ---------------------------------------------------------------------------------------------- */

static KnTensor *squares_of(Builder *b, const Segment *segment)
{
    return kn_sum_of_squares(b->update->graph, leaf(b, KN_UPDATE_GRADIENTS, segment));
}

static KnTensor *summed(Builder *b, KnTensor *squares, KnGroup group)
{
    const KnMesh *mesh = &b->layout->mesh;
    int ranks = kn_mesh_group_size(mesh, group);
    if (ranks == 1)
        return squares;
    KnCollective *c = kn_collective_create(b->update->graph, KN_ALL_REDUCE, group, ranks,
                                           kn_mesh_group_rank(mesh, group), "gradient norm", NULL, NULL);
    return kn_collective(b->update->graph, c, squares, 0, NULL);
}

/* Of the parameters that the tensor group has cut (`cut` 1), or of those that all of it hold alike. */
static KnTensor *squares_of_parameters(Builder *b, int cut)
{
    KnTensor *sum = kn_zeros(b->update->graph, KN_F32, 0, NULL);
    for (int i = 0; i < b->layout->part.count; i++) {
        const KnParameter *p = &b->layout->part.list[i];
        const KnParameter *whole = kn_parameter_find(&b->layout->model->parameters, p->name);
        Segment range = owned(b, p->block);
        int64_t first = p->offset > range.offset ? p->offset : range.offset;
        int64_t end = p->offset + p->elements, last = range.offset + range.count;
        end = end < last ? end : last;
        if ((whole->elements != p->elements) != cut || first >= end)
            continue;
        sum = kn_add(b->update->graph, sum, squares_of(b, &(Segment){p->block, first, end - first, 0, 0}));
    }
    return sum;
}

/* Summed over the ranges of ZeRO's ranks, and over the tensor group what differs there. */
static KnTensor *global_norm2(Builder *b)
{
    KnGraph *graph = b->update->graph;
    int tensor = kn_mesh_group_size(&b->layout->mesh, KN_GROUP_TENSOR) > 1;
    KnTensor *sum = NULL;
    if (tensor)
        sum = kn_add(graph, summed(b, squares_of_parameters(b, 1), KN_GROUP_TENSOR), squares_of_parameters(b, 0));
    for (int block = 0; !tensor && block < b->layout->zero.set->block_count; block++) {
        Segment range = owned(b, block);
        KnTensor *squares = squares_of(b, &range);
        sum = sum ? kn_add(graph, sum, squares) : squares;
    }
    return b->layout->zero.stage > 0 ? summed(b, sum, KN_GROUP_ZERO) : sum;
}

static void gather_weights(Builder *b, int block)
{
    const KnZero *zero = &b->layout->zero;
    Segment whole = {.block = block, .count = zero->set->block_elements[block]};
    KnTensor *weights = leaf(b, KN_UPDATE_WEIGHTS, &whole);
    KnCollective *c = kn_collective_create(b->update->graph, KN_ALL_GATHER, KN_GROUP_ZERO, zero->ranks, zero->rank,
                                           weights->name, kn_zero_cuts(zero, block), NULL);
    kn_collective_in_place_start(b->update->graph, c, weights);
    kn_collective_in_place_wait(b->update->graph, c, weights);
}

static void update_block(Builder *b, int row, int block)
{
    KnUpdateGraph *u = b->update;
    Segment range = owned(b, block), rest = range;
    while (rest.count > 0) {
        Segment segment = rest;
        if (optimizers[row].whole_matrices)
            segment = next_segment(b->layout->zero.set, &rest);
        else
            rest.count = 0;
        optimizers[row].update(b, &segment);
    }
    if (b->config->ema > 0 && range.count > 0)
        kn_ema(u->graph, leaf(b, KN_UPDATE_AVERAGE, &range), leaf(b, KN_UPDATE_WEIGHTS, &range), u->hyper, u->norm2);
    if (b->layout->zero.stage == 1 || b->layout->zero.stage == 2)
        gather_weights(b, block);
}

int kn_update_graph_create(KnUpdateGraph *update, const KnOptimizerConfig *config, const KnLayout *layout,
                           int norm_given)
{
    int row = find_optimizer(config->name);
    *update = (KnUpdateGraph){0};
    KN_TRY(row);
    Builder b = {.update = update,
                 .config = config,
                 .layout = layout,
                 .attributes = {.beta1 = (float)config->beta1,
                                .beta2 = (float)config->beta2,
                                .eps = (float)config->eps,
                                .weight_decay = (float)config->weight_decay,
                                .momentum = (float)config->momentum,
                                .newton_schulz_steps = (int)config->newton_schulz_steps}};
    update->graph = kn_graph_create();
    update->hyper = kn_leaf(update->graph, KN_ROLE_INPUT, KN_F32, 1, (int64_t[]){KN_HYPER_COUNT}, "hyper");
    update->norm2 = norm_given ? kn_leaf(update->graph, KN_ROLE_STATE, KN_F32, 0, NULL, "norm2") : global_norm2(&b);
    for (int block = 0; block < layout->zero.set->block_count; block++)
        update_block(&b, row, block);
    kn_overlap(update->graph);
    kn_graph_finish(update->graph, &update->norm2, 1);
    return KN_OK;
}

void kn_update_graph_destroy(KnUpdateGraph *update)
{
    if (update->graph)
        kn_graph_destroy(update->graph);
    free(update->bindings);
    *update = (KnUpdateGraph){0};
}

int kn_optimizer_whole_matrices(const KnOptimizerConfig *config)
{
    int row = find_optimizer(config->name);
    return row >= 0 && optimizers[row].whole_matrices;
}
