/* The manifest of a checkpoint in memory, shared by its writer and its reader; nobody else includes it.
 *
 * manifest.json: {"format": "kinora-checkpoint", "version": 2, "tool", "step", "config": text, "model": {}, "mesh": {},
 * "data": {}, "files": [{"name", "bytes", "sha256"}], "tensors": [{"name", "type", "shape", "slices": [[file index,
 * start in each dimension, count in each dimension]]}]}, a line for each tensor. The slices of a tensor are boxes in
 * the order of their starts and tile it; one without elements has none. Beside it manifest.json.sha256, so that
 * `sha256sum -c` checks it too.
 *
 * Version 1, which is still read, had slices {"file", "start", "count"} of rows of the first dimension. */
#ifndef KN_DIST_CHECKPOINT_MANIFEST_H
#define KN_DIST_CHECKPOINT_MANIFEST_H

#include "core/base/hash.h"
#include "core/base/memory.h"
#include "dist/checkpoint_box.h"

#define KN_MANIFEST_NAME "manifest.json"

/* One tensor and where its boxes are. There may be thousands of slices for each of thousands of tensors, so they take
 * no more than they must: kn_manifest_slice unpacks one. */
typedef struct KnManifestTensor {
    KnCheckpointTensor tensor; /* the whole; data is NULL */
    int slice_count;
    int *files;     /* [slice_count]: index */
    int64_t *boxes; /* [slice_count][2][dims]: start, count */
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
    int *by_name; /* [tensor_count], of a manifest that was read */
} KnManifest;

KnBox kn_manifest_slice(const KnManifestTensor *entry, int slice);
void kn_manifest_set_slice(KnManifestTensor *entry, int slice, int file, const KnBox *box);

/* "F32 [128, 64]"; free() it. */
char *kn_checkpoint_shape_text(const KnCheckpointTensor *tensor);

/* NULL when the manifest has no such tensor. */
const KnManifestTensor *kn_manifest_find(const KnManifest *manifest, const char *name);

/* Writes manifest and hash into a folder, each fsynced. KN_EINPUT for texts that are not JSON or UTF-8. */
int kn_manifest_write(const KnManifest *manifest, const char *folder);

/* Reads and believes nothing: hash, every field, sizes that overflow, slices that leave gaps or overlap. KN_EFORMAT,
 * KN_EIO. On success release with clear. */
int kn_manifest_read(KnManifest *manifest, const char *folder);
void kn_manifest_clear(KnManifest *manifest);

#endif
