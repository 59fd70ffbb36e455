/* The CUDA runtime without a GPU, in the host's memory: what its files share. The other stub libraries need of it what
 * the emulated device does too, core/cuda/emulator/runtime.h.
 *
 *     cudart_device.c   devices and their properties, errors, planned faults
 *     cudart_memory.c   memory that is the device's, pinned or neither; copies
 *     cudart_stream.c   the device's thread, streams, events
 *     cudart_graph.c    captured streams as graphs that run again and again
 *
 * Environment:
 *     KINORA_EMULATED_ORDER=1|2       which stream goes first, and nothing before somebody waits (cudart_stream.c)
 *     KINORA_EMULATED_PROTECT=1       a host that reads or writes the device's memory dies (cudart_memory.c)
 *     KINORA_EMULATED_UNIFIED=1       the device may use all of the host's memory, as some machines' can
 *     KINORA_EMULATED_MEMORY=BYTES    of each device (default 16 GiB)
 *     KINORA_EMULATED_DEVICES=N       how many there are (default 8)
 *     KINORA_EMULATED_CAPABILITY=NN   their compute capability (default 90, which is 9.0)
 *     KINORA_EMULATED_FIRST=N         which of the host's they begin with, for a process that does not see all (0)
 *     KINORA_EMULATED_CUDA=NAME:N     the Nth call of that function fails; launches are calls of cudaLaunchKernel
 *     KINORA_EMULATED_FORGET=N        the Nth wait of a stream for an event is forgotten: a bug to be seen */
#ifndef KN_TESTS_EMULATED_CUDART_H
#define KN_TESTS_EMULATED_CUDART_H

#include "core/cuda/emulator/runtime.h"

#include <pthread.h>
#include <stdint.h>

/* ---- cudart_device.c ---- */

/* Keeps an error for cudaGetLastError; gives it. */
cudaError_t emulated_error(cudaError_t error);

/* Ends a function whose call was planned to fail. */
#define KN_FAIL_IF_PLANNED()                                                                                           \
    do {                                                                                                               \
        cudaError_t planned_ = emulated_planned_fault(__func__);                                                       \
        if (planned_ != cudaSuccess)                                                                                   \
            return emulated_error(planned_);                                                                           \
    } while (0)

/* A whole number from the environment. */
long long emulated_setting(const char *name, long long otherwise);

/* ---- cudart_memory.c ---- */

/* Gives and takes the calling thread's right to the device's memory, where that is protected. */
void emulated_unlock_memory(void);
void emulated_lock_memory(void);

/* ---- cudart_stream.c and cudart_graph.c, under one mutex ---- */

typedef struct Item {
    struct Item *next;
    int (*run)(void *argument);
    void *argument;
    void (*release)(void *argument); /* or NULL */
} Item;

typedef struct Queue {
    Item *first, **end;
} Queue;

struct CUstream_st {
    Queue queue;
    struct CUstream_st *next; /* in the order of turns */
    struct CUgraph_st *graph; /* that it is captured into, or NULL */
    int lane;                 /* of the graph */
};

struct CUevent_st {
    int64_t recorded, come; /* how often */
    int64_t pending;        /* marks on streams */
    int is_timed, is_destroyed;
    double milliseconds; /* when it came */
    int64_t capture;     /* the number of that in which it was recorded last, or 0 */
    int lane, mark;      /* of its graph */
    int64_t place;       /* how many items the lane had then */
};

extern pthread_mutex_t emulated_mutex;

void emulated_queue_init(Queue *queue);
void emulated_queue_add(Queue *queue, int (*run)(void *argument), void *argument, void (*release)(void *argument));
void emulated_item_free(Item *item); /* with its release */
int emulated_last_first(void);       /* whether the stream that was made last goes first */
cudaStream_t emulated_stream(cudaStream_t stream);

/* cudaErrorStreamCaptureUnsupported, which also spoils the capture, while `stream` is captured, or while this thread
 * may do nothing unsafe: it captures a stream, but not in relaxed mode, or another one does in global mode. */
cudaError_t emulated_refuse_in_capture(cudaStream_t stream, const char *function);

/* For a stream that is captured, under the mutex. */
void emulated_capture_work(cudaStream_t stream, int (*run)(void *argument), void *argument,
                           void (*release)(void *argument));
void emulated_capture_record(cudaStream_t stream, cudaEvent_t event);

/* Under the mutex: takes a wait into the capture that the event or the stream belongs to; 0 when neither does. */
int emulated_capture_wait(cudaStream_t stream, cudaEvent_t event, cudaError_t *error);

#endif
