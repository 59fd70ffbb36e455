/* State changed in place: gradient accumulation, AdamW (Loshchilov and Hutter, 2019), averaged weights. One pass over
 * memory; a step whose gradient norm is not finite changes nothing. */
#include "core/cuda/grid.h"
#include "core/cuda/update.h"
#include "core/cuda/vector.h"

namespace
{

__device__ __forceinline__ void adamw_element(float &parameter, float gradient, float &m, float &v,
                                              const KnCudaAdamw &a, float lr, float clip, float correction1,
                                              float correction2)
{
    const float g = gradient * clip;
    m += (1.0f - a.beta1) * (g - m);
    v += (1.0f - a.beta2) * (g * g - v);
    const float direction = m * (lr / correction1) / (sqrtf(v / correction2) + a.eps);
    parameter = parameter * (1.0f - lr * a.weight_decay) - direction;
}

__global__ void __launch_bounds__(KN_THREADS) adamw_kernel(KnCudaAdamw a, int64_t n, int64_t vectors)
{
    const float norm2 = *a.norm2;
    if (!isfinite(norm2))
        return;
    const float lr = *a.lr, clip = kn_clip_factor(*a.clip, norm2), c1 = *a.correction1, c2 = *a.correction2;
    for (int64_t i = kn_first(); i < vectors; i += kn_step()) {
        float p[4], g[4], m[4], v[4];
        kn_load(a.parameter + 4 * i, p);
        kn_load(a.gradient + 4 * i, g);
        kn_load(a.moment1 + 4 * i, m);
        kn_load(a.moment2 + 4 * i, v);
#pragma unroll
        for (int k = 0; k < 4; k++)
            adamw_element(p[k], g[k], m[k], v[k], a, lr, clip, c1, c2);
        kn_store(a.parameter + 4 * i, p);
        kn_store(a.moment1 + 4 * i, m);
        kn_store(a.moment2 + 4 * i, v);
    }
    for (int64_t i = 4 * vectors + kn_first(); i < n; i += kn_step())
        adamw_element(a.parameter[i], a.gradient[i], a.moment1[i], a.moment2[i], a, lr, clip, c1, c2);
}

__global__ void __launch_bounds__(KN_THREADS)
    ema_kernel(float *average, const float *__restrict__ parameter, const float *decay, const float *norm2, int64_t n)
{
    if (!isfinite(*norm2))
        return;
    const float part = 1.0f - *decay;
    for (int64_t i = kn_first(); i < n; i += kn_step())
        average[i] += part * (parameter[i] - average[i]);
}

} // namespace

cudaError_t kn_cuda_adamw(const KnCudaAdamw *a, int64_t n, cudaStream_t stream)
{
    const bool wide = kn_aligned(a->parameter, a->gradient) && kn_aligned(a->moment1, a->moment2);
    const int64_t vectors = wide ? n / 4 : 0;
    if (n == 0)
        return cudaSuccess;
    KN_LAUNCH(adamw_kernel, kn_blocks(vectors ? vectors : n), KN_THREADS, 0, stream, *a, n, vectors);
    return cudaGetLastError();
}

cudaError_t kn_cuda_ema(float *average, const float *parameter, const float *decay, const float *norm2, int64_t n,
                        cudaStream_t stream)
{
    if (n == 0)
        return cudaSuccess;
    KN_LAUNCH(ema_kernel, kn_blocks(n), KN_THREADS, 0, stream, average, parameter, decay, norm2, n);
    return cudaGetLastError();
}
