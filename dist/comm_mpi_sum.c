/* Summing in rank order, by plain sends and receives: reduce-scatter, and all-reduce, which sends the sums back.
 *
 * `offsets` cut the values into one part for each rank, its owner, and each part into pieces. All send their piece to
 * its owner, who adds them in rank order. A few pieces of each owner are under way at once (lanes), so that sums run
 * while other pieces travel. The order of additions of an element is rank 0 + 1 + 2 ..., whatever the cutting, which is
 * why the library's own MPI_Allreduce, free to choose its order, is not used. bf16 is added in float32 and rounded
 * once. Fit for up to some dozens of ranks: every owner speaks with every rank. */
#include "core/base/bf16.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "dist/comm_mpi.h"

#include <stdlib.h>
#include <string.h>

enum {
    PIECE_BYTES = 256 << 10, /* fits the cache beside its sum */
    SMALLEST_PART = 1024,    /* elements: of an all-reduce, so that few values make few messages */
    PART_MULTIPLE = 16,
    SCRATCH_BYTES = 64 << 20, /* most memory for other ranks' pieces */
    SUM_BLOCK = 256
};

typedef enum Stage { STAGE_PART, STAGE_SUM } Stage;

/* A lane takes the pieces lane, lane + KN_MPI_LANES, ... of one owner, one after the other. */
typedef struct Lane {
    int owner, lane;
    int first_request; /* one where another rank is the owner, else one for each other rank */
    int pending;
    Stage stage; /* the parts go to the owner; the sum comes back */
    int64_t piece;
    unsigned char *scratch; /* [others][piece]: where this rank is the owner */
} Lane;

typedef struct Sum {
    int own, ranks, others;
    int back;
    KnDtype dtype;
    int64_t element, piece; /* bytes; elements */
    int64_t *offsets;
    unsigned char *all, *mine; /* where the values are, and where this rank's sum goes */
    Lane *lanes;               /* [ranks][KN_MPI_LANES] */
} Sum;

static int64_t piece_start(const Sum *sum, const Lane *lane)
{
    return sum->offsets[lane->owner] + lane->piece * sum->piece;
}

static int64_t piece_length(const Sum *sum, const Lane *lane)
{
    int64_t left = sum->offsets[lane->owner + 1] - piece_start(sum, lane);
    return left < sum->piece ? left : sum->piece;
}

static unsigned char *piece_values(const Sum *sum, const Lane *lane)
{
    return sum->all + piece_start(sum, lane) * sum->element;
}

static unsigned char *piece_sum(const Sum *sum, const Lane *lane)
{
    return sum->mine + lane->piece * sum->piece * sum->element;
}

/* The other ranks in order: 0, 1, ... without this one. */
static int other_rank(const Sum *sum, int index)
{
    return index < sum->own ? index : index + 1;
}

static const unsigned char *part_of(const Sum *sum, const Lane *lane, int rank)
{
    if (rank == sum->own)
        return piece_values(sum, lane);
    return lane->scratch + (rank < sum->own ? rank : rank - 1) * sum->piece * sum->element;
}

/* ---- adding ---- */

static void add_block(float *restrict sum, const unsigned char *part, int64_t count, KnDtype dtype)
{
    if (dtype == KN_F32) {
        const float *values = (const float *)(const void *)part;
        for (int64_t i = 0; i < count; i++)
            sum[i] += values[i];
        return;
    }
    const uint16_t *values = (const uint16_t *)(const void *)part;
    for (int64_t i = 0; i < count; i++)
        sum[i] += kn_bf16_to_float(values[i]);
}

static void begin_block(float *restrict sum, const unsigned char *part, int64_t count, KnDtype dtype)
{
    if (dtype == KN_F32)
        memcpy(sum, part, (size_t)count * sizeof *sum);
    for (int64_t i = 0; dtype != KN_F32 && i < count; i++)
        sum[i] = kn_bf16_to_float(((const uint16_t *)(const void *)part)[i]);
}

static void end_block(const float *sum, unsigned char *to, int64_t count, KnDtype dtype)
{
    if (dtype == KN_F32)
        memcpy(to, sum, (size_t)count * sizeof *sum);
    for (int64_t i = 0; dtype != KN_F32 && i < count; i++)
        ((uint16_t *)(void *)to)[i] = kn_bf16_from_float(sum[i]);
}

/* The sum may go where this rank's part is. */
static void add_in_rank_order(const Sum *sum, const Lane *lane)
{
    float block[SUM_BLOCK];
    int64_t length = piece_length(sum, lane);
    for (int64_t start = 0; start < length; start += SUM_BLOCK) {
        int64_t count = length - start < SUM_BLOCK ? length - start : SUM_BLOCK, at = start * sum->element;
        begin_block(block, part_of(sum, lane, 0) + at, count, sum->dtype);
        for (int rank = 1; rank < sum->ranks; rank++)
            add_block(block, part_of(sum, lane, rank) + at, count, sum->dtype);
        end_block(block, piece_sum(sum, lane) + at, count, sum->dtype);
    }
}

/* ---- messages ---- */

/* Starts the messages of the lane's present stage. */
static int lane_start(KnMpiCall *call, Lane *lane)
{
    Sum *sum = call->state;
    int64_t bytes = piece_length(sum, lane) * sum->element;
    int tag = (lane->stage == STAGE_PART ? KN_MPI_TAG_PART : KN_MPI_TAG_SUM) + lane->lane;
    if (lane->owner != sum->own) {
        lane->pending = 1;
        return lane->stage == STAGE_PART
                   ? kn_mpi_send(call, lane->first_request, piece_values(sum, lane), bytes, lane->owner, tag)
                   : kn_mpi_receive(call, lane->first_request, piece_values(sum, lane), bytes, lane->owner, tag);
    }
    lane->pending = sum->others;
    for (int i = 0; i < sum->others; i++) {
        int rank = other_rank(sum, i), request = lane->first_request + i;
        if (lane->stage == STAGE_PART)
            KN_TRY(kn_mpi_receive(call, request, lane->scratch + i * sum->piece * sum->element, bytes, rank, tag));
        else
            KN_TRY(kn_mpi_send(call, request, piece_sum(sum, lane), bytes, rank, tag));
    }
    return KN_OK;
}

static int lane_take(KnMpiCall *call, Lane *lane, int64_t piece)
{
    const Sum *sum = call->state;
    int64_t part = sum->offsets[lane->owner + 1] - sum->offsets[lane->owner];
    lane->piece = piece;
    lane->stage = STAGE_PART;
    return piece * sum->piece < part ? lane_start(call, lane) : KN_OK;
}

/* All messages of a stage have arrived. A rank receives the sum into its part only when that part has left. */
static int lane_advance(KnMpiCall *call, Lane *lane)
{
    const Sum *sum = call->state;
    if (lane->stage == STAGE_PART && lane->owner == sum->own)
        add_in_rank_order(sum, lane);
    if (lane->stage == STAGE_PART && sum->back) {
        lane->stage = STAGE_SUM;
        return lane_start(call, lane);
    }
    return lane_take(call, lane, lane->piece + KN_MPI_LANES);
}

static int sum_completed(KnMpiCall *call, int request)
{
    Sum *sum = call->state;
    int own_requests = KN_MPI_LANES * sum->others, lane;
    if (request < own_requests)
        lane = sum->own * KN_MPI_LANES + request / sum->others;
    else
        lane = other_rank(sum, (request - own_requests) / KN_MPI_LANES) * KN_MPI_LANES + request % KN_MPI_LANES;
    return --sum->lanes[lane].pending == 0 ? lane_advance(call, &sum->lanes[lane]) : KN_OK;
}

/* ---- starting ---- */

/* Even parts. Small sums have few owners. */
static void cut_evenly(int64_t *offsets, int64_t count, int ranks)
{
    int64_t part = (count + ranks - 1) / ranks;
    part = part < SMALLEST_PART ? SMALLEST_PART : (part + PART_MULTIPLE - 1) / PART_MULTIPLE * PART_MULTIPLE;
    for (int rank = 0; rank <= ranks; rank++)
        offsets[rank] = rank * part < count ? rank * part : count;
}

static int64_t largest_part(const Sum *sum)
{
    int64_t largest = 1;
    for (int rank = 0; rank < sum->ranks; rank++) {
        int64_t part = sum->offsets[rank + 1] - sum->offsets[rank];
        largest = part > largest ? part : largest;
    }
    return largest;
}

static int place_lanes(KnMpiCall *call)
{
    Sum *sum = call->state;
    int own_requests = KN_MPI_LANES * sum->others;
    int64_t piece_bytes = SCRATCH_BYTES / own_requests < PIECE_BYTES ? SCRATCH_BYTES / own_requests : PIECE_BYTES;
    int64_t largest = largest_part(sum);
    sum->piece = piece_bytes / sum->element < largest ? piece_bytes / sum->element : largest;
    void *scratch;
    int64_t lane_bytes = sum->others * sum->piece * sum->element;
    KN_TRY(kn_mpi_scratch(call->comm, (size_t)(KN_MPI_LANES * lane_bytes), &scratch));
    for (int owner = 0; owner < sum->ranks; owner++)
        for (int l = 0; l < KN_MPI_LANES; l++) {
            Lane *lane = &sum->lanes[owner * KN_MPI_LANES + l];
            *lane = (Lane){.owner = owner, .lane = l};
            if (owner == sum->own) {
                lane->scratch = (unsigned char *)scratch + l * lane_bytes;
                lane->first_request = l * sum->others;
            } else {
                lane->first_request = own_requests + (owner < sum->own ? owner : owner - 1) * KN_MPI_LANES + l;
            }
        }
    return KN_OK;
}

static int sum_start(KnMpiCall *call)
{
    const KnComm *base = &call->comm->base;
    int ranks = base->ranks, lanes = ranks * KN_MPI_LANES;
    Sum *sum = call->state = kn_alloc(sizeof *sum + (size_t)lanes * sizeof(Lane));
    *sum = (Sum){.own = base->rank,
                 .ranks = ranks,
                 .others = ranks - 1,
                 .back = call->header.kind == KN_MPI_ALL_REDUCE,
                 .dtype = (KnDtype)call->header.detail,
                 .offsets = call->in,
                 .all = call->output,
                 .mine = call->output,
                 .lanes = (Lane *)(void *)(sum + 1)};
    sum->element = (int64_t)kn_dtype_bytes(sum->dtype);
    if (sum->back) {
        cut_evenly(call->in, call->header.bytes / sum->element, ranks);
        sum->mine += call->in[base->rank] * sum->element;
    } else {
        sum->all = (unsigned char *)(uintptr_t)call->input;
    }
    KN_TRY(place_lanes(call));
    kn_mpi_requests(call, 2 * KN_MPI_LANES * sum->others);
    for (int i = 0; i < lanes; i++)
        KN_TRY(lane_take(call, &sum->lanes[i], sum->lanes[i].lane));
    return KN_OK;
}

const KnMpiMove kn_mpi_sum_move = {sum_start, sum_completed};
