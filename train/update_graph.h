/* The graph of one optimizer step, before there is any memory: train/optimizer.h runs it; a plan walks it.
 *
 * Square of the global gradient norm, then for each block the step and the averaged weights, all in place on what this
 * rank holds of the block buffers; where weights are held whole but updated in parts (ZeRO 1 and 2), they are gathered.
 * Where the norm or the loss is not finite no weight, moment or average changes: that is seen where the update runs,
 * and nobody waits for it. Optimizers are rows of a table, each a way to append the nodes of a block. */
#ifndef KN_TRAIN_UPDATE_GRAPH_H
#define KN_TRAIN_UPDATE_GRAPH_H

#include "core/base/config.h"
#include "core/graph/executor.h"
#include "dist/layout.h"

typedef enum KnUpdateBuffer {
    KN_UPDATE_WEIGHTS,
    KN_UPDATE_GRADIENTS,
    KN_UPDATE_MOMENT1,
    KN_UPDATE_MOMENT2,
    KN_UPDATE_AVERAGE
} KnUpdateBuffer;

/* A state leaf and where its memory is: from element `offset` of a block on. */
typedef struct KnUpdateBinding {
    KnTensor *leaf;
    KnUpdateBuffer buffer;
    int block;
    int64_t offset;
} KnUpdateBinding;

typedef struct KnUpdateGraph {
    KnGraph *graph;
    KnTensor *hyper, *norm2; /* norm2 is kept; not a number where the loss is not finite */
    KnTensor *loss;          /* state, with KN_UPDATE_LOSS_GIVEN */
    KnTensor *given_norm2;   /* state, with KN_UPDATE_NORM_GIVEN */
    KnUpdateBinding *bindings;
    int binding_count, binding_capacity;
} KnUpdateGraph;

/* Scalars that are found elsewhere: the square of the gradient norm; the step's loss. */
enum { KN_UPDATE_NORM_GIVEN = 1, KN_UPDATE_LOSS_GIVEN = 2 };

/* KN_EINPUT names the optimizers there are. `given`: the sum of what is. */
int kn_update_graph_create(KnUpdateGraph *update, const KnOptimizerConfig *config, const KnLayout *layout, int given);
void kn_update_graph_destroy(KnUpdateGraph *update);

/* Does the optimizer update matrices as wholes, so that ZeRO must not cut them? */
int kn_optimizer_whole_matrices(const KnOptimizerConfig *config);

#endif
