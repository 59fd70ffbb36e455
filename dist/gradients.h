/* Placing gradients into a training graph: differentiation, accumulation, and sums over ranks.
 *
 * Each parameter's gradient is added to its place in the block's gradient buffer as soon as the backward has it, or
 * made there where nothing has come before; when the last one of a block has arrived, the block's buffer starts to be
 * summed over the ranks while the backward goes on with the next block. Without ZeRO it is an all-reduce over
 * KN_GROUP_SUM. From stage 1 on a reduce-scatter over KN_GROUP_ZERO, then an all-reduce of this rank's range over
 * KN_GROUP_DATA; from stage 2 on the whole buffer lives no longer than the block's backward, and only the range is kept
 * from pack to pack. */
#ifndef KN_DIST_GRADIENTS_H
#define KN_DIST_GRADIENTS_H

#include "dist/zero.h"

typedef struct KnGradientPlan {
    const KnParameterSet *set;
    KnTensor **sums;       /* by parameter: state leaf, its part of the block's gradient buffer; NULL from stage 2 on */
    KnTensor **block_sums; /* by block: state leaf of the buffer (from stage 2 on: of this rank's range) where it is
                              summed over ranks; else NULL */
} KnGradientPlan;

typedef struct KnGradientOptions {
    const KnZero *zero; /* also says which parameters there are */
    const KnMesh *mesh;
    const char *recompute; /* by block of the graph: is its forward computed again? NULL: none is */
    int reduce;            /* the step's last pack: sum over ranks */
    int only;              /* the step's only pack: what is added to are zeros, so it need not be read */
    KnTensor *also;        /* a further state leaf to be summed over KN_GROUP_SUM; may be NULL */
} KnGradientOptions;

/* Differentiates `loss` by every parameter that the graph has a leaf of, and places the nodes. Release the plan with
 * kn_gradient_plan_clear. */
void kn_place_gradients(KnGraph *graph, KnTensor *loss, const KnGradientOptions *options, KnGradientPlan *plan);
void kn_gradient_plan_clear(KnGradientPlan *plan);

#endif
