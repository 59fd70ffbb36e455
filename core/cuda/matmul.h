/* Matrix products by cuBLASLt: C = alpha op(A) op(B) + beta D + bias, row-major, in float32 sums. */
#ifndef KN_CUDA_MATMUL_H
#define KN_CUDA_MATMUL_H

#include "core/cuda/cuda.h"

typedef struct KnCudaProduct {
    int64_t m, n, k;
    int transpose_a, transpose_b;       /* stored [k, m], [n, k] */
    int bf16, c_bf16;                   /* of a and b; of c and d */
    int fp8, a_e5m2;                    /* a and b are 8-bit floats, [m, k] and [n, k] (transpose_b), b always e4m3 */
    const float *inverse_a, *inverse_b; /* of the scales of 8-bit operands */
    const void *a, *b;
    void *c;
    const void *d;    /* [m, n], with beta; c itself, or apart from it */
    const void *bias; /* [n], of c's type, or NULL */
    int gelu;         /* c is the GELU (tanh) of all that */
    float alpha, beta;
    int64_t count; /* products of equal shape, their operands one after another; a bias is for one only */
} KnCudaProduct;

/* Queues it. What cuBLASLt chooses for a shape is kept. KN_EPEER with a sentence. */
int kn_cuda_product(KnCuda *cuda, const KnCudaProduct *product);

int kn_cuda_matmul_open(KnCuda *cuda);
void kn_cuda_matmul_close(KnCuda *cuda);

#endif
