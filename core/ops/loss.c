/* Losses and norms: scalars from tensors, summed in a fixed order. */
#include "core/ops/rows.h"

KnTensor *kn_masked_mse(KnGraph *graph, KnTensor *prediction, KnTensor *target, KnTensor *weight)
{
    int64_t rows = kn_tensor_rows(prediction);
    KN_ASSERT(kn_is_float(prediction) && kn_is_f32(target, rows, kn_tensor_columns(prediction)));
    KN_ASSERT(weight->dtype == KN_F32 && kn_tensor_elements(weight) == rows);
    return kn_node_simple(graph, &kn_op_masked_mse, NULL, 0, (KnTensor *[]){prediction, target, weight}, 3, KN_F32, 0,
                          NULL);
}

static void masked_mse_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs, const int *wanted,
                                KnTensor **grad_inputs)
{
    KnTensor *prediction = node->inputs[0];
    KnTensor *inputs[] = {prediction, node->inputs[1], node->inputs[2], grad_outputs[0]};
    KN_ASSERT(!wanted[1] && !wanted[2]); /* targets and weights are data */
    grad_inputs[0] = kn_node_simple(graph, &kn_op_masked_mse_backward, NULL, 0, inputs, 4, prediction->dtype,
                                    prediction->dims, prediction->shape);
}

KnTensor *kn_sum_of_squares(KnGraph *graph, KnTensor *const *list, int count)
{
    for (int i = 0; i < count; i++)
        KN_ASSERT(kn_is_float(list[i]) && list[i]->dtype == list[0]->dtype);
    return kn_node_simple(graph, &kn_op_sum_of_squares, NULL, 0, list, count, KN_F32, 0, NULL);
}

static void reduction_cost(const KnNode *node, KnCost *cost)
{
    cost->bytes = kn_node_bytes(node);
    int tensors = node->op == &kn_op_sum_of_squares ? node->input_count : 1;
    for (int i = 0; i < tensors; i++)
        cost->pointwise_flops += 3.0 * (double)kn_tensor_elements(node->inputs[i]);
}

const KnOp kn_op_masked_mse = {KN_OP_MASKED_MSE, "masked_mse", masked_mse_gradient, reduction_cost, 0};
const KnOp kn_op_masked_mse_backward = {KN_OP_MASKED_MSE_BACKWARD, "masked_mse_backward", kn_no_gradient,
                                        reduction_cost, 0};
const KnOp kn_op_sum_of_squares = {KN_OP_SUM_OF_SQUARES, "sum_of_squares", kn_no_gradient, reduction_cost, 0};
