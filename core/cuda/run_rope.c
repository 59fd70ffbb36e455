/* Rotary positions and the timestep embedding. */
#include "core/cuda/cuda.h"

static cudaError_t run_rope(KnCuda *cuda, const KnCall *call)
{
    const KnTensor *x = call->node->inputs[0], *table = call->node->inputs[2];
    const KnRopeAttributes *p = (const KnRopeAttributes *)call->node->attributes;
    KnCudaRope rope = {.x = call->inputs[0],
                       .out = call->outputs[0],
                       .positions = call->inputs[1],
                       .table = call->inputs[2],
                       .tokens = kn_tensor_rows(x),
                       .heads = p->heads,
                       .head = kn_tensor_columns(table),
                       .table_rows = kn_tensor_rows(table),
                       .axis_pairs = {(int)p->axis_pairs[0], (int)p->axis_pairs[1], (int)p->axis_pairs[2]},
                       .inverse = p->inverse,
                       .fault = cuda->fault};
    return kn_cuda_rope(kn_cuda_is_bf16(x), &rope, cuda->stream);
}

static cudaError_t run_timestep_embedding(KnCuda *cuda, const KnCall *call)
{
    return kn_cuda_timestep_embedding(call->inputs[0], call->outputs[0], kn_tensor_elements(call->node->inputs[0]),
                                      kn_tensor_columns(call->node->outputs[0]) / 2, cuda->stream);
}

const KnCudaOp kn_cuda_op_rope = {run_rope, NULL};
const KnCudaOp kn_cuda_op_timestep_embedding = {run_timestep_embedding, NULL};
