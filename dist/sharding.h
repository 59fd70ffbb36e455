/* Sharding a model's forward graph: from the graph of the whole to the graph of one rank.
 *
 * The model is built once for the whole stream; this pass cuts it for a rank of the mesh and places the collectives.
 * Tokens: every tensor with a row for each token keeps the rows of this rank alone, and all work on rows stays as it
 * is. Self-attention alone needs other tokens: an all-to-all gives each rank of the `ulysses` group all tokens of the
 * group for a share of the heads (Jacobs et al., 2023, "DeepSpeed Ulysses"), and the `ring` group passes keys and
 * values round (Liu et al., 2023, "Ring Attention"); the ring's node is taken apart by kn_ring_expand after the
 * gradient pass.
 * Text: replicated, or its rows cut in the same way and keys and values gathered.
 * Matrices: see dist/split.h; a block's two sums over the `tensor` group are all-reduces.
 *
 * Gradients of what all ranks of the sequence hold alike come out as the part of this rank's tokens, to be summed over
 * KN_GROUP_SUM; the rules of the ops placed here see to everything else. Cuts may be uneven and parts empty; nothing
 * is padded. */
#ifndef KN_DIST_SHARDING_H
#define KN_DIST_SHARDING_H

#include "core/model/model.h"
#include "dist/mesh.h"

/* Rows of the stream that a rank holds: [first, first + count). */
typedef struct KnRows {
    int64_t first, count;
} KnRows;

typedef struct KnSharding {
    const KnMesh *mesh;
    const KnModel *model; /* the whole */
    KnStreamShape shape;  /* of the whole stream */
    int shard_text;       /* cut text rows too */
    int invariant;        /* cut tokens between chunks of a fixed number, and gather in place of rings */
} KnSharding;

/* Of the layout-invariant mode (dist/invariant.h): chunks of a pack's tokens, the most ranks a sequence can have. */
enum { KN_INVARIANT_CHUNKS = 8 };

/* Where the tokens of rank `part` of the sequence begin. */
int64_t kn_token_cut(const KnSharding *sharding, int part);

/* This rank's tokens and text tokens. */
KnRows kn_sharded_tokens(const KnSharding *sharding);
KnRows kn_sharded_text(const KnSharding *sharding);

/* Rewrites the forward graph; leaves of tokens and parameters get this rank's shapes, built->prediction its rows.
 * `extra` are further input leaves with a row for each token (targets, weights). */
void kn_shard_forward(KnModelGraph *built, const KnSharding *sharding, KnTensor *const *extra, int extra_count);

/* Whether text rows are to be cut: as `wish` says, or by the cost rules, where the work that it saves each rank is
 * worth the keys and values that are then gathered. Conditioning rows are two a clip and stay whole on every rank. */
int kn_text_is_cut(const KnModelGraphOptions *options, const KnSharding *sharding, KnTextRows wish);

/* Takes ring attention, forward and backward, apart into partial attentions, merges and exchanges. After kn_gradient
 * and recomputation. */
void kn_ring_expand(KnGraph *graph);

/* Moves every start of an exchange up to where what it sends is complete, and every wait down to where its result is
 * needed first. `in_order`: exchanges run one after another, in the order of their starts, as on a device; then one
 * that sends on what another brings needs no wait between them. The last pass but lowering. */
void kn_overlap(KnGraph *graph, int in_order);

/* Brings what can compute while an exchange is on its way before its wait. After lowering, so that nothing that is
 * summed or rounded depends on it. */
void kn_fill_waits(KnGraph *graph, int in_order);

#endif
