/* Operands of 8-bit products. */
#include "core/ops/rows.h"

enum { MULTIPLE = 16 };

KnNode *kn_quantize(KnGraph *graph, KnTensor *x, KnTensor *scales, const KnQuantizeAttributes *attributes)
{
    int64_t rows = kn_tensor_rows(x), columns = kn_tensor_columns(x);
    int64_t padded = (rows + MULTIPLE - 1) / MULTIPLE * MULTIPLE;
    KN_ASSERT(kn_is_float(x) && columns % MULTIPLE == 0 && (attributes->plain || attributes->transposed));
    KN_ASSERT(!scales || (scales->dtype == KN_F32 && scales->dims == 2 && attributes->site < scales->shape[1]));
    KnTensor *inputs[] = {x, scales};
    KnNode *node = kn_node_append(graph, &kn_op_quantize, attributes, sizeof *attributes, inputs, 2);
    kn_node_output(graph, node, KN_U8, 2, (int64_t[]){attributes->plain ? rows : 0, columns});
    kn_node_output(graph, node, KN_U8, 2, (int64_t[]){attributes->transposed ? columns : 0, padded});
    kn_node_output(graph, node, KN_F32, 1, (int64_t[]){2});
    return node;
}

static void quantize_cost(const KnNode *node, KnCost *cost)
{
    cost->bytes = (double)kn_tensor_bytes(node->inputs[0]);
    for (int k = 0; k < node->output_count; k++)
        cost->bytes += (double)kn_tensor_bytes(node->outputs[k]);
}

const KnOp kn_op_quantize = {KN_OP_QUANTIZE, "quantize", kn_no_gradient, quantize_cost, 0};

int kn_is_block_product(const KnNode *node)
{
    return node->op->id == KN_OP_MATMUL && node->block >= 0 && node->inputs[0]->dtype == KN_BF16 &&
           node->inputs[1]->dtype == KN_BF16;
}

int64_t kn_fp8_sites(const KnGraph *graph)
{
    int64_t products = 0;
    for (int i = 0; i < graph->node_count; i++)
        products += kn_is_block_product(graph->nodes[i]) && !graph->nodes[i]->backward;
    return 2 * products;
}
