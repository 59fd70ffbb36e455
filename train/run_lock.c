/* Taking the lock of a run folder. */
#include "train/run_lock.h"

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { AT = 1 << 20, TRIES = 50, TRY_MS = 100 }; /* the lock's place, behind the note */

/* The process that holds the lock may have been told to end and still be at it. */
static int try_for_a_while(KnLocks *locks)
{
    int held = kn_locks_try(locks, AT);
    for (int i = 0; i < TRIES && held == 0; i++) {
        nanosleep(&(struct timespec){.tv_nsec = TRY_MS * 1000000L}, NULL);
        held = kn_locks_try(locks, AT);
    }
    return held;
}

static int write_holder(KnLocks *locks)
{
    char host[64] = "", note[KN_LOCKS_NOTE_BYTES];
    gethostname(host, sizeof host - 1);
    snprintf(note, sizeof note, "process %ld on %s", (long)getpid(), host);
    return kn_locks_write_note(locks, note);
}

static int fail_held(KnLocks *locks, const char *run_dir)
{
    char holder[KN_LOCKS_NOTE_BYTES];
    KN_TRY(kn_locks_read_note(locks, holder));
    return kn_fail(KN_EINPUT, "%s is being trained by another kinora, %s: end it first, or choose another run.dir",
                   run_dir, holder);
}

int kn_run_lock(KnLocks **lock, const char *run_dir)
{
    char *path = kn_path_join(run_dir, ".lock");
    int held = kn_locks_open(lock, path);
    free(path);
    held = held < 0 ? held : try_for_a_while(*lock);
    if (held < 0) {
        kn_warn("nothing keeps another training out of %s: %s", run_dir, kn_error_message());
        kn_locks_close(*lock);
        *lock = NULL;
        return KN_OK;
    }
    return held ? write_holder(*lock) : fail_held(*lock, run_dir);
}
