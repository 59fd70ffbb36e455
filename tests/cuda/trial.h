/* Small graphs on the CUDA backend, whose leaves' values a test knows in float64. */
#ifndef KN_TESTS_CUDA_TRIAL_H
#define KN_TESTS_CUDA_TRIAL_H

#include "core/base/bf16.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/graph/twin.h"
#include "core/ops/ops.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

enum { MOST_LEAVES = 8 };

static KnBackend *cuda;

/* A graph whose leaves hold float64 values that their dtypes represent exactly. */
typedef struct Trial {
    KnGraph *graph;
    KnExecutor *executor;
    int count;
    KnTensor *leaves[MOST_LEAVES];
    double *values[MOST_LEAVES];
    void *memory[MOST_LEAVES];
} Trial;

static inline Trial trial_begin(void)
{
    return (Trial){.graph = kn_graph_create()};
}

static inline double value_of(const KnTensor *tensor, const void *memory, int64_t i)
{
    return tensor->dtype == KN_F32 ? (double)((const float *)memory)[i]
                                   : (double)kn_bf16_to_float(((const uint16_t *)memory)[i]);
}

/* Multiples of an eighth within +-spread, which both dtypes hold; or indices of `spread` rows. */
static inline KnTensor *leaf(Trial *t, KnRole role, KnDtype dtype, int64_t rows, int64_t columns, int spread)
{
    char name[16];
    snprintf(name, sizeof name, "leaf%d", t->count);
    KnTensor *made = kn_leaf(t->graph, role, dtype, 2, (int64_t[]){rows, columns}, name);
    int64_t count = rows * columns;
    uint32_t random = 77u + (uint32_t)t->count;
    double *values = kn_alloc((size_t)(count + 1) * sizeof *values);
    void *memory = kn_alloc((size_t)(count + 1) * sizeof(float));
    for (int64_t i = 0; i < count; i++) {
        random = random * 1664525u + 1013904223u;
        values[i] = ((int)((random >> 8) % (uint32_t)(16 * spread + 1)) - 8 * spread) / 8.0;
        if (dtype == KN_F32)
            ((float *)memory)[i] = (float)values[i];
        else if (dtype == KN_I32)
            ((int32_t *)memory)[i] = (int32_t)((random >> 8) % (uint32_t)spread);
        else
            ((uint16_t *)memory)[i] = kn_bf16_from_float((float)values[i]);
    }
    t->values[t->count] = values;
    t->memory[t->count] = memory;
    t->leaves[t->count++] = made;
    return made;
}

static inline void run(Trial *t, KnTensor *const *keep, int keep_count)
{
    cuda->lower(cuda, t->graph);
    kn_graph_finish(t->graph, keep, keep_count);
    assert_int_equal(kn_executor_create(&t->executor, t->graph, cuda, keep, keep_count), KN_OK);
    for (int i = 0; i < t->count; i++) {
        size_t bytes = kn_tensor_bytes(t->leaves[i]);
        if (t->leaves[i]->role != KN_ROLE_INPUT) {
            assert_int_equal(kn_twin_create(cuda, t->memory[i], bytes, "a leaf"), KN_OK);
            assert_int_equal(kn_twin_push(cuda, t->memory[i], bytes), KN_OK);
        }
        kn_executor_bind(t->executor, t->leaves[i], t->memory[i]);
    }
    if (kn_executor_run(t->executor) < 0)
        fail_msg("%s", kn_error_message());
}

static inline double *read_values(const Trial *t, const KnTensor *tensor)
{
    int64_t count = kn_tensor_elements(tensor);
    void *bytes = kn_alloc(kn_tensor_bytes(tensor) + 1);
    double *values = kn_alloc((size_t)(count + 1) * sizeof *values);
    if (kn_executor_read(t->executor, tensor, bytes) < 0)
        fail_msg("%s", kn_error_message());
    for (int64_t i = 0; i < count; i++)
        values[i] = value_of(tensor, bytes, i);
    free(bytes);
    return values;
}

static inline int count_nodes(const Trial *t, KnOpId id)
{
    int count = 0;
    for (int i = 0; i < t->graph->node_count; i++)
        count += t->graph->nodes[i]->op->id == (int)id;
    return count;
}

static inline void trial_end(Trial *t)
{
    kn_executor_destroy(t->executor);
    for (int i = 0; i < t->count; i++) {
        kn_twin_destroy(cuda, t->memory[i]);
        free(t->memory[i]);
        free(t->values[i]);
    }
    kn_graph_destroy(t->graph);
}

#endif
