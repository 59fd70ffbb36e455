/* Files: reading whole ones, and writing so that a name exists complete or not at all.
 *
 * Whatever is written goes to a temporary name in the same folder (".tmp-NAME-..."), is fsynced, renamed to its
 * final name, and the folder is fsynced; a failure at any of these steps (a full disk reported only by close(), too)
 * removes the temporary and leaves what stood under the final name untouched. (Should the folder's fsync fail, the
 * new file stands complete and the failure is reported all the same.) A final name that is a device, pipe or folder
 * is refused; a symbolic link is replaced. Every sentence names the path and the system's reason. All functions that
 * return int give KN_OK or KN_EIO unless stated. */
#ifndef KN_BASE_FILE_H
#define KN_BASE_FILE_H

#include "core/base/text.h"

#include <stddef.h>
#include <stdint.h>

/* Questions */
int kn_file_exists(const char *path); /* anything of that name; follows links */
int kn_is_directory(const char *path);
int kn_file_size(const char *path, int64_t *bytes); /* of a regular file */

/* Paths; free() what they return. An absolute `name` is returned as it is; an empty folder gives `name`. */
char *kn_path_join(const char *folder, const char *name);
char *kn_path_folder(const char *path);     /* as dirname: "a/b" of "a/b/c" and "a/b/c/", else "." or "/" */
char *kn_path_absolute(const char *path);   /* without ".", ".." and doubled slashes; links are not looked at */
const char *kn_path_name(const char *path); /* the part after the last '/', inside `path` */

/* A whole file in memory, followed by a NUL that `size` does not count; free(*bytes). KN_EMEMORY when too large. */
int kn_file_read(const char *path, char **bytes, size_t *size);

/* A regular file mapped read-only; an empty one gives size 0 and a valid pointer. The file must not be shortened
 * while it is mapped: reading beyond its new end kills the process. */
typedef struct KnFileMap {
    const unsigned char *bytes;
    size_t size;
} KnFileMap;
int kn_file_map(KnFileMap *map, const char *path);
void kn_file_unmap(KnFileMap *map); /* a map of {0} is fine */

/* Replaces `path` by these bytes, atomically. */
int kn_file_write(const char *path, const void *bytes, size_t size);

/* The same as a stream. After a failed write only abort remains; commit releases the writer whatever it returns. */
typedef struct KnFileWriter KnFileWriter;
int kn_file_writer_open(KnFileWriter **writer, const char *path);
int kn_file_writer_write(KnFileWriter *writer, const void *bytes, size_t size);
/* Takes the SHA-256 of all that is written after it; commit puts it into `hex` [KN_SHA256_HEX_BYTES]. */
void kn_file_writer_hash(KnFileWriter *writer, char *hex);
int kn_file_writer_commit(KnFileWriter *writer);
void kn_file_writer_abort(KnFileWriter *writer); /* removes the temporary; NULL is fine */

/* For files and folders that a library writes by name (HDF5, FFmpeg) or that hold many files (a checkpoint): write to
 * kn_temporary_path(path) (free() it), then publish, which fsyncs the file or the whole tree, renames and fsyncs the
 * parent. A file replaces an older one; a folder is refused where the name exists and is not an empty folder. On
 * failure the temporary is removed. */
char *kn_temporary_path(const char *path);
int kn_file_publish(const char *temporary, const char *path);
int kn_directory_publish(const char *temporary, const char *path);
int kn_is_temporary_name(const char *name);                 /* a last path component made by kn_temporary_path */
int kn_is_temporary_of(const char *name, const char *path); /* made by it for this path */
/* Removes what killed writers left in `folder`; only for a folder in which nobody else is writing. */
int kn_remove_temporaries(const char *folder);

/* Folders */
int kn_make_directories(const char *path);                    /* mkdir -p */
int kn_list_directory(const char *path, KnStringList *names); /* fills a {0} list, sorted by bytes, hidden ones too */
int kn_remove_tree(const char *path); /* file or folder; links are not followed; absent is fine */
int kn_sync_directory(const char *path);

#endif
