/* The CUDA runtime without a GPU: memory.
 *
 * The device's memory begins as NaN in every type. Its addresses are never used again and stay unreadable once freed;
 * unreadable pages lie on both sides, and what is left of the last page must be untouched when it is freed.
 *
 * KINORA_EMULATED_PROTECT=1 keeps it under a protection key that only the device's thread holds, so that the host's
 * code dies where it reads or writes it. Processors without such keys cannot, and a line says so. */
#include "cudart.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(start, bytes) ((void)(start), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(start, bytes) ((void)(start), (void)(bytes))
#endif

enum { PAGE_BYTES = 4096, UNTOUCHED = 0xff };

typedef enum Kind { DEVICE, VIRTUAL, PINNED, REGISTERED } Kind; /* VIRTUAL: the device's, by its driver */

typedef struct Block {
    struct Block *next;
    char *start;
    size_t bytes;
    Kind kind;
    int is_freed;
} Block;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static Block *blocks; /* freed ones too */
static size_t used;

static int is_device_kind(Kind kind)
{
    return kind == DEVICE || kind == VIRTUAL;
}

static size_t room_of(size_t bytes)
{
    return (bytes + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
}

/* ---- protection ---- */

static int key = -1; /* none */
static pthread_once_t key_once = PTHREAD_ONCE_INIT;

static void make_key(void)
{
    if (!emulated_setting("KINORA_EMULATED_PROTECT", 0))
        return;
    key = pkey_alloc(0, PKEY_DISABLE_ACCESS);
    if (key < 0)
        fprintf(stderr, "emulated device: its memory is not protected, there are no protection keys: %s\n",
                strerror(errno));
}

void emulated_unlock_memory(void)
{
    pthread_once(&key_once, make_key);
    if (key >= 0)
        pkey_set(key, 0);
}

void emulated_lock_memory(void)
{
    if (key >= 0)
        pkey_set(key, PKEY_DISABLE_ACCESS);
}

/* ---- which memory an address is in ---- */

static int is_unified(void)
{
    return emulated_setting("KINORA_EMULATED_UNIFIED", 0) != 0;
}

/* The block from whose memory [pointer, pointer + bytes) is. */
static const Block *find(const void *pointer, size_t bytes)
{
    const Block *found = NULL;
    pthread_mutex_lock(&mutex);
    for (const Block *block = blocks; block && !found; block = block->next)
        if ((const char *)pointer >= block->start && (const char *)pointer + bytes <= block->start + block->bytes)
            found = block;
    pthread_mutex_unlock(&mutex);
    return found;
}

/* An address up to a page beyond the end may be held, for nothing to be there; using it dies. */
static int is_beyond(const void *pointer)
{
    return find((const char *)pointer - PAGE_BYTES, 0) != NULL;
}

const char *emulated_why_unreachable(const void *pointer)
{
    const Block *block = find(pointer, 0);
    if (block && block->is_freed)
        return "memory that has been freed";
    return block || is_unified() || is_beyond(pointer) ? NULL : "memory of the host's that is not pinned";
}

/* ---- allocation ---- */

static void *map(size_t bytes)
{
    size_t room = room_of(bytes);
    char *mapped = mmap(NULL, room + 2 * PAGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED || mprotect(mapped + PAGE_BYTES, room, PROT_READ | PROT_WRITE) != 0)
        return NULL;
    char *start = mapped + PAGE_BYTES;
    memset(start, UNTOUCHED, room);
    ASAN_POISON_MEMORY_REGION(start + bytes, room - bytes);
    return start;
}

static void add_block(void *start, size_t bytes, Kind kind)
{
    Block *block = malloc(sizeof *block);
    pthread_mutex_lock(&mutex);
    *block = (Block){blocks, start, bytes, kind, 0};
    blocks = block;
    pthread_mutex_unlock(&mutex);
}

static size_t limit(void)
{
    return (size_t)emulated_setting("KINORA_EMULATED_MEMORY", 16LL << 30);
}

/* Takes `bytes` from what the device has; 0 when it has less. */
static int take(size_t bytes)
{
    pthread_mutex_lock(&mutex);
    int is_there = bytes <= limit() && used <= limit() - bytes;
    if (is_there)
        used += bytes;
    pthread_mutex_unlock(&mutex);
    return is_there;
}

cudaError_t cudaMemGetInfo(size_t *left, size_t *total)
{
    KN_FAIL_IF_PLANNED();
    pthread_mutex_lock(&mutex);
    *total = limit();
    *left = *total - used;
    pthread_mutex_unlock(&mutex);
    return cudaSuccess;
}

static cudaError_t allocate_device(void **memory, size_t bytes, Kind kind, const char *function)
{
    cudaError_t error = emulated_refuse_in_capture(NULL, function);
    *memory = NULL;
    if (error != cudaSuccess || bytes == 0)
        return error;
    pthread_once(&key_once, make_key);
    if (!take(room_of(bytes)))
        return emulated_error(cudaErrorMemoryAllocation);
    *memory = map(bytes);
    if (!*memory)
        return emulated_error(cudaErrorMemoryAllocation);
    if (key >= 0)
        pkey_mprotect(*memory, room_of(bytes), PROT_READ | PROT_WRITE, key);
    add_block(*memory, bytes, kind);
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **memory, size_t bytes)
{
    KN_FAIL_IF_PLANNED();
    return allocate_device(memory, bytes, DEVICE, __func__);
}

cudaError_t emulated_allocate_virtual(void **memory, size_t bytes)
{
    return allocate_device(memory, bytes, VIRTUAL, "ncclMemAlloc");
}

cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned flags)
{
    KN_FAIL_IF_PLANNED();
    (void)flags;
    cudaError_t error = emulated_refuse_in_capture(NULL, __func__);
    *memory = NULL;
    if (error != cudaSuccess || bytes == 0)
        return error;
    *memory = map(bytes);
    if (!*memory)
        return emulated_error(cudaErrorMemoryAllocation);
    add_block(*memory, bytes, PINNED);
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **memory, size_t bytes)
{
    KN_FAIL_IF_PLANNED();
    return cudaHostAlloc(memory, bytes, cudaHostAllocDefault);
}

/* The block of that kind that begins there, taken for freed. */
static Block *take_out(const void *start, Kind kind)
{
    Block *found = NULL;
    pthread_mutex_lock(&mutex);
    for (Block *block = blocks; block && !found; block = block->next)
        if (block->start == start && block->kind == kind && !block->is_freed)
            found = block;
    if (found)
        found->is_freed = 1;
    pthread_mutex_unlock(&mutex);
    return found;
}

static void check_end(const Block *block)
{
    size_t room = room_of(block->bytes);
    ASAN_UNPOISON_MEMORY_REGION(block->start, room);
    emulated_unlock_memory();
    for (size_t i = block->bytes; i < room; i++)
        if ((unsigned char)block->start[i] != UNTOUCHED) {
            fprintf(stderr, "emulated device: memory of %zu bytes was written beyond its end\n", block->bytes);
            abort();
        }
    emulated_lock_memory();
}

static void unmap(const Block *block)
{
    check_end(block);
    madvise(block->start, room_of(block->bytes), MADV_DONTNEED);
    mprotect(block->start, room_of(block->bytes), PROT_NONE);
}

static cudaError_t free_memory(void *memory, Kind kind, const char *function)
{
    cudaError_t error = emulated_refuse_in_capture(NULL, function);
    if (!memory || error != cudaSuccess)
        return error;
    cudaDeviceSynchronize();
    const Block *block = take_out(memory, kind);
    if (!block)
        return emulated_refuse(cudaErrorInvalidValue, "%s of what it did not give", function);
    unmap(block);
    if (is_device_kind(kind)) {
        pthread_mutex_lock(&mutex);
        used -= room_of(block->bytes);
        pthread_mutex_unlock(&mutex);
    }
    return cudaSuccess;
}

cudaError_t cudaFree(void *memory)
{
    KN_FAIL_IF_PLANNED();
    return free_memory(memory, DEVICE, __func__);
}

cudaError_t emulated_free_virtual(void *memory)
{
    return free_memory(memory, VIRTUAL, "ncclMemFree");
}

int emulated_is_virtual(const void *memory, size_t bytes)
{
    const Block *block = find(memory, bytes);
    return block && block->kind == VIRTUAL && !block->is_freed;
}

cudaError_t cudaFreeHost(void *memory)
{
    KN_FAIL_IF_PLANNED();
    return free_memory(memory, PINNED, __func__);
}

cudaError_t cudaHostRegister(void *memory, size_t bytes, unsigned flags)
{
    KN_FAIL_IF_PLANNED();
    (void)flags;
    const Block *block = find(memory, 0);
    if (block && !block->is_freed)
        return emulated_error(cudaErrorHostMemoryAlreadyRegistered);
    add_block(memory, bytes, REGISTERED);
    return cudaSuccess;
}

/* The host may do as it likes with memory that was registered, so that it is forgotten, not taken for freed. */
cudaError_t cudaHostUnregister(void *memory)
{
    KN_FAIL_IF_PLANNED();
    Block *block = take_out(memory, REGISTERED);
    if (!block)
        return emulated_error(cudaErrorHostMemoryNotRegistered);
    block->start = NULL;
    block->bytes = 0;
    return cudaSuccess;
}

/* ---- copies ---- */

typedef struct Copy {
    void *to;
    const void *from; /* NULL: `value` is set */
    size_t bytes;
    int value;
    void *staged; /* what was in pageable memory, or NULL */
} Copy;

static int run_copy(void *argument)
{
    const Copy *copy = argument;
    if (copy->from)
        memcpy(copy->to, copy->from, copy->bytes);
    else
        memset(copy->to, copy->value, copy->bytes);
    return 1;
}

static void copy_free(void *argument)
{
    Copy *copy = argument;
    free(copy->staged);
    free(copy);
}

static void queue_copy(Copy copy, cudaStream_t stream)
{
    Copy *queued = malloc(sizeof *queued);
    *queued = copy;
    emulated_enqueue(stream, run_copy, queued, copy_free);
}

/* What is wrong with a range as an end of a copy, or NULL. */
static const char *why_not(const void *start, size_t bytes, int on_device)
{
    const Block *block = find(start, bytes), *touched = block ? block : find(start, 0);
    if (touched && touched->is_freed)
        return "has been freed";
    if (touched && !block)
        return "ends before the copy does";
    if (on_device)
        return (block && is_device_kind(block->kind)) || (!block && is_unified()) ? NULL : "is the host's";
    return block && is_device_kind(block->kind) ? "is the device's" : NULL;
}

static int is_of_device(const void *pointer)
{
    const Block *block = find(pointer, 0);
    return block && is_device_kind(block->kind);
}

static cudaError_t check_copy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
    int to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    int from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (kind == cudaMemcpyDefault) {
        to_device = is_of_device(to);
        from_device = is_of_device(from);
    }
    const char *why_to = why_not(to, bytes, to_device), *why_from = why_not(from, bytes, from_device);
    if (why_to)
        return emulated_refuse(cudaErrorInvalidValue, "a copy of %zu bytes to memory that %s", bytes, why_to);
    if (why_from)
        return emulated_refuse(cudaErrorInvalidValue, "a copy of %zu bytes from memory that %s", bytes, why_from);
    return cudaSuccess;
}

static int is_pageable(const void *pointer)
{
    return !find(pointer, 0) && !is_unified();
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    KN_FAIL_IF_PLANNED();
    cudaError_t error = bytes ? check_copy(to, from, bytes, kind) : cudaSuccess;
    if (error != cudaSuccess || bytes == 0)
        return error;
    Copy copy = {.to = to, .from = from, .bytes = bytes};
    if (is_pageable(from) || is_pageable(to)) {
        error = emulated_refuse_in_capture(stream, "a copy of memory that is not pinned");
        if (error != cudaSuccess)
            return error;
    }
    if (is_pageable(from)) { /* what is in it now, whatever the host does next */
        copy.staged = malloc(bytes);
        copy.from = memcpy(copy.staged, from, bytes);
    }
    queue_copy(copy, stream);
    return is_pageable(to) ? cudaStreamSynchronize(stream) : cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
    KN_FAIL_IF_PLANNED();
    cudaError_t error = emulated_refuse_in_capture(NULL, __func__);
    if (error == cudaSuccess)
        error = cudaMemcpyAsync(to, from, bytes, kind, NULL);
    return error == cudaSuccess ? cudaStreamSynchronize(NULL) : error;
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream)
{
    KN_FAIL_IF_PLANNED();
    const char *why = bytes ? why_not(to, bytes, 1) : NULL;
    if (why)
        return emulated_refuse(cudaErrorInvalidValue, "setting %zu bytes of memory that %s", bytes, why);
    if (bytes)
        queue_copy((Copy){.to = to, .bytes = bytes, .value = value}, stream);
    return cudaSuccess;
}

cudaError_t cudaMemset(void *to, int value, size_t bytes)
{
    KN_FAIL_IF_PLANNED();
    cudaError_t error = cudaMemsetAsync(to, value, bytes, NULL);
    return error == cudaSuccess ? cudaStreamSynchronize(NULL) : error;
}
