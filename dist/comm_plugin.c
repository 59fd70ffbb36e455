/* Opening the communicator over NCCL, which is part of the plugin for GPUs. */
#include "core/base/error.h"
#include "core/base/plugin.h"
#include "dist/comm.h"

int kn_comm_nccl_open(KnComm *host, const char *path, void *compute_stream, KnComm **comm)
{
    int (*open)(KnComm *, void *, KnComm **) = NULL;
    KN_TRY(kn_comm_error_agree(host, kn_plugin_find(path, "kinora-cuda.so", "kn_nccl_open", &open)));
    return open(host, compute_stream, comm);
}
