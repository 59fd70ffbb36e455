/* The rotary table against diffusers' values at near and far positions. */
#include "core/base/error.h"
#include "core/base/safetensors.h"
#include "core/model/dit.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { TOKENS = 8, LARGEST_HEAD = 128 };

static void read(const KnSafetensorsSet *fixture, const char *kind, int head, float *values)
{
    char name[32];
    snprintf(name, sizeof name, "rope.%s.%d", kind, head);
    assert_int_equal(kn_safetensors_read_f32(fixture, name, values, TOKENS * head / 2), KN_OK);
}

static void every_axis_turns_as_in_diffusers(void **state)
{
    static const int HEADS[] = {128, 64, 32, 20};
    static float table[KN_ROPE_POSITIONS * LARGEST_HEAD];
    float cosines[TOKENS * LARGEST_HEAD / 2], sines[TOKENS * LARGEST_HEAD / 2];
    KnSafetensorsSet *fixture = NULL;
    (void)state;
    assert_int_equal(kn_safetensors_open(&fixture, KN_TEST_FIXTURES "/tables.safetensors"), KN_OK);
    const KnSafetensor *tensor = kn_safetensors_find(fixture, "rope.positions");
    int32_t positions[TOKENS][3];
    assert_non_null(tensor);
    assert_int_equal(kn_safetensor_bytes(tensor), sizeof positions);
    memcpy(positions, tensor->data, sizeof positions);

    for (size_t h = 0; h < sizeof HEADS / sizeof *HEADS; h++) {
        int head = HEADS[h], spatial_pairs = head / 6, time_pairs = head / 2 - 2 * spatial_pairs;
        KnModelConfig config = {.hidden = 3 * head, .heads = 3};
        kn_dit_rope_table(&config, table);
        read(fixture, "cos", head, cosines);
        read(fixture, "sin", head, sines);
        for (int token = 0; token < TOKENS; token++)
            for (int pair = 0; pair < head / 2; pair++) {
                int axis = pair < time_pairs ? 0 : 1 + (pair - time_pairs) / spatial_pairs;
                const float *ours = table + positions[token][axis] * head + 2 * pair;
                assert_true(fabsf(ours[0] - cosines[token * head / 2 + pair]) < 1e-7f);
                assert_true(fabsf(ours[1] - sines[token * head / 2 + pair]) < 1e-7f);
            }
    }
    kn_safetensors_close(fixture);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_axis_turns_as_in_diffusers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
