/* The ruler of moving-shapes is itself measured: all right on true clips under noise, blur and large pictures, chance
 * on mismatched captions, and every planted defect found.
 * Labels: slow */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/base/error.h"
#include "core/base/random.h"
#include "data/video_read.h"
#include "data/video_write.h"
#include "data/world.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FRAMES = 8, SIDE = 32, MOST_SIDE = 64, MOST_BYTES = FRAMES * MOST_SIDE * MOST_SIDE * 3 };
static uint8_t pixels[MOST_BYTES], other[MOST_BYTES];

static const KnWorld *shapes(void)
{
    return kn_world_at(0);
}

static KnWorldClip true_clip(uint64_t index, int side, uint8_t *out)
{
    KnWorldClip clip;
    kn_world_describe(shapes(), 21, (KnWorldSplit)(index % 2), index, FRAMES, side, side, &clip);
    kn_world_render(shapes(), &clip, FRAMES, side, side, out);
    return clip;
}

static uint8_t *at(uint8_t *frames, int side, int t, int y, int x)
{
    return frames + 3 * (((size_t)t * (size_t)side + (size_t)y) * (size_t)side + (size_t)x);
}

static uint8_t clamp(double value)
{
    return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value + 0.5);
}

static void add_noise(int side, double sigma, uint64_t sample)
{
    KnRandomKey key = kn_random_key(1, KN_RANDOM_TEST, 0, sample);
    for (int i = 0; i < FRAMES * side * side * 3; i++)
        pixels[i] = clamp(pixels[i] + sigma * (double)kn_random_normal(key, (uint64_t)i));
}

/* A Gaussian of `sigma` pixels over three by three, edges repeated. */
static void blur(int side, double sigma)
{
    double side_weight = exp(-0.5 / (sigma * sigma));
    memcpy(other, pixels, (size_t)(FRAMES * side * side * 3));
    for (int t = 0; t < FRAMES; t++)
        for (int y = 0; y < side; y++)
            for (int x = 0; x < side; x++)
                for (int c = 0; c < 3; c++) {
                    double sum = 0, weights = 0;
                    for (int k = 0; k < 9; k++) {
                        int dx = k % 3 - 1, dy = k / 3 - 1;
                        int px = x + dx < 0 || x + dx >= side ? x : x + dx;
                        int py = y + dy < 0 || y + dy >= side ? y : y + dy;
                        double weight = (dx ? side_weight : 1) * (dy ? side_weight : 1);
                        sum += weight * at(other, side, t, py, px)[c];
                        weights += weight;
                    }
                    at(pixels, side, t, y, x)[c] = clamp(sum / weights);
                }
}

static void assert_measured(const KnWorldClip *clip, int side, uint64_t index)
{
    KnMeasured measured;
    kn_world_measure(shapes(), pixels, FRAMES, side, side, &measured);
    if (memcmp(&measured.facts, &clip->facts, sizeof clip->facts) || !measured.clean) {
        char caption[KN_WORLD_CAPTION_BYTES];
        kn_world_caption(shapes(), &clip->facts, caption);
        fail_msg("clip %d, %s: measured colour %d shape %d motion %d background %d, %s", (int)index, caption,
                 measured.facts.colour, measured.facts.shape, measured.facts.motion, measured.facts.background,
                 measured.fault ? measured.fault : "clean");
    }
    static const double dx[] = {-1, 1, 0, 0, 0}, dy[] = {0, 0, -1, 1, 0};
    assert_true(fabs(measured.velocity_x - dx[clip->facts.motion] * clip->speed) < 0.15);
    assert_true(fabs(measured.velocity_y - dy[clip->facts.motion] * clip->speed) < 0.15);
}

static void true_clips_measure_true_under_noise_and_blur(void **state)
{
    (void)state;
    static const struct {
        int side, clips;
        double blur, noise;
    } cases[] = {{32, 80, 0, 0}, {32, 120, 0, 12}, {32, 60, 0.7, 0}, {32, 60, 0.7, 12}, {64, 10, 0, 12}};
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++)
        for (uint64_t i = 0; i < (uint64_t)cases[c].clips; i++) {
            KnWorldClip clip = true_clip(i, cases[c].side, pixels);
            if (cases[c].blur > 0)
                blur(cases[c].side, cases[c].blur);
            if (cases[c].noise > 0)
                add_noise(cases[c].side, cases[c].noise, i);
            assert_measured(&clip, cases[c].side, i);
        }
}

/* Through a real encoder and decoder, 4:2:0, at qualities that files have. */
static void true_clips_measure_true_after_h264(void **state)
{
    (void)state;
    static const struct {
        int side, crf;
    } cases[] = {{32, 6}, {32, 12}, {64, 12}, {64, 23}};
    char path[] = "/tmp/kinora-measure-XXXXXX.mp4";
    assert_true(close(mkstemps(path, 4)) == 0);
    for (uint64_t i = 0; i < 60; i++) {
        int side = cases[i % 4].side, frame_bytes = side * side * 3;
        KnWorldClip clip = true_clip(i / 4, side, pixels);
        KnVideoWriteOptions options = {.width = side, .height = side, .fps = 8, .crf = cases[i % 4].crf};
        KnVideo *video;
        const uint8_t *rgb;
        assert_int_equal(kn_video_write(path, pixels, FRAMES, &options), KN_OK);
        assert_int_equal(kn_video_open(&video, path, &(KnVideoOptions){0}, NULL), KN_OK);
        for (int t = 0; t < FRAMES; t++) {
            assert_int_equal(kn_video_next(video, &rgb, NULL), KN_OK);
            memcpy(pixels + t * frame_bytes, rgb, (size_t)frame_bytes);
        }
        kn_video_close(video);
        assert_measured(&clip, side, i);
    }
    unlink(path);
}

/* Colours 20 levels off towards gray and a background 8 levels off: what a half-trained model draws. */
static void slightly_wrong_colours_still_count(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < 60; i++) {
        KnWorldClip clip = true_clip(i, SIDE, pixels);
        for (int k = 0; k < FRAMES * SIDE * SIDE * 3; k++)
            pixels[k] = clamp(128 + (pixels[k] - 128) * 0.85 + (i % 2 ? 8 : -8));
        KnMeasured measured;
        kn_world_measure(shapes(), pixels, FRAMES, SIDE, SIDE, &measured);
        assert_int_equal(measured.facts.colour, clip.facts.colour);
        assert_int_equal(measured.facts.shape, clip.facts.shape);
        assert_int_equal(measured.clean, 1);
    }
}

static void mismatched_captions_score_chance(void **state)
{
    (void)state;
    enum { CLIPS = 250 };
    int right[4] = {0};
    for (uint64_t i = 0; i < CLIPS; i++) {
        true_clip(2 * i, SIDE, pixels); /* even indices: the training split */
        KnWorldClip wrong = true_clip(2 * (i + 5000), SIDE, other);
        char caption[KN_WORLD_CAPTION_BYTES];
        kn_world_caption(shapes(), &wrong.facts, caption);
        KnMeasured measured;
        KnWorldMatch match;
        kn_world_measure(shapes(), pixels, FRAMES, SIDE, SIDE, &measured);
        assert_int_equal(kn_world_matches(shapes(), caption, &measured, &match), KN_OK);
        right[0] += match.colour;
        right[1] += match.shape;
        right[2] += match.motion;
        right[3] += match.background;
    }
    static const double chance[4] = {1.0 / 8, 1.0 / 4, 1.0 / 5, 1.0 / 3};
    for (int f = 0; f < 4; f++) { /* four standard deviations */
        double share = (double)right[f] / CLIPS;
        assert_true(fabs(share - chance[f]) < 4 * sqrt(chance[f] * (1 - chance[f]) / CLIPS));
    }
}

/* ---- planted defects: each turns `pixels`, a true clip of a white shape on black, into a bad one ---- */

static void paint_box(int first_frame, int last_frame, int top, int left, int height, int width, int r, int g, int b)
{
    for (int t = first_frame; t <= last_frame; t++)
        for (int y = top; y < top + height; y++)
            for (int x = left; x < left + width; x++) {
                uint8_t *pixel = at(pixels, SIDE, t, y, x);
                pixel[0] = (uint8_t)r;
                pixel[1] = (uint8_t)g;
                pixel[2] = (uint8_t)b;
            }
}

static void second_object(void)
{
    paint_box(0, FRAMES - 1, 1, 1, 6, 6, 245, 245, 245);
}

static void second_object_of_another_colour(void)
{
    paint_box(0, FRAMES - 1, 25, 25, 6, 6, 50, 80, 235);
}

static void torn_in_two(void)
{
    paint_box(0, FRAMES - 1, 0, 15, SIDE, 2, 12, 12, 14);
}

static void torn_in_half_of_the_frames(void)
{
    paint_box(4, FRAMES - 1, 0, 15, SIDE, 2, 12, 12, 14);
}

static void colour_changes_half_way(void)
{
    for (int i = FRAMES / 2 * SIDE * SIDE; i < FRAMES * SIDE * SIDE; i++)
        pixels[3 * i + 2] = (uint8_t)(pixels[3 * i + 2] / 5); /* white becomes yellow */
}

static void background_flickers(void)
{
    for (int t = 1; t < FRAMES; t += 2)
        for (int i = 0; i < SIDE * SIDE * 3; i++)
            pixels[t * SIDE * SIDE * 3 + i] = clamp(pixels[t * SIDE * SIDE * 3 + i] + 35);
}

static void background_fades(void)
{
    for (int t = 0; t < FRAMES; t++)
        for (int i = 0; i < SIDE * SIDE * 3; i++)
            pixels[t * SIDE * SIDE * 3 + i] = clamp(pixels[t * SIDE * SIDE * 3 + i] + 6 * t);
}

static void background_is_patchy(void)
{
    for (int t = 0; t < FRAMES; t++)
        for (int y = 0; y < SIDE; y++)
            for (int x = 0; x < SIDE; x++)
                for (int c = 0; c < 3; c++)
                    at(pixels, SIDE, t, y, x)[c] =
                        clamp(at(pixels, SIDE, t, y, x)[c] + (((x / 4 + y / 4) & 1) ? 40 : 0));
}

static void no_object(void)
{
    paint_box(0, FRAMES - 1, 0, 0, SIDE, SIDE, 12, 12, 14);
}

static void object_vanishes(void)
{
    paint_box(5, FRAMES - 1, 0, 0, SIDE, SIDE, 12, 12, 14);
}

static void pure_noise(void)
{
    paint_box(0, FRAMES - 1, 0, 0, SIDE, SIDE, 128, 128, 128);
    add_noise(SIDE, 60, 1);
}

static void far_too_small(void)
{
    no_object();
    paint_box(0, FRAMES - 1, 14, 14, 4, 4, 245, 245, 245);
}

static void far_too_large(void)
{
    no_object();
    paint_box(0, FRAMES - 1, 6, 6, 19, 19, 245, 245, 245);
}

static void a_long_bar(void)
{
    no_object();
    paint_box(0, FRAMES - 1, 14, 2, 3, 28, 245, 245, 245);
}

static void a_frame_of_a_box(void)
{
    no_object();
    paint_box(0, FRAMES - 1, 8, 8, 14, 14, 245, 245, 245);
    paint_box(0, FRAMES - 1, 11, 11, 8, 8, 12, 12, 14);
}

static void planted_defects_are_not_clean(void **state)
{
    (void)state;
    static const struct {
        void (*plant)(void);
        const char *fault;
    } defects[] = {
        {second_object, "more than one piece"},
        {second_object_of_another_colour, "more than one piece"},
        {torn_in_two, "more than one piece"},
        {torn_in_half_of_the_frames, "more than one piece"},
        {colour_changes_half_way, "the colour changes"},
        {background_flickers, "the background changes"},
        {background_fades, "the background changes"},
        {background_is_patchy, NULL},
        {no_object, "no object"},
        {object_vanishes, "no object"},
        {pure_noise, NULL},
        {far_too_small, "not of a shape's size"},
        {far_too_large, "not of a shape's size"},
        {a_long_bar, "no known shape"},
        {a_frame_of_a_box, "no known shape"},
    };
    for (int shape = 0; shape < 4; shape++)
        for (size_t d = 0; d < sizeof defects / sizeof defects[0]; d++) {
            KnWorldClip clip = {.facts = {6, shape, 4, 0}, .size = 6, .x = 16, .y = 16};
            kn_world_render(shapes(), &clip, FRAMES, SIDE, SIDE, pixels);
            KnMeasured measured;
            kn_world_measure(shapes(), pixels, FRAMES, SIDE, SIDE, &measured);
            assert_int_equal(measured.clean, 1);
            defects[d].plant();
            kn_world_measure(shapes(), pixels, FRAMES, SIDE, SIDE, &measured);
            if (measured.clean)
                fail_msg("defect %d on shape %d went unseen", (int)d, shape);
            assert_non_null(measured.fault);
            if (defects[d].fault)
                assert_string_equal(measured.fault, defects[d].fault);
        }
}

static void one_bad_frame_in_eight_is_forgiven(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < 20; i++) {
        KnWorldClip clip = true_clip(i, SIDE, pixels);
        KnMeasured measured;
        memcpy(at(pixels, SIDE, 3, 0, 0), at(pixels, SIDE, 3, 8, 0), SIDE * SIDE * 3 / 4); /* doubled, torn or gone */
        kn_world_measure(shapes(), pixels, FRAMES, SIDE, SIDE, &measured);
        assert_int_equal(measured.facts.motion, clip.facts.motion);
        assert_int_equal(measured.facts.colour, clip.facts.colour);
    }
}

static void aslant_and_unknown_colours_match_no_caption(void **state)
{
    (void)state;
    KnMeasured measured;
    no_object();
    for (int t = 0; t < FRAMES; t++)
        paint_box(t, t, 4 + t, 4 + t, 11, 11, 245, 245, 245);
    kn_world_measure(shapes(), pixels, FRAMES, SIDE, SIDE, &measured);
    assert_int_equal(measured.facts.motion, KN_WORLD_NONE);
    assert_int_equal(measured.facts.shape, 1);
    no_object();
    paint_box(0, FRAMES - 1, 10, 10, 11, 11, 20, 90, 20); /* a green too dark to be the world's */
    kn_world_measure(shapes(), pixels, FRAMES, SIDE, SIDE, &measured);
    assert_int_equal(measured.facts.colour, KN_WORLD_NONE);
    KnWorldMatch match;
    assert_int_equal(kn_world_matches(shapes(), "anything", &measured, &match), KN_EINPUT);
}

/* Any content and size: nothing to assert but that it ends, cleanly under the sanitizers. */
static void any_pixels_can_be_measured(void **state)
{
    (void)state;
    static const int cases[][3] = {{1, 1, 1}, {1, 32, 32}, {2, 1, 40}, {3, 40, 1}, {5, 7, 13}, {8, 16, 48}};
    KnRandomKey key = kn_random_key(2, KN_RANDOM_TEST, 0, 0);
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++)
        for (int kind = 0; kind < 4; kind++) {
            int frames = cases[c][0], height = cases[c][1], width = cases[c][2];
            for (int i = 0; i < frames * height * width * 3; i++)
                pixels[i] = (uint8_t)(kind == 0   ? 0
                                      : kind == 1 ? kn_random_below(key, (uint64_t)i, 256)
                                      : kind == 2 ? (i / 3 % width < width / 3 ? 250 : 10)
                                                  : (i / 3 / width % 2 ? 250 : 10));
            KnMeasured measured;
            kn_world_measure(shapes(), pixels, frames, height, width, &measured);
            assert_true(measured.clean == (measured.fault == NULL));
            assert_true(isfinite(measured.velocity_x) && isfinite(measured.shape_overlap));
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(true_clips_measure_true_under_noise_and_blur),
        cmocka_unit_test(true_clips_measure_true_after_h264),
        cmocka_unit_test(slightly_wrong_colours_still_count),
        cmocka_unit_test(mismatched_captions_score_chance),
        cmocka_unit_test(planted_defects_are_not_clean),
        cmocka_unit_test(one_bad_frame_in_eight_is_forgiven),
        cmocka_unit_test(aslant_and_unknown_colours_match_no_caption),
        cmocka_unit_test(any_pixels_can_be_measured),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
