/* Noise levels, masks and targets of training; velocities of sampling. */
#include "core/model/flow.h"

#include "core/base/error.h"
#include "core/base/random.h"

#include <math.h>
#include <string.h>

double kn_flow_shift(double sigma, double shift)
{
    return shift * sigma / (1 + (shift - 1) * sigma);
}

float kn_flow_draw_sigma(const KnFlowConfig *flow, uint64_t seed, uint64_t step, uint64_t clip)
{
    KnRandomKey key = kn_random_key(seed, KN_RANDOM_SIGMA, step, clip);
    double sigma = flow->distribution == KN_SIGMA_LOGIT_NORMAL ? 1 / (1 + exp(-(double)kn_random_normal(key, 0)))
                                                               : kn_random_uniform(key, 0);
    sigma = kn_flow_shift(sigma, flow->shift);
    return (float)fmin(fmax(sigma, 1e-4), 1 - 1e-6);
}

typedef enum GivenKind { GIVEN_NONE, GIVEN_FIRST, GIVEN_FIRST_FRAMES, GIVEN_BOTH_ENDS, GIVEN_RANDOM } GivenKind;

static GivenKind draw_kind(const KnFlowConfig *flow, double u)
{
    const double weights[] = {flow->given_none, flow->given_first, flow->given_first_frames, flow->given_both_ends,
                              flow->given_random};
    double total = 0;
    for (int i = 0; i < 5; i++)
        total += weights[i];
    for (int i = 0; i < 5; i++) {
        u -= weights[i] / total;
        if (u < 0)
            return (GivenKind)i;
    }
    return GIVEN_NONE;
}

int64_t kn_flow_draw_given(const KnFlowConfig *flow, uint64_t seed, uint64_t step, uint64_t clip, const int64_t grid[3],
                           uint8_t *given)
{
    KnRandomKey key = kn_random_key(seed, KN_RANDOM_MASK, step, clip);
    int64_t frame = grid[1] * grid[2], count = grid[0] * frame, total = 0;
    GivenKind kind = draw_kind(flow, kn_random_uniform(key, 0));
    int64_t first = 0, last = 0; /* frames given at either end */
    memset(given, 0, (size_t)count);
    if (kind == GIVEN_RANDOM) {
        double share = kn_random_uniform(key, 1);
        for (int64_t i = 0; i < count; i++)
            given[i] = kn_random_uniform(key, 8 + (uint64_t)i) < share;
    } else if (kind != GIVEN_NONE && grid[0] > 1) {
        first = kind == GIVEN_FIRST_FRAMES ? 1 + (int64_t)kn_random_below(key, 2, (uint64_t)grid[0] - 1) : 1;
        last = kind == GIVEN_BOTH_ENDS && grid[0] > 2;
        memset(given, 1, (size_t)(first * frame));
        memset(given + (grid[0] - last) * frame, 1, (size_t)(last * frame));
    }
    for (int64_t i = 0; i < count; i++)
        total += given[i];
    if (total == count) {
        memset(given, 0, (size_t)count);
        total = 0;
    }
    return total;
}

float kn_flow_noise_token(const KnFlowConfig *flow, float sigma, int given, int64_t dim, const float *x0,
                          const float *noise, float *x_sigma, float *target)
{
    int sample = flow->prediction == KN_PREDICT_SAMPLE;
    float floored = fmaxf(sigma, KN_SIGMA_FLOOR);
    if (given)
        sigma = 0;
    for (int64_t i = 0; i < dim; i++) {
        float clean = x0[i], unit = noise[i];
        x_sigma[i] = (1 - sigma) * clean + sigma * unit;
        target[i] = sample ? clean : unit - clean;
    }
    if (given)
        return 0;
    return sample ? 1 / (floored * floored) : 1;
}

void kn_flow_to_velocity(KnPrediction prediction, float sigma, const float *x_sigma, float *output, int64_t count)
{
    if (prediction == KN_PREDICT_VELOCITY)
        return;
    float scale = 1 / fmaxf(sigma, KN_SIGMA_FLOOR);
    for (int64_t i = 0; i < count; i++)
        output[i] = (x_sigma[i] - output[i]) * scale;
}
