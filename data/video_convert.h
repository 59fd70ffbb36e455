/* Decoded pictures to upright RGB of a wanted size. Private to video_*.c.
 *
 * swscale resizes planes and nothing else (bicubic, bit-exact on every CPU): YUV to full-size 8-bit planes in the
 * picture's own range and matrix, RGB as three independent planes. The matrix, the range, alpha, rotation and mirroring
 * are applied here in integer arithmetic. */
#ifndef KN_DATA_VIDEO_CONVERT_H
#define KN_DATA_VIDEO_CONVERT_H

#include <libavutil/frame.h>

#include <stdint.h>

/* How a coded picture is laid upright: transposed first, then mirrored in x and in y. */
typedef struct KnOrientation {
    int transpose, flip_x, flip_y;
} KnOrientation;

/* From a display matrix of FFmpeg (9 numbers); anything but a quarter turn is taken as the nearest one. */
KnOrientation kn_orientation_from_matrix(const int32_t matrix[9]);

typedef struct KnConverter KnConverter;
KnConverter *kn_converter_create(void);
void kn_converter_destroy(KnConverter *converter); /* NULL is fine */

/* Fills `rgb` [height][width][3] from `frame`; width and height are upright. KN_EFORMAT for a pixel format that cannot
 * be converted, KN_EMEMORY. */
int kn_converter_run(KnConverter *converter, const AVFrame *frame, KnOrientation orientation, int width, int height,
                     uint8_t *rgb);

#endif
