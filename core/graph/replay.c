/* When a run is recorded, and when it is replayed. */
#include "core/graph/replay.h"

#include "core/base/error.h"
#include "core/base/log.h"

#include <string.h>

void kn_replay_clear(KnReplay *replay, KnBackend *backend)
{
    for (int i = 0; i < 2; i++) {
        if (replay->recordings[i])
            backend->queue->recording_destroy(backend, replay->recordings[i]);
        replay->recordings[i] = NULL;
        replay->chosen[i] = 0;
    }
}

static int record(KnBackend *backend, KnRecording **recording, int (*run)(void *context), void *context)
{
    KN_TRY(backend->queue->record_begin(backend));
    int code = run(context);
    int ended = backend->queue->record_end(backend, code == KN_OK ? recording : NULL);
    return code < 0 ? code : ended;
}

int kn_replay_run(KnReplay *replay, KnBackend *backend, const KnAddresses *addresses, int prologue,
                  int (*run)(void *context), void *context)
{
    KnRecording **recording = &replay->recordings[prologue];
    if (memcmp(addresses, &replay->addresses, sizeof *addresses) != 0)
        kn_replay_clear(replay, backend);
    replay->addresses = *addresses;
    if (!*recording && replay->chosen[prologue] && !replay->failed && record(backend, recording, run, context) < 0) {
        replay->failed = 1;
        kn_log("work is queued node by node, since it could not be recorded: %s", kn_error_message());
    }
    if (!*recording) {
        replay->chosen[0] = 1;
        replay->chosen[prologue] = 1;
        return run(context);
    }
    replay->count++;
    return backend->queue->replay(backend, *recording);
}
