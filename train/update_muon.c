/* Muon's nodes: momentum, orthogonalization, step for the matrices of a block; AdamW for the rest.
 *
 * Only the orthogonalization needs whole matrices. Those that all tensor ranks have alike, and all where there is but
 * one such rank, are taken as stacks of one shape. Those that the tensor group has cut are taken in turns, one matrix
 * for each of its ranks: every rank makes the momentum of its parts, an all-to-all brings each of the turn's matrices
 * together on one rank, which orthogonalizes it, and another one takes the parts home for the step. So no matrix is
 * orthogonalized twice, and momentum and weights stay cut. The next turn is sent for before a rank computes, and what
 * it made is on its way while it computes the next.
 *
 * Turns follow from the whole model's list of parameters and the cuts of its whole (dist/zero.h), so that all tensor
 * ranks form the same ones. */
#include "train/update_builder.h"

#include "core/base/error.h"

#include <stdlib.h>

/* One matrix for each tensor rank, from the last in the list of parameters on: the largest first, so that those of a
 * turn are alike. The last turn may have fewer. */
typedef struct Turn {
    int first, count;         /* parameters first, first - 1 ... are of ranks 0, 1 ... */
    int64_t *parts, *sources; /* [ranks + 1], elements: my parts of the matrices; the ranks' parts of my matrix */
    KnTensor *values;         /* what arrived last */
} Turn;

typedef struct Muon {
    KnUpdateBuilder *builder;
    KnGraph *graph;
    const KnParameter *whole, *part; /* the lists */
    int ranks, rank;                 /* of the tensor group */
} Muon;

static KnSplit split_of(const Muon *m, int parameter, int rank)
{
    return kn_parameter_split(&m->builder->layout->model->config, &m->whole[parameter], rank, m->ranks);
}

static int is_cut(const Muon *m, int parameter)
{
    return split_of(m, parameter, m->rank).axis >= 0;
}

static KnUpdateRange range_of(const KnParameter *p)
{
    return (KnUpdateRange){p->block, p->offset, p->elements};
}

static void add_momentum(const Muon *m, KnTensor *u, KnUpdateRange range)
{
    KnUpdateBuilder *b = m->builder;
    kn_momentum(m->graph, u, kn_update_leaf(b, KN_UPDATE_GRADIENTS, range), kn_update_leaf(b, KN_UPDATE_MOMENT1, range),
                b->update->hyper, b->update->norm2, &b->attributes);
}

static void descend(const Muon *m, KnTensor *direction, KnUpdateRange range)
{
    KnUpdateBuilder *b = m->builder;
    kn_descend(m->graph, kn_update_leaf(b, KN_UPDATE_WEIGHTS, range), direction, b->update->hyper, b->update->norm2,
               &b->attributes);
}

/* --- Whole matrices ----------------------------------------------------------------------------------------------- */

/* Matrices of one shape that touch, from the first of `count` on; returns how many. */
static int update_stack(const Muon *m, int first, int count)
{
    const KnParameter *p = &m->part[first];
    int stacked = 1;
    while (stacked < count && p[stacked].shape[0] == p->shape[0] && p[stacked].shape[1] == p->shape[1] &&
           p[stacked].offset == p->offset + stacked * p->elements && !is_cut(m, first + stacked))
        stacked++;
    KnUpdateRange range = {p->block, p->offset, stacked * p->elements};
    KnTensor *u = kn_zeros(m->graph, KN_F32, 3, (int64_t[]){stacked, p->shape[0], p->shape[1]});
    add_momentum(m, u, range);
    kn_orthogonalize(m->graph, u, &m->builder->attributes);
    descend(m, u, range);
    return stacked;
}

/* --- Matrices that are cut ---------------------------------------------------------------------------------------- */

/* Elements that rank `source` has of my matrix. */
static int64_t arriving_from(const Muon *m, const Turn *turn, int source)
{
    if (m->rank >= turn->count)
        return 0;
    const KnParameter *mine = &m->whole[turn->first - m->rank];
    KnSplit split = split_of(m, turn->first - m->rank, source);
    return mine->elements / mine->shape[split.axis] * split.count;
}

static void open_turn(const Muon *m, Turn *turn)
{
    size_t bytes = (size_t)(m->ranks + 1) * sizeof(int64_t);
    turn->parts = kn_alloc(bytes);
    turn->sources = kn_alloc(bytes);
    turn->parts[0] = turn->sources[0] = 0;
    for (int r = 0; r < m->ranks; r++) {
        turn->parts[r + 1] = turn->parts[r] + (r < turn->count ? m->part[turn->first - r].elements : 0);
        turn->sources[r + 1] = turn->sources[r] + arriving_from(m, turn, r);
    }
}

static void close_turn(Turn *turn)
{
    free(turn->parts);
    free(turn->sources);
}

static KnTensor *exchange(const Muon *m, KnTensor *x, const char *name, const int64_t *out, const int64_t *in)
{
    KnCollective *c = kn_collective_create(m->graph, KN_ALL_TO_ALL, KN_GROUP_TENSOR, m->ranks, m->rank, name, out, in);
    return kn_collective(m->graph, c, x, 1, &in[m->ranks]);
}

static KnTensor *part_of_turn(const Muon *m, KnTensor *parts, const Turn *turn, int index)
{
    return kn_view(m->graph, parts, turn->parts[index], 1, &m->part[turn->first - index].elements);
}

static void send_parts(const Muon *m, Turn *turn)
{
    open_turn(m, turn);
    KnTensor *u = kn_zeros(m->graph, KN_F32, 1, &turn->parts[m->ranks]);
    for (int i = 0; i < turn->count; i++)
        add_momentum(m, part_of_turn(m, u, turn, i), range_of(&m->part[turn->first - i]));
    turn->values = exchange(m, u, "muon momentum", turn->parts, turn->sources);
}

/* Parts cut by rows make up the matrix as they arrive, parts cut by columns are brought together. */
static KnTensor *orthogonalized(const Muon *m, KnTensor *arrived, int parameter)
{
    const int64_t *shape = m->whole[parameter].shape, stack[3] = {1, shape[0], shape[1]};
    KnTensor *matrix = arrived;
    int64_t *columns = NULL;
    if (split_of(m, parameter, m->rank).axis == 1) {
        columns = kn_alloc((size_t)(m->ranks + 1) * sizeof *columns);
        columns[m->ranks] = shape[1];
        for (int r = 0; r < m->ranks; r++)
            columns[r] = split_of(m, parameter, r).first;
        matrix = kn_ungroup_columns(m->graph, arrived, shape[0], columns, m->ranks);
    }
    kn_orthogonalize(m->graph, kn_view(m->graph, matrix, 0, 3, stack), &m->builder->attributes);
    if (columns)
        matrix = kn_group_columns(m->graph, matrix, columns, m->ranks);
    free(columns);
    return matrix;
}

static void send_home(const Muon *m, Turn *turn)
{
    KnTensor *made = turn->values;
    if (m->rank < turn->count)
        made = orthogonalized(m, made, turn->first - m->rank);
    turn->values = exchange(m, made, "muon step", turn->sources, turn->parts);
}

static void descend_parts(const Muon *m, Turn *turn)
{
    for (int i = 0; i < turn->count; i++)
        descend(m, part_of_turn(m, turn->values, turn, i), range_of(&m->part[turn->first - i]));
    close_turn(turn);
}

static void update_cut(const Muon *m, int last, int count)
{
    int turns = (count + m->ranks - 1) / m->ranks;
    Turn *list = kn_alloc((size_t)turns * sizeof *list);
    for (int i = 0; i < turns; i++) {
        int begun = i * m->ranks, left = count - begun;
        list[i] = (Turn){.first = last - begun, .count = left < m->ranks ? left : m->ranks};
    }
    for (int i = 0; i < turns + 2; i++) {
        if (i < turns)
            send_parts(m, &list[i]);
        if (i >= 1 && i <= turns)
            send_home(m, &list[i - 1]);
        if (i >= 2)
            descend_parts(m, &list[i - 2]);
    }
    free(list);
}

/* --- A block ------------------------------------------------------------------------------------------------------ */

/* The matrices that lie in the range, which come first in each block: *first, returns how many. */
static int find_matrices(const KnParameterSet *set, KnUpdateRange range, int *first)
{
    int count = 0;
    for (int i = 0; i < set->count; i++) {
        const KnParameter *p = &set->list[i];
        if (p->block != range.block || !p->matrix || p->elements == 0 || p->offset < range.offset ||
            p->offset >= range.offset + range.count)
            continue;
        if (!count++)
            *first = i;
    }
    return count;
}

void kn_update_muon(KnUpdateBuilder *builder, KnUpdateRange owned)
{
    const KnLayout *layout = builder->layout;
    Muon m = {.builder = builder,
              .graph = builder->update->graph,
              .whole = layout->model->parameters.list,
              .part = layout->part.list,
              .ranks = kn_mesh_group_size(&layout->mesh, KN_GROUP_TENSOR),
              .rank = kn_mesh_group_rank(&layout->mesh, KN_GROUP_TENSOR)};
    int at = 0, count = find_matrices(&layout->part, owned, &at), last = at + count;
    int64_t end = owned.offset + owned.count;
    while (at < last) {
        int cut = 0;
        while (at + cut < last && is_cut(&m, at + cut))
            cut++;
        if (cut)
            update_cut(&m, at + cut - 1, cut);
        at += cut ? cut : update_stack(&m, at, last - at);
    }
    int64_t rest = count ? m.part[last - 1].offset + m.part[last - 1].elements : owned.offset;
    KN_ASSERT(rest <= end);
    if (rest < end)
        kn_update_adamw(builder, (KnUpdateRange){owned.block, rest, end - rest});
}
