/* The CUDA runtime without a GPU: the device's thread, streams and events.
 *
 * Streams are queues that one thread works off while the program goes on, as a device does. Which stream goes first is
 * left open by CUDA; KINORA_EMULATED_ORDER=1 gives the stream that was made first all it can do before the next one
 * gets a turn, 2 the one that was made last, so that a missing wait shows in one of the two. Under either the device
 * begins only when the host waits for it or asks, or has queued nothing for a while: what is not waited for has then
 * not happened yet. */
#include "cudart.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { POLL_NANOSECONDS = 50000 };
static const double idle_milliseconds = 20; /* after which the device begins unasked */

pthread_mutex_t emulated_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work = PTHREAD_COND_INITIALIZER, idle = PTHREAD_COND_INITIALIZER;
static struct CUstream_st *streams, *default_stream;
static int thread_runs;
static int is_asked; /* a thread of the host has looked */
static double queued_at;

/* A thread of the host that waits for a stream to be empty, or for an event to come. */
typedef struct Waiter {
    struct Waiter *next;
    const struct CUstream_st *stream;
    const struct CUevent_st *event;
    int64_t number;
} Waiter;
static Waiter *waiters;

static double now_milliseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}

/* ---- queues ---- */

void emulated_queue_init(Queue *queue)
{
    queue->first = NULL;
    queue->end = &queue->first;
}

void emulated_queue_add(Queue *queue, int (*run)(void *argument), void *argument, void (*release)(void *argument))
{
    Item *item = malloc(sizeof *item);
    *item = (Item){NULL, run, argument, release};
    *queue->end = item;
    queue->end = &item->next;
}

void emulated_item_free(Item *item)
{
    if (item->release)
        item->release(item->argument);
    free(item);
}

/* ---- the device ---- */

static int is_lazy(void)
{
    return getenv("KINORA_EMULATED_ORDER") != NULL;
}

int emulated_last_first(void)
{
    return emulated_setting("KINORA_EMULATED_ORDER", 1) == 2;
}

static int has_come(const Waiter *waiter)
{
    return waiter->stream ? !waiter->stream->queue.first : waiter->event->come >= waiter->number;
}

/* What the host waits for has not all come; it may be slow to notice when it has. */
static int is_waited_for(void)
{
    const Waiter *waiter = waiters;
    while (waiter && has_come(waiter))
        waiter = waiter->next;
    return waiter != NULL;
}

static void wait_until_come(Waiter *waiter)
{
    waiter->next = waiters;
    waiters = waiter;
    pthread_cond_signal(&work);
    while (!has_come(waiter))
        pthread_cond_wait(&idle, &emulated_mutex);
    Waiter **place = &waiters;
    while (*place != waiter)
        place = &(*place)->next;
    *place = waiter->next;
}

static int may_begin(void)
{
    return is_waited_for() || is_asked || !is_lazy() || now_milliseconds() - queued_at > idle_milliseconds;
}

/* Runs the first item of a stream with the mutex free; 1 when it is through. */
static int run_first(struct CUstream_st *stream)
{
    Item *item = stream->queue.first;
    pthread_mutex_unlock(&emulated_mutex);
    int through = item->run(item->argument);
    pthread_mutex_lock(&emulated_mutex);
    if (!through)
        return 0;
    stream->queue.first = item->next;
    if (!item->next)
        stream->queue.end = &stream->queue.first;
    pthread_mutex_unlock(&emulated_mutex);
    emulated_item_free(item);
    pthread_mutex_lock(&emulated_mutex);
    pthread_cond_broadcast(&idle);
    return 1;
}

/* Until a stream gets something done; 1 if one did. */
static int run_streams(void)
{
    for (struct CUstream_st *stream = streams; stream; stream = stream->next)
        if (stream->queue.first && run_first(stream))
            return 1;
    return 0;
}

static const struct CUstream_st *first_busy(void)
{
    const struct CUstream_st *stream = streams;
    while (stream && !stream->queue.first)
        stream = stream->next;
    return stream;
}

/* Until there is work; where there is some that cannot go on, for a moment. */
static void nap(void)
{
    struct timespec until;
    if (!first_busy()) {
        pthread_cond_wait(&work, &emulated_mutex);
        return;
    }
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += POLL_NANOSECONDS;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_cond_timedwait(&work, &emulated_mutex, &until);
}

static void *run_device(void *nothing)
{
    (void)nothing;
    emulated_unlock_memory();
    pthread_mutex_lock(&emulated_mutex);
    for (;;)
        if (!may_begin() || !run_streams()) {
            is_asked = 0;
            nap();
        }
    return NULL;
}

static void start_device(void)
{
    pthread_t thread;
    if (thread_runs++ == 0 && pthread_create(&thread, NULL, run_device, NULL) == 0)
        pthread_detach(thread);
}

void emulated_enqueue(cudaStream_t stream, int (*run)(void *argument), void *argument, void (*release)(void *argument))
{
    stream = emulated_stream(stream);
    pthread_mutex_lock(&emulated_mutex);
    if (stream->graph) {
        emulated_capture_work(stream, run, argument, release);
    } else {
        emulated_queue_add(&stream->queue, run, argument, release);
        queued_at = now_milliseconds();
        pthread_cond_signal(&work);
    }
    pthread_mutex_unlock(&emulated_mutex);
}

/* ---- streams ---- */

static struct CUstream_st *make_stream(void)
{
    struct CUstream_st *made = calloc(1, sizeof *made);
    emulated_queue_init(&made->queue);
    struct CUstream_st **place = &streams;
    while (*place && !emulated_last_first())
        place = &(*place)->next;
    made->next = *place;
    *place = made;
    start_device();
    return made;
}

/* The default stream is one like any other, that orders nothing but itself. */
cudaStream_t emulated_stream(cudaStream_t stream)
{
    if (stream && stream != cudaStreamLegacy && stream != cudaStreamPerThread)
        return stream;
    pthread_mutex_lock(&emulated_mutex);
    if (!default_stream)
        default_stream = make_stream();
    pthread_mutex_unlock(&emulated_mutex);
    return default_stream;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority)
{
    KN_FAIL_IF_PLANNED();
    (void)flags, (void)priority;
    pthread_mutex_lock(&emulated_mutex);
    *stream = make_stream();
    pthread_mutex_unlock(&emulated_mutex);
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    KN_FAIL_IF_PLANNED();
    return cudaStreamCreateWithPriority(stream, flags, 0);
}

static void wait_until_empty(const struct CUstream_st *stream)
{
    wait_until_come(&(Waiter){.stream = stream});
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    KN_FAIL_IF_PLANNED();
    stream = emulated_stream(stream);
    cudaError_t error = emulated_refuse_in_capture(stream, __func__);
    if (error != cudaSuccess)
        return error;
    pthread_mutex_lock(&emulated_mutex);
    wait_until_empty(stream);
    pthread_mutex_unlock(&emulated_mutex);
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void)
{
    KN_FAIL_IF_PLANNED();
    cudaError_t error = emulated_refuse_in_capture(NULL, __func__);
    if (error != cudaSuccess)
        return error;
    pthread_mutex_lock(&emulated_mutex);
    const struct CUstream_st *busy;
    while ((busy = first_busy()))
        wait_until_empty(busy);
    pthread_mutex_unlock(&emulated_mutex);
    return cudaSuccess;
}

static cudaError_t ask(int is_through)
{
    if (!is_through) {
        is_asked = 1;
        pthread_cond_signal(&work);
    }
    return is_through ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    KN_FAIL_IF_PLANNED();
    stream = emulated_stream(stream);
    cudaError_t error = emulated_refuse_in_capture(stream, __func__);
    if (error != cudaSuccess)
        return error;
    pthread_mutex_lock(&emulated_mutex);
    error = ask(!stream->queue.first);
    pthread_mutex_unlock(&emulated_mutex);
    return error;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    pthread_mutex_lock(&emulated_mutex);
    wait_until_empty(stream);
    struct CUstream_st **place = &streams;
    while (*place != stream)
        place = &(*place)->next;
    *place = stream->next;
    pthread_mutex_unlock(&emulated_mutex);
    free(stream);
    return cudaSuccess;
}

typedef struct HostCall {
    cudaHostFn_t function;
    void *argument;
} HostCall;

static int run_host_call(void *argument)
{
    const HostCall *call = argument;
    emulated_lock_memory();
    call->function(call->argument);
    emulated_unlock_memory();
    return 1;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *argument)
{
    KN_FAIL_IF_PLANNED();
    HostCall *call = malloc(sizeof *call);
    *call = (HostCall){function, argument};
    emulated_enqueue(stream, run_host_call, call, free);
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
    event->pending++;
    return mark;
}

static void mark_free(void *argument)
{
    Mark *mark = argument;
    pthread_mutex_lock(&emulated_mutex);
    if (--mark->event->pending == 0 && mark->event->is_destroyed)
        free(mark->event);
    pthread_mutex_unlock(&emulated_mutex);
    free(mark);
}

static int run_record(void *argument)
{
    const Mark *mark = argument;
    pthread_mutex_lock(&emulated_mutex);
    mark->event->come = mark->number;
    mark->event->milliseconds = now_milliseconds();
    pthread_mutex_unlock(&emulated_mutex);
    return 1;
}

static int run_wait(void *argument)
{
    const Mark *mark = argument;
    pthread_mutex_lock(&emulated_mutex);
    int come = mark->event->come >= mark->number;
    pthread_mutex_unlock(&emulated_mutex);
    return come;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags)
{
    KN_FAIL_IF_PLANNED();
    *event = calloc(1, sizeof **event);
    (*event)->is_timed = !(flags & cudaEventDisableTiming);
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event)
{
    KN_FAIL_IF_PLANNED();
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    pthread_mutex_lock(&emulated_mutex);
    event->is_destroyed = 1;
    if (event->pending == 0)
        free(event);
    pthread_mutex_unlock(&emulated_mutex);
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    KN_FAIL_IF_PLANNED();
    stream = emulated_stream(stream);
    pthread_mutex_lock(&emulated_mutex);
    if (stream->graph) {
        emulated_capture_record(stream, event);
        pthread_mutex_unlock(&emulated_mutex);
        return cudaSuccess;
    }
    event->capture = 0;
    Mark *mark = mark_create(event, ++event->recorded);
    pthread_mutex_unlock(&emulated_mutex);
    emulated_enqueue(stream, run_record, mark, mark_free);
    return cudaSuccess;
}

/* A wait that the program forgot, as far as one can tell by what happens. */
static int is_forgotten(void)
{
    static _Atomic long long waits;
    return ++waits == emulated_setting("KINORA_EMULATED_FORGET", 0);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    KN_FAIL_IF_PLANNED();
    (void)flags;
    if (is_forgotten())
        return cudaSuccess;
    cudaError_t error = cudaSuccess;
    stream = emulated_stream(stream);
    pthread_mutex_lock(&emulated_mutex);
    int is_captured = emulated_capture_wait(stream, event, &error);
    Mark *mark = is_captured ? NULL : mark_create(event, event->recorded);
    pthread_mutex_unlock(&emulated_mutex);
    if (mark)
        emulated_enqueue(stream, run_wait, mark, mark_free);
    return emulated_error(error);
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    KN_FAIL_IF_PLANNED();
    cudaError_t error = emulated_refuse_in_capture(NULL, __func__);
    if (error != cudaSuccess)
        return error;
    pthread_mutex_lock(&emulated_mutex);
    error = event->capture ? cudaErrorCapturedEvent : ask(event->come == event->recorded);
    pthread_mutex_unlock(&emulated_mutex);
    return emulated_error(error);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    KN_FAIL_IF_PLANNED();
    cudaError_t error = emulated_refuse_in_capture(NULL, __func__);
    if (error != cudaSuccess)
        return error;
    pthread_mutex_lock(&emulated_mutex);
    error = event->capture ? cudaErrorCapturedEvent : cudaSuccess;
    if (error == cudaSuccess)
        wait_until_come(&(Waiter){.event = event, .number = event->recorded});
    pthread_mutex_unlock(&emulated_mutex);
    return emulated_error(error);
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t begin, cudaEvent_t end)
{
    KN_FAIL_IF_PLANNED();
    cudaError_t error = cudaSuccess;
    pthread_mutex_lock(&emulated_mutex);
    if (!begin->is_timed || !end->is_timed || !begin->recorded || !end->recorded)
        error = cudaErrorInvalidResourceHandle;
    else if (begin->come < begin->recorded || end->come < end->recorded)
        error = cudaErrorNotReady;
    *milliseconds = (float)(end->milliseconds - begin->milliseconds);
    pthread_mutex_unlock(&emulated_mutex);
    return emulated_error(error);
}
