/* What ranks tell each other before a call moves anything: sequence number, kind, sizes, name.
 *
 * In a collective every rank tells every other; in a send and receive only the sender its receiver. Ranks that disagree
 * see it before a byte moves, and all that see it come to one sentence. Headers of queued calls travel ahead of their
 * turn. Between two ranks they keep the order of calls, so that one tag serves them all. */
#include "core/base/error.h"
#include "core/base/memory.h"
#include "dist/comm_mpi.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    const KnMpiMove *move;
    int sizes_differ; /* each rank has its own; they are checked pair by pair */
} kinds[] = {
    [KN_MPI_BARRIER] = {"barrier", NULL, 0},
    [KN_MPI_SPLIT] = {"split", &kn_mpi_gather_move, 0},
    [KN_MPI_ALL_REDUCE] = {"all_reduce", &kn_mpi_sum_move, 0},
    [KN_MPI_REDUCE_SCATTER] = {"reduce_scatter", &kn_mpi_sum_move, 0},
    [KN_MPI_ALL_GATHER] = {"all_gather", &kn_mpi_gather_move, 0},
    [KN_MPI_ALL_TO_ALL] = {"all_to_all", &kn_mpi_all_to_all_move, 1},
    [KN_MPI_SEND_RECEIVE] = {"send_receive", &kn_mpi_pair_move, 1},
    [KN_MPI_BROADCAST] = {"broadcast", &kn_mpi_broadcast_move, 0},
};

const KnMpiMove *kn_mpi_move(const KnMpiCall *call)
{
    return call->comm->announces ? NULL : kinds[call->header.kind].move;
}

uint64_t kn_mpi_digest(const int64_t *offsets, int count)
{
    uint64_t digest = 0xcbf29ce484222325u;
    for (int i = 0; i < count; i++)
        digest = (digest ^ (uint64_t)offsets[i]) * 0x9E3779B97F4A7C15u;
    return digest;
}

void kn_mpi_describe_call(const KnMpiComm *comm, const KnMpiHeader *header, char *text, size_t size)
{
    int in_group = comm != comm->engine->world;
    snprintf(text, size, "call %lld%s%s, %s '%s' of %lld bytes", (long long)header->number, in_group ? " of " : "",
             in_group ? comm->name : "", kinds[header->kind].name, header->name, (long long)header->bytes);
}

/* ---- exchanging ---- */

static int64_t bytes_for(const KnMpiCall *call, int rank)
{
    if (call->header.kind == KN_MPI_ALL_TO_ALL)
        return call->in[rank + 1] - call->in[rank];
    return call->header.kind == KN_MPI_SEND_RECEIVE ? call->header.bytes : 0;
}

static int tell(KnMpiCall *call, int request, int rank)
{
    call->ours[rank] = call->header;
    call->ours[rank].pair_bytes = bytes_for(call, rank);
    return kn_mpi_send(call, request, &call->ours[rank], sizeof *call->ours, rank, KN_MPI_TAG_HEADER);
}

static int hear(KnMpiCall *call, int request, int rank)
{
    return kn_mpi_receive(call, request, &call->theirs[rank], sizeof *call->theirs, rank, KN_MPI_TAG_HEADER);
}

int kn_mpi_header_start(KnMpiCall *call)
{
    const KnComm *base = &call->comm->base;
    int own = base->rank, count = 0;
    call->ours = kn_alloc((size_t)base->ranks * sizeof *call->ours);
    call->theirs = kn_alloc((size_t)base->ranks * sizeof *call->theirs);
    call->theirs[own] = call->header;
    kn_mpi_requests(call, 2 * (base->ranks - 1));
    if (call->header.kind == KN_MPI_SEND_RECEIVE) {
        if (call->from != own)
            KN_TRY(hear(call, count++, call->from));
        return call->to == own ? KN_OK : tell(call, count, call->to);
    }
    for (int rank = 0; rank < base->ranks; rank++)
        if (rank != own) {
            KN_TRY(hear(call, count++, rank));
            KN_TRY(tell(call, count++, rank));
        }
    return KN_OK;
}

/* ---- comparing ---- */

static int same_call(const KnMpiHeader *a, const KnMpiHeader *b)
{
    if (a->kind != b->kind || a->detail != b->detail || strcmp(a->name, b->name) != 0)
        return 0;
    if (a->kind != KN_MPI_SEND_RECEIVE && a->number != b->number)
        return 0;
    return kinds[a->kind].sizes_differ || (a->bytes == b->bytes && a->parts == b->parts);
}

static int parted(const KnMpiCall *call, int first, int other)
{
    const KnMpiComm *comm = call->comm;
    const KnMpiHeader *one = &call->theirs[first], *two = &call->theirs[other];
    int a = comm->members[first], b = comm->members[other], in_group = comm != comm->engine->world;
    return kn_fail(KN_EPEER,
                   "rank %d and rank %d have parted ways%s%s: call %lld of rank %d is %s '%s' of %lld bytes, call %lld "
                   "of rank %d is %s '%s' of %lld bytes%s",
                   a, b, in_group ? " in " : "", in_group ? comm->name : "", (long long)one->number, a,
                   kinds[one->kind].name, one->name, (long long)one->bytes, (long long)two->number, b,
                   kinds[two->kind].name, two->name, (long long)two->bytes,
                   one->parts != two->parts && one->bytes == two->bytes ? ", cut otherwise" : "");
}

static int wrong_size(const KnMpiCall *call, int from, int64_t expected)
{
    const KnMpiComm *comm = call->comm;
    char text[160];
    kn_mpi_describe_call(comm, &call->header, text, sizeof text);
    return kn_fail(KN_EPEER, "rank %d sends %lld bytes to rank %d, which expects %lld from it in %s",
                   comm->members[from], (long long)call->theirs[from].pair_bytes, comm->members[comm->base.rank],
                   (long long)expected, text);
}

static int compare_with_sender(const KnMpiCall *call)
{
    int own = call->comm->base.rank, from = call->from;
    if (from == own)
        return KN_OK;
    if (!same_call(&call->theirs[from], &call->header))
        return parted(call, from < own ? from : own, from < own ? own : from);
    return call->theirs[from].pair_bytes == call->out[1] ? KN_OK : wrong_size(call, from, call->out[1]);
}

/* Every rank compares all headers with the first rank's, so that all of them come to the same sentence. */
int kn_mpi_header_compare(const KnMpiCall *call)
{
    const KnComm *base = &call->comm->base;
    if (call->header.kind == KN_MPI_SEND_RECEIVE)
        return compare_with_sender(call);
    for (int rank = 1; rank < base->ranks; rank++)
        if (!same_call(&call->theirs[rank], &call->theirs[0]))
            return parted(call, 0, rank);
    for (int rank = 0; rank < base->ranks && call->header.kind == KN_MPI_ALL_TO_ALL; rank++) {
        int64_t expected = call->out[rank + 1] - call->out[rank];
        if (rank != base->rank && call->theirs[rank].pair_bytes != expected)
            return wrong_size(call, rank, expected);
    }
    return KN_OK;
}
