/* What the optimizers' kernels share: clipping by the global gradient norm, and skipping a step that is not finite. */
#ifndef KN_CPU_SIMD_UPDATE_H
#define KN_CPU_SIMD_UPDATE_H

#include "core/cpu/simd/kernel.h"

#include <math.h>

/* What the gradient is multiplied by so that its norm is at most `clip` (0: never clipped). */
static inline float kn_clip_factor(const float *hyper, float norm2)
{
    float clip = hyper[KN_HYPER_CLIP], norm = sqrtf(norm2);
    return clip > 0 && norm > clip ? clip / norm : 1.0f;
}

static inline const KnUpdateAttributes *kn_update_of(const KnNode *node)
{
    return (const KnUpdateAttributes *)node->attributes;
}

#endif
