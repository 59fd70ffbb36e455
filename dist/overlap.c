/* Letting exchanges and computation run side by side, by order alone.
 *
 * Waits sink to the first node that touches what arrives; then starts rise to behind the last node that made what is
 * sent, but never above another start: all ranks start their exchanges in the order of the graph. A start
 * whose operand is state (gathered weights) stays where its pass has put it: it would rise to the graph's beginning.
 * Before that, what only moves columns for an exchange sinks and rises in the same way, so as not to hold it. */
#include "core/base/error.h"
#include "core/graph/edit.h"
#include "core/ops/ops.h"
#include "dist/exchange_nodes.h"
#include "dist/sharding.h"

#include <stdlib.h>
#include <string.h>

static int touches(const KnNode *node, int root)
{
    for (int k = 0; k < node->input_count; k++)
        if (node->inputs[k] && kn_root_id(node->inputs[k]) == root)
            return 1;
    for (int k = 0; k < node->output_count; k++)
        if (kn_root_id(node->outputs[k]) == root)
            return 1;
    return 0;
}

/* What a start brings, or a wait or an ungrouping makes ready. */
static int readied_by(const KnNode *node)
{
    return kn_root_id(node->output_count ? node->outputs[0] : node->inputs[0]);
}

/* The wait's own start, other waits, and a start that takes what arrives from the stream do not count as a use. */
static void emit_before(KnGraph *graph, const KnNode *node, KnNode **sinking, int *count)
{
    int kept = 0;
    for (int i = 0; i < *count; i++) {
        if (touches(node, readied_by(sinking[i])) &&
            !(kn_is_exchange_start(node) && node->inputs[0] == sinking[i]->inputs[0]))
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

/* Whether `node` may run before the one that is above it. */
static int may_pass(const KnNode *node, const KnNode *above)
{
    return !(kn_is_exchange_start(node) && kn_is_exchange_start(above)) && !touches(above, kn_root_id(node->inputs[0]));
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

/* --- Exchanges one after another ---------------------------------------------------------------------------------- */

/* What is sent on as it has come is taken from the stream, by the start and by its wait, which keeps it alive. */
static void join_exchanges(KnGraph *graph)
{
    for (int i = 0; i < graph->node_count; i++) {
        KnNode *node = graph->nodes[i];
        int sent = kn_is_exchange_wait(node);
        const KnTensor *x = (kn_is_exchange_start(node) || kn_is_exchange_wait(node)) && node->input_count > sent
                                ? node->inputs[sent]
                                : NULL;
        if (x && x->producer && kn_is_exchange_wait(x->producer))
            kn_node_set_input(node, sent, x->producer->inputs[0]);
    }
}

/* What is done with what an exchange brings. */
enum { SENT_ON = 1, READ = 2 };

static char *find_uses(const KnGraph *graph)
{
    char *uses = kn_alloc((size_t)graph->tensor_count);
    for (int i = 0; i < graph->node_count; i++) {
        const KnNode *node = graph->nodes[i];
        for (int k = 0; k < node->input_count; k++) {
            const KnTensor *x = node->inputs[k];
            int as_it_comes = x && x->producer && kn_is_exchange_start(x->producer);
            if (x && !(as_it_comes && kn_is_exchange_wait(node)))
                uses[kn_root_id(x)] |= as_it_comes && kn_is_exchange_start(node) ? SENT_ON : READ;
        }
    }
    return uses;
}

static int only_passes_on(const KnNode *node, const char *uses)
{
    return kn_is_exchange_start(node) && node->output_count && uses[kn_root_id(node->outputs[0])] == SENT_ON;
}

static void put_start(KnGraph *graph, KnNode *node, const char *uses)
{
    KnNode *former = node->inputs[0]->producer;
    if (former && only_passes_on(former, uses))
        put_start(graph, former, uses);
    kn_graph_put_node(graph, node);
}

/* Starts whose result is only sent on go to right before the start that does so, where they no longer hold up others.
 * Returns their waits, by what they make ready, which the graph no longer has. */
static KnNode **draw_together(KnGraph *graph)
{
    char *uses = find_uses(graph);
    KnNode **waits = kn_alloc((size_t)graph->tensor_count * sizeof *waits);
    KnNodeList old;
    kn_graph_take_nodes(graph, &old);
    for (int i = 0; i < old.count; i++) {
        KnNode *node = old.nodes[i], *start = kn_is_exchange_wait(node) ? node->inputs[0]->producer : node;
        if (start && only_passes_on(start, uses))
            waits[readied_by(node)] = kn_is_exchange_wait(node) ? node : NULL;
        else if (kn_is_exchange_start(node))
            put_start(graph, node, uses);
        else
            kn_graph_put_node(graph, node);
    }
    free(old.nodes);
    free(uses);
    return waits;
}

static void put_wait(KnGraph *graph, KnNode *node, KnNode *const *waits)
{
    KnNode *former = node->input_count > 1 ? waits[kn_root_id(node->inputs[1])] : NULL;
    if (former)
        put_wait(graph, former, waits);
    kn_graph_put_node(graph, node);
}

/* They go to right before the wait for what was sent on, which is over no earlier: until then what they sent is kept.
 */
static void put_waits_back(KnGraph *graph, KnNode *const *waits)
{
    KnNodeList old;
    kn_graph_take_nodes(graph, &old);
    for (int i = 0; i < old.count; i++)
        if (kn_is_exchange_wait(old.nodes[i]))
            put_wait(graph, old.nodes[i], waits);
        else
            kn_graph_put_node(graph, old.nodes[i]);
    free(old.nodes);
}

static int is_of_state(const KnNode *node)
{
    return kn_is_exchange_start(node) && kn_exchange_of(node)->group <= KN_GROUP_SUM;
}

static int is_attention(const KnNode *node)
{
    return node->op->id == KN_OP_ATTENTION || node->op->id == KN_OP_ATTENTION_BACKWARD;
}

/* Where an exchange of the state that starts at `i` should start: before the next attention, which is the longest
 * computation, if others would have to wait for it until then; else where it is. */
static int place_of_state(const KnNodeList *list, int i)
{
    int root = readied_by(list->nodes[i]), passes = 0;
    for (int k = i + 1; k < list->count; k++) {
        const KnNode *node = list->nodes[k];
        if (touches(node, root) || is_attention(node))
            return passes ? k : i;
        passes |= kn_is_exchange_start(node) && !is_of_state(node);
    }
    return i;
}

static void let_others_pass(KnGraph *graph)
{
    KnNodeList old;
    kn_graph_take_nodes(graph, &old);
    int *place = kn_alloc((size_t)(old.count + 1) * sizeof *place), count = 0;
    int *held = kn_alloc((size_t)(old.count + 1) * sizeof *held);
    for (int i = 0; i < old.count; i++) {
        int kept = 0;
        for (int h = 0; h < count; h++)
            if (place[held[h]] == i)
                kn_graph_put_node(graph, old.nodes[held[h]]);
            else
                held[kept++] = held[h];
        count = kept;
        place[i] = is_of_state(old.nodes[i]) ? place_of_state(&old, i) : i;
        if (place[i] > i)
            held[count++] = i;
        else
            kn_graph_put_node(graph, old.nodes[i]);
    }
    free(held);
    free(place);
    free(old.nodes);
}

void kn_overlap(KnGraph *graph, int in_order)
{
    KnNode **waits = NULL;
    if (in_order) {
        join_exchanges(graph);
        waits = draw_together(graph);
    }
    sink_all(graph, KN_OP_UNGROUP_COLUMNS);
    sink_all(graph, KN_OP_COLLECTIVE_WAIT);
    raise_all(graph, KN_OP_GROUP_COLUMNS);
    raise_all(graph, KN_OP_COLLECTIVE_START);
    if (in_order) {
        put_waits_back(graph, waits);
        let_others_pass(graph);
    }
    free(waits);
}
