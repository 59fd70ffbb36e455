/* What attention's kernels on tensor cores share: tiles in shared memory, and products of tiles. Only in kernels.
 *
 * A block has four warps. Each has M times 16 rows of the block's own tile, in fragments of float32 (tensor_core.h says
 * which lane has what), and passes over tiles of rows of the other side. A tile has D columns, heads of fewer are
 * filled up with zeros; its rows' pieces of 16 bytes are permuted, so that eight rows of one column lie in different
 * banks. */
#ifndef KN_CUDA_ATTENTION_TENSOR_H
#define KN_CUDA_ATTENTION_TENSOR_H

#include "core/cuda/attention.h"
#include "core/cuda/tensor_core.h"

constexpr int KN_WARPS = 4, KN_TENSOR_THREADS = 32 * KN_WARPS;

typedef __nv_bfloat16 KnBf16;

__device__ __forceinline__ int kn_lane()
{
    return (int)threadIdx.x % 32;
}

__device__ __forceinline__ int kn_warp()
{
    return (int)threadIdx.x / 32;
}

/* Asked for seldom, and not to be kept in registers: of fragment m, the row that elements 2h and 2h + 1 are in, counted
 * from the block's first; of fragment n, the column that element `odd` of a pair is in. */
template <int M> __device__ __forceinline__ int kn_fragment_row(int m, int h)
{
    const int thread = kn_fresh((int)threadIdx.x);
    return (thread / 32 * M + m) * 16 + thread % 32 / 4 + h * 8;
}

__device__ __forceinline__ int kn_fragment_column(int n, int odd)
{
    return n * 8 + kn_fresh((int)threadIdx.x) % 4 * 2 + odd;
}

/* ---- tiles ---- */

/* Where eight columns of a row are, from the tile's start. For an even number more of pieces, `^ 8 * more` finds them
 * in the same row. */
template <int D> __device__ __forceinline__ int kn_place(int row, int piece)
{
    return row * D + (piece ^ (row & 7)) * 8;
}

/* Begins to copy rows [first, first + count) of the block's head; the tile's other rows and columns become zeros. */
template <int ROWS, int D>
__device__ __forceinline__ void kn_begin_tile(KnBf16 *tile, const KnCudaAttention &a, const void *x, int first,
                                              int count)
{
    constexpr int pieces = D / 8, rows = KN_TENSOR_THREADS / pieces;
    const int thread = kn_fresh((int)threadIdx.x), piece = thread % pieces, row = thread / pieces;
    const int64_t width = a.heads * a.size;
    const KnBf16 *from = (const KnBf16 *)x + (int64_t)(first + row) * width + blockIdx.y * a.size + piece * 8;
#pragma unroll 1
    for (int i = 0; i < ROWS; i += rows, from += rows * width) {
        const bool there = row + i < count && piece * 8 < a.size;
        kn_copy_async16(tile + kn_place<D>(row + i, piece), there ? from : x, there);
    }
}

/* The same of a statistic of each row. */
template <int ROWS>
__device__ __forceinline__ void kn_begin_statistic(float *tile, const float *x, int first, int count)
{
    static_assert(ROWS <= KN_TENSOR_THREADS, "a thread for each row");
    const int row = (int)threadIdx.x;
    if (row < ROWS)
        kn_copy_async4(tile + row, row < count ? x + first + row : x, row < count);
}

/* ---- products ---- */

/* products[m][n] += the warp's rows of `own` times rows 8n.. of `other`, over the columns of both. */
template <int D, int M, int OTHERS>
__device__ __forceinline__ void kn_multiply(KnBf16 *own, KnBf16 *other, float (&products)[M][OTHERS / 8][4])
{
    const int thread = kn_fresh((int)threadIdx.x), lane = thread % 32;
    const int own_place = kn_place<D>(thread / 32 * M * 16 + lane % 16, lane / 16);
    const int other_place = kn_place<D>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t a[M][4], b[4];
#pragma unroll
        for (int m = 0; m < M; m++)
            kn_ldmatrix(a[m], own + (own_place ^ 16 * k) + m * 16 * D);
#pragma unroll
        for (int n = 0; n < OTHERS / 16; n++) {
            kn_ldmatrix(b, other + (other_place ^ 16 * k) + n * 16 * D);
#pragma unroll
            for (int m = 0; m < M; m++) {
                kn_mma(products[m][2 * n], a[m], b[0], b[1]);
                kn_mma(products[m][2 * n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

/* sums[m][n] += weights, rounded, times columns 8n.. of `other`, over its rows. */
template <int D, int M, int OTHERS>
__device__ __forceinline__ void kn_accumulate(const float (&weights)[M][OTHERS / 8][4], KnBf16 *other,
                                              float (&sums)[M][D / 8][4])
{
    const int lane = kn_fresh((int)threadIdx.x) % 32, place = kn_place<D>(lane % 16, lane / 16);
#pragma unroll
    for (int k = 0; k < OTHERS / 16; k++) {
        uint32_t a[M][4], b[4];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float(&w)[4] = weights[m][2 * k + i / 2];
                a[m][i] = kn_pack(w[i % 2 * 2], w[i % 2 * 2 + 1]);
            }
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            kn_ldmatrix_transposed(b, other + (place ^ 16 * n) + k * 16 * D);
#pragma unroll
            for (int m = 0; m < M; m++) {
                kn_mma(sums[m][2 * n], a[m], b[0], b[1]);
                kn_mma(sums[m][2 * n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

/* ---- what is not in the span ---- */

/* Which rows of the block's tile, and how many of the other side's, the present tiles have in common. */
struct KnWindow {
    int from, to, others;
};

template <int ROWS, int OTHERS> __device__ __forceinline__ bool kn_is_ragged(const KnWindow &window)
{
    return window.from > 0 || window.to < ROWS || window.others < OTHERS;
}

template <int ROWS>
__device__ __forceinline__ KnWindow kn_window(const KnSpan &span, KnSide side, int first, int others)
{
    const int from = span.first[side] - first, to = from + span.count[side];
    return {from > 0 ? from : 0, to < ROWS ? to : ROWS, others};
}

/* Scores of what does not belong together become -inf. */
template <int M, int OTHERS>
__device__ __forceinline__ void kn_mask(const KnWindow &window, float (&scores)[M][OTHERS / 8][4])
{
    const int column = kn_fragment_column(0, 0);
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int row = kn_fragment_row<M>(m, h), end = row >= window.from && row < window.to ? window.others : 0;
#pragma unroll
            for (int n = 0; n < OTHERS / 8; n++)
#pragma unroll
                for (int odd = 0; odd < 2; odd++)
                    if (column + n * 8 + odd >= end)
                        scores[m][n][2 * h + odd] = -INFINITY;
        }
}

/* ---- results ---- */

/* Writes the warp's sums, times a factor, to rows [first, rows) of the block's head. */
template <int D, int M>
__device__ __forceinline__ void kn_write_sums(const KnCudaAttention &a, void *to, int bf16, int first, int64_t rows,
                                              const float (&sums)[M][D / 8][4], float factor)
{
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int row = first + kn_fragment_row<M>(m, h), column = kn_fragment_column(0, 0);
            const int64_t start = ((int64_t)row * a.heads + blockIdx.y) * a.size + column;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                const float low = sums[m][n][2 * h] * factor, high = sums[m][n][2 * h + 1] * factor;
                if (row >= rows || column + 8 * n >= a.size)
                    continue;
                if (bf16)
                    *reinterpret_cast<uint32_t *>((KnBf16 *)to + start + 8 * n) = kn_pack(low, high);
                else
                    *reinterpret_cast<float2 *>((float *)to + start + 8 * n) = make_float2(low, high);
            }
        }
}

/* On the host: heads of up to 64, 128 or 256 columns. */
#define KN_BY_HEAD_SIZE(size, of, ...)                                                                                 \
    ((size) <= 64 ? of<64>(__VA_ARGS__) : (size) <= 128 ? of<128>(__VA_ARGS__) : of<256>(__VA_ARGS__))

#endif
