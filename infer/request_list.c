/* What prompts files and templates have in common, and prompts files. */
#include "infer/request_list.h"

#include "core/base/error.h"
#include "core/base/file.h"
#include "infer/output.h"

#include <stdlib.h>
#include <string.h>

/* ---- names ---- */

static int name_output(const KnRequestList *list, KnRequest *request, int line, const char *stem)
{
    const KnRequestSource *source = &list->source;
    const char *suffix = request->frames == 1 ? "png" : "mp4";
    if (request->out && !request->out[0])
        return kn_fail(KN_EINPUT, "%s:%d: \"out\" is empty: leave it away, or name the video", source->path, line);
    if (!request->out && !source->folder)
        return kn_fail(KN_EINPUT, "%s:%d: no \"out\" says where the video goes: add it, or give a folder with --out",
                       source->path, line);
    if (!request->out && stem)
        request->out = kn_arena_format(source->arena, "%s.%s", stem, suffix);
    else if (!request->out)
        request->out = kn_arena_format(source->arena, "%04d.%s", list->count + 1, suffix);
    if (source->folder) {
        char *joined = kn_path_join(source->folder, request->out);
        request->out = kn_arena_strdup(source->arena, joined);
        free(joined);
    }
    return KN_OK;
}

int kn_request_list_add(KnRequestList *list, const KnRequest *above, int line, const char *stem)
{
    KnRequest request = *list->source.base;
    request.out = NULL;
    request.seed += list->count;
    kn_request_overlay(&request, above);
    KN_TRY(name_output(list, &request, line, stem));
    KN_RESERVE(list->requests, list->count, list->capacity);
    KN_RESERVE(list->lines, list->count, list->line_capacity);
    list->lines[list->count] = line;
    list->requests[list->count++] = request;
    return KN_OK;
}

/* ---- no two alike ---- */

typedef struct Named {
    char *json; /* absolute: a.mp4 and ./a.mp4 are the same */
    int index;
} Named;

static Named name_of(const KnRequest *request, int index)
{
    char *json = kn_output_json_path(request->out);
    Named named = {kn_path_absolute(json), index};
    free(json);
    return named;
}

static int by_json(const void *a, const void *b)
{
    const Named *x = a, *y = b;
    int order = strcmp(x->json, y->json);
    return order ? order : x->index - y->index;
}

static int fail_alike(const KnRequestList *list, const Named *former, const Named *latter)
{
    const char *out = list->requests[latter->index].out, *other = list->requests[former->index].out;
    int line = list->lines[latter->index], first = list->lines[former->index];
    if (!strcmp(out, other))
        return kn_fail(KN_EINPUT, "%s:%d: \"out\" is %s, as in line %d already", list->source.path, line, out, first);
    char *json = kn_output_json_path(out);
    int code = kn_fail(KN_EINPUT, "%s:%d: \"out\" is %s, whose description %s is that of line %d's %s too",
                       list->source.path, line, out, json, first, other);
    free(json);
    return code;
}

/* No request may write what another has written, nor its description: a.mp4 and a.gif would share a.json. */
static int check_names(const KnRequestList *list)
{
    Named *names = kn_alloc((size_t)list->count * sizeof *names);
    int code = KN_OK;
    for (int i = 0; i < list->count; i++)
        names[i] = name_of(&list->requests[i], i);
    qsort(names, (size_t)list->count, sizeof *names, by_json);
    for (int i = 1; i < list->count && code == KN_OK; i++)
        if (!strcmp(names[i - 1].json, names[i].json))
            code = fail_alike(list, &names[i - 1], &names[i]);
    for (int i = 0; i < list->count; i++)
        free(names[i].json);
    free(names);
    return code;
}

int kn_request_list_finish(KnRequestList *list, int code, KnRequest **requests, int *count)
{
    if (code == KN_OK)
        code = check_names(list);
    *requests = code == KN_OK ? list->requests : NULL;
    *count = code == KN_OK ? list->count : 0;
    if (code != KN_OK)
        free(list->requests);
    free(list->lines);
    return code;
}

/* ---- prompts files ---- */

static int add_line(KnRequestList *list, const char *text, size_t length, int number)
{
    const char *place = kn_arena_format(list->source.arena, "%s:%d", list->source.path, number);
    json_error_t error;
    KnRequest line;
    json_t *object = json_loadb(text, length, JSON_REJECT_DUPLICATES, &error);
    if (!json_is_object(object)) {
        json_decref(object);
        return kn_fail(KN_EINPUT, "%s: not a JSON object: %s", place, object ? "it is another value" : error.text);
    }
    kn_request_init(&line);
    int code = kn_request_from_json(&line, object, NULL, place, list->source.arena);
    json_decref(object);
    KN_TRY(code);
    if (!line.prompt)
        return kn_fail(KN_EINPUT, "%s: there is no \"prompt\"", place);
    return kn_request_list_add(list, &line, number, NULL);
}

/* The mark that some editors put in front of UTF-8 is passed over. */
static int read_lines(KnRequestList *list, const char *bytes, size_t size)
{
    const char *end = bytes + size, *begin = kn_starts_with(bytes, "\xef\xbb\xbf") ? bytes + 3 : bytes;
    int number = 1;
    for (const char *line = begin; line < end; number++) {
        const char *newline = memchr(line, '\n', (size_t)(end - line));
        size_t length = newline ? (size_t)(newline - line) : (size_t)(end - line);
        size_t blank = 0;
        while (blank < length && strchr(" \t\r", line[blank]) && line[blank])
            blank++;
        if (blank < length)
            KN_TRY(add_line(list, line, length, number));
        line += length + 1;
    }
    if (list->count == 0)
        return kn_fail(KN_EINPUT,
                       "%s holds no prompts: write one JSON object a line, {\"prompt\": \"...\", \"out\": "
                       "\"name.mp4\"}",
                       list->source.path);
    return KN_OK;
}

int kn_request_read_lines(const KnRequestSource *source, KnRequest **requests, int *count)
{
    KnRequestList list = {.source = *source};
    char *bytes = NULL;
    size_t size = 0;
    *requests = NULL;
    *count = 0;
    KN_TRY(kn_file_read(source->path, &bytes, &size));
    int code = read_lines(&list, bytes, size);
    free(bytes);
    return kn_request_list_finish(&list, code, requests, count);
}
