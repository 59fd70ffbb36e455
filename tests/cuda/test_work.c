/* What the CUDA backend says of its kernels for plans, by the plugin and without opening a GPU: bytes added up by hand,
 * and no node of a training step moves much more than it must. */
#include "base/support.h"

#include "core/graph/devices.h"
#include "core/ops/ops.h"
#include "dist/kernel_times.h"
#include "train/pass_graph.h"

#include <unistd.h>

static KnBackend *cuda;

static KnTensor *input(KnGraph *graph, KnDtype dtype, int64_t rows, int64_t columns)
{
    return kn_leaf(graph, KN_ROLE_INPUT, dtype, 2, (int64_t[]){rows, columns}, "");
}

/* 1,024 tokens make 64 slabs of 16. */
static void kernels_of_a_node_are_added_up_by_hand(void **state)
{
    KnKernelWork k[KN_MOST_KERNELS];
    (void)state;
    KnGraph *graph = kn_graph_create();
    KnTensor *x = input(graph, KN_BF16, 1024, 64), *few = input(graph, KN_BF16, 30, 64);
    double x_bytes = 1024 * 64 * 2, row_bytes = 64 * 4;

    assert_int_equal(cuda->kernels(kn_add(graph, x, x)->producer, k), 1);
    assert_string_equal(k[0].name, "add");
    assert_true(k[0].launches == 1 && k[0].bytes == 3 * x_bytes && k[0].at_once == 0);

    assert_int_equal(cuda->kernels(kn_sum_rows(graph, x)->producer, k), 2);
    assert_string_equal(k[0].name, "row_sum");
    assert_true(k[0].bytes == x_bytes + 64 * row_bytes);
    assert_true(k[0].at_once == 64 * (64 / 8) * 16 * 4); /* slabs x threads x bytes x tokens at once */
    assert_string_equal(k[1].name, "add_slabs");
    assert_true(k[1].bytes == 65 * row_bytes && k[1].at_once == 3 * 16 * 4 * row_bytes);

    assert_int_equal(cuda->kernels(kn_sum_rows(graph, few)->producer, k), 2); /* 7 slabs of 4 or 5 */
    assert_true(k[0].bytes == 30 * 64 * 2 + 7 * row_bytes);

    KnTensor *row = kn_leaf(graph, KN_ROLE_INPUT, KN_F32, 1, (int64_t[]){64}, ""), *gradients[KN_MAX_INPUTS] = {0};
    const KnNode *norm = kn_layer_norm(graph, x, row, row, 1e-6f)->producer;
    norm->op->gradient(graph, norm, (KnTensor *[]){x, NULL}, (int[KN_MAX_INPUTS]){1, 1, 1}, gradients);
    assert_int_equal(cuda->kernels(gradients[0]->producer, k), 2);
    assert_string_equal(k[0].name, "layer_norm_backward");
    assert_true(k[0].bytes == 3 * x_bytes + 64 * 2 * row_bytes); /* gradients of weight and bias */
    assert_true(k[0].at_once == 64 * (64 / 8) * 2 * 32);         /* slabs x threads x operands x bytes */
    assert_true(k[1].bytes == 65 * 2 * row_bytes);

    assert_int_equal(cuda->kernels(kn_concatenate(graph, x, few, 0)->producer, k), 1);
    assert_true(k[0].launches == 2 && k[0].bytes == 2 * (1024 + 30) * 64 * 2);

    assert_int_equal(cuda->kernels(kn_matmul(graph, x, 1, x, 0, NULL, KN_F32)->producer, k), 0);
    kn_graph_destroy(graph);
}

typedef struct Training {
    KnModel model;
    KnLayout layout;
    KnPassGraph pass;
} Training;

static void build_rank(Training *t, KnBackend *backend, int ulysses)
{
    static const KnModelConfig model = {.hidden = 128,
                                        .layers = 2,
                                        .heads = 2,
                                        .ffn = 512,
                                        .channels = 16,
                                        .patch = {1, 2, 2},
                                        .freq_dim = 256,
                                        .text_dim = 64,
                                        .eps = 1e-6,
                                        .cross_attn_norm = 1};
    const KnParallelConfig parallel = {.data = 1, .shard = 1, .ulysses = ulysses, .ring = 1, .tensor = 1, .cfg = 1};
    KnTextConfig text = {.kind = KN_TEXT_NONE, .heads = 1, .max_tokens = 32};
    assert_int_equal(kn_model_create(&t->model, &model, &text, KN_PREDICT_VELOCITY, NULL), KN_OK);
    KnLayoutOptions layout = {.parallel = &parallel, .training = 1, .ranks = ulysses};
    assert_int_equal(kn_layout_create(&t->layout, &t->model, &layout), KN_OK);
    KnTrainPassOptions pass = {.layout = &t->layout,
                               .shape = {2048, 1, 32},
                               .dtype = KN_BF16,
                               .backward = 1,
                               .self_pairs = 2048.0 * 2048,
                               .cross_pairs = 2048.0 * 32};
    assert_int_equal(kn_pass_graph_create(&t->pass, &pass, backend), KN_OK);
}

static void build_training(Training *t, KnBackend *backend)
{
    build_rank(t, backend, 1);
}

static void clear_training(Training *t)
{
    kn_pass_graph_destroy(&t->pass);
    kn_layout_destroy(&t->layout);
    kn_model_destroy(&t->model);
}

/* What is summed over tokens is written and read once more, for each slab. */
static void no_node_moves_much_more_than_its_operands(void **state)
{
    static const double most = 1.2;
    Training t;
    int seen = 0;
    (void)state;
    build_training(&t, cuda);
    const KnGraph *graph = t.pass.built.graph;
    for (int i = 0; i < graph->node_count; i++) {
        KnKernelWork kernels[KN_MOST_KERNELS];
        KnNodeWork work = kn_node_work(graph->nodes[i]);
        double moved = 0;
        assert_true(cuda->supports(cuda, graph->nodes[i]));
        int count = cuda->kernels(graph->nodes[i], kernels);
        for (int j = 0; j < count; j++)
            moved += kernels[j].bytes;
        if (count == 0 || work.bytes < 1e5)
            continue;
        if (moved < 0.98 * work.bytes || moved > most * work.bytes)
            fail_msg("%s moves %.0f bytes, its operands are %.0f", graph->nodes[i]->op->name, moved, work.bytes);
        seen++;
    }
    assert_true(seen > 40);
    clear_training(&t);
}

/* How many backward nodes give the sum of what they write: of a block the norms of q and k, twice, both gates and GELU;
 * and the text's GELU. */
static int count_sums(const KnGraph *graph)
{
    int sums = 0;
    for (int i = 0; i < graph->node_count; i++) {
        const KnNode *node = graph->nodes[i];
        int id = node->op->id, usual = id == KN_OP_ACTIVATION_BACKWARD ? 1 : 2;
        if (id == KN_OP_RMS_NORM_BACKWARD || id == KN_OP_GATED_RESIDUAL_BACKWARD || id == KN_OP_ACTIVATION_BACKWARD)
            sums += node->output_count > usual;
        if (id == KN_OP_LAYER_NORM_BACKWARD) /* and the gate's */
            sums += node->output_count > 5;
    }
    return sums;
}

/* How many layer norms' backwards give the gradient of the residual: all three of a block. */
static int count_residuals(const KnGraph *graph)
{
    int residuals = 0;
    for (int i = 0; i < graph->node_count; i++)
        residuals += graph->nodes[i]->op->id == KN_OP_LAYER_NORM_BACKWARD && graph->nodes[i]->input_count > 6;
    return residuals;
}

/* Biases of bfloat16 products are rounded by the backend's own form of the graph. */
static void the_graph_is_the_backends(void **state)
{
    Training t;
    int biases = 0;
    (void)state;
    build_training(&t, cuda);
    for (int i = 0; i < t.pass.built.graph->node_count; i++) {
        const KnNode *node = t.pass.built.graph->nodes[i];
        if (node->op->id == KN_OP_MATMUL && node->inputs[2] && node->outputs[0]->dtype == KN_BF16)
            biases += node->inputs[2]->dtype == KN_BF16;
    }
    assert_true(biases >= 20); /* ten a block */
    assert_int_equal(count_sums(t.pass.built.graph), 2 * 7 + 1);
    assert_int_equal(count_residuals(t.pass.built.graph), 2 * 3);
    clear_training(&t);
}

/* In each of two blocks the cross-attention's residual and the gradients of what q, k and v are made of; of the text's
 * all products but the first, whose sum goes through both blocks. */
static void products_that_add_are_named_and_counted(void **state)
{
    Training t;
    int adding = 0, apart = 0;
    (void)state;
    build_training(&t, cuda);
    for (int i = 0; i < t.pass.built.graph->node_count; i++) {
        const KnNode *node = t.pass.built.graph->nodes[i];
        for (int k = 0; k < 2 && node->op->id == KN_OP_ADD; k++)
            apart += node->inputs[k]->producer && node->inputs[k]->producer->op->id == KN_OP_MATMUL;
        if (node->op->id != KN_OP_MATMUL || node->input_count < 4 || node->output_count == 0)
            continue;
        const KnMatmulAttributes *p = (const KnMatmulAttributes *)node->attributes;
        KnDevice device = {0};
        KnKernelTimes times = {0};
        KnTimeKind kind;
        double bias = node->inputs[2] ? 2.0 * (double)p->n : 0;
        kn_node_seconds(node, cuda, &device, &kind, &times);
        assert_int_equal(times.count, 1);
        assert_non_null(strstr(times.rows[0].shape, " and sum"));
        assert_int_equal(node->inputs[2] != NULL, strstr(times.rows[0].shape, "input gradient") == NULL);
        assert_true(kn_node_work(node).bytes == 2.0 * (double)(p->m * p->k + p->k * p->n + 2 * p->m * p->n) + bias);
        kn_kernel_times_clear(&times);
        adding++;
    }
    assert_int_equal(adding, 2 * 3 + 3);
    assert_int_equal(apart, 0);
    clear_training(&t);
}

static int count_nodes(const KnGraph *graph, KnOpId id, int inputs)
{
    int count = 0;
    for (int i = 0; i < graph->node_count; i++)
        count += graph->nodes[i]->op->id == (int)id && (inputs == 0 || graph->nodes[i]->input_count == inputs);
    return count;
}

/* Of queries and keys of self-attention in two blocks; the attention to text has norms of its own, without positions.
 */
static void rotary_positions_are_part_of_norms(void **state)
{
    Training t;
    (void)state;
    build_training(&t, cuda);
    const KnGraph *graph = t.pass.built.graph;
    assert_int_equal(count_nodes(graph, KN_OP_ROPE, 0), 0);
    assert_int_equal(count_nodes(graph, KN_OP_RMS_NORM, 5), 4);
    assert_int_equal(count_nodes(graph, KN_OP_RMS_NORM, 2), 4);
    assert_int_equal(count_nodes(graph, KN_OP_RMS_NORM_BACKWARD, 6), 4);
    assert_int_equal(count_nodes(graph, KN_OP_RMS_NORM_BACKWARD, 4), 4);
    for (int i = 0; i < graph->node_count; i++) {
        const KnNode *node = graph->nodes[i];
        KnKernelWork k[KN_MOST_KERNELS];
        double x = 2048 * 128 * 2, positions = 2048 * 3 * 4, table = KN_ROPE_POSITIONS * 64 * 4;
        if (node->op->id != KN_OP_RMS_NORM || node->input_count != 5)
            continue;
        assert_int_equal(cuda->kernels(node, k), 1);
        assert_true(k[0].bytes == 2 * x + 128 * 4 + 2048 * 4 + positions + table);
    }
    clear_training(&t);
}

/* Of queries and keys too; values and what attention gives, and their gradients, are moved. */
static void columns_are_grouped_by_norms(void **state)
{
    Training t;
    (void)state;
    build_rank(&t, cuda, 2);
    const KnGraph *graph = t.pass.built.graph;
    assert_int_equal(count_nodes(graph, KN_OP_RMS_NORM, 5), 4);
    assert_int_equal(count_nodes(graph, KN_OP_RMS_NORM_BACKWARD, 6), 4);
    assert_int_equal(count_nodes(graph, KN_OP_GROUP_COLUMNS, 0), 2 * 2);
    assert_int_equal(count_nodes(graph, KN_OP_UNGROUP_COLUMNS, 0), 2 * 2);
    clear_training(&t);
}

/* What keeps them apart: another reader of the norm's result, positions that are made after the norm, another reader of
 * the gradient that was turned back. */
static void rotary_positions_stay_apart_where_they_must(void **state)
{
    (void)state;
    for (int reason = 0; reason < 4; reason++) {
        KnGraph *graph = kn_graph_create();
        KnRopeAttributes attributes = {.heads = 2, .axis_pairs = {2, 1, 1}};
        KnTensor *x = input(graph, KN_BF16, 30, 16), *table = input(graph, KN_F32, 9, 8);
        KnTensor *weight = kn_leaf(graph, KN_ROLE_PARAMETER, KN_F32, 1, (int64_t[]){16}, "weight"), *gradient;
        KnTensor *places = kn_leaf(graph, KN_ROLE_INPUT, KN_I32, 2, (int64_t[]){30, 3}, "positions");
        KnTensor *normed = kn_rms_norm(graph, x, weight, 1e-6f);
        if (reason == 1)
            kn_scale(graph, normed, 2);
        if (reason == 2)
            places = kn_view(graph, places, 0, 2, (int64_t[]){30, 3});
        KnTensor *turned = kn_rope(graph, normed, places, table, &attributes);
        KnTensor *target = input(graph, KN_F32, 30, 16);
        KnTensor *loss =
            kn_masked_mse(graph, turned, target, kn_leaf(graph, KN_ROLE_INPUT, KN_F32, 1, (int64_t[]){30}, "weights"));
        kn_gradient(graph, loss, &x, 1, &gradient, kn_add);
        if (reason == 3)
            kn_scale(graph, gradient->producer->inputs[3], 2);
        cuda->lower(cuda, graph);
        assert_int_equal(count_nodes(graph, KN_OP_ROPE, 0), reason > 0);
        assert_int_equal(count_nodes(graph, KN_OP_RMS_NORM, 5), reason == 0 || reason == 3);
        assert_int_equal(count_nodes(graph, KN_OP_RMS_NORM_BACKWARD, 6), reason < 3);
        kn_graph_destroy(graph);
    }
}

/* Of two blocks both gates: the first one's sum goes to the norm before the attention to text, the second one's to the
 * next block or to the head. The other norms read what enters the transformer, and what a product has added to.
 * Backward the same, but for the head: nothing goes round its norm. */
static void gated_residuals_are_part_of_norms(void **state)
{
    Training t;
    (void)state;
    build_training(&t, cuda);
    const KnGraph *graph = t.pass.built.graph;
    assert_int_equal(count_nodes(graph, KN_OP_GATED_RESIDUAL, 0), 0);
    assert_int_equal(count_nodes(graph, KN_OP_LAYER_NORM, 8), 4);
    assert_int_equal(count_nodes(graph, KN_OP_LAYER_NORM, 6), 3);
    assert_int_equal(count_nodes(graph, KN_OP_GATED_RESIDUAL_BACKWARD, 0), 1);
    assert_int_equal(count_nodes(graph, KN_OP_LAYER_NORM_BACKWARD, 9), 3);
    assert_int_equal(count_nodes(graph, KN_OP_LAYER_NORM_BACKWARD, 7), 3);
    for (int i = 0; i < graph->node_count; i++) {
        const KnNode *node = graph->nodes[i];
        KnKernelWork k[KN_MOST_KERNELS];
        double x = 2048 * 128 * 2, row = 128 * 4, slabs = 128;
        if (node->op->id == KN_OP_LAYER_NORM_BACKWARD && node->input_count == 9) {
            assert_int_equal(cuda->kernels(node, k), 2);
            assert_true(k[0].launches == 1 && k[0].bytes == 6 * x + 4 * slabs * row);
            assert_true(k[1].bytes == 4 * slabs * row + 4 * (double)kn_tensor_bytes(node->inputs[8]));
        }
        if (node->op->id != KN_OP_LAYER_NORM || node->input_count != 8)
            continue;
        double of_rows = node->inputs[1] ? 2 * row + (double)kn_tensor_bytes(node->inputs[7])
                                         : 3 * (double)kn_tensor_bytes(node->inputs[7]);
        assert_int_equal(cuda->kernels(node, k), 1);
        assert_true(k[0].launches == 1 && k[0].bytes == 4 * x + of_rows + 2048 * 4 + 2048 * 2 * 4);
    }
    clear_training(&t);
}

/* What keeps them apart: another reader of the sum before the norm, another index of rows, a change of what is added;
 * not a reader after the norm. */
static void gated_residuals_stay_apart_where_they_must(void **state)
{
    (void)state;
    for (int reason = 0; reason < 5; reason++) {
        KnGraph *graph = kn_graph_create();
        KnTensor *x = input(graph, KN_F32, 30, 16), *gate = input(graph, KN_F32, 2, 16);
        KnTensor *y = kn_leaf(graph, KN_ROLE_STATE, KN_F32, 2, (int64_t[]){30, 16}, "y");
        KnTensor *rows = kn_leaf(graph, KN_ROLE_INPUT, KN_I32, 1, (int64_t[]){30}, "rows");
        KnTensor *others = kn_leaf(graph, KN_ROLE_INPUT, KN_I32, 1, (int64_t[]){30}, "others");
        KnTensor *sum = kn_gated_residual(graph, x, y, gate, rows);
        if (reason == 2)
            kn_scale(graph, sum, 2);
        if (reason == 3)
            kn_accumulate(graph, y, x);
        kn_layer_norm_modulated(graph, sum, gate, gate, reason == 4 ? others : rows, 1e-6f);
        if (reason == 1)
            kn_scale(graph, sum, 2);
        cuda->lower(cuda, graph);
        assert_int_equal(count_nodes(graph, KN_OP_GATED_RESIDUAL, 0), reason > 1);
        assert_int_equal(count_nodes(graph, KN_OP_LAYER_NORM, 8), reason <= 1);
        kn_graph_destroy(graph);
    }
}

/* What keeps them apart: another index of rows, a branch that is made after the norm's backward, as that of a block
 * that is computed again is. */
static void gradients_of_gated_residuals_stay_apart_where_they_must(void **state)
{
    (void)state;
    for (int reason = 0; reason < 3; reason++) {
        KnGraph *graph = kn_graph_create();
        KnTensor *x = input(graph, KN_BF16, 30, 16), *y = input(graph, KN_BF16, 30, 16), *gradients[2];
        KnTensor *gate = input(graph, KN_F32, 2, 16), *target = input(graph, KN_F32, 30, 16);
        KnTensor *rows = kn_leaf(graph, KN_ROLE_INPUT, KN_I32, 1, (int64_t[]){30}, "rows");
        KnTensor *others = kn_leaf(graph, KN_ROLE_INPUT, KN_I32, 1, (int64_t[]){30}, "others");
        KnTensor *weights = kn_leaf(graph, KN_ROLE_INPUT, KN_F32, 1, (int64_t[]){30}, "weights");
        kn_block_begin(graph);
        KnTensor *sum = kn_gated_residual(graph, x, kn_scale(graph, y, 2), gate, rows);
        kn_block_end(graph);
        KnTensor *norm = kn_layer_norm_modulated(graph, sum, gate, gate, reason == 1 ? others : rows, 1e-6f);
        KnTensor *loss = kn_masked_mse(graph, kn_add(graph, sum, norm), target, weights);
        kn_gradient(graph, loss, (KnTensor *[]){x, y}, 2, gradients, kn_add);
        if (reason == 2)
            kn_recompute_blocks(graph, (const char[]){1});
        cuda->lower(cuda, graph);
        kn_graph_finish(graph, gradients, 2);
        assert_int_equal(count_nodes(graph, KN_OP_GATED_RESIDUAL_BACKWARD, 0), reason > 0);
        assert_int_equal(count_nodes(graph, KN_OP_LAYER_NORM_BACKWARD, 9), reason == 0);
        kn_graph_destroy(graph);
    }
}

int main(void)
{
    static const char path[] = "../kinora-cuda-emulated.so"; /* from the folder of tests, where they run */
    if (access(path, R_OK) != 0)
        return 77;
    if (kn_cuda_backend_plan(path, &cuda) < 0) {
        printf("%s\n", kn_error_message());
        return 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kernels_of_a_node_are_added_up_by_hand),
        cmocka_unit_test(no_node_moves_much_more_than_its_operands),
        cmocka_unit_test(the_graph_is_the_backends),
        cmocka_unit_test(products_that_add_are_named_and_counted),
        cmocka_unit_test(rotary_positions_are_part_of_norms),
        cmocka_unit_test(rotary_positions_stay_apart_where_they_must),
        cmocka_unit_test(columns_are_grouped_by_norms),
        cmocka_unit_test(gated_residuals_are_part_of_norms),
        cmocka_unit_test(gated_residuals_stay_apart_where_they_must),
        cmocka_unit_test(gradients_of_gated_residuals_stay_apart_where_they_must),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
