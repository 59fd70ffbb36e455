/* The world `moving-shapes`: one shape in one colour that moves one way, or not at all, on a plain background.
 *
 * A clip is drawn in units (the picture is 32 high) from Philox numbers of (seed, split, index). Because every shape is
 * one interval on every horizontal line, its coverage of a pixel is exact along x and summed over 16 lines along y;
 * that is what makes its edges smooth and its motion by fractions of a pixel visible. */
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/random.h"
#include "data/world_table.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double size_low = 4.5, size_high = 7.0;
static const double speed_low = 1.0, speed_high = 2.2;

const KnPaint kn_colours[KN_COLOURS] = {
    {"red", {230, 40, 40}},      {"green", {40, 200, 60}}, {"blue", {50, 80, 235}},    {"yellow", {240, 220, 50}},
    {"magenta", {220, 60, 220}}, {"cyan", {60, 220, 230}}, {"white", {245, 245, 245}}, {"orange", {245, 140, 30}},
};
const KnPaint kn_backgrounds[KN_BACKGROUNDS] = {
    {"black", {12, 12, 14}}, {"gray", {110, 110, 112}}, {"brown", {90, 60, 35}}};

static double circle(double y)
{
    return fabs(y) <= 1 ? sqrt(1 - y * y) : -1;
}

static double square(double y)
{
    return fabs(y) <= 0.88 ? 0.88 : -1;
}

static double triangle(double y)
{
    return y >= -1 && y <= 0.9 ? 0.58 * (y + 1) : -1;
}

static double cross(double y)
{
    return fabs(y) <= 0.33 ? 1 : fabs(y) <= 1 ? 0.33 : -1;
}

const KnShape kn_shapes[KN_SHAPES] = {
    {"circle", 1, -1, 1, 3.141592653589793, 0, circle},
    {"square", 0.88, -0.88, 0.88, 1.76 * 1.76, 0, square},
    {"triangle", 0.58 * 1.9, -1, 0.9, 0.58 * 1.9 * 1.9, -1 + 1.9 * 2 / 3, triangle},
    {"cross", 1, -1, 1, 4 * 0.66 - 0.66 * 0.66, 0, cross},
};

static const struct Motion {
    const char *words;
    int dx, dy;
} motions[KN_MOTIONS] = {
    {"moves left", -1, 0}, {"moves right", 1, 0}, {"moves up", 0, -1}, {"moves down", 0, 1}, {"stays still", 0, 0}};

/* Room for a shape of size r to travel: the frame's side less the shape's extent, along x and y. */
static void room_of(const KnShape *shape, double r, double width, double room[2])
{
    room[0] = width - 2 * shape->half_width * r;
    room[1] = KN_WORLD_UNITS - (shape->bottom - shape->top) * r;
}

static double width_in_units(int height, int width)
{
    return (double)KN_WORLD_UNITS * width / height;
}

static int check_geometry(int frames, int height, int width)
{
    double units = width_in_units(height, width), room[2], least = INFINITY;
    for (int s = 0; s < KN_SHAPES; s++) {
        room_of(&kn_shapes[s], size_low, units, room);
        least = fmin(least, fmin(room[0], room[1]));
    }
    if (least < 0)
        return kn_fail(KN_EINPUT,
                       "a picture of %dx%d is too narrow for the smallest shapes of moving-shapes; make it at least %d "
                       "pixels wide or less high",
                       width, height, (int)ceil(2 * kn_shapes[2].half_width * size_low * height / KN_WORLD_UNITS));
    int most = 1 + (int)floor(least / speed_low + 1e-9);
    if (frames > most)
        return kn_fail(
            KN_EINPUT,
            "in %d frames of %dx%d the shapes of moving-shapes leave the picture even at their lowest speed; "
            "ask for at most %d frames%s",
            frames, width, height, most, units < KN_WORLD_UNITS ? " or a wider picture" : "");
    return KN_OK;
}

static int is_held_out(const KnWorldFacts *facts)
{
    return (5 * facts->colour + 3 * facts->shape + facts->motion) % 8 == 0;
}

/* Elements of a clip's key: its own numbers, then three for each try at a combination of its split. */
enum { DRAW_BACKGROUND, DRAW_SIZE, DRAW_SPEED, DRAW_X, DRAW_Y, DRAW_COMBINATIONS = 16 };

static double between(KnRandomKey key, uint64_t element, double low, double high)
{
    return low + (high - low) * kn_random_uniform(key, element);
}

static void describe(uint64_t seed, KnWorldSplit split, uint64_t index, int frames, int height, int width,
                     KnWorldClip *clip)
{
    KnRandomKey key = kn_random_key(seed, KN_RANDOM_SYNTH, (uint64_t)split, index);
    KnWorldFacts *facts = &clip->facts;
    uint64_t element = DRAW_COMBINATIONS;
    do {
        facts->colour = (int)kn_random_below(key, element, KN_COLOURS);
        facts->shape = (int)kn_random_below(key, element + 1, KN_SHAPES);
        facts->motion = (int)kn_random_below(key, element + 2, KN_MOTIONS);
        element += 3;
    } while (is_held_out(facts) != (split == KN_WORLD_HELD_OUT));
    facts->background = (int)kn_random_below(key, DRAW_BACKGROUND, KN_BACKGROUNDS);

    /* Long or narrow clips have less room: then the largest sizes and the highest speeds are not drawn. */
    const KnShape *shape = &kn_shapes[facts->shape];
    const struct Motion *motion = &motions[facts->motion];
    double units = width_in_units(height, width), room[2];
    double path = facts->motion == KN_MOTION_STILL ? 0 : speed_low * (frames - 1);
    double most = fmin((units - (motion->dx ? path : 0)) / (2 * shape->half_width),
                       (KN_WORLD_UNITS - (motion->dy ? path : 0)) / (shape->bottom - shape->top));
    clip->size = between(key, DRAW_SIZE, size_low, fmax(size_low, fmin(size_high, most)));
    room_of(shape, clip->size, units, room);
    double fastest = frames > 1 ? fmin(speed_high, room[motion->dy ? 1 : 0] / (frames - 1)) : speed_high;
    clip->speed = facts->motion == KN_MOTION_STILL ? 0 : between(key, DRAW_SPEED, speed_low, fmax(speed_low, fastest));

    double travel = clip->speed * (frames - 1);
    double left = shape->half_width * clip->size + (motion->dx < 0 ? travel : 0);
    double top = -shape->top * clip->size + (motion->dy < 0 ? travel : 0);
    clip->x = between(key, DRAW_X, left, left + fmax(0, room[0] - (motion->dx ? travel : 0)));
    clip->y = between(key, DRAW_Y, top, top + fmax(0, room[1] - (motion->dy ? travel : 0)));
}

static void caption(const KnWorldFacts *facts, char text[KN_WORLD_CAPTION_BYTES])
{
    snprintf(text, KN_WORLD_CAPTION_BYTES, "a %s %s %s on a %s background", kn_colours[facts->colour].name,
             kn_shapes[facts->shape].name, motions[facts->motion].words, kn_backgrounds[facts->background].name);
}

static int parse_caption(const char *text, KnWorldFacts *facts)
{
    char candidate[KN_WORLD_CAPTION_BYTES];
    KnWorldFacts f;
    for (f.colour = 0; f.colour < KN_COLOURS; f.colour++)
        for (f.shape = 0; f.shape < KN_SHAPES; f.shape++)
            for (f.motion = 0; f.motion < KN_MOTIONS; f.motion++)
                for (f.background = 0; f.background < KN_BACKGROUNDS; f.background++) {
                    caption(&f, candidate);
                    if (!strcmp(candidate, text)) {
                        *facts = f;
                        return KN_OK;
                    }
                }
    return kn_fail(KN_EINPUT,
                   "\"%.200s\" is not a caption of moving-shapes; they read like \"a red circle moves left on a gray "
                   "background\"",
                   text);
}

/* Adds to coverage[0 .. width) how much of each pixel of one row the interval x0 .. x1 (pixels) covers. */
static void cover(float *coverage, int width, double x0, double x1, float weight)
{
    x0 = fmax(x0, 0);
    x1 = fmin(x1, width);
    if (x1 <= x0)
        return;
    int first = (int)x0, last = (int)ceil(x1) - 1;
    if (first == last) {
        coverage[first] += weight * (float)(x1 - x0);
        return;
    }
    coverage[first] += weight * (float)(first + 1 - x0);
    for (int x = first + 1; x < last; x++)
        coverage[x] += weight;
    coverage[last] += weight * (float)(x1 - last);
}

static void render_row(const KnShape *shape, double centre_x, double top, double r, int width, const uint8_t *paint,
                       const uint8_t *ground, float *coverage, uint8_t *out)
{
    enum { LINES = 16 };
    memset(coverage, 0, (size_t)width * sizeof *coverage);
    for (int line = 0; line < LINES; line++) {
        double half = r * shape->half_width_at((top + (line + 0.5) / LINES) / r);
        if (half > 0)
            cover(coverage, width, centre_x - half, centre_x + half, 1.0F / LINES);
    }
    for (int x = 0; x < width; x++)
        for (int c = 0; c < 3; c++)
            out[3 * x + c] = (uint8_t)((float)ground[c] + ((float)paint[c] - (float)ground[c]) * coverage[x] + 0.5F);
}

static void render(const KnWorldClip *clip, int frames, int height, int width, uint8_t *out)
{
    const struct Motion *motion = &motions[clip->facts.motion];
    double scale = (double)height / KN_WORLD_UNITS;
    float *coverage = kn_alloc((size_t)width * sizeof *coverage);
    for (int t = 0; t < frames; t++) {
        double x = (clip->x + motion->dx * clip->speed * t) * scale;
        double y = (clip->y + motion->dy * clip->speed * t) * scale;
        for (int row = 0; row < height; row++, out += 3 * (size_t)width)
            render_row(&kn_shapes[clip->facts.shape], x, row - y, clip->size * scale, width,
                       kn_colours[clip->facts.colour].rgb, kn_backgrounds[clip->facts.background].rgb, coverage, out);
    }
    free(coverage);
}

const KnWorld kn_world_moving_shapes = {
    .name = "moving-shapes",
    .about = "one shape of one colour that moves left, right, up or down, or stays still, on a plain background",
    .counts = {KN_COLOURS, KN_SHAPES, KN_MOTIONS, KN_BACKGROUNDS},
    .check_geometry = check_geometry,
    .describe = describe,
    .is_held_out = is_held_out,
    .caption = caption,
    .parse_caption = parse_caption,
    .render = render,
    .measure = kn_moving_shapes_measure,
};
