/* The kernels of one instruction set by op id. To add one, add a row to KN_CPU_KERNELS in kernels.h. */
#include "core/cpu/simd/kernels.h"

#define KERNEL_ROW(id, name) [KN_OP_##id] = &KN_ISA_NAME(kn_cpu_##name),

const KnCpuKernel *const KN_ISA_NAME(kn_cpu_kernel_table)[KN_OP_COUNT] = {KN_CPU_KERNELS(KERNEL_ROW)};
