/* Inside the update graph alone: what its files share while they append the nodes of a block. */
#ifndef KN_TRAIN_UPDATE_BUILDER_H
#define KN_TRAIN_UPDATE_BUILDER_H

#include "core/ops/ops.h"
#include "train/update_graph.h"

typedef struct KnUpdateBuilder {
    KnUpdateGraph *update;
    const KnOptimizerConfig *config;
    const KnLayout *layout;
    KnUpdateAttributes attributes;
} KnUpdateBuilder;

/* A run of elements of one block's buffer. */
typedef struct KnUpdateRange {
    int block;
    int64_t offset, count;
} KnUpdateRange;

/* A state leaf of one dimension for the range. */
KnTensor *kn_update_leaf(KnUpdateBuilder *builder, KnUpdateBuffer buffer, KnUpdateRange range);

/* The optimizers: each appends the step of what this rank owns of a block. */
void kn_update_adamw(KnUpdateBuilder *builder, KnUpdateRange owned);
void kn_update_muon(KnUpdateBuilder *builder, KnUpdateRange owned);

#endif
