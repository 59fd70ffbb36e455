/* Moving bytes that are not added: all-gather, all-to-all, send and receive, broadcast.
 *
 * All but large broadcasts are streams between pairs of ranks, each a row of chunks one after the other: for gathers
 * that is the least that any pattern sends, and fit for some dozens of ranks. A large broadcast goes down a chain,
 * root, root + 1, ..., a few chunks under way on every link, so that it costs no more with many ranks than with two. */
#include "core/base/error.h"
#include "core/base/memory.h"
#include "dist/comm_mpi.h"

#include <stdlib.h>
#include <string.h>

enum {
    CHUNK_BYTES = 16 << 20, /* no count comes near the 2^31 of an MPI int */
    LINK_BYTES = 1 << 20,   /* chunks of a chain: small, since each waits for the one before it */
    LINK_CHUNKS = 4,        /* of them under way on a link */
    CHAIN_FROM_BYTES = 256 << 10
};

/* ---- streams ---- */

typedef struct Stream {
    int peer, sends;
    unsigned char *at;
    int64_t left;
} Stream;

/* Only messages of the streams' call have this tag, and those of a pair keep their order. */
static int stream_next(KnMpiCall *call, int index)
{
    Stream *stream = (Stream *)call->state + index;
    int64_t bytes = stream->left < CHUNK_BYTES ? stream->left : CHUNK_BYTES;
    unsigned char *at = stream->at;
    if (bytes == 0)
        return KN_OK;
    stream->at += bytes;
    stream->left -= bytes;
    return stream->sends ? kn_mpi_send(call, index, at, bytes, stream->peer, KN_MPI_TAG_BYTES)
                         : kn_mpi_receive(call, index, at, bytes, stream->peer, KN_MPI_TAG_BYTES);
}

static void copy_own(void *to, const void *from, int64_t bytes)
{
    if (bytes && to != from)
        memmove(to, from, (size_t)bytes);
}

/* What goes to a rank and what comes from it. This rank's own share is copied. */
typedef struct Exchange {
    const void *give;
    void *get;
    int64_t give_bytes, get_bytes;
} Exchange;

typedef Exchange ExchangeFunction(const KnMpiCall *call, int rank);

static int streams_start(KnMpiCall *call, ExchangeFunction *exchange_with)
{
    const KnComm *base = &call->comm->base;
    Stream *streams = call->state = kn_alloc((size_t)base->ranks * 2 * sizeof *streams);
    kn_mpi_requests(call, 2 * base->ranks);
    for (int rank = 0; rank < base->ranks; rank++) {
        Exchange exchange = exchange_with(call, rank);
        if (rank == base->rank) {
            KN_ASSERT(exchange.give_bytes == exchange.get_bytes);
            copy_own(exchange.get, exchange.give, exchange.get_bytes);
            continue;
        }
        streams[2 * rank] = (Stream){rank, 0, exchange.get, exchange.get_bytes};
        streams[2 * rank + 1] = (Stream){rank, 1, (unsigned char *)(uintptr_t)exchange.give, exchange.give_bytes};
        KN_TRY(stream_next(call, 2 * rank));
        KN_TRY(stream_next(call, 2 * rank + 1));
    }
    return KN_OK;
}

static Exchange gather_with(const KnMpiCall *call, int rank)
{
    int own = call->comm->base.rank;
    return (Exchange){call->input, (unsigned char *)call->output + call->out[rank], call->out[own + 1] - call->out[own],
                      call->out[rank + 1] - call->out[rank]};
}

static Exchange all_to_all_with(const KnMpiCall *call, int rank)
{
    return (Exchange){(const unsigned char *)call->input + call->in[rank],
                      (unsigned char *)call->output + call->out[rank], call->in[rank + 1] - call->in[rank],
                      call->out[rank + 1] - call->out[rank]};
}

static Exchange pair_with(const KnMpiCall *call, int rank)
{
    return (Exchange){call->input, call->output, rank == call->to ? call->in[1] : 0,
                      rank == call->from ? call->out[1] : 0};
}

static Exchange star_with(const KnMpiCall *call, int rank)
{
    int root = call->header.detail, own = call->comm->base.rank;
    return (Exchange){call->output, call->output, own == root && rank != root ? call->header.bytes : 0,
                      rank == root && own != root ? call->header.bytes : 0};
}

/* Small parts have come with the headers. */
static int gather_start(KnMpiCall *call)
{
    for (int rank = 0; rank < call->comm->base.ranks; rank++)
        if (call->out[rank + 1] - call->out[rank] > KN_MPI_SMALL_BYTES)
            return streams_start(call, gather_with);
    for (int rank = 0; rank < call->comm->base.ranks; rank++)
        copy_own((unsigned char *)call->output + call->out[rank], call->theirs[rank].small,
                 call->out[rank + 1] - call->out[rank]);
    return KN_OK;
}

static int all_to_all_start(KnMpiCall *call)
{
    return streams_start(call, all_to_all_with);
}

static int pair_start(KnMpiCall *call)
{
    return streams_start(call, pair_with);
}

const KnMpiMove kn_mpi_gather_move = {gather_start, stream_next};
const KnMpiMove kn_mpi_all_to_all_move = {all_to_all_start, stream_next};
const KnMpiMove kn_mpi_pair_move = {pair_start, stream_next};

/* ---- the chain of a large broadcast ---- */

typedef struct Chain {
    int before, after; /* members; -1: none */
    int64_t chunks, asked, received, sent;
    int arrived[LINK_CHUNKS]; /* chunks overtake each other in the list of completed messages */
} Chain;

static int64_t chunk_bytes(const KnMpiCall *call, int64_t chunk)
{
    int64_t left = call->header.bytes - chunk * LINK_BYTES;
    return left < LINK_BYTES ? left : LINK_BYTES;
}

static unsigned char *chunk_at(const KnMpiCall *call, int64_t chunk)
{
    return (unsigned char *)call->output + chunk * LINK_BYTES;
}

/* Asks for further chunks and passes on those that are here, in order. */
static int chain_go_on(KnMpiCall *call)
{
    Chain *chain = call->state;
    for (; chain->before >= 0 && chain->asked < chain->chunks && chain->asked < chain->received + LINK_CHUNKS;
         chain->asked++)
        KN_TRY(kn_mpi_receive(call, (int)(chain->asked % LINK_CHUNKS), chunk_at(call, chain->asked),
                              chunk_bytes(call, chain->asked), chain->before, KN_MPI_TAG_BYTES));
    while (chain->after >= 0 && chain->sent < chain->received) {
        int request = LINK_CHUNKS + (int)(chain->sent % LINK_CHUNKS);
        if (call->requests[request] != MPI_REQUEST_NULL)
            break;
        KN_TRY(kn_mpi_send(call, request, chunk_at(call, chain->sent), chunk_bytes(call, chain->sent), chain->after,
                           KN_MPI_TAG_BYTES));
        chain->sent++;
    }
    return KN_OK;
}

static int chain_completed(KnMpiCall *call, int request)
{
    Chain *chain = call->state;
    if (request < LINK_CHUNKS)
        chain->arrived[request] = 1;
    for (int slot; chain->arrived[slot = (int)(chain->received % LINK_CHUNKS)]; chain->received++)
        chain->arrived[slot] = 0;
    return chain_go_on(call);
}

static int is_chained(const KnMpiCall *call)
{
    return call->comm->base.ranks > 2 && call->header.bytes >= CHAIN_FROM_BYTES;
}

static int broadcast_start(KnMpiCall *call)
{
    const KnComm *base = &call->comm->base;
    int root = call->header.detail, place = (base->rank - root + base->ranks) % base->ranks;
    if (!is_chained(call))
        return streams_start(call, star_with);
    Chain *chain = call->state = kn_alloc(sizeof *chain);
    chain->chunks = (call->header.bytes + LINK_BYTES - 1) / LINK_BYTES;
    chain->before = place == 0 ? -1 : (base->rank - 1 + base->ranks) % base->ranks;
    chain->after = place == base->ranks - 1 ? -1 : (base->rank + 1) % base->ranks;
    if (place == 0)
        chain->received = chain->chunks;
    kn_mpi_requests(call, 2 * LINK_CHUNKS);
    return chain_go_on(call);
}

static int broadcast_completed(KnMpiCall *call, int request)
{
    return is_chained(call) ? chain_completed(call, request) : stream_next(call, request);
}

const KnMpiMove kn_mpi_broadcast_move = {broadcast_start, broadcast_completed};
