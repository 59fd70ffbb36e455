/* Writing files so that a name exists complete or not at all: temporary name, fsync, rename, fsync of the folder.
 *
 * A full disk shows at write(), at fsync() or only at close(), depending on the file system: each is checked, and each
 * failure ends with the temporary removed. Reading and folders are in core/base/file.c. */
#include "core/base/file.h"

#include "core/base/activity.h"
#include "core/base/error.h"
#include "core/base/hash.h"
#include "core/base/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define TEMPORARY_PREFIX ".tmp-"

struct KnFileWriter {
    char *path, *temporary;
    int descriptor, failed;
    size_t used; /* of the buffer, which gathers small writes */
    unsigned char *buffer;
    KnSha256 *hash; /* of what was written, where it was asked for */
    char *hex;
};

enum { BUFFER_BYTES = 1 << 17 };

static int cannot_write(const char *path, int reason)
{
    return kn_fail(KN_EIO, "cannot write %s: %s", path, strerror(reason));
}

/* A rename would put a plain file in the place of /dev/null. */
static int check_target(const char *path)
{
    struct stat status;
    if (stat(path, &status) != 0 || S_ISREG(status.st_mode))
        return KN_OK;
    return kn_fail(KN_EIO, "cannot write %s: it is %s", path,
                   S_ISDIR(status.st_mode) ? "a folder" : "not a regular file");
}

/* ".tmp-NAME-" and the folder it belongs into, of a path whose final slashes do not count: "checkpoints/step-1/" names
 * the folder step-1. */
static char *temporary_prefix(const char *path, char **folder)
{
    enum { NAME_KEPT = 200 }; /* a file name has at most 255 bytes */
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/')
        length--;
    char *whole = kn_format("%.*s", (int)length, path);
    char *prefix = kn_format(TEMPORARY_PREFIX "%.*s-", NAME_KEPT, kn_path_name(whole));
    *folder = kn_path_folder(whole);
    free(whole);
    return prefix;
}

char *kn_temporary_path(const char *path)
{
    uint64_t unique = 0;
    if (getrandom(&unique, sizeof unique, GRND_NONBLOCK) != sizeof unique) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        unique = (uint64_t)now.tv_nsec * 0x9E3779B97F4A7C15u ^ (uint64_t)getpid() << 32;
    }
    char *folder, *prefix = temporary_prefix(path, &folder);
    char *name = kn_format("%s%012llx", prefix, (unsigned long long)(unique & 0xffffffffffffu));
    char *temporary = kn_path_join(folder, name);
    free(prefix);
    free(folder);
    free(name);
    return temporary;
}

int kn_is_temporary_of(const char *name, const char *path)
{
    char *folder, *prefix = temporary_prefix(path, &folder);
    const char *rest = name + strlen(prefix);
    int is = kn_starts_with(name, prefix) && strlen(rest) == 12 && strspn(rest, "0123456789abcdef") == 12;
    free(prefix);
    free(folder);
    return is;
}

int kn_is_temporary_name(const char *name)
{
    return kn_starts_with(name, TEMPORARY_PREFIX);
}

int kn_remove_temporaries(const char *folder)
{
    KnStringList names = {0};
    KN_TRY(kn_list_directory(folder, &names));
    int code = KN_OK;
    for (int i = 0; i < names.count && code == KN_OK; i++)
        if (kn_is_temporary_name(names.items[i])) {
            char *path = kn_path_join(folder, names.items[i]);
            code = kn_remove_tree(path);
            free(path);
        }
    kn_string_list_clear(&names);
    return code;
}

static int write_fully(int descriptor, const unsigned char *bytes, size_t size)
{
    while (size) {
        ssize_t written = write(descriptor, bytes, size);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0) {
            errno = written ? errno : ENOSPC;
            return -1;
        }
        kn_activity_advance();
        bytes += written;
        size -= (size_t)written;
    }
    return 0;
}

int kn_file_writer_open(KnFileWriter **writer, const char *path)
{
    *writer = NULL;
    KN_TRY(check_target(path));
    char *temporary = kn_temporary_path(path);
    int descriptor = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor < 0) {
        int reason = errno;
        free(temporary);
        return cannot_write(path, reason);
    }
    *writer = kn_alloc(sizeof **writer);
    **writer = (KnFileWriter){
        .path = kn_strdup(path), .temporary = temporary, .descriptor = descriptor, .buffer = kn_alloc(BUFFER_BYTES)};
    return KN_OK;
}

static int flush_buffer(KnFileWriter *writer)
{
    if (write_fully(writer->descriptor, writer->buffer, writer->used) != 0) {
        writer->failed = 1;
        return cannot_write(writer->path, errno);
    }
    writer->used = 0;
    return KN_OK;
}

void kn_file_writer_hash(KnFileWriter *writer, char *hex)
{
    writer->hash = kn_sha256_create();
    writer->hex = hex;
}

int kn_file_writer_write(KnFileWriter *writer, const void *bytes, size_t size)
{
    if (writer->failed)
        return kn_fail(KN_EIO, "cannot write %s: an earlier write failed", writer->path);
    if (writer->hash)
        kn_sha256_update(writer->hash, bytes, size);
    if (size > BUFFER_BYTES - writer->used)
        KN_TRY(flush_buffer(writer));
    if (size <= BUFFER_BYTES - writer->used) {
        if (size)
            memcpy(writer->buffer + writer->used, bytes, size);
        writer->used += size;
        return KN_OK;
    }
    if (write_fully(writer->descriptor, bytes, size) != 0) {
        writer->failed = 1;
        return cannot_write(writer->path, errno);
    }
    return KN_OK;
}

static void release(KnFileWriter *writer)
{
    kn_sha256_destroy(writer->hash);
    free(writer->path);
    free(writer->temporary);
    free(writer->buffer);
    free(writer);
}

/* Renames and makes the new name durable; the temporary is gone afterwards in any case. */
static int rename_and_sync(const char *temporary, const char *path)
{
    if (rename(temporary, path) != 0) {
        int reason = errno;
        kn_remove_tree(temporary);
        return cannot_write(path, reason);
    }
    char *folder = kn_path_folder(path);
    int code = kn_sync_directory(folder);
    free(folder);
    return code;
}

int kn_file_writer_commit(KnFileWriter *writer)
{
    int reason = 0;
    if (writer->failed || write_fully(writer->descriptor, writer->buffer, writer->used) != 0 ||
        fsync(writer->descriptor) != 0)
        reason = writer->failed ? EIO : errno;
    if (close(writer->descriptor) != 0 && !reason && errno != EINTR) /* Linux has closed it even after EINTR */
        reason = errno;
    if (reason)
        unlink(writer->temporary);
    if (writer->hash) {
        unsigned char digest[KN_SHA256_BYTES];
        kn_sha256_finish(writer->hash, digest);
        kn_hex(digest, sizeof digest, writer->hex);
        writer->hash = NULL;
    }
    int code = reason ? cannot_write(writer->path, reason) : rename_and_sync(writer->temporary, writer->path);
    release(writer);
    return code;
}

void kn_file_writer_abort(KnFileWriter *writer)
{
    if (!writer)
        return;
    close(writer->descriptor);
    unlink(writer->temporary);
    release(writer);
}

int kn_file_write(const char *path, const void *bytes, size_t size)
{
    KnFileWriter *writer;
    KN_TRY(kn_file_writer_open(&writer, path));
    int code = kn_file_writer_write(writer, bytes, size);
    if (code == KN_OK)
        return kn_file_writer_commit(writer);
    kn_file_writer_abort(writer);
    return code;
}

/* Opens and fsyncs a file or folder; 0 or an errno. Some file systems cannot fsync folders and say EINVAL. */
static int sync_path(const char *path, int flags)
{
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | flags);
    if (descriptor < 0)
        return errno;
    int reason = fsync(descriptor) != 0 && errno != EINVAL ? errno : 0;
    if (close(descriptor) != 0 && !reason && errno != EINTR)
        reason = errno;
    return reason;
}

int kn_sync_directory(const char *path)
{
    int reason = sync_path(path, O_DIRECTORY);
    return reason ? kn_fail(KN_EIO, "cannot write the folder %s to disk: %s", path, strerror(reason)) : KN_OK;
}

static int sync_entry(const char *path, const struct stat *status, int kind, struct FTW *place)
{
    (void)status;
    (void)place;
    int reason = kind == FTW_F || kind == FTW_DP ? sync_path(path, O_NOFOLLOW) : kind == FTW_SL ? 0 : EACCES;
    return reason ? kn_fail(KN_EIO, "cannot write %s to disk: %s", path, strerror(reason)) : 0;
}

int kn_file_publish(const char *temporary, const char *path)
{
    int code = check_target(path);
    if (code == KN_OK) {
        int reason = sync_path(temporary, 0);
        if (!reason)
            return rename_and_sync(temporary, path);
        code = cannot_write(path, reason);
    }
    unlink(temporary);
    return code;
}

int kn_directory_publish(const char *temporary, const char *path)
{
    enum { OPEN_FOLDERS = 16 };
    int result = nftw(temporary, sync_entry, OPEN_FOLDERS, FTW_DEPTH | FTW_PHYS);
    if (result == 0)
        return rename_and_sync(temporary, path);
    if (result == -1) /* from nftw itself, not from sync_entry */
        result = cannot_write(path, errno);
    char *sentence = kn_strdup(kn_error_message());
    kn_remove_tree(temporary);
    result = kn_fail(KN_EIO, "%s", sentence);
    free(sentence);
    return result;
}
