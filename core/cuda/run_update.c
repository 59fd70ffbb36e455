/* State changed in place. What changes from step to step stays on the device. */
#include "core/cuda/cuda.h"

static cudaError_t run_accumulate(KnCuda *cuda, const KnCall *call)
{
    return kn_cuda_add(0, call->inputs[0], call->inputs[1], call->inputs[0], kn_tensor_elements(call->node->inputs[0]),
                       cuda->stream);
}

static cudaError_t run_adamw(KnCuda *cuda, const KnCall *call)
{
    const KnUpdateAttributes *p = (const KnUpdateAttributes *)call->node->attributes;
    const float *hyper = call->inputs[4];
    KnCudaAdamw adamw = {.parameter = call->inputs[0],
                         .gradient = call->inputs[1],
                         .moment1 = call->inputs[2],
                         .moment2 = call->inputs[3],
                         .norm2 = call->inputs[5],
                         .lr = hyper + KN_HYPER_LR_OTHER,
                         .clip = hyper + KN_HYPER_CLIP,
                         .correction1 = hyper + KN_HYPER_CORRECTION1,
                         .correction2 = hyper + KN_HYPER_CORRECTION2,
                         .beta1 = p->beta1,
                         .beta2 = p->beta2,
                         .eps = p->eps,
                         .weight_decay = p->weight_decay};
    return kn_cuda_adamw(&adamw, kn_tensor_elements(call->node->inputs[0]), cuda->stream);
}

static cudaError_t run_ema(KnCuda *cuda, const KnCall *call)
{
    const float *hyper = call->inputs[2];
    return kn_cuda_ema(call->inputs[0], call->inputs[1], hyper + KN_HYPER_EMA, call->inputs[3],
                       kn_tensor_elements(call->node->inputs[0]), cuda->stream);
}

const KnCudaOp kn_cuda_op_accumulate = {run_accumulate, NULL};
const KnCudaOp kn_cuda_op_adamw = {run_adamw, NULL};
const KnCudaOp kn_cuda_op_ema = {run_ema, NULL};
