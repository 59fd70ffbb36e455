/* The table of optimizers and the update graph. Papers: see core/ops/ops.h at kn_adamw and kn_muon. */
#include "train/optimizer.h"

#include "core/base/error.h"
#include "core/base/text.h"
#include "core/ops/ops.h"

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
    int64_t offset;
    int64_t count, rows, columns; /* matrices: a stack; else rows = columns = 0 and count elements */
} Segment;

typedef struct Builder {
    KnOptimizer *optimizer;
    KnUpdateAttributes attributes;
    struct Binding {
        KnTensor *leaf;
        float *memory;
    } * bindings;
    int binding_count, binding_capacity;
} Builder;

static KnTensor *leaf(Builder *b, const KnParameterValues *values, const Segment *segment, const char *what)
{
    int matrices = segment->rows > 0;
    int64_t shape[3] = {segment->count, segment->rows, segment->columns};
    char name[64];
    snprintf(name, sizeof name, "%s.%d.%lld", what, segment->block, (long long)segment->offset);
    KnTensor *made = kn_leaf(b->optimizer->graph, KN_ROLE_STATE, KN_F32, matrices ? 3 : 1, shape, name);
    KN_RESERVE(b->bindings, b->binding_count, b->binding_capacity);
    b->bindings[b->binding_count++] = (struct Binding){made, values->blocks[segment->block] + segment->offset};
    return made;
}

static void update_adamw(Builder *b, const Segment *segment)
{
    KnOptimizer *o = b->optimizer;
    Segment flat = *segment;
    if (segment->rows)
        flat = (Segment){segment->block, segment->offset, segment->count * segment->rows * segment->columns, 0, 0};
    kn_adamw(o->graph, leaf(b, &o->state->weights, &flat, "weights"), leaf(b, &o->state->gradients, &flat, "gradients"),
             leaf(b, &o->state->moment1, &flat, "moment1"), leaf(b, &o->state->moment2, &flat, "moment2"),
             o->hyper_leaf, o->norm2, &b->attributes);
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
} optimizers[] = {
    {"adamw", update_adamw}, /* everywhere */
    {"muon", update_muon},   /* the blocks' matrices; AdamW for the rest */
};
enum { OPTIMIZER_COUNT = sizeof optimizers / sizeof optimizers[0] };

static int find_optimizer(const char *name)
{
    for (int i = 0; i < OPTIMIZER_COUNT; i++)
        if (!strcmp(optimizers[i].name, name))
            return i;
    return kn_fail(KN_EINPUT, "optimizer.name is \"%s\": there are adamw and muon", name);
}

/* The segment that begins at parameter *index; moves *index behind it. Matrices of one shape that touch form a stack;
 * everything that is no matrix, alignment gaps included, forms one run to the block's end. */
static Segment next_segment(const KnParameterSet *set, int *index)
{
    const KnParameter *first = &set->list[*index];
    Segment segment = {.block = first->block, .offset = first->offset};
    if (!first->matrix) {
        segment.count = set->block_elements[first->block] - first->offset;
        while (*index < set->count && set->list[*index].block == first->block)
            ++*index;
        return segment;
    }
    segment.rows = first->shape[0];
    segment.columns = first->shape[1];
    int64_t end = first->offset;
    for (; *index < set->count; ++*index) {
        const KnParameter *next = &set->list[*index];
        if (next->block != first->block || !next->matrix || next->offset != end || next->shape[0] != segment.rows ||
            next->shape[1] != segment.columns)
            break;
        end += next->elements;
        segment.count++;
    }
    return segment;
}

static Segment whole_block(const KnParameterSet *set, int block)
{
    return (Segment){.block = block, .count = set->block_elements[block]};
}

static void build(Builder *b, int row)
{
    KnOptimizer *o = b->optimizer;
    const KnParameterSet *set = o->state->weights.set;
    o->graph = kn_graph_create();
    o->hyper_leaf = kn_leaf(o->graph, KN_ROLE_INPUT, KN_F32, 1, (int64_t[]){KN_HYPER_COUNT}, "hyper");
    for (int block = 0; block < set->block_count; block++) {
        Segment whole = whole_block(set, block);
        KnTensor *squares = kn_sum_of_squares(o->graph, leaf(b, &o->state->gradients, &whole, "gradients"));
        o->norm2 = o->norm2 ? kn_add(o->graph, o->norm2, squares) : squares;
    }
    for (int index = 0; index < set->count;) {
        Segment segment = next_segment(set, &index);
        optimizers[row].update(b, &segment);
    }
    for (int block = 0; o->state->average.blocks && block < set->block_count; block++) {
        Segment whole = whole_block(set, block);
        kn_ema(o->graph, leaf(b, &o->state->average, &whole, "average"), leaf(b, &o->state->weights, &whole, "weights"),
               o->hyper_leaf, o->norm2);
    }
    kn_graph_finish(o->graph, &o->norm2, 1);
}

int kn_optimizer_state_create(KnOptimizerState *state, const KnParameterSet *set, const KnOptimizerConfig *config)
{
    size_t buffers = config->ema > 0 ? 5 : 4;
    *state = (KnOptimizerState){0};
    KN_TRY(kn_memory_check(buffers * kn_parameter_values_bytes(set), "weights, gradients and the optimizer's state"));
    KN_TRY(kn_parameter_values_create(&state->weights, set, "the model's weights"));
    KN_TRY(kn_parameter_values_create(&state->gradients, set, "the gradients"));
    KN_TRY(kn_parameter_values_create(&state->moment1, set, "the optimizer's first moments"));
    KN_TRY(kn_parameter_values_create(&state->moment2, set, "the optimizer's second moments"));
    if (config->ema > 0)
        KN_TRY(kn_parameter_values_create(&state->average, set, "the averaged weights"));
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

int kn_optimizer_create(KnOptimizer **optimizer, const KnOptimizerConfig *config, KnOptimizerState *state,
                        KnBackend *backend)
{
    *optimizer = NULL;
    int row = find_optimizer(config->name);
    KN_TRY(row);
    KnOptimizer *made = kn_alloc(sizeof *made);
    made->config = config;
    made->state = state;
    Builder b = {.optimizer = made,
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
