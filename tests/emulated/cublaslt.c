/* cuBLASLt without a GPU: the four functions that need one. Descriptors stay those of the real library, which so checks
 * every attribute; products are computed in double from what the descriptors say. GELU is the form with tanh, as
 * cuBLASLt's is.
 *
 * A bias of another type than the result's is refused, and what GELU's input is written to without a pointer, with rows
 * closer than they are long or a leading dimension that is no multiple of 8. */
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
    void *before; /* what enters the GELU is written here */
    int64_t before_leading;
    const void *a_values, *b_values, *c_values;
    void *d_values;
    float alpha, beta;
} Product;

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
           (layout->type == CUDA_R_32F || layout->type == CUDA_R_16BF);
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
        {CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, &product->before, sizeof product->before},
        {CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, &product->before_leading, sizeof product->before_leading},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        size_t written;
        cublasLtMatmulDescGetAttribute(from, fields[i].attribute, fields[i].to, fields[i].bytes, &written);
    }
}

static int adds_bias(const Product *p)
{
    return p->epilogue == CUBLASLT_EPILOGUE_BIAS || p->epilogue == CUBLASLT_EPILOGUE_GELU_BIAS ||
           p->epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
}

static int keeps_before(const Product *p)
{
    return p->epilogue == CUBLASLT_EPILOGUE_GELU_AUX || p->epilogue == CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
}

static int applies_gelu(const Product *p)
{
    return p->epilogue == CUBLASLT_EPILOGUE_GELU || p->epilogue == CUBLASLT_EPILOGUE_GELU_BIAS || keeps_before(p);
}

static uint64_t rows_of(const Layout *layout, int transpose)
{
    return transpose ? layout->columns : layout->rows;
}

static uint64_t columns_of(const Layout *layout, int transpose)
{
    return transpose ? layout->rows : layout->columns;
}

static int fits(const Product *p)
{
    int ta = p->transpose_a != CUBLAS_OP_N, tb = p->transpose_b != CUBLAS_OP_N;
    if (p->epilogue != CUBLASLT_EPILOGUE_DEFAULT && !adds_bias(p) && !applies_gelu(p))
        return 0;
    if (keeps_before(p) && (p->before_leading < (int64_t)p->d.rows || p->d.batch != 1))
        return 0;
    return columns_of(&p->a, ta) == rows_of(&p->b, tb) && rows_of(&p->a, ta) == p->d.rows &&
           columns_of(&p->b, tb) == p->d.columns && p->c.rows == p->d.rows && p->c.columns == p->d.columns &&
           p->a.type == p->b.type && p->c.type == p->d.type && p->a.batch == p->d.batch && p->b.batch == p->d.batch &&
           p->d.rows * p->d.columns * columns_of(&p->a, ta) > 0;
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
    if ((adds_bias(product) && other_bias) || (keeps_before(product) && product->before_leading % 8))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- computing ---- */

static float value_at(const void *values, const Layout *layout, int64_t batch, uint64_t row, uint64_t column)
{
    int64_t at = batch * layout->stride + (int64_t)column * layout->leading + (int64_t)row;
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

static double element(const Product *p, int64_t batch, uint64_t row, uint64_t column)
{
    int ta = p->transpose_a != CUBLAS_OP_N, tb = p->transpose_b != CUBLAS_OP_N;
    uint64_t depth = columns_of(&p->a, ta);
    double sum = 0;
    for (uint64_t i = 0; i < depth; i++)
        sum += (double)value_at(p->a_values, &p->a, batch, ta ? i : row, ta ? row : i) *
               (double)value_at(p->b_values, &p->b, batch, tb ? column : i, tb ? i : column);
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

static void run_element(const Product *p, int64_t batch, uint64_t row, uint64_t column)
{
    Layout before = {.type = p->d.type, .leading = p->before_leading};
    double value = (double)p->alpha * element(p, batch, row, column);
    if (p->beta != 0)
        value += (double)p->beta * (double)value_at(p->c_values, &p->c, batch, row, column);
    if (adds_bias(p))
        value += (double)bias_at(p, row);
    if (keeps_before(p))
        put_value(p->before, &before, 0, row, column, (float)value);
    put_value(p->d_values, &p->d, batch, row, column, (float)(applies_gelu(p) ? gelu(value) : value));
}

static int run_product(void *argument)
{
    const Product *p = argument;
    for (int64_t batch = 0; batch < p->d.batch; batch++)
        for (uint64_t column = 0; column < p->d.columns; column++)
            for (uint64_t row = 0; row < p->d.rows; row++)
                run_element(p, batch, row, column);
    return 1;
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
    if (status == CUBLAS_STATUS_SUCCESS && keeps_before(product) && !product->before)
        status = CUBLAS_STATUS_NOT_SUPPORTED;
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
