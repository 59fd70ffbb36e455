/* Attention over span tables: packed clips, cross-attention and ring steps are one op.
 *
 * The backward recomputes the probabilities from the saved log-sum-exp (Dao, 2023, FlashAttention-2). */
#include "core/ops/rows.h"

static const KnAttentionAttributes *attention_of(const KnNode *node)
{
    return (const KnAttentionAttributes *)node->attributes;
}

KnTensor *kn_attention(KnGraph *graph, KnTensor *q, KnTensor *k, KnTensor *v, KnTensor *spans, int64_t heads,
                       float scale)
{
    int64_t columns = kn_tensor_columns(q), rows = kn_tensor_rows(q);
    KN_ASSERT(kn_is_float(q) && q->dtype == k->dtype && q->dtype == v->dtype);
    KN_ASSERT(heads > 0 && columns % heads == 0 && kn_tensor_columns(k) == columns);
    KN_ASSERT(kn_tensor_columns(v) == columns && kn_tensor_rows(k) == kn_tensor_rows(v));
    KN_ASSERT(spans->dtype == KN_I32 && spans->dims == 2 && spans->shape[1] == 4);
    KnAttentionAttributes attributes = {
        .heads = heads, .scale = scale, .pairs = (double)rows * (double)kn_tensor_rows(k)};
    KnTensor *inputs[] = {q, k, v, spans};
    KnNode *node = kn_node_append(graph, &kn_op_attention, &attributes, sizeof attributes, inputs, 4);
    KnTensor *out = kn_node_output(graph, node, q->dtype, 2, (int64_t[]){rows, columns});
    kn_node_output(graph, node, KN_F32, 2, (int64_t[]){heads, rows});
    return out;
}

void kn_attention_expect_pairs(KnTensor *out, double pairs)
{
    KN_ASSERT(out->producer && out->producer->op == &kn_op_attention);
    ((KnAttentionAttributes *)out->producer->attributes)->pairs = pairs;
}

static void attention_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs, const int *wanted,
                               KnTensor **grad_inputs)
{
    KnTensor *const *in = node->inputs;
    KnTensor *grad = kn_cast(graph, grad_outputs[0], in[0]->dtype);
    KnTensor *inputs[] = {in[0], in[1], in[2], in[3], node->outputs[0], node->outputs[1], grad};
    KnNode *backward =
        kn_node_append(graph, &kn_op_attention_backward, node->attributes, sizeof(KnAttentionAttributes), inputs, 7);
    (void)wanted;
    for (int i = 0; i < 3; i++)
        grad_inputs[i] = kn_node_output(graph, backward, in[i]->dtype, in[i]->dims, in[i]->shape);
}

static void attention_cost(const KnNode *node, KnCost *cost)
{
    double width = (double)kn_tensor_columns(node->inputs[0]);
    cost->bytes = kn_node_bytes(node);
    cost->attention_flops = 4.0 * attention_of(node)->pairs * width;
    cost->pointwise_flops = 4.0 * attention_of(node)->pairs * (double)attention_of(node)->heads;
}

static void attention_backward_cost(const KnNode *node, KnCost *cost)
{
    double width = (double)kn_tensor_columns(node->inputs[0]);
    cost->bytes = kn_node_bytes(node);
    cost->attention_flops = 10.0 * attention_of(node)->pairs * width;
    cost->pointwise_flops = 8.0 * attention_of(node)->pairs * (double)attention_of(node)->heads;
}

const KnOp kn_op_attention = {KN_OP_ATTENTION, "attention", attention_gradient, attention_cost, 0};
const KnOp kn_op_attention_backward = {KN_OP_ATTENTION_BACKWARD, "attention_backward", kn_no_gradient,
                                       attention_backward_cost, 0};
