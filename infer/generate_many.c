/* The loop of one worker, and what is done once at the end. */
#include "infer/generate_many.h"

#include "core/base/activity.h"
#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/progress.h"
#include "infer/claims.h"
#include "infer/output.h"
#include "infer/sheet.h"

#include <stdlib.h>
#include <string.h>

typedef struct Worker {
    const KnManyOptions *options;
    const KnWorkers *workers;
    KnGenerateJob job;
    KnClaims *claims; /* of a group's first rank alone */
    KnSampler *sampler;
    int64_t *work; /* [count] */
    /* the pass that is being made */
    int *indices;
    int count;
    int64_t pass_work;
    double began;
    /* progress */
    KnProgress progress;
    double looked; /* when the report was last read for it */
} Worker;

static int is_first(const Worker *w)
{
    return kn_workers_rank(w->workers) == 0;
}

/* ---- progress of the whole job ---- */

/* `mine` is what this worker has done of its pass. */
static void show_progress(Worker *w, int64_t mine)
{
    int64_t total = 0, done = 0;
    if (w->options->silent || !kn_log_is_shown() || !is_first(w))
        return;
    const KnReport *report = kn_claims_report(w->claims);
    for (int i = 0; i < w->options->count; i++) {
        KnReportStatus status = kn_report_status(report, i);
        total += status == KN_REPORT_SKIPPED ? 0 : w->work[i];
        done += status == KN_REPORT_MADE || status == KN_REPORT_FAILED ? w->work[i] : 0;
    }
    kn_progress_set_total(&w->progress, total);
    kn_progress_update(&w->progress, done + mine < total ? done + mine : total, "%d of %d videos",
                       w->options->count - kn_report_count(report, KN_REPORT_OPEN), w->options->count);
}

/* During a pass. That others' lines cannot be read is told by the next who must read them. */
static void show_pass(void *context, int64_t done, int64_t total)
{
    Worker *w = context;
    int64_t work = 0;
    if (!is_first(w))
        return;
    if (kn_seconds_now() - w->looked > 1) {
        kn_claims_read(w->claims);
        w->looked = kn_seconds_now();
    }
    for (int i = 0; i < w->count; i++)
        if (kn_report_status(kn_claims_report(w->claims), w->indices[i]) == KN_REPORT_OPEN)
            work += w->work[w->indices[i]];
    show_progress(w, (int64_t)((double)work * (double)done / (double)total));
}

/* ---- one pass ---- */

/* A clip's part of the time since its pass began. */
static double seconds_of(const Worker *w, int index)
{
    return (kn_seconds_now() - w->began) * (double)w->work[index] / (double)w->pass_work;
}

static int take_clip(void *context, int index, int place, const uint8_t *pixels)
{
    const Worker *w = context;
    int ranks = w->workers->comm ? w->workers->comm->ranks : 1;
    return place % ranks == kn_workers_rank(w->workers)
               ? kn_output_write(&w->options->requests[index], w->options->file, w->workers->backend, pixels)
               : KN_OK;
}

static int settle_made(void *context, int index)
{
    Worker *w = context;
    return is_first(w) ? kn_claims_settle(w->claims, index, KN_REPORT_MADE, NULL, seconds_of(w, index)) : KN_OK;
}

static int fail_clip(void *context, int index, int code)
{
    Worker *w = context;
    (void)code;
    if (!is_first(w))
        return KN_OK;
    char *sentence = kn_strdup(kn_error_message());
    kn_warn("%s cannot be made: %s", w->options->requests[index].out, sentence);
    int settled = kn_claims_settle(w->claims, index, KN_REPORT_FAILED, sentence, seconds_of(w, index));
    free(sentence);
    return settled;
}

/* Before anything is denoised: leaves out what cannot be written. */
static int check_outputs(Worker *w)
{
    int kept = 0;
    for (int i = 0; i < w->count; i++) {
        int index = w->indices[i], code = kn_output_check(&w->options->requests[index]);
        if (code == KN_OK)
            w->indices[kept++] = index;
        else
            KN_TRY(fail_clip(w, index, code));
    }
    w->count = kept;
    return KN_OK;
}

/* The next pass, if there is anything free: KN_END when every request is settled. */
static int claim_pass(Worker *w)
{
    int code = kn_claims_next(w->claims, w->indices, &w->count);
    w->began = kn_seconds_now();
    w->pass_work = 0;
    for (int i = 0; code == KN_OK && i < w->count; i++)
        w->pass_work += w->work[w->indices[i]];
    return code == KN_OK ? check_outputs(w) : code;
}

/* The first rank tells the others of its group what it has claimed, so often that they do not take it for stuck. */
static int next_pass(Worker *w)
{
    KnComm *comm = w->workers->comm;
    int32_t word[2] = {0}; /* KN_OK or KN_END; how many */
    if (is_first(w)) {
        int code = claim_pass(w);
        if (code != KN_OK && code != KN_END)
            return code;
        word[0] = code;
        word[1] = code == KN_OK ? w->count : 0;
    }
    if (comm)
        KN_TRY(comm->table->broadcast(comm, word, sizeof word, 0, "number of claimed videos"));
    w->count = word[1];
    if (comm && w->count > 0)
        KN_TRY(comm->table->broadcast(comm, w->indices, (size_t)w->count * sizeof *w->indices, 0, "claimed videos"));
    return word[0];
}

static int make_pass(Worker *w)
{
    kn_activity_set("making %s and %d others", w->options->requests[w->indices[0]].out, w->count - 1);
    return kn_generate_pass(&w->job, w->sampler, w->indices, w->count, show_pass, w);
}

static int work(Worker *w)
{
    int code;
    while ((code = next_pass(w)) == KN_OK) {
        if (w->count > 0)
            KN_TRY(make_pass(w));
        kn_activity_set("looking for videos to make");
        show_progress(w, 0);
    }
    show_progress(w, 0);
    return code == KN_END ? KN_OK : code;
}

/* ---- once, at the end ---- */

static int draw_sheet(const Worker *w)
{
    const KnManyOptions *o = w->options;
    KnContactSheet *sheet = kn_contact_sheet_create(o->count);
    for (int i = 0; i < o->count; i++) {
        KnReportStatus status = kn_report_status(kn_claims_report(w->claims), i);
        if ((status == KN_REPORT_MADE || status == KN_REPORT_SKIPPED) &&
            kn_contact_sheet_read(sheet, i, &o->requests[i]) < 0)
            kn_warn("%s is not on the contact sheet: %s", o->requests[i].out, kn_error_message());
    }
    char *subtitle = kn_format("%s, hash %.12s", o->file->path, o->file->hash);
    int code = kn_contact_sheet_write(sheet, o->sheet, "Generated by kinora " KINORA_VERSION, subtitle);
    free(subtitle);
    kn_contact_sheet_destroy(sheet);
    return code;
}

static int finish(const Worker *w, const KnManyResult *result)
{
    kn_log("%d videos in %s: %d made, %d skipped, %d failed; %s says more", w->options->count, w->options->folder,
           result->made, result->skipped, result->failed, result->report);
    return w->options->sheet && result->made + result->skipped > 0 ? draw_sheet(w) : KN_OK;
}

static void fill_result(const Worker *w, KnManyResult *result)
{
    const KnReport *report = kn_claims_report(w->claims);
    result->statuses = kn_alloc((size_t)w->options->count * sizeof *result->statuses);
    for (int i = 0; i < w->options->count; i++)
        result->statuses[i] = kn_report_status(report, i);
    result->made = kn_report_count(report, KN_REPORT_MADE);
    result->skipped = kn_report_count(report, KN_REPORT_SKIPPED);
    result->failed = kn_report_count(report, KN_REPORT_FAILED);
    result->report = kn_strdup(kn_report_path(report));
}

/* Rank 0 goes last, so that what is said at the end is said by the rank that speaks. */
static int leave(Worker *w, KnManyResult *result)
{
    KnComm *world = w->workers->world;
    int last = 0;
    if (world->rank > 0 && is_first(w))
        KN_TRY(kn_claims_leave(w->claims, &last));
    KN_TRY(world->table->barrier(world, "all videos are settled"));
    if (!is_first(w))
        return KN_OK;
    if (world->rank == 0)
        KN_TRY(kn_claims_leave(w->claims, &last));
    fill_result(w, result);
    return last ? finish(w, result) : KN_OK;
}

/* ---- all of it ---- */

static int run(Worker *w, KnManyResult *result)
{
    const KnManyOptions *o = w->options;
    KnComm *world = w->workers->world;
    KN_TRY(kn_generate_check_requests(&w->job));
    KN_TRY(o->sheet ? kn_contact_sheet_check(o->sheet) : KN_OK);
    if (is_first(w))
        KN_TRY(kn_claims_join(&w->claims, o->folder, o->file, &w->job, world->rank));
    KN_TRY(world->table->barrier(world, "all are at work")); /* so that the first does not take another's share */
    KN_TRY(kn_sampler_create(&w->sampler, w->job.model, w->job.weights, w->job.layout, w->job.backend));
    for (int i = 0; i < o->count; i++)
        w->work[i] = kn_generate_cost(&w->job, i).work;
    kn_progress_begin(&w->progress, &(KnProgressOptions){.label = "generate", .unit = "token-steps", .interval = 2});
    KN_TRY(work(w));
    if (!o->silent)
        kn_progress_end(&w->progress, NULL);
    return leave(w, result);
}

int kn_generate_many(const KnManyOptions *options, const KnWorkers *workers, KnManyResult *result)
{
    Worker w = {.options = options,
                .workers = workers,
                .job = {.backend = workers->backend,
                        .model = &options->file->model,
                        .weights = &options->file->weights,
                        .layout = kn_workers_layout(workers),
                        .requests = options->requests,
                        .count = options->count,
                        .arena = options->arena,
                        .take = take_clip,
                        .made = settle_made,
                        .fail = fail_clip},
                .work = kn_alloc((size_t)options->count * sizeof(int64_t)),
                .indices = kn_alloc((size_t)options->count * sizeof(int))};
    w.job.context = &w;
    *result = (KnManyResult){0};
    int code = run(&w, result);
    kn_sampler_destroy(w.sampler);
    kn_claims_destroy(w.claims);
    free(w.work);
    free(w.indices);
    return code;
}
