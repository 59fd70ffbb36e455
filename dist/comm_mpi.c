/* The communicator over MPI: one thread of its own makes every MPI call, from MPI_Init to MPI_Finalize.
 *
 * MPI moves bytes only inside its functions, so a reduction started by the computing thread would stand still until it
 * is waited for. Here calls are put into a queue and the thread carries them out while the others compute. It never
 * spins: idle it sleeps on the queue; with messages under way it tests them between short naps.
 *
 * Each call begins with a header that every rank sends to every other: sequence number, kind, sizes, name. Ranks that
 * disagree all see it before a byte moves, and get one sentence. Headers of queued calls travel ahead of their turn.
 *
 * A rank that gives up sends its sentence to rank 0, whose thread always listens, prints the first and ends the job. */
#include "dist/comm_mpi.h"

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/memory.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    TAG_HEADER = 1,
    TAG_LAST_WORDS = 2,
    TAG_FIRST_DATA = 16,
    TAG_COUNT = 32000, /* MPI promises tags up to 32767 */
    SENTENCE_BYTES = 1024,
    NAP_NANOSECONDS = 20000,
    LONGEST_NAP_NANOSECONDS = 1000000,
    SLICE_NANOSECONDS = 100000,
    IDLE_NANOSECONDS = 20000000, /* how soon an idle rank 0 hears that another gave up */
    GRACE_SECONDS = 20           /* for rank 0 to end the job; then the failing rank does it */
};

struct KnMpiComm {
    KnComm base;
    pthread_t thread;

    pthread_mutex_t mutex; /* guards what follows, up to the thread's own part */
    pthread_cond_t work, done;
    KnMpiCall *queue, **queue_end;
    int64_t next_sequence, completed;
    int started, closing, giving_up;
    int code; /* after a failure: of every call */
    char sentence[SENTENCE_BYTES];
    char last_words[SENTENCE_BYTES];

    /* The thread's own. */
    KnMpiCall *accepted, **accepted_end; /* their headers are under way */
    int tag_counter;
    float *scratch;
    size_t scratch_floats;
    MPI_Request listening; /* rank 0: for last words */
    char heard[SENTENCE_BYTES];
    MPI_Request parting; /* other ranks: their own last words */
    double give_up_deadline;
};

static const char *const kind_names[] = {"all_reduce", "all_gather", "broadcast", "barrier"};

static double now_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

const KnComm *kn_mpi_base(const KnMpiComm *mpi)
{
    return &mpi->base;
}

int kn_mpi_next_tag(KnMpiComm *mpi)
{
    mpi->tag_counter = (mpi->tag_counter + 1) % TAG_COUNT;
    return TAG_FIRST_DATA + mpi->tag_counter;
}

int kn_mpi_scratch(KnMpiComm *mpi, size_t floats, float **scratch)
{
    if (mpi->scratch_floats < floats) {
        void *memory;
        kn_free_large(mpi->scratch);
        mpi->scratch = NULL;
        mpi->scratch_floats = 0;
        KN_TRY(kn_alloc_large(&memory, floats * sizeof(float), "summing over ranks"));
        mpi->scratch = memory;
        mpi->scratch_floats = floats;
    }
    *scratch = mpi->scratch;
    return KN_OK;
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

/* ---- the end of the job ---- */

_Noreturn static void end_job(const char *sentence)
{
    kn_log_error("%s", sentence);
    struct timespec flush = {.tv_nsec = IDLE_NANOSECONDS}; /* the launcher drops what it has not read when it aborts */
    nanosleep(&flush, NULL);
    MPI_Abort(MPI_COMM_WORLD, EXIT_FAILURE);
    _exit(EXIT_FAILURE);
}

/* Rank 0 ends the job with the first last words that it hears, its own included; others send theirs. */
static void serve_failures(KnMpiComm *mpi, int giving_up)
{
    if (mpi->base.rank == 0) {
        int heard = 0;
        MPI_Test(&mpi->listening, &heard, MPI_STATUS_IGNORE);
        if (heard || giving_up)
            end_job(heard ? mpi->heard : mpi->last_words);
        return;
    }
    int sent = 0;
    MPI_Iprobe(0, TAG_LAST_WORDS, MPI_COMM_WORLD, &sent, MPI_STATUS_IGNORE); /* nothing comes: it moves what waits */
    if (giving_up && mpi->give_up_deadline == 0) {
        MPI_Isend(mpi->last_words, SENTENCE_BYTES, MPI_CHAR, 0, TAG_LAST_WORDS, MPI_COMM_WORLD, &mpi->parting);
        mpi->give_up_deadline = now_seconds() + GRACE_SECONDS;
    }
    MPI_Test(&mpi->parting, &sent, MPI_STATUS_IGNORE);
    if (giving_up && now_seconds() > mpi->give_up_deadline)
        end_job(mpi->last_words);
}

static void mpi_abort_job(KnComm *comm)
{
    KnMpiComm *mpi = (KnMpiComm *)comm;
    signal(SIGTERM, SIG_DFL); /* how the launcher ends this process: it must not be taken for a wish to save */
    pthread_mutex_lock(&mpi->mutex);
    snprintf(mpi->last_words, sizeof mpi->last_words, "%s", kn_error_message());
    mpi->giving_up = 1;
    pthread_cond_signal(&mpi->work);
    pthread_mutex_unlock(&mpi->mutex);
    sleep(2 * GRACE_SECONDS); /* the launcher kills this process long before */
    kn_log_error("%s", kn_error_message());
    _exit(EXIT_FAILURE);
}

/* ---- the headers ---- */

static int header_start(KnMpiComm *mpi, KnMpiCall *call)
{
    int ranks = mpi->base.ranks, count = 0, result = MPI_SUCCESS, bytes = (int)sizeof call->header;
    call->theirs = kn_alloc((size_t)ranks * sizeof *call->theirs);
    call->requests = kn_alloc((size_t)ranks * 2 * sizeof *call->requests);
    call->theirs[mpi->base.rank] = call->header;
    for (int peer = 0; peer < ranks && result == MPI_SUCCESS; peer++) {
        if (peer == mpi->base.rank)
            continue;
        result =
            MPI_Irecv(&call->theirs[peer], bytes, MPI_BYTE, peer, TAG_HEADER, MPI_COMM_WORLD, &call->requests[count++]);
        if (result == MPI_SUCCESS)
            result =
                MPI_Isend(&call->header, bytes, MPI_BYTE, peer, TAG_HEADER, MPI_COMM_WORLD, &call->requests[count++]);
    }
    return kn_mpi_check(result, call->header.name);
}

static void describe_header(const KnMpiHeader *header, char *text, size_t size)
{
    snprintf(text, size, "%s '%s' of %lld bytes", kind_names[header->kind], header->name, (long long)header->bytes);
}

/* Every rank compares all headers with rank 0's, so that all of them come to the same sentence. */
static int header_compare(const KnMpiComm *mpi, const KnMpiCall *call)
{
    const KnMpiHeader *first = &call->theirs[0];
    for (int rank = 1; rank < mpi->base.ranks; rank++) {
        const KnMpiHeader *other = &call->theirs[rank];
        if (other->sequence == first->sequence && other->kind == first->kind && other->bytes == first->bytes &&
            other->root == first->root && strcmp(other->name, first->name) == 0)
            continue;
        char mine[128], theirs[128];
        describe_header(first, mine, sizeof mine);
        describe_header(other, theirs, sizeof theirs);
        return kn_fail(KN_EPEER,
                       "rank 0 and rank %d have parted ways: call %lld of rank 0 is %s, call %lld of rank %d is %s",
                       rank, (long long)first->sequence, mine, (long long)other->sequence, rank, theirs);
    }
    return KN_OK;
}

/* ---- the thread ---- */

/* Takes newly queued calls, starts their headers, and sees to failing ranks. */
static int serve(KnMpiComm *mpi)
{
    pthread_mutex_lock(&mpi->mutex);
    KnMpiCall *arrived = mpi->queue;
    int giving_up = mpi->giving_up;
    mpi->queue = NULL;
    mpi->queue_end = &mpi->queue;
    pthread_mutex_unlock(&mpi->mutex);
    serve_failures(mpi, giving_up);
    int code = KN_OK;
    while (arrived) {
        KnMpiCall *call = arrived;
        arrived = call->next;
        call->next = NULL;
        *mpi->accepted_end = call;
        mpi->accepted_end = &call->next;
        if (code == KN_OK && mpi->code == KN_OK)
            code = header_start(mpi, call);
    }
    return code;
}

/* Short at first, then longer: 20 microseconds to a millisecond within a quarter of a second. Never sched_yield, which
 * gives away more than the turn. */
static void nap(unsigned idle_turns)
{
    long nanoseconds = (long)NAP_NANOSECONDS * (1 + (long)idle_turns / 64);
    struct timespec pause = {.tv_nsec = nanoseconds < LONGEST_NAP_NANOSECONDS ? nanoseconds : LONGEST_NAP_NANOSECONDS};
    nanosleep(&pause, NULL);
}

int kn_mpi_wait_some(KnMpiComm *mpi, MPI_Request *requests, int count, int *completed)
{
    for (unsigned idle_turns = 0;; idle_turns++) {
        int done = 0;
        KN_TRY(serve(mpi));
        KN_TRY(kn_mpi_check(MPI_Testsome(count, requests, &done, completed, MPI_STATUSES_IGNORE), "test of messages"));
        if (done != 0)
            return done == MPI_UNDEFINED ? 0 : done;
        nap(idle_turns);
    }
}

int kn_mpi_wait_all(KnMpiComm *mpi, MPI_Request *requests, int count)
{
    int *completed = kn_alloc((size_t)count * sizeof *completed), done;
    do
        done = kn_mpi_wait_some(mpi, requests, count, completed);
    while (done > 0);
    free(completed);
    return done;
}

static int carry_out(KnMpiComm *mpi, KnMpiCall *call)
{
    KnMpiHeader *header = &call->header;
    KN_TRY(kn_mpi_wait_all(mpi, call->requests, 2 * (mpi->base.ranks - 1)));
    KN_TRY(header_compare(mpi, call));
    size_t bytes = (size_t)header->bytes;
    switch ((KnMpiKind)header->kind) {
    case KN_MPI_ALL_REDUCE:
        return kn_mpi_move_all_reduce(mpi, call->output, header->bytes / (int64_t)sizeof(float), header->name);
    case KN_MPI_ALL_GATHER:
        if (bytes > KN_MPI_SMALL_BYTES)
            return kn_mpi_move_all_gather(mpi, call->output, bytes, header->name);
        for (int rank = 0; rank < mpi->base.ranks; rank++)
            memcpy((unsigned char *)call->output + (size_t)rank * bytes, call->theirs[rank].small, bytes);
        return KN_OK;
    case KN_MPI_BROADCAST:
        return kn_mpi_move_broadcast(mpi, call->output, bytes, header->root, header->name);
    case KN_MPI_BARRIER:
        break; /* the headers have met */
    }
    return KN_OK;
}

static void publish(KnMpiComm *mpi, int64_t sequence, int code)
{
    pthread_mutex_lock(&mpi->mutex);
    if (code < 0 && mpi->code == KN_OK) {
        mpi->code = code;
        snprintf(mpi->sentence, sizeof mpi->sentence, "%s", kn_error_message());
    }
    if (sequence > mpi->completed)
        mpi->completed = sequence;
    pthread_cond_broadcast(&mpi->done);
    pthread_mutex_unlock(&mpi->mutex);
}

static void call_release(KnMpiCall *call)
{
    free(call->theirs);
    free(call->requests);
    free(call);
}

/* Carries out the oldest accepted call. After a failure nothing is sent any more: MPI may still hold buffers of calls
 * that will never complete, so those are kept until the process ends. */
static void run_one(KnMpiComm *mpi)
{
    KnMpiCall *call = mpi->accepted;
    int64_t sequence = call->header.sequence;
    int code = mpi->code < 0 ? mpi->code : carry_out(mpi, call);
    mpi->accepted = call->next; /* only now: carry_out serves the queue, which appends */
    if (!mpi->accepted)
        mpi->accepted_end = &mpi->accepted;
    publish(mpi, sequence, code);
    if (code == KN_OK)
        call_release(call);
}

/* Sleeps until there is work, or for the time after which messages of failing ranks are looked for again. */
static int wait_for_work(KnMpiComm *mpi)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += IDLE_NANOSECONDS;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&mpi->mutex);
    if (!mpi->queue && !mpi->closing && !mpi->giving_up)
        pthread_cond_timedwait(&mpi->work, &mpi->mutex, &until);
    int closing = mpi->closing && !mpi->queue;
    pthread_mutex_unlock(&mpi->mutex);
    return !closing;
}

/* Containers often forbid the system call with which Open MPI copies between processes of a host; it then fails on
 * every large message instead of choosing its other way. A copy within this process tells. */
static void avoid_forbidden_copy(void)
{
    char from = 1, to = 0;
    struct iovec local = {&to, 1}, remote = {&from, 1};
    if (process_vm_readv(getpid(), &local, 1, &remote, 1, 0) != 1)
        setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", 0);
}

static int start_mpi(KnMpiComm *mpi)
{
    int provided, result;
    avoid_forbidden_copy();
    setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
    KN_TRY(kn_mpi_check(MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided), "start of MPI"));
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &mpi->base.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &mpi->base.ranks);
    if (mpi->base.ranks == 1)
        return kn_fail(KN_EPEER, "the launcher started several processes but MPI connects none of them; use the mpirun "
                                 "of the Open MPI that kinora was built with, or srun --mpi=pmix");
    MPI_Comm host;
    result = MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host);
    KN_TRY(kn_mpi_check(result, "ranks of this host"));
    MPI_Comm_rank(host, &mpi->base.local_rank);
    MPI_Comm_size(host, &mpi->base.local_ranks);
    MPI_Comm_free(&host);
    mpi->listening = mpi->parting = MPI_REQUEST_NULL;
    if (mpi->base.rank == 0) {
        result = MPI_Irecv(mpi->heard, SENTENCE_BYTES, MPI_CHAR, MPI_ANY_SOURCE, TAG_LAST_WORDS, MPI_COMM_WORLD,
                           &mpi->listening);
        KN_TRY(kn_mpi_check(result, "listening for failures"));
    }
    return KN_OK;
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

static void *run_thread(void *argument)
{
    ask_for_short_slices();
    KnMpiComm *mpi = argument;
    prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0); /* naps of 20 microseconds, not of 70 */
    int code = start_mpi(mpi);
    pthread_mutex_lock(&mpi->mutex);
    mpi->started = 1;
    pthread_mutex_unlock(&mpi->mutex);
    publish(mpi, 0, code);
    while (code == KN_OK && wait_for_work(mpi)) {
        int accepted = serve(mpi);
        if (accepted < 0)
            publish(mpi, 0, accepted);
        while (mpi->accepted)
            run_one(mpi);
    }
    if (mpi->listening != MPI_REQUEST_NULL && code == KN_OK) {
        MPI_Cancel(&mpi->listening);
        MPI_Wait(&mpi->listening, MPI_STATUS_IGNORE);
    }
    int initialized = 0;
    MPI_Initialized(&initialized);
    if (initialized)
        MPI_Finalize();
    return NULL;
}

/* ---- the table ---- */

static int failure(const KnMpiComm *mpi)
{
    return mpi->code < 0 ? kn_fail(mpi->code, "%s", mpi->sentence) : KN_OK;
}

static int enqueue(KnComm *comm, KnMpiCall call, KnCommTicket *ticket, const char *name)
{
    KnMpiComm *mpi = (KnMpiComm *)comm;
    KnMpiCall *queued = kn_alloc(sizeof *queued);
    *queued = call;
    snprintf(queued->header.name, sizeof queued->header.name, "%s", name);
    pthread_mutex_lock(&mpi->mutex);
    int code = failure(mpi);
    if (code == KN_OK) {
        *ticket = queued->header.sequence = ++mpi->next_sequence;
        *mpi->queue_end = queued;
        mpi->queue_end = &queued->next;
        pthread_cond_signal(&mpi->work);
    }
    pthread_mutex_unlock(&mpi->mutex);
    if (code < 0)
        free(queued);
    return code;
}

static int mpi_wait(KnComm *comm, KnCommTicket ticket)
{
    KnMpiComm *mpi = (KnMpiComm *)comm;
    pthread_mutex_lock(&mpi->mutex);
    while (mpi->completed < ticket && mpi->code == KN_OK)
        pthread_cond_wait(&mpi->done, &mpi->mutex);
    int code = failure(mpi);
    pthread_mutex_unlock(&mpi->mutex);
    return code;
}

static int mpi_all_reduce_start(KnComm *comm, void *values, int64_t count, KnDtype dtype, const char *name,
                                KnCommTicket *ticket)
{
    KnMpiCall call = {.output = values};
    KN_ASSERT(dtype == KN_F32);
    call.header.kind = KN_MPI_ALL_REDUCE;
    call.header.bytes = count * (int64_t)sizeof(float);
    *ticket = 0;
    return enqueue(comm, call, ticket, name);
}

static int run_call(KnComm *comm, KnMpiCall call, const char *name)
{
    KnCommTicket ticket;
    KN_TRY(enqueue(comm, call, &ticket, name));
    return mpi_wait(comm, ticket);
}

static int mpi_all_gather(KnComm *comm, const void *mine, void *all, size_t bytes_each, const char *name)
{
    KnMpiCall call = {.output = all};
    call.header.kind = KN_MPI_ALL_GATHER;
    call.header.bytes = (int64_t)bytes_each;
    if (bytes_each <= KN_MPI_SMALL_BYTES)
        memcpy(call.header.small, mine, bytes_each);
    else
        memmove((unsigned char *)all + (size_t)comm->rank * bytes_each, mine, bytes_each);
    return run_call(comm, call, name);
}

static int mpi_broadcast(KnComm *comm, void *bytes, size_t count, int root, const char *name)
{
    KN_ASSERT(root >= 0 && root < comm->ranks);
    KnMpiCall call = {.output = bytes};
    call.header.kind = KN_MPI_BROADCAST;
    call.header.bytes = (int64_t)count;
    call.header.root = root;
    return run_call(comm, call, name);
}

static int mpi_barrier(KnComm *comm, const char *name)
{
    KnMpiCall call = {0};
    call.header.kind = KN_MPI_BARRIER;
    return run_call(comm, call, name);
}

static void mpi_destroy(KnComm *comm)
{
    KnMpiComm *mpi = (KnMpiComm *)comm;
    pthread_mutex_lock(&mpi->mutex);
    mpi->closing = 1;
    pthread_cond_signal(&mpi->work);
    pthread_mutex_unlock(&mpi->mutex);
    pthread_join(mpi->thread, NULL);
    pthread_cond_destroy(&mpi->work);
    pthread_cond_destroy(&mpi->done);
    pthread_mutex_destroy(&mpi->mutex);
    kn_free_large(mpi->scratch);
    free(mpi);
}

static const KnCommTable mpi_table = {
    .kind = "mpi",
    .all_reduce_start = mpi_all_reduce_start,
    .wait = mpi_wait,
    .all_gather = mpi_all_gather,
    .broadcast = mpi_broadcast,
    .barrier = mpi_barrier,
    .abort = mpi_abort_job,
    .destroy = mpi_destroy,
};

int kn_comm_mpi_open(KnComm **comm)
{
    KnMpiComm *mpi = kn_alloc(sizeof *mpi);
    mpi->base.table = &mpi_table;
    mpi->queue_end = &mpi->queue;
    mpi->accepted_end = &mpi->accepted;
    pthread_mutex_init(&mpi->mutex, NULL);
    pthread_cond_init(&mpi->work, NULL);
    pthread_cond_init(&mpi->done, NULL);
    sigset_t all, before; /* signals are for the threads of the program */
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    int created = pthread_create(&mpi->thread, NULL, run_thread, mpi);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (created != 0) {
        free(mpi);
        return kn_fail(KN_EPEER, "cannot start the thread of the MPI communicator: %s", strerror(created));
    }
    pthread_mutex_lock(&mpi->mutex);
    while (!mpi->started)
        pthread_cond_wait(&mpi->done, &mpi->mutex);
    int code = failure(mpi);
    pthread_mutex_unlock(&mpi->mutex);
    if (code < 0) {
        mpi_destroy(&mpi->base);
        return code;
    }
    *comm = &mpi->base;
    return KN_OK;
}
