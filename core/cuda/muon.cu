/* Muon (Jordan et al., 2024) but for its matrix products: momentum, the start of the Newton-Schulz iteration
 * X <- a X + (b A + c A A) X with A = X X^T, its polynomial, its end, and the step of the parameters. A step whose
 * gradient norm is not finite changes nothing. */
#include "core/cuda/grid.h"
#include "core/cuda/update.h"
#include "core/cuda/vector.h"

namespace
{

constexpr int BLOCKS = KN_CUDA_STACK_BLOCKS; /* of a matrix */

__global__ void __launch_bounds__(KN_THREADS) momentum_kernel(KnCudaMomentum m, int64_t n)
{
    const float norm2 = *m.norm2;
    if (!isfinite(norm2))
        return;
    const float clip = kn_clip_factor(*m.clip, norm2);
    for (int64_t i = kn_first(); i < n; i += kn_step()) {
        const float g = m.gradient[i] * clip, momentum = m.momentum[i] * m.factor + g;
        m.momentum[i] = momentum;
        m.u[i] = momentum * m.factor + g;
    }
}

__global__ void __launch_bounds__(KN_THREADS)
    descend_kernel(float *parameter, const float *__restrict__ direction, const float *lr, const float *norm2,
                   float weight_decay, int64_t n)
{
    if (!isfinite(*norm2))
        return;
    const float step = *lr, keep = 1.0f - step * weight_decay;
    for (int64_t i = kn_first(); i < n; i += kn_step())
        parameter[i] = parameter[i] * keep - step * direction[i];
}

/* Blocks (block, matrix): the sum of squares of a share of the matrix. */
__global__ void __launch_bounds__(KN_THREADS) square_kernel(KnCudaStack s)
{
    const int64_t size = s.rows * s.columns, start = blockIdx.y * size;
    float sum = 0;
    for (int64_t i = kn_first(); i < size; i += kn_step())
        sum += s.values[start + i] * s.values[start + i];
    sum = kn_block_sum(sum);
    if (threadIdx.x == 0)
        s.block_sums[blockIdx.y * BLOCKS + blockIdx.x] = sum;
}

__global__ void __launch_bounds__(KN_THREADS) start_kernel(KnCudaStack s)
{
    const int64_t size = s.rows * s.columns, start = blockIdx.y * size;
    float square = 0;
    for (int i = 0; i < (int)gridDim.x; i++)
        square += s.block_sums[blockIdx.y * BLOCKS + i];
    const float scale = 1.0f / (sqrtf(square) + 1e-7f);
    __nv_bfloat16 *x = (__nv_bfloat16 *)s.x + start;
    for (int64_t i = kn_first(); i < size; i += kn_step())
        x[i] = __float2bfloat16_rn(s.values[start + i] * scale);
}

/* left = 3.4445 I + sums; with FACTORS left = sums, and right = b I + c sums. */
template <bool FACTORS> __global__ void __launch_bounds__(KN_THREADS) polynomial_kernel(KnCudaStack s)
{
    const int64_t size = s.small * s.small, start = blockIdx.y * size;
    __nv_bfloat16 *left = (__nv_bfloat16 *)s.left + start, *right = (__nv_bfloat16 *)s.right + start;
    for (int64_t i = kn_first(); i < size; i += kn_step()) {
        const float sum = s.sums[start + i], one = i / s.small == i % s.small ? 1.0f : 0.0f;
        left[i] = __float2bfloat16_rn(FACTORS ? sum : 3.4445f * one + sum);
        if (FACTORS)
            right[i] = __float2bfloat16_rn(-4.7750f * one + 2.0315f * sum);
    }
}

__global__ void __launch_bounds__(KN_THREADS) finish_kernel(KnCudaStack s)
{
    const int64_t size = s.count * s.rows * s.columns;
    const float scale = 0.2f * sqrtf((float)(s.rows > s.columns ? s.rows : s.columns));
    const __nv_bfloat16 *x = (const __nv_bfloat16 *)s.x;
    for (int64_t i = kn_first(); i < size; i += kn_step())
        s.values[i] = __bfloat162float(x[i]) * scale;
}

template <class Kernel> cudaError_t launch(Kernel kernel, const KnCudaStack &s, int64_t size, cudaStream_t stream)
{
    if (s.count == 0 || size == 0)
        return cudaSuccess;
    KN_LAUNCH(kernel, dim3(kn_blocks(size, BLOCKS), (unsigned)s.count), KN_THREADS, 0, stream, s);
    return cudaGetLastError();
}

} // namespace

cudaError_t kn_cuda_momentum(const KnCudaMomentum *m, int64_t n, cudaStream_t stream)
{
    if (n == 0)
        return cudaSuccess;
    KN_LAUNCH(momentum_kernel, kn_blocks(n), KN_THREADS, 0, stream, *m, n);
    return cudaGetLastError();
}

cudaError_t kn_cuda_descend(float *parameter, const float *direction, const float *lr, const float *norm2,
                            float weight_decay, int64_t n, cudaStream_t stream)
{
    if (n == 0)
        return cudaSuccess;
    KN_LAUNCH(descend_kernel, kn_blocks(n), KN_THREADS, 0, stream, parameter, direction, lr, norm2, weight_decay, n);
    return cudaGetLastError();
}

cudaError_t kn_cuda_stack_start(const KnCudaStack *s, cudaStream_t stream)
{
    cudaError_t error = launch(square_kernel, *s, s->rows * s->columns, stream);
    return error != cudaSuccess ? error : launch(start_kernel, *s, s->rows * s->columns, stream);
}

cudaError_t kn_cuda_stack_factors(const KnCudaStack *s, cudaStream_t stream)
{
    return launch(polynomial_kernel<true>, *s, s->small * s->small, stream);
}

cudaError_t kn_cuda_stack_polynomial(const KnCudaStack *s, cudaStream_t stream)
{
    return launch(polynomial_kernel<false>, *s, s->small * s->small, stream);
}

cudaError_t kn_cuda_stack_finish(const KnCudaStack *s, cudaStream_t stream)
{
    const int64_t size = s->count * s->rows * s->columns;
    if (size == 0)
        return cudaSuccess;
    KN_LAUNCH(finish_kernel, kn_blocks(size), KN_THREADS, 0, stream, *s);
    return cudaGetLastError();
}
