/* The communicator table: what ranks can do together, whatever carries the bytes.
 *
 * Implementations live in dist/ (self: one process, no MPI started; mpi; later nccl). Every call is started, then
 * waited for; calls on one communicator complete in the order they were started. Each carries a name: ranks that call
 * different things, or the same with other sizes, get a sentence with both names and no hang.
 * Sums run in rank order (0 + 1 + 2 ...), in float32, so that a layout gives the same bits each time.
 * One thread at a time may call; after a failure every further call fails with the same sentence.
 * All functions that return int give 0 or a negative KN_E* code with a sentence. */
#ifndef KN_GRAPH_COMM_H
#define KN_GRAPH_COMM_H

#include <stddef.h>
#include <stdint.h>

typedef struct KnComm KnComm;

/* What a started operation is waited for with; 0 is "already complete". */
typedef int64_t KnCommTicket;

typedef struct KnCommTable {
    const char *kind; /* "self", "mpi" */
    /* In place; `values` belongs to the communicator until the wait. */
    int (*all_reduce_start)(KnComm *comm, float *values, int64_t count, const char *name, KnCommTicket *ticket);
    int (*wait)(KnComm *comm, KnCommTicket ticket);
    /* `all` has ranks x bytes_each bytes, in rank order; `mine` may be its own part of it. Up to 64 bytes cost no more
     * than a barrier. */
    int (*all_gather)(KnComm *comm, const void *mine, void *all, size_t bytes_each, const char *name);
    int (*broadcast)(KnComm *comm, void *bytes, size_t count, int root, const char *name);
    int (*barrier)(KnComm *comm, const char *name);
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
};

#endif
