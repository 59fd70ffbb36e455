/* Running small training steps of several sizes and timing every node. */
#include "train/calibrate.h"

#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/cpu/backend.h"
#include "core/cpu/isa.h"
#include "core/cpu/matmul.h"
#include "dist/comm.h"
#include "train/calibrate_exchanges.h"
#include "train/optimizer.h"
#include "train/pass.h"
#include "train/rate_samples.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Widths, numbers of tokens and lengths of clips that models of this program's kind have on a CPU, so that curves have
 * points on both sides; head sizes 32, 64 and 128. */
static const struct Size {
    int64_t hidden, heads, tokens, clip_tokens;
} sizes[] = {
    {64, 2, 256, 64},   {64, 2, 1024, 1024},  {64, 2, 4096, 256}, {128, 2, 1024, 64},   {256, 4, 256, 256},
    {256, 4, 1024, 64}, {256, 4, 4096, 1024}, {512, 4, 256, 64},  {512, 8, 2048, 2048},
};
enum { SIZE_COUNT = sizeof sizes / sizeof *sizes, LAYERS = 2, TEXT = 16, CHANNELS = 16, MOST_RUNS = 9, LEAST_RUNS = 3 };
static const double seconds_a_size = 1.0;

typedef struct Trial {
    const struct Size *size;
    KnDtype dtype;
    KnConfig config;
    KnModel model;
    KnLayout layout;
    KnOptimizerState state;
    KnOptimizer *optimizer;
    KnTrainBatch batch;
    KnTrainBatchOptions batch_options;
    KnTrainPass *pass;
    float stats[2];
} Trial;

typedef struct Calibration {
    KnRateSamples samples;
    double outside, nodes; /* seconds that runs took beyond their nodes, and nodes */
} Calibration;

/* --- One size ----------------------------------------------------------------------------------------------------- */

static int create_model(Trial *t)
{
    KnModelConfig config = {.hidden = t->size->hidden,
                            .layers = LAYERS,
                            .heads = t->size->heads,
                            .ffn = 4 * t->size->hidden,
                            .channels = CHANNELS,
                            .patch = {1, 2, 2},
                            .freq_dim = 256,
                            .text_dim = t->size->hidden,
                            .eps = 1e-6,
                            .cross_attn_norm = 1};
    KnTextConfig text = {.kind = KN_TEXT_NONE, .heads = 1, .max_tokens = TEXT};
    return kn_model_create(&t->model, &config, &text, KN_PREDICT_VELOCITY, NULL);
}

/* Both optimizers are measured: with float32 the one, with bf16 the other. */
static int create(Trial *t)
{
    int64_t tokens = t->size->tokens, clips = tokens / t->size->clip_tokens;
    KnStreamShape shape = {tokens, clips, clips * TEXT};
    KnBackend *backend = kn_cpu_backend();
    kn_config_init(&t->config);
    free(t->config.optimizer.name);
    t->config.optimizer.name = kn_strdup(t->dtype == KN_F32 ? "adamw" : "muon");
    KN_TRY(create_model(t));
    KN_TRY(kn_layout_create(&t->layout, &t->model, &(KnLayoutOptions){.parallel = &t->config.parallel, .ranks = 1}));
    KN_TRY(kn_optimizer_state_create(&t->state, &t->layout.zero, &t->config.optimizer));
    kn_layout_init(&t->layout, &t->state.weights, 1);
    t->batch_options = (KnTrainBatchOptions){.flow = &t->config.flow,
                                             .shape = shape,
                                             .rows = {0, shape.tokens},
                                             .patch_dim = kn_model_patch_dim(&t->model.config),
                                             .kind = KN_VALUE_PIXELS};
    KN_TRY(kn_train_batch_create(&t->batch, &t->batch_options));
    KnTrainPassOptions pass = {.layout = &t->layout,
                               .shape = shape,
                               .dtype = t->dtype,
                               .backward = 1,
                               .weights = &t->state.weights,
                               .gradients = &t->state.gradients,
                               .stats = t->stats,
                               .self_pairs = (double)t->size->clip_tokens * (double)tokens,
                               .cross_pairs = (double)TEXT * (double)tokens};
    KN_TRY(kn_train_pass_create(&t->pass, &pass, backend));
    kn_train_pass_bind(t->pass, &t->batch);
    return kn_optimizer_create(&t->optimizer, &t->config.optimizer, &t->layout, &t->state, backend);
}

static void destroy(Trial *t)
{
    kn_optimizer_destroy(t->optimizer);
    kn_train_pass_destroy(t->pass);
    kn_train_batch_destroy(&t->batch);
    kn_optimizer_state_clear(&t->state);
    kn_layout_destroy(&t->layout);
    kn_model_destroy(&t->model);
    kn_config_clear(&t->config);
}

/* Fills the batch as training does, with clips of one size and arbitrary pixels. */
static double fill(Trial *t, int64_t clips, int64_t patch_dim)
{
    int64_t count = t->size->clip_tokens, side = 1;
    KnBatchClip *list = kn_alloc((size_t)clips * sizeof *list);
    unsigned char *pixels = kn_alloc((size_t)(t->size->tokens * patch_dim));
    while (side * side < count)
        side *= 2;
    for (int64_t i = 0; i < clips; i++)
        list[i] = (KnBatchClip){
            .clip = i, .grid = {1, side, count / side}, .first_token = i * count, .tokens = count, .text_tokens = TEXT};
    KnBatch pack = {.clip_count = clips,
                    .clips = list,
                    .tokens = t->size->tokens,
                    .patches = pixels,
                    .step_tokens = t->size->tokens,
                    .step_clips = clips};
    double start = kn_seconds_now();
    kn_train_batch_fill(&t->batch, &t->batch_options, &pack);
    double seconds = kn_seconds_now() - start;
    free(list);
    free(pixels);
    return seconds;
}

/* What a step does besides its graphs. */
static void time_host(Trial *t, Calibration *c)
{
    int64_t clips = t->batch_options.shape.clips, dim = t->batch_options.patch_dim;
    double pack = (double)(t->size->tokens * dim) * sizeof(float);
    double gradients = (double)kn_zero_bytes(&t->layout.zero, 2);
    for (int run = 0; run < LEAST_RUNS + 1; run++) {
        double filling = fill(t, clips, dim), start = kn_seconds_now();
        kn_parameter_values_zero(&t->state.gradients, kn_cpu_backend());
        double clearing = kn_seconds_now() - start;
        if (run == 0)
            continue;
        kn_rate_samples_add(&c->samples, "fill", KN_DTYPE_COUNT, 0, pack, pack / filling);
        kn_rate_samples_add(&c->samples, "clear", KN_DTYPE_COUNT, 0, gradients, gradients / clearing);
    }
}

/* As many runs as fit the time; ranks must agree on how many, so that all are busy together. */
static int choose_runs(KnComm *comm, double seconds, int *runs)
{
    float longest = (float)seconds;
    if (comm)
        KN_TRY(kn_comm_all_reduce(comm, &longest, 1, "time of a size"));
    *runs = (int)(seconds_a_size * (comm ? comm->ranks : 1) / (double)longest);
    *runs = *runs < LEAST_RUNS ? LEAST_RUNS : *runs > MOST_RUNS ? MOST_RUNS : *runs;
    return KN_OK;
}

static int run(Trial *t, Calibration *c, KnComm *comm)
{
    int runs;
    double norm;
    time_host(t, c);
    double start = kn_seconds_now();
    KN_TRY(kn_train_pass_run(t->pass));
    KN_TRY(kn_optimizer_step(t->optimizer, 0, 10, 0, &norm));
    KN_TRY(choose_runs(comm, kn_seconds_now() - start, &runs));
    KN_TRY(kn_rate_samples_run(&c->samples, kn_train_pass_executor(t->pass), kn_train_pass_graph(t->pass)->built.graph,
                               runs, &c->outside, &c->nodes));
    return kn_rate_samples_run(&c->samples, kn_optimizer_executor(t->optimizer),
                               kn_optimizer_graph(t->optimizer)->graph, runs, &c->outside, &c->nodes);
}

static int try_size(Calibration *c, const struct Size *size, KnDtype dtype, KnComm *comm)
{
    Trial trial = {.size = size, .dtype = dtype};
    int code = create(&trial);
    if (code == KN_OK)
        code = run(&trial, c, comm);
    destroy(&trial);
    return code;
}

/* --- The device --------------------------------------------------------------------------------------------------- */

static void describe(KnDevice *device, const Calibration *c, KnComm *comm)
{
    int ranks = comm ? comm->ranks : 1;
    snprintf(device->name, sizeof device->name, "cpu");
    snprintf(device->backend, sizeof device->backend, "cpu");
    device->memory = (double)kn_memory_free() / ranks;
    device->overhead = c->outside / c->nodes;
    device->ranks_per_node = ranks;
    device->peak[KN_F32] = kn_matmul_peak(KN_F32, 0.3) * 1e9;
    device->peak[KN_BF16] = kn_matmul_peak(KN_BF16, 0.3) * 1e9;
    char *note =
        kn_format("measured by kinora bench calibrate: %d rank%s of %d thread%s, %s", ranks, ranks == 1 ? "" : "s",
                  kn_cpu_threads(), kn_cpu_threads() == 1 ? "" : "s", kn_cpu_isa_name(kn_cpu_isa()));
    kn_string_list_add(&device->notes, note);
    free(note);
}

int kn_calibrate(KnDevice *device, KnComm *comm)
{
    Calibration c = {0};
    int code = KN_OK;
    *device = (KnDevice){0};
    for (int i = 0; i < 2 * SIZE_COUNT && code == KN_OK; i++)
        code = try_size(&c, &sizes[i / 2], i % 2 ? KN_BF16 : KN_F32, comm);
    if (code == KN_OK) {
        describe(device, &c, comm);
        code = kn_calibrate_exchanges(&c.samples, device, comm);
    }
    kn_rate_samples_fit(&c.samples, device);
    if (code < 0)
        kn_device_clear(device);
    return code;
}
