/* Collectives as nodes: a start, and a wait that other work may come before.
 *
 * The start's output is where the result arrives; the wait's output is the same memory, complete. The wait also takes
 * what was sent, so that its memory is not given away before. */
#include "core/ops/rows.h"

#include <string.h>

static const KnCollective *collective_of(const KnNode *node)
{
    return *(const KnCollective *const *)node->attributes;
}

static int64_t *copy_offsets(KnGraph *graph, const int64_t *offsets, int ranks)
{
    if (!offsets)
        return NULL;
    int64_t *copy = kn_arena_alloc(graph->arena, (size_t)(ranks + 1) * sizeof *copy);
    memcpy(copy, offsets, (size_t)(ranks + 1) * sizeof *copy);
    return copy;
}

KnCollective *kn_collective_create(KnGraph *graph, KnCollectiveKind kind, int group, int ranks, int rank,
                                   const char *name, const int64_t *offsets, const int64_t *receive_offsets)
{
    KnCollective *made = kn_arena_alloc(graph->arena, sizeof *made);
    *made = (KnCollective){.kind = kind,
                           .group = group,
                           .ranks = ranks,
                           .rank = rank,
                           .name = kn_arena_strdup(graph->arena, name),
                           .offsets = copy_offsets(graph, offsets, ranks),
                           .receive_offsets = copy_offsets(graph, receive_offsets, ranks)};
    return made;
}

static int64_t part(const int64_t *offsets, int rank)
{
    return offsets[rank + 1] - offsets[rank];
}

static void check_sizes(const KnCollective *c, int64_t in, int64_t out)
{
    switch (c->kind) {
    case KN_ALL_REDUCE:
    case KN_ALL_REDUCE_ONCE:
        KN_ASSERT(in == out);
        break;
    case KN_REDUCE_SCATTER:
        KN_ASSERT(in == c->offsets[c->ranks] && out == part(c->offsets, c->rank));
        break;
    case KN_ALL_GATHER:
        KN_ASSERT(in == part(c->offsets, c->rank) && out == c->offsets[c->ranks]);
        break;
    case KN_ALL_TO_ALL:
        KN_ASSERT(in == c->offsets[c->ranks] && out == c->receive_offsets[c->ranks]);
        break;
    case KN_SEND_RECEIVE:
        break;
    }
}

KnTensor *kn_collective(KnGraph *graph, const KnCollective *c, KnTensor *x, int dims, const int64_t *shape)
{
    KN_ASSERT(kn_is_float(x));
    KnTensor *arriving =
        kn_node_simple(graph, &kn_op_collective_start, &c, sizeof(KnCollective *), &x, 1, x->dtype, dims, shape);
    arriving->producer->exchange = 1;
    check_sizes(c, kn_tensor_elements(x), kn_tensor_elements(arriving));
    KnTensor *arrived = kn_node_simple(graph, &kn_op_collective_wait, &c, sizeof(KnCollective *),
                                       (KnTensor *[]){arriving, x}, 2, x->dtype, dims, shape);
    arrived->base = arriving;
    return arrived;
}

static void in_place(KnGraph *graph, const KnOp *op, const KnCollective *c, KnTensor *state)
{
    KN_ASSERT(state->role == KN_ROLE_STATE || state->producer);
    KN_ASSERT(c->kind == KN_ALL_REDUCE || c->offsets[c->ranks] == kn_tensor_elements(state));
    kn_node_append(graph, op, &c, sizeof(KnCollective *), &state, 1);
}

void kn_collective_in_place_start(KnGraph *graph, const KnCollective *collective, KnTensor *state)
{
    in_place(graph, &kn_op_collective_start, collective, state);
}

void kn_collective_in_place_wait(KnGraph *graph, const KnCollective *collective, KnTensor *state)
{
    in_place(graph, &kn_op_collective_wait, collective, state);
}

static const KnCollective *opposite(KnGraph *graph, const KnCollective *c)
{
    static const KnCollectiveKind kinds[] = {[KN_ALL_REDUCE] = KN_ALL_REDUCE,
                                             [KN_REDUCE_SCATTER] = KN_ALL_GATHER,
                                             [KN_ALL_GATHER] = KN_REDUCE_SCATTER,
                                             [KN_ALL_TO_ALL] = KN_ALL_TO_ALL};
    KN_ASSERT(c->kind != KN_SEND_RECEIVE && c->kind != KN_ALL_REDUCE_ONCE);
    int turns = c->kind == KN_ALL_TO_ALL;
    return kn_collective_create(graph, kinds[c->kind], c->group, c->ranks, c->rank, c->name,
                                turns ? c->receive_offsets : c->offsets, turns ? c->offsets : NULL);
}

static void start_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs, const int *wanted,
                           KnTensor **grad_inputs)
{
    const KnCollective *c = collective_of(node);
    KnTensor *x = node->inputs[0], *grad = kn_cast(graph, grad_outputs[0], x->dtype);
    (void)wanted;
    grad_inputs[0] =
        c->kind == KN_ALL_REDUCE_ONCE ? grad : kn_collective(graph, opposite(graph, c), grad, x->dims, x->shape);
}

static void wait_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs, const int *wanted,
                          KnTensor **grad_inputs)
{
    (void)graph, (void)node, (void)wanted;
    grad_inputs[0] = grad_outputs[0];
}

KnTensor *kn_replicate(KnGraph *graph, const KnCollective *sum, KnTensor *x)
{
    KN_ASSERT(sum->kind == KN_ALL_REDUCE);
    KnTensor *same =
        kn_node_simple(graph, &kn_op_replicate, &sum, sizeof(KnCollective *), &x, 1, x->dtype, x->dims, x->shape);
    same->base = x;
    return same;
}

static void replicate_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs, const int *wanted,
                               KnTensor **grad_inputs)
{
    KnTensor *x = node->inputs[0], *grad = kn_cast(graph, grad_outputs[0], x->dtype);
    (void)wanted;
    grad_inputs[0] = kn_collective(graph, collective_of(node), grad, x->dims, x->shape);
}

static void start_cost(const KnNode *node, KnCost *cost)
{
    cost->bytes = 2.0 * kn_node_bytes(node);
}

static void no_cost(const KnNode *node, KnCost *cost)
{
    (void)node;
    (void)cost;
}

const KnOp kn_op_collective_start = {KN_OP_COLLECTIVE_START, "collective_start", start_gradient, start_cost, 1};
const KnOp kn_op_collective_wait = {KN_OP_COLLECTIVE_WAIT, "collective_wait", wait_gradient, no_cost, 1};
const KnOp kn_op_replicate = {KN_OP_REPLICATE, "replicate", replicate_gradient, no_cost, 0};
