/* The CUDA backend's table: memory of one GPU, reads and writes, and nodes by the rows of table.c. */
#include "core/cuda/cuda.h"
#include "core/cuda/matmul.h"

#include "core/base/error.h"
#include "core/base/memory.h"

#include <stdlib.h>
#include <string.h>

enum { MIB = 1 << 20, WRITE_BYTES = 4 * MIB }; /* the pieces of a write */

int kn_cuda_open(int device, KnBackend **backend);
KnBackend *kn_cuda_planning_backend(void);

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
    kn_cuda_lower(graph);
    kn_cuda_choose_attention((KnCuda *)backend, graph);
}

/* ---- memory ---- */

static int allocate(KnBackend *backend, void **memory, size_t bytes, const char *what)
{
    const KnCuda *cuda = (const KnCuda *)backend;
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

/* Where it is in the host's memory, the device finds it at the same address. */
int kn_cuda_allocate_pinned(KnBackend *backend, void **memory, size_t bytes, const char *what)
{
    cudaError_t result = cudaHostAlloc(memory, bytes ? bytes : 1, cudaHostAllocDefault);
    if (result != cudaErrorMemoryAllocation)
        return kn_cuda_check(result, what);
    cudaGetLastError();
    return kn_fail(KN_EMEMORY, "the host has no %zu MiB of pinned memory for %s, which GPU %d is to use",
                   bytes / MIB + 1, what, ((const KnCuda *)backend)->device);
}

static void release_pinned(KnBackend *backend, void *memory)
{
    cudaStreamSynchronize(((KnCuda *)backend)->stream);
    cudaFreeHost(memory);
}

static int write_memory(KnBackend *backend, void *device, const void *host, size_t bytes)
{
    KnStaging *staging = ((KnCuda *)backend)->writes;
    for (size_t at = 0, piece; at < bytes; at += piece) {
        void *room;
        piece = bytes - at < WRITE_BYTES ? bytes - at : WRITE_BYTES;
        KN_TRY(kn_cuda_stage(backend, staging, &room));
        memcpy(room, (const char *)host + at, piece);
        KN_TRY(kn_cuda_send(backend, staging, (char *)device + at, piece));
    }
    return KN_OK;
}

/* ---- faults ---- */

static int report_fault(KnCuda *cuda)
{
    const KnCudaFault fault = *cuda->seen;
    if (fault.kind == KN_CUDA_NO_FAULT)
        return KN_OK;
    cudaMemsetAsync(cuda->fault, 0, sizeof fault, cuda->stream);
    if (fault.kind == KN_CUDA_WILD_INDEX)
        return kn_fail(KN_EINPUT, "index %d at position %lld is outside of 0..%lld", fault.value,
                       (long long)fault.position, (long long)fault.limit - 1);
    if (fault.kind == KN_CUDA_MIXED_SPANS)
        return kn_fail(KN_EINPUT, "span %lld shares tokens with one before it, or lies before it",
                       (long long)fault.position);
    return kn_fail(KN_EINPUT, "span %lld goes beyond the tokens that there are", (long long)fault.position);
}

static int read_memory(KnBackend *backend, void *host, const void *device, size_t bytes)
{
    KnCuda *cuda = (KnCuda *)backend;
    KN_TRY(kn_cuda_check(
        cudaMemcpyAsync(cuda->seen, cuda->fault, sizeof *cuda->seen, cudaMemcpyDeviceToHost, cuda->stream),
        "a copy from the GPU"));
    KN_TRY(kn_cuda_check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDefault, cuda->stream), "a copy from the GPU"));
    KN_TRY(kn_cuda_check(cudaStreamSynchronize(cuda->stream), "the GPU's work"));
    return report_fault(cuda);
}

static int zero_memory(KnBackend *backend, void *device, size_t bytes)
{
    return kn_cuda_check(cudaMemsetAsync(device, 0, bytes, ((KnCuda *)backend)->stream), "setting the GPU's memory");
}

static const KnDeviceMemory memory_table = {.write = write_memory,
                                            .read = read_memory,
                                            .zero = zero_memory,
                                            .allocate_pinned = kn_cuda_allocate_pinned,
                                            .release_pinned = release_pinned,
                                            .staging_create = kn_cuda_staging_create,
                                            .stage = kn_cuda_stage,
                                            .send = kn_cuda_send,
                                            .staging_destroy = kn_cuda_staging_destroy};

/* ---- opening and closing ---- */

static void close_backend(KnBackend *backend)
{
    KnCuda *cuda = (KnCuda *)backend;
    cudaStreamSynchronize(cuda->stream);
    kn_cuda_staging_destroy(backend, cuda->writes);
    kn_cuda_queue_close(cuda);
    kn_cuda_matmul_close(cuda);
    kn_cuda_library_close(cuda);
    cudaFree(cuda->fault);
    cudaFreeHost(cuda->seen);
    if (cuda->copies)
        cudaStreamDestroy(cuda->copies);
    if (cuda->stream)
        cudaStreamDestroy(cuda->stream);
    free(cuda);
}

static int make_streams(KnCuda *cuda)
{
    KN_TRY(kn_cuda_check(cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking), "making a stream"));
    cuda->base.stream = cuda->stream;
    return kn_cuda_check(cudaStreamCreateWithFlags(&cuda->copies, cudaStreamNonBlocking), "making a stream");
}

static int make_fault(KnCuda *cuda)
{
    void *fault = NULL, *seen = NULL;
    KN_TRY(allocate(&cuda->base, &fault, sizeof *cuda->fault, "its faults"));
    cuda->fault = fault;
    KN_TRY(kn_cuda_allocate_pinned(&cuda->base, &seen, sizeof *cuda->seen, "its faults"));
    cuda->seen = seen;
    return zero_memory(&cuda->base, fault, sizeof *cuda->fault);
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
                                    .queue = &kn_cuda_queue,
                                    .supports = supports,
                                    .workspace_bytes = workspace_bytes,
                                    .run = run,
                                    .lower = lower,
                                    .allocate = allocate,
                                    .release = release,
                                    .close = close_backend};
    KN_TRY(find_gpu(device));
    KnCuda *made = kn_alloc(sizeof *made);
    made->base = table;
    made->device = device;
    int code = make_streams(made);
    if (code == KN_OK)
        code = make_fault(made);
    if (code == KN_OK)
        code = kn_cuda_staging_create(&made->base, &made->writes, WRITE_BYTES);
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

/* What can be said of a graph without a GPU: core/graph/devices.h. */
KnBackend *kn_cuda_planning_backend(void)
{
    static KnCuda planning = {.base = {.name = "cuda",
                                       .supports = supports,
                                       .workspace_bytes = workspace_bytes,
                                       .lower = lower,
                                       .kernels = kn_cuda_kernels}};
    return &planning.base;
}
