/* `kinora eval`: generates clips for a world's captions and measures, from their pixels alone, how many show what was
 * asked. The captions are all combinations of the chosen split in a shuffled order that is always the same, gone
 * through again with other seeds when more clips are asked for. */
#include "infer/commands.h"

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/random.h"
#include "data/world.h"
#include "dist/comm.h"
#include "infer/device.h"
#include "infer/evaluation.h"
#include "infer/generate.h"
#include "infer/request_args.h"
#include "infer/sheet.h"
#include "infer/workers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Options {
    const char *model, *world, *sheet, *mesh, *device;
    int64_t count;
    int held_out, trained, json;
    KnRequest request;
} Options;

static const KnArg rows[] = {
    {.name = "model",
     .kind = KN_ARG_STRING,
     .offset = offsetof(Options, model),
     .metavariable = "DIR",
     .meaning = "run folder (averaged weights of its newest checkpoint), checkpoint, or exported model",
     .required = 1},
    {.name = "world",
     .kind = KN_ARG_STRING,
     .offset = offsetof(Options, world),
     .metavariable = "NAME",
     .fallback = "moving-shapes",
     .meaning = "the world that the captions are of, see `kinora synth --help`"},
    {.name = "count",
     .kind = KN_ARG_INT,
     .offset = offsetof(Options, count),
     .metavariable = "N",
     .fallback = "96",
     .meaning = "clips to generate",
     .low = 1,
     .high = 1e6},
    {.name = "held-out",
     .kind = KN_ARG_FLAG,
     .offset = offsetof(Options, held_out),
     .meaning = "captions that training never saw; this is the default"},
    {.name = "trained",
     .kind = KN_ARG_FLAG,
     .offset = offsetof(Options, trained),
     .meaning = "captions that training saw instead"},
    {.name = "seed",
     .kind = KN_ARG_INT,
     .offset = offsetof(Options, request) + offsetof(KnRequest, seed),
     .metavariable = "N",
     .fallback = "0",
     .meaning = "clip i has the noise of seed N + i",
     .low = 0,
     .high = 9e15},
    KN_SAMPLING_ARGS(offsetof(Options, request)),
    {.name = "mesh",
     .kind = KN_ARG_STRING,
     .offset = offsetof(Options, mesh),
     .metavariable = "AXIS=N,...",
     .meaning =
         "how the ranks of one mpirun share the work, as in `kinora generate --help`; all clips among all ranks\n"
         "by default"},
    KN_DEVICE_ARG(offsetof(Options, device)),
    {.name = "sheet",
     .kind = KN_ARG_STRING,
     .offset = offsetof(Options, sheet),
     .metavariable = "FILE.png",
     .meaning = "contact sheet: a green dot where all is right, else a red one and what is wrong"},
    {.name = "json",
     .kind = KN_ARG_FLAG,
     .offset = offsetof(Options, json),
     .meaning = "print one JSON object with the counts and every clip's verdict"},
};

static const KnArgSpec spec = {
    .command = "eval",
    .usage = "--model DIR [--world moving-shapes] [--count N] [options]",
    .description = "Generates clips for captions of a world with ground truth and measures colour, shape, motion and\n"
                   "\"clean\" (one compact object on a steady background) from the pixels alone.",
    .examples = "kinora eval --model runs/first --world moving-shapes --count 96 --sheet eval.png\n"
                "kinora eval --model runs/first --trained --steps 50 --solver unipc --json\n"
                "mpirun --bind-to none -n 4 kinora eval --model runs/first --mesh cfg=2",
    .args = rows,
    .arg_count = sizeof rows / sizeof rows[0],
};

typedef struct Verdict {
    KnWorldMatch match;
    KnMeasured measured;
} Verdict;

typedef struct Run {
    const Options *options;
    const KnWorld *world;
    KnArena *arena;
    KnWorkers workers; /* all ranks */
    KnModelFile file;
    KnRequest *requests; /* [count] */
    Verdict *verdicts;   /* [count] */
    KnContactSheet *sheet;
} Run;

/* ---- what is asked ---- */

static void lay_out_requests(Run *run, const KnRequest *base)
{
    int64_t count = run->options->count;
    KnWorldSplit split = run->options->trained ? KN_WORLD_TRAIN : KN_WORLD_HELD_OUT;
    int all = kn_world_combinations(run->world, split, NULL);
    KnWorldFacts *facts = kn_arena_alloc(run->arena, (size_t)all * sizeof *facts);
    int64_t *order = kn_arena_alloc(run->arena, (size_t)all * sizeof *order);
    kn_world_combinations(run->world, split, facts);
    run->requests = kn_arena_alloc(run->arena, (size_t)count * sizeof *run->requests);
    run->verdicts = kn_arena_alloc(run->arena, (size_t)count * sizeof *run->verdicts);
    for (int64_t i = 0; i < count; i++) {
        char *caption = kn_arena_alloc(run->arena, KN_WORLD_CAPTION_BYTES);
        if (i % all == 0)
            kn_random_permutation(kn_random_key(0, KN_RANDOM_SHUFFLE, (uint64_t)(i / all), 0), order, all);
        kn_world_caption(run->world, &facts[order[i % all]], caption);
        run->requests[i] = *base;
        run->requests[i].prompt = caption;
        run->requests[i].seed = base->seed + i;
    }
}

static int prepare(Run *run, KnComm *comm)
{
    const Options *o = run->options;
    KnRequest base;
    if (o->held_out && o->trained)
        return kn_fail(KN_EINPUT, "--held-out and --trained exclude each other: give one of them");
    if (o->sheet)
        KN_TRY(kn_contact_sheet_check(o->sheet));
    KN_TRY(kn_world_find(o->world, &run->world));
    KN_TRY(kn_workers_create(&run->workers, o->mesh, 1, comm));
    KN_TRY(kn_workers_open_model(&run->workers, o->model, o->device, &run->file));
    KN_TRY(kn_generate_defaults(&run->file, &base, run->arena));
    kn_request_overlay(&base, &o->request);
    KN_TRY(kn_world_check_geometry(run->world, (int)base.frames, (int)base.size.height, (int)base.size.width));
    lay_out_requests(run, &base);
    if (o->sheet)
        run->sheet = kn_contact_sheet_create((int)o->count);
    return KN_OK;
}

/* ---- measuring ---- */

static void show_clip(const Run *run, int index, const uint8_t *pixels)
{
    const Verdict *v = &run->verdicts[index];
    KnText caption = {0};
    int right = kn_score_is_right(KN_SCORE_ALL, &v->match, &v->measured);
    kn_text_append(&caption, run->requests[index].prompt);
    for (int kind = 0, wrong = 0; kind < KN_SCORE_CLEAN; kind++)
        if (!kn_score_is_right((KnScoreKind)kind, &v->match, &v->measured))
            kn_text_appendf(&caption, "%s%s", wrong++ ? ", " : ": wrong ", kn_score_name((KnScoreKind)kind));
    if (!v->measured.clean)
        kn_text_appendf(&caption, "; %s", v->measured.fault);
    kn_contact_sheet_set(run->sheet, index, &run->requests[index], pixels, caption.bytes, right ? 1 : -1);
    kn_text_clear(&caption);
}

static int take_clip(void *context, int index, int place, const uint8_t *pixels)
{
    Run *run = context;
    (void)place;
    const KnRequest *r = &run->requests[index];
    Verdict *v = &run->verdicts[index];
    kn_world_measure(run->world, pixels, (int)r->frames, (int)r->size.height, (int)r->size.width, &v->measured);
    KN_TRY(kn_world_matches(run->world, r->prompt, &v->measured, &v->match));
    if (run->sheet)
        show_clip(run, index, pixels);
    return KN_OK;
}

/* ---- telling ---- */

static void print_json(const Run *run, const KnEvaluation *evaluation)
{
    const Options *o = run->options;
    json_t *root = json_object(), *settings = json_object(), *clips = json_array(), *path = json_string(run->file.path);
    KnRequest common = run->requests[0];
    common.prompt = NULL;
    kn_request_to_json(&common, settings);
    for (int64_t i = 0; i < o->count; i++) {
        const Verdict *v = &run->verdicts[i];
        json_t *clip =
            json_pack("{sssI}", "prompt", run->requests[i].prompt, "seed", (json_int_t)run->requests[i].seed);
        for (int kind = 0; kind < KN_SCORE_ALL; kind++)
            json_object_set_new(clip, kn_score_name((KnScoreKind)kind),
                                json_boolean(kn_score_is_right((KnScoreKind)kind, &v->match, &v->measured)));
        if (v->measured.fault)
            json_object_set_new(clip, "fault", json_string(v->measured.fault));
        json_array_append_new(clips, clip);
    }
    json_object_set_new(root, "model", path ? path : json_null());
    json_object_set_new(root, "model_hash", json_string(run->file.hash));
    json_object_set_new(root, "world", json_string(kn_world_name(run->world)));
    json_object_set_new(root, "captions", json_string(o->trained ? "trained" : "held out"));
    json_object_set_new(root, "count", json_integer(o->count));
    json_object_update_new(root, kn_evaluation_json(evaluation));
    json_object_set_new(root, "settings", settings);
    json_object_set_new(root, "clips", clips);
    char *text = json_dumps(root, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(9));
    json_decref(root);
    KN_ASSERT(text);
    printf("%s\n", text);
    free(text);
}

static void print_text(const Run *run, const KnEvaluation *evaluation)
{
    const Options *o = run->options;
    const KnRequest *r = &run->requests[0];
    char *table = kn_evaluation_text(evaluation);
    printf("%s: %lld clips of %s captions of %s (%s, %lld steps, guidance %g, shift %g)\n%s", run->file.path,
           (long long)o->count, o->trained ? "trained" : "held-out", kn_world_name(run->world), r->solver,
           (long long)r->steps, r->guidance, r->shift, table);
    if (o->sheet)
        printf("%s\n", o->sheet);
    free(table);
}

static int write_sheet(const Run *run, const KnEvaluation *evaluation)
{
    char *title = kn_format("%s: %d of %d captions all right", kn_world_name(run->world),
                            evaluation->right[KN_SCORE_ALL], evaluation->count);
    char *subtitle = kn_format("%s captions, %s", run->options->trained ? "trained" : "held-out", run->file.path);
    int code = kn_contact_sheet_write(run->sheet, run->options->sheet, title, subtitle);
    free(title);
    free(subtitle);
    return code;
}

static int evaluate(Run *run, KnComm *comm)
{
    const Options *o = run->options;
    KnEvaluation evaluation = {0};
    KN_TRY(prepare(run, comm));
    KnGenerateJob job = {.backend = run->workers.backend,
                         .model = &run->file.model,
                         .weights = &run->file.weights,
                         .layout = kn_workers_layout(&run->workers),
                         .requests = run->requests,
                         .count = (int)o->count,
                         .arena = run->arena,
                         .silent = o->json,
                         .take = take_clip,
                         .context = run};
    KN_TRY(kn_generate_check(&job));
    KN_TRY(kn_generate(&job));
    if (comm->rank > 0)
        return KN_OK;
    for (int64_t i = 0; i < o->count; i++)
        kn_evaluation_add(&evaluation, &run->verdicts[i].match, &run->verdicts[i].measured);
    if (run->sheet)
        KN_TRY(write_sheet(run, &evaluation));
    if (o->json)
        print_json(run, &evaluation);
    else
        print_text(run, &evaluation);
    return KN_OK;
}

int kn_command_eval(int argc, char **argv)
{
    Options options = {0};
    Run run = {.options = &options};
    KnComm *comm = NULL;
    kn_request_init(&options.request);
    KN_TRY(kn_args_parse(&spec, argc, argv, &options, NULL));
    int code = kn_comm_open(&comm);
    if (code == KN_OK) {
        if (options.json)
            kn_log_set_quiet(1);
        run.arena = kn_arena_create();
        code = evaluate(&run, comm);
        if (code == KN_OK)
            kn_workers_destroy(&run.workers, &run.file);
        code = kn_comm_close(comm, code);
        kn_contact_sheet_destroy(run.sheet);
        kn_workers_destroy(&run.workers, &run.file);
        kn_arena_destroy(run.arena);
    }
    kn_args_clear(&spec, &options, NULL);
    return code;
}
