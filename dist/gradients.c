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

typedef struct Pass {
    KnGraph *graph;
    const KnGradientOptions *options;
    const KnZero *zero;
    const KnParameterSet *set;
    Wanted wanted;
    KnGradientPlan *plan;
    KnTensor **buffers; /* by block, from stage 2 on: zeros that gradients are added to */
    int *missing;       /* by block: gradients to come */
    int started;        /* the block whose sum is under way; -1: none */
    KnTensor *range;    /* what arrives of it; NULL where its sum is in place */
} Pass;

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

/* --- Sums over ranks ---------------------------------------------------------------------------------------------- */

static KnCollective *sum_over(const Pass *p, KnGroup group, const char *what, int block)
{
    const KnMesh *mesh = p->options->mesh;
    char name[48];
    snprintf(name, sizeof name, block < 0 ? "%s" : "%s of block %d", what, block);
    return kn_collective_create(p->graph, KN_ALL_REDUCE, group, kn_mesh_group_size(mesh, group),
                                kn_mesh_group_rank(mesh, group), name, NULL, NULL);
}

static KnCollective *scatter_over(const Pass *p, int block)
{
    char name[48];
    snprintf(name, sizeof name, "gradients of block %d", block);
    return kn_collective_create(p->graph, KN_REDUCE_SCATTER, KN_GROUP_ZERO, p->zero->ranks, p->zero->rank, name,
                                kn_zero_cuts(p->zero, block), NULL);
}

static int replicas_of_ranges(const Pass *p)
{
    return kn_mesh_group_size(p->options->mesh, KN_GROUP_DATA);
}

static void sum_in_place(Pass *p, KnGroup group, KnTensor *state, int block)
{
    KnCollective *c = sum_over(p, group, "gradients", block);
    kn_collective_in_place_start(p->graph, c, state);
    kn_collective_in_place_wait(p->graph, c, state);
}

/* Takes what has been scattered of the block before. It waits until the next block is complete, so that the backward
 * goes on meanwhile. */
static void finish_block(Pass *p)
{
    const KnZero *zero = p->zero;
    int block = p->started;
    if (block < 0)
        return;
    KnTensor *sum = p->plan->block_sums[block];
    const int64_t *cuts = kn_zero_cuts(zero, block);
    int64_t mine = cuts[zero->rank + 1] - cuts[zero->rank];
    if (p->range)
        kn_accumulate(p->graph, sum, p->range);
    if (p->options->reduce && zero->stage >= 1 && replicas_of_ranges(p) > 1)
        sum_in_place(p, KN_GROUP_DATA, zero->stage == 1 ? kn_view(p->graph, sum, cuts[zero->rank], 1, &mine) : sum,
                     block);
    p->started = -1;
    p->range = NULL;
}

/* All gradients of the block are in its buffer. */
static void start_block(Pass *p, int block)
{
    const KnZero *zero = p->zero;
    KnTensor *sum = p->plan->block_sums[block];
    const int64_t *cuts = kn_zero_cuts(zero, block);
    int64_t mine = cuts[zero->rank + 1] - cuts[zero->rank];
    finish_block(p);
    p->started = block;
    if (zero->stage >= 2) {
        p->range = kn_collective(p->graph, scatter_over(p, block), p->buffers[block], 1, &mine);
    } else if (p->options->reduce && zero->stage == 1) {
        KnCollective *c = scatter_over(p, block);
        kn_collective_in_place_start(p->graph, c, sum);
        kn_collective_in_place_wait(p->graph, c, sum);
    } else if (p->options->reduce && kn_mesh_group_size(p->options->mesh, KN_GROUP_SUM) > 1) {
        sum_in_place(p, KN_GROUP_SUM, sum, block);
    }
}

/* --- Where gradients are added ------------------------------------------------------------------------------------ */

static void make_leaves(Pass *p)
{
    const KnParameterSet *set = p->set;
    char name[192];
    p->plan->sums = kn_alloc((size_t)set->count * sizeof(KnTensor *));
    p->plan->block_sums = kn_alloc((size_t)set->block_count * sizeof(KnTensor *));
    for (int i = 0; p->zero->stage < 2 && i < p->wanted.count; i++) {
        const KnTensor *leaf = p->wanted.leaves[i];
        snprintf(name, sizeof name, "gradient.%s", leaf->name);
        p->plan->sums[p->wanted.parameters[i]] =
            kn_leaf(p->graph, KN_ROLE_STATE, KN_F32, leaf->dims, leaf->shape, name);
    }
    int whole = p->zero->stage < 2;
    for (int b = 0; (p->options->reduce || !whole) && b < set->block_count; b++) {
        const int64_t *cuts = kn_zero_cuts(p->zero, b);
        int64_t elements = whole ? set->block_elements[b] : cuts[p->zero->rank + 1] - cuts[p->zero->rank];
        snprintf(name, sizeof name, "gradient.block.%d", b);
        p->plan->block_sums[b] = kn_leaf(p->graph, KN_ROLE_STATE, KN_F32, 1, &elements, name);
    }
}

static void add_gradient(Pass *p, int index)
{
    const KnParameter *parameter = &p->set->list[p->wanted.parameters[index]];
    KnTensor *gradient = p->wanted.gradients[index], *place = p->plan->sums[p->wanted.parameters[index]];
    int block = parameter->block;
    if (p->zero->stage >= 2) {
        if (!p->buffers[block])
            p->buffers[block] = kn_zeros(p->graph, KN_F32, 1, &p->set->block_elements[block]);
        place = kn_view(p->graph, p->buffers[block], parameter->offset, gradient->dims, gradient->shape);
    }
    kn_accumulate(p->graph, place, gradient);
    if (--p->missing[block] == 0)
        start_block(p, block);
}

static int produces(const KnNode *node, const KnTensor *tensor)
{
    for (int k = 0; k < node->output_count; k++)
        if (node->outputs[k] == tensor)
            return 1;
    return 0;
}

static void place(Pass *p)
{
    KnNodeList old;
    p->missing = kn_alloc((size_t)p->set->block_count * sizeof *p->missing);
    p->buffers = kn_alloc((size_t)p->set->block_count * sizeof *p->buffers);
    for (int i = 0; i < p->wanted.count; i++)
        if (p->wanted.gradients[i])
            p->missing[p->set->list[p->wanted.parameters[i]].block]++;
    kn_graph_take_nodes(p->graph, &old);
    p->graph->in_backward = 1;
    for (int n = 0; n < old.count; n++) {
        kn_graph_put_node(p->graph, old.nodes[n]);
        for (int i = 0; old.nodes[n]->backward && i < p->wanted.count; i++)
            if (p->wanted.gradients[i] && produces(old.nodes[n], p->wanted.gradients[i]))
                add_gradient(p, i);
    }
    finish_block(p);
    p->graph->in_backward = 0;
    free(old.nodes);
    free(p->missing);
    free(p->buffers);
}

void kn_place_gradients(KnGraph *graph, KnTensor *loss, const KnGradientOptions *options, KnGradientPlan *plan)
{
    Pass p = {.graph = graph,
              .options = options,
              .zero = options->zero,
              .set = options->zero->set,
              .wanted = list_wanted(graph, options->zero->set),
              .plan = plan,
              .started = -1};
    plan->set = p.set;
    kn_gradient(graph, loss, p.wanted.leaves, p.wanted.count, p.wanted.gradients, kn_add);
    if (options->recompute)
        kn_recompute_blocks(graph, options->recompute);
    make_leaves(&p);
    place(&p);
    if (options->reduce && options->also && kn_mesh_group_size(options->mesh, KN_GROUP_SUM) > 1) {
        KnCollective *c = sum_over(&p, KN_GROUP_SUM, "loss", -1);
        kn_collective_in_place_start(graph, c, options->also);
        kn_collective_in_place_wait(graph, c, options->also);
    }
    free(p.wanted.leaves);
    free(p.wanted.gradients);
    free(p.wanted.parameters);
}

void kn_gradient_plan_clear(KnGradientPlan *plan)
{
    free(plan->sums);
    free(plan->block_sums);
    *plan = (KnGradientPlan){0};
}
