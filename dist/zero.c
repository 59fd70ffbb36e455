/* Cutting blocks among ranks. */
#include "dist/zero.h"

#include "core/base/error.h"
#include "dist/split.h"

#include <stdlib.h>
#include <string.h>

/* --- Cuts --------------------------------------------------------------------------------------------------------- */

/* The place in a block nearest to element `wish` of the whole where it may be cut: between rows of a parameter, or
 * between parameters where matrices stay whole. In elements of the part. */
static int64_t nearest_cut(const KnParameterSet *whole, const KnParameterSet *part, int block, int64_t wish,
                           int whole_matrices)
{
    for (int i = 0; i < whole->count; i++) {
        const KnParameter *p = &whole->list[i], *mine = &part->list[i];
        int64_t end = p->offset + p->elements;
        if (p->block != block || wish >= end || p->elements == 0)
            continue;
        if (wish <= p->offset)
            return mine->offset;
        int64_t rows = p->shape[0], step = whole_matrices && p->matrix ? rows : 1;
        int64_t elements = p->elements / rows * step;
        int64_t row = (wish - p->offset + elements / 2) / elements * step;
        return mine->offset + kn_cut(mine->shape[0], rows, row) * (mine->elements / mine->shape[0]);
    }
    return part->block_elements[block];
}

void kn_zero_create(KnZero *zero, const KnParameterSet *whole, const KnParameterSet *part, const KnMesh *mesh,
                    int stage, int whole_matrices)
{
    int ranks = kn_mesh_group_size(mesh, KN_GROUP_ZERO);
    *zero = (KnZero){.set = part,
                     .stage = ranks > 1 ? stage : 0,
                     .ranks = ranks,
                     .rank = kn_mesh_group_rank(mesh, KN_GROUP_ZERO),
                     .cuts = kn_alloc((size_t)part->block_count * (size_t)(ranks + 1) * sizeof(int64_t))};
    for (int b = 0; b < part->block_count; b++) {
        int64_t *cuts = zero->cuts + (int64_t)b * (ranks + 1);
        for (int r = 1; r < ranks; r++) {
            cuts[r] = nearest_cut(whole, part, b, whole->block_elements[b] * r / ranks, whole_matrices);
            if (cuts[r] < cuts[r - 1])
                cuts[r] = cuts[r - 1];
        }
        cuts[ranks] = part->block_elements[b];
    }
}

void kn_zero_destroy(KnZero *zero)
{
    free(zero->cuts);
    *zero = (KnZero){0};
}

const int64_t *kn_zero_cuts(const KnZero *zero, int block)
{
    return zero->cuts + (int64_t)block * (zero->ranks + 1);
}

/* --- Buffers ------------------------------------------------------------------------------------------------------ */

static void find_range(const KnZero *zero, int from_stage, int block, int64_t *first, int64_t *count)
{
    const int64_t *cuts = kn_zero_cuts(zero, block);
    int cut = zero->stage >= from_stage && zero->stage > 0;
    *first = cut ? cuts[zero->rank] : 0;
    *count = cut ? cuts[zero->rank + 1] - *first : zero->set->block_elements[block];
}

size_t kn_zero_bytes(const KnZero *zero, int from_stage)
{
    size_t bytes = 0;
    int64_t first, count;
    for (int b = 0; b < zero->set->block_count; b++) {
        find_range(zero, from_stage, b, &first, &count);
        bytes += (size_t)count * sizeof(float);
    }
    return bytes;
}

int kn_zero_values(const KnZero *zero, int from_stage, KnParameterValues *values, const char *what)
{
    size_t blocks = (size_t)zero->set->block_count;
    int64_t *first = kn_alloc(blocks * sizeof *first), *count = kn_alloc(blocks * sizeof *count);
    for (int b = 0; b < zero->set->block_count; b++)
        find_range(zero, from_stage, b, &first[b], &count[b]);
    int code = kn_parameter_values_create_part(values, zero->set, first, count, what);
    free(first);
    free(count);
    return code;
}

float *kn_zero_part(const KnParameterValues *values, const KnParameter *p, int64_t *first, int64_t *count)
{
    int64_t held = values->first[p->block], end = held + values->count[p->block];
    int64_t from = p->offset > held ? p->offset : held;
    int64_t to = p->offset + p->elements < end ? p->offset + p->elements : end;
    *count = to > from ? to - from : 0;
    *first = *count ? from - p->offset : 0;
    return *count ? values->blocks[p->block] + (from - held) : NULL;
}
