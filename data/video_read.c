/* The streaming video reader: demultiplex, decode, place in time. Conversion is in video_convert.c.
 *
 * Two decoded frames are held: the one on show and the next. For output n the reader moves on while the next frame
 * begins before (n + 1/2) / fps; after the last packet the decoder is drained, and the frame on show lasts as long as
 * it says, or one frame of the native rate. Times are seconds from the first frame. */
#include "data/video_read.h"

#include "core/base/activity.h"
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/memory.h"
#include "data/video_convert.h"
#include "data/video_ffmpeg.h"

#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/display.h>
#include <libavutil/opt.h>
#include <libavutil/pixdesc.h>

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

enum { FAILURES_IN_A_ROW = 256, LARGEST_SIDE = 16384 };
#define LONGEST_GAP_SECONDS 30.0 /* a longer one is a break in the clock, not a picture that stood still */
#define FALLBACK_FPS 25.0
#define HIGHEST_FPS 1000.0
#define TIE_SECONDS 1e-6 /* of frames that begin exactly half-way, the later output gets them */

/* A decoded frame and when it is shown. */
typedef struct TimedFrame {
    AVFrame *frame;
    double start, duration;
    int present;
} TimedFrame;

struct KnVideo {
    char *path, *comment;
    AVFormatContext *container;
    AVCodecContext *decoder;
    AVStream *stream;
    AVPacket *packet;
    TimedFrame shown, next;
    KnConverter *converter;
    KnOrientation orientation;
    KnVideoInfo info;
    double clock_origin; /* stream time of output time 0, moved by breaks in the clock */
    double last_start;
    double frame_seconds; /* one frame at the native rate */
    int64_t delivered, decoded, damaged;
    int draining, ended, converted; /* converted: `rgb` holds the frame on show */
    int packet_waits;               /* the decoder was full: `packet` is still to be sent */
    int width, height;
    uint8_t *rgb;
};

const char *kn_video_fault_name(KnVideoFault fault)
{
    static const char *const names[] = {"",           "missing",   "empty file", "unreadable", "no video stream",
                                        "no decoder", "no frames", "too large"};
    return names[fault];
}

int kn_video_known_suffix(const char *path)
{
    static const char *const suffixes[] = {"mp4",  "m4v", "mov",  "mkv", "webm", "avi", "gif",  "mpg",  "mpeg", "ts",
                                           "m2ts", "mts", "flv",  "wmv", "3gp",  "ogv", "y4m",  "apng", "vob",  "mxf",
                                           "png",  "jpg", "jpeg", "bmp", "webp", "tif", "tiff", "ppm",  "avif"};
    const char *name = kn_path_name(path), *dot = strrchr(name, '.');
    for (size_t i = 0; dot && dot != name && i < sizeof suffixes / sizeof suffixes[0]; i++)
        if (strcasecmp(dot + 1, suffixes[i]) == 0)
            return 1;
    return 0;
}

/* ---- decoding ---- */

/* Gets the next packet of our stream; AVERROR_EOF at the end, or when nothing but damage comes. */
static int read_packet(KnVideo *video)
{
    for (int failures = 0; failures < FAILURES_IN_A_ROW;) {
        int code = av_read_frame(video->container, video->packet);
        if (code == AVERROR_EOF)
            return code;
        if (code < 0) {
            failures++;
            video->damaged++;
            if (video->container->pb && (avio_feof(video->container->pb) || video->container->pb->error))
                return AVERROR_EOF;
            continue;
        }
        if (video->packet->stream_index == video->stream->index) {
            if (!(video->packet->flags & AV_PKT_FLAG_CORRUPT))
                return 0;
            video->damaged++;
        }
        av_packet_unref(video->packet);
    }
    return AVERROR_EOF;
}

/* Gives the decoder one packet more, or tells it that there are none. */
static void feed_decoder(KnVideo *video)
{
    if (!video->packet_waits && read_packet(video) < 0) {
        video->draining = 1;
        avcodec_send_packet(video->decoder, NULL);
        return;
    }
    int code = avcodec_send_packet(video->decoder, video->packet);
    video->packet_waits = code == AVERROR(EAGAIN);
    if (video->packet_waits)
        return;
    if (code < 0)
        video->damaged++;
    av_packet_unref(video->packet);
}

static int is_too_large(int width, int height)
{
    return width > LARGEST_SIDE || height > LARGEST_SIDE;
}

static int is_damaged(const AVFrame *frame)
{
    return frame->decode_error_flags != 0 || (frame->flags & AV_FRAME_FLAG_CORRUPT) || frame->width <= 0 ||
           frame->height <= 0 || is_too_large(frame->width, frame->height);
}

/* One sound decoded frame into `frame`; KN_END after the last. */
static int decode_frame(KnVideo *video, AVFrame *frame)
{
    for (int failures = 0; failures < FAILURES_IN_A_ROW;) {
        int code = avcodec_receive_frame(video->decoder, frame);
        if (code == AVERROR(EAGAIN) && !video->draining) {
            feed_decoder(video);
            continue;
        }
        if (code == AVERROR_EOF || code == AVERROR(EAGAIN))
            return KN_END;
        if (code >= 0 && !is_damaged(frame)) {
            video->decoded++;
            return KN_OK;
        }
        video->damaged++;
        failures += code < 0;
        av_frame_unref(frame);
    }
    return KN_END;
}

static double frame_duration(const KnVideo *video, const AVFrame *frame)
{
#if LIBAVUTIL_VERSION_INT >= AV_VERSION_INT(57, 30, 100)
    int64_t ticks = frame->duration;
#else
    int64_t ticks = frame->pkt_duration;
#endif
    double seconds = ticks > 0 ? (double)ticks * av_q2d(video->stream->time_base) : 0;
    return seconds >= video->frame_seconds && seconds < LONGEST_GAP_SECONDS ? seconds : video->frame_seconds;
}

/* Decodes into video->next and says when it is shown. */
static int advance(KnVideo *video)
{
    video->next.present = 0;
    if (video->ended)
        return KN_END;
    av_frame_unref(video->next.frame);
    int code = decode_frame(video, video->next.frame);
    if (code == KN_END)
        video->ended = 1;
    KN_TRY(code);
    int64_t ticks = video->next.frame->best_effort_timestamp;
    double expected = video->decoded == 1 ? 0 : video->last_start + video->frame_seconds;
    double start = expected;
    if (ticks != AV_NOPTS_VALUE) {
        double stream_time = (double)ticks * av_q2d(video->stream->time_base);
        if (video->decoded == 1)
            video->clock_origin = stream_time;
        start = stream_time - video->clock_origin;
        int broken = start > video->last_start + LONGEST_GAP_SECONDS || start < video->last_start - LONGEST_GAP_SECONDS;
        if (video->decoded > 1 && broken) {
            video->clock_origin = stream_time - expected;
            start = expected;
        } else if (video->decoded > 1 && start <= video->last_start) {
            start = expected;
        }
    }
    video->last_start = start;
    video->next.start = start;
    video->next.duration = frame_duration(video, video->next.frame);
    video->next.present = 1;
    return KN_OK;
}

/* Puts the next frame on show and decodes the one after it, if there is one. */
static int show_next(KnVideo *video)
{
    TimedFrame old = video->shown;
    video->shown = video->next;
    video->next = old;
    video->converted = 0;
    int code = advance(video);
    return code == KN_END ? KN_OK : code;
}

/* Puts the frame of output number `delivered` on show. */
static int seek_output(KnVideo *video)
{
    double boundary = video->info.is_image ? 0 : ((double)video->delivered + 0.5) / video->info.fps - TIE_SECONDS;
    if (video->info.is_image && video->delivered > 0)
        return KN_END;
    while (video->next.present && video->next.start < boundary)
        KN_TRY(show_next(video));
    if (video->next.present || video->delivered == 0)
        return KN_OK;
    return boundary < video->shown.start + video->shown.duration ? KN_OK : KN_END;
}

/* ---- opening ---- */

static int fault_fail(KnVideoFault *out, KnVideoFault fault, int code, const char *path, const char *why)
{
    if (out)
        *out = fault;
    return kn_fail(code, "%s: %s%s%s", path, kn_video_fault_name(fault), why ? ": " : "", why ? why : "");
}

static int open_container(KnVideo *video, KnVideoFault *fault)
{
    int64_t bytes = 0;
    if (access(video->path, R_OK) != 0)
        return fault_fail(fault, KN_VIDEO_FAULT_MISSING, KN_EIO, video->path, strerror(errno));
    if (kn_is_directory(video->path))
        return fault_fail(fault, KN_VIDEO_FAULT_UNREADABLE, KN_EIO, video->path, "it is a folder");
    if (kn_file_size(video->path, &bytes) == 0 && bytes == 0)
        return fault_fail(fault, KN_VIDEO_FAULT_EMPTY, KN_EFORMAT, video->path, NULL);
    char *url = kn_format("file:%s", video->path);
    AVDictionary *options = NULL;
    av_dict_set(&options, "pattern_type", "none", 0);       /* a % in an image's name is a % */
    av_dict_set(&options, "protocol_whitelist", "file", 0); /* a playlist must not reach the network */
    int code = avformat_open_input(&video->container, url, NULL, &options);
    av_dict_free(&options);
    free(url);
    if (code >= 0)
        code = avformat_find_stream_info(video->container, NULL);
    if (code < 0)
        return fault_fail(fault, KN_VIDEO_FAULT_UNREADABLE, KN_EFORMAT, video->path, kn_ffmpeg_why(code));
    return KN_OK;
}

static int open_decoder(KnVideo *video, int threads, KnVideoFault *fault)
{
    const AVCodec *codec = NULL;
    int index = av_find_best_stream(video->container, AVMEDIA_TYPE_VIDEO, -1, -1, NULL, 0);
    if (index < 0 || (video->container->streams[index]->disposition & AV_DISPOSITION_ATTACHED_PIC))
        return fault_fail(fault, KN_VIDEO_FAULT_NO_VIDEO, KN_EFORMAT, video->path, NULL);
    video->stream = video->container->streams[index];
    for (unsigned i = 0; i < video->container->nb_streams; i++)
        video->container->streams[i]->discard = (int)i == index ? AVDISCARD_DEFAULT : AVDISCARD_ALL;
    codec = avcodec_find_decoder(video->stream->codecpar->codec_id);
    if (!codec)
        return fault_fail(fault, KN_VIDEO_FAULT_NO_DECODER, KN_EFORMAT, video->path,
                          avcodec_get_name(video->stream->codecpar->codec_id));
    video->decoder = avcodec_alloc_context3(codec);
    if (!video->decoder)
        return kn_fail(KN_EMEMORY, "%s: not enough memory for a decoder", video->path);
    int code = avcodec_parameters_to_context(video->decoder, video->stream->codecpar);
    video->decoder->thread_count = threads > 0 ? threads : 1;
    video->decoder->flags |= AV_CODEC_FLAG_BITEXACT;
    video->decoder->idct_algo = FF_IDCT_SIMPLE; /* the one whose SIMD gives the bits of its C */
    video->decoder->pkt_timebase = video->stream->time_base;
    if (code >= 0)
        code = avcodec_open2(video->decoder, codec, NULL);
    if (code < 0)
        return fault_fail(fault, KN_VIDEO_FAULT_NO_DECODER, KN_EFORMAT, video->path, kn_ffmpeg_why(code));
    return KN_OK;
}

static double usable_rate(AVRational rate)
{
    double fps = rate.num > 0 && rate.den > 0 ? av_q2d(rate) : 0;
    return fps > 0 && fps <= HIGHEST_FPS ? fps : 0;
}

/* The base rate where it is confirmed by (or stands in for) the average; the average of a variable one. */
static double native_rate(const AVStream *stream)
{
    double average = usable_rate(stream->avg_frame_rate), base = usable_rate(stream->r_frame_rate);
    if (average > 0 && base > 0)
        return fabs(base / average - 1) < 0.02 ? base : average;
    return average > 0 ? average : base;
}

static const int32_t *display_matrix(const KnVideo *video)
{
#if LIBAVCODEC_VERSION_INT >= AV_VERSION_INT(60, 31, 102)
    const AVCodecParameters *parameters = video->stream->codecpar;
    const AVPacketSideData *data =
        av_packet_side_data_get(parameters->coded_side_data, parameters->nb_coded_side_data, AV_PKT_DATA_DISPLAYMATRIX);
    if (data && data->size >= 9 * sizeof(int32_t))
        return (const int32_t *)data->data;
#else
    size_t size = 0;
    const uint8_t *data = av_stream_get_side_data(video->stream, AV_PKT_DATA_DISPLAYMATRIX, &size);
    if (data && size >= 9 * sizeof(int32_t))
        return (const int32_t *)(const void *)data;
#endif
    const AVFrameSideData *from_frame = av_frame_get_side_data(video->shown.frame, AV_FRAME_DATA_DISPLAYMATRIX);
    return from_frame && from_frame->size >= 9 * sizeof(int32_t) ? (const int32_t *)(const void *)from_frame->data
                                                                 : NULL;
}

static int degrees_clockwise(KnOrientation to)
{
    if (to.transpose)
        return to.flip_x ? 90 : 270;
    return to.flip_x && to.flip_y ? 180 : 0;
}

/* Square pixels, by stretching the shorter way, so that no line is lost. */
static void square_size(const KnVideo *video, const AVFrame *frame, int *width, int *height)
{
    AVRational aspect = av_guess_sample_aspect_ratio(video->container, video->stream, (AVFrame *)frame);
    double ratio = aspect.num > 0 && aspect.den > 0 ? av_q2d(aspect) : 1;
    *width = frame->width;
    *height = frame->height;
    if (ratio > 1 && ratio <= 16)
        *width = (int)lround(frame->width * ratio);
    else if (ratio < 1 && ratio >= 1.0 / 16)
        *height = (int)lround(frame->height / ratio);
}

/* Formats of pictures alone are images; those of animations too are one where no second frame follows. */
static int is_image(const KnVideo *video)
{
    static const char *const either[] = {"gif", "apng"};
    const char *container = video->container->iformat->name;
    const AVDictionaryEntry *brand = av_dict_get(video->container->metadata, "major_brand", NULL, 0);
    if (strcmp(container, "image2") == 0 || kn_ends_with(container, "_pipe"))
        return 1;
    for (size_t i = 0; i < sizeof either / sizeof either[0]; i++)
        if (strcmp(container, either[i]) == 0)
            return !video->next.present;
    return brand && strcmp(brand->value, "avif") == 0 && !video->next.present;
}

/* Everything that the first frame decides, which is on show. */
static void describe(KnVideo *video, double fps)
{
    const AVFrame *frame = video->shown.frame;
    const char *container = video->container->iformat->name;
    const int32_t *matrix = display_matrix(video);
    KnVideoInfo *info = &video->info;
    if (matrix)
        video->orientation = kn_orientation_from_matrix(matrix);
    int width, height;
    square_size(video, frame, &width, &height);
    info->width = video->orientation.transpose ? height : width;
    info->height = video->orientation.transpose ? width : height;
    info->coded_width = frame->width;
    info->coded_height = frame->height;
    info->rotation = degrees_clockwise(video->orientation);
    info->is_image = is_image(video);
    info->native_fps = info->is_image ? 0 : native_rate(video->stream);
    info->fps = info->is_image ? 0 : fps > 0 ? fps : info->native_fps > 0 ? info->native_fps : FALLBACK_FPS;
    if (info->is_image)
        info->duration_seconds = 0;
    else if (video->stream->duration > 0)
        info->duration_seconds = (double)video->stream->duration * av_q2d(video->stream->time_base);
    else if (video->container->duration > 0)
        info->duration_seconds = (double)video->container->duration / AV_TIME_BASE;
    info->codec = avcodec_get_name(video->decoder->codec_id);
    const char *format = av_get_pix_fmt_name(frame->format);
    info->pixel_format = format ? format : "unknown";
    info->container = container;
    const AVDictionaryEntry *comment = av_dict_get(video->container->metadata, "comment", NULL, 0);
    video->comment = kn_strdup(comment ? comment->value : "");
    info->comment = video->comment;
    video->width = info->width;
    video->height = info->height;
}

static int too_large_fail(const KnVideo *video, KnVideoFault *fault)
{
    char *why = kn_format("pictures of %dx%d, the longest side that is read is %d", video->decoder->width,
                          video->decoder->height, LARGEST_SIDE);
    int code = fault_fail(fault, KN_VIDEO_FAULT_TOO_LARGE, KN_EFORMAT, video->path, why);
    free(why);
    return code;
}

static int open_all(KnVideo *video, const KnVideoOptions *options, KnVideoFault *fault)
{
    KN_TRY(open_container(video, fault));
    KN_TRY(open_decoder(video, options->threads, fault));
    video->packet = av_packet_alloc();
    video->shown.frame = av_frame_alloc();
    video->next.frame = av_frame_alloc();
    video->converter = kn_converter_create();
    if (!video->packet || !video->shown.frame || !video->next.frame)
        return kn_fail(KN_EMEMORY, "%s: not enough memory for a frame", video->path);
    double fps = native_rate(video->stream);
    video->frame_seconds = 1 / (fps > 0 ? fps : FALLBACK_FPS);
    int code = advance(video);
    if (code == KN_END && is_too_large(video->decoder->width, video->decoder->height))
        return too_large_fail(video, fault);
    if (code == KN_END)
        return fault_fail(fault, KN_VIDEO_FAULT_NO_FRAMES, KN_EFORMAT, video->path, NULL);
    KN_TRY(code);
    KN_TRY(show_next(video));
    describe(video, options->fps);
    return KN_OK;
}

int kn_video_open(KnVideo **out, const char *path, const KnVideoOptions *options, KnVideoFault *fault)
{
    static const KnVideoOptions defaults = {0};
    *out = NULL;
    if (fault)
        *fault = KN_VIDEO_FAULT_UNREADABLE;
    kn_ffmpeg_quiet();
    KnVideo *video = kn_alloc(sizeof *video);
    video->path = kn_strdup(path);
    int code = open_all(video, options ? options : &defaults, fault);
    if (code < 0) {
        kn_video_close(video);
        return code;
    }
    if (fault)
        *fault = KN_VIDEO_FAULT_NONE;
    *out = video;
    return KN_OK;
}

void kn_video_close(KnVideo *video)
{
    if (!video)
        return;
    av_frame_free(&video->shown.frame);
    av_frame_free(&video->next.frame);
    av_packet_free(&video->packet);
    avcodec_free_context(&video->decoder);
    avformat_close_input(&video->container);
    kn_converter_destroy(video->converter);
    kn_free_large(video->rgb);
    free(video->comment);
    free(video->path);
    free(video);
}

/* ---- reading ---- */

const KnVideoInfo *kn_video_info(const KnVideo *video)
{
    return &video->info;
}

int64_t kn_video_damaged(const KnVideo *video)
{
    return video->damaged;
}

int kn_video_set_size(KnVideo *video, int width, int height)
{
    KN_ASSERT(video->delivered == 0);
    if (width < 1 || height < 1 || width > LARGEST_SIDE || height > LARGEST_SIDE)
        return kn_fail(KN_EINPUT, "%s: a picture of %dx%d cannot be made: sides from 1 to %d", video->path, width,
                       height, LARGEST_SIDE);
    video->width = width;
    video->height = height;
    return KN_OK;
}

int kn_video_skip(KnVideo *video)
{
    KN_TRY(seek_output(video));
    video->delivered++;
    return KN_OK;
}

int kn_video_next(KnVideo *video, const uint8_t **rgb, double *seconds)
{
    kn_activity_advance();
    KN_TRY(seek_output(video));
    if (!video->rgb)
        KN_TRY(kn_alloc_large((void **)&video->rgb, (size_t)video->width * (size_t)video->height * 3, "a picture"));
    if (!video->converted) {
        int code = kn_converter_run(video->converter, video->shown.frame, video->orientation, video->width,
                                    video->height, video->rgb);
        if (code < 0)
            return kn_fail_prefix(code, "%s", video->path);
        video->converted = 1;
    }
    if (seconds)
        *seconds = video->info.is_image ? 0 : (double)video->delivered / video->info.fps;
    video->delivered++;
    *rgb = video->rgb;
    return KN_OK;
}
