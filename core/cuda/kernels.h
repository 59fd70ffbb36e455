/* The kernels: primitives in, work queued on a stream. They know no tensors and no graph.
 *
 * `bf16` says which of float32 and bfloat16 the untyped operands are; statistics and parameters of norms are always
 * float32. Addresses are the device's. Kernels read 128 bits at a time where addresses and sizes are multiples of that.
 * All return what the launch returned. Sums have a fixed order: the same bits in each run. */
#ifndef KN_CUDA_KERNELS_H
#define KN_CUDA_KERNELS_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What a kernel found wrong with its data; the first of them, by position, is kept. */
enum { KN_CUDA_NO_FAULT, KN_CUDA_WILD_INDEX, KN_CUDA_WILD_SPAN };
typedef struct KnCudaFault {
    int32_t kind, value;
    int64_t position, limit;
} KnCudaFault;

/* ---- pointwise.cu ---- */

enum { KN_CUDA_GELU_TANH, KN_CUDA_GELU_EXACT, KN_CUDA_SILU }; /* as KnActivation */

cudaError_t kn_cuda_activation(int kind, int bf16, const void *x, void *out, int64_t n, cudaStream_t stream);
cudaError_t kn_cuda_activation_backward(int kind, int bf16, const void *x, const void *grad, void *out, int64_t n,
                                        cudaStream_t stream);
cudaError_t kn_cuda_add(int bf16, const void *a, const void *b, void *out, int64_t n, cudaStream_t stream);
cudaError_t kn_cuda_multiply(int bf16, const void *a, const void *b, void *out, int64_t n, cudaStream_t stream);
cudaError_t kn_cuda_scale(int bf16, const void *x, float factor, void *out, int64_t n, cudaStream_t stream);
/* out[r][c] = x[r][c] + row[c] */
cudaError_t kn_cuda_add_row(int bf16, const void *x, const float *row, void *out, int64_t rows, int64_t columns,
                            cudaStream_t stream);
/* From the one to the other. */
cudaError_t kn_cuda_cast(int from_bf16, const void *x, void *out, int64_t n, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
