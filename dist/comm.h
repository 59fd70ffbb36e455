/* Ranks working together: opening the communicator, agreeing, and ending as one.
 *
 * A command opens it first and closes it last:
 *
 *     KnComm *comm;
 *     KN_TRY(kn_comm_open(&comm));
 *     int code = train(comm, ...);
 *     return kn_comm_close(comm, code);
 *
 * Between the two it may fail anywhere, on any rank: kn_comm_close then ends the job on all ranks, with the sentence
 * of the first that failed printed once. Steps that must succeed on all ranks or on none (a checkpoint) agree on
 * their result by kn_comm_error_agree. The functions of the table are in core/graph/comm.h. */
#ifndef KN_DIST_COMM_H
#define KN_DIST_COMM_H

#include "core/graph/comm.h"

/* One rank without MPI, unless the process was started as one of several (mpirun, srun --mpi=pmix): then all of them.
 * Tells the log its rank. KN_EPEER where MPI cannot start or does not see the other processes. */
int kn_comm_open(KnComm **comm);

/* Every rank calls it with its result. All 0: an orderly end, returns 0. Negative: one process returns `code` with its
 * sentence kept; of several ranks none returns, the job ends. A clean stop that all ranks agreed on closes with 0. */
int kn_comm_close(KnComm *comm, int code);

/* Prints the present sentence (kn_error_message) as an error, once for the whole job, and ends all ranks with exit
 * status 1. Does not return; only for the front door and kn_comm_close. */
_Noreturn void kn_comm_abort(KnComm *comm);

/* Collective. Every rank brings its result: 0 when all brought 0; else all get the code of the first rank that failed
 * and the same sentence, "rank N: ..." (as it was, where there is but one rank). The communicator stays usable. */
int kn_comm_error_agree(KnComm *comm, int code);

/* Collective. Every rank brings flags; *any is what at least one of them brought. Costs a barrier. */
int kn_comm_any(KnComm *comm, unsigned char mine, unsigned char *any);

/* Collective. *stop becomes 1 on all ranks where any rank's process was asked to stop (dist/signals.h), else 0. Costs a
 * barrier; call it at the same place on every rank. */
int kn_comm_stop_agree(KnComm *comm, int *stop);

/* Collective. Texts of any length from all ranks to all: texts[rank], each for the caller to free(). */
int kn_comm_gather_text(KnComm *comm, const char *mine, char **texts, const char *name);

/* A start and its wait in one. */
int kn_comm_all_reduce(KnComm *comm, float *values, int64_t count, const char *name);

/* How long a started call waits for ranks that have not come, in seconds; 0: for ever. 60 until set. Then those ranks
 * are named: rank, host, the call, seconds, and where each is instead, from its own answer. One that does not answer,
 * or whose activity (core/base/activity.h) has not advanced for as long, ends the job on all ranks with that sentence;
 * one that goes on is named in a warning, once in so many seconds, and waited for. Where rank 0 cannot be reached,
 * every rank says so and ends itself. Every rank calls it; no effect on a communicator of one process. */
void kn_comm_set_watchdog(KnComm *comm, double seconds);

/* The same number; 0 where no one watches. */
double kn_comm_watchdog_seconds(const KnComm *comm);

/* Seconds that this rank's program has stood in waits since another rank had not come to the call yet, over all groups
 * of the job. The rank that waited least is the one that others wait for. */
double kn_comm_waited_seconds(const KnComm *comm);

/* The implementations, for kn_comm_open and tests. MPI: once a process, KN_EPEER on failure. */
int kn_comm_self_open(KnComm **comm);
int kn_comm_mpi_open(KnComm **comm);

/* ---- GPUs: the same table over NCCL ---- */

/* Collective over `host`, which stays the caller's and must outlive what came of it: a communicator whose start
 * functions take memory of this process's present GPU, and whose control functions go on taking the host's. Nothing
 * waits for the device: a start follows what was queued on `compute_stream` (a cudaStream_t) so far, and what is queued
 * there after a wait follows the call. All ranks must start the calls of different groups in one order, since they
 * share a stream. Sums have NCCL's order, the same for the same ranks, hosts and links; those of bfloat16 are rounded
 * at each rank. Ranks that part ways, are late or dead end the job with the sentences that MPI has; so do errors of
 * NCCL and calls that the device does not complete in the watchdog's time. It comes from the plugin at `path` (NULL:
 * kinora-cuda.so beside the program). KN_EPEER where that is missing or there is no GPU. */
int kn_comm_nccl_open(KnComm *host, const char *path, void *compute_stream, KnComm **comm);

/* For a communicator whose bytes travel by another way. Collective over `host`, one of MPI with several ranks: a twin
 * whose started calls meet those of the other ranks - what they call is compared, late ranks are named, as ever - and
 * move nothing; addresses may be NULL. */
int kn_comm_announcer(KnComm *host, const char *name, KnComm **announcer);
/* 1: all ranks have come to this call of an announcer; 0: not yet; negative: they never will, with the sentence. Any
 * thread may ask. */
int kn_comm_announced(KnComm *announcer, KnCommTicket ticket);
/* For a call that all ranks have come to and that does not complete: asks the ranks of its announcer whether they are
 * still there, for as long as it is called, again and again. `what` is the call, which has been waited for so long.
 * Negative while one of them does not answer, with the sentence that names it. Any thread may call it. */
int kn_comm_ask(KnComm *announcer, const char *what, double seconds);

#endif
