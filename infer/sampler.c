/* Denoising clips in passes over one stream. */
#include "infer/sampler.h"

#include "core/base/error.h"
#include "core/base/random.h"
#include "data/patchify.h"
#include "dist/comm.h"
#include "dist/sharding.h"
#include "infer/solver.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct KnSampler {
    const KnModel *model;
    const KnParameterValues *weights;
    const KnLayout *layout; /* NULL alone */
    KnBackend *backend;
    float *rope_table;
    /* the pass of the last shape and dtype, kept for the next run of the same */
    KnDtype dtype;
    KnStream stream;
    KnModelGraph built;
    KnRows tokens, text_tokens; /* of the stream, this rank's */
    KnTensor **shards;          /* by block: ranges of weights, where they are cut */
    KnExecutor *executor;
    float *inputs;    /* [stream tokens, patch_dim] */
    float *predicted; /* the same of all branches, where other ranks predict a part of it; else NULL */
    float *copied;    /* this rank's part of it, where it comes from a device; else NULL */
};

int kn_sampler_create(KnSampler **sampler, const KnModel *model, const KnParameterValues *weights,
                      const KnLayout *layout, KnBackend *backend)
{
    const KnModelConfig *config = &model->config;
    *sampler = NULL;
    if (!model->tokenizer)
        return kn_fail(KN_EINPUT, "the model has no text encoder, so a prompt means nothing to it: only models trained "
                                  "with model.text.kind: trained can be sampled");
    KnSampler *made = kn_alloc(sizeof *made);
    made->model = model;
    made->weights = weights;
    made->layout = layout;
    made->backend = backend;
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
    kn_free_large(s->predicted);
    kn_free_large(s->copied);
    free(s->shards);
    s->executor = NULL;
    s->built = (KnModelGraph){0};
    s->inputs = s->predicted = s->copied = NULL;
    s->shards = NULL;
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

/* A group of clips that are denoised together, by one replica of the mesh. */
typedef struct Group {
    KnSampler *sampler;
    const KnSampleSettings *settings;
    const KnSampleClip *clips;
    int64_t count, tokens;
    int branches;                    /* 2 with guidance: prompt and negative */
    int first_branch, branches_here; /* of them in this rank's stream: clip after clip, each with these branches */
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

static int weights_are_cut(const KnSampler *s)
{
    for (int b = 0; s->layout && b < s->layout->part.block_count; b++)
        if (s->weights->count[b] != s->layout->part.block_elements[b])
            return 1;
    return 0;
}

static int sequence_ranks(const KnSampler *s)
{
    return s->layout ? kn_mesh_group_size(&s->layout->mesh, KN_GROUP_SEQUENCE) : 1;
}

static void build_pass(KnSampler *s, const KnStreamShape *shape)
{
    KnBackend *backend = s->backend;
    KnModelGraphOptions options = {.shape = *shape, .dtype = s->dtype};
    kn_model_build(s->model, &options, &s->built);
    s->tokens = (KnRows){0, shape->tokens};
    s->text_tokens = (KnRows){0, shape->text_tokens};
    if (s->layout) {
        KnSharding sharding = {.mesh = &s->layout->mesh, .model = s->model, .shape = *shape};
        sharding.shard_text = kn_text_is_cut(&options, &sharding, s->layout->text);
        kn_shard_forward(&s->built, &sharding, NULL, 0);
        s->tokens = kn_sharded_tokens(&sharding);
        s->text_tokens = kn_sharded_text(&sharding);
    }
    if (weights_are_cut(s)) {
        s->shards = kn_alloc((size_t)s->layout->part.block_count * sizeof(KnTensor *));
        kn_zero_gather(s->built.graph, &s->layout->zero, s->shards);
    }
    kn_ring_expand(s->built.graph);
    kn_overlap(s->built.graph, backend->exchanges_in_order);
    if (backend->lower)
        backend->lower(backend, s->built.graph);
    kn_fill_waits(s->built.graph, backend->exchanges_in_order);
    kn_graph_finish(s->built.graph, &s->built.prediction, 1);
}

static void bind_pass(KnSampler *s)
{
    const KnParameterSet *set = s->weights->set;
    kn_executor_bind(s->executor, s->built.leaves.rope_table, s->rope_table);
    kn_executor_bind(s->executor, s->built.patches,
                     s->inputs + s->tokens.first * kn_model_patch_dim(&s->model->config));
    kn_stream_bind(s->executor, &s->built.leaves, &s->stream, s->tokens.first, s->text_tokens.first);
    for (int i = 0; !s->shards && i < set->count; i++) {
        const KnTensor *leaf = kn_leaf_find(s->built.graph, set->list[i].name);
        if (leaf)
            kn_executor_bind(s->executor, leaf, kn_parameter_data(s->weights, &set->list[i]));
    }
    for (int b = 0; s->shards && b < set->block_count; b++)
        if (s->shards[b])
            kn_executor_bind(s->executor, s->shards[b], s->weights->blocks[b]);
    if (s->layout)
        kn_executor_set_comms(s->executor, kn_layout_comms(s->layout));
}

static int prepare_pass(Group *g)
{
    KnSampler *s = g->sampler;
    int64_t clips = g->count * g->branches_here;
    KnStreamShape shape = {g->tokens * g->branches_here, clips, clips * s->model->text.max_tokens};
    if (s->inputs && !memcmp(&shape, &s->stream.shape, sizeof shape) && s->dtype == g->settings->dtype)
        return KN_OK;
    drop_pass(s);
    s->dtype = g->settings->dtype;
    kn_stream_create(&s->stream, shape);
    build_pass(s, &shape);
    KN_TRY(kn_executor_create(&s->executor, s->built.graph, s->backend, &s->built.prediction, 1));
    void *inputs = NULL, *predicted = NULL, *copied = NULL; /* after the arena, which is larger and refused at once */
    KN_TRY(kn_alloc_large(&inputs, (size_t)(shape.tokens * dim_of(g)) * sizeof(float), "the clips' noisy patches"));
    s->inputs = inputs;
    if (sequence_ranks(s) > 1 || g->branches_here < g->branches)
        KN_TRY(kn_alloc_large(&predicted, (size_t)(g->tokens * g->branches * dim_of(g)) * sizeof(float),
                              "the clips' predicted patches"));
    s->predicted = predicted;
    if (s->backend->memory)
        KN_TRY(kn_alloc_large(&copied, kn_tensor_bytes(s->built.prediction), "predicted patches from the device"));
    s->copied = copied;
    bind_pass(s);
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
        for (int b = 0; b < g->branches_here; b++, to += values) {
            KN_TRY(add_segment(g, clip, g->first_branch + b == 0 ? clip->prompt : clip->negative, sigma));
            memcpy(g->sampler->inputs + to, g->x + from, (size_t)values * sizeof(float));
        }
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

static int gather(KnComm *comm, const float *mine, float *all, const int64_t *cuts, int64_t dim, const char *name)
{
    int64_t *offsets = kn_alloc((size_t)(comm->ranks + 1) * sizeof *offsets);
    KnCommTicket ticket;
    for (int i = 0; i <= comm->ranks; i++)
        offsets[i] = cuts[i] * dim * (int64_t)sizeof(float);
    int code = comm->table->all_gather_start(comm, mine, all, offsets, name, &ticket);
    free(offsets);
    KN_TRY(code);
    return comm->table->wait(comm, ticket);
}

/* Rows that the ranks of the sequence have predicted, to all of them: `all` [stream tokens, dim]. */
static int gather_rows(const Group *g, const float *mine, float *all)
{
    const KnSampler *s = g->sampler;
    int ranks = sequence_ranks(s);
    int64_t *cuts = kn_alloc((size_t)(ranks + 1) * sizeof *cuts);
    for (int i = 0; i <= ranks; i++)
        cuts[i] = kn_cut(g->tokens * g->branches_here, ranks, i);
    int code = gather(s->layout->comms.groups[KN_GROUP_SEQUENCE], mine, all, cuts, dim_of(g), "predicted patches");
    free(cuts);
    return code;
}

/* The velocities of all branches: in `*all`, clip after clip for each of the branches that are here; the branches of
 * other ranks lie behind one another. */
static int predict(Group *g, double sigma, float **all)
{
    KnSampler *s = g->sampler;
    int64_t dim = dim_of(g), here = g->tokens * g->branches_here;
    KN_TRY(kn_executor_run(s->executor));
    float *predicted = s->copied ? s->copied : kn_executor_data(s->executor, s->built.prediction);
    if (s->copied)
        KN_TRY(kn_executor_read(s->executor, s->built.prediction, predicted));
    if (sequence_ranks(s) > 1) {
        float *place = s->predicted + g->first_branch * g->tokens * dim;
        KN_TRY(gather_rows(g, predicted, place));
        predicted = place;
    }
    kn_flow_to_velocity(s->model->prediction, (float)sigma, s->inputs, predicted, here * dim);
    *all = predicted;
    if (g->branches_here == g->branches)
        return KN_OK;
    *all = s->predicted;
    return gather(s->layout->comms.groups[KN_GROUP_CFG], predicted, s->predicted,
                  (int64_t[]){0, g->tokens, 2 * g->tokens}, dim, "guidance's two predictions");
}

/* Velocity of x at sigma, guided: v = negative + guidance (prompt - negative). */
static int evaluate(Group *g, double sigma)
{
    float guidance = (float)g->settings->guidance, *predicted = NULL;
    int64_t dim = dim_of(g), from = 0, to = 0;
    KN_TRY(fill_stream(g, sigma));
    KN_TRY(predict(g, sigma, &predicted));
    for (int64_t i = 0; i < g->count; i++) {
        int64_t values = clip_tokens(g, i) * dim;
        const float *prompt = predicted + from;
        const float *negative = prompt + (g->branches_here == g->branches ? values : g->tokens * dim);
        for (int64_t k = 0; k < values; k++)
            g->velocity[to + k] = g->branches == 1 ? prompt[k] : negative[k] + guidance * (prompt[k] - negative[k]);
        from += values * g->branches_here;
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
    int64_t done, total, wave; /* wave: tokens that all replicas denoise now */
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
        tally->done += tally->wave;
        if (tally->report)
            tally->report(tally->context, tally->done, tally->total);
    }
    return KN_OK;
}

static KnSolverOptions solver_options(const KnSampleSettings *o)
{
    return (KnSolverOptions){.solver = o->solver, .spacing = o->spacing, .steps = o->steps, .shift = o->shift};
}

static int create_group(Group *g, KnSolver **solver)
{
    size_t values = (size_t)(g->tokens * dim_of(g));
    KnSolverOptions options = solver_options(g->settings);
    void *memory = NULL;
    KN_TRY(prepare_pass(g));
    KN_TRY(kn_alloc_large(&memory, 2 * values * sizeof(float), "the clips' patches"));
    g->x = memory;
    g->velocity = g->x + values;
    return kn_solver_create(solver, &options, values);
}

static void copy_out(const Group *g, const float *from)
{
    for (int64_t i = 0; i < g->count; i++) {
        int64_t count = clip_tokens(g, i) * dim_of(g);
        memcpy(g->clips[i].patches, from, (size_t)count * sizeof(float));
        from += count;
    }
}

/* --- Waves: one group for each replica, side by side -------------------------------------------------------------- */

typedef struct Wave {
    Group all;      /* every clip of it */
    int64_t *cuts;  /* [replicas + 1]: which tokens of it each replica makes */
    float *patches; /* of all its clips, where there are several replicas */
    Group mine;     /* this rank's group */
    int works;      /* 0: there are fewer clips than replicas, and none for this rank */
} Wave;

static int replicas_of(const KnSampler *s)
{
    return s->layout ? kn_mesh_replicas(&s->layout->mesh) : 1;
}

/* Adds to the group as many of the `left` clips behind it as fill a pass, or this share of their tokens. */
static void fill_group(Group *g, int64_t left, int64_t share)
{
    while (g->count < left) {
        int64_t tokens = clip_tokens(g, g->count);
        if (g->count && ((g->tokens + tokens) * g->branches > KN_SAMPLE_PASS_TOKENS || g->tokens + tokens / 2 > share))
            break;
        g->tokens += tokens;
        g->count++;
    }
}

static int64_t tokens_from(const Group *all, int64_t first)
{
    int64_t tokens = 0;
    for (int64_t i = first; i < all->count; i++)
        tokens += clip_tokens(all, i);
    return tokens;
}

/* What every replica does next of the clips behind `first`; the same on all ranks. */
static void plan_wave(const Group *all, int64_t first, Wave *wave)
{
    KnSampler *s = all->sampler;
    int replicas = replicas_of(s), me = s->layout ? kn_mesh_replica(&s->layout->mesh) : 0;
    wave->all = *all;
    wave->all.clips += first;
    wave->all.count = wave->all.tokens = 0;
    for (int r = 0; r < replicas; r++) {
        int64_t next = first + wave->all.count, rest = replicas - r;
        Group g = *all;
        g.clips += next;
        g.count = g.tokens = 0;
        fill_group(&g, all->count - next, (tokens_from(all, next) + rest - 1) / rest);
        wave->all.count += g.count;
        wave->all.tokens += g.tokens;
        wave->cuts[r + 1] = wave->all.tokens;
        if (r == me)
            wave->mine = g;
    }
    wave->works = wave->mine.count > 0;
    if (!wave->works && weights_are_cut(s)) { /* others need this rank's weights: it makes another's clip once more */
        wave->works = 1;
        wave->mine = wave->all;
        wave->mine.count = 1;
        wave->mine.tokens = clip_tokens(&wave->mine, 0);
    }
}

/* Everybody's patches to everybody: of each replica the first rank of its sequence gives them. */
static int share_patches(const Wave *wave)
{
    const KnLayout *layout = wave->all.sampler->layout;
    KnComm *comm = layout->comms.groups[KN_GROUP_SUM];
    int sequence = kn_mesh_group_size(&layout->mesh, KN_GROUP_SEQUENCE);
    int64_t *cuts = kn_alloc((size_t)(comm->ranks + 1) * sizeof *cuts);
    for (int rank = 0; rank < comm->ranks; rank++)
        cuts[rank + 1] = wave->cuts[rank / sequence + 1];
    int code = gather(comm, wave->mine.x, wave->patches, cuts, dim_of(&wave->all), "patches of all clips");
    free(cuts);
    return code;
}

static int create_wave(Wave *wave, KnSolver **solver)
{
    void *patches = NULL;
    if (wave->works)
        KN_TRY(create_group(&wave->mine, solver));
    if (replicas_of(wave->all.sampler) > 1)
        KN_TRY(kn_alloc_large(&patches, (size_t)(wave->all.tokens * dim_of(&wave->all)) * sizeof(float),
                              "the patches of all clips"));
    wave->patches = patches;
    return KN_OK;
}

static int denoise_wave(Wave *wave, KnSolver *solver, Tally *tally)
{
    tally->wave = wave->all.tokens;
    if (wave->works)
        KN_TRY(denoise(&wave->mine, solver, tally));
    if (wave->patches)
        KN_TRY(share_patches(wave));
    copy_out(&wave->all, wave->patches ? wave->patches : wave->mine.x);
    return KN_OK;
}

/* What one rank alone may lack is found out, and agreed on, before ranks wait for each other. */
static int run_wave(Wave *wave, Tally *tally)
{
    const KnLayout *layout = wave->all.sampler->layout;
    KnSolver *solver = NULL;
    int code = create_wave(wave, &solver);
    if (layout && layout->comms.world)
        code = kn_comm_error_agree(layout->comms.world, code);
    if (code == KN_OK)
        code = denoise_wave(wave, solver, tally);
    kn_solver_destroy(solver);
    kn_free_large(wave->mine.x);
    kn_free_large(wave->patches);
    wave->patches = NULL;
    return code;
}

static int count_work(const Group *all, Tally *tally)
{
    const KnSampleSettings *o = all->settings;
    KnSolver *solver = NULL;
    KnSolverOptions options = solver_options(o);
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

/* Which of guidance's forwards this rank makes. */
static void share_branches(Group *g)
{
    const KnLayout *layout = g->sampler->layout;
    g->branches = g->branches_here = g->settings->guidance == 1 ? 1 : 2;
    if (g->branches == 1 || !layout || layout->mesh.sizes[KN_AXIS_CFG] == 1)
        return;
    g->branches_here = 1;
    g->first_branch = layout->mesh.coordinates[KN_AXIS_CFG];
}

int kn_sampler_run(KnSampler *sampler, const KnSampleSettings *settings, const KnSampleClip *clips, int64_t count,
                   KnSampleProgress progress, void *context)
{
    Tally tally = {.report = progress, .context = context};
    Group all = {.sampler = sampler, .settings = settings, .clips = clips, .count = count};
    Wave wave = {.cuts = kn_alloc((size_t)(replicas_of(sampler) + 1) * sizeof(int64_t))};
    share_branches(&all);
    int code = count_work(&all, &tally);
    for (int64_t first = 0; code == KN_OK && first < count; first += wave.all.count) {
        plan_wave(&all, first, &wave);
        code = run_wave(&wave, &tally);
    }
    free(wave.cuts);
    return code;
}
