/* Placing gradient accumulation and data-parallel reduction into a training graph.
 *
 * Each parameter's gradient is added to its place in the block's gradient buffer as soon as the backward has it; when
 * the last one of a block has arrived, the block's buffer starts to be summed over the ranks while the backward goes
 * on with the next block. All sums are waited for at the graph's end. */
#ifndef KN_DIST_GRADIENTS_H
#define KN_DIST_GRADIENTS_H

#include "core/model/parameters.h"

typedef struct KnGradientPlan {
    const KnParameterSet *set;
    KnTensor **sums;       /* by parameter index: state leaf of the gradient buffer's part; made here */
    KnTensor **block_sums; /* by block: state leaf of the whole buffer, when reducing; else NULL */
} KnGradientPlan;

/* Differentiates `loss` by every parameter of `set` that the graph has a leaf of, and places the nodes. With `reduce`
 * the buffers are summed over ranks; `also` (may be NULL) is a further state leaf to be summed with the last block.
 * Between kn_model_build and the executor. Release with kn_gradient_plan_clear. */
void kn_place_gradients(KnGraph *graph, KnTensor *loss, const KnParameterSet *set, int recompute, int reduce,
                        KnTensor *also, KnGradientPlan *plan);
void kn_gradient_plan_clear(KnGradientPlan *plan);

#endif
