/* `kinora prep`: videos to shards, by any number of ranks.
 *
 * Rank 0 looks: it takes the folder for this run, refuses other settings than the folder was begun with, finds the
 * inputs and reads from the finished shards what is left. The list goes to all ranks; each takes its share (longest
 * files first, each to the rank with the fewest bytes) and writes its own shards. At the end rank 0 makes index.json
 * from the shards. A shard that is not finished does not exist, and a finished one says which pieces of which inputs it
 * covers: so a run may be killed anywhere and gone on with by any number of ranks. */
#include "data/prep.h"
#include "core/base/args.h"
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/hash.h"
#include "core/base/log.h"
#include "core/base/memory.h"
#include "core/base/progress.h"
#include "core/base/text.h"
#include "data/commands.h"
#include "data/index.h"
#include "dist/comm.h"

#include <jansson.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

typedef struct PrepOptions {
    const char *out;
    double fps;
    int64_t max_frames, min_frames, max_pixels, clips_per_shard, shard_megabytes, threads;
    KnArgInts patch;
    KnArgList captions;
    int json;
} PrepOptions;

static const KnArg prep_args[] = {
    {"out", KN_ARG_STRING, offsetof(PrepOptions, out), "DIR", NULL, "folder for the shards and index.json",
     .required = 1},
    {"fps", KN_ARG_FLOAT, offsetof(PrepOptions, fps), "F", "0",
     "frames a second, resampled by timestamps; 0 keeps each video's own rate", .low = 0, .high = 1000},
    {"max-frames", KN_ARG_INT, offsetof(PrepOptions, max_frames), "N", "128",
     "longer videos become consecutive clips of N frames", .low = 1, .high = 1e6},
    {"min-frames", KN_ARG_INT, offsetof(PrepOptions, min_frames), "N", "1",
     "clips with fewer frames are left out (images are kept)", .low = 1, .high = 1e6},
    {"max-pixels", KN_ARG_INT, offsetof(PrepOptions, max_pixels), "P", "0",
     "larger frames are scaled down to P pixels, keeping their aspect; 0 keeps every size", .low = 0, .high = 1e9},
    {"patch", KN_ARG_INTS, offsetof(PrepOptions, patch), "T,H,W", "2,8,8",
     "frames, rows and columns of a patch; frames are cropped by less than one patch", .low = 1, .high = 256},
    {"captions", KN_ARG_STRINGS, offsetof(PrepOptions, captions), "FILE", NULL,
     "CSV or JSONL with path|video and caption|text; may be repeated. NAME.txt and NAME.json next to a video are\n"
     "read without being named",
     .required = 0},
    {"clips-per-shard", KN_ARG_INT, offsetof(PrepOptions, clips_per_shard), "N", "4096", "most clips in one file",
     .low = 1, .high = 1e9},
    {"shard-megabytes", KN_ARG_INT, offsetof(PrepOptions, shard_megabytes), "M", "1024",
     "a file with more patch data takes no further clip", .low = 1, .high = 1e6},
    {"threads", KN_ARG_INT, offsetof(PrepOptions, threads), "N", "1", "decoder threads of each rank", .low = 1,
     .high = 64},
    {"json", KN_ARG_FLAG, offsetof(PrepOptions, json), NULL, NULL, "print the index as one JSON object", .required = 0},
};

static const KnArgSpec prep_spec = {
    .command = "prep",
    .usage = "--out DIR [options] INPUT...",
    .description =
        "Turns videos and images (files, or folders searched recursively) into HDF5 shards of patches. Stopped at any\n"
        "moment, the same command goes on where it was. Under mpirun the inputs are divided among the ranks.",
    .examples = "kinora prep --out shards --max-pixels 65536 --fps 8 --captions captions.csv videos\n"
                "mpirun -n 4 kinora prep --out shards --max-frames 48 videos more/clip.mkv",
    .args = prep_args,
    .arg_count = sizeof prep_args / sizeof prep_args[0],
    .least_positionals = 1,
    .most_positionals = -1,
};

/* ---- settings ---- */

json_t *kn_prep_settings_json(const KnPrepSettings *settings)
{
    return json_pack("{sf sI sI sI s[III] ss}", "fps", settings->fps, "max_frames", (json_int_t)settings->max_frames,
                     "min_frames", (json_int_t)settings->min_frames, "max_pixels", (json_int_t)settings->max_pixels,
                     "patch", (json_int_t)settings->patch[0], (json_int_t)settings->patch[1],
                     (json_int_t)settings->patch[2], "captions", settings->captions_hash);
}

void kn_prep_settings_hash(const KnPrepSettings *settings, char hex[65])
{
    json_t *object = kn_prep_settings_json(settings);
    char *text = json_dumps(object, JSON_COMPACT | JSON_SORT_KEYS | JSON_REAL_PRECISION(17));
    kn_sha256_hex(text, strlen(text), hex);
    free(text);
    json_decref(object);
}

/* One hash over the contents of all caption files, in the order given. */
static int hash_captions(const KnArgList *files, char hex[65])
{
    KnText digests = {0};
    hex[0] = '\0';
    for (int i = 0; i < files->count; i++) {
        char one[65];
        int code = kn_sha256_file(files->items[i], one);
        if (code < 0) {
            kn_text_clear(&digests);
            return code;
        }
        kn_text_append(&digests, one);
    }
    if (digests.length > 0)
        kn_sha256_hex(digests.bytes, digests.length, hex);
    kn_text_clear(&digests);
    return KN_OK;
}

static int make_settings(const PrepOptions *options, KnPrepSettings *settings)
{
    if (options->patch.count != 3)
        return kn_fail(KN_EINPUT, "--patch needs three numbers (frames,rows,columns), not %d", options->patch.count);
    memcpy(settings->patch, options->patch.values, sizeof settings->patch);
    if (options->max_frames < settings->patch[0])
        return kn_fail(KN_EINPUT, "--max-frames %" PRId64 " is less than the %" PRId64 " frames of one patch",
                       options->max_frames, settings->patch[0]);
    if (options->max_pixels > 0 && options->max_pixels < settings->patch[1] * settings->patch[2])
        return kn_fail(KN_EINPUT, "--max-pixels %" PRId64 " is less than one patch of %" PRId64 "x%" PRId64,
                       options->max_pixels, settings->patch[2], settings->patch[1]);
    settings->fps = options->fps;
    settings->max_frames = options->max_frames - options->max_frames % settings->patch[0];
    settings->min_frames = options->min_frames > settings->patch[0] ? options->min_frames : settings->patch[0];
    settings->max_pixels = options->max_pixels;
    if (settings->min_frames > settings->max_frames)
        return kn_fail(KN_EINPUT, "--min-frames %" PRId64 " is more than --max-frames %" PRId64, settings->min_frames,
                       settings->max_frames);
    return hash_captions(&options->captions, settings->captions_hash);
}

/* The first setting in which the folder's differ, as a sentence. */
static int refuse_settings(const char *out, const json_t *before, const json_t *now)
{
    static const struct {
        const char *key, *flag;
    } flags[] = {{"fps", "--fps"},
                 {"patch", "--patch"}, /* first: the numbers of frames are rounded by it */
                 {"max_frames", "--max-frames"},
                 {"min_frames", "--min-frames"},
                 {"max_pixels", "--max-pixels"}};
    for (size_t i = 0; i < sizeof flags / sizeof flags[0]; i++) {
        const json_t *a = json_object_get(before, flags[i].key), *b = json_object_get(now, flags[i].key);
        if (json_equal(a, b))
            continue;
        char *x = a ? json_dumps(a, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
        char *y = json_dumps(b, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(9));
        int code = kn_fail(KN_EINPUT, "%s was begun with %s %s, not %s: use the same options to go on, or a new folder",
                           out, flags[i].flag, x ? x : "of another version", y);
        free(x);
        free(y);
        return code;
    }
    return kn_fail(KN_EINPUT, "%s was begun with other --captions files: use the same to go on, or a new folder", out);
}

/* ---- what rank 0 does first ---- */

/* One prep at a time in a folder. The lock (LOCK_EX or LOCK_SH) ends with the process, however it ends; where the file
 * system cannot lock, we go without. */
static int lock_folder(const char *out, int kind, int *lock)
{
    if (*lock < 0)
        *lock = open(out, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*lock < 0)
        return kn_fail(KN_EIO, "%s: cannot be opened: %s", out, strerror(errno));
    if (flock(*lock, kind | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        return kn_fail(KN_EINPUT, "%s: another `kinora prep` is working in this folder", out);
    return KN_OK;
}

/* Rank 0's lock becomes one that all ranks hold: one of them that outlives the others may still finish a shard, and a
 * new run must not begin before it has. */
static int share_lock(KnComm *comm, const char *out, int *lock)
{
    int code = comm->rank == 0 ? lock_folder(out, LOCK_SH, lock) : KN_OK;
    KN_TRY(kn_comm_error_agree(comm, code));
    if (comm->rank != 0)
        code = lock_folder(out, LOCK_SH, lock);
    return kn_comm_error_agree(comm, code);
}

/* Whether the folder may be used with these settings. `begun` becomes 1 where it has an index. */
static int check_folder(const char *out, const json_t *settings, const char *hash, int *begun)
{
    char *path = kn_path_join(out, "index.json"), **names = NULL;
    json_t *index = NULL;
    int count = 0, code = KN_OK;
    *begun = kn_file_exists(path);
    if (*begun) {
        index = json_load_file(path, 0, NULL);
        const char *format = json_string_value(json_object_get(index, "format"));
        const char *before = json_string_value(json_object_get(index, "config_hash"));
        if (!format || strcmp(format, "kinora-dataset") != 0 || !before)
            code = kn_fail(KN_EFORMAT, "%s: not the index of a Kinora data set: choose another --out", path);
        else if (strcmp(before, hash) != 0)
            code = refuse_settings(out, json_object_get(index, "settings"), settings);
    } else {
        code = kn_index_list_shards(out, &names, &count);
        if (code == KN_OK && count > 0)
            code = kn_fail(KN_EINPUT, "%s holds %s but no index.json: choose another --out", out, names[0]);
    }
    for (int i = 0; i < count; i++)
        free(names[i]);
    free(names);
    json_decref(index);
    free(path);
    return code;
}

static int64_t count_left(const KnPrepInputs *inputs)
{
    int64_t left = 0;
    for (int64_t i = 0; i < inputs->count; i++)
        left += !inputs->items[i].done;
    return left;
}

/* In a folder that is ours by now: what is left of the inputs; an index that says "unfinished" while there is work. */
static int go_on(const char *out, const json_t *settings, const char *hash, KnPrepInputs *inputs)
{
    int begun = 0;
    KN_TRY(check_folder(out, settings, hash, &begun));
    KN_TRY(kn_remove_temporaries(out));
    KN_TRY(kn_prep_resume(inputs, out));
    if (inputs->clips_done > 0)
        kn_log("%s holds %" PRId64 " clips already; going on with %" PRId64 " of %" PRId64 " inputs", out,
               inputs->clips_done, count_left(inputs), inputs->count);
    return begun && count_left(inputs) == 0 ? KN_OK : kn_index_begin(out, settings, hash);
}

static int look(const PrepOptions *options, const KnArgList *names, const KnPrepSettings *settings, const char *hash,
                KnPrepInputs *inputs, int *lock)
{
    KN_TRY(kn_prep_find(inputs, names, options->out));
    KN_TRY(kn_make_directories(options->out));
    KN_TRY(lock_folder(options->out, LOCK_EX, lock));
    json_t *object = kn_prep_settings_json(settings);
    int code = go_on(options->out, object, hash, inputs);
    json_decref(object);
    return code;
}

/* Rank 0's findings on every rank. */
static int share_inputs(KnComm *comm, KnPrepInputs *inputs)
{
    char *mine = comm->rank == 0 ? kn_prep_inputs_text(inputs) : kn_strdup("");
    char **texts = kn_alloc((size_t)comm->ranks * sizeof *texts);
    int code = kn_comm_gather_text(comm, mine, texts, "prep inputs");
    if (code == KN_OK && comm->rank != 0)
        code = kn_prep_inputs_parse(inputs, texts[0]);
    for (int i = 0; i < comm->ranks; i++)
        free(texts[i]);
    free(texts);
    free(mine);
    return code;
}

/* ---- the work ---- */

/* An input and the order in which it is given out. */
typedef struct Share {
    int64_t index, bytes;
} Share;

static int largest_first(const void *a, const void *b)
{
    const Share *x = a, *y = b;
    if (x->bytes != y->bytes)
        return x->bytes > y->bytes ? -1 : 1;
    return (x->index > y->index) - (x->index < y->index);
}

/* owner[i] = the rank that takes input i; the same on every rank. Returns how many `rank` has. */
static int64_t divide(const KnPrepInputs *inputs, int ranks, int rank, int *owner)
{
    Share *shares = kn_alloc((size_t)inputs->count * sizeof *shares);
    int64_t *load = kn_alloc((size_t)ranks * sizeof *load), mine = 0;
    for (int64_t i = 0; i < inputs->count; i++)
        shares[i] = (Share){i, inputs->items[i].bytes};
    qsort(shares, (size_t)inputs->count, sizeof *shares, largest_first);
    for (int64_t i = 0; i < inputs->count; i++) {
        int least = 0;
        owner[shares[i].index] = -1;
        if (inputs->items[shares[i].index].done)
            continue;
        for (int r = 1; r < ranks; r++)
            if (load[r] < load[least])
                least = r;
        owner[shares[i].index] = least;
        load[least] += shares[i].bytes + 1;
        mine += least == rank;
    }
    free(load);
    free(shares);
    return mine;
}

static int work(KnPrepWriter *writer, const KnPrepInputs *inputs, KnComm *comm)
{
    int *owner = kn_alloc((size_t)inputs->count * sizeof *owner), code = KN_OK;
    int64_t mine = divide(inputs, comm->ranks, comm->rank, owner), done = 0;
    KnProgress progress;
    kn_progress_begin(&progress, &(KnProgressOptions){.label = "prep", .unit = "inputs", .total = mine});
    for (int64_t i = 0; i < inputs->count && code == KN_OK; i++) {
        if (owner[i] != comm->rank)
            continue;
        code = kn_prep_add(writer, &inputs->items[i]);
        kn_progress_update(&progress, ++done, "%" PRId64 " clips, %" PRId64 " tokens%s", writer->clips, writer->tokens,
                           comm->ranks > 1 ? " on rank 0" : "");
    }
    if (code == KN_OK)
        code = kn_prep_writer_finish(writer);
    kn_progress_end(&progress, NULL);
    kn_prep_writer_abandon(writer);
    free(owner);
    return code;
}

/* ---- the end ---- */

/* Nothing gave a clip: leaves the folder as it was found. */
static int fail_without_clips(const char *out, const json_t *index)
{
    char **names;
    int count;
    const json_t *rejects = json_object_get(index, "rejects"), *first = json_array_get(rejects, 0);
    KN_TRY(kn_index_list_shards(out, &names, &count));
    for (int i = 0; i < count; i++) {
        char *path = kn_path_join(out, names[i]);
        unlink(path);
        free(path);
        free(names[i]);
    }
    free(names);
    char *path = kn_path_join(out, "index.json");
    unlink(path);
    free(path);
    rmdir(out);
    return kn_fail(KN_EINPUT, "none of the %zu inputs gave a clip; the first: %s", json_array_size(rejects),
                   json_string_value(json_object_get(first, "detail")));
}

static void report(const PrepOptions *options, const json_t *index)
{
    const int64_t clips = json_integer_value(json_object_get(index, "clips"));
    const int64_t without = json_integer_value(json_object_get(index, "clips_without_caption"));
    if (options->captions.count && without == clips)
        kn_warn("no row of the caption files names one of the videos: a path counts from the table's folder or from "
                "here, or is the end of a video's path");
    if (options->json) {
        char *text = json_dumps(index, JSON_INDENT(1) | JSON_REAL_PRECISION(12));
        printf("%s\n", text);
        free(text);
        return;
    }
    const json_t *rejects = json_object_get(index, "rejects");
    size_t i;
    const json_t *reject;
    json_array_foreach(rejects, i, reject) if (i < 20)
        kn_warn("no clip: %s", json_string_value(json_object_get(reject, "detail")));
    if (json_array_size(rejects) > 20)
        kn_warn("... and %zu more inputs without a clip, all in %s/index.json", json_array_size(rejects) - 20,
                options->out);
    printf("%s: %lld clips (%lld without caption), %lld tokens, %zu shapes, %zu shards; %zu of %lld inputs gave none\n",
           options->out, (long long)clips, (long long)without,
           (long long)json_integer_value(json_object_get(index, "tokens")),
           json_array_size(json_object_get(index, "shapes")), json_array_size(json_object_get(index, "shards")),
           json_array_size(rejects), (long long)json_integer_value(json_object_get(index, "inputs")));
}

static int conclude(const PrepOptions *options, const KnPrepSettings *settings, const char *hash)
{
    json_t *object = kn_prep_settings_json(settings), *index = NULL;
    int code = kn_index_complete(options->out, object, hash, &index);
    if (code == KN_OK && json_integer_value(json_object_get(index, "clips")) == 0)
        code = fail_without_clips(options->out, index);
    if (code == KN_OK)
        report(options, index);
    json_decref(index);
    json_decref(object);
    return code;
}

static int load_captions(KnCaptions *captions, const KnArgList *files)
{
    for (int i = 0; i < files->count; i++)
        KN_TRY(kn_captions_load(captions, files->items[i]));
    return KN_OK;
}

/* Between opening and closing the communicator; `lock` is released by the caller. */
static int prep(const PrepOptions *options, const KnArgList *names, KnComm *comm, KnPrepInputs *inputs,
                KnCaptions *captions, int *lock)
{
    KnPrepSettings settings = {0};
    char hash[65] = "";
    int code = make_settings(options, &settings);
    if (code == KN_OK)
        code = load_captions(captions, &options->captions);
    if (code == KN_OK) {
        kn_prep_settings_hash(&settings, hash);
        if (comm->rank == 0)
            code = look(options, names, &settings, hash, inputs, lock);
    }
    KN_TRY(kn_comm_error_agree(comm, code));
    KN_TRY(share_inputs(comm, inputs));
    KN_TRY(share_lock(comm, options->out, lock));
    KnPrepWriter writer = {.out = options->out,
                           .settings = &settings,
                           .captions = captions,
                           .clips_per_shard = options->clips_per_shard,
                           .bytes_per_shard = options->shard_megabytes << 20,
                           .next_number = inputs->next_number + comm->rank,
                           .number_step = comm->ranks,
                           .decoder_threads = (int)options->threads};
    KN_TRY(work(&writer, inputs, comm));
    KN_TRY(comm->table->barrier(comm, "prep shards"));
    return comm->rank == 0 ? conclude(options, &settings, hash) : KN_OK;
}

int kn_command_prep(int argc, char **argv)
{
    PrepOptions options = {0};
    KnArgList names = {0};
    KN_TRY(kn_args_parse(&prep_spec, argc, argv, &options, &names));
    KnComm *comm;
    int code = kn_comm_open(&comm);
    if (code == KN_OK) {
        KnPrepInputs inputs = {0};
        KnCaptions *captions = kn_captions_create();
        int lock = -1;
        kn_log_set_quiet(options.json);
        code = prep(&options, &names, comm, &inputs, captions, &lock);
        kn_captions_destroy(captions);
        kn_prep_inputs_clear(&inputs);
        if (lock >= 0)
            close(lock);
        code = kn_comm_close(comm, code);
    }
    kn_args_clear(&prep_spec, &options, &names);
    return code;
}
