/* Optimizers: the memory of a step's state, and running the update graph (train/update_graph.h) on it. */
#ifndef KN_TRAIN_OPTIMIZER_H
#define KN_TRAIN_OPTIMIZER_H

#include "train/update_graph.h"

/* Of every buffer this rank holds what the ZeRO stage leaves it; average.blocks is NULL without ema. */
typedef struct KnOptimizerState {
    KnParameterValues weights, gradients, moment1, moment2, average;
    float *norm2;    /* borrowed: the square of the global gradient norm, where a pass finds it; NULL: an update does */
    int overwritten; /* the gradients: by each step's only pass, so that they need not be zeroed between */
    KnOffload offload; /* KN_OFFLOAD_OPTIMIZER: moments and averages stay in the host's memory, pinned */
    float *loss; /* borrowed: where it is not finite an update changes nothing; NULL: the gradient alone says so */
} KnOptimizerState;

/* Allocates all buffers, zeroed. */
int kn_optimizer_state_create(KnOptimizerState *state, const KnZero *zero, const KnOptimizerConfig *config);
void kn_optimizer_state_clear(KnOptimizerState *state);

/* On a backend with a device all buffers have twins (core/graph/twin.h) that the passes and updates work on. A push
 * copies all but the gradients there, a pull brings them back, for checkpoints. No-ops on the CPU. */
int kn_optimizer_state_place(KnOptimizerState *state, KnBackend *backend);
void kn_optimizer_state_withdraw(KnOptimizerState *state, KnBackend *backend);
int kn_optimizer_state_push(KnOptimizerState *state, KnBackend *backend);
int kn_optimizer_state_pull(KnOptimizerState *state, KnBackend *backend);

/* After a step, whether its gradients were used or not: they are as the next one's passes want them. */
int kn_optimizer_state_next(KnOptimizerState *state, KnBackend *backend);

typedef struct KnOptimizer KnOptimizer;

/* Builds and binds the update graph; `state`, `config` and `layout` must outlive it. KN_EINPUT names the optimizers
 * there are. */
int kn_optimizer_create(KnOptimizer **optimizer, const KnOptimizerConfig *config, const KnLayout *layout,
                        KnOptimizerState *state, KnBackend *backend);
void kn_optimizer_destroy(KnOptimizer *optimizer);

/* One step: number `step` (from 0) of `steps` by the configured schedule. The gradient buffers hold the step's sum;
 * they are zeroed afterwards, unless they are overwritten. *norm receives the global gradient norm, which the host
 * waits for; when it is not finite, or not a number since the loss was not finite, nothing else changed. `updates` is
 * how many updates were made before (bias corrections count those). */
int kn_optimizer_step(KnOptimizer *optimizer, int64_t step, int64_t steps, int64_t updates, double *norm);

KnExecutor *kn_optimizer_executor(const KnOptimizer *optimizer);
const KnUpdateGraph *kn_optimizer_graph(const KnOptimizer *optimizer);
const KnPlan *kn_optimizer_plan(const KnOptimizer *optimizer);
char *kn_optimizer_profile(const KnOptimizer *optimizer); /* free() it */

/* Share of the peak learning rate at `step` of `steps`: warm-up, then constant until the last decay_fraction. */
double kn_learning_rate_factor(const KnOptimizerConfig *config, int64_t step, int64_t steps);

#endif
