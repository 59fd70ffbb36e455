/* dlopen, with sentences. */
#include "core/base/plugin.h"

#include "core/base/error.h"
#include "core/base/memory.h"

#include <dlfcn.h>
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

static int find(const char *path, const char *function, void *address)
{
    if (access(path, R_OK) != 0)
        return kn_fail(KN_EPEER, "%s is missing: kinora was built without CUDA and NCCL, which GPUs need", path);
    void *plugin = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    void *symbol = plugin ? dlsym(plugin, function) : NULL;
    if (!symbol)
        return kn_fail(KN_EPEER, "cannot open the plugin for GPUs: %s", dlerror());
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
