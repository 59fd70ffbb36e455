/* Attention over span tables: packed clips, cross-attention and ring steps are one op.
 *
 * The backward recomputes the probabilities from the saved log-sum-exp (Dao, 2023, FlashAttention-2). */
#include "core/ops/rows.h"

static const KnAttentionAttributes *attention_of(const KnNode *node)
{
    return (const KnAttentionAttributes *)node->attributes;
}

/* Checks what forward and backward have in common and says what both need to know. */
static KnAttentionAttributes describe(const KnTensor *q, const KnTensor *k, const KnTensor *v, const KnTensor *spans,
                                      int64_t heads, float scale)
{
    int64_t columns = kn_tensor_columns(q), rows = kn_tensor_rows(q);
    KN_ASSERT(kn_is_float(q) && q->dtype == k->dtype && q->dtype == v->dtype);
    KN_ASSERT(heads > 0 ? columns > 0 && columns % heads == 0 : columns == 0);
    KN_ASSERT(kn_tensor_columns(k) == columns && kn_tensor_columns(v) == columns);
    KN_ASSERT(kn_tensor_rows(k) == kn_tensor_rows(v));
    KN_ASSERT(spans->dtype == KN_I32 && spans->dims == 2 && spans->shape[1] == 4);
    return (KnAttentionAttributes){.heads = heads, .scale = scale, .pairs = (double)rows * (double)kn_tensor_rows(k)};
}

KnTensor *kn_attention(KnGraph *graph, KnTensor *q, KnTensor *k, KnTensor *v, KnTensor *spans, int64_t heads,
                       float scale)
{
    KnAttentionAttributes attributes = describe(q, k, v, spans, heads, scale);
    KnTensor *inputs[] = {q, k, v, spans};
    int64_t rows = kn_tensor_rows(q);
    KnNode *node = kn_node_append(graph, &kn_op_attention, &attributes, sizeof attributes, inputs, 4);
    KnTensor *out = kn_node_output(graph, node, q->dtype, 2, (int64_t[]){rows, kn_tensor_columns(q)});
    kn_node_output(graph, node, KN_F32, 2, (int64_t[]){heads, rows});
    return out;
}

static KnAttentionAttributes *attributes_of_result(KnTensor *result)
{
    KN_ASSERT(result->producer);
    KN_ASSERT(result->producer->op == &kn_op_attention || result->producer->op == &kn_op_attention_backward);
    return (KnAttentionAttributes *)result->producer->attributes;
}

void kn_attention_expect_pairs(KnTensor *result, double pairs)
{
    attributes_of_result(result)->pairs = pairs;
}

void kn_attention_promise_packed(KnTensor *result)
{
    attributes_of_result(result)->packed = 1;
}

int kn_attention_has_few_keys(const KnNode *node)
{
    enum { BLOCK_KEYS = 128, MULTIPROCESSORS = 132 }; /* of an H100 or H200 */
    int64_t blocks = (kn_tensor_rows(node->inputs[1]) + BLOCK_KEYS - 1) / BLOCK_KEYS * attention_of(node)->heads;
    return node->op->id == KN_OP_ATTENTION_BACKWARD && 2 * blocks < MULTIPROCESSORS;
}

void kn_attention_backward(KnGraph *graph, KnTensor *q, KnTensor *k, KnTensor *v, KnTensor *spans, KnTensor *out,
                           KnTensor *lse, KnTensor *grad_out, int64_t heads, float scale, int partial,
                           KnTensor *gradients[3])
{
    KnAttentionAttributes attributes = describe(q, k, v, spans, heads, scale);
    int64_t rows = kn_tensor_rows(q), columns = kn_tensor_columns(q);
    attributes.partial = partial;
    KN_ASSERT(out->dtype == q->dtype && kn_tensor_rows(out) == rows && kn_tensor_columns(out) == columns);
    KN_ASSERT(kn_tensor_rows(grad_out) == rows && kn_tensor_columns(grad_out) == columns);
    KN_ASSERT(lse->dtype == KN_F32 && lse->dims == 2 && lse->shape[0] == heads && lse->shape[1] == rows);
    KnTensor *inputs[] = {q, k, v, spans, out, lse, kn_cast(graph, grad_out, q->dtype)};
    KnNode *node = kn_node_append(graph, &kn_op_attention_backward, &attributes, sizeof attributes, inputs, 7);
    for (int i = 0; i < 3; i++)
        gradients[i] = kn_node_output(graph, node, q->dtype, inputs[i]->dims, inputs[i]->shape);
}

static void attention_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs, const int *wanted,
                               KnTensor **grad_inputs)
{
    const KnAttentionAttributes *p = attention_of(node);
    KnTensor *const *in = node->inputs;
    (void)wanted;
    KN_ASSERT(!p->partial);
    kn_attention_backward(graph, in[0], in[1], in[2], in[3], node->outputs[0], node->outputs[1], grad_outputs[0],
                          p->heads, p->scale, 0, grad_inputs);
    kn_attention_expect_pairs(grad_inputs[0], p->pairs);
    if (p->packed)
        kn_attention_promise_packed(grad_inputs[0]);
    ((KnAttentionAttributes *)grad_inputs[0]->producer->attributes)->ring = p->ring;
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
