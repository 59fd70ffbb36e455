/* The CUDA backend's table: memory of one GPU, copies, and nodes by the rows of table.c. */
#include "core/cuda/cuda.h"
#include "core/cuda/matmul.h"

#include "core/base/error.h"
#include "core/base/memory.h"

#include <stdlib.h>

int kn_cuda_open(int device, KnBackend **backend);

int kn_cuda_check(cudaError_t result, const char *what)
{
    if (result == cudaSuccess)
        return KN_OK;
    return kn_fail(KN_EPEER, "%s failed in CUDA: %s", what, cudaGetErrorString(result));
}

static int supports(KnBackend *backend, const KnNode *node)
{
    if (node->op->id == KN_OP_QUANTIZE && !((const KnCuda *)backend)->has_fp8)
        return 0;
    return kn_cuda_ops[node->op->id] != NULL;
}

static size_t workspace_bytes(KnBackend *backend, const KnNode *node)
{
    const KnCudaOp *op = kn_cuda_ops[node->op->id];
    (void)backend;
    return op && op->workspace_bytes ? op->workspace_bytes(node) : 0;
}

static int run(KnBackend *backend, const KnCall *call)
{
    const KnCudaOp *op = kn_cuda_ops[call->node->op->id];
    if (!op)
        return kn_fail(KN_EINPUT, "the CUDA backend has no kernel for the op %s", call->node->op->name);
    cudaError_t result = op->run((KnCuda *)backend, call);
    return (int)result == KN_CUDA_SENTENCE ? KN_EPEER : kn_cuda_check(result, call->node->op->name);
}

static void lower(KnBackend *backend, KnGraph *graph)
{
    (void)backend;
    kn_cuda_lower(graph);
}

/* ---- memory ---- */

static int allocate(KnBackend *backend, void **memory, size_t bytes, const char *what)
{
    const KnCuda *cuda = (const KnCuda *)backend;
    enum { MIB = 1 << 20 };
    size_t unused = 0, total = 0;
    cudaError_t result = cudaMalloc(memory, bytes ? bytes : 1);
    if (result != cudaErrorMemoryAllocation)
        return kn_cuda_check(result, what);
    cudaGetLastError();
    cudaMemGetInfo(&unused, &total);
    return kn_fail(KN_EMEMORY, "GPU %d has no room for %s: %zu MiB wanted, %zu of %zu MiB free", cuda->device, what,
                   bytes / MIB + 1, unused / MIB, total / MIB);
}

static void release(KnBackend *backend, void *memory)
{
    cudaStreamSynchronize(((KnCuda *)backend)->stream);
    cudaFree(memory);
}

static int write_memory(KnBackend *backend, void *device, const void *host, size_t bytes)
{
    cudaStream_t stream = ((KnCuda *)backend)->stream;
    KN_TRY(kn_cuda_check(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream), "a copy to the GPU"));
    return kn_cuda_check(cudaStreamSynchronize(stream), "a copy to the GPU");
}

/* ---- faults ---- */

static int report_fault(KnCuda *cuda)
{
    KnCudaFault fault;
    KN_TRY(kn_cuda_check(cudaMemcpy(&fault, cuda->fault, sizeof fault, cudaMemcpyDeviceToHost), "a copy from the GPU"));
    if (fault.kind == KN_CUDA_NO_FAULT)
        return KN_OK;
    cudaMemset(cuda->fault, 0, sizeof fault);
    if (fault.kind == KN_CUDA_WILD_INDEX)
        return kn_fail(KN_EINPUT, "index %d at position %lld is outside of 0..%lld", fault.value,
                       (long long)fault.position, (long long)fault.limit - 1);
    return kn_fail(KN_EINPUT, "span %lld goes beyond the tokens that there are", (long long)fault.position);
}

static int read_memory(KnBackend *backend, void *host, const void *device, size_t bytes)
{
    KnCuda *cuda = (KnCuda *)backend;
    KN_TRY(kn_cuda_check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, cuda->stream),
                         "a copy from the GPU"));
    KN_TRY(kn_cuda_check(cudaStreamSynchronize(cuda->stream), "the GPU's work"));
    return report_fault(cuda);
}

static int zero_memory(KnBackend *backend, void *device, size_t bytes)
{
    return kn_cuda_check(cudaMemsetAsync(device, 0, bytes, ((KnCuda *)backend)->stream), "setting the GPU's memory");
}

static const KnDeviceMemory memory_table = {.write = write_memory, .read = read_memory, .zero = zero_memory};

/* ---- opening and closing ---- */

static void close_backend(KnBackend *backend)
{
    KnCuda *cuda = (KnCuda *)backend;
    cudaStreamSynchronize(cuda->stream);
    kn_cuda_matmul_close(cuda);
    cudaFree(cuda->fault);
    cudaStreamDestroy(cuda->stream);
    free(cuda);
}

static int find_abilities(KnCuda *cuda)
{
    int major = 0, minor = 0;
    KN_TRY(kn_cuda_check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, cuda->device),
                         "asking what the GPU can do"));
    KN_TRY(kn_cuda_check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, cuda->device),
                         "asking what the GPU can do"));
    cuda->has_fp8 = 10 * major + minor >= 89;
    return KN_OK;
}

static int find_gpu(int device)
{
    int count = 0;
    KN_TRY(kn_cuda_check(cudaGetDeviceCount(&count), "looking for GPUs"));
    if (device < 0 || device >= count)
        return kn_fail(KN_EPEER, "there is no GPU %d: this process sees %d", device, count);
    return kn_cuda_check(cudaSetDevice(device), "choosing the GPU");
}

int kn_cuda_open(int device, KnBackend **backend)
{
    static const KnBackend table = {.name = "cuda",
                                    .memory = &memory_table,
                                    .supports = supports,
                                    .workspace_bytes = workspace_bytes,
                                    .run = run,
                                    .lower = lower,
                                    .allocate = allocate,
                                    .release = release,
                                    .close = close_backend};
    KN_TRY(find_gpu(device));
    KnCuda *made = kn_alloc(sizeof *made);
    void *fault = NULL;
    made->base = table;
    made->device = device;
    int code = kn_cuda_check(cudaStreamCreateWithFlags(&made->stream, cudaStreamNonBlocking), "making a stream");
    made->base.stream = made->stream;
    if (code == KN_OK)
        code = allocate(&made->base, &fault, sizeof *made->fault, "its faults");
    made->fault = fault;
    if (code == KN_OK)
        code = zero_memory(&made->base, fault, sizeof *made->fault);
    if (code == KN_OK)
        code = find_abilities(made);
    if (code == KN_OK)
        code = kn_cuda_matmul_open(made);
    if (code < 0) {
        close_backend(&made->base);
        return code;
    }
    *backend = &made->base;
    return KN_OK;
}
