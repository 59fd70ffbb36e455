/* Writing video: RGB frames to H.264 MP4, GIF, or PNG, chosen by the name's suffix.
 *
 *   x.mp4 (.mov .mkv)  H.264, constant quality, BT.709 limited range, index at the front
 *   x.gif              one palette of 256 colours over all frames
 *   x.png              a single frame; with %d (or %04d ...) in it one file a frame; a name that ends in / is a
 *                      directory of frame-0000.png ...
 *
 * Everything is written under a temporary name next to `path` and renamed by finish: under the final name there is a
 * whole file or none (numbered PNGs: each one whole). Same frames and options, same bytes. */
#ifndef KN_DATA_VIDEO_WRITE_H
#define KN_DATA_VIDEO_WRITE_H

#include <stdint.h>

typedef struct KnVideoWriter KnVideoWriter;

typedef struct KnVideoWriteOptions {
    int width, height;   /* of the frames given */
    double fps;          /* more than 0 */
    int upscale;         /* each pixel becomes upscale x upscale; 0 means 1 */
    int crf;             /* H.264 quality, 1 (best) to 51; 0 chooses 12, or less for tiny pictures */
    int full_colour;     /* 4:4:4 instead of 4:2:0: keeps the colour of single pixels, fewer players show it */
    int lossless;        /* exact RGB; implies full colour */
    int unsynced;        /* the caller makes the file durable (MP4 and GIF): for many files in a row */
    const char *comment; /* metadata comment, or NULL */
} KnVideoWriteOptions;

/* The file of frame `number`, counted from 0, where each has one (numbered pictures, a folder); free() it. NULL where
 * one file holds all frames. */
char *kn_video_frame_path(const char *path, int64_t number);

/* Returns 0, KN_EINPUT (unknown suffix, impossible size) or KN_EIO. 4:2:0 needs even sizes: odd pictures get their
 * last column or row repeated once. */
int kn_video_writer_open(KnVideoWriter **writer, const char *path, const KnVideoWriteOptions *options);

/* Adds a frame, u8 [height][width][3]. */
int kn_video_writer_add(KnVideoWriter *writer, const uint8_t *rgb);

/* Completes the file, renames it and frees the writer, also on failure (then nothing is left behind). */
int kn_video_writer_finish(KnVideoWriter *writer);

/* Frees the writer and removes what it wrote. NULL is fine. */
void kn_video_writer_abandon(KnVideoWriter *writer);

/* All of it: `rgb` is u8 [frames][height][width][3]. */
int kn_video_write(const char *path, const uint8_t *rgb, int64_t frames, const KnVideoWriteOptions *options);

#endif
