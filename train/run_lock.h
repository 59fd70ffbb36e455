/* One training at a time in a run folder: two would remove each other's half-written checkpoints and mix their metrics.
 *
 * The lock (core/base/locks.h) is that of the file .lock in the folder and goes with the process that holds it. */
#ifndef KN_TRAIN_RUN_LOCK_H
#define KN_TRAIN_RUN_LOCK_H

#include "core/base/locks.h"

/* For rank 0. A holder that is just being ended is given a few seconds; then KN_EINPUT, naming its process and host. A
 * file system without locks is a warning, and *lock NULL. Close it with kn_locks_close. */
int kn_run_lock(KnLocks **lock, const char *run_dir);

#endif
