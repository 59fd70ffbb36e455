/* The CUDA backend's table: memory of one GPU, reads and writes, and nodes by the rows of table.c. */
#include "core/cuda/cuda.h"
#include "core/cuda/matmul.h"

#include "core/base/error.h"
#include "core/base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MIB = 1 << 20, WRITE_BYTES = 4 * MIB }; /* the pieces of a write */

int kn_cuda_open(int device, KnBackend **backend);
KnBackend *kn_cuda_planning_backend(void);
const char *kn_cuda_interface(void);

int kn_cuda_check(cudaError_t result, const char *what)
{
    if (result == cudaSuccess)
        return KN_OK;
    return kn_fail(KN_EPEER, "%s failed in CUDA: %s", what, cudaGetErrorString(result));
}

/* The same for the device's own work, which may have failed of itself: says which device it was. */
static int check_work(const KnCuda *cuda, cudaError_t result, const char *what)
{
    char host[256] = "";
    if (result == cudaSuccess)
        return KN_OK;
    gethostname(host, sizeof host - 1);
    return kn_fail(KN_EPEER, "%s failed in CUDA: %s, on GPU %d of host %s (%s, %s)", what, cudaGetErrorString(result),
                   cuda->device, host, cuda->base.device, cuda->id);
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
    KnCuda *cuda = (KnCuda *)backend;
    if (!op)
        return kn_fail(KN_EINPUT, "the CUDA backend has no kernel for the op %s", call->node->op->name);
    cuda->fault = &cuda->faults[call->node->op->id];
    cudaError_t result = op->run(cuda, call);
    return (int)result == KN_CUDA_SENTENCE ? KN_EPEER : check_work(cuda, result, call->node->op->name);
}

static void lower(KnBackend *backend, KnGraph *graph)
{
    kn_cuda_lower(graph);
    kn_cuda_choose_attention((KnCuda *)backend, graph);
}

/* ---- memory ---- */

static int fail_for_room(const KnBackend *backend, size_t bytes, const char *what)
{
    size_t unused = 0, total = 0;
    cudaGetLastError();
    cudaMemGetInfo(&unused, &total);
    return kn_fail(KN_EMEMORY, "GPU %d has no room for %s: %zu MiB wanted, %zu of %zu MiB free",
                   ((const KnCuda *)backend)->device, what, bytes / MIB + 1, unused / MIB, total / MIB);
}

int kn_cuda_allocate_unshared(KnBackend *backend, void **memory, size_t bytes, const char *what)
{
    cudaError_t result = cudaMalloc(memory, bytes ? bytes : 1);
    return result == cudaErrorMemoryAllocation ? fail_for_room(backend, bytes, what) : kn_cuda_check(result, what);
}

static int allocate(KnBackend *backend, void **memory, size_t bytes, const char *what)
{
    KnComm *comm = backend->comm;
    if (!comm)
        return kn_cuda_allocate_unshared(backend, memory, bytes, what);
    int code = comm->table->allocate(comm, memory, bytes ? bytes : 1);
    return code == KN_EMEMORY ? fail_for_room(backend, bytes, what) : code;
}

static void release(KnBackend *backend, void *memory)
{
    KnComm *comm = backend->comm;
    cudaStreamSynchronize(((KnCuda *)backend)->stream);
    if (!comm || !comm->table->release(comm, memory))
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

enum { FAULT_BYTES = KN_OP_COUNT * sizeof(KnCudaFault) };

static int fail_for(const KnCudaFault *fault, const char *op)
{
    if (fault->kind == KN_CUDA_WILD_INDEX)
        return kn_fail(KN_EINPUT, "%s: index %d at position %lld does not name one of %lld rows", op, fault->value,
                       (long long)fault->position, (long long)fault->limit);
    if (fault->kind == KN_CUDA_MIXED_SPANS)
        return kn_fail(KN_EINPUT, "%s: span %lld shares tokens with one before it, or lies before it", op,
                       (long long)fault->position);
    return kn_fail(KN_EINPUT, "%s: span %lld has a negative number or leaves the queries or keys", op,
                   (long long)fault->position);
}

static int report_fault(KnCuda *cuda)
{
    for (int op = 0; op < KN_OP_COUNT; op++) {
        const KnCudaFault fault = cuda->seen[op];
        if (fault.kind == KN_CUDA_NO_FAULT)
            continue;
        cudaMemsetAsync(cuda->faults, 0, FAULT_BYTES, cuda->stream);
        return fail_for(&fault, kn_op((KnOpId)op)->name);
    }
    return KN_OK;
}

static int read_memory(KnBackend *backend, void *host, const void *device, size_t bytes)
{
    KnCuda *cuda = (KnCuda *)backend;
    KN_TRY(check_work(cuda,
                      cudaMemcpyAsync(cuda->seen, cuda->faults, FAULT_BYTES, cudaMemcpyDeviceToHost, cuda->stream),
                      "a copy from the GPU"));
    KN_TRY(
        check_work(cuda, cudaMemcpyAsync(host, device, bytes, cudaMemcpyDefault, cuda->stream), "a copy from the GPU"));
    KN_TRY(check_work(cuda, cudaStreamSynchronize(cuda->stream), "the GPU's work"));
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
    if (cuda->stream)
        cudaStreamSynchronize(cuda->stream);
    kn_cuda_staging_destroy(backend, cuda->writes);
    kn_cuda_queue_close(cuda);
    kn_cuda_matmul_close(cuda);
    kn_cuda_library_close(cuda);
    cudaFree(cuda->faults);
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

static int make_faults(KnCuda *cuda)
{
    void *faults = NULL, *seen = NULL;
    KN_TRY(allocate(&cuda->base, &faults, FAULT_BYTES, "its faults"));
    cuda->faults = faults;
    KN_TRY(kn_cuda_allocate_pinned(&cuda->base, &seen, FAULT_BYTES, "its faults"));
    cuda->seen = seen;
    return zero_memory(&cuda->base, faults, FAULT_BYTES);
}

/* A process sees all GPUs of its host, or its own alone, where a scheduler arranges it so. */
static int find_gpu(KnCuda *cuda, int place)
{
    int count = 0;
    KN_TRY(kn_cuda_check(cudaGetDeviceCount(&count), "looking for GPUs"));
    KN_ASSERT(place >= 0 && count > 0);
    cuda->device = place % count;
    return kn_cuda_check(cudaSetDevice(cuda->device), "choosing the GPU");
}

/* Its name and, as nvidia-smi shows it, its number. */
static int describe_gpu(KnCuda *cuda)
{
    enum { LEAST = 8 }; /* compute capability that kernels are compiled for */
    struct cudaDeviceProp *gpu = &cuda->properties;
    char uuid[2 * sizeof gpu->uuid.bytes + 1];
    KN_TRY(kn_cuda_check(cudaGetDeviceProperties(gpu, cuda->device), "asking what the GPU is"));
    if (gpu->major < LEAST)
        return kn_fail(KN_EPEER, "GPU %d, a %s, has compute capability %d.%d: kinora's kernels need %d.0 or more",
                       cuda->device, gpu->name, gpu->major, gpu->minor, LEAST);
    cuda->has_fp8 = gpu->major >= 9;
    for (size_t i = 0; i < sizeof gpu->uuid.bytes; i++)
        snprintf(uuid + 2 * i, 3, "%02x", (unsigned char)gpu->uuid.bytes[i]);
    snprintf(cuda->id, sizeof cuda->id, "GPU-%.8s-%.4s-%.4s-%.4s-%.12s", uuid, uuid + 8, uuid + 12, uuid + 16,
             uuid + 20);
    cuda->base.device = gpu->name;
    cuda->base.device_id = cuda->id;
    return KN_OK;
}

static int open_gpu(KnCuda *cuda, int place)
{
    KN_TRY(find_gpu(cuda, place));
    KN_TRY(describe_gpu(cuda));
    KN_TRY(make_streams(cuda));
    KN_TRY(make_faults(cuda));
    KN_TRY(kn_cuda_staging_create(&cuda->base, &cuda->writes, WRITE_BYTES));
    return kn_cuda_matmul_open(cuda);
}

const char *kn_cuda_interface(void)
{
    return KINORA_INTERFACE;
}

int kn_cuda_open(int device, KnBackend **backend)
{
    static const KnBackend table = {.name = "cuda",
                                    .memory = &memory_table,
                                    .queue = &kn_cuda_queue,
                                    .exchanges_in_order = 1,
                                    .supports = supports,
                                    .workspace_bytes = workspace_bytes,
                                    .run = run,
                                    .lower = lower,
                                    .allocate = allocate,
                                    .release = release,
                                    .close = close_backend};
    KnCuda *made = kn_alloc(sizeof *made);
    made->base = table;
    int code = open_gpu(made, device);
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
                                       .exchanges_in_order = 1,
                                       .supports = supports,
                                       .workspace_bytes = workspace_bytes,
                                       .lower = lower,
                                       .kernels = kn_cuda_kernels}};
    return &planning.base;
}
