/* The manifest of a checkpoint in memory, shared by its writer and its reader; nobody else includes it.
 *
 * manifest.json: {"format": "kinora-checkpoint", "version": 1, "tool", "step", "ranks", "config": text, "model": {},
 * "mesh": {}, "data": {}, "files": [{"name", "bytes", "sha256"}], "tensors": [{"name", "type", "shape", "slices":
 * [{"file": index, "start": row, "count": rows}]}]}. The slices of a tensor are in order and tile its first dimension;
 * a scalar is one row. Beside it manifest.json.sha256, so that `sha256sum -c` checks it too. */
#ifndef KN_DIST_CHECKPOINT_MANIFEST_H
#define KN_DIST_CHECKPOINT_MANIFEST_H

#include "core/base/hash.h"
#include "core/base/memory.h"
#include "dist/checkpoint.h"

#define KN_MANIFEST_NAME "manifest.json"
#define KN_CHECKPOINTS_FOLDER "checkpoints"

typedef struct KnManifestSlice {
    int file;
    int64_t start, count;
} KnManifestSlice;

typedef struct KnManifestTensor {
    KnCheckpointTensor tensor; /* the whole; data is NULL */
    KnManifestSlice *slices;
    int slice_count;
} KnManifestTensor;

typedef struct KnManifestFile {
    const char *name; /* without a folder */
    int64_t bytes;
    char sha256[KN_SHA256_HEX_BYTES];
} KnManifestFile;

typedef struct KnManifest {
    KnArena *arena; /* owns what is read; a writer may point elsewhere */
    KnCheckpointMeta meta;
    const char *tool;
    KnManifestFile *files;
    int file_count;
    KnManifestTensor *tensors;
    int tensor_count;
} KnManifest;

/* Rows of the first dimension; a scalar has one. */
int64_t kn_checkpoint_rows(const KnCheckpointTensor *tensor);
size_t kn_checkpoint_row_bytes(const KnCheckpointTensor *tensor);
/* "F32 [128, 64]"; free() it. */
char *kn_checkpoint_shape_text(const KnCheckpointTensor *tensor);

/* RUN/checkpoints and a step to the name of its folder; free() it. And back: the steps that a folder has checkpoints
 * of, newest first; free() them. A folder that is not there has none. */
char *kn_checkpoint_step_path(const char *folder, int64_t step);
int kn_checkpoint_steps(const char *folder, int64_t **steps, int *count);

/* Writes manifest and hash into a folder, each fsynced. KN_EINPUT for texts that are not JSON or UTF-8. */
int kn_manifest_write(const KnManifest *manifest, const char *folder);

/* Reads and believes nothing: hash, every field, sizes that overflow, slices that leave gaps. KN_EFORMAT, KN_EIO. On
 * success release with clear. */
int kn_manifest_read(KnManifest *manifest, const char *folder);
void kn_manifest_clear(KnManifest *manifest);

#endif
