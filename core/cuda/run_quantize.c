/* Rounding to 8-bit floats. */
#include "core/cuda/cuda.h"

static cudaError_t run_quantize(KnCuda *cuda, const KnCall *call)
{
    const KnNode *node = call->node;
    const KnQuantizeAttributes *p = (const KnQuantizeAttributes *)node->attributes;
    float *scales = call->inputs[1], *inverse = call->outputs[2];
    int64_t sites = scales ? node->inputs[1]->shape[1] : 0;
    KnCudaQuantize q = {.rows = kn_tensor_rows(node->inputs[0]),
                        .columns = kn_tensor_columns(node->inputs[0]),
                        .e5m2 = p->format == KN_E5M2,
                        .x = call->inputs[0],
                        .plain = kn_tensor_elements(node->outputs[0]) ? call->outputs[0] : NULL,
                        .transposed = kn_tensor_elements(node->outputs[1]) ? call->outputs[1] : NULL,
                        .inverse = inverse,
                        .scale = scales ? scales + p->site : NULL,
                        .largest = scales ? scales + sites + p->site : inverse + 1};
    return kn_cuda_quantize(kn_cuda_bf16_of(call), &q, cuda->stream);
}

const KnCudaOp kn_cuda_op_quantize = {run_quantize, NULL};
