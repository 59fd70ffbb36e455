/* Muon's iterations: three products each, over the whole stack at once. The Gram matrix is that of the shorter side, so
 * nothing is transposed in memory; the terms b A and a X are folded into the factors, as A (b I + c A) + a I = B and
 * X <- B X (or X B). */
#include "core/base/error.h"
#include "core/cuda/matmul.h"

typedef struct Scratch {
    KnCudaMuon muon;
    void *next; /* as muon.x */
} Scratch;

static size_t aligned(size_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

/* Lays the workspace out; *bytes is its size. */
static Scratch lay_out(const KnNode *node, char *workspace, size_t *bytes)
{
    const int64_t *shape = node->inputs[0]->shape;
    Scratch s = {.muon = {.count = shape[0],
                          .rows = shape[1],
                          .columns = shape[2],
                          .small = shape[1] < shape[2] ? shape[1] : shape[2]}};
    KnCudaMuon *m = &s.muon;
    size_t x = aligned(2 * (size_t)(m->count * m->rows * m->columns)),
           square = (size_t)(m->count * m->small * m->small);
    size_t at = 0;
    m->block_sums = (float *)(workspace + at);
    at += aligned((size_t)m->count * KN_CUDA_MUON_BLOCKS * sizeof(float));
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

static size_t muon_bytes(const KnNode *node)
{
    size_t bytes;
    lay_out(node, NULL, &bytes);
    return bytes;
}

static int iterate(KnCuda *cuda, Scratch *s)
{
    KnCudaMuon *m = &s->muon;
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
    KN_TRY(kn_cuda_check(kn_cuda_muon_factors(m, cuda->stream), "muon"));
    KN_TRY(kn_cuda_product(cuda, &square));
    KN_TRY(kn_cuda_check(kn_cuda_muon_polynomial(m, cuda->stream), "muon"));
    KN_TRY(kn_cuda_product(cuda, &apply));
    s->next = m->x;
    m->x = apply.c;
    return KN_OK;
}

static int run(KnCuda *cuda, const KnCall *call)
{
    const KnUpdateAttributes *p = (const KnUpdateAttributes *)call->node->attributes;
    const float *hyper = call->inputs[3];
    size_t bytes;
    Scratch s = lay_out(call->node, call->workspace, &bytes);
    s.muon.parameter = call->inputs[0];
    s.muon.gradient = call->inputs[1];
    s.muon.momentum = call->inputs[2];
    s.muon.norm2 = call->inputs[4];
    s.muon.lr = hyper + KN_HYPER_LR;
    s.muon.clip = hyper + KN_HYPER_CLIP;
    s.muon.momentum_factor = p->momentum;
    s.muon.weight_decay = p->weight_decay;
    KN_TRY(kn_cuda_check(kn_cuda_muon_start(&s.muon, cuda->stream), "muon"));
    for (int step = 0; step < p->newton_schulz_steps; step++)
        KN_TRY(iterate(cuda, &s));
    return kn_cuda_check(kn_cuda_muon_apply(&s.muon, cuda->stream), "muon");
}

static cudaError_t run_muon(KnCuda *cuda, const KnCall *call)
{
    return run(cuda, call) < 0 ? (cudaError_t)KN_CUDA_SENTENCE : cudaSuccess;
}

const KnCudaOp kn_cuda_op_muon = {run_muon, muon_bytes};
