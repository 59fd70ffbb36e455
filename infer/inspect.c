/* The recognizers, and the one way in which a description becomes text. */
#include "infer/inspect.h"

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/memory.h"
#include "core/base/text.h"
#include "data/dataset.h"
#include "data/video_read.h"
#include "dist/checkpoint.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- who knows what ---- */

static int has_file(const char *folder, const char *name)
{
    char *path = kn_path_join(folder, name);
    int exists = kn_is_directory(folder) && kn_file_exists(path);
    free(path);
    return exists;
}

static int begins_with(const char *path, const char *magic, size_t length)
{
    char bytes[16] = {0};
    FILE *file = kn_is_directory(path) ? NULL : fopen(path, "rb");
    size_t read = file ? fread(bytes, 1, length, file) : 0;
    if (file)
        fclose(file);
    return read == length && !memcmp(bytes, magic, length);
}

static int is_shard(const char *path)
{
    return begins_with(path, "\x89HDF\r\n\x1a\n", 8) || (kn_ends_with(path, ".h5") && !kn_is_directory(path));
}

static int is_run(const char *path)
{
    return has_file(path, "config.yaml");
}

static int is_dataset(const char *path)
{
    return has_file(path, "index.json");
}

static int is_model(const char *path)
{
    return has_file(path, "config.json") || has_file(path, "transformer/config.json");
}

static int is_safetensors(const char *path)
{
    return !kn_is_directory(path) &&
           (kn_ends_with(path, ".safetensors") || kn_ends_with(path, ".safetensors.index.json"));
}

static int is_json(const char *path)
{
    return !kn_is_directory(path) && kn_ends_with(path, ".json");
}

static int is_video(const char *path)
{
    return !kn_is_directory(path) && kn_video_known_suffix(path);
}

static int describe_checkpoint(const char *path, int verify, int json, char **text)
{
    return kn_checkpoint_describe(path, verify ? KN_CHECK_HASHES : KN_CHECK_SIZES, json, text);
}

/* One of the two describers: to text directly, or to an object. */
typedef struct Recognizer {
    int (*knows)(const char *path);
    int (*describe)(const char *path, int verify, int json, char **text);
    int (*object)(const char *path, int verify, json_t **object);
} Recognizer;

static const Recognizer recognizers[] = {
    {is_shard, kn_shard_describe, NULL},     {kn_is_checkpoint, describe_checkpoint, NULL},
    {is_run, NULL, kn_inspect_run},          {is_model, NULL, kn_inspect_model},
    {is_dataset, kn_dataset_describe, NULL}, {is_safetensors, NULL, kn_inspect_safetensors},
    {is_json, NULL, kn_inspect_video_json},  {is_video, NULL, kn_inspect_video},
};

/* ---- an object as text ---- */

static void append_scalar(KnText *text, const json_t *value)
{
    if (json_is_string(value))
        kn_text_append(text, json_string_value(value));
    else if (json_is_integer(value))
        kn_text_appendf(text, "%lld", (long long)json_integer_value(value));
    else if (json_is_real(value))
        kn_text_appendf(text, "%.6g", json_real_value(value));
    else
        kn_text_append(text, json_is_true(value) ? "yes" : json_is_false(value) ? "no" : "-");
}

/* A list within a row: "[64, 3, 2]". */
static void append_list(KnText *text, const json_t *list)
{
    size_t i;
    const json_t *item;
    kn_text_append(text, "[");
    json_array_foreach(list, i, item)
    {
        kn_text_append(text, i ? ", " : "");
        append_scalar(text, item);
    }
    kn_text_append(text, "]");
}

static void append_row(KnText *text, json_t *row)
{
    const char *key;
    json_t *value;
    const char *gap = "    ";
    json_object_foreach(row, key, value)
    {
        kn_text_append(text, gap);
        if (json_is_array(value))
            append_list(text, value);
        else
            append_scalar(text, value);
        gap = "  ";
    }
    kn_text_append(text, "\n");
}

static void append_label(KnText *text, const char *key, int indent, int value_follows)
{
    if (value_follows)
        kn_text_appendf(text, "%*s%-*s ", indent, "", 22 - indent, key);
    else
        kn_text_appendf(text, "%*s%s", indent, "", key);
}

/* One line for each plain value, an indented block for an object, a line for each row of a list. */
static void append_members(KnText *text, json_t *object, int indent)
{
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value)
    {
        size_t i;
        json_t *item;
        if (!strcmp(key, "kind") || !strcmp(key, "path"))
            continue;
        append_label(text, key, indent, !json_is_object(value) && !json_is_object(json_array_get(value, 0)));
        if (json_is_object(value)) {
            kn_text_append(text, "\n");
            append_members(text, value, indent + 2);
        } else if (json_is_array(value) && json_is_object(json_array_get(value, 0))) {
            kn_text_append(text, "\n");
            json_array_foreach(value, i, item) append_row(text, item);
        } else {
            if (json_is_array(value))
                append_list(text, value);
            else
                append_scalar(text, value);
            kn_text_append(text, "\n");
        }
    }
}

static char *text_of(json_t *object)
{
    KnText text = {0};
    kn_text_appendf(&text, "%s: %s\n", json_string_value(json_object_get(object, "path")),
                    json_string_value(json_object_get(object, "kind")));
    append_members(&text, object, 2);
    return kn_text_take(&text);
}

/* ---- asking them ---- */

static int fail_unknown(const char *path)
{
    if (!kn_file_exists(path))
        return kn_fail(KN_EIO, "there is nothing at %s", path);
    return kn_fail(KN_EINPUT,
                   "%s is nothing that kinora knows: neither a shard (.h5) nor a data set, a checkpoint, a run folder, "
                   "a model folder (config.json), a .safetensors file or a video",
                   path);
}

int kn_inspect(const char *path, int verify, int json, char **description)
{
    *description = NULL;
    for (size_t i = 0; i < sizeof recognizers / sizeof recognizers[0]; i++) {
        const Recognizer *r = &recognizers[i];
        json_t *object = NULL;
        if (!kn_file_exists(path) || !r->knows(path))
            continue;
        if (r->describe)
            return r->describe(path, verify, json, description);
        KN_TRY(r->object(path, verify, &object));
        *description =
            json ? json_dumps(object, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(12)) : text_of(object);
        json_decref(object);
        return *description ? KN_OK
                            : kn_fail(KN_EFORMAT, "%s cannot be described: it holds text that is not UTF-8", path);
    }
    return fail_unknown(path);
}
