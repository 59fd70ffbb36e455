/* Inside core/ops only: the rows of the op table, and helpers of shape and cost rules. */
#ifndef KN_OPS_ROWS_H
#define KN_OPS_ROWS_H

#include "core/base/error.h"
#include "core/ops/ops.h"

extern const KnOp kn_op_matmul, kn_op_pack_matrix, kn_op_sum_rows, kn_op_quantize;
extern const KnOp kn_op_attention, kn_op_attention_backward;
extern const KnOp kn_op_attention_merge, kn_op_span_window;
extern const KnOp kn_op_layer_norm, kn_op_layer_norm_backward, kn_op_rms_norm, kn_op_rms_norm_backward;
extern const KnOp kn_op_row_squares, kn_op_row_squares_backward, kn_op_rms_norm_split, kn_op_rms_norm_split_backward;
extern const KnOp kn_op_modulate, kn_op_modulate_backward, kn_op_gated_residual, kn_op_gated_residual_backward;
extern const KnOp kn_op_rope, kn_op_timestep_embedding;
extern const KnOp kn_op_activation, kn_op_activation_backward, kn_op_add, kn_op_add_row, kn_op_multiply, kn_op_scale,
    kn_op_cast;
extern const KnOp kn_op_gather_rows, kn_op_scatter_rows, kn_op_concatenate, kn_op_slice, kn_op_pad, kn_op_swap_axes,
    kn_op_group_columns, kn_op_ungroup_columns, kn_op_split_columns, kn_op_join_columns;
extern const KnOp kn_op_masked_mse, kn_op_masked_mse_backward, kn_op_sum_of_squares;
extern const KnOp kn_op_accumulate, kn_op_adamw, kn_op_momentum, kn_op_orthogonalize, kn_op_descend, kn_op_ema;
extern const KnOp kn_op_collective_start, kn_op_collective_wait, kn_op_replicate;
extern const KnOp kn_op_view, kn_op_zeros;

/* Bytes of all inputs and outputs, each once. */
double kn_node_bytes(const KnNode *node);

/* Cost rule of ops that are bound by memory: the bytes, and `operations` a first-output element. */
void kn_cost_of_bytes(const KnNode *node, KnCost *cost, double operations);

/* Appends a node with one output of the given two-dimensional shape and returns that output. */
KnTensor *kn_node_simple(KnGraph *graph, const KnOp *op, const void *attributes, size_t attribute_bytes,
                         KnTensor *const *inputs, int input_count, KnDtype dtype, int dims, const int64_t *shape);

static inline int kn_is_float(const KnTensor *x)
{
    return x->dtype == KN_F32 || x->dtype == KN_BF16;
}

/* f32 with exactly `columns` elements in its last dimension (and, for rows >= 0, that many rows). */
static inline int kn_is_f32(const KnTensor *x, int64_t rows, int64_t columns)
{
    return x->dtype == KN_F32 && kn_tensor_columns(x) == columns && (rows < 0 || kn_tensor_rows(x) == rows);
}

static inline int kn_is_index(const KnTensor *x, int64_t count)
{
    return x->dtype == KN_I32 && kn_tensor_elements(x) == count;
}

#endif
