/* The kernels: primitives in, work queued on a stream. They know no tensors and no graph.
 *
 * `bf16` says which of float32 and bfloat16 the untyped operands are; statistics and parameters of norms are always
 * float32. Addresses are the device's. Kernels read 128 bits at a time where addresses and sizes are multiples of that.
 * All return what the launch returned. Sums have a fixed order: the same bits in each run. */
#ifndef KN_CUDA_KERNELS_H
#define KN_CUDA_KERNELS_H

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What a kernel found wrong with its data; the first of them, by position, is kept. */
enum { KN_CUDA_NO_FAULT, KN_CUDA_WILD_INDEX, KN_CUDA_WILD_SPAN, KN_CUDA_MIXED_SPANS };
typedef struct KnCudaFault {
    int32_t kind, value;
    int64_t position, limit;
} KnCudaFault;

/* ---- pointwise.cu ---- */

enum { KN_CUDA_GELU_TANH, KN_CUDA_GELU_EXACT, KN_CUDA_SILU }; /* as KnActivation */

cudaError_t kn_cuda_activation(int kind, int bf16, const void *x, void *out, int64_t n, cudaStream_t stream);
cudaError_t kn_cuda_activation_backward(int kind, int bf16, const void *x, const void *grad, void *out, int64_t n,
                                        cudaStream_t stream);
/* The same of GELU (tanh) for x [rows, columns], with the sum of `out` over the rows; a workspace of
 * kn_cuda_row_pass_floats (core/cuda/slabs.h). */
cudaError_t kn_cuda_gelu_backward_sum(int bf16, const void *x, const void *grad, void *out, float *sum, int64_t rows,
                                      int64_t columns, float *workspace, cudaStream_t stream);
cudaError_t kn_cuda_add(int bf16, const void *a, const void *b, void *out, int64_t n, cudaStream_t stream);
/* out = a + b, each float32 or bfloat16. */
typedef struct KnCudaSum {
    const void *a, *b;
    void *out;
    int a_bf16, b_bf16, out_bf16;
} KnCudaSum;
cudaError_t kn_cuda_add_parts(const KnCudaSum *sum, int64_t n, cudaStream_t stream);
cudaError_t kn_cuda_multiply(int bf16, const void *a, const void *b, void *out, int64_t n, cudaStream_t stream);
cudaError_t kn_cuda_scale(int bf16, const void *x, float factor, void *out, int64_t n, cudaStream_t stream);
/* out[r][c] = x[r][c] + row[c] */
cudaError_t kn_cuda_add_row(int bf16, const void *x, const float *row, void *out, int64_t rows, int64_t columns,
                            cudaStream_t stream);
/* From the one to the other. */
cudaError_t kn_cuda_cast(int from_bf16, const void *x, void *out, int64_t n, cudaStream_t stream);

/* ---- product.cu ---- */

/* C = alpha op(A) op(B) + beta D + bias, row-major, in float32 sums. */
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
/* Where nothing of m, n, k and count is 0; not of 8 bits. */
cudaError_t kn_cuda_own_product(const KnCudaProduct *product, cudaStream_t stream);

/* ---- fp8.cu ---- */

/* x [rows, columns] times a scale, as 8-bit floats: `plain`, and `transposed` [columns, rows filled up with zeros to a
 * multiple of 16]; either may be NULL. columns is a multiple of 16. */
typedef struct KnCudaQuantize {
    int64_t rows, columns;
    int e5m2; /* else e4m3 */
    const void *x;
    void *plain, *transposed;
    float *inverse;     /* 1 / scale */
    const float *scale; /* NULL, or pointing to 0: that of x itself */
    float *largest;     /* rises to the largest |x|; without `scale` from 0 */
} KnCudaQuantize;
cudaError_t kn_cuda_quantize(int bf16, const KnCudaQuantize *quantize, cudaStream_t stream);

/* ---- move.cu ---- */

/* `bytes` of piece i go from the source to the target, or zeros where `from` is NULL. Piece i lies at
 * (i / inner) outer + (i % inner) inner stride, in bytes. */
typedef struct KnCudaPieces {
    void *to;
    const void *from;
    int64_t pieces, bytes, inner, to_outer, to_inner, from_outer, from_inner;
} KnCudaPieces;
cudaError_t kn_cuda_copy_pieces(const KnCudaPieces *pieces, cudaStream_t stream);
/* Between rows of `count * part` bytes and as many tensors of rows of `part` bytes; NULL is a tensor of zeros. */
typedef struct KnCudaParts {
    void *whole;
    void *parts[6];
    const float *added; /* floats as wide as `whole`, to each of its rows that are split; or NULL */
    int64_t rows, part;
    int count, joins; /* joins: `whole` is written */
} KnCudaParts;
cudaError_t kn_cuda_copy_parts(const KnCudaParts *parts, cudaStream_t stream);
/* Row i of out is row index[i] of x, or zeros where that is negative. */
cudaError_t kn_cuda_gather_rows(const void *x, const int32_t *index, void *out, int64_t rows, int64_t row_bytes,
                                int64_t x_rows, KnCudaFault *fault, cudaStream_t stream);
/* Sums over tokens take a workspace of slabs x rows x columns floats (core/cuda/slabs.h). */
/* Row r of out [rows, columns] is the sum of the rows i of x [tokens, columns] with index[i] == r, in order of i. */
cudaError_t kn_cuda_scatter_rows(int bf16, const void *x, const int32_t *index, void *out, int64_t tokens, int64_t rows,
                                 int64_t columns, float *workspace, KnCudaFault *fault, cudaStream_t stream);
cudaError_t kn_cuda_sum_rows(int bf16, const void *x, float *out, int64_t rows, int64_t columns, float *workspace,
                             cudaStream_t stream);

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

/* ---- norm.cu: what a kernel does not use is NULL ---- */

typedef struct KnCudaNorm {
    int64_t tokens, columns, total_columns; /* total: of the whole row; an RMS norm's mean is over them */
    float eps;
    int split;
    const void *x, *grad;       /* [tokens, columns] */
    void *y;                    /* the result, or dx */
    const float *weight, *bias; /* [columns] */
    const float *scale, *shift; /* [scale_rows, columns] */
    const int32_t *row_of;      /* [tokens]: rows of scale and shift */
    int64_t scale_rows;
    float *stats;         /* layer norm: [tokens, 2] of mean and 1/deviation; RMS norm: [tokens] of the latter */
    const float *squares; /* [tokens]: given sums of squares, or their gradient */
    float *dsquares;      /* [tokens]: sums of squares, or their gradient */
    const void *added;    /* [tokens, columns]: to layer norm's dx, or NULL */
    const void *branch;   /* [tokens, columns]: of layer norm, whose x is then only a part of what is normed */
    const float *gate;    /* [scale_rows, columns] */
    void *residual;       /* [tokens, columns]: x + branch gate[row], which is normed */
    float *sums[2];   /* gradients of weight and bias, or of scale and shift; RMS norm: of weight, and the sum of dx */
    float *workspace; /* of a backward: kn_cuda_row_pass_floats (core/cuda/slabs.h) */
    KnCudaRope rope;  /* of an RMS norm: how its result, or its gradient first, is turned; without a table not at all */
    int64_t group;    /* of what is turned: its columns lie in groups of so many, [groups][tokens, group] */
    KnCudaFault *fault;
} KnCudaNorm;
/* y = (x - mean) / deviation, times weight plus bias, or times 1 + scale plus shift. */
cudaError_t kn_cuda_layer_norm(int bf16, const KnCudaNorm *norm, cudaStream_t stream);
cudaError_t kn_cuda_layer_norm_backward(int bf16, const KnCudaNorm *norm, cudaStream_t stream);
/* y = x / sqrt(squares / total_columns + eps) weight; squares are found where they are not given. */
cudaError_t kn_cuda_rms_norm(int bf16, const KnCudaNorm *norm, cudaStream_t stream);
/* `split`: the squares were given; dsquares is their gradient. */
cudaError_t kn_cuda_rms_norm_backward(int bf16, const KnCudaNorm *norm, cudaStream_t stream);
/* dsquares = sums of squares; y = 2 x squares */
cudaError_t kn_cuda_row_squares(int bf16, const KnCudaNorm *norm, cudaStream_t stream);
cudaError_t kn_cuda_row_squares_backward(int bf16, const KnCudaNorm *norm, cudaStream_t stream);

/* ---- modulate.cu ---- */

/* out = base + x (one + factor[row]) + term[row]; base and term may be NULL. */
typedef struct KnCudaModulate {
    int64_t tokens, columns, rows;
    const void *x, *base;
    const float *factor, *term; /* [rows, columns] */
    const int32_t *row_of;      /* [tokens] */
    float one;
    void *out;
    KnCudaFault *fault;
} KnCudaModulate;
cudaError_t kn_cuda_modulate(int bf16, const KnCudaModulate *modulate, cudaStream_t stream);
/* out = grad (one + factor[row]), and sums of grad x and of grad over the tokens of each row. */
typedef struct KnCudaModulateBackward {
    int64_t tokens, columns, rows;
    const void *x, *grad;
    const float *factor;
    const int32_t *row_of;
    float one;
    void *out;               /* this and the sums may be NULL */
    float *factor_sum, *sum; /* [rows, columns] */
    float *out_sum;          /* [columns]: in place of `sum`, that of out over all tokens */
    float *workspace;        /* kn_cuda_row_pass_floats */
    KnCudaFault *fault;
} KnCudaModulateBackward;
cudaError_t kn_cuda_modulate_backward(int bf16, const KnCudaModulateBackward *backward, cudaStream_t stream);

/* ---- norm_gate.cu ---- */

/* Both backwards, the second of what the first one writes: norm->y is gate->grad. Their workspace is one, of twice
 * kn_cuda_row_pass_floats of the gate's rows. */
cudaError_t kn_cuda_layer_norm_gate_backward(int bf16, const KnCudaNorm *norm, const KnCudaModulateBackward *gate,
                                             cudaStream_t stream);

/* ---- loss.cu: `sums` has KN_CUDA_SUM_BLOCKS floats of scratch ---- */

enum { KN_CUDA_SUM_BLOCKS = 1024 };
/* Of several tensors one after another; sums: KN_CUDA_SUM_BLOCKS floats for each. */
cudaError_t kn_cuda_sum_of_squares(int bf16, const void *const *x, const int64_t *n, int count, float *sums, float *out,
                                   cudaStream_t stream);
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

/* ---- muon.cu ---- */

/* m = momentum m + g; u = g + momentum m, g the clipped gradient. */
typedef struct KnCudaMomentum {
    float *u, *momentum;
    const float *gradient, *norm2, *clip;
    float factor;
} KnCudaMomentum;
cudaError_t kn_cuda_momentum(const KnCudaMomentum *momentum, int64_t n, cudaStream_t stream);
/* parameter -= lr (direction + weight_decay parameter) */
cudaError_t kn_cuda_descend(float *parameter, const float *direction, const float *lr, const float *norm2,
                            float weight_decay, int64_t n, cudaStream_t stream);

/* A stack of `count` matrices [rows, columns]; small is the shorter side. */
typedef struct KnCudaStack {
    int64_t count, rows, columns, small;
    float *values;
    float *block_sums;  /* [count, KN_CUDA_STACK_BLOCKS] */
    void *x;            /* bf16 [count, rows, columns] */
    float *sums;        /* [count, small, small] */
    void *left, *right; /* bf16 [count, small, small] */
} KnCudaStack;
enum { KN_CUDA_STACK_BLOCKS = 64 };
/* x = values / their norm, for each matrix. */
cudaError_t kn_cuda_stack_start(const KnCudaStack *stack, cudaStream_t stream);
/* left = sums, right = -4.7750 I + 2.0315 sums; left = 3.4445 I + sums. */
cudaError_t kn_cuda_stack_factors(const KnCudaStack *stack, cudaStream_t stream);
cudaError_t kn_cuda_stack_polynomial(const KnCudaStack *stack, cudaStream_t stream);
/* values = 0.2 sqrt(max(rows, columns)) x */
cudaError_t kn_cuda_stack_finish(const KnCudaStack *stack, cudaStream_t stream);

/* ---- attention.cu ---- */

/* softmax(scale q k^T) v by spans, as core/ops/ops.h has it; scale > 0. Rows of q, out, dq are `queries`, of k, v, dk,
 * dv `keys`; a row is heads * size columns. */
enum { KN_CUDA_MOST_HEAD_SIZE = 256 };
typedef struct KnCudaAttention {
    int64_t queries, keys, heads, size, span_count;
    float scale;
    const void *q, *k, *v;
    const int32_t *spans; /* [span_count, 4] of first query, queries, first key, keys */
    void *out;            /* what the forward gives and the backward is given, as `lse` [heads, queries] */
    float *lse;
    const void *grad_out;
    void *dq, *dk, *dv;
    int parts;        /* of the backward (kn_cuda_attention_parts); 0: one */
    float *workspace; /* of the backward: kn_cuda_attention_bytes */
    KnCudaFault *fault;
} KnCudaAttention;
cudaError_t kn_cuda_attention(int bf16, const KnCudaAttention *attention, cudaStream_t stream);
cudaError_t kn_cuda_attention_backward(int bf16, const KnCudaAttention *attention, cudaStream_t stream);

/* Into how many parts a span's queries are cut where they are summed over, for dk and dv: more than one where tiles of
 * keys are too few to keep a device busy. By shapes alone, on every device the same, as the order of sums follows from
 * it; in float32 always one, so that it follows from the span alone. */
enum { KN_CUDA_MOST_PARTS = 32 };
int kn_cuda_attention_parts(int bf16, const KnCudaAttention *shape);
/* The backward's workspace: statistics, and the sums of parts where there are several. */
size_t kn_cuda_attention_bytes(const KnCudaAttention *shape);

/* ---- packed.cu: spans as libraries want packed sequences (core/cuda/cudnn), in bfloat16, heads of multiples of 8 ----
 */

/* The lists of a call of `batch` spans, each at a multiple of 16 bytes: rows of each span, int32 [batch], of queries
 * and of keys, and where they begin, int64 [batch + 1], in elements of q, of k, and of stats [queries, heads]. */
enum { KN_CUDA_LENGTHS, KN_CUDA_OFFSETS = 2, KN_CUDA_STATS_OFFSETS = 4, KN_CUDA_LISTS };
static inline size_t kn_cuda_list_place(int64_t batch, int list)
{
    const size_t lengths = ((size_t)batch * 4 + 15) / 16 * 16, offsets = ((size_t)(batch + 1) * 8 + 15) / 16 * 16;
    return list < KN_CUDA_OFFSETS ? (size_t)list * lengths : 2 * lengths + (size_t)(list - KN_CUDA_OFFSETS) * offsets;
}
/* Fills the lists of all calls, one after another, kn_cuda_list_place(batch, KN_CUDA_LISTS) bytes each. Reports spans
 * that are not in order, or that share rows. */
cudaError_t kn_cuda_pack_spans(const KnCudaAttention *attention, int64_t batch, void *lists, cudaStream_t stream);
/* After a forward that wrote rows of spans alone: `lse` from the stats, and zeros in the other rows of `out`. */
cudaError_t kn_cuda_unpack_forward(const KnCudaAttention *attention, const float *stats, cudaStream_t stream);
/* Before such a backward: stats from `lse`, and zeros in rows of dq, dk and dv that are in no span. */
cudaError_t kn_cuda_pack_backward(const KnCudaAttention *attention, float *stats, cudaStream_t stream);

/* ---- ring.cu ---- */

/* a, b, out [rows, columns], float32 or bfloat16; lse [heads, rows]. A part that saw nothing has lse = -inf. */
typedef struct KnCudaMerge {
    const void *a, *b;
    const float *lse_a, *lse_b;
    void *out;
    float *lse;
    int a_bf16, b_bf16, out_bf16;
    int64_t rows, columns, heads;
} KnCudaMerge;
cudaError_t kn_cuda_attention_merge(const KnCudaMerge *merge, cudaStream_t stream);
cudaError_t kn_cuda_span_window(const int32_t *spans, int32_t *out, int64_t count, int64_t q_first, int64_t q_count,
                                int64_t k_first, int64_t k_count, KnCudaFault *fault, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
