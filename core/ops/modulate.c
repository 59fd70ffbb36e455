/* Modulation and gated residuals by a conditioning row chosen for each token. */
#include "core/ops/rows.h"

KnTensor *kn_modulate(KnGraph *graph, KnTensor *x, KnTensor *scale, KnTensor *shift, KnTensor *rows)
{
    int64_t columns = kn_tensor_columns(x);
    KN_ASSERT(kn_is_float(x) && kn_is_f32(scale, -1, columns) && kn_is_f32(shift, kn_tensor_rows(scale), columns));
    KN_ASSERT(kn_is_index(rows, kn_tensor_rows(x)));
    KnTensor *inputs[] = {x, scale, shift, rows};
    return kn_node_simple(graph, &kn_op_modulate, NULL, 0, inputs, 4, x->dtype, x->dims, x->shape);
}

static void modulate_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs, const int *wanted,
                              KnTensor **grad_inputs)
{
    KnTensor *x = node->inputs[0], *scale = node->inputs[1];
    KnTensor *inputs[] = {x, scale, node->inputs[3], kn_cast(graph, grad_outputs[0], x->dtype)};
    KnNode *backward = kn_node_append(graph, &kn_op_modulate_backward, NULL, 0, inputs, 4);
    (void)wanted;
    grad_inputs[0] = kn_node_output(graph, backward, x->dtype, x->dims, x->shape);
    grad_inputs[1] = kn_node_output(graph, backward, KN_F32, scale->dims, scale->shape);
    grad_inputs[2] = kn_node_output(graph, backward, KN_F32, scale->dims, scale->shape);
}

KnTensor *kn_gated_residual(KnGraph *graph, KnTensor *x, KnTensor *y, KnTensor *gate, KnTensor *rows)
{
    int64_t columns = kn_tensor_columns(x);
    KN_ASSERT(kn_is_float(x) && x->dtype == y->dtype && kn_tensor_elements(x) == kn_tensor_elements(y));
    KN_ASSERT(kn_tensor_columns(y) == columns && kn_is_f32(gate, -1, columns) && kn_is_index(rows, kn_tensor_rows(x)));
    KnTensor *inputs[] = {x, y, gate, rows};
    return kn_node_simple(graph, &kn_op_gated_residual, NULL, 0, inputs, 4, x->dtype, x->dims, x->shape);
}

static void gated_residual_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs,
                                    const int *wanted, KnTensor **grad_inputs)
{
    KnTensor *y = node->inputs[1], *gate = node->inputs[2];
    KnTensor *grad = kn_cast(graph, grad_outputs[0], y->dtype);
    grad_inputs[0] = grad;
    if (!wanted[1] && !wanted[2])
        return;
    KnTensor *inputs[] = {y, gate, node->inputs[3], grad};
    KnNode *backward = kn_node_append(graph, &kn_op_gated_residual_backward, NULL, 0, inputs, 4);
    grad_inputs[1] = kn_node_output(graph, backward, y->dtype, y->dims, y->shape);
    grad_inputs[2] = kn_node_output(graph, backward, KN_F32, gate->dims, gate->shape);
}

static void forward_cost(const KnNode *node, KnCost *cost)
{
    kn_cost_of_bytes(node, cost, 2);
}

static void backward_cost(const KnNode *node, KnCost *cost)
{
    kn_cost_of_bytes(node, cost, 4);
}

const KnOp kn_op_modulate = {KN_OP_MODULATE, "modulate", modulate_gradient, forward_cost, 0};
const KnOp kn_op_modulate_backward = {KN_OP_MODULATE_BACKWARD, "modulate_backward", kn_no_gradient, backward_cost, 0};
const KnOp kn_op_gated_residual = {KN_OP_GATED_RESIDUAL, "gated_residual", gated_residual_gradient, forward_cost, 0};
const KnOp kn_op_gated_residual_backward = {KN_OP_GATED_RESIDUAL_BACKWARD, "gated_residual_backward", kn_no_gradient,
                                            backward_cost, 0};
