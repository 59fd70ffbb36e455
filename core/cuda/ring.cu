/* Attention to keys that come in parts: span tables cut to a part, and the results of two parts made one, weighed by
 * their shares of the sum of exponentials. */
#include "core/cuda/grid.h"
#include "core/cuda/vector.h"

#include <cmath>

namespace
{

/* A warp takes one head of one row. */
__global__ void __launch_bounds__(KN_THREADS) merge_kernel(KnCudaMerge m)
{
    const int64_t item = (int64_t)blockIdx.x * (KN_THREADS / 32) + threadIdx.x / 32;
    if (item >= m.rows * m.heads)
        return;
    const int64_t row = item / m.heads, head = item % m.heads, at = head * m.rows + row;
    const int64_t size = m.columns / m.heads, start = row * m.columns + head * size;
    const float a = m.lse_a[at], b = m.lse_b[at], top = fmaxf(a, b);
    const bool nothing = top == -INFINITY;
    const float of_a = a == -INFINITY ? 0.0f : expf(a - top), of_b = b == -INFINITY ? 0.0f : expf(b - top);
    const float total = nothing ? 1.0f : of_a + of_b;
    for (int64_t c = start + threadIdx.x % 32; c < start + size; c += 32)
        m.out[c] = m.a[c] * (of_a / total) + m.b[c] * (of_b / total);
    if (threadIdx.x % 32 == 0)
        m.lse[at] = nothing ? -INFINITY : top + logf(total);
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
    const int64_t items = merge->rows * merge->heads, warps = KN_THREADS / 32;
    if (items == 0)
        return cudaSuccess;
    KN_LAUNCH(merge_kernel, (unsigned)((items + warps - 1) / warps), KN_THREADS, 0, stream, *merge);
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
