/* Twins of host memory: a list of ranges, sorted by address. */
#include "core/graph/twin.h"

#include "core/base/error.h"

#include <stdlib.h>
#include <string.h>

typedef struct Twin {
    unsigned char *host, *device;
    size_t bytes;
    int is_pinned;
} Twin;

struct KnTwins {
    Twin *list;
    int count;
};

/* How many begin at or below the address. */
static int find_place(const KnTwins *twins, const void *host)
{
    int low = 0, high = twins ? twins->count : 0;
    while (low < high) {
        int middle = (low + high) / 2;
        if ((const unsigned char *)host < twins->list[middle].host)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

static Twin *find_twin(const KnBackend *backend, const void *host)
{
    int place = find_place(backend->twins, host);
    Twin *twin = place ? &backend->twins->list[place - 1] : NULL;
    return twin && (const unsigned char *)host < twin->host + twin->bytes ? twin : NULL;
}

/* The device's address of a range that must lie in one twin. */
static unsigned char *find_range(const KnBackend *backend, const void *host, size_t bytes)
{
    const Twin *twin = find_twin(backend, host);
    KN_ASSERT(twin);
    size_t at = (size_t)((const unsigned char *)host - twin->host);
    KN_ASSERT(at + bytes <= twin->bytes);
    return twin->device + at;
}

static void insert(KnBackend *backend, Twin twin)
{
    if (!backend->twins)
        backend->twins = kn_alloc(sizeof *backend->twins);
    KnTwins *twins = backend->twins;
    int place = find_place(twins, twin.host);
    KN_ASSERT(!find_twin(backend, twin.host));
    KN_ASSERT(place == twins->count || twin.host + twin.bytes <= twins->list[place].host);
    twins->list = kn_realloc(twins->list, ((size_t)twins->count + 1) * sizeof *twins->list);
    memmove(&twins->list[place + 1], &twins->list[place], (size_t)(twins->count - place) * sizeof *twins->list);
    twins->list[place] = twin;
    twins->count++;
    backend->twin_changes++;
}

int kn_twin_create(KnBackend *backend, void *host, size_t bytes, const char *what)
{
    void *device;
    if (!backend->memory || bytes == 0)
        return KN_OK;
    KN_TRY(backend->allocate(backend, &device, bytes, what));
    insert(backend, (Twin){host, device, bytes, 0});
    return KN_OK;
}

int kn_twin_create_pinned(KnBackend *backend, void *host, size_t bytes, const char *what)
{
    void *pinned;
    if (!backend->memory || bytes == 0)
        return KN_OK;
    KN_TRY(backend->memory->allocate_pinned(backend, &pinned, bytes, what));
    insert(backend, (Twin){host, pinned, bytes, 1});
    return KN_OK;
}

void kn_twin_destroy(KnBackend *backend, const void *host)
{
    Twin *twin = host ? find_twin(backend, host) : NULL;
    if (!twin)
        return;
    KnTwins *twins = backend->twins;
    if (twin->is_pinned)
        backend->memory->release_pinned(backend, twin->device);
    else
        backend->release(backend, twin->device);
    backend->twin_changes++;
    memmove(twin, twin + 1, (size_t)(&twins->list[--twins->count] - twin) * sizeof *twin);
    if (twins->count == 0) {
        free(twins->list);
        free(twins);
        backend->twins = NULL;
    }
}

int kn_twin_push(KnBackend *backend, const void *host, size_t bytes)
{
    if (!backend->memory || bytes == 0)
        return KN_OK;
    return backend->memory->write(backend, find_range(backend, host, bytes), host, bytes);
}

int kn_twin_pull(KnBackend *backend, void *host, size_t bytes)
{
    if (!backend->memory || bytes == 0)
        return KN_OK;
    return backend->memory->read(backend, host, find_range(backend, host, bytes), bytes);
}

int kn_twin_zero(KnBackend *backend, void *host, size_t bytes)
{
    if (backend->memory && bytes)
        return backend->memory->zero(backend, find_range(backend, host, bytes), bytes);
    if (bytes)
        memset(host, 0, bytes);
    return KN_OK;
}

void *kn_twin_address(const KnBackend *backend, const void *host)
{
    if (!backend->memory)
        return (void *)host;
    const Twin *twin = find_twin(backend, host);
    return twin ? twin->device + ((const unsigned char *)host - twin->host) : NULL;
}
