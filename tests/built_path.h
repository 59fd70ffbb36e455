/* Where the build has what lies beside a test program, or plugins, in the folder above. */
#ifndef KN_TESTS_BUILT_PATH_H
#define KN_TESTS_BUILT_PATH_H

#include "core/base/memory.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static inline char *built_path(const char *name) /* from the program's folder; free() it */
{
    char path[4096];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    path[length > 0 ? length : 0] = '\0';
    *strrchr(path, '/') = '\0';
    return kn_format("%s/%s", path, name);
}

static inline char *plugin_path(const char *name) /* free() it */
{
    char *folder = built_path(".."), *path = kn_format("%s/%s", folder, name);
    free(folder);
    return path;
}

#endif
