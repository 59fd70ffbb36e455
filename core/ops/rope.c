/* Rotary positions (Su et al., 2021) and the sinusoidal timestep embedding. */
#include "core/ops/rows.h"

KnTensor *kn_rope(KnGraph *graph, KnTensor *x, KnTensor *positions, KnTensor *table, const KnRopeAttributes *attributes)
{
    const int64_t *pairs = attributes->axis_pairs, head = 2 * (pairs[0] + pairs[1] + pairs[2]);
    KN_ASSERT(kn_is_float(x) && kn_tensor_columns(x) == attributes->heads * head && kn_is_f32(table, -1, head));
    KN_ASSERT(kn_is_index(positions, 3 * kn_tensor_rows(x)));
    KnTensor *inputs[] = {x, positions, table};
    return kn_node_simple(graph, &kn_op_rope, attributes, sizeof *attributes, inputs, 3, x->dtype, x->dims, x->shape);
}

static void rope_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs, const int *wanted,
                          KnTensor **grad_inputs)
{
    KnRopeAttributes attributes = *(const KnRopeAttributes *)node->attributes;
    (void)wanted;
    attributes.inverse = !attributes.inverse;
    grad_inputs[0] = kn_rope(graph, kn_cast(graph, grad_outputs[0], node->inputs[0]->dtype), node->inputs[1],
                             node->inputs[2], &attributes);
}

static void rope_cost(const KnNode *node, KnCost *cost)
{
    kn_cost_of_bytes(node, cost, 3);
}

KnTensor *kn_timestep_embedding(KnGraph *graph, KnTensor *timesteps, int64_t dim)
{
    KN_ASSERT(timesteps->dtype == KN_F32 && dim > 0 && dim % 2 == 0);
    return kn_node_simple(graph, &kn_op_timestep_embedding, NULL, 0, &timesteps, 1, KN_F32, 2,
                          (int64_t[]){kn_tensor_elements(timesteps), dim});
}

static void embedding_cost(const KnNode *node, KnCost *cost)
{
    kn_cost_of_bytes(node, cost, 20);
}

const KnOp kn_op_rope = {KN_OP_ROPE, "rope", rope_gradient, rope_cost, 0};
const KnOp kn_op_timestep_embedding = {KN_OP_TIMESTEP_EMBEDDING, "timestep_embedding", kn_no_gradient, embedding_cost,
                                       0};
