/* manifest.json to and from memory. */
#include "dist/checkpoint_manifest.h"

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/text.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define FORMAT_NAME "kinora-checkpoint"
enum { FORMAT_VERSION = 1 };

int64_t kn_checkpoint_rows(const KnCheckpointTensor *tensor)
{
    return tensor->dims ? tensor->shape[0] : 1;
}

size_t kn_checkpoint_row_bytes(const KnCheckpointTensor *tensor)
{
    size_t bytes = kn_safetensors_type_bytes(tensor->type);
    for (int d = 1; d < tensor->dims; d++)
        bytes *= (size_t)tensor->shape[d];
    return bytes;
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

char *kn_checkpoint_step_path(const char *folder, int64_t step)
{
    char *name = kn_format("step-%08lld", (long long)step), *path = kn_path_join(folder, name);
    free(name);
    return path;
}

static int newer_first(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? 1 : -(x > y);
}

int kn_checkpoint_steps(const char *folder, int64_t **steps, int *count)
{
    KnStringList names = {0};
    *steps = NULL;
    *count = 0;
    if (!kn_is_directory(folder))
        return KN_OK;
    KN_TRY(kn_list_directory(folder, &names));
    *steps = kn_alloc((size_t)names.count * sizeof **steps);
    for (int i = 0; i < names.count; i++) {
        /* Only names as this program writes them: "step-5.old" is the user's. */
        long long step = strncmp(names.items[i], "step-", 5) == 0 ? strtoll(names.items[i] + 5, NULL, 10) : -1;
        char *expected = kn_format("step-%08lld", step);
        if (step >= 0 && strcmp(names.items[i], expected) == 0)
            (*steps)[(*count)++] = step;
        free(expected);
    }
    kn_string_list_clear(&names);
    qsort(*steps, (size_t)*count, sizeof **steps, newer_first);
    return KN_OK;
}

/* ---- writing ---- */

static int set_json(json_t *root, const char *key, const char *text)
{
    json_error_t error;
    json_t *value = json_loads(text ? text : "{}", JSON_REJECT_DUPLICATES, &error);
    if (!value)
        return kn_fail(KN_EINPUT, "the checkpoint's '%s' is not JSON: %s", key, error.text);
    json_object_set_new(root, key, value);
    return KN_OK;
}

static json_t *tensor_to_json(const KnManifestTensor *entry)
{
    json_t *shape = json_array(), *slices = json_array();
    for (int d = 0; d < entry->tensor.dims; d++)
        json_array_append_new(shape, json_integer(entry->tensor.shape[d]));
    for (int s = 0; s < entry->slice_count; s++)
        json_array_append_new(slices, json_pack("{s:i, s:I, s:I}", "file", entry->slices[s].file, "start",
                                                (json_int_t)entry->slices[s].start, "count",
                                                (json_int_t)entry->slices[s].count));
    return json_pack("{s:s, s:s, s:o, s:o}", "name", entry->tensor.name, "type",
                     kn_safetensors_type_name(entry->tensor.type), "shape", shape, "slices", slices);
}

static int manifest_to_json(const KnManifest *manifest, json_t *root)
{
    json_t *config = json_string(manifest->meta.config ? manifest->meta.config : "");
    if (!config)
        return kn_fail(KN_EINPUT, "the configuration is not UTF-8 and cannot be kept in a checkpoint");
    json_object_set_new(root, "format", json_string(FORMAT_NAME));
    json_object_set_new(root, "version", json_integer(FORMAT_VERSION));
    json_object_set_new(root, "tool", json_string(manifest->tool));
    json_object_set_new(root, "step", json_integer(manifest->meta.step));
    json_object_set_new(root, "config", config);
    KN_TRY(set_json(root, "model", manifest->meta.model_json));
    KN_TRY(set_json(root, "mesh", manifest->meta.mesh_json));
    KN_TRY(set_json(root, "data", manifest->meta.data_json));
    json_t *files = json_array(), *tensors = json_array();
    for (int i = 0; i < manifest->file_count; i++)
        json_array_append_new(files,
                              json_pack("{s:s, s:I, s:s}", "name", manifest->files[i].name, "bytes",
                                        (json_int_t)manifest->files[i].bytes, "sha256", manifest->files[i].sha256));
    json_object_set_new(root, "files", files);
    json_object_set_new(root, "tensors", tensors);
    for (int i = 0; i < manifest->tensor_count; i++)
        if (json_array_append_new(tensors, tensor_to_json(&manifest->tensors[i])) != 0)
            return kn_fail(KN_EINPUT, "tensor %d of the checkpoint has a name that is not UTF-8", i);
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
    json_t *root = json_object();
    int code = manifest_to_json(manifest, root);
    char *text = code == KN_OK ? json_dumps(root, JSON_INDENT(1) | JSON_PRESERVE_ORDER) : NULL;
    json_decref(root);
    if (code < 0)
        return code;
    KN_ASSERT(text != NULL);
    size_t size = strlen(text);
    char *path = kn_path_join(folder, KN_MANIFEST_NAME), *hash_path = kn_format("%s.sha256", path);
    char *line = hash_line(text, size);
    code = kn_file_write(path, text, size);
    if (code == KN_OK)
        code = kn_file_write(hash_path, line, strlen(line));
    free(line);
    free(hash_path);
    free(path);
    free(text);
    return code;
}

/* ---- reading ---- */

/* Where a read stands: sentences name the file. */
typedef struct Reading {
    KnManifest *manifest;
    const char *path;
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

static int read_tensor(const Reading *reading, const json_t *object, KnManifestTensor *entry)
{
    const json_t *slices;
    int64_t next_row = 0, file = 0;
    KnCheckpointTensor *tensor = &entry->tensor;
    KN_TRY(get_string(reading, object, "name", &tensor->name));
    KN_TRY(read_type(reading, object, &tensor->type));
    KN_TRY(read_shape(reading, object, tensor));
    tensor->row_count = KN_ALL_ROWS;
    KN_TRY(get_array(reading, object, "slices", &slices, &entry->slice_count));
    entry->slices = kn_arena_alloc(reading->manifest->arena, (size_t)entry->slice_count * sizeof *entry->slices);
    for (int s = 0; s < entry->slice_count; s++) {
        KnManifestSlice *slice = &entry->slices[s];
        const json_t *item = json_array_get(slices, (size_t)s);
        KN_TRY(get_integer(reading, item, "file", &file));
        KN_TRY(get_integer(reading, item, "start", &slice->start));
        KN_TRY(get_integer(reading, item, "count", &slice->count));
        if (file >= reading->manifest->file_count || slice->start != next_row ||
            slice->count > kn_checkpoint_rows(tensor) - next_row)
            return kn_fail(KN_EFORMAT, "%s: the slices of tensor '%s' do not fit together", reading->path,
                           tensor->name);
        slice->file = (int)file;
        next_row += slice->count;
    }
    if (next_row != kn_checkpoint_rows(tensor))
        return kn_fail(KN_EFORMAT, "%s: tensor '%s' has %lld of %lld rows", reading->path, tensor->name,
                       (long long)next_row, (long long)kn_checkpoint_rows(tensor));
    return KN_OK;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int refuse_duplicates(const Reading *reading)
{
    int count = reading->manifest->tensor_count, code = KN_OK;
    const char **names = kn_alloc((size_t)count * sizeof *names);
    for (int i = 0; i < count; i++)
        names[i] = reading->manifest->tensors[i].tensor.name;
    qsort(names, (size_t)count, sizeof *names, compare_names);
    for (int i = 1; i < count && code == KN_OK; i++)
        if (strcmp(names[i - 1], names[i]) == 0)
            code = kn_fail(KN_EFORMAT, "%s: tensor '%s' appears twice", reading->path, names[i]);
    free(names);
    return code;
}

static int manifest_from_json(const Reading *reading, const json_t *root)
{
    KnManifest *manifest = reading->manifest;
    const json_t *files, *tensors, *format = json_object_get(root, "format");
    if (!json_is_string(format) || strcmp(json_string_value(format), FORMAT_NAME) != 0)
        return foreign(reading, "its format is not '" FORMAT_NAME "'");
    if (json_integer_value(json_object_get(root, "version")) != FORMAT_VERSION)
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
    return refuse_duplicates(reading);
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

int kn_manifest_read(KnManifest *manifest, const char *folder)
{
    *manifest = (KnManifest){0};
    char *path = kn_path_join(folder, KN_MANIFEST_NAME), *bytes = NULL;
    size_t size;
    json_error_t error;
    json_t *root = NULL;
    Reading reading = {manifest, path};
    int code = kn_file_read(path, &bytes, &size);
    if (code == KN_OK)
        code = check_hash(path, bytes, size);
    if (code == KN_OK && !(root = json_loadb(bytes, size, JSON_REJECT_DUPLICATES, &error)))
        code = kn_fail(KN_EFORMAT, "%s:%d: %s", path, error.line, error.text);
    if (code == KN_OK) {
        manifest->arena = kn_arena_create();
        code = manifest_from_json(&reading, root);
    }
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
