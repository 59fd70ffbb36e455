/* Parts: ops */
/* Runs the op test table on the CPU backend, for every instruction set that this machine has.
 *
 *     test_ops                            all checks
 *     test_ops --speed [THREADS [OP]]     measures instead, on one thread unless told: all rows of speed, or those
 *                                         with OP in their name (linear, layer_norm, adamw ...) */
#include "ops/ops_test.h"

#include "core/base/bf16.h"
#include "core/base/error.h"
#include "core/cpu/backend.h"
#include "core/cpu/isa.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void check_row(void **state)
{
    const OpCase *row = *state;
    const char *missing = "";
    if (!op_supported(row, kn_cpu_backend(), &missing)) {
        printf("skipped: %s: the CPU backend has no %s yet\n", row->name, missing);
        skip();
    }
    op_check(row, kn_cpu_backend());
}

/* A row for every op, its backward and its lowered form too, and all that belongs to an op. What GPUs alone lower to
 * has tests of its own. */
static void every_op_is_covered(void **state)
{
    int seen[KN_OP_COUNT] = {0};
    (void)state;
    for (int i = 0; i < op_case_count; i++)
        if (!(op_cases[i].flags & OP_SPEED))
            op_mark(&op_cases[i], kn_cpu_backend(), seen);
    for (int id = 0; id < KN_OP_COUNT; id++) {
        const KnOp *op = kn_op((KnOpId)id);
        KnNode node = {.op = op};
        assert_int_equal(op->id, id);
        assert_non_null(op->gradient);
        assert_non_null(op->cost);
        if (id == KN_OP_QUANTIZE)
            continue;
        if (!seen[id])
            fail_msg("no row of the op test table contains the op %s", op->name);
        int attention = id == KN_OP_ATTENTION || id == KN_OP_ATTENTION_BACKWARD;
        if (!attention && !kn_cpu_backend()->supports(kn_cpu_backend(), &node))
            fail_msg("the CPU backend has no kernel for the op %s", op->name);
    }
}

/* Indices are data: one that names no row is refused with a sentence, not followed. */
static void wild_indices_are_refused(void **state)
{
    static const int32_t index[3] = {0, 7, 1};
    static float x[4 * 2], out[3 * 2];
    KnGraph *graph = kn_graph_create();
    KnTensor *source = kn_leaf(graph, KN_ROLE_INPUT, KN_F32, 2, (int64_t[]){4, 2}, "x");
    KnTensor *chosen = kn_leaf(graph, KN_ROLE_INPUT, KN_I32, 1, (int64_t[]){3}, "index");
    KnTensor *result = kn_gather_rows(graph, source, chosen);
    KnCall call = {.node = result->producer, .inputs = {x, (void *)index}, .outputs = {out}};
    (void)state;
    assert_int_equal(kn_cpu_backend()->run(kn_cpu_backend(), &call), KN_EINPUT);
    assert_non_null(strstr(kn_error_message(), "index 7 at position 1"));
    kn_graph_destroy(graph);
}

/* Cut to a window, a wild span would look like a tame one. */
static void wild_spans_are_refused(void **state)
{
    static const int32_t spans[2][4] = {{0, 3, 0, 3}, {3, 2, -1, 4}};
    int32_t out[2][4];
    KnGraph *graph = kn_graph_create();
    KnTensor *table = kn_leaf(graph, KN_ROLE_INPUT, KN_I32, 2, (int64_t[]){2, 4}, "spans");
    KnTensor *result = kn_span_window(graph, table, 0, 5, 0, 5);
    KnCall call = {.node = result->producer, .inputs = {(void *)spans}, .outputs = {out}};
    (void)state;
    assert_int_equal(kn_cpu_backend()->run(kn_cpu_backend(), &call), KN_EINPUT);
    assert_non_null(strstr(kn_error_message(), "span 1 (3, 2, -1, 4)"));
    kn_graph_destroy(graph);
}

/* To the bit, which the bounds of the table cannot see: ties go to even, NaN stays NaN, infinities stay. */
static void casts_round_to_nearest_even(void **state)
{
    static const uint32_t bits[] = {0x3f808000, 0x3f818000, 0x3f807fff, 0x3f808001, 0xbf808000, 0xbf818000, 0x7f7fffff,
                                    0x7f800000, 0xff800000, 0x7f800001, 0xffc00000, 0x7fffffff, 0x00000000, 0x80000000,
                                    0x00800000, 0x0080ffff, 0x40490fdb, 0xc2f6e979, 0x7f7f7fff};
    enum { COUNT = sizeof bits / sizeof *bits };
    uint16_t out[COUNT];
    KnGraph *graph = kn_graph_create();
    KnTensor *x = kn_leaf(graph, KN_ROLE_INPUT, KN_F32, 1, (int64_t[]){COUNT}, "x");
    KnCall call = {.node = kn_cast(graph, x, KN_BF16)->producer, .inputs = {(void *)bits}, .outputs = {out}};
    (void)state;
    assert_int_equal(kn_cpu_backend()->run(kn_cpu_backend(), &call), KN_OK);
    for (int i = 0; i < COUNT; i++) {
        if ((bits[i] & 0x7fffffff) > 0x7f800000)
            assert_true((out[i] & 0x7fff) > 0x7f80);
        else
            assert_int_equal(out[i], kn_bf16_from_float(kn_bits_float(bits[i])));
    }
    kn_graph_destroy(graph);
}

static int measure(int threads, const char *only)
{
    kn_cpu_set_threads(threads);
    for (int i = 0; i < op_case_count; i++) {
        const char *missing;
        if (op_cases[i].flags & OP_SPEED && strstr(op_cases[i].name, only) &&
            op_supported(&op_cases[i], kn_cpu_backend(), &missing))
            op_measure(&op_cases[i], kn_cpu_backend());
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "--speed"))
        return measure(argc > 2 ? atoi(argv[2]) : 1, argc > 3 ? argv[3] : "");
    struct CMUnitTest *tests = calloc((size_t)op_case_count + 4, sizeof *tests);
    int count = 0, failures = 0;
    tests[count++] = (struct CMUnitTest)cmocka_unit_test(every_op_is_covered);
    tests[count++] = (struct CMUnitTest)cmocka_unit_test(wild_indices_are_refused);
    tests[count++] = (struct CMUnitTest)cmocka_unit_test(wild_spans_are_refused);
    tests[count++] = (struct CMUnitTest)cmocka_unit_test(casts_round_to_nearest_even);
    for (int i = 0; i < op_case_count; i++)
        if (!(op_cases[i].flags & OP_SPEED))
            tests[count++] = (struct CMUnitTest){
                .name = op_cases[i].name, .test_func = check_row, .initial_state = (void *)&op_cases[i]};
    KnIsa best = kn_cpu_isa();
    for (KnIsa isa = KN_ISA_GENERIC; isa <= best; isa++) {
        kn_cpu_isa_limit(isa);
        printf("instruction set: %s\n", kn_cpu_isa_name(kn_cpu_isa()));
        failures += _cmocka_run_group_tests(kn_cpu_isa_name(isa), tests, (size_t)count, NULL, NULL);
    }
    free(tests);
    return failures != 0;
}
