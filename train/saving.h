/* When and how a run saves: a checkpoint is copied between two steps and written while the next ones run.
 *
 * A checkpoint that cannot be written is a warning, for the former ones stand; an error only where the run ends with
 * it. */
#ifndef KN_TRAIN_SAVING_H
#define KN_TRAIN_SAVING_H

#include "train/metrics.h"
#include "train/state.h"

typedef struct KnSaving KnSaving;

/* Collective. `config`, `comm` and `metrics` (NULL on all ranks but the first) outlive it; the memory for copies of
 * `state` is allocated now. */
int kn_saving_create(KnSaving **saving, const KnConfig *config, KnComm *comm, KnMetrics *metrics,
                     const KnTrainState *state);
void kn_saving_destroy(KnSaving *saving); /* NULL is fine */

/* Collective, once after each step, in place of kn_comm_stop_agree: *stop as there, and a checkpoint that all ranks
 * have written is completed. */
int kn_saving_agree(KnSaving *saving, int *stop);

/* Collective: waits for the former checkpoint, and begins one of the present state. With `wait` it is complete when
 * this returns, or an error says why not. */
int kn_saving_begin(KnSaving *saving, const KnTrainState *state, int wait);

/* Collective: waits for the checkpoint under way, if there is one. */
int kn_saving_finish(KnSaving *saving);

/* Collective: puts the newest checkpoint's state in the place of a bad one, but for the data, which go on behind the
 * bad packs. KN_END where there is no checkpoint yet. An error after some times in a row to the same checkpoint. */
int kn_saving_roll_back(KnSaving *saving, KnTrainState *state, const char *fault);

#endif
