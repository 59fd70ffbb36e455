/* Rotary positions and the timestep embedding. */
#include "core/cuda/cuda.h"

KnCudaRope kn_cuda_rope_of(const KnCuda *cuda, const KnCall *call, const KnRopeAttributes *p, int positions)
{
    const KnTensor *table = call->node->inputs[positions + 1];
    return (KnCudaRope){.positions = call->inputs[positions],
                        .table = call->inputs[positions + 1],
                        .tokens = kn_tensor_rows(call->node->inputs[0]),
                        .heads = p->heads,
                        .head = kn_tensor_columns(table),
                        .table_rows = kn_tensor_rows(table),
                        .axis_pairs = {(int)p->axis_pairs[0], (int)p->axis_pairs[1], (int)p->axis_pairs[2]},
                        .inverse = p->inverse,
                        .fault = cuda->fault};
}

static cudaError_t run_rope(KnCuda *cuda, const KnCall *call)
{
    KnCudaRope rope = kn_cuda_rope_of(cuda, call, (const KnRopeAttributes *)call->node->attributes, 1);
    rope.x = call->inputs[0];
    rope.out = call->outputs[0];
    return kn_cuda_rope(kn_cuda_bf16_of(call), &rope, cuda->stream);
}

static cudaError_t run_timestep_embedding(KnCuda *cuda, const KnCall *call)
{
    return kn_cuda_timestep_embedding(call->inputs[0], call->outputs[0], kn_tensor_elements(call->node->inputs[0]),
                                      kn_tensor_columns(call->node->outputs[0]) / 2, cuda->stream);
}

const KnCudaOp kn_cuda_op_rope = {run_rope, NULL};
const KnCudaOp kn_cuda_op_timestep_embedding = {run_timestep_embedding, NULL};
