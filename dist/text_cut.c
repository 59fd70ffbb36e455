/* Whether a sequence's ranks should each make all text states or a part of them: both graphs are built and priced. */
#include "core/ops/ops.h"
#include "dist/sharding.h"

/* What moving a byte between ranks is worth in work: the balance of today's machines lies within a factor of a few,
 * from two cores that share memory to accelerators on their links. */
static const double flops_a_byte = 200;

static double price(const KnModelGraphOptions *options, const KnSharding *sharding, int cut)
{
    KnSharding trial = *sharding;
    KnModelGraph built;
    double bytes = 0;
    trial.shard_text = cut;
    kn_model_build(sharding->model, options, &built);
    kn_shard_forward(&built, &trial, NULL, 0);
    KnCost cost = kn_graph_cost(built.graph);
    for (int i = 0; i < built.graph->node_count; i++) {
        const KnNode *node = built.graph->nodes[i];
        if (node->op->id == KN_OP_COLLECTIVE_START)
            bytes += (double)kn_tensor_bytes(node->outputs[0]);
    }
    kn_graph_destroy(built.graph);
    return cost.matmul_flops + cost.attention_flops + flops_a_byte * bytes;
}

int kn_text_is_cut(const KnModelGraphOptions *options, const KnSharding *sharding, KnTextRows wish)
{
    if (kn_mesh_group_size(sharding->mesh, KN_GROUP_SEQUENCE) == 1 || sharding->invariant || wish == KN_TEXT_ROWS_WHOLE)
        return 0;
    if (wish == KN_TEXT_ROWS_CUT)
        return 1;
    return price(options, sharding, 1) < price(options, sharding, 0);
}
