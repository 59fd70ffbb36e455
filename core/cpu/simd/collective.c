/* Collective nodes, and nodes that move nothing. */
#include "core/cpu/simd/kernels.h"
#include "core/ops/exchange.h"

#include "core/base/error.h"

#include <string.h>

static int copy(void *device, void *to, const void *from, size_t bytes)
{
    (void)device;
    memcpy(to, from, bytes);
    return KN_OK;
}

static int run_start(const KnCall *call)
{
    return kn_exchange_start(call, copy, NULL);
}

static int run_nothing(const KnCall *call)
{
    (void)call;
    return KN_OK;
}

static int run_zeros(const KnCall *call)
{
    memset(call->outputs[0], 0, kn_tensor_bytes(call->node->outputs[0]));
    return KN_OK;
}

const KnCpuKernel KN_ISA_NAME(kn_cpu_collective_start) = {run_start, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_collective_wait) = {kn_exchange_wait, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_replicate) = {run_nothing, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_view) = {run_nothing, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_zeros) = {run_zeros, NULL};
