/* Rounding to 8-bit floats on the emulated device, against float64 with the formats' definitions: every byte, as it
 * lies and transposed, with known scales and without; and what cuBLASLt's stand-in refuses of such operands. */
#include "core/base/bf16.h"
#include "core/base/fp8.h"
#include "core/base/memory.h"
#include "core/cuda/kernels.h"

#include <cublasLt.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SUCCEEDS(call) assert_string_equal(cudaGetErrorName(call), "cudaSuccess")

typedef struct Trial {
    int64_t rows, columns, padded;
    int bf16, e5m2, shift; /* elements by which x lies off its alignment */
    double *values;
    void *x, *plain, *transposed, *scales; /* scales: of the device, scale, largest, inverse */
    unsigned char *bytes, *turned;
    float results[3];
} Trial;

/* To the nearest value of the format, ties to the even mantissa, beyond the largest the largest. */
static double rounded(double x, int e5m2)
{
    const int mantissa = e5m2 ? 2 : 3, least = e5m2 ? -14 : -6;
    const double most = e5m2 ? 57344 : 448;
    int exponent;
    if (x == 0 || isnan(x))
        return x;
    if (isinf(x))
        return NAN;
    frexp(x, &exponent);
    exponent = exponent - 1 > least ? exponent - 1 : least;
    const double unit = ldexp(1, exponent - mantissa), value = nearbyint(x / unit) * unit;
    return fabs(value) > most ? copysign(most, x) : value;
}

static double decoded(unsigned char byte, int e5m2)
{
    const int mantissa = e5m2 ? 2 : 3, bias = e5m2 ? 15 : 7, fraction = byte & ((1 << mantissa) - 1);
    const int exponent = (byte & 127) >> mantissa;
    const double sign = byte & 128 ? -1 : 1, part = ldexp(fraction, -mantissa);
    if (e5m2 ? exponent == 31 : (byte & 127) == 127)
        return NAN;
    return sign * (exponent ? ldexp(1 + part, exponent - bias) : ldexp(part, 1 - bias));
}

static void *on_device(size_t bytes, const void *from)
{
    void *device;
    SUCCEEDS(cudaMalloc(&device, bytes));
    if (from)
        SUCCEEDS(cudaMemcpy(device, from, bytes, cudaMemcpyHostToDevice));
    return device;
}

/* Magnitudes over 2^-24 .. 2^8, zeros, ties of both formats. */
static double draw(uint32_t *random)
{
    *random = *random * 1664525u + 1013904223u;
    const double fraction = 1 + (double)(*random >> 9 & 63) / 64;
    const int exponent = (int)(*random >> 16 & 31) - 24;
    return *random >> 28 == 0 ? 0 : copysign(ldexp(fraction, exponent), *random >> 27 & 1 ? 1 : -1);
}

static Trial begin(int64_t rows, int64_t columns, int bf16, int e5m2, int shift)
{
    Trial t = {.rows = rows, .columns = columns, .padded = (rows + 15) / 16 * 16, .bf16 = bf16, .e5m2 = e5m2};
    const size_t count = (size_t)(rows * columns), size = bf16 ? 2 : 4;
    unsigned char *x = kn_alloc((count + (size_t)shift) * size);
    uint32_t random = 5;
    t.shift = shift;
    t.values = kn_alloc(count * sizeof *t.values);
    for (size_t i = 0; i < count; i++) {
        t.values[i] = draw(&random);
        if (bf16)
            ((uint16_t *)x)[i + (size_t)shift] = kn_bf16_from_float((float)t.values[i]);
        else
            ((float *)x)[i + (size_t)shift] = (float)t.values[i];
    }
    t.x = on_device((count + (size_t)shift) * size, x);
    free(x);
    t.bytes = kn_alloc(count);
    t.turned = kn_alloc((size_t)(columns * t.padded));
    t.plain = on_device(count, NULL);
    t.transposed = on_device((size_t)(columns * t.padded), NULL);
    return t;
}

/* A negative scale: none is given; 0: it is not known. */
static void quantize(Trial *t, float scale, float largest)
{
    const float given[3] = {scale, largest, -1};
    t->scales = on_device(sizeof given, given);
    float *scales = t->scales;
    KnCudaQuantize q = {.rows = t->rows,
                        .columns = t->columns,
                        .e5m2 = t->e5m2,
                        .x = (char *)t->x + t->shift * (t->bf16 ? 2 : 4),
                        .plain = t->plain,
                        .transposed = t->transposed,
                        .scale = scale < 0 ? NULL : scales,
                        .largest = scales + 1,
                        .inverse = scales + 2};
    SUCCEEDS(kn_cuda_quantize(t->bf16, &q, NULL));
    SUCCEEDS(cudaDeviceSynchronize());
    SUCCEEDS(cudaMemcpy(t->results, scales, sizeof t->results, cudaMemcpyDeviceToHost));
    SUCCEEDS(cudaMemcpy(t->bytes, t->plain, (size_t)(t->rows * t->columns), cudaMemcpyDeviceToHost));
    SUCCEEDS(cudaMemcpy(t->turned, t->transposed, (size_t)(t->columns * t->padded), cudaMemcpyDeviceToHost));
    cudaFree(t->scales);
}

static void end(Trial *t)
{
    cudaFree(t->x);
    cudaFree(t->plain);
    cudaFree(t->transposed);
    free(t->values);
    free(t->bytes);
    free(t->turned);
}

static double largest_of(const Trial *t)
{
    double largest = 0;
    for (int64_t i = 0; i < t->rows * t->columns; i++)
        largest = fmax(largest, fabs(t->values[i]));
    return largest;
}

static void assert_bytes(const Trial *t, double scale)
{
    for (int64_t i = 0; i < t->rows * t->columns; i++)
        if (decoded(t->bytes[i], t->e5m2) != rounded(t->values[i] * scale, t->e5m2))
            fail_msg("%s: %g times %g is %g, should be %g", t->e5m2 ? "e5m2" : "e4m3", t->values[i], scale,
                     decoded(t->bytes[i], t->e5m2), rounded(t->values[i] * scale, t->e5m2));
    for (int64_t c = 0; c < t->columns; c++)
        for (int64_t r = 0; r < t->padded; r++)
            assert_int_equal(t->turned[c * t->padded + r], r < t->rows ? t->bytes[r * t->columns + c] : 0);
}

static const struct {
    int64_t rows, columns;
} shapes[] = {{1, 16}, {64, 64}, {130, 80}, {24, 208}};

enum { SHAPES = sizeof shapes / sizeof *shapes };

static void every_byte_is_rounded_to_nearest_even(void **state)
{
    (void)state;
    for (int i = 0; i < SHAPES * 8; i++) {
        Trial t = begin(shapes[i / 8].rows, shapes[i / 8].columns, i & 1, i >> 1 & 1, i >> 2 & 1);
        quantize(&t, 4, 0.5f);
        assert_bytes(&t, 4);
        assert_true(t.results[0] == 4 && t.results[2] == 0.25f);
        assert_true((double)t.results[1] == fmax(0.5, largest_of(&t)));
        end(&t);
    }
}

static void an_unknown_scale_is_that_of_the_values(void **state)
{
    (void)state;
    for (int i = 0; i < SHAPES * 4; i++) {
        Trial t = begin(shapes[i / 4].rows, shapes[i / 4].columns, i & 1, i >> 1 & 1, 0);
        const double most = t.e5m2 ? 57344 : 448, largest = largest_of(&t);
        quantize(&t, i % 3 ? 0 : -1, 0);
        const double scale = 1 / (double)t.results[2];
        assert_bytes(&t, scale);
        assert_true((double)t.results[1] == largest);
        assert_true(largest == 0 ? scale == 1 : largest * scale <= most && 2 * largest * scale > most);
        end(&t);
    }
}

/* A value that is no number is seen, whatever else there is. */
static void what_is_no_number_is_seen(void **state)
{
    (void)state;
    Trial t = begin(64, 64, 0, 0, 0);
    const float bad[2] = {NAN, INFINITY};
    SUCCEEDS(cudaMemcpy((float *)t.x + 777, bad, sizeof bad, cudaMemcpyHostToDevice));
    quantize(&t, 2, 1);
    assert_true(isnan(t.results[1]));
    assert_true(isnan(decoded(t.bytes[777], 0)) && isnan(decoded(t.bytes[778], 0)));
    end(&t);
}

static void scales_are_powers_of_two(void **state)
{
    (void)state;
    assert_true(kn_fp8_scale(448, KN_FP8_MOST_E4M3) == 1);
    assert_true(kn_fp8_scale(449, KN_FP8_MOST_E4M3) == 0.5f);
    assert_true(kn_fp8_scale(1e-6f, KN_FP8_MOST_E5M2) == ldexpf(1, 35));
    assert_true(kn_fp8_scale(1e-30f, KN_FP8_MOST_E5M2) == ldexpf(1, 60));
    assert_true(kn_fp8_scale(0, KN_FP8_MOST_E4M3) == 0 && kn_fp8_scale(INFINITY, KN_FP8_MOST_E4M3) == 0 &&
                kn_fp8_scale(NAN, KN_FP8_MOST_E4M3) == 0);
}

/* ---- cuBLASLt's stand-in ---- */

typedef struct Operands {
    cudaDataType_t a, b, d;
    cublasOperation_t transpose_a, transpose_b;
    uint64_t m, n, k;
} Operands;

static cublasStatus_t ask(const Operands *o)
{
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t a, b, d;
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t result;
    int found, turned = o->transpose_a == CUBLAS_OP_T, second = o->transpose_b == CUBLAS_OP_T;
    cublasLtCreate(&handle);
    cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    cublasLtMatmulDescSetAttribute(product, CUBLASLT_MATMUL_DESC_TRANSA, &o->transpose_a, sizeof o->transpose_a);
    cublasLtMatmulDescSetAttribute(product, CUBLASLT_MATMUL_DESC_TRANSB, &o->transpose_b, sizeof o->transpose_b);
    cublasLtMatrixLayoutCreate(&a, o->a, turned ? o->k : o->m, turned ? o->m : o->k, (int64_t)(turned ? o->k : o->m));
    cublasLtMatrixLayoutCreate(&b, o->b, second ? o->n : o->k, second ? o->k : o->n, (int64_t)(second ? o->n : o->k));
    cublasLtMatrixLayoutCreate(&d, o->d, o->m, o->n, (int64_t)o->m);
    cublasLtMatmulPreferenceCreate(&preference);
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle, product, a, b, d, d, preference, 1, &result, &found);
    cublasLtMatmulPreferenceDestroy(preference);
    cublasLtMatrixLayoutDestroy(a);
    cublasLtMatrixLayoutDestroy(b);
    cublasLtMatrixLayoutDestroy(d);
    cublasLtMatmulDescDestroy(product);
    cublasLtDestroy(handle);
    return status;
}

static void only_products_that_cublaslt_has_are_taken(void **state)
{
    const cudaDataType_t e4m3 = CUDA_R_8F_E4M3, e5m2 = CUDA_R_8F_E5M2, bf16 = CUDA_R_16BF;
    const Operands good[] = {{e4m3, e4m3, bf16, CUBLAS_OP_T, CUBLAS_OP_N, 32, 40, 48},
                             {e4m3, e5m2, CUDA_R_32F, CUBLAS_OP_T, CUBLAS_OP_N, 16, 7, 16}};
    const Operands bad[] = {{e5m2, e5m2, bf16, CUBLAS_OP_T, CUBLAS_OP_N, 32, 32, 32},
                            {e4m3, e4m3, bf16, CUBLAS_OP_N, CUBLAS_OP_N, 32, 32, 32},
                            {e4m3, e4m3, bf16, CUBLAS_OP_T, CUBLAS_OP_T, 32, 32, 32},
                            {e4m3, e4m3, bf16, CUBLAS_OP_T, CUBLAS_OP_N, 32, 32, 40},
                            {e4m3, e4m3, bf16, CUBLAS_OP_T, CUBLAS_OP_N, 24, 32, 32},
                            {e4m3, bf16, bf16, CUBLAS_OP_T, CUBLAS_OP_N, 32, 32, 32}};
    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_int_equal(ask(&good[i]), CUBLAS_STATUS_SUCCESS);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        if (ask(&bad[i]) == CUBLAS_STATUS_SUCCESS)
            fail_msg("product %zu was taken", i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_byte_is_rounded_to_nearest_even),
        cmocka_unit_test(an_unknown_scale_is_that_of_the_values),
        cmocka_unit_test(what_is_no_number_is_seen),
        cmocka_unit_test(scales_are_powers_of_two),
        cmocka_unit_test(only_products_that_cublaslt_has_are_taken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
