/* Memory of the device that is registered with the communicators of the job, so that links read and write it without a
 * copy to NCCL's own buffers ("User Buffer Registration" in NCCL's manual).
 *
 * Within a host that wants memory of ncclMemAlloc. What a call does is undefined where some ranks bring registered
 * memory and others do not, so nothing is left out: all that the backend allocates is registered, and a failure is an
 * error. NCCL_LOCAL_REGISTER=0 makes registering do nothing. */
#include "core/base/error.h"
#include "core/base/memory.h"
#include "dist/comm_nccl/comm_nccl.h"

#include <stdio.h>
#include <stdlib.h>

enum {
    GRANULE_BYTES = 2 << 20, /* the driver rounds up to multiples of it */
    FIRST_ON_NETWORKS = NCCL_VERSION(2, 32, 0),
};

/* Before that version a receive into registered memory over a network could wait for ever (NVIDIA/nccl issue 2389). */
int kn_nccl_can_register(const KnComm *host)
{
    int version = 0;
    ncclGetVersion(&version);
    return host->local_ranks == host->ranks || version >= FIRST_ON_NETWORKS;
}

static void push(KnNcclMemory **list, void *memory, void *handle)
{
    KnNcclMemory *made = kn_alloc(sizeof *made);
    *made = (KnNcclMemory){*list, memory, handle};
    *list = made;
}

/* Takes the entry of `memory` out of the list; 0 where there is none. */
static int take_out(KnNcclMemory **list, const void *memory, KnNcclMemory *entry)
{
    while (*list && (*list)->memory != memory)
        list = &(*list)->next;
    KnNcclMemory *found = *list;
    if (!found)
        return 0;
    *entry = *found;
    *list = found->next;
    free(found);
    return 1;
}

static int register_with(KnNcclComm *comm, void *memory, size_t bytes)
{
    void *handle = NULL;
    char what[KN_NCCL_NAME_BYTES + 64];
    snprintf(what, sizeof what, "registering memory with the ranks of %s", comm->name);
    KN_TRY(kn_nccl_check(ncclCommRegister(comm->nccl, memory, bytes, &handle), comm, what));
    push(&comm->registered, memory, handle);
    return KN_OK;
}

static void give_back(KnNcclJob *job, void *memory)
{
    KnNcclMemory entry;
    for (KnNcclComm *each = job->comms; each; each = each->next)
        if (take_out(&each->registered, memory, &entry))
            ncclCommDeregister(each->nccl, entry.handle);
    ncclMemFree(memory);
}

static int register_with_all(KnNcclJob *job, void *memory, size_t bytes)
{
    int code = KN_OK;
    for (KnNcclComm *each = job->comms; each && code == KN_OK; each = each->next)
        code = each->registers ? register_with(each, memory, bytes) : KN_OK;
    if (code == KN_OK)
        push(&job->memory, memory, NULL);
    else
        give_back(job, memory);
    return code;
}

static int fail_to_allocate(ncclResult_t result, size_t bytes)
{
    size_t unused = SIZE_MAX, total;
    int code = kn_nccl_check(result, NULL, "allocating memory that ranks exchange");
    cudaGetLastError();
    cudaMemGetInfo(&unused, &total);
    return unused < bytes + GRANULE_BYTES ? KN_EMEMORY : code;
}

int kn_nccl_allocate(KnComm *base, void **memory, size_t bytes)
{
    KnNcclJob *job = ((KnNcclComm *)base)->job;
    ncclResult_t result = ncclMemAlloc(memory, bytes);
    if (result != ncclSuccess)
        return fail_to_allocate(result, bytes);
    pthread_mutex_lock(&job->mutex);
    int code = register_with_all(job, *memory, bytes);
    pthread_mutex_unlock(&job->mutex);
    return code;
}

int kn_nccl_release(KnComm *base, void *memory)
{
    KnNcclJob *job = ((KnNcclComm *)base)->job;
    KnNcclMemory entry;
    cudaStreamSynchronize(job->stream);
    pthread_mutex_lock(&job->mutex);
    int is_found = take_out(&job->memory, memory, &entry);
    if (is_found)
        give_back(job, memory);
    pthread_mutex_unlock(&job->mutex);
    return is_found;
}
