/* The pass behind dist/gradients.h. */
#include "dist/gradients.h"

#include "core/base/error.h"
#include "core/graph/edit.h"
#include "core/ops/ops.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Wanted {
    int count;
    KnTensor **leaves, **gradients;
    int *parameters; /* index in the set */
} Wanted;

static Wanted list_wanted(const KnGraph *graph, const KnParameterSet *set)
{
    Wanted wanted = {.leaves = kn_alloc((size_t)set->count * sizeof(KnTensor *)),
                     .gradients = kn_alloc((size_t)set->count * sizeof(KnTensor *)),
                     .parameters = kn_alloc((size_t)set->count * sizeof(int))};
    for (int i = 0; i < set->count; i++) {
        KnTensor *leaf = kn_leaf_find(graph, set->list[i].name);
        if (!leaf)
            continue;
        wanted.leaves[wanted.count] = leaf;
        wanted.parameters[wanted.count++] = i;
    }
    return wanted;
}

static void make_leaves(KnGraph *graph, const Wanted *wanted, int reduce, KnGradientPlan *plan)
{
    const KnParameterSet *set = plan->set;
    char name[192];
    plan->sums = kn_alloc((size_t)set->count * sizeof(KnTensor *));
    plan->block_sums = kn_alloc((size_t)set->block_count * sizeof(KnTensor *));
    for (int i = 0; i < wanted->count; i++) {
        const KnTensor *leaf = wanted->leaves[i];
        snprintf(name, sizeof name, "gradient.%s", leaf->name);
        plan->sums[wanted->parameters[i]] = kn_leaf(graph, KN_ROLE_STATE, KN_F32, leaf->dims, leaf->shape, name);
    }
    for (int b = 0; reduce && b < set->block_count; b++) {
        snprintf(name, sizeof name, "gradient.block.%d", b);
        plan->block_sums[b] = kn_leaf(graph, KN_ROLE_STATE, KN_F32, 1, &set->block_elements[b], name);
    }
}

/* Gradients of block b that have not been placed yet. */
static void count_missing(const Wanted *wanted, const KnParameterSet *set, int *missing)
{
    for (int i = 0; i < wanted->count; i++)
        if (wanted->gradients[i])
            missing[set->list[wanted->parameters[i]].block]++;
}

static int produces(const KnNode *node, const KnTensor *tensor)
{
    for (int k = 0; k < node->output_count; k++)
        if (node->outputs[k] == tensor)
            return 1;
    return 0;
}

static void place(KnGraph *graph, const Wanted *wanted, const KnGradientPlan *plan)
{
    const KnParameterSet *set = plan->set;
    int *missing = kn_alloc((size_t)set->block_count * sizeof *missing);
    KnNodeList old;
    count_missing(wanted, set, missing);
    kn_graph_take_nodes(graph, &old);
    graph->in_backward = 1;
    for (int n = 0; n < old.count; n++) {
        kn_graph_put_node(graph, old.nodes[n]);
        for (int i = 0; old.nodes[n]->backward && i < wanted->count; i++) {
            if (!wanted->gradients[i] || !produces(old.nodes[n], wanted->gradients[i]))
                continue;
            int block = set->list[wanted->parameters[i]].block;
            kn_accumulate(graph, plan->sums[wanted->parameters[i]], wanted->gradients[i]);
            if (--missing[block] == 0 && plan->block_sums[block])
                kn_all_reduce_start(graph, plan->block_sums[block]);
        }
    }
    graph->in_backward = 0;
    free(old.nodes);
    free(missing);
}

void kn_place_gradients(KnGraph *graph, KnTensor *loss, const KnParameterSet *set, int recompute, int reduce,
                        KnTensor *also, KnGradientPlan *plan)
{
    Wanted wanted = list_wanted(graph, set);
    plan->set = set;
    kn_gradient(graph, loss, wanted.leaves, wanted.count, wanted.gradients, kn_add);
    if (recompute)
        kn_recompute_blocks(graph);
    make_leaves(graph, &wanted, reduce, plan);
    place(graph, &wanted, plan);
    if (reduce && also)
        kn_all_reduce_start(graph, also);
    for (int b = set->block_count - 1; reduce && b >= 0; b--)
        kn_all_reduce_wait(graph, plan->block_sums[b]);
    if (reduce && also)
        kn_all_reduce_wait(graph, also);
    free(wanted.leaves);
    free(wanted.gradients);
    free(wanted.parameters);
}

void kn_gradient_plan_clear(KnGradientPlan *plan)
{
    free(plan->sums);
    free(plan->block_sums);
    *plan = (KnGradientPlan){0};
}
