/* The training loop: what happens in a step, and when to save, validate, draw and stop. */
#include "train/trainer.h"

#include "core/base/draw.h"
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/progress.h"
#include "core/cpu/backend.h"
#include "core/cpu/matmul.h"
#include "dist/comm.h"
#include "train/faults.h"
#include "train/metrics.h"
#include "train/saving.h"
#include "train/state.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct Trainer {
    const KnTrainOptions *options;
    const KnConfig *config;
    KnComm *comm;
    KnTrainState state;
    KnTrainPass *pass, *last_pass, *validation_pass; /* last_pass also sums over ranks; the same as pass on one rank */
    KnOptimizer *optimizer;
    KnTrainBatch batch;
    KnTrainBatchOptions batch_options;
    KnLoader *loader;
    KnMetrics *metrics;
    KnSaving *saving;
    int save_is_due;
    KnProgress progress;
    float stats[2];
    double peak_flops; /* of all ranks */
    int64_t skipped;
} Trainer;

static double now_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* --- Setting up --------------------------------------------------------------------------------------------------- */

static KnStreamShape stream_shape(const KnConfig *c)
{
    KnStreamShape shape = {.tokens = c->data.tokens, .clips = c->data.clips, .text_tokens = c->data.text_tokens};
    if (shape.text_tokens == 0)
        shape.text_tokens = shape.clips * c->text.max_tokens;
    return shape;
}

static int create_pass(Trainer *t, KnTrainPass **pass, int backward, int reduce)
{
    const KnConfig *c = t->config;
    KnTrainPassOptions options = {
        .model = &t->state.model,
        .shape = t->batch_options.shape,
        .dtype = c->train.precision == KN_PRECISION_BF16 ? KN_BF16 : KN_F32,
        .backward = backward,
        .reduce = reduce,
        .comm = t->comm,
        .weights = &t->state.optimizer.weights,
        .gradients = &t->state.optimizer.gradients,
        .stats = t->stats,
        .self_pairs = t->state.pairs_per_token * (double)c->data.tokens,
        .cross_pairs = (double)c->data.tokens * (double)c->text.max_tokens,
    };
    return kn_train_pass_create(pass, &options, kn_cpu_backend());
}

static int create_passes(Trainer *t)
{
    const KnConfig *c = t->config;
    int64_t local_packs = c->train.packs / t->comm->ranks;
    int many = t->comm->ranks > 1;
    if (!many || local_packs > 1)
        KN_TRY(create_pass(t, &t->pass, 1, 0));
    if (many)
        KN_TRY(create_pass(t, &t->last_pass, 1, 1));
    if (c->data.validation_clips > 0 && c->train.validate_every > 0)
        KN_TRY(create_pass(t, &t->validation_pass, 0, many));
    KN_TRY(kn_train_batch_create(&t->batch, &t->batch_options));
    KnTrainPass *passes[] = {t->pass, t->last_pass, t->validation_pass};
    for (int i = 0; i < 3; i++)
        if (passes[i])
            kn_train_pass_bind(passes[i], &t->batch);
    if (!t->last_pass)
        t->last_pass = t->pass;
    return kn_optimizer_create(&t->optimizer, &c->optimizer, &t->state.optimizer, kn_cpu_backend());
}

static KnLoaderOptions loader_options(const Trainer *t, int validation)
{
    const KnConfig *c = t->config;
    return (KnLoaderOptions){.dataset = t->state.dataset,
                             .tokenizer = t->state.model.tokenizer,
                             .data = &c->data,
                             .max_text_tokens = c->text.max_tokens,
                             .caption_dropout = c->flow.caption_dropout,
                             .packs_per_step = c->train.packs,
                             .seed = (uint64_t)c->run_seed,
                             .first_step = t->state.data_step,
                             .rank = t->comm->rank,
                             .ranks = t->comm->ranks,
                             .validation = validation};
}

static void report_plan(const Trainer *t)
{
    char *memory = kn_plan_report(kn_train_pass_plan(t->last_pass));
    int64_t count = kn_parameter_count(&t->state.model.parameters);
    kn_log("%.2f M parameters, %lld tokens in %lld packs a step, %s on %d rank%s x %d thread%s", (double)count * 1e-6,
           (long long)(t->config->data.tokens * t->config->train.packs), (long long)t->config->train.packs,
           t->config->train.precision == KN_PRECISION_BF16 ? "bf16" : "f32", t->comm->ranks,
           t->comm->ranks == 1 ? "" : "s", kn_cpu_threads(), kn_cpu_threads() == 1 ? "" : "s");
    kn_log("memory of one pass:\n%s%lld packs an epoch, %.2f%% of the token budget unused", memory,
           (long long)kn_loader_epoch_packs(t->loader), 100 * kn_loader_waste(t->loader));
    free(memory);
}

static int measure_peak(Trainer *t)
{
    KnDtype dtype = t->config->train.precision == KN_PRECISION_BF16 ? KN_BF16 : KN_F32;
    float peak = (float)kn_matmul_peak(dtype, 0.2);
    KN_TRY(kn_comm_all_reduce(t->comm, &peak, 1, "matmul peak"));
    t->peak_flops = (double)peak * 1e9;
    kn_log("measured matmul peak: %.0f GFLOP/s", (double)peak);
    return KN_OK;
}

static int set_up(Trainer *t)
{
    const KnConfig *c = t->config;
    KN_TRY(kn_train_state_create(&t->state, c, t->comm, t->options->resume));
    const KnShardFormat *format = kn_dataset_format(t->state.dataset);
    t->batch_options = (KnTrainBatchOptions){.flow = &c->flow,
                                             .shape = stream_shape(c),
                                             .patch_dim = kn_model_patch_dim(&c->model),
                                             .kind = format->kind,
                                             .seed = (uint64_t)c->run_seed};
    KN_TRY(create_passes(t));
    KnLoaderOptions loader = loader_options(t, 0);
    KN_TRY(kn_loader_open(&t->loader, &loader));
    KN_TRY(measure_peak(t));
    report_plan(t);
    if (t->comm->rank == 0)
        KN_TRY(kn_metrics_open(&t->metrics, c->run_dir, t->state.step));
    return kn_saving_create(&t->saving, c, t->comm, t->metrics, &t->state);
}

/* --- One step ----------------------------------------------------------------------------------------------------- */

static int run_packs(Trainer *t, KnStepMetrics *m)
{
    int64_t local_packs = t->config->train.packs / t->comm->ranks, step_tokens = 0;
    t->stats[0] = t->stats[1] = 0;
    for (int64_t i = 0; i < local_packs; i++) {
        const KnBatch *pack = NULL;
        KN_TRY(kn_loader_next(t->loader, &pack));
        KN_ASSERT(pack->step == t->state.data_step);
        m->wait_seconds += pack->wait_seconds;
        m->clips = pack->step_clips;
        step_tokens = pack->step_tokens;
        kn_train_batch_fill(&t->batch, &t->batch_options, pack);
        t->stats[1] += (float)t->batch.denoised_tokens;
        KN_TRY(kn_train_pass_run(i + 1 == local_packs ? t->last_pass : t->pass));
    }
    m->tokens = step_tokens;
    m->loss = (double)t->stats[0] * (double)step_tokens / (double)t->stats[1];
    return KN_OK;
}

static void parameters_changed(Trainer *t)
{
    if (t->pass)
        kn_train_pass_parameters_changed(t->pass);
    kn_train_pass_parameters_changed(t->last_pass);
}

/* The update, unless the loss already says that this step is to change nothing. */
static int update(Trainer *t, KnStepMetrics *m, KnFault *fault)
{
    const KnConfig *c = t->config;
    *fault = kn_fault_of_loss(&t->state.trend, &c->train, m->loss);
    m->learning_rate = c->optimizer.lr * kn_learning_rate_factor(&c->optimizer, t->state.step, c->train.steps);
    if (fault->action == KN_FAULT_WARN) {
        KN_TRY(kn_optimizer_step(t->optimizer, t->state.step, c->train.steps, t->state.updates, &m->gradient_norm));
        kn_fault_add_norm(fault, &c->train, m->gradient_norm);
        parameters_changed(t);
    } else {
        m->gradient_norm = NAN;
        kn_parameter_values_zero(&t->state.optimizer.gradients);
    }
    m->zscore = fault->zscore;
    m->fault = fault->kind ? kn_fault_name(fault->kind) : NULL;
    m->skipped = fault->action != KN_FAULT_WARN;
    return KN_OK;
}

static int run_step(Trainer *t, KnStepMetrics *m, KnFault *fault)
{
    const KnConfig *c = t->config;
    double start = now_seconds();
    *m = (KnStepMetrics){.step = t->state.step + 1};
    KN_TRY(run_packs(t, m));
    KN_TRY(update(t, m, fault));
    t->state.step++;
    t->state.data_step++;
    t->state.updates += !m->skipped;
    t->skipped += m->skipped;
    if (m->fault && t->comm->rank == 0)
        kn_warn("step %lld: its %s%s", (long long)m->step,
                fault->kind == KN_FAULT_SPIKE ? "loss is far above the trend" : "loss or gradient is not finite",
                m->skipped ? ", it changed nothing" : "");
    m->seconds = now_seconds() - start;
    m->tokens_per_second = (double)m->tokens / m->seconds;
    m->peak_share = kn_train_pass_flops(t->last_pass) * (double)c->train.packs / m->seconds / fmax(t->peak_flops, 1);
    return KN_OK;
}

/* --- Now and then ------------------------------------------------------------------------------------------------- */

static int validate(Trainer *t)
{
    KnLoader *loader = NULL;
    KnLoaderOptions options = loader_options(t, 1);
    KnTrainBatchOptions batch = t->batch_options;
    const KnBatch *pack = NULL;
    float sums[2] = {0};
    batch.validation = 1;
    kn_train_pass_parameters_changed(t->validation_pass);
    KN_TRY(kn_loader_open(&loader, &options));
    int code;
    while ((code = kn_loader_next(loader, &pack)) == KN_OK) {
        t->stats[0] = t->stats[1] = 0;
        kn_train_batch_fill(&t->batch, &batch, pack);
        KN_TRY_GOTO(code, kn_train_pass_run(t->validation_pass), done);
        sums[0] += t->stats[0] * (float)pack->step_tokens;
        sums[1] += (float)t->batch.denoised_tokens;
    }
    code = code == KN_END ? KN_OK : code;
    if (code == KN_OK)
        code = kn_comm_all_reduce(t->comm, sums, 2, "validation loss");
    if (code == KN_OK && t->metrics) {
        double loss = (double)sums[0] / (double)sums[1];
        kn_log("step %lld: validation loss %.5f", (long long)t->state.step, loss);
        kn_metrics_validation(t->metrics, t->state.step, loss);
    }
done:
    kn_loader_close(loader);
    return code;
}

static int draw_samples(Trainer *t)
{
    if (t->comm->rank != 0 || !t->options->draw_samples)
        return KN_OK;
    const KnOptimizerState *o = &t->state.optimizer;
    char *folder = kn_format("%s/samples/step-%08lld", t->config->run_dir, (long long)t->state.step);
    int code = kn_make_directories(folder);
    if (code == KN_OK)
        code =
            t->options->draw_samples(&t->state.model, o->average.blocks ? &o->average : &o->weights, t->config, folder);
    free(folder);
    return code;
}

/* 1: the state is that of a checkpoint again. 0 where there is none yet: then the step is merely left out. */
static int roll_back(Trainer *t, const KnStepMetrics *m)
{
    int code = kn_saving_roll_back(t->saving, &t->state, m->fault);
    if (code == KN_END)
        kn_warn("step %lld is left out: there is no checkpoint to go back to yet", (long long)m->step);
    if (code < 0)
        return code == KN_END ? 0 : code;
    t->save_is_due = 0;
    parameters_changed(t);
    return 1;
}

static int is_due(int64_t every, int64_t step)
{
    return every > 0 && step % every == 0;
}

static void show_step(Trainer *t, const KnStepMetrics *m)
{
    if (t->comm->rank == 0 && (is_due(t->config->train.log_every, m->step) || m->step == t->config->train.steps))
        kn_progress_update(&t->progress, m->step, "loss %.5f  grad %.3f  %.0f tokens/s  %.0f%% of peak", m->loss,
                           m->gradient_norm, m->tokens_per_second, 100 * m->peak_share);
}

/* At the end of the run or at a signal. After a step that was not finite the weights are not to be trusted. */
static int save_and_wait(Trainer *t, const KnFault *fault)
{
    if (fault->kind != KN_FAULT_NOT_FINITE)
        return kn_saving_begin(t->saving, &t->state, 1);
    KN_TRY(kn_saving_finish(t->saving));
    return kn_fail(KN_EFORMAT,
                   "step %lld, the last, was not finite and is not saved: the newest checkpoint in %s is what there is",
                   (long long)t->state.step, t->config->run_dir);
}

/* What follows a step that stands. A checkpoint that is due after a bad one waits for the next good one. */
static int after_step(Trainer *t, const KnFault *fault, int stop)
{
    const KnTrainConfig *c = &t->config->train;
    int last = t->state.step == c->steps;
    if (t->validation_pass && (is_due(c->validate_every, t->state.step) || last))
        KN_TRY(validate(t));
    t->save_is_due |= is_due(c->checkpoint_every, t->state.step);
    if (last || stop) {
        KN_TRY(save_and_wait(t, fault));
    } else if (t->save_is_due && fault->action == KN_FAULT_WARN) {
        KN_TRY(kn_saving_begin(t->saving, &t->state, 0));
        t->save_is_due = 0;
    }
    return is_due(c->sample_every, t->state.step) ? draw_samples(t) : KN_OK;
}

static int train_steps(Trainer *t)
{
    const KnTrainConfig *c = &t->config->train;
    int stop = 0;
    while (t->state.step < c->steps && !stop) {
        KnStepMetrics metrics;
        KnFault fault;
        KN_TRY(run_step(t, &metrics, &fault));
        if (t->metrics)
            kn_metrics_step(t->metrics, &metrics);
        show_step(t, &metrics);
        KN_TRY(kn_saving_agree(t->saving, &stop));
        int rolled_back = fault.action == KN_FAULT_ROLLBACK ? roll_back(t, &metrics) : 0;
        KN_TRY(rolled_back);
        if (!rolled_back)
            KN_TRY(after_step(t, &fault, stop));
    }
    return stop && t->state.step < c->steps ? KN_TRAIN_STOPPED : KN_TRAIN_DONE;
}

static void print_profile(const Trainer *t)
{
    char *pass = kn_train_pass_profile(t->last_pass), *update = kn_optimizer_profile(t->optimizer);
    if (pass[0])
        kn_log("time by op\n%s%s", pass, update);
    free(pass);
    free(update);
}

int kn_train(const KnTrainOptions *options, KnComm *comm)
{
    Trainer t = {.options = options, .config = options->config, .comm = comm};
    int code = set_up(&t);
    if (code == KN_OK) {
        kn_progress_begin(
            &t.progress, &(KnProgressOptions){
                             .label = "train", .unit = "steps", .total = t.config->train.steps, .start = t.state.step});
        code = train_steps(&t);
        kn_progress_end(&t.progress, NULL);
        print_profile(&t);
        if (t.skipped)
            kn_warn("%lld steps changed nothing, since their loss or gradient was bad", (long long)t.skipped);
    }
    kn_saving_destroy(t.saving);
    int closed = kn_metrics_close(t.metrics);
    kn_loader_close(t.loader);
    kn_train_batch_destroy(&t.batch);
    kn_optimizer_destroy(t.optimizer);
    if (t.pass != t.last_pass)
        kn_train_pass_destroy(t.pass);
    kn_train_pass_destroy(t.last_pass);
    kn_train_pass_destroy(t.validation_pass);
    kn_train_state_destroy(&t.state);
    return code < 0 || closed == KN_OK ? code : closed;
}
