/* The trainer: steps of (packs -> gradients -> update), checkpoints, validation, metrics.
 *
 * Everything that a step does is a function of the configuration and the step's number, so that a resumed run repeats
 * the unbroken one bit for bit. Drawing sample clips needs solvers, which live next door: the caller passes a hook. */
#ifndef KN_TRAIN_TRAINER_H
#define KN_TRAIN_TRAINER_H

#include "core/base/config.h"
#include "dist/layout.h"

/* Draws the configured prompts into `folder`; called on all ranks, each with what it holds of the weights. */
typedef int (*KnSampleHook)(const KnLayout *layout, const KnParameterValues *weights, const KnConfig *config,
                            KnBackend *backend, const char *folder);

typedef struct KnTrainOptions {
    const KnConfig *config;
    int resume;
    KnSampleHook draw_samples; /* NULL = none */
} KnTrainOptions;

enum { KN_TRAIN_DONE = 0, KN_TRAIN_STOPPED = 1 };

/* Collective. KN_TRAIN_DONE; KN_TRAIN_STOPPED after a signal, when a checkpoint has been saved; or KN_E*. */
int kn_train(const KnTrainOptions *options, KnComm *comm);

#endif
