/* The training loop: what happens in a step, and when to save, validate, draw and stop. */
#include "train/trainer.h"

#include "core/base/activity.h"
#include "core/base/clock.h"
#include "core/base/draw.h"
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/progress.h"
#include "core/cpu/backend.h"
#include "core/graph/devices.h"
#include "core/graph/twin.h"
#include "dist/backend.h"
#include "dist/comm.h"
#include "train/faults.h"
#include "train/metrics.h"
#include "train/peak.h"
#include "train/ranks.h"
#include "train/saving.h"
#include "train/state.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct Trainer {
    const KnTrainOptions *options;
    const KnConfig *config;
    KnComm *comm;
    KnBackend *backend;
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
    KnRankTimes times;
    KnPackParts parts;      /* of the layout-invariant mode, as are: */
    float (*pack_stats)[2]; /* [packs here]: loss and denoised tokens of each */
    double peak_flops;      /* of all ranks */
    int64_t skipped;
    int stop; /* a signal asked any rank to end the run */
} Trainer;

/* --- Setting up --------------------------------------------------------------------------------------------------- */

static KnStreamShape stream_shape(const KnConfig *c)
{
    KnStreamShape shape = {.tokens = c->data.tokens, .clips = c->data.clips, .text_tokens = c->data.text_tokens};
    if (shape.text_tokens == 0)
        shape.text_tokens = shape.clips * c->text.max_tokens;
    return shape;
}

/* Of a step's packs, those of this rank. */
static int64_t packs_here(const Trainer *t)
{
    return t->config->train.packs / kn_mesh_replicas(&t->state.layout.mesh);
}

static int create_pass(Trainer *t, KnTrainPass **pass, int backward, int reduce)
{
    const KnConfig *c = t->config;
    KnTrainPassOptions options = {
        .layout = &t->state.layout,
        .shape = t->batch_options.shape,
        .dtype = c->train.precision == KN_PRECISION_F32 ? KN_F32 : KN_BF16,
        .fp8 = backward && t->state.fp8.used,
        .backward = backward,
        .reduce = reduce,
        .only = t->state.optimizer.overwritten,
        .weights = &t->state.optimizer.weights,
        .gradients = &t->state.optimizer.gradients,
        .stats = t->stats,
        .parts = backward && t->state.layout.invariant ? &t->parts : NULL,
        .self_pairs = t->state.pairs_per_token * (double)c->data.tokens,
        .cross_pairs = (double)c->data.tokens * (double)c->text.max_tokens,
        .beside = t->pass ? t->pass : t->last_pass,
    };
    return kn_train_pass_create(pass, &options, t->backend);
}

static int prepare_invariant_mode(Trainer *t)
{
    const KnConfig *c = t->config;
    if (!t->state.layout.invariant)
        return KN_OK;
    if (c->train.precision != KN_PRECISION_F32)
        return kn_fail(KN_EINPUT, "parallel.mode layout_invariant computes in f32: set train.precision to f32");
    t->pack_stats = kn_alloc((size_t)packs_here(t) * sizeof *t->pack_stats);
    t->state.optimizer.norm2 = &t->parts.norm2;
    KN_TRY(kn_pack_parts_create(&t->parts, &t->state.layout, &t->batch_options.shape, packs_here(t)));
    return kn_pack_parts_place(&t->parts, t->backend);
}

/* The validation loss is found in bf16, as are sampled clips. */
static int prepare_fp8(Trainer *t)
{
    KnFp8State *fp8 = &t->state.fp8;
    KnTrainPass *passes[] = {t->pass, t->last_pass};
    if (!fp8->used)
        return KN_OK;
    kn_fp8_state_create(fp8, kn_train_pass_graph(t->last_pass)->fp8->shape[1]);
    for (int i = 0; i < 2; i++)
        if (passes[i])
            kn_executor_bind(kn_train_pass_executor(passes[i]), kn_train_pass_graph(passes[i])->fp8, fp8->table);
    return kn_fp8_state_place(fp8, t->backend);
}

static int create_passes(Trainer *t)
{
    const KnConfig *c = t->config;
    int64_t local_packs = packs_here(t);
    KN_TRY(prepare_invariant_mode(t));
    t->state.optimizer.overwritten = local_packs == 1 && !t->state.layout.invariant;
    int many = t->comm->ranks > 1 || t->state.layout.invariant;
    if (!many || local_packs > 1)
        KN_TRY(create_pass(t, &t->pass, 1, 0));
    if (many)
        KN_TRY(create_pass(t, &t->last_pass, 1, 1));
    if (c->data.validation_clips > 0 && c->train.validate_every > 0)
        KN_TRY(create_pass(t, &t->validation_pass, 0, 0));
    KN_TRY(kn_train_batch_create(&t->batch, &t->batch_options));
    KnTrainPass *passes[] = {t->pass, t->last_pass, t->validation_pass};
    for (int i = 0; i < 3; i++)
        if (passes[i])
            kn_train_pass_bind(passes[i], &t->batch);
    if (!t->last_pass)
        t->last_pass = t->pass;
    t->batch_options.rows = kn_train_pass_graph(t->last_pass)->tokens;
    KN_TRY(prepare_fp8(t));
    return kn_optimizer_create(&t->optimizer, &c->optimizer, &t->state.layout, &t->state.optimizer, t->backend);
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
                             .rank = kn_mesh_replica(&t->state.layout.mesh),
                             .ranks = kn_mesh_replicas(&t->state.layout.mesh),
                             .validation = validation};
}

/* Of the passes that take turns in one arena, that which fills it. */
static const KnPlan *largest_plan(const Trainer *t)
{
    const KnPlan *last = kn_train_pass_plan(t->last_pass), *others = t->pass ? kn_train_pass_plan(t->pass) : last;
    return others->arena_bytes > last->arena_bytes ? others : last;
}

static void report_plan(const Trainer *t)
{
    char *memory = kn_plan_report(largest_plan(t));
    int64_t count = kn_parameter_count(&t->state.model.parameters);
    kn_log("%.2f M parameters, %lld tokens in %lld packs a step, %s on %d rank%s x %d thread%s", (double)count * 1e-6,
           (long long)(t->config->data.tokens * t->config->train.packs), (long long)t->config->train.packs,
           kn_precision_name(t->config->train.precision), t->comm->ranks, t->comm->ranks == 1 ? "" : "s",
           kn_cpu_threads(), kn_cpu_threads() == 1 ? "" : "s");
    kn_log("memory of one pass:\n%s%lld packs an epoch, %.2f%% of the token budget unused", memory,
           (long long)kn_loader_epoch_packs(t->loader), 100 * kn_loader_waste(t->loader));
    free(memory);
}

static int measure_peak(Trainer *t)
{
    KnDtype dtype = t->config->train.precision == KN_PRECISION_F32 ? KN_F32 : KN_BF16;
    double mine;
    KN_TRY(kn_measure_peak(t->backend, dtype, &mine));
    float peak = (float)(mine * 1e-9);
    KN_TRY(kn_comm_all_reduce(t->comm, &peak, 1, "matmul peak"));
    t->peak_flops = (double)peak * 1e9;
    kn_log("measured matmul peak: %.0f GFLOP/s", (double)peak);
    return KN_OK;
}

/* On the backend's device, if it has one. */
static int place_state(Trainer *t)
{
    KN_TRY(kn_layout_use_device(&t->state.layout, t->backend));
    t->state.optimizer.offload = t->config->train.offload;
    KN_TRY(kn_optimizer_state_place(&t->state.optimizer, t->backend));
    t->state.optimizer.loss = t->state.layout.invariant ? NULL : &t->stats[0];
    return kn_twin_create(t->backend, t->stats, sizeof t->stats, "the step's loss");
}

static void withdraw_state(Trainer *t)
{
    if (!t->backend)
        return;
    kn_optimizer_state_withdraw(&t->state.optimizer, t->backend);
    kn_fp8_state_withdraw(&t->state.fp8, t->backend);
    if (t->state.layout.invariant)
        kn_pack_parts_withdraw(&t->parts, t->backend);
    kn_twin_destroy(t->backend, t->stats);
}

/* A pass whose loss is read at once. */
static int run_alone(Trainer *t, KnTrainPass *pass)
{
    KN_TRY(kn_twin_zero(t->backend, t->stats, sizeof t->stats));
    KN_TRY(kn_train_pass_run(pass));
    return kn_twin_pull(t->backend, t->stats, sizeof t->stats);
}

static int set_up(Trainer *t)
{
    const KnConfig *c = t->config;
    kn_activity_set("setting up");
    KN_TRY(kn_backend_open(c->run_device, t->comm, &t->backend));
    if (c->train.precision == KN_PRECISION_FP8)
        KN_TRY(kn_fp8_check(t->backend, "train.precision fp8"));
    KN_TRY(measure_peak(t)); /* while there is room for its matrices */
    KN_TRY(kn_train_state_create(&t->state, c, t->comm, t->options->resume));
    KN_TRY(place_state(t));
    const KnShardFormat *format = kn_dataset_format(t->state.dataset);
    t->batch_options = (KnTrainBatchOptions){.flow = &c->flow,
                                             .shape = stream_shape(c),
                                             .patch_dim = kn_model_patch_dim(&c->model),
                                             .kind = format->kind,
                                             .seed = (uint64_t)c->run_seed};
    KN_TRY(create_passes(t));
    KnLoaderOptions loader = loader_options(t, 0);
    KN_TRY(kn_loader_open(&t->loader, &loader));
    report_plan(t);
    kn_rank_times_create(&t->times, t->comm);
    if (t->comm->rank == 0)
        KN_TRY(kn_metrics_open(&t->metrics, c->run_dir, t->state.step));
    return kn_saving_create(&t->saving, c, t->comm, t->metrics, &t->state);
}

/* --- One step ----------------------------------------------------------------------------------------------------- */

/* A pack's denoised tokens, counted by one of the ranks that share it. */
static float denoised_here(const Trainer *t)
{
    return kn_mesh_group_rank(&t->state.layout.mesh, KN_GROUP_SEQUENCE) == 0 ? (float)t->batch.denoised_tokens : 0;
}

/* Before each pack but the first: the end of a step looks for signals too. */
static int stop_between_packs(Trainer *t, int64_t packs_done)
{
    if (packs_done == 0)
        return KN_OK;
    KN_TRY(kn_comm_stop_agree(t->comm, &t->stop));
    if (t->stop)
        kn_log("step %lld is given up after %lld of %lld packs: a signal asks to stop", (long long)t->state.step + 1,
               (long long)packs_done * kn_mesh_replicas(&t->state.layout.mesh), (long long)t->config->train.packs);
    return KN_OK;
}

/* Sums over all packs in their order, whichever ranks had them: [count] of each rank, whose replica has every
 * replicas-th pack. */
static int sum_in_pack_order(Trainer *t, float (*mine)[2], int64_t count, float sums[2])
{
    int replicas = kn_mesh_replicas(&t->state.layout.mesh), apart = t->comm->ranks / replicas;
    float(*all)[2] = kn_alloc((size_t)(count * t->comm->ranks) * sizeof *all);
    int code = t->comm->table->all_gather(t->comm, mine, all, (size_t)count * sizeof *all, "losses of the packs");
    for (int64_t pack = 0; pack < count * replicas; pack++)
        for (int k = 0; k < 2; k++)
            sums[k] += all[pack % replicas * apart * count + pack / replicas][k];
    free(all);
    return code;
}

/* Passes add to the loss where they run, and nobody waits for it. */
static int add_pack(Trainer *t, int64_t index, int last)
{
    if (index == 0)
        KN_TRY(kn_twin_zero(t->backend, &t->stats[0], sizeof t->stats[0]));
    t->stats[1] += denoised_here(t);
    if (last)
        KN_TRY(kn_twin_push(t->backend, &t->stats[1], sizeof t->stats[1]));
    return kn_train_pass_run(last ? t->last_pass : t->pass);
}

/* Whether a step's loss must be known before its update: where a spike may forbid that. A loss that is not finite is
 * seen by the update itself. */
static int is_judged_first(const Trainer *t)
{
    const KnTrainConfig *c = &t->config->train;
    return t->state.layout.invariant || (c->spike_zscore > 0 && c->on_spike != KN_FAULT_WARN);
}

static int judge(Trainer *t, KnStepMetrics *m, KnFault *fault)
{
    if (!t->state.layout.invariant)
        KN_TRY(kn_twin_pull(t->backend, t->stats, sizeof t->stats));
    m->loss = (double)t->stats[0] * (double)m->tokens / (double)t->stats[1];
    *fault = kn_fault_of_loss(&t->state.trend, &t->config->train, m->loss);
    return KN_OK;
}

static int run_pack(Trainer *t, const KnBatch *pack, int64_t index, int last)
{
    KnTrainPass *pass = last ? t->last_pass : t->pass;
    kn_train_batch_fill(&t->batch, &t->batch_options, pack);
    if (!t->state.layout.invariant)
        return add_pack(t, index, last);
    if (index == 0)
        KN_TRY(kn_pack_parts_zero(&t->parts, t->backend));
    kn_train_pass_set_pack(pass, index);
    KN_TRY(run_alone(t, pass));
    t->pack_stats[index][0] = t->stats[0];
    t->pack_stats[index][1] = (float)t->batch.denoised_tokens;
    t->stats[0] = t->stats[1] = 0;
    return last ? sum_in_pack_order(t, t->pack_stats, index + 1, t->stats) : KN_OK;
}

static int run_packs(Trainer *t, KnStepMetrics *m)
{
    int64_t local_packs = packs_here(t), step_tokens = 0;
    t->stats[0] = t->stats[1] = 0;
    for (int64_t i = 0; i < local_packs; i++) {
        const KnBatch *pack = NULL;
        KN_TRY(stop_between_packs(t, i));
        if (t->stop)
            return KN_OK;
        kn_activity_set("step %lld, reading pack %lld", (long long)m->step, (long long)i + 1);
        KN_TRY(kn_loader_next(t->loader, &pack));
        KN_ASSERT(pack->step == t->state.data_step);
        kn_activity_set("step %lld, pack %lld", (long long)m->step, (long long)i + 1);
        m->wait_seconds += pack->wait_seconds;
        m->clips = pack->step_clips;
        step_tokens = pack->step_tokens;
        KN_TRY(run_pack(t, pack, i, i + 1 == local_packs));
    }
    m->tokens = step_tokens;
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
    kn_activity_set("step %lld, update", (long long)m->step);
    m->learning_rate = c->optimizer.lr * kn_learning_rate_factor(&c->optimizer, t->state.step, c->train.steps);
    m->gradient_norm = NAN;
    if (is_judged_first(t))
        KN_TRY(judge(t, m, fault));
    if (fault->action == KN_FAULT_WARN) {
        KN_TRY(kn_optimizer_step(t->optimizer, t->state.step, c->train.steps, t->state.updates, &m->gradient_norm));
        parameters_changed(t);
    } else {
        KN_TRY(kn_optimizer_state_next(&t->state.optimizer, t->backend));
    }
    if (!is_judged_first(t))
        KN_TRY(judge(t, m, fault));
    kn_fault_add_norm(fault, &c->train, m->gradient_norm);
    m->zscore = fault->zscore;
    m->fault = fault->kind ? kn_fault_name(fault->kind) : NULL;
    m->skipped = fault->action != KN_FAULT_WARN;
    return KN_OK;
}

/* A step that a signal stops between two packs has changed nothing that is saved. */
static int run_step(Trainer *t, KnStepMetrics *m, KnFault *fault)
{
    double start = kn_seconds_now();
    *fault = (KnFault){.action = KN_FAULT_WARN};
    *m = (KnStepMetrics){.step = t->state.step + 1};
    kn_rank_times_begin(&t->times);
    KN_TRY(run_packs(t, m));
    if (t->stop)
        return KN_OK;
    KN_TRY(update(t, m, fault));
    if (t->state.fp8.used)
        KN_TRY(kn_fp8_state_step(&t->state.fp8, t->comm, t->backend));
    t->state.step++;
    t->state.data_step++;
    t->state.updates += !m->skipped;
    t->skipped += m->skipped;
    if (m->fault && t->comm->rank == 0)
        kn_warn("step %lld: its %s%s", (long long)m->step,
                fault->kind == KN_FAULT_SPIKE ? "loss is far above the trend" : "loss or gradient is not finite",
                m->skipped ? ", it changed nothing" : "");
    m->seconds = kn_seconds_now() - start;
    kn_rank_times_end(&t->times, m->seconds);
    m->tokens_per_second = (double)m->tokens / m->seconds;
    m->peak_share = kn_train_pass_flops(t->last_pass) * (double)(packs_here(t) * t->comm->ranks) / m->seconds /
                    fmax(t->peak_flops, 1);
    return KN_OK;
}

/* --- Now and then ------------------------------------------------------------------------------------------------- */

/* Every rank takes part in as many passes as any other, since they may exchange weights and tokens: where packs have
 * run out, with an empty one. results [passes]: each pack's loss times tokens, and denoised tokens. */
static int run_validation_packs(Trainer *t, KnLoader *loader, int64_t passes, float (*results)[2])
{
    KnTrainBatchOptions batch = t->batch_options;
    batch.validation = 1;
    for (int64_t i = 0; i < passes; i++) {
        const KnBatch *pack = NULL;
        int code = kn_loader_next(loader, &pack);
        KN_TRY(code == KN_END ? KN_OK : code);
        kn_train_batch_fill(&t->batch, &batch, pack ? pack : &(KnBatch){.step_tokens = 1});
        KN_TRY(run_alone(t, t->validation_pass));
        results[i][0] = pack ? t->stats[0] * (float)pack->step_tokens : 0;
        results[i][1] = pack ? (float)t->batch.denoised_tokens : 0;
    }
    return KN_OK;
}

/* A pack's loss is in parts on the ranks of its sequence; in the layout-invariant mode each has all of it. */
static int sum_validation(Trainer *t, float (*results)[2], int64_t passes, float sums[2])
{
    const KnMesh *mesh = &t->state.layout.mesh;
    if (t->state.layout.invariant)
        return sum_in_pack_order(t, results, passes, sums);
    for (int64_t i = 0; i < passes && kn_mesh_group_rank(mesh, KN_GROUP_TENSOR) == 0; i++) {
        sums[0] += results[i][0];
        sums[1] += kn_mesh_group_rank(mesh, KN_GROUP_SEQUENCE) == 0 ? results[i][1] : 0;
    }
    return kn_comm_all_reduce(t->comm, sums, 2, "validation loss");
}

static int validate(Trainer *t)
{
    KnLoader *loader = NULL;
    KnLoaderOptions options = loader_options(t, 1);
    float sums[2] = {0};
    kn_activity_set("step %lld, validation", (long long)t->state.step);
    kn_train_pass_parameters_changed(t->validation_pass);
    KN_TRY(kn_loader_open(&loader, &options));
    int64_t replicas = options.ranks, passes = (kn_loader_epoch_packs(loader) + replicas - 1) / replicas;
    float(*results)[2] = kn_alloc((size_t)passes * sizeof *results);
    int code = run_validation_packs(t, loader, passes, results);
    if (code == KN_OK)
        code = sum_validation(t, results, passes, sums);
    free(results);
    kn_loader_close(loader);
    if (code == KN_OK && t->metrics) {
        double loss = (double)sums[0] / (double)sums[1];
        kn_log("step %lld: validation loss %.5f", (long long)t->state.step, loss);
        kn_metrics_validation(t->metrics, t->state.step, loss);
    }
    return code;
}

static int draw_samples(Trainer *t)
{
    if (!t->options->draw_samples)
        return KN_OK;
    const KnOptimizerState *o = &t->state.optimizer;
    kn_activity_set("step %lld, drawing samples", (long long)t->state.step);
    char *folder = kn_format("%s/samples/step-%08lld", t->config->run_dir, (long long)t->state.step);
    int code = t->options->draw_samples(&t->state.layout, o->average.blocks ? &o->average : &o->weights, t->config,
                                        t->backend, folder);
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
    KN_TRY(kn_optimizer_state_push(&t->state.optimizer, t->backend));
    if (t->state.fp8.used)
        KN_TRY(kn_fp8_state_push(&t->state.fp8, t->backend));
    parameters_changed(t);
    return 1;
}

static int is_due(int64_t every, int64_t step)
{
    return every > 0 && step % every == 0;
}

static int is_shown(const Trainer *t, int64_t step)
{
    return is_due(t->config->train.log_every, step) || step == t->config->train.steps;
}

static int report_ranks(Trainer *t, KnStepMetrics *m)
{
    if (t->comm->ranks == 1 || !is_shown(t, m->step))
        return KN_OK;
    KN_TRY(kn_rank_times_report(&t->times));
    m->ranks = t->comm->ranks;
    m->rank_work = t->times.of_ranks;
    m->slowest_rank = t->times.slowest;
    return KN_OK;
}

static void show_step(Trainer *t, const KnStepMetrics *m)
{
    if (t->comm->rank == 0 && is_shown(t, m->step))
        kn_progress_update(&t->progress, m->step, "loss %.5f  grad %.3f  %.0f tokens/s  %.0f%% of peak", m->loss,
                           m->gradient_norm, m->tokens_per_second, 100 * m->peak_share);
}

static int begin_saving(Trainer *t, int wait)
{
    KN_TRY(kn_optimizer_state_pull(&t->state.optimizer, t->backend));
    return kn_saving_begin(t->saving, &t->state, wait);
}

/* At the end of the run or at a signal. After a step that was not finite the weights are not to be trusted. */
static int save_and_wait(Trainer *t, const KnFault *fault)
{
    kn_activity_set("step %lld, saving a checkpoint", (long long)t->state.step);
    if (fault->kind != KN_FAULT_NOT_FINITE)
        return begin_saving(t, 1);
    KN_TRY(kn_saving_finish(t->saving));
    return kn_fail(KN_EFORMAT,
                   "step %lld, the last, was not finite and is not saved: the newest checkpoint in %s is what there is",
                   (long long)t->state.step, t->config->run_dir);
}

/* What follows a step that stands. A checkpoint that is due after a bad one waits for the next good one. */
static int after_step(Trainer *t, const KnFault *fault)
{
    const KnTrainConfig *c = &t->config->train;
    int last = t->state.step == c->steps;
    if (t->validation_pass && (is_due(c->validate_every, t->state.step) || last))
        KN_TRY(validate(t));
    t->save_is_due |= is_due(c->checkpoint_every, t->state.step);
    if (last || t->stop) {
        KN_TRY(save_and_wait(t, fault));
    } else if (t->save_is_due && fault->action == KN_FAULT_WARN) {
        KN_TRY(begin_saving(t, 0));
        t->save_is_due = 0;
    }
    return is_due(c->sample_every, t->state.step) ? draw_samples(t) : KN_OK;
}

static int train_step(Trainer *t)
{
    KnStepMetrics metrics;
    KnFault fault;
    KN_TRY(run_step(t, &metrics, &fault));
    if (t->stop)
        return save_and_wait(t, &fault);
    KN_TRY(report_ranks(t, &metrics));
    if (t->metrics)
        kn_metrics_step(t->metrics, &metrics);
    show_step(t, &metrics);
    KN_TRY(kn_saving_agree(t->saving, &t->stop));
    int rolled_back = fault.action == KN_FAULT_ROLLBACK ? roll_back(t, &metrics) : 0;
    KN_TRY(rolled_back);
    return rolled_back ? KN_OK : after_step(t, &fault);
}

static int train_steps(Trainer *t)
{
    int64_t steps = t->config->train.steps;
    while (t->state.step < steps && !t->stop)
        KN_TRY(train_step(t));
    return t->stop && t->state.step < steps ? KN_TRAIN_STOPPED : KN_TRAIN_DONE;
}

static void print_profile(const Trainer *t)
{
    char *pass = kn_train_pass_profile(t->last_pass), *update = kn_optimizer_profile(t->optimizer);
    if (pass[0])
        kn_log("time by op\n%s%s", pass, update);
    free(pass);
    free(update);
}

/* Closing on a full disk fails too, but that is not why the run ends. */
static int close_metrics(Trainer *t, int code)
{
    char *sentence = kn_strdup(kn_error_message());
    int closed = kn_metrics_close(t->metrics);
    if (code < 0)
        kn_fail(code, "%s", sentence);
    free(sentence);
    return code < 0 || closed == KN_OK ? code : closed;
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
        kn_progress_update(&t.progress, t.state.step, NULL); /* the last step may not have been shown */
        kn_progress_end(&t.progress, NULL);
        print_profile(&t);
        if (t.skipped)
            kn_warn("%lld steps changed nothing, since their loss or gradient was bad", (long long)t.skipped);
    }
    kn_saving_destroy(t.saving);
    code = close_metrics(&t, code);
    kn_loader_close(t.loader);
    kn_train_batch_destroy(&t.batch);
    kn_optimizer_destroy(t.optimizer);
    if (t.pass != t.last_pass)
        kn_train_pass_destroy(t.pass);
    kn_train_pass_destroy(t.last_pass);
    kn_train_pass_destroy(t.validation_pass);
    withdraw_state(&t);
    kn_pack_parts_clear(&t.parts);
    kn_rank_times_destroy(&t.times);
    free(t.pack_stats);
    kn_train_state_destroy(&t.state);
    kn_backend_close(t.backend);
    return code;
}
