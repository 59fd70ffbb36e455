/* Promises of the worlds' descriptions, captions and pictures (data/world.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/base/error.h"
#include "data/world.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { FRAMES = 8, SIDE = 32 };

static const KnWorld *shapes(void)
{
    const KnWorld *world = NULL;
    assert_int_equal(kn_world_find("moving-shapes", &world), KN_OK);
    return world;
}

static KnWorldClip clip_of(KnWorldSplit split, uint64_t index)
{
    KnWorldClip clip;
    kn_world_describe(shapes(), 3, split, index, FRAMES, SIDE, SIDE, &clip);
    return clip;
}

static void captions_read_exactly_so(void **state)
{
    (void)state;
    static const struct {
        KnWorldFacts facts;
        const char *caption;
    } cases[] = {{{0, 0, 0, 1}, "a red circle moves left on a gray background"},
                 {{0, 0, 4, 1}, "a red circle stays still on a gray background"},
                 {{7, 3, 3, 2}, "a orange cross moves down on a brown background"},
                 {{5, 2, 2, 0}, "a cyan triangle moves up on a black background"},
                 {{6, 1, 1, 0}, "a white square moves right on a black background"}};
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        char caption[KN_WORLD_CAPTION_BYTES];
        KnWorldFacts facts;
        kn_world_caption(shapes(), &cases[c].facts, caption);
        assert_string_equal(caption, cases[c].caption);
        assert_int_equal(kn_world_parse_caption(shapes(), caption, &facts), KN_OK);
        assert_memory_equal(&facts, &cases[c].facts, sizeof facts);
    }
}

static void other_captions_are_refused(void **state)
{
    (void)state;
    static const char *const captions[] = {"", "a red circle", "a red circle moves left on a gray background ",
                                           "a pink circle moves left on a gray background"};
    KnWorldFacts facts;
    for (int c = 0; c < 4; c++) {
        assert_int_equal(kn_world_parse_caption(shapes(), captions[c], &facts), KN_EINPUT);
        assert_non_null(strstr(kn_error_message(), "is not a caption of moving-shapes"));
    }
    const KnWorld *world;
    assert_int_equal(kn_world_find("moving-shape", &world), KN_EINPUT);
    assert_non_null(strstr(kn_error_message(), "there is: moving-shapes"));
}

static void one_combination_in_eight_is_held_out_and_never_drawn(void **state)
{
    (void)state;
    int held_out = 0, seen[2][8][4][5] = {{{{0}}}};
    for (int c = 0; c < 8; c++)
        for (int s = 0; s < 4; s++)
            for (int m = 0; m < 5; m++)
                held_out += kn_world_is_held_out(shapes(), &(KnWorldFacts){c, s, m, 0});
    assert_int_equal(held_out, 8 * 4 * 5 / 8);
    for (uint64_t i = 0; i < 4000; i++)
        for (int split = 0; split < 2; split++) {
            KnWorldFacts facts = clip_of((KnWorldSplit)split, i).facts;
            int out = (5 * facts.colour + 3 * facts.shape + facts.motion) % 8 == 0;
            assert_int_equal(out, split == KN_WORLD_HELD_OUT);
            assert_in_range(facts.background, 0, 2);
            seen[split][facts.colour][facts.shape][facts.motion]++;
        }
    int combinations[2] = {0};
    for (int i = 0; i < 2 * 160; i++)
        combinations[i / 160] += ((int *)seen)[i] > 0;
    assert_int_equal(combinations[0], 140);
    assert_int_equal(combinations[1], 20);
}

/* The shape's extent in every frame, written down anew from the world's definition. */
static void assert_path_inside(const KnWorldClip *clip, int frames, double width)
{
    static const double dx[] = {-1, 1, 0, 0, 0}, dy[] = {0, 0, -1, 1, 0};
    static const double half[] = {1, 0.88, 1.102, 1}, up[] = {1, 0.88, 1, 1}, down[] = {1, 0.88, 0.9, 1};
    int shape = clip->facts.shape, motion = clip->facts.motion;
    for (int t = 0; t < frames; t++) {
        double x = clip->x + dx[motion] * clip->speed * t, y = clip->y + dy[motion] * clip->speed * t;
        assert_true(x - half[shape] * clip->size >= -1e-9 && x + half[shape] * clip->size <= width + 1e-9);
        assert_true(y - up[shape] * clip->size >= -1e-9 && y + down[shape] * clip->size <= 32 + 1e-9);
    }
    assert_true(clip->size >= 4.5 && clip->size <= 7);
    assert_true(motion == 4 ? clip->speed == 0 : clip->speed >= 1 && clip->speed <= 2.2);
}

static void the_whole_path_is_inside_the_frame_for_any_size_and_length(void **state)
{
    (void)state;
    static const int cases[][3] = {{8, 32, 32}, {1, 32, 32}, {8, 64, 128}, {20, 48, 48}, {23, 32, 40}, {8, 72, 64}};
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        int frames = cases[c][0], height = cases[c][1], width = cases[c][2];
        assert_int_equal(kn_world_check_geometry(shapes(), frames, height, width), KN_OK);
        for (uint64_t i = 0; i < 500; i++) {
            KnWorldClip clip;
            kn_world_describe(shapes(), 9, KN_WORLD_TRAIN, i, frames, height, width, &clip);
            assert_path_inside(&clip, frames, 32.0 * width / height);
        }
    }
}

static void impossible_sizes_and_lengths_are_refused_with_the_number_to_change(void **state)
{
    (void)state;
    assert_int_equal(kn_world_check_geometry(shapes(), 40, 32, 32), KN_EINPUT);
    assert_non_null(strstr(kn_error_message(), "at most 23 frames"));
    assert_int_equal(kn_world_check_geometry(shapes(), 23, 32, 32), KN_OK);
    assert_int_equal(kn_world_check_geometry(shapes(), 24, 32, 32), KN_EINPUT);
    assert_int_equal(kn_world_check_geometry(shapes(), 1, 64, 16), KN_EINPUT);
    assert_non_null(strstr(kn_error_message(), "at least 20 pixels wide"));
    assert_int_equal(kn_world_check_geometry(shapes(), 0, 32, 32), KN_EINPUT);
}

static void sizes_speeds_and_starts_spread_over_their_ranges(void **state)
{
    (void)state;
    double least_size = 9, most_size = 0, least_speed = 9, most_speed = 0;
    for (uint64_t i = 0; i < 2000; i++) {
        KnWorldClip clip = clip_of(KN_WORLD_TRAIN, i);
        least_size = fmin(least_size, clip.size);
        most_size = fmax(most_size, clip.size);
        if (clip.facts.motion != 4) {
            least_speed = fmin(least_speed, clip.speed);
            most_speed = fmax(most_speed, clip.speed);
        }
    }
    assert_true(least_size < 4.52 && most_size > 6.98 && least_speed < 1.01 && most_speed > 2.19);
}

/* Inside the shape, 8 x 8 points a pixel: the definition itself, as the picture's oracle. */
static int inside(int shape, double x, double y, double r)
{
    switch (shape) {
    case 0:
        return x * x + y * y <= r * r;
    case 1:
        return fabs(x) <= 0.88 * r && fabs(y) <= 0.88 * r;
    case 2:
        return y >= -r && y <= 0.9 * r && fabs(x) <= 0.58 * (y + r);
    default:
        return (fabs(x) <= 0.33 * r && fabs(y) <= r) || (fabs(y) <= 0.33 * r && fabs(x) <= r);
    }
}

static void pixels_are_what_the_description_says(void **state)
{
    (void)state;
    static const int colours[8][3] = {{230, 40, 40},  {40, 200, 60},  {50, 80, 235},   {240, 220, 50},
                                      {220, 60, 220}, {60, 220, 230}, {245, 245, 245}, {245, 140, 30}};
    static const int grounds[3][3] = {{12, 12, 14}, {110, 110, 112}, {90, 60, 35}};
    static const double dx[] = {-1, 1, 0, 0, 0}, dy[] = {0, 0, -1, 1, 0};
    enum { HEIGHT = 48, WIDTH = 64, POINTS = 8 };
    static uint8_t pixels[FRAMES][HEIGHT][WIDTH][3];
    for (uint64_t i = 0; i < 24; i++) {
        KnWorldClip clip;
        kn_world_describe(shapes(), 4, KN_WORLD_TRAIN, i, FRAMES, HEIGHT, WIDTH, &clip);
        kn_world_render(shapes(), &clip, FRAMES, HEIGHT, WIDTH, &pixels[0][0][0][0]);
        int motion = clip.facts.motion, t = (int)(i % FRAMES);
        double error = 0;
        for (int y = 0; y < HEIGHT; y++)
            for (int x = 0; x < WIDTH; x++) {
                int hits = 0;
                for (int p = 0; p < POINTS * POINTS; p++)
                    hits +=
                        inside(clip.facts.shape,
                               (x + (p % POINTS + 0.5) / POINTS) * 32 / HEIGHT - clip.x - dx[motion] * clip.speed * t,
                               (y + (p / POINTS + 0.5) / POINTS) * 32 / HEIGHT - clip.y - dy[motion] * clip.speed * t,
                               clip.size);
                for (int c = 0; c < 3; c++) {
                    double ground = grounds[clip.facts.background][c], paint = colours[clip.facts.colour][c];
                    double expected = ground + (paint - ground) * hits / (POINTS * POINTS);
                    double off = fabs(pixels[t][y][x][c] - expected);
                    assert_true(off <= 0.5 + 0.13 * fabs(paint - ground)); /* the oracle's own coarseness */
                    error += off;
                }
            }
        assert_true(error / (HEIGHT * WIDTH * 3) < 0.6);
    }
}

static void intervals_are_wilsons(void **state)
{
    (void)state;
    /* Newcombe 1998, table I: 81 of 263, and 0 of 20. */
    double low, high;
    kn_wilson_interval(81, 263, &low, &high);
    assert_true(fabs(low - 0.2553) < 5e-5 && fabs(high - 0.3662) < 5e-5);
    kn_wilson_interval(0, 20, &low, &high);
    assert_true(low == 0 && fabs(high - 0.1611) < 5e-5);
    kn_wilson_interval(20, 20, &low, &high);
    assert_true(high == 1 && fabs(low - 0.8389) < 5e-5);
    kn_wilson_interval(0, 0, &low, &high);
    assert_true(low == 0 && high == 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(captions_read_exactly_so),
        cmocka_unit_test(other_captions_are_refused),
        cmocka_unit_test(one_combination_in_eight_is_held_out_and_never_drawn),
        cmocka_unit_test(the_whole_path_is_inside_the_frame_for_any_size_and_length),
        cmocka_unit_test(impossible_sizes_and_lengths_are_refused_with_the_number_to_change),
        cmocka_unit_test(sizes_speeds_and_starts_spread_over_their_ranges),
        cmocka_unit_test(pixels_are_what_the_description_says),
        cmocka_unit_test(intervals_are_wilsons),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
