/* Sums over tokens, into one row or into the row that each token belongs to: gradients of biases, and the scatter that
 * is a gather's gradient. Only in kernels.
 *
 * A block takes one row, a tile of columns and a slab of the tokens, and adds the row's tokens in their order; the
 * slabs' sums are then added in theirs. So the bits depend on the shapes alone. What is added is a functor:
 *
 *     template <int LANES> __device__ void add(int64_t token, int64_t column, float (&sums)[LANES]) const;
 *
 * Where a pass over the tokens sums something beside, as core/cuda/row_pass.h does, it adds its slabs by kn_add_slabs.
 */
#ifndef KN_CUDA_ROW_SUM_H
#define KN_CUDA_ROW_SUM_H

#include "core/cuda/grid.h"
#include "core/cuda/slabs.h"
#include "core/cuda/vector.h"

struct KnRowSum {
    const int32_t *row_of; /* [tokens]; NULL: all to row 0. Tokens of no row are left out */
    int64_t tokens, rows, columns;
    int slabs;
    void *out; /* [rows, columns] */
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

static __device__ __forceinline__ void kn_put_sum(void *out, int bf16, int64_t at, float value)
{
    if (bf16)
        ((__nv_bfloat16 *)out)[at] = __float2bfloat16_rn(value);
    else
        ((float *)out)[at] = value;
}

template <class F, int LANES> static __global__ void __launch_bounds__(KN_THREADS) kn_row_sum_kernel(F f, KnRowSum s)
{
    __shared__ int places[KN_THREADS];
    const int64_t row = blockIdx.x, column = ((int64_t)blockIdx.y * KN_THREADS + threadIdx.x) * LANES;
    const int64_t slabs = gridDim.z, slab = blockIdx.z, size = s.rows * s.columns;
    const int64_t begin = s.tokens * slab / slabs, end = s.tokens * (slab + 1) / slabs;
    float sums[LANES] = {};
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
    for (int k = 0; k < LANES; k++) {
        const int64_t at = row * s.columns + column + k;
        if (slabs == 1)
            kn_put_sum(s.out, s.out_bf16, at, sums[k]);
        else
            s.workspace[slab * size + at] = sums[k];
    }
}

/* The first and last row that a slab has sums of. */
struct KnRowRange {
    int first, last;
};

/* Behind the sums of two results: [slabs]. */
static inline __host__ __device__ KnRowRange *kn_slab_ranges(float *workspace, int64_t slabs, int64_t rows,
                                                             int64_t columns)
{
    return reinterpret_cast<KnRowRange *>(workspace + 2 * slabs * rows * columns);
}

/* What is to be added: [results, slabs, rows, columns]. */
struct KnSlabSums {
    const float *workspace;
    const KnRowRange *ranges; /* [slabs]; NULL: all rows */
    int64_t slabs, rows, columns;
    void *out[4]; /* a NULL is left out */
    int out_bf16;
    int joins; /* a bit for each result that is [columns], the sum over all rows */
};

/* One slab's part of a sum. */
static __device__ __forceinline__ float kn_part_of(const KnSlabSums &s, int which, int64_t slab, int64_t row,
                                                   int64_t column)
{
    const float *sums = s.workspace + (which * s.slabs + slab) * s.rows * s.columns + column;
    if (!s.ranges)
        return sums[row * s.columns];
    const KnRowRange range = s.ranges[slab];
    if (!(s.joins >> which & 1))
        return row >= range.first && row <= range.last ? sums[row * s.columns] : 0.0f;
    float sum = 0;
    for (int r = range.first; r <= range.last; r++)
        sum += sums[r * s.columns];
    return sum;
}

/* Blocks are (32 sums, result): warp w adds the slabs numbered w, w + KN_SLAB_WARPS, ..., then the warps' sums are
 * added in order. */
static __global__ void __launch_bounds__(32 * KN_SLAB_WARPS, 2) kn_add_slabs_kernel(KnSlabSums s)
{
    __shared__ float parts[KN_SLAB_WARPS][32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, which = blockIdx.y;
    const int64_t at = (int64_t)blockIdx.x * 32 + lane, row = at / s.columns, column = at % s.columns;
    /* an index would need local memory */
    void *out = which == 0 ? s.out[0] : which == 1 ? s.out[1] : which == 2 ? s.out[2] : s.out[3];
    const bool mine = out && row < (s.joins >> which & 1 ? 1 : s.rows);
    const int64_t end = mine ? s.slabs : 0;
    float sum = 0;
#pragma unroll KN_SUMS_AT_ONCE
    for (int64_t slab = warp; slab < end; slab += KN_SLAB_WARPS)
        sum += kn_part_of(s, which, slab, row, column);
    parts[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || !mine)
        return;
    sum = 0;
#pragma unroll
    for (int i = 0; i < KN_SLAB_WARPS; i++)
        sum += parts[i][lane];
    kn_put_sum(out, s.out_bf16, at, sum);
}

static cudaError_t kn_add_slabs(const KnSlabSums &s, int results, cudaStream_t stream)
{
    const dim3 grid((unsigned)((s.rows * s.columns + 31) / 32), (unsigned)results);
    KN_LAUNCH(kn_add_slabs_kernel, grid, 32 * KN_SLAB_WARPS, 0, stream, s);
    return cudaGetLastError();
}

/* `wide`: rows may be read sixteen bytes of T at a time. */
template <class T, class F> static cudaError_t kn_row_sum(F f, const KnRowSum &s, bool wide, cudaStream_t stream)
{
    constexpr int lanes = KnLanes<T>::count;
    if (s.rows == 0 || s.columns == 0)
        return cudaSuccess;
    wide = wide && s.columns % lanes == 0;
    const int64_t tile = wide ? KN_THREADS * lanes : KN_THREADS;
    const dim3 grid((unsigned)s.rows, (unsigned)((s.columns + tile - 1) / tile), (unsigned)s.slabs);
    if (wide)
        KN_LAUNCH((kn_row_sum_kernel<F, lanes>), grid, KN_THREADS, 0, stream, f, s);
    else
        KN_LAUNCH((kn_row_sum_kernel<F, 1>), grid, KN_THREADS, 0, stream, f, s);
    if (cudaError_t error = cudaGetLastError())
        return error;
    if (s.slabs == 1)
        return cudaSuccess;
    return kn_add_slabs({s.workspace, nullptr, s.slabs, s.rows, s.columns, {s.out}, s.out_bf16, 0}, 1, stream);
}

#endif
