/* From a pack of clips to one training pass's inputs: noise levels, given patches, noisy patches, targets and weights.
 *
 * Every random number is keyed by (seed, step, pack and clip), so a pass is the same whichever rank makes it. */
#ifndef KN_TRAIN_BATCH_H
#define KN_TRAIN_BATCH_H

#include "core/model/model.h"
#include "data/loader.h"
#include "dist/sharding.h"

typedef struct KnTrainBatch {
    KnStream stream;
    float *patches; /* [tokens, patch_dim]: x_sigma; as the next two, of the wanted rows alone */
    float *target;  /* [tokens, patch_dim] */
    float *weight;  /* [tokens]: 1 / (values in the step) times the flow's weight */
    int64_t denoised_tokens;
    uint8_t *given;
    float *sigmas; /* per token, kept for tests */
} KnTrainBatch;

typedef struct KnTrainBatchOptions {
    const KnFlowConfig *flow;
    KnStreamShape shape;
    int64_t patch_dim;
    KnValueKind kind;
    uint64_t seed;
    KnRows rows;    /* of the tokens, those whose values are wanted */
    int validation; /* fixed noise and evenly spread sigmas, no given patches */
} KnTrainBatchOptions;

int kn_train_batch_create(KnTrainBatch *batch, const KnTrainBatchOptions *options);
void kn_train_batch_destroy(KnTrainBatch *batch);
void kn_train_batch_fill(KnTrainBatch *batch, const KnTrainBatchOptions *options, const KnBatch *pack);

#endif
