/* Attention to keys that come in parts. */
#include "core/cuda/cuda.h"

static cudaError_t run_attention_merge(KnCuda *cuda, const KnCall *call)
{
    const KnTensor *a = call->node->inputs[0];
    KnCudaMerge merge = {.a = call->inputs[0],
                         .lse_a = call->inputs[1],
                         .b = call->inputs[2],
                         .lse_b = call->inputs[3],
                         .out = call->outputs[0],
                         .lse = call->outputs[1],
                         .a_bf16 = kn_cuda_is_bf16(a),
                         .b_bf16 = kn_cuda_is_bf16(call->node->inputs[2]),
                         .out_bf16 = kn_cuda_is_bf16(call->node->outputs[0]),
                         .rows = kn_tensor_rows(a),
                         .columns = kn_tensor_columns(a),
                         .heads = call->node->inputs[1]->shape[0]};
    return kn_cuda_attention_merge(&merge, cuda->stream);
}

static cudaError_t run_span_window(KnCuda *cuda, const KnCall *call)
{
    const KnSpanWindowAttributes *p = (const KnSpanWindowAttributes *)call->node->attributes;
    return kn_cuda_span_window(call->inputs[0], call->outputs[0], kn_tensor_rows(call->node->inputs[0]), p->q_first,
                               p->q_count, p->k_first, p->k_count, cuda->fault, cuda->stream);
}

const KnCudaOp kn_cuda_op_attention_merge = {run_attention_merge, NULL};
const KnCudaOp kn_cuda_op_span_window = {run_span_window, NULL};
