/* Building the trained text encoder. */
#include "core/model/text_encoder.h"

#include "core/base/error.h"
#include "core/ops/ops.h"

#include <math.h>
#include <stdio.h>

enum { NAME_BYTES = 128, FFN_FACTOR = 4 };

static const char prefix[] = "text_encoder.layers";

static KnParameter *add(KnParameterSet *set, int block, int64_t layer, const char *suffix, int dims,
                        const int64_t *shape)
{
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "%s.%lld.%s", prefix, (long long)layer, suffix);
    return kn_parameter_add(set, block, name, dims, shape);
}

static void add_matrix(KnParameterSet *set, int block, int64_t layer, const char *suffix, int64_t out, int64_t in)
{
    KnParameter *weight = add(set, block, layer, suffix, 2, (int64_t[]){out, in});
    weight->init = KN_INIT_UNIFORM;
    weight->init_scale = (float)(1 / sqrt((double)in));
    weight->matrix = 1;
}

void kn_text_encoder_parameters(const KnTextConfig *config, int64_t text_dim, int64_t vocabulary, int first_block,
                                KnParameterSet *set)
{
    KnParameter *table =
        kn_parameter_add(set, first_block, "text_encoder.embedding.weight", 2, (int64_t[]){vocabulary, text_dim});
    table->init = KN_INIT_NORMAL;
    table->init_scale = 1;
    table = kn_parameter_add(set, first_block, "text_encoder.positions.weight", 2,
                             (int64_t[]){config->max_tokens, text_dim});
    table->init = KN_INIT_NORMAL;
    table->init_scale = 1;
    for (int64_t layer = 0; layer < config->layers; layer++) {
        int block = first_block + 1 + (int)layer;
        add_matrix(set, block, layer, "to_q.weight", text_dim, text_dim);
        add_matrix(set, block, layer, "to_k.weight", text_dim, text_dim);
        add_matrix(set, block, layer, "to_v.weight", text_dim, text_dim);
        add_matrix(set, block, layer, "to_out.weight", text_dim, text_dim);
        add_matrix(set, block, layer, "ffn_1.weight", FFN_FACTOR * text_dim, text_dim);
        add_matrix(set, block, layer, "ffn_2.weight", text_dim, FFN_FACTOR * text_dim);
        add(set, block, layer, "norm_1.weight", 1, &text_dim)->init = KN_INIT_ONES;
        add(set, block, layer, "norm_2.weight", 1, &text_dim)->init = KN_INIT_ONES;
    }
}

typedef struct Layer {
    KnGraph *graph;
    const KnParameterSet *set;
    int64_t index;
} Layer;

static KnTensor *leaf(const Layer *layer, const char *suffix)
{
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "%s.%lld.%s", prefix, (long long)layer->index, suffix);
    return kn_parameter_leaf(layer->graph, layer->set, name);
}

static KnTensor *build_layer(const Layer *layer, const KnTextConfig *config, const KnTextInputs *inputs, float eps,
                             KnTensor *x)
{
    KnGraph *g = layer->graph;
    float scale = (float)(1 / sqrt((double)(kn_tensor_columns(x) / config->heads)));
    KnTensor *y = kn_rms_norm(g, x, leaf(layer, "norm_1.weight"), eps);
    KnTensor *q = kn_linear(g, y, leaf(layer, "to_q.weight"), NULL);
    KnTensor *k = kn_linear(g, y, leaf(layer, "to_k.weight"), NULL);
    KnTensor *v = kn_linear(g, y, leaf(layer, "to_v.weight"), NULL);
    y = kn_attention(g, q, k, v, inputs->spans, config->heads, scale);
    kn_attention_promise_packed(y); /* as streams are filled */
    x = kn_add(g, x, kn_linear(g, y, leaf(layer, "to_out.weight"), NULL));
    y = kn_rms_norm(g, x, leaf(layer, "norm_2.weight"), eps);
    y = kn_activation(g, kn_linear(g, y, leaf(layer, "ffn_1.weight"), NULL), KN_GELU_TANH);
    return kn_add(g, x, kn_linear(g, y, leaf(layer, "ffn_2.weight"), NULL));
}

KnTensor *kn_text_encoder_build(KnGraph *graph, const KnTextConfig *config, const KnParameterSet *set,
                                const KnTextInputs *inputs, float eps, KnDtype dtype)
{
    KnTensor *words = kn_parameter_leaf(graph, set, "text_encoder.embedding.weight");
    KnTensor *places = kn_parameter_leaf(graph, set, "text_encoder.positions.weight");
    KnTensor *x =
        kn_add(graph, kn_gather_rows(graph, words, inputs->ids), kn_gather_rows(graph, places, inputs->positions));
    x = kn_cast(graph, x, dtype);
    for (int64_t i = 0; i < config->layers; i++) {
        kn_block_begin(graph);
        x = build_layer(&(Layer){graph, set, i}, config, inputs, eps, x);
        kn_block_end(graph);
    }
    return x;
}
