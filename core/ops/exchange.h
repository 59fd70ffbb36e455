/* What every backend does for collective nodes: they are started on their group's communicator and waited for by
 * ticket. A group of one rank has none, and what it sends is what it gets. */
#ifndef KN_OPS_EXCHANGE_H
#define KN_OPS_EXCHANGE_H

#include "core/graph/executor.h"

/* Copies within the memory of a backend; `device` is what the backend gave to kn_exchange_start. */
typedef int (*KnCopy)(void *device, void *to, const void *from, size_t bytes);

int kn_exchange_start(const KnCall *call, KnCopy copy, void *device);
int kn_exchange_wait(const KnCall *call);

#endif
