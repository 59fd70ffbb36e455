/* A kernel for tests of the runtime: RMS norm of rows, with plain pointers as arguments. */
#include "core/cuda/grid.h"

static __global__ void __launch_bounds__(KN_THREADS) rms_norm_kernel(const float *x, const float *weight, float *y,
                                                                     float *rstd_out, int columns)
{
    const float *row = x + (int64_t)blockIdx.x * columns;
    float square = 0;
    for (int c = (int)threadIdx.x; c < columns; c += KN_THREADS)
        square += row[c] * row[c];
    const float rstd = rsqrtf(kn_block_sum(square) / (float)columns);
    if (threadIdx.x == 0)
        rstd_out[blockIdx.x] = rstd;
    for (int c = (int)threadIdx.x; c < columns; c += KN_THREADS)
        y[(int64_t)blockIdx.x * columns + c] = row[c] * rstd * weight[c];
}

extern "C" cudaError_t sample_rms_norm(const float *x, const float *weight, float *y, float *rstd, int rows,
                                       int columns, cudaStream_t stream);
cudaError_t sample_rms_norm(const float *x, const float *weight, float *y, float *rstd, int rows, int columns,
                            cudaStream_t stream)
{
    KN_LAUNCH(rms_norm_kernel, (unsigned)rows, KN_THREADS, 0, stream, x, weight, y, rstd, columns);
    return cudaGetLastError();
}
