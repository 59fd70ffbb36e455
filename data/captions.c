/* Caption tables and sidecars; where captions come from is in the header.
 *
 * Rows are kept with the last component of their path as key, sorted when first searched; a row belongs to a video when
 * the file it names is the video, or, where it names none, when its path is the end of the video's. */
#include "data/captions.h"

#include "core/base/csv.h"
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/memory.h"
#include "core/base/text.h"

#include <jansson.h>

#include <stdlib.h>
#include <string.h>
#include <strings.h>

typedef struct Row {
    const char *path; /* as resolved, or as written where no such file exists */
    const char *name; /* its last component */
    const char *caption;
    int64_t number; /* order of reading */
    int exact;
} Row;

struct KnCaptions {
    KnArena *arena;
    Row *rows;
    int64_t count, capacity;
    int sorted;
};

KnCaptions *kn_captions_create(void)
{
    KnCaptions *captions = kn_alloc(sizeof *captions);
    captions->arena = kn_arena_create();
    return captions;
}

void kn_captions_destroy(KnCaptions *captions)
{
    if (!captions)
        return;
    kn_arena_destroy(captions->arena);
    free(captions->rows);
    free(captions);
}

/* ---- rows ---- */

static int is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* The trimmed part of text[0, length), in the arena; NULL when nothing is left. */
static const char *trimmed(KnArena *arena, const char *text, size_t length)
{
    while (length > 0 && is_space(text[length - 1]))
        length--;
    while (length > 0 && is_space(*text))
        text++, length--;
    if (length == 0)
        return NULL;
    char *copy = kn_arena_alloc(arena, length + 1);
    memcpy(copy, text, length);
    return copy;
}

/* Passes over the mark that some editors put in front of UTF-8. */
static void skip_mark(const char **bytes, size_t *size)
{
    if (*size < 3 || memcmp(*bytes, "\xef\xbb\xbf", 3) != 0)
        return;
    *bytes += 3;
    *size -= 3;
}

/* The absolute path of `written`, seen from the caption file's folder or from the current one; NULL if no such file. */
static char *resolve(const char *table, const char *written)
{
    char *folder = kn_path_folder(table), *joined = kn_path_join(folder, written);
    char *found = realpath(joined, NULL);
    if (!found)
        found = realpath(written, NULL);
    free(joined);
    free(folder);
    return found;
}

static int add_row(KnCaptions *captions, const char *table, int64_t line, const char *written, const char *text,
                   size_t text_length)
{
    const char *path = trimmed(captions->arena, written, strlen(written));
    if (!path)
        return kn_fail(KN_EFORMAT, "%s:%lld: the path is empty", table, (long long)line);
    if (!kn_is_utf8(text, text_length))
        return kn_fail(KN_EFORMAT, "%s:%lld: the caption is not UTF-8", table, (long long)line);
    const char *caption = trimmed(captions->arena, text, text_length);
    if (!caption)
        return KN_OK; /* a row may say that there is no caption */
    char *resolved = resolve(table, path);
    KN_RESERVE(captions->rows, captions->count, captions->capacity);
    Row *row = &captions->rows[captions->count];
    *row = (Row){.path = resolved ? kn_arena_strdup(captions->arena, resolved) : path,
                 .caption = caption,
                 .number = captions->count,
                 .exact = resolved != NULL};
    while (!row->exact && row->path[0] == '.' && row->path[1] == '/')
        row->path += 2;
    row->name = kn_path_name(row->path);
    captions->count++;
    captions->sorted = 0;
    free(resolved);
    return KN_OK;
}

/* ---- CSV ---- */

enum { MOST_COLUMNS = 256 };

/* The first of the two names among the header's fields; -1 if neither is there. */
static int find_column(const KnCsvField *fields, int count, const char *name, const char *other)
{
    for (int i = 0; i < count; i++)
        if (strcasecmp(fields[i].text, name) == 0 || strcasecmp(fields[i].text, other) == 0)
            return i;
    return -1;
}

static int read_csv(KnCaptions *captions, const char *table, const char *bytes, size_t size)
{
    KnCsv csv = kn_csv_begin(table, bytes, size);
    KnCsvField fields[MOST_COLUMNS];
    int columns = 0;
    int code = kn_csv_record(&csv, captions->arena, fields, MOST_COLUMNS, &columns);
    if (code == KN_END)
        return kn_fail(KN_EFORMAT, "%s: the file is empty", table);
    KN_TRY(code);
    if (columns > MOST_COLUMNS)
        return kn_fail(KN_EFORMAT, "%s:1: %d columns are too many", table, columns);
    int path = find_column(fields, columns, "path", "video");
    int text = find_column(fields, columns, "caption", "text");
    if (path < 0 || text < 0)
        return kn_fail(KN_EFORMAT, "%s:1: the first line must name a column \"%s\"", table,
                       path < 0 ? "path\" or \"video" : "caption\" or \"text");
    for (;;) {
        int64_t line = csv.line;
        int count = 0;
        code = kn_csv_record(&csv, captions->arena, fields, MOST_COLUMNS, &count);
        if (code == KN_END)
            return KN_OK;
        KN_TRY(code);
        if (count == 1 && fields[0].length == 0 && columns > 1)
            continue;
        if (count != columns)
            return kn_fail(KN_EFORMAT, "%s:%lld: %d fields where the first line has %d", table, (long long)line, count,
                           columns);
        KN_TRY(add_row(captions, table, line, fields[path].text, fields[text].text, fields[text].length));
    }
}

/* ---- JSON ---- */

static const json_t *either(const json_t *object, const char *name, const char *other)
{
    const json_t *value = json_object_get(object, name);
    return value ? value : json_object_get(object, other);
}

static int read_json_line(KnCaptions *captions, const char *table, int64_t line, const char *text, size_t length)
{
    json_error_t error;
    json_t *object = json_loadb(text, length, 0, &error);
    if (!object)
        return kn_fail(KN_EFORMAT, "%s:%lld: %s", table, (long long)line, error.text);
    const char *path = json_string_value(either(object, "path", "video"));
    const json_t *caption = either(object, "caption", "text");
    int code = KN_OK;
    if (!json_is_object(object) || !path)
        code = kn_fail(KN_EFORMAT, "%s:%lld: no string \"path\" or \"video\"", table, (long long)line);
    else if (!json_is_string(caption) && !json_is_array(caption) && !json_is_null(caption))
        code = kn_fail(KN_EFORMAT, "%s:%lld: no string or list \"caption\" or \"text\"", table, (long long)line);
    else if (json_is_string(caption))
        code = add_row(captions, table, line, path, json_string_value(caption), json_string_length(caption));
    for (size_t i = 0; code == KN_OK && json_is_array(caption) && i < json_array_size(caption); i++) {
        const json_t *item = json_array_get(caption, i);
        if (!json_is_string(item))
            code = kn_fail(KN_EFORMAT, "%s:%lld: a caption that is not a string", table, (long long)line);
        else
            code = add_row(captions, table, line, path, json_string_value(item), json_string_length(item));
    }
    json_decref(object);
    return code;
}

/* Calls for each line; `end` is one past the last byte. */
static int read_jsonl(KnCaptions *captions, const char *table, const char *bytes, size_t size)
{
    int64_t line = 1;
    for (const char *at = bytes, *end = bytes + size; at < end; line++) {
        const char *stop = memchr(at, '\n', (size_t)(end - at));
        size_t length = (size_t)((stop ? stop : end) - at);
        const char *next = at + length + 1;
        while (length > 0 && is_space(at[length - 1]))
            length--;
        if (length > 0)
            KN_TRY(read_json_line(captions, table, line, at, length));
        at = next;
    }
    return KN_OK;
}

int kn_captions_load(KnCaptions *captions, const char *path)
{
    static const struct {
        const char *suffix;
        int (*read)(KnCaptions *, const char *, const char *, size_t);
    } kinds[] = {{".csv", read_csv}, {".tsv", read_csv}, {".jsonl", read_jsonl}};
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        if (!kn_ends_with(path, kinds[i].suffix))
            continue;
        char *bytes;
        size_t size;
        KN_TRY(kn_file_read(path, &bytes, &size));
        const char *text = bytes;
        skip_mark(&text, &size);
        int code = kinds[i].read(captions, path, text, size);
        free(bytes);
        return code;
    }
    return kn_fail(KN_EINPUT, "%s: a caption file must end in .csv, .tsv or .jsonl", path);
}

/* ---- finding ---- */

static int by_name(const void *a, const void *b)
{
    const Row *x = a, *y = b;
    int order = strcmp(x->name, y->name);
    return order ? order : (x->number > y->number) - (x->number < y->number);
}

static void list_add(KnCaptionList *list, const char *text)
{
    for (int64_t i = 0; i < list->count; i++)
        if (strcmp(list->items[i], text) == 0)
            return;
    list->items = kn_realloc(list->items, (size_t)(list->count + 1) * sizeof *list->items);
    list->items[list->count++] = kn_strdup(text);
}

void kn_caption_list_clear(KnCaptionList *list)
{
    for (int64_t i = 0; i < list->count; i++)
        free(list->items[i]);
    free(list->items);
    *list = (KnCaptionList){0};
}

static int row_matches(const Row *row, const char *video)
{
    if (row->exact)
        return strcmp(row->path, video) == 0;
    size_t whole = strlen(video), part = strlen(row->path);
    return part < whole && video[whole - part - 1] == '/' && strcmp(video + whole - part, row->path) == 0;
}

static void find_rows(KnCaptions *captions, const char *video, KnCaptionList *list)
{
    if (!captions->sorted && captions->count > 0)
        qsort(captions->rows, (size_t)captions->count, sizeof *captions->rows, by_name);
    captions->sorted = 1;
    const char *name = kn_path_name(video);
    int64_t low = 0, high = captions->count;
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (strcmp(captions->rows[middle].name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low < captions->count && strcmp(captions->rows[low].name, name) == 0; low++) {
        const Row *row = &captions->rows[low];
        if (row_matches(row, video))
            list_add(list, row->caption);
    }
}

static int add_sidecar_text(KnCaptionList *list, const char *path, int64_t line, const char *text, size_t length)
{
    if (!kn_is_utf8(text, length) || memchr(text, 0, length))
        return kn_fail(KN_EFORMAT, "%s:%lld: the caption is not UTF-8 text", path, (long long)line);
    KnArena *arena = kn_arena_create();
    const char *caption = trimmed(arena, text, length);
    if (caption)
        list_add(list, caption);
    kn_arena_destroy(arena);
    return KN_OK;
}

static int read_sidecar_txt(KnCaptionList *list, const char *path, const char *bytes, size_t size)
{
    int64_t line = 1;
    for (size_t at = 0; at < size; line++) {
        const char *stop = memchr(bytes + at, '\n', size - at);
        size_t length = stop ? (size_t)(stop - bytes) - at : size - at;
        KN_TRY(add_sidecar_text(list, path, line, bytes + at, length));
        at += length + 1;
    }
    return KN_OK;
}

static int read_sidecar_json(KnCaptionList *list, const char *path, const char *bytes, size_t size)
{
    json_error_t error;
    json_t *root = json_loadb(bytes, size, 0, &error);
    if (!root)
        return kn_fail(KN_EFORMAT, "%s:%d: %s", path, error.line, error.text);
    const json_t *found = json_is_object(root) ? either(root, "caption", "text") : root;
    int code = KN_OK;
    if (json_is_string(found) && json_is_object(root))
        code = add_sidecar_text(list, path, 1, json_string_value(found), json_string_length(found));
    else if (!json_is_array(found) && !json_is_null(found) && (found || !json_is_object(root)))
        code = kn_fail(KN_EFORMAT, "%s:1: neither an object with \"caption\" or \"text\" nor a list of strings", path);
    for (size_t i = 0; code == KN_OK && json_is_array(found) && i < json_array_size(found); i++) {
        const json_t *item = json_array_get(found, i);
        code = json_is_string(item) ? add_sidecar_text(list, path, 1, json_string_value(item), json_string_length(item))
                                    : kn_fail(KN_EFORMAT, "%s:1: a caption that is not a string", path);
    }
    json_decref(root);
    return code;
}

static int find_sidecars(const char *video, KnCaptionList *list)
{
    static const struct {
        const char *suffix;
        int (*read)(KnCaptionList *, const char *, const char *, size_t);
    } kinds[] = {{".txt", read_sidecar_txt}, {".json", read_sidecar_json}};
    const char *dot = strrchr(kn_path_name(video), '.');
    int stem = (int)(dot ? (size_t)(dot - video) : strlen(video));
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        char *path = kn_format("%.*s%s", stem, video, kinds[i].suffix), *bytes = NULL;
        size_t size = 0;
        int code = KN_OK;
        if (kn_file_exists(path) && !kn_is_directory(path)) {
            code = kn_file_read(path, &bytes, &size);
            const char *text = bytes;
            if (code == KN_OK) {
                skip_mark(&text, &size);
                code = kinds[i].read(list, path, text, size);
            }
            free(bytes);
        }
        free(path);
        KN_TRY(code);
    }
    return KN_OK;
}

int kn_captions_find(KnCaptions *captions, const char *video, const char *link, KnCaptionList *list)
{
    const char *const names[] = {video, link};
    const int count = link[0] ? 2 : 1;
    int code = KN_OK;
    *list = (KnCaptionList){0};
    for (int i = 0; i < count; i++)
        find_rows(captions, names[i], list);
    for (int i = 0; i < count && code == KN_OK; i++)
        code = find_sidecars(names[i], list);
    if (code < 0)
        kn_caption_list_clear(list);
    return code;
}
