/* Attention: which kernel, in how many parts, and the statistics that the backward begins with. */
#include "core/cuda/attention.h"

namespace
{

/* A warp takes one head of one row. */
template <class Out, class T>
__global__ void __launch_bounds__(KN_THREADS) statistics_kernel(KnCudaAttention a, float lse_factor)
{
    const int64_t item = (int64_t)blockIdx.x * (KN_THREADS / 32) + threadIdx.x / 32;
    if (item >= a.queries * a.heads)
        return;
    const int64_t row = item / a.heads;
    const int head = (int)(item % a.heads), lane = (int)threadIdx.x % 32;
    const Out *out = (const Out *)a.out + item * a.size;
    const T *grad = (const T *)a.grad_out + item * a.size;
    float delta = 0;
    for (int c = lane; c < a.size; c += 32)
        delta += kn_widen(out[c]) * kn_widen(grad[c]);
#pragma unroll
    for (int offset = 16; offset; offset /= 2)
        delta += __shfl_xor_sync(0xffffffffu, delta, offset);
    if (lane)
        return;
    const float lse = a.lse[head * a.queries + row];
    kn_lse_of(a, head)[row] = lse == -INFINITY ? INFINITY : lse * lse_factor;
    kn_delta_of(a, head)[row] = delta;
}

cudaError_t find_statistics(int bf16, const KnCudaAttention &a, float lse_factor, cudaStream_t stream)
{
    const int64_t items = a.queries * a.heads, warps = KN_THREADS / 32;
    const unsigned blocks = (unsigned)((items + warps - 1) / warps);
    if (items == 0)
        return cudaSuccess;
    if (!bf16)
        KN_LAUNCH((statistics_kernel<float, float>), blocks, KN_THREADS, 0, stream, a, lse_factor);
    else if (!a.out_bf16)
        KN_LAUNCH((statistics_kernel<float, __nv_bfloat16>), blocks, KN_THREADS, 0, stream, a, lse_factor);
    else
        KN_LAUNCH((statistics_kernel<__nv_bfloat16, __nv_bfloat16>), blocks, KN_THREADS, 0, stream, a, lse_factor);
    return cudaGetLastError();
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
