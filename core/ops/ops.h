/* The ops: what model-building code may say.
 *
 * Each function checks shapes, appends a node to the graph and returns its (first) output. An op is one shape rule
 * (here), one gradient rule built from the same ops, one cost rule, and one kernel per backend; the rows of the op
 * table are in the family files (linear.c, attention.c, ...), and every backend indexes its kernels by KnOpId.
 *
 * Shapes: [L, D] is rows x columns; tensors of more dimensions are read as [product of leading, last]. "x" may be f32
 * or bf16 unless said otherwise, and statistics, parameters of norms, modulation rows and biases are always f32.
 * Kernels accumulate in float32. Index tensors are i32. */
#ifndef KN_OPS_OPS_H
#define KN_OPS_OPS_H

#include "core/graph/graph.h"

typedef enum KnOpId {
    /* linear.c */
    KN_OP_MATMUL,
    KN_OP_PACK_MATRIX,
    KN_OP_SUM_ROWS,
    /* quantize.c */
    KN_OP_QUANTIZE,
    /* attention.c */
    KN_OP_ATTENTION,
    KN_OP_ATTENTION_BACKWARD,
    /* ring.c */
    KN_OP_ATTENTION_MERGE,
    KN_OP_SPAN_WINDOW,
    /* norm.c */
    KN_OP_LAYER_NORM,
    KN_OP_LAYER_NORM_BACKWARD,
    KN_OP_RMS_NORM,
    KN_OP_RMS_NORM_BACKWARD,
    KN_OP_ROW_SQUARES,
    KN_OP_ROW_SQUARES_BACKWARD,
    KN_OP_RMS_NORM_SPLIT,
    KN_OP_RMS_NORM_SPLIT_BACKWARD,
    /* modulate.c */
    KN_OP_MODULATE,
    KN_OP_MODULATE_BACKWARD,
    KN_OP_GATED_RESIDUAL,
    KN_OP_GATED_RESIDUAL_BACKWARD,
    /* rope.c */
    KN_OP_ROPE,
    KN_OP_TIMESTEP_EMBEDDING,
    /* pointwise.c */
    KN_OP_ACTIVATION,
    KN_OP_ACTIVATION_BACKWARD,
    KN_OP_ADD,
    KN_OP_ADD_ROW,
    KN_OP_MULTIPLY,
    KN_OP_SCALE,
    KN_OP_CAST,
    /* gather.c */
    KN_OP_GATHER_ROWS,
    KN_OP_SCATTER_ROWS,
    KN_OP_CONCATENATE,
    KN_OP_SLICE,
    KN_OP_PAD,
    KN_OP_SWAP_AXES,
    KN_OP_GROUP_COLUMNS,
    KN_OP_UNGROUP_COLUMNS,
    KN_OP_SPLIT_COLUMNS,
    KN_OP_JOIN_COLUMNS,
    /* loss.c */
    KN_OP_MASKED_MSE,
    KN_OP_MASKED_MSE_BACKWARD,
    KN_OP_SUM_OF_SQUARES,
    /* update.c: change state in place */
    KN_OP_ACCUMULATE,
    KN_OP_ADAMW,
    KN_OP_MOMENTUM,
    KN_OP_ORTHOGONALIZE,
    KN_OP_DESCEND,
    KN_OP_EMA,
    /* collective.c */
    KN_OP_COLLECTIVE_START,
    KN_OP_COLLECTIVE_WAIT,
    KN_OP_REPLICATE,
    /* memory.c */
    KN_OP_VIEW,
    KN_OP_ZEROS,
    KN_OP_COUNT
} KnOpId;

/* The table itself, by id. */
const KnOp *kn_op(KnOpId id);

/* The gradient rule of ops that have none: asserts that nothing differentiable asked for one. */
void kn_no_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs, const int *wanted,
                    KnTensor **grad_inputs);

/* --- linear.c: matrix products ------------------------------------------------------------------------------------ */

typedef struct KnMatmulAttributes {
    int transpose_a, transpose_b; /* operand is stored [K, M] / [N, K] */
    int packed_b;                 /* b is the output of pack_matrix; transpose_b then says how it was before */
    int fp8;                      /* KnFp8Format of a; b is e4m3: u8 [M,K] and [N,K] of kn_quantize */
    int gelu;                     /* the output is the GELU (tanh) of the product */
    int64_t m, n, k;
} KnMatmulAttributes;

/* C[M,N] of `dtype` = op(A)[M,K] op(B)[K,N] + bias[N]; A and B of one dtype, bias f32 or NULL.
 * Backends' lowering passes alone make `gelu`, `fp8` (with inverses of scales as inputs 4 and 5), biases in the
 * result's dtype, and products with an input 3: with an output they add it to that, of its shape and dtype; without one
 * they are added to it (f32 state, or a view). */
KnTensor *kn_matmul(KnGraph *graph, KnTensor *a, int transpose_a, KnTensor *b, int transpose_b, KnTensor *bias,
                    KnDtype dtype);
/* y[L,out] = x[L,in] weight[out,in]^T + bias; weight is cast to x's dtype. bias may be NULL. Result in x's dtype. */
KnTensor *kn_linear(KnGraph *graph, KnTensor *x, KnTensor *weight, KnTensor *bias);

typedef struct KnPackAttributes {
    int transpose; /* the source is stored [N, K] */
    int64_t k, n;
    KnDtype dtype; /* of the packed values */
} KnPackAttributes;
/* The backend's packed form of a matmul's B operand, as u8 [bytes]; `bytes` comes from the backend. Source f32 or
 * bf16; `dtype` is that of the packed values. Only backends' lowering passes append it. No gradient. */
KnTensor *kn_pack_matrix(KnGraph *graph, KnTensor *b, int transpose, KnDtype dtype, size_t bytes);

/* [D] f32 = sum over rows of x[L,D], in fixed order. */
KnTensor *kn_sum_rows(KnGraph *graph, KnTensor *x);

/* --- quantize.c: operands of products of 8-bit floats ------------------------------------------------------------- */

typedef enum KnFp8Format { KN_NO_FP8, KN_E4M3, KN_E5M2 } KnFp8Format;

typedef struct KnQuantizeAttributes {
    int plain, transposed; /* which of them is wanted */
    int format;            /* KN_E5M2, or e4m3 */
    int64_t site;
} KnQuantizeAttributes;

/* x [L,D], f32 or bf16, D a multiple of 16, times a scale and rounded, saturating. Outputs: u8 [L,D]; its transpose
 * [D, L filled up with zeros to a multiple of 16]; f32 [2], of which the first is 1 / scale; what is not wanted has no
 * rows. `scales` is state [2, sites]: row 0 has the scale at `site`, 0 where it is not known; in row 1 the largest |x|
 * there rises. Without it, or where the scale is not known, it is that of x itself (core/base/fp8.h). Only backends'
 * lowering passes append it. No gradient. */
KnNode *kn_quantize(KnGraph *graph, KnTensor *x, KnTensor *scales, const KnQuantizeAttributes *attributes);

/* A graph that has this leaf is computed with 8-bit products in its blocks, by backends that have kn_quantize. Its
 * columns are kn_fp8_sites, of the graph before it is lowered: the same for each graph of a model. */
#define KN_FP8_LEAF "fp8"
int64_t kn_fp8_sites(const KnGraph *graph);
int kn_is_block_product(const KnNode *node); /* a linear layer's in bf16: of its forward or backward */

/* --- attention.c -------------------------------------------------------------------------------------------------- */

/* A ring of ranks that each hold rows [cuts[rank], cuts[rank + 1]) of queries, keys and values. */
typedef struct KnRing {
    int group, ranks, rank; /* group as in KnCollective */
    int64_t *cuts;          /* [ranks + 1], in the graph's arena */
    int gathers;            /* all keys (and, backward, queries) come at once: bits do not depend on the ranks */
} KnRing;

typedef struct KnAttentionAttributes {
    int64_t heads;
    float scale;
    int partial;          /* the backward is given the log-sum-exp of more keys than it sees */
    double pairs;         /* query-key pairs that the spans are expected to hold: for the cost rule alone */
    const KnRing *ring;   /* NULL, or the rest of the keys is with other ranks: a pass takes such a node apart */
    int packed;           /* promised by kn_attention_promise_packed */
    size_t library_bytes; /* by a backend's lowering: it computes the node by a library, with this workspace; or 0 */
} KnAttentionAttributes;

/* softmax(scale q k^T) v by a span table: spans i32 [S,4] rows (q_start, q_len, k_start, k_len); within a span every
 * query sees every key. Query rows must not appear in two spans; key rows may. q [Lq, H*d], k, v [Lk, H*d]; head h is
 * columns h*d..h*d+d-1. Rows of no span, and rows whose span has no keys, give zeros and lse = -inf. There may be no
 * rows, and no heads (of no columns).
 * Returns out [Lq, H*d]; output 1 of the node is lse f32 [H, Lq] (natural log of the sum of exponentials). */
KnTensor *kn_attention(KnGraph *graph, KnTensor *q, KnTensor *k, KnTensor *v, KnTensor *spans, int64_t heads,
                       float scale);
/* Appends the backward; gradients: dq, dk, dv in the dtype of q. `grad_out` is cast to it.
 * `partial`: `out` and `lse` may be those of the whole attention where k, v and spans are but a part of it: then dq is
 * this part's share of the sum, dk and dv are its keys' own. Queries whose lse is -inf get and give zeros. Inputs of
 * the node: q, k, v, spans, out, lse, grad_out. */
void kn_attention_backward(KnGraph *graph, KnTensor *q, KnTensor *k, KnTensor *v, KnTensor *spans, KnTensor *out,
                           KnTensor *lse, KnTensor *grad_out, int64_t heads, float scale, int partial,
                           KnTensor *gradients[3]);
/* Spans are data: the cost rules count every query against every key unless told how many pairs to expect. Call it
 * right after one of the above, with its first result. */
void kn_attention_expect_pairs(KnTensor *result, double pairs);
/* Promises that spans are packed: empty ones aside, they are in order of both queries and keys, and no row is in two.
 * Backends may then use kernels that know no others. Call it as the former. */
void kn_attention_promise_packed(KnTensor *result);
/* Is this a backward to so few keys that kernels with a block for each 128 of them, of a head, leave more than half of
 * a GPU idle? Libraries' do so: a backend with its own for such shapes runs those, and plans price them. */
int kn_attention_has_few_keys(const KnNode *node);

/* --- ring.c: attention to keys that come in parts ---------------------------------------------------------------- */

/* The results of kn_attention for two parts of the keys as that of both, in the given dtype: a, b [L, H*d], lse f32
 * [H, L]. Output 1 of the node is the merged lse. A part that saw nothing has lse = -inf; where both saw nothing, the
 * result is zeros and -inf. No gradient: what belongs to the whole is kn_attention_backward of every part. */
KnTensor *kn_attention_merge(KnGraph *graph, KnTensor *a, KnTensor *lse_a, KnTensor *b, KnTensor *lse_b, KnDtype dtype);

typedef struct KnSpanWindowAttributes {
    int64_t q_first, q_count, k_first, k_count;
} KnSpanWindowAttributes;
/* i32 [S,4]: each span cut to query rows [q_first, q_first + q_count) and key rows [k_first, k_first + k_count), its
 * starts counted from q_first and k_first. Queries or keys outside of it: start 0 and length 0. No gradient. */
KnTensor *kn_span_window(KnGraph *graph, KnTensor *spans, int64_t q_first, int64_t q_count, int64_t k_first,
                         int64_t k_count);

/* --- norm.c ------------------------------------------------------------------------------------------------------- */

/* Of kn_rope, and of an RMS norm that turns its result. */
typedef struct KnRopeAttributes {
    int64_t heads;
    int64_t axis_pairs[3]; /* how many of a head's pairs turn with t, with y, with x; the sum is head size / 2 */
    int inverse;           /* turns back: the gradient */
} KnRopeAttributes;

typedef struct KnNormAttributes {
    float eps;
    KnRopeAttributes rope; /* of an RMS norm */
    int64_t group;         /* of one that is turned: 0, or the columns of each group */
} KnNormAttributes;

/* (x - mean) / sqrt(var + eps) over columns. Inputs of the node: x, weight, bias, scale, shift, rows.
 * Affine: weight and bias f32 [D] (both or neither). Modulated: scale and shift f32 [R,D] with rows i32 [L] choosing
 * the row of each token: y = norm * (1 + scale[row]) + shift[row] (all three or none; never with affine).
 * Output 1: f32 [L,2] of (mean, 1/sqrt(var + eps)). Backends' lowering passes alone make norms of a gated residual:
 * with y and gate as inputs 6 and 7, and rows also where it is affine, output 2 is x + y * gate[row], and is what is
 * normed.
 */
KnTensor *kn_layer_norm(KnGraph *graph, KnTensor *x, KnTensor *weight, KnTensor *bias, float eps);
KnTensor *kn_layer_norm_modulated(KnGraph *graph, KnTensor *x, KnTensor *scale, KnTensor *shift, KnTensor *rows,
                                  float eps);
/* LAYER_NORM_BACKWARD inputs: x, stats, grad_out, weight, scale, rows (the latter three as above, or NULL); outputs:
 * dx, then for affine dweight [D], dbias [D]; for modulated dscale [R,D], dshift [R,D] (f32). Backends' lowering passes
 * alone make an input 6, like x, which is added to dx, and with it inputs 7 and 8, y and gate of a
 * GATED_RESIDUAL_BACKWARD of dx, whose rows are then input 5, and whose outputs follow the others. */

/* x / sqrt(mean(x^2) + eps) * weight[D]. Output 1: f32 [L] of 1/sqrt(...). Backends' lowering passes alone make norms
 * whose result is turned as kn_rope does it, positions and table being inputs 3 and 4, of whole and of split rows; and
 * then lies as kn_group_columns would have it, as grad_out of their backward does. */
KnTensor *kn_rms_norm(KnGraph *graph, KnTensor *x, KnTensor *weight, float eps);
/* RMS_NORM_BACKWARD inputs: x, rstd, weight, grad_out; outputs: dx, dweight f32 [D]. Where a lowering pass gives it, or
 * that of split rows, positions and table as inputs 4 and 5, grad_out is turned first. Backends' lowering passes alone
 * add an output to it, to GATED_RESIDUAL_BACKWARD and to ACTIVATION_BACKWARD of KN_GELU_TANH: the sum of their first
 * one over its rows, f32 [D]. */

/* f32 [L]: the sum of squares of each row of x. */
KnTensor *kn_row_squares(KnGraph *graph, KnTensor *x);
/* ROW_SQUARES_BACKWARD inputs: x, grad_squares f32 [L]; output dx. */

typedef struct KnSplitNormAttributes {
    int64_t total_columns;
    float eps;
    KnRopeAttributes rope;
    int64_t group;
} KnSplitNormAttributes;
/* RMS norm of some of the columns: x / sqrt(squares / total_columns + eps) * weight[D], where squares f32 [L] are those
 * of all `total_columns` columns of a row. Output 1: f32 [L] of 1/sqrt(...). */
KnTensor *kn_rms_norm_split(KnGraph *graph, KnTensor *x, KnTensor *weight, KnTensor *squares, int64_t total_columns,
                            float eps);
/* RMS_NORM_SPLIT_BACKWARD inputs: x, rstd, weight, grad_out; outputs: dx, dweight f32 [D], dsquares f32 [L]. */

/* --- modulate.c --------------------------------------------------------------------------------------------------- */

/* x * (1 + scale[row]) + shift[row]; scale, shift f32 [R,D]; rows i32 [L]. */
KnTensor *kn_modulate(KnGraph *graph, KnTensor *x, KnTensor *scale, KnTensor *shift, KnTensor *rows);
/* MODULATE_BACKWARD inputs: x, scale, rows, grad_out; outputs: dx, dscale, dshift. */

/* x + y * gate[row]; x and y of one dtype; gate f32 [R,D]. */
KnTensor *kn_gated_residual(KnGraph *graph, KnTensor *x, KnTensor *y, KnTensor *gate, KnTensor *rows);
/* GATED_RESIDUAL_BACKWARD inputs: y, gate, rows, grad_out; outputs: dy, dgate (dx is grad_out itself). */

/* --- rope.c ------------------------------------------------------------------------------------------------------- */

/* Rotary embedding of interleaved pairs: pair j of a head (columns 2j, 2j+1) of token l is turned by the angle whose
 * (cos, sin) is table[p][2j], table[p][2j+1], where p is the token's position on the axis that pair j belongs to.
 * x [L, H*d], positions i32 [L,3] as (t, y, x), table f32 [P, d]. */
KnTensor *kn_rope(KnGraph *graph, KnTensor *x, KnTensor *positions, KnTensor *table,
                  const KnRopeAttributes *attributes);

/* f32 [R, dim] = [cos(t f_i) | sin(t f_i)], f_i = 10000^(-i/(dim/2)), of t f32 [R]. No gradient. */
KnTensor *kn_timestep_embedding(KnGraph *graph, KnTensor *timesteps, int64_t dim);

/* --- pointwise.c -------------------------------------------------------------------------------------------------- */

typedef enum KnActivation { KN_GELU_TANH, KN_GELU_EXACT, KN_SILU } KnActivation;
typedef struct KnActivationAttributes {
    KnActivation kind;
} KnActivationAttributes;
KnTensor *kn_activation(KnGraph *graph, KnTensor *x, KnActivation kind);
/* ACTIVATION_BACKWARD inputs: x, grad_out; output dx. */

KnTensor *kn_add(KnGraph *graph, KnTensor *a, KnTensor *b); /* same shape and dtype */
/* The same where a, b and the sum may each be f32 or bf16: `dtype` is the sum's, which is rounded once. */
KnTensor *kn_add_parts(KnGraph *graph, KnTensor *a, KnTensor *b, KnDtype dtype);
KnTensor *kn_add_row(KnGraph *graph, KnTensor *x, KnTensor *row); /* row f32 with columns(x) elements, to every row */
KnTensor *kn_multiply(KnGraph *graph, KnTensor *a, KnTensor *b);  /* same shape and dtype */
typedef struct KnScaleAttributes {
    float factor;
} KnScaleAttributes;
KnTensor *kn_scale(KnGraph *graph, KnTensor *x, float factor);
KnTensor *kn_cast(KnGraph *graph, KnTensor *x, KnDtype dtype); /* f32 <-> bf16; returns x itself when already so */

/* --- gather.c ----------------------------------------------------------------------------------------------------- */

typedef struct KnGatherAttributes {
    int64_t rows;
} KnGatherAttributes;
/* [N, D]: row i is x[index[i]], or zeros where index[i] is negative. An embedding is a gather from a parameter. */
KnTensor *kn_gather_rows(KnGraph *graph, KnTensor *x, KnTensor *index);
/* [rows, D]: row r is the sum of x[i] with index[i] == r, in order of i; negative indices are left out. */
KnTensor *kn_scatter_rows(KnGraph *graph, KnTensor *x, KnTensor *index, int64_t rows);

typedef struct KnSliceAttributes {
    int axis; /* 0: rows, 1: columns of the two-dimensional reading */
    int64_t start, length, total;
} KnSliceAttributes;
KnTensor *kn_concatenate(KnGraph *graph, KnTensor *a, KnTensor *b, int axis);
KnTensor *kn_slice(KnGraph *graph, KnTensor *x, int axis, int64_t start, int64_t length);
/* x at [start, start + length) of an otherwise zero tensor of `total`. */
KnTensor *kn_pad(KnGraph *graph, KnTensor *x, int axis, int64_t start, int64_t total);

typedef struct KnSwapAttributes {
    int64_t outer, middle, inner;
} KnSwapAttributes;
/* x read as [outer, middle, inner] becomes [middle, outer, inner]; the tensor's own shape is kept. */
KnTensor *kn_swap_axes(KnGraph *graph, KnTensor *x, int64_t outer, int64_t middle);

typedef struct KnGroupAttributes {
    int64_t rows;
    const int64_t *cuts; /* [groups + 1], in the graph's arena */
    int groups;
} KnGroupAttributes;
/* x [L, C] as what an all-to-all sends: flat [L * C], the groups one after another, each row-major
 * [L, cuts[i + 1] - cuts[i]]. Cuts rise from 0 to C and are copied; groups may be empty. */
KnTensor *kn_group_columns(KnGraph *graph, KnTensor *x, const int64_t *cuts, int groups);
/* The inverse: [rows, C], C being cuts[groups]. */
KnTensor *kn_ungroup_columns(KnGraph *graph, KnTensor *flat, int64_t rows, const int64_t *cuts, int groups);

/* x [L, count * D] as `count` tensors [L, D], at most KN_MAX_OUTPUTS, of which one lies beside the other; with a row
 * f32 [count * D], or NULL, added to each of x, which is f32 then. */
void kn_split_columns(KnGraph *graph, KnTensor *x, KnTensor *row, int count, KnTensor **parts);
/* The inverse. Of parts, which have one shape and dtype, all but one may be NULL, for zeros. */
KnTensor *kn_join_columns(KnGraph *graph, KnTensor *const *parts, int count);

/* --- loss.c ------------------------------------------------------------------------------------------------------- */

/* Scalar f32 = sum over l of weight[l] * sum over d of (prediction - target)^2. target f32 [L,D], weight f32 [L];
 * a weight of 0 masks a token whatever its values. Normalization is the caller's, in the weights. */
KnTensor *kn_masked_mse(KnGraph *graph, KnTensor *prediction, KnTensor *target, KnTensor *weight);
/* MASKED_MSE_BACKWARD inputs: prediction, target, weight, grad_loss (scalar f32, or NULL for 1); output:
 * dprediction. */

/* Scalar f32, of all elements of tensors of one dtype, at most KN_MAX_INPUTS, in a fixed order. No gradient. */
KnTensor *kn_sum_of_squares(KnGraph *graph, KnTensor *const *list, int count);

/* --- update.c: the optimizers' steps, on state leaves in place; none has a gradient ------------------------------- */

/* What changes from step to step, as one f32 input tensor of KN_HYPER_COUNT values. */
enum {
    KN_HYPER_LR,          /* learning rate of matrices under Muon */
    KN_HYPER_LR_OTHER,    /* learning rate of everything under AdamW */
    KN_HYPER_CORRECTION1, /* 1 - beta1^t */
    KN_HYPER_CORRECTION2, /* 1 - beta2^t */
    KN_HYPER_EMA,         /* decay of the averaged weights at this step */
    KN_HYPER_CLIP,        /* largest global gradient norm; 0 = no clipping */
    KN_HYPER_COUNT
};

typedef struct KnUpdateAttributes {
    float beta1, beta2, eps, weight_decay; /* AdamW (decoupled decay) */
    float momentum;                        /* Muon */
    int newton_schulz_steps;
} KnUpdateAttributes;

void kn_accumulate(KnGraph *graph, KnTensor *state, KnTensor *x); /* state (or a view of one) += x, both f32 */

/* One AdamW step (Loshchilov and Hutter, 2019) on f32 leaves of one shape. `norm2` is the scalar square of the global
 * gradient norm: the gradient is scaled by min(1, clip / norm), and where norm2 is not finite nothing changes. */
void kn_adamw(KnGraph *graph, KnTensor *parameter, KnTensor *gradient, KnTensor *moment1, KnTensor *moment2,
              KnTensor *hyper, KnTensor *norm2, const KnUpdateAttributes *attributes);

/* One Muon step (Jordan et al., 2024) is three ops, of which only the second needs whole matrices; f32.
 * m = momentum m + g; u = g + momentum m (Nesterov). The gradient is clipped as above; where norm2 is not finite
 * neither changes. u is a value of kn_zeros, a view of one, or state. */
void kn_momentum(KnGraph *graph, KnTensor *u, KnTensor *gradient, KnTensor *momentum, KnTensor *hyper, KnTensor *norm2,
                 const KnUpdateAttributes *attributes);
/* In place on a stack of matrices [count, rows, columns]: each near the closest orthogonal matrix, by Newton-Schulz
 * iterations (3.4445, -4.7750, 2.0315) in bf16 or float32 with float32 sums, times 0.2 sqrt(max(rows, columns)). */
void kn_orthogonalize(KnGraph *graph, KnTensor *x, const KnUpdateAttributes *attributes);
/* parameter -= lr (direction + weight_decay parameter); nothing where norm2 is not finite. */
void kn_descend(KnGraph *graph, KnTensor *parameter, KnTensor *direction, KnTensor *hyper, KnTensor *norm2,
                const KnUpdateAttributes *attributes);

/* average += (1 - decay) (parameter - average), decay = hyper[KN_HYPER_EMA]; nothing where norm2 is not finite. */
void kn_ema(KnGraph *graph, KnTensor *average, KnTensor *parameter, KnTensor *hyper, KnTensor *norm2);

/* --- memory.c: tensors in the memory of others ------------------------------------------------------------------- */

/* Part of `base`'s memory from element `first` on, under another shape; no byte moves. No gradient. */
KnTensor *kn_view(KnGraph *graph, KnTensor *base, int64_t first, int dims, const int64_t *shape);
/* A value that begins as zeros, for kn_accumulate to add to through views. */
KnTensor *kn_zeros(KnGraph *graph, KnDtype dtype, int dims, const int64_t *shape);

/* --- collective.c: placed by passes, never written by model code -------------------------------------------------- */

typedef enum KnCollectiveKind {
    KN_ALL_REDUCE,
    KN_ALL_REDUCE_ONCE, /* the same, whose result all ranks use alike: the gradient is the identity */
    KN_REDUCE_SCATTER,
    KN_ALL_GATHER,
    KN_ALL_TO_ALL,
    KN_SEND_RECEIVE
} KnCollectiveKind;

/* What is exchanged, in elements; lives in the graph's arena (kn_collective_create). */
typedef struct KnCollective {
    KnCollectiveKind kind;
    int group; /* index among the executor's communicators */
    int ranks, rank;
    const char *name;
    /* all_gather, reduce_scatter: offsets [ranks + 1] of the parts. all_to_all: of what is sent and received. */
    int64_t *offsets, *receive_offsets;
    int to, from; /* send_receive */
} KnCollective;

/* `offsets` and `receive_offsets` may be NULL and are copied; so is the name. */
KnCollective *kn_collective_create(KnGraph *graph, KnCollectiveKind kind, int group, int ranks, int rank,
                                   const char *name, const int64_t *offsets, const int64_t *receive_offsets);

/* Exchanges a value: what arrives has `shape`. A start node and a wait node; the result may be used after the wait.
 * The gradient is the opposite exchange. A reduce_scatter uses x up. */
KnTensor *kn_collective(KnGraph *graph, const KnCollective *collective, KnTensor *x, int dims, const int64_t *shape);

/* The same in place on f32 state, or on a value of kn_zeros: all_reduce; all_gather of a rank's own part;
 * reduce_scatter into a rank's own part. Start and wait are apart, for work in between. No gradient. */
void kn_collective_in_place_start(KnGraph *graph, const KnCollective *collective, KnTensor *state);
void kn_collective_in_place_wait(KnGraph *graph, const KnCollective *collective, KnTensor *state);

/* x itself, which all ranks of the group use differently: the gradient is summed over the group. */
KnTensor *kn_replicate(KnGraph *graph, const KnCollective *sum, KnTensor *x);

#endif
