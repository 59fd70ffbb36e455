/* Two probes of the matrix product's kernels: is this one right on this machine, and how fast is the machine now. */
#include "core/base/bf16.h"
#include "core/base/error.h"
#include "core/cpu/backend.h"
#include "core/cpu/matmul_kernel.h"
#include "core/cpu/team.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

/* --- Self-test ---------------------------------------------------------------------------------------------------- */

enum {
    TEST_ROWS = 45,
    TEST_COLUMNS = 37,
    TEST_K = 83,
    TEST_PADDED_ROWS = 48,
    TEST_PADDED_COLUMNS = 48,
    TEST_PADDED_K = 96
};

/* Small integers: every sum is exact in f32, so any order of summation gives the same result. */
static float test_value(int64_t i)
{
    return (float)(i * 37 % 17 - 8);
}

static void store(void *to, KnDtype type, int64_t i, float value)
{
    if (type == KN_F32)
        ((float *)to)[i] = value;
    else
        ((uint16_t *)to)[i] = kn_bf16_from_float(value);
}

int kn_matmul_self_test(const KnMatmulKernel *kernel)
{
    /* A as [m,k] for use in place and as [k,m] for packing, B packed; f32 is the larger of the two types. */
    static _Thread_local _Alignas(64) float a[TEST_ROWS * TEST_K], b[TEST_K * TEST_COLUMNS];
    static _Thread_local _Alignas(64) float a_packed[TEST_PADDED_ROWS * TEST_PADDED_K];
    static _Thread_local _Alignas(64) float b_packed[TEST_PADDED_K * TEST_PADDED_COLUMNS];
    static _Thread_local float c[TEST_ROWS * TEST_COLUMNS];
    const KnDtype type = kernel->type;
    const int64_t element = type == KN_F32 ? 4 : 2, padded_k = type == KN_F32 ? TEST_K : TEST_PADDED_K;
    for (int packed = 0; packed < 2; packed++) {
        for (int64_t m = 0; m < TEST_ROWS; m++)
            for (int64_t k = 0; k < TEST_K; k++)
                store(a, type, packed ? k * TEST_ROWS + m : m * TEST_K + k, test_value(m * TEST_K + k));
        for (int64_t i = 0; i < TEST_K * TEST_COLUMNS; i++)
            store(b, type, i, test_value(i + 5));
        KnPackBlock pack = {.k = TEST_K,
                            .type = type,
                            .x_type = type,
                            .panel_bytes = padded_k * KN_PANEL * element,
                            .last_k = TEST_K,
                            .last_panel = 3};
        pack.n = pack.ldx = TEST_COLUMNS;
        pack.x = b;
        pack.packed = (char *)b_packed;
        kn_matmul_pack_block_generic(&pack);
        pack.n = pack.ldx = TEST_ROWS;
        pack.x = a;
        pack.packed = (char *)a_packed;
        pack.rows_packing = kernel->rows_packing;
        if (packed)
            kn_matmul_pack_block_generic(&pack);
        KnMatmulBlock block = {.rows = TEST_ROWS,
                               .columns = TEST_COLUMNS,
                               .k = TEST_K,
                               .a = packed ? (char *)a_packed : (char *)a,
                               .a_stride = packed ? pack.panel_bytes : TEST_K * element,
                               .a_packed = packed,
                               .b = (char *)b_packed,
                               .b_stride = pack.panel_bytes,
                               .c = (char *)c,
                               .ldc = TEST_COLUMNS,
                               .c_type = KN_F32,
                               .alpha = 1};
        memset(c, 0, sizeof c);
        kernel->block(&block);
        for (int64_t m = 0; m < TEST_ROWS; m++)
            for (int64_t n = 0; n < TEST_COLUMNS; n++) {
                float sum = 0;
                for (int64_t k = 0; k < TEST_K; k++)
                    sum += test_value(m * TEST_K + k) * test_value(k * TEST_COLUMNS + n + 5);
                if (c[m * TEST_COLUMNS + n] != sum)
                    return 0;
            }
    }
    return 1;
}

/* --- Peak --------------------------------------------------------------------------------------------------------- */

/* Long enough sums that the ends of tiles do not count; operands of 128 KiB at most, which stay in the second-level
 * cache. */
enum { PEAK_ROWS = 64, PEAK_COLUMNS = 48, PEAK_K_BYTES = 2048, PEAK_SLICES = 8 };

static double seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

typedef struct Peak {
    const KnMatmulKernel *kernel;
    int64_t rows, columns, k;
    double seconds;
    atomic_int_fast64_t products; /* finished by all threads */
} Peak;

/* Repeats one product for the given time. */
static void repeat_product(void *argument, int64_t block, int slot)
{
    (void)block, (void)slot;
    Peak *peak = argument;
    const int64_t row_bytes = PEAK_K_BYTES;
    _Alignas(64) char a[PEAK_ROWS * PEAK_K_BYTES], b[PEAK_COLUMNS * PEAK_K_BYTES];
    _Alignas(64) float c[PEAK_ROWS * PEAK_COLUMNS];
    memset(a, 0x3f, sizeof a); /* 0.75: zeros would let the processor run cooler than real values do */
    memset(b, 0x3f, sizeof b);
    KnMatmulBlock product = {.rows = peak->rows,
                             .columns = peak->columns,
                             .k = peak->k,
                             .a = a,
                             .a_stride = row_bytes,
                             .b = b,
                             .b_stride = row_bytes * KN_PANEL,
                             .c = (char *)c,
                             .ldc = PEAK_COLUMNS,
                             .c_type = KN_F32,
                             .alpha = 1};
    int64_t count = 0;
    double end = seconds_now() + peak->seconds;
    do {
        for (int i = 0; i < 4; i++)
            peak->kernel->block(&product);
        count += 4;
    } while (seconds_now() < end);
    atomic_fetch_add(&peak->products, count);
}

double kn_matmul_peak(KnDtype type, double seconds)
{
    const KnMatmulKernel *kernel = kn_matmul_kernel_in_use(type);
    const int64_t k = PEAK_K_BYTES / (type == KN_F32 ? 4 : 2);
    const int64_t rows = PEAK_ROWS / kernel->tile_rows * kernel->tile_rows;
    const int64_t columns = PEAK_COLUMNS / kernel->tile_columns * kernel->tile_columns;
    const double flops = 2.0 * (double)(rows * columns * k);
    double best = 0;
    for (int slice = 0; slice < PEAK_SLICES; slice++) {
        Peak peak = {.kernel = kernel, .rows = rows, .columns = columns, .k = k, .seconds = seconds / PEAK_SLICES};
        double start = seconds_now();
        kn_team_run(kn_cpu_threads(), repeat_product, &peak);
        best = fmax(best, flops * (double)peak.products / (seconds_now() - start));
    }
    return best * 1e-9;
}
