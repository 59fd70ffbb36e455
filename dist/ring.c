/* Ring attention: the pass that takes its nodes apart.
 *
 * At step i rank r attends from its own queries to the keys and values of rank r - i, while those of the next step are
 * already on their way from r - 1; results are merged by log-sum-exp. Backward, each step has the
 * final output and log-sum-exp; the gradients of the keys and values of a rank travel behind them, every rank adds its
 * part, and after a whole round they are home. What is not yet whole is float32, but for the first part, which has been
 * rounded already. Source: Liu, Zaharia, Abbeel, "Ring Attention with Blockwise
 * Transformers", 2023. */
#include "core/base/error.h"
#include "core/graph/edit.h"
#include "core/ops/ops.h"
#include "dist/sharding.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_WINDOWS = 32 };

/* The windows that were made of span tables: all layers want the same. */
typedef struct Windows {
    KnTensor *list[MOST_WINDOWS];
    int count;
} Windows;

typedef struct Ring {
    KnGraph *graph;
    Windows *windows;
    const KnRing *ring;
    KnTensor *q, *k, *v, *spans;
    const KnAttentionAttributes *attributes;
} Ring;

static KnTensor *window_of(const Ring *r, KnSpanWindowAttributes rows)
{
    Windows *w = r->windows;
    for (int i = 0; i < w->count; i++) {
        const KnNode *made = w->list[i]->producer;
        if (made->inputs[0] == r->spans && memcmp(made->attributes, &rows, sizeof rows) == 0)
            return w->list[i];
    }
    KnTensor *made = kn_span_window(r->graph, r->spans, rows.q_first, rows.q_count, rows.k_first, rows.k_count);
    if (w->count < MOST_WINDOWS)
        w->list[w->count++] = made;
    return made;
}

static KnTensor *pass_on(const Ring *r, KnTensor *x, int64_t rows, const char *name)
{
    const KnRing *ring = r->ring;
    KnCollective *c =
        kn_collective_create(r->graph, KN_SEND_RECEIVE, ring->group, ring->ranks, ring->rank, name, NULL, NULL);
    c->to = (ring->rank + 1) % ring->ranks;
    c->from = (ring->rank + ring->ranks - 1) % ring->ranks;
    return kn_collective(r->graph, c, x, 2, (int64_t[]){rows, kn_tensor_columns(x)});
}

/* Whose keys are here at step i. */
static int owner_at(const Ring *r, int step)
{
    return (r->ring->rank - step + r->ring->ranks) % r->ring->ranks;
}

static int64_t rows_of(const Ring *r, int rank)
{
    return r->ring->cuts[rank + 1] - r->ring->cuts[rank];
}

static KnTensor *spans_at(const Ring *r, int step)
{
    int me = r->ring->rank, owner = owner_at(r, step);
    return window_of(
        r, (KnSpanWindowAttributes){r->ring->cuts[me], rows_of(r, me), r->ring->cuts[owner], rows_of(r, owner)});
}

/* Of the sum so far and the part of `step`. */
static KnDtype dtype_at(const Ring *r, int step)
{
    return step == r->ring->ranks - 1 ? r->q->dtype : KN_F32;
}

static KnTensor *sum_at(const Ring *r, int step, KnTensor *so_far, KnTensor *part)
{
    return so_far ? kn_add_parts(r->graph, so_far, part, dtype_at(r, step)) : part;
}

/* What the whole promised holds for one of `parts` of it. */
static void promise(const Ring *r, KnTensor *result, int parts)
{
    kn_attention_expect_pairs(result, r->attributes->pairs / parts);
    if (r->attributes->packed)
        kn_attention_promise_packed(result);
}

static void expand_forward(Ring *r, KnTensor *results[2])
{
    KnTensor *k = r->k, *v = r->v, *out = NULL, *lse = NULL;
    for (int step = 0; step < r->ring->ranks; step++) {
        KnTensor *next_k = NULL, *next_v = NULL;
        if (step + 1 < r->ring->ranks) {
            next_k = pass_on(r, k, rows_of(r, owner_at(r, step + 1)), "ring k");
            next_v = pass_on(r, v, rows_of(r, owner_at(r, step + 1)), "ring v");
        }
        KnTensor *part =
            kn_attention(r->graph, r->q, k, v, spans_at(r, step), r->attributes->heads, r->attributes->scale);
        promise(r, part, r->ring->ranks);
        KnTensor *part_lse = part->producer->outputs[1];
        out = out ? kn_attention_merge(r->graph, out, lse, part, part_lse, dtype_at(r, step)) : part;
        lse = out->producer->outputs[1];
        k = next_k;
        v = next_v;
    }
    results[0] = out;
    results[1] = lse;
}

static void expand_backward(Ring *r, const KnNode *node, KnTensor *results[3])
{
    KnTensor *k = r->k, *v = r->v, *dq = NULL, *dk = NULL, *dv = NULL;
    for (int step = 0; step < r->ring->ranks; step++) {
        KnTensor *next_k = NULL, *next_v = NULL, *part[3];
        if (step + 1 < r->ring->ranks) {
            next_k = pass_on(r, k, rows_of(r, owner_at(r, step + 1)), "ring k");
            next_v = pass_on(r, v, rows_of(r, owner_at(r, step + 1)), "ring v");
        }
        kn_attention_backward(r->graph, r->q, k, v, spans_at(r, step), node->inputs[4], node->inputs[5],
                              node->inputs[6], r->attributes->heads, r->attributes->scale, 1, part);
        promise(r, part[0], r->ring->ranks);
        dq = sum_at(r, step, dq, part[0]);
        dk = sum_at(r, step, dk, part[1]);
        dv = sum_at(r, step, dv, part[2]);
        dk = pass_on(r, dk, rows_of(r, owner_at(r, step + 1)), "ring dk");
        dv = pass_on(r, dv, rows_of(r, owner_at(r, step + 1)), "ring dv");
        k = next_k;
        v = next_v;
    }
    results[0] = dq;
    results[1] = dk;
    results[2] = dv;
}

/* --- Gathering in place of passing on ----------------------------------------------------------------------------- */

static KnTensor *gathered(const Ring *r, KnTensor *x, int64_t width, const char *name)
{
    const KnRing *ring = r->ring;
    int64_t *offsets = kn_alloc((size_t)(ring->ranks + 1) * sizeof *offsets);
    for (int i = 0; i <= ring->ranks; i++)
        offsets[i] = (ring->cuts[i] - ring->cuts[0]) * width;
    KnCollective *c =
        kn_collective_create(r->graph, KN_ALL_GATHER, ring->group, ring->ranks, ring->rank, name, offsets, NULL);
    int64_t rows = ring->cuts[ring->ranks] - ring->cuts[0];
    free(offsets);
    return kn_collective(r->graph, c, x, 2, (int64_t[]){rows, width});
}

/* [heads, rows here] of every rank, to [heads, all rows]. */
static KnTensor *gathered_lse(const Ring *r, KnTensor *lse)
{
    KnTensor *flat = gathered(r, lse, lse->shape[0], "ring lse");
    return kn_ungroup_columns(r->graph, flat, lse->shape[0], r->ring->cuts, r->ring->ranks);
}

static KnTensor *window(const Ring *r, int my_queries, int my_keys)
{
    const int64_t *cuts = r->ring->cuts;
    int64_t all = cuts[r->ring->ranks], first = cuts[r->ring->rank], count = cuts[r->ring->rank + 1] - first;
    return window_of(r, (KnSpanWindowAttributes){my_queries ? first : 0, my_queries ? count : all, my_keys ? first : 0,
                                                 my_keys ? count : all});
}

static void gather_forward(Ring *r, KnTensor *results[2])
{
    int64_t width = kn_tensor_columns(r->q);
    KnTensor *k = gathered(r, r->k, width, "ring k"), *v = gathered(r, r->v, width, "ring v");
    results[0] = kn_attention(r->graph, r->q, k, v, window(r, 1, 0), r->attributes->heads, r->attributes->scale);
    results[1] = results[0]->producer->outputs[1];
    promise(r, results[0], 1);
}

/* Own queries against all keys give dq; all queries against own keys give dk and dv. */
static void gather_backward(Ring *r, const KnNode *node, KnTensor *results[3])
{
    int64_t width = kn_tensor_columns(r->q);
    KnTensor *out = node->inputs[4], *lse = node->inputs[5], *grad = node->inputs[6], *mine[3], *all[3];
    KnTensor *k = gathered(r, r->k, width, "ring k"), *v = gathered(r, r->v, width, "ring v");
    kn_attention_backward(r->graph, r->q, k, v, window(r, 1, 0), out, lse, grad, r->attributes->heads,
                          r->attributes->scale, 1, mine);
    KnTensor *q = gathered(r, r->q, width, "ring q"), *outs = gathered(r, out, width, "ring out");
    kn_attention_backward(r->graph, q, r->k, r->v, window(r, 0, 1), outs, gathered_lse(r, lse),
                          gathered(r, grad, width, "ring grad"), r->attributes->heads, r->attributes->scale, 1, all);
    promise(r, mine[0], 1);
    promise(r, all[0], 1);
    results[0] = mine[0];
    results[1] = all[1];
    results[2] = all[2];
}

/* --- The pass ----------------------------------------------------------------------------------------------------- */

static int is_ring(const KnNode *node)
{
    int attention = node->op->id == KN_OP_ATTENTION || node->op->id == KN_OP_ATTENTION_BACKWARD;
    return attention && ((const KnAttentionAttributes *)node->attributes)->ring != NULL;
}

static void expand(KnGraph *graph, Windows *windows, const KnNode *node, KnTensor **results)
{
    const KnAttentionAttributes *attributes = (const KnAttentionAttributes *)node->attributes;
    Ring r = {.graph = graph,
              .windows = windows,
              .ring = attributes->ring,
              .q = node->inputs[0],
              .k = node->inputs[1],
              .v = node->inputs[2],
              .spans = node->inputs[3],
              .attributes = attributes};
    graph->block = node->block;
    graph->in_backward = node->backward;
    int first = graph->node_count, forward = node->op->id == KN_OP_ATTENTION;
    if (forward && r.ring->gathers)
        gather_forward(&r, results);
    else if (forward)
        expand_forward(&r, results);
    else if (r.ring->gathers)
        gather_backward(&r, node, results);
    else
        expand_backward(&r, node, results);
    for (int i = first; i < graph->node_count; i++)
        graph->nodes[i]->again = node->again;
    graph->block = -1;
    graph->in_backward = 0;
}

void kn_ring_expand(KnGraph *graph)
{
    int tensors = graph->tensor_count;
    KnTensor **replaced = kn_alloc((size_t)tensors * sizeof *replaced);
    KnNodeList old;
    Windows windows = {.count = 0};
    kn_graph_take_nodes(graph, &old);
    for (int i = 0; i < old.count; i++) {
        KnNode *node = old.nodes[i];
        for (int k = 0; k < node->input_count; k++)
            if (node->inputs[k] && node->inputs[k]->id < tensors && replaced[node->inputs[k]->id])
                kn_node_set_input(node, k, replaced[node->inputs[k]->id]);
        if (!is_ring(node)) {
            kn_graph_put_node(graph, node);
            continue;
        }
        KnTensor *results[3];
        expand(graph, &windows, node, results);
        for (int k = 0; k < node->output_count; k++)
            replaced[node->outputs[k]->id] = results[k];
    }
    free(old.nodes);
    free(replaced);
}
