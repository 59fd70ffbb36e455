/* The communicator over NCCL: every call is announced to the other ranks, then queued on the communication stream. */
#include "dist/comm_nccl/comm_nccl.h"

#include "core/base/activity.h"
#include "core/base/error.h"
#include "core/base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { END_SECONDS = 5 };

static const KnCommTable nccl_table;

/* ---- results ---- */

int kn_nccl_check(ncclResult_t result, const KnNcclComm *comm, const char *what)
{
    if (result == ncclSuccess)
        return KN_OK;
    const char *detail = ncclGetLastError(comm ? comm->nccl : NULL);
    return kn_fail(KN_EPEER, "%s failed in NCCL: %s%s%s (NCCL_DEBUG=WARN in the environment says more)", what,
                   ncclGetErrorString(result), detail && *detail ? ": " : "", detail ? detail : "");
}

int kn_nccl_check_cuda(cudaError_t result, const char *what)
{
    if (result == cudaSuccess)
        return KN_OK;
    return kn_fail(KN_EPEER, "%s failed in CUDA: %s", what, cudaGetErrorString(result));
}

void kn_nccl_describe_call(const KnNcclCall *call, char *text, size_t size)
{
    snprintf(text, size, "call %lld of %s, %s '%s' of %lld bytes", (long long)call->number, call->comm->name,
             call->kind, call->name, (long long)call->bytes);
}

/* ---- starting and waiting ---- */

/* What a start was asked for. Counts are in elements of `type`, offsets too. */
typedef struct Request {
    const char *kind, *name;
    const void *send;
    void *receive;
    int64_t count, bytes;
    const int64_t *in, *out; /* [ranks + 1] cuts of what is sent, of what is received */
    int64_t receive_count;
    int to, from;
    ncclDataType_t type;
    int (*announce)(KnComm *announcer, const struct Request *request, KnCommTicket *ticket);
    ncclResult_t (*queue)(const KnNcclComm *comm, const struct Request *request);
} Request;

static int call_create(KnNcclJob *job, KnNcclCall **call)
{
    *call = job->spare;
    if (*call) {
        job->spare = (*call)->next;
        return KN_OK;
    }
    KnNcclCall *made = kn_alloc(sizeof *made);
    int code = kn_nccl_check_cuda(cudaEventCreateWithFlags(&made->ready, cudaEventDisableTiming), "making an event");
    if (code == KN_OK) {
        code = kn_nccl_check_cuda(cudaEventCreateWithFlags(&made->done, cudaEventDisableTiming), "making an event");
        if (code < 0)
            cudaEventDestroy(made->ready);
    }
    if (code < 0)
        free(made);
    else
        *call = made;
    return code;
}

static void call_describe(KnNcclCall *call, KnNcclComm *comm, const Request *request)
{
    call->comm = comm;
    call->kind = request->kind;
    snprintf(call->name, sizeof call->name, "%s", request->name);
    call->bytes = request->bytes;
    call->number = ++comm->number;
    call->announced = 0;
    call->since = 0;
    call->next = NULL;
}

static int queue_on_device(KnNcclCall *call, const Request *request)
{
    const KnNcclJob *job = call->comm->job;
    char what[KN_NCCL_CALL_BYTES];
    kn_nccl_describe_call(call, what, sizeof what);
    KN_TRY(kn_nccl_check_cuda(cudaEventRecord(call->ready, job->compute), what));
    KN_TRY(kn_nccl_check_cuda(cudaStreamWaitEvent(job->stream, call->ready, 0), what));
    KN_TRY(kn_nccl_check(request->queue(call->comm, request), call->comm, what));
    return kn_nccl_check_cuda(cudaEventRecord(call->done, job->stream), what);
}

/* After such a failure nothing can be released: that waits for the device, where kernels may wait for this rank. */
_Noreturn static void give_up(KnNcclJob *job)
{
    pthread_mutex_unlock(&job->mutex);
    kn_comm_abort(job->host);
}

static int start_call(KnNcclComm *comm, const Request *request, KnCommTicket *ticket)
{
    KnNcclJob *job = comm->job;
    KnNcclCall *call;
    KN_TRY(call_create(job, &call));
    call_describe(call, comm, request);
    int code = comm->announcer ? request->announce(comm->announcer, request, &call->announced) : KN_OK;
    if (code == KN_OK && queue_on_device(call, request) < 0)
        give_up(job);
    if (code < 0) {
        call->next = job->spare;
        job->spare = call;
        return code;
    }
    *ticket = call->ticket = ++job->started;
    *job->calls_end = call;
    job->calls_end = &call->next;
    return KN_OK;
}

static int start(KnComm *base, const Request *request, KnCommTicket *ticket)
{
    KnNcclComm *comm = (KnNcclComm *)base;
    pthread_mutex_lock(&comm->job->mutex);
    int code = start_call(comm, request, ticket);
    pthread_mutex_unlock(&comm->job->mutex);
    kn_activity_advance();
    return code;
}

static int nccl_wait(KnComm *base, KnCommTicket ticket)
{
    KnNcclJob *job = ((KnNcclComm *)base)->job;
    pthread_mutex_lock(&job->mutex);
    int code = KN_OK;
    const KnNcclCall *call = job->calls;
    while (call && call->ticket != ticket)
        call = call->next;
    if (call) /* else the device is through with it */
        code = kn_nccl_check_cuda(cudaStreamWaitEvent(job->compute, call->done, 0), "waiting for a call");
    pthread_mutex_unlock(&job->mutex);
    kn_activity_advance();
    return code;
}

/* ---- sums ---- */

static ncclDataType_t type_of(KnDtype dtype)
{
    KN_ASSERT(dtype == KN_F32 || dtype == KN_BF16);
    return dtype == KN_F32 ? ncclFloat32 : ncclBfloat16;
}

static KnDtype dtype_of(const Request *request)
{
    return request->type == ncclFloat32 ? KN_F32 : KN_BF16;
}

static int announce_all_reduce(KnComm *announcer, const Request *r, KnCommTicket *ticket)
{
    return announcer->table->all_reduce_start(announcer, NULL, r->count, dtype_of(r), r->name, ticket);
}

static ncclResult_t queue_all_reduce(const KnNcclComm *comm, const Request *r)
{
    return ncclAllReduce(r->send, r->receive, (size_t)r->count, r->type, ncclSum, comm->nccl, comm->job->stream);
}

static int nccl_all_reduce_start(KnComm *comm, void *values, int64_t count, KnDtype dtype, const char *name,
                                 KnCommTicket *ticket)
{
    Request request = {.kind = "all_reduce",
                       .name = name,
                       .send = values,
                       .receive = values,
                       .count = count,
                       .bytes = count * (int64_t)kn_dtype_bytes(dtype),
                       .type = type_of(dtype),
                       .announce = announce_all_reduce,
                       .queue = queue_all_reduce};
    return start(comm, &request, ticket);
}

/* NCCL's own all-gather and reduce-scatter know equal parts only; others are a group of one-to-all calls. */
static int is_even(const KnComm *comm, const int64_t *offsets)
{
    for (int rank = 0; rank <= comm->ranks; rank++)
        if (offsets[rank] != rank * offsets[1])
            return 0;
    return 1;
}

static const char *at(const Request *r, const void *memory, int64_t offset)
{
    static const int64_t bytes[] = {[ncclUint8] = 1, [ncclFloat32] = 4, [ncclBfloat16] = 2};
    return (const char *)memory + offset * bytes[r->type];
}

/* Ends the group whatever happened, since an open one would take in all later calls. */
static ncclResult_t end_group(ncclResult_t result)
{
    ncclResult_t ended = ncclGroupEnd();
    return result == ncclSuccess ? ended : result;
}

static int announce_reduce_scatter(KnComm *announcer, const Request *r, KnCommTicket *ticket)
{
    return announcer->table->reduce_scatter_start(announcer, NULL, NULL, r->in, dtype_of(r), r->name, ticket);
}

static ncclResult_t queue_reduce_scatter(const KnNcclComm *comm, const Request *r)
{
    const KnComm *base = &comm->base;
    if (is_even(base, r->in))
        return ncclReduceScatter(r->send, r->receive, (size_t)r->in[1], r->type, ncclSum, comm->nccl,
                                 comm->job->stream);
    ncclResult_t result = ncclGroupStart();
    for (int rank = 0; rank < base->ranks && result == ncclSuccess; rank++) {
        size_t count = (size_t)(r->in[rank + 1] - r->in[rank]);
        if (count)
            result = ncclReduce(at(r, r->send, r->in[rank]), rank == base->rank ? r->receive : NULL, count, r->type,
                                ncclSum, rank, comm->nccl, comm->job->stream);
    }
    return end_group(result);
}

static int nccl_reduce_scatter_start(KnComm *comm, void *all, void *mine, const int64_t *offsets, KnDtype dtype,
                                     const char *name, KnCommTicket *ticket)
{
    Request request = {.kind = "reduce_scatter",
                       .name = name,
                       .send = all,
                       .receive = mine,
                       .in = offsets,
                       .bytes = offsets[comm->ranks] * (int64_t)kn_dtype_bytes(dtype),
                       .type = type_of(dtype),
                       .announce = announce_reduce_scatter,
                       .queue = queue_reduce_scatter};
    return start(comm, &request, ticket);
}

/* ---- bytes ---- */

static int announce_all_gather(KnComm *announcer, const Request *r, KnCommTicket *ticket)
{
    return announcer->table->all_gather_start(announcer, NULL, NULL, r->out, r->name, ticket);
}

static ncclResult_t queue_all_gather(const KnNcclComm *comm, const Request *r)
{
    const KnComm *base = &comm->base;
    if (is_even(base, r->out))
        return ncclAllGather(r->send, r->receive, (size_t)r->out[1], r->type, comm->nccl, comm->job->stream);
    ncclResult_t result = ncclGroupStart();
    for (int rank = 0; rank < base->ranks && result == ncclSuccess; rank++) {
        size_t count = (size_t)(r->out[rank + 1] - r->out[rank]);
        if (count)
            result = ncclBroadcast(rank == base->rank ? r->send : NULL, (char *)r->receive + r->out[rank], count,
                                   r->type, rank, comm->nccl, comm->job->stream);
    }
    return end_group(result);
}

static int nccl_all_gather_start(KnComm *comm, const void *mine, void *all, const int64_t *offsets, const char *name,
                                 KnCommTicket *ticket)
{
    Request request = {.kind = "all_gather",
                       .name = name,
                       .send = mine,
                       .receive = all,
                       .out = offsets,
                       .bytes = offsets[comm->ranks],
                       .type = ncclUint8,
                       .announce = announce_all_gather,
                       .queue = queue_all_gather};
    return start(comm, &request, ticket);
}

static ncclResult_t copy_own(const KnNcclComm *comm, void *to, const void *from, int64_t bytes)
{
    if (bytes == 0 || to == from)
        return ncclSuccess;
    cudaError_t result = cudaMemcpyAsync(to, from, (size_t)bytes, cudaMemcpyDeviceToDevice, comm->job->stream);
    return result == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

static ncclResult_t exchange(const KnNcclComm *comm, const Request *r, int rank, int64_t in, int64_t in_bytes,
                             int64_t out, int64_t out_bytes)
{
    ncclResult_t result = ncclSuccess;
    if (in_bytes)
        result = ncclSend((const char *)r->send + in, (size_t)in_bytes, r->type, rank, comm->nccl, comm->job->stream);
    if (result == ncclSuccess && out_bytes)
        result = ncclRecv((char *)r->receive + out, (size_t)out_bytes, r->type, rank, comm->nccl, comm->job->stream);
    return result;
}

static int announce_all_to_all(KnComm *announcer, const Request *r, KnCommTicket *ticket)
{
    return announcer->table->all_to_all_start(announcer, NULL, r->in, NULL, r->out, r->name, ticket);
}

static ncclResult_t queue_all_to_all(const KnNcclComm *comm, const Request *r)
{
    int own = comm->base.rank;
    ncclResult_t result = copy_own(comm, (char *)r->receive + r->out[own], (const char *)r->send + r->in[own],
                                   r->in[own + 1] - r->in[own]);
    if (result != ncclSuccess)
        return result;
    result = ncclGroupStart();
    for (int rank = 0; rank < comm->base.ranks && result == ncclSuccess; rank++)
        if (rank != own)
            result = exchange(comm, r, rank, r->in[rank], r->in[rank + 1] - r->in[rank], r->out[rank],
                              r->out[rank + 1] - r->out[rank]);
    return end_group(result);
}

static int nccl_all_to_all_start(KnComm *comm, const void *send, const int64_t *send_offsets, void *receive,
                                 const int64_t *receive_offsets, const char *name, KnCommTicket *ticket)
{
    Request request = {.kind = "all_to_all",
                       .name = name,
                       .send = send,
                       .receive = receive,
                       .in = send_offsets,
                       .out = receive_offsets,
                       .bytes = send_offsets[comm->ranks] - send_offsets[0],
                       .type = ncclUint8,
                       .announce = announce_all_to_all,
                       .queue = queue_all_to_all};
    return start(comm, &request, ticket);
}

static int announce_send_receive(KnComm *announcer, const Request *r, KnCommTicket *ticket)
{
    return announcer->table->send_receive_start(announcer, NULL, (size_t)r->count, r->to, NULL,
                                                (size_t)r->receive_count, r->from, r->name, ticket);
}

static ncclResult_t queue_send_receive(const KnNcclComm *comm, const Request *r)
{
    if (r->to == comm->base.rank)
        return copy_own(comm, r->receive, r->send, r->count);
    ncclResult_t result = ncclGroupStart();
    if (result == ncclSuccess)
        result = exchange(comm, r, r->to, 0, r->count, 0, 0);
    if (result == ncclSuccess)
        result = exchange(comm, r, r->from, 0, 0, 0, r->receive_count);
    return end_group(result);
}

static int nccl_send_receive_start(KnComm *comm, const void *send, size_t send_bytes, int to, void *receive,
                                   size_t receive_bytes, int from, const char *name, KnCommTicket *ticket)
{
    KN_ASSERT(to >= 0 && to < comm->ranks && from >= 0 && from < comm->ranks);
    KN_ASSERT((to == comm->rank) == (from == comm->rank));
    Request request = {.kind = "send_receive",
                       .name = name,
                       .send = send,
                       .receive = receive,
                       .count = (int64_t)send_bytes,
                       .receive_count = (int64_t)receive_bytes,
                       .to = to,
                       .from = from,
                       .bytes = (int64_t)send_bytes,
                       .type = ncclUint8,
                       .announce = announce_send_receive,
                       .queue = queue_send_receive};
    return start(comm, &request, ticket);
}

/* ---- control, in the host's memory ---- */

static KnComm *host_of(KnComm *comm)
{
    return ((KnNcclComm *)comm)->host;
}

static int nccl_all_gather(KnComm *comm, const void *mine, void *all, size_t bytes_each, const char *name)
{
    KnComm *host = host_of(comm);
    return host->table->all_gather(host, mine, all, bytes_each, name);
}

static int nccl_broadcast(KnComm *comm, void *bytes, size_t count, int root, const char *name)
{
    KnComm *host = host_of(comm);
    return host->table->broadcast(host, bytes, count, root, name);
}

static int nccl_barrier(KnComm *comm, const char *name)
{
    KnComm *host = host_of(comm);
    return host->table->barrier(host, name);
}

static void nccl_abort(KnComm *comm)
{
    KnComm *host = host_of(comm);
    host->table->abort(host);
}

/* ---- making and ending communicators ---- */

/* All ranks of `host` make the communicator of theirs, or none. MPI carries the id by which they find each other. */
static int connect_ranks(KnNcclComm *comm)
{
    KnComm *host = comm->host;
    ncclUniqueId id = {{0}};
    char what[KN_NCCL_NAME_BYTES + 32];
    snprintf(what, sizeof what, "connecting the ranks of %s", comm->name);
    int code = host->rank == 0 ? kn_nccl_check(ncclGetUniqueId(&id), NULL, what) : KN_OK;
    KN_TRY(kn_comm_error_agree(host, code));
    KN_TRY(host->table->broadcast(host, &id, sizeof id, 0, what));
    code = kn_nccl_check(ncclCommInitRank(&comm->nccl, host->ranks, id, host->rank), NULL, what);
    return kn_comm_error_agree(host, code);
}

static void comm_free(KnNcclComm *comm)
{
    if (comm->announcer)
        comm->announcer->table->destroy(comm->announcer);
    free(comm);
}

static int comm_create(KnNcclJob *job, KnComm *host, const char *name, KnComm **comm)
{
    KnNcclComm *made = kn_alloc(sizeof *made);
    made->base = *host;
    made->base.table = &nccl_table;
    made->job = job;
    made->host = host;
    made->registers = kn_nccl_can_register(host);
    snprintf(made->name, sizeof made->name, "%s", name);
    int code = host->ranks > 1 ? kn_comm_announcer(host, name, &made->announcer) : KN_OK;
    if (code == KN_OK)
        code = connect_ranks(made);
    if (code < 0) {
        comm_free(made);
        return code;
    }
    pthread_mutex_lock(&job->mutex);
    KN_ASSERT(!job->memory);
    made->next = job->comms;
    job->comms = made;
    pthread_mutex_unlock(&job->mutex);
    *comm = &made->base;
    return KN_OK;
}

static int nccl_split(KnComm *comm, int color, const char *name, KnComm **group)
{
    KnComm *host = host_of(comm), *host_group;
    KN_TRY(host->table->split(host, color, name, &host_group));
    int code = comm_create(((KnNcclComm *)comm)->job, host_group, name, group);
    if (code < 0)
        host_group->table->destroy(host_group);
    return code;
}

static void calls_free(KnNcclCall *calls)
{
    while (calls) {
        KnNcclCall *call = calls;
        calls = call->next;
        cudaEventDestroy(call->ready);
        cudaEventDestroy(call->done);
        free(call);
    }
}

static void job_free(KnNcclJob *job)
{
    pthread_mutex_destroy(&job->mutex);
    calls_free(job->calls);
    calls_free(job->spare);
    cudaStreamDestroy(job->stream);
    free(job);
}

static void stop_watching(KnNcclJob *job)
{
    pthread_mutex_lock(&job->mutex);
    job->closing = 1;
    pthread_mutex_unlock(&job->mutex);
    pthread_join(job->thread, NULL);
}

static void forget_comm(KnNcclComm *comm)
{
    KnNcclJob *job = comm->job;
    pthread_mutex_lock(&job->mutex);
    kn_nccl_retire(job);
    KnNcclComm **place = &job->comms;
    while (*place != comm)
        place = &(*place)->next;
    *place = comm->next;
    pthread_mutex_unlock(&job->mutex);
}

static void *end_comm(void *argument)
{
    KnNcclComm *comm = argument;
    cudaSetDevice(comm->job->device);
    cudaStreamSynchronize(comm->job->stream);
    forget_comm(comm);
    ncclCommDestroy(comm->nccl);
    return NULL;
}

/* ncclCommDestroy waits for the other ranks of the host. Where this rank has failed by itself they do not come, and its
 * sentence must not wait for them. */
static int end_in_time(KnNcclComm *comm)
{
    pthread_t thread;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += END_SECONDS;
    return pthread_create(&thread, NULL, end_comm, comm) == 0 &&
           pthread_clockjoin_np(thread, NULL, CLOCK_MONOTONIC, &until) == 0;
}

/* What has not come to an end is left as it is, with all that it may still use: the process ends soon. */
static void nccl_destroy(KnComm *base)
{
    KnNcclComm *comm = (KnNcclComm *)base;
    KnNcclJob *job = comm->job;
    KnComm *host = comm->host;
    int is_first = host == job->host;
    job->is_stuck = job->is_stuck || !end_in_time(comm);
    if (is_first)
        stop_watching(job);
    if (job->is_stuck)
        return;
    comm_free(comm);
    if (is_first)
        job_free(job);
    else
        host->table->destroy(host);
}

static const KnCommTable nccl_table = {
    .kind = "nccl",
    .split = nccl_split,
    .all_reduce_start = nccl_all_reduce_start,
    .reduce_scatter_start = nccl_reduce_scatter_start,
    .all_gather_start = nccl_all_gather_start,
    .all_to_all_start = nccl_all_to_all_start,
    .send_receive_start = nccl_send_receive_start,
    .wait = nccl_wait,
    .all_gather = nccl_all_gather,
    .broadcast = nccl_broadcast,
    .barrier = nccl_barrier,
    .allocate = kn_nccl_allocate,
    .release = kn_nccl_release,
    .abort = nccl_abort,
    .destroy = nccl_destroy,
};

static int job_create(KnComm *host, cudaStream_t compute, KnNcclJob **job)
{
    KnNcclJob *made = kn_alloc(sizeof *made);
    int highest = 0, lowest;
    made->host = host;
    made->compute = compute;
    made->calls_end = &made->calls;
    int code = kn_nccl_check_cuda(cudaGetDevice(&made->device), "finding the GPU");
    if (code == KN_OK)
        code = kn_nccl_check_cuda(cudaDeviceGetStreamPriorityRange(&lowest, &highest), "finding the GPU");
    if (code == KN_OK)
        code = kn_nccl_check_cuda(cudaStreamCreateWithPriority(&made->stream, cudaStreamNonBlocking, highest),
                                  "making a stream");
    if (code < 0) {
        free(made);
        return code;
    }
    pthread_mutex_init(&made->mutex, NULL);
    *job = made;
    return KN_OK;
}

/* Switches that add up (NVLink SHARP) do so in another order each time (NVIDIA/nccl issue 1497), and the same run must
 * give the same bits. */
static void choose_algorithms(void)
{
    setenv("NCCL_NVLS_ENABLE", "0", 0);
}

int kn_nccl_open(KnComm *host, void *compute_stream, KnComm **comm)
{
    KnNcclJob *job = NULL;
    choose_algorithms();
    int code = job_create(host, compute_stream, &job);
    code = kn_comm_error_agree(host, code);
    if (code == KN_OK)
        code = comm_create(job, host, "the job", comm);
    if (code == KN_OK && pthread_create(&job->thread, NULL, kn_nccl_watch, job) != 0)
        code = kn_fail(KN_EPEER, "cannot start the thread that watches NCCL");
    if (code < 0 && job)
        job_free(job);
    return code;
}
