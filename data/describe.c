/* What a shard or a data set holds, in words and as JSON: `kinora inspect` prints it. */
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/hash.h"
#include "core/base/memory.h"
#include "core/base/text.h"
#include "data/dataset.h"
#include "data/index.h"

#include <jansson.h>

#include <stdlib.h>
#include <string.h>

enum { SHAPES_SHOWN = 12, REJECTS_SHOWN = 12, CAPTIONS_SHOWN = 3 };

static void shapes_text(KnText *text, const json_t *list)
{
    size_t i;
    const json_t *shape;
    kn_text_append(text, "shapes (width x height x frames)\n");
    json_array_foreach(list, i, shape)
    {
        if (i == SHAPES_SHOWN) {
            kn_text_appendf(text, "  ... and %zu more\n", json_array_size(list) - i);
            break;
        }
        kn_text_appendf(text, "  %lldx%lld x %lld: %lld clips, %lld tokens\n",
                        (long long)json_integer_value(json_object_get(shape, "width")),
                        (long long)json_integer_value(json_object_get(shape, "height")),
                        (long long)json_integer_value(json_object_get(shape, "frames")),
                        (long long)json_integer_value(json_object_get(shape, "clips")),
                        (long long)json_integer_value(json_object_get(shape, "tokens")));
    }
}

static json_t *shard_json(const KnShard *shard, int verified)
{
    const KnShardFormat *format = kn_shard_format(shard);
    KnShapes shapes = {0};
    int64_t captions = 0, uncaptioned = 0;
    json_t *examples = json_array(), *sources = json_array();
    for (int64_t i = 0; i < kn_shard_clip_count(shard); i++) {
        const KnClip *clip = kn_shard_clip(shard, i);
        kn_shapes_add(&shapes, clip->frames, clip->height, clip->width, clip->tokens);
        captions += clip->captions;
        uncaptioned += clip->captions == 0;
        if (clip->captions > 0 && json_array_size(examples) < CAPTIONS_SHOWN)
            json_array_append_new(examples, kn_json_text(kn_shard_caption(shard, i, 0)));
    }
    for (int64_t i = 0; i < kn_shard_source_count(shard); i++) {
        const KnSource *source = kn_shard_source(shard, i);
        json_array_append_new(sources, json_pack("{so so so sI sI sb}", "path", kn_json_text(source->path), "reason",
                                                 kn_json_text(source->reason), "detail", kn_json_text(source->detail),
                                                 "bytes", (json_int_t)source->bytes, "damaged",
                                                 (json_int_t)source->damaged, "complete", source->complete));
    }
    json_t *result =
        json_pack("{ss so ss si s[III] sI sI ss ss sI sI sI sI so so so sb}", "kind", "shard", "path",
                  kn_json_text(kn_shard_path(shard)), "tool", kn_shard_tool(shard), "version", KN_SHARD_VERSION,
                  "patch", (json_int_t)format->patch[0], (json_int_t)format->patch[1], (json_int_t)format->patch[2],
                  "channels", (json_int_t)format->channels, "patch_dim", (json_int_t)format->patch_dim, "value_kind",
                  kn_value_kind_name(format->kind), "autoencoder", format->autoencoder, "clips",
                  (json_int_t)kn_shard_clip_count(shard), "tokens", (json_int_t)kn_shard_tokens(shard), "captions",
                  (json_int_t)captions, "clips_without_caption", (json_int_t)uncaptioned, "shapes",
                  kn_shapes_json(&shapes), "caption_examples", examples, "sources", sources, "verified", verified);
    return result;
}

static char *dump(json_t *object)
{
    char *text = json_dumps(object, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
    json_decref(object);
    return text;
}

static long long integer(const json_t *object, const char *key)
{
    return (long long)json_integer_value(json_object_get(object, key));
}

static void append_format(KnText *text, const json_t *object)
{
    const json_t *patch = json_object_get(object, "patch");
    const char *encoder = json_string_value(json_object_get(object, "autoencoder"));
    kn_text_appendf(text, "%s%s%s in patches of %lld x %lld x %lld (frames x rows x columns), %lld values each\n",
                    json_string_value(json_object_get(object, "value_kind")), encoder && encoder[0] ? " of " : "",
                    encoder ? encoder : "", (long long)json_integer_value(json_array_get(patch, 0)),
                    (long long)json_integer_value(json_array_get(patch, 1)),
                    (long long)json_integer_value(json_array_get(patch, 2)), integer(object, "patch_dim"));
}

static char *shard_text(const json_t *object)
{
    KnText text = {0};
    size_t i;
    const json_t *item;
    const json_t *sources = json_object_get(object, "sources");
    kn_text_appendf(&text, "%s: shard, format version %lld, written by %s\n",
                    json_string_value(json_object_get(object, "path")), integer(object, "version"),
                    json_string_value(json_object_get(object, "tool")));
    append_format(&text, object);
    kn_text_appendf(&text, "%lld clips of %zu sources, %lld tokens, %lld captions (%lld clips without)\n",
                    integer(object, "clips"), json_array_size(sources), integer(object, "tokens"),
                    integer(object, "captions"), integer(object, "clips_without_caption"));
    shapes_text(&text, json_object_get(object, "shapes"));
    json_array_foreach(json_object_get(object, "caption_examples"), i, item)
        kn_text_appendf(&text, "caption: %s\n", json_string_value(item));
    if (json_is_true(json_object_get(object, "verified")))
        kn_text_append(&text, "verified: every hash is right\n");
    return kn_text_take(&text);
}

int kn_shard_describe(const char *path, int verify, int json, char **description)
{
    KnShard *shard;
    *description = NULL;
    KN_TRY(kn_shard_open(&shard, path));
    int code = verify ? kn_shard_verify(shard) : KN_OK;
    if (code == KN_OK) {
        json_t *object = shard_json(shard, verify);
        if (json) {
            *description = dump(object);
        } else {
            *description = shard_text(object);
            json_decref(object);
        }
    }
    kn_shard_close(shard);
    return code;
}

/* ---- data sets ---- */

static char *dataset_text(const char *folder, const json_t *index, int verified)
{
    KnText text = {0};
    size_t i;
    const json_t *item;
    const json_t *rejects = json_object_get(index, "rejects");
    kn_text_appendf(&text, "%s: data set of %zu shards\n", folder, json_array_size(json_object_get(index, "shards")));
    append_format(&text, index);
    kn_text_appendf(&text, "%lld clips, %lld tokens, %lld captions (%lld clips without)\n", integer(index, "clips"),
                    integer(index, "tokens"), integer(index, "captions"), integer(index, "clips_without_caption"));
    shapes_text(&text, json_object_get(index, "shapes"));
    if (json_array_size(rejects) > 0)
        kn_text_appendf(&text, "%zu of %lld inputs gave no clip\n", json_array_size(rejects), integer(index, "inputs"));
    json_array_foreach(rejects, i, item)
    {
        if (i == REJECTS_SHOWN) {
            kn_text_appendf(&text, "  ... and %zu more in index.json\n", json_array_size(rejects) - i);
            break;
        }
        kn_text_appendf(&text, "  %s: %s\n", json_string_value(json_object_get(item, "input")),
                        json_string_value(json_object_get(item, "reason")));
    }
    if (verified)
        kn_text_append(&text, "verified: every hash of every shard is right\n");
    return kn_text_take(&text);
}

static int verify_shards(const char *folder, const json_t *index)
{
    size_t i;
    const json_t *entry;
    json_array_foreach(json_object_get(index, "shards"), i, entry)
    {
        char *path = kn_path_join(folder, json_string_value(json_object_get(entry, "file")));
        KnShard *shard;
        int code = kn_shard_open(&shard, path);
        free(path);
        KN_TRY(code);
        code = kn_shard_verify(shard);
        kn_shard_close(shard);
        KN_TRY(code);
    }
    return KN_OK;
}

int kn_dataset_describe(const char *folder, int verify, int json, char **description)
{
    *description = NULL;
    KnDataset *dataset; /* opening it checks the index against the shards */
    KN_TRY(kn_dataset_open(&dataset, &folder, 1));
    kn_dataset_close(dataset);
    char *path = kn_path_join(folder, "index.json");
    json_t *index = json_load_file(path, 0, NULL);
    free(path);
    if (!index)
        return kn_fail(KN_EFORMAT, "%s: its index.json changed while it was read", folder);
    int code = verify ? verify_shards(folder, index) : KN_OK;
    if (code == KN_OK && json) {
        json_object_set_new(index, "kind", json_string("dataset"));
        json_object_set_new(index, "path", kn_json_text(folder));
        json_object_set_new(index, "verified", json_boolean(verify));
        *description = json_dumps(index, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
    } else if (code == KN_OK) {
        *description = dataset_text(folder, index, verify);
    }
    json_decref(index);
    return code;
}
