/* Training on a device whose work is recorded and replayed, against the same work queued node by node: bit by bit, with
 * other inputs in each pass and another learning rate in each step, in both orders of streams. The device is that of
 * kinora-cuda-emulated.so; each scenario runs in a process of its own, since it reads its settings when it begins. With
 * a GPU at hand, `test_replay --gpu` does the same there, by kinora-cuda.so, and says how long a pass takes. */
#include "base/support.h"
#include "built_path.h"

#include "core/base/clock.h"
#include "core/base/random.h"
#include "core/graph/devices.h"
#include "core/graph/twin.h"
#include "core/ops/ops.h"
#include "train/optimizer.h"
#include "train/pass.h"

#include <math.h>
#include <sys/wait.h>
#include <unistd.h>

enum { STEPS = 3, PACKS = 3, TOKENS = 30, DIM = 12, SKIPPED = 77 };

static char *plugin;
static char words[65536]; /* what the last scenario said on stderr */

static int run_apart(void (*scenario)(void), const char *first, const char *second)
{
    FILE *file = tmpfile();
    fflush(NULL);
    pid_t child = fork();
    int status;
    if (child == 0) {
        dup2(fileno(file), STDERR_FILENO);
        if (first)
            putenv((char *)(uintptr_t)first);
        if (second)
            putenv((char *)(uintptr_t)second);
        scenario();
        exit(0); /* leaks are looked for */
    }
    waitpid(child, &status, 0);
    rewind(file);
    words[fread(words, 1, sizeof words - 1, file)] = '\0';
    fclose(file);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static void succeeds(void (*scenario)(void), const char *first, const char *second)
{
    int status = run_apart(scenario, first, second);
    if (status != 0)
        fail_msg("%s %s: ended with %d: %s", first, second ? second : "", status, words);
}

/* In scenarios. */
#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "line %d: %s (%s)\n", __LINE__, #condition, kn_error_message());                           \
            _exit(1);                                                                                                  \
        }                                                                                                              \
    } while (0)
#define OK(call) CHECK((call) == KN_OK)

/* ---- a run of some steps ---- */

typedef struct Run {
    KnBackend *backend;
    KnModel model;
    KnLayout layout;
    KnOptimizerState state;
    KnOptimizer *optimizer;
    KnTrainBatch batch;
    KnTrainPass *pass;
    float stats[2];
    double norms[STEPS];
} Run;

static const KnOptimizerConfig adamw = {.name = (char *)(uintptr_t) "adamw",
                                        .lr = 1e-2,
                                        .beta1 = 0.9,
                                        .beta2 = 0.95,
                                        .eps = 1e-6,
                                        .weight_decay = 0.1,
                                        .clip_norm = 0.5,
                                        .warmup_steps = 2 * STEPS,
                                        .ema = 0.9};

static void create_pass(Run *r)
{
    KnFlowConfig flow = {.prediction = KN_PREDICT_VELOCITY};
    KnTrainBatchOptions batch = {.flow = &flow, .shape = {TOKENS, 2, 8}, .patch_dim = DIM};
    KnTrainPassOptions pass = {.layout = &r->layout,
                               .shape = batch.shape,
                               .dtype = KN_BF16,
                               .backward = 1,
                               .weights = &r->state.weights,
                               .gradients = &r->state.gradients,
                               .stats = r->stats};
    OK(kn_train_batch_create(&r->batch, &batch));
    OK(kn_train_pass_create(&r->pass, &pass, r->backend));
    kn_train_pass_bind(r->pass, &r->batch);
}

static void create(Run *r, KnBackend *backend, KnOffload offload)
{
    KnParallelConfig alone = {.data = 1, .shard = 1, .ulysses = 1, .ring = 1, .tensor = 1, .cfg = 1};
    KnTextConfig text = {.kind = KN_TEXT_NONE, .heads = 1, .max_tokens = 4};
    KnModelConfig config = {.hidden = 24,
                            .layers = 1,
                            .heads = 2,
                            .ffn = 40,
                            .channels = 3,
                            .patch = {1, 2, 2},
                            .freq_dim = 16,
                            .text_dim = 8,
                            .eps = 1e-6,
                            .cross_attn_norm = 1};
    *r = (Run){.backend = backend};
    OK(kn_model_create(&r->model, &config, &text, KN_PREDICT_VELOCITY, NULL));
    OK(kn_layout_create(&r->layout, &r->model, &(KnLayoutOptions){.parallel = &alone, .ranks = 1}));
    OK(kn_optimizer_state_create(&r->state, &r->layout.zero, &adamw));
    kn_layout_init(&r->layout, &r->state.weights, 7);
    r->state.offload = offload;
    OK(kn_optimizer_state_place(&r->state, backend));
    OK(kn_optimizer_state_push(&r->state, backend));
    OK(kn_parameter_values_zero(&r->state.gradients, backend));
    OK(kn_twin_create(backend, r->stats, sizeof r->stats, "the loss"));
    create_pass(r);
    OK(kn_optimizer_create(&r->optimizer, &adamw, &r->layout, &r->state, backend));
}

static void destroy(Run *r)
{
    kn_optimizer_destroy(r->optimizer);
    kn_train_pass_destroy(r->pass);
    kn_train_batch_destroy(&r->batch);
    kn_optimizer_state_withdraw(&r->state, r->backend);
    kn_twin_destroy(r->backend, r->stats);
    kn_optimizer_state_clear(&r->state);
    kn_layout_destroy(&r->layout);
    kn_model_destroy(&r->model);
}

static void fill_batch(KnTrainBatch *batch, int pack)
{
    KnRandomKey key = kn_random_key(1, KN_RANDOM_TEST, 0, (uint32_t)pack);
    int64_t rows = 3 + pack % 4;
    kn_stream_clear(&batch->stream);
    kn_stream_add(&batch->stream,
                  &(KnStreamClip){.grid = {1, rows, 3}, .sigma = 0.1f + 0.05f * (float)pack, .text_tokens = 3});
    kn_stream_add(&batch->stream, &(KnStreamClip){.grid = {1, 3, 4}, .sigma = 0.7f, .text_tokens = 1 + pack % 4});
    kn_random_normal_fill(key, 0, batch->patches, TOKENS * DIM);
    kn_random_normal_fill(key, 1 << 20, batch->target, TOKENS * DIM);
    for (int64_t i = 0; i < TOKENS; i++)
        batch->weight[i] = i < 3 * rows + 12 ? 0.01f : 0;
}

static const KnDeviceMemory *device_memory;
static int reads;

static int count_read(KnBackend *backend, void *host, const void *device, size_t bytes)
{
    reads++;
    return device_memory->read(backend, host, device, bytes);
}

/* A read is what the host waits for the device in. */
static void count_reads(KnBackend *backend)
{
    static KnDeviceMemory counting;
    device_memory = backend->memory;
    counting = *device_memory;
    counting.read = count_read;
    backend->memory = &counting;
}

/* Nothing is read but the gradient's norm, once a step. */
static void run_steps(Run *r)
{
    int before = reads;
    OK(kn_twin_zero(r->backend, r->stats, sizeof r->stats));
    for (int step = 0; step < STEPS; step++) {
        for (int pack = 0; pack < PACKS; pack++) {
            fill_batch(&r->batch, step * PACKS + pack);
            OK(kn_train_pass_run(r->pass));
        }
        OK(kn_optimizer_step(r->optimizer, step, 100, step, &r->norms[step]));
        kn_train_pass_parameters_changed(r->pass);
    }
    CHECK(reads == before + STEPS);
    OK(kn_twin_pull(r->backend, r->stats, sizeof r->stats));
    OK(kn_optimizer_state_pull(&r->state, r->backend));
}

static void check_equal(const KnParameterValues *a, const KnParameterValues *b)
{
    for (int i = 0; i < a->set->block_count; i++)
        CHECK(memcmp(a->blocks[i], b->blocks[i], (size_t)a->count[i] * sizeof(float)) == 0);
}

static double seconds_of(const KnExecutor *executor, const KnGraph *graph)
{
    double sum = 0;
    for (int i = 0; i < graph->node_count; i++)
        sum += kn_executor_node_seconds(executor)[i];
    return sum;
}

/* The first pass of a step has the prologue, the others have not; the very first one chooses the kernels of both. The
 * second run has its optimizer's state in pinned memory. */
static void replays(void)
{
    KnBackend *backend;
    Run timed, queued;
    OK(kn_cuda_backend_open(plugin, 0, &backend));
    count_reads(backend);
    create(&timed, backend, KN_OFFLOAD_NONE);
    kn_executor_time_nodes(kn_train_pass_executor(timed.pass));
    kn_executor_time_nodes(kn_optimizer_executor(timed.optimizer));
    run_steps(&timed);
    CHECK(kn_executor_replays(kn_train_pass_executor(timed.pass)) == 0);
    CHECK(seconds_of(kn_train_pass_executor(timed.pass), kn_train_pass_graph(timed.pass)->built.graph) > 0);
    CHECK(isfinite(timed.stats[0]) && timed.stats[0] > 0 && isfinite(timed.norms[STEPS - 1]));

    create(&queued, backend, KN_OFFLOAD_OPTIMIZER);
    run_steps(&queued);
    CHECK(kn_executor_replays(kn_train_pass_executor(queued.pass)) == STEPS * PACKS - 1);
    CHECK(kn_executor_replays(kn_optimizer_executor(queued.optimizer)) == STEPS - 1);
    CHECK(memcmp(timed.stats, queued.stats, sizeof timed.stats) == 0);
    CHECK(memcmp(timed.norms, queued.norms, sizeof timed.norms) == 0);
    check_equal(&timed.state.weights, &queued.state.weights);
    check_equal(&timed.state.moment1, &queued.state.moment1);
    check_equal(&timed.state.moment2, &queued.state.moment2);
    check_equal(&timed.state.average, &queued.state.average);
    const float *moments = kn_twin_address(backend, queued.state.moment1.blocks[0]); /* pinned: the host may look */
    CHECK(memcmp(moments, queued.state.moment1.blocks[0], sizeof *moments) == 0);
    destroy(&queued);
    destroy(&timed);
    kn_backend_close(backend);
}

static void replays_give_the_bits_of_single_nodes(void **state)
{
    (void)state;
    succeeds(replays, "KINORA_EMULATED_ORDER=1", "KINORA_EMULATED_PROTECT=1");
    succeeds(replays, "KINORA_EMULATED_ORDER=2", NULL);
}

/* ---- steps that change nothing ---- */

/* The gradients are finite, the loss is not: only the device knows when the update is queued. */
static void spoils_a_loss(void)
{
    KnBackend *backend;
    Run r;
    OK(kn_cuda_backend_open(plugin, 0, &backend));
    create(&r, backend, KN_OFFLOAD_NONE);
    kn_optimizer_destroy(r.optimizer);
    r.state.loss = &r.stats[0];
    OK(kn_optimizer_create(&r.optimizer, &adamw, &r.layout, &r.state, backend));
    KnParameterValues before;
    OK(kn_zero_values(&r.layout.zero, 3, &before, "weights"));
    kn_parameter_values_copy(&before, &r.state.weights);
    for (int step = 0; step < STEPS; step++) {
        r.stats[0] = step % 2 == 0 ? INFINITY : 1;
        OK(kn_twin_push(backend, r.stats, sizeof r.stats));
        fill_batch(&r.batch, step);
        OK(kn_train_pass_run(r.pass));
        OK(kn_optimizer_step(r.optimizer, step, 100, step, &r.norms[step]));
        OK(kn_optimizer_state_pull(&r.state, backend));
        CHECK(isfinite(r.norms[step]) == (step % 2 == 1));
        for (int b = 0; b < before.set->block_count; b++) {
            size_t bytes = (size_t)before.count[b] * sizeof(float);
            CHECK((memcmp(before.blocks[b], r.state.weights.blocks[b], bytes) == 0) == (step % 2 == 0));
        }
        kn_parameter_values_copy(&before, &r.state.weights);
    }
    kn_parameter_values_clear(&before);
    destroy(&r);
    kn_backend_close(backend);
}

static void a_loss_that_is_not_finite_spoils_the_update(void **state)
{
    (void)state;
    succeeds(spoils_a_loss, "KINORA_EMULATED_ORDER=1", NULL);
}

/* ---- addresses that change ---- */

typedef struct Sum {
    KnBackend *backend;
    KnGraph *graph;
    KnTensor *x, *sum;
    KnExecutor *executor;
    float values[4], sums[2][4];
} Sum;

static void place_sum(Sum *s, int index)
{
    OK(kn_twin_create(s->backend, s->sums[index], sizeof s->sums[index], "a sum"));
    OK(kn_twin_zero(s->backend, s->sums[index], sizeof s->sums[index]));
}

static void create_sum(Sum *s)
{
    *s = (Sum){.graph = kn_graph_create()};
    OK(kn_cuda_backend_open(plugin, 0, &s->backend));
    s->x = kn_leaf(s->graph, KN_ROLE_INPUT, KN_F32, 1, (int64_t[]){4}, "x");
    s->sum = kn_leaf(s->graph, KN_ROLE_STATE, KN_F32, 1, (int64_t[]){4}, "sum");
    kn_accumulate(s->graph, s->sum, kn_scale(s->graph, s->x, 2));
    kn_graph_finish(s->graph, NULL, 0);
    OK(kn_executor_create(&s->executor, s->graph, s->backend, NULL, 0));
    place_sum(s, 0);
    place_sum(s, 1);
    kn_executor_bind(s->executor, s->x, s->values);
    kn_executor_bind(s->executor, s->sum, s->sums[0]);
}

static void destroy_sum(Sum *s)
{
    kn_executor_destroy(s->executor);
    kn_graph_destroy(s->graph);
    kn_twin_destroy(s->backend, s->sums[0]);
    kn_twin_destroy(s->backend, s->sums[1]);
    kn_backend_close(s->backend);
}

/* Twice as much. */
static void add(Sum *s, float value)
{
    for (int i = 0; i < 4; i++)
        s->values[i] = value;
    OK(kn_executor_run(s->executor));
}

static float read_sum(Sum *s, int index)
{
    OK(kn_twin_pull(s->backend, s->sums[index], sizeof s->sums[index]));
    return s->sums[index][3];
}

static void moves_its_state(void)
{
    Sum s;
    create_sum(&s);
    for (int i = 1; i <= 4; i++)
        add(&s, (float)i);
    CHECK(kn_executor_replays(s.executor) == 3);
    kn_executor_bind(s.executor, s.sum, s.sums[1]);
    for (int i = 1; i <= 3; i++)
        add(&s, 100);
    CHECK(kn_executor_replays(s.executor) == 5);
    CHECK(read_sum(&s, 0) == 20 && read_sum(&s, 1) == 600);

    kn_twin_destroy(s.backend, s.sums[1]); /* the same address here, another one there */
    place_sum(&s, 1);
    add(&s, 1);
    CHECK(kn_executor_replays(s.executor) == 5);
    add(&s, 1);
    CHECK(read_sum(&s, 1) == 4);
    destroy_sum(&s);
}

static void adds_node_by_node(void)
{
    Sum s;
    create_sum(&s);
    for (int i = 1; i <= 3; i++)
        add(&s, (float)i);
    CHECK(kn_executor_replays(s.executor) == 0);
    CHECK(read_sum(&s, 0) == 12);
    destroy_sum(&s);
}

static void what_cannot_be_recorded_is_queued_again(void **state)
{
    static const char *const plans[] = {"KINORA_EMULATED_CUDA=cudaStreamBeginCapture:1",
                                        "KINORA_EMULATED_CUDA=cudaLaunchKernel:3", /* of the second run */
                                        "KINORA_EMULATED_CUDA=cudaStreamEndCapture:1",
                                        "KINORA_EMULATED_CUDA=cudaGraphInstantiate:1"};
    (void)state;
    for (size_t i = 0; i < sizeof plans / sizeof *plans; i++) {
        succeeds(adds_node_by_node, plans[i], NULL);
        if (!strstr(words, "work is queued node by node, since it could not be recorded: "))
            fail_msg("no word of it: %s", words);
    }
}

static void what_was_recorded_for_other_addresses_is_not_replayed(void **state)
{
    (void)state;
    succeeds(moves_its_state, "KINORA_EMULATED_ORDER=2", NULL);
}

/* ---- copies ---- */

/* Large enough for several pieces; the host's memory changes as soon as it is given back. */
static void writes_in_pieces(void)
{
    KnBackend *backend;
    size_t count = 5 << 18, bytes = count * sizeof(float) + 12;
    float *host = kn_alloc(bytes);
    OK(kn_cuda_backend_open(plugin, 0, &backend));
    OK(kn_twin_create(backend, host, bytes, "much"));
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < bytes / sizeof(float); i++)
            host[i] = (float)(i % 1000003 + (size_t)round);
        OK(kn_twin_push(backend, host, bytes));
        memset(host, 0, bytes);
        if (round == 1)
            continue; /* overwritten by the next one */
        OK(kn_twin_pull(backend, host, bytes));
        for (size_t i = 0; i < bytes / sizeof(float); i++)
            CHECK(host[i] == (float)(i % 1000003 + (size_t)round));
    }
    kn_twin_destroy(backend, host);
    kn_backend_close(backend);
    free(host);
}

static void memory_that_was_written_may_change_at_once(void **state)
{
    (void)state;
    succeeds(writes_in_pieces, "KINORA_EMULATED_ORDER=1", NULL);
    succeeds(writes_in_pieces, "KINORA_EMULATED_ORDER=2", NULL);
}

/* ---- on a GPU ---- */

static double seconds_each(Run *r, int runs)
{
    for (int i = -3; i < 0; i++)
        OK(kn_train_pass_run(r->pass));
    OK(kn_twin_pull(r->backend, r->stats, sizeof r->stats));
    double start = kn_seconds_now();
    for (int i = 0; i < runs; i++)
        OK(kn_train_pass_run(r->pass));
    OK(kn_twin_pull(r->backend, r->stats, sizeof r->stats));
    return (kn_seconds_now() - start) / runs;
}

static void measures(void)
{
    KnBackend *backend;
    Run r;
    OK(kn_cuda_backend_open(plugin, 0, &backend));
    create(&r, backend, KN_OFFLOAD_NONE);
    fill_batch(&r.batch, 0);
    double replayed = seconds_each(&r, 200);
    kn_executor_time_nodes(kn_train_pass_executor(r.pass));
    double single = seconds_each(&r, 50);
    fprintf(stderr, "a pass of %d nodes: %.0f us replayed, %.0f us node by node with events\n",
            kn_train_pass_graph(r.pass)->built.graph->node_count, 1e6 * replayed, 1e6 * single);
    destroy(&r);
    kn_backend_close(backend);
}

static void opens(void)
{
    KnBackend *backend;
    OK(kn_cuda_backend_open(plugin, 0, &backend));
    kn_backend_close(backend);
}

/* By kinora-cuda.so: what needs no planned fault. */
static int test_gpu(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(replays_give_the_bits_of_single_nodes),
        cmocka_unit_test(a_loss_that_is_not_finite_spoils_the_update),
        cmocka_unit_test(what_was_recorded_for_other_addresses_is_not_replayed),
        cmocka_unit_test(memory_that_was_written_may_change_at_once),
    };
    if (run_apart(opens, NULL, NULL) != 0) {
        printf("no GPU: skipped: %s\n", words);
        return SKIPPED;
    }
    int failures = cmocka_run_group_tests(tests, NULL, NULL);
    run_apart(measures, NULL, NULL);
    printf("%s", words);
    return failures;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(replays_give_the_bits_of_single_nodes),
        cmocka_unit_test(what_cannot_be_recorded_is_queued_again),
        cmocka_unit_test(a_loss_that_is_not_finite_spoils_the_update),
        cmocka_unit_test(what_was_recorded_for_other_addresses_is_not_replayed),
        cmocka_unit_test(memory_that_was_written_may_change_at_once),
    };
    int gpu = argc > 1 && strcmp(argv[1], "--gpu") == 0;
    plugin = plugin_path(gpu ? "kinora-cuda.so" : "kinora-cuda-emulated.so");
    if (access(plugin, R_OK) != 0) {
        printf("%s: built without CUDA: skipped\n", plugin);
        return SKIPPED;
    }
    int failures = gpu ? test_gpu() : cmocka_run_group_tests(tests, NULL, NULL);
    free(plugin);
    return failures;
}
