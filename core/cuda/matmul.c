/* cuBLASLt is column-major: a row-major C [m, n] is its C' [n, m], and C' = op(B)' op(A)'. So B comes first, and a
 * matrix that is stored as it is multiplied is not transposed there either.
 *
 * Descriptors and what the heuristic chose are kept for each shape, dtype and alignment. */
#include "core/cuda/matmul.h"

#include "core/base/error.h"
#include "core/base/memory.h"

#include <cublasLt.h>
#include <stdlib.h>
#include <string.h>

enum { WORKSPACE_BYTES = 32 << 20, MOST_ALIGNMENT = 16 };

/* What a choice depends on. No gaps: it is compared as bytes. */
typedef struct Key {
    int64_t m, n, k, count;
    int32_t transpose_a, transpose_b, bf16, c_bf16, bias, beta;
    uint32_t align_a, align_b, align_c, align_d;
} Key;

typedef struct Choice {
    struct Choice *next;
    Key key;
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t a, b, c; /* in cuBLASLt's order: a is our B */
    cublasLtMatmulAlgo_t algorithm;
    size_t workspace_bytes;
} Choice;

struct KnCudaMatmuls {
    cublasLtHandle_t handle;
    void *workspace;
    Choice *choices;
};

static int check(cublasStatus_t status, const char *what)
{
    if (status == CUBLAS_STATUS_SUCCESS)
        return KN_OK;
    return kn_fail(KN_EPEER, "%s failed in cuBLASLt: %s", what, cublasLtGetStatusString(status));
}

static uint32_t alignment(const void *address)
{
    uintptr_t bits = (uintptr_t)address | MOST_ALIGNMENT;
    return (uint32_t)(bits & -bits);
}

static Key key_of(const KnCudaProduct *p)
{
    return (Key){.m = p->m,
                 .n = p->n,
                 .k = p->k,
                 .count = p->count,
                 .transpose_a = p->transpose_a != 0,
                 .transpose_b = p->transpose_b != 0,
                 .bf16 = p->bf16,
                 .c_bf16 = p->c_bf16,
                 .bias = p->bias != NULL,
                 .beta = p->beta != 0,
                 .align_a = alignment(p->a),
                 .align_b = alignment(p->b),
                 .align_c = alignment(p->c),
                 .align_d = alignment(p->beta != 0 ? p->d : p->c)};
}

/* ---- making a choice ---- */

/* A row-major [rows, columns] matrix, one of `count` that lie one after another. */
static cublasStatus_t make_layout(cublasLtMatrixLayout_t *layout, int bf16, int64_t rows, int64_t columns,
                                  int64_t count)
{
    int32_t batch = (int32_t)count;
    int64_t stride = rows * columns;
    cublasStatus_t status =
        cublasLtMatrixLayoutCreate(layout, bf16 ? CUDA_R_16BF : CUDA_R_32F, (uint64_t)columns, (uint64_t)rows, columns);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch, sizeof batch);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride,
                                                  sizeof stride);
    return status;
}

static cublasStatus_t describe(Choice *choice)
{
    const Key *k = &choice->key;
    cublasOperation_t first = k->transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t second = k->transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasLtEpilogue_t epilogue = k->bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    cublasStatus_t status = cublasLtMatmulDescCreate(&choice->product, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatmulDescSetAttribute(choice->product, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatmulDescSetAttribute(choice->product, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second);
    if (status == CUBLAS_STATUS_SUCCESS)
        status =
            cublasLtMatmulDescSetAttribute(choice->product, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = make_layout(&choice->a, k->bf16, k->transpose_b ? k->n : k->k, k->transpose_b ? k->k : k->n, k->count);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = make_layout(&choice->b, k->bf16, k->transpose_a ? k->k : k->m, k->transpose_a ? k->m : k->k, k->count);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = make_layout(&choice->c, k->c_bf16, k->m, k->n, k->count);
    return status;
}

static cublasStatus_t set_preference(cublasLtMatmulPreference_t preference, const Key *k)
{
    const struct {
        cublasLtMatmulPreferenceAttributes_t attribute;
        uint32_t bytes;
    } alignments[] = {{CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, k->align_b},
                      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, k->align_a},
                      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, k->align_d},
                      {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, k->align_c}};
    size_t workspace = WORKSPACE_BYTES;
    cublasStatus_t status = cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                                 &workspace, sizeof workspace);
    for (size_t i = 0; i < sizeof alignments / sizeof *alignments && status == CUBLAS_STATUS_SUCCESS; i++)
        status = cublasLtMatmulPreferenceSetAttribute(preference, alignments[i].attribute, &alignments[i].bytes,
                                                      sizeof alignments[i].bytes);
    return status;
}

static cublasStatus_t ask(cublasLtHandle_t handle, Choice *choice, cublasLtMatmulPreference_t preference)
{
    cublasLtMatmulHeuristicResult_t result;
    int found = 0;
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle, choice->product, choice->a, choice->b, choice->c,
                                                           choice->c, preference, 1, &result, &found);
    if (status != CUBLAS_STATUS_SUCCESS || found == 0)
        return status == CUBLAS_STATUS_SUCCESS ? CUBLAS_STATUS_NOT_SUPPORTED : status;
    choice->algorithm = result.algo;
    choice->workspace_bytes = result.workspaceSize;
    return result.state;
}

static cublasStatus_t choose(cublasLtHandle_t handle, Choice *choice)
{
    cublasLtMatmulPreference_t preference = NULL;
    cublasStatus_t status = cublasLtMatmulPreferenceCreate(&preference);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = set_preference(preference, &choice->key);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = ask(handle, choice, preference);
    if (preference)
        cublasLtMatmulPreferenceDestroy(preference);
    return status;
}

static void choice_destroy(Choice *choice)
{
    if (choice->product)
        cublasLtMatmulDescDestroy(choice->product);
    if (choice->a)
        cublasLtMatrixLayoutDestroy(choice->a);
    if (choice->b)
        cublasLtMatrixLayoutDestroy(choice->b);
    if (choice->c)
        cublasLtMatrixLayoutDestroy(choice->c);
    free(choice);
}

static int find_choice(struct KnCudaMatmuls *matmuls, const Key *key, Choice **found)
{
    for (*found = matmuls->choices; *found; *found = (*found)->next)
        if (memcmp(&(*found)->key, key, sizeof *key) == 0)
            return KN_OK;
    Choice *made = kn_alloc(sizeof *made);
    made->key = *key;
    cublasStatus_t status = describe(made);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = choose(matmuls->handle, made);
    if (status != CUBLAS_STATUS_SUCCESS) {
        choice_destroy(made);
        return kn_fail(KN_EPEER, "cuBLASLt has no way to multiply %lld x %lld x %lld in %s: %s", (long long)key->m,
                       (long long)key->n, (long long)key->k, key->bf16 ? "bf16" : "f32",
                       cublasLtGetStatusString(status));
    }
    made->next = matmuls->choices;
    *found = matmuls->choices = made;
    return KN_OK;
}

/* ---- multiplying ---- */

/* k is 0: sums of nothing, which cuBLASLt does not know. What is left is the bias in every row. */
static int multiply_nothing(KnCuda *cuda, const KnCudaProduct *p)
{
    int64_t row = p->n * (p->c_bf16 ? 2 : 4);
    KnCudaPieces rows = {
        .to = p->c, .from = p->bias, .pieces = p->count * p->m, .bytes = row, .inner = 1, .to_outer = row};
    KN_ASSERT(p->beta == 0);
    return kn_cuda_check(kn_cuda_copy_pieces(&rows, cuda->stream), "a matrix product");
}

int kn_cuda_product(KnCuda *cuda, const KnCudaProduct *p)
{
    struct KnCudaMatmuls *matmuls = cuda->matmuls;
    Choice *choice;
    Key key = key_of(p);
    if (p->m == 0 || p->n == 0 || p->count == 0)
        return KN_OK;
    if (p->k == 0)
        return multiply_nothing(cuda, p);
    KN_TRY(find_choice(matmuls, &key, &choice));
    if (p->bias)
        KN_TRY(check(cublasLtMatmulDescSetAttribute(choice->product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &p->bias,
                                                    sizeof p->bias),
                     "the product's bias"));
    return check(cublasLtMatmul(matmuls->handle, choice->product, &p->alpha, p->b, choice->a, p->a, choice->b, &p->beta,
                                p->beta != 0 ? p->d : p->c, choice->c, p->c, choice->c, &choice->algorithm,
                                matmuls->workspace, choice->workspace_bytes, cuda->stream),
                 "a matrix product");
}

static cudaError_t run_matmul(KnCuda *cuda, const KnCall *call)
{
    const KnMatmulAttributes *p = (const KnMatmulAttributes *)call->node->attributes;
    KnCudaProduct product = {.m = p->m,
                             .n = p->n,
                             .k = p->k,
                             .transpose_a = p->transpose_a,
                             .transpose_b = p->transpose_b,
                             .bf16 = kn_cuda_is_bf16(call->node->inputs[0]),
                             .c_bf16 = kn_cuda_is_bf16(call->node->outputs[0]),
                             .a = call->inputs[0],
                             .b = call->inputs[1],
                             .c = call->outputs[0],
                             .bias = call->inputs[2],
                             .alpha = 1,
                             .count = 1};
    return kn_cuda_product(cuda, &product) < 0 ? (cudaError_t)KN_CUDA_SENTENCE : cudaSuccess;
}

const KnCudaOp kn_cuda_op_matmul = {run_matmul, NULL};

/* ---- opening and closing ---- */

int kn_cuda_matmul_open(KnCuda *cuda)
{
    struct KnCudaMatmuls *made = cuda->matmuls = kn_alloc(sizeof *made);
    KN_TRY(check(cublasLtCreate(&made->handle), "starting cuBLASLt"));
    return cuda->base.allocate(&cuda->base, &made->workspace, WORKSPACE_BYTES, "the products' workspace");
}

void kn_cuda_matmul_close(KnCuda *cuda)
{
    struct KnCudaMatmuls *matmuls = cuda->matmuls;
    if (!matmuls)
        return;
    while (matmuls->choices) {
        Choice *choice = matmuls->choices;
        matmuls->choices = choice->next;
        choice_destroy(choice);
    }
    cudaFree(matmuls->workspace);
    if (matmuls->handle)
        cublasLtDestroy(matmuls->handle);
    free(matmuls);
}
