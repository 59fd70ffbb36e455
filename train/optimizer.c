/* The table of optimizers and the update graph. Papers: see core/ops/ops.h at kn_adamw and kn_muon. */
#include "train/optimizer.h"

#include "core/base/error.h"
#include "core/base/text.h"
#include "core/ops/ops.h"
#include "dist/sharding.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct KnOptimizer {
    const KnOptimizerConfig *config;
    KnOptimizerState *state;
    KnGraph *graph;
    KnExecutor *executor;
    KnTensor *hyper_leaf, *norm2;
    float hyper[KN_HYPER_COUNT];
};

/* A run of parameters of one block that one node updates. */
typedef struct Segment {
    int block;
    int64_t offset;               /* in the block */
    int64_t count, rows, columns; /* matrices: a stack; else rows = columns = 0 and count elements */
} Segment;

typedef struct Builder {
    KnOptimizer *optimizer;
    const KnLayout *layout;
    KnUpdateAttributes attributes;
    struct Binding {
        KnTensor *leaf;
        float *memory;
    } * bindings;
    int binding_count, binding_capacity;
} Builder;

static void bind_later(Builder *b, KnTensor *leaf, float *memory)
{
    KN_RESERVE(b->bindings, b->binding_count, b->binding_capacity);
    b->bindings[b->binding_count++] = (struct Binding){leaf, memory};
}

static KnTensor *leaf(Builder *b, const KnParameterValues *values, const Segment *segment, const char *what)
{
    int matrices = segment->rows > 0;
    int64_t shape[3] = {segment->count, segment->rows, segment->columns};
    char name[64];
    snprintf(name, sizeof name, "%s.%d.%lld", what, segment->block, (long long)segment->offset);
    KnTensor *made = kn_leaf(b->optimizer->graph, KN_ROLE_STATE, KN_F32, matrices ? 3 : 1, shape, name);
    int64_t at = segment->offset - values->first[segment->block];
    KN_ASSERT(at >= 0 && at + kn_tensor_elements(made) <= values->count[segment->block]);
    bind_later(b, made, values->blocks[segment->block] + at);
    return made;
}

static void update_adamw(Builder *b, const Segment *segment)
{
    KnOptimizer *o = b->optimizer;
    kn_adamw(o->graph, leaf(b, &o->state->weights, segment, "weights"),
             leaf(b, &o->state->gradients, segment, "gradients"), leaf(b, &o->state->moment1, segment, "moment1"),
             leaf(b, &o->state->moment2, segment, "moment2"), o->hyper_leaf, o->norm2, &b->attributes);
}

static void update_muon(Builder *b, const Segment *segment)
{
    KnOptimizer *o = b->optimizer;
    if (!segment->rows) {
        update_adamw(b, segment);
        return;
    }
    kn_muon(o->graph, leaf(b, &o->state->weights, segment, "weights"),
            leaf(b, &o->state->gradients, segment, "gradients"), leaf(b, &o->state->moment1, segment, "moment1"),
            o->hyper_leaf, o->norm2, &b->attributes);
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
    return kn_sum_of_squares(b->optimizer->graph, leaf(b, &b->optimizer->state->gradients, segment, "gradients"));
}

static KnTensor *summed(Builder *b, KnTensor *squares, KnGroup group)
{
    const KnMesh *mesh = &b->layout->mesh;
    int ranks = kn_mesh_group_size(mesh, group);
    if (ranks == 1)
        return squares;
    KnCollective *c = kn_collective_create(b->optimizer->graph, KN_ALL_REDUCE, group, ranks,
                                           kn_mesh_group_rank(mesh, group), "gradient norm", NULL, NULL);
    return kn_collective(b->optimizer->graph, c, squares, 0, NULL);
}

/* Of the parameters that the tensor group has cut (`cut` 1), or of those that all of it hold alike. */
static KnTensor *squares_of_parameters(Builder *b, int cut)
{
    KnTensor *sum = kn_zeros(b->optimizer->graph, KN_F32, 0, NULL);
    for (int i = 0; i < b->layout->part.count; i++) {
        const KnParameter *p = &b->layout->part.list[i];
        const KnParameter *whole = kn_parameter_find(&b->layout->model->parameters, p->name);
        Segment range = owned(b, p->block);
        int64_t first = p->offset > range.offset ? p->offset : range.offset;
        int64_t end = p->offset + p->elements, last = range.offset + range.count;
        end = end < last ? end : last;
        if ((whole->elements != p->elements) != cut || first >= end)
            continue;
        sum = kn_add(b->optimizer->graph, sum, squares_of(b, &(Segment){p->block, first, end - first, 0, 0}));
    }
    return sum;
}

/* Summed over the ranges of ZeRO's ranks, and over the tensor group what differs there. */
static KnTensor *global_norm2(Builder *b)
{
    KnGraph *graph = b->optimizer->graph;
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
    KnTensor *weights = leaf(b, &b->optimizer->state->weights, &whole, "weights of block");
    KnCollective *c = kn_collective_create(b->optimizer->graph, KN_ALL_GATHER, KN_GROUP_ZERO, zero->ranks, zero->rank,
                                           weights->name, kn_zero_cuts(zero, block), NULL);
    kn_collective_in_place_start(b->optimizer->graph, c, weights);
    kn_collective_in_place_wait(b->optimizer->graph, c, weights);
}

static void update_block(Builder *b, int row, int block)
{
    KnOptimizer *o = b->optimizer;
    Segment range = owned(b, block), rest = range;
    while (rest.count > 0) {
        Segment segment = rest;
        if (optimizers[row].whole_matrices)
            segment = next_segment(b->layout->zero.set, &rest);
        else
            rest.count = 0;
        optimizers[row].update(b, &segment);
    }
    if (o->state->average.blocks && range.count > 0)
        kn_ema(o->graph, leaf(b, &o->state->average, &range, "average"), leaf(b, &o->state->weights, &range, "weights"),
               o->hyper_leaf, o->norm2);
    if (b->layout->zero.stage == 1 || b->layout->zero.stage == 2)
        gather_weights(b, block);
}

static void build(Builder *b, int row)
{
    KnOptimizer *o = b->optimizer;
    o->graph = kn_graph_create();
    o->hyper_leaf = kn_leaf(o->graph, KN_ROLE_INPUT, KN_F32, 1, (int64_t[]){KN_HYPER_COUNT}, "hyper");
    if (o->state->norm2) {
        o->norm2 = kn_leaf(o->graph, KN_ROLE_INPUT, KN_F32, 0, NULL, "norm2");
        bind_later(b, o->norm2, o->state->norm2);
    } else {
        o->norm2 = global_norm2(b);
    }
    for (int block = 0; block < b->layout->zero.set->block_count; block++)
        update_block(b, row, block);
    kn_overlap(o->graph);
    kn_graph_finish(o->graph, &o->norm2, 1);
}

int kn_optimizer_whole_matrices(const KnOptimizerConfig *config)
{
    int row = find_optimizer(config->name);
    return row >= 0 && optimizers[row].whole_matrices;
}

int kn_optimizer_state_create(KnOptimizerState *state, const KnZero *zero, const KnOptimizerConfig *config)
{
    int moments = config->ema > 0 ? 3 : 2;
    *state = (KnOptimizerState){0};
    KN_TRY(kn_memory_check(kn_zero_bytes(zero, 3) + kn_zero_bytes(zero, 2) + (size_t)moments * kn_zero_bytes(zero, 1),
                           "weights, gradients and the optimizer's state"));
    KN_TRY(kn_zero_values(zero, 3, &state->weights, "the model's weights"));
    KN_TRY(kn_zero_values(zero, 2, &state->gradients, "the gradients"));
    KN_TRY(kn_zero_values(zero, 1, &state->moment1, "the optimizer's first moments"));
    KN_TRY(kn_zero_values(zero, 1, &state->moment2, "the optimizer's second moments"));
    if (config->ema > 0)
        KN_TRY(kn_zero_values(zero, 1, &state->average, "the averaged weights"));
    return KN_OK;
}

void kn_optimizer_state_clear(KnOptimizerState *state)
{
    kn_parameter_values_clear(&state->weights);
    kn_parameter_values_clear(&state->gradients);
    kn_parameter_values_clear(&state->moment1);
    kn_parameter_values_clear(&state->moment2);
    kn_parameter_values_clear(&state->average);
}

int kn_optimizer_create(KnOptimizer **optimizer, const KnOptimizerConfig *config, const KnLayout *layout,
                        KnOptimizerState *state, KnBackend *backend)
{
    *optimizer = NULL;
    int row = find_optimizer(config->name);
    KN_TRY(row);
    KnOptimizer *made = kn_alloc(sizeof *made);
    made->config = config;
    made->state = state;
    Builder b = {.optimizer = made,
                 .layout = layout,
                 .attributes = {.beta1 = (float)config->beta1,
                                .beta2 = (float)config->beta2,
                                .eps = (float)config->eps,
                                .weight_decay = (float)config->weight_decay,
                                .momentum = (float)config->momentum,
                                .newton_schulz_steps = (int)config->newton_schulz_steps}};
    build(&b, row);
    int code = kn_executor_create(&made->executor, made->graph, backend, &made->norm2, 1);
    if (code == KN_OK) {
        for (int i = 0; i < b.binding_count; i++)
            kn_executor_bind(made->executor, b.bindings[i].leaf, b.bindings[i].memory);
        kn_executor_bind(made->executor, made->hyper_leaf, made->hyper);
        kn_executor_set_comms(made->executor, layout->comms.groups);
        *optimizer = made;
    } else {
        kn_optimizer_destroy(made);
    }
    free(b.bindings);
    return code;
}

void kn_optimizer_destroy(KnOptimizer *optimizer)
{
    if (!optimizer)
        return;
    kn_executor_destroy(optimizer->executor);
    kn_graph_destroy(optimizer->graph);
    free(optimizer);
}

double kn_learning_rate_factor(const KnOptimizerConfig *config, int64_t step, int64_t steps)
{
    double warmup = config->warmup_steps > 0 ? (double)(step + 1) / (double)config->warmup_steps : 1;
    double decay_steps = config->decay_fraction * (double)steps;
    double done = decay_steps > 0 ? ((double)step - ((double)steps - decay_steps)) / decay_steps : 0;
    double decay = 1;
    if (done > 0 && config->schedule == KN_SCHEDULE_LINEAR)
        decay = 1 - fmin(done, 1);
    else if (done > 0 && config->schedule == KN_SCHEDULE_COSINE)
        decay = 0.5 * (1 + cos(3.14159265358979323846 * fmin(done, 1)));
    decay = config->final_fraction + (1 - config->final_fraction) * decay;
    return fmin(warmup, 1) * decay;
}

int kn_optimizer_step(KnOptimizer *optimizer, int64_t step, int64_t steps, int64_t updates, double *norm)
{
    const KnOptimizerConfig *c = optimizer->config;
    double factor = kn_learning_rate_factor(c, step, steps), n = (double)updates;
    float *hyper = optimizer->hyper;
    hyper[KN_HYPER_LR] = (float)(c->lr * factor);
    hyper[KN_HYPER_LR_OTHER] = (float)((c->lr_other > 0 ? c->lr_other : c->lr) * factor);
    hyper[KN_HYPER_CORRECTION1] = (float)(1 - pow(c->beta1, n + 1));
    hyper[KN_HYPER_CORRECTION2] = (float)(1 - pow(c->beta2, n + 1));
    hyper[KN_HYPER_EMA] = (float)fmin(c->ema, (1 + n) / (10 + n)); /* warm-up: short runs would show initial weights */
    hyper[KN_HYPER_CLIP] = (float)c->clip_norm;
    KN_TRY(kn_executor_run(optimizer->executor));
    *norm = sqrt((double)*(const float *)kn_executor_data(optimizer->executor, optimizer->norm2));
    kn_parameter_values_zero(&optimizer->state->gradients);
    return KN_OK;
}

const KnPlan *kn_optimizer_plan(const KnOptimizer *optimizer)
{
    return kn_executor_plan(optimizer->executor);
}

char *kn_optimizer_profile(const KnOptimizer *optimizer)
{
    return kn_executor_profile(optimizer->executor);
}
