/* The CUDA runtime without a GPU: what streams are given while they are captured becomes a graph, that runs as often as
 * it is launched.
 *
 * A captured stream is a lane of the graph. An event that is recorded on one lane and waited for by another is a mark,
 * by which lanes wait for each other in every run as streams do; waiting takes a stream into the capture. In a run the
 * lanes have their turns as streams have (cudart_stream.c). Work must be fit to run again, see emulated_enqueue. */
#include "cudart.h"

#include <stdlib.h>
#include <string.h>

enum { LANES = 16, MARKS = 65536 };

typedef struct Lane {
    Queue queue;
    const Item *next;      /* of the present run */
    int64_t count, joined; /* items; how many of them another lane has waited for */
    cudaStream_t stream;   /* that is captured */
} Lane;

struct CUgraph_st {
    int uses; /* the graph, what was made of it, its launches under way */
    int64_t capture;
    enum cudaStreamCaptureMode mode;
    pthread_t thread; /* that began it */
    int is_spoilt;
    struct CUgraph_st *next; /* that is captured */
    Lane lanes[LANES];
    int lane_count, mark_count;
    char come[MARKS]; /* in the present run */
};

struct CUgraphExec_st {
    struct CUgraph_st *graph;
};

static struct CUgraph_st *captured; /* graphs whose capture has not ended */
static int64_t captures;            /* that have begun */

/* ---- graphs ---- */

static void add_lane(struct CUgraph_st *graph, cudaStream_t stream)
{
    Lane *lane = &graph->lanes[graph->lane_count];
    emulated_queue_init(&lane->queue);
    lane->stream = stream;
    stream->graph = graph;
    stream->lane = graph->lane_count++;
}

static void add_item(struct CUgraph_st *graph, int lane, int (*run)(void *argument), void *argument,
                     void (*release)(void *argument))
{
    emulated_queue_add(&graph->lanes[lane].queue, run, argument, release);
    graph->lanes[lane].count++;
}

static void graph_free(struct CUgraph_st *graph)
{
    for (int i = 0; i < graph->lane_count; i++)
        for (Item *item = graph->lanes[i].queue.first, *next; item; item = next) {
            next = item->next;
            emulated_item_free(item);
        }
    free(graph);
}

static void graph_drop(void *argument)
{
    struct CUgraph_st *graph = argument;
    pthread_mutex_lock(&emulated_mutex);
    int uses = --graph->uses;
    pthread_mutex_unlock(&emulated_mutex);
    if (uses == 0)
        graph_free(graph);
}

static void graph_hold(struct CUgraph_st *graph)
{
    pthread_mutex_lock(&emulated_mutex);
    graph->uses++;
    pthread_mutex_unlock(&emulated_mutex);
}

/* ---- marks ---- */

typedef struct Mark {
    struct CUgraph_st *graph;
    int mark;
} Mark;

static Mark *mark_create(struct CUgraph_st *graph, int number)
{
    Mark *mark = malloc(sizeof *mark);
    *mark = (Mark){graph, number};
    return mark;
}

static int run_record(void *argument)
{
    const Mark *mark = argument;
    return mark->graph->come[mark->mark] = 1;
}

static int run_wait(void *argument)
{
    const Mark *mark = argument;
    return mark->graph->come[mark->mark];
}

/* ---- capture ---- */

static cudaError_t spoil(struct CUgraph_st *graph, cudaError_t error)
{
    graph->is_spoilt = 1;
    return error;
}

static int is_own(const struct CUgraph_st *graph)
{
    return pthread_equal(graph->thread, pthread_self());
}

cudaError_t emulated_refuse_in_capture(cudaStream_t stream, const char *function)
{
    pthread_mutex_lock(&emulated_mutex);
    int is_refused = stream && stream->graph;
    for (struct CUgraph_st *graph = captured; graph; graph = graph->next)
        if (is_own(graph) ? graph->mode != cudaStreamCaptureModeRelaxed : graph->mode == cudaStreamCaptureModeGlobal)
            is_refused = graph->is_spoilt = 1;
    if (stream && stream->graph)
        stream->graph->is_spoilt = 1;
    pthread_mutex_unlock(&emulated_mutex);
    if (!is_refused)
        return cudaSuccess;
    return emulated_refuse(cudaErrorStreamCaptureUnsupported, "%s while a stream is captured", function);
}

void emulated_capture_work(cudaStream_t stream, int (*run)(void *argument), void *argument,
                           void (*release)(void *argument))
{
    add_item(stream->graph, stream->lane, run, argument, release);
}

void emulated_capture_record(cudaStream_t stream, cudaEvent_t event)
{
    struct CUgraph_st *graph = stream->graph;
    if (graph->mark_count == MARKS) {
        spoil(graph, cudaErrorStreamCaptureInvalidated);
        return;
    }
    event->capture = graph->capture;
    event->lane = stream->lane;
    event->mark = graph->mark_count++;
    add_item(graph, stream->lane, run_record, mark_create(graph, event->mark), free);
    event->place = graph->lanes[stream->lane].count;
}

int emulated_capture_wait(cudaStream_t stream, cudaEvent_t event, cudaError_t *error)
{
    if (!event->capture && !stream->graph)
        return 0;
    struct CUgraph_st *graph = captured;
    while (graph && graph->capture != event->capture)
        graph = graph->next;
    if (!graph || (stream->graph && stream->graph != graph)) {
        *error = stream->graph ? spoil(stream->graph, cudaErrorStreamCaptureIsolation) : cudaErrorCapturedEvent;
        return 1;
    }
    if (!stream->graph && graph->lane_count == LANES) {
        *error = spoil(graph, cudaErrorStreamCaptureInvalidated);
        return 1;
    }
    if (!stream->graph)
        add_lane(graph, stream);
    add_item(graph, stream->lane, run_wait, mark_create(graph, event->mark), free);
    if (stream->lane != event->lane)
        graph->lanes[event->lane].joined = event->place;
    return 1;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    KN_FAIL_IF_PLANNED();
    if (emulated_stream(stream) != stream)
        return emulated_refuse(cudaErrorStreamCaptureUnsupported, "the default stream cannot be captured");
    struct CUgraph_st *graph = calloc(1, sizeof *graph);
    graph->uses = 1;
    graph->mode = mode;
    graph->thread = pthread_self();
    pthread_mutex_lock(&emulated_mutex);
    int is_captured = stream->graph != NULL;
    if (!is_captured) {
        add_lane(graph, stream);
        graph->capture = ++captures;
        graph->next = captured;
        captured = graph;
    }
    pthread_mutex_unlock(&emulated_mutex);
    if (is_captured)
        free(graph);
    return emulated_error(is_captured ? cudaErrorIllegalState : cudaSuccess);
}

static void end_capture(struct CUgraph_st *graph)
{
    for (int i = 0; i < graph->lane_count; i++) {
        graph->lanes[i].stream->graph = NULL;
        graph->lanes[i].next = graph->lanes[i].queue.first;
    }
    struct CUgraph_st **place = &captured;
    while (*place != graph)
        place = &(*place)->next;
    *place = graph->next;
}

static int is_joined(const struct CUgraph_st *graph)
{
    for (int i = 1; i < graph->lane_count; i++)
        if (graph->lanes[i].joined != graph->lanes[i].count)
            return 0;
    return 1;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *made)
{
    cudaError_t planned = emulated_planned_fault(__func__);
    *made = NULL;
    pthread_mutex_lock(&emulated_mutex);
    struct CUgraph_st *graph = stream->graph;
    int is_matched = graph && stream->lane == 0;
    int is_here = is_matched && (is_own(graph) || graph->mode == cudaStreamCaptureModeRelaxed);
    if (is_here)
        end_capture(graph);
    pthread_mutex_unlock(&emulated_mutex);
    if (!is_here)
        return emulated_error(is_matched ? cudaErrorStreamCaptureWrongThread : cudaErrorStreamCaptureUnmatched);
    cudaError_t error = planned             ? planned
                        : graph->is_spoilt  ? cudaErrorStreamCaptureInvalidated
                        : !is_joined(graph) ? cudaErrorStreamCaptureUnjoined
                                            : cudaSuccess;
    if (error == cudaSuccess)
        *made = graph;
    else
        graph_drop(graph);
    return emulated_error(error);
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status)
{
    pthread_mutex_lock(&emulated_mutex);
    const struct CUgraph_st *graph = stream->graph;
    *status = !graph             ? cudaStreamCaptureStatusNone
              : graph->is_spoilt ? cudaStreamCaptureStatusInvalidated
                                 : cudaStreamCaptureStatusActive;
    pthread_mutex_unlock(&emulated_mutex);
    return cudaSuccess;
}

/* ---- runs ---- */

static int run_lane(Lane *lane)
{
    if (!lane->next || !lane->next->run(lane->next->argument))
        return 0;
    lane->next = lane->next->next;
    return 1;
}

/* Until a lane gets something done; 1 if one did. */
static int run_lanes(struct CUgraph_st *graph)
{
    int count = graph->lane_count, last_first = emulated_last_first();
    for (int i = 0; i < count; i++)
        if (run_lane(&graph->lanes[last_first ? count - 1 - i : i]))
            return 1;
    return 0;
}

static int run_graph(void *argument)
{
    struct CUgraph_st *graph = argument;
    while (run_lanes(graph))
        ;
    for (int i = 0; i < graph->lane_count; i++)
        if (graph->lanes[i].next)
            return 0;
    for (int i = 0; i < graph->lane_count; i++)
        graph->lanes[i].next = graph->lanes[i].queue.first;
    memset(graph->come, 0, (size_t)graph->mark_count);
    return 1;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *made, cudaGraph_t graph, unsigned long long flags)
{
    KN_FAIL_IF_PLANNED();
    (void)flags;
    *made = malloc(sizeof **made);
    (*made)->graph = graph;
    graph_hold(graph);
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t instance, cudaStream_t stream)
{
    KN_FAIL_IF_PLANNED();
    graph_hold(instance->graph);
    emulated_enqueue(stream, run_graph, instance->graph, graph_drop);
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t instance)
{
    graph_drop(instance->graph);
    free(instance);
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    graph_drop(graph);
    return cudaSuccess;
}
