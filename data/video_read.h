/* Reading video: any file FFmpeg understands becomes a stream of upright RGB frames at a steady rate.
 *
 * Frames are u8 [height][width][3], sRGB-like full range, rows without padding. What the file says about itself is
 * honoured: rotation and mirroring, sample aspect ratio, colour matrix and range, 10 bits, gray, alpha (over black),
 * edit lists. Frames are placed by their timestamps: output frame n is the newest one that began before
 * (n + 1/2) / fps, so jitter of less than half a frame changes nothing, slow stretches repeat frames and fast ones drop
 * them. Damaged packets are skipped and counted. An image is a video of one frame. Memory holds a few frames whatever
 * the length. Decoding is in software, single-threaded by default, and gives the same bits on every CPU. */
#ifndef KN_DATA_VIDEO_READ_H
#define KN_DATA_VIDEO_READ_H

#include <stdint.h>

typedef struct KnVideo KnVideo;

typedef struct KnVideoOptions {
    double fps;  /* frames a second to deliver; 0 = the video's own rate */
    int threads; /* decoder threads; 0 means 1 */
} KnVideoOptions;

/* Strings belong to the reader. */
typedef struct KnVideoInfo {
    int width, height; /* upright, with square pixels */
    int coded_width, coded_height;
    double fps;              /* of the frames that will be delivered; 0 for an image */
    double native_fps;       /* as the file states it; 0 if unknown or an image */
    double duration_seconds; /* as the file states it; 0 if unknown */
    int rotation;            /* degrees clockwise applied: 0, 90, 180, 270 */
    int is_image;
    const char *codec, *pixel_format, *container;
    const char *comment; /* the comment in the metadata, or "" */
} KnVideoInfo;

/* Why a file gives no frames, in words that prep counts by; follows a failed open or next. */
typedef enum KnVideoFault {
    KN_VIDEO_FAULT_NONE,
    KN_VIDEO_FAULT_MISSING,    /* "missing": no such file, or no permission */
    KN_VIDEO_FAULT_EMPTY,      /* "empty file" */
    KN_VIDEO_FAULT_UNREADABLE, /* "unreadable": not a container we know, or damaged beyond use */
    KN_VIDEO_FAULT_NO_VIDEO,   /* "no video stream" */
    KN_VIDEO_FAULT_NO_DECODER, /* "no decoder": this FFmpeg lacks the codec */
    KN_VIDEO_FAULT_NO_FRAMES,  /* "no frames": nothing in it could be decoded */
    KN_VIDEO_FAULT_TOO_LARGE   /* "too large": pictures with longer sides than are read */
} KnVideoFault;
const char *kn_video_fault_name(KnVideoFault fault);

/* Opens `path`. On failure returns KN_EIO or KN_EFORMAT with a sentence, and, when `fault` is not NULL, the reason. */
int kn_video_open(KnVideo **video, const char *path, const KnVideoOptions *options, KnVideoFault *fault);
void kn_video_close(KnVideo *video); /* NULL is fine */

const KnVideoInfo *kn_video_info(const KnVideo *video);

/* Asks for frames of this size instead of info.width x info.height; before the first kn_video_next. */
int kn_video_set_size(KnVideo *video, int width, int height);

/* The next frame, valid until the next call, and the time it stands for, in seconds from the first frame (`seconds`
 * may be NULL). Returns 0, KN_END after the last, or KN_EFORMAT when no frame at all could be decoded. */
int kn_video_next(KnVideo *video, const uint8_t **rgb, double *seconds);

/* Passes over one frame without converting it; otherwise as kn_video_next. */
int kn_video_skip(KnVideo *video);

/* Packets and frames that were damaged and left out so far. */
int64_t kn_video_damaged(const KnVideo *video);

/* Whether a file's name ends in a suffix of videos and images that prep looks for in folders. */
int kn_video_known_suffix(const char *path);

#endif
