/* Plans against what happens: the memory that executors really ask for, budgets that are kept, results that do not
 * change, and a timeline that can be added up by hand. */
#include "base/support.h"

#include "core/base/random.h"
#include "core/cpu/backend.h"
#include "core/ops/ops.h"
#include "dist/sharding.h"
#include "train/optimizer.h"
#include "train/pass.h"
#include "train/step_plan.h"

#include <math.h>

/* --- A backend that counts ---------------------------------------------------------------------------------------- */

static size_t largest_allocation;

static int counting_allocate(KnBackend *backend, void **memory, size_t bytes, const char *what)
{
    (void)backend;
    largest_allocation = bytes > largest_allocation ? bytes : largest_allocation;
    return kn_cpu_backend()->allocate(kn_cpu_backend(), memory, bytes, what);
}

static KnBackend counting_backend(void)
{
    KnBackend backend = *kn_cpu_backend();
    backend.allocate = counting_allocate;
    largest_allocation = 0;
    return backend;
}

/* --- A rank of a layout, as the trainer makes it -------------------------------------------------------------------
 */

typedef struct Rank {
    KnConfig config;
    KnModel model;
    KnLayout layout;
    KnOptimizerState state;
    KnTrainPass *pass, *last;
    KnOptimizer *optimizer;
    float stats[2];
} Rank;

static void configure(Rank *r, const KnParallelConfig *parallel, KnPrecision precision, int64_t recompute)
{
    *r = (Rank){0};
    kn_config_init(&r->config);
    r->config.model = (KnModelConfig){.hidden = 48,
                                      .layers = 5,
                                      .heads = 4,
                                      .ffn = 72,
                                      .channels = 3,
                                      .patch = {1, 2, 2},
                                      .freq_dim = 16,
                                      .text_dim = 20,
                                      .eps = 1e-6,
                                      .cross_attn_norm = 1,
                                      .recompute = recompute};
    r->config.text = (KnTextConfig){.kind = KN_TEXT_NONE, .vocabulary = 64, .layers = 1, .heads = 2, .max_tokens = 6};
    r->config.parallel = *parallel;
    r->config.data.tokens = 131;
    r->config.data.clips = 3;
    r->config.train.precision = precision;
    r->config.train.packs = 12;
    assert_int_equal(kn_model_create(&r->model, &r->config.model, &r->config.text, KN_PREDICT_VELOCITY, NULL), KN_OK);
}

static KnTrainPassOptions pass_options(Rank *r)
{
    double tokens = (double)r->config.data.tokens;
    return (KnTrainPassOptions){.layout = &r->layout,
                                .shape = {r->config.data.tokens, 3, 18},
                                .dtype = r->config.train.precision == KN_PRECISION_BF16 ? KN_BF16 : KN_F32,
                                .backward = 1,
                                .weights = &r->state.weights,
                                .gradients = &r->state.gradients,
                                .stats = r->stats,
                                .self_pairs = tokens * tokens,
                                .cross_pairs = tokens * 6};
}

/* Fresh weights end in zeros, behind which no gradient arrives and nothing shows. */
static void disturb(KnParameterValues *weights)
{
    for (int b = 0; b < weights->set->block_count; b++) {
        float *noise = kn_alloc((size_t)weights->count[b] * sizeof *noise);
        kn_random_normal_fill(kn_random_key(5, KN_RANDOM_TEST, 0, (uint64_t)b), 0, noise, weights->count[b]);
        for (int64_t i = 0; i < weights->count[b]; i++)
            weights->blocks[b][i] += 0.1f * noise[i];
        free(noise);
    }
}

static void create_state(Rank *r, int ranks)
{
    KnLayoutOptions options = {
        .parallel = &r->config.parallel,
        .training = 1,
        .rank = r->config.model.heads % (r->config.parallel.tensor * r->config.parallel.ulysses) ? ranks - 1 : 0,
        .ranks = ranks,
        .whole_matrices = kn_optimizer_whole_matrices(&r->config.optimizer)};
    assert_int_equal(kn_layout_create(&r->layout, &r->model, &options), KN_OK);
    assert_int_equal(kn_optimizer_state_create(&r->state, &r->layout.zero, &r->config.optimizer), KN_OK);
    r->state.loss = &r->stats[0]; /* as training gives it */
    kn_layout_init(&r->layout, &r->state.weights, 3);
    disturb(&r->state.weights);
}

static void destroy(Rank *r)
{
    kn_optimizer_destroy(r->optimizer);
    kn_train_pass_destroy(r->pass);
    kn_train_pass_destroy(r->last);
    kn_optimizer_state_clear(&r->state);
    kn_layout_destroy(&r->layout);
    kn_model_destroy(&r->model);
    kn_config_clear(&r->config);
}

static size_t held_bytes(const KnParameterValues *values)
{
    size_t bytes = 0;
    for (int b = 0; values->blocks && b < values->set->block_count; b++)
        bytes += (size_t)values->count[b] * sizeof(float);
    return bytes;
}

static int product(const KnParallelConfig *p)
{
    return (int)(p->data * p->shard * p->ulysses * p->ring * p->tensor);
}

static KnDevice cpu_like_device(void)
{
    KnDevice device;
    assert_int_equal(kn_device_load(&device, "h200"), KN_OK);
    snprintf(device.backend, sizeof device.backend, "cpu");
    return device;
}

static KnStepPlan plan_of(const Rank *r, const KnDevice *device)
{
    KnStepPlan plan;
    KnStepPlanOptions options = {
        .config = &r->config, .device = device, .cpu = kn_cpu_backend(), .ranks = product(&r->config.parallel)};
    int code = kn_step_plan(&plan, &options);
    if (code < 0)
        print_message("%s\n", kn_error_message());
    assert_int_equal(code, KN_OK);
    return plan;
}

static const KnParallelConfig layouts[] = {
    {.data = 1, .shard = 1, .ulysses = 1, .ring = 1, .tensor = 1, .cfg = 1, .zero = 0},
    {.data = 2, .shard = 1, .ulysses = 1, .ring = 1, .tensor = 1, .cfg = 1, .zero = 0},
    {.data = 1, .shard = 2, .ulysses = 1, .ring = 1, .tensor = 1, .cfg = 1, .zero = 1},
    {.data = 1, .shard = 2, .ulysses = 1, .ring = 1, .tensor = 1, .cfg = 1, .zero = 2},
    {.data = 2, .shard = 2, .ulysses = 1, .ring = 1, .tensor = 1, .cfg = 1, .zero = 3},
    {.data = 1, .shard = 1, .ulysses = 2, .ring = 1, .tensor = 1, .cfg = 1, .zero = 3},
    {.data = 1, .shard = 1, .ulysses = 3, .ring = 1, .tensor = 1, .cfg = 1, .zero = 2},
    {.data = 1, .shard = 1, .ulysses = 1, .ring = 3, .tensor = 1, .cfg = 1, .zero = 0},
    {.data = 2, .shard = 1, .ulysses = 2, .ring = 2, .tensor = 1, .cfg = 1, .zero = 3},
    {.data = 1, .shard = 1, .ulysses = 1, .ring = 1, .tensor = 2, .cfg = 1, .zero = 0},
    {.data = 1, .shard = 2, .ulysses = 2, .ring = 1, .tensor = 2, .cfg = 1, .zero = 1},
};

static void predicted_memory_is_what_is_allocated(void **state)
{
    KnDevice device = cpu_like_device();
    (void)state;
    for (size_t i = 0; i < 2 * sizeof layouts / sizeof *layouts; i++) {
        const KnParallelConfig *parallel = &layouts[i / 2];
        int muon = i % 2, ranks = product(parallel);
        Rank r;
        configure(&r, parallel, i % 2 ? KN_PRECISION_BF16 : KN_PRECISION_F32,
                  i % 3 ? KN_RECOMPUTE_NONE : KN_RECOMPUTE_BLOCK);
        free(r.config.optimizer.name);
        r.config.optimizer.name = kn_strdup(muon ? "muon" : "adamw");
        KnStepPlan plan = plan_of(&r, &device);
        create_state(&r, ranks);
        KnBackend backend = counting_backend();
        KnTrainPassOptions options = pass_options(&r);
        assert_int_equal(kn_train_pass_create(&r.pass, &options, &backend), KN_OK);
        options.reduce = 1;
        options.beside = r.pass;
        if (ranks > 1)
            assert_int_equal(kn_train_pass_create(&r.last, &options, &backend), KN_OK);
        assert_int_equal((size_t)plan.memory[KN_STEP_ARENA], largest_allocation);
        largest_allocation = 0;
        assert_int_equal(kn_optimizer_create(&r.optimizer, &r.config.optimizer, &r.layout, &r.state, &backend), KN_OK);
        assert_int_equal((size_t)plan.memory[KN_STEP_UPDATE], largest_allocation);
        assert_int_equal((size_t)plan.memory[KN_STEP_PARAMETERS], held_bytes(&r.state.weights));
        assert_int_equal((size_t)plan.memory[KN_STEP_GRADIENTS], held_bytes(&r.state.gradients));
        assert_int_equal((size_t)plan.memory[KN_STEP_OPTIMIZER],
                         held_bytes(&r.state.moment1) + held_bytes(&r.state.moment2) + held_bytes(&r.state.average));
        destroy(&r);
    }
    kn_device_clear(&device);
}

/* Blocks are alike, so what two depths say of a third is exact but for gaps, and where a few blocks are fullest
 * elsewhere than many. */
static void deep_models_are_estimated_from_shallow_ones(void **state)
{
    KnDevice device = cpu_like_device();
    (void)state;
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
        Rank r;
        configure(&r, &layouts[i], KN_PRECISION_BF16, i % 2 ? KN_RECOMPUTE_NONE : KN_RECOMPUTE_BLOCK);
        free(r.config.optimizer.name);
        r.config.optimizer.name = kn_strdup(i % 2 ? "muon" : "adamw");
        r.config.model.layers = 14;
        KnStepPlan whole = plan_of(&r, &device), estimate;
        KnStepPlanOptions options = {
            .config = &r.config, .device = &device, .cpu = kn_cpu_backend(), .ranks = product(&layouts[i])};
        assert_int_equal(kn_step_plan_estimate(&estimate, &options), KN_OK);
        assert_true(estimate.memory[KN_STEP_PEAK] > 0.99 * whole.memory[KN_STEP_PEAK]);
        assert_true(estimate.memory[KN_STEP_PEAK] < 1.01 * whole.memory[KN_STEP_PEAK]);
        assert_float_equal(estimate.memory[KN_STEP_PARAMETERS], whole.memory[KN_STEP_PARAMETERS],
                           0.02 * whole.memory[KN_STEP_PARAMETERS]);
        assert_float_equal(estimate.seconds, whole.seconds, 0.02 * whole.seconds);
        assert_float_equal(estimate.flops, whole.flops, 1e-9 * whole.flops);
        assert_int_equal(estimate.blocks, whole.blocks);
        assert_int_equal(estimate.recomputed, whole.recomputed);
        destroy(&r);
    }
    kn_device_clear(&device);
}

/* --- What runs while an exchange is on its way -------------------------------------------------------------------- */

static int place_of(const KnGraph *graph, const KnNode *node)
{
    int place = 0;
    while (graph->nodes[place] != node)
        place++;
    return place;
}

static KnTensor *scale_in_block(KnGraph *graph, KnTensor *x)
{
    kn_block_begin(graph);
    KnTensor *scaled = kn_scale(graph, x, 3);
    kn_block_end(graph);
    return scaled;
}

/* An addition to `sum` of what is found from what arrives, others of what is not, one in a block, one in the next. */
static void waits_come_after_what_is_independent_of_them(void **state)
{
    enum { SCALES = 20 }; /* 4.8 us each, of 19 us of the exchange */
    int64_t shape[2] = {1024, 1024};
    (void)state;
    for (int backward = 0; backward < 2; backward++) {
        KnGraph *graph = kn_graph_create();
        KnTensor *x = kn_leaf(graph, KN_ROLE_INPUT, KN_F32, 2, shape, "x"), *last = x;
        KnTensor *sum = kn_leaf(graph, KN_ROLE_STATE, KN_F32, 2, shape, "sum"),
                 *part = kn_view(graph, sum, 0, 2, shape);
        KnCollective *c = kn_collective_create(graph, KN_SEND_RECEIVE, KN_GROUP_RING, 2, 0, "ring", NULL, NULL);
        graph->in_backward = backward;
        KnTensor *arrived = kn_collective(graph, c, x, 2, shape), *left = kn_scale(graph, arrived, 2);
        kn_accumulate(graph, sum, left);
        const KnNode *first = graph->nodes[graph->node_count - 1];
        KnTensor *comes = kn_scale(graph, x, 3);
        kn_accumulate(graph, part, comes);
        const KnNode *second = graph->nodes[graph->node_count - 1];
        const KnNode *start = kn_collective(graph, c, comes, 2, shape)->producer->inputs[0]->producer;
        const KnNode *in_block = scale_in_block(graph, comes)->producer;
        const KnNode *in_next = scale_in_block(graph, comes)->producer;
        for (int i = 0; i < SCALES; i++)
            last = kn_scale(graph, last, 5);
        kn_fill_waits(graph, 0);
        int waits = place_of(graph, arrived->producer);
        assert_true(place_of(graph, comes->producer) < waits);
        assert_true(place_of(graph, in_block) < waits);
        assert_int_equal(place_of(graph, in_next) < waits, !backward);
        assert_int_equal(waits, backward ? 2 + 2 : 2 + 4); /* after the view, the start and at most 19.2 us */
        assert_true(waits < place_of(graph, left->producer));
        assert_true(waits < place_of(graph, first) && place_of(graph, first) < place_of(graph, second));
        assert_true(waits < place_of(graph, start));
        kn_graph_destroy(graph);
    }
}

/* --- Budgets ------------------------------------------------------------------------------------------------------ */

typedef struct Result {
    size_t arena;
    int blocks, recomputed;
    float stats[2];
    float *gradients;
    size_t gradient_bytes;
} Result;

static void fill_batch(KnTrainBatch *batch, const KnTrainBatchOptions *options)
{
    assert_int_equal(kn_train_batch_create(batch, options), KN_OK);
    kn_stream_add(&batch->stream, &(KnStreamClip){.grid = {3, 5, 5}, .sigma = 0.3f, .text_tokens = 5});
    kn_stream_add(&batch->stream, &(KnStreamClip){.grid = {2, 4, 6}, .sigma = 0.7f, .text_tokens = 6});
    kn_random_normal_fill(kn_random_key(1, KN_RANDOM_TEST, 0, 0), 0, batch->patches, 123 * options->patch_dim);
    kn_random_normal_fill(kn_random_key(1, KN_RANDOM_TEST, 0, 1), 0, batch->target, 123 * options->patch_dim);
    for (int i = 0; i < 123; i++)
        batch->weight[i] = 0.01f;
}

static void run_with(int64_t recompute, Result *result)
{
    KnFlowConfig flow = {.prediction = KN_PREDICT_VELOCITY};
    KnTrainBatch batch;
    Rank r;
    configure(&r, &layouts[0], KN_PRECISION_BF16, recompute);
    create_state(&r, 1);
    KnTrainPassOptions options = pass_options(&r);
    KnTrainBatchOptions batch_options = {.flow = &flow, .shape = options.shape, .patch_dim = 12};
    fill_batch(&batch, &batch_options);
    assert_int_equal(kn_train_pass_create(&r.pass, &options, kn_cpu_backend()), KN_OK);
    kn_train_pass_bind(r.pass, &batch);
    assert_int_equal(kn_train_pass_run(r.pass), KN_OK);
    const KnPassGraph *graph = kn_train_pass_graph(r.pass);
    *result = (Result){.arena = kn_train_pass_plan(r.pass)->arena_bytes,
                       .blocks = graph->blocks,
                       .recomputed = graph->recomputed,
                       .gradients = kn_alloc(held_bytes(&r.state.gradients))};
    for (int b = 0; b < r.layout.part.block_count; b++) {
        size_t bytes = (size_t)r.state.gradients.count[b] * sizeof(float);
        memcpy((char *)result->gradients + result->gradient_bytes, r.state.gradients.blocks[b], bytes);
        result->gradient_bytes += bytes;
    }
    memcpy(result->stats, r.stats, sizeof r.stats);
    assert_true(isfinite(r.stats[0]) && r.stats[0] > 0);
    kn_train_batch_destroy(&batch);
    destroy(&r);
}

static void a_budget_is_kept_with_the_fewest_blocks_and_no_bit_changes(void **state)
{
    Result none, all;
    (void)state;
    run_with(KN_RECOMPUTE_NONE, &none);
    run_with(KN_RECOMPUTE_BLOCK, &all);
    assert_true(none.recomputed == 0 && all.recomputed == all.blocks && all.arena < none.arena);
    int seen = 0, fewer = 0;
    for (size_t budget = none.arena; budget >= all.arena;) {
        Result result;
        run_with((int64_t)budget, &result);
        assert_true(result.arena <= budget);
        assert_true(result.recomputed >= fewer); /* one byte less than what the last one took needs more blocks */
        assert_true(budget == none.arena || result.recomputed > fewer || result.recomputed == 0);
        assert_memory_equal(result.stats, none.stats, sizeof none.stats);
        assert_int_equal(result.gradient_bytes, none.gradient_bytes);
        assert_memory_equal(result.gradients, none.gradients, none.gradient_bytes);
        fewer = result.recomputed;
        budget = result.arena - 1;
        seen++;
        free(result.gradients);
    }
    assert_true(seen >= 3);
    free(none.gradients);
    free(all.gradients);
}

static void an_impossible_budget_is_refused_with_what_it_would_take(void **state)
{
    Result all;
    char number[32];
    Rank r;
    (void)state;
    run_with(KN_RECOMPUTE_BLOCK, &all);
    configure(&r, &layouts[0], KN_PRECISION_BF16, (int64_t)all.arena - 1);
    create_state(&r, 1);
    KnTrainPassOptions options = pass_options(&r);
    assert_int_equal(kn_train_pass_create(&r.pass, &options, kn_cpu_backend()), KN_EINPUT);
    snprintf(number, sizeof number, "needs %zuB", all.arena);
    assert_non_null(strstr(kn_error_message(), number));
    assert_non_null(strstr(kn_error_message(), "model.recompute"));
    destroy(&r);
    free(all.gradients);
}

static void passes_that_share_an_arena_take_turns(void **state)
{
    KnFlowConfig flow = {.prediction = KN_PREDICT_VELOCITY};
    KnTrainBatch batch;
    Result alone;
    Rank r;
    float loss = 0;
    (void)state;
    run_with(KN_RECOMPUTE_BLOCK, &alone);
    configure(&r, &layouts[0], KN_PRECISION_BF16, KN_RECOMPUTE_BLOCK);
    create_state(&r, 1);
    KnTrainPassOptions options = pass_options(&r);
    KnTrainBatchOptions batch_options = {.flow = &flow, .shape = options.shape, .patch_dim = 12};
    fill_batch(&batch, &batch_options);
    options.backward = 0; /* the smaller one first: the arena must grow; float32, so that nothing lies where it did */
    options.dtype = KN_F32;
    assert_int_equal(kn_train_pass_create(&r.last, &options, kn_cpu_backend()), KN_OK);
    options.backward = 1;
    options.dtype = KN_BF16;
    options.beside = r.last;
    assert_int_equal(kn_train_pass_create(&r.pass, &options, kn_cpu_backend()), KN_OK);
    kn_train_pass_bind(r.pass, &batch);
    kn_train_pass_bind(r.last, &batch);
    for (int turn = 0; turn < 2; turn++) {
        r.stats[0] = 0;
        assert_int_equal(kn_train_pass_run(r.last), KN_OK);
        loss = turn == 0 ? r.stats[0] : loss;
        assert_memory_equal(&r.stats[0], &loss, sizeof loss);
        r.stats[0] = 0;
        assert_int_equal(kn_train_pass_run(r.pass), KN_OK);
        assert_memory_equal(&r.stats[0], &alone.stats[0], sizeof loss);
        if (turn == 0)
            assert_memory_equal(r.state.gradients.blocks[0], alone.gradients,
                                (size_t)r.state.gradients.count[0] * sizeof(float));
    }
    assert_float_equal(loss, alone.stats[0], 0.01 * alone.stats[0]);
    kn_train_batch_destroy(&batch);
    destroy(&r);
    free(alone.gradients);
}

/* --- Simulated time ----------------------------------------------------------------------------------------------- */

/* A product of 2 x 100^3 FLOP at 1 GFLOP/s takes 2 ms, beside it the sum of 4 MB over two ranks of one node: each sends
 * half twice over a link of 1 GB/s, and there are two messages one after the other. */
static void a_timeline_adds_up_by_hand(void **state)
{
    static const char yaml[] = "name: toy\nbackend: cpu\nmemory: 1GiB\nranks_per_node: 2\n"
                               "inside: {latency: 1e-4, bandwidth: 1e9}\nbetween: {latency: 2e-4, bandwidth: 1e8}\n"
                               "overlap: 1\noverhead: 0\nrates:\n"
                               "- {kind: matmul, points: [[1, 1e9]]}\n- {kind: attention, points: [[1, 1e9]]}\n"
                               "- {kind: memory, points: [[1, 1e9]]}\n";
    static const struct {
        int64_t ranks_per_node;
        double exchange, overlap, exposed;
    } cases[] = {{2, 4.2e-3, 1, 2.2e-3}, {1, 40.4e-3, 1, 38.4e-3}, {2, 4.2e-3, 0.5, 3.2e-3}};
    const char *path = test_path("toy.yaml");
    put_text(path, yaml);
    (void)state;
    KnGraph *graph = kn_graph_create();
    KnTensor *sum = kn_leaf(graph, KN_ROLE_STATE, KN_F32, 1, (int64_t[]){1000000}, "sum");
    KnTensor *a = kn_leaf(graph, KN_ROLE_INPUT, KN_F32, 2, (int64_t[]){100, 100}, "a");
    KnCollective *c =
        kn_collective_create(graph, KN_ALL_REDUCE, KN_GROUP_DATA, 2, 0, "gradients of block 7", NULL, NULL);
    kn_collective_in_place_start(graph, c, sum);
    KnTensor *keep = kn_matmul(graph, a, 0, a, 0, NULL, KN_F32);
    kn_collective_in_place_wait(graph, c, sum);
    kn_graph_finish(graph, &keep, 1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        KnDevice device;
        KnMesh mesh;
        KnTimeline t = {0};
        assert_int_equal(kn_device_load(&device, path), KN_OK);
        device.ranks_per_node = cases[i].ranks_per_node;
        device.overlap = cases[i].overlap;
        assert_int_equal(
            kn_mesh_create(
                &mesh,
                &(KnParallelConfig){.data = 2, .shard = 1, .ulysses = 1, .ring = 1, .tensor = 1, .cfg = 1, .zero = 0},
                0, 2),
            KN_OK);
        kn_timeline_run(&t,
                        &(KnTimelineRun){.graph = graph, .device = &device, .mesh = &mesh, .prologue = 1, .ranges = 1});
        assert_float_equal(t.by_kind[KN_TIME_MATMUL], 2e-3, 1e-9);
        assert_int_equal(t.exchange_count, 1);
        assert_string_equal(t.exchanges[0].name, "gradients of block");
        assert_float_equal(t.exchanges[0].seconds, cases[i].exchange, 1e-9);
        assert_float_equal(t.exchanges[0].exposed, cases[i].exposed, 1e-9);
        assert_float_equal(t.now, 2e-3 + cases[i].exposed, 1e-9);
        kn_device_clear(&device);
    }
    kn_graph_destroy(graph);
}

/* 1 MB at 1 GB/s takes 1 ms; what only 1 kB at once and 10 microseconds of latency allow, 100 MB/s, ten times as long.
 */
static void kernels_are_priced_by_hand(void **state)
{
    static const struct {
        KnKernelWork kernel;
        double launch, seconds;
    } cases[] = {{{"add", 1, 1e6, 0}, 0, 1e-3 + 1e-6},    {{"add", 4, 1e6, 0}, 0, 1e-3 + 4e-6},
                 {{"fast", 1, 1e6, 0}, 0, 1e-4 + 1e-6},   {{"add", 1, 1e6, 1e3}, 0, 1e-2 + 1e-6},
                 {{"add", 1, 1e6, 1e5}, 0, 1e-3 + 1e-6},  {{"add", 1, 1e3, 0}, 4e-6, 4e-6},
                 {{"add", 1, 1e6, 0}, 4e-6, 1e-3 + 1e-6}, {{"add", 0, 0, 0}, 4e-6, 0}};
    KnDevice device = {.overhead = 1e-6, .latency = 1e-5};
    (void)state;
    *kn_device_add_rate(&device, "memory", KN_DTYPE_COUNT, 0) =
        (KnRate){.kind = "memory", .dtype = KN_DTYPE_COUNT, .count = 1, .points = {{1, 1e9}}};
    *kn_device_add_rate(&device, "fast", KN_DTYPE_COUNT, 0) =
        (KnRate){.kind = "fast", .dtype = KN_DTYPE_COUNT, .count = 1, .points = {{1, 1e10}}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        device.launch = cases[i].launch;
        assert_float_equal(kn_device_kernel_seconds(&device, &cases[i].kernel, KN_F32, 0), cases[i].seconds, 1e-9);
    }
    kn_device_clear(&device);
}

/* The finer curve of a product or of the own attention, where there is one. */
static void products_and_attention_have_finer_curves(void **state)
{
    static const struct {
        KnNodeWork work;
        int own;
        double seconds;
    } cases[] = {{{.kind = "matmul", .time = KN_TIME_MATMUL, .work = 8}, 0, 8},
                 {{.kind = "matmul", .finer = "matmul_deep", .time = KN_TIME_MATMUL, .work = 8}, 0, 4},
                 {{.kind = "matmul", .finer = "matmul_input", .time = KN_TIME_MATMUL, .work = 8}, 0, 8},
                 {{.kind = "attention", .time = KN_TIME_ATTENTION, .work = 8}, 0, 2},
                 {{.kind = "attention", .time = KN_TIME_ATTENTION, .work = 8}, 1, 1},
                 {{.kind = "attention", .finer = "own_attention", .time = KN_TIME_ATTENTION, .work = 8}, 0, 1},
                 {{.kind = "attention", .finer = "few", .time = KN_TIME_ATTENTION, .work = 8}, 1, 0.5},
                 {{.kind = "attention", .finer = "none", .time = KN_TIME_ATTENTION, .work = 8}, 1, 1},
                 {{.kind = "attention", .finer = "none", .time = KN_TIME_ATTENTION, .work = 8}, 0, 2}};
    static const char *const kinds[] = {"matmul", "matmul_deep", "attention", "own_attention", "few"};
    KnDevice device = {0};
    (void)state;
    for (int i = 0; i < 5; i++) {
        KnRate *rate = kn_device_add_rate(&device, kinds[i], KN_DTYPE_COUNT, 0);
        rate->points[0] = (KnRatePoint){1, (double)(1 << i)};
        rate->count = 1;
    }
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        device.own_attention = cases[i].own;
        assert_float_equal(kn_device_seconds(&device, &cases[i].work), cases[i].seconds, 1e-9);
    }
    kn_device_clear(&device);
}

/* Twelve heads have 60 tiles of 128 at 640 keys and 72 at 641: half of 132 multiprocessors lies between. */
static void attention_that_a_library_does_not_compute_has_own_curves(void **state)
{
    static const struct {
        KnDtype dtype;
        int64_t keys, width;
        int promised;
        const char *forward, *backward;
    } cases[] = {{KN_BF16, 640, 128, 1, NULL, "own_attention_few_keys"},
                 {KN_BF16, 641, 128, 1, NULL, NULL},
                 {KN_BF16, 641, 96, 1, "own_attention", "own_attention_backward"},
                 {KN_BF16, 641, 128, 0, "own_attention", "own_attention_backward"},
                 {KN_F32, 640, 128, 1, "own_attention", "own_attention_backward"}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        enum { QUERIES = 4096, HEADS = 12 };
        KnGraph *graph = kn_graph_create();
        KnTensor *leaves[4], *gradients[3];
        for (int k = 0; k < 3; k++)
            leaves[k] = kn_leaf(graph, KN_ROLE_INPUT, cases[i].dtype, 2,
                                (int64_t[]){k ? cases[i].keys : QUERIES, HEADS * cases[i].width}, "");
        leaves[3] = kn_leaf(graph, KN_ROLE_INPUT, KN_I32, 2, (int64_t[]){1, 4}, "");
        KnTensor *out = kn_attention(graph, leaves[0], leaves[1], leaves[2], leaves[3], HEADS, 1);
        kn_attention_backward(graph, leaves[0], leaves[1], leaves[2], leaves[3], out, out->producer->outputs[1], out,
                              HEADS, 1, 0, gradients);
        if (cases[i].promised) {
            kn_attention_promise_packed(out);
            kn_attention_promise_packed(gradients[0]);
        }
        const KnNode *nodes[] = {out->producer, gradients[0]->producer};
        const char *const expected[] = {cases[i].forward, cases[i].backward};
        for (int k = 0; k < 2; k++) {
            const char *finer = kn_node_work(nodes[k]).finer;
            assert_string_equal(finer ? finer : "none", expected[k] ? expected[k] : "none");
        }
        kn_graph_destroy(graph);
    }
}

static void rates_are_read_between_their_points(void **state)
{
    KnDevice device = {0};
    (void)state;
    KnRate *narrow = kn_device_add_rate(&device, "matmul", KN_F32, 10);
    narrow->points[0] = (KnRatePoint){100, 1};
    narrow->points[1] = (KnRatePoint){10000, 100};
    narrow->count = 2;
    KnRate *wide = kn_device_add_rate(&device, "matmul", KN_F32, 1000);
    wide->points[0] = (KnRatePoint){100, 16};
    wide->count = 1;
    static const struct {
        int64_t width;
        double size, rate;
    } cases[] = {{10, 100, 1}, {10, 1, 1}, {10, 1000, 10}, {10, 1e9, 100}, {1000, 5, 16}, {5000, 5, 16}, {100, 100, 4}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_float_equal(kn_device_rate(&device, "matmul", KN_F32, cases[i].width, cases[i].size), cases[i].rate,
                           1e-9);
    assert_true(kn_device_rate(&device, "matmul", KN_BF16, 10, 100) == 0);
    kn_device_clear(&device);
}

static void devices_survive_writing_and_say_what_is_wrong(void **state)
{
    static const struct {
        const char *yaml, *part;
    } wrong[] = {
        {"name: x\nspeed: 3\n", ":2:8: a device has no key speed"},
        {"memory: lots\n", "memory must be a size such as 80GiB"},
        {"overhead: -1\n", "overhead must be a number of at least 0"},
        {"overhead: 1e31\n", "overhead must be a number of at least 0, at most 1e30"},
        {"ranks_per_node: 0.5\n", "ranks_per_node must be a whole number from 1"},
        {"name: 'a\"b'\n", "name must be a short text without"},
        {"notes: [[a]]\n", "a note must be a line of text"},
        {"peak: {f64: 1}\n", "dtype must be f32 or bf16"},
        {"inside: 3\n", "inside must be {latency"},
        {"limit: 3\n", "limit must be FLOP a second by dtype and bytes"},
        {"limit: {disk: 3}\n", "dtype must be f32 or bf16"},
        {"attention: flash\n", ":1:12: attention must be cudnn or own"},
        {"rates:\n- {kind: matmul}\n", ":2:3: a rate must be {kind: NAME, points"},
        {"rates:\n- {kind: matmul, points: []}\n", ":2:26: points must be from 1 to 24 pairs"},
        {"rates:\n- {kind: matmul, points: [[2, 1e-300]]}\n", "of rates of at least 1"},
        {"rates:\n- {kind: matmul, wdth: 3, points: [[2, 1]]}\n", ":2:24: a rate has no key wdth"},
        {"rates:\n- {kind: matmul, points: [[2, 1], [1, 1]]}\n", "by rising size"},
        {"notes:\n- page 3: fast\n", ":2:3: a note must be a line of text"},
        {"backend: tpu\n", "it must be cpu or gpu"},
        {"backend: gpu\nmemory: 1GiB\ninside: {latency: 0, bandwidth: 1}\nbetween: {latency: 0, bandwidth: 1}\n",
         "there is no rate of kind matmul"},
        {"backend: gpu\nmemory: 1GiB\noverlap: 2\ninside: {latency: 0, bandwidth: 1}\nbetween: {latency: 0, bandwidth: "
         "1}\n",
         "an overlap of at most 1"},
    };
    const char *path = test_path("device.yaml");
    KnDevice device;
    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        put_text(path, wrong[i].yaml);
        assert_int_equal(kn_device_load(&device, path), KN_EFORMAT);
        if (!strstr(kn_error_message(), wrong[i].part))
            fail_msg("case %zu: %s", i, kn_error_message());
    }
    assert_int_equal(kn_device_load(&device, "tpu"), KN_EINPUT);
    assert_non_null(strstr(kn_error_message(), "h200, h100, a100"));
    static const char *const names[] = {"h200", "h100", "a100"};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(kn_device_load(&device, names[i]), KN_OK);
        char *first = kn_device_to_yaml(&device);
        put_text(path, first);
        kn_device_clear(&device);
        assert_int_equal(kn_device_load(&device, path), KN_OK);
        char *second = kn_device_to_yaml(&device);
        assert_string_equal(first, second);
        kn_device_clear(&device);
        free(first);
        free(second);
    }
}

static void a_device_may_be_like_another(void **state)
{
    const char *path = test_path("like.yaml"), *other = test_path("other.yaml");
    char text[1024];
    KnDevice base, device;
    (void)state;
    assert_int_equal(kn_device_load(&base, "h200"), KN_OK);

    /* Two numbers, of the device that it is like at one remove. */
    put_text(other, "like: h200\nname: fat\nmemory: 200GiB\nnotes: [twice]\n");
    snprintf(text, sizeof text, "like: %s\nbetween: {latency: 7e-6, bandwidth: 80e9}\n", other);
    put_text(path, text);
    assert_int_equal(kn_device_load(&device, path), KN_OK);
    assert_string_equal(device.name, "fat");
    assert_true(device.memory == 200.0 * 1073741824 && device.between.bandwidth == 80e9);
    assert_int_equal(device.notes.count, base.notes.count + 1);
    snprintf(base.name, sizeof base.name, "fat");
    base.memory = device.memory;
    base.between = (KnLink){7e-6, 80e9};
    kn_string_list_add(&base.notes, "twice");
    char *expected = kn_device_to_yaml(&base), *got = kn_device_to_yaml(&device);
    assert_string_equal(got, expected); /* nothing else */
    free(expected);
    free(got);
    kn_device_clear(&device);

    /* Curves replace those of their kind, of any dtype, and no others. */
    put_text(path, "like: h200\nrates:\n- {kind: matmul, points: [[1, 5e12]]}\n");
    assert_int_equal(kn_device_load(&device, path), KN_OK);
    assert_true(kn_device_rate(&device, "matmul", KN_BF16, 0, 1e11) == 5e12);
    assert_true(kn_device_rate(&device, "matmul", KN_F32, 0, 1e11) == 5e12);
    assert_true(kn_device_rate(&device, "memory", KN_F32, 0, 1e9) == kn_device_rate(&base, "memory", KN_F32, 0, 1e9));
    kn_device_clear(&device);
    kn_device_clear(&base);

    static const struct {
        const char *yaml;
        int code;
        const char *part;
    } wrong[] = {
        {"like: h300\n", KN_EINPUT, "like.yaml:1:7: like: there is no device \"h300\""},
        {"memory: 1GiB\nlike: h200\n", KN_EFORMAT, "like.yaml:2:7: like must be the first key"},
        {"like: [h200]\n", KN_EFORMAT, "like.yaml:1:7: like must be the name"},
        {"like: %s\n", KN_EFORMAT, "like.yaml:1:7: like leads back to"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        snprintf(text, sizeof text, "like: %s\n", path);
        put_text(path, strchr(wrong[i].yaml, '%') ? text : wrong[i].yaml);
        assert_int_equal(kn_device_load(&device, path), wrong[i].code);
        if (!strstr(kn_error_message(), wrong[i].part))
            fail_msg("case %zu: %s", i, kn_error_message());
    }
    snprintf(text, sizeof text, "like: %s\n", other);
    put_text(path, text);
    snprintf(text, sizeof text, "like: %s\n", path);
    put_text(other, text);
    assert_int_equal(kn_device_load(&device, path), KN_EFORMAT);
    assert_non_null(strstr(kn_error_message(), "other.yaml:1:7: like leads back to"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(predicted_memory_is_what_is_allocated),
        cmocka_unit_test(deep_models_are_estimated_from_shallow_ones),
        cmocka_unit_test(waits_come_after_what_is_independent_of_them),
        cmocka_unit_test(a_budget_is_kept_with_the_fewest_blocks_and_no_bit_changes),
        cmocka_unit_test(an_impossible_budget_is_refused_with_what_it_would_take),
        cmocka_unit_test(passes_that_share_an_arena_take_turns),
        cmocka_unit_test(a_timeline_adds_up_by_hand),
        cmocka_unit_test(kernels_are_priced_by_hand),
        cmocka_unit_test(products_and_attention_have_finer_curves),
        cmocka_unit_test(attention_that_a_library_does_not_compute_has_own_curves),
        cmocka_unit_test(rates_are_read_between_their_points),
        cmocka_unit_test(devices_survive_writing_and_say_what_is_wrong),
        cmocka_unit_test(a_device_may_be_like_another),
    };
    return cmocka_run_group_tests(tests, make_test_folder, remove_test_folder);
}
