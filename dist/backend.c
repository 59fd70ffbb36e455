/* Choosing between the CPU and GPUs, alike on all ranks. */
#include "dist/backend.h"

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/memory.h"
#include "core/cpu/backend.h"
#include "core/graph/devices.h"
#include "dist/comm.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Of each rank "HOST: GPU (ID)". NCCL too refuses two ranks on one GPU, but later and in other words. */
static int check_places(const KnComm *comm, char *const *places)
{
    for (int rank = 1; rank < comm->ranks; rank++)
        for (int other = 0; other < rank; other++)
            if (strcmp(places[rank], places[other]) == 0)
                return kn_fail(KN_EPEER,
                               "rank %d and rank %d would share one GPU, on host %s: start one rank for each GPU, or "
                               "compute on the CPU (run.device: cpu, or --device cpu)",
                               other, rank, places[rank]);
    return KN_OK;
}

static int check_gpus(KnComm *comm, const KnBackend *cuda)
{
    char host[256] = "", **places = kn_alloc((size_t)comm->ranks * sizeof *places);
    gethostname(host, sizeof host - 1);
    char *place = kn_format("%s: %s (%s)", host, cuda->device, cuda->device_id);
    int code = kn_comm_gather_text(comm, place, places, "GPUs of the ranks");
    if (code == KN_OK)
        code = check_places(comm, places);
    for (int rank = 0; rank < comm->ranks; rank++)
        free(places[rank]);
    free(places);
    free(place);
    return code;
}

static int open_gpus(KnComm *comm, KnBackend **cuda)
{
    KN_TRY(kn_comm_error_agree(comm, kn_cuda_backend_open(kn_cuda_plugin_path(), comm->local_rank, cuda)));
    KN_TRY(comm->ranks > 1 ? check_gpus(comm, *cuda) : KN_OK);
    if (comm->rank == 0 && comm->ranks == 1)
        kn_log("computing on %s (%s)", (*cuda)->device, (*cuda)->device_id);
    else if (comm->rank == 0)
        kn_log("computing on %d GPUs, the first %s", comm->ranks, (*cuda)->device);
    return KN_OK;
}

int kn_backend_open(const char *device, KnComm *comm, KnBackend **backend)
{
    *backend = kn_cpu_backend();
    if (strcmp(device, "cpu") == 0)
        return KN_OK;
    int wanted = strcmp(device, "cuda") == 0;
    if (!wanted && strcmp(device, "auto") != 0)
        return kn_fail(KN_EINPUT, "run.device is '%s': use auto, cpu or cuda", device);
    KnBackend *cuda = NULL;
    int code = open_gpus(comm, &cuda);
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
