/* `kinora synth`: a folder of captioned clips of a world, as real video files.
 *
 * Clip i is a function of (seed, i), and a file gets its final name only when it is whole and on the disk; so a stopped
 * run goes on by writing what is missing, and a larger --count adds to a folder. `synth.json` is written first: it
 * names the settings and marks the folder as ours. `captions.csv` is written last: it means that all is there. The
 * clips are lossless RGB H.264, so that what `prep` reads is what was drawn, whatever versions of the encoder and
 * decoder are between. */
#include "core/base/args.h"
#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/memory.h"
#include "core/base/progress.h"
#include "core/base/text.h"
#include "data/commands.h"
#include "data/video_write.h"
#include "data/world.h"

#include <jansson.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char settings_name[] = "synth.json", captions_name[] = "captions.csv";

typedef struct SynthOptions {
    const char *out;
    int64_t count, frames, seed;
    KnArgSize size;
    double fps;
    int held_out, json;
} SynthOptions;

static const KnArg synth_args[] = {
    {"out", KN_ARG_STRING, offsetof(SynthOptions, out), "DIR", NULL, "folder to write; created if need be",
     .required = 1},
    {"count", KN_ARG_INT, offsetof(SynthOptions, count), "N", "100",
     "clips that the folder shall hold; those it has already are kept", .low = 1, .high = 1e8},
    {"size", KN_ARG_SIZE, offsetof(SynthOptions, size), "WxH", "32x32", "picture size in pixels", .low = 8,
     .high = 4096},
    {"frames", KN_ARG_INT, offsetof(SynthOptions, frames), "N", "8", "frames of a clip", .low = 1, .high = 10000},
    {"fps", KN_ARG_FLOAT, offsetof(SynthOptions, fps), "F", "8", "frames a second", .low = 0.1, .high = 240},
    {"seed", KN_ARG_INT, offsetof(SynthOptions, seed), "S", "0", "another seed, other clips", .low = 0, .high = 1e15},
    {"held-out", KN_ARG_FLAG, offsetof(SynthOptions, held_out), NULL, NULL,
     "only the combinations that are otherwise never written", .required = 0},
    {"json", KN_ARG_FLAG, offsetof(SynthOptions, json), NULL, NULL, "print one JSON object when done", .required = 0},
};

static const KnArgSpec synth_spec = {
    "synth",
    "WORLD --out DIR [options]",
    "Writes captioned clips of a procedural world as video files with a captions.csv. The world there is:\n"
    "  moving-shapes   one shape of one colour that moves left, right, up or down, or stays still, on a plain\n"
    "                  background; one combination of colour, shape and motion in eight is held out",
    "kinora synth moving-shapes --out videos --count 6000\n"
    "kinora synth moving-shapes --out unseen --count 96 --held-out\n"
    "kinora synth moving-shapes --out wide --count 100 --size 128x64 --frames 16 --seed 7",
    synth_args,
    sizeof synth_args / sizeof synth_args[0],
    1,
    1,
};

typedef struct Synth {
    const SynthOptions *options;
    const KnWorld *world;
    KnWorldSplit split;
    uint8_t *present; /* [count]: which clips the folder has */
    int64_t written;
} Synth;

static char *clip_name(int64_t index)
{
    return kn_format("clip-%06lld.mp4", (long long)index);
}

/* The number in a clip's name, or -1. */
static int64_t clip_of_name(const char *name)
{
    long long index;
    if (sscanf(name, "clip-%lld.mp4", &index) != 1 || index < 0)
        return -1;
    char *expected = clip_name(index);
    int same = !strcmp(expected, name);
    free(expected);
    return same ? index : -1;
}

static char *settings_text(const Synth *synth)
{
    const SynthOptions *o = synth->options;
    json_t *settings =
        json_pack("{s:s, s:I, s:I, s:I, s:f, s:I, s:b}", "world", kn_world_name(synth->world), "width",
                  (json_int_t)o->size.width, "height", (json_int_t)o->size.height, "frames", (json_int_t)o->frames,
                  "fps", o->fps, "seed", (json_int_t)o->seed, "held_out", o->held_out);
    char *text = json_dumps(settings, JSON_INDENT(2));
    json_decref(settings);
    KN_ASSERT(text);
    char *line = kn_format("%s\n", text);
    free(text);
    return line;
}

/* Whether the folder's synth.json says the same as this run. */
static int check_settings(const Synth *synth, const char *path)
{
    char *found, *wanted = settings_text(synth);
    size_t size;
    int code = kn_file_read(path, &found, &size);
    if (code == KN_OK) {
        if (strcmp(found, wanted))
            code = kn_fail(KN_EINPUT,
                           "%s was written with other settings (its synth.json differs in size, frames, fps, seed or "
                           "--held-out); choose another folder or remove it",
                           synth->options->out);
        free(found);
    }
    free(wanted);
    return code;
}

/* Only our own files may be in the folder, and no clip beyond the count. Notes the clips that are there. */
static int check_files(Synth *synth, const KnStringList *names)
{
    for (int i = 0; i < names->count; i++) {
        const char *name = names->items[i];
        int64_t clip = clip_of_name(name);
        if (clip >= synth->options->count)
            return kn_fail(KN_EINPUT,
                           "%s already holds %s, beyond --count %lld; ask for more clips or choose another folder",
                           synth->options->out, name, (long long)synth->options->count);
        if (clip >= 0)
            synth->present[clip] = 1;
        else if (strcmp(name, settings_name) && strcmp(name, captions_name) && !kn_is_temporary_name(name))
            return kn_fail(KN_EINPUT, "%s holds %s, which synth did not write; choose an empty folder",
                           synth->options->out, name);
    }
    return KN_OK;
}

static int is_empty(const KnStringList *names)
{
    for (int i = 0; i < names->count; i++)
        if (!kn_is_temporary_name(names->items[i]))
            return 0;
    return 1;
}

/* Makes the folder ours, or refuses it untouched. */
static int claim_folder(Synth *synth)
{
    const char *out = synth->options->out;
    if (kn_file_exists(out) && !kn_is_directory(out))
        return kn_fail(KN_EINPUT, "%s is a file; --out needs a folder", out);
    KN_TRY(kn_make_directories(out));
    char *path = kn_path_join(out, settings_name);
    KnStringList names = {0};
    int code = kn_list_directory(out, &names), ours = kn_file_exists(path);
    if (code == KN_OK && ours)
        code = check_settings(synth, path);
    else if (code == KN_OK && !is_empty(&names))
        code = kn_fail(KN_EINPUT, "%s is not empty and was not written by synth (no synth.json); choose another folder",
                       out);
    if (code == KN_OK)
        code = check_files(synth, &names);
    if (code == KN_OK)
        code = kn_remove_temporaries(out);
    if (code == KN_OK && !ours) {
        char *settings = settings_text(synth);
        code = kn_file_write(path, settings, strlen(settings));
        free(settings);
    }
    kn_string_list_clear(&names);
    free(path);
    return code;
}

static void describe(const Synth *synth, int64_t index, KnWorldClip *clip)
{
    const SynthOptions *o = synth->options;
    kn_world_describe(synth->world, (uint64_t)o->seed, synth->split, (uint64_t)index, (int)o->frames,
                      (int)o->size.height, (int)o->size.width, clip);
}

/* `pixels` has room for one clip. */
static int write_clip(const Synth *synth, int64_t index, const char *folder, uint8_t *pixels)
{
    const SynthOptions *o = synth->options;
    KnWorldClip clip;
    describe(synth, index, &clip);
    kn_world_render(synth->world, &clip, (int)o->frames, (int)o->size.height, (int)o->size.width, pixels);
    char *name = clip_name(index), *path = kn_path_join(folder, name);
    int code = kn_video_write(
        path, pixels, o->frames,
        &(KnVideoWriteOptions){
            .width = (int)o->size.width, .height = (int)o->size.height, .fps = o->fps, .lossless = 1, .unsynced = 1});
    free(path);
    free(name);
    return code;
}

/* Clips wanted[0 .. count) into `folder`, shared out among threads; the first failure ends the work and its sentence
 * reaches this thread. */
static int write_batch(const Synth *synth, const int64_t *wanted, int count, const char *folder, KnProgress *progress)
{
    const SynthOptions *o = synth->options;
    size_t bytes = (size_t)(o->frames * o->size.height * o->size.width * 3);
    int failure = KN_OK;
    int64_t done = progress->done;
    char *sentence = NULL;
#pragma omp parallel
    {
        void *pixels = NULL;
        int code = kn_alloc_large(&pixels, bytes, "the pixels of a clip");
#pragma omp for schedule(dynamic)
        for (int i = 0; i < count; i++) {
            if (code == KN_OK)
                code = write_clip(synth, wanted[i], folder, pixels);
#pragma omp critical(kn_synth)
            if (code == KN_OK) {
                kn_progress_update(progress, ++done, NULL);
            } else if (failure == KN_OK) {
                failure = code;
                sentence = kn_strdup(kn_error_message());
            }
        }
        kn_free_large(pixels);
    }
    if (failure == KN_OK)
        return KN_OK;
    int code = kn_fail(failure, "%s", sentence);
    free(sentence);
    return code;
}

/* Makes the batch durable and gives the clips their names: one sync for all, where one for each clip would take longer
 * than everything else. */
static int publish_batch(const Synth *synth, const int64_t *wanted, int count, const char *folder)
{
    int descriptor = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC), failed = descriptor < 0;
    failed = failed || syncfs(descriptor) != 0;
    int reason = errno;
    if (descriptor >= 0)
        close(descriptor);
    for (int i = 0; i < count && !failed; i++) {
        char *name = clip_name(wanted[i]);
        char *from = kn_path_join(folder, name), *to = kn_path_join(synth->options->out, name);
        failed = rename(from, to) != 0;
        reason = errno;
        free(name);
        free(from);
        free(to);
    }
    if (failed)
        return kn_fail(KN_EIO, "cannot write clips into %s: %s", synth->options->out, strerror(reason));
    return kn_sync_directory(synth->options->out);
}

static int write_and_publish(const Synth *synth, const int64_t *wanted, int count, KnProgress *progress)
{
    char *target = kn_path_join(synth->options->out, "batch"), *folder = kn_temporary_path(target);
    int code = kn_make_directories(folder);
    if (code == KN_OK)
        code = write_batch(synth, wanted, count, folder, progress);
    if (code == KN_OK)
        code = publish_batch(synth, wanted, count, folder);
    if (code == KN_OK)
        code = kn_remove_tree(folder);
    else {
        char *sentence = kn_strdup(kn_error_message());
        kn_remove_tree(folder);
        code = kn_fail(code, "%s", sentence);
        free(sentence);
    }
    free(target);
    free(folder);
    return code;
}

/* Whatever is missing, a batch at a time. */
static int write_clips(Synth *synth)
{
    enum { BATCH = 512 };
    const SynthOptions *o = synth->options;
    int64_t missing = 0, wanted[BATCH];
    for (int64_t i = 0; i < o->count; i++)
        missing += !synth->present[i];
    KnProgress progress;
    kn_progress_begin(
        &progress,
        &(KnProgressOptions){.label = "synth", .unit = "clips", .total = o->count, .start = o->count - missing});
    int code = KN_OK, gathered = 0;
    for (int64_t i = 0; i < o->count && code == KN_OK; i++) {
        if (!synth->present[i])
            wanted[gathered++] = i;
        if (gathered == BATCH || (gathered && i + 1 == o->count)) {
            code = write_and_publish(synth, wanted, gathered, &progress);
            synth->written += gathered;
            gathered = 0;
        }
    }
    kn_progress_end(&progress, NULL);
    return code;
}

static int write_captions(const Synth *synth)
{
    KnText text = {0};
    kn_text_append(&text, "path,caption\n");
    for (int64_t i = 0; i < synth->options->count; i++) {
        KnWorldClip clip;
        char caption[KN_WORLD_CAPTION_BYTES], *name = clip_name(i);
        describe(synth, i, &clip);
        kn_world_caption(synth->world, &clip.facts, caption);
        kn_text_appendf(&text, "%s,%s\n", name, caption);
        free(name);
    }
    char *path = kn_path_join(synth->options->out, captions_name);
    int code = kn_file_write(path, text.bytes, text.length);
    free(path);
    kn_text_clear(&text);
    return code;
}

static void report(const Synth *synth, double seconds)
{
    const SynthOptions *o = synth->options;
    if (!o->json) {
        kn_log("%s holds %lld clips of %s (%lld new) and captions.csv", o->out, (long long)o->count,
               kn_world_name(synth->world), (long long)synth->written);
        return;
    }
    json_t *object =
        json_pack("{s:s, s:s, s:I, s:I, s:f}", "out", o->out, "world", kn_world_name(synth->world), "clips",
                  (json_int_t)o->count, "written", (json_int_t)synth->written, "seconds", seconds);
    char *text = object ? json_dumps(object, 0) : NULL; /* NULL for a folder's name that is not UTF-8 */
    printf("%s\n", text ? text : "{}");
    free(text);
    json_decref(object);
}

static int synthesize(Synth *synth, const char *world)
{
    const SynthOptions *o = synth->options;
    double began = kn_seconds_now();
    if (o->json)
        kn_log_set_quiet(1);
    KN_TRY(kn_world_find(world, &synth->world));
    KN_TRY(kn_world_check_geometry(synth->world, (int)o->frames, (int)o->size.height, (int)o->size.width));
    KN_TRY(claim_folder(synth));
    KN_TRY(write_clips(synth));
    KN_TRY(write_captions(synth));
    report(synth, kn_seconds_now() - began);
    return KN_OK;
}

int kn_command_synth(int argc, char **argv)
{
    SynthOptions options = {0};
    KnArgList worlds = {0};
    KN_TRY(kn_args_parse(&synth_spec, argc, argv, &options, &worlds));
    Synth synth = {.options = &options,
                   .split = options.held_out ? KN_WORLD_HELD_OUT : KN_WORLD_TRAIN,
                   .present = kn_alloc((size_t)options.count)};
    int code = synthesize(&synth, worlds.items[0]);
    free(synth.present);
    kn_args_clear(&synth_spec, &options, &worlds);
    return code;
}
