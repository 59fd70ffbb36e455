/* Parts: packed */
/* Attention by a library, on the emulated device, where a reference stands behind the door that reads the same lists of
 * lengths and places (tests/emulated/cudnn.cu). Which nodes are chosen; and that results are those of the CPU for spans
 * that fill the stream, leave gaps, are empty, or are taken in several calls. */
#include "packed/packed.h"
#include "built_path.h"

#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/cpu/backend.h"
#include "core/graph/devices.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static KnBackend *cuda;

static void set(const char *cudnn, const char *mib, const char *emulated)
{
    const char *const names[] = {"KINORA_CUDNN", "KINORA_CUDNN_MIB", "KINORA_EMULATED_CUDNN"};
    const char *const values[] = {cudnn, mib, emulated};
    for (int i = 0; i < 3; i++)
        if (values[i])
            setenv(names[i], values[i], 1);
        else
            unsetenv(names[i]);
}

static const PackedCase cases[] = {
    {.name = "one span, the whole",
     .queries = 70,
     .keys = 90,
     .heads = 2,
     .size = 64,
     .span_count = 1,
     .spans = {{0, 70, 0, 90}}},
    {.name = "gaps, empty spans",
     .queries = 150,
     .keys = 170,
     .heads = 3,
     .size = 64,
     .span_count = 6,
     .spans = {{5, 60, 0, 80}, {0, 0, 0, 0}, {65, 1, 90, 1}, {70, 9, 92, 0}, {80, 50, 95, 70}, {0, 0, 0, 0}}},
    {.name = "nothing but empty spans",
     .queries = 20,
     .keys = 10,
     .heads = 1,
     .size = 64,
     .span_count = 2,
     .spans = {{0, 0, 0, 0}, {3, 4, 5, 0}}},
    {.name = "wide heads",
     .queries = 60,
     .keys = 40,
     .heads = 2,
     .size = 128,
     .span_count = 2,
     .spans = {{0, 33, 0, 20}, {33, 27, 20, 20}}},
    {.name = "a part of a ring: a span without keys here, one without queries",
     .queries = 90,
     .keys = 75,
     .heads = 2,
     .size = 64,
     .span_count = 3,
     .spans = {{0, 20, 0, 0}, {20, 70, 0, 40}, {0, 0, 40, 35}},
     .partial = 1},
};
enum { CASES = sizeof cases / sizeof *cases };

static void expect_close(const PackedRun *run, const PackedRun *truth)
{
    static const double bounds[PACKED_RESULTS] = {0.006, 2e-5, 0.015, 0.015, 0.015};
    for (int i = 0; i < PACKED_RESULTS; i++) {
        double error = packed_error(run, truth, i);
        if (!(error <= bounds[i]))
            fail_msg("%s, %s: error %g, allowed %g", run->c->name, packed_name(i), error, bounds[i]);
    }
}

/* Runs a case on the CPU and on the emulated device. */
static void compare(const PackedCase *c, int chosen)
{
    PackedRun truth, run;
    assert_int_equal(packed_create(&truth, c, kn_cpu_backend()), KN_OK);
    assert_int_equal(packed_read(&truth, NULL), KN_OK);
    assert_int_equal(packed_create(&run, c, cuda), KN_OK);
    assert_int_equal(run.by_library[0] > 0, chosen);
    assert_int_equal(run.by_library[1] > 0, chosen);
    if (packed_read(&run, NULL) < 0)
        fail_msg("%s", kn_error_message());
    expect_close(&run, &truth);
    packed_destroy(&run);
    packed_destroy(&truth);
}

static void the_library_gives_what_the_cpu_gives(void **state)
{
    (void)state;
    set("1", NULL, NULL);
    for (int i = 0; i < CASES; i++)
        compare(&cases[i], 1);
}

/* So little room that heads, and then spans as well, are taken one by one. */
static void a_backward_in_several_calls_gives_the_same(void **state)
{
    (void)state;
    uint64_t bits[4];
    const char *const rooms[] = {"100", "0.75", "0.1", "0.01"};
    for (int i = 0; i < 4; i++) {
        PackedRun run;
        set("1", rooms[i], NULL);
        assert_int_equal(packed_create(&run, &cases[1], cuda), KN_OK);
        assert_int_equal(run.by_library[1] > 0, i < 3);
        assert_int_equal(packed_read(&run, &bits[i]), KN_OK);
        packed_destroy(&run);
    }
    assert_true(bits[0] == bits[1] && bits[0] == bits[2]);
}

static void what_cannot_be_had_runs_by_our_own_kernels(void **state)
{
    (void)state;
    set("0", NULL, NULL);
    compare(&cases[1], 0);
    set("1", NULL, "refuse");
    compare(&cases[1], 0);
}

static void spans_that_break_the_promise_are_named(void **state)
{
    (void)state;
    static const struct {
        int32_t second[4];
        const char *sentence;
    } wrong[] = {
        {{9, 10, 10, 10}, "span 1 shares tokens with one before it"},
        {{10, 10, 9, 10}, "span 1 shares tokens with one before it"},
        {{10, 11, 10, 10}, "span 1 has a negative number or leaves the queries or keys"},
    };
    set("1", NULL, NULL);
    for (int i = 0; i < 3; i++) {
        PackedCase c = {.name = "wrong",
                        .queries = 20,
                        .keys = 20,
                        .heads = 1,
                        .size = 64,
                        .span_count = 2,
                        .spans = {{0, 10, 0, 10}}};
        memcpy(c.spans[1], wrong[i].second, sizeof c.spans[1]);
        PackedRun run;
        assert_int_equal(packed_create(&run, &c, cuda), KN_OK);
        assert_int_equal(packed_read(&run, NULL), KN_EINPUT);
        assert_non_null(strstr(kn_error_message(), wrong[i].sentence));
        packed_destroy(&run);
    }
}

static void large_spans_are_chosen_and_others_are_not(void **state)
{
    (void)state;
    static const struct {
        const char *setting;
        PackedCase c;
        int forward, backward;
    } rows[] = {
        {NULL, {.name = "large", .queries = 4096, .keys = 4096, .heads = 4, .size = 128, .span_count = 1}, 1, 1},
        {NULL, {.name = "few keys", .queries = 32768, .keys = 512, .heads = 4, .size = 128, .span_count = 1}, 1, 0},
        {NULL, {.name = "more keys", .queries = 8192, .keys = 2048, .heads = 6, .size = 128, .span_count = 1}, 1, 1},
        {NULL, {.name = "small", .queries = 512, .keys = 256, .heads = 4, .size = 128, .span_count = 1}, 0, 0},
        {"1", {.name = "small, wanted", .queries = 512, .keys = 256, .heads = 4, .size = 128, .span_count = 1}, 1, 1},
        {"0", {.name = "not wanted", .queries = 4096, .keys = 4096, .heads = 4, .size = 128, .span_count = 1}, 0, 0},
        {"1", {.name = "f32", .queries = 64, .keys = 64, .heads = 4, .size = 128, .span_count = 1, .in_f32 = 1}, 0, 0},
        {"1", {.name = "96 columns", .queries = 64, .keys = 64, .heads = 4, .size = 96, .span_count = 1}, 0, 0},
        {"1",
         {.name = "any spans", .queries = 64, .keys = 64, .heads = 4, .size = 64, .span_count = 1, .unpromised = 1},
         0,
         0},
        {NULL, {.name = "no room", .queries = 65536, .keys = 65536, .heads = 1, .size = 64, .span_count = 1}, 1, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        PackedRun run;
        set(rows[i].setting, NULL, NULL);
        assert_int_equal(packed_create(&run, &rows[i].c, cuda), KN_OK);
        if ((run.by_library[0] > 0) != rows[i].forward || (run.by_library[1] > 0) != rows[i].backward)
            fail_msg("%s: %zu and %zu bytes", rows[i].c.name, run.by_library[0], run.by_library[1]);
        packed_destroy(&run);
    }
}

static int open_backend(void **state)
{
    (void)state;
    char *path = plugin_path("kinora-cuda-emulated.so");
    int code = kn_cuda_backend_open(path, 0, &cuda);
    free(path);
    if (code < 0)
        printf("%s\n", kn_error_message());
    return code < 0;
}

static int close_backend(void **state)
{
    (void)state;
    kn_backend_close(cuda);
    return 0;
}

static void an_absent_library_is_no_error(void **state)
{
    set("1", NULL, "absent");
    assert_int_equal(close_backend(state), 0);
    assert_int_equal(open_backend(state), 0);
    compare(&cases[1], 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_library_gives_what_the_cpu_gives),
        cmocka_unit_test(a_backward_in_several_calls_gives_the_same),
        cmocka_unit_test(what_cannot_be_had_runs_by_our_own_kernels),
        cmocka_unit_test(spans_that_break_the_promise_are_named),
        cmocka_unit_test(large_spans_are_chosen_and_others_are_not),
        cmocka_unit_test(an_absent_library_is_no_error), /* the last: the backend is another afterwards */
    };
    return cmocka_run_group_tests(tests, open_backend, close_backend);
}
