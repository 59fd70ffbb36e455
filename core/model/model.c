/* Putting transformer and text encoder together. */
#include "core/model/model.h"

#include "core/base/error.h"
#include "core/ops/ops.h"

static int check_shapes(const KnModelConfig *c, const KnTextConfig *text)
{
    if (c->layers < 1 || c->hidden < 1 || c->heads < 1 || c->ffn < 1 || c->channels < 1 || c->text_dim < 1)
        return kn_fail(KN_EINPUT,
                       "the model has a size below one: layers %lld, hidden %lld, heads %lld, ffn %lld, "
                       "channels %lld, text_dim %lld",
                       (long long)c->layers, (long long)c->hidden, (long long)c->heads, (long long)c->ffn,
                       (long long)c->channels, (long long)c->text_dim);
    if (c->hidden % c->heads || (c->hidden / c->heads) % 2)
        return kn_fail(KN_EINPUT,
                       "hidden %lld cannot be cut into %lld heads of an even size: change model.hidden or model.heads",
                       (long long)c->hidden, (long long)c->heads);
    if (c->patch[0] < 1 || c->patch[1] < 1 || c->patch[2] < 1)
        return kn_fail(KN_EINPUT, "the patch %lld,%lld,%lld has a side below one", (long long)c->patch[0],
                       (long long)c->patch[1], (long long)c->patch[2]);
    if (c->freq_dim < 2 || c->freq_dim % 2)
        return kn_fail(KN_EINPUT, "freq_dim %lld must be an even number of at least 2", (long long)c->freq_dim);
    if (text->kind == KN_TEXT_TRAINED && text->layers > 0 && (text->heads < 1 || c->text_dim % text->heads))
        return kn_fail(KN_EINPUT,
                       "text_dim %lld cannot be cut into the text encoder's %lld heads: change model.text_dim or "
                       "model.text.heads",
                       (long long)c->text_dim, (long long)text->heads);
    return KN_OK;
}

int kn_model_create(KnModel *model, const KnModelConfig *config, const KnTextConfig *text, KnPrediction prediction,
                    KnTokenizer *tokenizer)
{
    *model = (KnModel){.config = *config, .text = *text, .prediction = prediction, .tokenizer = tokenizer};
    int code = check_shapes(config, text);
    if (code < 0) {
        kn_model_destroy(model);
        return code;
    }
    kn_dit_parameters(config, &model->parameters);
    if (text->kind == KN_TEXT_TRAINED) {
        int64_t vocabulary = tokenizer ? kn_tokenizer_vocabulary(tokenizer) : text->vocabulary;
        kn_text_encoder_parameters(text, config->text_dim, vocabulary, (int)config->layers + 1, &model->parameters);
    }
    kn_parameter_set_finish(&model->parameters);
    return KN_OK;
}

void kn_model_destroy(KnModel *model)
{
    kn_tokenizer_destroy(model->tokenizer);
    kn_parameter_set_clear(&model->parameters);
    *model = (KnModel){0};
}

static KnTensor *build_text(const KnModel *model, const KnModelGraphOptions *options, KnModelGraph *built)
{
    KnGraph *graph = built->graph;
    if (model->text.kind == KN_TEXT_TRAINED && !options->outside_text) {
        KnTextInputs inputs = {.ids = built->leaves.text_ids,
                               .positions = built->leaves.text_positions,
                               .spans = built->leaves.text_spans};
        return kn_text_encoder_build(graph, &model->text, &model->parameters, &inputs, (float)model->config.eps,
                                     options->dtype);
    }
    built->text = kn_leaf(graph, KN_ROLE_INPUT, KN_F32, 2,
                          (int64_t[]){options->shape.text_tokens, model->config.text_dim}, "input.text");
    return kn_cast(graph, built->text, options->dtype);
}

void kn_model_build(const KnModel *model, const KnModelGraphOptions *options, KnModelGraph *built)
{
    *built = (KnModelGraph){.graph = kn_graph_create()};
    kn_stream_leaves(built->graph, &model->config, options->shape, &built->leaves);
    built->patches = kn_leaf(built->graph, KN_ROLE_INPUT, KN_F32, 2,
                             (int64_t[]){options->shape.tokens, kn_model_patch_dim(&model->config)}, "input.patches");
    KnDitInputs inputs = {
        .patches = kn_cast(built->graph, built->patches, options->dtype),
        .positions = built->leaves.positions,
        .rows = built->leaves.rows,
        .timesteps = built->leaves.timesteps,
        .text = build_text(model, options, built),
        .self_spans = built->leaves.self_spans,
        .cross_spans = built->leaves.cross_spans,
        .rope_table = built->leaves.rope_table,
        .self_pairs = options->self_pairs,
        .cross_pairs = options->cross_pairs,
    };
    built->prediction = kn_dit_build(built->graph, &model->config, &model->parameters, &inputs);
}
