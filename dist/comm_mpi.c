/* The communicator over MPI, the program's side: calls are queued for the thread that makes every MPI call
 * (comm_mpi_engine.c) and waited for. */
#include "dist/comm_mpi.h"

#include "core/base/activity.h"
#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/memory.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define WATCHDOG_SECONDS 60.0

enum { LAST_WORDS_SECONDS = 60 };

static KnMpiEngine *engine_of(const KnComm *comm)
{
    return ((const KnMpiComm *)comm)->engine;
}

/* ---- queueing and waiting ---- */

static int failure(const KnMpiEngine *engine)
{
    return engine->code < 0 ? kn_fail(engine->code, "%s", engine->sentence) : KN_OK;
}

static KnMpiCall *call_create(KnComm *comm, KnMpiKind kind, int64_t bytes, const char *name)
{
    KnMpiCall *call = kn_alloc(sizeof *call);
    call->comm = (KnMpiComm *)comm;
    call->header.kind = (int32_t)kind;
    call->header.bytes = bytes;
    snprintf(call->header.name, sizeof call->header.name, "%s", name);
    return call;
}

static int64_t *copy_offsets(const KnComm *comm, const int64_t *offsets)
{
    size_t bytes = ((size_t)comm->ranks + 1) * sizeof *offsets;
    return memcpy(kn_alloc(bytes), offsets, bytes);
}

/* Takes the call over. */
static int enqueue(KnMpiCall *call, KnCommTicket *ticket)
{
    KnMpiComm *comm = call->comm;
    KnMpiEngine *engine = comm->engine;
    pthread_mutex_lock(&engine->mutex);
    int code = failure(engine);
    if (code == KN_OK) {
        *ticket = call->ticket = ++comm->next_ticket;
        call->header.number = call->header.kind == KN_MPI_SEND_RECEIVE ? call->ticket : ++comm->next_number;
        kn_mpi_describe_call(comm, &call->header, engine->last_started, sizeof engine->last_started);
        *engine->queue_end = call;
        engine->queue_end = &call->next;
        pthread_cond_signal(&engine->work);
    }
    pthread_mutex_unlock(&engine->mutex);
    kn_activity_advance();
    if (code < 0) {
        free(call->in);
        free(call->out);
        free(call);
    }
    return code;
}

static int mpi_wait(KnComm *base, KnCommTicket ticket)
{
    KnMpiComm *comm = (KnMpiComm *)base;
    KnMpiEngine *engine = comm->engine;
    pthread_mutex_lock(&engine->mutex);
    if (comm->completed < ticket && engine->code == KN_OK) {
        engine->waiting = comm;
        engine->waiting_since = kn_mpi_now();
        while (comm->completed < ticket && engine->code == KN_OK)
            pthread_cond_wait(&engine->done, &engine->mutex);
        engine->waiting = NULL;
    }
    int code = failure(engine);
    pthread_mutex_unlock(&engine->mutex);
    kn_activity_advance();
    return code;
}

static int run_call(KnMpiCall *call)
{
    KnComm *comm = &call->comm->base;
    KnCommTicket ticket;
    KN_TRY(enqueue(call, &ticket));
    return mpi_wait(comm, ticket);
}

/* ---- the calls ---- */

static int mpi_all_reduce_start(KnComm *comm, void *values, int64_t count, KnDtype dtype, const char *name,
                                KnCommTicket *ticket)
{
    KN_ASSERT(dtype == KN_F32 || dtype == KN_BF16);
    KnMpiCall *call = call_create(comm, KN_MPI_ALL_REDUCE, count * (int64_t)kn_dtype_bytes(dtype), name);
    call->header.detail = (int32_t)dtype;
    call->output = values;
    call->in = kn_alloc(((size_t)comm->ranks + 1) * sizeof *call->in); /* the thread cuts */
    return enqueue(call, ticket);
}

static int mpi_reduce_scatter_start(KnComm *comm, void *all, void *mine, const int64_t *offsets, KnDtype dtype,
                                    const char *name, KnCommTicket *ticket)
{
    KN_ASSERT(dtype == KN_F32 || dtype == KN_BF16);
    int64_t bytes = offsets[comm->ranks] * (int64_t)kn_dtype_bytes(dtype);
    KnMpiCall *call = call_create(comm, KN_MPI_REDUCE_SCATTER, bytes, name);
    call->header.detail = (int32_t)dtype;
    call->header.parts = kn_mpi_digest(offsets, comm->ranks + 1);
    call->input = all;
    call->output = mine;
    call->in = copy_offsets(comm, offsets);
    return enqueue(call, ticket);
}

static int mpi_all_gather_start(KnComm *comm, const void *mine, void *all, const int64_t *offsets, const char *name,
                                KnCommTicket *ticket)
{
    KnMpiCall *call = call_create(comm, KN_MPI_ALL_GATHER, offsets[comm->ranks], name);
    int64_t own = offsets[comm->rank + 1] - offsets[comm->rank];
    call->header.parts = kn_mpi_digest(offsets, comm->ranks + 1);
    call->input = mine;
    call->output = all;
    call->out = copy_offsets(comm, offsets);
    if (own > 0 && own <= KN_MPI_SMALL_BYTES && !call->comm->announces)
        memcpy(call->header.small, mine, (size_t)own);
    return enqueue(call, ticket);
}

static int mpi_all_to_all_start(KnComm *comm, const void *send, const int64_t *send_offsets, void *receive,
                                const int64_t *receive_offsets, const char *name, KnCommTicket *ticket)
{
    KnMpiCall *call = call_create(comm, KN_MPI_ALL_TO_ALL, send_offsets[comm->ranks] - send_offsets[0], name);
    call->input = send;
    call->output = receive;
    call->in = copy_offsets(comm, send_offsets);
    call->out = copy_offsets(comm, receive_offsets);
    return enqueue(call, ticket);
}

static int mpi_send_receive_start(KnComm *comm, const void *send, size_t send_bytes, int to, void *receive,
                                  size_t receive_bytes, int from, const char *name, KnCommTicket *ticket)
{
    KN_ASSERT(to >= 0 && to < comm->ranks && from >= 0 && from < comm->ranks);
    KN_ASSERT((to == comm->rank) == (from == comm->rank));
    KnMpiCall *call = call_create(comm, KN_MPI_SEND_RECEIVE, (int64_t)send_bytes, name);
    call->input = send;
    call->output = receive;
    call->in = kn_alloc(2 * sizeof *call->in);
    call->out = kn_alloc(2 * sizeof *call->out);
    call->in[1] = (int64_t)send_bytes;
    call->out[1] = (int64_t)receive_bytes;
    call->to = to;
    call->from = from;
    return enqueue(call, ticket);
}

static int mpi_all_gather(KnComm *comm, const void *mine, void *all, size_t bytes_each, const char *name)
{
    int64_t *offsets = kn_alloc(((size_t)comm->ranks + 1) * sizeof *offsets);
    for (int rank = 0; rank <= comm->ranks; rank++)
        offsets[rank] = rank * (int64_t)bytes_each;
    KnCommTicket ticket;
    int code = mpi_all_gather_start(comm, mine, all, offsets, name, &ticket);
    free(offsets);
    return code < 0 ? code : mpi_wait(comm, ticket);
}

static int mpi_broadcast(KnComm *comm, void *bytes, size_t count, int root, const char *name)
{
    KN_ASSERT(root >= 0 && root < comm->ranks);
    KnMpiCall *call = call_create(comm, KN_MPI_BROADCAST, (int64_t)count, name);
    call->header.detail = root;
    call->output = bytes;
    return run_call(call);
}

static int mpi_barrier(KnComm *comm, const char *name)
{
    return run_call(call_create(comm, KN_MPI_BARRIER, 0, name));
}

/* ---- groups ---- */

/* What ranks tell each other in a split. */
typedef struct Membership {
    int32_t color, number;
} Membership;

static int choose_number(KnMpiEngine *engine, int32_t *number)
{
    pthread_mutex_lock(&engine->mutex);
    *number = engine->next_comm_number++;
    pthread_mutex_unlock(&engine->mutex);
    if (*number >= engine->comm_numbers)
        return kn_fail(KN_EPEER, "more than %d groups of ranks were made, which is all that this MPI can tell apart",
                       engine->comm_numbers);
    return KN_OK;
}

static int gather_memberships(KnComm *comm, const Membership *mine, Membership *all, const char *name)
{
    KnMpiCall *call = call_create(comm, KN_MPI_SPLIT, 0, name);
    call->output = all;
    call->out = kn_alloc(((size_t)comm->ranks + 1) * sizeof *call->out);
    for (int rank = 0; rank <= comm->ranks; rank++)
        call->out[rank] = rank * (int64_t)sizeof *all;
    memcpy(call->header.small, mine, sizeof *mine);
    return run_call(call);
}

static KnMpiComm *comm_create(KnMpiEngine *engine, int ranks, const char *name)
{
    KnMpiComm *comm = kn_alloc(sizeof *comm);
    comm->engine = engine;
    comm->members = kn_alloc((size_t)ranks * sizeof *comm->members);
    comm->numbers = kn_alloc((size_t)ranks * sizeof *comm->numbers);
    snprintf(comm->name, sizeof comm->name, "%s", name);
    return comm;
}

static KnComm *make_group(const KnMpiComm *parent, const Membership *all, const char *name)
{
    const KnComm *base = &parent->base;
    KnMpiEngine *engine = parent->engine;
    const char *own_host = engine->hosts[engine->world->base.rank];
    KnMpiComm *group = comm_create(engine, base->ranks, name);
    group->base.table = base->table;
    group->base.job_rank = base->job_rank;
    for (int rank = 0; rank < base->ranks; rank++) {
        if (all[rank].color != all[base->rank].color)
            continue;
        int member = group->base.ranks++, on_host = strcmp(engine->hosts[parent->members[rank]], own_host) == 0;
        group->members[member] = parent->members[rank];
        group->numbers[member] = all[rank].number;
        if (rank == base->rank) {
            group->base.rank = member;
            group->base.local_rank = group->base.local_ranks;
        }
        group->base.local_ranks += on_host;
    }
    return &group->base;
}

static void comm_free(KnMpiComm *comm)
{
    kn_free_large(comm->scratch);
    free(comm->members);
    free(comm->numbers);
    free(comm);
}

static int mpi_split(KnComm *comm, int color, const char *name, KnComm **group)
{
    Membership mine = {.color = color}, *all = kn_alloc((size_t)comm->ranks * sizeof *all);
    int code = choose_number(engine_of(comm), &mine.number);
    if (code == KN_OK)
        code = gather_memberships(comm, &mine, all, name);
    if (code == KN_OK)
        *group = make_group((const KnMpiComm *)comm, all, name);
    free(all);
    KN_TRY(code);
    if ((*group)->ranks > 1)
        return KN_OK;
    comm_free((KnMpiComm *)*group);
    KN_TRY(kn_comm_self_open(group));
    (*group)->job_rank = comm->job_rank;
    return KN_OK;
}

/* ---- the end ---- */

static void mpi_abort_job(KnComm *comm)
{
    KnMpiEngine *engine = engine_of(comm);
    signal(SIGTERM, SIG_DFL); /* how the launcher ends this process: it must not be taken for a wish to save */
    pthread_mutex_lock(&engine->mutex);
    if (!engine->giving_up)
        snprintf(engine->last_words, sizeof engine->last_words, "%s", kn_error_message());
    engine->giving_up = 1;
    pthread_cond_signal(&engine->work);
    pthread_mutex_unlock(&engine->mutex);
    sleep(LAST_WORDS_SECONDS); /* the launcher kills this process long before */
    kn_log_error("%s", kn_error_message());
    _exit(EXIT_FAILURE);
}

static void engine_destroy(KnMpiEngine *engine)
{
    pthread_mutex_lock(&engine->mutex);
    engine->closing = 1;
    pthread_cond_signal(&engine->work);
    pthread_mutex_unlock(&engine->mutex);
    pthread_join(engine->thread, NULL);
    pthread_cond_destroy(&engine->work);
    pthread_cond_destroy(&engine->done);
    pthread_mutex_destroy(&engine->mutex);
    comm_free(engine->world);
    free(engine->hosts);
    free(engine->watched);
    free(engine);
}

/* The thread does not know a group any more whose calls are complete. Where some are not, the program has failed, and
 * MPI may still write into memory of the group. */
static void mpi_destroy(KnComm *base)
{
    KnMpiComm *comm = (KnMpiComm *)base;
    KnMpiEngine *engine = comm->engine;
    pthread_mutex_lock(&engine->mutex);
    int in_use = engine->code < 0 || comm->completed < comm->next_ticket;
    if (engine->asked == comm)
        engine->asked = NULL;
    pthread_mutex_unlock(&engine->mutex);
    if (comm == engine->world)
        engine_destroy(engine);
    else if (!in_use)
        comm_free(comm);
}

static const KnCommTable mpi_table = {
    .kind = "mpi",
    .split = mpi_split,
    .all_reduce_start = mpi_all_reduce_start,
    .reduce_scatter_start = mpi_reduce_scatter_start,
    .all_gather_start = mpi_all_gather_start,
    .all_to_all_start = mpi_all_to_all_start,
    .send_receive_start = mpi_send_receive_start,
    .wait = mpi_wait,
    .all_gather = mpi_all_gather,
    .broadcast = mpi_broadcast,
    .barrier = mpi_barrier,
    .abort = mpi_abort_job,
    .destroy = mpi_destroy,
};

/* ---- beside the table ---- */

void kn_comm_set_watchdog(KnComm *comm, double seconds)
{
    if (comm->table != &mpi_table)
        return;
    KnMpiEngine *engine = engine_of(comm);
    pthread_mutex_lock(&engine->mutex);
    engine->limit = seconds;
    pthread_mutex_unlock(&engine->mutex);
}

double kn_comm_waited_seconds(const KnComm *comm)
{
    if (comm->table != &mpi_table)
        return 0;
    KnMpiEngine *engine = engine_of(comm);
    pthread_mutex_lock(&engine->mutex);
    double waited = engine->waited;
    pthread_mutex_unlock(&engine->mutex);
    return waited;
}

double kn_comm_watchdog_seconds(const KnComm *comm)
{
    if (comm->table != &mpi_table)
        return 0;
    KnMpiEngine *engine = engine_of(comm);
    pthread_mutex_lock(&engine->mutex);
    double limit = engine->limit;
    pthread_mutex_unlock(&engine->mutex);
    return limit;
}

int kn_comm_announcer(KnComm *host, const char *name, KnComm **announcer)
{
    KN_ASSERT(host->table == &mpi_table && host->ranks > 1);
    KN_TRY(host->table->split(host, 0, name, announcer));
    ((KnMpiComm *)*announcer)->announces = 1;
    return KN_OK;
}

int kn_comm_announced(KnComm *announcer, KnCommTicket ticket)
{
    const KnMpiComm *comm = (const KnMpiComm *)announcer;
    KnMpiEngine *engine = comm->engine;
    pthread_mutex_lock(&engine->mutex);
    int code = comm->completed >= ticket ? 1 : failure(engine);
    pthread_mutex_unlock(&engine->mutex);
    return code;
}

static KnMpiEngine *engine_create(void)
{
    KnMpiEngine *engine = kn_alloc(sizeof *engine);
    pthread_condattr_t monotonic;
    engine->world = kn_alloc(sizeof *engine->world);
    engine->world->base.table = &mpi_table;
    engine->world->engine = engine;
    engine->queue_end = &engine->queue;
    engine->listening = MPI_REQUEST_NULL;
    engine->limit = WATCHDOG_SECONDS;
    pthread_mutex_init(&engine->mutex, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&engine->work, &monotonic);
    pthread_cond_init(&engine->done, NULL);
    pthread_condattr_destroy(&monotonic);
    return engine;
}

static int start_thread(KnMpiEngine *engine)
{
    sigset_t all, before; /* signals are for the threads of the program */
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    int created = pthread_create(&engine->thread, NULL, kn_mpi_run_thread, engine);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return created;
}

int kn_comm_mpi_open(KnComm **comm)
{
    KnMpiEngine *engine = engine_create();
    int created = start_thread(engine);
    if (created != 0) {
        free(engine->world);
        free(engine);
        return kn_fail(KN_EPEER, "cannot start the thread of the MPI communicator: %s", strerror(created));
    }
    pthread_mutex_lock(&engine->mutex);
    while (!engine->started)
        pthread_cond_wait(&engine->done, &engine->mutex);
    int code = failure(engine);
    pthread_mutex_unlock(&engine->mutex);
    if (code < 0) {
        engine_destroy(engine);
        return code;
    }
    *comm = &engine->world->base;
    return KN_OK;
}
