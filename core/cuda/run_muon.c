/* Muon. An iteration of its orthogonalization is three products, over the whole stack at once. The Gram matrix is that
 * of the shorter side, so nothing is transposed in memory; the terms b A and a X are folded into the factors, as A (b I
 * + c A) + a I = B and X <- B X (or X B). */
#include "core/base/error.h"
#include "core/cuda/matmul.h"

typedef struct Scratch {
    KnCudaStack stack;
    void *next; /* as stack.x */
} Scratch;

static size_t aligned(size_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

/* Lays the workspace out; *bytes is its size. */
static Scratch lay_out(const KnNode *node, char *workspace, size_t *bytes)
{
    const int64_t *shape = node->inputs[0]->shape;
    Scratch s = {.stack = {.count = shape[0],
                           .rows = shape[1],
                           .columns = shape[2],
                           .small = shape[1] < shape[2] ? shape[1] : shape[2]}};
    KnCudaStack *m = &s.stack;
    size_t x = aligned(2 * (size_t)(m->count * m->rows * m->columns)),
           square = (size_t)(m->count * m->small * m->small);
    size_t at = 0;
    m->block_sums = (float *)(workspace + at);
    at += aligned((size_t)m->count * KN_CUDA_STACK_BLOCKS * sizeof(float));
    m->x = workspace + at;
    s.next = workspace + at + x;
    at += 2 * x;
    m->sums = (float *)(workspace + at);
    at += aligned(4 * square);
    m->left = workspace + at;
    m->right = workspace + at + aligned(2 * square);
    *bytes = at + 2 * aligned(2 * square);
    return s;
}

static size_t orthogonalize_bytes(const KnNode *node)
{
    size_t bytes;
    lay_out(node, NULL, &bytes);
    return bytes;
}

static int iterate(KnCuda *cuda, Scratch *s)
{
    KnCudaStack *m = &s->stack;
    int tall = m->rows > m->columns;
    KnCudaProduct gram = {.m = m->small,
                          .n = m->small,
                          .k = tall ? m->rows : m->columns,
                          .transpose_a = tall,
                          .transpose_b = !tall,
                          .bf16 = 1,
                          .a = m->x,
                          .b = m->x,
                          .c = m->sums,
                          .alpha = 1,
                          .count = m->count};
    KnCudaProduct square = {.m = m->small,
                            .n = m->small,
                            .k = m->small,
                            .bf16 = 1,
                            .a = m->left,
                            .b = m->right,
                            .c = m->sums,
                            .alpha = 1,
                            .count = m->count};
    KnCudaProduct apply = {.m = m->rows,
                           .n = m->columns,
                           .k = m->small,
                           .bf16 = 1,
                           .c_bf16 = 1,
                           .a = tall ? m->x : m->left,
                           .b = tall ? m->left : m->x,
                           .c = s->next,
                           .alpha = 1,
                           .count = m->count};
    KN_TRY(kn_cuda_product(cuda, &gram));
    KN_TRY(kn_cuda_check(kn_cuda_stack_factors(m, cuda->stream), "orthogonalize"));
    KN_TRY(kn_cuda_product(cuda, &square));
    KN_TRY(kn_cuda_check(kn_cuda_stack_polynomial(m, cuda->stream), "orthogonalize"));
    KN_TRY(kn_cuda_product(cuda, &apply));
    s->next = m->x;
    m->x = apply.c;
    return KN_OK;
}

static int orthogonalize(KnCuda *cuda, const KnCall *call)
{
    const KnUpdateAttributes *p = (const KnUpdateAttributes *)call->node->attributes;
    size_t bytes;
    Scratch s = lay_out(call->node, call->workspace, &bytes);
    s.stack.values = call->inputs[0];
    KN_TRY(kn_cuda_check(kn_cuda_stack_start(&s.stack, cuda->stream), "orthogonalize"));
    for (int step = 0; step < p->newton_schulz_steps; step++)
        KN_TRY(iterate(cuda, &s));
    return kn_cuda_check(kn_cuda_stack_finish(&s.stack, cuda->stream), "orthogonalize");
}

static cudaError_t run_orthogonalize(KnCuda *cuda, const KnCall *call)
{
    return orthogonalize(cuda, call) < 0 ? (cudaError_t)KN_CUDA_SENTENCE : cudaSuccess;
}

static cudaError_t run_momentum(KnCuda *cuda, const KnCall *call)
{
    const float *hyper = call->inputs[3];
    KnCudaMomentum momentum = {.u = call->inputs[0],
                               .gradient = call->inputs[1],
                               .momentum = call->inputs[2],
                               .norm2 = call->inputs[4],
                               .clip = hyper + KN_HYPER_CLIP,
                               .factor = ((const KnUpdateAttributes *)call->node->attributes)->momentum};
    return kn_cuda_momentum(&momentum, kn_tensor_elements(call->node->inputs[0]), cuda->stream);
}

static cudaError_t run_descend(KnCuda *cuda, const KnCall *call)
{
    const float *hyper = call->inputs[2];
    return kn_cuda_descend(call->inputs[0], call->inputs[1], hyper + KN_HYPER_LR, call->inputs[3],
                           ((const KnUpdateAttributes *)call->node->attributes)->weight_decay,
                           kn_tensor_elements(call->node->inputs[0]), cuda->stream);
}

const KnCudaOp kn_cuda_op_momentum = {run_momentum, NULL};
const KnCudaOp kn_cuda_op_orthogonalize = {run_orthogonalize, orthogonalize_bytes};
const KnCudaOp kn_cuda_op_descend = {run_descend, NULL};
