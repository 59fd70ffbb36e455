/* What becomes of calls on the device: a thread sees them complete, and ends the job on all ranks where one never will.
 *
 * Ranks that do not come to a call, or to another one, are found by its announcement (comm_mpi_watch.c). What is left:
 * an error that NCCL met while the call ran, and a call that all ranks have come to and that could run, but does not
 * complete: of a rank that has stopped since, which does not answer, or of a device or link that hangs. The program may
 * stand in a wait for the device meanwhile, so that the thread itself speaks.
 *
 * The process then ends, and its kernels with it. ncclCommAbort would be no help: a program that waits for its device
 * would go on with numbers that never came, perhaps into a checkpoint; it frees memory, which waits for kernels of the
 * other communicators (NVIDIA/nccl issue 549), and wants all ranks of the host to abort as well (issue 863). */
#include "core/base/activity.h"
#include "core/base/clock.h"
#include "core/base/error.h"
#include "dist/comm_nccl/comm_nccl.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define ASK_AFTER 0.5 /* of the limit: whether the other ranks are still there */

enum { NAP_NANOSECONDS = 5000000, NCCL_SECONDS_TO_LOCK = 30 };

/* 1: the device has come to this event of the call; 0: not yet. */
static int has_come(const KnNcclCall *call, cudaEvent_t event)
{
    cudaError_t result = cudaEventQuery(event);
    if (result == cudaSuccess || result == cudaErrorNotReady)
        return result == cudaSuccess;
    char what[KN_NCCL_CALL_BYTES];
    kn_nccl_describe_call(call, what, sizeof what);
    return kn_nccl_check_cuda(result, what);
}

int kn_nccl_retire(KnNcclJob *job)
{
    while (job->calls) {
        KnNcclCall *call = job->calls;
        int come = has_come(call, call->done);
        if (come != 1)
            return come;
        job->calls = call->next;
        if (!job->calls)
            job->calls_end = &job->calls;
        call->next = job->spare;
        job->spare = call;
        kn_activity_advance();
    }
    return KN_OK;
}

static int check_errors(KnNcclJob *job)
{
    for (const KnNcclComm *comm = job->comms; comm; comm = comm->next) {
        ncclResult_t error = ncclSuccess;
        char what[KN_NCCL_CALL_BYTES];
        ncclCommGetAsyncError(comm->nccl, &error);
        if (error == ncclSuccess || error == ncclInProgress)
            continue;
        kn_nccl_retire(job); /* those that were complete before */
        const KnNcclCall *call = job->calls;
        while (call && call->comm != comm)
            call = call->next;
        if (call)
            kn_nccl_describe_call(call, what, sizeof what);
        else
            snprintf(what, sizeof what, "%s, with no call under way,", comm->name);
        return kn_nccl_check(error, comm, what);
    }
    return KN_OK;
}

/* The first call under way; the others stand behind it on the stream. */
static int check_first(KnNcclJob *job)
{
    KnNcclCall *call = job->calls;
    if (!call)
        return KN_OK;
    KnComm *announcer = call->comm->announcer;
    int met = announcer ? kn_comm_announced(announcer, call->announced) : 1;
    if (met != 1)
        return met;
    double now = kn_seconds_now(), limit = kn_comm_watchdog_seconds(job->host);
    if (call->since == 0) {
        int come = has_come(call, call->ready);
        call->since = come == 1 ? now : 0;
        return come < 0 ? come : KN_OK;
    }
    double waited = now - call->since;
    if (limit <= 0 || waited < ASK_AFTER * limit)
        return KN_OK;
    char what[KN_NCCL_CALL_BYTES];
    kn_nccl_describe_call(call, what, sizeof what);
    int silent = announcer ? kn_comm_ask(announcer, what, waited) : KN_OK;
    if (waited < limit || silent < 0)
        return waited < limit ? KN_OK : silent;
    return kn_fail(KN_EPEER,
                   "all ranks have come to %s, but the device has not completed it for %.0f s: a link between GPUs may "
                   "be down, or another rank's device hangs (start again with --resume; NCCL_DEBUG=WARN in the "
                   "environment says more; a larger run.watchdog_seconds waits longer)",
                   what, waited);
}

/* NCCL's functions may themselves wait for a rank that is gone, and the program holds the mutex in them. */
static int lock(KnNcclJob *job)
{
    struct timespec until;
    double limit = kn_comm_watchdog_seconds(job->host);
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += limit > 0 ? (time_t)limit + NCCL_SECONDS_TO_LOCK : 1000000000;
    if (pthread_mutex_clocklock(&job->mutex, CLOCK_MONOTONIC, &until) == 0)
        return KN_OK;
    return kn_fail(KN_EPEER,
                   "NCCL has not come back from starting a call for %.0f s: a link between GPUs may be down, "
                   "or another rank hangs (start again with --resume; NCCL_DEBUG=WARN says more)",
                   limit + NCCL_SECONDS_TO_LOCK);
}

void *kn_nccl_watch(void *argument)
{
    static const struct timespec nap = {.tv_nsec = NAP_NANOSECONDS};
    KnNcclJob *job = argument;
    cudaSetDevice(job->device);
    for (int closing = 0; !closing;) {
        int code = lock(job);
        if (code < 0)
            kn_comm_abort(job->host);
        code = kn_nccl_retire(job);
        if (code == KN_OK)
            code = check_errors(job);
        if (code == KN_OK)
            code = check_first(job);
        closing = job->closing;
        pthread_mutex_unlock(&job->mutex);
        if (code < 0)
            kn_comm_abort(job->host);
        nanosleep(&nap, NULL);
    }
    return NULL;
}
