/* Open file description locks (Linux's fcntl F_OFD_*). Those of POSIX would go with any descriptor of the file that the
 * process closes. */
#include "core/base/locks.h"

#include "core/base/error.h"
#include "core/base/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct KnLocks {
    char *path;
    int descriptor;
};

static int cannot_lock(const KnLocks *locks)
{
    if (errno == ENOLCK || errno == ENOSYS || errno == EOPNOTSUPP || errno == EINVAL)
        return kn_fail(KN_EIO,
                       "cannot lock %s: %s; processes share work through locks of the file system: mount it with "
                       "them (Lustre: flock; NFS: without nolock) or use another folder",
                       locks->path, strerror(errno));
    return kn_fail(KN_EIO, "cannot lock %s: %s", locks->path, strerror(errno));
}

static int control(const KnLocks *locks, int command, struct flock *lock)
{
    int result;
    do
        result = fcntl(locks->descriptor, command, lock);
    while (result < 0 && errno == EINTR);
    return result;
}

static struct flock range(short type, int64_t first, int64_t count)
{
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = first, .l_len = count};
}

int kn_locks_open(KnLocks **locks, const char *path)
{
    *locks = NULL;
    int descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (descriptor < 0)
        return kn_fail(KN_EIO, "cannot open %s: %s", path, strerror(errno));
    *locks = kn_alloc(sizeof **locks);
    **locks = (KnLocks){kn_strdup(path), descriptor};
    int code = kn_locks_count(*locks, 0, 1); /* whether there are locks at all */
    if (code >= 0)
        return KN_OK;
    kn_locks_close(*locks);
    *locks = NULL;
    return code;
}

void kn_locks_close(KnLocks *locks)
{
    if (!locks)
        return;
    close(locks->descriptor);
    free(locks->path);
    free(locks);
}

int kn_locks_try(KnLocks *locks, int64_t at)
{
    struct flock lock = range(F_WRLCK, at, 1);
    if (control(locks, F_OFD_SETLK, &lock) == 0)
        return 1;
    return errno == EAGAIN || errno == EACCES ? 0 : cannot_lock(locks);
}

int kn_locks_wait(KnLocks *locks, int64_t at)
{
    struct flock lock = range(F_WRLCK, at, 1);
    return control(locks, F_OFD_SETLKW, &lock) == 0 ? KN_OK : cannot_lock(locks);
}

int kn_locks_release(KnLocks *locks, int64_t at)
{
    struct flock lock = range(F_UNLCK, at, 1);
    return control(locks, F_OFD_SETLK, &lock) == 0 ? KN_OK : cannot_lock(locks);
}

int kn_locks_read_note(KnLocks *locks, char note[KN_LOCKS_NOTE_BYTES])
{
    memset(note, 0, KN_LOCKS_NOTE_BYTES);
    if (pread(locks->descriptor, note, KN_LOCKS_NOTE_BYTES - 1, 0) < 0)
        return kn_fail(KN_EIO, "cannot read %s: %s", locks->path, strerror(errno));
    return KN_OK;
}

/* Padded to one length, so that nothing of a longer one remains. */
int kn_locks_write_note(KnLocks *locks, const char *note)
{
    char padded[KN_LOCKS_NOTE_BYTES] = "";
    KN_ASSERT(strlen(note) < sizeof padded);
    memcpy(padded, note, strlen(note));
    ssize_t written = pwrite(locks->descriptor, padded, sizeof padded, 0);
    if (written == sizeof padded)
        return KN_OK;
    return kn_fail(KN_EIO, "cannot write %s: %s", locks->path, strerror(written < 0 ? errno : ENOSPC));
}

/* The system names one of the locks in the way, not the first: what lies before and behind it is asked for anew. */
int kn_locks_count(KnLocks *locks, int64_t first, int64_t count)
{
    if (count <= 0)
        return 0;
    struct flock lock = range(F_WRLCK, first, count);
    if (control(locks, F_OFD_GETLK, &lock) < 0)
        return cannot_lock(locks);
    if (lock.l_type == F_UNLCK)
        return 0;
    int64_t end = first + count, lock_end = lock.l_start + lock.l_len;
    int64_t from = lock.l_start > first ? lock.l_start : first;
    int64_t to = lock.l_len > 0 && lock_end < end ? lock_end : end;
    int before = kn_locks_count(locks, first, from - first);
    int behind = before < 0 ? before : kn_locks_count(locks, to, end - to);
    return behind < 0 ? behind : before + (int)(to - from) + behind;
}
