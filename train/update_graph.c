/* The table of optimizers and how each appends its nodes. Papers: see core/ops/ops.h at kn_adamw and kn_momentum. */
#include "train/update_builder.h"

#include "core/base/error.h"
#include "dist/sharding.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

KnTensor *kn_update_leaf(KnUpdateBuilder *b, KnUpdateBuffer buffer, KnUpdateRange range)
{
    static const char *const names[] = {[KN_UPDATE_WEIGHTS] = "weights",
                                        [KN_UPDATE_GRADIENTS] = "gradients",
                                        [KN_UPDATE_MOMENT1] = "moment1",
                                        [KN_UPDATE_MOMENT2] = "moment2",
                                        [KN_UPDATE_AVERAGE] = "average"};
    KnUpdateGraph *u = b->update;
    char name[64];
    snprintf(name, sizeof name, "%s.%d.%lld", names[buffer], range.block, (long long)range.offset);
    KnTensor *made = kn_leaf(u->graph, KN_ROLE_STATE, KN_F32, 1, &range.count, name);
    KN_RESERVE(u->bindings, u->binding_count, u->binding_capacity);
    u->bindings[u->binding_count++] = (KnUpdateBinding){made, buffer, range.block, range.offset};
    return made;
}

void kn_update_adamw(KnUpdateBuilder *b, KnUpdateRange owned)
{
    KnUpdateGraph *u = b->update;
    kn_adamw(u->graph, kn_update_leaf(b, KN_UPDATE_WEIGHTS, owned), kn_update_leaf(b, KN_UPDATE_GRADIENTS, owned),
             kn_update_leaf(b, KN_UPDATE_MOMENT1, owned), kn_update_leaf(b, KN_UPDATE_MOMENT2, owned), u->hyper,
             u->norm2, &b->attributes);
}

static const struct {
    const char *name;
    void (*update)(KnUpdateBuilder *b, KnUpdateRange owned);
    int whole_matrices;
} optimizers[] = {
    {"adamw", kn_update_adamw, 0}, /* everywhere */
    {"muon", kn_update_muon, 1},   /* the blocks' matrices; AdamW for the rest */
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
static KnUpdateRange owned(const KnUpdateBuilder *b, int block)
{
    const KnZero *zero = &b->layout->zero;
    const int64_t *cuts = kn_zero_cuts(zero, block);
    int cut = zero->stage > 0;
    int64_t first = cut ? cuts[zero->rank] : 0, end = cut ? cuts[zero->rank + 1] : cuts[zero->ranks];
    return (KnUpdateRange){.block = block, .offset = first, .count = end - first};
}

/* --- The global norm ---------------------------------------------------------------------------------------------- */

static KnTensor *squares_of(KnUpdateBuilder *b, KnUpdateRange range)
{
    KnTensor *gradients = kn_update_leaf(b, KN_UPDATE_GRADIENTS, range);
    return kn_sum_of_squares(b->update->graph, &gradients, 1);
}

/* Of all blocks, as many at a time as a node takes. */
static KnTensor *squares_of_blocks(KnUpdateBuilder *b)
{
    KnTensor *list[KN_MAX_INPUTS], *sum = NULL;
    int blocks = b->layout->zero.set->block_count, count = 0;
    for (int block = 0; block < blocks; block++) {
        list[count++] = kn_update_leaf(b, KN_UPDATE_GRADIENTS, owned(b, block));
        if (count < KN_MAX_INPUTS && block + 1 < blocks)
            continue;
        KnTensor *squares = kn_sum_of_squares(b->update->graph, list, count);
        sum = sum ? kn_add(b->update->graph, sum, squares) : squares;
        count = 0;
    }
    return sum;
}

static KnTensor *summed(KnUpdateBuilder *b, KnTensor *squares, KnGroup group)
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
static KnTensor *squares_of_parameters(KnUpdateBuilder *b, int cut)
{
    KnTensor *sum = kn_zeros(b->update->graph, KN_F32, 0, NULL);
    for (int i = 0; i < b->layout->part.count; i++) {
        const KnParameter *p = &b->layout->part.list[i];
        const KnParameter *whole = kn_parameter_find(&b->layout->model->parameters, p->name);
        KnUpdateRange range = owned(b, p->block);
        int64_t first = p->offset > range.offset ? p->offset : range.offset;
        int64_t end = p->offset + p->elements, last = range.offset + range.count;
        end = end < last ? end : last;
        if ((whole->elements != p->elements) != cut || first >= end)
            continue;
        sum = kn_add(b->update->graph, sum, squares_of(b, (KnUpdateRange){p->block, first, end - first}));
    }
    return sum;
}

/* Summed over the ranges of ZeRO's ranks, and over the tensor group what differs there. */
static KnTensor *global_norm2(KnUpdateBuilder *b)
{
    KnGraph *graph = b->update->graph;
    int tensor = kn_mesh_group_size(&b->layout->mesh, KN_GROUP_TENSOR) > 1;
    KnTensor *sum =
        tensor ? kn_add(graph, summed(b, squares_of_parameters(b, 1), KN_GROUP_TENSOR), squares_of_parameters(b, 0))
               : squares_of_blocks(b);
    return b->layout->zero.stage > 0 ? summed(b, sum, KN_GROUP_ZERO) : sum;
}

static void gather_weights(KnUpdateBuilder *b, int block)
{
    const KnZero *zero = &b->layout->zero;
    KnUpdateRange whole = {.block = block, .count = zero->set->block_elements[block]};
    KnTensor *weights = kn_update_leaf(b, KN_UPDATE_WEIGHTS, whole);
    KnCollective *c = kn_collective_create(b->update->graph, KN_ALL_GATHER, KN_GROUP_ZERO, zero->ranks, zero->rank,
                                           weights->name, kn_zero_cuts(zero, block), NULL);
    kn_collective_in_place_start(b->update->graph, c, weights);
    kn_collective_in_place_wait(b->update->graph, c, weights);
}

static void update_block(KnUpdateBuilder *b, int row, int block)
{
    KnUpdateGraph *u = b->update;
    KnUpdateRange range = owned(b, block);
    if (range.count > 0)
        optimizers[row].update(b, range);
    if (b->config->ema > 0 && range.count > 0)
        kn_ema(u->graph, kn_update_leaf(b, KN_UPDATE_AVERAGE, range), kn_update_leaf(b, KN_UPDATE_WEIGHTS, range),
               u->hyper, u->norm2);
    if (b->layout->zero.stage == 1 || b->layout->zero.stage == 2)
        gather_weights(b, block);
}

/* Zero times the loss is zero or not a number. */
static KnTensor *judged(KnUpdateGraph *u, KnTensor *norm2)
{
    u->loss = kn_leaf(u->graph, KN_ROLE_STATE, KN_F32, 0, NULL, "loss");
    return kn_add(u->graph, norm2, kn_scale(u->graph, u->loss, 0));
}

int kn_update_graph_create(KnUpdateGraph *update, const KnOptimizerConfig *config, const KnLayout *layout, int given)
{
    int row = find_optimizer(config->name);
    *update = (KnUpdateGraph){0};
    KN_TRY(row);
    KnUpdateBuilder b = {.update = update,
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
    if (given & KN_UPDATE_NORM_GIVEN)
        update->given_norm2 = kn_leaf(update->graph, KN_ROLE_STATE, KN_F32, 0, NULL, "norm2");
    update->norm2 = update->given_norm2 ? update->given_norm2 : global_norm2(&b);
    if (given & KN_UPDATE_LOSS_GIVEN)
        update->norm2 = judged(update, update->norm2);
    for (int block = 0; block < layout->zero.set->block_count; block++)
        update_block(&b, row, block);
    kn_overlap(update->graph, 0);
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
