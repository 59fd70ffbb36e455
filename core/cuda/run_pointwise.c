/* Single elements. */
#include "core/cuda/cuda.h"
#include "core/cuda/slabs.h"

static int64_t elements_of(const KnCall *call)
{
    return kn_tensor_elements(call->node->inputs[0]);
}

static int kind_of(const KnCall *call)
{
    return (int)((const KnActivationAttributes *)call->node->attributes)->kind;
}

static cudaError_t run_activation(KnCuda *cuda, const KnCall *call)
{
    return kn_cuda_activation(kind_of(call), kn_cuda_bf16_of(call), call->inputs[0], call->outputs[0],
                              elements_of(call), cuda->stream);
}

/* With a second output, the sum of the first over its rows. */
static size_t activation_backward_bytes(const KnNode *node)
{
    const KnTensor *x = node->inputs[0];
    int64_t floats = kn_cuda_row_pass_floats(kn_tensor_rows(x), 1, kn_tensor_columns(x));
    return node->output_count > 1 ? (size_t)floats * sizeof(float) : 0;
}

static cudaError_t run_activation_backward(KnCuda *cuda, const KnCall *call)
{
    const KnTensor *x = call->node->inputs[0];
    if (call->node->output_count > 1)
        return kn_cuda_gelu_backward_sum(kn_cuda_is_bf16(x), call->inputs[0], call->inputs[1], call->outputs[0],
                                         call->outputs[1], kn_tensor_rows(x), kn_tensor_columns(x), call->workspace,
                                         cuda->stream);
    return kn_cuda_activation_backward(kind_of(call), kn_cuda_bf16_of(call), call->inputs[0], call->inputs[1],
                                       call->outputs[0], elements_of(call), cuda->stream);
}

static cudaError_t run_add(KnCuda *cuda, const KnCall *call)
{
    KnTensor *const *in = call->node->inputs;
    KnCudaSum sum = {.a = call->inputs[0],
                     .b = call->inputs[1],
                     .out = call->outputs[0],
                     .a_bf16 = kn_cuda_is_bf16(in[0]),
                     .b_bf16 = kn_cuda_is_bf16(in[1]),
                     .out_bf16 = kn_cuda_is_bf16(call->node->outputs[0])};
    if (sum.a_bf16 != sum.b_bf16 || sum.a_bf16 != sum.out_bf16)
        return kn_cuda_add_parts(&sum, elements_of(call), cuda->stream);
    return kn_cuda_add(sum.a_bf16, sum.a, sum.b, sum.out, elements_of(call), cuda->stream);
}

static cudaError_t run_add_row(KnCuda *cuda, const KnCall *call)
{
    const KnTensor *x = call->node->inputs[0];
    return kn_cuda_add_row(kn_cuda_is_bf16(x), call->inputs[0], call->inputs[1], call->outputs[0], kn_tensor_rows(x),
                           kn_tensor_columns(x), cuda->stream);
}

static cudaError_t run_multiply(KnCuda *cuda, const KnCall *call)
{
    return kn_cuda_multiply(kn_cuda_bf16_of(call), call->inputs[0], call->inputs[1], call->outputs[0],
                            elements_of(call), cuda->stream);
}

static cudaError_t run_scale(KnCuda *cuda, const KnCall *call)
{
    float factor = ((const KnScaleAttributes *)call->node->attributes)->factor;
    return kn_cuda_scale(kn_cuda_bf16_of(call), call->inputs[0], factor, call->outputs[0], elements_of(call),
                         cuda->stream);
}

static cudaError_t run_cast(KnCuda *cuda, const KnCall *call)
{
    return kn_cuda_cast(kn_cuda_bf16_of(call), call->inputs[0], call->outputs[0], elements_of(call), cuda->stream);
}

const KnCudaOp kn_cuda_op_activation = {run_activation, NULL};
const KnCudaOp kn_cuda_op_activation_backward = {run_activation_backward, activation_backward_bytes};
const KnCudaOp kn_cuda_op_add = {run_add, NULL};
const KnCudaOp kn_cuda_op_add_row = {run_add_row, NULL};
const KnCudaOp kn_cuda_op_multiply = {run_multiply, NULL};
const KnCudaOp kn_cuda_op_scale = {run_scale, NULL};
const KnCudaOp kn_cuda_op_cast = {run_cast, NULL};
