/* Layer norm (plain, affine, or modulated by a row chosen for each token) and RMS norm, the latter also of columns
 * whose row lies elsewhere in part. */
#include "core/ops/rows.h"

static const KnNormAttributes *norm_of(const KnNode *node)
{
    return (const KnNormAttributes *)node->attributes;
}

static KnTensor *layer_norm(KnGraph *graph, KnTensor *const *inputs, float eps)
{
    KnTensor *x = inputs[0];
    KnNormAttributes attributes = {.eps = eps};
    KN_ASSERT(kn_is_float(x));
    KnNode *node = kn_node_append(graph, &kn_op_layer_norm, &attributes, sizeof attributes, inputs, 6);
    KnTensor *y = kn_node_output(graph, node, x->dtype, x->dims, x->shape);
    kn_node_output(graph, node, KN_F32, 2, (int64_t[]){kn_tensor_rows(x), 2});
    return y;
}

KnTensor *kn_layer_norm(KnGraph *graph, KnTensor *x, KnTensor *weight, KnTensor *bias, float eps)
{
    int64_t columns = kn_tensor_columns(x);
    KN_ASSERT(!weight == !bias);
    KN_ASSERT(!weight || (kn_is_f32(weight, 1, columns) && kn_is_f32(bias, 1, columns)));
    return layer_norm(graph, (KnTensor *[6]){x, weight, bias}, eps);
}

KnTensor *kn_layer_norm_modulated(KnGraph *graph, KnTensor *x, KnTensor *scale, KnTensor *shift, KnTensor *rows,
                                  float eps)
{
    int64_t columns = kn_tensor_columns(x);
    KN_ASSERT(kn_is_f32(scale, -1, columns) && kn_is_f32(shift, kn_tensor_rows(scale), columns));
    KN_ASSERT(kn_is_index(rows, kn_tensor_rows(x)));
    return layer_norm(graph, (KnTensor *[6]){x, NULL, NULL, scale, shift, rows}, eps);
}

static void layer_norm_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs, const int *wanted,
                                KnTensor **grad_inputs)
{
    KnTensor *const *in = node->inputs;
    KnTensor *x = in[0], *weight = in[1], *scale = in[3];
    KnTensor *grad = kn_cast(graph, grad_outputs[0], x->dtype);
    KnTensor *inputs[] = {x, node->outputs[1], grad, weight, scale, in[5]};
    KnNode *backward =
        kn_node_append(graph, &kn_op_layer_norm_backward, node->attributes, sizeof(KnNormAttributes), inputs, 6);
    (void)wanted;
    grad_inputs[0] = kn_node_output(graph, backward, x->dtype, x->dims, x->shape);
    if (weight) {
        grad_inputs[1] = kn_node_output(graph, backward, KN_F32, weight->dims, weight->shape);
        grad_inputs[2] = kn_node_output(graph, backward, KN_F32, weight->dims, weight->shape);
    } else if (scale) {
        grad_inputs[3] = kn_node_output(graph, backward, KN_F32, scale->dims, scale->shape);
        grad_inputs[4] = kn_node_output(graph, backward, KN_F32, scale->dims, scale->shape);
    }
}

KnTensor *kn_rms_norm(KnGraph *graph, KnTensor *x, KnTensor *weight, float eps)
{
    KnNormAttributes attributes = {.eps = eps};
    KnTensor *inputs[] = {x, weight};
    KN_ASSERT(kn_is_float(x) && kn_is_f32(weight, 1, kn_tensor_columns(x)));
    KnNode *node = kn_node_append(graph, &kn_op_rms_norm, &attributes, sizeof attributes, inputs, 2);
    KnTensor *y = kn_node_output(graph, node, x->dtype, x->dims, x->shape);
    kn_node_output(graph, node, KN_F32, 1, (int64_t[]){kn_tensor_rows(x)});
    return y;
}

static void rms_norm_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs, const int *wanted,
                              KnTensor **grad_inputs)
{
    KnTensor *x = node->inputs[0], *weight = node->inputs[1];
    KnTensor *inputs[] = {x, node->outputs[1], weight, kn_cast(graph, grad_outputs[0], x->dtype)};
    KnNode *backward =
        kn_node_append(graph, &kn_op_rms_norm_backward, norm_of(node), sizeof(KnNormAttributes), inputs, 4);
    (void)wanted;
    grad_inputs[0] = kn_node_output(graph, backward, x->dtype, x->dims, x->shape);
    grad_inputs[1] = kn_node_output(graph, backward, KN_F32, weight->dims, weight->shape);
}

KnTensor *kn_row_squares(KnGraph *graph, KnTensor *x)
{
    KN_ASSERT(kn_is_float(x));
    return kn_node_simple(graph, &kn_op_row_squares, NULL, 0, &x, 1, KN_F32, 1, (int64_t[]){kn_tensor_rows(x)});
}

static void row_squares_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs, const int *wanted,
                                 KnTensor **grad_inputs)
{
    KnTensor *x = node->inputs[0], *inputs[] = {x, grad_outputs[0]};
    (void)wanted;
    grad_inputs[0] =
        kn_node_simple(graph, &kn_op_row_squares_backward, NULL, 0, inputs, 2, x->dtype, x->dims, x->shape);
}

KnTensor *kn_rms_norm_split(KnGraph *graph, KnTensor *x, KnTensor *weight, KnTensor *squares, int64_t total_columns,
                            float eps)
{
    KnSplitNormAttributes attributes = {.total_columns = total_columns, .eps = eps};
    KnTensor *inputs[] = {x, weight, squares};
    int64_t rows = kn_tensor_rows(x), columns = kn_tensor_columns(x);
    KN_ASSERT(kn_is_float(x) && kn_is_f32(weight, 1, columns) && total_columns > 0 && total_columns >= columns);
    KN_ASSERT(squares->dtype == KN_F32 && kn_tensor_elements(squares) == rows);
    KnNode *node = kn_node_append(graph, &kn_op_rms_norm_split, &attributes, sizeof attributes, inputs, 3);
    KnTensor *y = kn_node_output(graph, node, x->dtype, x->dims, x->shape);
    kn_node_output(graph, node, KN_F32, 1, &rows);
    return y;
}

static void rms_norm_split_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs,
                                    const int *wanted, KnTensor **grad_inputs)
{
    KnTensor *x = node->inputs[0], *weight = node->inputs[1], *squares = node->inputs[2];
    KnTensor *inputs[] = {x, node->outputs[1], weight, kn_cast(graph, grad_outputs[0], x->dtype)};
    KnNode *backward = kn_node_append(graph, &kn_op_rms_norm_split_backward, node->attributes,
                                      sizeof(KnSplitNormAttributes), inputs, 4);
    (void)wanted;
    grad_inputs[0] = kn_node_output(graph, backward, x->dtype, x->dims, x->shape);
    grad_inputs[1] = kn_node_output(graph, backward, KN_F32, weight->dims, weight->shape);
    grad_inputs[2] = kn_node_output(graph, backward, KN_F32, squares->dims, squares->shape);
}

/* The sum has one result for many elements. */
static void row_squares_cost(const KnNode *node, KnCost *cost)
{
    cost->bytes = kn_node_bytes(node);
    cost->pointwise_flops = 2.0 * (double)kn_tensor_elements(node->inputs[0]);
}

static void scaled_cost(const KnNode *node, KnCost *cost)
{
    kn_cost_of_bytes(node, cost, 2);
}

static void forward_cost(const KnNode *node, KnCost *cost)
{
    kn_cost_of_bytes(node, cost, 8);
}

static void backward_cost(const KnNode *node, KnCost *cost)
{
    kn_cost_of_bytes(node, cost, 14);
}

const KnOp kn_op_layer_norm = {KN_OP_LAYER_NORM, "layer_norm", layer_norm_gradient, forward_cost, 0};
const KnOp kn_op_layer_norm_backward = {KN_OP_LAYER_NORM_BACKWARD, "layer_norm_backward", kn_no_gradient, backward_cost,
                                        0};
const KnOp kn_op_rms_norm = {KN_OP_RMS_NORM, "rms_norm", rms_norm_gradient, forward_cost, 0};
const KnOp kn_op_rms_norm_backward = {KN_OP_RMS_NORM_BACKWARD, "rms_norm_backward", kn_no_gradient, backward_cost, 0};
const KnOp kn_op_row_squares = {KN_OP_ROW_SQUARES, "row_squares", row_squares_gradient, row_squares_cost, 0};
const KnOp kn_op_row_squares_backward = {KN_OP_ROW_SQUARES_BACKWARD, "row_squares_backward", kn_no_gradient,
                                         scaled_cost, 0};
const KnOp kn_op_rms_norm_split = {KN_OP_RMS_NORM_SPLIT, "rms_norm_split", rms_norm_split_gradient, scaled_cost, 0};
const KnOp kn_op_rms_norm_split_backward = {KN_OP_RMS_NORM_SPLIT_BACKWARD, "rms_norm_split_backward", kn_no_gradient,
                                            backward_cost, 0};
