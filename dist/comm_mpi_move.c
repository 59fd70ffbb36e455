/* Moving bytes and summing in rank order, by plain sends and receives.
 *
 * All-reduce: the values are cut into pieces; each piece has an owner, to which all send their part; the owner adds
 * them in rank order and sends the sum back. A window of pieces is under way at once, so that sums run while other
 * pieces travel. The order of additions of an element is rank 0 + 1 + 2 ..., whatever the cutting, which is why the
 * library's own MPI_Allreduce, free to choose its order, is not used. No count comes near the 2^31 of an MPI int.
 * Fit for up to some dozens of ranks: every owner speaks with every rank. */
#include "core/base/memory.h"
#include "dist/comm_mpi.h"

#include <stdlib.h>
#include <string.h>

enum {
    PIECE_FLOATS = 65536, /* 256 KiB: fits the cache beside its sum */
    SMALLEST_PIECE_FLOATS = 1024,
    OWNED_AT_ONCE = 4,         /* pieces that each rank is summing at one time */
    SCRATCH_FLOATS = 16 << 20, /* most memory for other ranks' parts: 64 MiB */
    SUM_BLOCK = 256,
    CHUNK_BYTES = 16 << 20 /* of gathers and broadcasts */
};

typedef enum Stage { STAGE_SEND, STAGE_RECEIVE, STAGE_GATHER, STAGE_SCATTER, STAGE_FINISHED } Stage;

/* A slot takes the pieces slot, slot + window, ... one after the other; all of them have the same owner. */
typedef struct Slot {
    int64_t piece;
    Stage stage;
    int tag, pending;
    float *scratch; /* the other ranks' parts, where this rank is the owner */
} Slot;

typedef struct AllReduce {
    KnMpiComm *mpi;
    const char *name;
    float *values;
    int64_t count, piece_floats, pieces;
    int rank, ranks, others, window;
    Slot *slots;
    MPI_Request *requests; /* [window][others] */
} AllReduce;

static float *piece_start(const AllReduce *reduce, const Slot *slot)
{
    return reduce->values + slot->piece * reduce->piece_floats;
}

static int64_t piece_length(const AllReduce *reduce, const Slot *slot)
{
    int64_t left = reduce->count - slot->piece * reduce->piece_floats;
    return left < reduce->piece_floats ? left : reduce->piece_floats;
}

static MPI_Request *slot_requests(const AllReduce *reduce, const Slot *slot)
{
    return reduce->requests + (slot - reduce->slots) * reduce->others;
}

/* The other ranks in order: 0, 1, ... without this one. */
static int other_rank(const AllReduce *reduce, int index)
{
    return index < reduce->rank ? index : index + 1;
}

/* Starts the messages of the slot's present stage. */
static int slot_start(AllReduce *reduce, Slot *slot)
{
    float *piece = piece_start(reduce, slot);
    int length = (int)piece_length(reduce, slot), owner = (int)(slot->piece % reduce->ranks), result = MPI_SUCCESS;
    MPI_Request *requests = slot_requests(reduce, slot);
    if (slot->stage == STAGE_SEND || slot->stage == STAGE_RECEIVE) {
        slot->pending = 1;
        result = slot->stage == STAGE_SEND
                     ? MPI_Isend(piece, length, MPI_FLOAT, owner, slot->tag, MPI_COMM_WORLD, requests)
                     : MPI_Irecv(piece, length, MPI_FLOAT, owner, slot->tag, MPI_COMM_WORLD, requests);
        return kn_mpi_check(result, reduce->name);
    }
    slot->pending = reduce->others;
    for (int i = 0; i < reduce->others && result == MPI_SUCCESS; i++) {
        int peer = other_rank(reduce, i);
        result = slot->stage == STAGE_GATHER
                     ? MPI_Irecv(slot->scratch + i * reduce->piece_floats, length, MPI_FLOAT, peer, slot->tag,
                                 MPI_COMM_WORLD, &requests[i])
                     : MPI_Isend(piece, length, MPI_FLOAT, peer, slot->tag, MPI_COMM_WORLD, &requests[i]);
    }
    return kn_mpi_check(result, reduce->name);
}

/* values = part 0 + part 1 + ..., where this rank's part is what `values` held. */
static void sum_in_rank_order(const AllReduce *reduce, const Slot *slot)
{
    float *values = piece_start(reduce, slot), sum[SUM_BLOCK];
    int64_t length = piece_length(reduce, slot);
    for (int64_t start = 0; start < length; start += SUM_BLOCK) {
        int64_t block = length - start < SUM_BLOCK ? length - start : SUM_BLOCK;
        for (int rank = 0; rank < reduce->ranks; rank++) {
            const float *part = rank == reduce->rank
                                    ? values
                                    : slot->scratch + (rank < reduce->rank ? rank : rank - 1) * reduce->piece_floats;
            if (rank == 0)
                memcpy(sum, part + start, (size_t)block * sizeof *sum);
            else
                for (int64_t i = 0; i < block; i++)
                    sum[i] += part[start + i];
        }
        memcpy(values + start, sum, (size_t)block * sizeof *sum);
    }
}

/* The slot's next piece, or the end. */
static int slot_take(AllReduce *reduce, Slot *slot, int64_t piece)
{
    slot->piece = piece;
    slot->stage = piece >= reduce->pieces ? STAGE_FINISHED : slot->scratch ? STAGE_GATHER : STAGE_SEND;
    return slot->stage == STAGE_FINISHED ? 0 : slot_start(reduce, slot);
}

/* All messages of a stage have arrived. A rank receives the sum into its part only when that part has left. */
static int slot_advance(AllReduce *reduce, Slot *slot)
{
    switch (slot->stage) {
    case STAGE_SEND:
        slot->stage = STAGE_RECEIVE;
        return slot_start(reduce, slot);
    case STAGE_GATHER:
        sum_in_rank_order(reduce, slot);
        slot->stage = STAGE_SCATTER;
        return slot_start(reduce, slot);
    default:
        return slot_take(reduce, slot, slot->piece + reduce->window);
    }
}

static int run_slots(AllReduce *reduce, int *completed)
{
    int request_count = reduce->window * reduce->others, done;
    for (int s = 0; s < reduce->window; s++) {
        reduce->slots[s].tag = kn_mpi_next_tag(reduce->mpi);
        int code = slot_take(reduce, &reduce->slots[s], s);
        if (code < 0)
            return code;
    }
    while ((done = kn_mpi_wait_some(reduce->mpi, reduce->requests, request_count, completed)) > 0) {
        for (int i = 0; i < done; i++) {
            Slot *slot = &reduce->slots[completed[i] / reduce->others];
            int code = --slot->pending == 0 ? slot_advance(reduce, slot) : 0;
            if (code < 0)
                return code;
        }
    }
    return done;
}

/* Small sums are spread over all ranks; large ones come in pieces whose scratch stays bounded. */
static int64_t choose_piece_floats(int64_t count, int ranks)
{
    int64_t piece = (count + ranks - 1) / ranks, largest = SCRATCH_FLOATS / (OWNED_AT_ONCE * ranks);
    largest = largest < PIECE_FLOATS ? largest : PIECE_FLOATS;
    piece = piece < largest ? piece : largest;
    return piece > SMALLEST_PIECE_FLOATS ? piece : SMALLEST_PIECE_FLOATS;
}

int kn_mpi_move_all_reduce(KnMpiComm *mpi, float *values, int64_t count, const char *name)
{
    const KnComm *base = kn_mpi_base(mpi);
    AllReduce reduce = {.mpi = mpi,
                        .name = name,
                        .values = values,
                        .count = count,
                        .piece_floats = choose_piece_floats(count, base->ranks),
                        .rank = base->rank,
                        .ranks = base->ranks,
                        .others = base->ranks - 1,
                        .window = OWNED_AT_ONCE * base->ranks};
    reduce.pieces = (count + reduce.piece_floats - 1) / reduce.piece_floats;
    if (reduce.pieces < reduce.window)
        reduce.window = reduce.pieces > reduce.ranks ? (int)reduce.pieces / reduce.ranks * reduce.ranks : reduce.ranks;
    int request_count = reduce.window * reduce.others;
    float *scratch;
    int64_t scratch_floats = reduce.window / reduce.ranks * reduce.others * reduce.piece_floats;
    int code = kn_mpi_scratch(mpi, (size_t)scratch_floats, &scratch);
    if (code < 0)
        return code;
    int *completed = kn_alloc((size_t)request_count * sizeof *completed);
    reduce.slots = kn_alloc((size_t)reduce.window * sizeof *reduce.slots);
    reduce.requests = kn_alloc((size_t)request_count * sizeof *reduce.requests);
    for (int i = 0; i < request_count; i++)
        reduce.requests[i] = MPI_REQUEST_NULL;
    for (int s = reduce.rank, owned = 0; s < reduce.window; s += reduce.ranks, owned++)
        reduce.slots[s].scratch = scratch + owned * reduce.others * reduce.piece_floats;
    code = run_slots(&reduce, completed);
    if (code < 0)
        return code; /* MPI may still write into the buffers: they stay until the job, which is lost, ends */
    free(completed);
    free(reduce.slots);
    free(reduce.requests);
    return 0;
}

/* Every rank's own part of `all` goes to every other rank, chunk by chunk. */
int kn_mpi_move_all_gather(KnMpiComm *mpi, unsigned char *all, size_t bytes_each, const char *name)
{
    const KnComm *base = kn_mpi_base(mpi);
    MPI_Request *requests = kn_alloc((size_t)base->ranks * 2 * sizeof *requests);
    for (size_t start = 0; start < bytes_each; start += CHUNK_BYTES) {
        int bytes = (int)(bytes_each - start < CHUNK_BYTES ? bytes_each - start : CHUNK_BYTES);
        int tag = kn_mpi_next_tag(mpi), count = 0, result = MPI_SUCCESS;
        for (int peer = 0; peer < base->ranks && result == MPI_SUCCESS; peer++) {
            if (peer == base->rank)
                continue;
            result = MPI_Irecv(all + (size_t)peer * bytes_each + start, bytes, MPI_BYTE, peer, tag, MPI_COMM_WORLD,
                               &requests[count++]);
            if (result == MPI_SUCCESS)
                result = MPI_Isend(all + (size_t)base->rank * bytes_each + start, bytes, MPI_BYTE, peer, tag,
                                   MPI_COMM_WORLD, &requests[count++]);
        }
        int code = kn_mpi_check(result, name);
        if (code == 0)
            code = kn_mpi_wait_all(mpi, requests, count);
        if (code < 0)
            return code;
    }
    free(requests);
    return 0;
}

int kn_mpi_move_broadcast(KnMpiComm *mpi, unsigned char *bytes, size_t count, int root, const char *name)
{
    const KnComm *base = kn_mpi_base(mpi);
    MPI_Request *requests = kn_alloc((size_t)base->ranks * sizeof *requests);
    for (size_t start = 0; start < count; start += CHUNK_BYTES) {
        int chunk = (int)(count - start < CHUNK_BYTES ? count - start : CHUNK_BYTES);
        int tag = kn_mpi_next_tag(mpi), pending = 0, result = MPI_SUCCESS;
        if (base->rank != root)
            result = MPI_Irecv(bytes + start, chunk, MPI_BYTE, root, tag, MPI_COMM_WORLD, &requests[pending++]);
        for (int peer = 0; base->rank == root && peer < base->ranks && result == MPI_SUCCESS; peer++)
            if (peer != root)
                result = MPI_Isend(bytes + start, chunk, MPI_BYTE, peer, tag, MPI_COMM_WORLD, &requests[pending++]);
        int code = kn_mpi_check(result, name);
        if (code == 0)
            code = kn_mpi_wait_all(mpi, requests, pending);
        if (code < 0)
            return code;
    }
    free(requests);
    return 0;
}
