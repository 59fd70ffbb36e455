/* Norms: a block for each row. */
#include "core/cuda/kernels.h"
#include "core/cuda/reduce.h"
#include "core/cuda/vector.h"

static constexpr int THREADS = 256;

template <class T, int N>
__global__ void __launch_bounds__(THREADS, 4)
    rms_norm(const T *__restrict__ x, const float *__restrict__ weight, T *__restrict__ y, float *__restrict__ rstd_out,
             int columns, float eps)
{
    const T *row = x + (int64_t)blockIdx.x * columns;
    T *out = y + (int64_t)blockIdx.x * columns;
    float square = 0;
    for (int c = (int)threadIdx.x * N; c < columns; c += THREADS * N) {
        float values[N];
        kn_load(values, row + c);
#pragma unroll
        for (int i = 0; i < N; i++)
            square += values[i] * values[i];
    }
    const float rstd = rsqrtf(kn_block_sum<THREADS>(square) / (float)columns + eps);
    if (threadIdx.x == 0)
        rstd_out[blockIdx.x] = rstd;
    for (int c = (int)threadIdx.x * N; c < columns; c += THREADS * N) {
        float values[N], weights[N];
        kn_load(values, row + c);
        kn_load(weights, weight + c);
#pragma unroll
        for (int i = 0; i < N; i++)
            values[i] = values[i] * rstd * weights[i];
        kn_store(out + c, values);
    }
}

template <class T>
static void launch_rms_norm(const void *x, const float *weight, void *y, float *rstd, int64_t rows, int64_t columns,
                            float eps, cudaStream_t stream)
{
    auto rms_norm_kernel = columns % kn_lanes<T> == 0 ? rms_norm<T, kn_lanes<T>> : rms_norm<T, 1>;
    KN_LAUNCH(rms_norm_kernel, (unsigned)rows, THREADS, 0, stream, (const T *)x, weight, (T *)y, rstd, (int)columns,
              eps);
}

extern "C" cudaError_t kn_cuda_rms_norm(KnCudaType type, const void *x, const float *weight, void *y, float *rstd,
                                        int64_t rows, int64_t columns, float eps, cudaStream_t stream)
{
    auto launch = type == KN_CUDA_F32 ? launch_rms_norm<float> : launch_rms_norm<KnBf16>;
    launch(x, weight, y, rstd, rows, columns, eps, stream);
    return cudaGetLastError();
}
