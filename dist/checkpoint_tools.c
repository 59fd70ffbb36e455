/* What `kinora checkpoint` does, see dist/checkpoint_tools.h. */
#include "dist/checkpoint_tools.h"

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "dist/checkpoint_folder.h"
#include "dist/checkpoint_manifest.h"

#include <stdlib.h>
#include <string.h>

int kn_checkpoints_folder(const char *path, char **folder)
{
    int64_t *steps;
    int count;
    *folder = kn_path_join(path, KN_CHECKPOINTS_FOLDER);
    if (kn_is_directory(*folder))
        return KN_OK;
    free(*folder);
    *folder = NULL;
    if (kn_is_checkpoint(path))
        return kn_fail(KN_EINPUT, "%s is one checkpoint: name the run that it is of", path);
    KN_TRY(kn_checkpoint_steps(path, &steps, &count));
    free(steps);
    if (count == 0)
        return kn_fail(KN_EINPUT, "%s is neither a checkpoint nor a run with checkpoints", path);
    *folder = kn_strdup(path);
    return KN_OK;
}

static int newest_valid_step(const char *folder, int64_t *valid)
{
    int64_t *steps;
    int count;
    *valid = -1;
    KN_TRY(kn_checkpoint_steps(folder, &steps, &count));
    for (int i = 0; i < count && *valid < 0; i++) {
        char *path = kn_checkpoint_step_path(folder, steps[i]);
        KnCheckpoint *checkpoint;
        if (kn_checkpoint_open(&checkpoint, path, KN_CHECK_HASHES) == KN_OK)
            *valid = steps[i];
        else
            kn_warn("a damaged checkpoint is passed over: %s", kn_error_message());
        kn_checkpoint_close(checkpoint);
        free(path);
    }
    free(steps);
    if (count == 0)
        return kn_fail(KN_EINPUT, "%s has no checkpoint yet", folder);
    return *valid >= 0 ? KN_OK : kn_fail(KN_EFORMAT, "none of the %d checkpoints in %s is whole", count, folder);
}

int kn_checkpoint_find_valid(const char *path, char **newest)
{
    char *folder;
    int64_t step;
    *newest = NULL;
    if (kn_is_checkpoint(path)) {
        *newest = kn_strdup(path);
        return KN_OK;
    }
    KN_TRY(kn_checkpoints_folder(path, &folder));
    int code = newest_valid_step(folder, &step);
    if (code == KN_OK)
        *newest = kn_checkpoint_step_path(folder, step);
    free(folder);
    return code;
}

/* ---- consolidating ---- */

/* The whole tensors that have elements, as the header of the one file needs them. */
static int list_whole(const KnCheckpoint *checkpoint, KnSafetensor *tensors, size_t *largest)
{
    int count = 0;
    *largest = 0;
    for (int i = 0; i < kn_checkpoint_count(checkpoint); i++) {
        const KnCheckpointTensor *tensor = kn_checkpoint_at(checkpoint, i);
        KnSafetensor *out = &tensors[count];
        *out = (KnSafetensor){.name = tensor->name, .type = tensor->type, .dims = tensor->dims};
        memcpy(out->shape, tensor->shape, sizeof out->shape);
        size_t bytes = kn_safetensor_bytes(out);
        *largest = bytes > *largest ? bytes : *largest;
        count += bytes > 0;
    }
    return count;
}

/* One tensor in memory at a time. */
static int write_whole(const KnCheckpoint *checkpoint, const char *path, KnManifestFile *file)
{
    KnSafetensor *tensors = kn_alloc((size_t)kn_checkpoint_count(checkpoint) * sizeof *tensors);
    size_t largest;
    int count = list_whole(checkpoint, tensors, &largest);
    KnSafetensorsWriter *writer = NULL;
    void *memory;
    int code = kn_alloc_large(&memory, largest, "the largest tensor of the checkpoint");
    if (code == KN_OK)
        code = kn_safetensors_writer_open_hashed(&writer, path, tensors, count, file->sha256);
    for (int i = 0; i < count && code == KN_OK; i++) {
        KnCheckpointTensor wanted = *kn_checkpoint_find(checkpoint, tensors[i].name);
        wanted.data = memory;
        code = kn_checkpoint_load(checkpoint, &wanted, 1);
        if (code == KN_OK)
            code = kn_safetensors_writer_write(writer, memory, kn_safetensor_bytes(&tensors[i]));
    }
    if (code == KN_OK)
        code = kn_safetensors_writer_commit(writer);
    else
        kn_safetensors_writer_abort(writer);
    kn_free_large(memory);
    free(tensors);
    return code == KN_OK ? kn_file_size(path, &file->bytes) : code;
}

static int write_whole_manifest(const KnCheckpoint *checkpoint, KnManifestFile *file, const char *folder)
{
    KnManifest manifest = {.arena = kn_arena_create(),
                           .meta = *kn_checkpoint_meta(checkpoint),
                           .tool = kn_checkpoint_tool(checkpoint),
                           .files = file,
                           .file_count = 1,
                           .tensor_count = kn_checkpoint_count(checkpoint)};
    manifest.meta.mesh_json = "{\"data\": 1}";
    manifest.tensors = kn_arena_alloc(manifest.arena, (size_t)manifest.tensor_count * sizeof *manifest.tensors);
    for (int i = 0; i < manifest.tensor_count; i++) {
        KnManifestTensor *entry = &manifest.tensors[i];
        entry->tensor = *kn_checkpoint_at(checkpoint, i);
        KnBox whole = kn_box_whole(&entry->tensor);
        entry->slice_count = kn_box_elements(&whole) > 0;
        entry->files = kn_arena_alloc(manifest.arena, sizeof *entry->files);
        entry->boxes = kn_arena_alloc(manifest.arena, 2 * (size_t)whole.dims * sizeof *entry->boxes);
        kn_manifest_set_slice(entry, 0, 0, &whole);
    }
    int code = kn_manifest_write(&manifest, folder);
    kn_arena_destroy(manifest.arena);
    return code;
}

static int fill_folder(const KnCheckpoint *checkpoint, const char *folder)
{
    KnManifestFile file = {.name = "rank-00000.safetensors"};
    char *path = kn_path_join(folder, file.name);
    int code = write_whole(checkpoint, path, &file);
    free(path);
    return code == KN_OK ? write_whole_manifest(checkpoint, &file, folder) : code;
}

int kn_checkpoint_consolidate(const char *from, const char *out)
{
    KnCheckpoint *checkpoint;
    if (kn_file_exists(out))
        return kn_fail(KN_EINPUT, "%s exists already: name a new folder with --out", out);
    KN_TRY(kn_checkpoint_open(&checkpoint, from, KN_CHECK_HASHES));
    char *temporary = kn_temporary_path(out);
    int code = kn_make_directories(temporary);
    if (code == KN_OK)
        code = fill_folder(checkpoint, temporary);
    if (code == KN_OK) {
        code = kn_directory_publish(temporary, out);
    } else {
        char *sentence = kn_strdup(kn_error_message());
        kn_remove_tree(temporary);
        kn_fail(code, "%s", sentence);
        free(sentence);
    }
    free(temporary);
    kn_checkpoint_close(checkpoint);
    return code;
}

/* ---- pruning ---- */

static int is_whole(const char *path)
{
    KnCheckpoint *checkpoint;
    int whole = kn_checkpoint_open(&checkpoint, path, KN_CHECK_SIZES) == KN_OK;
    kn_checkpoint_close(checkpoint);
    return whole;
}

int kn_checkpoint_prune_by(const char *folder, const KnPruneRule *rule, KnStringList *removed, KnStringList *kept)
{
    int64_t *steps, valid, counted = 0;
    int count;
    KN_TRY(newest_valid_step(folder, &valid));
    int code = kn_checkpoint_steps(folder, &steps, &count);
    for (int i = 0; i < count && code == KN_OK; i++) {
        char *path = kn_checkpoint_step_path(folder, steps[i]);
        int keep = steps[i] >= valid || (rule->keep_every > 0 && steps[i] % rule->keep_every == 0);
        if (steps[i] <= valid && is_whole(path)) /* a damaged one takes nobody's place */
            keep |= counted++ < rule->keep_last;
        if (!keep && !rule->dry_run)
            code = kn_checkpoint_remove(path);
        if (code == KN_OK)
            kn_string_list_add(keep ? kept : removed, path);
        free(path);
    }
    free(steps);
    return code;
}
