/* One training pass as an executable graph: forward, loss, backward, gradient sums, cut for this rank of the mesh. Also
 * its forward-only form for the validation loss. A rank binds the whole pack and reads its own rows of it. */
#ifndef KN_TRAIN_PASS_H
#define KN_TRAIN_PASS_H

#include "train/batch.h"
#include "train/pass_graph.h"

typedef struct KnTrainPass KnTrainPass;

int kn_pack_parts_create(KnPackParts *parts, const KnLayout *layout, const KnStreamShape *shape, int64_t packs);
/* Twins on the backend's device, if it has one (core/graph/twin.h). */
int kn_pack_parts_place(KnPackParts *parts, KnBackend *backend);
void kn_pack_parts_withdraw(KnPackParts *parts, KnBackend *backend);
int kn_pack_parts_zero(KnPackParts *parts, KnBackend *backend); /* before each step */
void kn_pack_parts_clear(KnPackParts *parts);

int kn_train_pass_create(KnTrainPass **pass, const KnTrainPassOptions *options, KnBackend *backend);
void kn_train_pass_destroy(KnTrainPass *pass);

void kn_train_pass_bind(KnTrainPass *pass, const KnTrainBatch *batch); /* once per batch memory */
void kn_train_pass_set_pack(KnTrainPass *pass, int64_t pack); /* before each run, with parts: which pack it is */
void kn_train_pass_parameters_changed(KnTrainPass *pass);
int kn_train_pass_run(KnTrainPass *pass);

KnExecutor *kn_train_pass_executor(const KnTrainPass *pass);
const KnPassGraph *kn_train_pass_graph(const KnTrainPass *pass);
const KnPlan *kn_train_pass_plan(const KnTrainPass *pass);
double kn_train_pass_flops(const KnTrainPass *pass);  /* matrix products and attention */
char *kn_train_pass_profile(const KnTrainPass *pass); /* free() it */

#endif
