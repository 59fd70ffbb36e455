/* Attention's promises about bits: a span's results do not depend on the other spans of the table, on where it lies in
 * the stream, nor on the number of threads. Values are compared with float64 by the op table (test_ops.c); those of
 * the AMX kernel, which few machines have, here with the vectors' over emulated tiles. */
#include "core/base/bf16.h"
#include "core/base/memory.h"
#include "core/cpu/backend.h"
#include "core/cpu/isa.h"
#include "core/cpu/matmul_kernel.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define KN_AMX_EMULATED
#define KN_MATMUL_AMX_BLOCK amx_emulated_block
#include "core/cpu/tile/matmul_amx.c"

static const KnMatmulKernel amx_emulated = {"amx emulated", KN_ISA_AMX, KN_BF16, 32, 32, 1, amx_emulated_block};

enum { HEADS = 2, SIZE = 24, WIDTH = HEADS * SIZE };

/* Operands of one call, and its results; rows of `bytes` bytes an element. */
typedef struct Call {
    KnDtype dtype;
    int64_t queries, keys;
    int span_count;
    const int32_t (*spans)[4];
    char *q, *k, *v, *grad;
    char *out, *dq, *dk, *dv;
    float *lse;
} Call;

static size_t row_bytes(const Call *c)
{
    return WIDTH * kn_dtype_bytes(c->dtype);
}

static char *random_rows(const Call *c, int64_t rows, uint32_t seed)
{
    char *data = kn_alloc((size_t)(rows + 1) * row_bytes(c));
    for (int64_t i = 0; i < rows * WIDTH; i++) {
        seed = seed * 1664525u + 1013904223u;
        float value = 4 * ((float)(seed >> 8) / (float)(1 << 24)) - 2;
        if (c->dtype == KN_F32)
            ((float *)(void *)data)[i] = value;
        else
            ((uint16_t *)(void *)data)[i] = kn_bf16_from_float(value);
    }
    return data;
}

static void run_node(KnNode *node, void *const *inputs, void *const *outputs, int threads)
{
    KnCall call = {.node = node};
    kn_cpu_set_threads(threads);
    memcpy(call.inputs, inputs, (size_t)node->input_count * sizeof *inputs);
    memcpy(call.outputs, outputs, (size_t)node->output_count * sizeof *outputs);
    call.workspace_bytes = kn_cpu_backend()->workspace_bytes(kn_cpu_backend(), node);
    assert_int_equal(kn_alloc_large(&call.workspace, call.workspace_bytes + 64, "a test"), 0);
    memset(call.workspace, 0x7b, call.workspace_bytes); /* what was there before must not matter */
    assert_int_equal(kn_cpu_backend()->run(kn_cpu_backend(), &call), 0);
    kn_free_large(call.workspace);
}

/* Fills out, lse, dq, dk, dv. */
static void attend(Call *c, int threads)
{
    KnGraph *graph = kn_graph_create();
    KnTensor *q = kn_leaf(graph, KN_ROLE_INPUT, c->dtype, 2, (int64_t[]){c->queries, WIDTH}, "q"), *gradients[4];
    KnTensor *k = kn_leaf(graph, KN_ROLE_INPUT, c->dtype, 2, (int64_t[]){c->keys, WIDTH}, "k");
    KnTensor *v = kn_leaf(graph, KN_ROLE_INPUT, c->dtype, 2, (int64_t[]){c->keys, WIDTH}, "v");
    KnTensor *spans = kn_leaf(graph, KN_ROLE_INPUT, KN_I32, 2, (int64_t[]){c->span_count, 4}, "spans");
    KnTensor *grad = kn_leaf(graph, KN_ROLE_INPUT, c->dtype, 2, (int64_t[]){c->queries, WIDTH}, "grad");
    KnNode *forward = kn_attention(graph, q, k, v, spans, HEADS, 1 / sqrtf(SIZE))->producer;
    forward->op->gradient(graph, forward, (KnTensor *[]){grad, NULL}, (int[]){1, 1, 1, 0}, gradients);
    c->out = kn_alloc((size_t)(c->queries + 1) * row_bytes(c));
    c->lse = kn_alloc((size_t)(HEADS * c->queries + 1) * sizeof(float));
    c->dq = kn_alloc((size_t)(c->queries + 1) * row_bytes(c));
    c->dk = kn_alloc((size_t)(c->keys + 1) * row_bytes(c));
    c->dv = kn_alloc((size_t)(c->keys + 1) * row_bytes(c));
    memset(c->out, 0x55, (size_t)c->queries * row_bytes(c));
    memset(c->dq, 0x55, (size_t)c->queries * row_bytes(c));
    memset(c->dk, 0x55, (size_t)c->keys * row_bytes(c));
    memset(c->dv, 0x55, (size_t)c->keys * row_bytes(c));
    run_node(forward, (void *[]){c->q, c->k, c->v, (void *)c->spans}, (void *[]){c->out, c->lse}, threads);
    run_node(gradients[0]->producer, (void *[]){c->q, c->k, c->v, (void *)c->spans, c->out, c->lse, c->grad},
             (void *[]){c->dq, c->dk, c->dv}, threads);
    kn_cpu_set_threads(0);
    kn_graph_destroy(graph);
}

static void release_results(Call *c)
{
    free(c->out);
    free(c->lse);
    free(c->dq);
    free(c->dk);
    free(c->dv);
}

static Call call_of(KnDtype dtype, int64_t queries, int64_t keys, const int32_t (*spans)[4], int span_count)
{
    Call c = {.dtype = dtype, .queries = queries, .keys = keys, .spans = spans, .span_count = span_count};
    c.q = random_rows(&c, queries, 1);
    c.k = random_rows(&c, keys, 2);
    c.v = random_rows(&c, keys, 3);
    c.grad = random_rows(&c, queries, 4);
    return c;
}

static void release(Call *c)
{
    release_results(c);
    free(c->q);
    free(c->k);
    free(c->v);
    free(c->grad);
}

static int keys_are_shared(const Call *c, int span)
{
    for (int i = 0; i < c->span_count; i++)
        if (i != span && c->spans[i][1] > 0 && c->spans[i][2] < c->spans[span][2] + c->spans[span][3] &&
            c->spans[span][2] < c->spans[i][2] + c->spans[i][3])
            return 1;
    return 0;
}

/* The span by itself, its first query and key at the start of a stream of its own. */
static void compare_alone(const Call *all, int index)
{
    const int32_t *span = all->spans[index], own[1][4] = {{0, span[1], 0, span[3]}};
    const size_t row = row_bytes(all), first_query = (size_t)span[0] * row, first_key = (size_t)span[2] * row;
    Call alone = {.dtype = all->dtype, .queries = span[1], .keys = span[3], .spans = own, .span_count = 1};
    alone.q = all->q + first_query;
    alone.k = all->k + first_key;
    alone.v = all->v + first_key;
    alone.grad = all->grad + first_query;
    attend(&alone, 1);
    const char *what = NULL;
    if (memcmp(alone.out, all->out + first_query, (size_t)span[1] * row))
        what = "out";
    for (int64_t head = 0; head < HEADS; head++)
        if (memcmp(alone.lse + head * span[1], all->lse + head * all->queries + span[0],
                   (size_t)span[1] * sizeof(float)))
            what = "lse";
    if (memcmp(alone.dq, all->dq + first_query, (size_t)span[1] * row))
        what = "dq";
    if (!keys_are_shared(all, index) && memcmp(alone.dk, all->dk + first_key, (size_t)span[3] * row))
        what = "dk";
    if (!keys_are_shared(all, index) && memcmp(alone.dv, all->dv + first_key, (size_t)span[3] * row))
        what = "dv";
    if (what)
        fail_msg("%s, %s: %s of span %d is not the same with and without the others", kn_cpu_isa_name(kn_cpu_isa()),
                 kn_dtype_name(all->dtype), what, index);
    release_results(&alone);
}

static const int32_t packed[][4] = {{0, 3, 0, 3},         {3, 250, 3, 250},    {253, 64, 253, 64}, {317, 1, 317, 1},
                                    {318, 131, 318, 131}, {449, 97, 449, 450}, {546, 405, 899, 33}};
static const int32_t shared_keys[][4] = {{5, 20, 7, 230},     {25, 100, 7, 230},   {125, 3, 7, 211},
                                         {128, 40, 300, 230}, {168, 30, 317, 400}, {198, 97, 333, 31},
                                         {295, 5, 480, 192},  {300, 7, 716, 5}};

static void compare_spans(const int32_t (*spans)[4], int count, int64_t queries, int64_t keys)
{
    KnIsa best = kn_cpu_isa();
    for (KnIsa isa = KN_ISA_GENERIC; isa <= best; isa++)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            kn_cpu_isa_limit(isa);
            Call all = call_of(bf16 ? KN_BF16 : KN_F32, queries, keys, spans, count);
            attend(&all, 2);
            for (int i = 0; i < count; i++)
                compare_alone(&all, i);
            release(&all);
        }
    kn_cpu_isa_limit(KN_ISA_COUNT);
}

static void packed_spans_do_not_see_each_other(void **state)
{
    (void)state;
    compare_spans(packed, sizeof packed / sizeof *packed, 960, 940);
}

static void spans_with_shared_keys_do_not_see_each_other(void **state)
{
    (void)state;
    compare_spans(shared_keys, sizeof shared_keys / sizeof *shared_keys, 310, 730);
}

static void expect_near(const char *what, const char *got, const char *expected, int64_t count)
{
    double distance = 0, size = 0;
    for (int64_t i = 0; i < count; i++) {
        double g = kn_bf16_to_float(((const uint16_t *)(const void *)got)[i]);
        double e = kn_bf16_to_float(((const uint16_t *)(const void *)expected)[i]);
        distance += (g - e) * (g - e);
        size += e * e;
    }
    if (!(distance <= size * 0x1p-16)) /* 2^-8 relative: bf16 rounds to it */
        fail_msg("%s is off by %g relative", what, sqrt(distance / size));
}

static void tiles_attend_as_vectors_do(void **state)
{
    const int count = sizeof packed / sizeof *packed;
    (void)state;
    Call vectors = call_of(KN_BF16, 960, 940, packed, count), tiles = vectors;
    attend(&vectors, 1);
    kn_matmul_use_kernel(&amx_emulated);
    attend(&tiles, 2);
    expect_near("out", tiles.out, vectors.out, tiles.queries * WIDTH);
    expect_near("dq", tiles.dq, vectors.dq, tiles.queries * WIDTH);
    expect_near("dk", tiles.dk, vectors.dk, tiles.keys * WIDTH);
    expect_near("dv", tiles.dv, vectors.dv, tiles.keys * WIDTH);
    for (int i = 0; i < count; i++)
        compare_alone(&tiles, i);
    kn_matmul_use_kernel(NULL);
    release_results(&tiles);
    release(&vectors);
}

/* Many chunks of keys, so that several threads add to the same queries in turn. */
static void long_spans_have_the_same_bits_on_any_number_of_threads(void **state)
{
    static const int32_t spans[][4] = {{0, 700, 0, 1900}, {700, 300, 0, 1900}, {1000, 200, 1900, 900}};
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        Call one = call_of(bf16 ? KN_BF16 : KN_F32, 1200, 2800, spans, 3);
        attend(&one, 1);
        for (int threads = 2; threads <= 5; threads++) {
            Call more = one;
            attend(&more, threads);
            assert_memory_equal(more.out, one.out, (size_t)one.queries * row_bytes(&one));
            assert_memory_equal(more.lse, one.lse, (size_t)(HEADS * one.queries) * sizeof(float));
            assert_memory_equal(more.dq, one.dq, (size_t)one.queries * row_bytes(&one));
            assert_memory_equal(more.dk, one.dk, (size_t)one.keys * row_bytes(&one));
            assert_memory_equal(more.dv, one.dv, (size_t)one.keys * row_bytes(&one));
            release_results(&more);
        }
        release(&one);
    }
}

/* Far apart scores: the running maximum rises late, by much, and again. */
static void late_large_scores_win(void **state)
{
    static const int32_t spans[][4] = {{0, 2, 0, 900}};
    (void)state;
    Call c = call_of(KN_F32, 2, 900, spans, 1);
    float *q = (float *)(void *)c.q, *k = (float *)(void *)c.k, *v = (float *)(void *)c.v, *out;
    for (int i = 0; i < 900 * WIDTH; i++) {
        k[i] = 0;
        v[i] = (float)(i / WIDTH); /* a key's number */
    }
    for (int i = 0; i < 2 * WIDTH; i++)
        q[i] = 1;
    for (int i = 0; i < WIDTH; i++) {
        k[140 * WIDTH + i] = 10;
        k[630 * WIDTH + i] = 30;
        k[899 * WIDTH + i] = -30;
    }
    attend(&c, 1);
    out = (float *)(void *)c.out;
    for (int i = 0; i < 2 * WIDTH; i++)
        assert_true(fabsf(out[i] - 630) < 1e-3f);
    for (int i = 0; i < HEADS * 2; i++)
        assert_true(fabsf(c.lse[i] - 30 * sqrtf(SIZE)) < 1e-3f);
    release(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packed_spans_do_not_see_each_other),
        cmocka_unit_test(spans_with_shared_keys_do_not_see_each_other),
        cmocka_unit_test(tiles_attend_as_vectors_do),
        cmocka_unit_test(long_spans_have_the_same_bits_on_any_number_of_threads),
        cmocka_unit_test(late_large_scores_win),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
