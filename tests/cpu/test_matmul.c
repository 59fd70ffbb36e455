/* The matrix product against float64 references, for every kernel that runs on this machine and for the AMX kernel
 * over emulated tiles. Operands are allocated exactly, so that a read past one is seen by AddressSanitizer. */
#include "core/base/bf16.h"
#include "core/base/memory.h"
#include "core/cpu/backend.h"
#include "core/cpu/isa.h"
#include "core/cpu/matmul.h"
#include "core/cpu/matmul_kernel.h"
#include "core/cpu/team.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define KN_AMX_EMULATED
#define KN_MATMUL_AMX_BLOCK amx_emulated_block
#include "core/cpu/tile/matmul_amx.c"

static const KnMatmulKernel amx_emulated = {"amx emulated", KN_ISA_AMX, KN_BF16, 32, 32, 1, amx_emulated_block};

/* Sanitizers are slow: memory alone is looked at then, bits and values of most products where there are none. */
#if defined(__SANITIZE_ADDRESS__)
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

/* One way of computing: an instruction set, or the emulated AMX kernel. */
typedef struct Engine {
    const char *name;
    KnIsa isa;
    const KnMatmulKernel *kernel;
} Engine;

static int engines(Engine *list)
{
    int count = 0;
    KnIsa best = kn_cpu_isa_limit(KN_ISA_COUNT);
    for (int isa = 0; isa <= (int)best; isa++)
        list[count++] = (Engine){kn_cpu_isa_name((KnIsa)isa), (KnIsa)isa, NULL};
    list[count++] = (Engine){"amx emulated", best, &amx_emulated};
    return count;
}

static void engine_use(const Engine *engine)
{
    kn_cpu_isa_limit(engine->isa);
    kn_matmul_use_kernel(engine->kernel);
}

/* A product with everything that it owns. */
typedef struct Case {
    KnMatmul product;
    KnDtype pack_from; /* for KN_PACKED: what the unpacked B is */
    int pack_transposed;
    double *sums, *magnitudes; /* [m,n] in float64: of a b, and of |a b| */
    void *a, *b, *packed, *c, *preactivation, *workspace;
    float *bias;
    float *before; /* [m, ldc]: what C held */
} Case;

static uint32_t next_random(uint32_t *state)
{
    *state = *state * 1664525 + 1013904223;
    return *state >> 8;
}

static double element(const void *matrix, KnDtype type, int64_t i)
{
    return type == KN_F32 ? (double)((const float *)matrix)[i]
                          : (double)kn_bf16_to_float(((const uint16_t *)matrix)[i]);
}

static void set_element(void *matrix, KnDtype type, int64_t i, float value)
{
    if (type == KN_F32)
        ((float *)matrix)[i] = value;
    else
        ((uint16_t *)matrix)[i] = kn_bf16_from_float(value);
}

static size_t type_bytes(KnDtype type)
{
    return type == KN_F32 ? 4 : 2;
}

/* Exactly the stored elements: the last row ends with its last column. */
static void *make_matrix(KnDtype type, int64_t rows, int64_t columns, int64_t ld, uint32_t *state)
{
    int64_t count = rows && columns ? (rows - 1) * ld + columns : 0;
    void *matrix = malloc((size_t)count * type_bytes(type) + (count == 0));
    for (int64_t i = 0; i < count; i++)
        set_element(matrix, type, i, (float)(next_random(state) % 2001) / 1000.0f - 1.0f);
    return matrix;
}

static void *aligned(size_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
    memset(memory, 0xff, bytes); /* NaN: whatever is read before it is written shows */
    return memory;
}

/* The products in float64; B's values as they are once packed. */
static void case_reference(Case *c)
{
    const KnMatmul *p = &c->product;
    const int packed = p->b_form == KN_PACKED, a_transposed = p->a_form == KN_TRANSPOSED;
    const int b_transposed = packed ? c->pack_transposed : p->b_form == KN_TRANSPOSED;
    const KnDtype b_type = packed ? c->pack_from : p->type;
    const int64_t lda = p->lda ? p->lda : a_transposed ? p->m : p->k;
    const int64_t ldb = p->ldb ? p->ldb : b_transposed ? p->k : p->n;
    double *column = malloc((size_t)p->k * sizeof(double) + 1);
    double *a = malloc((size_t)(p->m * p->k) * sizeof(double) + 1);
    c->sums = malloc((size_t)(p->m * p->n) * sizeof(double));
    c->magnitudes = malloc((size_t)(p->m * p->n) * sizeof(double));
    for (int64_t m = 0; m < p->m; m++)
        for (int64_t k = 0; k < p->k; k++)
            a[m * p->k + k] = element(c->a, p->type, a_transposed ? k * lda + m : m * lda + k);
    for (int64_t n = 0; n < p->n; n++) {
        for (int64_t k = 0; k < p->k; k++) {
            column[k] = element(c->b, b_type, b_transposed ? n * ldb + k : k * ldb + n);
            if (p->type == KN_BF16)
                column[k] = (double)kn_bf16_to_float(kn_bf16_from_float((float)column[k]));
        }
        for (int64_t m = 0; m < p->m; m++) {
            double sum = 0, magnitude = 0;
            for (int64_t k = 0; k < p->k; k++) {
                sum += a[m * p->k + k] * column[k];
                magnitude += fabs(a[m * p->k + k] * column[k]);
            }
            c->sums[m * p->n + n] = sum;
            c->magnitudes[m * p->n + n] = magnitude;
        }
    }
    free(a);
    free(column);
}

static void case_make(Case *c, const KnMatmul *wanted, int gap, KnDtype pack_from, int pack_transposed, int with_bias,
                      int with_preactivation)
{
    uint32_t state = 12345;
    memset(c, 0, sizeof *c);
    c->product = *wanted;
    c->pack_from = pack_from;
    c->pack_transposed = pack_transposed;
    KnMatmul *p = &c->product;
    const int a_t = p->a_form == KN_TRANSPOSED,
              b_t = p->b_form == KN_PACKED ? pack_transposed : p->b_form == KN_TRANSPOSED;
    const KnDtype b_type = p->b_form == KN_PACKED ? pack_from : p->type;
    int64_t lda = (a_t ? p->m : p->k) + gap, ldb = (b_t ? p->k : p->n) + gap, ldc = p->n + gap;
    p->lda = gap ? lda : 0;
    p->ldb = gap ? ldb : 0;
    p->ldc = gap ? ldc : 0;
    p->a = c->a = make_matrix(p->type, a_t ? p->k : p->m, a_t ? p->m : p->k, lda, &state);
    p->b = c->b = make_matrix(b_type, b_t ? p->n : p->k, b_t ? p->k : p->n, ldb, &state);
    p->c = c->c = malloc((size_t)(p->m * ldc) * type_bytes(p->c_type) + 1);
    c->before = malloc((size_t)(p->m * ldc) * sizeof(float) + 1);
    for (int64_t i = 0; i < p->m * ldc; i++) {
        c->before[i] = (float)(next_random(&state) % 64) / 16.0f;
        set_element(c->c, p->c_type, i, c->before[i]);
    }
    if (with_preactivation)
        p->preactivation = c->preactivation = calloc((size_t)(p->m * ldc) + 1, type_bytes(p->c_type));
    if (with_bias) {
        c->bias = make_matrix(KN_F32, 1, p->n, p->n, &state);
        p->bias = c->bias;
    }
}

/* Packs (if asked to) and runs with the engine in use. */
static void case_run(Case *c, int serial)
{
    KnMatmul *p = &c->product;
    free(c->packed);
    free(c->workspace);
    c->packed = NULL;
    if (p->b_form == KN_PACKED) {
        c->packed = aligned(kn_matmul_packed_bytes(p->k, p->n, p->type));
        KnMatmulPack pack = {.k = p->k,
                             .n = p->n,
                             .type = p->type,
                             .b = c->b,
                             .b_type = c->pack_from,
                             .ldb = p->ldb,
                             .b_form = c->pack_transposed ? KN_TRANSPOSED : KN_PLAIN,
                             .packed = c->packed};
        if (serial)
            kn_matmul_pack_serial(&pack);
        else
            kn_matmul_pack(&pack);
        p->b = c->packed;
    }
    c->workspace = aligned(kn_matmul_workspace_bytes(p));
    int64_t ldc = p->ldc ? p->ldc : p->n;
    for (int64_t i = 0; i < p->m * ldc; i++)
        set_element(c->c, p->c_type, i, c->before[i]);
    if (serial)
        kn_matmul_serial(p, c->workspace);
    else
        kn_matmul_run(p, c->workspace);
}

static double activate(double x, KnEpilogue activation)
{
    if (activation == KN_EPILOGUE_SILU)
        return x / (1 + exp(-x));
    if (activation == KN_EPILOGUE_GELU_TANH)
        return 0.5 * x * (1 + tanh(0.79788456080286535588 * (x + 0.044715 * x * x * x)));
    return x;
}

static void assert_close(const Engine *engine, const KnMatmul *p, const char *what, int64_t m, int64_t n, double got,
                         double want, double scale, KnDtype type)
{
    double bound = scale * 4e-7 + (type == KN_BF16 ? fabs(want) / 256 + 1e-30 : 0);
    if (!(fabs(got - want) <= bound))
        fail_msg("%s %s %ldx%ldx%ld forms %d %d: %s[%ld,%ld] is %.9g, not %.9g", engine->name,
                 p->type == KN_F32 ? "f32" : "bf16", (long)p->m, (long)p->n, (long)p->k, p->a_form, p->b_form, what,
                 (long)m, (long)n, got, want);
}

static void case_check(const Case *c, const Engine *engine)
{
    const KnMatmul *p = &c->product;
    int64_t ldc = p->ldc ? p->ldc : p->n;
    for (int64_t m = 0; m < p->m; m++) {
        for (int64_t n = 0; n < p->n; n++) {
            double alpha = p->alpha == 0 ? 1 : (double)p->alpha;
            double sum = c->sums[m * p->n + n], scale = c->magnitudes[m * p->n + n];
            double value = alpha * sum + (c->bias ? (double)c->bias[n] : 0);
            if (p->accumulate)
                value += (double)c->before[m * ldc + n];
            scale = fabs(alpha) * scale + fabs(value) + 1;
            if (p->preactivation)
                assert_close(engine, p, "preactivation", m, n, element(p->preactivation, p->c_type, m * ldc + n), value,
                             scale, p->c_type);
            assert_close(engine, p, "C", m, n, element(p->c, p->c_type, m * ldc + n), activate(value, p->activation),
                         scale, p->c_type);
        }
        for (int64_t n = p->n; n < ldc; n++)
            assert_true(element(p->c, p->c_type, m * ldc + n) == (double)c->before[m * ldc + n]);
    }
}

static void case_clear(Case *c)
{
    free(c->sums);
    free(c->magnitudes);
    free(c->a);
    free(c->b);
    free(c->packed);
    free(c->c);
    free(c->preactivation);
    free(c->workspace);
    free(c->bias);
    free(c->before);
}

static void check_everywhere(const KnMatmul *wanted, int gap, KnDtype pack_from, int pack_transposed, int with_bias,
                             int with_preactivation)
{
    Engine list[KN_ISA_COUNT + 1];
    int count = engines(list);
    Case c;
    case_make(&c, wanted, gap, pack_from, pack_transposed, with_bias, with_preactivation);
    case_reference(&c);
    for (int i = 0; i < count; i++) {
        if (list[i].kernel && list[i].kernel->type != wanted->type)
            continue;
        engine_use(&list[i]);
        case_run(&c, i % 2);
        case_check(&c, &list[i]);
    }
    engine_use(&(Engine){"", KN_ISA_COUNT, NULL});
    case_clear(&c);
}

static const int64_t shapes[][3] = {
    {1, 1, 1},    {1, 17, 5},   {5, 1, 9},   {7, 13, 1},    {16, 16, 32}, {8, 48, 64}, {9, 49, 65},    {31, 33, 35},
    {37, 53, 61}, {64, 96, 70}, {3, 100, 2}, {47, 131, 31}, {130, 50, 7}, {2, 5, 0},   {97, 113, 129}, {160, 400, 40},
};
enum { SHAPE_COUNT = sizeof shapes / sizeof *shapes };

static void every_form_and_type_matches_the_reference(void **unused)
{
    (void)unused;
    for (int s = 0; s < SHAPE_COUNT; s++)
        for (int type = 0; type < 2; type++)
            for (int c_type = 0; c_type < 2; c_type++)
                for (int a_form = 0; a_form < 2; a_form++)
                    for (int b_form = 0; b_form < 3; b_form++) {
                        KnMatmul p = {.m = shapes[s][0],
                                      .n = shapes[s][1],
                                      .k = shapes[s][2],
                                      .type = type ? KN_BF16 : KN_F32,
                                      .c_type = c_type ? KN_BF16 : KN_F32,
                                      .a_form = (KnMatrixForm)a_form,
                                      .b_form = (KnMatrixForm)b_form};
                        check_everywhere(&p, (s + type) % 2 ? 3 : 0, p.type, s % 2, a_form, 0);
                    }
}

static void weights_are_packed_from_either_type_and_form(void **unused)
{
    (void)unused;
    for (int s = 0; s < SHAPE_COUNT; s++)
        for (int type = 0; type < 2; type++)
            for (int from = 0; from < 2; from++)
                for (int transposed = 0; transposed < 2; transposed++) {
                    KnMatmul p = {.m = 5,
                                  .n = shapes[s][1],
                                  .k = shapes[s][2],
                                  .type = type ? KN_BF16 : KN_F32,
                                  .b_form = KN_PACKED};
                    check_everywhere(&p, s % 3, from ? KN_BF16 : KN_F32, transposed, 0, 0);
                }
}

static void the_epilogue_scales_adds_and_activates(void **unused)
{
    (void)unused;
    static const struct {
        float alpha;
        int bias, accumulate, preactivation;
        KnEpilogue activation;
        KnDtype c_type;
    } rows[] = {
        {0.25f, 0, 0, 0, KN_EPILOGUE_NONE, KN_F32},   {-2.0f, 1, 1, 0, KN_EPILOGUE_NONE, KN_F32},
        {0, 0, 1, 0, KN_EPILOGUE_NONE, KN_F32},       {0, 1, 0, 0, KN_EPILOGUE_GELU_TANH, KN_F32},
        {0, 1, 0, 1, KN_EPILOGUE_GELU_TANH, KN_BF16}, {0.5f, 0, 0, 1, KN_EPILOGUE_SILU, KN_F32},
        {0, 1, 0, 0, KN_EPILOGUE_SILU, KN_BF16},      {8.0f, 1, 0, 1, KN_EPILOGUE_GELU_TANH, KN_F32},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (int type = 0; type < 2; type++)
            for (int s = 7; s < 10; s++) {
                KnMatmul p = {.m = shapes[s][0],
                              .n = shapes[s][1],
                              .k = shapes[s][2],
                              .type = type ? KN_BF16 : KN_F32,
                              .c_type = rows[i].c_type,
                              .alpha = rows[i].alpha,
                              .accumulate = rows[i].accumulate,
                              .activation = rows[i].activation};
                check_everywhere(&p, 2, p.type, 0, rows[i].bias, rows[i].preactivation);
            }
}

/* Long K: several packing steps, sums carried in C or in the workspace, and splits of K. */
static const struct {
    int64_t m, n, k;
    int a_form, b_form, accumulate;
    float alpha;
    KnDtype c_type;
    int repeats; /* the memory of another one is used in the same way */
} long_products[] = {
    {16, 16, 65536, 1, 0, 0, 0, KN_F32, 0},
    {16, 16, 65536, 1, 0, 1, 0.5f, KN_F32, 1},
    {1, 1, 65536, 0, 1, 0, 0, KN_F32, 0},
    {1, 16, 20001, 0, 0, 0, 0, KN_BF16, 0},
    {40, 70, 9001, 1, 1, 1, 0, KN_BF16 /* set to f32 below */, 0},
    {33, 20, 8193, 0, 2, 0, 0, KN_BF16, 0},
    {30, 600, 6007, 1, 0, 0, 0, KN_F32, 0},
    {30, 600, 6007, 1, 0, 1, 0, KN_F32, 1},
    {30, 600, 6007, 1, 0, 0, 3, KN_BF16, 1},
    {30, 600, 6007, 1, 1, 1, 2, KN_F32, 0},
    {3, 700, 9000, 0, 0, 0, 0, KN_F32, 0},
};

static KnMatmul long_product(size_t i, KnDtype type)
{
    return (KnMatmul){.m = long_products[i].m,
                      .n = long_products[i].n,
                      .k = long_products[i].k,
                      .type = type,
                      .a_form = (KnMatrixForm)long_products[i].a_form,
                      .b_form = (KnMatrixForm)long_products[i].b_form,
                      .accumulate = long_products[i].accumulate,
                      .alpha = long_products[i].alpha,
                      .c_type = long_products[i].accumulate ? KN_F32 : long_products[i].c_type};
}

static void long_sums_match_the_reference(void **unused)
{
    (void)unused;
    for (size_t i = 0; i < sizeof long_products / sizeof *long_products; i++)
        for (int type = 0; type < 2 && !(SANITIZED && long_products[i].repeats); type++) {
            KnMatmul p = long_product(i, type ? KN_BF16 : KN_F32);
            check_everywhere(&p, i % 2 ? 5 : 0, p.type, 0, 1, 0);
        }
}

static void expect_same_bits(const KnMatmul *wanted, int gap)
{
    Engine list[KN_ISA_COUNT + 1];
    int count = engines(list);
    Case c;
    case_make(&c, wanted, gap, wanted->type, 1, 1, 0);
    size_t bytes = (size_t)(wanted->m * (wanted->n + gap)) * type_bytes(wanted->c_type);
    void *first = malloc(bytes + 1);
    for (int i = 0; i < count; i++) {
        if (list[i].kernel && list[i].kernel->type != wanted->type)
            continue;
        engine_use(&list[i]);
        case_run(&c, 1);
        memcpy(first, c.c, bytes);
        for (int threads = SANITIZED ? 3 : 1; threads <= 3; threads++) {
            kn_cpu_set_threads(threads);
            case_run(&c, 0);
            if (memcmp(first, c.c, bytes) != 0)
                fail_msg("%s %ldx%ldx%ld: %d threads give other bits", list[i].name, (long)wanted->m, (long)wanted->n,
                         (long)wanted->k, threads);
        }
        kn_cpu_set_threads(0);
    }
    engine_use(&(Engine){"", KN_ISA_COUNT, NULL});
    free(first);
    case_clear(&c);
}

static void bits_do_not_depend_on_threads(void **unused)
{
    (void)unused;
    static const int64_t table[][3] = {{1, 1500, 700},   {1500, 1, 700},  {1500, 700, 1}, {211, 307, 401},
                                       {1024, 128, 128}, {64, 192, 2048}, {500, 31, 97}};
    for (size_t s = 0; s < sizeof table / sizeof *table; s++)
        for (int type = 0; type < 2; type++)
            for (int form = 0; form < 3; form++) {
                if (SANITIZED && form != (int)s % 3)
                    continue;
                KnMatmul p = {.m = table[s][0],
                              .n = table[s][1],
                              .k = table[s][2],
                              .type = type ? KN_BF16 : KN_F32,
                              .c_type = type ? KN_BF16 : KN_F32,
                              .a_form = form == 0 ? KN_TRANSPOSED : KN_PLAIN,
                              .b_form = (KnMatrixForm)form};
                expect_same_bits(&p, form);
            }
    for (size_t i = 0; i < sizeof long_products / sizeof *long_products; i++)
        for (int type = 0; type < 2 && !(SANITIZED && long_products[i].repeats); type++) {
            KnMatmul p = long_product(i, type ? KN_BF16 : KN_F32);
            expect_same_bits(&p, 0);
        }
}

static void run_serial_case(void *argument, int64_t block, int slot)
{
    Case *cases = argument;
    (void)slot;
    case_run(&cases[block], 1);
}

static void serial_products_run_inside_a_parallel_loop(void **unused)
{
    (void)unused;
    enum { COUNT = 12, SIZE = 128 };
    KnMatmul p = {.m = SIZE, .n = SIZE, .k = SIZE, .type = KN_BF16, .c_type = KN_F32, .b_form = KN_TRANSPOSED};
    Case c[COUNT];
    for (int i = 0; i < COUNT; i++) {
        case_make(&c[i], &p, 0, KN_BF16, 0, 0, 0);
        case_reference(&c[i]);
    }
    Engine now = {"serial", KN_ISA_COUNT, NULL};
    kn_team_run_on(3, COUNT, run_serial_case, c);
    for (int i = 0; i < COUNT; i++) {
        case_check(&c[i], &now);
        case_clear(&c[i]);
    }
}

static void infinities_and_nans_stay_in_their_rows(void **unused)
{
    (void)unused;
    Engine list[KN_ISA_COUNT + 1];
    int count = engines(list);
    KnMatmul p = {.m = 19, .n = 21, .k = 23, .type = KN_BF16, .c_type = KN_BF16, .activation = KN_EPILOGUE_SILU};
    Case c;
    case_make(&c, &p, 0, KN_BF16, 0, 0, 0);
    set_element(c.a, KN_BF16, 4 * 23 + 22, NAN);
    set_element(c.a, KN_BF16, 18 * 23 + 22, INFINITY);
    for (int i = 0; i < count; i++) {
        engine_use(&list[i]);
        case_run(&c, 0);
        for (int m = 0; m < 19; m++)
            for (int n = 0; n < 21; n++) {
                double value = element(c.c, KN_BF16, m * 21 + n);
                assert_int_equal(m == 4 || (m == 18 && !isfinite(value)), !isfinite(value));
                assert_true(m != 4 || isnan(value));
            }
    }
    engine_use(&(Engine){"", KN_ISA_COUNT, NULL});
    case_clear(&c);
}

static int break_kernel;

static void broken_block(const KnMatmulBlock *block)
{
    amx_emulated_block(block);
    if (break_kernel)
        ((float *)(void *)block->c)[block->ldc * (block->rows - 1) + block->columns - 1] += 1;
}

static void the_self_test_tells_right_kernels_from_wrong_ones(void **unused)
{
    (void)unused;
    KnMatmulKernel kernel = amx_emulated;
    kernel.block = broken_block;
    break_kernel = 0;
    assert_int_equal(kn_matmul_self_test(&kernel), 1);
    break_kernel = 1;
    assert_int_equal(kn_matmul_self_test(&kernel), 0);
    for (int isa = 0; isa <= (int)kn_cpu_isa(); isa++) {
        assert_int_equal(kn_matmul_self_test(kn_matmul_kernel(KN_F32, (KnIsa)isa)), 1);
        assert_int_equal(kn_matmul_self_test(kn_matmul_kernel(KN_BF16, (KnIsa)isa)), 1);
    }
}

static void packed_values_lie_where_the_header_says(void **unused)
{
    (void)unused;
    enum { K = 37, N = 21, K32 = 64 };
    float b[K * N];
    for (int i = 0; i < K * N; i++)
        b[i] = (float)(i % 251);
    Engine list[KN_ISA_COUNT + 1];
    int count = engines(list);
    assert_int_equal(kn_matmul_packed_bytes(K, N, KN_BF16), 2 * K32 * 16 * 2);
    assert_int_equal(kn_matmul_packed_bytes(K, N, KN_F32), 2 * K * 16 * 4);
    for (int i = 0; i < count; i++) {
        engine_use(&list[i]);
        uint16_t *half = aligned(2 * K32 * 16 * 2);
        float *full = aligned(2 * K * 16 * 4);
        kn_matmul_pack(&(KnMatmulPack){.k = K, .n = N, .type = KN_BF16, .b = b, .b_type = KN_F32, .packed = half});
        kn_matmul_pack(&(KnMatmulPack){.k = K, .n = N, .type = KN_F32, .b = b, .b_type = KN_F32, .packed = full});
        for (int k = 0; k < K32; k++)
            for (int n = 0; n < 32; n++) {
                float want = k < K && n < N ? b[k * N + n] : 0;
                assert_true(kn_bf16_to_float(half[((n / 16 * K32 / 2 + k / 2) * 16 + n % 16) * 2 + k % 2]) == want);
                if (k < K)
                    assert_true(full[(n / 16 * K + k) * 16 + n % 16] == want);
            }
        free(half);
        free(full);
    }
    engine_use(&(Engine){"", KN_ISA_COUNT, NULL});
}

static void the_peak_is_a_plausible_rate(void **unused)
{
    (void)unused;
    double f32 = kn_matmul_peak(KN_F32, 0.02), bf16 = kn_matmul_peak(KN_BF16, 0.02);
    assert_true(f32 > 0.1 && f32 < 1e6);
    assert_true(bf16 > 0.1 && bf16 < 1e6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_form_and_type_matches_the_reference),
        cmocka_unit_test(weights_are_packed_from_either_type_and_form),
        cmocka_unit_test(the_epilogue_scales_adds_and_activates),
        cmocka_unit_test(long_sums_match_the_reference),
        cmocka_unit_test(bits_do_not_depend_on_threads),
        cmocka_unit_test(serial_products_run_inside_a_parallel_loop),
        cmocka_unit_test(infinities_and_nans_stay_in_their_rows),
        cmocka_unit_test(the_self_test_tells_right_kernels_from_wrong_ones),
        cmocka_unit_test(packed_values_lie_where_the_header_says),
        cmocka_unit_test(the_peak_is_a_plausible_rate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
