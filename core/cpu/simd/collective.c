/* Collective nodes: started on the communicator, waited for by ticket. Alone, there is nothing to sum. */
#include "core/cpu/simd/kernels.h"

#include "core/base/error.h"

static int run_all_reduce_start(const KnCall *call)
{
    const KnTensor *state = call->node->inputs[0];
    int64_t *ticket = &call->tickets[state->id];
    *ticket = 0;
    if (!call->comm)
        return KN_OK;
    const char *name = state->name[0] ? state->name : "gradients";
    return call->comm->table->all_reduce_start(call->comm, call->inputs[0], kn_tensor_elements(state), KN_F32, name,
                                               ticket);
}

static int run_all_reduce_wait(const KnCall *call)
{
    int64_t *ticket = &call->tickets[call->node->inputs[0]->id];
    if (!call->comm || *ticket == 0)
        return KN_OK;
    KN_TRY(call->comm->table->wait(call->comm, *ticket));
    *ticket = 0;
    return KN_OK;
}

const KnCpuKernel KN_ISA_NAME(kn_cpu_all_reduce_start) = {run_all_reduce_start, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_all_reduce_wait) = {run_all_reduce_wait, NULL};
