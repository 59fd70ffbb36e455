/* Runs that are recorded once and replayed from then on, on backends that queue their work (KnQueue).
 *
 * The first run is done node by node, in which the backend chooses its kernels, the second one is recorded; both again
 * whenever an address has changed. There are two recordings, without the prologue and with it. What changes from run to
 * run must come from memory: inputs, state. Where recording fails, runs go on node by node, and the log says why. */
#ifndef KN_GRAPH_REPLAY_H
#define KN_GRAPH_REPLAY_H

#include "core/graph/executor.h"

/* What the recorded addresses follow from. No gaps: it is compared as bytes. */
typedef struct KnAddresses {
    const void *arena;
    int64_t bindings, twin_changes;
} KnAddresses;

typedef struct KnReplay {
    KnAddresses addresses; /* of the last run */
    KnRecording *recordings[2];
    int chosen[2]; /* a run with these addresses was done node by node */
    int failed;
    int64_t count; /* of replays */
} KnReplay;

/* Does what `run(context)` queues. `prologue`: 0 or 1. */
int kn_replay_run(KnReplay *replay, KnBackend *backend, const KnAddresses *addresses, int prologue,
                  int (*run)(void *context), void *context);
void kn_replay_clear(KnReplay *replay, KnBackend *backend);

#endif
