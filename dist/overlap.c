/* Letting exchanges and computation run side by side, by order alone.
 *
 * Waits sink to the first node that touches what arrives; then starts rise to behind the last node that made what is
 * sent, but never above another start: all ranks start their exchanges in the order of the graph. A start
 * whose operand is state (gathered weights) stays where its pass has put it: it would rise to the graph's beginning. */
#include "core/base/error.h"
#include "core/graph/edit.h"
#include "core/ops/ops.h"
#include "dist/sharding.h"

#include <stdlib.h>
#include <string.h>

static int root_of(const KnTensor *tensor)
{
    return kn_tensor_root(tensor, NULL)->id;
}

static int touches(const KnNode *node, int root)
{
    for (int k = 0; k < node->input_count; k++)
        if (node->inputs[k] && root_of(node->inputs[k]) == root)
            return 1;
    for (int k = 0; k < node->output_count; k++)
        if (root_of(node->outputs[k]) == root)
            return 1;
    return 0;
}

/* The wait's own start, and other waits, do not count as a use. */
static void emit_waits_before(KnGraph *graph, const KnNode *node, KnNode **waits, int *count)
{
    int kept = 0;
    for (int i = 0; i < *count; i++) {
        if (touches(node, root_of(waits[i]->inputs[0])))
            kn_graph_put_node(graph, waits[i]);
        else
            waits[kept++] = waits[i];
    }
    *count = kept;
}

static void sink_waits(KnGraph *graph)
{
    KnNodeList old;
    kn_graph_take_nodes(graph, &old);
    KnNode **waits = kn_alloc((size_t)(old.count + 1) * sizeof *waits);
    int count = 0;
    for (int i = 0; i < old.count; i++) {
        KnNode *node = old.nodes[i];
        if (node->op->id == KN_OP_COLLECTIVE_WAIT) {
            waits[count++] = node;
            continue;
        }
        emit_waits_before(graph, node, waits, &count);
        kn_graph_put_node(graph, node);
    }
    for (int i = 0; i < count; i++)
        kn_graph_put_node(graph, waits[i]);
    free(waits);
    free(old.nodes);
}

static void raise_starts(KnGraph *graph)
{
    KnNodeList old;
    int placed = 0;
    kn_graph_take_nodes(graph, &old);
    KnNode **nodes = kn_alloc((size_t)old.count * sizeof *nodes);
    for (int i = 0; i < old.count; i++) {
        KnNode *node = old.nodes[i];
        int at = placed;
        if (node->op->id == KN_OP_COLLECTIVE_START && kn_tensor_root(node->inputs[0], NULL)->role == KN_ROLE_VALUE)
            while (nodes[at - 1]->op->id != KN_OP_COLLECTIVE_START && !touches(nodes[at - 1], root_of(node->inputs[0])))
                at--;
        memmove(nodes + at + 1, nodes + at, (size_t)(placed - at) * sizeof *nodes);
        nodes[at] = node;
        placed++;
    }
    for (int i = 0; i < placed; i++)
        kn_graph_put_node(graph, nodes[i]);
    free(nodes);
    free(old.nodes);
}

void kn_overlap(KnGraph *graph)
{
    sink_waits(graph);
    raise_starts(graph);
}
