/* The diffusion transformer, with the architecture of Wan 2.1 (`WanTransformer3DModel` of diffusers), over a flat
 * stream of patches.
 *
 * Tokens of all clips lie end to end. Each token has a position (t, y, x) in its clip and a conditioning row: a clip
 * has two rows, one for its noisy patches at its sigma and one for its given patches at sigma 0. Self-attention sees a
 * token's own clip, cross-attention the clip's caption, both by span tables, so the model itself knows no batch.
 *
 * A patch is flattened as (channel, frame, row, column), on the way in and on the way out (the published `proj_out` has
 * the channel fastest: its rows are reordered, not the stream). */
#ifndef KN_MODEL_DIT_H
#define KN_MODEL_DIT_H

#include "core/base/config.h"
#include "core/model/parameters.h"

enum { KN_ROPE_POSITIONS = 1024 }; /* most frames, rows or columns of patches in a clip */

static inline int64_t kn_model_patch_dim(const KnModelConfig *config)
{
    return config->channels * config->patch[0] * config->patch[1] * config->patch[2];
}

/* Declares the transformer's parameters under their published names: block 0 holds what is not repeated, block 1 + n
 * the transformer's block n. Call before kn_parameter_set_finish; other models may add blocks behind. */
void kn_dit_parameters(const KnModelConfig *config, KnParameterSet *set);

typedef struct KnDitInputs {
    KnTensor *patches;              /* [L, patch_dim], f32 or bf16: the dtype that the whole model computes in */
    KnTensor *positions;            /* i32 [L, 3]: (t, y, x) */
    KnTensor *rows;                 /* i32 [L]: conditioning row of each token */
    KnTensor *timesteps;            /* f32 [R]: 1000 sigma of each row */
    KnTensor *text;                 /* [Lt, text_dim], dtype of patches */
    KnTensor *self_spans;           /* i32 [S, 4] */
    KnTensor *cross_spans;          /* i32 [S, 4]: token rows to text rows */
    KnTensor *rope_table;           /* f32 [KN_ROPE_POSITIONS, head size], from kn_dit_rope_table */
    double self_pairs, cross_pairs; /* query-key pairs to expect, for costs; 0 = all with all */
} KnDitInputs;

/* Appends the forward pass; returns the prediction, f32 [L, patch_dim]. */
KnTensor *kn_dit_build(KnGraph *graph, const KnModelConfig *config, const KnParameterSet *set,
                       const KnDitInputs *inputs);

/* Fills the rotary table: cos and sin, in turn, for each position and pair; computed in float64. */
void kn_dit_rope_table(const KnModelConfig *config, float *table);

#endif
