/* Checkpoints: the whole state of a run in one folder that exists complete or not at all.
 *
 *     RUN/checkpoints/step-00012000/
 *         rank-00000.safetensors ...   one file for each rank that wrote, its part of the tensors
 *         manifest.json                what lies where, SHA-256 of each rank file, and what the caller tells of the run
 *         manifest.json.sha256         of the manifest, as sha256sum writes it
 *
 * A tensor is held whole by all ranks (one of them writes it; the bytes are spread evenly) or each rank holds some
 * rows of its first dimension. Nothing in the format depends on who reads: any number of ranks loads any rows of any
 * tensor. The folder is written under a temporary name, fsynced file by file, and renamed; what a killed save leaves
 * is removed by the next. Hashes make every changed byte an error with a sentence.
 *
 * Saving has three parts: begin and commit are collective and small; writing this rank's file between them needs no
 * other rank, so that a thread can do it from a snapshot. */
#ifndef KN_DIST_CHECKPOINT_H
#define KN_DIST_CHECKPOINT_H

#include "core/base/safetensors.h"
#include "core/graph/comm.h"

#include <stddef.h>
#include <stdint.h>

/* One tensor to be saved, or to be filled by a load. `data` holds `row_count` rows from `row_start` of the first
 * dimension, contiguous; row_count KN_ALL_ROWS is the whole tensor (and, in a save, then on every rank). A scalar
 * (dims 0) is always whole. */
enum { KN_ALL_ROWS = -1 };
typedef struct KnCheckpointTensor {
    const char *name;
    KnSafetensorsType type;
    int dims;
    int64_t shape[KN_SAFETENSORS_MAX_DIMS]; /* of the whole tensor */
    int64_t row_start, row_count;
    void *data; /* little-endian; only read by a save */
} KnCheckpointTensor;

/* What a checkpoint tells besides its tensors. JSON texts are kept as they are in meaning, not interpreted; NULL is an
 * empty object. The same on all ranks; rank 0's are written. */
typedef struct KnCheckpointMeta {
    int64_t step;
    const char *config;     /* the resolved configuration, YAML */
    const char *model_json; /* the architecture */
    const char *mesh_json;  /* the parallel layout that wrote it */
    const char *data_json;  /* where the data order stands, and whatever else a resume needs */
} KnCheckpointMeta;

typedef struct KnCheckpointSave {
    const char *run_dir;
    KnCheckpointMeta meta;
    const KnCheckpointTensor *tensors; /* the same names, types and shapes in the same order on all ranks */
    int count;
    int64_t keep_last; /* older checkpoints beyond this many are removed after success; 0 keeps all */
} KnCheckpointSave;

/* Collective. On any rank's failure (a full disk ...) all ranks get the sentence of the first, the temporary is
 * removed and former checkpoints stand untouched. An older checkpoint of the same step is replaced. */
int kn_checkpoint_save(KnComm *comm, const KnCheckpointSave *save);

typedef struct KnCheckpoint KnCheckpoint;

/* How much of a checkpoint is read on opening. The manifest and all sizes are always checked. */
typedef enum KnCheckpointCheck { KN_CHECK_SIZES, KN_CHECK_HASHES } KnCheckpointCheck;

/* Opens a checkpoint folder. Not collective: any rank may open any checkpoint. KN_EFORMAT where it is damaged or
 * foreign, KN_EIO. */
int kn_checkpoint_open(KnCheckpoint **checkpoint, const char *path, KnCheckpointCheck check);
void kn_checkpoint_close(KnCheckpoint *checkpoint); /* NULL is fine */

/* Strings belong to the checkpoint. */
const char *kn_checkpoint_path(const KnCheckpoint *checkpoint);
const KnCheckpointMeta *kn_checkpoint_meta(const KnCheckpoint *checkpoint);
const char *kn_checkpoint_tool(const KnCheckpoint *checkpoint); /* "kinora 0.1.0" */
int kn_checkpoint_ranks(const KnCheckpoint *checkpoint);        /* that wrote it */
int kn_checkpoint_count(const KnCheckpoint *checkpoint);
/* Name, type and whole shape; data is NULL. `find` gives NULL when there is none of that name. */
const KnCheckpointTensor *kn_checkpoint_at(const KnCheckpoint *checkpoint, int index);
const KnCheckpointTensor *kn_checkpoint_find(const KnCheckpoint *checkpoint, const char *name);

/* Fills `data` of each tensor with its rows. All names, types and shapes are compared before anything is filled: the
 * first tensor of the list that is missing or differs is named with both shapes (KN_EINPUT). */
int kn_checkpoint_load(const KnCheckpoint *checkpoint, const KnCheckpointTensor *tensors, int count);

/* The newest checkpoint of a run whose hashes all hold; newer damaged ones are skipped with a warning that names the
 * damage. free(*path). KN_END when the run has none; KN_EFORMAT when every one is damaged. Collective: the ranks share
 * the reading and get the same answer. */
int kn_checkpoint_newest(KnComm *comm, const char *run_dir, char **path);

/* For people or programs: metadata, files and tensors of one checkpoint. free(*text). With KN_CHECK_HASHES the text
 * says that they hold; a damaged checkpoint is an error. */
int kn_checkpoint_describe(const char *path, KnCheckpointCheck check, int as_json, char **text);

/* Does `path` look like a checkpoint folder (has a manifest)? */
int kn_is_checkpoint(const char *path);

#endif
