/* The state of a run: data set, model, optimizer buffers and counters, from a fresh start or from a checkpoint. */
#ifndef KN_TRAIN_STATE_H
#define KN_TRAIN_STATE_H

#include "core/base/config.h"
#include "core/graph/comm.h"
#include "core/model/model.h"
#include "data/loader.h"
#include "dist/checkpoint.h"
#include "train/faults.h"
#include "train/fp8.h"
#include "train/optimizer.h"
#include "train/pass.h"
#include "train/run_lock.h"

typedef struct KnTrainState {
    KnLocks *lock; /* of the run folder, on rank 0 */
    KnDataset *dataset;
    KnModel model;
    KnLayout layout;
    KnOptimizerState optimizer;
    KnFp8State fp8;
    int64_t step;      /* done */
    int64_t updates;   /* of them not skipped */
    int64_t data_step; /* of the data order, next to be taken: ahead of `step` by what rollbacks left out */
    KnLossTrend trend;
    double pairs_per_token; /* keys that a token of the data set sees on average */
} KnTrainState;

/* Collective. Makes the run folder with its config.yaml. Without `resume`, a folder that already holds a run is
 * refused, as is one in which another training goes on. With it, the newest valid checkpoint is loaded (a fresh start
 * when there is none); a checkpoint of another architecture is refused with the first differing tensor, or with the key
 * where no tensor differs. */
int kn_train_state_create(KnTrainState *state, const KnConfig *config, KnComm *comm, int resume);
void kn_train_state_destroy(KnTrainState *state);

/* Collective: begins a checkpoint of the present step (dist/checkpoint.h), or completes it with `wait`. */
int kn_train_state_save(const KnTrainState *state, const KnConfig *config, KnCheckpointSaver *saver, int wait,
                        KnCheckpointReport *report);

/* Collective: the memory that such checkpoints need. */
int kn_train_state_reserve(const KnTrainState *state, const KnConfig *config, KnCheckpointSaver *saver);

/* Collective: the newest valid checkpoint in the place of the present state. KN_END where there is none. */
int kn_train_state_reload(KnTrainState *state, const KnConfig *config, KnComm *comm);

#endif
