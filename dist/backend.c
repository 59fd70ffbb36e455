/* Choosing between the CPU and GPUs, alike on all ranks. */
#include "dist/backend.h"

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/cpu/backend.h"
#include "core/graph/devices.h"
#include "dist/comm.h"

#include <string.h>

int kn_backend_open(const char *device, KnComm *comm, KnBackend **backend)
{
    *backend = kn_cpu_backend();
    if (strcmp(device, "cpu") == 0)
        return KN_OK;
    int wanted = strcmp(device, "cuda") == 0;
    if (!wanted && strcmp(device, "auto") != 0)
        return kn_fail(KN_EINPUT, "run.device is '%s': use auto, cpu or cuda", device);
    KnBackend *cuda = NULL;
    int code = kn_comm_error_agree(comm, kn_cuda_backend_open(kn_cuda_plugin_path(), comm->local_rank, &cuda));
    if (code == KN_OK) {
        *backend = cuda;
        return KN_OK;
    }
    kn_backend_close(cuda);
    if (wanted)
        return code;
    if (comm->rank == 0)
        kn_log("computing on the CPU: %s", kn_error_message());
    return KN_OK;
}
