/* Exchanges between ranks, and nodes that move nothing. */
#include "core/cuda/cuda.h"
#include "core/ops/exchange.h"

static int copy(void *device, void *to, const void *from, size_t bytes)
{
    const KnCuda *cuda = device;
    return kn_cuda_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, cuda->stream), "a copy on the GPU");
}

static cudaError_t run_collective_start(KnCuda *cuda, const KnCall *call)
{
    return kn_exchange_start(call, copy, cuda) < 0 ? (cudaError_t)KN_CUDA_SENTENCE : cudaSuccess;
}

static cudaError_t run_collective_wait(KnCuda *cuda, const KnCall *call)
{
    (void)cuda;
    return kn_exchange_wait(call) < 0 ? (cudaError_t)KN_CUDA_SENTENCE : cudaSuccess;
}

static cudaError_t run_nothing(KnCuda *cuda, const KnCall *call)
{
    (void)cuda, (void)call;
    return cudaSuccess;
}

static cudaError_t run_zeros(KnCuda *cuda, const KnCall *call)
{
    size_t bytes = kn_tensor_bytes(call->node->outputs[0]);
    return bytes ? cudaMemsetAsync(call->outputs[0], 0, bytes, cuda->stream) : cudaSuccess;
}

const KnCudaOp kn_cuda_op_collective_start = {run_collective_start, NULL};
const KnCudaOp kn_cuda_op_collective_wait = {run_collective_wait, NULL};
const KnCudaOp kn_cuda_op_replicate = {run_nothing, NULL};
const KnCudaOp kn_cuda_op_view = {run_nothing, NULL};
const KnCudaOp kn_cuda_op_zeros = {run_zeros, NULL};
