/* A communicator whose ranks are threads of one process: everything that ranks do together runs without mpirun, under
 * the sanitizers, with any number of ranks. thread_ranks_run(ranks, function, argument) runs `function(comm, argument)`
 * on each, destroys `comm` and gives back the codes; the sentence of rank 0 is left to the caller.
 *
 * A start only writes down where the memory is. The last rank to arrive carries the call out for all, which the
 * contract allows since memory belongs to the communicator until the wait; so nothing but a wait ever blocks. */
#ifndef KN_TESTS_THREAD_COMM_H
#define KN_TESTS_THREAD_COMM_H

#include "core/base/bf16.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "dist/comm.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { THREAD_RANKS_MAX = 8, THREAD_OPEN_MAX = 1024 };

/* What one rank brings to a call. `in` and `out` cut what it gives and what it gets. */
typedef struct ThreadPart {
    const void *give;
    void *get;
    int64_t in[THREAD_RANKS_MAX + 1], out[THREAD_RANKS_MAX + 1];
    int number; /* a dtype, a root or a color */
    int64_t ticket;
} ThreadPart;

typedef struct ThreadWorld ThreadWorld;

typedef void ThreadRunFunction(const ThreadWorld *world, ThreadPart *parts);

typedef struct ThreadCall {
    struct ThreadCall *next;
    ThreadRunFunction *run;
    char name[64];
    int64_t index; /* among the collective calls */
    int arrived;
    ThreadPart parts[THREAD_RANKS_MAX];
} ThreadCall;

/* One end of a message from rank to rank; the later end finds the earlier one here and copies. */
typedef struct ThreadEnd {
    struct ThreadEnd *next;
    int from, to, sends;
    const void *give;
    void *get;
    size_t bytes;
    int64_t ticket;
} ThreadEnd;

struct ThreadWorld {
    int ranks, alive;
    pthread_mutex_t mutex;
    pthread_cond_t done;
    ThreadCall *calls;
    ThreadEnd *ends;
    int64_t collectives[THREAD_RANKS_MAX];           /* started by each rank */
    int64_t tickets[THREAD_RANKS_MAX];               /* given to each rank */
    int64_t open[THREAD_RANKS_MAX][THREAD_OPEN_MAX]; /* tickets of each rank that are not complete */
    int open_count[THREAD_RANKS_MAX];
};

typedef struct ThreadComm {
    KnComm base;
    ThreadWorld *world;
} ThreadComm;

static const KnCommTable thread_table;

/* ---- starting and completing ---- */

static ThreadWorld *thread_world_create(int ranks)
{
    ThreadWorld *world = kn_alloc(sizeof *world);
    KN_ASSERT(ranks <= THREAD_RANKS_MAX);
    world->ranks = world->alive = ranks;
    pthread_mutex_init(&world->mutex, NULL);
    pthread_cond_init(&world->done, NULL);
    return world;
}

static KnComm *thread_comm_create(ThreadWorld *world, int rank)
{
    ThreadComm *comm = kn_alloc(sizeof *comm);
    comm->base = (KnComm){&thread_table, rank, world->ranks, rank, world->ranks, rank};
    comm->world = world;
    return &comm->base;
}

static int64_t thread_open(ThreadWorld *world, int rank, int64_t ticket)
{
    KN_ASSERT(world->open_count[rank] < THREAD_OPEN_MAX);
    world->open[rank][world->open_count[rank]++] = ticket;
    return ticket;
}

static void thread_complete(ThreadWorld *world, int rank, int64_t ticket)
{
    int at = 0;
    while (world->open[rank][at] != ticket)
        at++;
    world->open[rank][at] = world->open[rank][--world->open_count[rank]];
    pthread_cond_broadcast(&world->done);
}

static ThreadCall **thread_find_call(ThreadWorld *world, int64_t index)
{
    ThreadCall **at = &world->calls;
    while (*at && (*at)->index != index)
        at = &(*at)->next;
    return at;
}

/* The nth collective call of one rank is the nth of all; ranks that have parted are a bug of the test. */
static int thread_start(KnComm *comm, ThreadRunFunction *run, ThreadPart part, const char *name, KnCommTicket *ticket)
{
    ThreadWorld *world = ((ThreadComm *)comm)->world;
    pthread_mutex_lock(&world->mutex);
    int64_t index = world->collectives[comm->rank]++;
    ThreadCall **at = thread_find_call(world, index), *call = *at;
    if (!call) {
        call = *at = kn_alloc(sizeof *call);
        call->index = index;
        call->run = run;
        snprintf(call->name, sizeof call->name, "%s", name);
    }
    KN_ASSERT(call->run == run && strncmp(call->name, name, sizeof call->name - 1) == 0);
    *ticket = part.ticket = thread_open(world, comm->rank, ++world->tickets[comm->rank]);
    call->parts[comm->rank] = part;
    if (++call->arrived == world->ranks) {
        run(world, call->parts);
        *at = call->next;
        for (int rank = 0; rank < world->ranks; rank++)
            thread_complete(world, rank, call->parts[rank].ticket);
        free(call);
    }
    pthread_mutex_unlock(&world->mutex);
    return KN_OK;
}

static int thread_is_open(const ThreadWorld *world, int rank, int64_t ticket)
{
    for (int i = 0; i < world->open_count[rank]; i++)
        if (world->open[rank][i] <= ticket) /* calls complete in the order in which they were started */
            return 1;
    return 0;
}

static int thread_wait(KnComm *comm, KnCommTicket ticket)
{
    ThreadWorld *world = ((ThreadComm *)comm)->world;
    pthread_mutex_lock(&world->mutex);
    while (thread_is_open(world, comm->rank, ticket))
        pthread_cond_wait(&world->done, &world->mutex);
    pthread_mutex_unlock(&world->mutex);
    return KN_OK;
}

static int thread_run(KnComm *comm, ThreadRunFunction *run, ThreadPart part, const char *name)
{
    KnCommTicket ticket;
    KN_TRY(thread_start(comm, run, part, name, &ticket));
    return thread_wait(comm, ticket);
}

/* ---- carrying out: by the last rank, for all ---- */

static void thread_copy(void *to, const void *from, int64_t bytes)
{
    KN_ASSERT(bytes >= 0);
    if (bytes && to != from)
        memcpy(to, from, (size_t)bytes);
}

static float thread_value(const void *values, int64_t index, KnDtype dtype)
{
    return dtype == KN_F32 ? ((const float *)values)[index] : kn_bf16_to_float(((const uint16_t *)values)[index]);
}

static void thread_store(void *values, int64_t index, KnDtype dtype, float value)
{
    if (dtype == KN_F32)
        ((float *)values)[index] = value;
    else
        ((uint16_t *)values)[index] = kn_bf16_from_float(value);
}

/* What an all-reduce gives is a reduce-scatter whose every part is the whole. The rest of `all` is scratch: NaN. */
static void thread_run_sum(const ThreadWorld *world, ThreadPart *parts)
{
    KnDtype dtype = (KnDtype)parts[0].number;
    int64_t count = parts[0].in[world->ranks];
    float *sums = kn_alloc((size_t)count * sizeof *sums);
    for (int rank = 0; rank < world->ranks; rank++) {
        KN_ASSERT(parts[rank].in[world->ranks] == count && parts[rank].number == (int)dtype);
        for (int64_t i = 0; i < count; i++)
            sums[i] =
                rank == 0 ? thread_value(parts[0].give, i, dtype) : sums[i] + thread_value(parts[rank].give, i, dtype);
    }
    for (int rank = 0; rank < world->ranks; rank++) {
        if (count)
            memset((void *)(uintptr_t)parts[rank].give, 0xff, (size_t)count * kn_dtype_bytes(dtype));
        for (int64_t i = parts[rank].out[0]; i < parts[rank].out[1]; i++)
            thread_store(parts[rank].get, i - parts[rank].out[0], dtype, sums[i]);
    }
    free(sums);
}

static void thread_run_all_gather(const ThreadWorld *world, ThreadPart *parts)
{
    for (int to = 0; to < world->ranks; to++)
        for (int from = 0; from < world->ranks; from++) {
            KN_ASSERT(parts[to].out[from + 1] == parts[0].out[from + 1] && parts[to].out[from] == parts[0].out[from]);
            thread_copy((char *)parts[to].get + parts[to].out[from], parts[from].give,
                        parts[to].out[from + 1] - parts[to].out[from]);
        }
}

static void thread_run_all_to_all(const ThreadWorld *world, ThreadPart *parts)
{
    for (int to = 0; to < world->ranks; to++)
        for (int from = 0; from < world->ranks; from++) {
            int64_t bytes = parts[to].out[from + 1] - parts[to].out[from];
            KN_ASSERT(bytes == parts[from].in[to + 1] - parts[from].in[to]);
            thread_copy((char *)parts[to].get + parts[to].out[from],
                        (const char *)parts[from].give + parts[from].in[to], bytes);
        }
}

static void thread_run_broadcast(const ThreadWorld *world, ThreadPart *parts)
{
    for (int rank = 0; rank < world->ranks; rank++) {
        KN_ASSERT(parts[rank].number == parts[0].number && parts[rank].in[0] == parts[0].in[0]);
        thread_copy(parts[rank].get, parts[parts[0].number].get, parts[rank].in[0]);
    }
}

static void thread_run_barrier(const ThreadWorld *world, ThreadPart *parts)
{
    (void)world, (void)parts;
}

static void thread_run_split(const ThreadWorld *world, ThreadPart *parts)
{
    for (int first = 0; first < world->ranks; first++) {
        int members = 0, rank = 0;
        for (int r = 0; r < world->ranks; r++)
            members += parts[r].number == parts[first].number;
        for (int r = 0; r < first; r++)
            rank += parts[r].number == parts[first].number;
        if (rank > 0)
            continue;
        ThreadWorld *group = thread_world_create(members);
        for (int r = first; r < world->ranks; r++)
            if (parts[r].number == parts[first].number)
                *(KnComm **)parts[r].get = thread_comm_create(group, rank++);
    }
}

/* ---- the table ---- */

static int thread_split(KnComm *comm, int color, const char *name, KnComm **group)
{
    int code = thread_run(comm, thread_run_split, (ThreadPart){.get = group, .number = color}, name);
    if (code == KN_OK)
        (*group)->job_rank = comm->job_rank;
    return code;
}

static int thread_all_reduce_start(KnComm *comm, void *values, int64_t count, KnDtype dtype, const char *name,
                                   KnCommTicket *ticket)
{
    ThreadPart part = {.give = values, .get = values, .out = {0, count}, .number = (int)dtype};
    part.in[comm->ranks] = count;
    return thread_start(comm, thread_run_sum, part, name, ticket);
}

static int thread_reduce_scatter_start(KnComm *comm, void *all, void *mine, const int64_t *offsets, KnDtype dtype,
                                       const char *name, KnCommTicket *ticket)
{
    ThreadPart part = {.give = all, .get = mine, .number = (int)dtype};
    part.in[comm->ranks] = offsets[comm->ranks];
    memcpy(part.out, offsets + comm->rank, 2 * sizeof *offsets);
    return thread_start(comm, thread_run_sum, part, name, ticket);
}

static int thread_all_gather_start(KnComm *comm, const void *mine, void *all, const int64_t *offsets, const char *name,
                                   KnCommTicket *ticket)
{
    ThreadPart part = {.give = mine, .get = all};
    memcpy(part.out, offsets, ((size_t)comm->ranks + 1) * sizeof *offsets);
    return thread_start(comm, thread_run_all_gather, part, name, ticket);
}

static int thread_all_to_all_start(KnComm *comm, const void *send, const int64_t *send_offsets, void *receive,
                                   const int64_t *receive_offsets, const char *name, KnCommTicket *ticket)
{
    ThreadPart part = {.give = send, .get = receive};
    memcpy(part.in, send_offsets, ((size_t)comm->ranks + 1) * sizeof *send_offsets);
    memcpy(part.out, receive_offsets, ((size_t)comm->ranks + 1) * sizeof *receive_offsets);
    return thread_start(comm, thread_run_all_to_all, part, name, ticket);
}

/* Meets the other end of the same message, or waits for it in the list; messages between two ranks keep their order. */
static void thread_post(ThreadWorld *world, ThreadEnd end)
{
    thread_open(world, end.sends ? end.from : end.to, end.ticket);
    ThreadEnd **at = &world->ends;
    while (*at && ((*at)->from != end.from || (*at)->to != end.to || (*at)->sends == end.sends))
        at = &(*at)->next;
    if (!*at) {
        *at = kn_alloc(sizeof end);
        **at = end;
        return;
    }
    ThreadEnd *other = *at;
    const ThreadEnd *sender = end.sends ? &end : other, *receiver = end.sends ? other : &end;
    KN_ASSERT(sender->bytes == receiver->bytes);
    thread_copy(receiver->get, sender->give, (int64_t)sender->bytes);
    thread_complete(world, sender->from, sender->ticket);
    thread_complete(world, receiver->to, receiver->ticket);
    *at = other->next;
    free(other);
}

static int thread_send_receive_start(KnComm *comm, const void *send, size_t send_bytes, int to, void *receive,
                                     size_t receive_bytes, int from, const char *name, KnCommTicket *ticket)
{
    ThreadWorld *world = ((ThreadComm *)comm)->world;
    (void)name;
    pthread_mutex_lock(&world->mutex);
    *ticket = ++world->tickets[comm->rank];
    thread_post(
        world,
        (ThreadEnd){.from = comm->rank, .to = to, .sends = 1, .give = send, .bytes = send_bytes, .ticket = *ticket});
    thread_post(world,
                (ThreadEnd){.from = from, .to = comm->rank, .get = receive, .bytes = receive_bytes, .ticket = *ticket});
    pthread_mutex_unlock(&world->mutex);
    return KN_OK;
}

static int thread_all_gather(KnComm *comm, const void *mine, void *all, size_t bytes_each, const char *name)
{
    ThreadPart part = {.give = mine, .get = all};
    for (int rank = 0; rank <= comm->ranks; rank++)
        part.out[rank] = rank * (int64_t)bytes_each;
    return thread_run(comm, thread_run_all_gather, part, name);
}

static int thread_broadcast(KnComm *comm, void *bytes, size_t count, int root, const char *name)
{
    return thread_run(comm, thread_run_broadcast, (ThreadPart){.get = bytes, .in = {(int64_t)count}, .number = root},
                      name);
}

static int thread_barrier(KnComm *comm, const char *name)
{
    return thread_run(comm, thread_run_barrier, (ThreadPart){0}, name);
}

static void thread_destroy(KnComm *comm)
{
    ThreadWorld *world = ((ThreadComm *)comm)->world;
    pthread_mutex_lock(&world->mutex);
    int alive = --world->alive;
    pthread_mutex_unlock(&world->mutex);
    free(comm);
    if (alive)
        return;
    KN_ASSERT(!world->calls && !world->ends); /* else something was started and never waited for */
    pthread_cond_destroy(&world->done);
    pthread_mutex_destroy(&world->mutex);
    free(world);
}

static const KnCommTable thread_table = {
    .kind = "threads",
    .split = thread_split,
    .all_reduce_start = thread_all_reduce_start,
    .reduce_scatter_start = thread_reduce_scatter_start,
    .all_gather_start = thread_all_gather_start,
    .all_to_all_start = thread_all_to_all_start,
    .send_receive_start = thread_send_receive_start,
    .wait = thread_wait,
    .all_gather = thread_all_gather,
    .broadcast = thread_broadcast,
    .barrier = thread_barrier,
    .destroy = thread_destroy,
};

/* ---- running ---- */

typedef int (*ThreadRankFunction)(KnComm *comm, void *argument);

typedef struct ThreadRank {
    KnComm *comm;
    ThreadRankFunction function;
    void *argument;
    int code;
    char sentence[1024];
} ThreadRank;

static void *thread_rank_run(void *argument)
{
    ThreadRank *rank = argument;
    rank->code = rank->function(rank->comm, rank->argument);
    snprintf(rank->sentence, sizeof rank->sentence, "%s", kn_error_message());
    return NULL;
}

/* The first rank's code; all ranks must come to the same code and sentence. */
static int thread_ranks_run(int ranks, ThreadRankFunction function, void *argument)
{
    ThreadWorld *world = thread_world_create(ranks);
    ThreadRank members[THREAD_RANKS_MAX];
    pthread_t threads[THREAD_RANKS_MAX];
    for (int r = 0; r < ranks; r++) {
        members[r] = (ThreadRank){.comm = thread_comm_create(world, r), .function = function, .argument = argument};
        pthread_create(&threads[r], NULL, thread_rank_run, &members[r]);
    }
    for (int r = 0; r < ranks; r++)
        pthread_join(threads[r], NULL);
    for (int r = 0; r < ranks; r++)
        thread_destroy(members[r].comm);
    for (int r = 1; r < ranks; r++) {
        KN_ASSERT(members[r].code == members[0].code);
        KN_ASSERT(members[0].code == KN_OK || strcmp(members[r].sentence, members[0].sentence) == 0);
    }
    return members[0].code < 0 ? kn_fail(members[0].code, "%s", members[0].sentence) : members[0].code;
}

#endif
