/* Checkpoints: the whole state of a run in one folder that exists complete or not at all.
 *
 *     RUN/checkpoints/step-00012000/
 *         rank-00000.safetensors ...   one file for each rank that wrote, its part of the tensors
 *         manifest.json                what lies where, SHA-256 of each rank file, and what the caller tells of the run
 *         manifest.json.sha256         of the manifest, as sha256sum writes it
 *
 * Of a tensor each rank holds one box: an interval in each dimension, or nothing. Several ranks may hold the same box
 * (copies, of equal bytes): one of them writes it, so that the bytes are spread evenly. Together the boxes tile the
 * tensor. Nothing in the format depends on who reads: any box of any tensor is loaded, whatever boxes were written. The
 * folder is written under a temporary name, fsynced file by file, and renamed; what a killed save leaves is removed by
 * the next. Hashes make every changed byte an error with a sentence.
 *
 * A save begins with an agreement on who writes what and a copy of this rank's part; a thread then writes the copy
 * while training goes on, and once all ranks have written, the first one's thread gives the folder its name:
 *
 *     KN_TRY(kn_checkpoint_begin(saver, &save, &report));
 *     ... steps; after each of them, where no rank says kn_checkpoint_is_writing any more:
 *     KN_TRY(kn_checkpoint_poll(saver, &report));
 *     ... at the end, or where a save must be complete before going on:
 *     KN_TRY(kn_checkpoint_finish(saver, &report)); */
#ifndef KN_DIST_CHECKPOINT_H
#define KN_DIST_CHECKPOINT_H

#include "core/base/safetensors.h"
#include "core/base/text.h"
#include "core/graph/comm.h"

#include <stddef.h>
#include <stdint.h>

/* One tensor to be saved, or to be filled by a load. `data` is the box of `count` elements from `start` in each
 * dimension, contiguous and in row-major order. A box with a count of 0 is none of the tensor; a scalar (dims 0) is
 * always whole. */
typedef struct KnCheckpointTensor {
    const char *name;
    KnSafetensorsType type;
    int dims;
    int64_t shape[KN_SAFETENSORS_MAX_DIMS]; /* of the whole tensor */
    int64_t start[KN_SAFETENSORS_MAX_DIMS], count[KN_SAFETENSORS_MAX_DIMS];
    void *data; /* little-endian; only read by a save */
} KnCheckpointTensor;

/* Sets start and count to all of the tensor's shape. */
void kn_checkpoint_whole(KnCheckpointTensor *tensor);

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
    int64_t keep_last;     /* older checkpoints beyond this many are removed after success; 0 keeps all */
    int64_t keep_every;    /* but those of multiples of so many steps stay; 0 = none */
    int refuse_not_finite; /* 1: an F32 tensor with a value that is not finite fails the save, KN_EFORMAT */
    int wait;              /* 1: begin writes without a copy, and returns when the save is done */
} KnCheckpointSave;

/* What became of a save, the same on all ranks but for its times, which are this rank's. */
typedef struct KnCheckpointReport {
    int done; /* 1: this call ended the save, well or not */
    int64_t step;
    int64_t bytes;         /* of the tensors, all ranks' */
    double held_seconds;   /* that the caller's thread spent in begin, poll and finish */
    double copied_seconds; /* of them, copying */
    double seconds;        /* from begin to the final name */
} KnCheckpointReport;

/* Saves one after the other, with memory for the copy that is allocated once. `comm` outlives it. Destroying waits for
 * the thread; a save that was not finished is given up. */
typedef struct KnCheckpointSaver KnCheckpointSaver;
int kn_checkpoint_saver_create(KnCheckpointSaver **saver, KnComm *comm);
void kn_checkpoint_saver_destroy(KnCheckpointSaver *saver); /* NULL is fine */

/* All three are collective. On any rank's failure (a full disk ...) all ranks get the sentence of the first, the
 * temporary is removed and former checkpoints stand untouched; the saver can be used again. An older checkpoint of the
 * same step is replaced. KN_EINPUT where the boxes do not tile a tensor, KN_EIO, KN_EMEMORY, KN_EFORMAT, KN_EPEER.
 *
 * Begin copies whatever `save` points to and needs the former save to be finished. Where a rank has no memory for the
 * copy it warns, and returns only when the save is done. */
int kn_checkpoint_begin(KnCheckpointSaver *saver, const KnCheckpointSave *save, KnCheckpointReport *report);

/* Collective: allocates the memory for the copy of such a save now, if it is to be had. KN_EINPUT, KN_EPEER. */
int kn_checkpoint_reserve(KnCheckpointSaver *saver, const KnCheckpointSave *save);

/* Where a save is under way and no rank is writing: takes it one stage further and never waits for a disk. */
int kn_checkpoint_poll(KnCheckpointSaver *saver, KnCheckpointReport *report);

/* Waits for the save under way; none is fine. */
int kn_checkpoint_finish(KnCheckpointSaver *saver, KnCheckpointReport *report);

/* Of this rank alone. */
int kn_checkpoint_is_writing(KnCheckpointSaver *saver);         /* its thread is at work */
int kn_checkpoint_is_under_way(const KnCheckpointSaver *saver); /* begun and not finished; the same on all ranks */

/* Collective: one save from begin to end. */
int kn_checkpoint_save(KnComm *comm, const KnCheckpointSave *save);

typedef struct KnCheckpoint KnCheckpoint;

/* How much of a checkpoint is read on opening. The manifest and the sizes of all files are always checked. */
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
int64_t kn_checkpoint_bytes(const KnCheckpoint *checkpoint);    /* of its rank files */
int kn_checkpoint_count(const KnCheckpoint *checkpoint);
/* Name, type and whole shape, as the whole box; data is NULL. `find` gives NULL when there is none of that name. */
const KnCheckpointTensor *kn_checkpoint_at(const KnCheckpoint *checkpoint, int index);
const KnCheckpointTensor *kn_checkpoint_find(const KnCheckpoint *checkpoint, const char *name);

/* Fills `data` of each tensor with its box. All names, types and shapes are compared before anything is filled: the
 * first tensor of the list that is missing or differs is named with both shapes (KN_EINPUT). KN_EFORMAT where a file
 * that is read for it is not as the manifest says. */
int kn_checkpoint_load(const KnCheckpoint *checkpoint, const KnCheckpointTensor *tensors, int count);

/* The newest checkpoint of a run whose hashes all hold; newer damaged ones are skipped with a warning that names the
 * damage. free(*path). KN_END when the run has none; KN_EFORMAT when every one is damaged. Collective: the ranks share
 * the reading and get the same answer. */
int kn_checkpoint_newest(KnComm *comm, const char *run_dir, char **path);

/* For people or programs: metadata, files and tensors of one checkpoint. free(*text). With KN_CHECK_HASHES the text
 * says that they hold; a damaged checkpoint is an error. */
int kn_checkpoint_describe(const char *path, KnCheckpointCheck check, int as_json, char **text);

/* Reads every byte of a checkpoint and adds a sentence for each damage to the list: for each file, or for the manifest
 * where that leaves no more to be known. */
void kn_checkpoint_verify(const char *path, KnStringList *damages);

/* Does `path` look like a checkpoint folder (has a manifest)? */
int kn_is_checkpoint(const char *path);

#endif
