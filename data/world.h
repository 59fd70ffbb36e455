/* Worlds with ground truth: procedural clips that say exactly what they show, and a ruler for clips that a model made.
 *
 * A world is a row of a table. It describes clip i of an endless series as numbers (colour, shape, motion, ...), a pure
 * function of (seed, split, index): clip i is the same however many clips are asked for. From the description come
 * the caption and the pixels. The other way round, kn_world_measure looks at pixels alone and says what they show;
 * it knows the world's palette and shapes, never what made the pixels.
 *
 * Lengths are in units: a picture is 32 units high, whatever its size in pixels; y points down.
 * Frames are u8 [frames][height][width][3], R'G'B' full range. */
#ifndef KN_DATA_WORLD_H
#define KN_DATA_WORLD_H

#include <stddef.h>
#include <stdint.h>

enum { KN_WORLD_UNITS = 32, KN_WORLD_CAPTION_BYTES = 128, KN_WORLD_NONE = -1 };

/* A combination is held out of training by the world's fixed rule, so that generating it proves composition. */
typedef enum KnWorldSplit { KN_WORLD_TRAIN = 0, KN_WORLD_HELD_OUT = 1 } KnWorldSplit;

/* What a caption says; indices into the world's lists, KN_WORLD_NONE where unknown. */
typedef struct KnWorldFacts {
    int colour, shape, motion, background;
} KnWorldFacts;

typedef struct KnWorldClip {
    KnWorldFacts facts;
    double size;  /* units: the shape's r */
    double speed; /* units a frame; 0 when still */
    double x, y;  /* units: the shape's origin in frame 0 */
} KnWorldClip;

/* What pixels show. `clean` is 1 when there is one compact object on a steady background; else `fault` says in a few
 * words what speaks against it (a constant string; NULL when clean). The rest are the numbers behind the verdicts. */
typedef struct KnMeasured {
    KnWorldFacts facts;
    int clean;
    const char *fault;
    double velocity_x, velocity_y; /* units a frame */
    double area;                   /* square units, median over the frames */
    double main_share;             /* of the foreground, in the largest piece; median over the frames */
    double shape_overlap;          /* soft intersection over union with the best template */
    double background_drift;       /* levels: largest departure of a frame's background from the clip's */
    double background_noise;       /* levels: root mean square within the background */
    double colour_rgb[3];          /* of the object's interior */
} KnMeasured;

/* Which of a caption's statements the pixels bear out (0 or 1 each). */
typedef struct KnWorldMatch {
    int colour, shape, motion, background;
} KnWorldMatch;

typedef struct KnWorld KnWorld;

/* A row of the table by name; KN_EINPUT with the names there are. Index from 0; NULL past the end. */
int kn_world_find(const char *name, const KnWorld **world);
const KnWorld *kn_world_at(int index);
const char *kn_world_name(const KnWorld *world);
const char *kn_world_about(const KnWorld *world); /* one line for --help */

/* KN_EINPUT, with the sentence that says which number to change, when no clip of that size and length can keep its
 * whole path inside the frame. The functions below need a geometry that passes. */
int kn_world_check_geometry(const KnWorld *world, int frames, int height, int width);

/* Clip `index` of the series. */
void kn_world_describe(const KnWorld *world, uint64_t seed, KnWorldSplit split, uint64_t index, int frames, int height,
                       int width, KnWorldClip *clip);

/* The held-out rule. */
int kn_world_is_held_out(const KnWorld *world, const KnWorldFacts *facts);

/* Every combination of a split, in a fixed order, into `facts` (NULL: none is written); returns how many there are. */
int kn_world_combinations(const KnWorld *world, KnWorldSplit split, KnWorldFacts *facts);

/* The exact caption, and back: KN_EINPUT when `text` is not a caption of this world. */
void kn_world_caption(const KnWorld *world, const KnWorldFacts *facts, char caption[KN_WORLD_CAPTION_BYTES]);
int kn_world_parse_caption(const KnWorld *world, const char *text, KnWorldFacts *facts);

/* Draws the clip into out[frames][height][width][3]; any description whose indices are valid. */
void kn_world_render(const KnWorld *world, const KnWorldClip *clip, int frames, int height, int width, uint8_t *out);

/* Measures pixels alone (data/world_measure.c says how). Any content and size are fine, one frame too (its motion is
 * "stays still"). Facts that the pixels do not settle are KN_WORLD_NONE, which matches no caption. */
void kn_world_measure(const KnWorld *world, const uint8_t *pixels, int frames, int height, int width,
                      KnMeasured *measured);

/* Compares a caption with a measurement; KN_EINPUT when it is not a caption of this world. */
int kn_world_matches(const KnWorld *world, const char *caption, const KnMeasured *measured, KnWorldMatch *match);

/* Wilson's 95% interval for a proportion (E. B. Wilson, JASA 1927); 0..1 when trials is 0. */
void kn_wilson_interval(int64_t successes, int64_t trials, double *low, double *high);

#endif
