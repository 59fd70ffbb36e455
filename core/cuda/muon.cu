/* Muon (Jordan et al., 2024) but for its matrix products: momentum, the start of the Newton-Schulz iteration
 * X <- a X + (b A + c A A) X with A = X X^T, its polynomial, and the change of the parameters. A step whose gradient
 * norm is not finite changes nothing. */
#include "core/cuda/grid.h"
#include "core/cuda/update.h"
#include "core/cuda/vector.h"

namespace
{

constexpr int BLOCKS = KN_CUDA_MUON_BLOCKS; /* of a matrix */

/* Blocks (block, matrix): momentum of a share of the matrix, and its sum of squares of u = g + momentum m. */
__global__ void __launch_bounds__(KN_THREADS) momentum_kernel(KnCudaMuon m)
{
    const int64_t size = m.rows * m.columns, start = blockIdx.y * size;
    const float norm2 = *m.norm2;
    if (!isfinite(norm2))
        return;
    const float clip = kn_clip_factor(*m.clip, norm2);
    float sum = 0;
    for (int64_t i = kn_first(); i < size; i += kn_step()) {
        const float g = m.gradient[start + i] * clip;
        const float momentum = m.momentum[start + i] * m.momentum_factor + g;
        const float u = momentum * m.momentum_factor + g;
        m.momentum[start + i] = momentum;
        sum += u * u;
    }
    sum = kn_block_sum(sum);
    if (threadIdx.x == 0)
        m.block_sums[blockIdx.y * BLOCKS + blockIdx.x] = sum;
}

__global__ void __launch_bounds__(KN_THREADS) start_kernel(KnCudaMuon m)
{
    const int64_t size = m.rows * m.columns, start = blockIdx.y * size;
    const float norm2 = *m.norm2;
    if (!isfinite(norm2))
        return;
    float square = 0;
    for (int i = 0; i < (int)gridDim.x; i++)
        square += m.block_sums[blockIdx.y * BLOCKS + i];
    const float clip = kn_clip_factor(*m.clip, norm2), scale = 1.0f / (sqrtf(square) + 1e-7f);
    __nv_bfloat16 *x = (__nv_bfloat16 *)m.x + start;
    for (int64_t i = kn_first(); i < size; i += kn_step()) {
        const float u = m.momentum[start + i] * m.momentum_factor + m.gradient[start + i] * clip;
        x[i] = __float2bfloat16_rn(u * scale);
    }
}

/* left = diagonal I + sums; with FACTORS also right = b I + c sums, and left without a diagonal. */
template <bool FACTORS> __global__ void __launch_bounds__(KN_THREADS) square_kernel(KnCudaMuon m)
{
    const int64_t size = m.small * m.small, start = blockIdx.y * size;
    __nv_bfloat16 *left = (__nv_bfloat16 *)m.left + start, *right = (__nv_bfloat16 *)m.right + start;
    for (int64_t i = kn_first(); i < size; i += kn_step()) {
        const float sum = m.sums[start + i], one = i / m.small == i % m.small ? 1.0f : 0.0f;
        left[i] = __float2bfloat16_rn(FACTORS ? sum : 3.4445f * one + sum);
        if (FACTORS)
            right[i] = __float2bfloat16_rn(-4.7750f * one + 2.0315f * sum);
    }
}

__global__ void __launch_bounds__(KN_THREADS) apply_kernel(KnCudaMuon m)
{
    const int64_t size = m.count * m.rows * m.columns;
    if (!isfinite(*m.norm2))
        return;
    const float lr = *m.lr, keep = 1.0f - lr * m.weight_decay;
    const float step = lr * 0.2f * sqrtf((float)(m.rows > m.columns ? m.rows : m.columns));
    const __nv_bfloat16 *x = (const __nv_bfloat16 *)m.x;
    for (int64_t i = kn_first(); i < size; i += kn_step())
        m.parameter[i] = m.parameter[i] * keep - step * __bfloat162float(x[i]);
}

template <class Kernel> cudaError_t launch(Kernel kernel, const KnCudaMuon &m, int64_t size, cudaStream_t stream)
{
    if (m.count == 0 || size == 0)
        return cudaSuccess;
    KN_LAUNCH(kernel, dim3(kn_blocks(size, BLOCKS), (unsigned)m.count), KN_THREADS, 0, stream, m);
    return cudaGetLastError();
}

} // namespace

cudaError_t kn_cuda_muon_start(const KnCudaMuon *m, cudaStream_t stream)
{
    cudaError_t error = launch(momentum_kernel, *m, m->rows * m->columns, stream);
    return error != cudaSuccess ? error : launch(start_kernel, *m, m->rows * m->columns, stream);
}

cudaError_t kn_cuda_muon_factors(const KnCudaMuon *m, cudaStream_t stream)
{
    return launch(square_kernel<true>, *m, m->small * m->small, stream);
}

cudaError_t kn_cuda_muon_polynomial(const KnCudaMuon *m, cudaStream_t stream)
{
    return launch(square_kernel<false>, *m, m->small * m->small, stream);
}

cudaError_t kn_cuda_muon_apply(const KnCudaMuon *m, cudaStream_t stream)
{
    const int64_t size = m->count * m->rows * m->columns;
    if (size == 0)
        return cudaSuccess;
    KN_LAUNCH(apply_kernel, kn_blocks(size), KN_THREADS, 0, stream, *m);
    return cudaGetLastError();
}
