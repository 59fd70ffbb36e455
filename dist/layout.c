/* Putting mesh, communicators, tensor parts and ZeRO ranges together. */
#include "dist/layout.h"

#include "core/base/error.h"
#include "core/cpu/parallel.h"
#include "core/graph/devices.h"
#include "dist/comm.h"
#include "dist/sharding.h"

static int check_mode(const KnParallelConfig *c, const KnMesh *mesh)
{
    if (c->mode != KN_PARALLEL_LAYOUT_INVARIANT)
        return KN_OK;
    if (mesh->sizes[KN_AXIS_TENSOR] > 1)
        return kn_fail(KN_EINPUT, "parallel.mode layout_invariant has no tensor parallelism: parallel.tensor is %d",
                       mesh->sizes[KN_AXIS_TENSOR]);
    if (kn_mesh_group_size(mesh, KN_GROUP_SEQUENCE) > KN_INVARIANT_CHUNKS)
        return kn_fail(
            KN_EINPUT,
            "parallel.mode layout_invariant cuts a pack's tokens into %d chunks, too few for ring %d x ulysses "
            "%d ranks",
            KN_INVARIANT_CHUNKS, mesh->sizes[KN_AXIS_RING], mesh->sizes[KN_AXIS_ULYSSES]);
    return KN_OK;
}

int kn_layout_create(KnLayout *layout, const KnModel *model, const KnLayoutOptions *o)
{
    int rank = o->world ? o->world->rank : o->rank, ranks = o->world ? o->world->ranks : o->ranks;
    const KnParallelConfig *c = o->parallel;
    *layout = (KnLayout){.model = model, .invariant = c->mode == KN_PARALLEL_LAYOUT_INVARIANT, .text = c->text};
    KN_TRY(kn_mesh_create(&layout->mesh, c, rank, ranks));
    if (o->training && c->cfg > 1)
        return kn_fail(KN_EINPUT, "parallel.cfg is %lld, but training has no guidance to share: leave it at 1",
                       (long long)c->cfg);
    int tensor = layout->mesh.sizes[KN_AXIS_TENSOR];
    if (tensor > model->config.heads || tensor > model->config.ffn)
        return kn_fail(KN_EINPUT, "parallel.tensor is %d, more than the model's %lld heads can be shared among", tensor,
                       (long long)model->config.heads);
    KN_TRY(check_mode(c, &layout->mesh));
    kn_parameter_set_split(&model->config, &model->parameters, layout->mesh.coordinates[KN_AXIS_TENSOR], tensor,
                           &layout->part);
    kn_zero_create(&layout->zero, &model->parameters, &layout->part, &layout->mesh, (int)c->zero, o->whole_matrices);
    return o->world && ranks > 1 ? kn_mesh_comms_create(&layout->comms, &layout->mesh, o->world) : KN_OK;
}

int kn_layout_use_device(KnLayout *layout, KnBackend *backend)
{
    KnComm *world = layout->comms.world, *device_world;
    if (!world || !backend->memory)
        return KN_OK;
    KN_TRY(kn_comm_nccl_open(world, kn_cuda_plugin_path(), backend->stream, &device_world));
    layout->device_world = backend->comm = device_world;
    layout->backend = backend;
    return kn_mesh_comms_create(&layout->device, &layout->mesh, device_world);
}

KnComm *const *kn_layout_comms(const KnLayout *layout)
{
    return layout->device.world ? layout->device.groups : layout->comms.groups;
}

void kn_layout_destroy(KnLayout *layout)
{
    kn_mesh_comms_destroy(&layout->device);
    if (layout->device_world) {
        layout->backend->comm = NULL;
        layout->device_world->table->destroy(layout->device_world);
    }
    kn_mesh_comms_destroy(&layout->comms);
    kn_zero_destroy(&layout->zero);
    kn_parameter_set_clear(&layout->part);
    *layout = (KnLayout){0};
}

KnBox kn_layout_box(const KnLayout *layout, const KnParameterValues *values, int index)
{
    const KnParameter *part = &layout->part.list[index];
    const KnParameter *whole = kn_parameter_find(&layout->model->parameters, part->name);
    const KnMesh *mesh = &layout->mesh;
    KnSplit split = kn_parameter_split(&layout->model->config, whole, mesh->coordinates[KN_AXIS_TENSOR],
                                       mesh->sizes[KN_AXIS_TENSOR]);
    KnBox box = {.count = {part->shape[0], part->dims > 1 ? part->shape[1] : 1}};
    int64_t first, count, row = part->shape[0] ? part->elements / part->shape[0] : 0;
    box.data = kn_zero_part(values, part, &first, &count);
    KN_ASSERT(row == 0 || (first % row == 0 && count % row == 0));
    box.start[0] = count ? first / row : 0;
    box.count[0] = count ? count / row : 0;
    if (split.axis >= 0)
        box.start[split.axis] += split.first;
    return box;
}

/* A parameter's part here, to be filled by its rows. */
typedef struct InitialRows {
    const KnParameter *whole;
    KnBox box;
    uint64_t seed;
} InitialRows;

static void fill_rows(const void *arguments, int64_t first, int64_t last)
{
    const InitialRows *rows = arguments;
    const KnBox *box = &rows->box;
    int64_t width = rows->whole->dims > 1 ? rows->whole->shape[1] : 1;
    int64_t rest = rows->whole->elements / (rows->whole->shape[0] * width);
    for (int64_t r = first; r < last; r++)
        kn_parameter_init(rows->whole, rows->seed, ((box->start[0] + r) * width + box->start[1]) * rest,
                          box->count[1] * rest, box->data + r * box->count[1] * rest);
}

void kn_layout_init(const KnLayout *layout, KnParameterValues *values, uint64_t seed)
{
    enum { ELEMENTS = 1 << 14, COST = 8 }; /* of a block; of a random number */
    for (int i = 0; i < layout->part.count; i++) {
        InitialRows rows = {.seed = seed};
        rows.whole = kn_parameter_find(&layout->model->parameters, layout->part.list[i].name);
        rows.box = kn_layout_box(layout, values, i);
        int64_t width = rows.whole->elements / rows.whole->shape[0];
        KnLoop loop = {.count = rows.box.count[0], .block = ELEMENTS / width + 1, .work = COST * width};
        kn_parallel_for(loop, fill_rows, &rows);
    }
}
