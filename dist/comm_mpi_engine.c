/* The thread of the MPI communicator: it makes every MPI call, from MPI_Init to MPI_Finalize.
 *
 * MPI moves bytes only inside its functions, so a reduction started by the computing thread would stand still until it
 * is waited for. Here calls are put into a queue and the thread carries them out while the others compute. It never
 * spins: idle it sleeps on the queue; with messages under way it tests them between short naps. No MPI call that it
 * makes between start and end waits for another rank, so that it answers whatever happens. */
#include "core/base/error.h"
#include "core/base/memory.h"
#include "dist/comm_mpi.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    NAP_NANOSECONDS = 20000,
    LONGEST_NAP_NANOSECONDS = 1000000,
    IDLE_NANOSECONDS = 20000000, /* how soon an idle rank hears a question or that another gave up */
    SLICE_NANOSECONDS = 100000
};

double kn_mpi_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

int kn_mpi_check(int result, const char *what)
{
    if (result == MPI_SUCCESS)
        return KN_OK;
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    MPI_Error_string(result, text, &length);
    return kn_fail(KN_EPEER, "the exchange '%s' between ranks failed: %s", what, text);
}

/* ---- what moves use ---- */

void kn_mpi_requests(KnMpiCall *call, int count)
{
    call->requests = kn_realloc(call->requests, ((size_t)count + 1) * sizeof *call->requests);
    call->peers = kn_realloc(call->peers, ((size_t)count + 1) * sizeof *call->peers);
    call->request_count = count;
    for (int i = 0; i < count; i++)
        call->requests[i] = MPI_REQUEST_NULL;
}

int kn_mpi_send(KnMpiCall *call, int request, const void *bytes, int64_t count, int rank, int tag)
{
    const KnMpiComm *comm = call->comm;
    call->peers[request] = rank;
    return kn_mpi_check(MPI_Isend(bytes, (int)count, MPI_BYTE, comm->members[rank],
                                  comm->numbers[rank] * KN_MPI_TAG_KINDS + tag, MPI_COMM_WORLD,
                                  &call->requests[request]),
                        call->header.name);
}

int kn_mpi_receive(KnMpiCall *call, int request, void *bytes, int64_t count, int rank, int tag)
{
    const KnMpiComm *comm = call->comm;
    call->peers[request] = rank;
    return kn_mpi_check(MPI_Irecv(bytes, (int)count, MPI_BYTE, comm->members[rank],
                                  comm->numbers[comm->base.rank] * KN_MPI_TAG_KINDS + tag, MPI_COMM_WORLD,
                                  &call->requests[request]),
                        call->header.name);
}

int kn_mpi_scratch(KnMpiComm *comm, size_t bytes, void **scratch)
{
    if (comm->scratch_bytes < bytes) {
        kn_free_large(comm->scratch);
        comm->scratch = NULL;
        comm->scratch_bytes = 0;
        KN_TRY(kn_alloc_large(&comm->scratch, bytes, "summing over ranks"));
        comm->scratch_bytes = bytes;
    }
    *scratch = comm->scratch;
    return KN_OK;
}

/* ---- calls ---- */

static void call_release(KnMpiCall *call)
{
    free(call->in);
    free(call->out);
    free(call->ours);
    free(call->theirs);
    free(call->requests);
    free(call->peers);
    free(call->state);
    free(call);
}

static void publish_failure(KnMpiEngine *engine, int code)
{
    pthread_mutex_lock(&engine->mutex);
    if (engine->code == KN_OK) {
        engine->code = code;
        snprintf(engine->sentence, sizeof engine->sentence, "%s", kn_error_message());
    }
    engine->queue = NULL;
    engine->queue_end = &engine->queue;
    pthread_cond_broadcast(&engine->done);
    pthread_mutex_unlock(&engine->mutex);
}

/* The program may destroy the communicator at once: nothing may touch it afterwards. */
static void publish_completed(KnMpiEngine *engine, KnMpiComm *comm, const KnMpiCall *call)
{
    pthread_mutex_lock(&engine->mutex);
    kn_mpi_describe_call(comm, &call->header, engine->last_completed, sizeof engine->last_completed);
    comm->completed = call->ticket;
    pthread_cond_broadcast(&engine->done);
    pthread_mutex_unlock(&engine->mutex);
}

/* The program's time in a wait for this communicator while another rank had not yet come. */
static void count_waiting(KnMpiEngine *engine, const KnMpiCall *call, double now)
{
    pthread_mutex_lock(&engine->mutex);
    if (engine->waiting == call->comm)
        engine->waited += now - (engine->waiting_since > call->since ? engine->waiting_since : call->since);
    pthread_mutex_unlock(&engine->mutex);
}

/* All messages of the call's stage have arrived: 1 when that was the last one. */
static int end_stage(KnMpiEngine *engine, KnMpiCall *call)
{
    const KnMpiMove *move = kn_mpi_move(call);
    if (call->moving)
        return 1;
    call->moving = 1;
    call->progress = kn_mpi_now();
    count_waiting(engine, call, call->progress);
    KN_TRY(kn_mpi_header_compare(call));
    if (!move)
        return 1;
    kn_mpi_requests(call, 0);
    KN_TRY(move->start(call));
    return 0;
}

/* Tests the messages of one call. 1: it is complete. *events counts what happened. */
static int advance(KnMpiEngine *engine, KnMpiCall *call, int *events)
{
    enum { AT_ONCE = 64 };
    int completed[AT_ONCE], count = 0, *indices = completed;
    if (call->request_count > AT_ONCE)
        indices = kn_alloc((size_t)call->request_count * sizeof *indices);
    int code = kn_mpi_check(MPI_Testsome(call->request_count, call->requests, &count, indices, MPI_STATUSES_IGNORE),
                            call->header.name);
    if (code == KN_OK && count == MPI_UNDEFINED) {
        code = end_stage(engine, call);
        ++*events;
    } else if (code == KN_OK && count > 0) {
        *events += count;
        call->progress = kn_mpi_now();
        for (int i = 0; i < count && code == KN_OK && call->moving; i++)
            code = kn_mpi_move(call)->completed(call, indices[i]);
    }
    if (indices != completed)
        free(indices);
    return code;
}

/* ---- turns ---- */

static int accept_call(KnMpiEngine *engine, KnMpiCall *call)
{
    KnMpiComm *comm = call->comm;
    call->next = NULL;
    if (!comm->calls) {
        KnMpiComm **end = &engine->active;
        while (*end)
            end = &(*end)->next_active;
        *end = comm;
        comm->next_active = NULL;
        comm->calls_end = &comm->calls;
        call->since = call->progress = kn_mpi_now();
    }
    *comm->calls_end = call;
    comm->calls_end = &call->next;
    return kn_mpi_header_start(call);
}

/* Takes newly queued calls and sees to what comes beside them. */
static int take_queue(KnMpiEngine *engine, int *events)
{
    pthread_mutex_lock(&engine->mutex);
    KnMpiCall *arrived = engine->queue;
    int giving_up = engine->giving_up;
    engine->queue = NULL;
    engine->queue_end = &engine->queue;
    pthread_mutex_unlock(&engine->mutex);
    KN_TRY(kn_mpi_attend(engine, giving_up));
    while (arrived) {
        KnMpiCall *call = arrived;
        arrived = call->next;
        ++*events;
        KN_TRY(accept_call(engine, call));
    }
    return KN_OK;
}

/* The first call of *place is complete: the next one's turn, or the communicator leaves the list. */
static void retire(KnMpiEngine *engine, KnMpiComm **place)
{
    KnMpiComm *comm = *place;
    KnMpiCall *call = comm->calls;
    comm->calls = call->next;
    if (comm->calls)
        comm->calls->since = comm->calls->progress = kn_mpi_now();
    else
        *place = comm->next_active;
    publish_completed(engine, comm, call);
    call_release(call);
}

static int turn(KnMpiEngine *engine, int *events)
{
    KN_TRY(take_queue(engine, events));
    for (KnMpiComm **place = &engine->active; *place;) {
        KnMpiComm *comm = *place;
        int code;
        do
            code = advance(engine, comm->calls, events);
        while (code == KN_OK && comm->calls->request_count == 0);
        KN_TRY(code);
        if (code == 1)
            retire(engine, place);
        else
            place = &comm->next_active;
    }
    kn_mpi_watch(engine);
    return KN_OK;
}

/* Sleeps until a call is queued, at most so long. Never sched_yield, which gives away more than the turn. */
static void sleep_on_queue(KnMpiEngine *engine, long nanoseconds)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += nanoseconds;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&engine->mutex);
    if (!engine->queue && !engine->closing)
        pthread_cond_timedwait(&engine->work, &engine->mutex, &until);
    pthread_mutex_unlock(&engine->mutex);
}

/* Short at first, then longer: 20 microseconds to a millisecond within a quarter of a second. */
static long nap_length(const KnMpiEngine *engine, unsigned idle_turns)
{
    long nap = (long)NAP_NANOSECONDS * (1 + (long)idle_turns / 64);
    if (!engine->active)
        return IDLE_NANOSECONDS;
    return nap < LONGEST_NAP_NANOSECONDS ? nap : LONGEST_NAP_NANOSECONDS;
}

static int is_closing(KnMpiEngine *engine)
{
    pthread_mutex_lock(&engine->mutex);
    int closing = engine->closing && !engine->queue;
    pthread_mutex_unlock(&engine->mutex);
    return closing && !engine->active;
}

/* After a failure nothing is sent any more, but last words are: MPI may still hold buffers of calls that will never
 * complete, so those are kept until the process ends. */
static void run_turns(KnMpiEngine *engine)
{
    unsigned idle_turns = 0;
    int failed = 0;
    while (!is_closing(engine)) {
        int events = 0, code = failed ? KN_OK : turn(engine, &events);
        if (failed) {
            pthread_mutex_lock(&engine->mutex);
            int giving_up = engine->giving_up;
            pthread_mutex_unlock(&engine->mutex);
            kn_mpi_attend(engine, giving_up);
        } else if (code < 0) {
            publish_failure(engine, code);
            engine->active = NULL;
            failed = 1;
        }
        idle_turns = events ? 0 : idle_turns + 1;
        if (!events)
            sleep_on_queue(engine, nap_length(engine, idle_turns));
    }
}

/* ---- start and end ---- */

/* Containers often forbid the system call with which Open MPI copies between processes of a host; it then fails on
 * every large message instead of choosing its other way. A copy within this process tells. */
static void avoid_forbidden_copy(void)
{
    char from = 1, to = 0;
    struct iovec local = {&to, 1}, remote = {&from, 1};
    if (process_vm_readv(getpid(), &local, 1, &remote, 1, 0) != 1)
        setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", 0);
}

static int find_hosts(KnMpiEngine *engine)
{
    KnComm *base = &engine->world->base;
    char own[KN_MPI_HOST_BYTES] = "";
    MPI_Comm host;
    gethostname(own, sizeof own - 1);
    engine->hosts = kn_alloc((size_t)base->ranks * sizeof *engine->hosts);
    KN_TRY(kn_mpi_check(MPI_Allgather(own, sizeof own, MPI_CHAR, engine->hosts, sizeof own, MPI_CHAR, MPI_COMM_WORLD),
                        "names of hosts"));
    KN_TRY(kn_mpi_check(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host),
                        "ranks of this host"));
    MPI_Comm_rank(host, &base->local_rank);
    MPI_Comm_size(host, &base->local_ranks);
    MPI_Comm_free(&host);
    return KN_OK;
}

static void make_world(KnMpiEngine *engine)
{
    KnMpiComm *world = engine->world;
    world->members = kn_alloc((size_t)world->base.ranks * sizeof *world->members);
    world->numbers = kn_alloc((size_t)world->base.ranks * sizeof *world->numbers);
    for (int rank = 0; rank < world->base.ranks; rank++) {
        world->members[rank] = rank;
        world->numbers[rank] = 1; /* 0 is for what goes beside all calls */
    }
    engine->next_comm_number = 2;
    engine->watched = kn_alloc((size_t)world->base.ranks * sizeof *engine->watched);
}

static int start_mpi(KnMpiEngine *engine)
{
    KnComm *base = &engine->world->base;
    int provided, found = 0, *largest_tag = NULL;
    avoid_forbidden_copy();
    setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
    KN_TRY(kn_mpi_check(MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided), "start of MPI"));
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &base->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &base->ranks);
    base->job_rank = base->rank;
    if (base->ranks == 1)
        return kn_fail(KN_EPEER, "the launcher started several processes but MPI connects none of them; use the mpirun "
                                 "of the Open MPI that kinora was built with, or srun --mpi=pmix");
    MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &largest_tag, &found);
    engine->comm_numbers = (found ? *largest_tag : 32767) / KN_MPI_TAG_KINDS;
    KN_TRY(find_hosts(engine));
    make_world(engine);
    return kn_mpi_listen(engine);
}

/* The scheduler lets a thread that computes finish its slice of milliseconds before one that wakes. A thread that asks
 * for short slices itself is let in at once (EEVDF, Linux 6.12 and later; older ones ignore the wish). */
static void ask_for_short_slices(void)
{
    struct {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
    } wish = {.size = sizeof wish, .runtime = SLICE_NANOSECONDS};
    syscall(SYS_sched_setattr, 0, &wish, 0);
}

void *kn_mpi_run_thread(void *argument)
{
    KnMpiEngine *engine = argument;
    ask_for_short_slices();
    prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0); /* naps of 20 microseconds, not of 70 */
    int code = kn_mpi_start(engine, start_mpi), initialized = 0;
    if (code < 0)
        publish_failure(engine, code);
    pthread_mutex_lock(&engine->mutex);
    engine->started = 1;
    pthread_cond_broadcast(&engine->done);
    pthread_mutex_unlock(&engine->mutex);
    if (code == KN_OK) {
        run_turns(engine);
        kn_mpi_stop_listening(engine);
    }
    MPI_Initialized(&initialized);
    if (initialized)
        kn_mpi_finalize();
    return NULL;
}
