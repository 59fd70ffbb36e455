/* The ruler of `moving-shapes`: from pixels alone to colour, shape, motion and "clean".
 *
 * The background is the median pixel of the clip (no shape covers half of it); the object's colour is the median of
 * the interior of what differs from it; then every pixel is a mixture of the two, whose share (alpha) gives centroids
 * to a fraction of a pixel and, averaged over the frames after centring them, an image of the shape that noise hardly
 * touches. That image is compared with the four shapes. Nothing here knows what made the pixels.
 *
 * The bounds are set for clips that a model drew: soft edges, slightly wrong colours and a bad frame pass, what a
 * viewer would call a defect does not. Each bound says where it comes from; tests/data/test_world_measure.c plants
 * the defects. */
#include "core/base/memory.h"
#include "data/world_table.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A speed under half of the lowest speed of a moving shape is no motion. */
static const double moving_speed = 0.5;
/* Levels of distance from the background that start an object: the world's least contrast is 125 (green on gray), and
 * noise of 12 levels in each channel passes 45 in one pixel of 300. */
static const double object_distance = 45, object_contrast = 60;
/* Areas of the world's shapes are 42 to 154 square units; a third is allowed on both sides. */
static const double area_low = 28, area_high = 205;
/* Of the foreground, in one piece. */
static const double main_share_low = 0.9;
/* Levels. The three backgrounds are 50 and more apart; noise of 12 levels has to pass. */
static const double background_drift_high = 16, background_noise_high = 20;
/* Of colour_distance, in which the world's nearest pair (yellow, orange) is 68 apart: within a clip half of that, to
 * the named colour a little less than all of it. */
static const double colour_change_high = 34, colour_error_high = 60;
/* True clips under noise and blur stay above 0.85; a bar, a ring or scattered crumbs fall below. */
static const double overlap_low = 0.72;
/* One frame in eight may be bad. */
static const int frames_per_bad_frame = 8;

typedef struct Rgb {
    double c[3];
} Rgb;

typedef struct Piece { /* the largest connected piece of one frame's foreground; a box in pixels, ends included */
    int pixels, foreground;
    int left, right, top, bottom;
    double x, y; /* centroid, pixels */
    Rgb colour;
} Piece;

typedef struct Ruler {
    const uint8_t *pixels;
    int frames, height, width;
    double unit; /* units per pixel */
    Rgb background, object;
    double contrast;
    Piece *pieces;  /* [frames] */
    uint8_t *mask;  /* [frames][height][width]: 1 foreground, 2 of the frame's piece */
    int32_t *stack; /* [height * width] */
} Ruler;

static const uint8_t *pixel_at(const Ruler *ruler, int t, int y, int x)
{
    return ruler->pixels + 3 * (((size_t)t * ruler->height + y) * ruler->width + x);
}

static double distance2(const uint8_t *pixel, const Rgb *to)
{
    double sum = 0;
    for (int c = 0; c < 3; c++)
        sum += (pixel[c] - to->c[c]) * (pixel[c] - to->c[c]);
    return sum;
}

static double rgb_distance(const Rgb *a, const Rgb *b)
{
    return sqrt((a->c[0] - b->c[0]) * (a->c[0] - b->c[0]) + (a->c[1] - b->c[1]) * (a->c[1] - b->c[1]) +
                (a->c[2] - b->c[2]) * (a->c[2] - b->c[2]));
}

/* Euclid's distance with brightness at a quarter of its weight: a darker red is still red. */
static double colour_distance(const Rgb *a, const Rgb *b)
{
    double mean = (a->c[0] - b->c[0] + a->c[1] - b->c[1] + a->c[2] - b->c[2]) / 3, sum = 0.75 * mean * mean;
    for (int c = 0; c < 3; c++) {
        double d = a->c[c] - b->c[c] - mean;
        sum += d * d;
    }
    return sqrt(sum);
}

/* Medians by channel over a histogram of levels. */
typedef struct Levels {
    int64_t bins[3][256], count;
} Levels;

static void levels_add(Levels *levels, const uint8_t *pixel)
{
    for (int c = 0; c < 3; c++)
        levels->bins[c][pixel[c]]++;
    levels->count++;
}

static Rgb levels_median(const Levels *levels)
{
    Rgb median = {{0}};
    for (int c = 0; c < 3; c++) {
        int64_t below = 0;
        int level = 0;
        while (level < 255 && 2 * (below + levels->bins[c][level]) < levels->count)
            below += levels->bins[c][level++];
        median.c[c] = level;
    }
    return median;
}

static Rgb median_of_frames(const Ruler *ruler, int first, int count)
{
    Levels levels = {0};
    const uint8_t *pixel = pixel_at(ruler, first, 0, 0);
    for (int64_t i = 0; i < (int64_t)count * ruler->height * ruler->width; i++)
        levels_add(&levels, pixel + 3 * i);
    return levels_median(&levels);
}

static void mark_foreground(Ruler *ruler, double least_distance)
{
    int64_t count = (int64_t)ruler->frames * ruler->height * ruler->width;
    for (int64_t i = 0; i < count; i++)
        ruler->mask[i] = distance2(ruler->pixels + 3 * i, &ruler->background) > least_distance * least_distance;
}

/* Pixels of the mask whose four neighbours are marked alike: not mixed with the background. All of the marked pixels
 * when there are no such ones. */
static void add_interior(const Ruler *ruler, int t, int mark, Levels *levels)
{
    const uint8_t *mask = ruler->mask + (size_t)t * ruler->height * ruler->width;
    int64_t before = levels->count;
    for (int pass = 0; pass < 2 && levels->count == before; pass++)
        for (int y = pass ? 0 : 1; y < ruler->height - !pass; y++)
            for (int x = pass ? 0 : 1; x < ruler->width - !pass; x++) {
                const uint8_t *m = mask + (size_t)y * ruler->width + x;
                if (*m == mark &&
                    (pass || (m[-1] == mark && m[1] == mark && m[-ruler->width] == mark && m[ruler->width] == mark)))
                    levels_add(levels, pixel_at(ruler, t, y, x));
            }
}

static Piece flood(Ruler *ruler, uint8_t *mask, int start, int from, int to)
{
    Piece piece = {.left = ruler->width, .right = -1, .top = ruler->height, .bottom = -1};
    int depth = 0;
    ruler->stack[depth++] = start;
    mask[start] = (uint8_t)to;
    while (depth) {
        int at = ruler->stack[--depth], y = at / ruler->width, x = at % ruler->width;
        piece.pixels++;
        piece.left = x < piece.left ? x : piece.left;
        piece.right = x > piece.right ? x : piece.right;
        piece.top = y < piece.top ? y : piece.top;
        piece.bottom = y > piece.bottom ? y : piece.bottom;
        const int next[4] = {x > 0 ? at - 1 : -1, x + 1 < ruler->width ? at + 1 : -1, y > 0 ? at - ruler->width : -1,
                             y + 1 < ruler->height ? at + ruler->width : -1};
        for (int n = 0; n < 4; n++)
            if (next[n] >= 0 && mask[next[n]] == from) {
                mask[next[n]] = (uint8_t)to;
                ruler->stack[depth++] = next[n];
            }
    }
    return piece;
}

/* Finds the frame's largest piece (pixels joined by their sides) and leaves it marked 2, other foreground 1. */
static Piece largest_piece(Ruler *ruler, int t)
{
    enum { SEEN = 3 };
    int size = ruler->height * ruler->width, foreground = 0, best_start = -1;
    uint8_t *mask = ruler->mask + (size_t)t * size;
    Piece best = {0};
    for (int i = 0; i < size; i++)
        if (mask[i] == 1) {
            Piece piece = flood(ruler, mask, i, 1, SEEN);
            foreground += piece.pixels;
            if (piece.pixels > best.pixels) {
                best = piece;
                best_start = i;
            }
        }
    if (best_start >= 0)
        flood(ruler, mask, best_start, SEEN, 2);
    for (int i = 0; i < size; i++)
        if (mask[i] == SEEN)
            mask[i] = 1;
    best.foreground = foreground;
    return best;
}

/* The share of the object's colour in a pixel. Not clamped: then noise averages out. */
static double alpha_at(const Ruler *ruler, int t, int y, int x)
{
    const uint8_t *pixel = pixel_at(ruler, t, y, x);
    double dot = 0;
    for (int c = 0; c < 3; c++)
        dot += (pixel[c] - ruler->background.c[c]) * (ruler->object.c[c] - ruler->background.c[c]);
    double alpha = dot / (ruler->contrast * ruler->contrast);
    return fmin(fmax(alpha, -0.5), 1.5);
}

/* Widens the piece's box for its soft edges. */
static void widen(const Ruler *ruler, Piece *piece)
{
    int margin = (int)ceil(1.5 / ruler->unit);
    piece->left = piece->left > margin ? piece->left - margin : 0;
    piece->top = piece->top > margin ? piece->top - margin : 0;
    piece->right = piece->right + margin < ruler->width ? piece->right + margin : ruler->width - 1;
    piece->bottom = piece->bottom + margin < ruler->height ? piece->bottom + margin : ruler->height - 1;
}

static void find_centroid(const Ruler *ruler, int t, Piece *piece)
{
    double sum = 0, sum_x = 0, sum_y = 0;
    for (int y = piece->top; y <= piece->bottom; y++)
        for (int x = piece->left; x <= piece->right; x++) {
            double alpha = alpha_at(ruler, t, y, x);
            sum += alpha;
            sum_x += alpha * x;
            sum_y += alpha * y;
        }
    if (sum <= 0.25 * piece->pixels) { /* a piece that is not of the object's colour: its box has to do */
        piece->x = 0.5 * (piece->left + piece->right);
        piece->y = 0.5 * (piece->top + piece->bottom);
        return;
    }
    piece->x = sum_x / sum;
    piece->y = sum_y / sum;
}

/* Background, object colour, and each frame's piece. 0 when nothing stands out. */
static int find_object(Ruler *ruler)
{
    ruler->background = median_of_frames(ruler, 0, ruler->frames);
    mark_foreground(ruler, object_distance);
    Levels levels = {0};
    for (int t = 0; t < ruler->frames; t++) {
        ruler->pieces[t] = largest_piece(ruler, t);
        if (ruler->pieces[t].pixels)
            add_interior(ruler, t, 2, &levels);
    }
    if (!levels.count)
        return 0;
    ruler->object = levels_median(&levels);
    ruler->contrast = rgb_distance(&ruler->object, &ruler->background);
    if (ruler->contrast < object_contrast)
        return 0;

    /* Half-way between the two colours is the edge; a little less, for what other colours an object may have. */
    mark_foreground(ruler, fmax(0.9 * object_distance, 0.45 * ruler->contrast));
    int found = 0;
    for (int t = 0; t < ruler->frames; t++) {
        Piece *piece = &ruler->pieces[t];
        *piece = largest_piece(ruler, t);
        if (piece->pixels * ruler->unit * ruler->unit < 0.25 * area_low) {
            piece->pixels = 0; /* a speck, no object */
            continue;
        }
        Levels own = {0};
        add_interior(ruler, t, 2, &own);
        piece->colour = levels_median(&own);
        widen(ruler, piece);
        find_centroid(ruler, t, piece);
        found++;
    }
    return found > 0;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int64_t count)
{
    qsort(values, (size_t)count, sizeof *values, compare_doubles);
    return count ? 0.5 * (values[(count - 1) / 2] + values[count / 2]) : 0;
}

/* The median of the slopes between all pairs of frames (Theil and Sen): a bad frame or two do not move it. */
static void measure_motion(const Ruler *ruler, KnMeasured *measured)
{
    int frames = 0;
    for (int t = 0; t < ruler->frames; t++)
        frames += ruler->pieces[t].pixels > 0;
    if (ruler->frames == 1) {
        measured->facts.motion = KN_MOTION_STILL;
        return;
    }
    if (frames < 2)
        return;
    double *slopes[2];
    int64_t count = 0;
    for (int axis = 0; axis < 2; axis++)
        slopes[axis] = kn_alloc((size_t)frames * (size_t)(frames - 1) / 2 * sizeof(double));
    for (int a = 0; a < ruler->frames; a++)
        for (int b = a + 1; b < ruler->frames; b++)
            if (ruler->pieces[a].pixels && ruler->pieces[b].pixels) {
                slopes[0][count] = (ruler->pieces[b].x - ruler->pieces[a].x) / (b - a);
                slopes[1][count++] = (ruler->pieces[b].y - ruler->pieces[a].y) / (b - a);
            }
    measured->velocity_x = median(slopes[0], count) * ruler->unit;
    measured->velocity_y = median(slopes[1], count) * ruler->unit;
    free(slopes[0]);
    free(slopes[1]);
    int along_x = fabs(measured->velocity_x) >= moving_speed, along_y = fabs(measured->velocity_y) >= moving_speed;
    if (along_x && along_y)
        return; /* aslant is none of the five */
    measured->facts.motion = along_x   ? (measured->velocity_x < 0 ? 0 : 1)
                             : along_y ? (measured->velocity_y < 0 ? 2 : 3)
                                       : KN_MOTION_STILL;
}

static int nearest_paint(const KnPaint *paints, int count, const Rgb *colour, double furthest)
{
    int best = KN_WORLD_NONE;
    for (int i = 0; i < count; i++) {
        Rgb paint = {{paints[i].rgb[0], paints[i].rgb[1], paints[i].rgb[2]}};
        double d = colour_distance(&paint, colour);
        if (d < furthest) {
            furthest = d;
            best = i;
        }
    }
    return best;
}

/* ---- shape ---- */

enum { GRID = 44 }; /* cells of half a unit: 11 units to each side of the centroid */
static const double cell = 0.5;

/* Adds the frame's alpha around its centroid, bilinear, to image[GRID][GRID]. */
static void add_centred(const Ruler *ruler, int t, float *image)
{
    const Piece *piece = &ruler->pieces[t];
    for (int gy = 0; gy < GRID; gy++)
        for (int gx = 0; gx < GRID; gx++) {
            double x = piece->x + (gx + 0.5 - GRID / 2) * cell / ruler->unit;
            double y = piece->y + (gy + 0.5 - GRID / 2) * cell / ruler->unit;
            int x0 = (int)floor(x), y0 = (int)floor(y);
            double fx = x - x0, fy = y - y0, sum = 0;
            for (int k = 0; k < 4; k++) {
                int px = x0 + (k & 1), py = y0 + (k >> 1);
                if (px >= piece->left && px <= piece->right && py >= piece->top && py <= piece->bottom)
                    sum += (k & 1 ? fx : 1 - fx) * (k >> 1 ? fy : 1 - fy) * alpha_at(ruler, t, py, px);
            }
            image[gy * GRID + gx] += (float)sum;
        }
}

/* A shape of size r, its centroid in the middle, softened by a Gaussian of `blur` units. */
static void draw_template(const KnShape *shape, double r, double blur, float *out)
{
    enum { LINES = 4, REACH = 8, PADDED = GRID + 2 * REACH };
    float sharp[GRID][PADDED] = {{0}}, across[PADDED][GRID] = {{0}};
    for (int gy = 0; gy < GRID; gy++)
        for (int line = 0; line < LINES; line++) {
            double y = (gy + (line + 0.5) / LINES - GRID / 2) * cell + shape->centroid_y * r;
            double half = r * shape->half_width_at(y / r) / cell;
            for (int gx = 0; gx < GRID && half > 0; gx++) {
                double from = fmax(gx - GRID / 2, -half), to = fmin(gx + 1 - GRID / 2, half);
                sharp[gy][REACH + gx] += (float)(fmax(to - from, 0) / LINES);
            }
        }
    float weights[2 * REACH + 1], sum = 0;
    int reach = (int)fmin(ceil(3 * blur / cell), REACH);
    for (int k = -reach; k <= reach; k++)
        sum += weights[k + reach] = (float)exp(-0.5 * k * k * cell * cell / (blur * blur));
    memset(out, 0, GRID * GRID * sizeof *out);
    for (int gy = 0; gy < GRID; gy++)
        for (int k = 0; k <= 2 * reach; k++)
            for (int gx = 0; gx < GRID; gx++)
                across[REACH + gy][gx] += weights[k] / sum * sharp[gy][REACH + gx + k - reach];
    for (int gy = 0; gy < GRID; gy++)
        for (int k = 0; k <= 2 * reach; k++)
            for (int gx = 0; gx < GRID; gx++)
                out[gy * GRID + gx] += weights[k] / sum * across[REACH + gy + k - reach][gx];
}

/* Soft intersection over union, the template moved by (dx, dy) cells. */
static double overlap_of(const float *image, const float *template, int dx, int dy)
{
    float both = 0, either = 0;
    for (int y = 1; y < GRID - 1; y++) {
        const float *a = image + y * GRID, *b = template + (y - dy) * GRID - dx;
#pragma omp simd reduction(+ : both, either)
        for (int x = 1; x < GRID - 1; x++) {
            both += a[x] < b[x] ? a[x] : b[x];
            either += a[x] < b[x] ? b[x] : a[x];
        }
    }
    return either > 0 ? both / either : 0;
}

/* Over five softnesses (pixels, resampling, a soft picture) and small moves, at `scale` times the size that the area
 * tells. */
static double best_overlap(const KnShape *shape, const float *image, double area, double scale)
{
    static const double blurs[] = {0.25, 0.5, 0.75, 1.0, 1.3}; /* units */
    static const int moves[5][2] = {{0, 0}, {1, 0}, {-1, 0}, {0, 1}, {0, -1}};
    float template[GRID * GRID];
    double best = 0, r = scale * sqrt(area / shape->area);
    for (int b = 0; b < 5; b++) {
        draw_template(shape, r, blurs[b], template);
        for (int m = 0; m < 5; m++)
            best = fmax(best, overlap_of(image, template, moves[m][0], moves[m][1]));
    }
    return best;
}

/* The shape with the best overlap; sizes beside the likeliest one are tried only for shapes that are near the best. */
static void find_shape(const float *image, double area, KnMeasured *measured)
{
    static const double scales[] = {0.92, 0.96, 1.04, 1.08}, near = 0.08;
    double overlaps[KN_SHAPES], best = 0;
    for (int s = 0; s < KN_SHAPES; s++) {
        overlaps[s] = best_overlap(&kn_shapes[s], image, area, 1);
        best = fmax(best, overlaps[s]);
    }
    for (int s = 0; s < KN_SHAPES; s++) {
        for (int k = 0; k < 4 && overlaps[s] > best - near; k++)
            overlaps[s] = fmax(overlaps[s], best_overlap(&kn_shapes[s], image, area, scales[k]));
        if (overlaps[s] > measured->shape_overlap) {
            measured->shape_overlap = overlaps[s];
            measured->facts.shape = s;
        }
    }
    if (measured->shape_overlap < overlap_low)
        measured->facts.shape = KN_WORLD_NONE;
}

static void measure_shape(const Ruler *ruler, const uint8_t *good, KnMeasured *measured)
{
    float image[GRID * GRID] = {0};
    int any_good = 0, frames = 0;
    for (int t = 0; t < ruler->frames; t++)
        any_good |= good[t];
    for (int t = 0; t < ruler->frames; t++)
        if (any_good ? good[t] : ruler->pieces[t].pixels > 0) {
            add_centred(ruler, t, image);
            frames++;
        }
    double area = 0;
    for (int i = 0; i < GRID * GRID; i++) {
        float alpha = image[i] / (float)frames;
        image[i] = alpha < 0 ? 0 : alpha > 1 ? 1 : alpha;
        area += image[i] * cell * cell;
    }
    find_shape(image, area, measured);
}

/* ---- clean ---- */

static void measure_background(const Ruler *ruler, KnMeasured *measured)
{
    double sum = 0;
    int64_t count = 0;
    double reach = fmax(object_distance, 0.45 * ruler->contrast);
    for (int t = 0; t < ruler->frames; t++) {
        Rgb own = median_of_frames(ruler, t, 1);
        for (int c = 0; c < 3; c++)
            measured->background_drift = fmax(measured->background_drift, fabs(own.c[c] - ruler->background.c[c]));
        const Piece *piece = &ruler->pieces[t];
        for (int y = 0; y < ruler->height; y++)
            for (int x = 0; x < ruler->width; x++) {
                if (piece->pixels && x >= piece->left && x <= piece->right && y >= piece->top && y <= piece->bottom)
                    continue;
                double d2 = distance2(pixel_at(ruler, t, y, x), &ruler->background);
                if (d2 < reach * reach) {
                    sum += d2;
                    count += 3;
                }
            }
    }
    measured->background_noise = count ? sqrt(sum / (double)count) : 0;
}

enum { FAULT_MISSING, FAULT_SIZE, FAULT_PIECES, FAULT_COLOUR, FAULTS };
static const char *const fault_names[FAULTS] = {"no object", "not of a shape's size", "more than one piece",
                                                "the colour changes"};

static int fault_of_frame(const Ruler *ruler, int t, const Rgb *colour)
{
    const Piece *piece = &ruler->pieces[t];
    double area = piece->pixels * ruler->unit * ruler->unit;
    if (!piece->pixels)
        return FAULT_MISSING;
    if (piece->pixels < main_share_low * piece->foreground)
        return FAULT_PIECES;
    if (area < area_low || area > area_high)
        return FAULT_SIZE;
    if (colour_distance(&piece->colour, colour) > colour_change_high)
        return FAULT_COLOUR;
    return FAULTS;
}

/* Marks the good frames and returns what is wrong with the others, when they are too many. */
static const char *judge_frames(const Ruler *ruler, uint8_t *good)
{
    int counts[FAULTS + 1] = {0}, worst = 0;
    for (int t = 0; t < ruler->frames; t++) {
        int fault = fault_of_frame(ruler, t, &ruler->object);
        good[t] = fault == FAULTS;
        counts[fault]++;
    }
    for (int f = 1; f < FAULTS; f++)
        if (counts[f] > counts[worst])
            worst = f;
    return ruler->frames - counts[FAULTS] > ruler->frames / frames_per_bad_frame ? fault_names[worst] : NULL;
}

static void measure_pieces(const Ruler *ruler, KnMeasured *measured)
{
    double *areas = kn_alloc((size_t)ruler->frames * sizeof *areas);
    double *shares = kn_alloc((size_t)ruler->frames * sizeof *shares);
    int count = 0;
    for (int t = 0; t < ruler->frames; t++)
        if (ruler->pieces[t].pixels) {
            areas[count] = ruler->pieces[t].pixels * ruler->unit * ruler->unit;
            shares[count++] = (double)ruler->pieces[t].pixels / ruler->pieces[t].foreground;
        }
    measured->area = median(areas, count);
    measured->main_share = median(shares, count);
    free(areas);
    free(shares);
}

static void measure_object(Ruler *ruler, KnMeasured *measured)
{
    uint8_t *good = kn_alloc((size_t)ruler->frames);
    measured->fault = judge_frames(ruler, good);
    memcpy(measured->colour_rgb, ruler->object.c, sizeof measured->colour_rgb);
    measured->facts.colour = nearest_paint(kn_colours, KN_COLOURS, &ruler->object, colour_error_high);
    measure_pieces(ruler, measured);
    measure_motion(ruler, measured);
    measure_shape(ruler, good, measured);
    if (!measured->fault && measured->shape_overlap < overlap_low)
        measured->fault = "no known shape";
    free(good);
}

void kn_moving_shapes_measure(const uint8_t *pixels, int frames, int height, int width, KnMeasured *measured)
{
    *measured = (KnMeasured){.facts = {KN_WORLD_NONE, KN_WORLD_NONE, KN_WORLD_NONE, KN_WORLD_NONE}};
    Ruler ruler = {.pixels = pixels, .frames = frames, .height = height, .width = width};
    ruler.unit = (double)KN_WORLD_UNITS / height;
    ruler.pieces = kn_alloc((size_t)frames * sizeof *ruler.pieces);
    ruler.mask = kn_alloc((size_t)frames * (size_t)height * (size_t)width);
    ruler.stack = kn_alloc((size_t)height * (size_t)width * sizeof *ruler.stack);

    if (find_object(&ruler))
        measure_object(&ruler, measured);
    else
        measured->fault = fault_names[FAULT_MISSING];
    measure_background(&ruler, measured);
    measured->facts.background = nearest_paint(kn_backgrounds, KN_BACKGROUNDS, &ruler.background, 40);
    /* First of all, since a background that is none also upsets what is told apart from it. */
    if (measured->background_drift > background_drift_high)
        measured->fault = "the background changes";
    else if (measured->background_noise > background_noise_high)
        measured->fault = "the background is not plain";
    measured->clean = measured->fault == NULL;

    free(ruler.pieces);
    free(ruler.mask);
    free(ruler.stack);
}
