/* What the files of the NCCL communicator share; nobody else includes it. They are part of the plugin that is opened
 * where there are GPUs (dist/comm_plugin.c), since a program linked to NCCL would not start where it is missing.
 *
 *     comm_nccl.c         the table: calls that are queued on the device
 *     comm_nccl_watch.c   the thread that sees calls complete and errors come, and ends a job that will not go on
 *     comm_nccl_memory.c  the device's memory that calls use, registered with every communicator
 *
 * Memory of the started calls is the device's; what control exchanges (all_gather, broadcast, barrier) is the host's
 * and goes by the host's communicator. Nothing waits for the device: a start makes the communication stream wait for
 * what the computing stream was given so far, a wait makes the computing stream wait for the call.
 *
 * NCCL does not notice when ranks call different things, and does not say who is missing. So every call is announced
 * on a twin of the host's communicator (kn_comm_announcer), which compares what ranks call and names late ranks. */
#ifndef KN_DIST_COMM_NCCL_H
#define KN_DIST_COMM_NCCL_H

#include "dist/comm.h"

#include <nccl.h>
#include <pthread.h>
#include <stdint.h>

enum { KN_NCCL_NAME_BYTES = 48, KN_NCCL_CALL_BYTES = 160 };

typedef struct KnNcclJob KnNcclJob;

/* Memory that was given, or its registration with one communicator. */
typedef struct KnNcclMemory {
    struct KnNcclMemory *next;
    void *memory, *handle; /* the handle: of the registration */
} KnNcclMemory;

typedef struct KnNcclComm {
    KnComm base;
    KnNcclJob *job;
    KnComm *host, *announcer; /* the announcer is NULL where there is one rank */
    ncclComm_t nccl;
    char name[KN_NCCL_NAME_BYTES];
    int64_t number; /* of its last call */
    int registers;  /* the memory that is given */
    KnNcclMemory *registered;
    struct KnNcclComm *next;
} KnNcclComm;

typedef struct KnNcclCall {
    struct KnNcclCall *next;
    KnNcclComm *comm;
    KnCommTicket ticket, announced;
    const char *kind;
    char name[KN_NCCL_NAME_BYTES];
    int64_t number, bytes;
    cudaEvent_t ready, done; /* the device could begin; it is through */
    double since;            /* when it was first seen that it could; 0: it could not yet */
} KnNcclCall;

/* All communicators that came of one kn_nccl_open. They share one stream, so that calls of all of them complete in the
 * order in which they were started, which is the same on every rank. */
struct KnNcclJob {
    int device;
    cudaStream_t compute, stream;
    KnComm *host;
    pthread_t thread;
    int is_stuck; /* a communicator did not come to an end */

    pthread_mutex_t mutex; /* guards what follows */
    KnNcclComm *comms;
    KnNcclMemory *memory;                   /* that was given and not released */
    KnNcclCall *calls, **calls_end, *spare; /* under way, in order; to be used again */
    KnCommTicket started, completed;
    int closing;
};

/* The results of NCCL's and of CUDA's functions as codes with a sentence; `what` says what was tried. */
int kn_nccl_check(ncclResult_t result, const KnNcclComm *comm, const char *what);
int kn_nccl_check_cuda(cudaError_t result, const char *what);

/* "call 4 of zero, all_gather 'weights of block 3' of 80 bytes". */
void kn_nccl_describe_call(const KnNcclCall *call, char *text, size_t size);

/* Under the mutex: the calls that the device is through with are under way no more. */
int kn_nccl_retire(KnNcclJob *job);

/* The thread of a KnNcclJob. */
void *kn_nccl_watch(void *job);

/* Whether memory is to be registered with a communicator of these ranks: alike on all of them. */
int kn_nccl_can_register(const KnComm *host);
/* Rows of the table, `allocate` and `release`. */
int kn_nccl_allocate(KnComm *comm, void **memory, size_t bytes);
int kn_nccl_release(KnComm *comm, void *memory);

/* What the plugin is opened for (kn_comm_nccl_open of dist/comm.h, which says what it does). */
int kn_nccl_open(KnComm *host, void *compute_stream, KnComm **comm);

#endif
