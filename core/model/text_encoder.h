/* The small text encoder that is trained together with the transformer (`text.kind: trained`).
 *
 * Word-piece embeddings plus learned positions, then a few bidirectional pre-norm layers (none by default: the
 * transformer's own two-layer projection is then all that stands between words and cross-attention). Captions of all
 * clips lie end to end, kept apart by the span table. */
#ifndef KN_MODEL_TEXT_ENCODER_H
#define KN_MODEL_TEXT_ENCODER_H

#include "core/base/config.h"
#include "core/model/parameters.h"

/* Declares its parameters: one block for the embeddings, one for each layer, from `first_block` on. `vocabulary` is
 * the tokenizer's. */
void kn_text_encoder_parameters(const KnTextConfig *config, int64_t text_dim, int64_t vocabulary, int first_block,
                                KnParameterSet *set);

typedef struct KnTextInputs {
    KnTensor *ids;       /* i32 [Lt]; negative where the budget is not filled */
    KnTensor *positions; /* i32 [Lt]: place in the caption */
    KnTensor *spans;     /* i32 [S, 4]: each caption with itself */
} KnTextInputs;

/* Text states [Lt, text_dim] in `dtype`. */
KnTensor *kn_text_encoder_build(KnGraph *graph, const KnTextConfig *config, const KnParameterSet *set,
                                const KnTextInputs *inputs, float eps, KnDtype dtype);

#endif
