/* Collective nodes on the communicator of their group. */
#include "core/ops/exchange.h"

#include "core/base/error.h"
#include "core/ops/ops.h"

#include <stdlib.h>

/* One exchange, with everything in bytes. */
typedef struct Exchange {
    const KnCollective *c;
    KnComm *comm;
    KnCopy copy;
    void *device;
    char *send, *receive; /* the same memory in place */
    int64_t send_elements, receive_elements, element_bytes;
    KnDtype dtype;
    KnCommTicket *ticket;
} Exchange;

static int64_t *in_bytes(const Exchange *e, const int64_t *offsets)
{
    int64_t *bytes = kn_alloc((size_t)(e->c->ranks + 1) * sizeof *bytes);
    for (int i = 0; i <= e->c->ranks; i++)
        bytes[i] = offsets[i] * e->element_bytes;
    return bytes;
}

static int copy_sent(const Exchange *e)
{
    size_t bytes = (size_t)(e->send_elements * e->element_bytes);
    return e->receive != e->send && bytes ? e->copy(e->device, e->receive, e->send, bytes) : KN_OK;
}

static int start_all_reduce(const Exchange *e)
{
    KN_TRY(copy_sent(e));
    return e->comm->table->all_reduce_start(e->comm, e->receive, e->send_elements, e->dtype, e->c->name, e->ticket);
}

static int start_reduce_scatter(const Exchange *e)
{
    char *mine = e->receive == e->send ? e->send + e->c->offsets[e->c->rank] * e->element_bytes : e->receive;
    return e->comm->table->reduce_scatter_start(e->comm, e->send, mine, e->c->offsets, e->dtype, e->c->name, e->ticket);
}

static int start_all_gather(const Exchange *e)
{
    int64_t *offsets = in_bytes(e, e->c->offsets);
    char *mine = e->receive == e->send ? e->send + offsets[e->c->rank] : e->send;
    int code = e->comm->table->all_gather_start(e->comm, mine, e->receive, offsets, e->c->name, e->ticket);
    free(offsets);
    return code;
}

static int start_all_to_all(const Exchange *e)
{
    int64_t *out = in_bytes(e, e->c->offsets), *in = in_bytes(e, e->c->receive_offsets);
    int code = e->comm->table->all_to_all_start(e->comm, e->send, out, e->receive, in, e->c->name, e->ticket);
    free(out);
    free(in);
    return code;
}

static int start_send_receive(const Exchange *e)
{
    return e->comm->table->send_receive_start(e->comm, e->send, (size_t)(e->send_elements * e->element_bytes), e->c->to,
                                              e->receive, (size_t)(e->receive_elements * e->element_bytes), e->c->from,
                                              e->c->name, e->ticket);
}

static int (*const starts[])(const Exchange *e) = {
    [KN_ALL_REDUCE] = start_all_reduce,         [KN_ALL_REDUCE_ONCE] = start_all_reduce,
    [KN_REDUCE_SCATTER] = start_reduce_scatter, [KN_ALL_GATHER] = start_all_gather,
    [KN_ALL_TO_ALL] = start_all_to_all,         [KN_SEND_RECEIVE] = start_send_receive,
};

static const KnCollective *collective_of(const KnCall *call)
{
    return *(const KnCollective *const *)call->node->attributes;
}

static KnComm *comm_of(const KnCall *call)
{
    return call->comms ? call->comms[collective_of(call)->group] : NULL;
}

int kn_exchange_start(const KnCall *call, KnCopy copy, void *device)
{
    const KnNode *node = call->node;
    const KnTensor *sent = node->inputs[0], *received = node->output_count ? node->outputs[0] : sent;
    Exchange e = {.c = collective_of(call),
                  .comm = comm_of(call),
                  .copy = copy,
                  .device = device,
                  .send = call->inputs[0],
                  .receive = node->output_count ? call->outputs[0] : call->inputs[0],
                  .send_elements = kn_tensor_elements(sent),
                  .receive_elements = kn_tensor_elements(received),
                  .element_bytes = (int64_t)kn_dtype_bytes(sent->dtype),
                  .dtype = sent->dtype,
                  .ticket = &call->tickets[received->id]};
    *e.ticket = 0;
    return e.comm ? starts[e.c->kind](&e) : copy_sent(&e);
}

int kn_exchange_wait(const KnCall *call)
{
    KnCommTicket *ticket = &call->tickets[call->node->inputs[0]->id];
    KnComm *comm = comm_of(call);
    if (!comm || *ticket == 0)
        return KN_OK;
    KN_TRY(comm->table->wait(comm, *ticket));
    *ticket = 0;
    return KN_OK;
}
