/* Opening, checking, loading and describing checkpoints. The rank files are mapped, so that a load reads only the rows
 * that it asks for, whoever wrote them. */
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/text.h"
#include "dist/checkpoint_manifest.h"
#include "dist/comm.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

struct KnCheckpoint {
    char *path;
    KnManifest manifest;
    KnSafetensorsSet **files; /* [file_count] */
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

static int open_files(KnCheckpoint *checkpoint, Share share)
{
    const KnManifest *manifest = &checkpoint->manifest;
    checkpoint->files = kn_alloc((size_t)manifest->file_count * sizeof *checkpoint->files);
    for (int i = 0; i < manifest->file_count; i++) {
        char *path = kn_path_join(checkpoint->path, manifest->files[i].name);
        int code = check_file(&manifest->files[i], path, share.ranks && i % share.ranks == share.rank);
        if (code == KN_OK)
            code = kn_safetensors_open(&checkpoint->files[i], path);
        free(path);
        KN_TRY(code);
    }
    return KN_OK;
}

/* Is every slice where the manifest says, of that type and shape? */
static int check_slices(const KnCheckpoint *checkpoint)
{
    for (int i = 0; i < checkpoint->manifest.tensor_count; i++) {
        const KnManifestTensor *entry = &checkpoint->manifest.tensors[i];
        const KnCheckpointTensor *tensor = &entry->tensor;
        for (int s = 0; s < entry->slice_count; s++) {
            const KnManifestSlice *slice = &entry->slices[s];
            const KnSafetensor *part = kn_safetensors_find(checkpoint->files[slice->file], tensor->name);
            int fits = part && part->type == tensor->type && part->dims == tensor->dims;
            for (int d = 0; fits && d < tensor->dims; d++)
                fits = part->shape[d] == (d ? tensor->shape[d] : slice->count);
            if (!fits)
                return kn_fail(KN_EFORMAT, "%s/%s does not hold tensor '%s' as " KN_MANIFEST_NAME " says",
                               checkpoint->path, checkpoint->manifest.files[slice->file].name, tensor->name);
        }
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
    if (code == KN_OK)
        code = open_files(checkpoint, share);
    if (code == KN_OK)
        code = check_slices(checkpoint);
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

int kn_checkpoint_count(const KnCheckpoint *checkpoint)
{
    return checkpoint->manifest.tensor_count;
}

const KnCheckpointTensor *kn_checkpoint_at(const KnCheckpoint *checkpoint, int index)
{
    return &checkpoint->manifest.tensors[index].tensor;
}

static const KnManifestTensor *find_entry(const KnCheckpoint *checkpoint, const char *name)
{
    for (int i = 0; i < checkpoint->manifest.tensor_count; i++)
        if (strcmp(checkpoint->manifest.tensors[i].tensor.name, name) == 0)
            return &checkpoint->manifest.tensors[i];
    return NULL;
}

const KnCheckpointTensor *kn_checkpoint_find(const KnCheckpoint *checkpoint, const char *name)
{
    const KnManifestTensor *entry = find_entry(checkpoint, name);
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
    int64_t rows = kn_checkpoint_rows(wanted);
    char *asked = kn_checkpoint_shape_text(wanted), *there = entry ? kn_checkpoint_shape_text(&entry->tensor) : NULL;
    int code = KN_OK;
    if (!entry)
        code = kn_fail(KN_EINPUT, "the checkpoint %s is of another model: it has no tensor '%s', which should be %s",
                       checkpoint->path, wanted->name, asked);
    else if (!same_shape(wanted, &entry->tensor))
        code = kn_fail(KN_EINPUT, "the checkpoint %s is of another model: its tensor '%s' is %s and should be %s",
                       checkpoint->path, wanted->name, there, asked);
    else
        KN_ASSERT(wanted->row_count == KN_ALL_ROWS ||
                  (wanted->row_start >= 0 && wanted->row_count >= 0 && wanted->row_start + wanted->row_count <= rows));
    free(asked);
    free(there);
    return code;
}

static void copy_rows(const KnCheckpoint *checkpoint, const KnCheckpointTensor *wanted, const KnManifestTensor *entry)
{
    int whole = wanted->row_count == KN_ALL_ROWS;
    int64_t first = whole ? 0 : wanted->row_start;
    int64_t end = whole ? kn_checkpoint_rows(wanted) : first + wanted->row_count;
    size_t row_bytes = kn_checkpoint_row_bytes(wanted);
    for (int s = 0; s < entry->slice_count; s++) {
        const KnManifestSlice *slice = &entry->slices[s];
        int64_t from = slice->start > first ? slice->start : first;
        int64_t to = slice->start + slice->count < end ? slice->start + slice->count : end;
        if (from >= to || row_bytes == 0)
            continue;
        const KnSafetensor *part = kn_safetensors_find(checkpoint->files[slice->file], wanted->name);
        memcpy((char *)wanted->data + (size_t)(from - first) * row_bytes,
               (const char *)part->data + (size_t)(from - slice->start) * row_bytes, (size_t)(to - from) * row_bytes);
    }
}

int kn_checkpoint_load(const KnCheckpoint *checkpoint, const KnCheckpointTensor *tensors, int count)
{
    for (int i = 0; i < count; i++)
        KN_TRY(check_wanted(checkpoint, &tensors[i], find_entry(checkpoint, tensors[i].name)));
    for (int i = 0; i < count; i++)
        copy_rows(checkpoint, &tensors[i], find_entry(checkpoint, tensors[i].name));
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

static int64_t total_bytes(const KnManifest *manifest)
{
    int64_t total = 0;
    for (int i = 0; i < manifest->file_count; i++)
        total += manifest->files[i].bytes;
    return total;
}

static char *describe_json(const KnCheckpoint *checkpoint, int verified)
{
    const KnManifest *manifest = &checkpoint->manifest;
    json_t *root = json_object(), *files = json_array(), *tensors = json_array();
    json_object_set_new(root, "kind", json_string("checkpoint"));
    json_object_set_new(root, "path", json_string(checkpoint->path));
    json_object_set_new(root, "step", json_integer(manifest->meta.step));
    json_object_set_new(root, "tool", json_string(manifest->tool));
    json_object_set_new(root, "ranks", json_integer(manifest->file_count));
    json_object_set_new(root, "bytes", json_integer(total_bytes(manifest)));
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
