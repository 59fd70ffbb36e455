/* Matrix products (KnCudaProduct of core/cuda/kernels.h): by cuBLASLt, or, where it cannot be started or
 * KINORA_CUBLASLT is 0, by our own kernels. */
#ifndef KN_CUDA_MATMUL_H
#define KN_CUDA_MATMUL_H

#include "core/cuda/cuda.h"

/* Queues it. What cuBLASLt chooses for a shape is kept. KN_EPEER with a sentence. */
int kn_cuda_product(KnCuda *cuda, const KnCudaProduct *product);

int kn_cuda_matmul_open(KnCuda *cuda);
void kn_cuda_matmul_close(KnCuda *cuda);

#endif
