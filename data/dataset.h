/* Data sets: folders of shards, read as one list of clips.
 *
 * A folder made by `kinora prep` holds shards and `index.json`. Clips are numbered in the order of (folder, source
 * path, segment), whatever ranks wrote them in whatever order, so a number means the same clip after any prep of the
 * same videos. All shards must agree on patch size, channels, value kind and autoencoder. Reading may happen from
 * several threads. */
#ifndef KN_DATA_DATASET_H
#define KN_DATA_DATASET_H

#include "data/shard.h"

typedef struct KnDataset KnDataset;

/* Opens all shards of `folders` (at least one clip in all). Missing, foreign, unfinished or disagreeing folders are
 * refused with one sentence. */
int kn_dataset_open(KnDataset **dataset, const char *const *folders, int folder_count);
void kn_dataset_close(KnDataset *dataset); /* NULL is fine */

const KnShardFormat *kn_dataset_format(const KnDataset *dataset);
int64_t kn_dataset_clip_count(const KnDataset *dataset);
int64_t kn_dataset_tokens(const KnDataset *dataset); /* of all clips */
const KnClip *kn_dataset_clip(const KnDataset *dataset, int64_t clip);
const char *kn_dataset_caption(const KnDataset *dataset, int64_t clip, int64_t which);

/* Reads a clip's patches into `patches`: tokens * patch_dim * element_bytes bytes. */
int kn_dataset_read_clip(KnDataset *dataset, int64_t clip, void *patches);

/* Says what the folder holds, as text or as a JSON object (free() it); `verify` also checks every hash. */
int kn_dataset_describe(const char *folder, int verify, int json, char **description);

/* Whether `folder` looks like one of ours (has an index.json that says so). */
int kn_dataset_is(const char *folder);

#endif
