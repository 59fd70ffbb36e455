/* `kinora checkpoint verify|list|consolidate|prune PATH`: looks after the checkpoints of a run. */
#include "dist/commands.h"

#include "core/base/args.h"
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/memory.h"
#include "dist/checkpoint.h"
#include "dist/checkpoint_folder.h"
#include "dist/checkpoint_tools.h"

#include <jansson.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

typedef struct Options {
    const char *out;
    int64_t keep_last, keep_every;
    int dry_run, json;
} Options;

static const KnArg rows[] = {
    {.name = "out",
     .kind = KN_ARG_STRING,
     .offset = offsetof(Options, out),
     .metavariable = "DIR",
     .meaning = "consolidate: the new folder"},
    {.name = "keep-last",
     .kind = KN_ARG_INT,
     .offset = offsetof(Options, keep_last),
     .metavariable = "N",
     .meaning = "prune: the N newest whole ones stay",
     .low = 1,
     .high = 1e12},
    {.name = "keep-every",
     .kind = KN_ARG_INT,
     .offset = offsetof(Options, keep_every),
     .metavariable = "N",
     .meaning = "prune: those of multiples of N steps stay",
     .low = 1,
     .high = 1e12},
    {.name = "dry-run",
     .kind = KN_ARG_FLAG,
     .offset = offsetof(Options, dry_run),
     .meaning = "prune: only say what would go"},
    {.name = "json", .kind = KN_ARG_FLAG, .offset = offsetof(Options, json), .meaning = "print one JSON object"},
};

static const KnArgSpec spec = {
    .command = "checkpoint",
    .usage = "verify PATH [--json]\n"
             "list RUN [--json]\n"
             "consolidate PATH --out DIR [--json]\n"
             "prune RUN --keep-last N [--keep-every N] [--dry-run] [--json]",
    .description =
        "Looks after checkpoints. PATH is a checkpoint or a run.\n"
        "  verify       reads every byte of a checkpoint, or of all of a run, and names each damaged file\n"
        "  list         step, age, size, ranks, layout and state of each; hashes are left to verify\n"
        "  consolidate  rewrites a checkpoint (of a run: the newest valid one) as one rank alone would have\n"
        "               written it: the same tensors bit for bit, in one file\n"
        "  prune        removes older ones, never the newest valid one",
    .examples = "kinora checkpoint list runs/first\n"
                "kinora checkpoint verify runs/first/checkpoints/step-00012000\n"
                "kinora checkpoint consolidate runs/first --out step-12000-whole\n"
                "kinora checkpoint prune runs/first --keep-last 3 --keep-every 10000 --dry-run",
    .args = rows,
    .arg_count = sizeof rows / sizeof rows[0],
    .least_positionals = 2,
    .most_positionals = 2,
};

/* What an action found: for people in `text`, for programs in `json`. */
typedef struct Output {
    KnText text;
    json_t *json;
} Output;

static json_t *text_json(const char *text)
{
    json_t *value = json_string(text);
    return value ? value : json_null(); /* a name that is not UTF-8 */
}

static json_t *list_json(const KnStringList *list)
{
    json_t *array = json_array();
    for (int i = 0; i < list->count; i++)
        json_array_append_new(array, text_json(list->items[i]));
    return array;
}

/* The checkpoints that PATH names, oldest first: itself, or those of the run. */
static int list_paths(const char *path, KnStringList *paths)
{
    char *folder;
    int64_t *steps;
    int count;
    if (kn_is_checkpoint(path)) {
        kn_string_list_add(paths, path);
        return KN_OK;
    }
    KN_TRY(kn_checkpoints_folder(path, &folder));
    int code = kn_checkpoint_steps(folder, &steps, &count);
    for (int i = count - 1; i >= 0 && code == KN_OK; i--) {
        char *item = kn_checkpoint_step_path(folder, steps[i]);
        kn_string_list_add(paths, item);
        free(item);
    }
    free(steps);
    free(folder);
    return code;
}

/* ---- verify ---- */

static void verify_one(const char *path, Output *out, int *damaged)
{
    KnStringList damages = {0};
    kn_checkpoint_verify(path, &damages);
    *damaged += damages.count > 0;
    kn_text_appendf(&out->text, "%s  %s\n", path, damages.count ? "damaged" : "every hash holds");
    for (int i = 0; i < damages.count; i++)
        kn_text_appendf(&out->text, "  %s\n", damages.items[i]);
    json_array_append_new(
        json_object_get(out->json, "checkpoints"),
        json_pack("{so sb so}", "path", text_json(path), "valid", damages.count == 0, "damages", list_json(&damages)));
    kn_string_list_clear(&damages);
}

/* Of links, the link itself: one that leads nowhere is a damage. */
static int is_there(const char *path)
{
    struct stat status;
    return lstat(path, &status) == 0;
}

static int verify(const char *path, const Options *options, Output *out)
{
    KnStringList paths = {0};
    int damaged = 0;
    (void)options;
    KN_TRY(list_paths(path, &paths));
    json_object_set_new(out->json, "checkpoints", json_array());
    for (int i = 0; i < paths.count; i++)
        if (is_there(paths.items[i])) /* a run that goes on may have removed it meanwhile */
            verify_one(paths.items[i], out, &damaged);
    int count = paths.count;
    kn_string_list_clear(&paths);
    if (count == 0)
        return kn_fail(KN_EINPUT, "%s has no checkpoint yet", path);
    if (damaged)
        return kn_fail(KN_EFORMAT, "%d of %d checkpoint%s of %s %s damaged", damaged, count, count == 1 ? "" : "s",
                       path, damaged == 1 ? "is" : "are");
    return KN_OK;
}

/* ---- list ---- */

static double age_seconds(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 ? difftime(time(NULL), status.st_mtime) : 0;
}

static void append_age(KnText *text, double seconds)
{
    static const struct {
        double seconds;
        const char *name;
    } units[] = {{86400, "d"}, {3600, "h"}, {60, "min"}, {1, "s"}};
    int unit = 0;
    while (unit < 3 && seconds < 2 * units[unit].seconds)
        unit++;
    kn_text_appendf(text, "%7.0f %-3s", seconds / units[unit].seconds, units[unit].name);
}

static void list_one(const char *path, Output *out)
{
    KnCheckpoint *checkpoint;
    int whole = kn_checkpoint_open(&checkpoint, path, KN_CHECK_SIZES) == KN_OK;
    json_t *item = json_pack("{so sf sb}", "path", text_json(path), "age_seconds", age_seconds(path), "whole", whole);
    json_array_append_new(json_object_get(out->json, "checkpoints"), item);
    if (whole) {
        const KnCheckpointMeta *meta = kn_checkpoint_meta(checkpoint);
        int64_t bytes = kn_checkpoint_bytes(checkpoint);
        kn_text_appendf(&out->text, "%10lld", (long long)meta->step);
        append_age(&out->text, age_seconds(path));
        kn_text_appendf(&out->text, "%12.1f MiB%7d  %-24s whole\n", (double)bytes / 1048576.0,
                        kn_checkpoint_ranks(checkpoint), meta->mesh_json);
        json_object_set_new(item, "step", json_integer(meta->step));
        json_object_set_new(item, "bytes", json_integer(bytes));
        json_object_set_new(item, "ranks", json_integer(kn_checkpoint_ranks(checkpoint)));
        json_object_set_new(item, "mesh", json_loads(meta->mesh_json, JSON_DECODE_ANY, NULL));
    } else {
        kn_text_appendf(&out->text, "%10s", kn_path_name(path) + strlen("step-"));
        append_age(&out->text, age_seconds(path));
        kn_text_appendf(&out->text, "  damaged: %s\n", kn_error_message());
        json_object_set_new(item, "damage", text_json(kn_error_message()));
    }
    kn_checkpoint_close(checkpoint);
}

static int list(const char *path, const Options *options, Output *out)
{
    KnStringList paths = {0};
    (void)options;
    KN_TRY(list_paths(path, &paths));
    json_object_set_new(out->json, "checkpoints", json_array());
    kn_text_appendf(&out->text, "%10s%11s%16s%7s  %-24s %s\n", "step", "age", "size", "ranks", "mesh", "state");
    for (int i = 0; i < paths.count; i++)
        list_one(paths.items[i], out);
    kn_string_list_clear(&paths);
    return KN_OK;
}

/* ---- consolidate and prune ---- */

static int consolidate(const char *path, const Options *options, Output *out)
{
    char *from;
    if (!options->out)
        return kn_fail(KN_EINPUT, "consolidate writes a new folder: name it with --out");
    KN_TRY(kn_checkpoint_find_valid(path, &from));
    int code = kn_checkpoint_consolidate(from, options->out);
    kn_text_appendf(&out->text, "%s -> %s\n", from, options->out);
    json_object_set_new(out->json, "from", text_json(from));
    json_object_set_new(out->json, "out", text_json(options->out));
    free(from);
    return code;
}

static int prune(const char *path, const Options *options, Output *out)
{
    KnStringList removed = {0}, kept = {0};
    char *folder;
    KnPruneRule rule = {options->keep_last, options->keep_every, options->dry_run};
    if (!options->keep_last && !options->keep_every)
        return kn_fail(KN_EINPUT, "prune needs to know what stays: --keep-last N, --keep-every N or both");
    KN_TRY(kn_checkpoints_folder(path, &folder));
    int code = kn_checkpoint_prune_by(folder, &rule, &removed, &kept);
    for (int i = 0; i < kept.count; i++)
        kn_text_appendf(&out->text, "stays    %s\n", kept.items[i]);
    for (int i = 0; i < removed.count; i++)
        kn_text_appendf(&out->text, "%s %s\n", options->dry_run ? "would go" : "removed ", removed.items[i]);
    json_object_set_new(out->json, "dry_run", json_boolean(options->dry_run));
    json_object_set_new(out->json, "kept", list_json(&kept));
    json_object_set_new(out->json, "removed", list_json(&removed));
    kn_string_list_clear(&removed);
    kn_string_list_clear(&kept);
    free(folder);
    return code;
}

/* ---- the command ---- */

enum { OUT = 1, KEEP = 2, DRY_RUN = 4 };

static const struct {
    const char *name;
    int (*run)(const char *path, const Options *options, Output *out);
    int takes; /* which of the options that belong to one action */
} actions[] = {
    {"verify", verify, 0},
    {"list", list, 0},
    {"consolidate", consolidate, OUT},
    {"prune", prune, KEEP | DRY_RUN},
};
enum { ACTION_COUNT = sizeof actions / sizeof *actions };

static int find_action(const char *name)
{
    const char *names[ACTION_COUNT];
    for (int i = 0; i < ACTION_COUNT; i++) {
        names[i] = actions[i].name;
        if (!strcmp(name, names[i]))
            return i;
    }
    const char *nearest = kn_nearest(name, names, ACTION_COUNT);
    if (nearest)
        return kn_fail(KN_EINPUT, "there is no `kinora checkpoint %s`; did you mean %s?", name, nearest);
    return kn_fail(KN_EINPUT,
                   "there is no `kinora checkpoint %s`: verify, list, consolidate and prune are what it does", name);
}

static int check_options(const Options *options, int action)
{
    int given = (options->out ? OUT : 0) | (options->keep_last || options->keep_every ? KEEP : 0) |
                (options->dry_run ? DRY_RUN : 0);
    int foreign = given & ~actions[action].takes;
    if (!foreign)
        return KN_OK;
    return kn_fail(KN_EINPUT, "%s does not go with %s",
                   foreign & OUT       ? "--out"
                   : foreign & DRY_RUN ? "--dry-run"
                                       : "--keep-last or --keep-every",
                   actions[action].name);
}

static int run(const char *name, const char *path, const Options *options)
{
    Output out = {.json = json_object()};
    int action = find_action(name);
    int code = action < 0 ? action : check_options(options, action);
    if (code == KN_OK) {
        kn_log_set_quiet(options->json);
        code = actions[action].run(path, options, &out);
    }
    /* What verify found is told although it then fails. */
    if (code == KN_OK || (code == KN_EFORMAT && json_object_get(out.json, "checkpoints"))) {
        char *json = json_dumps(out.json, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
        printf("%s%s", options->json ? json : out.text.bytes, options->json ? "\n" : "");
        free(json);
    }
    json_decref(out.json);
    kn_text_clear(&out.text);
    return code;
}

int kn_command_checkpoint(int argc, char **argv)
{
    Options options = {0};
    KnArgList words = {0};
    KN_TRY(kn_args_parse(&spec, argc, argv, &options, &words));
    int code = run(words.items[0], words.items[1], &options);
    kn_args_clear(&spec, &options, &words);
    return code;
}
