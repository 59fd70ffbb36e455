/* Scores: what is counted, the intervals beside it, and the world's captions that are asked. */
#include "base/support.h"
#include "infer/evaluation.h"

#include <math.h>

static void add(KnEvaluation *evaluation, int colour, int shape, int motion, const char *fault)
{
    KnWorldMatch match = {.colour = colour, .shape = shape, .motion = motion, .background = 1};
    KnMeasured measured = {.clean = !fault, .fault = fault};
    kn_evaluation_add(evaluation, &match, &measured);
}

static void every_statement_is_counted_by_itself(void **state)
{
    (void)state;
    KnEvaluation e = {0};
    add(&e, 1, 1, 1, NULL);
    add(&e, 1, 0, 1, NULL);
    add(&e, 1, 1, 1, "a tear");
    add(&e, 0, 0, 0, "a hole");
    add(&e, 1, 1, 0, "a hole");
    add(&e, 0, 1, 1, NULL);
    assert_int_equal(e.count, 6);
    assert_int_equal(e.right[KN_SCORE_COLOUR], 4);
    assert_int_equal(e.right[KN_SCORE_SHAPE], 4);
    assert_int_equal(e.right[KN_SCORE_MOTION], 4);
    assert_int_equal(e.right[KN_SCORE_CLEAN], 3);
    assert_int_equal(e.right[KN_SCORE_ALL], 1);

    char *text = kn_evaluation_text(&e);
    /* Wilson's interval for 4 of 6, computed apart: 0.3000 to 0.9032. */
    assert_non_null(strstr(text, "colour   66.7%   4 of 6   95% interval 30.0 to 90.3%"));
    assert_non_null(strstr(text, "clean    50.0%   3 of 6"));
    assert_non_null(strstr(text, "all      16.7%   1 of 6"));
    assert_non_null(strstr(text, "most frequent fault: a hole (2 of 6 clips)"));
    free(text);
}

static void a_score_is_told_in_json(void **state)
{
    (void)state;
    KnEvaluation e = {0};
    for (int i = 0; i < 96; i++)
        add(&e, i != 7, 1, 1, i < 3 ? "a hole" : NULL);
    json_t *root = kn_evaluation_json(&e), *colour = json_object_get(root, "colour");
    assert_int_equal(json_integer_value(json_object_get(colour, "right")), 95);
    assert_int_equal(json_integer_value(json_object_get(colour, "of")), 96);
    assert_true(fabs(json_number_value(json_object_get(colour, "share")) - 95.0 / 96) < 1e-12);
    assert_true(fabs(json_number_value(json_object_get(colour, "low")) - 0.9434) < 1e-4);
    assert_true(fabs(json_number_value(json_object_get(colour, "high")) - 0.9982) < 1e-4);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(root, "faults"), "a hole")), 3);
    assert_true(json_number_value(json_object_get(json_object_get(root, "shape"), "high")) == 1);
    json_decref(root);
}

static void held_out_captions_are_exactly_the_rule(void **state)
{
    (void)state;
    const KnWorld *world = NULL;
    enum { ALL = 8 * 4 * 5 * 3, HELD_OUT = ALL / 8 };
    KnWorldFacts facts[ALL];
    assert_ok(kn_world_find("moving-shapes", &world));
    assert_int_equal(kn_world_combinations(world, KN_WORLD_HELD_OUT, NULL), HELD_OUT);
    assert_int_equal(kn_world_combinations(world, KN_WORLD_TRAIN, facts), ALL - HELD_OUT);
    for (int i = 0; i < ALL - HELD_OUT; i++)
        assert_int_not_equal((5 * facts[i].colour + 3 * facts[i].shape + facts[i].motion) % 8, 0);
    assert_int_equal(kn_world_combinations(world, KN_WORLD_HELD_OUT, facts), HELD_OUT);
    for (int i = 0; i < HELD_OUT; i++) {
        assert_int_equal((5 * facts[i].colour + 3 * facts[i].shape + facts[i].motion) % 8, 0);
        for (int j = 0; j < i; j++)
            assert_memory_not_equal(&facts[i], &facts[j], sizeof facts[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_statement_is_counted_by_itself),
        cmocka_unit_test(a_score_is_told_in_json),
        cmocka_unit_test(held_out_captions_are_exactly_the_rule),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
