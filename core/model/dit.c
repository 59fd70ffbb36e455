/* Building the transformer's forward graph. Facts of the architecture follow diffusers' transformer_wan. */
#include "core/model/dit.h"

#include "core/base/error.h"
#include "core/ops/ops.h"

#include <math.h>
#include <stdio.h>

enum { NAME_BYTES = 128 };

/* --- Parameters --------------------------------------------------------------------------------------------------- */

static void name_in_block(char *name, int64_t layer, const char *suffix)
{
    snprintf(name, NAME_BYTES, "blocks.%lld.%s", (long long)layer, suffix);
}

/* weight [out, in] and bias [out], uniform within 1 / sqrt(in): the usual start of linear layers. */
static void add_linear(KnParameterSet *set, int block, const char *name, int64_t out, int64_t in, int matrix)
{
    char full[NAME_BYTES + 16];
    snprintf(full, sizeof full, "%s.weight", name);
    KnParameter *weight = kn_parameter_add(set, block, full, 2, (int64_t[]){out, in});
    weight->init = KN_INIT_UNIFORM;
    weight->init_scale = (float)(1 / sqrt((double)in));
    weight->matrix = matrix;
    snprintf(full, sizeof full, "%s.bias", name);
    KnParameter *bias = kn_parameter_add(set, block, full, 1, &out);
    bias->init = KN_INIT_UNIFORM;
    bias->init_scale = (float)(1 / sqrt((double)in));
}

static void add_vector(KnParameterSet *set, int block, const char *name, int64_t size, KnInit init)
{
    kn_parameter_add(set, block, name, 1, &size)->init = init;
}

static void add_table(KnParameterSet *set, int block, const char *name, int64_t rows, int64_t hidden)
{
    KnParameter *table = kn_parameter_add(set, block, name, 3, (int64_t[]){1, rows, hidden});
    table->init = KN_INIT_NORMAL;
    table->init_scale = (float)(1 / sqrt((double)hidden));
}

static void add_globals(const KnModelConfig *config, KnParameterSet *set)
{
    int64_t hidden = config->hidden, dim = kn_model_patch_dim(config);
    const int64_t *patch = config->patch;
    KnParameter *kernel = kn_parameter_add(set, 0, "patch_embedding.weight", 5,
                                           (int64_t[]){hidden, config->channels, patch[0], patch[1], patch[2]});
    kernel->init = KN_INIT_UNIFORM;
    kernel->init_scale = (float)(1 / sqrt((double)dim));
    add_vector(set, 0, "patch_embedding.bias", hidden, KN_INIT_ZEROS);
    add_linear(set, 0, "condition_embedder.time_embedder.linear_1", hidden, config->freq_dim, 0);
    add_linear(set, 0, "condition_embedder.time_embedder.linear_2", hidden, hidden, 0);
    add_linear(set, 0, "condition_embedder.time_proj", 6 * hidden, hidden, 0);
    add_linear(set, 0, "condition_embedder.text_embedder.linear_1", hidden, config->text_dim, 0);
    add_linear(set, 0, "condition_embedder.text_embedder.linear_2", hidden, hidden, 0);
    add_table(set, 0, "scale_shift_table", 2, hidden);
    add_linear(set, 0, "proj_out", dim, hidden, 0);
}

static void add_attention(KnParameterSet *set, int block, int64_t layer, const char *which, int64_t hidden)
{
    static const char *const linears[] = {"to_q", "to_k", "to_v", "to_out.0"};
    static const char *const norms[] = {"norm_q.weight", "norm_k.weight"};
    char suffix[64], name[NAME_BYTES];
    for (int i = 0; i < 4; i++) {
        snprintf(suffix, sizeof suffix, "%s.%s", which, linears[i]);
        name_in_block(name, layer, suffix);
        add_linear(set, block, name, hidden, hidden, 1);
    }
    for (int i = 0; i < 2; i++) {
        snprintf(suffix, sizeof suffix, "%s.%s", which, norms[i]);
        name_in_block(name, layer, suffix);
        add_vector(set, block, name, hidden, KN_INIT_ONES);
    }
}

static void add_block(const KnModelConfig *config, KnParameterSet *set, int block, int64_t layer)
{
    char name[NAME_BYTES];
    int64_t hidden = config->hidden;
    add_attention(set, block, layer, "attn1", hidden);
    add_attention(set, block, layer, "attn2", hidden);
    name_in_block(name, layer, "ffn.net.0.proj");
    add_linear(set, block, name, config->ffn, hidden, 1);
    name_in_block(name, layer, "ffn.net.2");
    add_linear(set, block, name, hidden, config->ffn, 1);
    if (config->cross_attn_norm) {
        name_in_block(name, layer, "norm2.weight");
        add_vector(set, block, name, hidden, KN_INIT_ONES);
        name_in_block(name, layer, "norm2.bias");
        add_vector(set, block, name, hidden, KN_INIT_ZEROS);
    }
    name_in_block(name, layer, "scale_shift_table");
    add_table(set, block, name, 6, hidden);
}

void kn_dit_parameters(const KnModelConfig *config, KnParameterSet *set)
{
    add_globals(config, set);
    for (int64_t layer = 0; layer < config->layers; layer++)
        add_block(config, set, (int)layer + 1, layer);
}

/* --- The forward graph -------------------------------------------------------------------------------------------- */

typedef struct Builder {
    KnGraph *graph;
    const KnModelConfig *config;
    const KnParameterSet *set;
    const KnDitInputs *in;
    KnTensor *text, *modulation, *temb; /* [Lt, hidden]; f32 [R, 6 hidden]; f32 [R, hidden] */
    int64_t layer;
} Builder;

static KnTensor *leaf(Builder *b, const char *name)
{
    return kn_parameter_leaf(b->graph, b->set, name);
}

static KnTensor *block_leaf(Builder *b, const char *suffix)
{
    char name[NAME_BYTES];
    name_in_block(name, b->layer, suffix);
    return leaf(b, name);
}

static KnTensor *linear(Builder *b, KnTensor *x, const char *name)
{
    char weight[NAME_BYTES + 16], bias[NAME_BYTES + 16];
    snprintf(weight, sizeof weight, "%s.weight", name);
    snprintf(bias, sizeof bias, "%s.bias", name);
    return kn_linear(b->graph, x, leaf(b, weight), leaf(b, bias));
}

static KnTensor *block_linear(Builder *b, KnTensor *x, const char *suffix)
{
    char name[NAME_BYTES - 8];
    snprintf(name, sizeof name, "blocks.%lld.%s", (long long)b->layer, suffix);
    return linear(b, x, name);
}

/* All in float32, whatever the model computes in. */
static void build_time(Builder *b)
{
    KnGraph *g = b->graph;
    KnTensor *t = kn_timestep_embedding(g, b->in->timesteps, b->config->freq_dim);
    t = linear(b, t, "condition_embedder.time_embedder.linear_1");
    t = kn_activation(g, t, KN_SILU);
    b->temb = linear(b, t, "condition_embedder.time_embedder.linear_2");
    b->modulation = linear(b, kn_activation(g, b->temb, KN_SILU), "condition_embedder.time_proj");
}

static void build_text(Builder *b)
{
    KnTensor *text = linear(b, b->in->text, "condition_embedder.text_embedder.linear_1");
    text = kn_activation(b->graph, text, KN_GELU_TANH);
    b->text = linear(b, text, "condition_embedder.text_embedder.linear_2");
}

static KnTensor *normed(Builder *b, KnTensor *x, const char *which, const char *norm)
{
    char suffix[64];
    snprintf(suffix, sizeof suffix, "%s.%s.weight", which, norm);
    return kn_rms_norm(b->graph, x, block_leaf(b, suffix), (float)b->config->eps);
}

static KnTensor *attention_linear(Builder *b, KnTensor *x, const char *which, const char *name)
{
    char suffix[64];
    snprintf(suffix, sizeof suffix, "%s.%s", which, name);
    return block_linear(b, x, suffix);
}

static KnTensor *rotated(Builder *b, KnTensor *x)
{
    int64_t head = b->config->hidden / b->config->heads, axis = head / 6;
    KnRopeAttributes attributes = {.heads = b->config->heads, .axis_pairs = {head / 2 - 2 * axis, axis, axis}};
    return kn_rope(b->graph, x, b->in->positions, b->in->rope_table, &attributes);
}

/* What attention reads: queries [L, hidden], keys and values [Lk, hidden]. */
typedef struct Projected {
    KnTensor *q, *k, *v;
} Projected;

static KnTensor *queries(Builder *b, KnTensor *x, const char *which, int rotate)
{
    KnTensor *q = normed(b, attention_linear(b, x, which, "to_q"), which, "norm_q");
    return rotate ? rotated(b, q) : q;
}

static void project_keys(Builder *b, KnTensor *context, const char *which, int rotate, Projected *p)
{
    p->v = attention_linear(b, context, which, "to_v");
    p->k = normed(b, attention_linear(b, context, which, "to_k"), which, "norm_k");
    p->k = rotate ? rotated(b, p->k) : p->k;
}

static KnTensor *attend(Builder *b, const Projected *p, const char *which, int rotate)
{
    int64_t heads = b->config->heads;
    float scale = (float)(1 / sqrt((double)(b->config->hidden / heads)));
    KnTensor *spans = rotate ? b->in->self_spans : b->in->cross_spans;
    KnTensor *out = kn_attention(b->graph, p->q, p->k, p->v, spans, heads, scale);
    double pairs = rotate ? b->in->self_pairs : b->in->cross_pairs;
    kn_attention_promise_packed(out); /* as streams are filled */
    if (pairs > 0)
        kn_attention_expect_pairs(out, pairs);
    return attention_linear(b, out, which, "to_out.0");
}

static KnTensor *build_block(Builder *b, KnTensor *x)
{
    KnGraph *g = b->graph;
    KnTensor *c[6], *rows = b->in->rows;
    Projected self, cross;
    float eps = (float)b->config->eps;
    kn_split_columns(g, b->modulation, block_leaf(b, "scale_shift_table"), 6, c);
    KnTensor *y = kn_layer_norm_modulated(g, x, c[1], c[0], rows, eps);
    /* What is ready first can be on its way to other ranks while the rest is computed, and the text's while queries
     * travel. */
    project_keys(b, y, "attn1", 1, &self);
    self.q = queries(b, y, "attn1", 1);
    project_keys(b, b->text, "attn2", 0, &cross);
    x = kn_gated_residual(g, x, attend(b, &self, "attn1", 1), c[2], rows);
    y = x;
    if (b->config->cross_attn_norm)
        y = kn_layer_norm(g, x, block_leaf(b, "norm2.weight"), block_leaf(b, "norm2.bias"), eps);
    cross.q = queries(b, y, "attn2", 0);
    x = kn_add(g, x, attend(b, &cross, "attn2", 0));
    y = kn_layer_norm_modulated(g, x, c[4], c[3], rows, eps);
    y = block_linear(b, y, "ffn.net.0.proj");
    y = block_linear(b, kn_activation(g, y, KN_GELU_TANH), "ffn.net.2");
    return kn_gated_residual(g, x, y, c[5], rows);
}

/* proj_out's rows are published as (patch element, channel); the stream's columns are (channel, patch element). */
static KnTensor *build_head(Builder *b, KnTensor *x)
{
    KnGraph *g = b->graph;
    int64_t channels = b->config->channels, elements = kn_model_patch_dim(b->config) / channels;
    KnTensor *table = leaf(b, "scale_shift_table");
    KnTensor *shift = kn_add_row(g, b->temb, kn_slice(g, table, 0, 0, 1));
    KnTensor *scale = kn_add_row(g, b->temb, kn_slice(g, table, 0, 1, 1));
    x = kn_layer_norm_modulated(g, x, scale, shift, b->in->rows, (float)b->config->eps);
    KnTensor *weight = kn_swap_axes(g, leaf(b, "proj_out.weight"), elements, channels);
    KnTensor *bias = kn_swap_axes(g, leaf(b, "proj_out.bias"), elements, channels);
    return kn_matmul(g, x, 0, kn_cast(g, weight, x->dtype), 1, bias, KN_F32);
}

KnTensor *kn_dit_build(KnGraph *graph, const KnModelConfig *config, const KnParameterSet *set,
                       const KnDitInputs *inputs)
{
    Builder b = {.graph = graph, .config = config, .set = set, .in = inputs};
    KN_ASSERT(inputs->text->dtype == inputs->patches->dtype);
    build_time(&b);
    build_text(&b);
    KnTensor *x = linear(&b, inputs->patches, "patch_embedding");
    for (b.layer = 0; b.layer < config->layers; b.layer++) {
        kn_block_begin(graph);
        x = build_block(&b, x);
        kn_block_end(graph);
    }
    return build_head(&b, x);
}

/* Each axis has its own frequencies: theta^(-2 i / width) with the axis's width in columns, theta 10000. */
void kn_dit_rope_table(const KnModelConfig *config, float *table)
{
    int64_t head = config->hidden / config->heads, axis = head / 6;
    int64_t pairs[3] = {head / 2 - 2 * axis, axis, axis};
    for (int64_t position = 0; position < KN_ROPE_POSITIONS; position++)
        for (int a = 0; a < 3; a++)
            for (int64_t i = 0; i < pairs[a]; i++) {
                double angle = (double)position * pow(10000.0, -(double)i / (double)pairs[a]);
                *table++ = (float)cos(angle);
                *table++ = (float)sin(angle);
            }
}
