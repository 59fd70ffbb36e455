/* What a process computes on, by its configuration. */
#ifndef KN_DIST_BACKEND_H
#define KN_DIST_BACKEND_H

#include "core/graph/comm.h"
#include "core/graph/executor.h"

/* Collective. `device`: "cpu"; "cuda", which fails where a rank has no GPU of its own; or "auto", which takes GPUs
 * where every rank has one and says otherwise in a sentence of the log why it does not. Ranks of a host take its GPUs
 * in order, or those that they see alone. Release with kn_backend_close (core/graph/devices.h). KN_EINPUT for another
 * word. */
int kn_backend_open(const char *device, KnComm *comm, KnBackend **backend);

#endif
