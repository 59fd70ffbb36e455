/* What kernels share beside vectors: sizes of grids, sums over a block, faults. Only in kernels. */
#ifndef KN_CUDA_GRID_H
#define KN_CUDA_GRID_H

#include "core/cuda/kernel.h"
#include "core/cuda/kernels.h"

constexpr int KN_THREADS = 256;

/* On the host: how many blocks of KN_THREADS threads give each thread one item, as far as `most` goes. */
static inline unsigned kn_blocks(int64_t items, int64_t most = 1 << 20)
{
    int64_t blocks = (items + KN_THREADS - 1) / KN_THREADS;
    return (unsigned)(blocks < most ? blocks : most);
}

/* A thread's first item and how far apart its items are. */
__device__ __forceinline__ int64_t kn_first()
{
    return (int64_t)blockIdx.x * KN_THREADS + threadIdx.x;
}

__device__ __forceinline__ int64_t kn_step()
{
    return (int64_t)gridDim.x * KN_THREADS;
}

__device__ __forceinline__ float kn_warp_sum(float value)
{
#pragma unroll
    for (int offset = 16; offset; offset /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

/* The sum over a block of KN_THREADS threads, to all of them, always in the same order. All threads must call it. */
__device__ __forceinline__ float kn_block_sum(float value)
{
    __shared__ float warps[KN_THREADS / 32];
    value = kn_warp_sum(value);
    __syncthreads(); /* a former call's sums may still be read */
    if (threadIdx.x % 32 == 0)
        warps[threadIdx.x / 32] = value;
    __syncthreads();
    float sum = 0;
#pragma unroll
    for (int i = 0; i < KN_THREADS / 32; i++)
        sum += warps[i];
    return sum;
}

/* Keeps the first fault that comes. */
__device__ __forceinline__ void kn_report(KnCudaFault *fault, int kind, int64_t position, int value, int64_t limit)
{
    if (atomicCAS(&fault->kind, (int)KN_CUDA_NO_FAULT, kind) != KN_CUDA_NO_FAULT)
        return;
    fault->position = position;
    fault->value = value;
    fault->limit = limit;
}

/* By a block or a warp whose token this is: the row that it belongs to. A wild one is reported and taken for 0. */
__device__ __forceinline__ int64_t kn_row_of(const int32_t *row_of, int64_t token, int64_t rows, KnCudaFault *fault)
{
    const int row = row_of[token];
    if (row >= 0 && row < rows)
        return row;
    if (threadIdx.x % 32 == 0)
        kn_report(fault, KN_CUDA_WILD_INDEX, token, row, rows);
    return 0;
}

#endif
