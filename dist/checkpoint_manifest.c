/* manifest.json to and from memory. */
#include "dist/checkpoint_manifest.h"

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/text.h"
#include "dist/checkpoint_folder.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define FORMAT_NAME "kinora-checkpoint"
enum { FORMAT_VERSION = 2, ROWS_VERSION = 1 /* slices of rows, still read */ };

void kn_checkpoint_whole(KnCheckpointTensor *tensor)
{
    memset(tensor->start, 0, sizeof tensor->start);
    memcpy(tensor->count, tensor->shape, sizeof tensor->count);
}

KnBox kn_manifest_slice(const KnManifestTensor *entry, int slice)
{
    int dims = entry->tensor.dims;
    const int64_t *start = entry->boxes + (size_t)slice * 2 * (size_t)dims;
    KnBox box = {.dims = dims};
    memcpy(box.start, start, (size_t)dims * sizeof *start);
    memcpy(box.count, start + dims, (size_t)dims * sizeof *start);
    return box;
}

void kn_manifest_set_slice(KnManifestTensor *entry, int slice, int file, const KnBox *box)
{
    int dims = entry->tensor.dims;
    int64_t *start = entry->boxes + (size_t)slice * 2 * (size_t)dims;
    entry->files[slice] = file;
    memcpy(start, box->start, (size_t)dims * sizeof *start);
    memcpy(start + dims, box->count, (size_t)dims * sizeof *start);
}

char *kn_checkpoint_shape_text(const KnCheckpointTensor *tensor)
{
    KnText text = {0};
    kn_text_appendf(&text, "%s [", kn_safetensors_type_name(tensor->type));
    for (int d = 0; d < tensor->dims; d++)
        kn_text_appendf(&text, "%s%lld", d ? ", " : "", (long long)tensor->shape[d]);
    kn_text_append(&text, "]");
    return kn_text_take(&text);
}

/* ---- writing ---- */

static int is_json(const char *key, const char *text)
{
    json_error_t error;
    json_t *value = json_loads(text, JSON_REJECT_DUPLICATES, &error);
    json_decref(value);
    return value ? KN_OK : kn_fail(KN_EINPUT, "the checkpoint's '%s' is not JSON: %s", key, error.text);
}

/* Appends `"key": value,` on a line of its own; takes over the value, which is NULL where a text was not UTF-8. */
static int add_value(KnText *text, const char *key, json_t *value, const char *what)
{
    char *dumped = value ? json_dumps(value, JSON_ENCODE_ANY | JSON_PRESERVE_ORDER) : NULL;
    json_decref(value);
    if (!dumped)
        return kn_fail(KN_EINPUT, "%s is not UTF-8 and cannot be kept in a checkpoint", what);
    kn_text_appendf(text, " \"%s\": %s,\n", key, dumped);
    free(dumped);
    return KN_OK;
}

static int add_json(KnText *text, const char *key, const char *json)
{
    KN_TRY(is_json(key, json ? json : "{}"));
    return add_value(text, key, json_loads(json ? json : "{}", JSON_REJECT_DUPLICATES, NULL), key);
}

static json_t *slice_to_json(const KnManifestTensor *entry, int slice)
{
    json_t *row = json_array();
    int dims = entry->tensor.dims;
    json_array_append_new(row, json_integer(entry->files[slice]));
    for (int i = 0; i < 2 * dims; i++)
        json_array_append_new(row, json_integer(entry->boxes[(size_t)slice * 2 * (size_t)dims + (size_t)i]));
    return row;
}

static json_t *tensor_to_json(const KnManifestTensor *entry)
{
    json_t *shape = json_array(), *slices = json_array();
    for (int d = 0; d < entry->tensor.dims; d++)
        json_array_append_new(shape, json_integer(entry->tensor.shape[d]));
    for (int s = 0; s < entry->slice_count; s++)
        json_array_append_new(slices, slice_to_json(entry, s));
    return json_pack("{s:s, s:s, s:o, s:o}", "name", entry->tensor.name, "type",
                     kn_safetensors_type_name(entry->tensor.type), "shape", shape, "slices", slices);
}

static json_t *file_to_json(const KnManifestFile *file)
{
    return json_pack("{s:s, s:I, s:s}", "name", file->name, "bytes", (json_int_t)file->bytes, "sha256", file->sha256);
}

/* Appends a list with a line for each item. */
static int add_list(KnText *text, const char *key, int count, const KnManifest *manifest,
                    json_t *(*item)(const KnManifest *manifest, int index))
{
    kn_text_appendf(text, " \"%s\": [", key);
    for (int i = 0; i < count; i++) {
        json_t *value = item(manifest, i);
        char *line = value ? json_dumps(value, JSON_PRESERVE_ORDER) : NULL;
        json_decref(value);
        if (!line)
            return kn_fail(KN_EINPUT, "item %d of the checkpoint's '%s' has a name that is not UTF-8", i, key);
        kn_text_appendf(text, "%s\n  ", i ? "," : "");
        kn_text_append(text, line);
        free(line);
    }
    kn_text_append(text, "]");
    return KN_OK;
}

static json_t *file_at(const KnManifest *manifest, int index)
{
    return file_to_json(&manifest->files[index]);
}

static json_t *tensor_at(const KnManifest *manifest, int index)
{
    return tensor_to_json(&manifest->tensors[index]);
}

static int manifest_to_text(const KnManifest *manifest, KnText *text)
{
    const KnCheckpointMeta *meta = &manifest->meta;
    kn_text_append(text, "{\n");
    KN_TRY(add_value(text, "format", json_string(FORMAT_NAME), "the format"));
    KN_TRY(add_value(text, "version", json_integer(FORMAT_VERSION), "the version"));
    KN_TRY(add_value(text, "tool", json_string(manifest->tool), "the name of the tool"));
    KN_TRY(add_value(text, "step", json_integer(meta->step), "the step"));
    KN_TRY(add_value(text, "config", json_string(meta->config ? meta->config : ""), "the configuration"));
    KN_TRY(add_json(text, "model", meta->model_json));
    KN_TRY(add_json(text, "mesh", meta->mesh_json));
    KN_TRY(add_json(text, "data", meta->data_json));
    KN_TRY(add_list(text, "files", manifest->file_count, manifest, file_at));
    kn_text_append(text, ",\n");
    KN_TRY(add_list(text, "tensors", manifest->tensor_count, manifest, tensor_at));
    kn_text_append(text, "\n}\n");
    return KN_OK;
}

static char *hash_line(const char *bytes, size_t size)
{
    char hex[KN_SHA256_HEX_BYTES];
    kn_sha256_hex(bytes, size, hex);
    return kn_format("%s  " KN_MANIFEST_NAME "\n", hex);
}

int kn_manifest_write(const KnManifest *manifest, const char *folder)
{
    KnText text = {0};
    int code = manifest_to_text(manifest, &text);
    if (code == KN_OK) {
        char *path = kn_path_join(folder, KN_MANIFEST_NAME), *hash_path = kn_format("%s.sha256", path);
        char *line = hash_line(text.bytes, text.length);
        code = kn_file_write(path, text.bytes, text.length);
        if (code == KN_OK)
            code = kn_file_write(hash_path, line, strlen(line));
        free(line);
        free(hash_path);
        free(path);
    }
    kn_text_clear(&text);
    return code;
}

/* ---- reading ---- */

/* Where a read stands: sentences name the file. */
typedef struct Reading {
    KnManifest *manifest;
    const char *path;
    int64_t version;
} Reading;

static int foreign(const Reading *reading, const char *what)
{
    return kn_fail(KN_EFORMAT, "%s is not a checkpoint manifest of this version: %s", reading->path, what);
}

static int get_integer(const Reading *reading, const json_t *object, const char *key, int64_t *value)
{
    const json_t *found = json_object_get(object, key);
    if (!json_is_integer(found) || json_integer_value(found) < 0)
        return kn_fail(KN_EFORMAT, "%s: '%s' is not a number from 0", reading->path, key);
    *value = json_integer_value(found);
    return KN_OK;
}

static int get_string(const Reading *reading, const json_t *object, const char *key, const char **value)
{
    const json_t *found = json_object_get(object, key);
    if (!json_is_string(found))
        return kn_fail(KN_EFORMAT, "%s: '%s' is not a text", reading->path, key);
    *value = kn_arena_strdup(reading->manifest->arena, json_string_value(found));
    return KN_OK;
}

static int get_json(const Reading *reading, const json_t *object, const char *key, const char **value)
{
    char *text = json_dumps(json_object_get(object, key), JSON_COMPACT | JSON_PRESERVE_ORDER | JSON_ENCODE_ANY);
    if (!text)
        return kn_fail(KN_EFORMAT, "%s: '%s' is missing", reading->path, key);
    *value = kn_arena_strdup(reading->manifest->arena, text);
    free(text);
    return KN_OK;
}

static int get_array(const Reading *reading, const json_t *object, const char *key, const json_t **array, int *count)
{
    *array = json_object_get(object, key);
    if (!json_is_array(*array) || json_array_size(*array) > 100000000)
        return kn_fail(KN_EFORMAT, "%s: '%s' is not a list", reading->path, key);
    *count = (int)json_array_size(*array);
    return KN_OK;
}

static int read_file(const Reading *reading, const json_t *object, KnManifestFile *file)
{
    const char *sha256 = "";
    KN_TRY(get_string(reading, object, "name", &file->name));
    KN_TRY(get_integer(reading, object, "bytes", &file->bytes));
    KN_TRY(get_string(reading, object, "sha256", &sha256));
    if (!*file->name || strchr(file->name, '/') || *file->name == '.' || strlen(sha256) != KN_SHA256_HEX_BYTES - 1)
        return kn_fail(KN_EFORMAT, "%s: a file has an impossible name or hash", reading->path);
    memcpy(file->sha256, sha256, KN_SHA256_HEX_BYTES);
    return KN_OK;
}

static int read_type(const Reading *reading, const json_t *object, KnSafetensorsType *type)
{
    static const KnSafetensorsType types[] = {KN_SAFETENSORS_F32, KN_SAFETENSORS_BF16, KN_SAFETENSORS_F16,
                                              KN_SAFETENSORS_I32, KN_SAFETENSORS_I64,  KN_SAFETENSORS_U8};
    const char *name = "";
    KN_TRY(get_string(reading, object, "type", &name));
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        *type = types[i];
        if (strcmp(name, kn_safetensors_type_name(types[i])) == 0)
            return KN_OK;
    }
    return kn_fail(KN_EFORMAT, "%s: unknown tensor type '%s'", reading->path, name);
}

static int read_shape(const Reading *reading, const json_t *object, KnCheckpointTensor *tensor)
{
    const json_t *shape;
    KN_TRY(get_array(reading, object, "shape", &shape, &tensor->dims));
    if (tensor->dims > KN_SAFETENSORS_MAX_DIMS)
        return kn_fail(KN_EFORMAT, "%s: tensor '%s' has %d dimensions", reading->path, tensor->name, tensor->dims);
    int64_t bytes = (int64_t)kn_safetensors_type_bytes(tensor->type);
    for (int d = 0; d < tensor->dims; d++) {
        const json_t *size = json_array_get(shape, (size_t)d);
        tensor->shape[d] = json_integer_value(size);
        /* A zero does not excuse the other sizes: products of some of them are taken too. */
        int64_t factor = tensor->shape[d] > 0 ? tensor->shape[d] : 1;
        if (!json_is_integer(size) || tensor->shape[d] < 0 || __builtin_mul_overflow(bytes, factor, &bytes))
            return kn_fail(KN_EFORMAT, "%s: tensor '%s' has an impossible shape", reading->path, tensor->name);
    }
    return KN_OK;
}

static int misfit(const Reading *reading, const KnCheckpointTensor *tensor)
{
    return kn_fail(KN_EFORMAT, "%s: the slices of tensor '%s' do not fit together", reading->path, tensor->name);
}

/* {"file", "start", "count"} of version 1: rows, one for a scalar. */
static int read_rows(const Reading *reading, const json_t *item, const KnBox *whole, int64_t *file, KnBox *box)
{
    int64_t start = 0, count = 0;
    KN_TRY(get_integer(reading, item, "file", file));
    KN_TRY(get_integer(reading, item, "start", &start));
    KN_TRY(get_integer(reading, item, "count", &count));
    *box = *whole;
    if (whole->dims) {
        box->start[0] = start;
        box->count[0] = count;
    } else if (start != 0 || count != 1) {
        return kn_fail(KN_EFORMAT, "%s: a slice of a scalar is not its one row", reading->path);
    }
    return KN_OK;
}

/* [file, start ..., count ...] */
static int read_box(const Reading *reading, const json_t *item, const KnBox *whole, int64_t *file, KnBox *box)
{
    int dims = whole->dims;
    *box = (KnBox){.dims = dims};
    int whole_numbers = json_array_size(item) == (size_t)(1 + 2 * dims);
    for (size_t i = 0; whole_numbers && i < json_array_size(item); i++)
        whole_numbers = json_is_integer(json_array_get(item, i));
    if (!whole_numbers)
        return kn_fail(KN_EFORMAT, "%s: a slice is not a list of %d whole numbers", reading->path, 1 + 2 * dims);
    *file = json_integer_value(json_array_get(item, 0));
    for (int d = 0; d < dims; d++) {
        box->start[d] = json_integer_value(json_array_get(item, (size_t)(1 + d)));
        box->count[d] = json_integer_value(json_array_get(item, (size_t)(1 + dims + d)));
    }
    return KN_OK;
}

static int read_slices(const Reading *reading, const json_t *slices, KnManifestTensor *entry)
{
    KnBox whole = kn_box_whole(&entry->tensor), box;
    KnArena *arena = reading->manifest->arena;
    uint64_t measure = 0;
    int64_t file = 0, elements = 0;
    size_t count = (size_t)entry->slice_count;
    entry->files = kn_arena_alloc(arena, count * sizeof *entry->files);
    entry->boxes = kn_arena_alloc(arena, count * 2 * (size_t)whole.dims * sizeof *entry->boxes);
    for (int s = 0; s < entry->slice_count; s++) {
        const json_t *item = json_array_get(slices, (size_t)s);
        if (reading->version == ROWS_VERSION)
            KN_TRY(read_rows(reading, item, &whole, &file, &box));
        else
            KN_TRY(read_box(reading, item, &whole, &file, &box));
        if (file < 0 || file >= reading->manifest->file_count || !kn_box_inside(&box, &whole) ||
            kn_box_elements(&box) > kn_box_elements(&whole) - elements)
            return misfit(reading, &entry->tensor);
        kn_manifest_set_slice(entry, s, (int)file, &box);
        measure = kn_box_measure(measure, &box);
        elements += kn_box_elements(&box);
    }
    if (elements != kn_box_elements(&whole))
        return kn_fail(KN_EFORMAT, "%s: the slices of tensor '%s' hold %lld elements and it has %lld", reading->path,
                       entry->tensor.name, (long long)elements, (long long)kn_box_elements(&whole));
    return measure == kn_box_measure(0, &whole) ? KN_OK : misfit(reading, &entry->tensor);
}

static int read_tensor(const Reading *reading, const json_t *object, KnManifestTensor *entry)
{
    const json_t *slices;
    KnCheckpointTensor *tensor = &entry->tensor;
    KN_TRY(get_string(reading, object, "name", &tensor->name));
    KN_TRY(read_type(reading, object, &tensor->type));
    KN_TRY(read_shape(reading, object, tensor));
    kn_checkpoint_whole(tensor);
    KN_TRY(get_array(reading, object, "slices", &slices, &entry->slice_count));
    return read_slices(reading, slices, entry);
}

typedef struct Named {
    const char *name;
    int index;
} Named;

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const Named *)a)->name, ((const Named *)b)->name);
}

/* Fills by_name; a name twice is refused. */
static int sort_names(const Reading *reading)
{
    KnManifest *manifest = reading->manifest;
    int count = manifest->tensor_count, code = KN_OK;
    Named *names = kn_alloc((size_t)count * sizeof *names);
    manifest->by_name = kn_arena_alloc(manifest->arena, (size_t)count * sizeof *manifest->by_name);
    for (int i = 0; i < count; i++)
        names[i] = (Named){manifest->tensors[i].tensor.name, i};
    qsort(names, (size_t)count, sizeof *names, compare_names);
    for (int i = 0; i < count && code == KN_OK; i++) {
        manifest->by_name[i] = names[i].index;
        if (i && strcmp(names[i - 1].name, names[i].name) == 0)
            code = kn_fail(KN_EFORMAT, "%s: tensor '%s' appears twice", reading->path, names[i].name);
    }
    free(names);
    return code;
}

const KnManifestTensor *kn_manifest_find(const KnManifest *manifest, const char *name)
{
    int low = 0, high = manifest->tensor_count;
    while (low < high) {
        int middle = low + (high - low) / 2;
        const KnManifestTensor *entry = &manifest->tensors[manifest->by_name[middle]];
        int order = strcmp(entry->tensor.name, name);
        if (order == 0)
            return entry;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

static int manifest_from_json(Reading *reading, const json_t *root)
{
    KnManifest *manifest = reading->manifest;
    const json_t *files, *tensors, *format = json_object_get(root, "format");
    if (!json_is_string(format) || strcmp(json_string_value(format), FORMAT_NAME) != 0)
        return foreign(reading, "its format is not '" FORMAT_NAME "'");
    reading->version = json_integer_value(json_object_get(root, "version"));
    if (reading->version != FORMAT_VERSION && reading->version != ROWS_VERSION)
        return foreign(reading, "another version of kinora wrote it");
    KN_TRY(get_integer(reading, root, "step", &manifest->meta.step));
    KN_TRY(get_string(reading, root, "tool", &manifest->tool));
    KN_TRY(get_string(reading, root, "config", &manifest->meta.config));
    KN_TRY(get_json(reading, root, "model", &manifest->meta.model_json));
    KN_TRY(get_json(reading, root, "mesh", &manifest->meta.mesh_json));
    KN_TRY(get_json(reading, root, "data", &manifest->meta.data_json));
    KN_TRY(get_array(reading, root, "files", &files, &manifest->file_count));
    KN_TRY(get_array(reading, root, "tensors", &tensors, &manifest->tensor_count));
    manifest->files = kn_arena_alloc(manifest->arena, (size_t)manifest->file_count * sizeof *manifest->files);
    manifest->tensors = kn_arena_alloc(manifest->arena, (size_t)manifest->tensor_count * sizeof *manifest->tensors);
    for (int i = 0; i < manifest->file_count; i++)
        KN_TRY(read_file(reading, json_array_get(files, (size_t)i), &manifest->files[i]));
    for (int i = 0; i < manifest->tensor_count; i++)
        KN_TRY(read_tensor(reading, json_array_get(tensors, (size_t)i), &manifest->tensors[i]));
    return sort_names(reading);
}

/* The manifest's bytes against manifest.json.sha256. */
static int check_hash(const char *path, const char *bytes, size_t size)
{
    char *hash_path = kn_format("%s.sha256", path), *found = NULL, *expected = hash_line(bytes, size);
    size_t found_size;
    int code = kn_file_read(hash_path, &found, &found_size);
    if (code == KN_OK && (found_size != strlen(expected) || memcmp(found, expected, found_size) != 0))
        code = kn_fail(KN_EFORMAT, "%s is damaged: its SHA-256 is not the one in %s beside it", path,
                       kn_path_name(hash_path));
    free(expected);
    free(found);
    free(hash_path);
    return code;
}

/* A copy of, or a link to, another step would be counted as one of its own, and the other be removed for it. */
static int check_name(const KnManifest *manifest, const char *folder)
{
    int64_t named = kn_checkpoint_step_of_name(kn_path_name(folder)), step = manifest->meta.step;
    if (named < 0 || named == step)
        return KN_OK;
    return kn_fail(KN_EFORMAT, "%s holds the checkpoint of step %lld: give it a name that is not of another step",
                   folder, (long long)step);
}

int kn_manifest_read(KnManifest *manifest, const char *folder)
{
    *manifest = (KnManifest){0};
    char *path = kn_path_join(folder, KN_MANIFEST_NAME), *bytes = NULL;
    size_t size;
    json_error_t error;
    json_t *root = NULL;
    Reading reading = {.manifest = manifest, .path = path};
    int code = kn_file_read(path, &bytes, &size);
    if (code == KN_OK)
        code = check_hash(path, bytes, size);
    if (code == KN_OK && !(root = json_loadb(bytes, size, JSON_REJECT_DUPLICATES, &error)))
        code = kn_fail(KN_EFORMAT, "%s:%d: %s", path, error.line, error.text);
    if (code == KN_OK) {
        manifest->arena = kn_arena_create();
        code = manifest_from_json(&reading, root);
    }
    if (code == KN_OK)
        code = check_name(manifest, folder);
    if (code < 0)
        kn_manifest_clear(manifest);
    json_decref(root);
    free(bytes);
    free(path);
    return code;
}

void kn_manifest_clear(KnManifest *manifest)
{
    kn_arena_destroy(manifest->arena);
    *manifest = (KnManifest){0};
}
