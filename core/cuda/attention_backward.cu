/* Attention of bfloat16 on tensor cores, backward, in two kernels: one has a tile of queries and passes over keys for
 * dq, one has a tile of keys and passes over queries for dk and dv. Scores and probabilities are found in both, seven
 * products where five would do, so that nothing is added by atomics: the same bits in each run. Where tiles of keys are
 * few, several blocks have parts of the queries for each, and a third kernel adds their sums. Source: Dao,
 * "FlashAttention-2", 2023, algorithm 2. */
#include "core/cuda/attention_tensor.h"

namespace
{

/* ---- dq ---- */

/* Fragments of 16 queries a warp, queries of a block, keys of a tile. */
template <int D> struct Queries {
    static constexpr int m = D <= 128 ? 2 : 1, queries = 16 * m * KN_WARPS, keys = D <= 128 ? 32 : 16;
    static constexpr int own = queries * D, other = keys * D;
    static constexpr size_t bytes = (2 * own + 4 * other) * sizeof(KnBf16);
};

template <int D>
__device__ __forceinline__ void begin_keys(KnBf16 *k, KnBf16 *v, const KnCudaAttention &a, int first, int count)
{
    kn_begin_tile<Queries<D>::keys, D>(k, a, a.k, first, count);
    kn_begin_tile<Queries<D>::keys, D>(v, a, a.v, first, count);
    kn_close_copies();
}

/* Products of grad_out and values become the scores' gradients: p (dp - delta), p = 2^(scale2 score - lse). */
template <int M, int N>
__device__ __forceinline__ void differentiate(float scale2, const float (&lse)[M][2], const float (&delta)[M][2],
                                              const float (&scores)[M][N][4], float (&dp)[M][N][4])
{
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float p = kn_exp2(scores[m][n][i] * scale2 - lse[m][i / 2]);
                dp[m][n][i] = p * (dp[m][n][i] - delta[m][i / 2]);
            }
}

template <int D> __global__ void __launch_bounds__(KN_TENSOR_THREADS, 2) dq_kernel(KnCudaAttention a)
{
    using S = Queries<D>;
    KN_DYNAMIC_SHARED(KnBf16, shared);
    KnBf16 *q = shared, *grad = q + S::own, *k = grad + S::own, *v = k + 2 * S::other;
    const int first = (int)blockIdx.x * S::queries;
    const float scale2 = a.scale * KN_LOG2_E;
    float dq[S::m][D / 8][4] = {}, lse[S::m][2], delta[S::m][2];
    KnSpan span;
#pragma unroll
    for (int i = 0; i < 2 * S::m; i++) {
        const int query = first + kn_fragment_row<S::m>(i / 2, i % 2);
        lse[i / 2][i % 2] = query < a.queries ? kn_lse_of(a, blockIdx.y)[query] : INFINITY;
        delta[i / 2][i % 2] = query < a.queries ? kn_delta_of(a, blockIdx.y)[query] : 0;
    }
    kn_begin_tile<S::queries, D>(q, a, a.q, first, (int)a.queries - first);
    kn_begin_tile<S::queries, D>(grad, a, a.grad_out, first, (int)a.queries - first);
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
            float scores[S::m][S::keys / 8][4] = {}, ds[S::m][S::keys / 8][4] = {};
            kn_multiply<D, S::m, S::keys>(q, k + at, scores);
            kn_multiply<D, S::m, S::keys>(grad, v + at, ds);
            const KnWindow window = kn_window<S::queries>(span, KN_QUERIES, first, end - key);
            if (kn_is_ragged<S::queries, S::keys>(window))
                kn_mask<S::m, S::keys>(window, scores);
            differentiate(scale2, lse, delta, scores, ds);
            kn_accumulate<D, S::m, S::keys>(ds, k + at, dq);
        }
        __syncthreads();
    }
    kn_wait_copies<0>();
    kn_write_sums<D, S::m>(a, a.dq, 1, first, a.queries, dq, a.scale);
}

/* ---- dk and dv, of which heads of more than 128 columns have registers for one at a time ---- */

enum Wanted { DK = 1, DV = 2 };

/* A warp has 16 * m keys. */
template <int D> struct Keys {
    static constexpr int m = D <= 64 ? 2 : 1, keys = 16 * m * KN_WARPS, queries = D == 128 ? 64 : D == 64 ? 32 : 16;
    static constexpr int own = keys * D, other = queries * D;
    static constexpr size_t bytes = (2 * own + 4 * other) * sizeof(KnBf16) + 4 * queries * sizeof(float);
};

/* Tiles of queries, each twice. */
template <int D> struct QueryTiles {
    KnBf16 *q, *grad;
    float *lse, *delta;

    __device__ __forceinline__ QueryTiles(KnBf16 *from)
        : q(from), grad(q + 2 * Keys<D>::other), lse(reinterpret_cast<float *>(grad + 2 * Keys<D>::other)),
          delta(lse + 2 * Keys<D>::queries)
    {
    }

    __device__ __forceinline__ void begin(int turn, const KnCudaAttention &a, int first, int count) const
    {
        constexpr int rows = Keys<D>::queries;
        kn_begin_tile<rows, D>(q + turn * Keys<D>::other, a, a.q, first, count);
        kn_begin_tile<rows, D>(grad + turn * Keys<D>::other, a, a.grad_out, first, count);
        kn_begin_statistic<rows>(lse + turn * rows, kn_lse_of(a, blockIdx.y), first, count);
        kn_begin_statistic<rows>(delta + turn * rows, kn_delta_of(a, blockIdx.y), first, count);
        kn_close_copies();
    }
};

/* Scores of keys with queries become probabilities. */
template <int M, int N>
__device__ __forceinline__ void find_probabilities(float scale2, const float *lse, float (&scores)[M][N][4])
{
    const float2 *pairs = reinterpret_cast<const float2 *>(lse + kn_fragment_column(0, 0));
#pragma unroll
    for (int n = 0; n < N; n++) {
        const float2 of = pairs[4 * n];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                scores[m][n][i] = kn_exp2(scores[m][n][i] * scale2 - (i % 2 ? of.y : of.x));
    }
}

template <int M, int N>
__device__ __forceinline__ void differentiate_keys(const float *delta, const float (&p)[M][N][4], float (&dp)[M][N][4])
{
    const float2 *pairs = reinterpret_cast<const float2 *>(delta + kn_fragment_column(0, 0));
#pragma unroll
    for (int n = 0; n < N; n++) {
        const float2 of = pairs[4 * n];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                dp[m][n][i] = p[m][n][i] * (dp[m][n][i] - (i % 2 ? of.y : of.x));
    }
}

template <int D, int WANTED> __global__ void __launch_bounds__(KN_TENSOR_THREADS, 2) dkv_kernel(KnCudaAttention a)
{
    using S = Keys<D>;
    KN_DYNAMIC_SHARED(KnBf16, shared);
    KnBf16 *k = shared, *v = k + S::own;
    const QueryTiles<D> tiles(v + S::own);
    const int first = (int)blockIdx.x * S::keys;
    const float scale2 = a.scale * KN_LOG2_E;
    float dk[S::m][D / 8][4] = {}, dv[S::m][D / 8][4] = {};
    KnSpan span;
    kn_begin_tile<S::keys, D>(k, a, a.k, first, (int)a.keys - first);
    if (WANTED & DK)
        kn_begin_tile<S::keys, D>(v, a, a.v, first, (int)a.keys - first);
    kn_close_copies();
    for (KnSpanSearch search(KN_KEYS, first, S::keys); search.next(a, span);) {
        const KnQueries part = kn_queries_of_part<S::queries>(span);
        int query = part.first, turn = 0;
        const int end = part.end;
        if (query == end)
            continue;
        tiles.begin(0, a, query, end - query);
        for (; query < end; query += S::queries, turn ^= 1) {
            kn_wait_copies<0>();
            __syncthreads(); /* this tile has come for all, and nobody reads the one before any more */
            if (query + S::queries < end)
                tiles.begin(turn ^ 1, a, query + S::queries, end - query - S::queries);
            KnBf16 *q = tiles.q + turn * S::other, *grad = tiles.grad + turn * S::other;
            float p[S::m][S::queries / 8][4] = {};
            kn_multiply<D, S::m, S::queries>(k, q, p);
            const KnWindow window = kn_window<S::keys>(span, KN_KEYS, first, end - query);
            if (kn_is_ragged<S::keys, S::queries>(window))
                kn_mask<S::m, S::queries>(window, p);
            find_probabilities(scale2, tiles.lse + turn * S::queries, p);
            if constexpr (WANTED & DV)
                kn_accumulate<D, S::m, S::queries>(p, grad, dv);
            if constexpr (WANTED & DK) {
                float ds[S::m][S::queries / 8][4] = {};
                kn_multiply<D, S::m, S::queries>(v, grad, ds);
                differentiate_keys(tiles.delta + turn * S::queries, p, ds);
                kn_accumulate<D, S::m, S::queries>(ds, q, dk);
            }
        }
        __syncthreads();
    }
    kn_wait_copies<0>();
    const int bf16 = gridDim.z == 1; /* parts are not rounded before they are added */
    if (WANTED & DV)
        kn_write_sums<D, S::m>(a, kn_part_of(a, a.dv), bf16, first, a.keys, dv, 1);
    if (WANTED & DK)
        kn_write_sums<D, S::m>(a, kn_part_of(a, a.dk), bf16, first, a.keys, dk, a.scale);
}

/* ---- sums of parts ---- */

/* Adds the parts' sums in their order, of dk where blockIdx.y is 0, of dv where it is 1. */
__global__ void __launch_bounds__(KN_THREADS, 4)
    add_parts_kernel(const float *of_dk, const float *of_dv, int parts, int64_t size, KnBf16 *dk, KnBf16 *dv)
{
    constexpr int lanes = KnLanes<KnBf16>::count;
    const int64_t at = kn_first() * lanes;
    if (at >= size)
        return;
    const float *from = (blockIdx.y ? of_dv : of_dk) + at;
    float sums[lanes], next[lanes];
    kn_read_floats<lanes>(from, sums);
#pragma unroll 4
    for (int part = 1; part < parts; part++) {
        kn_read_floats<lanes>(from + part * size, next);
#pragma unroll
        for (int i = 0; i < lanes; i++)
            sums[i] += next[i];
    }
    kn_store((blockIdx.y ? dv : dk) + at, sums);
}

cudaError_t add_parts(const KnCudaAttention &a, cudaStream_t stream)
{
    const int64_t size = a.keys * a.heads * a.size, block = KN_THREADS * KnLanes<KnBf16>::count;
    const dim3 grid((unsigned)((size + block - 1) / block), 2);
    KN_LAUNCH(add_parts_kernel, grid, KN_THREADS, 0, stream, a.workspace + kn_parts_place(a, 0),
              a.workspace + kn_parts_place(a, 1), a.parts, size, (KnBf16 *)a.dk, (KnBf16 *)a.dv);
    return cudaGetLastError();
}

/* ---- launching ---- */

template <int D, int WANTED> cudaError_t launch_keys(const KnCudaAttention &a, int parts, cudaStream_t stream)
{
    dim3 grid = kn_tiles(a.keys, Keys<D>::keys, a.heads);
    grid.z = (unsigned)parts;
    return kn_launch_attention(dkv_kernel<D, WANTED>, grid, KN_TENSOR_THREADS, Keys<D>::bytes, a, stream);
}

template <int D> cudaError_t find_key_gradients(const KnCudaAttention &a, int parts, cudaStream_t stream)
{
    if constexpr (D <= 128) {
        return launch_keys<D, DK | DV>(a, parts, stream);
    } else {
        if (cudaError_t error = launch_keys<D, DK>(a, parts, stream))
            return error;
        return launch_keys<D, DV>(a, parts, stream);
    }
}

template <int D> cudaError_t key_gradients(const KnCudaAttention &a, cudaStream_t stream)
{
    if (a.parts <= 1 || a.keys * a.heads == 0)
        return find_key_gradients<D>(a, 1, stream);
    KnCudaAttention sums = a;
    sums.dk = a.workspace + kn_parts_place(a, 0);
    sums.dv = a.workspace + kn_parts_place(a, 1);
    if (cudaError_t error = find_key_gradients<D>(sums, a.parts, stream))
        return error;
    return add_parts(a, stream);
}

template <int D> cudaError_t backward(const KnCudaAttention &a, cudaStream_t stream)
{
    if (cudaError_t error = kn_launch_attention(dq_kernel<D>, kn_tiles(a.queries, Queries<D>::queries, a.heads),
                                                KN_TENSOR_THREADS, Queries<D>::bytes, a, stream))
        return error;
    return key_gradients<D>(a, stream);
}

} // namespace

cudaError_t kn_attention_tensor_backward(const KnCudaAttention &a, cudaStream_t stream)
{
    return KN_BY_HEAD_SIZE(a.size, backward, a, stream);
}
