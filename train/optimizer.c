/* The optimizer's memory, and running its update graph. */
#include "train/optimizer.h"

#include "core/base/error.h"
#include "core/ops/ops.h"

#include <math.h>
#include <stdlib.h>

struct KnOptimizer {
    const KnOptimizerConfig *config;
    KnOptimizerState *state;
    KnUpdateGraph update;
    KnExecutor *executor;
    KnBackend *backend;
    float hyper[KN_HYPER_COUNT];
};

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

typedef struct Named {
    KnParameterValues *values;
    const char *what;
} Named;

enum { NAMED = 5 };

static void name_values(KnOptimizerState *state, Named named[NAMED])
{
    named[0] = (Named){&state->weights, "the model's weights"};
    named[1] = (Named){&state->moment1, "the optimizer's first moments"};
    named[2] = (Named){&state->moment2, "the optimizer's second moments"};
    named[3] = (Named){&state->average, "the averaged weights"};
    named[4] = (Named){&state->gradients, "the gradients"};
}

int kn_optimizer_state_place(KnOptimizerState *state, KnBackend *backend)
{
    Named named[NAMED];
    name_values(state, named);
    for (int i = 0; i < NAMED; i++) {
        int is_kept = named[i].values == &state->weights || named[i].values == &state->gradients;
        int is_pinned = state->offload == KN_OFFLOAD_OPTIMIZER && !is_kept;
        KN_TRY((is_pinned ? kn_parameter_values_place_pinned : kn_parameter_values_place)(named[i].values, backend,
                                                                                          named[i].what));
    }
    return KN_OK;
}

void kn_optimizer_state_withdraw(KnOptimizerState *state, KnBackend *backend)
{
    Named named[NAMED];
    name_values(state, named);
    for (int i = 0; i < NAMED; i++)
        kn_parameter_values_withdraw(named[i].values, backend);
}

int kn_optimizer_state_push(KnOptimizerState *state, KnBackend *backend)
{
    Named named[NAMED];
    name_values(state, named);
    for (int i = 0; i + 1 < NAMED; i++) /* gradients are the device's alone */
        KN_TRY(kn_parameter_values_push(named[i].values, backend));
    return KN_OK;
}

int kn_optimizer_state_pull(KnOptimizerState *state, KnBackend *backend)
{
    Named named[NAMED];
    name_values(state, named);
    for (int i = 0; i + 1 < NAMED; i++)
        KN_TRY(kn_parameter_values_pull(named[i].values, backend));
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

static void bind(KnOptimizer *o, const KnUpdateBinding *binding)
{
    KnParameterValues *const buffers[] = {[KN_UPDATE_WEIGHTS] = &o->state->weights,
                                          [KN_UPDATE_GRADIENTS] = &o->state->gradients,
                                          [KN_UPDATE_MOMENT1] = &o->state->moment1,
                                          [KN_UPDATE_MOMENT2] = &o->state->moment2,
                                          [KN_UPDATE_AVERAGE] = &o->state->average};
    const KnParameterValues *values = buffers[binding->buffer];
    int64_t at = binding->offset - values->first[binding->block];
    KN_ASSERT(at >= 0 && at + kn_tensor_elements(binding->leaf) <= values->count[binding->block]);
    kn_executor_bind(o->executor, binding->leaf, values->blocks[binding->block] + at);
}

int kn_optimizer_state_next(KnOptimizerState *state, KnBackend *backend)
{
    return state->overwritten ? KN_OK : kn_parameter_values_zero(&state->gradients, backend);
}

int kn_optimizer_create(KnOptimizer **optimizer, const KnOptimizerConfig *config, const KnLayout *layout,
                        KnOptimizerState *state, KnBackend *backend)
{
    KnOptimizer *made = kn_alloc(sizeof *made);
    *optimizer = NULL;
    made->config = config;
    made->state = state;
    made->backend = backend;
    int given = (state->norm2 ? KN_UPDATE_NORM_GIVEN : 0) | (state->loss ? KN_UPDATE_LOSS_GIVEN : 0);
    int code = kn_update_graph_create(&made->update, config, layout, given);
    if (code == KN_OK)
        code = kn_executor_create(&made->executor, made->update.graph, backend, &made->update.norm2, 1);
    if (code < 0) {
        kn_optimizer_destroy(made);
        return code;
    }
    for (int i = 0; i < made->update.binding_count; i++)
        bind(made, &made->update.bindings[i]);
    if (state->norm2)
        kn_executor_bind(made->executor, made->update.given_norm2, state->norm2);
    if (state->loss)
        kn_executor_bind(made->executor, made->update.loss, state->loss);
    kn_executor_bind(made->executor, made->update.hyper, made->hyper);
    kn_executor_set_comms(made->executor, kn_layout_comms(layout));
    *optimizer = made;
    return KN_OK;
}

void kn_optimizer_destroy(KnOptimizer *optimizer)
{
    if (!optimizer)
        return;
    kn_executor_destroy(optimizer->executor);
    kn_update_graph_destroy(&optimizer->update);
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
    KN_TRY(kn_optimizer_state_next(optimizer->state, optimizer->backend));
    float norm2;
    KN_TRY(kn_executor_read(optimizer->executor, optimizer->update.norm2, &norm2));
    *norm = sqrt((double)norm2);
    return KN_OK;
}

KnExecutor *kn_optimizer_executor(const KnOptimizer *optimizer)
{
    return optimizer->executor;
}

const KnUpdateGraph *kn_optimizer_graph(const KnOptimizer *optimizer)
{
    return &optimizer->update;
}

const KnPlan *kn_optimizer_plan(const KnOptimizer *optimizer)
{
    return kn_executor_plan(optimizer->executor);
}

char *kn_optimizer_profile(const KnOptimizer *optimizer)
{
    return kn_executor_profile(optimizer->executor);
}
