/* Opening the plugin for GPUs: a program linked to NCCL would not start where it is missing. */
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/text.h"
#include "dist/comm.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PLUGIN "kinora-cuda.so"

static char *beside_program(void)
{
    char program[4096];
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    program[length > 0 ? length : 0] = '\0';
    char *slash = strrchr(program, '/');
    return kn_format("%.*s" PLUGIN, slash ? (int)(slash + 1 - program) : 0, program);
}

/* The plugin stays open: threads of NCCL and CUDA run in it until the process ends. */
static int open_plugin(const char *path, int (**open)(KnComm *host, void *compute_stream, KnComm **comm))
{
    if (access(path, R_OK) != 0)
        return kn_fail(KN_EPEER, "%s is missing: kinora was built without CUDA and NCCL, which GPUs need", path);
    void *plugin = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    void *symbol = plugin ? dlsym(plugin, "kn_nccl_open") : NULL;
    if (!symbol)
        return kn_fail(KN_EPEER, "cannot open the plugin for GPUs: %s", dlerror());
    memcpy(open, &symbol, sizeof symbol);
    return KN_OK;
}

int kn_comm_nccl_open(KnComm *host, const char *path, void *compute_stream, KnComm **comm)
{
    int (*open)(KnComm *, void *, KnComm **) = NULL;
    char *own = path ? NULL : beside_program();
    int code = open_plugin(path ? path : own, &open);
    free(own);
    KN_TRY(kn_comm_error_agree(host, code));
    return open(host, compute_stream, comm);
}
