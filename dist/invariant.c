/* The pass behind dist/invariant.h. */
#include "dist/invariant.h"

#include "core/base/error.h"
#include "core/graph/edit.h"
#include "core/ops/ops.h"
#include "dist/split.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A sum over tokens whose chunks are still apart. */
typedef struct Parts {
    KnTensor *chunks[KN_INVARIANT_CHUNKS];
} Parts;

typedef struct Pass {
    KnGraph *graph;
    const KnSharding *sharding;
    const KnGradientOptions *options;
    const KnParameterSet *set;
    KnInvariantPlan *plan;
    KnRows tokens, chunks; /* of this rank */
    int count;             /* tensors that the arrays have room for */
    char *rows;            /* by tensor id: has a row for each token */
    Parts **parts;         /* by tensor id: NULL, or what stands for the tensor */
    KnTensor **replaced;   /* by tensor id */
    KnTensor **gradients;  /* by parameter */
    int *missing;          /* by block */
} Pass;

KnRows kn_invariant_chunks(const KnSharding *sharding)
{
    int parts = kn_mesh_group_size(sharding->mesh, KN_GROUP_SEQUENCE);
    int part = kn_mesh_group_rank(sharding->mesh, KN_GROUP_SEQUENCE);
    int64_t first = kn_cut(KN_INVARIANT_CHUNKS, parts, part);
    return (KnRows){first, kn_cut(KN_INVARIANT_CHUNKS, parts, part + 1) - first};
}

/* Of this rank's rows, those of its chunk `index`. */
static KnRows rows_of_chunk(const Pass *p, int64_t index)
{
    int64_t tokens = p->sharding->shape.tokens, chunk = p->chunks.first + index;
    int64_t first = kn_cut(tokens, KN_INVARIANT_CHUNKS, chunk);
    return (KnRows){first - p->tokens.first, kn_cut(tokens, KN_INVARIANT_CHUNKS, chunk + 1) - first};
}

static void make_room(Pass *p)
{
    int old = p->count, now = p->graph->tensor_count + 256;
    if (p->graph->tensor_count <= old)
        return;
    p->rows = kn_realloc(p->rows, (size_t)now);
    p->parts = kn_realloc(p->parts, (size_t)now * sizeof *p->parts);
    p->replaced = kn_realloc(p->replaced, (size_t)now * sizeof *p->replaced);
    memset(p->rows + old, 0, (size_t)(now - old));
    memset(p->parts + old, 0, (size_t)(now - old) * sizeof *p->parts);
    memset(p->replaced + old, 0, (size_t)(now - old) * sizeof *p->replaced);
    p->count = now;
}

/* --- Which tensors have a row for each token ---------------------------------------------------------------------- */

static int has_rows(const Pass *p, const KnTensor *tensor)
{
    return tensor && tensor->id < p->count && p->rows[tensor->id];
}

static void mark_leaves(Pass *p)
{
    static const char *const names[] = {"input.positions", "input.rows", "input.patches", "input.target",
                                        "input.weight"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const KnTensor *leaf = kn_leaf_find(p->graph, names[i]);
        if (leaf)
            p->rows[leaf->id] = 1;
    }
}

static void mark_outputs(Pass *p, const KnNode *node)
{
    const KnMatmulAttributes *m = (const KnMatmulAttributes *)node->attributes;
    make_room(p);
    for (int k = 0; k < node->output_count; k++) {
        char *mark = &p->rows[node->outputs[k]->id];
        switch (node->op->id) {
        case KN_OP_MATMUL:
            *mark = !m->transpose_a && has_rows(p, node->inputs[0]);
            break;
        case KN_OP_ATTENTION_BACKWARD: /* dq, dk, dv as q, k, v */
            *mark = (char)has_rows(p, node->inputs[k]);
            break;
        case KN_OP_LAYER_NORM_BACKWARD:
        case KN_OP_RMS_NORM_BACKWARD:
        case KN_OP_MODULATE_BACKWARD:
        case KN_OP_GATED_RESIDUAL_BACKWARD:
            *mark = k == 0 && has_rows(p, node->inputs[0]);
            break;
        case KN_OP_ATTENTION: /* log-sum-exps have a column for each token */
            *mark = k == 0 && has_rows(p, node->inputs[0]);
            break;
        case KN_OP_UNGROUP_COLUMNS:
            *mark = 1; /* what ulysses gives back */
            break;
        case KN_OP_GROUP_COLUMNS:
        case KN_OP_COLLECTIVE_START:
        case KN_OP_COLLECTIVE_WAIT:
        case KN_OP_SUM_ROWS:
        case KN_OP_MASKED_MSE:
        case KN_OP_SCATTER_ROWS:
            break;
        default:
            *mark = (char)has_rows(p, node->inputs[0]);
        }
    }
}

/* --- Sums over tokens, chunk by chunk ----------------------------------------------------------------------------- */

/* Does output k of the node sum over tokens? */
static int is_sum(const Pass *p, const KnNode *node, int k)
{
    const KnMatmulAttributes *m = (const KnMatmulAttributes *)node->attributes;
    const KnAttentionAttributes *a = (const KnAttentionAttributes *)node->attributes;
    switch (node->op->id) {
    case KN_OP_MATMUL:
        return m->transpose_a && has_rows(p, node->inputs[1]);
    case KN_OP_SUM_ROWS:
    case KN_OP_MASKED_MSE:
        return has_rows(p, node->inputs[0]);
    case KN_OP_LAYER_NORM_BACKWARD:
    case KN_OP_RMS_NORM_BACKWARD:
    case KN_OP_MODULATE_BACKWARD:
    case KN_OP_GATED_RESIDUAL_BACKWARD:
        return k > 0 && has_rows(p, node->inputs[0]);
    case KN_OP_ATTENTION_BACKWARD: /* of text, over the queries; self-attention is a ring's */
        return k > 0 && !a->ring && has_rows(p, node->inputs[0]) && !has_rows(p, node->inputs[k]);
    default:
        return 0;
    }
}

static int sums_tokens(const Pass *p, const KnNode *node)
{
    for (int k = 0; k < node->output_count; k++)
        if (is_sum(p, node, k))
            return 1;
    return 0;
}

/* The chunk's rows of an operand that has rows; others whole. */
static KnTensor *chunk_of(Pass *p, const KnNode *node, KnTensor *x, int input, KnRows rows)
{
    int attention = node->op->id == KN_OP_ATTENTION_BACKWARD;
    if (!x)
        return NULL;
    if (attention && input == 3)
        return kn_span_window(p->graph, x, rows.first, rows.count, 0, INT32_MAX);
    if (attention && input == 5)
        return kn_slice(p->graph, x, 1, rows.first, rows.count);
    if (!has_rows(p, x))
        return x;
    int64_t width = x->dims > 1 ? x->shape[1] : 1;
    return kn_view(p->graph, x, rows.first * width, x->dims, (int64_t[]){rows.count, width});
}

static KnNode *emit_chunk(Pass *p, const KnNode *node, KnRows rows)
{
    KnTensor *inputs[KN_MAX_INPUTS];
    for (int k = 0; k < node->input_count; k++)
        inputs[k] = chunk_of(p, node, node->inputs[k], k, rows);
    KnNode *made = kn_node_append(p->graph, node->op, node->attributes, KN_ATTRIBUTE_BYTES, inputs, node->input_count);
    if (node->op->id == KN_OP_MATMUL)
        ((KnMatmulAttributes *)made->attributes)->k = rows.count;
    for (int k = 0; k < node->output_count; k++) {
        const KnTensor *output = node->outputs[k];
        int64_t shape[KN_MAX_DIMS];
        memcpy(shape, output->shape, sizeof shape);
        if (!is_sum(p, node, k))
            shape[0] = rows.count;
        kn_node_output(p->graph, made, output->dtype, output->dims, shape);
    }
    return made;
}

static void cut_node(Pass *p, const KnNode *node)
{
    Parts *parts[KN_MAX_OUTPUTS] = {0};
    KnTensor *joined[KN_MAX_OUTPUTS] = {0};
    p->graph->block = node->block;
    p->graph->in_backward = node->backward;
    for (int k = 0; k < node->output_count; k++)
        if (is_sum(p, node, k))
            parts[k] = kn_arena_alloc(p->graph->arena, sizeof *parts[k]);
    for (int64_t c = 0; c < p->chunks.count; c++) {
        KnNode *made = emit_chunk(p, node, rows_of_chunk(p, c));
        for (int k = 0; k < node->output_count; k++) {
            KnTensor *output = made->outputs[k];
            if (parts[k])
                parts[k]->chunks[c] = output;
            else
                joined[k] = joined[k] ? kn_concatenate(p->graph, joined[k], output, 0) : output;
        }
    }
    make_room(p);
    for (int k = 0; k < node->output_count; k++) {
        p->parts[node->outputs[k]->id] = parts[k];
        p->replaced[node->outputs[k]->id] = joined[k];
        if (joined[k])
            p->rows[joined[k]->id] = 1;
    }
    p->graph->block = -1;
    p->graph->in_backward = 0;
}

/* The chunks of all ranks of the sequence in their order, added: the same on each of them. */
static KnTensor *whole_sum(Pass *p, const KnTensor *tensor)
{
    const Parts *parts = p->parts[tensor->id];
    const KnMesh *mesh = p->sharding->mesh;
    int ranks = kn_mesh_group_size(mesh, KN_GROUP_SEQUENCE), rank = kn_mesh_group_rank(mesh, KN_GROUP_SEQUENCE);
    int64_t elements = kn_tensor_elements(tensor), offsets[KN_INVARIANT_CHUNKS + 1];
    KnTensor *rows = NULL;
    for (int64_t c = 0; c < p->chunks.count; c++) {
        KnTensor *row = kn_view(p->graph, parts->chunks[c], 0, 2, (int64_t[]){1, elements});
        rows = rows ? kn_concatenate(p->graph, rows, row, 0) : row;
    }
    for (int i = 0; i <= ranks; i++)
        offsets[i] = kn_cut(KN_INVARIANT_CHUNKS, ranks, i) * elements;
    KnCollective *c =
        kn_collective_create(p->graph, KN_ALL_GATHER, KN_GROUP_SEQUENCE, ranks, rank, "sum over tokens", offsets, NULL);
    KnTensor *all = kn_collective(p->graph, c, rows, 2, (int64_t[]){KN_INVARIANT_CHUNKS, elements});
    return kn_view(p->graph, kn_sum_rows(p->graph, all), 0, tensor->dims, tensor->shape);
}

/* What a node goes on with is whole. */
static void complete_inputs(Pass *p, KnNode *node)
{
    for (int k = 0; k < node->input_count; k++) {
        KnTensor *input = node->inputs[k];
        if (!input || input->id >= p->count)
            continue;
        if (p->parts[input->id] && !p->replaced[input->id]) {
            p->graph->in_backward = node->backward;
            KnTensor *sum = whole_sum(p, input);
            p->graph->in_backward = 0;
            make_room(p);
            p->replaced[input->id] = sum;
        }
        if (p->replaced[input->id])
            kn_node_set_input(node, k, p->replaced[input->id]);
    }
}

/* --- Parameters --------------------------------------------------------------------------------------------------- */

static void add_chunk(Pass *p, const KnParameter *parameter, int64_t chunk, KnTensor *gradient)
{
    KnTensor *parts = p->plan->parts[parameter->block];
    int64_t first = chunk * p->set->block_elements[parameter->block] + parameter->offset;
    kn_accumulate(p->graph, kn_view(p->graph, parts, first, gradient->dims, gradient->shape), gradient);
}

/* All chunks of all packs, in order, added; the range of this rank is kept. */
static void sum_block(Pass *p, int block)
{
    const KnMesh *mesh = p->sharding->mesh;
    const KnZero *zero = p->options->zero;
    int ranks = kn_mesh_group_size(mesh, KN_GROUP_SUM), sequence = kn_mesh_group_size(mesh, KN_GROUP_SEQUENCE);
    int64_t elements = p->set->block_elements[block], packs = p->plan->all[block]->shape[0] / p->chunks.count;
    int64_t rows = kn_tensor_elements(p->plan->order), *offsets = kn_alloc((size_t)(ranks + 1) * sizeof *offsets);
    char name[48];
    snprintf(name, sizeof name, "gradients of block %d", block);
    for (int i = 0; i < ranks; i++) {
        int part = i % sequence;
        int64_t chunks = kn_cut(KN_INVARIANT_CHUNKS, sequence, part + 1) - kn_cut(KN_INVARIANT_CHUNKS, sequence, part);
        offsets[i + 1] = offsets[i] + packs * chunks * elements;
    }
    KnCollective *c = kn_collective_create(p->graph, KN_ALL_GATHER, KN_GROUP_SUM, ranks,
                                           kn_mesh_group_rank(mesh, KN_GROUP_SUM), name, offsets, NULL);
    free(offsets);
    KnTensor *all = kn_collective(p->graph, c, p->plan->all[block], 2, (int64_t[]){rows, elements});
    KnTensor *sum = kn_sum_rows(p->graph, kn_gather_rows(p->graph, all, p->plan->order));
    kn_accumulate(p->graph, p->plan->norm2, kn_sum_of_squares(p->graph, &sum, 1));
    const int64_t *cuts = kn_zero_cuts(zero, block);
    int64_t first = zero->stage ? cuts[zero->rank] : 0, end = zero->stage ? cuts[zero->rank + 1] : elements;
    kn_accumulate(p->graph, p->plan->sums[block], kn_view(p->graph, sum, first, 1, (int64_t[]){end - first}));
}

static void add_gradient(Pass *p, int index)
{
    const KnParameter *parameter = &p->set->list[index];
    const KnTensor *gradient = p->gradients[index];
    const Parts *parts = p->parts[gradient->id];
    for (int64_t c = 0; parts && c < p->chunks.count; c++)
        add_chunk(p, parameter, c, parts->chunks[c]);
    if (!parts && p->chunks.first == 0 && p->chunks.count > 0) /* the same on all ranks: counted once */
        add_chunk(p, parameter, 0, p->replaced[gradient->id] ? p->replaced[gradient->id] : p->gradients[index]);
    if (--p->missing[parameter->block] == 0 && p->options->reduce)
        sum_block(p, parameter->block);
}

static void make_leaves(Pass *p, int64_t packs_here)
{
    KnInvariantPlan *plan = p->plan;
    size_t blocks = (size_t)p->set->block_count;
    const KnZero *zero = p->options->zero;
    int64_t replicas = kn_mesh_replicas(p->sharding->mesh), rows = packs_here * replicas * KN_INVARIANT_CHUNKS;
    char name[64];
    plan->parts = kn_alloc(blocks * sizeof *plan->parts);
    plan->all = kn_alloc(blocks * sizeof *plan->all);
    plan->sums = kn_alloc(blocks * sizeof *plan->sums);
    for (int b = 0; b < p->set->block_count; b++) {
        int64_t elements = p->set->block_elements[b];
        snprintf(name, sizeof name, "gradient.parts.%d", b);
        plan->parts[b] = kn_leaf(p->graph, KN_ROLE_STATE, KN_F32, 2, (int64_t[]){p->chunks.count, elements}, name);
        if (!p->options->reduce)
            continue;
        const int64_t *cuts = kn_zero_cuts(zero, b);
        int64_t held = zero->stage ? cuts[zero->rank + 1] - cuts[zero->rank] : elements;
        snprintf(name, sizeof name, "gradient.all.%d", b);
        plan->all[b] =
            kn_leaf(p->graph, KN_ROLE_STATE, KN_F32, 2, (int64_t[]){packs_here * p->chunks.count, elements}, name);
        snprintf(name, sizeof name, "gradient.sum.%d", b);
        plan->sums[b] = kn_leaf(p->graph, KN_ROLE_STATE, KN_F32, 1, &held, name);
    }
    if (p->options->reduce) {
        plan->order = kn_leaf(p->graph, KN_ROLE_INPUT, KN_I32, 1, &rows, "gradient.order");
        plan->norm2 = kn_leaf(p->graph, KN_ROLE_STATE, KN_F32, 0, NULL, "gradient.norm2");
    }
}

/* --- The walk ----------------------------------------------------------------------------------------------------- */

static void place_node(Pass *p, KnNode *node)
{
    complete_inputs(p, node);
    mark_outputs(p, node);
    if (sums_tokens(p, node))
        cut_node(p, node);
    else
        kn_graph_put_node(p->graph, node);
    p->graph->in_backward = 1;
    for (int i = 0; node->backward && i < p->set->count; i++)
        for (int k = 0; k < node->output_count; k++)
            if (p->gradients[i] && p->gradients[i] == node->outputs[k])
                add_gradient(p, i);
    p->graph->in_backward = 0;
}

static void differentiate(Pass *p, KnTensor *loss)
{
    KnTensor **leaves = kn_alloc((size_t)p->set->count * sizeof *leaves);
    KnTensor **gradients = kn_alloc((size_t)p->set->count * sizeof *gradients);
    int *index = kn_alloc((size_t)p->set->count * sizeof *index), count = 0;
    for (int i = 0; i < p->set->count; i++) {
        KnTensor *leaf = kn_leaf_find(p->graph, p->set->list[i].name);
        if (!leaf)
            continue;
        leaves[count] = leaf;
        index[count++] = i;
    }
    kn_gradient(p->graph, loss, leaves, count, gradients, kn_add);
    for (int i = 0; i < count; i++) {
        p->gradients[index[i]] = gradients[i];
        p->missing[p->set->list[index[i]].block] += gradients[i] != NULL;
    }
    free(leaves);
    free(gradients);
    free(index);
}

/* All nodes once more; the loss becomes the pack's. */
static void walk(Pass *p, KnTensor **loss)
{
    KnNodeList old;
    make_room(p);
    mark_leaves(p);
    kn_graph_take_nodes(p->graph, &old);
    for (int i = 0; i < old.count; i++)
        place_node(p, old.nodes[i]);
    *loss = whole_sum(p, *loss);
    free(old.nodes);
    free(p->rows);
    free(p->parts);
    free(p->replaced);
    free(p->gradients);
    free(p->missing);
}

static Pass begin(KnGraph *graph, const KnSharding *sharding, const KnGradientOptions *options, KnInvariantPlan *plan)
{
    const KnParameterSet *set = options->zero->set;
    return (Pass){.graph = graph,
                  .sharding = sharding,
                  .options = options,
                  .set = set,
                  .plan = plan,
                  .tokens = kn_sharded_tokens(sharding),
                  .chunks = kn_invariant_chunks(sharding),
                  .gradients = kn_alloc((size_t)set->count * sizeof(KnTensor *)),
                  .missing = kn_alloc((size_t)set->block_count * sizeof(int))};
}

void kn_place_gradients_invariant(KnGraph *graph, KnTensor **loss, const KnSharding *sharding,
                                  const KnGradientOptions *options, int64_t packs_here, KnInvariantPlan *plan)
{
    Pass p = begin(graph, sharding, options, plan);
    *plan = (KnInvariantPlan){0};
    differentiate(&p, *loss);
    make_leaves(&p, packs_here);
    walk(&p, loss);
}

void kn_place_loss_invariant(KnGraph *graph, KnTensor **loss, const KnSharding *sharding, const KnZero *zero)
{
    Pass p = begin(graph, sharding, &(KnGradientOptions){.zero = zero}, NULL);
    walk(&p, loss);
}

void kn_invariant_plan_clear(KnInvariantPlan *plan)
{
    free(plan->parts);
    free(plan->all);
    free(plan->sums);
    *plan = (KnInvariantPlan){0};
}

void kn_invariant_order(const KnSharding *sharding, int64_t packs_here, int32_t *order)
{
    int replicas = kn_mesh_replicas(sharding->mesh), sequence = kn_mesh_group_size(sharding->mesh, KN_GROUP_SEQUENCE);
    for (int64_t pack = 0; pack < packs_here * replicas; pack++) {
        int64_t replica = pack % replicas, row = replica * packs_here * KN_INVARIANT_CHUNKS;
        for (int part = 0; part < sequence; part++) {
            int64_t first = kn_cut(KN_INVARIANT_CHUNKS, sequence, part);
            int64_t count = kn_cut(KN_INVARIANT_CHUNKS, sequence, part + 1) - first;
            for (int64_t c = 0; c < count; c++)
                *order++ = (int32_t)(row + pack / replicas * count + c);
            row += packs_here * count;
        }
    }
}
