/* The op table, and what several rules share. */
#include "core/ops/rows.h"

static const KnOp *const table[KN_OP_COUNT] = {
    [KN_OP_MATMUL] = &kn_op_matmul,
    [KN_OP_PACK_MATRIX] = &kn_op_pack_matrix,
    [KN_OP_SUM_ROWS] = &kn_op_sum_rows,
    [KN_OP_QUANTIZE] = &kn_op_quantize,
    [KN_OP_ATTENTION] = &kn_op_attention,
    [KN_OP_ATTENTION_BACKWARD] = &kn_op_attention_backward,
    [KN_OP_ATTENTION_MERGE] = &kn_op_attention_merge,
    [KN_OP_SPAN_WINDOW] = &kn_op_span_window,
    [KN_OP_LAYER_NORM] = &kn_op_layer_norm,
    [KN_OP_LAYER_NORM_BACKWARD] = &kn_op_layer_norm_backward,
    [KN_OP_RMS_NORM] = &kn_op_rms_norm,
    [KN_OP_RMS_NORM_BACKWARD] = &kn_op_rms_norm_backward,
    [KN_OP_ROW_SQUARES] = &kn_op_row_squares,
    [KN_OP_ROW_SQUARES_BACKWARD] = &kn_op_row_squares_backward,
    [KN_OP_RMS_NORM_SPLIT] = &kn_op_rms_norm_split,
    [KN_OP_RMS_NORM_SPLIT_BACKWARD] = &kn_op_rms_norm_split_backward,
    [KN_OP_MODULATE] = &kn_op_modulate,
    [KN_OP_MODULATE_BACKWARD] = &kn_op_modulate_backward,
    [KN_OP_GATED_RESIDUAL] = &kn_op_gated_residual,
    [KN_OP_GATED_RESIDUAL_BACKWARD] = &kn_op_gated_residual_backward,
    [KN_OP_ROPE] = &kn_op_rope,
    [KN_OP_TIMESTEP_EMBEDDING] = &kn_op_timestep_embedding,
    [KN_OP_ACTIVATION] = &kn_op_activation,
    [KN_OP_ACTIVATION_BACKWARD] = &kn_op_activation_backward,
    [KN_OP_ADD] = &kn_op_add,
    [KN_OP_ADD_ROW] = &kn_op_add_row,
    [KN_OP_MULTIPLY] = &kn_op_multiply,
    [KN_OP_SCALE] = &kn_op_scale,
    [KN_OP_CAST] = &kn_op_cast,
    [KN_OP_GATHER_ROWS] = &kn_op_gather_rows,
    [KN_OP_SCATTER_ROWS] = &kn_op_scatter_rows,
    [KN_OP_CONCATENATE] = &kn_op_concatenate,
    [KN_OP_SLICE] = &kn_op_slice,
    [KN_OP_PAD] = &kn_op_pad,
    [KN_OP_SWAP_AXES] = &kn_op_swap_axes,
    [KN_OP_GROUP_COLUMNS] = &kn_op_group_columns,
    [KN_OP_UNGROUP_COLUMNS] = &kn_op_ungroup_columns,
    [KN_OP_SPLIT_COLUMNS] = &kn_op_split_columns,
    [KN_OP_JOIN_COLUMNS] = &kn_op_join_columns,
    [KN_OP_MASKED_MSE] = &kn_op_masked_mse,
    [KN_OP_MASKED_MSE_BACKWARD] = &kn_op_masked_mse_backward,
    [KN_OP_SUM_OF_SQUARES] = &kn_op_sum_of_squares,
    [KN_OP_ACCUMULATE] = &kn_op_accumulate,
    [KN_OP_ADAMW] = &kn_op_adamw,
    [KN_OP_MOMENTUM] = &kn_op_momentum,
    [KN_OP_ORTHOGONALIZE] = &kn_op_orthogonalize,
    [KN_OP_DESCEND] = &kn_op_descend,
    [KN_OP_EMA] = &kn_op_ema,
    [KN_OP_COLLECTIVE_START] = &kn_op_collective_start,
    [KN_OP_COLLECTIVE_WAIT] = &kn_op_collective_wait,
    [KN_OP_REPLICATE] = &kn_op_replicate,
    [KN_OP_VIEW] = &kn_op_view,
    [KN_OP_ZEROS] = &kn_op_zeros,
};

const KnOp *kn_op(KnOpId id)
{
    KN_ASSERT((int)id >= 0 && id < KN_OP_COUNT && table[id]);
    return table[id];
}

void kn_no_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs, const int *wanted,
                    KnTensor **grad_inputs)
{
    (void)graph;
    (void)node;
    (void)grad_outputs;
    (void)wanted;
    (void)grad_inputs;
    KN_ASSERT(!"a gradient was asked through an op that has none");
}

double kn_node_bytes(const KnNode *node)
{
    double bytes = 0;
    for (int i = 0; i < node->input_count; i++)
        bytes += node->inputs[i] ? (double)kn_tensor_bytes(node->inputs[i]) : 0;
    for (int i = 0; i < node->output_count; i++)
        bytes += (double)kn_tensor_bytes(node->outputs[i]);
    return bytes;
}

void kn_cost_of_bytes(const KnNode *node, KnCost *cost, double operations)
{
    cost->bytes = kn_node_bytes(node);
    cost->pointwise_flops = node->output_count ? operations * (double)kn_tensor_elements(node->outputs[0]) : 0;
}

KnTensor *kn_node_simple(KnGraph *graph, const KnOp *op, const void *attributes, size_t attribute_bytes,
                         KnTensor *const *inputs, int input_count, KnDtype dtype, int dims, const int64_t *shape)
{
    KnNode *node = kn_node_append(graph, op, attributes, attribute_bytes, inputs, input_count);
    return kn_node_output(graph, node, dtype, dims, shape);
}
