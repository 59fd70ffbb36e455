/* The architecture as a diffusers config.json, and back. */
#include "dist/model_file.h"

#include "core/base/error.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static const char class_name[] = "WanTransformer3DModel";

static json_t *text_json(const KnModel *model)
{
    const KnTextConfig *t = &model->text;
    return json_pack("{sssIsIsIsI}", "kind", t->kind == KN_TEXT_TRAINED ? "trained" : "none", "layers",
                     (json_int_t)t->layers, "heads", (json_int_t)t->heads, "max_tokens", (json_int_t)t->max_tokens,
                     "vocabulary", (json_int_t)(model->tokenizer ? kn_tokenizer_vocabulary(model->tokenizer) : 0));
}

char *kn_model_to_json(const KnModel *model)
{
    const KnModelConfig *c = &model->config;
    json_t *patch = json_pack("[III]", (json_int_t)c->patch[0], (json_int_t)c->patch[1], (json_int_t)c->patch[2]);
    json_t *root = json_object();
    json_object_set_new(root, "_class_name", json_string(class_name));
    json_object_set_new(root, "patch_size", patch);
    json_object_set_new(root, "num_attention_heads", json_integer(c->heads));
    json_object_set_new(root, "attention_head_dim", json_integer(c->hidden / c->heads));
    json_object_set_new(root, "in_channels", json_integer(c->channels));
    json_object_set_new(root, "out_channels", json_integer(c->channels));
    json_object_set_new(root, "text_dim", json_integer(c->text_dim));
    json_object_set_new(root, "freq_dim", json_integer(c->freq_dim));
    json_object_set_new(root, "ffn_dim", json_integer(c->ffn));
    json_object_set_new(root, "num_layers", json_integer(c->layers));
    json_object_set_new(root, "cross_attn_norm", json_boolean(c->cross_attn_norm));
    json_object_set_new(root, "qk_norm", json_string("rms_norm_across_heads"));
    json_object_set_new(root, "eps", json_real(c->eps));
    json_object_set_new(root, "rope_max_seq_len", json_integer(KN_ROPE_POSITIONS));
    json_object_set_new(root, "kinora",
                        json_pack("{ssso}", "prediction",
                                  model->prediction == KN_PREDICT_SAMPLE ? "sample" : "velocity", "text",
                                  text_json(model)));
    char *text = json_dumps(root, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(15));
    json_decref(root);
    KN_ASSERT(text);
    return text;
}

typedef struct Reader {
    const json_t *root;
    const char *name;
    int code;
} Reader;

/* An integer of at least 1; `fallback` < 0 means that it must be there. */
static int64_t read_int(Reader *r, const char *key, int64_t fallback)
{
    const json_t *value = json_object_get(r->root, key);
    if (!value && fallback >= 0)
        return fallback;
    if (json_is_integer(value) && json_integer_value(value) >= 1 && json_integer_value(value) < (1 << 24))
        return json_integer_value(value);
    if (r->code == KN_OK)
        r->code = kn_fail(KN_EFORMAT, "%s: \"%s\" is not a whole number from 1 to %d", r->name, key, (1 << 24) - 1);
    return 1;
}

/* Refuses a feature that this transformer does not have. */
static void refuse(Reader *r, const char *key, const char *what)
{
    const json_t *value = json_object_get(r->root, key);
    if (value && !json_is_null(value) && r->code == KN_OK)
        r->code = kn_fail(KN_EINPUT, "%s: \"%s\" asks for %s, which is not supported", r->name, key, what);
}

static void read_patch(Reader *r, KnModelConfig *config)
{
    const json_t *patch = json_object_get(r->root, "patch_size");
    for (size_t i = 0; i < 3; i++) {
        const json_t *side = json_array_get(patch, i);
        if (json_array_size(patch) != 3 || !json_is_integer(side) || json_integer_value(side) < 1 ||
            json_integer_value(side) > 4096) {
            if (r->code == KN_OK)
                r->code = kn_fail(KN_EFORMAT, "%s: \"patch_size\" is not three whole numbers", r->name);
            return;
        }
        config->patch[i] = json_integer_value(side);
    }
}

static void read_architecture(Reader *r, KnModelConfig *c)
{
    const json_t *kind = json_object_get(r->root, "_class_name"), *norm = json_object_get(r->root, "cross_attn_norm");
    const json_t *qk = json_object_get(r->root, "qk_norm"), *eps = json_object_get(r->root, "eps");
    *c = (KnModelConfig){0};
    if (kind && (!json_is_string(kind) || strcmp(json_string_value(kind), class_name)))
        r->code = kn_fail(KN_EINPUT, "%s describes a %s; only %s is supported", r->name,
                          json_is_string(kind) ? json_string_value(kind) : "?", class_name);
    refuse(r, "image_dim", "attention to image embeddings");
    refuse(r, "added_kv_proj_dim", "attention to image embeddings");
    if (r->code == KN_OK && json_is_string(qk) && strcmp(json_string_value(qk), "rms_norm_across_heads"))
        r->code = kn_fail(KN_EINPUT, "%s: \"qk_norm\" is %s; only rms_norm_across_heads is supported", r->name,
                          json_string_value(qk));
    read_patch(r, c);
    c->heads = read_int(r, "num_attention_heads", -1);
    c->hidden = c->heads * read_int(r, "attention_head_dim", -1);
    c->channels = read_int(r, "in_channels", -1);
    if (read_int(r, "out_channels", c->channels) != c->channels && r->code == KN_OK)
        r->code = kn_fail(KN_EINPUT, "%s: out_channels differs from in_channels, which is not supported", r->name);
    c->text_dim = read_int(r, "text_dim", -1);
    c->freq_dim = read_int(r, "freq_dim", 256);
    c->ffn = read_int(r, "ffn_dim", -1);
    c->layers = read_int(r, "num_layers", -1);
    c->cross_attn_norm = norm ? json_is_true(norm) : 1;
    c->eps = json_is_number(eps) ? json_number_value(eps) : 1e-6;
    if (r->code == KN_OK && !(c->eps > 0 && c->eps <= 1))
        r->code = kn_fail(KN_EFORMAT, "%s: \"eps\" is not a number above 0, at most 1", r->name);
}

/* Which of `words` stands at `key`; 0 when the key is absent. */
static int read_word(Reader *r, const char *key, const char *const *words, int count)
{
    const json_t *value = json_object_get(r->root, key);
    int word = 0;
    while (json_is_string(value) && word < count && strcmp(json_string_value(value), words[word]))
        word++;
    if (!value || (json_is_string(value) && word < count))
        return word;
    if (r->code == KN_OK)
        r->code = kn_fail(KN_EFORMAT, "%s: \"%s\" is neither \"%s\" nor \"%s\"", r->name, key, words[0], words[1]);
    return 0;
}

static void read_ours(Reader *r, KnTextConfig *text, KnPrediction *prediction)
{
    static const char *const predictions[] = {"velocity", "sample"}, *const kinds[] = {"none", "trained"};
    Reader ours = {json_object_get(r->root, "kinora"), r->name, r->code};
    Reader inner = {json_object_get(ours.root, "text"), r->name, r->code};
    *text = (KnTextConfig){.kind = KN_TEXT_NONE, .heads = 1, .max_tokens = 512};
    *prediction = read_word(&ours, "prediction", predictions, 2) ? KN_PREDICT_SAMPLE : KN_PREDICT_VELOCITY;
    if (read_word(&inner, "kind", kinds, 2)) {
        const json_t *layers = json_object_get(inner.root, "layers");
        text->kind = KN_TEXT_TRAINED;
        text->layers = layers && json_integer_value(layers) == 0 ? 0 : read_int(&inner, "layers", 0);
        text->heads = read_int(&inner, "heads", -1);
        text->max_tokens = read_int(&inner, "max_tokens", -1);
        text->vocabulary = read_int(&inner, "vocabulary", -1);
    }
    r->code = ours.code < 0 ? ours.code : inner.code;
}

int kn_model_from_json(const char *json, const char *name, KnModelConfig *config, KnTextConfig *text,
                       KnPrediction *prediction)
{
    json_error_t error;
    json_t *root = json_loads(json, JSON_REJECT_DUPLICATES, &error);
    if (!json_is_object(root)) {
        json_decref(root);
        return kn_fail(KN_EFORMAT, "%s is not a JSON object: line %d: %s", name, error.line, error.text);
    }
    Reader r = {root, name, KN_OK};
    read_architecture(&r, config);
    if (r.code == KN_OK)
        read_ours(&r, text, prediction);
    json_decref(root);
    return r.code;
}
