/* What computes while an exchange is on its way: the pass behind kn_fill_waits.
 *
 * Where a wait would stand still, nodes after it that depend on nothing left behind come before it, in their order,
 * until what it waits for has arrived: of the same block or, in the forward, the next, so that little is alive for
 * longer; and never a start, so that all ranks start their exchanges in one order and what arrives is alive no longer.
 *
 * When something will have arrived is reckoned with the round figures below, of no device: only the order follows from
 * them, no result. Ranks may differ in it, as they do in numbers of rows. */
#include "core/base/error.h"
#include "core/graph/edit.h"
#include "core/ops/ops.h"
#include "dist/exchange_nodes.h"
#include "dist/mesh.h"
#include "dist/sharding.h"

#include <stdlib.h>

static const double product_flops = 6e14, attention_flops = 4.5e14, memory_bytes = 3e12, link_bytes = 3e11,
                    of_launch = 2e-6, of_message = 5e-6;

typedef struct Pass {
    KnGraph *graph;
    KnNodeList old;
    char *emitted; /* per old node */
    int in_order;
    double now, free_at[KN_GROUP_COUNT]; /* of each group's exchanges, or of all */
    double *arrival;                     /* per tensor that arrives */
    /* Per tensor that owns memory: the wait, counted from 1, at which a node was left behind that reads or writes it.
     */
    int *read, *written, wait;
} Pass;

/* ---- time ---- */

static double seconds_of(const KnNode *node)
{
    KnCost cost = {0};
    if (node->prologue)
        return 0;
    node->op->cost(node, &cost);
    double products = cost.matmul_flops / product_flops + cost.attention_flops / attention_flops;
    double moves = cost.bytes / memory_bytes, seconds = products > moves ? products : moves;
    return seconds > 0 ? seconds + of_launch : 0;
}

static double exchange_seconds(const KnNode *start)
{
    const KnCollective *c = kn_exchange_of(start);
    const KnTensor *in = start->inputs[0], *out = start->output_count ? start->outputs[0] : in;
    double bytes = (double)kn_tensor_bytes(c->kind == KN_ALL_GATHER ? out : in);
    int messages = c->kind == KN_SEND_RECEIVE ? 1 : c->ranks - 1;
    return c->ranks > 1 ? bytes / link_bytes + messages * of_message : 0;
}

static double *arrival_of(Pass *p, const KnNode *node)
{
    return &p->arrival[kn_root_id(kn_is_exchange_start(node) && node->output_count ? node->outputs[0]
                                                                                   : node->inputs[0])];
}

static void emit(Pass *p, int at)
{
    KnNode *node = p->old.nodes[at];
    if (kn_is_exchange_start(node)) {
        double *free_at = &p->free_at[p->in_order ? 0 : kn_exchange_of(node)->group];
        *free_at = (p->now > *free_at ? p->now : *free_at) + exchange_seconds(node);
        *arrival_of(p, node) = *free_at;
    } else if (kn_is_exchange_wait(node)) {
        double arrival = *arrival_of(p, node);
        p->now = arrival > p->now ? arrival : p->now;
    } else {
        p->now += seconds_of(node);
    }
    p->emitted[at] = 1;
    kn_graph_put_node(p->graph, node);
}

/* ---- what depends on what ---- */

static int changes_input(const KnNode *node, int k)
{
    if (kn_is_exchange_wait(node) || node->op->id == KN_OP_ACCUMULATE)
        return k == 0;
    if (kn_is_exchange_start(node))
        return node->output_count == 0 || kn_exchange_of(node)->kind == KN_REDUCE_SCATTER;
    if (node->op->id == KN_OP_MATMUL)
        return node->output_count == 0 && k == 3;
    return node->op->has_effect || node->output_count == 0;
}

static void leave(Pass *p, const KnNode *node)
{
    for (int k = 0; k < node->input_count; k++)
        if (node->inputs[k])
            (changes_input(node, k) ? p->written : p->read)[kn_root_id(node->inputs[k])] = p->wait;
    for (int k = 0; k < node->output_count; k++)
        p->written[node->outputs[k]->id] = p->wait; /* of a view, itself alone */
}

static int touches_left(const Pass *p, const KnTensor *tensor, int changes)
{
    int root = kn_root_id(tensor);
    return p->written[tensor->id] == p->wait || p->written[root] == p->wait || (changes && p->read[root] == p->wait);
}

static int may_come(Pass *p, const KnNode *node)
{
    if (kn_is_exchange_start(node) || (kn_is_exchange_wait(node) && *arrival_of(p, node) > p->now))
        return 0;
    for (int k = 0; k < node->input_count; k++)
        if (node->inputs[k] && touches_left(p, node->inputs[k], changes_input(node, k)))
            return 0;
    return 1;
}

/* ---- the walk ---- */

/* Of the wait's block; of a forward's, also of the next. */
static int is_in_reach(const KnNode *node, const KnNode *wait, int block)
{
    int next = node->block == block + 1 && !wait->backward;
    return node->backward <= wait->backward && (node->block < 0 || node->block == block || next);
}

static void fill(Pass *p, int at)
{
    const KnNode *wait = p->old.nodes[at];
    const double *arrival = arrival_of(p, wait);
    int block = wait->block;
    p->wait++;
    leave(p, wait);
    for (int i = at + 1; i < p->old.count && p->now < *arrival; i++) {
        const KnNode *node = p->old.nodes[i];
        if (p->emitted[i])
            continue;
        block = block < 0 ? node->block : block;
        if (!is_in_reach(node, wait, block))
            break;
        if (may_come(p, node))
            emit(p, i);
        else
            leave(p, node);
    }
}

void kn_fill_waits(KnGraph *graph, int in_order)
{
    size_t tensors = (size_t)graph->tensor_count;
    Pass p = {.graph = graph,
              .in_order = in_order,
              .arrival = kn_alloc(tensors * sizeof(double)),
              .read = kn_alloc(tensors * sizeof(int)),
              .written = kn_alloc(tensors * sizeof(int))};
    kn_graph_mark_prologue(graph);
    kn_graph_take_nodes(graph, &p.old);
    p.emitted = kn_alloc((size_t)p.old.count + 1);
    for (int i = 0; i < p.old.count; i++) {
        if (!p.emitted[i] && kn_is_exchange_wait(p.old.nodes[i]))
            fill(&p, i);
        if (!p.emitted[i])
            emit(&p, i);
    }
    free(p.old.nodes);
    free(p.emitted);
    free(p.arrival);
    free(p.read);
    free(p.written);
}
