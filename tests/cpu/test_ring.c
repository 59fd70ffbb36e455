/* A ring of R parts, each with some of the queries and some of the keys, attends as one process does: every part's
 * queries see one part of the keys after another by span windows, the partial results are merged, and the backward of
 * every pair of parts, given the merged result, adds its share to the gradients. No communicator: all parts are in one
 * graph. For all span tables of the op test table, whose cuts fall inside spans, with parts that own nothing. */
#include "ops/span_tables.h"

#include "core/base/bf16.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/cpu/backend.h"
#include "core/cpu/isa.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { HEADS = 2, SIZE = 20, WIDTH = HEADS * SIZE, MOST_PARTS = 5, TABLES = sizeof span_tables / sizeof *span_tables };

typedef struct Operands {
    KnTensor *q, *k, *v, *grad, *spans;
} Operands;

enum { OUT, LSE, DQ, DK, DV, RESULTS };
static const char *const result_names[RESULTS] = {"out", "lse", "dq", "dk", "dv"};

typedef struct Results {
    KnTensor *of[RESULTS]; /* in f32 */
} Results;

static float scale(void)
{
    return 1 / sqrtf(SIZE);
}

/* --- One process -------------------------------------------------------------------------------------------------- */

static Results attend_whole(KnGraph *graph, const Operands *in)
{
    Results results;
    KnTensor **of = results.of, *out = kn_attention(graph, in->q, in->k, in->v, in->spans, HEADS, scale());
    KnTensor *lse = out->producer->outputs[1];
    kn_attention_backward(graph, in->q, in->k, in->v, in->spans, out, lse, in->grad, HEADS, scale(), 0, &of[DQ]);
    of[OUT] = out;
    of[LSE] = lse;
    for (int i = 0; i < RESULTS; i++)
        of[i] = kn_cast(graph, of[i], KN_F32);
    return results;
}

/* The same on float32 operands of the same values: what bf16 is compared with. */
static Results attend_exactly(KnGraph *graph, const Operands *in)
{
    Operands wide = {.q = kn_cast(graph, in->q, KN_F32),
                     .k = kn_cast(graph, in->k, KN_F32),
                     .v = kn_cast(graph, in->v, KN_F32),
                     .grad = kn_cast(graph, in->grad, KN_F32),
                     .spans = in->spans};
    return attend_whole(graph, &wide);
}

/* --- The ring ----------------------------------------------------------------------------------------------------- */

typedef struct Ring {
    KnGraph *graph;
    const Operands *in;
    int parts;
    int64_t query[MOST_PARTS + 1], key[MOST_PARTS + 1]; /* where parts begin */
    KnTensor *out, *lse, *dq;                           /* of the parts so far, end to end */
    KnTensor *dk[MOST_PARTS], *dv[MOST_PARTS];
} Ring;

/* Uneven parts; of five, one owns nothing. */
static void cut(int parts, int64_t rows, int64_t *first)
{
    static const int weights[MOST_PARTS + 1][MOST_PARTS] = {[2] = {1, 2}, [3] = {2, 5, 1}, [5] = {3, 1, 0, 4, 2}};
    int64_t total = 0, sum = 0;
    for (int i = 0; i < parts; i++)
        total += weights[parts][i];
    for (int i = 0; i <= parts; i++) {
        first[i] = rows * sum / total;
        sum += i < parts ? weights[parts][i] : 0;
    }
}

static KnTensor *rows_of(const Ring *ring, KnTensor *x, const int64_t *first, int part)
{
    return kn_slice(ring->graph, x, 0, first[part], first[part + 1] - first[part]);
}

static KnTensor *sum_of(KnGraph *graph, KnTensor *so_far, KnTensor *share)
{
    return so_far ? kn_add_parts(graph, so_far, share, KN_F32) : share;
}

static KnTensor *joined(KnGraph *graph, KnTensor *so_far, KnTensor *part, int axis)
{
    return so_far ? kn_concatenate(graph, so_far, part, axis) : part;
}

/* What one rank does: its queries against all keys as they come by, its own first. */
static void attend_part(Ring *ring, int rank)
{
    KnGraph *graph = ring->graph;
    KnTensor *q = rows_of(ring, ring->in->q, ring->query, rank), *k[MOST_PARTS], *v[MOST_PARTS], *spans[MOST_PARTS];
    KnTensor *grad = rows_of(ring, ring->in->grad, ring->query, rank), *out = NULL, *lse = NULL, *dq = NULL;
    for (int step = 0; step < ring->parts; step++) {
        int part = (rank + step) % ring->parts;
        k[part] = rows_of(ring, ring->in->k, ring->key, part);
        v[part] = rows_of(ring, ring->in->v, ring->key, part);
        spans[part] =
            kn_span_window(graph, ring->in->spans, ring->query[rank], ring->query[rank + 1] - ring->query[rank],
                           ring->key[part], ring->key[part + 1] - ring->key[part]);
        KnTensor *more = kn_attention(graph, q, k[part], v[part], spans[part], HEADS, scale());
        KnDtype dtype = step == ring->parts - 1 ? q->dtype : KN_F32;
        out = out ? kn_attention_merge(graph, out, lse, more, more->producer->outputs[1], dtype) : more;
        lse = out->producer->outputs[1];
    }
    for (int step = 0; step < ring->parts; step++) {
        int part = (rank + step) % ring->parts;
        KnTensor *shares[3];
        kn_attention_backward(graph, q, k[part], v[part], spans[part], out, lse, grad, HEADS, scale(), 1, shares);
        dq = sum_of(graph, dq, shares[0]);
        ring->dk[part] = sum_of(graph, ring->dk[part], shares[1]);
        ring->dv[part] = sum_of(graph, ring->dv[part], shares[2]);
    }
    ring->out = joined(graph, ring->out, out, 0);
    ring->lse = joined(graph, ring->lse, lse, 1);
    ring->dq = joined(graph, ring->dq, dq, 0);
}

static Results attend_in_ring(KnGraph *graph, const Operands *in, int parts)
{
    Ring ring = {.graph = graph, .in = in, .parts = parts};
    KnTensor *dk = NULL, *dv = NULL;
    cut(parts, kn_tensor_rows(in->q), ring.query);
    cut(parts, kn_tensor_rows(in->k), ring.key);
    for (int rank = 0; rank < parts; rank++)
        attend_part(&ring, rank);
    for (int part = 0; part < parts; part++) {
        dk = joined(graph, dk, ring.dk[part], 0);
        dv = joined(graph, dv, ring.dv[part], 0);
    }
    return (Results){{kn_cast(graph, ring.out, KN_F32), ring.lse, ring.dq, dk, dv}};
}

/* --- Running and comparing ---------------------------------------------------------------------------------------- */

/* Binds random values that bf16 holds exactly. */
static void *bind_random(KnExecutor *executor, const KnTensor *leaf, uint32_t seed)
{
    void *memory;
    assert_int_equal(kn_alloc_large(&memory, kn_tensor_bytes(leaf) + 64, "a leaf"), KN_OK);
    for (int64_t i = 0; i < kn_tensor_elements(leaf); i++) {
        seed = seed * 1664525u + 1013904223u;
        uint16_t half = kn_bf16_from_float(4 * ((float)(seed >> 8) / (float)(1 << 24)) - 2);
        if (leaf->dtype == KN_F32)
            ((float *)memory)[i] = kn_bf16_to_float(half);
        else
            ((uint16_t *)memory)[i] = half;
    }
    kn_executor_bind(executor, leaf, memory);
    return memory;
}

typedef struct Bound {
    double l2, of_largest; /* of the whole tensor; of an element, to the largest */
} Bound;

/* float32: the order of sums alone. bf16: what the op test table grants the one process, and for the largest elements
 * of `out` the rounding of a part. */
static Bound bound_of(KnDtype dtype, int result)
{
    if (dtype == KN_F32 || result == LSE)
        return (Bound){1e-6, 2e-6};
    return result == OUT ? (Bound){0.005, 0.006} : (Bound){0.015, 0.02};
}

static void compare(const char *what, int result, const float *got, const float *expected, int64_t count, Bound bound)
{
    double error2 = 0, expected2 = 0, largest = 0, worst = 0;
    for (int64_t i = 0; i < count; i++) {
        double e = (double)expected[i], error = got[i] == expected[i] ? 0 : fabs((double)got[i] - e);
        if (!isfinite(error))
            fail_msg("%s: %s element %lld is %g, should be %g", what, result_names[result], (long long)i,
                     (double)got[i], e);
        worst = fmax(worst, error);
        error2 += error * error;
        if (isfinite(e)) {
            expected2 += e * e;
            largest = fmax(largest, fabs(e));
        }
    }
    if (sqrt(error2) > bound.l2 * sqrt(expected2) || worst > bound.of_largest * largest)
        fail_msg("%s: %s is off by %.3g relative, and at worst by %.3g of the largest", what, result_names[result],
                 sqrt(error2 / expected2), worst / largest);
}

static Operands leaves(KnGraph *graph, int table, KnDtype dtype)
{
    int64_t queries[2] = {span_tables[table].queries, WIDTH}, keys[2] = {span_tables[table].keys, WIDTH};
    int64_t count[2] = {span_tables[table].count, 4};
    return (Operands){.q = kn_leaf(graph, KN_ROLE_INPUT, dtype, 2, queries, "q"),
                      .k = kn_leaf(graph, KN_ROLE_INPUT, dtype, 2, keys, "k"),
                      .v = kn_leaf(graph, KN_ROLE_INPUT, dtype, 2, keys, "v"),
                      .grad = kn_leaf(graph, KN_ROLE_INPUT, dtype, 2, queries, "grad"),
                      .spans = kn_leaf(graph, KN_ROLE_INPUT, KN_I32, 2, count, "spans")};
}

static void compare_ring(int table, KnDtype dtype, int parts)
{
    KnGraph *graph = kn_graph_create();
    KnExecutor *executor;
    Operands in = leaves(graph, table, dtype);
    Results results[2] = {attend_exactly(graph, &in), attend_in_ring(graph, &in, parts)};
    KnTensor *const *keep = results[0].of;
    char what[80];
    kn_graph_finish(graph, keep, 2 * RESULTS);
    assert_int_equal(kn_executor_create(&executor, graph, kn_cpu_backend(), keep, 2 * RESULTS), KN_OK);
    void *memory[4] = {bind_random(executor, in.q, 1), bind_random(executor, in.k, 2), bind_random(executor, in.v, 3),
                       bind_random(executor, in.grad, 4)};
    kn_executor_bind(executor, in.spans, (void *)span_tables[table].spans);
    if (kn_executor_run(executor) < 0)
        fail_msg("%s", kn_error_message());
    snprintf(what, sizeof what, "%s, span table %d, %s, %d parts", kn_cpu_isa_name(kn_cpu_isa()), table,
             kn_dtype_name(dtype), parts);
    for (int i = 0; i < RESULTS; i++)
        compare(what, i, kn_executor_data(executor, results[1].of[i]), kn_executor_data(executor, results[0].of[i]),
                kn_tensor_elements(results[0].of[i]), bound_of(dtype, i));
    kn_executor_destroy(executor);
    for (int i = 0; i < 4; i++)
        kn_free_large(memory[i]);
    kn_graph_destroy(graph);
}

static void compare_rings(KnDtype dtype)
{
    static const int parts[] = {2, 3, 5};
    KnIsa best = kn_cpu_isa();
    for (KnIsa isa = KN_ISA_GENERIC; isa <= best; isa++) {
        kn_cpu_isa_limit(isa);
        for (int table = 0; table < TABLES; table++)
            for (int i = 0; i < 3; i++)
                compare_ring(table, dtype, parts[i]);
    }
    kn_cpu_isa_limit(KN_ISA_COUNT);
}

static void a_ring_attends_as_one_process(void **state)
{
    (void)state;
    compare_rings(KN_F32);
}

static void a_ring_in_bf16_is_as_exact_as_one_process(void **state)
{
    (void)state;
    compare_rings(KN_BF16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_ring_attends_as_one_process),
        cmocka_unit_test(a_ring_in_bf16_is_as_exact_as_one_process),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
