/* What a layout saves of a rank's memory: a quarter of the state with ZeRO 3 on four ranks, a quarter of the
 * activations with the sequence on four. Layouts are planned, nothing runs. */
#include "base/support.h"

#include "core/cpu/backend.h"
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(zero_3_on_four_ranks_leaves_a_quarter_of_the_state),
        cmocka_unit_test(the_sequence_on_four_ranks_leaves_a_quarter_of_the_activations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
