/* What attention's kernels share: which spans a block's rows belong to, and the statistics of the backward. Only in
 * kernels.
 *
 * A block takes a tile of rows of the whole stream, of queries (forward, dq) or of keys (dk, dv), and visits the spans
 * that it meets, in the table's order. So the grid depends on shapes alone, each row is written by one block, zeros
 * where it belongs to no span, and what keys get from several spans is added in a fixed order. The other side of a span
 * is cut into tiles from its first row on, so that a span's bits depend neither on other spans nor on where it lies.
 * For dk and dv these tiles may be cut into parts, one for each of several blocks: their number depends on shapes
 * alone. */
#ifndef KN_CUDA_ATTENTION_H
#define KN_CUDA_ATTENTION_H

#include "core/cuda/grid.h"
#include "core/cuda/vector.h"

#include <cmath>

constexpr float KN_LOG2_E = 1.4426950408889634f;

struct KnSpan {
    int first[2], count[2]; /* of queries and keys */
};

enum KnSide { KN_QUERIES, KN_KEYS };

__device__ __forceinline__ KnSpan kn_read_span(const KnCudaAttention &a, int64_t s)
{
    const int32_t *span = a.spans + 4 * s;
    return {{span[0], span[2]}, {span[1], span[3]}};
}

__device__ __forceinline__ bool kn_is_wild(const KnCudaAttention &a, const KnSpan &span)
{
    return span.first[0] < 0 || span.count[0] < 0 || span.first[1] < 0 || span.count[1] < 0 ||
           (int64_t)span.first[0] + span.count[0] > a.queries || (int64_t)span.first[1] + span.count[1] > a.keys;
}

/* The spans that have rows on both sides and meet rows [first, first + count) of one. All threads of a block, or whole
 * warps, ask together. A span that leaves the rows is reported and left out. */
class KnSpanSearch
{
  public:
    __device__ __forceinline__ KnSpanSearch(KnSide side, int first, int count)
        : first_(first), count_(count), side_(side)
    {
    }

    __device__ __forceinline__ bool next(const KnCudaAttention &a, KnSpan &span)
    {
        for (; !found_; base_ += 32) {
            if (base_ >= a.span_count)
                return false;
            found_ = __ballot_sync(0xffffffffu, meets(a, base_ + (int)threadIdx.x % 32));
        }
        span = kn_read_span(a, base_ - 32 + __ffs((int)found_) - 1);
        found_ &= found_ - 1;
        return true;
    }

  private:
    __device__ __forceinline__ bool meets(const KnCudaAttention &a, int s) const
    {
        if (s >= a.span_count)
            return false;
        const KnSpan span = kn_read_span(a, s);
        if (kn_is_wild(a, span)) {
            kn_report(a.fault, KN_CUDA_WILD_SPAN, s, 0, a.span_count);
            return false;
        }
        return span.count[0] && span.count[1] && span.first[side_] < (int64_t)first_ + count_ &&
               (int64_t)span.first[side_] + span.count[side_] > first_;
    }

    int base_ = 0, first_, count_;
    unsigned found_ = 0;
    KnSide side_;
};

/* The backward's statistics of a row, in the workspace: its log-sum-exp times a factor, or +inf where nothing was seen,
 * so that exp(score - lse) = 0; and delta, the sum of grad_out * out. */
__device__ __forceinline__ float *kn_lse_of(const KnCudaAttention &a, int head)
{
    return a.workspace + head * a.queries;
}

__device__ __forceinline__ float *kn_delta_of(const KnCudaAttention &a, int head)
{
    return a.workspace + (a.heads + head) * a.queries;
}

/* On the host. Beyond them, at a multiple of 16 bytes: each part's dk, then each part's dv. */
static inline int64_t kn_parts_place(const KnCudaAttention &a, int which)
{
    return (2 * a.heads * a.queries + 3) / 4 * 4 + which * a.parts * a.keys * a.heads * a.size;
}

/* Sums of the block's part, of which blockIdx.z says the number; where there is one part, the result. */
__device__ __forceinline__ void *kn_part_of(const KnCudaAttention &a, void *sums)
{
    return (float *)sums + blockIdx.z * a.keys * a.heads * a.size;
}

/* The part's queries of a span: whole tiles, as many as other parts have or one more; perhaps none. */
struct KnQueries {
    int first, end;
};

template <int TILE> __device__ __forceinline__ KnQueries kn_queries_of_part(const KnSpan &span)
{
    const int first = span.first[KN_QUERIES], count = span.count[KN_QUERIES], tiles = (count + TILE - 1) / TILE;
    const int begin = (int)((unsigned)tiles * blockIdx.z / gridDim.z) * TILE;
    const int end = (int)((unsigned)tiles * (blockIdx.z + 1) / gridDim.z) * TILE;
    return {first + begin, first + (end < count ? end : count)};
}

/* On the host. Blocks of a grid over tiles of rows, for each head. */
static inline dim3 kn_tiles(int64_t rows, int tile, int64_t heads)
{
    return dim3((unsigned)((rows + tile - 1) / tile), (unsigned)heads);
}

template <class Kernel>
static cudaError_t kn_launch_attention(Kernel *kernel, dim3 grid, int threads, size_t shared_bytes,
                                       const KnCudaAttention &a, cudaStream_t stream)
{
    if (grid.x == 0 || grid.y == 0)
        return cudaSuccess;
    if (cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel),
                                                 cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes))
        return error;
    KN_LAUNCH(kernel, grid, threads, shared_bytes, stream, a);
    return cudaGetLastError();
}

/* attention_fma.cu: any type and size */
cudaError_t kn_attention_fma(int bf16, const KnCudaAttention &a, cudaStream_t stream);
cudaError_t kn_attention_fma_backward(int bf16, const KnCudaAttention &a, cudaStream_t stream);

/* attention_forward.cu, attention_backward.cu: bfloat16 on tensor cores, rows of whole pieces of 16 bytes. In the
 * backward's statistics the log-sum-exp is to the base of 2. */
cudaError_t kn_attention_tensor(const KnCudaAttention &a, cudaStream_t stream);
cudaError_t kn_attention_tensor_backward(const KnCudaAttention &a, cudaStream_t stream);

#endif
