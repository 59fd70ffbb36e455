/* Denoising clips in passes over one stream. */
#include "infer/sampler.h"

#include "core/base/error.h"
#include "core/base/random.h"
#include "core/cpu/backend.h"
#include "data/patchify.h"
#include "infer/solver.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct KnSampler {
    const KnModel *model;
    const KnParameterValues *weights;
    float *rope_table;
    /* the pass of the last shape and dtype, kept for the next run of the same */
    KnDtype dtype;
    KnStream stream;
    KnModelGraph built;
    KnExecutor *executor;
    float *inputs; /* [stream tokens, patch_dim] */
};

int kn_sampler_create(KnSampler **sampler, const KnModel *model, const KnParameterValues *weights)
{
    const KnModelConfig *config = &model->config;
    *sampler = NULL;
    if (!model->tokenizer)
        return kn_fail(KN_EINPUT, "the model has no text encoder, so a prompt means nothing to it: only models trained "
                                  "with model.text.kind: trained can be sampled");
    KnSampler *made = kn_alloc(sizeof *made);
    made->model = model;
    made->weights = weights;
    made->rope_table = kn_alloc((size_t)(KN_ROPE_POSITIONS * (config->hidden / config->heads)) * sizeof(float));
    kn_dit_rope_table(config, made->rope_table);
    *sampler = made;
    return KN_OK;
}

static void drop_pass(KnSampler *s)
{
    kn_executor_destroy(s->executor);
    kn_graph_destroy(s->built.graph);
    kn_stream_destroy(&s->stream);
    kn_free_large(s->inputs);
    s->executor = NULL;
    s->built = (KnModelGraph){0};
    s->inputs = NULL;
}

void kn_sampler_destroy(KnSampler *sampler)
{
    if (!sampler)
        return;
    drop_pass(sampler);
    free(sampler->rope_table);
    free(sampler);
}

/* --- Sizes -------------------------------------------------------------------------------------------------------- */

int64_t kn_sample_tokens(const KnModelConfig *config, int64_t frames, int64_t height, int64_t width)
{
    static const char *const names[] = {"frames", "height", "width"};
    int64_t size[] = {frames, height, width}, tokens = 1;
    for (int i = 0; i < 3; i++) {
        int64_t patch = config->patch[i], below = size[i] / patch * patch;
        if (size[i] < 1 || size[i] % patch)
            return kn_fail(KN_EINPUT, "%s %lld is no multiple of the patch's %lld: use %lld or %lld", names[i],
                           (long long)size[i], (long long)patch, (long long)(below ? below : patch),
                           (long long)(below ? below + patch : 2 * patch));
        if (size[i] / patch > KN_ROPE_POSITIONS)
            return kn_fail(KN_EINPUT, "%s %lld is more than the %lld that the model has positions for", names[i],
                           (long long)size[i], (long long)(patch * KN_ROPE_POSITIONS));
        tokens *= size[i] / patch;
    }
    return tokens;
}

static KnPatchLayout layout_of(const KnModelConfig *config, int64_t frames, int64_t height, int64_t width)
{
    return (KnPatchLayout){.frames = frames,
                           .height = height,
                           .width = width,
                           .channels = config->channels,
                           .patch = {config->patch[0], config->patch[1], config->patch[2]},
                           .element_bytes = sizeof(float)};
}

void kn_sample_to_pixels(const KnModelConfig *config, const KnSampleClip *clip, uint8_t *pixels)
{
    KnPatchLayout layout = layout_of(config, clip->frames, clip->height, clip->width);
    int64_t count = clip->frames * clip->height * clip->width * config->channels;
    float *frames = kn_alloc((size_t)count * sizeof *frames);
    kn_unpatchify(&layout, clip->patches, frames);
    for (int64_t i = 0; i < count; i++)
        pixels[i] = (uint8_t)lrintf(fminf(fmaxf((frames[i] + 1) * 127.5f, 0), 255));
    free(frames);
}

void kn_sample_from_pixels(const KnModelConfig *config, int64_t frames, int64_t height, int64_t width,
                           const uint8_t *pixels, float *patches)
{
    KnPatchLayout layout = layout_of(config, frames, height, width);
    int64_t count = frames * height * width * config->channels;
    float *values = kn_alloc((size_t)count * sizeof *values);
    for (int64_t i = 0; i < count; i++)
        values[i] = (float)pixels[i] * (1 / 127.5f) - 1;
    kn_patchify(&layout, values, patches);
    free(values);
}

/* --- One pass ----------------------------------------------------------------------------------------------------- */

/* A group of clips that are denoised together. */
typedef struct Group {
    KnSampler *sampler;
    const KnSampleSettings *settings;
    const KnSampleClip *clips;
    int64_t count, tokens, branches; /* branches: 2 with guidance: clip i's are segments 2 i (prompt) and 2 i + 1 */
    float *x, *velocity;             /* [tokens, patch_dim] */
} Group;

static int64_t clip_tokens(const Group *g, int64_t index)
{
    const KnSampleClip *clip = &g->clips[index];
    return kn_sample_tokens(&g->sampler->model->config, clip->frames, clip->height, clip->width);
}

static int64_t dim_of(const Group *g)
{
    return kn_model_patch_dim(&g->sampler->model->config);
}

static int prepare_pass(Group *g)
{
    KnSampler *s = g->sampler;
    const KnParameterSet *set = &s->model->parameters;
    int64_t clips = g->count * g->branches;
    KnStreamShape shape = {g->tokens * g->branches, clips, clips * s->model->text.max_tokens};
    KnBackend *backend = kn_cpu_backend();
    if (s->inputs && !memcmp(&shape, &s->stream.shape, sizeof shape) && s->dtype == g->settings->dtype)
        return KN_OK;
    drop_pass(s);
    s->dtype = g->settings->dtype;
    kn_stream_create(&s->stream, shape);
    kn_model_build(s->model, &(KnModelGraphOptions){.shape = shape, .dtype = s->dtype}, &s->built);
    if (backend->lower)
        backend->lower(backend, s->built.graph);
    kn_graph_finish(s->built.graph, &s->built.prediction, 1);
    KN_TRY(kn_executor_create(&s->executor, s->built.graph, backend, &s->built.prediction, 1));
    void *inputs = NULL; /* after the arena, which is larger and refused at once where there is too little memory */
    KN_TRY(kn_alloc_large(&inputs, (size_t)(shape.tokens * dim_of(g)) * sizeof(float), "the clips' noisy patches"));
    s->inputs = inputs;
    kn_executor_bind(s->executor, s->built.leaves.rope_table, s->rope_table);
    kn_executor_bind(s->executor, s->built.patches, s->inputs);
    kn_stream_bind(s->executor, &s->built.leaves, &s->stream, 0, 0);
    for (int i = 0; i < set->count; i++) {
        const KnTensor *leaf = kn_leaf_find(s->built.graph, set->list[i].name);
        if (leaf)
            kn_executor_bind(s->executor, leaf, kn_parameter_data(s->weights, &set->list[i]));
    }
    return KN_OK;
}

static int add_segment(Group *g, const KnSampleClip *clip, const char *text, double sigma)
{
    KnSampler *s = g->sampler;
    const KnModelConfig *c = &s->model->config;
    int64_t most = s->model->text.max_tokens, count = 0;
    int32_t *ids = kn_alloc((size_t)most * sizeof *ids);
    int code = kn_tokenizer_encode(s->model->tokenizer, text ? text : "", most, ids, &count);
    if (code == KN_OK)
        kn_stream_add(&s->stream, &(KnStreamClip){.grid = {clip->frames / c->patch[0], clip->height / c->patch[1],
                                                           clip->width / c->patch[2]},
                                                  .given = clip->given,
                                                  .sigma = (float)sigma,
                                                  .text = ids,
                                                  .text_tokens = count});
    free(ids);
    return code;
}

/* Lays all segments into the stream at this sigma: clip after clip, each with its branches. */
static int fill_stream(Group *g, double sigma)
{
    int64_t dim = dim_of(g), from = 0, to = 0;
    kn_stream_clear(&g->sampler->stream);
    for (int64_t i = 0; i < g->count; i++) {
        const KnSampleClip *clip = &g->clips[i];
        int64_t values = clip_tokens(g, i) * dim;
        KN_TRY(add_segment(g, clip, clip->prompt, sigma));
        if (g->branches == 2)
            KN_TRY(add_segment(g, clip, clip->negative, sigma));
        for (int64_t b = 0; b < g->branches; b++, to += values)
            memcpy(g->sampler->inputs + to, g->x + from, (size_t)values * sizeof(float));
        from += values;
    }
    return KN_OK;
}

static void write_given(Group *g)
{
    int64_t dim = dim_of(g), first = 0;
    for (int64_t i = 0; i < g->count; i++) {
        const KnSampleClip *clip = &g->clips[i];
        int64_t tokens = clip_tokens(g, i);
        for (int64_t t = 0; clip->given && t < tokens; t++)
            if (clip->given[t])
                memcpy(g->x + (first + t) * dim, clip->given_patches + t * dim, (size_t)dim * sizeof(float));
        first += tokens;
    }
}

/* Velocity of x at sigma, guided: v = negative + guidance (prompt - negative). */
static int evaluate(Group *g, double sigma)
{
    KnSampler *s = g->sampler;
    int64_t dim = dim_of(g), from = 0, to = 0;
    float guidance = (float)g->settings->guidance;
    KN_TRY(fill_stream(g, sigma));
    KN_TRY(kn_executor_run(s->executor));
    float *predicted = kn_executor_data(s->executor, s->built.prediction);
    kn_flow_to_velocity(s->model->prediction, (float)sigma, s->inputs, predicted, g->tokens * g->branches * dim);
    for (int64_t i = 0; i < g->count; i++) {
        int64_t values = clip_tokens(g, i) * dim;
        const float *prompt = predicted + from, *negative = predicted + from + values;
        for (int64_t k = 0; k < values; k++)
            g->velocity[to + k] = g->branches == 1 ? prompt[k] : negative[k] + guidance * (prompt[k] - negative[k]);
        from += values * g->branches;
        to += values;
    }
    return KN_OK;
}

static void draw_noise(Group *g)
{
    int64_t dim = dim_of(g), first = 0;
    for (int64_t i = 0; i < g->count; i++) {
        int64_t values = clip_tokens(g, i) * dim;
        kn_random_normal_fill(kn_random_key(g->clips[i].seed, KN_RANDOM_SAMPLE, 0, 0), 0, g->x + first, values);
        first += values;
    }
}

typedef struct Tally {
    KnSampleProgress report;
    void *context;
    int64_t done, total;
} Tally;

static int denoise(Group *g, KnSolver *solver, Tally *tally)
{
    double sigma;
    draw_noise(g);
    write_given(g);
    while (kn_solver_next(solver, &sigma)) {
        KN_TRY(evaluate(g, sigma));
        kn_solver_step(solver, g->velocity, g->x);
        write_given(g);
        tally->done += g->tokens;
        if (tally->report)
            tally->report(tally->context, tally->done, tally->total);
    }
    return KN_OK;
}

static int run_group(Group *g, Tally *tally)
{
    const KnSampleSettings *o = g->settings;
    size_t values = (size_t)(g->tokens * dim_of(g));
    KnSolver *solver = NULL;
    void *memory = NULL;
    KN_TRY(prepare_pass(g));
    KN_TRY(kn_alloc_large(&memory, 2 * values * sizeof(float), "the clips' patches"));
    g->x = memory;
    g->velocity = g->x + values;
    KnSolverOptions options = {.solver = o->solver, .spacing = o->spacing, .steps = o->steps, .shift = o->shift};
    int code = kn_solver_create(&solver, &options, values);
    if (code == KN_OK)
        code = denoise(g, solver, tally);
    const float *from = g->x;
    for (int64_t i = 0; code == KN_OK && i < g->count; i++) {
        int64_t count = clip_tokens(g, i) * dim_of(g);
        memcpy(g->clips[i].patches, from, (size_t)count * sizeof(float));
        from += count;
    }
    kn_solver_destroy(solver);
    kn_free_large(memory);
    return code;
}

static int count_work(const Group *all, Tally *tally)
{
    const KnSampleSettings *o = all->settings;
    KnSolver *solver = NULL;
    KnSolverOptions options = {.solver = o->solver, .spacing = o->spacing, .steps = o->steps, .shift = o->shift};
    KN_TRY(kn_solver_create(&solver, &options, 1));
    for (int64_t i = 0; i < all->count; i++) {
        int64_t tokens = clip_tokens(all, i);
        if (tokens < 0) {
            kn_solver_destroy(solver);
            return (int)tokens;
        }
        tally->total += tokens * kn_solver_evaluations(solver);
    }
    kn_solver_destroy(solver);
    return KN_OK;
}

int kn_sampler_run(KnSampler *sampler, const KnSampleSettings *settings, const KnSampleClip *clips, int64_t count,
                   KnSampleProgress progress, void *context)
{
    Tally tally = {.report = progress, .context = context};
    Group all = {.sampler = sampler, .settings = settings, .clips = clips, .count = count};
    KN_TRY(count_work(&all, &tally));
    for (int64_t first = 0; first < count;) {
        Group g = {.sampler = sampler, .settings = settings, .clips = clips + first};
        g.branches = settings->guidance == 1 ? 1 : 2;
        while (first + g.count < count) {
            int64_t tokens = clip_tokens(&all, first + g.count);
            if (g.count && (g.tokens + tokens) * g.branches > KN_SAMPLE_PASS_TOKENS)
                break;
            g.tokens += tokens;
            g.count++;
        }
        KN_TRY(run_group(&g, &tally));
        first += g.count;
    }
    return KN_OK;
}
