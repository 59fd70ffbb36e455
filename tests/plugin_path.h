/* Where the build has its plugins: in the folder above that of the test program. */
#ifndef KN_TESTS_PLUGIN_PATH_H
#define KN_TESTS_PLUGIN_PATH_H

#include "core/base/memory.h"

#include <string.h>
#include <unistd.h>

static inline char *plugin_path(const char *name) /* free() it */
{
    char path[4096];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    path[length > 0 ? length : 0] = '\0';
    *strrchr(path, '/') = '\0';
    return kn_format("%s/../%s", path, name);
}

#endif
