/* What prep works on: the walk over files and folders, and what finished shards already cover. */
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/memory.h"
#include "core/base/text.h"
#include "data/index.h"
#include "data/prep.h"
#include "data/video_read.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The folders that the walk is in, innermost first: a link back to one of them is not followed. */
typedef struct WalkFrame {
    const char *folder;
    const struct WalkFrame *parent;
} WalkFrame;

static void clear_input(KnPrepInput *input)
{
    free(input->path);
    free(input->link);
    free(input->segments);
    free(input->rejected);
}

void kn_prep_inputs_clear(KnPrepInputs *inputs)
{
    for (int64_t i = 0; i < inputs->count; i++)
        clear_input(&inputs->items[i]);
    free(inputs->items);
    *inputs = (KnPrepInputs){0};
}

/* Takes over `path`; `found` is the name that led to it. */
static KnPrepInput *add_input(KnPrepInputs *inputs, char *path, const char *found)
{
    KN_RESERVE(inputs->items, inputs->count, inputs->capacity);
    KnPrepInput *input = &inputs->items[inputs->count++];
    *input = (KnPrepInput){.path = path,
                           .link = kn_strdup(strcmp(found, path) != 0 ? found : ""),
                           .segments = kn_strdup(""),
                           .rejected = kn_strdup(""),
                           .clips = -1};
    return input;
}

static int walk(KnPrepInputs *inputs, char *path, const char *found, const char *out, const WalkFrame *parent);

static int walk_folder(KnPrepInputs *inputs, const char *folder, const char *out, const WalkFrame *parent)
{
    const WalkFrame here = {folder, parent};
    KnStringList names = {0};
    KN_TRY(kn_list_directory(folder, &names));
    int code = KN_OK;
    for (int i = 0; i < names.count && code == KN_OK; i++) {
        if (names.items[i][0] == '.')
            continue;
        char *joined = kn_path_join(folder, names.items[i]), *real = realpath(joined, NULL);
        /* the name found decides, not the one that a link leads to; a link that leads nowhere is an input without clips
         */
        if (kn_video_known_suffix(joined) || (real && kn_is_directory(real)))
            code = walk(inputs, real ? real : kn_strdup(joined), joined, out, &here);
        else
            free(real);
        free(joined);
    }
    kn_string_list_clear(&names);
    return code;
}

/* Takes over the absolute `path`, which was found under the name `found`. */
static int walk(KnPrepInputs *inputs, char *path, const char *found, const char *out, const WalkFrame *parent)
{
    if (!kn_is_directory(path)) {
        KnPrepInput *input = add_input(inputs, path, found);
        if (kn_file_size(path, &input->bytes) < 0)
            input->bytes = 0; /* whoever opens it says why */
        return KN_OK;
    }
    int skip = out && strcmp(path, out) == 0;
    for (const WalkFrame *frame = parent; frame && !skip; frame = frame->parent)
        skip = strcmp(frame->folder, path) == 0;
    int code = skip ? KN_OK : walk_folder(inputs, path, out, parent);
    free(path);
    return code;
}

static int by_path(const void *a, const void *b)
{
    return strcmp(((const KnPrepInput *)a)->path, ((const KnPrepInput *)b)->path);
}

static int by_path_and_link(const void *a, const void *b)
{
    int order = by_path(a, b);
    return order ? order : strcmp(((const KnPrepInput *)b)->link, ((const KnPrepInput *)a)->link);
}

/* Of a file found under several names, one that is a link is kept: what lies beside the file itself is found anyway. */
static void drop_repeats(KnPrepInputs *inputs)
{
    int64_t kept = 0;
    qsort(inputs->items, (size_t)inputs->count, sizeof *inputs->items, by_path_and_link);
    for (int64_t i = 0; i < inputs->count; i++) {
        if (kept > 0 && strcmp(inputs->items[kept - 1].path, inputs->items[i].path) == 0)
            clear_input(&inputs->items[i]);
        else
            inputs->items[kept++] = inputs->items[i];
    }
    inputs->count = kept;
}

/* The absolute path of `name` with its last component as written. */
static char *absolute_name(const char *name)
{
    char *folder = kn_path_folder(name), *real = realpath(folder, NULL);
    char *result = kn_path_join(real ? real : folder, kn_path_name(name));
    free(real);
    free(folder);
    return result;
}

int kn_prep_find(KnPrepInputs *inputs, const KnArgList *names, const char *out)
{
    char *real_out = realpath(out, NULL);
    int code = KN_OK;
    for (int i = 0; i < names->count && code == KN_OK; i++) {
        char *real = realpath(names->items[i], NULL);
        if (!real) {
            code = kn_fail(KN_EIO, "%s: cannot be opened: %s", names->items[i], strerror(errno));
            break;
        }
        char *found = absolute_name(names->items[i]);
        code = walk(inputs, real, found, real_out, NULL);
        free(found);
    }
    free(real_out);
    KN_TRY(code);
    if (inputs->count == 0)
        return kn_fail(KN_EINPUT, "%s%s: no video or image found (name a file to have it tried whatever its suffix)",
                       names->items[0], names->count > 1 ? " and the other inputs" : "");
    drop_repeats(inputs);
    return KN_OK;
}

/* ---- what is done ---- */

static KnPrepInput *find_input(const KnPrepInputs *inputs, const char *path)
{
    KnPrepInput key = {.path = (char *)path};
    return bsearch(&key, inputs->items, (size_t)inputs->count, sizeof *inputs->items, by_path);
}

static void note_segment(KnPrepInput *input, int64_t segment)
{
    size_t known = strlen(input->segments), at = (size_t)segment;
    if (at >= known) {
        input->segments = kn_realloc(input->segments, at + 2);
        memset(input->segments + known, '0', at + 1 - known);
        input->segments[at + 1] = '\0';
    }
    input->segments[at] = '1';
}

char *kn_prep_rejected(const char *reason, const char *detail)
{
    return kn_format("%s\n%s", reason, detail);
}

static int note_shard(KnPrepInputs *inputs, const char *out, const KnShard *shard)
{
    for (int64_t i = 0; i < kn_shard_source_count(shard); i++) {
        const KnSource *source = kn_shard_source(shard, i);
        KnPrepInput *input = find_input(inputs, source->path);
        if (!input)
            continue;
        free(input->rejected);
        input->rejected = source->reason[0] ? kn_prep_rejected(source->reason, source->detail) : kn_strdup("");
        if (source->reason[0])
            continue; /* what was wrong may have been mended since */
        if (input->bytes != source->bytes)
            return kn_fail(KN_EINPUT, "%s has changed since %s was begun (%lld bytes then, %lld now): use a new folder",
                           source->path, out, (long long)source->bytes, (long long)input->bytes);
        if (source->complete)
            input->clips = source->clips;
    }
    for (int64_t i = 0; i < kn_shard_clip_count(shard); i++) {
        const KnClip *clip = kn_shard_clip(shard, i);
        KnPrepInput *input = find_input(inputs, clip->source);
        if (input)
            note_segment(input, clip->segment);
    }
    inputs->clips_done += kn_shard_clip_count(shard);
    return KN_OK;
}

static int64_t held(const KnPrepInput *input)
{
    int64_t count = 0;
    for (const char *segment = input->segments; *segment; segment++)
        count += *segment == '1';
    return count;
}

int kn_prep_resume(KnPrepInputs *inputs, const char *out)
{
    char **names;
    int count;
    int code = kn_index_list_shards(out, &names, &count);
    for (int i = 0; i < count; i++) {
        KnShard *shard = NULL;
        char *path = kn_path_join(out, names[i]);
        int number = -1;
        if (code == KN_OK)
            code = kn_shard_open(&shard, path);
        if (code == KN_OK)
            code = note_shard(inputs, out, shard);
        if (sscanf(names[i], "clips-%9d.h5", &number) == 1 && number >= inputs->next_number)
            inputs->next_number = number + 1;
        kn_shard_close(shard);
        free(path);
        free(names[i]);
    }
    free(names);
    for (int64_t i = 0; i < inputs->count; i++) /* a shard may have been taken away since */
        inputs->items[i].done = inputs->items[i].clips == held(&inputs->items[i]);
    return code;
}

/* ---- to the other ranks ---- */

/* A line of counts, then for each input a line of numbers and its texts; a path may hold anything but NUL, so lengths
 * go first. */
char *kn_prep_inputs_text(const KnPrepInputs *inputs)
{
    KnText text = {0};
    kn_text_appendf(&text, "%lld %lld %lld\n", (long long)inputs->count, (long long)inputs->next_number,
                    (long long)inputs->clips_done);
    for (int64_t i = 0; i < inputs->count; i++) {
        const KnPrepInput *input = &inputs->items[i];
        kn_text_appendf(&text, "%zu %zu %zu %zu %lld %d\n%s%s%s%s\n", strlen(input->segments), strlen(input->rejected),
                        strlen(input->path), strlen(input->link), (long long)input->bytes, input->done, input->segments,
                        input->rejected, input->path, input->link);
    }
    return kn_text_take(&text);
}

/* Copies `length` bytes from *text and moves it past them. */
static char *take_bytes(const char **text, size_t length)
{
    char *copy = kn_alloc(length + 1);
    memcpy(copy, *text, length);
    *text += length;
    return copy;
}

int kn_prep_inputs_parse(KnPrepInputs *inputs, const char *text)
{
    long long count, next_number, clips_done;
    int used = 0;
    if (sscanf(text, "%lld %lld %lld%n", &count, &next_number, &clips_done, &used) != 3)
        return kn_fail(KN_EPEER, "the list of inputs from rank 0 is malformed");
    text += used + 1;
    for (long long i = 0; i < count; i++) {
        size_t segments, rejected, path, link;
        long long bytes;
        int done;
        if (sscanf(text, "%zu %zu %zu %zu %lld %d%n", &segments, &rejected, &path, &link, &bytes, &done, &used) != 6)
            return kn_fail(KN_EPEER, "the list of inputs from rank 0 is malformed");
        text += used + 1;
        KN_RESERVE(inputs->items, inputs->count, inputs->capacity);
        KnPrepInput *input = &inputs->items[inputs->count++];
        *input = (KnPrepInput){.bytes = bytes, .done = done};
        input->segments = take_bytes(&text, segments);
        input->rejected = take_bytes(&text, rejected);
        input->path = take_bytes(&text, path);
        input->link = take_bytes(&text, link);
        text++;
    }
    inputs->next_number = next_number;
    inputs->clips_done = clips_done;
    return KN_OK;
}
