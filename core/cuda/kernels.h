/* Kinora's own CUDA kernels, as C functions. They take primitives and know no tensors.
 *
 * Each queues its work on `stream` and gives what cudaGetLastError says of the launch. Pointers are the device's.
 * Memory of `type` is float32 or bf16; statistics and weights of norms are float32. Rows lie one after the other. */
#ifndef KN_CUDA_KERNELS_H
#define KN_CUDA_KERNELS_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum KnCudaType { KN_CUDA_F32, KN_CUDA_BF16 } KnCudaType;

/* y = x rstd weight for each row, rstd = 1 / sqrt(mean(x^2) + eps), which goes to rstd[rows]. */
cudaError_t kn_cuda_rms_norm(KnCudaType type, const void *x, const float *weight, void *y, float *rstd, int64_t rows,
                             int64_t columns, float eps, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
