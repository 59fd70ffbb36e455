/* Copies to the device that the host does not wait for.
 *
 * A staging has two places in turn, each pinned memory of the host's and as much of the device's. What is sent goes up
 * on the copying stream, while the computing stream may still be busy with earlier runs, and to where it belongs on the
 * computing stream, behind those runs. The host waits when it comes back to a place whose copy has not gone up. */
#include "core/cuda/cuda.h"

#include "core/base/error.h"
#include "core/base/memory.h"

#include <stdlib.h>

enum { PLACES = 2 };

typedef struct Place {
    void *host, *device;
    cudaEvent_t up, taken; /* copied to the device; copied on to where it belongs */
} Place;

struct KnStaging {
    Place places[PLACES];
    int next;
};

static int create_place(KnCuda *cuda, Place *place, size_t bytes)
{
    KN_TRY(kn_cuda_allocate_pinned(&cuda->base, &place->host, bytes, "copies to it"));
    KN_TRY(kn_cuda_allocate_unshared(&cuda->base, &place->device, bytes, "copies to it"));
    KN_TRY(kn_cuda_check(cudaEventCreateWithFlags(&place->up, cudaEventDisableTiming), "making an event"));
    return kn_cuda_check(cudaEventCreateWithFlags(&place->taken, cudaEventDisableTiming), "making an event");
}

int kn_cuda_staging_create(KnBackend *backend, KnStaging **staging, size_t bytes)
{
    int code = KN_OK;
    *staging = kn_alloc(sizeof **staging);
    for (int i = 0; i < PLACES && code == KN_OK; i++)
        code = create_place((KnCuda *)backend, &(*staging)->places[i], bytes ? bytes : 1);
    if (code < 0) {
        kn_cuda_staging_destroy(backend, *staging);
        *staging = NULL;
    }
    return code;
}

void kn_cuda_staging_destroy(KnBackend *backend, KnStaging *staging)
{
    KnCuda *cuda = (KnCuda *)backend;
    if (!staging)
        return;
    cudaStreamSynchronize(cuda->copies);
    cudaStreamSynchronize(cuda->stream);
    for (int i = 0; i < PLACES; i++) {
        Place *place = &staging->places[i];
        cudaFreeHost(place->host);
        cudaFree(place->device);
        if (place->up)
            cudaEventDestroy(place->up);
        if (place->taken)
            cudaEventDestroy(place->taken);
    }
    free(staging);
}

int kn_cuda_stage(KnBackend *backend, KnStaging *staging, void **room)
{
    const Place *place = &staging->places[staging->next];
    (void)backend;
    *room = place->host;
    return kn_cuda_check(cudaEventSynchronize(place->up), "a copy to the GPU");
}

static cudaError_t queue_copies(const KnCuda *cuda, const Place *place, void *device, size_t bytes)
{
    cudaError_t result = cudaStreamWaitEvent(cuda->copies, place->taken, 0);
    if (result == cudaSuccess)
        result = cudaMemcpyAsync(place->device, place->host, bytes, cudaMemcpyHostToDevice, cuda->copies);
    if (result == cudaSuccess)
        result = cudaEventRecord(place->up, cuda->copies);
    if (result == cudaSuccess)
        result = cudaStreamWaitEvent(cuda->stream, place->up, 0);
    if (result == cudaSuccess)
        result = cudaMemcpyAsync(device, place->device, bytes, cudaMemcpyDefault, cuda->stream);
    if (result == cudaSuccess)
        result = cudaEventRecord(place->taken, cuda->stream);
    return result;
}

int kn_cuda_send(KnBackend *backend, KnStaging *staging, void *device, size_t bytes)
{
    const Place *place = &staging->places[staging->next];
    staging->next = (staging->next + 1) % PLACES;
    return kn_cuda_check(queue_copies((KnCuda *)backend, place, device, bytes), "a copy to the GPU");
}
