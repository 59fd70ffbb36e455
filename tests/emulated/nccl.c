/* NCCL without a GPU: what the communicator uses of it, among processes of one host, in the host's memory.
 *
 * Ranks share a segment of memory with a mailbox for each ordered pair. Every collective is a set of messages through
 * the mailboxes, followed by sums in rank order, each rounded to its type as at NCCL's hops; queued on the stream, and
 * advanced as far as it can go whenever the device's thread comes by. A message of another call or size is never taken
 * out of its box, so that ranks which part ways hang, as with NCCL. Where some ranks bring registered memory to a call
 * and others do not, which the manual leaves undefined, the call fails.
 *
 * KINORA_EMULATED_NCCL=refuse:N, fail:N, hang:N: this process's Nth call gives an error, meets one while it runs, or
 * never completes. KINORA_EMULATED_REGISTERED=1: memory that is not registered is refused.
 * KINORA_EMULATED_NCCL_VERSION=N: what ncclGetVersion says. */
#include "core/cuda/emulator/runtime.h"
#include "nccl_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <nccl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK_BYTES = 65536, WORDS_BYTES = 200 };

typedef enum Kind { ALL_REDUCE, REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST, POINT } Kind;

typedef struct Signature {
    int32_t kind, type, root, is_registered; /* no gaps: it is compared as bytes */
    int64_t count;
} Signature;

typedef struct Mailbox {
    _Atomic int full;
    Signature signature;
    int64_t bytes;
    unsigned char chunk[CHUNK_BYTES];
} Mailbox;

typedef struct Segment {
    _Atomic int attached, leaving;
    Mailbox mailboxes[]; /* [from][to] */
} Segment;

struct ncclComm {
    int ranks, rank;
    Segment *segment;
    size_t segment_bytes;
    _Atomic int error;
    char words[WORDS_BYTES];
};

/* ---- one message ---- */

typedef struct Transfer {
    ncclComm_t comm;
    Signature signature;
    int peer, sends;
    unsigned char *bytes;
    int64_t count, done;
} Transfer;

static void send_chunk(Transfer *t, Mailbox *box)
{
    if (atomic_load(&box->full))
        return;
    int64_t left = t->count - t->done;
    box->bytes = left < CHUNK_BYTES ? left : CHUNK_BYTES;
    box->signature = t->signature;
    memcpy(box->chunk, t->bytes + t->done, (size_t)box->bytes);
    t->done += box->bytes;
    atomic_store(&box->full, 1);
}

static ncclResult_t fail(ncclComm_t comm, ncclResult_t error, const char *words)
{
    snprintf(comm->words, sizeof comm->words, "%s", words);
    return error;
}

static void check_registrations(Transfer *t, Signature sent)
{
    if (sent.is_registered == t->signature.is_registered)
        return;
    sent.is_registered = t->signature.is_registered;
    if (memcmp(&sent, &t->signature, sizeof sent) == 0)
        t->comm->error = (int)fail(t->comm, ncclInvalidUsage, "registered memory meets memory that is not");
}

static void receive_chunk(Transfer *t, Mailbox *box)
{
    if (!atomic_load(&box->full))
        return;
    check_registrations(t, box->signature);
    if (memcmp(&box->signature, &t->signature, sizeof t->signature) != 0)
        return;
    memcpy(t->bytes + t->done, box->chunk, (size_t)box->bytes);
    t->done += box->bytes;
    atomic_store(&box->full, 0);
}

static void advance(Transfer *t)
{
    Mailbox *boxes = t->comm->segment->mailboxes;
    int own = t->comm->rank, ranks = t->comm->ranks;
    int64_t before;
    do {
        before = t->done;
        if (t->sends)
            send_chunk(t, &boxes[own * ranks + t->peer]);
        else
            receive_chunk(t, &boxes[t->peer * ranks + own]);
    } while (t->done > before && t->done < t->count);
}

/* ---- one call: messages, then perhaps a sum ---- */

typedef struct Sum {
    void *parts, *result; /* [ranks][count], [count] */
    int64_t count;
    ncclDataType_t type;
    int ranks;
} Sum;

typedef struct Work {
    cudaStream_t stream;
    Transfer *transfers;
    int transfer_count;
    Sum *sums;
    int sum_count;
    int hangs;
    ncclComm_t fails;
} Work;

static size_t bytes_of(ncclDataType_t type)
{
    return type == ncclFloat32 ? 4 : type == ncclBfloat16 ? 2 : 1;
}

static float widen(const uint16_t *half)
{
    uint32_t bits = (uint32_t)*half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint16_t narrow(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static void run_sum(const Sum *sum)
{
    for (int rank = 1; rank < sum->ranks; rank++)
        for (int64_t i = 0; i < sum->count; i++) {
            int64_t other = rank * sum->count + i;
            if (sum->type == ncclFloat32) {
                float *values = sum->parts;
                values[i] += values[other];
            } else {
                uint16_t *values = sum->parts;
                values[i] = narrow(widen(&values[i]) + widen(&values[other]));
            }
        }
    memcpy(sum->result, sum->parts, (size_t)sum->count * bytes_of(sum->type));
}

/* Messages of one pair go one after the other. */
static int stands_behind(const Work *work, int index)
{
    const Transfer *t = &work->transfers[index];
    for (int i = 0; i < index; i++) {
        const Transfer *earlier = &work->transfers[i];
        if (earlier->done < earlier->count && earlier->comm == t->comm && earlier->peer == t->peer &&
            earlier->sends == t->sends)
            return 1;
    }
    return 0;
}

static void work_free(void *argument)
{
    Work *work = argument;
    for (int i = 0; i < work->sum_count; i++)
        free(work->sums[i].parts);
    free(work->transfers);
    free(work->sums);
    free(work);
}

static int run_work(void *argument)
{
    Work *work = argument;
    int complete = !work->hangs;
    if (work->fails)
        work->fails->error = (int)fail(work->fails, ncclRemoteError, "failed as planned");
    for (int i = 0; i < work->transfer_count; i++) {
        Transfer *t = &work->transfers[i];
        if (t->done < t->count && !work->hangs && !stands_behind(work, i))
            advance(t);
        complete &= t->done == t->count;
    }
    if (!complete)
        return 0;
    for (int i = 0; i < work->sum_count; i++)
        run_sum(&work->sums[i]);
    for (int i = 0; i < work->transfer_count; i++)
        work->transfers[i].done = 0;
    return 1;
}

/* ---- groups ---- */

static _Thread_local int depth;
static _Thread_local Work *open_group;
static int calls;

static Work *begin(cudaStream_t stream)
{
    if (!open_group)
        open_group = calloc(1, sizeof *open_group);
    open_group->stream = stream;
    return open_group;
}

static ncclResult_t end(void)
{
    Work *work = open_group;
    open_group = NULL;
    if (work)
        emulated_enqueue(work->stream, run_work, work, work_free);
    return ncclSuccess;
}

/* `memory` is the caller's, which t.bytes are or come into. */
static ncclResult_t transfer(Work *work, Transfer t, const void *memory)
{
    const char *strict = getenv("KINORA_EMULATED_REGISTERED");
    t.signature.is_registered = emulated_is_registered(t.comm, memory, (size_t)t.count);
    if (strict && strcmp(strict, "1") == 0 && !t.signature.is_registered)
        return fail(t.comm, ncclInvalidUsage, "its memory is not registered");
    if (t.count == 0)
        return ncclSuccess;
    work->transfers = realloc(work->transfers, ((size_t)work->transfer_count + 1) * sizeof t);
    work->transfers[work->transfer_count++] = t;
    return ncclSuccess;
}

/* What KINORA_EMULATED_NCCL asks for. */
static ncclResult_t planned_fault(ncclComm_t comm, Work *work)
{
    const char *plan = getenv("KINORA_EMULATED_NCCL"), *colon = plan ? strchr(plan, ':') : NULL;
    if (!colon || ++calls != atoi(colon + 1))
        return ncclSuccess;
    if (plan[0] == 'r')
        return fail(comm, ncclSystemError, "refused as planned");
    work->hangs = 1;
    if (plan[0] == 'f')
        work->fails = comm;
    return ncclSuccess;
}

/* One call's messages: `send(rank)` to and `receive(rank)` from each other rank, NULL for none. */
typedef struct Call {
    ncclComm_t comm;
    cudaStream_t stream;
    Signature signature;
    int64_t bytes; /* of each message */
    const unsigned char *send;
    int64_t send_stride; /* from rank to rank */
    unsigned char *receive;
    int64_t receive_stride;
    int only; /* the one rank that is sent to or received from; -1: all */
} Call;

static ncclResult_t queue_messages(const Call *call, const Sum *sum)
{
    ncclComm_t comm = call->comm;
    Work *work = begin(call->stream);
    ncclResult_t fault = planned_fault(comm, work);
    for (int rank = 0; rank < comm->ranks && fault == ncclSuccess; rank++) {
        if (rank == comm->rank || (call->only >= 0 && rank != call->only))
            continue;
        Transfer t = {.comm = comm, .signature = call->signature, .peer = rank, .count = call->bytes};
        if (call->send) {
            t.sends = 1;
            t.bytes = (unsigned char *)call->send + rank * call->send_stride;
            fault = transfer(work, t, t.bytes);
        }
        if (call->receive && fault == ncclSuccess) {
            t.sends = 0;
            t.bytes = call->receive + rank * call->receive_stride;
            fault = transfer(work, t, sum ? sum->result : t.bytes);
        }
    }
    if (sum && sum->count) {
        work->sums = realloc(work->sums, ((size_t)work->sum_count + 1) * sizeof *sum);
        work->sums[work->sum_count++] = *sum;
    }
    if (depth == 0)
        end();
    return fault;
}

ncclResult_t ncclGroupStart(void)
{
    depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void)
{
    return --depth ? ncclSuccess : end();
}

/* ---- sums ---- */

typedef struct OwnPart {
    void *to;
    const void *from;
    size_t bytes;
} OwnPart;

static int run_own_part(void *argument)
{
    const OwnPart *own = argument;
    if (own->to != own->from)
        memcpy(own->to, own->from, own->bytes);
    return 1;
}

/* The rank's own part is put in its place when the call's turn comes, in front of the messages. */
static void queue_own_part(cudaStream_t stream, void *to, const void *from, size_t bytes)
{
    OwnPart *own = malloc(sizeof *own);
    *own = (OwnPart){to, from, bytes};
    emulated_enqueue(stream, run_own_part, own, free);
}

/* `stride`: from the part that is sent to one rank to that of the next, in bytes. */
static ncclResult_t queue_sum(Call call, const void *own, void *result, size_t count, ncclDataType_t type)
{
    size_t bytes = count * bytes_of(type);
    Sum sum = {.result = result, .count = (int64_t)count, .type = type, .ranks = call.comm->ranks};
    call.bytes = (int64_t)bytes;
    if (!result)
        return queue_messages(&call, NULL);
    sum.parts = malloc((size_t)sum.ranks * bytes + 1);
    call.receive = sum.parts;
    call.receive_stride = (int64_t)bytes;
    queue_own_part(call.stream, call.receive + (size_t)call.comm->rank * bytes, own, bytes);
    return queue_messages(&call, &sum);
}

static int is_sum(ncclDataType_t type, ncclRedOp_t op)
{
    return op == ncclSum && (type == ncclFloat32 || type == ncclBfloat16);
}

ncclResult_t ncclAllReduce(const void *send, void *receive, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream)
{
    if (!is_sum(type, op))
        return ncclInvalidArgument;
    Call call = {comm, stream, {ALL_REDUCE, type, 0, 0, (int64_t)count}, 0, send, 0, NULL, 0, -1};
    return queue_sum(call, send, receive, count, type);
}

ncclResult_t ncclReduce(const void *send, void *receive, size_t count, ncclDataType_t type, ncclRedOp_t op, int root,
                        ncclComm_t comm, cudaStream_t stream)
{
    if (!is_sum(type, op) || root < 0 || root >= comm->ranks || (root == comm->rank && !receive))
        return ncclInvalidArgument;
    Call call = {comm, stream, {REDUCE, type, root, 0, (int64_t)count}, 0, send, 0, NULL, 0, root};
    if (root == comm->rank) {
        call.send = NULL;
        call.only = -1;
    }
    return queue_sum(call, send, root == comm->rank ? receive : NULL, count, type);
}

ncclResult_t ncclReduceScatter(const void *send, void *receive, size_t count, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t comm, cudaStream_t stream)
{
    size_t bytes = count * bytes_of(type);
    if (!is_sum(type, op))
        return ncclInvalidArgument;
    Call call = {comm, stream, {REDUCE_SCATTER, type, 0, 0, (int64_t)count}, 0, send, (int64_t)bytes, NULL, 0, -1};
    return queue_sum(call, (const char *)send + (size_t)comm->rank * bytes, receive, count, type);
}

/* ---- bytes ---- */

ncclResult_t ncclAllGather(const void *send, void *receive, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream)
{
    size_t bytes = count * bytes_of(type);
    Call call = {.comm = comm,
                 .stream = stream,
                 .signature = {ALL_GATHER, type, 0, 0, (int64_t)count},
                 .bytes = (int64_t)bytes,
                 .send = send,
                 .receive = receive,
                 .receive_stride = (int64_t)bytes,
                 .only = -1};
    queue_own_part(stream, (char *)receive + (size_t)comm->rank * bytes, send, bytes);
    return queue_messages(&call, NULL);
}

ncclResult_t ncclBroadcast(const void *send, void *receive, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream)
{
    size_t bytes = count * bytes_of(type);
    int is_root = root == comm->rank;
    if (root < 0 || root >= comm->ranks || (is_root && !send) || !receive)
        return ncclInvalidArgument;
    Call call = {.comm = comm,
                 .stream = stream,
                 .signature = {BROADCAST, type, root, 0, (int64_t)count},
                 .bytes = (int64_t)bytes,
                 .send = is_root ? send : NULL,
                 .receive = is_root ? NULL : receive,
                 .only = is_root ? -1 : root};
    if (is_root)
        queue_own_part(stream, receive, send, bytes);
    return queue_messages(&call, NULL);
}

static ncclResult_t point(const void *send, void *receive, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                          cudaStream_t stream)
{
    if (peer < 0 || peer >= comm->ranks || peer == comm->rank)
        return ncclInvalidArgument;
    Call call = {.comm = comm,
                 .stream = stream,
                 .signature = {POINT, type, 0, 0, (int64_t)count},
                 .bytes = (int64_t)(count * bytes_of(type)),
                 .send = send,
                 .receive = receive,
                 .only = peer};
    return queue_messages(&call, NULL);
}

ncclResult_t ncclSend(const void *send, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    return point(send, NULL, count, type, peer, comm, stream);
}

ncclResult_t ncclRecv(void *receive, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream)
{
    return point(NULL, receive, count, type, peer, comm, stream);
}

/* ---- communicators ---- */

ncclResult_t ncclGetVersion(int *version)
{
    const char *said = getenv("KINORA_EMULATED_NCCL_VERSION");
    *version = said ? atoi(said) : NCCL_VERSION_CODE;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    static int made;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "/kinora-emulated-nccl-%d-%d-%lld", (int)getpid(), ++made,
             (long long)now.tv_sec * 1000000000 + now.tv_nsec);
    return ncclSuccess;
}

static void meet(_Atomic int *counter, int ranks)
{
    static const struct timespec nap = {.tv_nsec = 100000};
    atomic_fetch_add(counter, 1);
    while (atomic_load(counter) < ranks)
        nanosleep(&nap, NULL);
}

ncclResult_t ncclCommInitRank(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank)
{
    ncclComm_t made = calloc(1, sizeof *made);
    made->ranks = ranks;
    made->rank = rank;
    made->segment_bytes = sizeof(Segment) + (size_t)ranks * (size_t)ranks * sizeof(Mailbox);
    int file = shm_open(id.internal, O_RDWR | O_CREAT, 0600);
    if (file < 0 || ftruncate(file, (off_t)made->segment_bytes) < 0)
        return ncclSystemError;
    made->segment = mmap(NULL, made->segment_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (made->segment == MAP_FAILED)
        return ncclSystemError;
    meet(&made->segment->attached, ranks);
    shm_unlink(id.internal);
    *comm = made;
    return ncclSuccess;
}

/* "An intra-node collective call, which all ranks on the same node should call to avoid a hang" (NCCL's manual). */
ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    meet(&comm->segment->leaving, comm->ranks);
    if (emulated_registrations(comm))
        emulated_refuse(cudaErrorInvalidValue, "ncclCommDestroy while memory is registered");
    munmap(comm->segment, comm->segment_bytes);
    free(comm);
    return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error)
{
    *error = (ncclResult_t)comm->error;
    return ncclSuccess;
}

const char *ncclGetLastError(ncclComm_t comm)
{
    return comm ? comm->words : "";
}

const char *ncclGetErrorString(ncclResult_t error)
{
    static const char *const words[] = {"no error",       "unhandled cuda error", "unhandled system error",
                                        "internal error", "invalid argument",     "invalid usage",
                                        "a remote error"};
    return (unsigned)error < sizeof words / sizeof *words ? words[error] : "an error that is not emulated";
}
