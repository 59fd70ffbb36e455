/* What attention over keys that come in parts needs besides attention: span tables cut to the rows of a part, and the
 * results of two parts made one. */
#include "core/ops/rows.h"

KnTensor *kn_attention_merge(KnGraph *graph, KnTensor *a, KnTensor *lse_a, KnTensor *b, KnTensor *lse_b)
{
    int64_t rows = kn_tensor_rows(a), columns = kn_tensor_columns(a), heads = lse_a->shape[0];
    KnTensor *inputs[] = {a, lse_a, b, lse_b};
    KN_ASSERT(kn_is_f32(a, rows, columns) && kn_is_f32(b, rows, columns));
    KN_ASSERT(kn_is_f32(lse_a, heads, rows) && kn_is_f32(lse_b, heads, rows));
    KN_ASSERT(heads > 0 ? columns % heads == 0 : columns == 0);
    KnNode *node = kn_node_append(graph, &kn_op_attention_merge, NULL, 0, inputs, 4);
    KnTensor *out = kn_node_output(graph, node, KN_F32, 2, (int64_t[]){rows, columns});
    kn_node_output(graph, node, KN_F32, 2, (int64_t[]){heads, rows});
    return out;
}

static void merge_cost(const KnNode *node, KnCost *cost)
{
    kn_cost_of_bytes(node, cost, 3);
}

const KnOp kn_op_attention_merge = {KN_OP_ATTENTION_MERGE, "attention_merge", kn_no_gradient, merge_cost, 0};
