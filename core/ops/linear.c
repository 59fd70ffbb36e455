/* Matrix products: C = op(A) op(B) + bias, and the sum over rows that is a bias's gradient. */
#include "core/ops/rows.h"

static const KnMatmulAttributes *matmul_of(const KnNode *node)
{
    return (const KnMatmulAttributes *)node->attributes;
}

KnTensor *kn_matmul(KnGraph *graph, KnTensor *a, int transpose_a, KnTensor *b, int transpose_b, KnTensor *bias,
                    KnDtype dtype)
{
    KnMatmulAttributes attributes = {
        .transpose_a = transpose_a,
        .transpose_b = transpose_b,
        .m = transpose_a ? kn_tensor_columns(a) : kn_tensor_rows(a),
        .k = transpose_a ? kn_tensor_rows(a) : kn_tensor_columns(a),
        .n = transpose_b ? kn_tensor_rows(b) : kn_tensor_columns(b),
    };
    int64_t k = transpose_b ? kn_tensor_columns(b) : kn_tensor_rows(b);
    KN_ASSERT(kn_is_float(a) && a->dtype == b->dtype && attributes.k == k);
    KN_ASSERT(dtype == KN_F32 || dtype == KN_BF16);
    KN_ASSERT(!bias || (bias->dtype == KN_F32 && kn_tensor_elements(bias) == attributes.n));
    KnTensor *inputs[] = {a, b, bias};
    return kn_node_simple(graph, &kn_op_matmul, &attributes, sizeof attributes, inputs, 3, dtype, 2,
                          (int64_t[]){attributes.m, attributes.n});
}

/* A weight [out, in, ...] is read as [out, everything else]. */
static KnTensor *as_matrix(KnGraph *graph, KnTensor *weight, KnDtype dtype)
{
    KN_ASSERT(weight->dims >= 2);
    return kn_cast(graph, weight, dtype);
}

KnTensor *kn_linear(KnGraph *graph, KnTensor *x, KnTensor *weight, KnTensor *bias)
{
    return kn_matmul(graph, x, 0, as_matrix(graph, weight, x->dtype), 1, bias, x->dtype);
}

/* The gradient of a cast float32 weight is wanted in float32: the product is then written so at once. */
static KnDtype gradient_dtype(const KnTensor *x)
{
    int cast_from_f32 = x->producer && x->producer->op == &kn_op_cast && x->producer->inputs[0]->dtype == KN_F32;
    return cast_from_f32 ? KN_F32 : x->dtype;
}

static void matmul_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs, const int *wanted,
                            KnTensor **grad_inputs)
{
    const KnMatmulAttributes *p = matmul_of(node);
    KnTensor *a = node->inputs[0], *b = node->inputs[1];
    KnTensor *grad = kn_cast(graph, grad_outputs[0], a->dtype);
    KN_ASSERT(!p->packed_b);
    if (wanted[0])
        grad_inputs[0] = p->transpose_a ? kn_matmul(graph, b, p->transpose_b, grad, 1, NULL, gradient_dtype(a))
                                        : kn_matmul(graph, grad, 0, b, !p->transpose_b, NULL, gradient_dtype(a));
    if (wanted[1])
        grad_inputs[1] = p->transpose_b ? kn_matmul(graph, grad, 1, a, p->transpose_a, NULL, gradient_dtype(b))
                                        : kn_matmul(graph, a, !p->transpose_a, grad, 0, NULL, gradient_dtype(b));
    if (wanted[2])
        grad_inputs[2] = kn_sum_rows(graph, grad);
}

static void matmul_cost(const KnNode *node, KnCost *cost)
{
    const KnMatmulAttributes *p = matmul_of(node);
    cost->bytes = kn_node_bytes(node);
    if (node->output_count == 0) /* input 3 is read and written */
        cost->bytes += (double)kn_tensor_bytes(node->inputs[3]);
    cost->matmul_flops = 2.0 * (double)p->m * (double)p->n * (double)p->k;
}

const KnOp kn_op_matmul = {KN_OP_MATMUL, "matmul", matmul_gradient, matmul_cost, 0};

KnTensor *kn_pack_matrix(KnGraph *graph, KnTensor *b, int transpose, KnDtype dtype, size_t bytes)
{
    KnPackAttributes attributes = {.transpose = transpose,
                                   .k = transpose ? kn_tensor_columns(b) : kn_tensor_rows(b),
                                   .n = transpose ? kn_tensor_rows(b) : kn_tensor_columns(b),
                                   .dtype = dtype};
    return kn_node_simple(graph, &kn_op_pack_matrix, &attributes, sizeof attributes, &b, 1, KN_U8, 1,
                          (int64_t[]){(int64_t)bytes});
}

static void pack_cost(const KnNode *node, KnCost *cost)
{
    kn_cost_of_bytes(node, cost, 0);
}

const KnOp kn_op_pack_matrix = {KN_OP_PACK_MATRIX, "pack_matrix", kn_no_gradient, pack_cost, 0};

KnTensor *kn_sum_rows(KnGraph *graph, KnTensor *x)
{
    KN_ASSERT(kn_is_float(x));
    return kn_node_simple(graph, &kn_op_sum_rows, NULL, 0, &x, 1, KN_F32, 1, (int64_t[]){kn_tensor_columns(x)});
}

static void sum_rows_cost(const KnNode *node, KnCost *cost)
{
    kn_cost_of_bytes(node, cost, (double)kn_tensor_rows(node->inputs[0]));
}

const KnOp kn_op_sum_rows = {KN_OP_SUM_ROWS, "sum_rows", kn_no_gradient, sum_rows_cost, 0};
