/* What attention over keys that come in parts needs besides attention: span tables cut to the rows of a part, and the
 * results of two parts made one. */
#include "core/ops/rows.h"

KnTensor *kn_attention_merge(KnGraph *graph, KnTensor *a, KnTensor *lse_a, KnTensor *b, KnTensor *lse_b, KnDtype dtype)
{
    int64_t rows = kn_tensor_rows(a), columns = kn_tensor_columns(a), heads = lse_a->shape[0];
    KnTensor *inputs[] = {a, lse_a, b, lse_b};
    KN_ASSERT(kn_is_float(a) && kn_is_float(b));
    KN_ASSERT(kn_tensor_rows(b) == rows && kn_tensor_columns(b) == columns);
    KN_ASSERT(kn_is_f32(lse_a, heads, rows) && kn_is_f32(lse_b, heads, rows));
    KN_ASSERT(heads > 0 ? columns > 0 && columns % heads == 0 : columns == 0);
    KnNode *node = kn_node_append(graph, &kn_op_attention_merge, NULL, 0, inputs, 4);
    KnTensor *out = kn_node_output(graph, node, dtype, 2, (int64_t[]){rows, columns});
    kn_node_output(graph, node, KN_F32, 2, (int64_t[]){heads, rows});
    return out;
}

KnTensor *kn_span_window(KnGraph *graph, KnTensor *spans, int64_t q_first, int64_t q_count, int64_t k_first,
                         int64_t k_count)
{
    KnSpanWindowAttributes attributes = {
        .q_first = q_first, .q_count = q_count, .k_first = k_first, .k_count = k_count};
    KN_ASSERT(spans->dtype == KN_I32 && spans->dims == 2 && spans->shape[1] == 4);
    KN_ASSERT(q_first >= 0 && q_count >= 0 && k_first >= 0 && k_count >= 0);
    return kn_node_simple(graph, &kn_op_span_window, &attributes, sizeof attributes, &spans, 1, KN_I32, 2,
                          spans->shape);
}

static void merge_cost(const KnNode *node, KnCost *cost)
{
    kn_cost_of_bytes(node, cost, 3);
}

static void window_cost(const KnNode *node, KnCost *cost)
{
    kn_cost_of_bytes(node, cost, 0);
}

const KnOp kn_op_attention_merge = {KN_OP_ATTENTION_MERGE, "attention_merge", kn_no_gradient, merge_cost, 0};
const KnOp kn_op_span_window = {KN_OP_SPAN_WINDOW, "span_window", kn_no_gradient, window_cost, 0};
