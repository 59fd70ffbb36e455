/* Coordinates and groups of the mesh; groups are products of axes. */
#include "dist/mesh.h"

#include "core/base/error.h"
#include "core/base/text.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const axis_names[KN_AXIS_COUNT] = {
    [KN_AXIS_DATA] = "data", [KN_AXIS_SHARD] = "shard",     [KN_AXIS_CFG] = "cfg",
    [KN_AXIS_RING] = "ring", [KN_AXIS_ULYSSES] = "ulysses", [KN_AXIS_TENSOR] = "tensor",
};

#define BIT(axis) (1u << KN_AXIS_##axis)

static const struct {
    const char *name;
    unsigned axes;
} groups[KN_GROUP_COUNT] = {
    [KN_GROUP_DATA] = {"data", BIT(DATA)},
    [KN_GROUP_ZERO] = {"zero", BIT(SHARD) | BIT(RING) | BIT(ULYSSES)},
    [KN_GROUP_SUM] = {"sum", BIT(DATA) | BIT(SHARD) | BIT(RING) | BIT(ULYSSES)},
    [KN_GROUP_SEQUENCE] = {"sequence", BIT(RING) | BIT(ULYSSES)},
    [KN_GROUP_RING] = {"ring", BIT(RING)},
    [KN_GROUP_ULYSSES] = {"ulysses", BIT(ULYSSES)},
    [KN_GROUP_TENSOR] = {"tensor", BIT(TENSOR)},
    [KN_GROUP_CFG] = {"cfg", BIT(CFG)},
};

const char *kn_group_name(KnGroup group)
{
    return groups[group].name;
}

/* --- From text ---------------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    size_t offset;
    long long low, high;
} settings[] = {
    {"data", offsetof(KnParallelConfig, data), 1, 1 << 20},
    {"shard", offsetof(KnParallelConfig, shard), 1, 1 << 20},
    {"cfg", offsetof(KnParallelConfig, cfg), 1, 2},
    {"ring", offsetof(KnParallelConfig, ring), 1, 1 << 16},
    {"ulysses", offsetof(KnParallelConfig, ulysses), 1, 256},
    {"tensor", offsetof(KnParallelConfig, tensor), 1, 1 << 16},
    {"zero", offsetof(KnParallelConfig, zero), 0, 3},
};
enum { SETTING_COUNT = sizeof settings / sizeof *settings };

static int fail_unknown(const char *name)
{
    const char *names[SETTING_COUNT];
    for (int i = 0; i < SETTING_COUNT; i++)
        names[i] = settings[i].name;
    const char *nearest = kn_nearest(name, names, SETTING_COUNT);
    if (nearest)
        return kn_fail(KN_EINPUT, "a mesh has no axis \"%s\"; did you mean %s?", name, nearest);
    return kn_fail(KN_EINPUT,
                   "a mesh has no axis \"%s\": it is made of data, shard, cfg, ring, ulysses, tensor and zero", name);
}

/* `given` has a bit for each setting that was there before. */
static int parse_setting(char *word, KnParallelConfig *parallel, unsigned *given)
{
    char *value = strchr(word, '='), *end = NULL;
    if (!value || value == word)
        return kn_fail(KN_EINPUT, "\"%s\" is no part of a mesh: write AXIS=N, as in ulysses=2,cfg=2", word);
    *value++ = '\0';
    for (int i = 0; i < SETTING_COUNT; i++) {
        if (strcmp(word, settings[i].name) != 0)
            continue;
        long long number = strtoll(value, &end, 10);
        if (end == value || *end || number < settings[i].low || number > settings[i].high)
            return kn_fail(KN_EINPUT, "%s=%s: %s is a number from %lld to %lld", word, value, word, settings[i].low,
                           settings[i].high);
        if (*given & 1u << i)
            return kn_fail(KN_EINPUT, "%s=%s: the mesh says %s twice: leave one of them out", word, value, word);
        *given |= 1u << i;
        memcpy((char *)parallel + settings[i].offset, &(int64_t){number}, sizeof(int64_t));
        return KN_OK;
    }
    return fail_unknown(word);
}

int kn_mesh_parse(const char *text, KnParallelConfig *parallel)
{
    unsigned given = 0;
    while (1) {
        size_t length = strcspn(text, ",");
        char *word = kn_format("%.*s", (int)length, text);
        int code = parse_setting(word, parallel, &given);
        free(word);
        if (code < 0 || !text[length])
            return code;
        text += length + 1;
    }
}

/* --- Creating ----------------------------------------------------------------------------------------------------- */

static void find_coordinates(KnMesh *mesh)
{
    int rest = mesh->rank;
    for (int axis = KN_AXIS_COUNT - 1; axis >= 0; axis--) {
        mesh->coordinates[axis] = rest % mesh->sizes[axis];
        rest /= mesh->sizes[axis];
    }
}

int kn_mesh_create(KnMesh *mesh, const KnParallelConfig *c, int rank, int ranks)
{
    const int64_t asked[KN_AXIS_COUNT] = {
        [KN_AXIS_DATA] = c->data, [KN_AXIS_SHARD] = c->shard,     [KN_AXIS_CFG] = c->cfg,
        [KN_AXIS_RING] = c->ring, [KN_AXIS_ULYSSES] = c->ulysses, [KN_AXIS_TENSOR] = c->tensor,
    };
    int64_t product = 1;
    *mesh = (KnMesh){.rank = rank, .ranks = ranks};
    for (int axis = 0; axis < KN_AXIS_COUNT; axis++)
        if (axis != KN_AXIS_DATA && __builtin_mul_overflow(product, asked[axis], &product))
            product = INT64_MAX;
    int64_t data = c->data > 0 ? c->data : product > 0 && ranks % product == 0 ? ranks / product : 0;
    if (data == 0)
        return kn_fail(KN_EINPUT,
                       "%d rank%s cannot be cut into groups of %lld, the product of parallel.shard, cfg, ring, ulysses "
                       "and tensor: start a multiple of %lld, or change one of them",
                       ranks, ranks == 1 ? "" : "s", (long long)product, (long long)product);
    if (__builtin_mul_overflow(product, data, &product) || product != ranks)
        return kn_fail(KN_EINPUT,
                       "parallel asks for %lld ranks (data %lld x shard %lld x cfg %lld x ring %lld x ulysses %lld x "
                       "tensor %lld) but %d %s running: start that many, or set parallel.data to auto",
                       (long long)product, (long long)data, (long long)c->shard, (long long)c->cfg, (long long)c->ring,
                       (long long)c->ulysses, (long long)c->tensor, ranks, ranks == 1 ? "is" : "are");
    for (int axis = 0; axis < KN_AXIS_COUNT; axis++)
        mesh->sizes[axis] = (int)asked[axis];
    mesh->sizes[KN_AXIS_DATA] = (int)data;
    find_coordinates(mesh);
    return KN_OK;
}

/* --- Questions ---------------------------------------------------------------------------------------------------- */

static int in_group(KnGroup group, int axis)
{
    return (groups[group].axes >> axis & 1) != 0;
}

int kn_mesh_group_size(const KnMesh *mesh, KnGroup group)
{
    int size = 1;
    for (int axis = 0; axis < KN_AXIS_COUNT; axis++)
        size *= in_group(group, axis) ? mesh->sizes[axis] : 1;
    return size;
}

/* Place among the ranks that agree on the axes in the group (`within` 1) or on all others (0: which group it is). */
static int place(const KnMesh *mesh, KnGroup group, int within)
{
    int at = 0;
    for (int axis = 0; axis < KN_AXIS_COUNT; axis++)
        if (in_group(group, axis) == within)
            at = at * mesh->sizes[axis] + mesh->coordinates[axis];
    return at;
}

int kn_mesh_group_rank(const KnMesh *mesh, KnGroup group)
{
    return place(mesh, group, 1);
}

int64_t kn_mesh_group_stride(const KnMesh *mesh, KnGroup group)
{
    int axis = KN_AXIS_COUNT - 1;
    int64_t stride = 1;
    for (; axis > 0 && !(in_group(group, axis) && mesh->sizes[axis] > 1); axis--)
        stride *= mesh->sizes[axis];
    return stride;
}

int kn_mesh_replicas(const KnMesh *mesh)
{
    return mesh->sizes[KN_AXIS_DATA] * mesh->sizes[KN_AXIS_SHARD];
}

int kn_mesh_replica(const KnMesh *mesh)
{
    return mesh->coordinates[KN_AXIS_DATA] * mesh->sizes[KN_AXIS_SHARD] + mesh->coordinates[KN_AXIS_SHARD];
}

char *kn_mesh_describe(const KnMesh *mesh)
{
    KnText text = {0};
    for (int axis = 0; axis < KN_AXIS_COUNT; axis++)
        if (mesh->sizes[axis] > 1)
            kn_text_appendf(&text, "%s%s %d", text.length ? " x " : "", axis_names[axis], mesh->sizes[axis]);
    if (!text.length)
        kn_text_appendf(&text, "one rank");
    return kn_text_take(&text);
}

char *kn_mesh_to_json(const KnMesh *mesh)
{
    KnText text = {0};
    for (int axis = 0; axis < KN_AXIS_COUNT; axis++)
        if (axis == KN_AXIS_DATA || mesh->sizes[axis] > 1)
            kn_text_appendf(&text, "%s\"%s\": %d", text.length ? ", " : "{", axis_names[axis], mesh->sizes[axis]);
    kn_text_appendf(&text, "}");
    return kn_text_take(&text);
}

/* --- Communicators ------------------------------------------------------------------------------------------------ */

int kn_mesh_comms_create(KnMeshComms *comms, const KnMesh *mesh, KnComm *world)
{
    *comms = (KnMeshComms){.world = world};
    for (int group = 0; group < KN_GROUP_COUNT; group++) {
        if (kn_mesh_group_size(mesh, group) == 1)
            continue;
        KN_TRY(world->table->split(world, place(mesh, group, 0), groups[group].name, &comms->groups[group]));
        KN_ASSERT(comms->groups[group]->rank == kn_mesh_group_rank(mesh, group));
    }
    return KN_OK;
}

void kn_mesh_comms_destroy(KnMeshComms *comms)
{
    for (int group = 0; group < KN_GROUP_COUNT; group++)
        if (comms->groups[group])
            comms->groups[group]->table->destroy(comms->groups[group]);
    *comms = (KnMeshComms){0};
}
