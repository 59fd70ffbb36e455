/* Attention's kernels on the emulated device: what the op table, which compares them with float64, leaves open. Tensor
 * cores agree with float32 for head sizes that fill their fragments and that do not, with queries in any number of
 * parts; bits depend neither on the order of CUDA threads nor on other spans; spans that leave the rows are reported.
 */
#include "core/base/bf16.h"
#include "core/base/memory.h"
#include "core/cuda/kernels.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SUCCEEDS(call) assert_string_equal(cudaGetErrorName(call), "cudaSuccess")

/* Tiles begin and end inside of spans, have several spans, or rows of none; keys are shared, or there are none. */
enum { QUERIES = 150, KEYS = 170, SPANS = 5, HEADS = 2 };
static const int32_t spans[SPANS][4] = {
    {0, 70, 3, 90}, {70, 1, 93, 1}, {75, 60, 60, 110}, {136, 9, 20, 0}, {146, 3, 169, 1},
};

typedef struct Trial {
    int64_t size;
    int bf16, span_count, parts;
    int64_t shift; /* elements by which the rows lie off their alignment */
    const int32_t (*spans)[4];
    KnCudaFault fault;
    float *results[5]; /* out, lse, dq, dk, dv */
} Trial;

enum { RESULTS = 5 };

static size_t result_count(const Trial *t, int result)
{
    const int64_t rows = result == 0 || result == 2 ? QUERIES : KEYS;
    return (size_t)(result == 1 ? HEADS * QUERIES : rows * HEADS * t->size);
}

static void *on_device(size_t bytes, const void *from)
{
    void *device;
    SUCCEEDS(cudaMalloc(&device, bytes));
    if (from)
        SUCCEEDS(cudaMemcpy(device, from, bytes, cudaMemcpyHostToDevice));
    return device;
}

/* Random rows that bfloat16 can represent, from `shift` elements after an aligned address on. */
static void *random_rows(const Trial *t, int64_t rows, uint32_t seed)
{
    const size_t count = (size_t)(rows * HEADS * t->size + t->shift);
    float *values = kn_alloc(count * sizeof *values);
    uint16_t *halves = kn_alloc(count * sizeof *halves);
    for (size_t i = (size_t)t->shift; i < count; i++) {
        seed = seed * 1664525u + 1013904223u;
        halves[i] = kn_bf16_from_float(4 * (float)(seed >> 8) / (float)(1 << 24) - 1.5f);
        values[i] = kn_bf16_to_float(halves[i]);
    }
    void *device = on_device(count * (t->bf16 ? 2 : 4), t->bf16 ? (void *)halves : values);
    free(values);
    free(halves);
    return device;
}

static void *moved(const Trial *t, void *start)
{
    return (char *)start + t->shift * (t->bf16 ? 2 : 4);
}

static float *read_result(const Trial *t, int result, const void *device)
{
    const size_t count = result_count(t, result);
    const int in_bf16 = t->bf16 && result != 1;
    float *values = kn_alloc((count + 1) * sizeof *values);
    uint16_t *halves = kn_alloc((count + 1) * sizeof *halves);
    SUCCEEDS(cudaMemcpy(in_bf16 ? (void *)halves : values, device, count * (in_bf16 ? 2 : 4), cudaMemcpyDeviceToHost));
    for (size_t i = 0; in_bf16 && i < count; i++)
        values[i] = kn_bf16_to_float(halves[i]);
    free(halves);
    return values;
}

static void attend(Trial *t)
{
    void *rows[4], *results[RESULTS];
    for (int i = 0; i < 4; i++)
        rows[i] = random_rows(t, i == 1 || i == 2 ? KEYS : QUERIES, (uint32_t)i + 1);
    for (int i = 0; i < RESULTS; i++)
        results[i] = on_device(result_count(t, i) * 4, NULL);
    KnCudaAttention a = {.queries = QUERIES,
                         .keys = KEYS,
                         .heads = HEADS,
                         .size = t->size,
                         .span_count = t->span_count,
                         .scale = 1 / sqrtf((float)t->size),
                         .q = moved(t, rows[0]),
                         .k = moved(t, rows[1]),
                         .v = moved(t, rows[2]),
                         .spans = on_device((size_t)t->span_count * sizeof *t->spans, t->spans),
                         .out = results[0],
                         .lse = results[1],
                         .parts = t->parts,
                         .fault = on_device(sizeof t->fault, &t->fault)};
    a.workspace = on_device(kn_cuda_attention_bytes(&a), NULL);
    SUCCEEDS(kn_cuda_attention(t->bf16, &a, NULL));
    a.grad_out = moved(t, rows[3]);
    a.dq = results[2];
    a.dk = results[3];
    a.dv = results[4];
    SUCCEEDS(kn_cuda_attention_backward(t->bf16, &a, NULL));
    for (int i = 0; i < RESULTS; i++) {
        t->results[i] = read_result(t, i, results[i]);
        SUCCEEDS(cudaFree(results[i]));
    }
    SUCCEEDS(cudaMemcpy(&t->fault, a.fault, sizeof t->fault, cudaMemcpyDeviceToHost));
    for (int i = 0; i < 4; i++)
        SUCCEEDS(cudaFree(rows[i]));
    SUCCEEDS(cudaFree((void *)a.spans));
    SUCCEEDS(cudaFree(a.workspace));
    SUCCEEDS(cudaFree(a.fault));
}

static void release(Trial *t)
{
    for (int i = 0; i < RESULTS; i++)
        free(t->results[i]);
}

static Trial trial_of(int64_t size, int bf16)
{
    return (Trial){.size = size, .bf16 = bf16, .span_count = SPANS, .spans = spans};
}

static void expect_close(const Trial *t, const Trial *truth, int result, double bound)
{
    double error2 = 0, truth2 = 0;
    for (size_t i = 0; i < result_count(t, result); i++) {
        const double x = t->results[result][i], y = truth->results[result][i];
        if (x == y) /* both -inf, too */
            continue;
        error2 += (x - y) * (x - y);
        truth2 += y * y;
    }
    if (!(sqrt(error2) <= bound * sqrt(truth2)))
        fail_msg("heads of %d, %d parts: result %d has a relative error of %.3g", (int)t->size, t->parts, result,
                 sqrt(error2 / truth2));
}

/* Sanitizers are slow, and they see bugs in any order. */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

/* Of 70, 60, 3 and 1 queries, in tiles of 64, 32 or 16: parts of several tiles, of the last one, of none. */
static void tensor_cores_agree_with_float32(void **state)
{
    static const struct {
        int64_t size;
        int parts;
    } cases[] = {{40, 2}, {136, 3}, {8, 1}, {64, 4}, {72, 1}, {128, 1}, {128, 3}, {256, 2}};
    (void)state;
    for (size_t i = 0; i < (SANITIZED ? 2 : sizeof cases / sizeof *cases); i++) {
        Trial truth = trial_of(cases[i].size, 0), t = trial_of(cases[i].size, 1);
        attend(&truth);
        t.parts = cases[i].parts;
        attend(&t);
        for (int result = 0; result < RESULTS; result++)
            expect_close(&t, &truth, result, result == 1 ? 1e-5 : result == 0 ? 0.005 : 0.012);
        release(&t);
        release(&truth);
    }
}

static void expect_same_bits(const Trial *one, const Trial *other, const char *what)
{
    for (int i = 0; i < RESULTS; i++)
        if (memcmp(one->results[i], other->results[i], result_count(one, i) * sizeof(float)))
            fail_msg("heads of %d, %s: the bits of result %d differ", (int)one->size, what, i);
}

static void bits_do_not_depend_on_the_order_of_threads(void **state)
{
    static const char *const orders[] = {"backward", "random:1"};
    static const struct {
        int64_t size;
        int bf16, parts;
    } cases[] = {{20, 0, 1}, {64, 1, 3}, {128, 1, 1}, {256, 1, 2}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases && !SANITIZED; i++) {
        Trial first = trial_of(cases[i].size, cases[i].bf16);
        first.parts = cases[i].parts;
        unsetenv("KINORA_EMULATED_THREADS");
        attend(&first);
        for (size_t k = 0; k < sizeof orders / sizeof *orders; k++) {
            Trial t = trial_of(cases[i].size, cases[i].bf16);
            t.parts = cases[i].parts;
            setenv("KINORA_EMULATED_THREADS", orders[k], 1);
            attend(&t);
            expect_same_bits(&first, &t, orders[k]);
            release(&t);
        }
        unsetenv("KINORA_EMULATED_THREADS");
        release(&first);
    }
}

/* Another order of float32 sums turns the rounding to bfloat16 of few elements; parts that are rounded before they are
 * added turn that of every third. */
static void expect_rarely_differs(const Trial *t, const Trial *whole, int result)
{
    const size_t count = result_count(t, result);
    size_t differs = 0;
    for (size_t i = 0; i < count; i++) {
        const float x = t->results[result][i], y = whole->results[result][i];
        if (!(fabsf(x - y) <= fabsf(y) / 128))
            fail_msg("heads of %d, %d parts: result %d has %g for %g", (int)t->size, t->parts, result, (double)x,
                     (double)y);
        differs += x != y;
    }
    if (differs > count / 100)
        fail_msg("heads of %d, %d parts: %zu of %zu elements of result %d differ", (int)t->size, t->parts, differs,
                 count, result);
}

static void queries_in_parts_give_the_same_sums(void **state)
{
    static const struct {
        int64_t size;
        int parts;
    } cases[] = {{64, 2}, {64, KN_CUDA_MOST_PARTS}, {128, 2}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases && !SANITIZED; i++) {
        Trial whole = trial_of(cases[i].size, 1), t = trial_of(cases[i].size, 1);
        t.parts = cases[i].parts;
        attend(&whole);
        attend(&t);
        for (int result = 3; result < RESULTS; result++)
            expect_rarely_differs(&t, &whole, result);
        release(&whole);
        release(&t);
    }
}

/* As many as keep 264 blocks at work, but not for few queries, nor in float32. */
static void parts_follow_from_shapes(void **state)
{
    static const struct {
        int bf16;
        int64_t queries, keys, heads, size;
        int parts;
    } cases[] = {
        {1, 32760, 512, 12, 128, 8}, {1, 4096, 512, 12, 128, 4},    {1, 32760, 512, 2, 128, 16},
        {1, 1 << 20, 1, 1, 128, 32}, {1, 32760, 32760, 12, 128, 1}, {1, 4096, 4096, 12, 128, 1},
        {1, 640, 512, 12, 128, 1},   {0, 32760, 512, 12, 128, 1},   {1, 32760, 0, 12, 128, 1},
        {1, 32760, 512, 0, 128, 1},  {1, 32760, 512, 12, 64, 11},   {1, 450, 20, 1, 64, 8}, /* of the op table, too */
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const KnCudaAttention shape = {
            .queries = cases[i].queries, .keys = cases[i].keys, .heads = cases[i].heads, .size = cases[i].size};
        assert_int_equal(kn_cuda_attention_parts(cases[i].bf16, &shape), cases[i].parts);
    }
}

/* Queries of the third span, at the start of another table. */
static void bits_do_not_depend_on_other_spans(void **state)
{
    static const int64_t sizes[] = {20, 128};
    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes && !SANITIZED; i++) {
        Trial all = trial_of(sizes[i], 1), alone = trial_of(sizes[i], 1);
        alone.spans = &spans[2];
        alone.span_count = 1;
        attend(&all);
        attend(&alone);
        const size_t width = (size_t)(HEADS * sizes[i]), first = 75 * width;
        assert_memory_equal(all.results[0] + first, alone.results[0] + first, 60 * width * sizeof(float));
        assert_memory_equal(all.results[2] + first, alone.results[2] + first, 60 * width * sizeof(float));
        release(&all);
        release(&alone);
    }
}

/* Which take the kernel that reads one element at a time. */
static void rows_may_lie_anywhere(void **state)
{
    (void)state;
    Trial truth = trial_of(64, 0), t = trial_of(64, 1);
    t.shift = 1;
    attend(&truth);
    attend(&t);
    for (int result = 0; result < RESULTS; result++)
        expect_close(&t, &truth, result, 0.012);
    release(&truth);
    release(&t);
}

static void spans_that_leave_the_rows_are_reported(void **state)
{
    static const int32_t wild[][4] = {{-1, 5, 0, 5}, {0, -5, 0, 5}, {146, 5, 0, 5}, {0, 5, 166, 5}, {0, 5, -3, 5}};
    (void)state;
    for (size_t i = 0; i < (SANITIZED ? 2 : sizeof wild / sizeof *wild); i++)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            const int32_t table[2][4] = {{0, 3, 0, 3}, {wild[i][0], wild[i][1], wild[i][2], wild[i][3]}};
            Trial t = trial_of(8, bf16);
            t.spans = table;
            t.span_count = 2;
            attend(&t);
            assert_int_equal(t.fault.kind, KN_CUDA_WILD_SPAN);
            assert_int_equal(t.fault.position, 1);
            release(&t);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensor_cores_agree_with_float32),
        cmocka_unit_test(bits_do_not_depend_on_the_order_of_threads),
        cmocka_unit_test(queries_in_parts_give_the_same_sums),
        cmocka_unit_test(parts_follow_from_shapes),
        cmocka_unit_test(bits_do_not_depend_on_other_spans),
        cmocka_unit_test(rows_may_lie_anywhere),
        cmocka_unit_test(spans_that_leave_the_rows_are_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
