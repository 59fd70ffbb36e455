/* The communicator of one process: every operation is already done, MPI is never touched. */
#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/memory.h"
#include "dist/comm.h"

#include <stdlib.h>
#include <string.h>

static int self_split(KnComm *comm, int color, const char *name, KnComm **group)
{
    (void)comm, (void)color, (void)name;
    return kn_comm_self_open(group);
}

static int copy(void *to, const void *from, int64_t bytes, KnCommTicket *ticket)
{
    if (to != from && bytes)
        memmove(to, from, (size_t)bytes);
    *ticket = 0;
    return KN_OK;
}

static int self_all_reduce_start(KnComm *comm, void *values, int64_t count, KnDtype dtype, const char *name,
                                 KnCommTicket *ticket)
{
    (void)comm, (void)count, (void)dtype, (void)name;
    return copy(values, values, 0, ticket);
}

static int self_reduce_scatter_start(KnComm *comm, void *all, void *mine, const int64_t *offsets, KnDtype dtype,
                                     const char *name, KnCommTicket *ticket)
{
    (void)comm, (void)name;
    return copy(mine, all, offsets[1] * (int64_t)kn_dtype_bytes(dtype), ticket);
}

static int self_all_gather_start(KnComm *comm, const void *mine, void *all, const int64_t *offsets, const char *name,
                                 KnCommTicket *ticket)
{
    (void)comm, (void)name;
    return copy(all, mine, offsets[1], ticket);
}

static int self_all_to_all_start(KnComm *comm, const void *send, const int64_t *send_offsets, void *receive,
                                 const int64_t *receive_offsets, const char *name, KnCommTicket *ticket)
{
    (void)comm, (void)receive_offsets, (void)name;
    return copy(receive, send, send_offsets[1], ticket);
}

static int self_send_receive_start(KnComm *comm, const void *send, size_t send_bytes, int to, void *receive,
                                   size_t receive_bytes, int from, const char *name, KnCommTicket *ticket)
{
    (void)comm, (void)name;
    KN_ASSERT(to == 0 && from == 0 && send_bytes == receive_bytes);
    return copy(receive, send, (int64_t)send_bytes, ticket);
}

static int self_wait(KnComm *comm, KnCommTicket ticket)
{
    (void)comm, (void)ticket;
    return KN_OK;
}

static int self_all_gather(KnComm *comm, const void *mine, void *all, size_t bytes_each, const char *name)
{
    (void)comm, (void)name;
    if (mine != all && bytes_each)
        memmove(all, mine, bytes_each);
    return KN_OK;
}

static int self_broadcast(KnComm *comm, void *bytes, size_t count, int root, const char *name)
{
    (void)comm, (void)bytes, (void)count, (void)name;
    KN_ASSERT(root == 0);
    return KN_OK;
}

static int self_barrier(KnComm *comm, const char *name)
{
    (void)comm, (void)name;
    return KN_OK;
}

static void self_abort(KnComm *comm)
{
    (void)comm;
    kn_log_error("%s", kn_error_message());
    exit(EXIT_FAILURE);
}

static void self_destroy(KnComm *comm)
{
    free(comm);
}

static const KnCommTable self_table = {
    .kind = "self",
    .split = self_split,
    .all_reduce_start = self_all_reduce_start,
    .reduce_scatter_start = self_reduce_scatter_start,
    .all_gather_start = self_all_gather_start,
    .all_to_all_start = self_all_to_all_start,
    .send_receive_start = self_send_receive_start,
    .wait = self_wait,
    .all_gather = self_all_gather,
    .broadcast = self_broadcast,
    .barrier = self_barrier,
    .abort = self_abort,
    .destroy = self_destroy,
};

int kn_comm_self_open(KnComm **comm)
{
    *comm = kn_alloc(sizeof **comm);
    **comm = (KnComm){.table = &self_table, .ranks = 1, .local_ranks = 1};
    return KN_OK;
}
