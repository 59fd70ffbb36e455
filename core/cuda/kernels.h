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

/* ---- move.cu ---- */

/* `bytes` of piece i go from the source to the target, or zeros where `from` is NULL. Piece i lies at
 * (i / inner) outer + (i % inner) inner stride, in bytes. */
typedef struct KnCudaPieces {
    void *to;
    const void *from;
    int64_t pieces, bytes, inner, to_outer, to_inner, from_outer, from_inner;
} KnCudaPieces;
cudaError_t kn_cuda_copy_pieces(const KnCudaPieces *pieces, cudaStream_t stream);
/* Row i of out is row index[i] of x, or zeros where that is negative. */
cudaError_t kn_cuda_gather_rows(const void *x, const int32_t *index, void *out, int64_t rows, int64_t row_bytes,
                                int64_t x_rows, KnCudaFault *fault, cudaStream_t stream);
/* Row r of out [rows, columns] is the sum of the rows i of x [tokens, columns] with index[i] == r, in order of i. */
cudaError_t kn_cuda_scatter_rows(int bf16, const void *x, const int32_t *index, void *out, int64_t tokens, int64_t rows,
                                 int64_t columns, KnCudaFault *fault, cudaStream_t stream);

/* ---- rope.cu ---- */

/* x and out [tokens, heads * head], positions [tokens, 3], table [table_rows, head] of (cos, sin). */
typedef struct KnCudaRope {
    const void *x;
    void *out;
    const int32_t *positions;
    const float *table;
    int64_t tokens, heads, head, table_rows;
    int axis_pairs[3], inverse;
    KnCudaFault *fault;
} KnCudaRope;
cudaError_t kn_cuda_rope(int bf16, const KnCudaRope *rope, cudaStream_t stream);
/* out [rows, 2 half] = [cos(t f_i) | sin(t f_i)], f_i = 10000^(-i / half), of |t| up to some thousands. */
cudaError_t kn_cuda_timestep_embedding(const float *timesteps, float *out, int64_t rows, int64_t half,
                                       cudaStream_t stream);

/* ---- loss.cu: `sums` has KN_CUDA_SUM_BLOCKS floats of scratch ---- */

enum { KN_CUDA_SUM_BLOCKS = 1024 };
cudaError_t kn_cuda_sum_of_squares(int bf16, const void *x, int64_t n, float *sums, float *out, cudaStream_t stream);
cudaError_t kn_cuda_masked_mse(int bf16, const void *prediction, const float *target, const float *weight, float *sums,
                               float *out, int64_t rows, int64_t columns, cudaStream_t stream);
/* `grad` is a scalar, or NULL for 1. */
cudaError_t kn_cuda_masked_mse_backward(int bf16, const void *prediction, const float *target, const float *weight,
                                        const float *grad, void *out, int64_t rows, int64_t columns,
                                        cudaStream_t stream);

/* ---- update.cu: pointers to numbers that change from step to step are the device's ---- */

typedef struct KnCudaAdamw {
    float *parameter, *moment1, *moment2;
    const float *gradient;
    const float *norm2, *lr, *clip, *correction1, *correction2;
    float beta1, beta2, eps, weight_decay;
} KnCudaAdamw;
cudaError_t kn_cuda_adamw(const KnCudaAdamw *adamw, int64_t n, cudaStream_t stream);
cudaError_t kn_cuda_ema(float *average, const float *parameter, const float *decay, const float *norm2, int64_t n,
                        cudaStream_t stream);

/* ---- ring.cu ---- */

/* a, b, out [rows, columns]; lse [heads, rows]. A part that saw nothing has lse = -inf. */
typedef struct KnCudaMerge {
    const float *a, *lse_a, *b, *lse_b;
    float *out, *lse;
    int64_t rows, columns, heads;
} KnCudaMerge;
cudaError_t kn_cuda_attention_merge(const KnCudaMerge *merge, cudaStream_t stream);
cudaError_t kn_cuda_span_window(const int32_t *spans, int32_t *out, int64_t count, int64_t q_first, int64_t q_count,
                                int64_t k_first, int64_t k_count, KnCudaFault *fault, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
