/* Opening the CUDA backend. */
#include "core/graph/devices.h"

#include "core/base/error.h"
#include "core/base/plugin.h"

#include <stdlib.h>
#include <string.h>

const char *kn_cuda_plugin_path(void)
{
    return getenv("KINORA_CUDA_PLUGIN");
}

static const char plugin_name[] = "kinora-cuda.so";

/* The plugin shares structs and tables with the program: neither may come from another version. */
static int check_interface(const char *path)
{
    const char *(*interface)(void) = NULL;
    KN_TRY(kn_plugin_find(path, plugin_name, "kn_cuda_interface", &interface));
    if (strcmp(interface(), KINORA_INTERFACE) == 0)
        return KN_OK;
    return kn_fail(KN_EPEER, "%s is of another version than this program: build both together",
                   path ? path : "kinora-cuda.so beside the program");
}

/* Opening the plugin to find this out costs a fifth of a second of libraries. Another plugin than ours needs none. */
static int check_driver(const char *path)
{
    if (path || kn_library_is_there("libcuda.so.1"))
        return KN_OK;
    return kn_fail(KN_EPEER, "there is no NVIDIA driver (libcuda.so.1), which GPUs need");
}

int kn_cuda_backend_open(const char *path, int device, KnBackend **backend)
{
    int (*open)(int, KnBackend **) = NULL;
    KN_TRY(check_driver(path));
    KN_TRY(check_interface(path));
    KN_TRY(kn_plugin_find(path, plugin_name, "kn_cuda_open", &open));
    return open(device, backend);
}

int kn_cuda_backend_plan(const char *path, KnBackend **backend)
{
    KnBackend *(*planning)(void) = NULL;
    KN_TRY(check_interface(path));
    KN_TRY(kn_plugin_find(path, plugin_name, "kn_cuda_planning_backend", &planning));
    *backend = planning();
    return KN_OK;
}

void kn_backend_close(KnBackend *backend)
{
    if (backend && backend->close)
        backend->close(backend);
}
