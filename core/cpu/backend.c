/* The CPU backend's table: kernels of the best instruction set, memory from kn_alloc_large. */
#include "core/cpu/backend.h"

#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/cpu/isa.h"
#include "core/cpu/lower.h"

extern const KnCpuKernel *const kn_cpu_kernel_table_generic[KN_OP_COUNT];
extern const KnCpuKernel *const kn_cpu_kernel_table_avx2[KN_OP_COUNT];
extern const KnCpuKernel *const kn_cpu_kernel_table_avx512[KN_OP_COUNT];
extern const KnCpuKernel *const kn_cpu_kernel_table_avx512bf16[KN_OP_COUNT];

static const KnCpuKernel *kernel_of(const KnNode *node)
{
#if defined(KN_HAVE_avx512bf16)
    if (kn_cpu_isa() >= KN_ISA_AVX512BF16)
        return kn_cpu_kernel_table_avx512bf16[node->op->id];
#endif
    return KN_ISA_PICK(kn_cpu_kernel_table)[node->op->id];
}

static int supports(KnBackend *backend, const KnNode *node)
{
    (void)backend;
    return kernel_of(node) != NULL;
}

static size_t workspace_bytes(KnBackend *backend, const KnNode *node)
{
    const KnCpuKernel *kernel = kernel_of(node);
    (void)backend;
    return kernel && kernel->workspace_bytes ? kernel->workspace_bytes(node) : 0;
}

static int run(KnBackend *backend, const KnCall *call)
{
    const KnCpuKernel *kernel = kernel_of(call->node);
    (void)backend;
    if (!kernel)
        return kn_fail(KN_EINPUT, "the CPU backend has no kernel for the op %s", call->node->op->name);
    return kernel->run(call);
}

static void lower(KnBackend *backend, KnGraph *graph)
{
    (void)backend;
    kn_cpu_lower(graph);
}

static int allocate(KnBackend *backend, void **memory, size_t bytes, const char *what)
{
    (void)backend;
    return kn_alloc_large(memory, bytes, what);
}

static void release(KnBackend *backend, void *memory)
{
    (void)backend;
    kn_free_large(memory);
}

KnBackend *kn_cpu_backend(void)
{
    static KnBackend backend = {.name = "cpu",
                                .supports = supports,
                                .workspace_bytes = workspace_bytes,
                                .run = run,
                                .lower = lower,
                                .allocate = allocate,
                                .release = release};
    return &backend;
}
