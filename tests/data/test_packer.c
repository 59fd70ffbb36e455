/* Promises of data/packer.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/base/error.h"
#include "core/base/random.h"
#include "data/packer.h"

#include <stdlib.h>
#include <string.h>

enum { CLIPS = 1000 };

static KnRandomKey key(uint64_t sample)
{
    return kn_random_key(11, KN_RANDOM_TEST, 0, sample);
}

/* Patch grids of mixed videos: t x h x w drawn from so many shapes. */
static void mixed_shapes(int64_t *tokens, int shapes, int kind)
{
    int64_t sizes[64];
    for (int s = 0; s < shapes; s++) {
        int64_t t = 1 + (int64_t)kn_random_below(key((uint64_t)kind), (uint64_t)s * 4, kind == 2 ? 3 : 8);
        int64_t h = 2 + (int64_t)kn_random_below(key((uint64_t)kind), (uint64_t)s * 4 + 1, 7);
        int64_t w = 2 + (int64_t)kn_random_below(key((uint64_t)kind), (uint64_t)s * 4 + 2, 7);
        sizes[s] = t * h * w;
    }
    for (int i = 0; i < CLIPS; i++) {
        uint64_t pick = kn_random_below(key(100 + (uint64_t)kind), (uint64_t)i, (uint64_t)shapes);
        if (kind == 1) /* a few shapes are frequent, the rest rare */
            pick = pick * pick / (uint64_t)shapes;
        tokens[i] = sizes[pick];
    }
}

static int64_t sum(const int64_t *values, int64_t count)
{
    int64_t total = 0;
    for (int64_t i = 0; i < count; i++)
        total += values[i];
    return total;
}

/* Every clip once, no budget exceeded: counted here, not taken from the plan's own figures. */
static void assert_sound(const KnPackInput *input, const KnPackBudget *budget, const KnPackPlan *plan)
{
    char *seen = calloc((size_t)input->count, 1);
    for (int64_t p = 0; p < plan->packs; p++) {
        int64_t tokens = 0, text = 0;
        assert_true(plan->first[p + 1] > plan->first[p]);
        assert_true(plan->first[p + 1] - plan->first[p] <= budget->clips);
        for (int64_t i = plan->first[p]; i < plan->first[p + 1]; i++) {
            int64_t clip = plan->clips[i];
            assert_in_range(clip, 0, input->count - 1);
            assert_false(seen[clip]++);
            tokens += input->tokens[clip];
            text += input->text_tokens ? input->text_tokens[clip] : 0;
        }
        assert_true(tokens <= budget->tokens);
        assert_true(!budget->text_tokens || text <= budget->text_tokens);
    }
    assert_int_equal(plan->first[0], 0);
    assert_int_equal(plan->first[plan->packs], input->count);
    free(seen);
}

static void a_thousand_clips_of_many_shapes_waste_under_one_percent(void **state)
{
    (void)state;
    static const struct {
        int shapes, kind;
        int64_t budget;
    } cases[] = {{20, 0, 1024}, {20, 1, 768}, {37, 0, 1024}, {60, 1, 1024}, {24, 2, 512}, {20, 2, 300}, {20, 0, 4096}};
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        int64_t tokens[CLIPS];
        mixed_shapes(tokens, cases[c].shapes, cases[c].kind);
        KnPackInput input = {CLIPS, tokens, NULL};
        KnPackBudget budget = {cases[c].budget, 64, 0};
        for (int64_t epoch = 0; epoch < 3; epoch++) {
            KnPackPlan plan;
            assert_int_equal(kn_packer_plan(&input, &budget, 5, epoch, &plan), KN_OK);
            assert_sound(&input, &budget, &plan);
            double waste = 1 - (double)sum(tokens, CLIPS) / (double)(plan.packs * budget.tokens);
            print_message("%d shapes, budget %lld: %lld packs, waste %.2f%%, without the last pack %.2f%%\n",
                          cases[c].shapes, (long long)budget.tokens, (long long)plan.packs, 100 * waste,
                          100 * plan.waste_inside);
            assert_true(plan.waste_inside < 0.005);
            /* Fewer than 100 packs waste 1% by their last one, whoever packs them. */
            assert_true(waste < 0.01 || plan.packs == (sum(tokens, CLIPS) + budget.tokens - 1) / budget.tokens);
            assert_true(waste < 0.01 || plan.packs < 100);
            assert_true(plan.waste > waste - 1e-12 && plan.waste < waste + 1e-12);
            kn_pack_plan_clear(&plan);
        }
    }
}

static void clips_of_one_size_fill_every_pack(void **state)
{
    (void)state;
    int64_t tokens[CLIPS];
    for (int i = 0; i < CLIPS; i++)
        tokens[i] = 64;
    KnPackInput input = {CLIPS, tokens, NULL};
    KnPackBudget budget = {640, 10, 0};
    KnPackPlan plan;
    assert_int_equal(kn_packer_plan(&input, &budget, 1, 0, &plan), KN_OK);
    assert_int_equal(plan.packs, 100);
    assert_true(plan.waste == 0);
    assert_sound(&input, &budget, &plan);
    kn_pack_plan_clear(&plan);
}

static void limits_of_clips_and_captions_hold(void **state)
{
    (void)state;
    int64_t tokens[CLIPS], text[CLIPS];
    mixed_shapes(tokens, 30, 0);
    for (int i = 0; i < CLIPS; i++)
        text[i] = 1 + (int64_t)kn_random_below(key(7), (uint64_t)i, 40);
    KnPackInput input = {CLIPS, tokens, text};
    static const KnPackBudget budgets[] = {{4096, 5, 0}, {2048, 64, 100}, {2048, 3, 45}, {600, 1, 40}};
    for (size_t b = 0; b < sizeof budgets / sizeof budgets[0]; b++) {
        KnPackPlan plan;
        assert_int_equal(kn_packer_plan(&input, &budgets[b], 5, 0, &plan), KN_OK);
        assert_sound(&input, &budgets[b], &plan);
        kn_pack_plan_clear(&plan);
    }
}

/* Sizes without a common divisor and budgets far above the table of sums. */
static void large_token_counts_pack_well_too(void **state)
{
    (void)state;
    int64_t tokens[CLIPS];
    for (int i = 0; i < CLIPS; i++)
        tokens[i] = 5000 + (int64_t)kn_random_below(key(8), (uint64_t)i, 70000);
    KnPackInput input = {CLIPS, tokens, NULL};
    KnPackBudget budget = {200000, 64, 0};
    KnPackPlan plan;
    assert_int_equal(kn_packer_plan(&input, &budget, 5, 0, &plan), KN_OK);
    assert_sound(&input, &budget, &plan);
    assert_true(plan.waste < 0.01);
    kn_pack_plan_clear(&plan);
}

static void order_depends_on_seed_and_epoch_alone(void **state)
{
    (void)state;
    int64_t tokens[CLIPS];
    mixed_shapes(tokens, 20, 0);
    KnPackInput input = {CLIPS, tokens, NULL};
    KnPackBudget budget = {2048, 64, 0};
    KnPackPlan plans[4];
    static const int64_t seed_epoch[4][2] = {{5, 3}, {5, 3}, {5, 4}, {6, 3}};
    for (int i = 0; i < 4; i++)
        assert_int_equal(kn_packer_plan(&input, &budget, (uint64_t)seed_epoch[i][0], seed_epoch[i][1], &plans[i]),
                         KN_OK);
    assert_memory_equal(plans[0].clips, plans[1].clips, sizeof tokens);
    assert_int_equal(plans[0].packs, plans[1].packs);
    assert_true(memcmp(plans[0].clips, plans[2].clips, sizeof tokens) != 0);
    assert_true(memcmp(plans[0].clips, plans[3].clips, sizeof tokens) != 0);
    for (int i = 0; i < 4; i++)
        kn_pack_plan_clear(&plans[i]);
}

/* Looking ahead must not sort the epoch: each quarter of it sees all sizes about alike. */
static void every_part_of_an_epoch_sees_the_same_mix(void **state)
{
    (void)state;
    int64_t tokens[CLIPS];
    mixed_shapes(tokens, 20, 0);
    KnPackInput input = {CLIPS, tokens, NULL};
    KnPackBudget budget = {2048, 64, 0};
    double mean = (double)sum(tokens, CLIPS) / CLIPS;
    KnPackPlan plan;
    assert_int_equal(kn_packer_plan(&input, &budget, 5, 0, &plan), KN_OK);
    for (int quarter = 0; quarter < 4; quarter++) {
        int64_t total = 0;
        for (int i = 0; i < CLIPS / 4; i++)
            total += tokens[plan.clips[quarter * CLIPS / 4 + i]];
        double own = (double)total / (CLIPS / 4);
        assert_true(own > 0.85 * mean && own < 1.15 * mean);
    }
    kn_pack_plan_clear(&plan);
}

static const char *film(const void *context, int64_t clip)
{
    (void)context;
    return clip == 2 ? "/films/long.mp4" : "another film";
}

static void what_cannot_be_packed_is_said_in_a_sentence(void **state)
{
    (void)state;
    static const int64_t tokens[] = {10, 20, 5000, 30}, text[] = {4, 90, 6, 7};
    static const struct {
        KnPackInput input;
        KnPackBudget budget;
        const char *says;
    } cases[] = {
        {{0, tokens, NULL}, {100, 8, 0}, "no clips"},
        {{4, tokens, NULL}, {100, 8, 0}, "/films/long.mp4 has 5000 tokens, more than a pack holds (data.tokens: 100)"},
        {{4, tokens, NULL}, {4999, 8, 0}, "set data.tokens to at least 5000"},
        {{4, tokens, text}, {5000, 8, 80}, "set data.text_tokens to at least 90"},
        {{4, tokens, NULL}, {5000, 0, 0}, "0 clips holds nothing"},
    };
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        assert_int_equal(kn_packer_check(&cases[c].input, &cases[c].budget, film, NULL), KN_EINPUT);
        if (!strstr(kn_error_message(), cases[c].says))
            fail_msg("\"%s\" does not say \"%s\"", kn_error_message(), cases[c].says);
        KnPackPlan plan;
        assert_int_equal(kn_packer_plan(&cases[c].input, &cases[c].budget, 0, 0, &plan), KN_EINPUT);
    }
    KnPackInput input = {4, tokens, NULL};
    assert_int_equal(kn_packer_check(&input, &(KnPackBudget){100, 8, 0}, NULL, NULL), KN_EINPUT);
    assert_non_null(strstr(kn_error_message(), "clip 2 has 5000 tokens"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_thousand_clips_of_many_shapes_waste_under_one_percent),
        cmocka_unit_test(clips_of_one_size_fill_every_pack),
        cmocka_unit_test(limits_of_clips_and_captions_hold),
        cmocka_unit_test(large_token_counts_pack_well_too),
        cmocka_unit_test(order_depends_on_seed_and_epoch_alone),
        cmocka_unit_test(every_part_of_an_epoch_sees_the_same_mix),
        cmocka_unit_test(what_cannot_be_packed_is_said_in_a_sentence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
