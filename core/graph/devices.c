/* Opening the CUDA backend. */
#include "core/graph/devices.h"

#include "core/base/error.h"
#include "core/base/plugin.h"

#include <stdlib.h>

const char *kn_cuda_plugin_path(void)
{
    return getenv("KINORA_CUDA_PLUGIN");
}

int kn_cuda_backend_open(const char *path, int device, KnBackend **backend)
{
    int (*open)(int, KnBackend **) = NULL;
    KN_TRY(kn_plugin_find(path, "kinora-cuda.so", "kn_cuda_open", &open));
    return open(device, backend);
}

int kn_cuda_backend_plan(const char *path, KnBackend **backend)
{
    KnBackend *(*planning)(void) = NULL;
    KN_TRY(kn_plugin_find(path, "kinora-cuda.so", "kn_cuda_planning_backend", &planning));
    *backend = planning();
    return KN_OK;
}

void kn_backend_close(KnBackend *backend)
{
    if (backend && backend->close)
        backend->close(backend);
}
