/* One training pass as an executable graph: forward, loss, backward, gradient sums, cut for this rank of the mesh. Also
 * its forward-only form for the validation loss. A rank binds the whole pack and reads its own rows of it. */
#ifndef KN_TRAIN_PASS_H
#define KN_TRAIN_PASS_H

#include "core/graph/executor.h"
#include "core/model/model.h"
#include "dist/invariant.h"
#include "dist/layout.h"
#include "dist/sharding.h"
#include "train/batch.h"

typedef struct KnTrainPass KnTrainPass;

/* Of the layout-invariant mode: what each pack and chunk gives to each parameter, until the step's last pass adds it
 * all up; and the norm that it finds. */
typedef struct KnPackParts {
    int64_t packs; /* of a step, here */
    int64_t chunks;
    KnParameterValues blocks; /* [packs x chunks, elements] of each block */
    int32_t *order;
    float norm2;
} KnPackParts;
int kn_pack_parts_create(KnPackParts *parts, const KnLayout *layout, const KnStreamShape *shape, int64_t packs);
void kn_pack_parts_zero(KnPackParts *parts); /* before each step */
void kn_pack_parts_clear(KnPackParts *parts);

typedef struct KnTrainPassOptions {
    const KnLayout *layout;
    KnStreamShape shape; /* of the whole pack */
    KnDtype dtype;
    int backward; /* 0: loss alone */
    int reduce;   /* the step's last pass: sum gradients and the loss over ranks while the backward runs */
    KnParameterValues *weights;
    KnParameterValues *gradients; /* added to; NULL without backward */
    float *stats;                 /* [2]: loss is added to the first; both are summed over ranks with `reduce` */
    double self_pairs, cross_pairs;
    KnPackParts *parts; /* with the layout-invariant mode's backward; else NULL */
} KnTrainPassOptions;

int kn_train_pass_create(KnTrainPass **pass, const KnTrainPassOptions *options, KnBackend *backend);
void kn_train_pass_destroy(KnTrainPass *pass);

void kn_train_pass_bind(KnTrainPass *pass, const KnTrainBatch *batch); /* once per batch memory */
void kn_train_pass_set_pack(KnTrainPass *pass, int64_t pack); /* before each run, with parts: which pack it is */
void kn_train_pass_parameters_changed(KnTrainPass *pass);
int kn_train_pass_run(KnTrainPass *pass);

const KnPlan *kn_train_pass_plan(const KnTrainPass *pass);
double kn_train_pass_flops(const KnTrainPass *pass);  /* matrix products and attention */
char *kn_train_pass_profile(const KnTrainPass *pass); /* free() it */

#endif
