/* Spans as libraries want packed sequences: lists of lengths and places, statistics with the heads side by side, and
 * zeros in rows of no span, which a library leaves as they were. */
#include "core/cuda/attention.h"

namespace
{

/* The lists of all calls, with what kn_cuda_list_place says of one. */
struct Lists {
    unsigned char *memory;
    int64_t batch;
    size_t places[KN_CUDA_LISTS];
    size_t call_bytes;

    __device__ __forceinline__ unsigned char *of(int64_t call, int list) const
    {
        return memory + (size_t)call * call_bytes + places[list];
    }
};

/* Whether span s is there and has rows on both sides. */
__device__ bool is_filled(const KnCudaAttention &a, int64_t s, KnSpan &span)
{
    if (s < 0 || s >= a.span_count)
        return false;
    span = kn_read_span(a, s);
    return !kn_is_wild(a, span) && span.count[0] && span.count[1];
}

/* The first row of the first filled span from s on, before `end`; else the end of the last one before s, from `begin`
 * on; else 0. */
__device__ __forceinline__ int64_t first_row(const KnCudaAttention &a, int64_t s, int64_t begin, int64_t end,
                                             KnSide side)
{
    KnSpan span;
    for (int64_t next = s; next < end; next++)
        if (is_filled(a, next, span))
            return span.first[side];
    for (int64_t last = s - 1; last >= begin; last--)
        if (is_filled(a, last, span))
            return (int64_t)span.first[side] + span.count[side];
    return 0;
}

/* A filled span begins where the one before it has ended, or later. */
__device__ bool is_in_order(const KnCudaAttention &a, int64_t s, const KnSpan &span)
{
    KnSpan before;
    int64_t last = s - 1;
    while (last >= 0 && !is_filled(a, last, before))
        last--;
    return last < 0 ||
           (before.first[0] + before.count[0] <= span.first[0] && before.first[1] + before.count[1] <= span.first[1]);
}

/* A thread takes one place of one call, of which the last is the end. */
__global__ void __launch_bounds__(KN_THREADS) pack_kernel(KnCudaAttention a, Lists lists)
{
    const int64_t batch = lists.batch, calls = (a.span_count + batch - 1) / batch, columns = a.heads * a.size;
    for (int64_t i = kn_first(); i < calls * (batch + 1); i += kn_step()) {
        const int64_t call = i / (batch + 1), place = i % (batch + 1), begin = call * batch, s = begin + place;
        const int64_t query = first_row(a, s, begin, begin + batch, KN_QUERIES);
        ((int64_t *)lists.of(call, KN_CUDA_OFFSETS))[place] = query * columns;
        ((int64_t *)lists.of(call, KN_CUDA_OFFSETS + 1))[place] =
            first_row(a, s, begin, begin + batch, KN_KEYS) * columns;
        ((int64_t *)lists.of(call, KN_CUDA_STATS_OFFSETS))[place] = query * a.heads;
        if (place == batch)
            continue;
        KnSpan span;
        bool filled = is_filled(a, s, span);
        if (s < a.span_count && kn_is_wild(a, kn_read_span(a, s)))
            kn_report(a.fault, KN_CUDA_WILD_SPAN, s, 0, a.span_count);
        if (filled && !is_in_order(a, s, span)) {
            kn_report(a.fault, KN_CUDA_MIXED_SPANS, s, 0, a.span_count);
            filled = false;
        }
        ((int32_t *)lists.of(call, KN_CUDA_LENGTHS))[place] = filled ? span.count[KN_QUERIES] : 0;
        ((int32_t *)lists.of(call, KN_CUDA_LENGTHS + 1))[place] = filled ? span.count[KN_KEYS] : 0;
    }
}

/* Rows of one side: those in no span get zeros, and statistics change places between lse [heads, rows] and stats
 * [rows, heads], where both are given. A block takes KN_THREADS rows. */
struct Rows {
    KnSide side;
    int64_t count, row_bytes;
    void *zeroed[2];
    const float *lse_in;
    float *stats_out;
    const float *stats_in;
    float *lse_out;
};

__device__ bool is_in_span(const KnCudaAttention &a, KnSide side, int64_t row)
{
    for (int64_t s = 0; s < a.span_count; s++) {
        KnSpan span;
        if (!is_filled(a, s, span))
            continue;
        const int64_t first = side == KN_QUERIES ? span.first[0] : span.first[1];
        const int64_t count = side == KN_QUERIES ? span.count[0] : span.count[1];
        if (row >= first && row < first + count)
            return true;
    }
    return false;
}

__global__ void __launch_bounds__(KN_THREADS) rows_kernel(KnCudaAttention a, Rows r)
{
    __shared__ bool in_span[KN_THREADS];
    const int64_t first = (int64_t)blockIdx.x * KN_THREADS, row = first + threadIdx.x;
    const bool inside = row >= r.count || is_in_span(a, r.side, row);
    in_span[threadIdx.x] = inside;
    if (row < r.count && r.stats_out)
        for (int64_t h = 0; h < a.heads; h++)
            r.stats_out[row * a.heads + h] = inside ? r.lse_in[h * r.count + row] : 0.0f;
    if (row < r.count && r.lse_out)
        for (int64_t h = 0; h < a.heads; h++)
            r.lse_out[h * r.count + row] = inside ? r.stats_in[row * a.heads + h] : -INFINITY;
    __syncthreads();
    const int64_t pieces = r.row_bytes / 16;
    for (int i = 0; i < KN_THREADS; i++)
        if (!in_span[i])
            for (int64_t piece = threadIdx.x; piece < pieces; piece += KN_THREADS) {
                const int64_t at = (first + i) * pieces + piece;
                ((uint4 *)r.zeroed[0])[at] = make_uint4(0, 0, 0, 0);
                if (r.zeroed[1])
                    ((uint4 *)r.zeroed[1])[at] = make_uint4(0, 0, 0, 0);
            }
}

cudaError_t launch_rows(const KnCudaAttention &a, const Rows &r, cudaStream_t stream)
{
    if (r.count == 0)
        return cudaSuccess;
    KN_LAUNCH(rows_kernel, (unsigned)((r.count + KN_THREADS - 1) / KN_THREADS), KN_THREADS, 0, stream, a, r);
    return cudaGetLastError();
}

} // namespace

cudaError_t kn_cuda_pack_spans(const KnCudaAttention *attention, int64_t batch, void *lists, cudaStream_t stream)
{
    const int64_t calls = (attention->span_count + batch - 1) / batch;
    if (calls == 0)
        return cudaSuccess;
    Lists to = {};
    to.memory = (unsigned char *)lists;
    to.batch = batch;
    for (int list = 0; list < KN_CUDA_LISTS; list++)
        to.places[list] = kn_cuda_list_place(batch, list);
    to.call_bytes = kn_cuda_list_place(batch, KN_CUDA_LISTS);
    KN_LAUNCH(pack_kernel, kn_blocks(calls * (batch + 1)), KN_THREADS, 0, stream, *attention, to);
    return cudaGetLastError();
}

cudaError_t kn_cuda_unpack_forward(const KnCudaAttention *attention, const float *stats, cudaStream_t stream)
{
    Rows queries = {};
    queries.side = KN_QUERIES;
    queries.count = attention->queries;
    queries.row_bytes = (int64_t)attention->heads * attention->size * 2;
    queries.zeroed[0] = attention->out;
    queries.stats_in = stats;
    queries.lse_out = attention->lse;
    return launch_rows(*attention, queries, stream);
}

cudaError_t kn_cuda_pack_backward(const KnCudaAttention *attention, float *stats, cudaStream_t stream)
{
    Rows queries = {}, keys = {};
    queries.side = KN_QUERIES;
    queries.count = attention->queries;
    queries.row_bytes = keys.row_bytes = (int64_t)attention->heads * attention->size * 2;
    queries.zeroed[0] = attention->dq;
    queries.lse_in = attention->lse;
    queries.stats_out = stats;
    keys.side = KN_KEYS;
    keys.count = attention->keys;
    keys.zeroed[0] = attention->dk;
    keys.zeroed[1] = attention->dv;
    if (cudaError_t error = launch_rows(*attention, queries, stream))
        return error;
    return launch_rows(*attention, keys, stream);
}
