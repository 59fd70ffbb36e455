/* Letting exchanges and computation run side by side, by order alone.
 *
 * Waits sink to the first node that touches what arrives; then starts rise to behind the last node that made what is
 * sent, but never above another start: all ranks start their exchanges in the order of the graph. A start
 * whose operand is state (gathered weights) stays where its pass has put it: it would rise to the graph's beginning.
 * Before that, what only moves columns for an exchange sinks and rises in the same way, so as not to hold it. */
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

/* What a wait or an ungrouping makes ready. */
static int readied_by(const KnNode *node)
{
    return root_of(node->output_count ? node->outputs[0] : node->inputs[0]);
}

/* The wait's own start, and other waits, do not count as a use. */
static void emit_before(KnGraph *graph, const KnNode *node, KnNode **sinking, int *count)
{
    int kept = 0;
    for (int i = 0; i < *count; i++) {
        if (touches(node, readied_by(sinking[i])))
            kn_graph_put_node(graph, sinking[i]);
        else
            sinking[kept++] = sinking[i];
    }
    *count = kept;
}

static void sink_all(KnGraph *graph, KnOpId op)
{
    KnNodeList old;
    kn_graph_take_nodes(graph, &old);
    KnNode **sinking = kn_alloc((size_t)(old.count + 1) * sizeof *sinking);
    int count = 0;
    for (int i = 0; i < old.count; i++) {
        KnNode *node = old.nodes[i];
        if ((KnOpId)node->op->id == op) {
            sinking[count++] = node;
            continue;
        }
        emit_before(graph, node, sinking, &count);
        kn_graph_put_node(graph, node);
    }
    for (int i = 0; i < count; i++)
        kn_graph_put_node(graph, sinking[i]);
    free(sinking);
    free(old.nodes);
}

static int is_start(const KnNode *node)
{
    return node->op->id == KN_OP_COLLECTIVE_START;
}

/* Whether `node` may run before the one that is above it. */
static int may_pass(const KnNode *node, const KnNode *above)
{
    return !(is_start(node) && is_start(above)) && !touches(above, root_of(node->inputs[0]));
}

static void raise_all(KnGraph *graph, KnOpId op)
{
    KnNodeList old;
    int placed = 0;
    kn_graph_take_nodes(graph, &old);
    KnNode **nodes = kn_alloc((size_t)old.count * sizeof *nodes);
    for (int i = 0; i < old.count; i++) {
        KnNode *node = old.nodes[i];
        int at = placed;
        if ((KnOpId)node->op->id == op && kn_tensor_root(node->inputs[0], NULL)->role == KN_ROLE_VALUE)
            while (may_pass(node, nodes[at - 1]))
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
    sink_all(graph, KN_OP_UNGROUP_COLUMNS);
    sink_all(graph, KN_OP_COLLECTIVE_WAIT);
    raise_all(graph, KN_OP_GROUP_COLUMNS);
    raise_all(graph, KN_OP_COLLECTIVE_START);
}
