/* The pass behind kn_shard_forward: one walk over the forward nodes that changes shapes where rows or columns are cut
 * and puts collectives around attention and between a block's matrices. */
#include "dist/sharding.h"

#include "core/base/error.h"
#include "core/graph/edit.h"
#include "core/ops/ops.h"
#include "dist/split.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What a tensor's rows stand for. */
typedef enum RowKind { ROWS_OTHER, ROWS_TOKENS, ROWS_TEXT } RowKind;

typedef struct Pass {
    const KnSharding *sharding;
    const KnMesh *mesh;
    KnGraph *graph;
    int count;              /* tensors that the arrays have room for */
    unsigned char *rows;    /* RowKind, by tensor id */
    unsigned char *columns; /* 1: columns cut over the tensor group */
    KnTensor **replaced;    /* by tensor id: what stands in its place from now on */
    KnTensor **replicated;  /* by tensor id: its kn_replicate */
    KnTensor **windows[2];  /* by span leaf id: cut to this rank's queries; [1]: queries and keys of text */
} Pass;

static int axis_size(const Pass *p, KnAxis axis)
{
    return p->mesh->sizes[axis];
}

static int axis_rank(const Pass *p, KnAxis axis)
{
    return p->mesh->coordinates[axis];
}

static int sequence_size(const Pass *p)
{
    return kn_mesh_group_size(p->mesh, KN_GROUP_SEQUENCE);
}

int64_t kn_token_cut(const KnSharding *sharding, int part)
{
    int parts = kn_mesh_group_size(sharding->mesh, KN_GROUP_SEQUENCE);
    if (sharding->invariant)
        return kn_cut(sharding->shape.tokens, KN_INVARIANT_CHUNKS, kn_cut(KN_INVARIANT_CHUNKS, parts, part));
    return kn_cut(sharding->shape.tokens, parts, part);
}

static KnRows cut_rows(const KnMesh *mesh, int64_t total)
{
    int parts = kn_mesh_group_size(mesh, KN_GROUP_SEQUENCE), part = kn_mesh_group_rank(mesh, KN_GROUP_SEQUENCE);
    int64_t first = kn_cut(total, parts, part);
    return (KnRows){first, kn_cut(total, parts, part + 1) - first};
}

KnRows kn_sharded_tokens(const KnSharding *sharding)
{
    int part = kn_mesh_group_rank(sharding->mesh, KN_GROUP_SEQUENCE);
    int64_t first = kn_token_cut(sharding, part);
    return (KnRows){first, kn_token_cut(sharding, part + 1) - first};
}

KnRows kn_sharded_text(const KnSharding *sharding)
{
    if (!sharding->shard_text)
        return (KnRows){0, sharding->shape.text_tokens};
    return cut_rows(sharding->mesh, sharding->shape.text_tokens);
}

/* --- Rows --------------------------------------------------------------------------------------------------------- */

static KnRows rows_of(const Pass *p, RowKind kind)
{
    return kind == ROWS_TOKENS ? kn_sharded_tokens(p->sharding) : kn_sharded_text(p->sharding);
}

static void cut_leaf(Pass *p, KnTensor *leaf, RowKind kind)
{
    if (!leaf)
        return;
    leaf->shape[0] = rows_of(p, kind).count;
    p->rows[leaf->id] = (unsigned char)kind;
}

static void cut_leaves(Pass *p, KnModelGraph *built, KnTensor *const *extra, int extra_count)
{
    cut_leaf(p, built->leaves.positions, ROWS_TOKENS);
    cut_leaf(p, built->leaves.rows, ROWS_TOKENS);
    cut_leaf(p, built->patches, ROWS_TOKENS);
    for (int i = 0; i < extra_count; i++)
        cut_leaf(p, extra[i], ROWS_TOKENS);
    if (!p->sharding->shard_text)
        return;
    cut_leaf(p, built->leaves.text_ids, ROWS_TEXT);
    cut_leaf(p, built->leaves.text_positions, ROWS_TEXT);
    cut_leaf(p, built->text, ROWS_TEXT);
}

/* The input whose rows a node's output has. */
static const KnTensor *row_driver(const KnNode *node)
{
    return node->op->id == KN_OP_GATHER_ROWS ? node->inputs[1] : node->input_count ? node->inputs[0] : NULL;
}

/* Work that is done row by row: the node and its outputs lose rows. */
static void cut_node(Pass *p, KnNode *node)
{
    const KnTensor *driver = row_driver(node);
    RowKind kind = driver ? (RowKind)p->rows[driver->id] : ROWS_OTHER;
    if (kind == ROWS_OTHER)
        return;
    if (node->op->id == KN_OP_MATMUL)
        ((KnMatmulAttributes *)node->attributes)->m = rows_of(p, kind).count;
    for (int k = 0; k < node->output_count; k++) {
        if (node->outputs[k]->dims == 0) /* a loss: the part of these rows */
            continue;
        node->outputs[k]->shape[0] = rows_of(p, kind).count;
        p->rows[node->outputs[k]->id] = (unsigned char)kind;
    }
}

/* --- Growing arrays with the graph -------------------------------------------------------------------------------- */

static void *grown(void *array, int old, int now, size_t size)
{
    array = kn_realloc(array, (size_t)now * size);
    memset((char *)array + (size_t)old * size, 0, (size_t)(now - old) * size);
    return array;
}

static void make_room(Pass *p)
{
    int now = p->graph->tensor_count + 64, old = p->count;
    if (p->graph->tensor_count <= old)
        return;
    p->rows = grown(p->rows, old, now, 1);
    p->columns = grown(p->columns, old, now, 1);
    p->replaced = grown(p->replaced, old, now, sizeof(KnTensor *));
    p->replicated = grown(p->replicated, old, now, sizeof(KnTensor *));
    p->windows[0] = grown(p->windows[0], old, now, sizeof(KnTensor *));
    p->windows[1] = grown(p->windows[1], old, now, sizeof(KnTensor *));
    p->count = now;
}

/* A tensor made here has the rows and columns of `like`. */
static KnTensor *marked(Pass *p, KnTensor *made, const KnTensor *like)
{
    make_room(p);
    p->rows[made->id] = p->rows[like->id];
    p->columns[made->id] = p->columns[like->id];
    return made;
}

static void replace(Pass *p, const KnTensor *old, KnTensor *now)
{
    make_room(p);
    p->rows[now->id] = p->rows[old->id];
    p->columns[now->id] = p->columns[old->id];
    p->replaced[old->id] = now;
}

/* --- Tensor parallelism ------------------------------------------------------------------------------------------- */

static KnCollective *over_tensor(Pass *p, KnCollectiveKind kind, const char *name)
{
    return kn_collective_create(p->graph, kind, KN_GROUP_TENSOR, axis_size(p, KN_AXIS_TENSOR),
                                axis_rank(p, KN_AXIS_TENSOR), name, NULL, NULL);
}

static KnSplit split_of_leaf(const Pass *p, const KnTensor *leaf)
{
    const KnModel *model = p->sharding->model;
    const KnParameter *whole =
        leaf->role == KN_ROLE_PARAMETER ? kn_parameter_find(&model->parameters, leaf->name) : NULL;
    if (!whole)
        return (KnSplit){.axis = -1};
    return kn_parameter_split(&model->config, whole, axis_rank(p, KN_AXIS_TENSOR), axis_size(p, KN_AXIS_TENSOR));
}

/* All parameters at once: casts of them follow when their node comes. */
static void cut_parameters(Pass *p)
{
    for (int i = 0; i < p->graph->tensor_count; i++) {
        KnTensor *leaf = p->graph->tensors[i];
        KnSplit split = split_of_leaf(p, leaf);
        if (split.axis >= 0)
            leaf->shape[split.axis] = split.count;
    }
}

static const KnTensor *parameter_behind(const KnTensor *tensor)
{
    return tensor->producer && tensor->producer->op->id == KN_OP_CAST ? tensor->producer->inputs[0] : tensor;
}

static KnTensor *replicated(Pass *p, KnTensor *x)
{
    if (!p->replicated[x->id]) {
        KnTensor *made = kn_replicate(p->graph, over_tensor(p, KN_ALL_REDUCE, "tensor backward"), x);
        marked(p, made, x);
        p->replicated[x->id] = made;
    }
    return p->replicated[x->id];
}

/* Columns of the result are cut: the input, whole on every rank, is used differently by each. */
static void cut_columns(Pass *p, KnNode *node, const KnSplit *split)
{
    KnMatmulAttributes *m = (KnMatmulAttributes *)node->attributes;
    node->inputs[0] = replicated(p, node->inputs[0]);
    m->n = split->count;
    node->outputs[0]->shape[1] = split->count;
    p->columns[node->outputs[0]->id] = 1;
    kn_graph_put_node(p->graph, node);
}

/* The input's columns are cut: every rank has a part of the sum; the bias comes once, after it. */
static void sum_parts(Pass *p, KnNode *node, const KnSplit *split)
{
    KnMatmulAttributes *m = (KnMatmulAttributes *)node->attributes;
    KnTensor *bias = node->inputs[2], *part = node->outputs[0];
    KN_ASSERT(p->columns[node->inputs[0]->id]);
    m->k = split->count;
    node->inputs[2] = NULL;
    kn_graph_put_node(p->graph, node);
    KnTensor *sum =
        kn_collective(p->graph, over_tensor(p, KN_ALL_REDUCE_ONCE, "tensor forward"), part, part->dims, part->shape);
    marked(p, sum, part);
    replace(p, part, bias ? kn_add_row(p->graph, sum, bias) : sum);
}

static int place_tensor_matmul(Pass *p, KnNode *node)
{
    KnSplit split = split_of_leaf(p, parameter_behind(node->inputs[1]));
    if (split.axis < 0)
        return 0;
    if (split.axis == 0)
        cut_columns(p, node, &split);
    else
        sum_parts(p, node, &split);
    return 1;
}

/* The norm is over the columns of all heads: the sum of squares is the group's. */
static int place_tensor_norm(Pass *p, KnNode *node)
{
    KnTensor *x = node->inputs[0];
    if (!p->columns[x->id])
        return 0;
    const KnNormAttributes *norm = (const KnNormAttributes *)node->attributes;
    KnTensor *squares = kn_row_squares(p->graph, x);
    squares =
        kn_collective(p->graph, over_tensor(p, KN_ALL_REDUCE, "tensor norm"), squares, squares->dims, squares->shape);
    replace(p, node->outputs[0],
            kn_rms_norm_split(p->graph, x, node->inputs[1], squares, p->sharding->model->config.hidden, norm->eps));
    p->columns[p->replaced[node->outputs[0]->id]->id] = 1;
    return 1;
}

/* What is done column by column follows its input. */
static void follow_columns(Pass *p, KnNode *node)
{
    if (node->op->id == KN_OP_CAST && node->inputs[0]->role == KN_ROLE_PARAMETER)
        memcpy(node->outputs[0]->shape, node->inputs[0]->shape, sizeof node->outputs[0]->shape);
    if (!node->input_count || !node->inputs[0] || !p->columns[node->inputs[0]->id] || node->op->id == KN_OP_MATMUL)
        return;
    node->outputs[0]->shape[1] = node->inputs[0]->shape[1];
    p->columns[node->outputs[0]->id] = 1;
    if (node->op->id == KN_OP_ROPE) {
        KnRopeAttributes *rope = (KnRopeAttributes *)node->attributes;
        int64_t heads = rope->heads;
        rope->heads = kn_cut(heads, axis_size(p, KN_AXIS_TENSOR), axis_rank(p, KN_AXIS_TENSOR) + 1) -
                      kn_cut(heads, axis_size(p, KN_AXIS_TENSOR), axis_rank(p, KN_AXIS_TENSOR));
    }
}

/* --- Attention ---------------------------------------------------------------------------------------------------- */

/* Attention of one node, after its heads were cut by the tensor group. */
typedef struct Attention {
    KnTensor *q, *k, *v, *spans;
    int64_t heads, head_size;
    float scale;
    double pairs;
    int packed;
} Attention;

static KnTensor *attend(Pass *p, const Attention *a, const KnRing *ring)
{
    KnTensor *out = kn_attention(p->graph, a->q, a->k, a->v, a->spans, a->heads, a->scale);
    KnAttentionAttributes *attributes = (KnAttentionAttributes *)out->producer->attributes;
    attributes->pairs = a->pairs;
    attributes->packed = a->packed;
    attributes->ring = ring;
    return out;
}

/* An all-to-all of the ulysses group: rows of this rank and all columns, to rows of the group and this rank's heads. */
enum { MOST_ULYSSES = 256 };
typedef struct HeadExchange {
    int ranks, rank;
    int64_t columns[MOST_ULYSSES + 1];    /* cuts of the columns, by heads */
    int64_t rows[MOST_ULYSSES + 1];       /* cuts of the group's rows */
    int64_t by_columns[MOST_ULYSSES + 1]; /* offsets of this rank's rows, grouped by whose heads they are */
    int64_t by_rows[MOST_ULYSSES + 1];    /* offsets of the group's rows of this rank's heads */
} HeadExchange;

static HeadExchange plan_exchange(const Pass *p, const Attention *a)
{
    HeadExchange e = {.ranks = axis_size(p, KN_AXIS_ULYSSES), .rank = axis_rank(p, KN_AXIS_ULYSSES)};
    int first = axis_rank(p, KN_AXIS_RING) * e.ranks;
    for (int i = 0; i <= e.ranks; i++) {
        e.columns[i] = kn_cut(a->heads, e.ranks, i) * a->head_size;
        e.rows[i] = kn_token_cut(p->sharding, first + i);
    }
    int64_t rows = e.rows[e.rank + 1] - e.rows[e.rank], columns = e.columns[e.rank + 1] - e.columns[e.rank];
    for (int i = 0; i <= e.ranks; i++) {
        e.by_columns[i] = rows * e.columns[i];
        e.by_rows[i] = (e.rows[i] - e.rows[0]) * columns;
    }
    return e;
}

static KnTensor *to_heads(Pass *p, const HeadExchange *e, KnTensor *x, const char *name)
{
    KnCollective *c = kn_collective_create(p->graph, KN_ALL_TO_ALL, KN_GROUP_ULYSSES, e->ranks, e->rank, name,
                                           e->by_columns, e->by_rows);
    KnTensor *grouped = kn_group_columns(p->graph, x, e->columns, e->ranks);
    return kn_collective(p->graph, c, grouped, 2,
                         (int64_t[]){e->rows[e->ranks] - e->rows[0], e->columns[e->rank + 1] - e->columns[e->rank]});
}

static KnTensor *to_rows(Pass *p, const HeadExchange *e, KnTensor *x)
{
    KnCollective *c = kn_collective_create(p->graph, KN_ALL_TO_ALL, KN_GROUP_ULYSSES, e->ranks, e->rank, "ulysses out",
                                           e->by_rows, e->by_columns);
    KnTensor *grouped = kn_collective(p->graph, c, x, 1, &e->by_columns[e->ranks]);
    return kn_ungroup_columns(p->graph, grouped, e->rows[e->rank + 1] - e->rows[e->rank], e->columns, e->ranks);
}

static KnRing *make_ring(Pass *p)
{
    int ranks = axis_size(p, KN_AXIS_RING), ulysses = axis_size(p, KN_AXIS_ULYSSES);
    KnRing *ring = kn_arena_alloc(p->graph->arena, sizeof *ring);
    *ring = (KnRing){
        .group = KN_GROUP_RING, .ranks = ranks, .rank = axis_rank(p, KN_AXIS_RING), .gathers = p->sharding->invariant};
    ring->cuts = kn_arena_alloc(p->graph->arena, (size_t)(ranks + 1) * sizeof *ring->cuts);
    for (int i = 0; i <= ranks; i++)
        ring->cuts[i] = kn_token_cut(p->sharding, i * ulysses);
    return ring;
}

static KnTensor *self_attention(Pass *p, Attention *a)
{
    const KnRing *ring = axis_size(p, KN_AXIS_RING) > 1 || p->sharding->invariant ? make_ring(p) : NULL;
    if (axis_size(p, KN_AXIS_ULYSSES) == 1)
        return attend(p, a, ring);
    HeadExchange e = plan_exchange(p, a);
    a->v = to_heads(p, &e, a->v, "ulysses v"); /* in the order in which the model computes them */
    a->k = to_heads(p, &e, a->k, "ulysses k");
    a->q = to_heads(p, &e, a->q, "ulysses q");
    a->heads = (e.columns[e.rank + 1] - e.columns[e.rank]) / a->head_size;
    return to_rows(p, &e, attend(p, a, ring));
}

/* The span table cut to this rank's rows of queries; keys are whole. */
static KnTensor *window(Pass *p, KnTensor *spans, RowKind queries)
{
    KnTensor **made = &p->windows[queries == ROWS_TEXT][spans->id];
    if (!*made) {
        KnRows rows = rows_of(p, queries);
        KnTensor *cut = kn_span_window(p->graph, spans, rows.first, rows.count, 0, INT32_MAX);
        make_room(p);
        made = &p->windows[queries == ROWS_TEXT][spans->id];
        *made = cut;
    }
    return *made;
}

/* Rows of all ranks of the sequence. */
static KnTensor *gathered_text(Pass *p, KnTensor *x)
{
    int ranks = sequence_size(p);
    int64_t total = p->sharding->shape.text_tokens, width = x->shape[1];
    int64_t *offsets = kn_alloc((size_t)(ranks + 1) * sizeof *offsets);
    for (int i = 0; i <= ranks; i++)
        offsets[i] = kn_cut(total, ranks, i) * width;
    KnCollective *c = kn_collective_create(p->graph, KN_ALL_GATHER, KN_GROUP_SEQUENCE, ranks,
                                           kn_mesh_group_rank(p->mesh, KN_GROUP_SEQUENCE), "text", offsets, NULL);
    free(offsets);
    return kn_collective(p->graph, c, x, 2, (int64_t[]){total, width});
}

static void place_attention(Pass *p, KnNode *node)
{
    const KnAttentionAttributes *old = (const KnAttentionAttributes *)node->attributes;
    RowKind queries = (RowKind)p->rows[node->inputs[0]->id], keys = (RowKind)p->rows[node->inputs[1]->id];
    int tensor = p->columns[node->inputs[0]->id] ? axis_size(p, KN_AXIS_TENSOR) : 1;
    int rank = tensor > 1 ? axis_rank(p, KN_AXIS_TENSOR) : 0;
    Attention a = {.q = node->inputs[0],
                   .k = node->inputs[1],
                   .v = node->inputs[2],
                   .spans = node->inputs[3],
                   .heads = kn_cut(old->heads, tensor, rank + 1) - kn_cut(old->heads, tensor, rank),
                   .head_size = kn_tensor_columns(node->outputs[0]) / old->heads,
                   .scale = old->scale,
                   .pairs = old->pairs,
                   .packed = old->packed};
    KnTensor *out;
    if (queries == ROWS_TOKENS && keys == ROWS_TOKENS) {
        int ranks = axis_size(p, KN_AXIS_RING);
        a.pairs /= ranks;
        out = self_attention(p, &a);
    } else {
        if (queries != ROWS_OTHER) {
            a.spans = window(p, a.spans, queries);
            a.pairs /= sequence_size(p);
        }
        if (keys == ROWS_TEXT) {
            a.k = gathered_text(p, a.k);
            a.v = gathered_text(p, a.v);
        }
        out = attend(p, &a, NULL);
    }
    make_room(p);
    p->rows[out->id] = (unsigned char)queries;
    p->columns[out->id] = p->columns[node->inputs[0]->id];
    p->replaced[node->outputs[0]->id] = out;
}

/* --- The walk ----------------------------------------------------------------------------------------------------- */

static void place_node(Pass *p, KnNode *node)
{
    for (int k = 0; k < node->input_count; k++)
        if (node->inputs[k] && p->replaced[node->inputs[k]->id])
            kn_node_set_input(node, k, p->replaced[node->inputs[k]->id]);
    p->graph->block = node->block;
    if (node->op->id == KN_OP_ATTENTION) {
        place_attention(p, node);
        return;
    }
    cut_node(p, node);
    follow_columns(p, node);
    if (node->op->id == KN_OP_MATMUL && place_tensor_matmul(p, node))
        return;
    if (node->op->id == KN_OP_RMS_NORM && place_tensor_norm(p, node))
        return;
    kn_graph_put_node(p->graph, node);
}

void kn_shard_forward(KnModelGraph *built, const KnSharding *sharding, KnTensor *const *extra, int extra_count)
{
    Pass p = {.sharding = sharding, .mesh = sharding->mesh, .graph = built->graph};
    KnNodeList old;
    if (sequence_size(&p) == 1 && axis_size(&p, KN_AXIS_TENSOR) == 1 && !sharding->invariant)
        return;
    make_room(&p);
    if (sequence_size(&p) > 1 || sharding->invariant)
        cut_leaves(&p, built, extra, extra_count);
    cut_parameters(&p);
    kn_graph_take_nodes(built->graph, &old);
    for (int i = 0; i < old.count; i++)
        place_node(&p, old.nodes[i]);
    built->graph->block = -1;
    if (p.replaced[built->prediction->id])
        built->prediction = p.replaced[built->prediction->id];
    free(old.nodes);
    free(p.rows);
    free(p.columns);
    free(p.replaced);
    free(p.replicated);
    free(p.windows[0]);
    free(p.windows[1]);
}
