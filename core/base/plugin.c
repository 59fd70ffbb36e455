/* dlopen, with sentences. */
#include "core/base/plugin.h"

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/memory.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char *beside_program(const char *name)
{
    char program[4096];
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    program[length > 0 ? length : 0] = '\0';
    char *slash = strrchr(program, '/');
    return kn_format("%.*s%s", slash ? (int)(slash + 1 - program) : 0, program, name);
}

/* By its absolute path: the linker would look elsewhere for a name without a slash. */
static int open_library(const char *path, void **library)
{
    char *absolute = kn_path_absolute(path);
    *library = dlopen(absolute, RTLD_NOW | RTLD_LOCAL);
    free(absolute);
    if (*library)
        return KN_OK;
    const char *reason = dlerror();
    return kn_fail(KN_EPEER, "cannot open the plugin for GPUs: %s%s", reason,
                   strstr(reason, "undefined symbol: kn_") ? ", which this kinora does not have: build both together"
                                                           : "");
}

static int find(const char *path, const char *function, void *address)
{
    void *library;
    if (access(path, R_OK) != 0 && errno == ENOENT)
        return kn_fail(KN_EPEER, "%s is missing: kinora was built without CUDA and NCCL, which GPUs need", path);
    KN_TRY(open_library(path, &library));
    void *symbol = dlsym(library, function);
    if (!symbol)
        return kn_fail(KN_EPEER, "%s is no plugin of this kinora, since it has no %s: build both together", path,
                       function);
    memcpy(address, &symbol, sizeof symbol);
    return KN_OK;
}

int kn_plugin_find(const char *path, const char *name, const char *function, void *address)
{
    char *own = path ? NULL : beside_program(name);
    int code = find(path ? path : own, function, address);
    free(own);
    return code;
}

int kn_library_is_there(const char *name)
{
    return dlopen(name, RTLD_LAZY | RTLD_LOCAL) != NULL;
}
