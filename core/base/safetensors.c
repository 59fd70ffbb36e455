/* Reading safetensors: a mapped file whose header is checked in full before anything is believed.
 *
 * A file's tensors, sorted by where they lie, must tile its data section exactly, as the format demands: overlaps,
 * holes and truncation all show there. Several files become one set by name. Writing is in safetensors_write.c. */
#include "core/base/safetensors.h"

#include "core/base/bf16.h"
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/memory.h"
#include "core/base/text.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the format is little-endian and read as it lies");

enum { LENGTH_BYTES = 8, MAX_HEADER_BYTES = 100000000 /* as in the reference implementation */ };

typedef struct Part {
    char *path;
    KnFileMap map;
} Part;

typedef struct Entry {
    KnSafetensor tensor;
    const Part *part;
} Entry;

struct KnSafetensorsSet {
    KnArena *arena; /* names and metadata */
    Part **parts;
    Entry *entries;      /* in file order */
    const Entry **names; /* the same, by name */
    KnSafetensorsPair *metadata;
    int part_count, part_capacity, count, capacity, metadata_count, metadata_capacity;
};

/* ---- types and tensors ---- */

static const struct {
    const char *name;
    size_t bytes;
} types[] = {
    [KN_SAFETENSORS_F32] = {"F32", 4}, [KN_SAFETENSORS_BF16] = {"BF16", 2}, [KN_SAFETENSORS_F16] = {"F16", 2},
    [KN_SAFETENSORS_I32] = {"I32", 4}, [KN_SAFETENSORS_I64] = {"I64", 8},   [KN_SAFETENSORS_U8] = {"U8", 1},
};
enum { TYPES = sizeof types / sizeof *types };

const char *kn_safetensors_type_name(KnSafetensorsType type)
{
    return types[type].name;
}

size_t kn_safetensors_type_bytes(KnSafetensorsType type)
{
    return types[type].bytes;
}

int64_t kn_safetensor_elements(const KnSafetensor *tensor)
{
    int64_t elements = 1;
    for (int i = 0; i < tensor->dims; i++)
        elements *= tensor->shape[i];
    return elements;
}

size_t kn_safetensor_bytes(const KnSafetensor *tensor)
{
    return (size_t)kn_safetensor_elements(tensor) * types[tensor->type].bytes;
}

static void append_shape(KnText *text, const KnSafetensor *tensor)
{
    kn_text_append(text, "[");
    for (int i = 0; i < tensor->dims; i++)
        kn_text_appendf(text, "%s%lld", i ? ", " : "", (long long)tensor->shape[i]);
    kn_text_append(text, "]");
}

/* ---- one tensor of a header ---- */

static int parse_type(const Part *part, const char *name, const json_t *value, KnSafetensorsType *type)
{
    const char *text = json_string_value(value);
    for (int i = 0; text && i < TYPES; i++)
        if (strcmp(text, types[i].name) == 0) {
            *type = (KnSafetensorsType)i;
            return KN_OK;
        }
    if (!text)
        return kn_fail(KN_EFORMAT, "%s: tensor %s has no dtype", part->path, name);
    return kn_fail(KN_EFORMAT, "%s: tensor %s has dtype %s; F32, BF16, F16, I32, I64 and U8 are supported", part->path,
                   name, text);
}

/* Fills dims and shape, and the size in bytes that they make, which may not overflow. */
static int parse_shape(const Part *part, const json_t *value, KnSafetensor *tensor, int64_t *bytes)
{
    size_t dims = json_array_size(value);
    if (!json_is_array(value) || dims > KN_SAFETENSORS_MAX_DIMS)
        return kn_fail(KN_EFORMAT, "%s: tensor %s has no shape of at most %d dimensions", part->path, tensor->name,
                       KN_SAFETENSORS_MAX_DIMS);
    tensor->dims = (int)dims;
    *bytes = (int64_t)types[tensor->type].bytes;
    int too_large = 0, zero = 0;
    for (size_t i = 0; i < dims; i++) {
        const json_t *item = json_array_get(value, i);
        tensor->shape[i] = json_integer_value(item);
        if (!json_is_integer(item) || tensor->shape[i] < 0)
            return kn_fail(KN_EFORMAT, "%s: the shape of tensor %s is not made of counts", part->path, tensor->name);
        zero |= tensor->shape[i] == 0;
        too_large |= __builtin_mul_overflow(*bytes, tensor->shape[i] ? tensor->shape[i] : 1, bytes);
    }
    if (too_large)
        return kn_fail(KN_EFORMAT, "%s: tensor %s is impossibly large", part->path, tensor->name);
    *bytes = zero ? 0 : *bytes;
    return KN_OK;
}

static int parse_tensor(const Part *part, const char *name, const json_t *value, size_t data_start,
                        KnSafetensor *tensor)
{
    int64_t bytes = 0, available = (int64_t)(part->map.size - data_start);
    tensor->name = name;
    if (!json_is_object(value))
        return kn_fail(KN_EFORMAT, "%s: tensor %s is not described by an object", part->path, name);
    KN_TRY(parse_type(part, name, json_object_get(value, "dtype"), &tensor->type));
    KN_TRY(parse_shape(part, json_object_get(value, "shape"), tensor, &bytes));
    const json_t *offsets = json_object_get(value, "data_offsets");
    const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
    int64_t begin = json_integer_value(first), end = json_integer_value(last);
    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(last) || begin < 0 || end < begin)
        return kn_fail(KN_EFORMAT, "%s: tensor %s has no valid data_offsets", part->path, name);
    if (end > available)
        return kn_fail(KN_EFORMAT, "%s is truncated: tensor %s ends at byte %lld of the data, of which there are %lld",
                       part->path, name, (long long)end, (long long)available);
    if (end - begin != bytes)
        return kn_fail(KN_EFORMAT, "%s: tensor %s takes %lld bytes, but its shape needs %lld", part->path, name,
                       (long long)(end - begin), (long long)bytes);
    tensor->data = part->map.bytes + data_start + begin;
    return KN_OK;
}

/* ---- one file ---- */

/* The header as JSON and where the data starts. */
static int parse_header(const Part *part, json_t **header, size_t *data_start)
{
    uint64_t length = 0;
    if (part->map.size < LENGTH_BYTES)
        return kn_fail(KN_EFORMAT, "%s is not a safetensors file: it has only %zu bytes", part->path, part->map.size);
    memcpy(&length, part->map.bytes, LENGTH_BYTES);
    if (length > MAX_HEADER_BYTES || length > part->map.size - LENGTH_BYTES)
        return kn_fail(KN_EFORMAT,
                       "%s is truncated or not a safetensors file: it announces a header of %llu bytes and has %zu",
                       part->path, (unsigned long long)length, part->map.size);
    const char *text = (const char *)part->map.bytes + LENGTH_BYTES;
    json_error_t error = {0};
    *header = length && text[0] == '{' ? json_loadb(text, length, JSON_REJECT_DUPLICATES, &error) : NULL;
    *data_start = LENGTH_BYTES + length;
    if (*header)
        return KN_OK;
    return kn_fail(KN_EFORMAT, "%s is damaged or not a safetensors file: its header is not JSON%s%s", part->path,
                   error.text[0] ? ": " : "", error.text);
}

static int add_metadata(KnSafetensorsSet *set, const Part *part, json_t *pairs)
{
    const char *key;
    json_t *value;
    if (pairs && !json_is_object(pairs))
        return kn_fail(KN_EFORMAT, "%s: __metadata__ is not an object", part->path);
    json_object_foreach(pairs, key, value)
    {
        if (!json_is_string(value))
            return kn_fail(KN_EFORMAT, "%s: __metadata__ %s is not a string", part->path, key);
        KN_RESERVE(set->metadata, set->metadata_count, set->metadata_capacity);
        set->metadata[set->metadata_count++] = (KnSafetensorsPair){
            kn_arena_strdup(set->arena, key), kn_arena_strdup(set->arena, json_string_value(value))};
    }
    return KN_OK;
}

static int compare_places(const void *a, const void *b)
{
    const KnSafetensor *x = &((const Entry *)a)->tensor, *y = &((const Entry *)b)->tensor;
    const char *p = x->data, *q = y->data;
    size_t i = kn_safetensor_bytes(x), j = kn_safetensor_bytes(y);
    if (p != q)
        return p < q ? -1 : 1;
    return i != j ? (i < j ? -1 : 1) : strcmp(x->name, y->name); /* empty tensors before the one that starts here */
}

/* Sorts a file's tensors by place and checks that they tile the data. */
static int check_tiling(const Part *part, Entry *entries, int count, size_t data_start)
{
    const unsigned char *next = part->map.bytes + data_start, *end = part->map.bytes + part->map.size;
    if (count)
        qsort(entries, (size_t)count, sizeof *entries, compare_places);
    for (int i = 0; i < count; i++) {
        const KnSafetensor *tensor = &entries[i].tensor;
        const unsigned char *data = tensor->data;
        if (data < next)
            return kn_fail(KN_EFORMAT, "%s: tensors %s and %s overlap", part->path, entries[i - 1].tensor.name,
                           tensor->name);
        if (data > next)
            return kn_fail(KN_EFORMAT, "%s: %zu bytes before tensor %s belong to no tensor", part->path,
                           (size_t)(data - next), tensor->name);
        next = data + kn_safetensor_bytes(tensor);
    }
    if (next != end)
        return kn_fail(KN_EFORMAT, "%s: the last %zu bytes belong to no tensor", part->path, (size_t)(end - next));
    return KN_OK;
}

static int add_tensors(KnSafetensorsSet *set, const Part *part, json_t *header, size_t data_start)
{
    const char *name;
    json_t *value;
    int first = set->count;
    json_object_foreach(header, name, value)
    {
        if (strcmp(name, "__metadata__") == 0)
            continue;
        Entry entry = {.part = part};
        KN_TRY(parse_tensor(part, kn_arena_strdup(set->arena, name), value, data_start, &entry.tensor));
        KN_RESERVE(set->entries, set->count, set->capacity);
        set->entries[set->count++] = entry;
    }
    KN_TRY(check_tiling(part, set->entries + first, set->count - first, data_start));
    return add_metadata(set, part, json_object_get(header, "__metadata__"));
}

static int add_part(KnSafetensorsSet *set, const char *path)
{
    Part *part = kn_alloc(sizeof *part);
    KN_RESERVE(set->parts, set->part_count, set->part_capacity);
    set->parts[set->part_count++] = part;
    part->path = kn_strdup(path);
    KN_TRY(kn_file_map(&part->map, path));
    json_t *header;
    size_t data_start;
    KN_TRY(parse_header(part, &header, &data_start));
    int code = add_tensors(set, part, header, data_start);
    json_decref(header);
    return code;
}

/* ---- a set ---- */

static int compare_names(const void *a, const void *b)
{
    return strcmp((*(const Entry *const *)a)->tensor.name, (*(const Entry *const *)b)->tensor.name);
}

static int index_names(KnSafetensorsSet *set)
{
    set->names = kn_alloc((size_t)set->count * sizeof *set->names);
    for (int i = 0; i < set->count; i++)
        set->names[i] = &set->entries[i];
    if (set->count)
        qsort(set->names, (size_t)set->count, sizeof *set->names, compare_names);
    for (int i = 1; i < set->count; i++)
        if (strcmp(set->names[i - 1]->tensor.name, set->names[i]->tensor.name) == 0)
            return kn_fail(KN_EFORMAT, "tensor %s is both in %s and in %s", set->names[i]->tensor.name,
                           set->names[i - 1]->part->path, set->names[i]->part->path);
    return KN_OK;
}

static const Entry *find_entry(const KnSafetensorsSet *set, const char *name)
{
    const Entry wanted = {.tensor.name = name}, *key = &wanted;
    const Entry **found =
        set->count ? bsearch(&key, set->names, (size_t)set->count, sizeof *set->names, compare_names) : NULL;
    return found ? *found : NULL;
}

/* Opens each file that a weight_map names, once. */
static int add_mapped_files(KnSafetensorsSet *set, const char *path, json_t *map)
{
    const char *name;
    json_t *value;
    char *folder = kn_path_folder(path);
    KnStringList files = {0};
    int code = KN_OK;
    json_object_foreach(map, name, value)
    {
        const char *file = json_string_value(value);
        if (!file || !file[0] || strchr(file, '/'))
            code = kn_fail(KN_EFORMAT, "%s: tensor %s is in no file of this folder", path, name);
        else
            kn_string_list_add(&files, file);
    }
    kn_string_list_sort(&files);
    for (int i = 0; i < files.count && code == KN_OK; i++) {
        if (i && strcmp(files.items[i - 1], files.items[i]) == 0)
            continue;
        char *part = kn_path_join(folder, files.items[i]);
        code = add_part(set, part);
        free(part);
    }
    kn_string_list_clear(&files);
    free(folder);
    return code;
}

/* Every tensor that the index names is in the file it names. */
static int check_index(const KnSafetensorsSet *set, const char *path, json_t *map)
{
    const char *name;
    json_t *value;
    json_object_foreach(map, name, value)
    {
        const Entry *entry = find_entry(set, name);
        if (!entry || strcmp(kn_path_name(entry->part->path), json_string_value(value)) != 0)
            return kn_fail(KN_EFORMAT, "%s: tensor %s is not in %s, where this index says it is", path, name,
                           json_string_value(value));
    }
    return KN_OK;
}

static int open_index(KnSafetensorsSet *set, const char *path)
{
    char *text;
    size_t size;
    json_error_t error;
    KN_TRY(kn_file_read(path, &text, &size));
    json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error);
    free(text);
    if (!root)
        return kn_fail(KN_EFORMAT, "%s:%d:%d: %s", path, error.line, error.column, error.text);
    json_t *map = json_object_get(root, "weight_map");
    int code = KN_OK;
    if (!json_is_object(map) || json_object_size(map) == 0)
        code = kn_fail(KN_EFORMAT, "%s has no weight_map, so it is not an index of safetensors files", path);
    if (code == KN_OK)
        code = add_mapped_files(set, path, map);
    if (code == KN_OK)
        code = index_names(set);
    if (code == KN_OK)
        code = check_index(set, path, map);
    json_decref(root);
    return code;
}

static int open_path(KnSafetensorsSet *set, const char *path);

/* The only name in the folder with this suffix; NULL when there is none. */
static int find_only(const char *folder, const KnStringList *names, const char *suffix, const char **found)
{
    *found = NULL;
    for (int i = 0; i < names->count; i++) {
        if (names->items[i][0] == '.' || !kn_ends_with(names->items[i], suffix))
            continue;
        if (*found)
            return kn_fail(KN_EINPUT, "%s holds several files *%s (%s, %s): name the one that is meant", folder, suffix,
                           *found, names->items[i]);
        *found = names->items[i];
    }
    return KN_OK;
}

static int open_folder(KnSafetensorsSet *set, const char *folder)
{
    KnStringList names = {0};
    const char *found = NULL;
    KN_TRY(kn_list_directory(folder, &names));
    int code = find_only(folder, &names, ".safetensors.index.json", &found);
    if (code == KN_OK && !found)
        code = find_only(folder, &names, ".safetensors", &found);
    if (code == KN_OK && !found)
        code = kn_fail(KN_EFORMAT, "%s holds no .safetensors file", folder);
    if (code == KN_OK) {
        char *path = kn_path_join(folder, found);
        code = kn_is_directory(path) ? kn_fail(KN_EFORMAT, "%s is a folder, not a safetensors file", path)
                                     : open_path(set, path);
        free(path);
    }
    kn_string_list_clear(&names);
    return code;
}

static int open_path(KnSafetensorsSet *set, const char *path)
{
    if (kn_is_directory(path))
        return open_folder(set, path);
    if (kn_ends_with(path, ".json"))
        return open_index(set, path);
    KN_TRY(add_part(set, path));
    return index_names(set);
}

int kn_safetensors_open(KnSafetensorsSet **set, const char *path)
{
    *set = NULL;
    KnSafetensorsSet *opened = kn_alloc(sizeof *opened);
    opened->arena = kn_arena_create();
    int code = open_path(opened, path);
    if (code == KN_OK)
        *set = opened;
    else
        kn_safetensors_close(opened);
    return code;
}

void kn_safetensors_close(KnSafetensorsSet *set)
{
    if (!set)
        return;
    for (int i = 0; i < set->part_count; i++) {
        kn_file_unmap(&set->parts[i]->map);
        free(set->parts[i]->path);
        free(set->parts[i]);
    }
    free(set->parts);
    free(set->entries);
    free(set->names);
    free(set->metadata);
    kn_arena_destroy(set->arena);
    free(set);
}

int kn_safetensors_count(const KnSafetensorsSet *set)
{
    return set->count;
}

const KnSafetensor *kn_safetensors_at(const KnSafetensorsSet *set, int index)
{
    KN_ASSERT(index >= 0 && index < set->count);
    return &set->entries[index].tensor;
}

const KnSafetensor *kn_safetensors_find(const KnSafetensorsSet *set, const char *name)
{
    const Entry *entry = find_entry(set, name);
    return entry ? &entry->tensor : NULL;
}

const char *kn_safetensors_metadata(const KnSafetensorsSet *set, const char *key)
{
    for (int i = 0; i < set->metadata_count; i++)
        if (strcmp(set->metadata[i].key, key) == 0)
            return set->metadata[i].value;
    return NULL;
}

const char *kn_safetensors_path(const KnSafetensorsSet *set, const KnSafetensor *tensor)
{
    return find_entry(set, tensor->name)->part->path;
}

/* ---- values ---- */

static void convert(const KnSafetensor *tensor, float *out, int64_t elements)
{
    const unsigned char *bytes = tensor->data;
    uint16_t half;
    if (tensor->type == KN_SAFETENSORS_F32 && elements)
        memcpy(out, bytes, (size_t)elements * sizeof *out);
    for (int64_t i = 0; i < elements && tensor->type == KN_SAFETENSORS_BF16; i++)
        out[i] = kn_bf16_to_float((memcpy(&half, bytes + 2 * i, sizeof half), half));
    for (int64_t i = 0; i < elements && tensor->type == KN_SAFETENSORS_F16; i++)
        out[i] = kn_f16_to_float((memcpy(&half, bytes + 2 * i, sizeof half), half));
}

int kn_safetensors_read_f32(const KnSafetensorsSet *set, const char *name, float *out, int64_t elements)
{
    const Entry *entry = find_entry(set, name);
    if (!entry)
        return kn_fail(KN_EFORMAT, "%s%s has no tensor %s", set->part_count ? set->parts[0]->path : "",
                       set->part_count > 1 ? " and its fellow files" : "", name);
    const KnSafetensor *tensor = &entry->tensor;
    if (tensor->type != KN_SAFETENSORS_F32 && tensor->type != KN_SAFETENSORS_BF16 && tensor->type != KN_SAFETENSORS_F16)
        return kn_fail(KN_EFORMAT, "%s: tensor %s has dtype %s, not floating point", entry->part->path, name,
                       types[tensor->type].name);
    if (kn_safetensor_elements(tensor) != elements) {
        KnText shape = {0};
        append_shape(&shape, tensor);
        int code =
            kn_fail(KN_EFORMAT, "%s: tensor %s has shape %s, hence %lld elements; %lld are needed", entry->part->path,
                    name, shape.bytes, (long long)kn_safetensor_elements(tensor), (long long)elements);
        kn_text_clear(&shape);
        return code;
    }
    convert(tensor, out, elements);
    return KN_OK;
}
