/* Locks that processes share through a file, on one host or on several with a shared file system, without a server.
 *
 * Every byte of the file is a lock, whether it is there or not. A lock is held by the open file, so that the system
 * (on NFS: its server) releases it when the process ends in whatever way. They are advisory: only those who ask see
 * them. One thread at a time may call.
 *
 *     KnLocks *locks;
 *     KN_TRY(kn_locks_open(&locks, "videos/.lock"));
 *     if (kn_locks_try(locks, 17) == 1) { ... kn_locks_release(locks, 17); }
 */
#ifndef KN_BASE_LOCKS_H
#define KN_BASE_LOCKS_H

#include <stdint.h>

typedef struct KnLocks KnLocks;

/* Makes the file where there is none; it stays. KN_EIO, also where the file system has no locks. */
int kn_locks_open(KnLocks **locks, const char *path);
void kn_locks_close(KnLocks *locks); /* releases all that are held; NULL is fine */

int kn_locks_try(KnLocks *locks, int64_t at);  /* 1: held now; 0: somebody else has it; KN_EIO */
int kn_locks_wait(KnLocks *locks, int64_t at); /* waits until it is held; KN_EIO */
int kn_locks_release(KnLocks *locks, int64_t at);

/* A short text in the file itself, for those who hold locks to tell others something; "" at first. KN_EIO. */
enum { KN_LOCKS_NOTE_BYTES = 128 };
int kn_locks_read_note(KnLocks *locks, char note[KN_LOCKS_NOTE_BYTES]);
int kn_locks_write_note(KnLocks *locks, const char *note); /* at most KN_LOCKS_NOTE_BYTES - 1 bytes */

/* How many of the locks from `first` on, `count` of them, others hold. KN_EIO. */
int kn_locks_count(KnLocks *locks, int64_t first, int64_t count);

#endif
