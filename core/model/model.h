/* A whole model: the transformer, what turns captions into text states, and what its output means.
 *
 * The architecture alone, no weights: those are KnParameterValues over model.parameters. */
#ifndef KN_MODEL_MODEL_H
#define KN_MODEL_MODEL_H

#include "core/model/flow.h"
#include "core/model/stream.h"
#include "core/model/text_encoder.h"
#include "core/model/tokenizer.h"

typedef struct KnModel {
    KnModelConfig config;
    KnTextConfig text;
    KnPrediction prediction;
    KnTokenizer *tokenizer; /* NULL when text.kind is none; owned */
    KnParameterSet parameters;
} KnModel;

/* Takes over the tokenizer (NULL with text.kind none, or for a model that is only planned: as if all of text.vocabulary
 * had been learned). Checks what the YAML loader checks too, since shapes may also
 * come from a published config.json; KN_EINPUT says which number does not fit. */
int kn_model_create(KnModel *model, const KnModelConfig *config, const KnTextConfig *text, KnPrediction prediction,
                    KnTokenizer *tokenizer);
void kn_model_destroy(KnModel *model);

/* Text states and transformer in one graph. */
typedef struct KnModelGraph {
    KnGraph *graph; /* owned by the caller */
    KnStreamLeaves leaves;
    KnTensor *patches;    /* input [tokens, patch_dim], f32 */
    KnTensor *text;       /* input [text_tokens, text_dim], f32, when text.kind is none; else NULL */
    KnTensor *prediction; /* f32 [tokens, patch_dim] */
} KnModelGraph;

/* Appends the forward pass to a new graph, computing in `dtype`. With `outside_text`, text states are an input even of
 * a model that has an encoder. `pairs` is how many query-key pairs self-attention is expected to see; 0 = all. */
typedef struct KnModelGraphOptions {
    KnStreamShape shape;
    KnDtype dtype;
    int outside_text;
    double self_pairs, cross_pairs;
} KnModelGraphOptions;
void kn_model_build(const KnModel *model, const KnModelGraphOptions *options, KnModelGraph *built);

#endif
