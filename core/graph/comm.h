/* The communicator table: what ranks can do together, whatever carries the bytes.
 *
 * Implementations live in dist/ (self: one process, no MPI started; mpi; nccl). A communicator is the whole job or a
 * group of its ranks, one for each axis of the mesh. Every call is started, then waited for; calls on one communicator
 * complete in the order they were started, those of different communicators go on side by side. Each carries a name:
 * ranks that call different things, or the same with other sizes, get a sentence with both names and no hang.
 * Sums run in rank order (0 + 1 + 2 ...), in float32, so that a layout gives the same bits each time.
 * What nccl promises otherwise stands at kn_comm_nccl_open (dist/comm.h).
 * Memory handed to a start belongs to the communicator until its wait. One thread at a time may call; after a failure
 * every further call fails with the same sentence. All functions that return int give 0 or a negative KN_E* code with
 * a sentence. */
#ifndef KN_GRAPH_COMM_H
#define KN_GRAPH_COMM_H

#include "core/graph/graph.h"

#include <stddef.h>
#include <stdint.h>

typedef struct KnComm KnComm;

/* What a started operation is waited for with; 0 is "already complete". */
typedef int64_t KnCommTicket;

typedef struct KnCommTable {
    const char *kind; /* "self", "mpi", "nccl" */

    /* Collective over `comm`: the ranks that give one color become a group, in their order here, called `name` in
     * sentences. A failure anywhere fails the whole job. Groups are destroyed before what they were split from. */
    int (*split)(KnComm *comm, int color, const char *name, KnComm **group);

    /* In place; f32 or bf16, summed in float32 and rounded once. */
    int (*all_reduce_start)(KnComm *comm, void *values, int64_t count, KnDtype dtype, const char *name,
                            KnCommTicket *ticket);
    /* `offsets` [ranks + 1] cut `all` among the ranks, in elements: each gets the sum of its part into `mine`, which
     * may be its own part of `all`. The rest of `all` is scratch afterwards. */
    int (*reduce_scatter_start)(KnComm *comm, void *all, void *mine, const int64_t *offsets, KnDtype dtype,
                                const char *name, KnCommTicket *ticket);
    /* `offsets` [ranks + 1] cut `all` among the ranks, in bytes: everybody's part arrives everywhere. `mine` may be its
     * own part of `all`. */
    int (*all_gather_start)(KnComm *comm, const void *mine, void *all, const int64_t *offsets, const char *name,
                            KnCommTicket *ticket);
    /* Bytes send_offsets[r] .. send_offsets[r + 1] of `send` go to rank r, whose bytes arrive at receive_offsets[r]. */
    int (*all_to_all_start)(KnComm *comm, const void *send, const int64_t *send_offsets, void *receive,
                            const int64_t *receive_offsets, const char *name, KnCommTicket *ticket);
    /* To one rank and from one rank at once; both may be this rank itself. */
    int (*send_receive_start)(KnComm *comm, const void *send, size_t send_bytes, int to, void *receive,
                              size_t receive_bytes, int from, const char *name, KnCommTicket *ticket);
    int (*wait)(KnComm *comm, KnCommTicket ticket);

    /* Start and wait in one, for control. `all` has ranks x bytes_each bytes, in rank order; `mine` may be its own part
     * of it. Up to 64 bytes cost no more than a barrier. */
    int (*all_gather)(KnComm *comm, const void *mine, void *all, size_t bytes_each, const char *name);
    int (*broadcast)(KnComm *comm, void *bytes, size_t count, int root, const char *name);
    int (*barrier)(KnComm *comm, const char *name);

    /* The device's memory that calls of all communicators of the job move to and from without a copy on the way; both
     * NULL where there is nothing to gain. To be called after the last split; every rank takes all that it exchanges
     * from here, or nothing. KN_EMEMORY where the device has no room. `release` waits for calls under way; it gives 0,
     * and does nothing, for memory that is not from here. */
    int (*allocate)(KnComm *comm, void **memory, size_t bytes);
    int (*release)(KnComm *comm, void *memory);

    /* Ends the whole job with this rank's sentence, printed once for all ranks. Does not return. */
    void (*abort)(KnComm *comm);
    /* Collective: all ranks are done. */
    void (*destroy)(KnComm *comm);
} KnCommTable;

/* Every implementation begins with this. */
struct KnComm {
    const KnCommTable *table;
    int rank, ranks;
    int local_rank, local_ranks; /* among the ranks of this host */
    int job_rank;                /* in the whole job: what sentences name */
};

#endif
