/* Building index.json. It is a function of the shards, so it comes out the same however often `prep` was stopped. */
#include "data/index.h"

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/memory.h"
#include "core/base/text.h"
#include "data/shard.h"

#include <stdlib.h>
#include <string.h>

/* ---- shapes ---- */

void kn_shapes_add(KnShapes *shapes, int64_t frames, int64_t height, int64_t width, int64_t tokens)
{
    for (int64_t i = 0; i < shapes->count; i++) {
        struct KnShape *shape = &shapes->items[i];
        if (shape->frames == frames && shape->height == height && shape->width == width) {
            shape->clips++;
            shape->tokens += tokens;
            return;
        }
    }
    KN_RESERVE(shapes->items, shapes->count, shapes->capacity);
    shapes->items[shapes->count++] = (struct KnShape){frames, height, width, 1, tokens};
}

static int most_clips_first(const void *a, const void *b)
{
    const struct KnShape *x = a, *y = b;
    if (x->clips != y->clips)
        return x->clips > y->clips ? -1 : 1;
    const int64_t left[3] = {x->frames, x->height, x->width}, right[3] = {y->frames, y->height, y->width};
    for (int i = 0; i < 3; i++)
        if (left[i] != right[i])
            return left[i] < right[i] ? -1 : 1;
    return 0;
}

json_t *kn_shapes_json(KnShapes *shapes)
{
    json_t *list = json_array();
    if (shapes->count > 0)
        qsort(shapes->items, (size_t)shapes->count, sizeof *shapes->items, most_clips_first);
    for (int64_t i = 0; i < shapes->count; i++) {
        const struct KnShape *s = &shapes->items[i];
        json_array_append_new(list, json_pack("{sI sI sI sI sI}", "frames", (json_int_t)s->frames, "height",
                                              (json_int_t)s->height, "width", (json_int_t)s->width, "clips",
                                              (json_int_t)s->clips, "tokens", (json_int_t)s->tokens));
    }
    free(shapes->items);
    *shapes = (KnShapes){0};
    return list;
}

json_t *kn_json_text(const char *text)
{
    json_t *value = json_string(text);
    if (value)
        return value;
    KnText plain = {0};
    for (; *text; text++) {
        if ((unsigned char)*text < 128)
            kn_text_appendn(&plain, text, 1);
        else
            kn_text_appendf(&plain, "\\x%02x", (unsigned char)*text);
    }
    value = json_string(plain.bytes);
    kn_text_clear(&plain);
    return value;
}

/* ---- the index ---- */

int kn_index_list_shards(const char *folder, char ***names, int *count)
{
    KnStringList all = {0};
    *names = NULL;
    *count = 0;
    KN_TRY(kn_list_directory(folder, &all));
    *names = kn_alloc((size_t)(all.count + 1) * sizeof **names);
    for (int i = 0; i < all.count; i++)
        if (all.items[i][0] != '.' && kn_ends_with(all.items[i], ".h5"))
            (*names)[(*count)++] = kn_strdup(all.items[i]);
    kn_string_list_clear(&all);
    return KN_OK;
}

static int write_index(const char *folder, const json_t *index)
{
    char *path = kn_path_join(folder, "index.json"),
         *text = json_dumps(index, JSON_INDENT(1) | JSON_REAL_PRECISION(12));
    KnText line = {0};
    kn_text_appendf(&line, "%s\n", text);
    int code = kn_file_write(path, line.bytes, line.length);
    kn_text_clear(&line);
    free(text);
    free(path);
    return code;
}

static json_t *index_head(const json_t *settings, const char *config_hash, int complete)
{
    return json_pack("{ss si sb ss sO}", "format", "kinora-dataset", "version", 1, "complete", complete, "config_hash",
                     config_hash, "settings", (json_t *)settings);
}

int kn_index_begin(const char *folder, const json_t *settings, const char *config_hash)
{
    json_t *index = index_head(settings, config_hash, 0);
    int code = write_index(folder, index);
    json_decref(index);
    return code;
}

/* What is summed over shards. */
typedef struct IndexSums {
    KnShapes shapes;
    json_t *shards, *rejects, *reasons;
    json_t *sources; /* what the newest shard says of each complete one: it may have been read more than once */
    int64_t clips, tokens, captions, uncaptioned, inputs, damaged, damaged_inputs;
    double seconds;
} IndexSums;

static void add_source(IndexSums *sums, const KnSource *source)
{
    json_t *path = kn_json_text(source->path);
    json_object_set_new(sums->sources, json_string_value(path),
                        json_pack("{sO so so sI}", "input", path, "reason", kn_json_text(source->reason), "detail",
                                  kn_json_text(source->detail), "damaged", (json_int_t)source->damaged));
    json_decref(path);
}

static void sum_sources(IndexSums *sums)
{
    const char *path;
    json_t *source;
    json_object_foreach(sums->sources, path, source)
    {
        int64_t damaged = json_integer_value(json_object_get(source, "damaged"));
        const char *reason = json_string_value(json_object_get(source, "reason"));
        sums->inputs++;
        sums->damaged += damaged;
        sums->damaged_inputs += damaged > 0;
        if (!reason[0])
            continue;
        json_object_del(source, "damaged");
        json_array_append(sums->rejects, source);
        json_int_t before = json_integer_value(json_object_get(sums->reasons, reason));
        json_object_set_new(sums->reasons, reason, json_integer(before + 1));
    }
}

static void add_shard(IndexSums *sums, const char *name, const KnShard *shard)
{
    for (int64_t i = 0; i < kn_shard_clip_count(shard); i++) {
        const KnClip *clip = kn_shard_clip(shard, i);
        kn_shapes_add(&sums->shapes, clip->frames, clip->height, clip->width, clip->tokens);
        sums->captions += clip->captions;
        sums->uncaptioned += clip->captions == 0;
        sums->seconds += clip->fps > 0 ? (double)clip->frames / clip->fps : 0;
    }
    for (int64_t i = 0; i < kn_shard_source_count(shard); i++) {
        const KnSource *source = kn_shard_source(shard, i);
        if (source->complete)
            add_source(sums, source);
    }
    sums->clips += kn_shard_clip_count(shard);
    sums->tokens += kn_shard_tokens(shard);
    json_array_append_new(sums->shards,
                          json_pack("{ss sI sI}", "file", name, "clips", (json_int_t)kn_shard_clip_count(shard),
                                    "tokens", (json_int_t)kn_shard_tokens(shard)));
}

static int by_input(const void *a, const void *b)
{
    return strcmp(json_string_value(json_object_get(*(json_t *const *)a, "input")),
                  json_string_value(json_object_get(*(json_t *const *)b, "input")));
}

/* Rejects in the order of their names: which rank met them does not show. */
static json_t *sorted_rejects(json_t *rejects)
{
    size_t count = json_array_size(rejects);
    json_t **items = kn_alloc(count * sizeof(json_t *)), *sorted = json_array();
    for (size_t i = 0; i < count; i++)
        items[i] = json_array_get(rejects, i);
    if (count > 0)
        qsort(items, count, sizeof *items, by_input);
    for (size_t i = 0; i < count; i++)
        json_array_append(sorted, items[i]);
    free(items);
    json_decref(rejects);
    return sorted;
}

static json_t *finish_index(IndexSums *sums, const KnShardFormat *format, const json_t *settings,
                            const char *config_hash)
{
    json_t *index = index_head(settings, config_hash, 1);
    const struct {
        const char *name;
        int64_t value;
    } numbers[] = {
        {"channels", format->channels},
        {"patch_dim", format->patch_dim},
        {"clips", sums->clips},
        {"tokens", sums->tokens},
        {"captions", sums->captions},
        {"clips_without_caption", sums->uncaptioned},
        {"inputs", sums->inputs},
        {"damaged_inputs", sums->damaged_inputs},
        {"damaged_packets", sums->damaged},
    };
    json_object_set_new(index, "value_kind", json_string(kn_value_kind_name(format->kind)));
    json_object_set_new(index, "autoencoder", kn_json_text(format->autoencoder));
    json_object_set_new(
        index, "patch",
        json_pack("[III]", (json_int_t)format->patch[0], (json_int_t)format->patch[1], (json_int_t)format->patch[2]));
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        json_object_set_new(index, numbers[i].name, json_integer(numbers[i].value));
    json_object_set_new(index, "seconds", json_real(sums->seconds));
    json_object_set_new(index, "shapes", kn_shapes_json(&sums->shapes));
    json_object_set_new(index, "shards", sums->shards);
    json_object_set_new(index, "reject_reasons", sums->reasons);
    json_object_set_new(index, "rejects", sorted_rejects(sums->rejects));
    return index;
}

int kn_index_complete(const char *folder, const json_t *settings, const char *config_hash, json_t **index)
{
    IndexSums sums = {
        .shards = json_array(), .rejects = json_array(), .reasons = json_object(), .sources = json_object()};
    KnShardFormat format = {.channels = 3};
    char **names;
    int count;
    *index = NULL;
    int code = kn_index_list_shards(folder, &names, &count);
    for (int i = 0; i < count; i++) {
        char *path = kn_path_join(folder, names[i]);
        KnShard *shard = NULL;
        if (code == KN_OK)
            code = kn_shard_open(&shard, path);
        if (code == KN_OK) {
            format = *kn_shard_format(shard);
            add_shard(&sums, names[i], shard);
        }
        kn_shard_close(shard);
        free(path);
        free(names[i]);
    }
    free(names);
    sum_sources(&sums);
    json_decref(sums.sources);
    *index = finish_index(&sums, &format, settings, config_hash);
    if (code == KN_OK && sums.clips > 0)
        code = write_index(folder, *index);
    if (code < 0) {
        json_decref(*index);
        *index = NULL;
    }
    return code;
}
