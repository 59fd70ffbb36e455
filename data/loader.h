/* The loader: packs of clips with captions, read ahead of the trainer by a thread.
 *
 * Global step s takes packs s * packs_per_step ... of the endless sequence of packs (epoch after epoch, each planned by
 * data/packer.h); of those, a rank takes every `ranks`-th. So what a step sees depends on (seed, step) alone, and a
 * resumed run is told only its next step. The clips set aside for validation are the same for ever (drawn with
 * KN_RANDOM_SPLIT from the seed) and never appear in training packs. */
#ifndef KN_DATA_LOADER_H
#define KN_DATA_LOADER_H

#include "core/base/config.h"
#include "core/model/tokenizer.h"
#include "data/dataset.h"

typedef struct KnBatchClip {
    int64_t clip; /* number in the data set */
    int64_t grid[3];
    int64_t first_token; /* where its patches begin in `patches` */
    int64_t tokens;
    const int32_t *text; /* caption ids, end piece included; [end] alone when the caption was dropped or is absent */
    int64_t text_tokens;
} KnBatchClip;

/* One pack. Belongs to the loader; valid until the next call of kn_loader_next. */
typedef struct KnBatch {
    int64_t step;        /* global step that it belongs to */
    int64_t index;       /* its place among the step's packs, 0 .. packs - 1, over all ranks */
    int64_t epoch, pack; /* where it lies in the data */
    int64_t clip_count;
    const KnBatchClip *clips;
    int64_t tokens;
    const void *patches; /* [tokens, patch_dim] of the data set's elements */
    int64_t step_tokens; /* tokens of all the step's packs, over all ranks */
    int64_t step_clips;
    double wait_seconds; /* that the caller had to wait for it */
} KnBatch;

typedef struct KnLoaderOptions {
    KnDataset *dataset;           /* outlives the loader */
    const KnTokenizer *tokenizer; /* NULL: no text ids */
    const KnDataConfig *data;     /* budget and validation_clips */
    int64_t max_text_tokens;      /* of one caption, end included */
    double caption_dropout;
    int64_t packs_per_step;
    uint64_t seed;
    int64_t first_step; /* where a resumed run goes on */
    int rank, ranks;    /* packs_per_step is a multiple of ranks */
    int validation;     /* 1: one pass over the clips set aside (each pack a step of its own, the first
                           caption, never dropped), then KN_END */
} KnLoaderOptions;

typedef struct KnLoader KnLoader;

/* Plans the epoch and starts the thread. KN_EINPUT where a clip exceeds the budget (names it), where no clip is left
 * to train on, or a caption of one clip does not fit the text budget. */
int kn_loader_open(KnLoader **loader, const KnLoaderOptions *options);
void kn_loader_close(KnLoader *loader); /* NULL is fine */

/* This rank's next pack: packs_per_step / ranks of them make its part of a step. */
int kn_loader_next(KnLoader *loader, const KnBatch **batch);

/* What the packer reports for the epoch of the last pack: the share of its token budget that is unused. */
double kn_loader_waste(const KnLoader *loader);
int64_t kn_loader_epoch_packs(const KnLoader *loader);

/* All captions of the data set, for learning a vocabulary; free() the array (not the strings). */
int64_t kn_loader_captions(const KnDataset *dataset, const char ***captions);

#endif
