/* Attention of bfloat16 on tensor cores, forward. A block has a tile of queries of one head; while it computes with one
 * tile of keys and values, the next is on its way. Maxima, sums and results stay in registers, and probabilities go
 * from one product into the next there. Source: Dao, "FlashAttention-2", 2023, algorithm 1. */
#include "core/cuda/attention_tensor.h"

namespace
{

/* Fragments of 16 queries a warp, queries of a block, keys of a tile: two blocks fit a multiprocessor. */
template <int D> struct Shape {
    static constexpr int m = D <= 128 ? 2 : 1, queries = 16 * m * KN_WARPS, keys = D <= 128 ? 64 : 32;
    static constexpr int own = queries * D, other = keys * D;
    static constexpr size_t bytes = (own + 4 * other) * sizeof(KnBf16) + KN_TENSOR_THREADS * 4 * sizeof(float);
};

/* `sums` of the lane's own columns lie in shared memory, since they are the registers that would be too many. */
template <int D> struct Softmax {
    static constexpr int M = Shape<D>::m;
    float out[M][D / 8][4], top[M][2];
    float *sums;
};

/* To the four lanes that have a row together. */
__device__ __forceinline__ float row_top(float value)
{
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
    return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

__device__ __forceinline__ float row_sum(float value)
{
    value += __shfl_xor_sync(0xffffffffu, value, 1);
    return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

/* Scores become weights, and what was summed is brought to the new largest score of its row. */
template <int D, int M, int N>
__device__ __forceinline__ void weigh(float scale2, float (&scores)[M][N][4], Softmax<D> &s)
{
    float sums[4];
    kn_load(s.sums, sums);
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float top = s.top[m][h];
#pragma unroll
            for (int n = 0; n < N; n++)
                top = fmaxf(top, fmaxf(scores[m][n][2 * h], scores[m][n][2 * h + 1]));
            top = row_top(top);
            const float base = top == -INFINITY ? 0.0f : top * scale2;
            const float correction = kn_exp2(s.top[m][h] * scale2 - base);
            float sum = 0;
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int i = 2 * h; i < 2 * h + 2; i++) {
                    scores[m][n][i] = kn_exp2(scores[m][n][i] * scale2 - base);
                    sum += scores[m][n][i];
                }
            s.top[m][h] = top;
            sums[2 * m + h] = sums[2 * m + h] * correction + sum;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                s.out[m][n][2 * h] *= correction;
                s.out[m][n][2 * h + 1] *= correction;
            }
        }
    kn_store(s.sums, sums);
}

/* Begins to copy a tile of keys and values. */
template <int D>
__device__ __forceinline__ void begin_keys(KnBf16 *k, KnBf16 *v, const KnCudaAttention &a, int first, int count)
{
    kn_begin_tile<Shape<D>::keys, D>(k, a, a.k, first, count);
    kn_begin_tile<Shape<D>::keys, D>(v, a, a.v, first, count);
    kn_close_copies();
}

template <int D> __device__ __forceinline__ void finish(const KnCudaAttention &a, int first, Softmax<D> &s)
{
    constexpr int M = Shape<D>::m;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int query = first + kn_fragment_row<M>(m, h);
            const float sum = row_sum(s.sums[2 * m + h]), factor = sum > 0 ? 1 / sum : 0;
            if (query < a.queries && kn_lane() % 4 == 0)
                a.lse[blockIdx.y * a.queries + query] = sum > 0 ? s.top[m][h] * a.scale + logf(sum) : -INFINITY;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                s.out[m][n][2 * h] *= factor;
                s.out[m][n][2 * h + 1] *= factor;
            }
        }
    kn_write_sums<D, M>(a, a.out, 1, first, a.queries, s.out, 1);
}

template <int D> __global__ void __launch_bounds__(KN_TENSOR_THREADS, 2) forward_kernel(KnCudaAttention a)
{
    using S = Shape<D>;
    KN_DYNAMIC_SHARED(KnBf16, shared);
    KnBf16 *q = shared, *k = q + S::own, *v = k + 2 * S::other;
    const int first = (int)blockIdx.x * S::queries;
    const float scale2 = a.scale * KN_LOG2_E;
    Softmax<D> s = {};
    KnSpan span;
    s.sums = reinterpret_cast<float *>(v + 2 * S::other) + 4 * threadIdx.x;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        s.top[i / 2 % S::m][i % 2] = -INFINITY;
        s.sums[i] = 0;
    }
    kn_begin_tile<S::queries, D>(q, a, a.q, first, (int)a.queries - first);
    kn_close_copies();
    for (KnSpanSearch search(KN_QUERIES, first, S::queries); search.next(a, span);) {
        int key = span.first[KN_KEYS], at = 0;
        const int end = key + span.count[KN_KEYS];
        begin_keys<D>(k, v, a, key, end - key);
        for (; key < end; key += S::keys, at = S::other - at) {
            kn_wait_copies<0>();
            __syncthreads(); /* this tile has come for all, and nobody reads the one before any more */
            if (key + S::keys < end)
                begin_keys<D>(k + S::other - at, v + S::other - at, a, key + S::keys, end - key - S::keys);
            float scores[S::m][S::keys / 8][4] = {};
            kn_multiply<D, S::m, S::keys>(q, k + at, scores);
            const KnWindow window = kn_window<S::queries>(span, KN_QUERIES, first, end - key);
            if (kn_is_ragged<S::queries, S::keys>(window))
                kn_mask<S::m, S::keys>(window, scores);
            weigh<D>(scale2, scores, s);
            kn_accumulate<D, S::m, S::keys>(scores, v + at, s.out);
        }
        __syncthreads();
    }
    kn_wait_copies<0>();
    finish<D>(a, first, s);
}

template <int D> cudaError_t forward(const KnCudaAttention &a, cudaStream_t stream)
{
    return kn_launch_attention(forward_kernel<D>, kn_tiles(a.queries, Shape<D>::queries, a.heads), KN_TENSOR_THREADS,
                               Shape<D>::bytes, a, stream);
}

} // namespace

cudaError_t kn_attention_tensor(const KnCudaAttention &a, cudaStream_t stream)
{
    return KN_BY_HEAD_SIZE(a.size, forward, a, stream);
}
