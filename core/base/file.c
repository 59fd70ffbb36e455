/* Files and folders: questions, paths, reading, mapping and listing. Writing is in core/base/file_write.c. */
#include "core/base/file.h"

#include "core/base/error.h"
#include "core/base/memory.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int kn_file_exists(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0;
}

int kn_is_directory(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

int kn_file_size(const char *path, int64_t *bytes)
{
    struct stat status;
    *bytes = 0;
    if (stat(path, &status) != 0)
        return kn_fail(KN_EIO, "cannot open %s: %s", path, strerror(errno));
    if (!S_ISREG(status.st_mode))
        return kn_fail(KN_EIO, "%s is not a regular file", path);
    *bytes = status.st_size;
    return KN_OK;
}

char *kn_path_join(const char *folder, const char *name)
{
    if (name[0] == '/' || !folder[0])
        return kn_strdup(name);
    return kn_format(kn_ends_with(folder, "/") ? "%s%s" : "%s/%s", folder, name);
}

char *kn_path_folder(const char *path)
{
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/')
        length--;
    while (length > 0 && path[length - 1] != '/')
        length--;
    while (length > 1 && path[length - 1] == '/')
        length--;
    return length ? kn_format("%.*s", (int)length, path) : kn_strdup(".");
}

static void append_part(KnText *out, const char *part, size_t length)
{
    if (length == 0 || (length == 1 && part[0] == '.'))
        return;
    if (length == 2 && !memcmp(part, "..", 2))
        while (out->length && out->bytes[--out->length] != '/')
            ;
    else
        kn_text_appendf(out, "/%.*s", (int)length, part);
}

char *kn_path_absolute(const char *path)
{
    char *here = path[0] == '/' ? NULL : getcwd(NULL, 0), *whole = kn_path_join(here ? here : "/", path);
    KnText out = {0};
    for (const char *part = whole; *part; part += strcspn(part, "/"), part += *part == '/')
        append_part(&out, part, strcspn(part, "/"));
    if (out.length == 0)
        kn_text_append(&out, "/");
    free(here);
    free(whole);
    return kn_text_take(&out);
}

const char *kn_path_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Reads to the end, growing as it goes: sizes of pipes and of /proc are not known beforehand. */
static int read_all(int descriptor, const char *path, size_t expected, char **bytes, size_t *size)
{
    size_t capacity = expected + 1, used = 0;
    char *memory = malloc(capacity);
    while (memory) {
        if (used + 1 == capacity || capacity < 2) { /* full but for the NUL: is there more? */
            char *larger = realloc(memory, capacity = 2 * capacity + 4096);
            if (!larger)
                break;
            memory = larger;
        }
        ssize_t got = read(descriptor, memory + used, capacity - used - 1);
        if (got > 0) {
            used += (size_t)got;
        } else if (got == 0) {
            memory[used] = 0;
            *bytes = memory;
            *size = used;
            return KN_OK;
        } else if (errno != EINTR) {
            int reason = errno;
            free(memory);
            return kn_fail(KN_EIO, "cannot read %s: %s", path, strerror(reason));
        }
    }
    free(memory);
    return kn_fail(KN_EMEMORY, "not enough memory to read %s: %.1f MiB needed", path, (double)capacity / 1048576.0);
}

int kn_file_read(const char *path, char **bytes, size_t *size)
{
    struct stat status;
    *bytes = NULL;
    *size = 0;
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0)
        return kn_fail(KN_EIO, "cannot open %s: %s", path, strerror(errno));
    size_t expected = fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode) ? (size_t)status.st_size : 0;
    int code = read_all(descriptor, path, expected, bytes, size);
    close(descriptor);
    return code;
}

int kn_file_map(KnFileMap *map, const char *path)
{
    static const unsigned char nothing[1];
    struct stat status;
    *map = (KnFileMap){0};
    int descriptor = open(path, O_RDONLY | O_CLOEXEC), code = KN_OK;
    if (descriptor < 0)
        return kn_fail(KN_EIO, "cannot open %s: %s", path, strerror(errno));
    if (fstat(descriptor, &status) != 0) {
        code = kn_fail(KN_EIO, "cannot read %s: %s", path, strerror(errno));
    } else if (!S_ISREG(status.st_mode)) {
        code = kn_fail(KN_EIO, "%s is not a regular file", path);
    } else if (status.st_size == 0) {
        map->bytes = nothing;
    } else {
        void *bytes = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, descriptor, 0);
        if (bytes == MAP_FAILED)
            code = kn_fail(KN_EIO, "cannot map %s: %s", path, strerror(errno));
        else
            *map = (KnFileMap){bytes, (size_t)status.st_size};
    }
    close(descriptor);
    return code;
}

void kn_file_unmap(KnFileMap *map)
{
    if (map->size)
        munmap((void *)(uintptr_t)map->bytes, map->size);
    *map = (KnFileMap){0};
}

int kn_list_directory(const char *path, KnStringList *names)
{
    DIR *directory = opendir(path);
    if (!directory)
        return kn_fail(KN_EIO, "cannot open the folder %s: %s", path, strerror(errno));
    struct dirent *entry;
    while (errno = 0, (entry = readdir(directory)))
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            kn_string_list_add(names, entry->d_name);
    int reason = errno;
    closedir(directory);
    if (reason) {
        kn_string_list_clear(names);
        return kn_fail(KN_EIO, "cannot read the folder %s: %s", path, strerror(reason));
    }
    kn_string_list_sort(names);
    return KN_OK;
}

/* Makes one folder; that it is there already, perhaps made by another rank just now, is success. */
static int make_directory(const char *path)
{
    if (mkdir(path, 0777) == 0)
        return KN_OK;
    int reason = errno;
    if (kn_is_directory(path))
        return KN_OK;
    if (reason == EEXIST)
        return kn_fail(KN_EIO, "cannot make the folder %s: a file of that name exists", path);
    return kn_fail(KN_EIO, "cannot make the folder %s: %s", path, strerror(reason));
}

int kn_make_directories(const char *path)
{
    char *prefix = kn_strdup(path);
    int code = KN_OK;
    for (char *slash = strchr(prefix + (prefix[0] == '/'), '/'); slash && code == KN_OK;
         slash = strchr(slash + 1, '/')) {
        *slash = 0;
        if (prefix[0])
            code = make_directory(prefix);
        *slash = '/';
    }
    if (code == KN_OK)
        code = make_directory(path);
    free(prefix);
    return code;
}

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *place)
{
    (void)status;
    (void)kind;
    (void)place;
    if (remove(path) == 0 || errno == ENOENT)
        return 0;
    return kn_fail(KN_EIO, "cannot remove %s: %s", path, strerror(errno));
}

int kn_remove_tree(const char *path)
{
    enum { OPEN_FOLDERS = 16 };
    int result = nftw(path, remove_entry, OPEN_FOLDERS, FTW_DEPTH | FTW_PHYS);
    if (result == -1) /* from nftw itself, not from remove_entry */
        return errno == ENOENT ? KN_OK : kn_fail(KN_EIO, "cannot remove %s: %s", path, strerror(errno));
    return result;
}
