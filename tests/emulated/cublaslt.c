/* cuBLASLt without a GPU: the four functions that need one. Descriptors stay those of the real library, which so checks
 * every attribute; products are computed in double from what the descriptors say. GELU is the form with tanh, as
 * cuBLASLt's is.
 *
 * Of 8-bit floats it takes what cuBLASLt does: operands whose rows are summed over (the first transposed, the second
 * not), not both e5m2, with results of bfloat16 or float32, addresses, the sum's length and the result's rows multiples
 * of 16. Scales of other operands are refused.
 *
 * A bias of another type than the result's is refused, and so is a C that lies partly in D. */
#include "cudart.h"

#include <cublasLt.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct Layout {
    uint32_t type;
    int32_t order, batch;
    uint64_t rows, columns;
    int64_t leading, stride;
} Layout;

typedef struct Product {
    Layout a, b, c, d;
    int32_t transpose_a, transpose_b;
    uint32_t epilogue;
    int32_t bias_type;
    const void *bias;
    const float *scales[2]; /* of a and b, or NULL */
    const void *a_values, *b_values, *c_values;
    void *d_values;
    float alpha, beta;
} Product;

static int is_fp8(const Layout *layout)
{
    return layout->type == CUDA_R_8F_E4M3 || layout->type == CUDA_R_8F_E5M2;
}

static int read_layout(cublasLtMatrixLayout_t from, Layout *layout)
{
    const struct {
        cublasLtMatrixLayoutAttribute_t attribute;
        void *to;
        size_t bytes;
    } fields[] = {
        {CUBLASLT_MATRIX_LAYOUT_TYPE, &layout->type, sizeof layout->type},
        {CUBLASLT_MATRIX_LAYOUT_ORDER, &layout->order, sizeof layout->order},
        {CUBLASLT_MATRIX_LAYOUT_ROWS, &layout->rows, sizeof layout->rows},
        {CUBLASLT_MATRIX_LAYOUT_COLS, &layout->columns, sizeof layout->columns},
        {CUBLASLT_MATRIX_LAYOUT_LD, &layout->leading, sizeof layout->leading},
        {CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &layout->batch, sizeof layout->batch},
        {CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &layout->stride, sizeof layout->stride},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        size_t written;
        if (cublasLtMatrixLayoutGetAttribute(from, fields[i].attribute, fields[i].to, fields[i].bytes, &written))
            return 0;
    }
    return layout->order == CUBLASLT_ORDER_COL && layout->leading >= (int64_t)layout->rows &&
           (layout->type == CUDA_R_32F || layout->type == CUDA_R_16BF || is_fp8(layout));
}

static void read_product(cublasLtMatmulDesc_t from, Product *product)
{
    const struct {
        cublasLtMatmulDescAttributes_t attribute;
        void *to;
        size_t bytes;
    } fields[] = {
        {CUBLASLT_MATMUL_DESC_TRANSA, &product->transpose_a, sizeof product->transpose_a},
        {CUBLASLT_MATMUL_DESC_TRANSB, &product->transpose_b, sizeof product->transpose_b},
        {CUBLASLT_MATMUL_DESC_EPILOGUE, &product->epilogue, sizeof product->epilogue},
        {CUBLASLT_MATMUL_DESC_BIAS_POINTER, &product->bias, sizeof product->bias},
        {CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &product->bias_type, sizeof product->bias_type},
        {CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &product->scales[0], sizeof product->scales[0]},
        {CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &product->scales[1], sizeof product->scales[1]},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        size_t written;
        cublasLtMatmulDescGetAttribute(from, fields[i].attribute, fields[i].to, fields[i].bytes, &written);
    }
}

static int adds_bias(const Product *p)
{
    return p->epilogue == CUBLASLT_EPILOGUE_BIAS || p->epilogue == CUBLASLT_EPILOGUE_GELU_BIAS;
}

static int applies_gelu(const Product *p)
{
    return p->epilogue == CUBLASLT_EPILOGUE_GELU || p->epilogue == CUBLASLT_EPILOGUE_GELU_BIAS;
}

static uint64_t rows_of(const Layout *layout, int transpose)
{
    return transpose ? layout->columns : layout->rows;
}

static uint64_t columns_of(const Layout *layout, int transpose)
{
    return transpose ? layout->rows : layout->columns;
}

static int fits_fp8(const Product *p)
{
    if (!is_fp8(&p->a) && !is_fp8(&p->b))
        return !p->scales[0] && !p->scales[1];
    return is_fp8(&p->a) && is_fp8(&p->b) && (p->a.type == CUDA_R_8F_E4M3 || p->b.type == CUDA_R_8F_E4M3) &&
           p->transpose_a == CUBLAS_OP_T && p->transpose_b == CUBLAS_OP_N && !is_fp8(&p->d) && p->d.batch == 1 &&
           p->a.rows % 16 == 0 && p->a.leading % 16 == 0 && p->b.leading % 16 == 0 && p->d.rows % 16 == 0;
}

static int fits(const Product *p)
{
    int ta = p->transpose_a != CUBLAS_OP_N, tb = p->transpose_b != CUBLAS_OP_N;
    if (p->epilogue != CUBLASLT_EPILOGUE_DEFAULT && !adds_bias(p) && !applies_gelu(p))
        return 0;
    return columns_of(&p->a, ta) == rows_of(&p->b, tb) && rows_of(&p->a, ta) == p->d.rows &&
           columns_of(&p->b, tb) == p->d.columns && p->c.rows == p->d.rows && p->c.columns == p->d.columns &&
           (p->a.type == p->b.type || is_fp8(&p->a)) && p->c.type == p->d.type && p->a.batch == p->d.batch &&
           p->b.batch == p->d.batch && p->d.rows * p->d.columns * columns_of(&p->a, ta) > 0;
}

static cublasStatus_t describe(Product *product, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                               cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d)
{
    memset(product, 0, sizeof *product);
    read_product(desc, product);
    if (!read_layout(a, &product->a) || !read_layout(b, &product->b) || !read_layout(c, &product->c) ||
        !read_layout(d, &product->d) || !fits(product))
        return CUBLAS_STATUS_INVALID_VALUE;
    int other_bias = product->bias_type >= 0 && (uint32_t)product->bias_type != product->d.type;
    if (!fits_fp8(product))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    if (adds_bias(product) && other_bias)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- computing ---- */

/* e4m3: four bits of exponent, all ones in all but the sign is NaN; e5m2 as the upper half of float16. */
static float fp8_value(uint8_t byte, int mantissa_bits, int bias)
{
    int exponent = (byte & 0x7f) >> mantissa_bits, mantissa = byte & ((1 << mantissa_bits) - 1);
    float sign = byte & 0x80 ? -1.0f : 1.0f, unit = 1.0f / (float)(1 << mantissa_bits);
    if (mantissa_bits == 3 ? (byte & 0x7f) == 0x7f : exponent == 31 && mantissa)
        return NAN;
    if (mantissa_bits == 2 && exponent == 31)
        return sign * INFINITY;
    return sign *
           (exponent ? ldexpf(1 + (float)mantissa * unit, exponent - bias) : ldexpf((float)mantissa * unit, 1 - bias));
}

static float value_at(const void *values, const Layout *layout, int64_t batch, uint64_t row, uint64_t column)
{
    int64_t at = batch * layout->stride + (int64_t)column * layout->leading + (int64_t)row;
    if (layout->type == CUDA_R_8F_E4M3)
        return fp8_value(((const uint8_t *)values)[at], 3, 7);
    if (layout->type == CUDA_R_8F_E5M2)
        return fp8_value(((const uint8_t *)values)[at], 2, 15);
    if (layout->type == CUDA_R_32F)
        return ((const float *)values)[at];
    uint32_t bits = (uint32_t)((const uint16_t *)values)[at] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void put_value(void *values, const Layout *layout, int64_t batch, uint64_t row, uint64_t column, float value)
{
    int64_t at = batch * layout->stride + (int64_t)column * layout->leading + (int64_t)row;
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (layout->type == CUDA_R_32F)
        ((float *)values)[at] = value;
    else
        ((uint16_t *)values)[at] = (uint16_t)(isnan(value) ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* One matrix with what is summed over side by side, [lines, depth]. */
static double *decode(const void *values, const Layout *layout, int64_t batch, int by_rows)
{
    uint64_t lines = by_rows ? layout->rows : layout->columns, depth = by_rows ? layout->columns : layout->rows;
    double *all = malloc((size_t)(lines * depth) * sizeof *all);
    for (uint64_t i = 0; i < lines * depth; i++)
        all[i] = (double)(by_rows ? value_at(values, layout, batch, i / depth, i % depth)
                                  : value_at(values, layout, batch, i % depth, i / depth));
    return all;
}

static double dot(const double *a, const double *b, uint64_t depth)
{
    double sum = 0;
    for (uint64_t i = 0; i < depth; i++)
        sum += a[i] * b[i];
    return sum;
}

static float bias_at(const Product *p, uint64_t row)
{
    Layout bias = {.type = p->d.type};
    return value_at(p->bias, &bias, 0, row, 0);
}

static double gelu(double x)
{
    return 0.5 * x * (1 + tanh(0.79788456080286536 * (x + 0.044715 * x * x * x)));
}

static void run_element(const Product *p, int64_t batch, uint64_t row, uint64_t column, double sum)
{
    double value = (double)p->alpha * sum;
    for (int i = 0; i < 2; i++)
        value *= p->scales[i] ? (double)*p->scales[i] : 1;
    if (p->beta != 0)
        value += (double)p->beta * (double)value_at(p->c_values, &p->c, batch, row, column);
    if (adds_bias(p))
        value += (double)bias_at(p, row);
    put_value(p->d_values, &p->d, batch, row, column, (float)(applies_gelu(p) ? gelu(value) : value));
}

static int run_product(void *argument)
{
    const Product *p = argument;
    int ta = p->transpose_a != CUBLAS_OP_N, tb = p->transpose_b != CUBLAS_OP_N;
    uint64_t depth = columns_of(&p->a, ta);
    for (int64_t batch = 0; batch < p->d.batch; batch++) {
        double *a = decode(p->a_values, &p->a, batch, !ta), *b = decode(p->b_values, &p->b, batch, tb);
        for (uint64_t column = 0; column < p->d.columns; column++)
            for (uint64_t row = 0; row < p->d.rows; row++)
                run_element(p, batch, row, column, dot(a + row * depth, b + column * depth, depth));
        free(a);
        free(b);
    }
    return 1;
}

/* D may be C, but not lie across it. */
static int overlaps(const Product *p, uintptr_t c, uintptr_t d)
{
    uint64_t bytes = p->d.rows * p->d.columns * (uint64_t)p->d.batch * (p->d.type == CUDA_R_32F ? 4 : 2);
    return c != d && c < d + bytes && d < c + bytes;
}

/* ---- the functions ---- */

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle)
{
    *handle = calloc(1, 1);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    free(handle);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t *results, int *found)
{
    Product product;
    cublasStatus_t status = describe(&product, desc, a, b, c, d);
    (void)handle, (void)preference;
    *found = status == CUBLAS_STATUS_SUCCESS && wanted > 0;
    if (*found)
        memset(results, 0, sizeof *results); /* whose state is then success */
    return status;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha, const void *a,
                              cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout,
                              const void *beta, const void *c, cublasLtMatrixLayout_t c_layout, void *d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algorithm, void *workspace,
                              size_t workspace_bytes, cudaStream_t stream)
{
    Product *product = malloc(sizeof *product);
    cublasStatus_t status = describe(product, desc, a_layout, b_layout, c_layout, d_layout);
    (void)handle, (void)algorithm, (void)workspace, (void)workspace_bytes;
    if (status == CUBLAS_STATUS_SUCCESS && is_fp8(&product->a) &&
        (((uintptr_t)a | (uintptr_t)b | (uintptr_t)c | (uintptr_t)d) & 15))
        status = CUBLAS_STATUS_NOT_SUPPORTED;
    if (status == CUBLAS_STATUS_SUCCESS && *(const float *)beta != 0 && overlaps(product, (uintptr_t)c, (uintptr_t)d))
        status = CUBLAS_STATUS_INVALID_VALUE;
    if (status != CUBLAS_STATUS_SUCCESS) {
        free(product);
        return status;
    }
    product->a_values = a;
    product->b_values = b;
    product->c_values = c;
    product->d_values = d;
    product->alpha = *(const float *)alpha;
    product->beta = *(const float *)beta;
    emulated_enqueue(stream, run_product, product, free);
    return CUBLAS_STATUS_SUCCESS;
}
