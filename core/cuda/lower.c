/* What the graph is rewritten to for GPUs: biases of products whose results are bfloat16 are rounded to it, once per
 * change of the parameters, since cuBLASLt adds only such biases for free. */
#include "core/cuda/cuda.h"
#include "core/graph/edit.h"

#include <stdlib.h>

static int wants_rounded_bias(const KnNode *node)
{
    return node->op->id == KN_OP_MATMUL && node->inputs[2] && node->inputs[2]->dtype == KN_F32 &&
           node->outputs[0]->dtype == KN_BF16;
}

void kn_cuda_lower(KnGraph *graph)
{
    KnNodeList old;
    kn_graph_mark_prologue(graph);
    kn_graph_take_nodes(graph, &old);
    for (int i = 0; i < old.count; i++) {
        KnNode *node = old.nodes[i];
        if (wants_rounded_bias(node))
            node->inputs[2] = kn_cast(graph, node->inputs[2], KN_BF16);
        kn_graph_put_node(graph, node);
    }
    free(old.nodes);
}
