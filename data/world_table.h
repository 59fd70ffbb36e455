/* What a world's row holds, and the geometry that drawing and measuring `moving-shapes` share. Private to data/world*.
 */
#ifndef KN_DATA_WORLD_TABLE_H
#define KN_DATA_WORLD_TABLE_H

#include "data/world.h"

struct KnWorld {
    const char *name, *about;
    KnWorldFacts counts; /* how many colours, shapes, ... there are */
    int (*check_geometry)(int frames, int height, int width);
    void (*describe)(uint64_t seed, KnWorldSplit split, uint64_t index, int frames, int height, int width,
                     KnWorldClip *clip);
    int (*is_held_out)(const KnWorldFacts *facts);
    void (*caption)(const KnWorldFacts *facts, char caption[KN_WORLD_CAPTION_BYTES]);
    int (*parse_caption)(const char *text, KnWorldFacts *facts);
    void (*render)(const KnWorldClip *clip, int frames, int height, int width, uint8_t *out);
    void (*measure)(const uint8_t *pixels, int frames, int height, int width, KnMeasured *measured);
};

extern const KnWorld kn_world_moving_shapes;

enum { KN_SHAPES = 4, KN_COLOURS = 8, KN_MOTIONS = 5, KN_BACKGROUNDS = 3, KN_MOTION_STILL = 4 };

typedef struct KnPaint {
    const char *name;
    uint8_t rgb[3];
} KnPaint;

extern const KnPaint kn_colours[KN_COLOURS], kn_backgrounds[KN_BACKGROUNDS];

/* Every shape is symmetric in x and cut by any horizontal line in one interval, so a shape is a half width for each y.
 * All lengths are for r = 1. */
typedef struct KnShape {
    const char *name;
    double half_width, top, bottom; /* extent: |x| <= half_width, top <= y <= bottom */
    double area, centroid_y;
    double (*half_width_at)(double y); /* negative where the line misses the shape */
} KnShape;

extern const KnShape kn_shapes[KN_SHAPES];

void kn_moving_shapes_measure(const uint8_t *pixels, int frames, int height, int width, KnMeasured *measured);

#endif
