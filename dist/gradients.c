/* The pass behind dist/gradients.h.
 *
 * A gradient that nobody else reads is made in its place, where nothing has to be added: in the block's buffer from
 * stage 2 on, else in the sums where the pass is the step's only one. */
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
    KnTensor **buffers; /* by block, from stage 2 on: a room for its gradients */
    int *missing;       /* by block: gradients to come */
    int *readers;       /* by tensor: how many operands and gradients it is */
    KnCollective *loss; /* whose sum over ranks is under way, or NULL */
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
    if (p->range && p->options->only)
        kn_view(p->graph, sum, 0, 1, &mine); /* a use, for which the exchange is waited here */
    else if (p->range)
        kn_accumulate(p->graph, sum, p->range);
    if (p->options->reduce && zero->stage >= 1 && replicas_of_ranges(p) > 1)
        sum_in_place(p, KN_GROUP_DATA, zero->stage == 1 ? kn_view(p->graph, sum, cuts[zero->rank], 1, &mine) : sum,
                     block);
    p->started = -1;
    p->range = NULL;
}

static int has_gradient(const Pass *p, int parameter)
{
    for (int i = 0; i < p->wanted.count; i++)
        if (p->wanted.parameters[i] == parameter)
            return p->wanted.gradients[i] != NULL;
    return 0;
}

static void fill_with_zeros(Pass *p, KnTensor *buffer, int64_t first, int64_t end)
{
    if (end > first)
        kn_lay(kn_zeros(p->graph, KN_F32, 1, (int64_t[]){end - first}), buffer, first);
}

/* Between gradients, and where there are none. */
static void fill_gaps(Pass *p, int block)
{
    int64_t filled = 0;
    for (int i = 0; i < p->set->count; i++) {
        const KnParameter *parameter = &p->set->list[i];
        if (parameter->block != block || !has_gradient(p, i))
            continue;
        fill_with_zeros(p, p->buffers[block], filled, parameter->offset);
        filled = parameter->offset + parameter->elements;
    }
    fill_with_zeros(p, p->buffers[block], filled, p->set->block_elements[block]);
}

static void scatter_block(Pass *p, int block, int64_t mine)
{
    fill_gaps(p, block);
    p->range = kn_collective(p->graph, scatter_over(p, block), p->buffers[block], 1, &mine);
    if (p->options->only)
        kn_lay(p->range->base, p->plan->block_sums[block], 0);
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
        scatter_block(p, block, mine);
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

static void count_readers(Pass *p)
{
    p->readers = kn_alloc((size_t)p->graph->tensor_count * sizeof *p->readers);
    for (int n = 0; n < p->graph->node_count; n++)
        for (int k = 0; k < p->graph->nodes[n]->input_count; k++)
            if (p->graph->nodes[n]->inputs[k])
                p->readers[p->graph->nodes[n]->inputs[k]->id]++;
    for (int i = 0; i < p->wanted.count; i++)
        if (p->wanted.gradients[i])
            p->readers[p->wanted.gradients[i]->id]++;
}

static void put_gradient(Pass *p, KnTensor *gradient, KnTensor *to, int64_t first)
{
    int is_free = p->readers[gradient->id] == 1 && gradient->producer && !gradient->base;
    kn_lay(is_free ? gradient : kn_scale(p->graph, gradient, 1), to, first);
}

static void take_gradient(Pass *p, int index)
{
    const KnParameter *parameter = &p->set->list[p->wanted.parameters[index]];
    KnTensor *gradient = p->wanted.gradients[index], *sum = p->plan->sums[p->wanted.parameters[index]];
    int block = parameter->block;
    if (p->zero->stage >= 2) {
        if (!p->buffers[block])
            p->buffers[block] = kn_room(p->graph, KN_F32, 1, &p->set->block_elements[block]);
        put_gradient(p, gradient, p->buffers[block], parameter->offset);
    } else if (p->options->only) {
        put_gradient(p, gradient, sum, 0);
    } else {
        kn_accumulate(p->graph, sum, gradient);
    }
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

/* Where the forward is over, and with it the loss: while the backward begins, its sum keeps nobody waiting. */
static void start_loss(Pass *p)
{
    if (!p->options->reduce || !p->options->also || kn_mesh_group_size(p->options->mesh, KN_GROUP_SUM) == 1)
        return;
    p->loss = sum_over(p, KN_GROUP_SUM, "loss", -1);
    kn_collective_in_place_start(p->graph, p->loss, p->options->also);
}

static void place(Pass *p)
{
    int begun = 0;
    KnNodeList old;
    p->missing = kn_alloc((size_t)p->set->block_count * sizeof *p->missing);
    p->buffers = kn_alloc((size_t)p->set->block_count * sizeof *p->buffers);
    for (int i = 0; i < p->wanted.count; i++)
        if (p->wanted.gradients[i])
            p->missing[p->set->list[p->wanted.parameters[i]].block]++;
    count_readers(p);
    kn_graph_take_nodes(p->graph, &old);
    p->graph->in_backward = 1;
    for (int n = 0; n < old.count; n++) {
        if (old.nodes[n]->backward && !begun++)
            start_loss(p);
        kn_graph_put_node(p->graph, old.nodes[n]);
        for (int i = 0; old.nodes[n]->backward && i < p->wanted.count; i++)
            if (p->wanted.gradients[i] && produces(old.nodes[n], p->wanted.gradients[i]))
                take_gradient(p, i);
    }
    finish_block(p);
    if (p->loss)
        kn_collective_in_place_wait(p->graph, p->loss, p->options->also);
    p->graph->in_backward = 0;
    free(old.nodes);
    free(p->missing);
    free(p->buffers);
    free(p->readers);
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
