/* Collectives as nodes: placed by a pass, never written by model code. */
#include "core/ops/rows.h"

void kn_all_reduce_start(KnGraph *graph, KnTensor *state)
{
    KN_ASSERT(state->role == KN_ROLE_STATE && state->dtype == KN_F32);
    kn_node_append(graph, &kn_op_all_reduce_start, NULL, 0, &state, 1);
}

void kn_all_reduce_wait(KnGraph *graph, KnTensor *state)
{
    KN_ASSERT(state->role == KN_ROLE_STATE && state->dtype == KN_F32);
    kn_node_append(graph, &kn_op_all_reduce_wait, NULL, 0, &state, 1);
}

static void collective_cost(const KnNode *node, KnCost *cost)
{
    cost->bytes = 2.0 * kn_node_bytes(node);
}

static void wait_cost(const KnNode *node, KnCost *cost)
{
    (void)node;
    (void)cost;
}

const KnOp kn_op_all_reduce_start = {KN_OP_ALL_REDUCE_START, "all_reduce_start", kn_no_gradient, collective_cost, 1};
const KnOp kn_op_all_reduce_wait = {KN_OP_ALL_REDUCE_WAIT, "all_reduce_wait", kn_no_gradient, wait_cost, 1};
