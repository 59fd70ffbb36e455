/* Optimizers: rows of a table, each a way to append one step's update nodes for a block's buffers.
 *
 * The update is a graph of its own: square of the global gradient norm, then for each block the step and the averaged
 * weights, all in place on what this rank holds of the block buffers; where weights are held whole but updated in
 * parts (ZeRO 1 and 2), they are gathered. Where the norm is not finite no weight, moment or average changes. */
#ifndef KN_TRAIN_OPTIMIZER_H
#define KN_TRAIN_OPTIMIZER_H

#include "core/base/config.h"
#include "core/graph/executor.h"
#include "dist/layout.h"

/* Of every buffer this rank holds what the ZeRO stage leaves it; average.blocks is NULL without ema. */
typedef struct KnOptimizerState {
    KnParameterValues weights, gradients, moment1, moment2, average;
    float *norm2; /* borrowed: the square of the global gradient norm, where a pass finds it; NULL: an update does */
} KnOptimizerState;

/* Does the optimizer update matrices as wholes, so that they must not be cut? */
int kn_optimizer_whole_matrices(const KnOptimizerConfig *config);

/* Allocates all buffers, zeroed. */
int kn_optimizer_state_create(KnOptimizerState *state, const KnZero *zero, const KnOptimizerConfig *config);
void kn_optimizer_state_clear(KnOptimizerState *state);

typedef struct KnOptimizer KnOptimizer;

/* Builds and binds the update graph; `state`, `config` and `layout` must outlive it. KN_EINPUT names the optimizers
 * there are. */
int kn_optimizer_create(KnOptimizer **optimizer, const KnOptimizerConfig *config, const KnLayout *layout,
                        KnOptimizerState *state, KnBackend *backend);
void kn_optimizer_destroy(KnOptimizer *optimizer);

/* One step: number `step` (from 0) of `steps` by the configured schedule. The gradient buffers hold the step's sum;
 * they are zeroed afterwards. *norm receives the global gradient norm; when it is not finite nothing else changed.
 * `updates` is how many updates were made before (bias corrections count those). */
int kn_optimizer_step(KnOptimizer *optimizer, int64_t step, int64_t steps, int64_t updates, double *norm);

const KnPlan *kn_optimizer_plan(const KnOptimizer *optimizer);
char *kn_optimizer_profile(const KnOptimizer *optimizer); /* free() it */

/* Share of the peak learning rate at `step` of `steps`: warm-up, then constant until the last decay_fraction. */
double kn_learning_rate_factor(const KnOptimizerConfig *config, int64_t step, int64_t steps);

#endif
