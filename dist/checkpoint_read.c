/* Opening, checking, loading and describing checkpoints. The rank files are mapped when something of them is wanted, so
 * that a load opens and reads only what it asks for, whoever wrote it. */
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/text.h"
#include "dist/checkpoint_folder.h"
#include "dist/checkpoint_manifest.h"
#include "dist/comm.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

struct KnCheckpoint {
    char *path;
    KnManifest manifest;
    KnSafetensorsSet **files; /* [file_count]; NULL until something of it is wanted */
};

/* Which of the rank files are hashed: every `ranks`-th from `rank`; ranks 0 hashes none. */
typedef struct Share {
    int rank, ranks;
} Share;

static const Share no_hashes = {0, 0}, all_hashes = {0, 1};

static int check_file(const KnManifestFile *file, const char *path, int check_hash)
{
    int64_t bytes;
    char hex[KN_SHA256_HEX_BYTES];
    KN_TRY(kn_file_size(path, &bytes));
    if (bytes != file->bytes)
        return kn_fail(KN_EFORMAT, "%s is damaged: it has %lld bytes and should have %lld", path, (long long)bytes,
                       (long long)file->bytes);
    if (!check_hash)
        return KN_OK;
    KN_TRY(kn_sha256_file(path, hex));
    if (strcmp(hex, file->sha256) != 0)
        return kn_fail(KN_EFORMAT, "%s is damaged: its SHA-256 is %s and should be %s", path, hex, file->sha256);
    return KN_OK;
}

static int in_share(Share share, int file)
{
    return share.ranks && file % share.ranks == share.rank;
}

static int check_files(const KnCheckpoint *checkpoint, Share share)
{
    const KnManifest *manifest = &checkpoint->manifest;
    for (int i = 0; i < manifest->file_count; i++) {
        char *path = kn_path_join(checkpoint->path, manifest->files[i].name);
        int code = check_file(&manifest->files[i], path, in_share(share, i));
        free(path);
        KN_TRY(code);
    }
    return KN_OK;
}

/* A slice in its file, if that has it of the right type and shape. */
static int find_part(const KnCheckpoint *checkpoint, const KnManifestTensor *entry, int slice,
                     const KnSafetensor **found)
{
    int file = entry->files[slice];
    const char *name = checkpoint->manifest.files[file].name;
    if (!checkpoint->files[file]) {
        char *path = kn_path_join(checkpoint->path, name);
        int code = kn_safetensors_open(&checkpoint->files[file], path);
        free(path);
        KN_TRY(code);
    }
    const KnCheckpointTensor *tensor = &entry->tensor;
    const KnSafetensor *part = kn_safetensors_find(checkpoint->files[file], tensor->name);
    KnBox box = kn_manifest_slice(entry, slice);
    int fits = part && part->type == tensor->type && part->dims == tensor->dims;
    for (int d = 0; fits && d < tensor->dims; d++)
        fits = part->shape[d] == box.count[d];
    if (!fits)
        return kn_fail(KN_EFORMAT, "%s/%s does not hold tensor '%s' as " KN_MANIFEST_NAME " says", checkpoint->path,
                       name, tensor->name);
    *found = part;
    return KN_OK;
}

static int check_slices(const KnCheckpoint *checkpoint, Share share)
{
    const KnSafetensor *part;
    for (int i = 0; i < checkpoint->manifest.tensor_count; i++) {
        const KnManifestTensor *entry = &checkpoint->manifest.tensors[i];
        for (int s = 0; s < entry->slice_count; s++)
            if (in_share(share, entry->files[s]))
                KN_TRY(find_part(checkpoint, entry, s, &part));
    }
    return KN_OK;
}

static int open_sharing(KnCheckpoint **opened, const char *path, Share share)
{
    *opened = NULL;
    if (!kn_is_checkpoint(path))
        return kn_fail(KN_EFORMAT, "%s is not a checkpoint: it has no " KN_MANIFEST_NAME, path);
    KnCheckpoint *checkpoint = kn_alloc(sizeof *checkpoint);
    checkpoint->path = kn_strdup(path);
    int code = kn_manifest_read(&checkpoint->manifest, path);
    if (code == KN_OK) {
        checkpoint->files = kn_alloc((size_t)checkpoint->manifest.file_count * sizeof *checkpoint->files);
        code = check_files(checkpoint, share);
    }
    if (code == KN_OK)
        code = check_slices(checkpoint, share);
    if (code < 0)
        kn_checkpoint_close(checkpoint);
    else
        *opened = checkpoint;
    return code;
}

int kn_checkpoint_open(KnCheckpoint **checkpoint, const char *path, KnCheckpointCheck check)
{
    return open_sharing(checkpoint, path, check == KN_CHECK_HASHES ? all_hashes : no_hashes);
}

void kn_checkpoint_close(KnCheckpoint *checkpoint)
{
    if (!checkpoint)
        return;
    for (int i = 0; checkpoint->files && i < checkpoint->manifest.file_count; i++)
        kn_safetensors_close(checkpoint->files[i]);
    free(checkpoint->files);
    kn_manifest_clear(&checkpoint->manifest);
    free(checkpoint->path);
    free(checkpoint);
}

void kn_checkpoint_verify(const char *path, KnStringList *damages)
{
    KnManifest manifest;
    KnCheckpoint *checkpoint;
    int before = damages->count;
    if (kn_manifest_read(&manifest, path) < 0) {
        kn_string_list_add(damages, kn_error_message());
        return;
    }
    for (int i = 0; i < manifest.file_count; i++) {
        char *file = kn_path_join(path, manifest.files[i].name);
        if (check_file(&manifest.files[i], file, 1) < 0)
            kn_string_list_add(damages, kn_error_message());
        free(file);
    }
    kn_manifest_clear(&manifest);
    if (damages->count > before)
        return;
    if (open_sharing(&checkpoint, path, no_hashes) < 0 || check_slices(checkpoint, all_hashes) < 0)
        kn_string_list_add(damages, kn_error_message());
    kn_checkpoint_close(checkpoint);
}

int kn_is_checkpoint(const char *path)
{
    char *manifest = kn_path_join(path, KN_MANIFEST_NAME);
    int found = kn_is_directory(path) && kn_file_exists(manifest);
    free(manifest);
    return found;
}

/* ---- questions ---- */

const char *kn_checkpoint_path(const KnCheckpoint *checkpoint)
{
    return checkpoint->path;
}

const KnCheckpointMeta *kn_checkpoint_meta(const KnCheckpoint *checkpoint)
{
    return &checkpoint->manifest.meta;
}

const char *kn_checkpoint_tool(const KnCheckpoint *checkpoint)
{
    return checkpoint->manifest.tool;
}

int kn_checkpoint_ranks(const KnCheckpoint *checkpoint)
{
    return checkpoint->manifest.file_count;
}

int64_t kn_checkpoint_bytes(const KnCheckpoint *checkpoint)
{
    int64_t total = 0;
    for (int i = 0; i < checkpoint->manifest.file_count; i++)
        total += checkpoint->manifest.files[i].bytes;
    return total;
}

int kn_checkpoint_count(const KnCheckpoint *checkpoint)
{
    return checkpoint->manifest.tensor_count;
}

const KnCheckpointTensor *kn_checkpoint_at(const KnCheckpoint *checkpoint, int index)
{
    return &checkpoint->manifest.tensors[index].tensor;
}

const KnCheckpointTensor *kn_checkpoint_find(const KnCheckpoint *checkpoint, const char *name)
{
    const KnManifestTensor *entry = kn_manifest_find(&checkpoint->manifest, name);
    return entry ? &entry->tensor : NULL;
}

/* ---- loading ---- */

static int same_shape(const KnCheckpointTensor *a, const KnCheckpointTensor *b)
{
    return a->type == b->type && a->dims == b->dims &&
           memcmp(a->shape, b->shape, (size_t)a->dims * sizeof *a->shape) == 0;
}

static int check_wanted(const KnCheckpoint *checkpoint, const KnCheckpointTensor *wanted, const KnManifestTensor *entry)
{
    KnBox box = kn_box_of(wanted), whole = kn_box_whole(wanted);
    char *asked = kn_checkpoint_shape_text(wanted), *there = entry ? kn_checkpoint_shape_text(&entry->tensor) : NULL;
    int code = KN_OK;
    if (!entry)
        code = kn_fail(KN_EINPUT, "the checkpoint %s is of another model: it has no tensor '%s', which should be %s",
                       checkpoint->path, wanted->name, asked);
    else if (!same_shape(wanted, &entry->tensor))
        code = kn_fail(KN_EINPUT, "the checkpoint %s is of another model: its tensor '%s' is %s and should be %s",
                       checkpoint->path, wanted->name, there, asked);
    else
        KN_ASSERT(kn_box_inside(&box, &whole));
    free(asked);
    free(there);
    return code;
}

static int copy_box(const KnCheckpoint *checkpoint, const KnCheckpointTensor *wanted, const KnManifestTensor *entry)
{
    KnBox box = kn_box_of(wanted);
    for (int s = 0; s < entry->slice_count; s++) {
        KnBox slice = kn_manifest_slice(entry, s);
        const KnSafetensor *part;
        if (!kn_box_meets(&box, &slice))
            continue;
        KN_TRY(find_part(checkpoint, entry, s, &part));
        kn_box_copy(&box, wanted->data, &slice, part->data, kn_safetensors_type_bytes(wanted->type));
    }
    return KN_OK;
}

int kn_checkpoint_load(const KnCheckpoint *checkpoint, const KnCheckpointTensor *tensors, int count)
{
    const KnManifest *manifest = &checkpoint->manifest;
    for (int i = 0; i < count; i++)
        KN_TRY(check_wanted(checkpoint, &tensors[i], kn_manifest_find(manifest, tensors[i].name)));
    for (int i = 0; i < count; i++)
        KN_TRY(copy_box(checkpoint, &tensors[i], kn_manifest_find(manifest, tensors[i].name)));
    return KN_OK;
}

/* ---- the newest of a run ---- */

static int try_candidate(KnComm *comm, const char *path)
{
    KnCheckpoint *checkpoint;
    int code = open_sharing(&checkpoint, path, (Share){comm->rank, comm->ranks});
    kn_checkpoint_close(checkpoint);
    return kn_comm_error_agree(comm, code);
}

/* Rank 0's list, so that all try the same in the same order whatever their file system shows them yet. */
static int list_candidates(KnComm *comm, const char *folder, int64_t **steps, int *count)
{
    int64_t mine = 0, *counts = kn_alloc((size_t)comm->ranks * sizeof *counts);
    *steps = NULL;
    int code = kn_comm_error_agree(comm, comm->rank == 0 ? kn_checkpoint_steps(folder, steps, count) : KN_OK);
    if (code == KN_OK && comm->rank == 0)
        mine = *count;
    if (code == KN_OK)
        code = comm->table->all_gather(comm, &mine, counts, sizeof mine, "number of checkpoints");
    if (code == KN_OK) {
        *count = (int)counts[0];
        if (comm->rank > 0)
            *steps = kn_alloc((size_t)*count * sizeof **steps);
        code = comm->table->broadcast(comm, *steps, (size_t)*count * sizeof **steps, 0, "steps of the checkpoints");
    }
    free(counts);
    return code;
}

int kn_checkpoint_newest(KnComm *comm, const char *run_dir, char **path)
{
    char *folder = kn_path_join(run_dir, KN_CHECKPOINTS_FOLDER);
    int64_t *steps;
    int count = 0, broken = 0;
    *path = NULL;
    int code = list_candidates(comm, folder, &steps, &count);
    for (int i = 0; i < count && code == KN_OK && !*path && !broken; i++) {
        char *candidate = kn_checkpoint_step_path(folder, steps[i]);
        int damage = try_candidate(comm, candidate);
        broken = damage == KN_EPEER; /* the ranks, not the checkpoint */
        if (damage == KN_OK)
            *path = candidate;
        else if (!broken && comm->rank == 0)
            kn_warn("a damaged checkpoint is skipped: %s", kn_error_message());
        if (damage != KN_OK)
            free(candidate);
    }
    if (broken)
        code = KN_EPEER;
    else if (code == KN_OK && !*path && count == 0)
        code = KN_END;
    else if (code == KN_OK && !*path)
        code =
            kn_fail(KN_EFORMAT, "none of the %d checkpoints in %s is whole; remove them to start anew", count, folder);
    free(steps);
    free(folder);
    return code;
}

/* ---- describing ---- */

static char *describe_json(const KnCheckpoint *checkpoint, int verified)
{
    const KnManifest *manifest = &checkpoint->manifest;
    json_t *root = json_object(), *files = json_array(), *tensors = json_array();
    json_object_set_new(root, "kind", json_string("checkpoint"));
    json_object_set_new(root, "path", json_string(checkpoint->path));
    json_object_set_new(root, "step", json_integer(manifest->meta.step));
    json_object_set_new(root, "tool", json_string(manifest->tool));
    json_object_set_new(root, "ranks", json_integer(manifest->file_count));
    json_object_set_new(root, "bytes", json_integer(kn_checkpoint_bytes(checkpoint)));
    json_object_set_new(root, "verified", json_boolean(verified));
    json_object_set_new(root, "model", json_loads(manifest->meta.model_json, JSON_DECODE_ANY, NULL));
    json_object_set_new(root, "mesh", json_loads(manifest->meta.mesh_json, JSON_DECODE_ANY, NULL));
    json_object_set_new(root, "data", json_loads(manifest->meta.data_json, JSON_DECODE_ANY, NULL));
    for (int i = 0; i < manifest->file_count; i++)
        json_array_append_new(files,
                              json_pack("{s:s, s:I, s:s}", "name", manifest->files[i].name, "bytes",
                                        (json_int_t)manifest->files[i].bytes, "sha256", manifest->files[i].sha256));
    for (int i = 0; i < manifest->tensor_count; i++) {
        const KnCheckpointTensor *tensor = &manifest->tensors[i].tensor;
        json_t *shape = json_array();
        for (int d = 0; d < tensor->dims; d++)
            json_array_append_new(shape, json_integer(tensor->shape[d]));
        json_array_append_new(tensors, json_pack("{s:s, s:s, s:o}", "name", tensor->name, "type",
                                                 kn_safetensors_type_name(tensor->type), "shape", shape));
    }
    json_object_set_new(root, "files", files);
    json_object_set_new(root, "tensors", tensors);
    char *text = json_dumps(root, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    json_decref(root);
    return text;
}

static char *describe_text(const KnCheckpoint *checkpoint, int verified)
{
    const KnManifest *manifest = &checkpoint->manifest;
    KnText text = {0};
    kn_text_appendf(&text, "checkpoint %s\n", checkpoint->path);
    kn_text_appendf(&text, "  step     %lld, written by %s on %d rank%s\n", (long long)manifest->meta.step,
                    manifest->tool, manifest->file_count, manifest->file_count == 1 ? "" : "s");
    kn_text_appendf(&text, "  model    %s\n  mesh     %s\n  data     %s\n", manifest->meta.model_json,
                    manifest->meta.mesh_json, manifest->meta.data_json);
    kn_text_appendf(&text, "  hashes   %s\n", verified ? "all hold" : "not checked (--verify)");
    for (int i = 0; i < manifest->file_count; i++)
        kn_text_appendf(&text, "  file     %s  %.1f MiB  %s\n", manifest->files[i].name,
                        (double)manifest->files[i].bytes / 1048576.0, manifest->files[i].sha256);
    for (int i = 0; i < manifest->tensor_count; i++) {
        char *shape = kn_checkpoint_shape_text(&manifest->tensors[i].tensor);
        kn_text_appendf(&text, "  tensor   %s  %s\n", manifest->tensors[i].tensor.name, shape);
        free(shape);
    }
    return kn_text_take(&text);
}

int kn_checkpoint_describe(const char *path, KnCheckpointCheck check, int as_json, char **text)
{
    KnCheckpoint *checkpoint;
    *text = NULL;
    KN_TRY(kn_checkpoint_open(&checkpoint, path, check));
    int verified = check == KN_CHECK_HASHES;
    *text = as_json ? describe_json(checkpoint, verified) : describe_text(checkpoint, verified);
    kn_checkpoint_close(checkpoint);
    return *text ? KN_OK : kn_fail(KN_EFORMAT, "%s cannot be described as JSON: a name in it is not UTF-8", path);
}
