/* Attention over span tables. */
#include "core/base/error.h"
#include "core/cuda/cuda.h"

static KnCudaAttention shape_of(const KnNode *node)
{
    const KnAttentionAttributes *p = (const KnAttentionAttributes *)node->attributes;
    const KnTensor *q = node->inputs[0];
    KnCudaAttention shape = {.queries = kn_tensor_rows(q),
                             .keys = kn_tensor_rows(node->inputs[1]),
                             .heads = p->heads,
                             .size = p->heads ? kn_tensor_columns(q) / p->heads : 0,
                             .span_count = node->inputs[3]->shape[0],
                             .scale = p->scale};
    shape.parts = kn_cuda_attention_parts(kn_cuda_is_bf16(q), &shape);
    return shape;
}

/* What forward and backward have in common. */
static KnCudaAttention attention_of(KnCuda *cuda, const KnCall *call)
{
    KnCudaAttention attention = shape_of(call->node);
    KN_ASSERT(attention.scale > 0);
    attention.q = call->inputs[0];
    attention.k = call->inputs[1];
    attention.v = call->inputs[2];
    attention.spans = call->inputs[3];
    attention.fault = cuda->fault;
    return attention;
}

static int is_too_wide(const KnCudaAttention *attention)
{
    if (attention->size <= KN_CUDA_MOST_HEAD_SIZE)
        return 0;
    kn_fail(KN_EINPUT, "attention heads of %lld columns: the CUDA backend has them up to %d; take more heads",
            (long long)attention->size, KN_CUDA_MOST_HEAD_SIZE);
    return 1;
}

static cudaError_t run_attention(KnCuda *cuda, const KnCall *call)
{
    KnCudaAttention attention = attention_of(cuda, call);
    attention.out = call->outputs[0];
    attention.lse = call->outputs[1];
    if (is_too_wide(&attention))
        return (cudaError_t)KN_CUDA_SENTENCE;
    if (kn_cuda_is_by_library(call->node, &attention))
        return kn_cuda_attention_by_library(cuda, call->node, &attention, call->workspace);
    return kn_cuda_attention(kn_cuda_is_bf16(call->node->inputs[0]), &attention, cuda->stream);
}

static size_t forward_bytes(const KnNode *node)
{
    return ((const KnAttentionAttributes *)node->attributes)->library_bytes;
}

static size_t backward_bytes(const KnNode *node)
{
    KnCudaAttention shape = shape_of(node);
    size_t by_library = forward_bytes(node);
    return by_library ? by_library : kn_cuda_attention_bytes(&shape);
}

static cudaError_t run_attention_backward(KnCuda *cuda, const KnCall *call)
{
    KnCudaAttention attention = attention_of(cuda, call);
    attention.out = call->inputs[4];
    attention.lse = call->inputs[5];
    attention.grad_out = call->inputs[6];
    attention.dq = call->outputs[0];
    attention.dk = call->outputs[1];
    attention.dv = call->outputs[2];
    attention.workspace = call->workspace;
    if (is_too_wide(&attention))
        return (cudaError_t)KN_CUDA_SENTENCE;
    if (kn_cuda_is_by_library(call->node, &attention))
        return kn_cuda_attention_by_library(cuda, call->node, &attention, call->workspace);
    return kn_cuda_attention_backward(kn_cuda_is_bf16(call->node->inputs[0]), &attention, cuda->stream);
}

const KnCudaOp kn_cuda_op_attention = {run_attention, forward_bytes};
const KnCudaOp kn_cuda_op_attention_backward = {run_attention_backward, backward_bytes};
