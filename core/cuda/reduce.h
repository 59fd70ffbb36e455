/* Sums over a warp and over a block, in a fixed order. */
#ifndef KN_CUDA_REDUCE_H
#define KN_CUDA_REDUCE_H

#include "core/cuda/kernel.h"

__device__ __forceinline__ float kn_warp_sum(float value)
{
#pragma unroll
    for (int flip = 16; flip; flip >>= 1)
        value += __shfl_xor_sync(0xffffffffu, value, flip);
    return value;
}

/* For blocks of THREADS threads, a multiple of 32; every thread gets the sum. */
template <int THREADS> __device__ __forceinline__ float kn_block_sum(float value)
{
    __shared__ float sums[THREADS / 32];
    value = kn_warp_sum(value);
    __syncthreads(); /* the sums of a former call have been read */
    if (threadIdx.x % 32 == 0)
        sums[threadIdx.x / 32] = value;
    __syncthreads();
    float total = 0;
#pragma unroll
    for (int warp = 0; warp < THREADS / 32; warp++)
        total += sums[warp];
    return total;
}

#endif
