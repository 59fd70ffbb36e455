/* Filling passes with requests, and making them. */
#include "infer/generate.h"

#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/progress.h"
#include "dist/comm.h"
#include "infer/conditions.h"
#include "infer/solver.h"

#include <stdlib.h>
#include <string.h>

int kn_generate_defaults(const KnModelFile *file, KnRequest *request, KnArena *arena)
{
    KnConfig config;
    if (!file->config_yaml) {
        kn_request_defaults(request, NULL, arena);
        return KN_OK;
    }
    kn_config_init(&config);
    int code = kn_model_file_config(file, &config);
    if (code == KN_OK)
        kn_request_defaults(request, &config, arena);
    kn_config_clear(&config);
    return code;
}

/* ---- checking ---- */

static int evaluations_of(const KnRequest *r, int *evaluations)
{
    KnSolver *solver = NULL;
    KN_TRY(kn_solver_create(
        &solver,
        &(KnSolverOptions){.solver = r->solver, .spacing = r->spacing, .steps = (int)r->steps, .shift = r->shift}, 1));
    *evaluations = kn_solver_evaluations(solver);
    kn_solver_destroy(solver);
    return KN_OK;
}

/* An image is the first frame of one frame of patches. */
static int64_t frames_of(const KnGenerateJob *job, const KnRequest *r)
{
    return r->frames == 1 ? job->model->config.patch[0] : r->frames;
}

static KnSampleClip clip_of(const KnGenerateJob *job, const KnRequest *r)
{
    return (KnSampleClip){.prompt = r->prompt,
                          .negative = r->negative,
                          .frames = frames_of(job, r),
                          .height = r->size.height,
                          .width = r->size.width,
                          .seed = (uint64_t)r->seed};
}

static int64_t tokens_of(const KnGenerateJob *job, int index)
{
    const KnRequest *r = &job->requests[index];
    return kn_sample_tokens(&job->model->config, frames_of(job, r), r->size.height, r->size.width);
}

static int64_t pass_tokens_of(const KnGenerateJob *job, int index)
{
    return tokens_of(job, index) * (job->requests[index].guidance == 1 ? 1 : 2);
}

static int check_request(const KnGenerateJob *job, int index)
{
    KnRequest *r = &job->requests[index];
    int evaluations;
    int64_t tokens;
    KN_TRY(kn_request_check(r));
    KN_TRY(evaluations_of(r, &evaluations));
    tokens = tokens_of(job, index);
    return tokens < 0 ? (int)tokens : KN_OK;
}

static int check_pictures(const KnGenerateJob *job, int index)
{
    KnSampleClip clip = clip_of(job, &job->requests[index]);
    KN_TRY(kn_conditions_load(&job->model->config, &job->requests[index], job->arena, &clip));
    kn_conditions_clear(&clip);
    return KN_OK;
}

static int check_each(const KnGenerateJob *job, int (*check)(const KnGenerateJob *job, int index))
{
    for (int i = 0; i < job->count; i++) {
        int code = check(job, i);
        if (code < 0)
            return job->count > 1 && job->requests[i].out ? kn_fail_prefix(code, "%s", job->requests[i].out) : code;
    }
    return KN_OK;
}

int kn_generate_check_requests(const KnGenerateJob *job)
{
    if (job->model->config.channels != 3)
        return kn_fail(KN_EINPUT,
                       "the model works on %lld channels, which are not pixels: latents cannot be turned into videos "
                       "yet",
                       (long long)job->model->config.channels);
    return check_each(job, check_request);
}

int kn_generate_check(const KnGenerateJob *job)
{
    KN_TRY(kn_generate_check_requests(job));
    return check_each(job, check_pictures);
}

KnRequestCost kn_generate_cost(const KnGenerateJob *job, int index)
{
    KnRequestCost cost = {.tokens = tokens_of(job, index), .pass_tokens = pass_tokens_of(job, index)};
    int evaluations = 0;
    KN_ASSERT(cost.tokens > 0 && evaluations_of(&job->requests[index], &evaluations) == KN_OK);
    cost.work = cost.pass_tokens * evaluations;
    return cost;
}

/* ---- one pass ---- */

static int same_settings(const KnRequest *a, const KnRequest *b)
{
    return !strcmp(a->solver, b->solver) && !strcmp(a->spacing, b->spacing) && !strcmp(a->dtype, b->dtype) &&
           a->steps == b->steps && a->guidance == b->guidance && a->shift == b->shift;
}

static int64_t most_pass_tokens(const KnGenerateJob *job)
{
    return KN_SAMPLE_PASS_TOKENS * (job->layout ? kn_mesh_replicas(&job->layout->mesh) : 1);
}

int kn_pass_has_room(const KnGenerateJob *job, const KnPassRoom *room, int index)
{
    if (!room->first)
        return 1;
    return same_settings(room->first, &job->requests[index]) && room->taken < room->enough &&
           room->taken + pass_tokens_of(job, index) <= most_pass_tokens(job);
}

void kn_pass_take(const KnGenerateJob *job, KnPassRoom *room, int index)
{
    if (!room->first)
        room->first = &job->requests[index];
    room->taken += pass_tokens_of(job, index);
}

/* The clips of one pass; those that cannot be prepared are left out. */
typedef struct Pass {
    const KnGenerateJob *job;
    int *indices;
    KnSampleClip *clips;
    int count;
} Pass;

/* Ranks that have lost each other make nothing more. */
static int goes_on(const KnGenerateJob *job, int code)
{
    return job->fail && code != KN_EPEER;
}

static int fail_request(const KnGenerateJob *job, int index, int code)
{
    return goes_on(job, code) ? job->fail(job->context, index, code) : code;
}

/* One rank's failure is everybody's. */
static int agree(const KnGenerateJob *job, int code)
{
    const KnLayout *layout = job->layout;
    return layout && layout->comms.world ? kn_comm_error_agree(layout->comms.world, code) : code;
}

static void clear_clip(KnSampleClip *clip)
{
    kn_free_large(clip->patches);
    kn_conditions_clear(clip);
}

static int prepare_clip(const KnGenerateJob *job, int index, KnSampleClip *clip)
{
    void *patches = NULL;
    int64_t values = tokens_of(job, index) * kn_model_patch_dim(&job->model->config);
    *clip = clip_of(job, &job->requests[index]);
    KN_TRY(kn_alloc_large(&patches, (size_t)values * sizeof(float), "a clip's patches"));
    clip->patches = patches;
    return kn_conditions_load(&job->model->config, &job->requests[index], job->arena, clip);
}

static int prepare_clips(Pass *pass, const int *indices, int count)
{
    for (int i = 0; i < count; i++) {
        KnSampleClip *clip = &pass->clips[pass->count];
        int code = agree(pass->job, prepare_clip(pass->job, indices[i], clip));
        if (code == KN_OK) {
            pass->indices[pass->count++] = indices[i];
        } else {
            clear_clip(clip);
            KN_TRY(fail_request(pass->job, indices[i], code));
        }
    }
    return KN_OK;
}

static int hand_over_clip(const Pass *pass, int place)
{
    const KnSampleClip *clip = &pass->clips[place];
    void *pixels = NULL;
    KN_TRY(kn_alloc_large(&pixels, (size_t)(clip->frames * clip->height * clip->width * 3), "a clip's pixels"));
    kn_sample_to_pixels(&pass->job->model->config, clip, pixels);
    int code = pass->job->take(pass->job->context, pass->indices[place], place, pixels);
    kn_free_large(pixels);
    return code;
}

/* Of a clip that was taken here with this result. */
static int settle_clip(const Pass *pass, int place, int code, const char *sentence)
{
    const KnGenerateJob *job = pass->job;
    if (code < 0)
        kn_fail(code, "%s", sentence);
    code = agree(job, code);
    if (code < 0)
        return fail_request(job, pass->indices[place], code);
    return job->made ? job->made(job->context, pass->indices[place]) : KN_OK;
}

/* First all take, then all agree, so that no rank waits while another writes. */
static int hand_over(const Pass *pass)
{
    int *codes = kn_alloc((size_t)pass->count * sizeof *codes), code = KN_OK;
    char **sentences = kn_alloc((size_t)pass->count * sizeof *sentences);
    for (int i = 0; i < pass->count; i++) {
        codes[i] = hand_over_clip(pass, i);
        sentences[i] = codes[i] < 0 ? kn_strdup(kn_error_message()) : NULL;
    }
    for (int i = 0; i < pass->count; i++) {
        if (code == KN_OK)
            code = settle_clip(pass, i, codes[i], sentences[i]);
        free(sentences[i]);
    }
    free(sentences);
    free(codes);
    return code;
}

/* What stops a whole pass, as a lack of memory does, may spare each clip alone. */
static int make_each_alone(const Pass *pass, KnSampler *sampler, KnSampleProgress progress, void *context)
{
    for (int i = 0; i < pass->count; i++)
        KN_TRY(kn_generate_pass(pass->job, sampler, &pass->indices[i], 1, progress, context));
    return KN_OK;
}

static int sample(const Pass *pass, KnSampler *sampler, KnSampleProgress progress, void *context)
{
    const KnRequest *r = &pass->job->requests[pass->indices[0]];
    KnSampleSettings settings = {.solver = r->solver,
                                 .spacing = r->spacing,
                                 .steps = (int)r->steps,
                                 .guidance = r->guidance,
                                 .shift = r->shift,
                                 .dtype = kn_request_dtype(r)};
    int code = kn_sampler_run(sampler, &settings, pass->clips, pass->count, progress, context);
    if (code == KN_OK)
        return hand_over(pass);
    if (!goes_on(pass->job, code))
        return code;
    return pass->count > 1 ? make_each_alone(pass, sampler, progress, context)
                           : fail_request(pass->job, pass->indices[0], code);
}

int kn_generate_pass(const KnGenerateJob *job, KnSampler *sampler, const int *indices, int count,
                     KnSampleProgress progress, void *context)
{
    Pass pass = {job, kn_alloc((size_t)count * sizeof(int)), kn_alloc((size_t)count * sizeof(KnSampleClip)), 0};
    int code = prepare_clips(&pass, indices, count);
    if (code == KN_OK && pass.count > 0)
        code = sample(&pass, sampler, progress, context);
    for (int i = 0; i < pass.count; i++)
        clear_clip(&pass.clips[i]);
    free(pass.clips);
    free(pass.indices);
    return code;
}

/* ---- all passes ---- */

/* Where a job stands: its passes in order, each with the first request that is left and those that fit beside it. */
typedef struct Round {
    const KnGenerateJob *job;
    KnProgress *progress;
    uint8_t *taken; /* [job->count] */
    int *indices;
    int count, finished;         /* of this pass; of earlier ones */
    int evaluations, steps_done; /* of this pass; of earlier ones */
} Round;

static int next_pass(Round *round)
{
    KnPassRoom room = {.enough = most_pass_tokens(round->job)};
    round->finished += round->count;
    round->steps_done += round->evaluations;
    round->count = round->evaluations = 0;
    for (int i = 0; i < round->job->count; i++) {
        if (round->taken[i] || !kn_pass_has_room(round->job, &room, i))
            continue;
        kn_pass_take(round->job, &room, i);
        round->taken[i] = 1;
        round->indices[round->count++] = i;
    }
    return round->count == 0 ? KN_END : evaluations_of(room.first, &round->evaluations);
}

static void show(void *context, int64_t done, int64_t total)
{
    const Round *round = context;
    if (round->progress)
        kn_progress_update(round->progress, round->steps_done + done * round->evaluations / total, "videos %d-%d of %d",
                           round->finished + 1, round->finished + round->count, round->job->count);
}

/* With a sampler makes the passes, without one only counts their evaluations. */
static int run_passes(const KnGenerateJob *job, KnSampler *sampler, KnProgress *progress, int64_t *steps)
{
    Round round = {.job = job,
                   .progress = progress,
                   .taken = kn_alloc((size_t)job->count),
                   .indices = kn_alloc((size_t)job->count * sizeof(int))};
    int code;
    while ((code = next_pass(&round)) == KN_OK)
        if (sampler && (code = kn_generate_pass(job, sampler, round.indices, round.count, show, &round)) < 0)
            break;
    *steps = round.steps_done;
    free(round.taken);
    free(round.indices);
    return code == KN_END ? KN_OK : code;
}

int kn_generate(const KnGenerateJob *job)
{
    KnSampler *sampler = NULL;
    KnProgress progress;
    int64_t steps = 0, done;
    KN_TRY(run_passes(job, NULL, NULL, &steps));
    KN_TRY(kn_sampler_create(&sampler, job->model, job->weights, job->layout, job->backend));
    if (!job->silent)
        kn_progress_begin(&progress,
                          &(KnProgressOptions){.label = "denoise", .unit = "steps", .total = steps, .interval = 2});
    int code = run_passes(job, sampler, job->silent ? NULL : &progress, &done);
    if (!job->silent)
        kn_progress_end(&progress, "%d video%s", job->count, job->count == 1 ? "" : "s");
    kn_sampler_destroy(sampler);
    return code;
}
