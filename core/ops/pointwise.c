/* Ops on single elements: activations, sums, products, casts. */
#include "core/ops/rows.h"

static KnTensor *like(KnGraph *graph, const KnOp *op, const void *attributes, size_t bytes, KnTensor *const *inputs,
                      int count)
{
    return kn_node_simple(graph, op, attributes, bytes, inputs, count, inputs[0]->dtype, inputs[0]->dims,
                          inputs[0]->shape);
}

static int same_shape(const KnTensor *a, const KnTensor *b)
{
    return kn_is_float(a) && kn_is_float(b) && kn_tensor_elements(a) == kn_tensor_elements(b) &&
           kn_tensor_columns(a) == kn_tensor_columns(b);
}

KnTensor *kn_activation(KnGraph *graph, KnTensor *x, KnActivation kind)
{
    KnActivationAttributes attributes = {.kind = kind};
    KN_ASSERT(kn_is_float(x));
    return like(graph, &kn_op_activation, &attributes, sizeof attributes, &x, 1);
}

static void activation_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs, const int *wanted,
                                KnTensor **grad_inputs)
{
    KnTensor *inputs[] = {node->inputs[0], kn_cast(graph, grad_outputs[0], node->inputs[0]->dtype)};
    (void)wanted;
    grad_inputs[0] =
        like(graph, &kn_op_activation_backward, node->attributes, sizeof(KnActivationAttributes), inputs, 2);
}

KnTensor *kn_add(KnGraph *graph, KnTensor *a, KnTensor *b)
{
    KN_ASSERT(a->dtype == b->dtype);
    return kn_add_parts(graph, a, b, a->dtype);
}

KnTensor *kn_add_parts(KnGraph *graph, KnTensor *a, KnTensor *b, KnDtype dtype)
{
    KN_ASSERT(same_shape(a, b));
    return kn_node_simple(graph, &kn_op_add, NULL, 0, (KnTensor *[]){a, b}, 2, dtype, a->dims, a->shape);
}

static void add_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs, const int *wanted,
                         KnTensor **grad_inputs)
{
    (void)wanted;
    for (int i = 0; i < 2; i++)
        grad_inputs[i] = kn_cast(graph, grad_outputs[0], node->inputs[i]->dtype);
}

KnTensor *kn_add_row(KnGraph *graph, KnTensor *x, KnTensor *row)
{
    KN_ASSERT(kn_is_float(x) && row->dtype == KN_F32 && kn_tensor_elements(row) == kn_tensor_columns(x));
    return like(graph, &kn_op_add_row, NULL, 0, (KnTensor *[]){x, row}, 2);
}

static void add_row_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs, const int *wanted,
                             KnTensor **grad_inputs)
{
    (void)node;
    grad_inputs[0] = grad_outputs[0];
    if (wanted[1])
        grad_inputs[1] = kn_sum_rows(graph, grad_outputs[0]);
}

KnTensor *kn_multiply(KnGraph *graph, KnTensor *a, KnTensor *b)
{
    KN_ASSERT(a->dtype == b->dtype && same_shape(a, b));
    return like(graph, &kn_op_multiply, NULL, 0, (KnTensor *[]){a, b}, 2);
}

static void multiply_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs, const int *wanted,
                              KnTensor **grad_inputs)
{
    KnTensor *grad = kn_cast(graph, grad_outputs[0], node->inputs[0]->dtype);
    for (int i = 0; i < 2; i++)
        if (wanted[i])
            grad_inputs[i] = kn_multiply(graph, grad, node->inputs[1 - i]);
}

KnTensor *kn_scale(KnGraph *graph, KnTensor *x, float factor)
{
    KnScaleAttributes attributes = {.factor = factor};
    KN_ASSERT(kn_is_float(x));
    return like(graph, &kn_op_scale, &attributes, sizeof attributes, &x, 1);
}

static void scale_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs, const int *wanted,
                           KnTensor **grad_inputs)
{
    (void)wanted;
    grad_inputs[0] = kn_scale(graph, grad_outputs[0], ((const KnScaleAttributes *)node->attributes)->factor);
}

KnTensor *kn_cast(KnGraph *graph, KnTensor *x, KnDtype dtype)
{
    if (x->dtype == dtype)
        return x;
    KN_ASSERT(kn_is_float(x) && (dtype == KN_F32 || dtype == KN_BF16));
    return kn_node_simple(graph, &kn_op_cast, NULL, 0, &x, 1, dtype, x->dims, x->shape);
}

static void cast_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs, const int *wanted,
                          KnTensor **grad_inputs)
{
    (void)wanted;
    grad_inputs[0] = kn_cast(graph, grad_outputs[0], node->inputs[0]->dtype);
}

static void copy_cost(const KnNode *node, KnCost *cost)
{
    kn_cost_of_bytes(node, cost, 1);
}

static void activation_cost(const KnNode *node, KnCost *cost)
{
    kn_cost_of_bytes(node, cost, 20);
}

const KnOp kn_op_activation = {KN_OP_ACTIVATION, "activation", activation_gradient, activation_cost, 0};
const KnOp kn_op_activation_backward = {KN_OP_ACTIVATION_BACKWARD, "activation_backward", kn_no_gradient,
                                        activation_cost, 0};
const KnOp kn_op_add = {KN_OP_ADD, "add", add_gradient, copy_cost, 0};
const KnOp kn_op_add_row = {KN_OP_ADD_ROW, "add_row", add_row_gradient, copy_cost, 0};
const KnOp kn_op_multiply = {KN_OP_MULTIPLY, "multiply", multiply_gradient, copy_cost, 0};
const KnOp kn_op_scale = {KN_OP_SCALE, "scale", scale_gradient, copy_cost, 0};
const KnOp kn_op_cast = {KN_OP_CAST, "cast", cast_gradient, copy_cost, 0};
