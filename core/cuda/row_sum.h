/* Sums over tokens, into one row or into the row that each token belongs to: gradients of biases, norms' weights and
 * modulation, and the scatter that is a gather's gradient. Only in kernels.
 *
 * A block takes one row, a tile of columns and a slab of the tokens, and adds the row's tokens in their order; the
 * slabs' sums are then added in theirs. So the bits depend on the shapes alone. What is added is a functor:
 *
 *     struct F {
 *         static constexpr int results = 1;    // or 2
 *         template <int LANES> __device__ void add(int64_t token, int64_t column, float (&sums)[2][LANES]) const;
 *     };
 */
#ifndef KN_CUDA_ROW_SUM_H
#define KN_CUDA_ROW_SUM_H

#include "core/cuda/grid.h"
#include "core/cuda/vector.h"

/* So many loads of a thread are under way together; the sums' order is that of a plain loop. */
constexpr int KN_SUMS_AT_ONCE = 4;

/* Where the sums go; a NULL is left out. */
struct KnRowSum {
    const int32_t *row_of; /* [tokens]; NULL: all to row 0. Tokens of no row are left out */
    int64_t tokens, rows, columns;
    void *out[2]; /* [rows, columns] */
    int out_bf16;
    float *workspace;
};

/* Which of the next KN_THREADS tokens belong to the row: their places, in order, and how many. */
static __device__ __forceinline__ int kn_find_tokens(const KnRowSum &s, int64_t first, int64_t end, int64_t row,
                                                     int *places)
{
    __shared__ int counts[KN_THREADS / 32];
    const int64_t token = first + threadIdx.x;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const bool mine = token < end && (!s.row_of || s.row_of[token] == row);
    const unsigned votes = __ballot_sync(0xffffffffu, mine);
    __syncthreads(); /* the former list may still be read */
    if (lane == 0)
        counts[warp] = __popc(votes);
    __syncthreads();
    int before = 0, total = 0;
    for (int i = 0; i < KN_THREADS / 32; i++) {
        before += i < warp ? counts[i] : 0;
        total += counts[i];
    }
    if (mine)
        places[before + __popc(votes & ((1u << lane) - 1))] = (int)threadIdx.x;
    __syncthreads();
    return total;
}

static __device__ __forceinline__ void kn_put_sum(const KnRowSum &s, int which, int64_t at, float value)
{
    if (!s.out[which])
        return;
    if (s.out_bf16)
        ((__nv_bfloat16 *)s.out[which])[at] = __float2bfloat16_rn(value);
    else
        ((float *)s.out[which])[at] = value;
}

template <class F, int LANES> static __global__ void __launch_bounds__(KN_THREADS) kn_row_sum_kernel(F f, KnRowSum s)
{
    __shared__ int places[KN_THREADS];
    const int64_t row = blockIdx.x, column = ((int64_t)blockIdx.y * KN_THREADS + threadIdx.x) * LANES;
    const int64_t slabs = gridDim.z, slab = blockIdx.z, size = s.rows * s.columns;
    const int64_t begin = s.tokens * slab / slabs, end = s.tokens * (slab + 1) / slabs;
    float sums[2][LANES] = {};
    for (int64_t first = begin; first < end; first += KN_THREADS) {
        const int count = kn_find_tokens(s, first, end, row, places);
        const int mine = column < s.columns ? count : 0;
#pragma unroll KN_SUMS_AT_ONCE
        for (int i = 0; i < mine; i++)
            f.template add<LANES>(first + places[i], column, sums);
    }
    if (column >= s.columns)
        return;
#pragma unroll
    for (int which = 0; which < F::results; which++)
#pragma unroll
        for (int k = 0; k < LANES; k++) {
            const int64_t at = row * s.columns + column + k;
            if (slabs == 1)
                kn_put_sum(s, which, at, sums[which][k]);
            else
                s.workspace[(which * slabs + slab) * size + at] = sums[which][k];
        }
}

/* A block adds the slabs of 32 sums: warp w those numbered w, w + KN_SLAB_WARPS, ..., then the warps' sums in order. */
constexpr int KN_SLAB_WARPS = KN_THREADS / 32;
template <int SUMS> static __global__ void __launch_bounds__(KN_THREADS) kn_add_slabs_kernel(KnRowSum s, int slabs)
{
    __shared__ float parts[SUMS][KN_SLAB_WARPS][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64_t size = s.rows * s.columns, at = (int64_t)blockIdx.x * 32 + lane;
#pragma unroll
    for (int which = 0; which < SUMS; which++) {
        float sum = 0;
        const int end = at < size ? slabs : 0;
#pragma unroll KN_SUMS_AT_ONCE
        for (int slab = warp; slab < end; slab += KN_SLAB_WARPS)
            sum += s.workspace[((int64_t)which * slabs + slab) * size + at];
        parts[which][warp][lane] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int which = 0; which < SUMS; which++) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < KN_SLAB_WARPS; i++)
            sum += parts[which][i][lane];
        if (warp == which && at < size)
            kn_put_sum(s, which, at, sum);
    }
}

/* `wide`: rows may be read sixteen bytes of T at a time. */
template <class T, class F> static cudaError_t kn_row_sum(F f, const KnRowSum &s, bool wide, cudaStream_t stream)
{
    constexpr int lanes = KnLanes<T>::count;
    const int slabs = kn_cuda_row_sum_slabs(s.tokens, s.rows, s.columns);
    if (s.rows == 0 || s.columns == 0 || (!s.out[0] && !s.out[1]))
        return cudaSuccess;
    wide = wide && s.columns % lanes == 0;
    const int64_t tile = wide ? KN_THREADS * lanes : KN_THREADS;
    const dim3 grid((unsigned)s.rows, (unsigned)((s.columns + tile - 1) / tile), (unsigned)slabs);
    if (wide)
        KN_LAUNCH((kn_row_sum_kernel<F, lanes>), grid, KN_THREADS, 0, stream, f, s);
    else
        KN_LAUNCH((kn_row_sum_kernel<F, 1>), grid, KN_THREADS, 0, stream, f, s);
    if (cudaError_t error = cudaGetLastError())
        return error;
    if (slabs == 1)
        return cudaSuccess;
    KN_LAUNCH((kn_add_slabs_kernel<F::results>), (unsigned)((s.rows * s.columns + 31) / 32), KN_THREADS, 0, stream, s,
              slabs);
    return cudaGetLastError();
}

#endif
