/* The passes over the graph: what is removed, what runs once, where values lie in the arena, what recompute saves. */
#include "core/base/error.h"
#include "core/base/random.h"
#include "core/cpu/backend.h"
#include "core/graph/edit.h"
#include "core/model/model.h"
#include "core/ops/ops.h"
#include "train/pass.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static KnTensor *leaf(KnGraph *graph, KnRole role, int64_t rows, int64_t columns, const char *name)
{
    return kn_leaf(graph, role, KN_F32, 2, (int64_t[]){rows, columns}, name);
}

static void values_that_nobody_needs_are_removed(void **state)
{
    (void)state;
    KnGraph *graph = kn_graph_create();
    KnTensor *x = leaf(graph, KN_ROLE_INPUT, 3, 4, "x");
    KnTensor *kept = kn_scale(graph, x, 2);
    kn_scale(graph, kn_scale(graph, x, 3), 4);
    KnTensor *sum = leaf(graph, KN_ROLE_STATE, 3, 4, "sum");
    kn_accumulate(graph, sum, kn_scale(graph, x, 5)); /* changes state: never removed */
    kn_graph_finish(graph, &kept, 1);
    assert_int_equal(graph->node_count, 3);
    for (int i = 0; i < graph->node_count; i++)
        assert_int_equal(graph->nodes[i]->id, i);
    kn_graph_destroy(graph);
}

static void what_lies_in_a_room_or_in_state_is_made_there(void **state)
{
    (void)state;
    KnGraph *graph = kn_graph_create();
    float x[2] = {3, -2}, kept[3] = {0, 0, 7};
    KnTensor *input = leaf(graph, KN_ROLE_INPUT, 1, 2, "x"), *sum = leaf(graph, KN_ROLE_STATE, 1, 3, "sum");
    KnTensor *room = kn_room(graph, KN_F32, 2, (int64_t[]){1, 4});
    kn_lay(kn_scale(graph, input, 10), room, 2);
    kn_scale(graph, kn_scale(graph, input, 3), 4); /* nobody needs it */
    kn_lay(kn_scale(graph, input, 1), room, 0);
    kn_lay(kn_scale(graph, input, 5), sum, 0);
    KnTensor *out = kn_scale(graph, room, 2);
    KnExecutor *executor = NULL;
    kn_graph_finish(graph, &out, 1);
    assert_int_equal(graph->node_count, 4);
    assert_int_equal(kn_executor_create(&executor, graph, kn_cpu_backend(), &out, 1), KN_OK);
    kn_executor_bind(executor, input, x);
    kn_executor_bind(executor, sum, kept);
    assert_int_equal(kn_executor_run(executor), KN_OK);
    assert_memory_equal(kn_executor_data(executor, out), ((float[]){6, -4, 60, -40}), 4 * sizeof(float));
    assert_memory_equal(kept, ((float[]){15, -10, 7}), sizeof kept);
    kn_executor_destroy(executor);
    kn_graph_destroy(graph);
}

static void what_depends_on_parameters_alone_runs_once_per_change(void **state)
{
    (void)state;
    KnGraph *graph = kn_graph_create();
    float x[4] = {1, 2, 3, 4}, weight[4] = {1, 1, 1, 1};
    KnTensor *input = leaf(graph, KN_ROLE_INPUT, 2, 2, "x"), *parameter = leaf(graph, KN_ROLE_PARAMETER, 2, 2, "w");
    KnTensor *doubled = kn_scale(graph, parameter, 2), *out = kn_multiply(graph, input, doubled);
    KnExecutor *executor = NULL;
    kn_graph_finish(graph, &out, 1);
    assert_true(graph->nodes[0]->prologue);
    assert_false(graph->nodes[1]->prologue);
    assert_int_equal(kn_executor_create(&executor, graph, kn_cpu_backend(), &out, 1), KN_OK);
    kn_executor_bind(executor, input, x);
    kn_executor_bind(executor, parameter, weight);
    assert_int_equal(kn_executor_run(executor), KN_OK);
    assert_float_equal(((float *)kn_executor_data(executor, out))[3], 8, 0);
    weight[3] = 10; /* not announced: the old form is used */
    assert_int_equal(kn_executor_run(executor), KN_OK);
    assert_float_equal(((float *)kn_executor_data(executor, out))[3], 8, 0);
    kn_executor_parameters_changed(executor);
    assert_int_equal(kn_executor_run(executor), KN_OK);
    assert_float_equal(((float *)kn_executor_data(executor, out))[3], 80, 0);
    kn_executor_destroy(executor);
    kn_graph_destroy(graph);
}

static void a_tensor_used_twice_gets_the_sum_of_its_gradients(void **state)
{
    (void)state;
    KnGraph *graph = kn_graph_create();
    float x[2] = {3, -2}, zero[2] = {0}, one[1] = {1};
    KnTensor *input = leaf(graph, KN_ROLE_INPUT, 1, 2, "x"), *target = leaf(graph, KN_ROLE_INPUT, 1, 2, "target");
    KnTensor *weight = kn_leaf(graph, KN_ROLE_INPUT, KN_F32, 1, (int64_t[]){1}, "weight");
    KnTensor *square = kn_multiply(graph, input, input), *loss = kn_masked_mse(graph, square, target, weight);
    KnTensor *gradient = NULL;
    KnExecutor *executor = NULL;
    kn_gradient(graph, loss, &input, 1, &gradient, kn_add);
    kn_graph_finish(graph, &gradient, 1);
    assert_int_equal(kn_executor_create(&executor, graph, kn_cpu_backend(), &gradient, 1), KN_OK);
    kn_executor_bind(executor, input, x);
    kn_executor_bind(executor, target, zero);
    kn_executor_bind(executor, weight, one);
    assert_int_equal(kn_executor_run(executor), KN_OK);
    const float *got = kn_executor_data(executor, gradient); /* d x^4 = 4 x^3 */
    assert_float_equal(got[0], 108, 1e-3);
    assert_float_equal(got[1], -32, 1e-3);
    kn_executor_destroy(executor);
    kn_graph_destroy(graph);
}

/* --- A whole training pass ---------------------------------------------------------------------------------------- */

typedef struct Trial {
    KnModel model;
    KnLayout layout;
    KnParameterValues weights, gradients;
    KnTrainBatch batch;
    KnTrainPass *pass;
    float stats[2];
} Trial;

static void create(Trial *t, int recompute, KnDtype dtype)
{
    KnFlowConfig flow = {.prediction = KN_PREDICT_VELOCITY};
    KnModelConfig config = {.hidden = 24,
                            .layers = 3,
                            .heads = 2,
                            .ffn = 40,
                            .channels = 3,
                            .patch = {1, 2, 2},
                            .freq_dim = 16,
                            .text_dim = 8,
                            .eps = 1e-6,
                            .cross_attn_norm = 1,
                            .recompute = recompute};
    KnTextConfig text = {.kind = KN_TEXT_NONE, .heads = 1, .max_tokens = 4};
    KnTrainBatchOptions options = {.flow = &flow, .shape = {30, 2, 8}, .patch_dim = 12};
    *t = (Trial){0};
    assert_int_equal(kn_model_create(&t->model, &config, &text, KN_PREDICT_VELOCITY, NULL), KN_OK);
    assert_int_equal(kn_parameter_values_create(&t->weights, &t->model.parameters, "weights"), KN_OK);
    assert_int_equal(kn_parameter_values_create(&t->gradients, &t->model.parameters, "gradients"), KN_OK);
    kn_parameter_values_init(&t->weights, 7);
    KnParallelConfig alone = {.data = 1, .shard = 1, .ulysses = 1, .ring = 1, .tensor = 1, .cfg = 1};
    assert_int_equal(kn_layout_create(&t->layout, &t->model, &(KnLayoutOptions){.parallel = &alone, .ranks = 1}),
                     KN_OK);
    assert_int_equal(kn_train_batch_create(&t->batch, &options), KN_OK);
    kn_stream_add(&t->batch.stream, &(KnStreamClip){.grid = {2, 3, 2}, .sigma = 0.3f, .text_tokens = 4});
    kn_stream_add(&t->batch.stream, &(KnStreamClip){.grid = {1, 4, 4}, .sigma = 0.8f, .text_tokens = 3});
    kn_random_normal_fill(kn_random_key(1, KN_RANDOM_TEST, 0, 0), 0, t->batch.patches, 28 * 12);
    kn_random_normal_fill(kn_random_key(1, KN_RANDOM_TEST, 0, 1), 0, t->batch.target, 28 * 12);
    for (int i = 0; i < 28; i++)
        t->batch.weight[i] = 0.01f;
    KnTrainPassOptions pass = {.layout = &t->layout,
                               .shape = options.shape,
                               .dtype = dtype,
                               .backward = 1,
                               .weights = &t->weights,
                               .gradients = &t->gradients,
                               .stats = t->stats};
    assert_int_equal(kn_train_pass_create(&t->pass, &pass, kn_cpu_backend()), KN_OK);
    kn_train_pass_bind(t->pass, &t->batch);
}

static void destroy(Trial *t)
{
    kn_train_pass_destroy(t->pass);
    kn_train_batch_destroy(&t->batch);
    kn_parameter_values_clear(&t->weights);
    kn_parameter_values_clear(&t->gradients);
    kn_layout_destroy(&t->layout);
    kn_model_destroy(&t->model);
}

static void recompute_changes_no_bit_and_saves_memory(void **state)
{
    (void)state;
    for (int dtype = KN_F32; dtype <= KN_BF16; dtype++) {
        Trial kept, again;
        create(&kept, KN_RECOMPUTE_NONE, (KnDtype)dtype);
        create(&again, KN_RECOMPUTE_BLOCK, (KnDtype)dtype);
        assert_int_equal(kn_train_pass_run(kept.pass), KN_OK);
        assert_int_equal(kn_train_pass_run(again.pass), KN_OK);
        assert_true(kept.stats[0] > 0);
        assert_memory_equal(kept.stats, again.stats, sizeof kept.stats);
        for (int b = 0; b < kept.model.parameters.block_count; b++) {
            size_t bytes = (size_t)kept.model.parameters.block_elements[b] * sizeof(float);
            assert_memory_equal(kept.gradients.blocks[b], again.gradients.blocks[b], bytes);
        }
        const KnPlan *a = kn_train_pass_plan(kept.pass), *b = kn_train_pass_plan(again.pass);
        assert_true(b->category_bytes[KN_MEMORY_ACTIVATIONS] < a->category_bytes[KN_MEMORY_ACTIVATIONS] / 2);
        assert_true(b->arena_bytes < a->arena_bytes);
        destroy(&kept);
        destroy(&again);
    }
}

static void gradients_of_two_passes_add_up(void **state)
{
    Trial t;
    (void)state;
    create(&t, 0, KN_F32);
    assert_int_equal(kn_train_pass_run(t.pass), KN_OK);
    const KnParameter *parameter = kn_parameter_find(&t.model.parameters, "blocks.1.ffn.net.2.weight");
    float *gradient = kn_parameter_data(&t.gradients, parameter), once = gradient[5], loss = t.stats[0];
    assert_true(once != 0);
    assert_int_equal(kn_train_pass_run(t.pass), KN_OK);
    assert_float_equal(gradient[5], 2 * once, 0);
    assert_float_equal(t.stats[0], 2 * loss, 0);
    destroy(&t);
}

/* --- The memory plan ---------------------------------------------------------------------------------------------- */

static size_t size_of_workspace(KnBackend *backend, const KnNode *node)
{
    (void)backend;
    return (size_t)(node->id % 3) * 100;
}

/* A chain with side branches: every pair of values alive at the same node must lie apart, and the peak is the arena. */
static void values_alive_together_lie_apart(void **state)
{
    (void)state;
    enum { COUNT = 60 };
    KnGraph *graph = kn_graph_create();
    KnBackend backend = {.name = "plan", .workspace_bytes = size_of_workspace};
    KnTensor *values[COUNT];
    KnRandomKey key = kn_random_key(2, KN_RANDOM_TEST, 0, 0);
    values[0] = kn_scale(graph, leaf(graph, KN_ROLE_INPUT, 8, 9, "x"), 1);
    for (int i = 1; i < COUNT; i++) {
        int a = (int)kn_random_below(key, (uint64_t)(2 * i), (uint64_t)i);
        KnTensor *wide = kn_pad(graph, kn_slice(graph, values[a], 0, 0, 4), 0, 1, 5 + i % 7);
        values[i] = kn_slice(graph, wide, 0, 0, 5);
    }
    KnTensor *keep[] = {values[COUNT - 1], values[3]};
    KnPlan plan;
    kn_graph_finish(graph, keep, 2);
    kn_plan_make(&plan, graph, &backend, keep, 2);
    size_t top = 0;
    for (int i = 0; i < graph->node_count; i++) {
        const KnTensor *a = graph->nodes[i]->outputs[0];
        size_t a_end = plan.offsets[a->id] + kn_tensor_bytes(a);
        top = a_end > top ? a_end : top;
        for (int k = 0; k < i; k++) { /* b is still needed at node i or later */
            const KnTensor *b = graph->nodes[k]->outputs[0];
            int needed = b == keep[0] || b == keep[1];
            for (int n = i; n < graph->node_count && !needed; n++)
                needed = graph->nodes[n]->inputs[0] == b;
            if (needed)
                assert_true(plan.offsets[b->id] >= a_end ||
                            plan.offsets[a->id] >= plan.offsets[b->id] + kn_tensor_bytes(b));
        }
    }
    assert_true(plan.arena_bytes >= top && plan.arena_bytes >= plan.live_peak_bytes);
    assert_true(plan.arena_bytes < top + 1000);
    kn_plan_clear(&plan);
    kn_graph_destroy(graph);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_that_nobody_needs_are_removed),
        cmocka_unit_test(what_lies_in_a_room_or_in_state_is_made_there),
        cmocka_unit_test(what_depends_on_parameters_alone_runs_once_per_change),
        cmocka_unit_test(a_tensor_used_twice_gets_the_sum_of_its_gradients),
        cmocka_unit_test(recompute_changes_no_bit_and_saves_memory),
        cmocka_unit_test(gradients_of_two_passes_add_up),
        cmocka_unit_test(values_alive_together_lie_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
