/* Rectified flow: the noise schedule, the objective, and what the network's output means.
 *
 * x_sigma = (1 - sigma) x0 + sigma noise; the velocity is noise - x0 (Liu et al., 2022; Lipman et al., 2022). A network
 * predicts the velocity, or the sample x0 itself, whose velocity is (x_sigma - x0) / sigma; the loss is on velocity
 * either way, with sigma kept from below for the latter. Given patches stay x0 and carry no loss. */
#ifndef KN_MODEL_FLOW_H
#define KN_MODEL_FLOW_H

#include "core/base/config.h"

/* Where sample prediction stops dividing by ever smaller sigmas. */
#define KN_SIGMA_FLOOR 0.05f

/* sigma' = shift sigma / (1 + (shift - 1) sigma) */
double kn_flow_shift(double sigma, double shift);

/* The sigma of a training clip, in (0, 1): a function of (seed, step, clip). */
float kn_flow_draw_sigma(const KnFlowConfig *flow, uint64_t seed, uint64_t step, uint64_t clip);

/* Which patches of a clip of `grid` patches are given, drawn from the configured mix: given[t y x] = 0 or 1. At least
 * one patch is left to denoise. Returns how many are given. */
int64_t kn_flow_draw_given(const KnFlowConfig *flow, uint64_t seed, uint64_t step, uint64_t clip, const int64_t grid[3],
                           uint8_t *given);

/* One token of `dim` values: from x0 and unit noise to the network's input and its training target.
 * x_sigma may be the memory of noise, and target that of x0. `given` tokens become x0. Returns the weight of the
 * token's squared error that makes it one of velocity (0 where given); normalization over tokens is the caller's. */
float kn_flow_noise_token(const KnFlowConfig *flow, float sigma, int given, int64_t dim, const float *x0,
                          const float *noise, float *x_sigma, float *target);

/* Turns the network's output on x_sigma into a velocity, in place, for `count` values. */
void kn_flow_to_velocity(KnPrediction prediction, float sigma, const float *x_sigma, float *output, int64_t count);

#endif
