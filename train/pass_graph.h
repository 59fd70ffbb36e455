/* The graph of one training pass, before there is any memory: forward, loss, backward, gradient sums, cut for one rank
 * of the mesh. train/pass.h runs it; a plan walks it. */
#ifndef KN_TRAIN_PASS_GRAPH_H
#define KN_TRAIN_PASS_GRAPH_H

#include "core/graph/executor.h"
#include "core/model/model.h"
#include "dist/invariant.h"
#include "dist/layout.h"
#include "dist/sharding.h"

/* Of the layout-invariant mode: what each pack and chunk gives to each parameter, until the step's last pass adds it
 * all up; and the norm that it finds. */
typedef struct KnPackParts {
    int64_t packs; /* of a step, here */
    int64_t chunks;
    KnParameterValues blocks; /* [packs x chunks, elements] of each block */
    int32_t *order;
    float norm2;
} KnPackParts;

typedef struct KnTrainPassOptions {
    const KnLayout *layout;
    KnStreamShape shape; /* of the whole pack */
    KnDtype dtype;
    int fp8;      /* the blocks' products in 8 bits */
    int backward; /* 0: loss alone */
    int reduce;   /* the step's last pass: sum gradients and the loss over ranks while the backward runs */
    int only;     /* the step's only pass on this rank: gradients, zeros before, are written and not added */
    KnParameterValues *weights;
    KnParameterValues *gradients; /* added to; NULL without backward */
    float *stats;                 /* [2]: loss is added to the first; both are summed over ranks with `reduce` */
    double self_pairs, cross_pairs;
    KnPackParts *parts; /* with the layout-invariant mode's backward; else NULL. A graph needs but the packs */
    const struct KnTrainPass *beside; /* a pass whose arena this one uses too, in turns; may be NULL */
} KnTrainPassOptions;

typedef struct KnPassGraph {
    KnModelGraph built;
    KnGradientPlan gradients;
    KnInvariantPlan invariant;
    KnTensor **shards; /* by block, with ZeRO 3: the weights' ranges */
    KnRows tokens, text_tokens;
    KnTensor *target, *weight, *loss, *loss_sum, *stats;
    KnTensor *fp8;          /* KN_FP8_LEAF, or NULL */
    int blocks, recomputed; /* blocks there are, and how many are computed again in the backward */
} KnPassGraph;

/* Builds it for a backend; of the options' memory nothing is touched. Where model.recompute is a number of bytes, as
 * few blocks are recomputed as let the arena fit; KN_EINPUT with the number that would be needed when none do. */
int kn_pass_graph_create(KnPassGraph *pass, const KnTrainPassOptions *options, KnBackend *backend);
void kn_pass_graph_destroy(KnPassGraph *pass);

#endif
