/* NCCL without a GPU: memory that links can reach, and its registration with communicators. */
#include "nccl_memory.h"

#include "core/cuda/emulator/runtime.h"

#include <pthread.h>
#include <stdlib.h>

typedef struct Registration {
    struct Registration *next;
    ncclComm_t comm;
    const char *memory;
    size_t bytes;
} Registration;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static Registration *registrations;

ncclResult_t ncclMemAlloc(void **memory, size_t bytes)
{
    cudaError_t error = emulated_planned_fault(__func__);
    if (error == cudaSuccess)
        error = emulated_allocate_virtual(memory, bytes);
    return error == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

static int overlaps(const Registration *one, const char *memory, size_t bytes)
{
    return memory < one->memory + one->bytes && one->memory < memory + bytes;
}

ncclResult_t ncclMemFree(void *memory)
{
    int is_used = 0;
    pthread_mutex_lock(&mutex);
    for (const Registration *each = registrations; each; each = each->next)
        is_used |= overlaps(each, memory, 1);
    pthread_mutex_unlock(&mutex);
    if (is_used) {
        emulated_refuse(cudaErrorInvalidValue, "ncclMemFree of memory that is registered");
        return ncclInvalidUsage;
    }
    return emulated_free_virtual(memory) == cudaSuccess ? ncclSuccess : ncclInvalidArgument;
}

ncclResult_t ncclCommRegister(const ncclComm_t comm, void *memory, size_t bytes, void **handle)
{
    if (emulated_planned_fault(__func__) != cudaSuccess)
        return ncclUnhandledCudaError;
    if (!emulated_is_virtual(memory, bytes)) {
        emulated_refuse(cudaErrorInvalidValue, "ncclCommRegister of memory that ncclMemAlloc did not give");
        return ncclInvalidArgument;
    }
    Registration *made = malloc(sizeof *made);
    pthread_mutex_lock(&mutex);
    *made = (Registration){registrations, comm, memory, bytes};
    registrations = made;
    pthread_mutex_unlock(&mutex);
    *handle = made;
    return ncclSuccess;
}

ncclResult_t ncclCommDeregister(const ncclComm_t comm, void *handle)
{
    pthread_mutex_lock(&mutex);
    Registration **place = &registrations;
    while (*place && *place != handle)
        place = &(*place)->next;
    Registration *found = *place;
    int is_there = found && found->comm == comm;
    if (is_there)
        *place = found->next;
    pthread_mutex_unlock(&mutex);
    if (!is_there) {
        emulated_refuse(cudaErrorInvalidValue, "ncclCommDeregister of what the communicator did not register");
        return ncclInvalidArgument;
    }
    free(found);
    return ncclSuccess;
}

int emulated_is_registered(ncclComm_t comm, const void *memory, size_t bytes)
{
    const char *first = memory;
    int is_there = bytes == 0;
    pthread_mutex_lock(&mutex);
    for (const Registration *each = registrations; each; each = each->next)
        is_there |= each->comm == comm && first >= each->memory && first + bytes <= each->memory + each->bytes;
    pthread_mutex_unlock(&mutex);
    return is_there;
}

int emulated_registrations(ncclComm_t comm)
{
    int count = 0;
    pthread_mutex_lock(&mutex);
    for (const Registration *each = registrations; each; each = each->next)
        count += each->comm == comm;
    pthread_mutex_unlock(&mutex);
    return count;
}
