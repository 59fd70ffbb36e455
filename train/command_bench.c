/* `kinora bench step`: how fast a training or denoising step is here, beside the matmul peak of the same minute. */
#include "train/commands.h"

#include "core/base/args.h"
#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/random.h"
#include "core/cpu/backend.h"
#include "core/graph/devices.h"
#include "core/graph/twin.h"
#include "dist/backend.h"
#include "dist/comm.h"
#include "train/calibrate.h"
#include "train/fp8.h"
#include "train/median.h"
#include "train/optimizer.h"
#include "train/pass.h"
#include "train/peak.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct Options {
    const char *config, *dtype, *mode, *device, *out;
    int64_t hidden, layers, heads, ffn, tokens, batch, text, channels, steps, threads;
    KnArgInts patch;
    int json, recompute;
} Options;

#define ROW(field, kind_, meta, fallback_, meaning_, ...)                                                              \
    {                                                                                                                  \
        .name = #field, .kind = kind_, .offset = offsetof(Options, field), .metavariable = meta,                       \
        .fallback = fallback_, .meaning = meaning_, __VA_ARGS__                                                        \
    }

static const KnArg rows[] = {
    ROW(config, KN_ARG_STRING, "FILE", NULL, "take model and optimizer from a configuration"),
    ROW(hidden, KN_ARG_INT, "N", NULL, "width; 384 by default", .low = 2, .high = 1 << 16),
    ROW(layers, KN_ARG_INT, "N", NULL, "blocks; 8 by default", .low = 1, .high = 1024),
    ROW(heads, KN_ARG_INT, "N", NULL, "attention heads; 6 by default", .low = 1, .high = 1024),
    ROW(ffn, KN_ARG_INT, "N", NULL, "width of the feed-forward layer; 1536 by default", .low = 1, .high = 1 << 20),
    ROW(tokens, KN_ARG_INT, "N", "2048", "tokens of one clip", .low = 1, .high = 1 << 24),
    ROW(batch, KN_ARG_INT, "N", "2", "clips in a pass", .low = 1, .high = 1 << 20),
    ROW(text, KN_ARG_INT, "N", "64", "text tokens of a clip", .low = 1, .high = 4096),
    ROW(channels, KN_ARG_INT, "N", NULL, "channels; 16 by default", .low = 1, .high = 4096),
    ROW(patch, KN_ARG_INTS, "T,H,W", NULL, "patch; 1,2,2 by default", .low = 1, .high = 256),
    ROW(dtype, KN_ARG_CHOICE, "f32|bf16|fp8", "bf16", "what is computed in; fp8: on GPUs, training"),
    ROW(mode, KN_ARG_CHOICE, "train|sample", "train",
        "a whole training step (forward, backward, update) or one forward"),
    ROW(device, KN_ARG_CHOICE, "auto|cpu|cuda", "auto", "what to run on; auto: a GPU if there is one"),
    ROW(steps, KN_ARG_INT, "N", "7", "timed steps, after two that are not; the median counts", .low = 1, .high = 1e6),
    ROW(threads, KN_ARG_INT, "N", "0", "threads; 0 = all cores", .low = 0, .high = 4096),
    ROW(recompute, KN_ARG_FLAG, NULL, NULL, "recompute each block in the backward"),
    ROW(out, KN_ARG_STRING, "FILE", NULL, "calibrate: write the device here; otherwise to standard output"),
    ROW(json, KN_ARG_FLAG, NULL, NULL, "print one JSON object"),
};

static const KnArgSpec spec = {
    .command = "bench",
    .usage =
        "step [--config FILE | --hidden N --layers N --heads N --ffn N] [--tokens N --batch N] [--mode train|sample]\n"
        "calibrate [--threads N] [--out FILE.yaml]",
    .description =
        "step: times steps of the transformer on random data. FLOP are 2 per multiply-add of matrix products and\n"
        "attention; recomputation is not counted. KINORA_PROFILE=1 adds a table of time by op.\n"
        "calibrate: measures this machine in about half a minute, alone or under mpirun, for `kinora plan\n"
        "--device FILE.yaml`.",
    .examples = "kinora bench step --hidden 384 --layers 8 --heads 6 --tokens 8192 --batch 1 --mode sample\n"
                "kinora bench step --config configs/demo.yaml --tokens 64 --batch 16 --device cpu\n"
                "mpirun --bind-to none -n 2 kinora bench calibrate --out two-ranks.yaml",
    .args = rows,
    .arg_count = sizeof rows / sizeof rows[0],
    .least_positionals = 1,
    .most_positionals = 1,
};

typedef struct Bench {
    const Options *options;
    KnComm *comm;
    KnBackend *backend;
    KnConfig config;
    KnModel model;
    KnLayout layout;
    KnOptimizerState state;
    KnOptimizer *optimizer;
    KnTrainBatch batch;
    KnTrainPass *pass;
    KnFp8State fp8;
    float stats[2];
    int training;
} Bench;

static KnDtype dtype_of(const Bench *b)
{
    return strcmp(b->options->dtype, "f32") ? KN_BF16 : KN_F32;
}

/* The sizes of the command line, each with what it is when left out. */
static int model_of_sizes(const Options *o, KnModelConfig *m)
{
    static const int64_t usual_patch[3] = {1, 2, 2};
    const int64_t *patch = o->patch.count ? o->patch.values : usual_patch;
    if (o->patch.count && o->patch.count != 3)
        return kn_fail(KN_EINPUT, "--patch takes three numbers, as in --patch 1,2,2");
    *m = (KnModelConfig){.hidden = o->hidden ? o->hidden : 384,
                         .layers = o->layers ? o->layers : 8,
                         .heads = o->heads ? o->heads : 6,
                         .ffn = o->ffn ? o->ffn : 1536,
                         .channels = o->channels ? o->channels : 16,
                         .patch = {patch[0], patch[1], patch[2]},
                         .freq_dim = 256,
                         .text_dim = 256,
                         .eps = 1e-6,
                         .cross_attn_norm = 1};
    return KN_OK;
}

static int choose_model(Bench *b)
{
    const Options *o = b->options;
    KnModelConfig *m = &b->config.model;
    int sizes = o->hidden || o->layers || o->heads || o->ffn || o->channels || o->patch.count;
    if (o->config && sizes)
        return kn_fail(KN_EINPUT,
                       "--config already says how large the model is: leave away --hidden, --layers, --heads, "
                       "--ffn, --channels and --patch, or --config");
    if (o->config) {
        KN_TRY(kn_config_load(&b->config, o->config, NULL, 0));
    } else {
        KN_TRY(model_of_sizes(o, m));
        free(b->config.optimizer.name);
        b->config.optimizer.name = kn_strdup("adamw");
        b->config.optimizer.ema = 0;
    }
    m->recompute = o->recompute ? KN_RECOMPUTE_BLOCK : KN_RECOMPUTE_NONE;
    KnTextConfig text = {.kind = KN_TEXT_NONE, .heads = 1, .max_tokens = o->text};
    return kn_model_create(&b->model, m, &text, b->config.flow.prediction, NULL);
}

static void fill_batch(Bench *b, const KnStreamShape *shape)
{
    const Options *o = b->options;
    int64_t dim = kn_model_patch_dim(&b->config.model), side = 1;
    KnRandomKey key = kn_random_key(1, KN_RANDOM_BENCH, 0, 0);
    while (side * side < o->tokens || o->tokens % side || o->tokens / side > KN_ROPE_POSITIONS)
        side++;
    for (int64_t i = 0; i < o->batch; i++)
        kn_stream_add(&b->batch.stream, &(KnStreamClip){.grid = {1, side, o->tokens / side},
                                                        .sigma = ((float)i + 0.5f) / (float)o->batch,
                                                        .text_tokens = o->text});
    kn_random_normal_fill(key, 0, b->batch.patches, shape->tokens * dim);
    kn_random_normal_fill(key, 1u << 30, b->batch.target, shape->tokens * dim);
    for (int64_t i = 0; i < shape->tokens; i++)
        b->batch.weight[i] = 1 / ((float)shape->tokens * (float)dim);
}

static int check_fp8(Bench *b)
{
    b->fp8.used = !strcmp(b->options->dtype, "fp8");
    if (b->fp8.used && !b->training)
        return kn_fail(KN_EINPUT, "--dtype fp8 is for training: denoising steps take --dtype bf16");
    return b->fp8.used ? kn_fp8_check(b->backend, "--dtype fp8") : KN_OK;
}

static int prepare_fp8(Bench *b)
{
    const KnTensor *leaf = kn_train_pass_graph(b->pass)->fp8;
    if (!b->fp8.used)
        return KN_OK;
    kn_fp8_state_create(&b->fp8, leaf->shape[1]);
    kn_executor_bind(kn_train_pass_executor(b->pass), leaf, b->fp8.table);
    return kn_fp8_state_place(&b->fp8, b->backend);
}

static int set_up(Bench *b)
{
    const Options *o = b->options;
    KnStreamShape shape = {o->tokens * o->batch, o->batch, o->text * o->batch};
    KN_TRY(choose_model(b));
    KN_TRY(kn_comm_self_open(&b->comm));
    KN_TRY(kn_backend_open(o->device, b->comm, &b->backend));
    KN_TRY(check_fp8(b));
    KN_TRY(kn_layout_create(&b->layout, &b->model, &(KnLayoutOptions){.parallel = &b->config.parallel, .ranks = 1}));
    KN_TRY(kn_optimizer_state_create(&b->state, &b->layout.zero, &b->config.optimizer));
    kn_layout_init(&b->layout, &b->state.weights, 1);
    KnTrainBatchOptions batch = {
        .flow = &b->config.flow, .shape = shape, .patch_dim = kn_model_patch_dim(&b->config.model)};
    KN_TRY(kn_train_batch_create(&b->batch, &batch));
    fill_batch(b, &shape);
    b->state.overwritten = 1;
    KnTrainPassOptions pass = {.layout = &b->layout,
                               .shape = shape,
                               .dtype = dtype_of(b),
                               .backward = b->training,
                               .only = b->state.overwritten,
                               .fp8 = b->fp8.used,
                               .weights = &b->state.weights,
                               .gradients = &b->state.gradients,
                               .stats = b->stats,
                               .self_pairs = (double)o->tokens * (double)shape.tokens,
                               .cross_pairs = (double)o->text * (double)shape.tokens};
    KN_TRY(kn_optimizer_state_place(&b->state, b->backend));
    KN_TRY(kn_twin_create(b->backend, b->stats, sizeof b->stats, "the step's loss"));
    KN_TRY(kn_train_pass_create(&b->pass, &pass, b->backend));
    kn_train_pass_bind(b->pass, &b->batch);
    KN_TRY(prepare_fp8(b));
    return kn_optimizer_create(&b->optimizer, &b->config.optimizer, &b->layout, &b->state, b->backend);
}

static int one_step(Bench *b, int64_t step)
{
    double norm = 0;
    KN_TRY(kn_train_pass_run(b->pass));
    if (!b->training)
        return kn_twin_pull(b->backend, b->stats, sizeof b->stats); /* waits for the device */
    KN_TRY(kn_optimizer_step(b->optimizer, step, 1 << 20, step, &norm));
    if (b->fp8.used)
        KN_TRY(kn_fp8_state_step(&b->fp8, b->comm, b->backend));
    kn_train_pass_parameters_changed(b->pass);
    return KN_OK;
}

static int measure(Bench *b, double *median)
{
    int64_t count = b->options->steps;
    double *seconds = kn_alloc((size_t)count * sizeof *seconds);
    int code = KN_OK;
    for (int64_t i = -2; i < count && code == KN_OK; i++) {
        double start = kn_seconds_now();
        code = one_step(b, i + 2);
        if (i >= 0)
            seconds[i] = kn_seconds_now() - start;
    }
    *median = kn_median(seconds, count);
    free(seconds);
    return code;
}

static void report(const Bench *b, double seconds, double peak)
{
    const Options *o = b->options;
    double flops = kn_train_pass_flops(b->pass), rate = flops / seconds * 1e-9;
    double tokens = (double)(o->tokens * o->batch) / seconds;
    int64_t parameters = kn_parameter_count(&b->model.parameters);
    if (o->json) {
        printf("{\"device\": \"%s\", \"mode\": \"%s\", \"dtype\": \"%s\", \"parameters\": %lld, \"tokens\": %lld, "
               "\"batch\": %lld, "
               "\"threads\": %d, \"seconds\": %.6g, \"tokens_per_second\": %.6g, \"gflops\": %.6g, "
               "\"matmul_peak_gflops\": %.6g, \"peak_share\": %.4f, \"arena_bytes\": %zu}\n",
               b->backend->name, o->mode, o->dtype, (long long)parameters, (long long)o->tokens, (long long)o->batch,
               kn_cpu_threads(), seconds, tokens, rate, peak, rate / peak, kn_train_pass_plan(b->pass)->arena_bytes);
    } else {
        printf("%s step on %s, %s, %.2f M parameters, %lld x %lld tokens, %d threads\n", o->mode, b->backend->name,
               o->dtype, (double)parameters * 1e-6, (long long)o->batch, (long long)o->tokens, kn_cpu_threads());
        printf("  median  %.2f ms, %.0f tokens/s\n", 1e3 * seconds, tokens);
        printf("  work    %.2f GFLOP, %.0f GFLOP/s, %.0f%% of the matmul peak of %.0f\n", flops * 1e-9, rate,
               100 * rate / peak, peak);
        printf("  arena   %.1f MiB\n", (double)kn_train_pass_plan(b->pass)->arena_bytes / 1048576.0);
    }
    char *profile = kn_train_pass_profile(b->pass), *update = kn_optimizer_profile(b->optimizer);
    if (profile[0])
        fprintf(stderr, "%s%s", profile, b->training ? update : "");
    free(profile);
    free(update);
}

/* Between two measurements of the peak, since machines change their clock. */
static int measure_and_report(Bench *b)
{
    double seconds, before, after;
    KN_TRY(kn_measure_peak(b->backend, dtype_of(b), &before));
    KN_TRY(measure(b, &seconds));
    KN_TRY(kn_measure_peak(b->backend, dtype_of(b), &after));
    report(b, seconds, 1e-9 * (before > after ? before : after));
    return KN_OK;
}

static int bench_step(const Options *options)
{
    Bench b = {.options = options, .training = !strcmp(options->mode, "train")};
    kn_config_init(&b.config);
    kn_cpu_set_threads((int)options->threads);
    int code = set_up(&b);
    if (code == KN_OK)
        code = measure_and_report(&b);
    kn_optimizer_destroy(b.optimizer);
    kn_train_pass_destroy(b.pass);
    kn_train_batch_destroy(&b.batch);
    if (b.backend) {
        kn_optimizer_state_withdraw(&b.state, b.backend);
        kn_fp8_state_withdraw(&b.fp8, b.backend);
        kn_twin_destroy(b.backend, b.stats);
    }
    kn_optimizer_state_clear(&b.state);
    kn_fp8_state_destroy(&b.fp8);
    kn_layout_destroy(&b.layout);
    kn_model_destroy(&b.model);
    kn_config_clear(&b.config);
    kn_backend_close(b.backend);
    return b.comm ? kn_comm_close(b.comm, code) : code;
}

/* Before the time is spent: whether the file can be written. */
static int check_out(const char *path)
{
    KnFileWriter *writer = NULL;
    KN_TRY(kn_file_writer_open(&writer, path));
    kn_file_writer_abort(writer);
    return KN_OK;
}

static int calibrate(const Options *o, KnComm *comm)
{
    KnDevice device;
    KN_TRY(comm->rank == 0 && o->out ? check_out(o->out) : KN_OK);
    int share = kn_cpu_threads() / comm->local_ranks;
    kn_cpu_set_threads(o->threads ? (int)o->threads : share > 1 ? share : 1);
    KN_TRY(kn_calibrate(&device, comm));
    char *yaml = kn_device_to_yaml(&device);
    int code = KN_OK;
    if (comm->rank == 0 && o->out)
        code = kn_file_write(o->out, yaml, strlen(yaml));
    else if (comm->rank == 0)
        fputs(yaml, stdout);
    free(yaml);
    kn_device_clear(&device);
    return code;
}

static int bench_calibrate(const Options *options)
{
    KnComm *comm = NULL;
    KN_TRY(kn_comm_open(&comm));
    return kn_comm_close(comm, calibrate(options, comm));
}

int kn_command_bench(int argc, char **argv)
{
    Options options = {0};
    KnArgList what = {0};
    KN_TRY(kn_args_parse(&spec, argc, argv, &options, &what));
    int code;
    if (!strcmp(what.items[0], "step"))
        code = bench_step(&options);
    else if (!strcmp(what.items[0], "calibrate"))
        code = bench_calibrate(&options);
    else
        code = kn_fail(KN_EINPUT, "there is no benchmark \"%s\": they are step and calibrate", what.items[0]);
    kn_args_clear(&spec, &options, &what);
    return code;
}
