/* The layout-invariant mode: the same bits for every layout of data x shard x ring x ulysses.
 *
 * What depends on the layout is the order of sums over tokens and packs. Here a pack's tokens are cut into
 * KN_INVARIANT_CHUNKS chunks, whatever the layout, and every rank of the sequence has whole chunks. Whatever sums over
 * tokens in the backward is computed chunk by chunk. A sum that the backward goes on with (modulation, text) is made of
 * the gathered chunks at once, in their order; what a chunk gives to a parameter is kept, and at the step's end the
 * gathered parts of all packs and chunks are added, (pack, chunk) after (pack, chunk). Ring attention gathers instead
 * of passing on: each query sees all keys in one call, each key all queries. ZeRO changes where sums are kept, not
 * their order; the gradient norm is taken of whole blocks.
 *
 * In float32 alone, and without tensor parallelism. Costs packs x chunks gradients of memory: for tests and for finding
 * out whether a difference comes from the layout. */
#ifndef KN_DIST_INVARIANT_H
#define KN_DIST_INVARIANT_H

#include "dist/gradients.h"
#include "dist/sharding.h"

/* Chunks [first, first + count) of a pack that this rank has. */
KnRows kn_invariant_chunks(const KnSharding *sharding);

typedef struct KnInvariantPlan {
    KnTensor **parts; /* by block: state leaf [chunks here, elements], what this pack's chunks give */
    KnTensor **all;   /* by block: state leaf [packs here x chunks here, elements]; only where `reduce` */
    KnTensor *order;  /* input leaf i32 [packs x chunks]: the canonical order of the gathered rows; where `reduce` */
    KnTensor *norm2;  /* state leaf, scalar: square of the gradient's norm; where `reduce` */
    KnTensor **sums;  /* by block: state leaf, this rank's range of the sum; where `reduce` */
} KnInvariantPlan;

/* In the place of kn_place_gradients: `loss` is a sum over this rank's tokens on entry; *loss becomes the pack's, the
 * same on all ranks of the sequence. `packs_here` of a step. */
void kn_place_gradients_invariant(KnGraph *graph, KnTensor **loss, const KnSharding *sharding,
                                  const KnGradientOptions *options, int64_t packs_here, KnInvariantPlan *plan);
/* The loss alone, for a graph without backward. */
void kn_place_loss_invariant(KnGraph *graph, KnTensor **loss, const KnSharding *sharding, const KnZero *zero);
void kn_invariant_plan_clear(KnInvariantPlan *plan);

/* Fills `order` [packs x chunks]. */
void kn_invariant_order(const KnSharding *sharding, int64_t packs_here, int32_t *order);

#endif
