/* One training pass as an executable graph: forward, loss, backward, gradient sums. Also its forward-only form for the
 * validation loss. */
#ifndef KN_TRAIN_PASS_H
#define KN_TRAIN_PASS_H

#include "core/graph/executor.h"
#include "core/model/model.h"
#include "train/batch.h"

typedef struct KnTrainPass KnTrainPass;

typedef struct KnTrainPassOptions {
    const KnModel *model;
    KnStreamShape shape;
    KnDtype dtype;
    int backward; /* 0: loss alone */
    int reduce;   /* sum gradients and the loss over the ranks of `comm` while the backward runs */
    KnComm *comm;
    KnParameterValues *weights;
    KnParameterValues *gradients; /* added to; NULL without backward */
    float *stats;                 /* [2]: loss is added to the first; both are summed over ranks with `reduce` */
    double self_pairs, cross_pairs;
} KnTrainPassOptions;

int kn_train_pass_create(KnTrainPass **pass, const KnTrainPassOptions *options, KnBackend *backend);
void kn_train_pass_destroy(KnTrainPass *pass);

void kn_train_pass_bind(KnTrainPass *pass, const KnTrainBatch *batch); /* once per batch memory */
void kn_train_pass_parameters_changed(KnTrainPass *pass);
int kn_train_pass_run(KnTrainPass *pass);

const KnPlan *kn_train_pass_plan(const KnTrainPass *pass);
double kn_train_pass_flops(const KnTrainPass *pass);  /* matrix products and attention */
char *kn_train_pass_profile(const KnTrainPass *pass); /* free() it */

#endif
