/* Losses and norms: scalars. */
#include "core/cuda/cuda.h"

static size_t sums_bytes(const KnNode *node)
{
    int tensors = node->op->id == KN_OP_SUM_OF_SQUARES ? node->input_count : 1;
    return (size_t)tensors * KN_CUDA_SUM_BLOCKS * sizeof(float);
}

static cudaError_t run_masked_mse(KnCuda *cuda, const KnCall *call)
{
    const KnTensor *x = call->node->inputs[0];
    return kn_cuda_masked_mse(kn_cuda_is_bf16(x), call->inputs[0], call->inputs[1], call->inputs[2], call->workspace,
                              call->outputs[0], kn_tensor_rows(x), kn_tensor_columns(x), cuda->stream);
}

static cudaError_t run_masked_mse_backward(KnCuda *cuda, const KnCall *call)
{
    const KnTensor *x = call->node->inputs[0];
    return kn_cuda_masked_mse_backward(kn_cuda_is_bf16(x), call->inputs[0], call->inputs[1], call->inputs[2],
                                       call->inputs[3], call->outputs[0], kn_tensor_rows(x), kn_tensor_columns(x),
                                       cuda->stream);
}

static cudaError_t run_sum_of_squares(KnCuda *cuda, const KnCall *call)
{
    const KnNode *node = call->node;
    const void *x[KN_MAX_INPUTS];
    int64_t elements[KN_MAX_INPUTS];
    for (int i = 0; i < node->input_count; i++) {
        x[i] = call->inputs[i];
        elements[i] = kn_tensor_elements(node->inputs[i]);
    }
    return kn_cuda_sum_of_squares(kn_cuda_is_bf16(node->inputs[0]), x, elements, node->input_count, call->workspace,
                                  call->outputs[0], cuda->stream);
}

const KnCudaOp kn_cuda_op_masked_mse = {run_masked_mse, sums_bytes};
const KnCudaOp kn_cuda_op_masked_mse_backward = {run_masked_mse_backward, NULL};
const KnCudaOp kn_cuda_op_sum_of_squares = {run_sum_of_squares, sums_bytes};
