/* Folders of shards as one list. All tables are read at opening; of the files, a limited number stays open. */
#include "data/dataset.h"

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/memory.h"

#include <jansson.h>

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { OPEN_FILES = 64 };

/* Where a clip is. */
typedef struct ClipPlace {
    int folder, shard;
    int64_t clip;
    const KnClip *info;
} ClipPlace;

struct KnDataset {
    KnShard **shards;
    uint64_t *last_use; /* of each shard's handle; 0 = at rest */
    uint64_t clock;
    int shard_count, shard_capacity, open_files;
    ClipPlace *places;
    int64_t clip_count, clip_capacity, tokens;
    pthread_mutex_t mutex; /* of last_use, clock, open_files */
};

/* ---- index.json ---- */

/* The parsed index of a folder that is ours; NULL with a sentence otherwise. */
static json_t *load_index(const char *folder, int *code)
{
    *code = KN_EFORMAT;
    if (!kn_is_directory(folder)) {
        *code = kn_fail(KN_EIO, "%s: no such folder: make it with `kinora prep --out %s VIDEOS`", folder, folder);
        return NULL;
    }
    char *path = kn_path_join(folder, "index.json");
    json_error_t error;
    json_t *index = NULL;
    if (!kn_file_exists(path)) {
        kn_fail(KN_EFORMAT, "%s: not a data set: it has no index.json (made by `kinora prep`)", folder);
    } else if (!(index = json_load_file(path, JSON_REJECT_DUPLICATES, &error))) {
        kn_fail(KN_EFORMAT, "%s:%d:%d: %s", path, error.line, error.column, error.text);
    } else {
        const char *format = json_string_value(json_object_get(index, "format"));
        if (!format || strcmp(format, "kinora-dataset") != 0) {
            kn_fail(KN_EFORMAT, "%s: not the index of a Kinora data set", path);
            json_decref(index);
            index = NULL;
        }
    }
    free(path);
    if (index)
        *code = KN_OK;
    return index;
}

int kn_dataset_is(const char *folder)
{
    int code;
    json_t *index = load_index(folder, &code);
    json_decref(index);
    return index != NULL;
}

/* ---- opening ---- */

static int check_agreement(const KnDataset *dataset, const KnShard *shard)
{
    const KnShardFormat *a = kn_shard_format(dataset->shards[0]), *b = kn_shard_format(shard);
    const char *first = kn_shard_path(dataset->shards[0]), *path = kn_shard_path(shard);
    if (memcmp(a->patch, b->patch, sizeof a->patch) != 0 || a->channels != b->channels)
        return kn_fail(KN_EINPUT,
                       "%s has patches of %lld,%lld,%lld with %lld channels, but %s of %lld,%lld,%lld with "
                       "%lld: prepare both with the same --patch",
                       path, (long long)b->patch[0], (long long)b->patch[1], (long long)b->patch[2],
                       (long long)b->channels, first, (long long)a->patch[0], (long long)a->patch[1],
                       (long long)a->patch[2], (long long)a->channels);
    if (a->kind != b->kind || strcmp(a->autoencoder, b->autoencoder) != 0)
        return kn_fail(KN_EINPUT, "%s holds %s%s%s, but %s holds %s%s%s", path, kn_value_kind_name(b->kind),
                       b->autoencoder[0] ? " of " : "", b->autoencoder, first, kn_value_kind_name(a->kind),
                       a->autoencoder[0] ? " of " : "", a->autoencoder);
    return KN_OK;
}

static int add_shard(KnDataset *dataset, int folder, const char *path)
{
    KnShard *shard;
    KN_TRY(kn_shard_open(&shard, path));
    kn_shard_rest(shard);
    KN_RESERVE(dataset->shards, dataset->shard_count, dataset->shard_capacity);
    dataset->shards[dataset->shard_count++] = shard;
    KN_TRY(check_agreement(dataset, shard));
    for (int64_t i = 0; i < kn_shard_clip_count(shard); i++) {
        KN_RESERVE(dataset->places, dataset->clip_count, dataset->clip_capacity);
        dataset->places[dataset->clip_count++] =
            (ClipPlace){folder, dataset->shard_count - 1, i, kn_shard_clip(shard, i)};
    }
    dataset->tokens += kn_shard_tokens(shard);
    return KN_OK;
}

static int add_named_shards(KnDataset *dataset, const char *folder, int number, const json_t *index)
{
    size_t i;
    const json_t *entry;
    int64_t clips = 0;
    if (!json_is_true(json_object_get(index, "complete")))
        return kn_fail(KN_EFORMAT, "%s: not finished: run the same `kinora prep` again, it goes on where it was",
                       folder);
    json_array_foreach(json_object_get(index, "shards"), i, entry)
    {
        const char *name = json_string_value(json_object_get(entry, "file"));
        if (!name || strchr(name, '/'))
            return kn_fail(KN_EFORMAT, "%s/index.json: shard %zu has no file name", folder, i);
        char *path = kn_path_join(folder, name);
        int code = add_shard(dataset, number, path);
        free(path);
        KN_TRY(code);
        clips += kn_shard_clip_count(dataset->shards[dataset->shard_count - 1]);
    }
    int64_t stated = json_integer_value(json_object_get(index, "clips"));
    if (stated != clips)
        return kn_fail(KN_EFORMAT, "%s: index.json states %lld clips, the shards hold %lld", folder, (long long)stated,
                       (long long)clips);
    return KN_OK;
}

static int add_folder(KnDataset *dataset, const char *folder, int number)
{
    int code;
    json_t *index = load_index(folder, &code);
    if (!index)
        return code;
    code = add_named_shards(dataset, folder, number, index);
    json_decref(index);
    return code;
}

static int by_place(const void *a, const void *b)
{
    const ClipPlace *x = a, *y = b;
    if (x->folder != y->folder)
        return x->folder < y->folder ? -1 : 1;
    int order = strcmp(x->info->source, y->info->source);
    if (order != 0)
        return order;
    return (x->info->segment > y->info->segment) - (x->info->segment < y->info->segment);
}

static int check_doubles(const KnDataset *dataset)
{
    for (int64_t i = 1; i < dataset->clip_count; i++)
        if (by_place(&dataset->places[i - 1], &dataset->places[i]) == 0)
            return kn_fail(KN_EFORMAT, "%s and %s both hold piece %lld of %s",
                           kn_shard_path(dataset->shards[dataset->places[i - 1].shard]),
                           kn_shard_path(dataset->shards[dataset->places[i].shard]),
                           (long long)dataset->places[i].info->segment, dataset->places[i].info->source);
    return KN_OK;
}

int kn_dataset_open(KnDataset **out, const char *const *folders, int folder_count)
{
    *out = NULL;
    if (folder_count < 1)
        return kn_fail(KN_EINPUT, "no data set was named");
    KnDataset *dataset = kn_alloc(sizeof *dataset);
    pthread_mutex_init(&dataset->mutex, NULL);
    int code = KN_OK;
    for (int i = 0; i < folder_count && code == KN_OK; i++)
        code = add_folder(dataset, folders[i], i);
    if (code == KN_OK && dataset->clip_count == 0)
        code = kn_fail(KN_EFORMAT, "%s: the data set holds no clip", folders[0]);
    if (code == KN_OK) {
        qsort(dataset->places, (size_t)dataset->clip_count, sizeof *dataset->places, by_place);
        code = check_doubles(dataset);
    }
    if (code < 0) {
        kn_dataset_close(dataset);
        return code;
    }
    dataset->last_use = kn_alloc((size_t)dataset->shard_count * sizeof *dataset->last_use);
    *out = dataset;
    return KN_OK;
}

void kn_dataset_close(KnDataset *dataset)
{
    if (!dataset)
        return;
    for (int i = 0; i < dataset->shard_count; i++)
        kn_shard_close(dataset->shards[i]);
    pthread_mutex_destroy(&dataset->mutex);
    free(dataset->shards);
    free(dataset->last_use);
    free(dataset->places);
    free(dataset);
}

/* ---- reading ---- */

const KnShardFormat *kn_dataset_format(const KnDataset *dataset)
{
    return kn_shard_format(dataset->shards[0]);
}

int64_t kn_dataset_clip_count(const KnDataset *dataset)
{
    return dataset->clip_count;
}

int64_t kn_dataset_tokens(const KnDataset *dataset)
{
    return dataset->tokens;
}

static const ClipPlace *place_of(const KnDataset *dataset, int64_t clip)
{
    KN_ASSERT(clip >= 0 && clip < dataset->clip_count);
    return &dataset->places[clip];
}

const KnClip *kn_dataset_clip(const KnDataset *dataset, int64_t clip)
{
    return place_of(dataset, clip)->info;
}

const char *kn_dataset_caption(const KnDataset *dataset, int64_t clip, int64_t which)
{
    const ClipPlace *place = place_of(dataset, clip);
    return kn_shard_caption(dataset->shards[place->shard], place->clip, which);
}

/* Notes the use of a shard and, when too many files are open, lets the one longest unused rest. */
static void note_use(KnDataset *dataset, int shard)
{
    pthread_mutex_lock(&dataset->mutex);
    dataset->open_files += dataset->last_use[shard] == 0;
    dataset->last_use[shard] = ++dataset->clock;
    if (dataset->open_files > OPEN_FILES) {
        int oldest = shard;
        for (int i = 0; i < dataset->shard_count; i++)
            if (dataset->last_use[i] > 0 && dataset->last_use[i] < dataset->last_use[oldest])
                oldest = i;
        kn_shard_rest(dataset->shards[oldest]);
        dataset->last_use[oldest] = 0;
        dataset->open_files--;
    }
    pthread_mutex_unlock(&dataset->mutex);
}

int kn_dataset_read_clip(KnDataset *dataset, int64_t clip, void *patches)
{
    const ClipPlace *place = place_of(dataset, clip);
    note_use(dataset, place->shard);
    return kn_shard_read_clip(dataset->shards[place->shard], place->clip, patches);
}
