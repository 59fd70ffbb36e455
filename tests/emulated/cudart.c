/* The CUDA runtime without a GPU: what the plugin uses of it, in the host's memory.
 *
 * Streams are queues that one thread works off while the program goes on, as a device does. Which stream goes first is
 * left open by CUDA; KINORA_EMULATED_ORDER=1 gives the stream that was made first all it can do before the next one
 * gets a turn, 2 the one that was made last, so that a missing wait shows in one of the two. */
#include "cudart.h"

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct Item {
    struct Item *next;
    int (*run)(void *argument);
    void *argument;
} Item;

struct CUstream_st {
    Item *first, **end;
    struct CUstream_st *next; /* in the order of turns */
    int busy;                 /* its first item is being run */
};

struct CUevent_st {
    int64_t recorded, come; /* how often */
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work = PTHREAD_COND_INITIALIZER, idle = PTHREAD_COND_INITIALIZER;
static struct CUstream_st *streams;
static int thread_runs;

/* ---- the device ---- */

/* Runs the first item of a stream with the mutex free; 1 when it is through. */
static int run_first(struct CUstream_st *stream)
{
    Item *item = stream->first;
    stream->busy = 1;
    pthread_mutex_unlock(&mutex);
    int through = item->run(item->argument);
    pthread_mutex_lock(&mutex);
    stream->busy = 0;
    if (!through)
        return 0;
    stream->first = item->next;
    if (!stream->first)
        stream->end = &stream->first;
    free(item);
    pthread_cond_broadcast(&idle);
    return 1;
}

static void *run_device(void *nothing)
{
    (void)nothing;
    pthread_mutex_lock(&mutex);
    for (;;) {
        int through = 0;
        for (struct CUstream_st *stream = streams; stream && !through; stream = stream->next)
            while (stream->first && run_first(stream))
                through = 1;
        if (!through) {
            struct timespec until;
            clock_gettime(CLOCK_REALTIME, &until);
            until.tv_nsec += 50000;
            if (until.tv_nsec >= 1000000000)
                until.tv_sec++, until.tv_nsec -= 1000000000;
            pthread_cond_timedwait(&work, &mutex, &until);
        }
    }
    return NULL;
}

static void start_device(void)
{
    pthread_t thread;
    if (thread_runs++ == 0 && pthread_create(&thread, NULL, run_device, NULL) == 0)
        pthread_detach(thread);
}

void emulated_enqueue(cudaStream_t stream, int (*run)(void *argument), void *argument)
{
    Item *item = malloc(sizeof *item);
    *item = (Item){NULL, run, argument};
    pthread_mutex_lock(&mutex);
    *stream->end = item;
    stream->end = &item->next;
    pthread_cond_signal(&work);
    pthread_mutex_unlock(&mutex);
}

/* ---- devices ---- */

cudaError_t cudaGetDevice(int *device)
{
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device)
{
    return device == 0 ? cudaSuccess : cudaErrorInvalidDevice;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t error)
{
    switch (error) {
    case cudaSuccess:
        return "no error";
    case cudaErrorInvalidValue:
        return "invalid argument";
    case cudaErrorInvalidDevice:
        return "invalid device ordinal";
    case cudaErrorNotReady:
        return "device not ready";
    default:
        return "an error that is not emulated";
    }
}

/* ---- streams ---- */

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority)
{
    struct CUstream_st *made = calloc(1, sizeof *made);
    const char *order = getenv("KINORA_EMULATED_ORDER");
    (void)flags, (void)priority;
    made->end = &made->first;
    pthread_mutex_lock(&mutex);
    struct CUstream_st **place = &streams;
    while (*place && !(order && strcmp(order, "2") == 0))
        place = &(*place)->next;
    made->next = *place;
    *place = made;
    start_device();
    pthread_mutex_unlock(&mutex);
    *stream = made;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    pthread_mutex_lock(&mutex);
    while (stream->first)
        pthread_cond_wait(&idle, &mutex);
    pthread_mutex_unlock(&mutex);
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    cudaStreamSynchronize(stream);
    pthread_mutex_lock(&mutex);
    struct CUstream_st **place = &streams;
    while (*place != stream)
        place = &(*place)->next;
    *place = stream->next;
    pthread_mutex_unlock(&mutex);
    free(stream);
    return cudaSuccess;
}

/* ---- events ---- */

typedef struct Mark {
    cudaEvent_t event;
    int64_t number;
} Mark;

static Mark *mark_create(cudaEvent_t event, int64_t number)
{
    Mark *mark = malloc(sizeof *mark);
    *mark = (Mark){event, number};
    return mark;
}

static int run_record(void *argument)
{
    Mark *mark = argument;
    pthread_mutex_lock(&mutex);
    mark->event->come = mark->number;
    pthread_mutex_unlock(&mutex);
    free(mark);
    return 1;
}

static int run_wait(void *argument)
{
    Mark *mark = argument;
    pthread_mutex_lock(&mutex);
    int come = mark->event->come >= mark->number;
    pthread_mutex_unlock(&mutex);
    if (come)
        free(mark);
    return come;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags)
{
    (void)flags;
    *event = calloc(1, sizeof **event);
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    free(event);
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    pthread_mutex_lock(&mutex);
    int64_t number = ++event->recorded;
    pthread_mutex_unlock(&mutex);
    emulated_enqueue(stream, run_record, mark_create(event, number));
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    pthread_mutex_lock(&mutex);
    int come = event->come == event->recorded;
    pthread_mutex_unlock(&mutex);
    return come ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    (void)flags;
    pthread_mutex_lock(&mutex);
    int64_t number = event->recorded;
    pthread_mutex_unlock(&mutex);
    emulated_enqueue(stream, run_wait, mark_create(event, number));
    return cudaSuccess;
}

/* ---- memory ---- */

typedef struct Copy {
    void *to;
    const void *from;
    size_t bytes;
} Copy;

static int run_copy(void *argument)
{
    Copy *copy = argument;
    memcpy(copy->to, copy->from, copy->bytes);
    free(copy);
    return 1;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    if (kind != cudaMemcpyDeviceToDevice)
        return cudaErrorInvalidValue;
    Copy *copy = malloc(sizeof *copy);
    *copy = (Copy){to, from, bytes};
    emulated_enqueue(stream, run_copy, copy);
    return cudaSuccess;
}
