/* `kinora generate`: prompts to videos. What is asked is laid out in layers (infer/request.h); one video is made here,
 * in a pass (infer/generate.h), many are shared among all who work on them (infer/generate_many.h). */
#include "infer/commands.h"

#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "dist/comm.h"
#include "infer/device.h"
#include "infer/generate.h"
#include "infer/generate_many.h"
#include "infer/output.h"
#include "infer/request_args.h"
#include "infer/request_list.h"
#include "infer/sheet.h"
#include "infer/workers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Options {
    const char *model, *prompts, *template, *variables, *from, *sheet, *mesh, *device;
    KnRequest request; /* what the command line sets */
    int json;
} Options;

#define REQUEST(field) offsetof(Options, request) + offsetof(KnRequest, field)

static const KnArg rows[] = {
    {.name = "model",
     .kind = KN_ARG_STRING,
     .offset = offsetof(Options, model),
     .metavariable = "DIR",
     .meaning = "run folder (averaged weights of its newest checkpoint), checkpoint, or exported model"},
    {.name = "prompt",
     .kind = KN_ARG_STRING,
     .offset = REQUEST(prompt),
     .metavariable = "TEXT",
     .meaning = "what the video shall show"},
    {.name = "out",
     .kind = KN_ARG_STRING,
     .offset = REQUEST(out),
     .metavariable = "FILE",
     .meaning = "video.mp4 (.mov, .mkv), video.gif, image.png, frame-%04d.png, or frames/ for PNGs;\n"
                "with --prompts and --template the folder for the videos"},
    {.name = "prompts",
     .kind = KN_ARG_STRING,
     .offset = offsetof(Options, prompts),
     .metavariable = "FILE.jsonl",
     .meaning = "many videos: one JSON object a line with \"prompt\", \"out\" (relative to --out, else to where the\n"
                "program runs) and any option below by its name, as in {\"prompt\": \"...\", \"out\": \"a.mp4\",\n"
                "\"seed\": 3, \"width\": 64, \"first_frame\": \"a.png\"}; a line has the last word over the options"},
    {.name = "template",
     .kind = KN_ARG_STRING,
     .offset = offsetof(Options, template),
     .metavariable = "TEXT",
     .meaning = "many videos: a prompt with {variables}, filled from each row of --variables; {{ and }} are braces"},
    {.name = "variables",
     .kind = KN_ARG_STRING,
     .offset = offsetof(Options, variables),
     .metavariable = "FILE.csv",
     .meaning =
         "a table whose first line names its columns: variables of the template, options by the names they have\n"
         "in --prompts (seed, negative, out, first_frame ...), and \"name\" for the file's name"},
    {.name = "from",
     .kind = KN_ARG_STRING,
     .offset = offsetof(Options, from),
     .metavariable = "FILE.json",
     .meaning = "make the video again that this file, written beside it, describes; options change what they name"},
    {.name = "negative",
     .kind = KN_ARG_STRING,
     .offset = REQUEST(negative),
     .metavariable = "TEXT",
     .meaning = "what guidance leads away from; nothing by default"},
    KN_SAMPLING_ARGS(offsetof(Options, request)),
    {.name = "fps",
     .kind = KN_ARG_FLOAT,
     .offset = REQUEST(fps),
     .metavariable = "F",
     .meaning = "frames a second; by default the run's sample.fps",
     .low = 0.01,
     .high = 1000},
    {.name = "seed",
     .kind = KN_ARG_INT,
     .offset = REQUEST(seed),
     .metavariable = "N",
     .meaning = "of the noise, 0 by default; of many videos number i has seed N + i where its line names none",
     .low = 0,
     .high = 9007199254740992.0},
    {.name = "first-frame",
     .kind = KN_ARG_STRING,
     .offset = REQUEST(first_frame),
     .metavariable = "IMAGE",
     .meaning = "the video begins with this picture"},
    {.name = "last-frame",
     .kind = KN_ARG_STRING,
     .offset = REQUEST(last_frame),
     .metavariable = "IMAGE",
     .meaning = "the video ends with this picture"},
    {.name = "extend",
     .kind = KN_ARG_STRING,
     .offset = REQUEST(extend),
     .metavariable = "VIDEO",
     .meaning = "the video begins with the last frames of this one"},
    {.name = "extend-frames",
     .kind = KN_ARG_INT,
     .offset = REQUEST(extend_frames),
     .metavariable = "N",
     .meaning = "how many of them, a multiple of the model's patch; by default half of --frames",
     .low = 1,
     .high = 1 << 20},
    {.name = "upscale",
     .kind = KN_ARG_INT,
     .offset = REQUEST(upscale),
     .metavariable = "N",
     .meaning = "show each pixel as N x N, for tiny clips",
     .low = 1,
     .high = 64},
    {.name = "crf",
     .kind = KN_ARG_INT,
     .offset = REQUEST(crf),
     .metavariable = "N",
     .meaning = "H.264 quality from 1 (best) to 51; chosen by size by default",
     .low = 1,
     .high = 51},
    {.name = "full-colour",
     .kind = KN_ARG_FLAG,
     .offset = REQUEST(full_colour),
     .meaning = "H.264 4:4:4: keeps the colour of single pixels, fewer players show it"},
    {.name = "lossless",
     .kind = KN_ARG_FLAG,
     .offset = REQUEST(lossless),
     .meaning = "H.264 with exact pixels, fewer players show it"},
    {.name = "mesh",
     .kind = KN_ARG_STRING,
     .offset = offsetof(Options, mesh),
     .metavariable = "AXIS=N,...",
     .meaning = "how the ranks of one mpirun share a video, as in ulysses=2,cfg=2: ulysses and ring its tokens, cfg\n"
                "guidance's two forwards, tensor each matrix, shard the clips of a pass and the weights (zero=3 cuts\n"
                "the weights with ulysses and ring too); ranks beyond the product make other videos"},
    KN_DEVICE_ARG(offsetof(Options, device)),
    {.name = "sheet",
     .kind = KN_ARG_STRING,
     .offset = offsetof(Options, sheet),
     .metavariable = "FILE.png",
     .meaning = "contact sheet of all videos; of many sheet.png in --out by default"},
    {.name = "json",
     .kind = KN_ARG_FLAG,
     .offset = offsetof(Options, json),
     .meaning = "print one JSON object about what was made, and nothing else"},
};

static const KnArgSpec spec = {
    .command = "generate",
    .usage = "--model DIR --prompt TEXT --out FILE [options]\n"
             "--model DIR --prompts FILE.jsonl [--out DIR] [options]\n"
             "--model DIR --template TEXT --variables FILE.csv --out DIR [options]\n"
             "--from FILE.json [options]",
    .description =
        "Generates videos. Beside each one, NAME.json keeps prompt, seed, all settings and the model's hash:\n"
        "--from makes the same bytes of it, as long as the model there is the same; name another with\n"
        "--model to see what it makes of the same request.\n\n"
        "Many videos may be made by several ranks, or by any number of processes that run the same command on a\n"
        "shared folder: whoever is free takes the next. Videos that stand as asked are skipped, those asked for\n"
        "otherwise are made again, one that cannot be made does not end the rest; report.jsonl in --out says what\n"
        "became of each. The bytes of a video do not depend on how many make them.\n\n"
        "With --mesh, ranks make each video together: one long one on all of them, or many on groups of them.\n"
        "Another mesh may change a pixel by one, and so may another device in f32; bf16 rounds more.",
    .examples =
        "kinora generate --model runs/first --prompt \"a red circle moves left on a gray background\" --out a.mp4\n"
        "kinora generate --model runs/first --prompt \"...\" --size 64x32 --frames 16 --upscale 8 --out a.gif\n"
        "kinora generate --model runs/first --prompts prompts.jsonl --out videos\n"
        "mpirun --bind-to none -n 2 kinora generate --model runs/first --prompts prompts.jsonl --out videos\n"
        "mpirun --bind-to none -n 4 kinora generate --model runs/first --mesh ulysses=2,cfg=2 --prompt \"...\" --out "
        "a.mp4\n"
        "mpirun --bind-to none -n 8 kinora generate --model runs/first --device cuda --prompts prompts.jsonl --out "
        "videos\n"
        "kinora generate --model runs/first --template \"a {color} car in {city}\" --variables cars.csv --out cars\n"
        "kinora generate --from a.json --seed 4 --out b.mp4",
    .args = rows,
    .arg_count = sizeof rows / sizeof rows[0],
};

/* Everything of one run of the command. */
typedef struct Run {
    const Options *options;
    KnArena *arena;
    KnWorkers workers;
    KnModelFile file;
    KnRequest *requests;
    int count;
    const char *sheet_path;
    KnContactSheet *sheet; /* of one video, as it is made */
    KnManyResult result;   /* of many */
} Run;

/* ---- what is asked ---- */

static int is_many(const Options *o)
{
    return o->prompts || o->template;
}

static int check_options(const Options *o)
{
    int asked = (o->request.prompt && !o->from) + (o->prompts != NULL) + (o->template != NULL) + (o->from != NULL);
    if (asked == 0)
        return kn_fail(KN_EINPUT, "nothing to generate: give --prompt TEXT, --prompts FILE.jsonl, --template TEXT or "
                                  "--from FILE.json");
    if (asked > 1)
        return kn_fail(KN_EINPUT, "--prompt, --prompts, --template and --from exclude each other: give one of them");
    if (!o->template != !o->variables)
        return kn_fail(KN_EINPUT, "--template TEXT and --variables FILE.csv go together: give both");
    if (!o->model && !o->from)
        return kn_fail(KN_EINPUT, "--model is missing: name a run folder, a checkpoint or an exported model");
    return KN_OK;
}

/* The model that is asked for, or the one that made the video. */
static int open_model(Run *run, const KnOutputOrigin *origin)
{
    const char *path = run->options->model ? run->options->model : origin->model;
    int code = kn_workers_open_model(&run->workers, path, run->options->device, &run->file);
    if (code < 0)
        return run->options->model ? code : kn_fail_prefix(code, "%s names its model", run->options->from);
    if (!origin->model || !strcmp(origin->model_hash, run->file.hash))
        return KN_OK;
    if (!run->options->model)
        return kn_fail(KN_EINPUT,
                       "%s was made by a model with the hash %.12s..., but %s now has %.12s...: name the right one, "
                       "or a new one on purpose, with --model",
                       run->options->from, origin->model_hash, path, run->file.hash);
    kn_warn("this is another model (hash %.12s...) than %s names (%.12s...): the video will differ", run->file.hash,
            run->options->from, origin->model_hash);
    return KN_OK;
}

static void warn_of_change(const Run *run, const KnOutputOrigin *origin)
{
    const char *here = kn_output_maker(run->workers.backend);
    if (strcmp(origin->program, "kinora " KINORA_VERSION))
        kn_warn("%s was written by %s, this is kinora " KINORA_VERSION ": the video may differ in its last bits",
                run->options->from, origin->program);
    if (strcmp(origin->instructions, here))
        kn_warn("%s was made with %s, what computes here is %s: the video may differ in its last bits",
                run->options->from, origin->instructions, here);
}

static void take_single(Run *run, const KnRequest *request)
{
    run->requests = kn_alloc(sizeof *run->requests);
    run->requests[0] = *request;
    run->count = 1;
}

static int lay_out_requests(Run *run, const KnRequest *described)
{
    const Options *o = run->options;
    KnRequest base;
    KN_TRY(kn_generate_defaults(&run->file, &base, run->arena));
    kn_request_overlay(&base, described);
    kn_request_overlay(&base, &o->request);
    KnRequestSource source = {o->prompts ? o->prompts : o->variables, o->request.out, &base, run->arena};
    if (o->prompts)
        return kn_request_read_lines(&source, &run->requests, &run->count);
    if (o->template)
        return kn_request_read_table(&source, o->template, &run->requests, &run->count);
    take_single(run, &base);
    return KN_OK;
}

/* Where many videos go: the report, and the contact sheet where nothing else is said. */
static char *folder_of_many(const Run *run)
{
    return run->options->request.out ? kn_strdup(run->options->request.out) : kn_path_folder(run->requests[0].out);
}

/* Both would be written, one over the other. */
static int check_sheet(const Run *run)
{
    char *sheet = kn_path_absolute(run->sheet_path);
    int code = KN_OK;
    for (int i = 0; i < run->count && code == KN_OK && run->requests[i].out; i++) {
        char *out = kn_path_absolute(run->requests[i].out);
        if (!strcmp(out, sheet))
            code = kn_fail(KN_EINPUT, "%s is both video %d of %d and the contact sheet: name another file with --sheet",
                           run->requests[i].out, i + 1, run->count);
        free(out);
    }
    free(sheet);
    return code;
}

static int choose_sheet(Run *run)
{
    run->sheet_path = run->options->sheet;
    if (!run->sheet_path && is_many(run->options)) {
        char *folder = folder_of_many(run), *path = kn_path_join(folder, "sheet.png");
        run->sheet_path = kn_arena_strdup(run->arena, path);
        free(folder);
        free(path);
    }
    if (run->sheet_path && !is_many(run->options))
        run->sheet = kn_contact_sheet_create(run->count);
    return run->sheet_path ? check_sheet(run) : KN_OK;
}

/* ---- making it ---- */

static int take_clip(void *context, int index, int place, const uint8_t *pixels)
{
    Run *run = context;
    const KnRequest *request = &run->requests[index];
    (void)place;
    if (run->workers.world->rank > 0)
        return KN_OK;
    if (run->sheet)
        kn_contact_sheet_set(run->sheet, index, request, pixels, request->prompt, 0);
    return kn_output_write(request, &run->file, run->workers.backend, pixels);
}

static int make_one(Run *run)
{
    KnGenerateJob job = {.backend = run->workers.backend,
                         .model = &run->file.model,
                         .weights = &run->file.weights,
                         .layout = kn_workers_layout(&run->workers),
                         .requests = run->requests,
                         .count = run->count,
                         .arena = run->arena,
                         .silent = run->options->json,
                         .take = take_clip,
                         .context = run};
    KN_TRY(kn_generate_check(&job));
    KN_TRY(kn_output_check(&run->requests[0]));
    KN_TRY(run->sheet ? kn_contact_sheet_check(run->sheet_path) : KN_OK);
    KN_TRY(kn_generate(&job));
    if (!run->sheet || run->workers.world->rank > 0)
        return KN_OK;
    char *subtitle = kn_format("%s, hash %.12s", run->file.path, run->file.hash);
    int code = kn_contact_sheet_write(run->sheet, run->sheet_path, "Generated by kinora " KINORA_VERSION, subtitle);
    free(subtitle);
    return code;
}

static int make_many(Run *run)
{
    char *folder = folder_of_many(run);
    int code = kn_generate_many(&(KnManyOptions){.file = &run->file,
                                                 .requests = run->requests,
                                                 .count = run->count,
                                                 .arena = run->arena,
                                                 .folder = folder,
                                                 .sheet = run->sheet_path,
                                                 .silent = run->options->json},
                                &run->workers, &run->result);
    free(folder);
    return code;
}

/* ---- telling ---- */

/* NULL where no video is there to be drawn. */
static const char *drawn_sheet(const Run *run)
{
    int none = is_many(run->options) && run->result.made + run->result.skipped == 0;
    return none ? NULL : run->sheet_path;
}

static void print_json(const Run *run, double seconds)
{
    json_t *videos = json_array(), *root = json_object();
    for (int i = 0; i < run->count; i++) {
        json_t *video = json_object();
        char *json = kn_output_json_path(run->requests[i].out);
        kn_request_to_json(&run->requests[i], video);
        if (run->result.statuses)
            json_object_set_new(video, "status", json_string(kn_report_status_name(run->result.statuses[i])));
        json_object_set_new(video, "json", json_string(json));
        json_array_append_new(videos, video);
        free(json);
    }
    json_object_set_new(root, "model", json_string(run->file.path));
    json_object_set_new(root, "model_hash", json_string(run->file.hash));
    json_object_set_new(root, "seconds", json_real(seconds));
    json_object_set_new(root, "videos", videos);
    if (drawn_sheet(run))
        json_object_set_new(root, "sheet", json_string(run->sheet_path));
    char *text = json_dumps(root, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    json_decref(root);
    KN_ASSERT(text);
    printf("%s\n", text);
    free(text);
}

static void print_names(const Run *run)
{
    for (int i = 0; i < run->count; i++)
        if (!run->result.statuses || run->result.statuses[i] != KN_REPORT_FAILED)
            printf("%s\n", run->requests[i].out);
    if (drawn_sheet(run))
        printf("%s\n", run->sheet_path);
}

/* One video is made by one group; more would make it again. */
static int form_groups(Run *run, KnComm *comm)
{
    KN_TRY(kn_workers_create(&run->workers, run->options->mesh, 0, comm));
    int groups = run->workers.groups, size = comm->ranks / groups;
    if (groups == 1 || is_many(run->options))
        return KN_OK;
    return kn_fail(KN_EINPUT,
                   "%d ranks are %d groups of %d, but there is one video: share it among all ranks, as with --mesh "
                   "ulysses=%d, start %d, or give many videos with --prompts or --template",
                   comm->ranks, groups, size, comm->ranks, size);
}

static int generate(Run *run, KnComm *comm)
{
    const Options *o = run->options;
    KnRequest described;
    KnOutputOrigin origin = {0};
    double start = kn_seconds_now();
    KN_TRY(form_groups(run, comm));
    kn_request_init(&described);
    if (o->from)
        KN_TRY(kn_output_read(o->from, &described, &origin, run->arena));
    KN_TRY(open_model(run, &origin));
    if (o->from)
        warn_of_change(run, &origin);
    KN_TRY(lay_out_requests(run, &described));
    KN_TRY(choose_sheet(run));
    KN_TRY(is_many(o) ? make_many(run) : make_one(run));
    if (comm->rank > 0)
        return KN_OK;
    if (o->json)
        print_json(run, kn_seconds_now() - start);
    else
        print_names(run);
    return KN_OK;
}

/* That some requests failed is no reason to break the other ranks off: all end, and the first says so. */
static int generate_and_close(Run *run, KnComm *comm)
{
    int rank = comm->rank, code = generate(run, comm);
    if (code == KN_OK)
        kn_workers_destroy(&run->workers, &run->file);
    KN_TRY(kn_comm_close(comm, code));
    if (run->result.failed == 0 || rank > 0)
        return KN_OK;
    return kn_fail(KN_EIO, "%d of %d videos could not be made: %s says why; the same command tries them again",
                   run->result.failed, run->count, run->result.report);
}

static void release(Run *run)
{
    kn_contact_sheet_destroy(run->sheet);
    free(run->result.statuses);
    free(run->result.report);
    free(run->requests);
    kn_workers_destroy(&run->workers, &run->file);
    kn_arena_destroy(run->arena);
}

int kn_command_generate(int argc, char **argv)
{
    Options options = {0};
    Run run = {.options = &options};
    KnComm *comm = NULL;
    kn_request_init(&options.request);
    KN_TRY(kn_args_parse(&spec, argc, argv, &options, NULL));
    int code = check_options(&options);
    if (code == KN_OK)
        code = kn_comm_open(&comm);
    if (code == KN_OK) {
        if (options.json)
            kn_log_set_quiet(1);
        run.arena = kn_arena_create();
        code = generate_and_close(&run, comm);
        release(&run);
    }
    kn_args_clear(&spec, &options, NULL);
    return code;
}
