/* Cutting the ranks into groups. */
#include "infer/workers.h"

#include "core/base/error.h"
#include "core/cpu/backend.h"
#include "core/graph/devices.h"
#include "dist/comm.h"
#include "infer/device.h"

static int read_mesh(KnParallelConfig *parallel, const char *text)
{
    *parallel = (KnParallelConfig){.shard = 1, .ulysses = 1, .ring = 1, .tensor = 1, .cfg = 1, .zero = -1};
    KN_TRY(text ? kn_mesh_parse(text, parallel) : KN_OK);
    if (parallel->zero < 0)
        parallel->zero = parallel->shard > 1 ? 3 : 0;
    return KN_OK;
}

static int form_groups(KnWorkers *workers, int one_group)
{
    KnMesh mesh;
    KnComm *world = workers->world;
    KN_TRY(kn_mesh_create(&mesh, &workers->parallel, world->rank, world->ranks));
    workers->groups = one_group ? 1 : mesh.sizes[KN_AXIS_DATA];
    workers->group = one_group ? 0 : mesh.coordinates[KN_AXIS_DATA];
    if (workers->groups > 1)
        workers->parallel.data = 1;
    if (world->ranks == workers->groups)
        return KN_OK;
    if (workers->groups > 1)
        return world->table->split(world, workers->group, "group", &workers->comm);
    workers->comm = world;
    return KN_OK;
}

static void share_processors(const KnComm *world)
{
    int share = kn_cpu_threads() / world->local_ranks;
    if (world->ranks > 1)
        kn_cpu_set_threads(share > 1 ? share : 1);
}

int kn_workers_create(KnWorkers *workers, const char *mesh, int one_group, KnComm *world)
{
    *workers = (KnWorkers){.world = world};
    share_processors(world);
    int code = read_mesh(&workers->parallel, mesh);
    if (code == KN_OK)
        code = form_groups(workers, one_group);
    return code < 0 && mesh ? kn_fail_prefix(code, "--mesh %s", mesh) : code;
}

static int open_model(KnWorkers *workers, const char *path, KnModelFile *file)
{
    if (!workers->comm)
        return kn_model_open(file, workers->world, path);
    KnLayoutOptions options = {.parallel = &workers->parallel, .world = workers->comm};
    return kn_model_open_shared(file, workers->world, path, &options, &workers->layout);
}

int kn_workers_open_model(KnWorkers *workers, const char *path, const char *device, KnModelFile *file)
{
    KnComm *world = workers->world;
    KN_TRY(open_model(workers, path, file));
    KN_TRY(kn_device_open(device, file, world, &workers->backend));
    KN_TRY(kn_layout_use_device(&workers->layout, workers->backend));
    return kn_comm_error_agree(world, kn_parameter_values_place(&file->weights, workers->backend, "the weights"));
}

void kn_workers_destroy(KnWorkers *workers, KnModelFile *file)
{
    if (workers->backend)
        kn_parameter_values_withdraw(&file->weights, workers->backend);
    kn_model_close(file);
    kn_layout_destroy(&workers->layout);
    if (workers->comm && workers->comm != workers->world)
        workers->comm->table->destroy(workers->comm);
    kn_backend_close(workers->backend);
    *workers = (KnWorkers){0};
}

const KnLayout *kn_workers_layout(const KnWorkers *workers)
{
    return workers->comm ? &workers->layout : NULL;
}

int kn_workers_rank(const KnWorkers *workers)
{
    return workers->comm ? workers->comm->rank : 0;
}
