/* Two probes of the matrix product's kernels: is this one right on this machine, and how fast is the machine now. */
#include "core/base/bf16.h"
#include "core/base/error.h"
#include "core/cpu/matmul_kernel.h"

#include <math.h>
#include <omp.h>
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

/* Products that one thread finishes in the given time. */
static double count_products(const KnMatmulBlock *block, const KnMatmulKernel *kernel, double seconds)
{
    double count = 0, end = seconds_now() + seconds;
    do {
        for (int i = 0; i < 4; i++)
            kernel->block(block);
        count += 4;
    } while (seconds_now() < end);
    return count;
}

double kn_matmul_peak(KnDtype type, double seconds)
{
    const KnMatmulKernel *kernel = kn_matmul_kernel_in_use(type);
    const int64_t element = type == KN_F32 ? 4 : 2;
    double best = 0;
    for (int slice = 0; slice < PEAK_SLICES; slice++) {
        double total = 0, start = seconds_now();
#pragma omp parallel reduction(+ : total)
        {
            _Alignas(64) char a[PEAK_ROWS * PEAK_K_BYTES], b[PEAK_COLUMNS * PEAK_K_BYTES];
            _Alignas(64) float c[PEAK_ROWS * PEAK_COLUMNS];
            const int64_t rows = 2 * kernel->tile_rows, k = PEAK_K_BYTES / element;
            memset(a, 0x3f, sizeof a); /* 0.75: zeros would let the processor run cooler than real values do */
            memset(b, 0x3f, sizeof b);
            KnMatmulBlock block = {.rows = rows,
                                   .columns = kernel->tile_columns,
                                   .k = k,
                                   .a = a,
                                   .a_stride = k * element,
                                   .b = b,
                                   .b_stride = k * KN_PANEL * element,
                                   .c = (char *)c,
                                   .ldc = PEAK_COLUMNS,
                                   .c_type = KN_F32,
                                   .alpha = 1};
            total += count_products(&block, kernel, seconds / PEAK_SLICES) * 2.0 * (double)(rows * block.columns * k);
        }
        best = fmax(best, total / (seconds_now() - start));
    }
    return best * 1e-9;
}
