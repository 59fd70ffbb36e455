/* What the two files of the MPI communicator share; nobody else includes it.
 *
 * comm_mpi.c owns the thread, the queue, the agreement on every call and the end of the job; comm_mpi_move.c moves
 * and sums the bytes of one call that all ranks have agreed on. Everything here runs on the communicator's own thread:
 * the only one that calls MPI. */
#ifndef KN_DIST_COMM_MPI_H
#define KN_DIST_COMM_MPI_H

#include "dist/comm.h"

#include <mpi.h>
#include <stdint.h>

typedef enum KnMpiKind { KN_MPI_ALL_REDUCE, KN_MPI_ALL_GATHER, KN_MPI_BROADCAST, KN_MPI_BARRIER } KnMpiKind;

enum { KN_MPI_SMALL_BYTES = 64, KN_MPI_NAME_BYTES = 48 };

/* What every rank tells all others before a call moves anything. A small all-gather needs nothing more. */
typedef struct KnMpiHeader {
    int64_t sequence, bytes;
    int32_t kind, root;
    char name[KN_MPI_NAME_BYTES];
    unsigned char small[KN_MPI_SMALL_BYTES];
} KnMpiHeader;

typedef struct KnMpiCall {
    struct KnMpiCall *next;
    KnMpiHeader header;
    const void *input;
    void *output;
    KnMpiHeader *theirs;   /* [ranks]; its own entry too */
    MPI_Request *requests; /* of the header exchange, 2 x (ranks - 1) */
} KnMpiCall;

typedef struct KnMpiComm KnMpiComm;

/* Waits, without holding a core, until at least one of the requests completes; `completed` gets their indices, the
 * function's value is how many (0: none is left), or a negative code. Serves the queue and failing ranks meanwhile. */
int kn_mpi_wait_some(KnMpiComm *mpi, MPI_Request *requests, int count, int *completed);
int kn_mpi_wait_all(KnMpiComm *mpi, MPI_Request *requests, int count);

/* The result of an MPI function as a code with a sentence; `what` names the call. */
int kn_mpi_check(int result, const char *what);

/* A tag that no message in flight bears; all ranks ask in the same order. */
int kn_mpi_next_tag(KnMpiComm *mpi);
/* Memory for at least `floats`, the same from call to call. */
int kn_mpi_scratch(KnMpiComm *mpi, size_t floats, float **scratch);
const KnComm *kn_mpi_base(const KnMpiComm *mpi);

int kn_mpi_move_all_reduce(KnMpiComm *mpi, float *values, int64_t count, const char *name);
int kn_mpi_move_all_gather(KnMpiComm *mpi, unsigned char *all, size_t bytes_each, const char *name);
int kn_mpi_move_broadcast(KnMpiComm *mpi, unsigned char *bytes, size_t count, int root, const char *name);

#endif
