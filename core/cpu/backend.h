/* The CPU backend: a table of kernels by op id, chosen for the best instruction set this machine has.
 *
 * Kernels live in core/cpu/simd/ (compiled once per instruction set), one file per op family; each file exports
 * functions of type KnCpuKernel, and core/cpu/simd/table.c collects them. Each kernel shares fixed blocks out to
 * the team of threads (core/cpu/team.h), so that its bits do not depend on their number. */
#ifndef KN_CPU_BACKEND_H
#define KN_CPU_BACKEND_H

#include "core/graph/executor.h"
#include "core/ops/ops.h"

typedef struct KnCpuKernel {
    int (*run)(const KnCall *call);                /* 0 or KN_E* */
    size_t (*workspace_bytes)(const KnNode *node); /* NULL: none */
} KnCpuKernel;

/* The process-wide CPU backend. */
KnBackend *kn_cpu_backend(void);

/* Threads that kernels use; 0 = all processors that this process may run on. */
void kn_cpu_set_threads(int threads);
int kn_cpu_threads(void);

#endif
