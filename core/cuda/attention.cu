/* Attention: which kernel, in how many parts, and the statistics that the backward begins with. */
#include "core/cuda/attention.h"

namespace
{

/* A block takes some rows of one head, 2^shift threads each; the heads of the same rows come one after another. */
template <class T, int LANES>
__global__ void __launch_bounds__(KN_THREADS, 4) statistics_kernel(KnCudaAttention a, float lse_factor, int shift)
{
    const unsigned heads = (unsigned)a.heads, head = blockIdx.x % heads;
    const int lane = (int)threadIdx.x & ((1 << shift) - 1);
    const int64_t row = (int64_t)(blockIdx.x / heads) * (KN_THREADS >> shift) + (threadIdx.x >> shift);
    const int64_t start = (row * a.heads + head) * a.size;
    float delta = 0;
    for (int c = lane * LANES; c < a.size && row < a.queries; c += LANES << shift) {
        float out[LANES], grad[LANES];
        kn_read<LANES>((const T *)a.out + start + c, out);
        kn_read<LANES>((const T *)a.grad_out + start + c, grad);
#pragma unroll
        for (int k = 0; k < LANES; k++)
            delta += out[k] * grad[k];
    }
    for (int offset = 1 << shift >> 1; offset; offset /= 2)
        delta += __shfl_xor_sync(0xffffffffu, delta, offset);
    if (lane || row >= a.queries)
        return;
    const float lse = a.lse[head * a.queries + row];
    kn_lse_of(a, (int)head)[row] = lse == -INFINITY ? INFINITY : lse * lse_factor;
    kn_delta_of(a, (int)head)[row] = delta;
}

template <class T, int LANES>
cudaError_t launch_statistics(const KnCudaAttention &a, float lse_factor, cudaStream_t stream)
{
    int shift = 0;
    while (shift < 5 && (LANES << shift) < a.size)
        shift++;
    const int64_t rows = KN_THREADS >> shift;
    KN_LAUNCH((statistics_kernel<T, LANES>), (unsigned)((a.queries + rows - 1) / rows * a.heads), KN_THREADS, 0, stream,
              a, lse_factor, shift);
    return cudaGetLastError();
}

template <class T> cudaError_t statistics_of(const KnCudaAttention &a, float lse_factor, cudaStream_t stream)
{
    constexpr int lanes = KnLanes<T>::count;
    if (a.size % lanes == 0 && kn_aligned(a.out, a.grad_out))
        return launch_statistics<T, lanes>(a, lse_factor, stream);
    return launch_statistics<T, 1>(a, lse_factor, stream);
}

cudaError_t find_statistics(int bf16, const KnCudaAttention &a, float lse_factor, cudaStream_t stream)
{
    if (a.queries * a.heads == 0)
        return cudaSuccess;
    return bf16 ? statistics_of<__nv_bfloat16>(a, lse_factor, stream) : statistics_of<float>(a, lse_factor, stream);
}

bool fits_tensor_cores(int bf16, const KnCudaAttention &a)
{
    return bf16 && a.size % 8 == 0 && kn_aligned(a.q, a.k, a.v) && kn_aligned(a.out, a.grad_out) &&
           kn_aligned(a.dq, a.dk, a.dv);
}

/* ---- parts ---- */

/* What the kernel for dk and dv takes on a device of 132 multiprocessors (H100, H200) with two blocks each, in thirds
 * of the time that two blocks together take for a tile of 64 queries each: one alone takes two for it. */
constexpr int64_t PLACES = 264, MOST_WAVES = 4, STEP = 64;

int64_t waves(int64_t blocks)
{
    const int64_t rest = blocks % PLACES;
    return 3 * (blocks / PLACES) + (rest > PLACES / 2 ? 3 : rest > 0 ? 2 : 0);
}

/* A block takes two tiles' time to begin and to end, and two more where float32 sums are written and read again; their
 * kernel's launch takes that of one. */
int64_t thirds(int64_t blocks, int64_t steps, int parts)
{
    const int64_t of_part = (steps + parts - 1) / parts;
    return parts == 1 ? waves(blocks) * (of_part + 2) : waves(blocks * parts) * (of_part + 4) + 3;
}

} // namespace

/* The most blocks also keep the parts' sums small: 69 MB with heads of 128. */
int kn_cuda_attention_parts(int bf16, const KnCudaAttention *shape)
{
    const int64_t tile = shape->size <= 64 ? 128 : 64, blocks = (shape->keys + tile - 1) / tile * shape->heads;
    const int64_t steps = (shape->queries + STEP - 1) / STEP;
    int best = 1;
    if (!bf16 || blocks == 0)
        return 1;
    for (int parts = 2; parts <= KN_CUDA_MOST_PARTS && blocks * parts <= PLACES * MOST_WAVES; parts++)
        if (thirds(blocks, steps, parts) < thirds(blocks, steps, best))
            best = parts;
    return 10 * thirds(blocks, steps, best) <= 9 * thirds(blocks, steps, 1) ? best : 1;
}

size_t kn_cuda_attention_bytes(const KnCudaAttention *shape)
{
    return (size_t)kn_parts_place(*shape, shape->parts > 1 ? 2 : 0) * sizeof(float);
}

cudaError_t kn_cuda_attention(int bf16, const KnCudaAttention *attention, cudaStream_t stream)
{
    return fits_tensor_cores(bf16, *attention) ? kn_attention_tensor(*attention, stream)
                                               : kn_attention_fma(bf16, *attention, stream);
}

cudaError_t kn_cuda_attention_backward(int bf16, const KnCudaAttention *attention, cudaStream_t stream)
{
    const bool tensor = fits_tensor_cores(bf16, *attention);
    if (cudaError_t error = find_statistics(bf16, *attention, tensor ? KN_LOG2_E : 1, stream))
        return error;
    return tensor ? kn_attention_tensor_backward(*attention, stream)
                  : kn_attention_fma_backward(bf16, *attention, stream);
}
