/* Labels: slow */
/* What a layout saves of a rank's memory and work: a quarter of the state with ZeRO 3 on four ranks, a quarter of the
 * activations with the sequence on four, half of Muon's products with two tensor ranks. Layouts are planned, nothing
 * runs. */
#include "base/support.h"

#include "core/cpu/backend.h"
#include "core/ops/ops.h"
#include "train/optimizer.h"
#include "train/pass.h"

enum { TOKENS = 4096, TEXT = 16 };

static void create_model(KnModel *model)
{
    KnModelConfig config = {.hidden = 256,
                            .layers = 8,
                            .heads = 8,
                            .ffn = 1024,
                            .channels = 16,
                            .patch = {1, 2, 2},
                            .freq_dim = 64,
                            .text_dim = 64,
                            .eps = 1e-6,
                            .cross_attn_norm = 1};
    KnTextConfig text = {.kind = KN_TEXT_NONE, .heads = 1, .max_tokens = TEXT};
    assert_int_equal(kn_model_create(model, &config, &text, KN_PREDICT_VELOCITY, NULL), KN_OK);
}

typedef struct Memory {
    size_t state, activations; /* bytes */
} Memory;

/* Of the rank that needs most. */
static Memory memory_of(const KnModel *model, KnParallelConfig parallel, const char *optimizer)
{
    KnOptimizerConfig config = {.name = (char *)(uintptr_t)optimizer, .ema = 0.9};
    int ranks = (int)(parallel.shard * parallel.ring * parallel.ulysses);
    Memory most = {0};
    parallel.data = parallel.tensor = parallel.cfg = 1;
    for (int rank = 0; rank < ranks; rank++) {
        KnLayout layout;
        KnOptimizerState state;
        KnTrainPass *pass = NULL;
        float stats[2];
        KnLayoutOptions options = {.parallel = &parallel,
                                   .whole_matrices = kn_optimizer_whole_matrices(&config),
                                   .rank = rank,
                                   .ranks = ranks};
        assert_int_equal(kn_layout_create(&layout, model, &options), KN_OK);
        assert_int_equal(kn_optimizer_state_create(&state, &layout.zero, &config), KN_OK);
        KnTrainPassOptions pass_options = {.layout = &layout,
                                           .shape = {TOKENS, 1, TEXT},
                                           .dtype = KN_BF16,
                                           .backward = 1,
                                           .reduce = 1,
                                           .weights = &state.weights,
                                           .gradients = &state.gradients,
                                           .stats = stats};
        assert_int_equal(kn_train_pass_create(&pass, &pass_options, kn_cpu_backend()), KN_OK);
        const KnParameterValues *held[] = {&state.weights, &state.gradients, &state.moment1, &state.moment2,
                                           &state.average};
        size_t bytes = 0, activations = kn_train_pass_plan(pass)->category_bytes[KN_MEMORY_ACTIVATIONS];
        for (size_t i = 0; i < sizeof held / sizeof *held; i++)
            for (int b = 0; b < layout.part.block_count; b++)
                bytes += (size_t)held[i]->count[b] * sizeof(float);
        most.state = bytes > most.state ? bytes : most.state;
        most.activations = activations > most.activations ? activations : most.activations;
        kn_train_pass_destroy(pass);
        kn_optimizer_state_clear(&state);
        kn_layout_destroy(&layout);
    }
    return most;
}

static void zero_3_on_four_ranks_leaves_a_quarter_of_the_state(void **state)
{
    static const char *const optimizers[] = {"adamw", "muon"};
    KnModel model;
    (void)state;
    create_model(&model);
    for (size_t i = 0; i < sizeof optimizers / sizeof *optimizers; i++) {
        Memory one = memory_of(&model, (KnParallelConfig){.shard = 1, .ring = 1, .ulysses = 1}, optimizers[i]);
        Memory four =
            memory_of(&model, (KnParallelConfig){.shard = 4, .ring = 1, .ulysses = 1, .zero = 3}, optimizers[i]);
        double share = (double)four.state / (double)one.state;
        print_message("parameters, gradients and optimizer, %s: %.4f of one rank's %.1f MiB\n", optimizers[i], share,
                      (double)one.state / 1048576.0);
        assert_true(share <= 0.27);
    }
    kn_model_destroy(&model);
}

static void the_sequence_on_four_ranks_leaves_a_quarter_of_the_activations(void **state)
{
    static const KnParallelConfig layouts[] = {{.shard = 1, .ring = 1, .ulysses = 4},
                                               {.shard = 1, .ring = 4, .ulysses = 1},
                                               {.shard = 1, .ring = 2, .ulysses = 2}};
    KnModel model;
    (void)state;
    create_model(&model);
    Memory one = memory_of(&model, (KnParallelConfig){.shard = 1, .ring = 1, .ulysses = 1}, "adamw");
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
        Memory four = memory_of(&model, layouts[i], "adamw");
        double share = (double)four.activations / (double)one.activations;
        print_message("activations, ring %d x ulysses %d: %.4f of one rank's %.1f MiB\n", (int)layouts[i].ring,
                      (int)layouts[i].ulysses, share, (double)one.activations / 1048576.0);
        assert_true(share <= 0.27);
    }
    kn_model_destroy(&model);
}

/* --- Muon on tensor ranks ------------------------------------------------------------------------------------------
 */

static void plan_layout(KnLayout *layout, const KnModel *model, const KnParallelConfig *parallel, int rank)
{
    KnLayoutOptions options = {.parallel = parallel,
                               .whole_matrices = 1,
                               .rank = rank,
                               .ranks = (int)(parallel->data * parallel->shard * parallel->tensor)};
    assert_int_equal(kn_layout_create(layout, model, &options), KN_OK);
}

/* Does this rank's range of the block hold all of the parameter (1), a part of it (-1) or nothing? */
static int holds(const KnLayout *layout, const KnParameter *p)
{
    const int64_t *cuts = kn_zero_cuts(&layout->zero, p->block) + layout->zero.rank;
    int64_t end = p->offset + p->elements;
    if (end <= cuts[0] || p->offset >= cuts[1])
        return 0;
    return p->offset >= cuts[0] && end <= cuts[1] ? 1 : -1;
}

/* Else they would wait for each other for ever. Heads and width are shared unevenly. */
static void tensor_ranks_own_parts_of_the_same_matrices(void **state)
{
    KnModel model;
    (void)state;
    create_model(&model);
    for (int tensor = 2; tensor <= 8; tensor++)
        for (int shard = 2; shard <= 7; shard++) {
            KnParallelConfig parallel = {
                .data = 1, .shard = shard, .ring = 1, .ulysses = 1, .tensor = tensor, .cfg = 1, .zero = 1};
            for (int rank = 0; rank < shard * tensor; rank++) {
                KnLayout layout, first;
                plan_layout(&layout, &model, &parallel, rank);
                plan_layout(&first, &model, &parallel, rank / tensor * tensor);
                for (int i = 0; i < layout.part.count; i++) {
                    const KnParameter *p = &layout.part.list[i];
                    assert_string_equal(p->name, first.part.list[i].name);
                    if (p->matrix) {
                        assert_true(holds(&layout, p) >= 0);
                        assert_int_equal(holds(&layout, p), holds(&first, &first.part.list[i]));
                    }
                }
                kn_layout_destroy(&layout);
                kn_layout_destroy(&first);
            }
        }
    kn_model_destroy(&model);
}

typedef struct Update {
    double flops; /* of products */
    size_t arena; /* bytes */
} Update;

static Update update_of(const KnModel *model, int tensor, int rank)
{
    KnOptimizerConfig config = {.name = (char *)(uintptr_t) "muon", .newton_schulz_steps = 5};
    KnParallelConfig parallel = {.data = 1, .shard = 1, .ring = 1, .ulysses = 1, .tensor = tensor, .cfg = 1};
    KnLayout layout;
    KnOptimizerState state;
    KnOptimizer *optimizer = NULL;
    plan_layout(&layout, model, &parallel, rank);
    assert_int_equal(kn_optimizer_state_create(&state, &layout.zero, &config), KN_OK);
    assert_int_equal(kn_optimizer_create(&optimizer, &config, &layout, &state, kn_cpu_backend()), KN_OK);
    Update update = {.flops = kn_graph_cost(kn_optimizer_graph(optimizer)->graph).matmul_flops,
                     .arena = kn_optimizer_plan(optimizer)->arena_bytes};
    kn_optimizer_destroy(optimizer);
    kn_optimizer_state_clear(&state);
    kn_layout_destroy(&layout);
    return update;
}

/* A block has 8 matrices of 256x256 and 2 of 256x1024: on 2 ranks 4 and 1 for each, on 3 the first has 3 and 1. */
static void tensor_ranks_share_the_orthogonalization(void **state)
{
    static const double square = 6, wide = 4 * 4 + 2; /* of 256^3 */
    KnModel model;
    (void)state;
    create_model(&model);
    Update one = update_of(&model, 1, 0);
    assert_float_equal(one.flops, 8 * 5 * 256.0 * 256.0 * 256.0 * (8 * square + 2 * wide), 1);
    for (int tensor = 2; tensor <= 8; tensor++) {
        double sum = 0, most = 0;
        size_t arena = 0;
        for (int rank = 0; rank < tensor; rank++) {
            Update update = update_of(&model, tensor, rank);
            sum += update.flops;
            most = update.flops > most ? update.flops : most;
            arena = update.arena > arena ? update.arena : arena;
        }
        print_message("muon on %d tensor ranks: %.3f of one's products, %.3f of its %.1f MiB\n", tensor,
                      most / one.flops, (double)arena / (double)one.arena, (double)one.arena / 1048576.0);
        assert_float_equal(sum, one.flops, 1);
        if (tensor <= 3)
            assert_float_equal(most / one.flops, tensor == 2 ? 0.5 : (3 * square + wide) / (8 * square + 2 * wide),
                               1e-9);
        assert_true(arena < one.arena);
    }
    kn_model_destroy(&model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(zero_3_on_four_ranks_leaves_a_quarter_of_the_state),
        cmocka_unit_test(the_sequence_on_four_ranks_leaves_a_quarter_of_the_activations),
        cmocka_unit_test(tensor_ranks_own_parts_of_the_same_matrices),
        cmocka_unit_test(tensor_ranks_share_the_orthogonalization),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
