/* The pass of ZeRO stage 3: weights that exist only while they are used.
 *
 * Nodes that use one block without another block's use between form a visit. A visit begins with the block's gathered
 * buffers, of which parameters are views; what the forward derived from parameters alone (swaps of axes) is derived
 * again in every visit, so that nothing of it lives from the forward to the backward. The next visit's gather starts
 * when this one begins: two visits' buffers are alive at a time. A block that is visited again by then, as the last
 * ones are where the backward begins, is not gathered again.
 *
 * A block's first parameters, as far as they are only used rounded to bfloat16 (its matrices lie first), are rounded
 * before they are gathered: half the bytes to send, and each rank rounds its own. */
#include "core/base/error.h"
#include "core/graph/edit.h"
#include "core/ops/ops.h"
#include "dist/zero.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROUNDED, EXACT, BUFFERS };

typedef struct Visit {
    int block;
    KnTensor *buffers[BUFFERS]; /* gathered; their waits sink to the first use (kn_overlap) */
} Visit;

typedef struct Pass {
    KnGraph *graph;
    const KnZero *zero;
    KnTensor **shards;
    int64_t *exact;   /* by block: where the parameters begin that are gathered in float32 */
    int tensors;      /* of the old graph */
    KnTensor **views; /* by old tensor id: its form in the present visit ... */
    int *seen;        /* ... if this is it (visit + 1) */
    int *visit_of;    /* by old node: index of its visit; -1 = uses no parameter */
    Visit *visits;
    int visit_count, started;
} Pass;

/* Any parameter behind a tensor that depends on parameters alone; NULL where it does not. */
static const KnTensor *parameter_behind(const KnTensor *tensor)
{
    if (!tensor || tensor->role == KN_ROLE_PARAMETER)
        return tensor;
    if (!tensor->producer || !tensor->producer->prologue)
        return NULL;
    for (int k = 0; k < tensor->producer->input_count; k++) {
        const KnTensor *found = parameter_behind(tensor->producer->inputs[k]);
        if (found)
            return found;
    }
    return NULL;
}

static int block_used(const KnNode *node)
{
    int block = -1;
    for (int k = 0; k < node->input_count; k++) {
        const KnTensor *parameter = parameter_behind(node->inputs[k]);
        KN_ASSERT(!parameter || block < 0 || block == parameter->block);
        block = parameter ? parameter->block : block;
    }
    return block;
}

static void find_visits(Pass *p, const KnNodeList *nodes)
{
    p->visits = kn_alloc((size_t)(nodes->count + 1) * sizeof *p->visits);
    p->visit_of = kn_alloc((size_t)(nodes->count + 1) * sizeof *p->visit_of);
    for (int i = 0; i < nodes->count; i++) {
        const KnNode *node = nodes->nodes[i];
        int block = node->prologue ? -1 : block_used(node);
        p->visit_of[i] = -1;
        if (block < 0)
            continue;
        const Visit *last = p->visit_count ? &p->visits[p->visit_count - 1] : NULL;
        if (!last || last->block != block)
            p->visits[p->visit_count++] = (Visit){.block = block};
        p->visit_of[i] = p->visit_count - 1;
    }
}

static int rounds_parameter(const KnNode *node)
{
    return node->op->id == KN_OP_CAST && node->inputs[0]->role == KN_ROLE_PARAMETER &&
           node->outputs[0]->dtype == KN_BF16;
}

static void find_exact(Pass *p, const KnNodeList *nodes)
{
    const KnParameterSet *set = p->zero->set;
    p->exact = kn_alloc((size_t)set->block_count * sizeof *p->exact);
    memcpy(p->exact, set->block_elements, (size_t)set->block_count * sizeof *p->exact);
    for (int i = 0; i < nodes->count; i++) {
        const KnNode *node = nodes->nodes[i];
        for (int k = 0; k < node->input_count && !rounds_parameter(node); k++) {
            if (!node->inputs[k] || node->inputs[k]->role != KN_ROLE_PARAMETER)
                continue;
            int64_t offset = kn_parameter_find(set, node->inputs[k]->name)->offset;
            int64_t *first = &p->exact[node->inputs[k]->block];
            *first = offset < *first ? offset : *first;
        }
    }
}

static KnTensor *shard_of(Pass *p, int block)
{
    const int64_t *cuts = kn_zero_cuts(p->zero, block);
    int64_t mine = cuts[p->zero->rank + 1] - cuts[p->zero->rank];
    char name[64];
    if (!p->shards[block]) {
        snprintf(name, sizeof name, "weights.shard.%d", block);
        p->shards[block] = kn_leaf(p->graph, KN_ROLE_STATE, KN_F32, 1, &mine, name);
    }
    return p->shards[block];
}

/* Elements [first, end) of a block from all ranks; NULL: there are none. */
static KnTensor *gather(Pass *p, int block, int64_t first, int64_t end, KnDtype dtype)
{
    const KnZero *zero = p->zero;
    const int64_t *cuts = kn_zero_cuts(zero, block);
    int64_t all = end - first, *offsets = kn_alloc((size_t)(zero->ranks + 1) * sizeof *offsets);
    for (int i = 0; i <= zero->ranks; i++)
        offsets[i] = (cuts[i] < first ? first : cuts[i] > end ? end : cuts[i]) - first;
    int64_t from = first + offsets[zero->rank] - cuts[zero->rank];
    int64_t mine = offsets[zero->rank + 1] - offsets[zero->rank];
    KnTensor *gathered = NULL;
    if (all > 0) {
        KnTensor *part = kn_view(p->graph, shard_of(p, block), mine ? from : 0, 1, &mine);
        char name[64];
        snprintf(name, sizeof name, "weights of block %d", block);
        KnCollective *c =
            kn_collective_create(p->graph, KN_ALL_GATHER, KN_GROUP_ZERO, zero->ranks, zero->rank, name, offsets, NULL);
        gathered = kn_collective(p->graph, c, kn_cast(p->graph, part, dtype), 1, &all);
    }
    free(offsets);
    return gathered;
}

static void start_gather(Pass *p, int index)
{
    if (index >= p->visit_count || index < p->started)
        return;
    Visit *visit = &p->visits[index];
    int64_t exact = p->exact[visit->block], all = p->zero->set->block_elements[visit->block];
    p->started = index + 1;
    if (index >= 2 && visit[-2].block == visit->block) {
        memcpy(visit->buffers, visit[-2].buffers, sizeof visit->buffers);
        return;
    }
    visit->buffers[ROUNDED] = gather(p, visit->block, 0, exact, KN_BF16);
    visit->buffers[EXACT] = gather(p, visit->block, exact, all, KN_F32);
}

/* A view of a gathered buffer in the place of `tensor`: a parameter, or one that is rounded; NULL: it is neither. */
static KnTensor *gathered_parameter(Pass *p, const Visit *visit, const KnTensor *tensor)
{
    int rounded = tensor->producer && rounds_parameter(tensor->producer);
    const KnTensor *parameter = rounded ? tensor->producer->inputs[0] : tensor;
    if (parameter->role != KN_ROLE_PARAMETER)
        return NULL;
    int64_t offset = kn_parameter_find(p->zero->set, parameter->name)->offset, exact = p->exact[visit->block];
    if (rounded != (offset < exact))
        return NULL;
    return kn_view(p->graph, visit->buffers[rounded ? ROUNDED : EXACT], rounded ? offset : offset - exact, tensor->dims,
                   tensor->shape);
}

static KnTensor *in_visit(Pass *p, int visit, KnTensor *tensor)
{
    if (!parameter_behind(tensor))
        return tensor;
    if (p->seen[tensor->id] == visit + 1)
        return p->views[tensor->id];
    KnTensor *made = gathered_parameter(p, &p->visits[visit], tensor);
    if (!made) {
        const KnNode *node = tensor->producer;
        KnTensor *inputs[KN_MAX_INPUTS];
        for (int k = 0; k < node->input_count; k++)
            inputs[k] = in_visit(p, visit, node->inputs[k]);
        KN_ASSERT(node->output_count == 1);
        KnNode *again =
            kn_node_append(p->graph, node->op, node->attributes, KN_ATTRIBUTE_BYTES, inputs, node->input_count);
        made = kn_node_output(p->graph, again, tensor->dtype, tensor->dims, tensor->shape);
    }
    p->seen[tensor->id] = visit + 1;
    p->views[tensor->id] = made;
    return made;
}

static void place_node(Pass *p, KnNode *node, int visit)
{
    if (node->prologue)
        return;
    p->graph->in_backward = node->backward;
    if (visit >= 0) {
        start_gather(p, visit);
        for (int k = 0; k < node->input_count; k++)
            kn_node_set_input(node, k, in_visit(p, visit, node->inputs[k]));
        start_gather(p, visit + 1);
    }
    kn_graph_put_node(p->graph, node);
    p->graph->in_backward = 0;
}

void kn_zero_gather(KnGraph *graph, const KnZero *zero, KnTensor **shards)
{
    Pass p = {.graph = graph, .zero = zero, .shards = shards, .tensors = graph->tensor_count};
    KnNodeList old;
    p.views = kn_alloc((size_t)p.tensors * sizeof *p.views);
    p.seen = kn_alloc((size_t)p.tensors * sizeof *p.seen);
    memset(shards, 0, (size_t)zero->set->block_count * sizeof *shards);
    kn_graph_mark_prologue(graph);
    kn_graph_take_nodes(graph, &old);
    find_exact(&p, &old);
    find_visits(&p, &old);
    for (int i = 0; i < old.count; i++)
        place_node(&p, old.nodes[i], p.visit_of[i]);
    free(old.nodes);
    free(p.views);
    free(p.seen);
    free(p.exact);
    free(p.visits);
    free(p.visit_of);
}
