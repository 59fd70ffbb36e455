/* What the optimizers' kernels share. Only in kernels. */
#ifndef KN_CUDA_UPDATE_H
#define KN_CUDA_UPDATE_H

#include "core/cuda/kernel.h"

/* What the gradient is multiplied by so that its norm is at most `clip` (0: never clipped). */
__device__ __forceinline__ float kn_clip_factor(float clip, float norm2)
{
    const float norm = sqrtf(norm2);
    return clip > 0 && norm > clip ? clip / norm : 1.0f;
}

#endif
