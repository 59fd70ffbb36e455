/* Grouping requests into passes. */
#include "infer/generate.h"

#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/progress.h"
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
    char *name = kn_format("the configuration in %s", file->path);
    int code = kn_config_parse(&config, file->config_yaml, name);
    if (code == KN_OK)
        kn_request_defaults(request, &config, arena);
    kn_config_clear(&config);
    free(name);
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

static int check_request(const KnGenerateJob *job, int index)
{
    KnRequest *r = &job->requests[index];
    int evaluations;
    int64_t tokens;
    KN_TRY(kn_request_check(r));
    KN_TRY(evaluations_of(r, &evaluations));
    tokens = tokens_of(job, index);
    KN_TRY((int)(tokens < 0 ? tokens : KN_OK));
    KnSampleClip clip = clip_of(job, r);
    KN_TRY(kn_conditions_load(&job->model->config, r, job->arena, &clip));
    kn_conditions_clear(&clip);
    return KN_OK;
}

int kn_generate_check(const KnGenerateJob *job)
{
    if (job->model->config.channels != 3)
        return kn_fail(KN_EINPUT,
                       "the model works on %lld channels, which are not pixels: latents cannot be turned into videos "
                       "yet",
                       (long long)job->model->config.channels);
    for (int i = 0; i < job->count; i++) {
        int code = check_request(job, i);
        if (code < 0)
            return job->count > 1 && job->requests[i].out ? kn_fail_prefix(code, "%s", job->requests[i].out) : code;
    }
    return KN_OK;
}

/* ---- one pass ---- */

/* Requests that are denoised together. */
typedef struct Pass {
    const KnGenerateJob *job;
    KnProgress *progress;
    int *indices;
    KnSampleClip *clips;
    int count, finished;         /* finished: clips of earlier passes */
    int evaluations, steps_done; /* steps_done: evaluations of earlier passes */
} Pass;

static void show(void *context, int64_t done, int64_t total)
{
    const Pass *pass = context;
    if (pass->progress)
        kn_progress_update(pass->progress, pass->steps_done + done * pass->evaluations / total, "videos %d-%d of %d",
                           pass->finished + 1, pass->finished + pass->count, pass->job->count);
}

static int prepare_clips(Pass *pass)
{
    const KnGenerateJob *job = pass->job;
    int64_t dim = kn_model_patch_dim(&job->model->config);
    for (int i = 0; i < pass->count; i++) {
        KnSampleClip *clip = &pass->clips[i];
        void *patches = NULL;
        *clip = clip_of(job, &job->requests[pass->indices[i]]);
        KN_TRY(kn_alloc_large(&patches, (size_t)(tokens_of(job, pass->indices[i]) * dim) * sizeof(float),
                              "a clip's patches"));
        clip->patches = patches;
        KN_TRY(kn_conditions_load(&job->model->config, &job->requests[pass->indices[i]], job->arena, clip));
    }
    return KN_OK;
}

static int hand_over(const Pass *pass)
{
    const KnGenerateJob *job = pass->job;
    for (int i = 0; i < pass->count; i++) {
        const KnSampleClip *clip = &pass->clips[i];
        void *pixels = NULL;
        KN_TRY(kn_alloc_large(&pixels, (size_t)(clip->frames * clip->height * clip->width * 3), "a clip's pixels"));
        kn_sample_to_pixels(&job->model->config, clip, pixels);
        int code = job->take(job->context, pass->indices[i], pixels);
        kn_free_large(pixels);
        KN_TRY(code);
    }
    return KN_OK;
}

static int run_pass(Pass *pass, KnSampler *sampler)
{
    const KnRequest *r = &pass->job->requests[pass->indices[0]];
    KnSampleSettings settings = {.solver = r->solver,
                                 .spacing = r->spacing,
                                 .steps = (int)r->steps,
                                 .guidance = r->guidance,
                                 .shift = r->shift,
                                 .dtype = kn_request_dtype(r)};
    pass->clips = kn_alloc((size_t)pass->count * sizeof *pass->clips);
    int code = prepare_clips(pass);
    if (code == KN_OK)
        code = kn_sampler_run(sampler, &settings, pass->clips, pass->count, show, pass);
    if (code == KN_OK)
        code = hand_over(pass);
    for (int i = 0; i < pass->count; i++) {
        kn_free_large(pass->clips[i].patches);
        kn_conditions_clear(&pass->clips[i]);
    }
    free(pass->clips);
    pass->clips = NULL;
    return code;
}

/* ---- passes ---- */

static int same_settings(const KnRequest *a, const KnRequest *b)
{
    return !strcmp(a->solver, b->solver) && !strcmp(a->spacing, b->spacing) && !strcmp(a->dtype, b->dtype) &&
           a->steps == b->steps && a->guidance == b->guidance && a->shift == b->shift;
}

/* Takes the first request that is left, and those after it of the same settings that fit into its pass. */
static void fill_pass(Pass *pass, uint8_t *taken)
{
    const KnGenerateJob *job = pass->job;
    const KnRequest *first = NULL;
    int64_t room = 0;
    pass->count = 0;
    for (int i = 0; i < job->count; i++) {
        const KnRequest *r = &job->requests[i];
        if (taken[i] || (first && !same_settings(first, r)))
            continue;
        int64_t tokens = tokens_of(job, i);
        if (!first)
            room = KN_SAMPLE_PASS_TOKENS / (r->guidance == 1 ? 1 : 2);
        else if (tokens > room)
            continue;
        first = first ? first : r;
        room -= tokens;
        taken[i] = 1;
        pass->indices[pass->count++] = i;
    }
}

/* How many evaluations all passes make. */
static int count_steps(const KnGenerateJob *job, int64_t *steps)
{
    Pass pass = {.job = job, .indices = kn_alloc((size_t)job->count * sizeof(int))};
    uint8_t *taken = kn_alloc((size_t)job->count);
    int code = KN_OK;
    *steps = 0;
    for (fill_pass(&pass, taken); code == KN_OK && pass.count > 0; fill_pass(&pass, taken)) {
        code = evaluations_of(&job->requests[pass.indices[0]], &pass.evaluations);
        *steps += pass.evaluations;
    }
    free(taken);
    free(pass.indices);
    return code;
}

static int run_passes(const KnGenerateJob *job, KnSampler *sampler, KnProgress *progress)
{
    Pass pass = {.job = job, .progress = progress, .indices = kn_alloc((size_t)job->count * sizeof(int))};
    uint8_t *taken = kn_alloc((size_t)job->count);
    int code = KN_OK;
    for (fill_pass(&pass, taken); pass.count > 0; fill_pass(&pass, taken)) {
        KN_TRY_GOTO(code, evaluations_of(&job->requests[pass.indices[0]], &pass.evaluations), done);
        KN_TRY_GOTO(code, run_pass(&pass, sampler), done);
        pass.finished += pass.count;
        pass.steps_done += pass.evaluations;
    }
done:
    free(taken);
    free(pass.indices);
    return code;
}

int kn_generate(const KnGenerateJob *job)
{
    KnSampler *sampler = NULL;
    KnProgress progress;
    int64_t steps = 0;
    KN_TRY(count_steps(job, &steps));
    KN_TRY(kn_sampler_create(&sampler, job->model, job->weights, NULL));
    if (!job->silent)
        kn_progress_begin(&progress,
                          &(KnProgressOptions){.label = "denoise", .unit = "steps", .total = steps, .interval = 2});
    int code = run_passes(job, sampler, job->silent ? NULL : &progress);
    if (!job->silent)
        kn_progress_end(&progress, "%d video%s", job->count, job->count == 1 ? "" : "s");
    kn_sampler_destroy(sampler);
    return code;
}
