/* Attention to keys that come in parts: span tables cut to a part, and the results of two parts made one, weighed by
 * their shares of the sum of exponentials. */
#include "core/cuda/grid.h"
#include "core/cuda/vector.h"

#include <cmath>

namespace
{

/* The shares of both parts in head `head` of row `row`; who has the head's first column merges their log-sum-exp. */
__device__ __forceinline__ void find_shares(const KnCudaMerge &m, int64_t row, int64_t head, bool first, float &share_a,
                                            float &share_b)
{
    const int64_t at = head * m.rows + row;
    const float a = m.lse_a[at], b = m.lse_b[at], top = fmaxf(a, b);
    const bool nothing = top == -INFINITY;
    const float of_a = a == -INFINITY ? 0.0f : expf(a - top), of_b = b == -INFINITY ? 0.0f : expf(b - top);
    const float total = nothing ? 1.0f : of_a + of_b;
    share_a = of_a / total;
    share_b = of_b / total;
    if (first)
        m.lse[at] = nothing ? -INFINITY : top + logf(total);
}

/* A thread takes eight columns, or one, of one head. */
template <int LANES> __global__ void __launch_bounds__(KN_THREADS) merge_kernel(KnCudaMerge m)
{
    const int64_t size = m.columns / m.heads, vectors = m.columns / LANES;
    for (int64_t i = kn_first(); i < m.rows * vectors; i += kn_step()) {
        const int64_t row = i / vectors, column = i % vectors * LANES, head = column / size;
        float share_a, share_b;
        find_shares(m, row, head, column == head * size, share_a, share_b);
        if constexpr (LANES == 8) {
            float a[8], b[8];
            kn_get_eight(m.a, m.a_bf16, 8 * i, a);
            kn_get_eight(m.b, m.b_bf16, 8 * i, b);
#pragma unroll
            for (int k = 0; k < 8; k++)
                a[k] = a[k] * share_a + b[k] * share_b;
            kn_put_eight(m.out, m.out_bf16, 8 * i, a);
        } else {
            kn_put(m.out, m.out_bf16, i, kn_get(m.a, m.a_bf16, i) * share_a + kn_get(m.b, m.b_bf16, i) * share_b);
        }
    }
}

/* One (start, length) cut to [first, first + count). */
__device__ void cut_range(const int32_t *range, int64_t first, int64_t count, int32_t *cut)
{
    const int64_t begin = range[0] > first ? range[0] : first, end_there = (int64_t)range[0] + range[1];
    const int64_t end = end_there < first + count ? end_there : first + count;
    cut[0] = begin < end ? (int32_t)(begin - first) : 0;
    cut[1] = begin < end ? (int32_t)(end - begin) : 0;
}

__global__ void __launch_bounds__(KN_THREADS)
    window_kernel(const int32_t *spans, int32_t *out, int64_t count, int64_t q_first, int64_t q_count, int64_t k_first,
                  int64_t k_count, KnCudaFault *fault)
{
    for (int64_t s = kn_first(); s < count; s += kn_step()) {
        const int32_t *span = spans + 4 * s;
        if (span[0] < 0 || span[1] < 0 || span[2] < 0 || span[3] < 0)
            kn_report(fault, KN_CUDA_WILD_SPAN, s, 0, count);
        cut_range(span, q_first, q_count, out + 4 * s);
        cut_range(span + 2, k_first, k_count, out + 4 * s + 2);
    }
}

} // namespace

cudaError_t kn_cuda_attention_merge(const KnCudaMerge *merge, cudaStream_t stream)
{
    const int64_t elements = merge->rows * merge->columns;
    if (elements == 0)
        return cudaSuccess;
    if (merge->columns / merge->heads % 8 == 0 && kn_aligned(merge->a, merge->b, merge->out))
        KN_LAUNCH(merge_kernel<8>, kn_blocks(elements / 8), KN_THREADS, 0, stream, *merge);
    else
        KN_LAUNCH(merge_kernel<1>, kn_blocks(elements), KN_THREADS, 0, stream, *merge);
    return cudaGetLastError();
}

cudaError_t kn_cuda_span_window(const int32_t *spans, int32_t *out, int64_t count, int64_t q_first, int64_t q_count,
                                int64_t k_first, int64_t k_count, KnCudaFault *fault, cudaStream_t stream)
{
    if (count == 0)
        return cudaSuccess;
    KN_LAUNCH(window_kernel, kn_blocks(count), KN_THREADS, 0, stream, spans, out, count, q_first, q_count, k_first,
              k_count, fault);
    return cudaGetLastError();
}
