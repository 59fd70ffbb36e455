/* cuBLASLt is column-major: a row-major C [m, n] is its C' [n, m], and C' = op(B)' op(A)'. So B comes first, and a
 * matrix that is stored as it is multiplied is not transposed there either.
 *
 * Descriptors and what the heuristic chose are kept for each shape, dtype, epilogue and alignment. The choice is the
 * heuristic's first that can run, which the same library gives on the same kind of GPU in every run. Timing candidates
 * would choose by chance where two are close, and another algorithm adds in another order: the same configuration
 * would give other bits. */
#include "core/cuda/matmul.h"

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/memory.h"

#include <cublasLt.h>
#include <stdlib.h>
#include <string.h>

enum { WORKSPACE_BYTES = 32 << 20, MOST_ALIGNMENT = 16, CANDIDATES = 8 };

/* What a choice depends on. No gaps: it is compared as bytes. */
typedef struct Key {
    int64_t m, n, k, count;
    int32_t transpose_a, transpose_b, a_type, b_type, c_type, beta, epilogue, fp8;
    uint32_t align_a, align_b, align_c, align_d, align_bias, unused;
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

static cublasLtEpilogue_t epilogue_of(const KnCudaProduct *p)
{
    if (p->gelu)
        return p->bias ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_GELU;
    return p->bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
}

static cudaDataType_t type_of(const KnCudaProduct *p, int e5m2)
{
    if (p->fp8)
        return e5m2 ? CUDA_R_8F_E5M2 : CUDA_R_8F_E4M3;
    return p->bf16 ? CUDA_R_16BF : CUDA_R_32F;
}

static Key key_of(const KnCudaProduct *p)
{
    return (Key){.m = p->m,
                 .n = p->n,
                 .k = p->k,
                 .count = p->count,
                 .transpose_a = p->transpose_a != 0,
                 .transpose_b = p->transpose_b != 0,
                 .a_type = (int32_t)type_of(p, p->a_e5m2),
                 .b_type = (int32_t)type_of(p, 0),
                 .c_type = p->c_bf16 ? CUDA_R_16BF : CUDA_R_32F,
                 .fp8 = p->fp8,
                 .beta = p->beta != 0,
                 .epilogue = (int32_t)epilogue_of(p),
                 .align_a = alignment(p->a),
                 .align_b = alignment(p->b),
                 .align_c = alignment(p->c),
                 .align_d = alignment(p->beta != 0 ? p->d : p->c),
                 .align_bias = alignment(p->bias)};
}

/* ---- making a choice ---- */

/* A row-major [rows, columns] matrix, one of `count` that lie one after another. */
static cublasStatus_t make_layout(cublasLtMatrixLayout_t *layout, int32_t type, int64_t rows, int64_t columns,
                                  int64_t count)
{
    int32_t batch = (int32_t)count;
    int64_t stride = rows * columns;
    cublasStatus_t status =
        cublasLtMatrixLayoutCreate(layout, (cudaDataType_t)type, (uint64_t)columns, (uint64_t)rows, columns);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch, sizeof batch);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatrixLayoutSetAttribute(*layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride,
                                                  sizeof stride);
    return status;
}

typedef struct Setting {
    cublasLtMatmulDescAttributes_t attribute;
    const void *value;
    size_t bytes;
} Setting;

static cublasStatus_t set_all(cublasLtMatmulDesc_t product, const Setting *settings, size_t count)
{
    cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
    for (size_t i = 0; i < count && status == CUBLAS_STATUS_SUCCESS; i++)
        status = cublasLtMatmulDescSetAttribute(product, settings[i].attribute, settings[i].value, settings[i].bytes);
    return status;
}

/* What a product has beside its operands changes from call to call; the heuristic is shown the first call's. */
static cublasStatus_t point(Choice *choice, const KnCudaProduct *p)
{
    Setting settings[3];
    size_t count = 0;
    if (p->fp8) {
        settings[count++] = (Setting){CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &p->inverse_b, sizeof p->inverse_b};
        settings[count++] = (Setting){CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &p->inverse_a, sizeof p->inverse_a};
    }
    if (p->bias)
        settings[count++] = (Setting){CUBLASLT_MATMUL_DESC_BIAS_POINTER, &p->bias, sizeof p->bias};
    return set_all(choice->product, settings, count);
}

static cublasStatus_t describe_epilogue(Choice *choice, const KnCudaProduct *p)
{
    const Setting epilogue = {CUBLASLT_MATMUL_DESC_EPILOGUE, &choice->key.epilogue, sizeof choice->key.epilogue};
    cublasStatus_t status = set_all(choice->product, &epilogue, 1);
    return status == CUBLAS_STATUS_SUCCESS ? point(choice, p) : status;
}

static cublasStatus_t describe(Choice *choice, const KnCudaProduct *p)
{
    const Key *k = &choice->key;
    cublasOperation_t first = k->transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t second = k->transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    const Setting settings[] = {{CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first},
                                {CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second}};
    cublasStatus_t status = cublasLtMatmulDescCreate(&choice->product, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = set_all(choice->product, settings, 2);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = describe_epilogue(choice, p);
    if (status == CUBLAS_STATUS_SUCCESS)
        status =
            make_layout(&choice->a, k->b_type, k->transpose_b ? k->n : k->k, k->transpose_b ? k->k : k->n, k->count);
    if (status == CUBLAS_STATUS_SUCCESS)
        status =
            make_layout(&choice->b, k->a_type, k->transpose_a ? k->k : k->m, k->transpose_a ? k->m : k->k, k->count);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = make_layout(&choice->c, k->c_type, k->m, k->n, k->count);
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
    /* parts of a sum are not rounded to bfloat16 before they are added */
    uint32_t sums = k->c_type == CUDA_R_16BF ? CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE : CUBLASLT_REDUCTION_SCHEME_MASK;
    cublasStatus_t status = cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                                 &workspace, sizeof workspace);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &sums,
                                                      sizeof sums);
    for (size_t i = 0; i < sizeof alignments / sizeof *alignments && status == CUBLAS_STATUS_SUCCESS; i++)
        status = cublasLtMatmulPreferenceSetAttribute(preference, alignments[i].attribute, &alignments[i].bytes,
                                                      sizeof alignments[i].bytes);
    return status;
}

static cublasStatus_t ask(cublasLtHandle_t handle, Choice *choice, cublasLtMatmulPreference_t preference)
{
    cublasLtMatmulHeuristicResult_t results[CANDIDATES];
    int found = 0, i = 0;
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle, choice->product, choice->a, choice->b, choice->c,
                                                           choice->c, preference, CANDIDATES, results, &found);
    if (status != CUBLAS_STATUS_SUCCESS)
        return status;
    while (i < found && results[i].state != CUBLAS_STATUS_SUCCESS)
        i++;
    if (i == found)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    choice->algorithm = results[i].algo;
    choice->workspace_bytes = results[i].workspaceSize;
    return CUBLAS_STATUS_SUCCESS;
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

static int find_choice(struct KnCudaMatmuls *matmuls, const KnCudaProduct *product, Choice **found)
{
    const Key key = key_of(product);
    for (*found = matmuls->choices; *found; *found = (*found)->next)
        if (memcmp(&(*found)->key, &key, sizeof key) == 0)
            return check(point(*found, product), "the product's epilogue");
    Choice *made = kn_alloc(sizeof *made);
    made->key = key;
    cublasStatus_t status = describe(made, product);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = choose(matmuls->handle, made);
    if (status != CUBLAS_STATUS_SUCCESS) {
        choice_destroy(made);
        return kn_fail(KN_EPEER, "cuBLASLt has no way to multiply %lld x %lld x %lld in %s: %s", (long long)key.m,
                       (long long)key.n, (long long)key.k,
                       key.fp8                     ? "fp8"
                       : key.a_type == CUDA_R_16BF ? "bf16"
                                                   : "f32",
                       cublasLtGetStatusString(status));
    }
    made->next = matmuls->choices;
    *found = matmuls->choices = made;
    return KN_OK;
}

/* ---- multiplying ---- */

/* k is 0: sums of nothing, which cuBLASLt does not know. What is left is the bias in every row, or what was there. */
static int multiply_nothing(KnCuda *cuda, const KnCudaProduct *p)
{
    int64_t row = p->n * (p->c_bf16 ? 2 : 4);
    if (p->beta == 1 && p->d == p->c && !p->bias)
        return KN_OK;
    KnCudaPieces rows = {
        .to = p->c, .from = p->bias, .pieces = p->count * p->m, .bytes = row, .inner = 1, .to_outer = row};
    KN_ASSERT(p->beta == 0 && !p->gelu);
    return kn_cuda_check(kn_cuda_copy_pieces(&rows, cuda->stream), "a matrix product");
}

static int multiply_by_library(KnCuda *cuda, const KnCudaProduct *p)
{
    struct KnCudaMatmuls *matmuls = cuda->matmuls;
    Choice *choice;
    KN_TRY(find_choice(matmuls, p, &choice));
    return check(cublasLtMatmul(matmuls->handle, choice->product, &p->alpha, p->b, choice->a, p->a, choice->b, &p->beta,
                                p->beta != 0 ? p->d : p->c, choice->c, p->c, choice->c, &choice->algorithm,
                                matmuls->workspace, choice->workspace_bytes, cuda->stream),
                 "a matrix product");
}

static int multiply_by_kernels(KnCuda *cuda, const KnCudaProduct *p)
{
    KN_ASSERT(!p->fp8);
    return kn_cuda_check(kn_cuda_own_product(p, cuda->stream), "a matrix product");
}

int kn_cuda_product(KnCuda *cuda, const KnCudaProduct *p)
{
    if (p->m == 0 || p->n == 0 || p->count == 0)
        return KN_OK;
    if (p->k == 0)
        return multiply_nothing(cuda, p);
    return cuda->matmuls->handle ? multiply_by_library(cuda, p) : multiply_by_kernels(cuda, p);
}

static cudaError_t run_matmul(KnCuda *cuda, const KnCall *call)
{
    const KnMatmulAttributes *p = (const KnMatmulAttributes *)call->node->attributes;
    const KnNode *node = call->node;
    int in_place = node->output_count == 0, adds = node->input_count > 3 && node->inputs[3];
    KnCudaProduct product = {.m = p->m,
                             .n = p->n,
                             .k = p->k,
                             .transpose_a = p->transpose_a,
                             .transpose_b = p->transpose_b,
                             .bf16 = kn_cuda_is_bf16(node->inputs[0]),
                             .fp8 = p->fp8 != KN_NO_FP8,
                             .a_e5m2 = p->fp8 == KN_E5M2,
                             .inverse_a = call->inputs[4],
                             .inverse_b = call->inputs[5],
                             .c_bf16 = !in_place && kn_cuda_is_bf16(node->outputs[0]),
                             .a = call->inputs[0],
                             .b = call->inputs[1],
                             .c = in_place ? call->inputs[3] : call->outputs[0],
                             .d = call->inputs[3],
                             .bias = call->inputs[2],
                             .gelu = p->gelu,
                             .alpha = 1,
                             .beta = (float)adds,
                             .count = 1};
    return kn_cuda_product(cuda, &product) < 0 ? (cudaError_t)KN_CUDA_SENTENCE : cudaSuccess;
}

const KnCudaOp kn_cuda_op_matmul = {run_matmul, NULL};

/* ---- opening and closing ---- */

/* No handle: products are our own kernels'. */
int kn_cuda_matmul_open(KnCuda *cuda)
{
    struct KnCudaMatmuls *made = cuda->matmuls = kn_alloc(sizeof *made);
    const char *setting = getenv("KINORA_CUBLASLT");
    int wanted = !setting || strcmp(setting, "0") != 0;
    if (wanted && cublasLtCreate(&made->handle) == CUBLAS_STATUS_SUCCESS)
        return cuda->base.allocate(&cuda->base, &made->workspace, WORKSPACE_BYTES, "the products' workspace");
    made->handle = NULL;
    cuda->has_fp8 = 0;
    kn_warn("%s: matrix products run by Kinora's own kernels, which are slower",
            wanted ? "cuBLASLt does not start" : "KINORA_CUBLASLT is 0");
    return KN_OK;
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
