#include "layouts/step.h"

#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/random.h"
#include "core/cpu/backend.h"
#include "core/graph/twin.h"
#include "dist/comm.h"

#include <float.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

enum { TOKENS = 61, CLIPS = 3, TEXT = 17, DIM = 12, MOST_BLOCKS = 32 };

/* One rank's part of a step. */
typedef struct Rank {
    KnLayout layout;
    KnOptimizerState state;
    KnOptimizer *optimizer;
    KnTrainPass *pass, *last;
    KnPackParts parts;
    float stats[2], losses[MOST_PACKS]; /* losses: of the packs of its replica, in the layout-invariant mode */
    double norm;
} Rank;

static int create_rank(Rank *r, const Trial *trial, KnComm *comm)
{
    const World *w = trial->world;
    KnBackend *backend = trial->backend;
    *r = (Rank){0};
    KN_TRY(kn_layout_create(&r->layout, &w->model,
                            &(KnLayoutOptions){.parallel = &trial->parallel,
                                               .training = 1,
                                               .world = comm,
                                               .whole_matrices = kn_optimizer_whole_matrices(&w->optimizer)}));
    KN_TRY(kn_layout_use_device(&r->layout, backend));
    KN_TRY(kn_optimizer_state_create(&r->state, &r->layout.zero, &w->optimizer));
    kn_layout_init(&r->layout, &r->state.weights, 7);
    KN_TRY(kn_optimizer_state_place(&r->state, backend));
    KN_TRY(kn_twin_create(backend, r->stats, sizeof r->stats, "loss"));
    int64_t packs = w->packs / kn_mesh_replicas(&r->layout.mesh);
    if (r->layout.invariant) {
        KN_TRY(kn_pack_parts_create(&r->parts, &r->layout, &(KnStreamShape){TOKENS, CLIPS, TEXT}, packs));
        KN_TRY(kn_pack_parts_place(&r->parts, backend));
        KN_TRY(kn_pack_parts_zero(&r->parts, backend));
    }
    r->state.norm2 = r->layout.invariant ? &r->parts.norm2 : NULL;
    KnTrainPassOptions options = {.layout = &r->layout,
                                  .shape = {TOKENS, CLIPS, TEXT},
                                  .dtype = KN_F32,
                                  .backward = 1,
                                  .weights = &r->state.weights,
                                  .gradients = &r->state.gradients,
                                  .stats = r->stats,
                                  .parts = r->layout.invariant ? &r->parts : NULL};
    KN_TRY(kn_train_pass_create(&r->pass, &options, backend));
    options.reduce = 1;
    options.only = packs == 1;
    KN_TRY(kn_train_pass_create(&r->last, &options, backend));
    return kn_optimizer_create(&r->optimizer, &w->optimizer, &r->layout, &r->state, backend);
}

static int run_packs(Rank *r, const Trial *trial)
{
    int replicas = kn_mesh_replicas(&r->layout.mesh), replica = kn_mesh_replica(&r->layout.mesh);
    const World *w = trial->world;
    for (int i = replica; i < w->packs; i += replicas) {
        KnTrainPass *pass = i + replicas < w->packs ? r->pass : r->last;
        kn_train_pass_bind(pass, &w->batches[i]);
        if (kn_mesh_group_rank(&r->layout.mesh, KN_GROUP_SEQUENCE) == 0)
            r->stats[1] += 1;
        kn_train_pass_set_pack(pass, i / replicas);
        KN_TRY(kn_twin_push(trial->backend, r->stats, sizeof r->stats));
        KN_TRY(kn_train_pass_run(pass));
        KN_TRY(kn_twin_pull(trial->backend, r->stats, sizeof r->stats));
        if (r->layout.invariant) {
            r->losses[i] = r->stats[0];
            r->stats[0] = 0;
        }
    }
    return KN_OK;
}

static void destroy_rank(Rank *r, KnBackend *backend)
{
    kn_optimizer_destroy(r->optimizer);
    kn_train_pass_destroy(r->pass);
    kn_train_pass_destroy(r->last);
    kn_optimizer_state_withdraw(&r->state, backend);
    if (r->layout.invariant)
        kn_pack_parts_withdraw(&r->parts, backend);
    kn_twin_destroy(backend, r->stats);
    kn_pack_parts_clear(&r->parts);
    kn_optimizer_state_clear(&r->state);
    kn_layout_destroy(&r->layout);
}

/* --- Comparing ---------------------------------------------------------------------------------------------------- */

/* 0 where the bits are the same; not a number is infinitely far. */
static float difference(float a, float b)
{
    if (memcmp(&a, &b, sizeof a) == 0)
        return 0;
    if (!isfinite(a))
        return INFINITY;
    return a == b ? FLT_MIN : fabsf(a - b) / fmaxf(fabsf(b), 1e-30f);
}

/* Of what this rank holds of a parameter, against the whole: the largest difference over the largest value. */
static float compare(const Rank *r, const KnParameterValues *values, const KnParameterValues *expected, int index)
{
    const KnParameter *whole = kn_parameter_find(&r->layout.model->parameters, r->layout.part.list[index].name);
    const float *all = kn_parameter_data(expected, whole);
    KnBox box = kn_layout_box(&r->layout, values, index);
    int64_t width = whole->dims > 1 ? whole->shape[1] : 1, rest = whole->elements / (whole->shape[0] * width);
    float largest = 1e-30f, worst = 0;
    for (int64_t i = 0; i < whole->elements; i++)
        largest = fmaxf(largest, fabsf(all[i]));
    for (int64_t row = 0; row < box.count[0]; row++)
        for (int64_t i = 0; i < box.count[1] * rest; i++) {
            float got = box.data[row * box.count[1] * rest + i];
            float want = all[((box.start[0] + row) * width + box.start[1]) * rest + i];
            float bits = difference(got, want);
            worst = fmaxf(worst, bits > 0 && isfinite(bits) ? fmaxf(fabsf(got - want) / largest, FLT_MIN) : bits);
        }
    return worst;
}

static pthread_mutex_t report_mutex = PTHREAD_MUTEX_INITIALIZER;

static void report(Trial *trial, float value, const char *name)
{
    pthread_mutex_lock(&report_mutex);
    if (value > trial->worst) {
        trial->worst = value;
        snprintf(trial->worst_name, sizeof trial->worst_name, "%s", name);
    }
    pthread_mutex_unlock(&report_mutex);
}

/* With ZeRO 1 this rank's range of the buffer is the sum, the rest is used up. */
static KnParameterValues summed_range(const Rank *r, int64_t *first, int64_t *count, float **blocks)
{
    KnParameterValues held = r->state.gradients;
    for (int b = 0; b < r->layout.part.block_count; b++) {
        const int64_t *cuts = kn_zero_cuts(&r->layout.zero, b) + r->layout.zero.rank;
        int cut = r->layout.zero.stage == 1;
        first[b] = cut ? cuts[0] : held.first[b];
        count[b] = cut ? cuts[1] - cuts[0] : held.count[b];
        blocks[b] = held.blocks[b] + (first[b] - held.first[b]);
    }
    return (KnParameterValues){held.set, blocks, first, count};
}

int trial_run(KnComm *comm, Trial *trial)
{
    const World *w = trial->world;
    Rank r;
    KN_TRY(create_rank(&r, trial, comm));
    KN_TRY(run_packs(&r, trial));
    KN_TRY(kn_parameter_values_pull(&r.state.gradients, trial->backend));
    int64_t first[MOST_BLOCKS], count[MOST_BLOCKS];
    float *blocks[MOST_BLOCKS];
    KnParameterValues gradients = summed_range(&r, first, count, blocks);
    for (int i = 0; i < r.layout.part.count; i++)
        report(trial, compare(&r, &gradients, &w->gradients, i), r.layout.part.list[i].name);
    if (w->mode == KN_PARALLEL_FAST) {
        report(trial, difference(r.stats[0], w->stats[0]), "loss");
        report(trial, difference(r.stats[1], w->stats[1]), "packs");
    }
    for (int i = kn_mesh_replica(&r.layout.mesh); i < w->packs; i += kn_mesh_replicas(&r.layout.mesh))
        report(trial, w->mode == KN_PARALLEL_FAST ? 0 : difference(r.losses[i], w->losses[i]), "loss of a pack");
    KN_TRY(kn_optimizer_step(r.optimizer, 0, 10, 0, &r.norm));
    report(trial, difference((float)r.norm, (float)w->norm), "norm");
    KN_TRY(kn_optimizer_state_pull(&r.state, trial->backend));
    for (int i = 0; i < r.layout.part.count; i++) {
        float worst = compare(&r, &r.state.weights, &w->weights, i);
        pthread_mutex_lock(&report_mutex);
        trial->worst_weight = fmaxf(worst, trial->worst_weight);
        pthread_mutex_unlock(&report_mutex);
    }
    destroy_rank(&r, trial->backend);
    return KN_OK;
}

/* --- One process -------------------------------------------------------------------------------------------------- */

static void fill_batch(World *w, int pack)
{
    static const char *const captions[] = {"a red circle moves left", "", "a blue square"};
    static const int64_t grids[CLIPS][3] = {{3, 3, 3}, {2, 3, 4}, {1, 1, 6}};
    KnFlowConfig flow = {.prediction = KN_PREDICT_VELOCITY};
    KnTrainBatchOptions options = {.flow = &flow, .shape = {TOKENS, CLIPS, TEXT}, .patch_dim = DIM};
    KnTrainBatch *batch = &w->batches[pack];
    assert_int_equal(kn_train_batch_create(batch, &options), KN_OK);
    uint8_t given[27];
    for (int i = 0; i < 27; i++)
        given[i] = i % 5 == 0;
    for (int i = 0; i < CLIPS; i++) {
        int which = (i + pack) % CLIPS;
        int32_t ids[8];
        int64_t count = 0;
        assert_int_equal(kn_tokenizer_encode(w->model.tokenizer, captions[which], 5, ids, &count), KN_OK);
        kn_stream_add(&batch->stream, &(KnStreamClip){.grid = {grids[which][0], grids[which][1], grids[which][2]},
                                                      .given = given,
                                                      .sigma = 0.1f + 0.3f * (float)i,
                                                      .text = ids,
                                                      .text_tokens = count});
    }
    kn_random_normal_fill(kn_random_key(1, KN_RANDOM_TEST, 0, (uint64_t)pack), 0, batch->patches, 57 * DIM);
    kn_random_normal_fill(kn_random_key(2, KN_RANDOM_TEST, 0, (uint64_t)pack), 0, batch->target, 57 * DIM);
    for (int i = 0; i < 57; i++)
        batch->weight[i] = i % 7 ? 0.01f : 0;
}

void world_create(World *w, const WorldOptions *o)
{
    static const char *const captions[] = {"a red circle moves left", "a blue square moves right"};
    KnTokenizer *tokenizer = NULL;
    KnModelConfig config = {.hidden = 72,
                            .layers = 2,
                            .heads = o->heads,
                            .ffn = 56,
                            .channels = 3,
                            .patch = {1, 2, 2},
                            .freq_dim = 16,
                            .text_dim = 16,
                            .eps = 1e-6,
                            .cross_attn_norm = 1};
    KnTextConfig text = {.kind = KN_TEXT_TRAINED, .layers = 1, .heads = 2, .vocabulary = 64, .max_tokens = 5};
    *w = (World){.mode = o->mode,
                 .packs = o->packs,
                 .optimizer = {.name = (char *)(uintptr_t)o->optimizer,
                               .lr = 1e-3,
                               .beta1 = 0.9,
                               .beta2 = 0.95,
                               .eps = 1e-3, /* so that the first update is smooth in the gradient */
                               .momentum = 0.9,
                               .newton_schulz_steps = 5,
                               .clip_norm = 0.5,
                               .ema = 0.9}};
    assert_int_equal(kn_tokenizer_train(captions, 2, 64, &tokenizer), KN_OK);
    assert_int_equal(kn_model_create(&w->model, &config, &text, KN_PREDICT_VELOCITY, tokenizer), KN_OK);
    for (int i = 0; i < w->packs; i++)
        fill_batch(w, i);
    assert_int_equal(kn_parameter_values_create(&w->gradients, &w->model.parameters, "gradients"), KN_OK);
    assert_int_equal(kn_parameter_values_create(&w->weights, &w->model.parameters, "weights"), KN_OK);
    Trial alone = {
        .world = w,
        .backend = kn_cpu_backend(),
        .parallel = {.data = 1, .shard = 1, .ulysses = 1, .ring = 1, .tensor = 1, .cfg = 1, .mode = o->mode}};
    KnComm *comm = NULL;
    Rank r;
    assert_int_equal(kn_comm_self_open(&comm), KN_OK);
    assert_int_equal(create_rank(&r, &alone, comm), KN_OK);
    assert_int_equal(run_packs(&r, &alone), KN_OK);
    kn_parameter_values_copy(&w->gradients, &r.state.gradients);
    assert_int_equal(kn_optimizer_step(r.optimizer, 0, 10, 0, &w->norm), KN_OK);
    kn_parameter_values_copy(&w->weights, &r.state.weights);
    memcpy(w->stats, r.stats, sizeof w->stats);
    memcpy(w->losses, r.losses, sizeof w->losses);
    destroy_rank(&r, alone.backend);
    comm->table->destroy(comm);
}

void world_destroy(World *w)
{
    for (int i = 0; i < w->packs; i++)
        kn_train_batch_destroy(&w->batches[i]);
    kn_parameter_values_clear(&w->gradients);
    kn_parameter_values_clear(&w->weights);
    kn_model_destroy(&w->model);
}

/* --- Layouts ------------------------------------------------------------------------------------------------------ */

float world_tolerance(const World *w)
{
    return w->mode == KN_PARALLEL_LAYOUT_INVARIANT ? 0 : 1e-5f;
}

void trial_print(const Trial *trial, const char *comment)
{
    const KnParallelConfig *p = &trial->parallel;
    printf("%d ranks: data %d shard %d ring %d ulysses %d tensor %d, zero %d%s: %.1e (%s), weights %.1e %s\n",
           (int)(p->data * p->shard * p->ulysses * p->ring * p->tensor), (int)p->data, (int)p->shard, (int)p->ring,
           (int)p->ulysses, (int)p->tensor, (int)p->zero, p->text == KN_TEXT_ROWS_CUT ? ", text cut" : "",
           (double)trial->worst, trial->worst_name, (double)trial->worst_weight, comment);
}

int list_layouts(int ranks, KnParallelConfig *list)
{
    int count = 0;
    for (int d = 1; d <= ranks; d++)
        for (int z = 1; z * d <= ranks; z++)
            for (int r = 1; r * z * d <= ranks; r++)
                for (int u = 1; u * r * z * d <= ranks; u++)
                    if (ranks % (d * z * r * u) == 0)
                        list[count++] = (KnParallelConfig){.data = d,
                                                           .shard = z,
                                                           .ring = r,
                                                           .ulysses = u,
                                                           .tensor = ranks / (d * z * r * u),
                                                           .cfg = 1};
    return count;
}
