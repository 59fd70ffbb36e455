/* The parameter set, its order in block buffers, and initial values. */
#include "core/model/parameters.h"

#include "core/base/error.h"
#include "core/base/random.h"
#include "core/graph/twin.h"

#include <stdlib.h>
#include <string.h>

enum { OFFSET_ALIGNMENT = 16 }; /* elements: 64 bytes */

void kn_parameter_set_clear(KnParameterSet *set)
{
    for (int i = 0; i < set->count; i++)
        free(set->list[i].name);
    free(set->list);
    free(set->block_elements);
    *set = (KnParameterSet){0};
}

KnParameter *kn_parameter_add(KnParameterSet *set, int block, const char *name, int dims, const int64_t *shape)
{
    KN_ASSERT(block <= set->block_count && dims > 0 && dims <= KN_MAX_DIMS);
    KN_RESERVE(set->list, set->count, set->capacity);
    KnParameter *parameter = &set->list[set->count++];
    *parameter = (KnParameter){.name = kn_strdup(name), .dims = dims, .block = block, .elements = 1};
    for (int i = 0; i < dims; i++) {
        parameter->shape[i] = shape[i];
        parameter->elements *= shape[i];
    }
    if (block == set->block_count)
        set->block_count++;
    return parameter;
}

/* Insertion sort: stable, and sets are short. */
static int comes_before(const KnParameter *a, const KnParameter *b)
{
    if (a->block != b->block)
        return a->block < b->block;
    if (a->matrix != b->matrix)
        return a->matrix > b->matrix;
    if (!a->matrix)
        return 0;
    for (int i = 0; i < 2; i++)
        if (a->shape[i] != b->shape[i])
            return a->shape[i] < b->shape[i];
    return 0;
}

static void sort_parameters(KnParameterSet *set)
{
    for (int i = 1; i < set->count; i++) {
        KnParameter moved = set->list[i];
        int at = i;
        for (; at > 0 && comes_before(&moved, &set->list[at - 1]); at--)
            set->list[at] = set->list[at - 1];
        set->list[at] = moved;
    }
}

void kn_parameter_set_finish(KnParameterSet *set)
{
    sort_parameters(set);
    kn_parameter_set_finish_parts(set);
}

void kn_parameter_set_finish_parts(KnParameterSet *set)
{
    KN_ASSERT(!set->block_elements);
    set->block_elements = kn_alloc((size_t)set->block_count * sizeof *set->block_elements);
    for (int i = 0; i < set->count; i++) {
        KnParameter *parameter = &set->list[i];
        int64_t *used = &set->block_elements[parameter->block];
        parameter->offset = *used;
        *used += (parameter->elements + OFFSET_ALIGNMENT - 1) / OFFSET_ALIGNMENT * OFFSET_ALIGNMENT;
    }
}

const KnParameter *kn_parameter_find(const KnParameterSet *set, const char *name)
{
    for (int i = 0; i < set->count; i++)
        if (!strcmp(set->list[i].name, name))
            return &set->list[i];
    return NULL;
}

int64_t kn_parameter_count(const KnParameterSet *set)
{
    int64_t total = 0;
    for (int i = 0; i < set->count; i++)
        total += set->list[i].elements;
    return total;
}

KnTensor *kn_parameter_leaf(KnGraph *graph, const KnParameterSet *set, const char *name)
{
    KnTensor *leaf = kn_leaf_find(graph, name);
    if (leaf)
        return leaf;
    const KnParameter *parameter = kn_parameter_find(set, name);
    KN_ASSERT(parameter);
    int dims = parameter->dims;
    int64_t last = parameter->shape[dims - 1];
    int64_t columns = dims == KN_MAX_DIMS ? parameter->elements / parameter->shape[0] : last;
    int64_t shape[2] = {parameter->elements / columns, columns};
    leaf = kn_leaf(graph, KN_ROLE_PARAMETER, KN_F32, dims == 1 ? 1 : 2, dims == 1 ? &last : shape, name);
    leaf->block = parameter->block;
    return leaf;
}

size_t kn_parameter_values_bytes(const KnParameterSet *set)
{
    size_t bytes = 0;
    for (int i = 0; i < set->block_count; i++)
        bytes += (size_t)set->block_elements[i] * sizeof(float);
    return bytes;
}

int kn_parameter_values_create_part(KnParameterValues *values, const KnParameterSet *set, const int64_t *first,
                                    const int64_t *count, const char *what)
{
    size_t blocks = (size_t)set->block_count, bytes = 0;
    *values = (KnParameterValues){0};
    for (size_t i = 0; i < blocks; i++)
        bytes += (size_t)count[i] * sizeof(float);
    KN_TRY(kn_memory_check(bytes, what));
    *values = (KnParameterValues){.set = set,
                                  .blocks = kn_alloc(blocks * sizeof(float *)),
                                  .first = kn_alloc(blocks * sizeof(int64_t)),
                                  .count = kn_alloc(blocks * sizeof(int64_t))};
    for (size_t i = 0; i < blocks; i++) {
        void *memory = NULL;
        int code = kn_alloc_large(&memory, (size_t)count[i] * sizeof(float), what);
        if (code < 0) {
            kn_parameter_values_clear(values);
            return code;
        }
        values->blocks[i] = memory;
        values->first[i] = first[i];
        values->count[i] = count[i];
    }
    return KN_OK;
}

int kn_parameter_values_create(KnParameterValues *values, const KnParameterSet *set, const char *what)
{
    int64_t *first = kn_alloc((size_t)set->block_count * sizeof *first);
    int code = kn_parameter_values_create_part(values, set, first, set->block_elements, what);
    free(first);
    return code;
}

void kn_parameter_values_clear(KnParameterValues *values)
{
    if (values->blocks)
        for (int i = 0; i < values->set->block_count; i++)
            kn_free_large(values->blocks[i]);
    free(values->blocks);
    free(values->first);
    free(values->count);
    *values = (KnParameterValues){0};
}

float *kn_parameter_data(const KnParameterValues *values, const KnParameter *parameter)
{
    int64_t at = parameter->offset - values->first[parameter->block];
    KN_ASSERT(at >= 0 && at + parameter->elements <= values->count[parameter->block]);
    return values->blocks[parameter->block] + at;
}

/* FNV-1a: a parameter's initial values depend on its name, not on its place among others. */
static uint64_t hash_name(const char *name)
{
    uint64_t hash = 14695981039346656037u;
    for (; *name; name++)
        hash = (hash ^ (unsigned char)*name) * 1099511628211u;
    return hash;
}

void kn_parameter_init(const KnParameter *parameter, uint64_t seed, int64_t first, int64_t count, float *data)
{
    KnRandomKey key = kn_random_key(seed, KN_RANDOM_INIT, 0, hash_name(parameter->name));
    if (parameter->init == KN_INIT_NORMAL)
        kn_random_normal_fill(key, (uint64_t)first, data, (size_t)count);
    for (int64_t e = 0; e < count; e++) {
        if (parameter->init == KN_INIT_NORMAL)
            data[e] *= parameter->init_scale;
        else if (parameter->init == KN_INIT_UNIFORM)
            data[e] = (float)(2 * kn_random_uniform(key, (uint64_t)(first + e)) - 1) * parameter->init_scale;
        else
            data[e] = parameter->init == KN_INIT_ONES ? 1.0f : 0.0f;
    }
}

void kn_parameter_values_init(KnParameterValues *values, uint64_t seed)
{
    for (int i = 0; i < values->set->count; i++) {
        const KnParameter *parameter = &values->set->list[i];
        kn_parameter_init(parameter, seed, 0, parameter->elements, kn_parameter_data(values, parameter));
    }
}

static int block_count(const KnParameterValues *values)
{
    return values->blocks ? values->set->block_count : 0;
}

static size_t block_bytes(const KnParameterValues *values, int block)
{
    return (size_t)values->count[block] * sizeof(float);
}

int kn_parameter_values_zero(KnParameterValues *values, KnBackend *backend)
{
    for (int i = 0; i < block_count(values); i++)
        KN_TRY(kn_twin_zero(backend, values->blocks[i], block_bytes(values, i)));
    return KN_OK;
}

int kn_parameter_values_place(KnParameterValues *values, KnBackend *backend, const char *what)
{
    for (int i = 0; i < block_count(values); i++)
        KN_TRY(kn_twin_create(backend, values->blocks[i], block_bytes(values, i), what));
    return kn_parameter_values_push(values, backend);
}

int kn_parameter_values_place_pinned(KnParameterValues *values, KnBackend *backend, const char *what)
{
    for (int i = 0; i < block_count(values); i++)
        KN_TRY(kn_twin_create_pinned(backend, values->blocks[i], block_bytes(values, i), what));
    return kn_parameter_values_push(values, backend);
}

void kn_parameter_values_withdraw(KnParameterValues *values, KnBackend *backend)
{
    for (int i = 0; i < block_count(values); i++)
        kn_twin_destroy(backend, values->blocks[i]);
}

int kn_parameter_values_push(KnParameterValues *values, KnBackend *backend)
{
    for (int i = 0; i < block_count(values); i++)
        KN_TRY(kn_twin_push(backend, values->blocks[i], block_bytes(values, i)));
    return KN_OK;
}

int kn_parameter_values_pull(KnParameterValues *values, KnBackend *backend)
{
    for (int i = 0; i < block_count(values); i++)
        KN_TRY(kn_twin_pull(backend, values->blocks[i], block_bytes(values, i)));
    return KN_OK;
}

void kn_parameter_values_copy(KnParameterValues *to, const KnParameterValues *from)
{
    for (int i = 0; i < from->set->block_count; i++) {
        int64_t at = to->first[i] - from->first[i];
        KN_ASSERT(at >= 0 && at + to->count[i] <= from->count[i]);
        memcpy(to->blocks[i], from->blocks[i] + at, (size_t)to->count[i] * sizeof(float));
    }
}
