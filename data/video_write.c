/* Writing video through FFmpeg's encoders (libx264, gif, png); the promise is in the header.
 *
 * A kind of output is a row of a table: how it starts, takes a frame and ends. Frames are scaled up here, and turned
 * into BT.709 limited-range YUV in integer arithmetic, with 4:2:0 chroma where H.264 puts it by default (beside the
 * even columns, between the rows). Encoders run on one thread, so that the bytes do not depend on the machine. */
#include "data/video_write.h"

#include "core/base/activity.h"
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/memory.h"
#include "core/base/text.h"
#include "data/video_ffmpeg.h"
#include "data/video_palette.h"

#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libavutil/opt.h>

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { DEFAULT_CRF = 12, TINY_CRF = 6, TINY_PIXELS = 256 * 256, LARGEST_SIDE = 16384, MOST_GIF_FPS = 50 };

typedef struct OutputKind {
    const char *suffix, *muxer;
    int (*open)(KnVideoWriter *writer);
    int (*add)(KnVideoWriter *writer);
    int (*finish)(KnVideoWriter *writer);
} OutputKind;

struct KnVideoWriter {
    const OutputKind *kind;
    char *path, *temporary;
    KnVideoWriteOptions options;
    char *comment;
    int width, height; /* of the pictures to encode: scaled up, even where they must be */
    uint8_t *picture;  /* the present one, rgb */
    int64_t count;     /* of frames added */
    AVFormatContext *container;
    AVCodecContext *encoder;
    AVFrame *frame;
    AVPacket *packet;
    uint8_t *kept; /* GIF: all pictures, until the palette is known */
    size_t kept_capacity;
    int is_folder; /* PNG */
};

/* ---- encoding ---- */

static int failed(const KnVideoWriter *writer, int code)
{
    return kn_fail(KN_EIO, "%s: cannot be written: %s", writer->path, kn_ffmpeg_why(code));
}

static int make_encoder(KnVideoWriter *writer, const char *name, enum AVPixelFormat format)
{
    const AVCodec *codec = avcodec_find_encoder_by_name(name);
    if (!codec)
        return kn_fail(KN_EINPUT, "%s: this FFmpeg was built without the encoder %s", writer->path, name);
    writer->encoder = avcodec_alloc_context3(codec);
    writer->packet = av_packet_alloc();
    writer->frame = av_frame_alloc();
    if (!writer->encoder || !writer->packet || !writer->frame)
        return kn_fail(KN_EMEMORY, "%s: not enough memory for an encoder", writer->path);
    AVRational rate = av_d2q(writer->options.fps, 1001000);
    writer->encoder->width = writer->frame->width = writer->width;
    writer->encoder->height = writer->frame->height = writer->height;
    writer->encoder->pix_fmt = format;
    writer->frame->format = format;
    writer->encoder->time_base = av_inv_q(rate);
    writer->encoder->framerate = rate;
    writer->encoder->thread_count = 1;
    writer->encoder->flags |= AV_CODEC_FLAG_BITEXACT;
    if (av_frame_get_buffer(writer->frame, 0) < 0)
        return kn_fail(KN_EMEMORY, "%s: not enough memory for a picture of %dx%d", writer->path, writer->width,
                       writer->height);
    return KN_OK;
}

static int open_encoder(KnVideoWriter *writer)
{
    int code = avcodec_open2(writer->encoder, writer->encoder->codec, NULL);
    if (code < 0)
        return kn_fail(KN_EINPUT, "%s: the encoder refuses pictures of %dx%d: %s", writer->path, writer->width,
                       writer->height, kn_ffmpeg_why(code));
    return KN_OK;
}

static int open_container(KnVideoWriter *writer)
{
    char *url = kn_format("file:%s", writer->temporary);
    int code = avformat_alloc_output_context2(&writer->container, NULL, writer->kind->muxer, url);
    if (code >= 0 && (writer->container->oformat->flags & AVFMT_GLOBALHEADER))
        writer->encoder->flags |= AV_CODEC_FLAG_GLOBAL_HEADER;
    if (code >= 0)
        code = avio_open(&writer->container->pb, url, AVIO_FLAG_WRITE);
    free(url);
    return code < 0 ? failed(writer, code) : KN_OK;
}

static int write_header(KnVideoWriter *writer)
{
    AVStream *stream = avformat_new_stream(writer->container, NULL);
    if (!stream)
        return kn_fail(KN_EMEMORY, "%s: not enough memory for a stream", writer->path);
    stream->time_base = writer->encoder->time_base;
    stream->avg_frame_rate = writer->encoder->framerate;
    int code = avcodec_parameters_from_context(stream->codecpar, writer->encoder);
    writer->container->flags |= AVFMT_FLAG_BITEXACT;
    if (writer->comment)
        av_dict_set(&writer->container->metadata, "comment", writer->comment, 0);
    AVDictionary *options = NULL;
    av_dict_set(&options, "movflags", "+faststart", 0);
    if (code >= 0)
        code = avformat_write_header(writer->container, &options);
    av_dict_free(&options);
    return code < 0 ? failed(writer, code) : KN_OK;
}

/* Sends a frame (NULL: the end) and writes whatever packets come out. */
static int encode(KnVideoWriter *writer, const AVFrame *frame)
{
    int code = avcodec_send_frame(writer->encoder, frame);
    while (code >= 0) {
        code = avcodec_receive_packet(writer->encoder, writer->packet);
        if (code == AVERROR(EAGAIN) || code == AVERROR_EOF)
            return KN_OK;
        if (code < 0)
            break;
        if (writer->packet->duration <= 0)
            writer->packet->duration = 1;
        writer->packet->stream_index = 0;
        av_packet_rescale_ts(writer->packet, writer->encoder->time_base, writer->container->streams[0]->time_base);
        code = av_interleaved_write_frame(writer->container, writer->packet);
    }
    return failed(writer, code);
}

static int complete_container(KnVideoWriter *writer)
{
    int code = av_write_trailer(writer->container);
    int closed = avio_closep(&writer->container->pb);
    if (code >= 0)
        code = closed;
    if (code < 0)
        return failed(writer, code);
    if (!writer->options.unsynced)
        return kn_file_publish(writer->temporary, writer->path);
    if (rename(writer->temporary, writer->path) == 0)
        return KN_OK;
    int reason = errno;
    unlink(writer->temporary);
    return kn_fail(KN_EIO, "%s: cannot be written: %s", writer->path, strerror(reason));
}

/* ---- H.264 ---- */

/* BT.709 limited range from sums of `1 << shift` weighted pixels, rounded to nearest. */
static uint8_t luma709(int r, int g, int b)
{
    return (uint8_t)((11966 * r + 40254 * g + 4064 * b + (16 << 16) + (1 << 15)) >> 16);
}

static uint8_t blue709(int r, int g, int b, int shift)
{
    return (uint8_t)((-6596 * r - 22189 * g + 28784 * b + (128 << (16 + shift)) + (1 << (15 + shift))) >> (16 + shift));
}

static uint8_t red709(int r, int g, int b, int shift)
{
    return (uint8_t)((28784 * r - 26145 * g - 2639 * b + (128 << (16 + shift)) + (1 << (15 + shift))) >> (16 + shift));
}

static void fill_luma(const KnVideoWriter *writer)
{
    for (int y = 0; y < writer->height; y++) {
        const uint8_t *rgb = writer->picture + (size_t)y * writer->width * 3;
        uint8_t *line = writer->frame->data[0] + (ptrdiff_t)y * writer->frame->linesize[0];
        for (int x = 0; x < writer->width; x++, rgb += 3)
            line[x] = luma709(rgb[0], rgb[1], rgb[2]);
    }
}

static void fill_chroma_444(const KnVideoWriter *writer)
{
    for (int y = 0; y < writer->height; y++) {
        const uint8_t *rgb = writer->picture + (size_t)y * writer->width * 3;
        uint8_t *cb = writer->frame->data[1] + (ptrdiff_t)y * writer->frame->linesize[1];
        uint8_t *cr = writer->frame->data[2] + (ptrdiff_t)y * writer->frame->linesize[2];
        for (int x = 0; x < writer->width; x++, rgb += 3) {
            cb[x] = blue709(rgb[0], rgb[1], rgb[2], 0);
            cr[x] = red709(rgb[0], rgb[1], rgb[2], 0);
        }
    }
}

/* Each sample is the mean of two rows and of columns 2x - 1, 2x, 2x + 1 with weights 1, 2, 1. */
static void fill_chroma_420(const KnVideoWriter *writer)
{
    const ptrdiff_t row = (ptrdiff_t)writer->width * 3;
    for (int y = 0; y < writer->height / 2; y++) {
        const uint8_t *upper = writer->picture + 2 * y * row;
        uint8_t *cb = writer->frame->data[1] + (ptrdiff_t)y * writer->frame->linesize[1];
        uint8_t *cr = writer->frame->data[2] + (ptrdiff_t)y * writer->frame->linesize[2];
        for (int x = 0; x < writer->width / 2; x++) {
            int left = x > 0 ? 2 * x - 1 : 0, sum[3];
            for (int c = 0; c < 3; c++) {
                const uint8_t *a = upper + c, *b = a + row;
                sum[c] = a[3 * left] + 2 * a[6 * x] + a[6 * x + 3] + b[3 * left] + 2 * b[6 * x] + b[6 * x + 3];
            }
            cb[x] = blue709(sum[0], sum[1], sum[2], 3);
            cr[x] = red709(sum[0], sum[1], sum[2], 3);
        }
    }
}

static int h264_open(KnVideoWriter *writer)
{
    const KnVideoWriteOptions *options = &writer->options;
    int full = options->full_colour;
    KN_TRY(make_encoder(writer, options->lossless ? "libx264rgb" : "libx264",
                        options->lossless ? AV_PIX_FMT_RGB24
                        : full            ? AV_PIX_FMT_YUV444P
                                          : AV_PIX_FMT_YUV420P));
    AVCodecContext *encoder = writer->encoder;
    encoder->color_primaries = AVCOL_PRI_BT709;
    encoder->color_trc = AVCOL_TRC_BT709;
    encoder->colorspace = options->lossless ? AVCOL_SPC_RGB : AVCOL_SPC_BT709;
    encoder->color_range = options->lossless ? AVCOL_RANGE_JPEG : AVCOL_RANGE_MPEG;
    encoder->chroma_sample_location = AVCHROMA_LOC_LEFT;
    int tiny = (int64_t)writer->width * writer->height < TINY_PIXELS;
    int crf = options->crf > 0 ? options->crf : tiny ? TINY_CRF : DEFAULT_CRF;
    av_opt_set(encoder->priv_data, "preset", "medium", 0);
    av_opt_set_int(encoder->priv_data, "mbtree", 0, 0); /* its SIMD reads memory never written: other bits each time */
    if (options->lossless)
        av_opt_set_int(encoder->priv_data, "qp", 0, 0);
    else
        av_opt_set_double(encoder->priv_data, "crf", crf, 0);
    KN_TRY(open_container(writer));
    KN_TRY(open_encoder(writer));
    return write_header(writer);
}

static int h264_add(KnVideoWriter *writer)
{
    if (av_frame_make_writable(writer->frame) < 0)
        return kn_fail(KN_EMEMORY, "%s: not enough memory for a picture", writer->path);
    if (writer->options.lossless) {
        for (int y = 0; y < writer->height; y++)
            memcpy(writer->frame->data[0] + (ptrdiff_t)y * writer->frame->linesize[0],
                   writer->picture + (size_t)y * writer->width * 3, (size_t)writer->width * 3);
    } else {
        fill_luma(writer);
        if (writer->options.full_colour)
            fill_chroma_444(writer);
        else
            fill_chroma_420(writer);
    }
    writer->frame->pts = writer->count;
    return encode(writer, writer->frame);
}

static int h264_finish(KnVideoWriter *writer)
{
    KN_TRY(encode(writer, NULL));
    return complete_container(writer);
}

/* ---- GIF ---- */

static int gif_open(KnVideoWriter *writer)
{
    if (writer->options.fps > MOST_GIF_FPS)
        return kn_fail(KN_EINPUT, "%s: a GIF shows at most %d frames a second, not %g", writer->path, MOST_GIF_FPS,
                       writer->options.fps);
    KN_TRY(make_encoder(writer, "gif", AV_PIX_FMT_PAL8));
    writer->encoder->time_base = (AVRational){1, 100};
    KN_TRY(open_container(writer));
    KN_TRY(open_encoder(writer));
    return write_header(writer);
}

static size_t picture_bytes(const KnVideoWriter *writer)
{
    return (size_t)writer->width * (size_t)writer->height * 3;
}

static int gif_add(KnVideoWriter *writer)
{
    size_t bytes = picture_bytes(writer), needed = bytes * ((size_t)writer->count + 1);
    if (needed > writer->kept_capacity) {
        size_t capacity = needed + needed / 2;
        uint8_t *larger = realloc(writer->kept, capacity);
        if (!larger)
            return kn_fail(KN_EMEMORY, "%s: not enough memory for the frames of a GIF: %.1f MiB needed", writer->path,
                           (double)capacity / 1048576.0);
        writer->kept = larger;
        writer->kept_capacity = capacity;
    }
    memcpy(writer->kept + bytes * (size_t)writer->count, writer->picture, bytes);
    return KN_OK;
}

static int gif_encode(KnVideoWriter *writer, const KnPalette *palette)
{
    size_t bytes = picture_bytes(writer);
    uint8_t *indices = kn_alloc(bytes / 3);
    int code = KN_OK;
    for (int64_t i = 0; i < writer->count && code == KN_OK; i++) {
        if (av_frame_make_writable(writer->frame) < 0) {
            code = kn_fail(KN_EMEMORY, "%s: not enough memory for a picture", writer->path);
            break;
        }
        kn_palette_apply(palette, writer->kept + bytes * (size_t)i, bytes / 3, indices);
        for (int y = 0; y < writer->height; y++)
            memcpy(writer->frame->data[0] + (ptrdiff_t)y * writer->frame->linesize[0],
                   indices + (size_t)y * writer->width, (size_t)writer->width);
        kn_palette_colours(palette, (uint32_t *)(void *)writer->frame->data[1]);
        writer->frame->pts = llround((double)i * 100 / writer->options.fps);
        code = encode(writer, writer->frame);
    }
    free(indices);
    return code;
}

static int gif_finish(KnVideoWriter *writer)
{
    KnPalette *palette = kn_palette_create();
    kn_palette_count(palette, writer->kept, picture_bytes(writer) / 3 * (size_t)writer->count);
    kn_palette_solve(palette);
    int code = gif_encode(writer, palette);
    kn_palette_destroy(palette);
    KN_TRY(code);
    KN_TRY(encode(writer, NULL));
    return complete_container(writer);
}

/* ---- PNG ---- */

/* The place of "%d", "%4d" or "%04d" in a name: its length, 0 if there is none. */
static size_t find_number(const char *path, const char **at, int *digits)
{
    for (const char *p = strchr(path, '%'); p; p = strchr(p + 1, '%')) {
        char *end;
        long width = strtol(p + 1, &end, 10);
        if (*end == 'd' && width >= 0 && width < 20 && p[1] != '-' && p[1] != '+' && p[1] != ' ') {
            *at = p;
            *digits = (int)width;
            return (size_t)(end + 1 - p);
        }
    }
    return 0;
}

static char *png_path(const char *name, int is_folder, int64_t number)
{
    const char *at;
    int digits;
    if (is_folder) {
        char *frame = kn_format("frame-%04lld.png", (long long)number), *path = kn_path_join(name, frame);
        free(frame);
        return path;
    }
    size_t length = find_number(name, &at, &digits);
    if (length == 0)
        return kn_strdup(name);
    return kn_format("%.*s%0*lld%s", (int)(at - name), name, digits, (long long)number, at + length);
}

static int png_open(KnVideoWriter *writer)
{
    if (writer->is_folder)
        KN_TRY(kn_make_directories(writer->path));
    KN_TRY(make_encoder(writer, "png", AV_PIX_FMT_RGB24));
    return open_encoder(writer);
}

static int png_add(KnVideoWriter *writer)
{
    const char *at;
    int digits;
    if (writer->count == 1 && !writer->is_folder && find_number(writer->path, &at, &digits) == 0)
        return kn_fail(KN_EINPUT, "%s: a PNG holds one frame: put %%04d into the name, or end it with / for a folder",
                       writer->path);
    if (av_frame_make_writable(writer->frame) < 0)
        return kn_fail(KN_EMEMORY, "%s: not enough memory for a picture", writer->path);
    for (int y = 0; y < writer->height; y++)
        memcpy(writer->frame->data[0] + (ptrdiff_t)y * writer->frame->linesize[0],
               writer->picture + (size_t)y * writer->width * 3, (size_t)writer->width * 3);
    writer->frame->pts = writer->count;
    int code = avcodec_send_frame(writer->encoder, writer->frame);
    if (code >= 0)
        code = avcodec_receive_packet(writer->encoder, writer->packet);
    if (code < 0)
        return failed(writer, code);
    char *path = png_path(writer->path, writer->is_folder, writer->count);
    code = kn_file_write(path, writer->packet->data, (size_t)writer->packet->size);
    free(path);
    av_packet_unref(writer->packet);
    return code;
}

static int png_finish(KnVideoWriter *writer)
{
    (void)writer;
    return KN_OK;
}

/* ---- the writer ---- */

static const OutputKind kinds[] = {
    {".mp4", "mp4", h264_open, h264_add, h264_finish}, {".m4v", "mp4", h264_open, h264_add, h264_finish},
    {".mov", "mov", h264_open, h264_add, h264_finish}, {".mkv", "matroska", h264_open, h264_add, h264_finish},
    {".gif", "gif", gif_open, gif_add, gif_finish},    {".png", NULL, png_open, png_add, png_finish},
};

static const OutputKind *kind_of(const char *path, int *is_folder)
{
    *is_folder = kn_ends_with(path, "/") || kn_is_directory(path);
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (kn_ends_with(*is_folder ? ".png" : path, kinds[i].suffix))
            return &kinds[i];
    return NULL;
}

char *kn_video_frame_path(const char *path, int64_t number)
{
    const char *at;
    int is_folder, digits;
    const OutputKind *kind = kind_of(path, &is_folder);
    if (!kind || kind->open != png_open || (!is_folder && find_number(path, &at, &digits) == 0))
        return NULL;
    return png_path(path, is_folder, number);
}

static void release(KnVideoWriter *writer)
{
    if (writer->container && writer->container->pb)
        avio_closep(&writer->container->pb);
    avformat_free_context(writer->container);
    avcodec_free_context(&writer->encoder);
    av_frame_free(&writer->frame);
    av_packet_free(&writer->packet);
    free(writer->kept);
    free(writer->picture);
    free(writer->comment);
    free(writer->temporary);
    free(writer->path);
    free(writer);
}

void kn_video_writer_abandon(KnVideoWriter *writer)
{
    if (!writer)
        return;
    if (writer->kind->muxer) {
        unlink(writer->temporary);
    } else {
        for (int64_t i = 0; i < writer->count; i++) {
            char *path = png_path(writer->path, writer->is_folder, i);
            unlink(path);
            free(path);
        }
    }
    release(writer);
}

static int check_options(const char *path, const KnVideoWriteOptions *options, int upscale)
{
    if (options->width < 1 || options->height < 1 || upscale > LARGEST_SIDE ||
        options->width > LARGEST_SIDE / upscale || options->height > LARGEST_SIDE / upscale)
        return kn_fail(KN_EINPUT, "%s: pictures of %dx%d, scaled up by %d, are outside 1 to %d", path, options->width,
                       options->height, upscale, LARGEST_SIDE);
    if (!(options->fps > 0) || options->fps > 1000)
        return kn_fail(KN_EINPUT, "%s: a rate of %g frames a second is outside 0 to 1000", path, options->fps);
    if (options->crf < 0 || options->crf > 51)
        return kn_fail(KN_EINPUT, "%s: a CRF of %d is outside 1 to 51", path, options->crf);
    return KN_OK;
}

int kn_video_writer_open(KnVideoWriter **out, const char *path, const KnVideoWriteOptions *options)
{
    int is_folder, upscale = options->upscale > 0 ? options->upscale : 1;
    *out = NULL;
    const OutputKind *kind = kind_of(path, &is_folder);
    if (!kind)
        return kn_fail(KN_EINPUT, "%s: the suffix must be .mp4, .m4v, .mov, .mkv, .gif or .png (or a folder for PNGs)",
                       path);
    KN_TRY(check_options(path, options, upscale));
    kn_ffmpeg_quiet();
    KnVideoWriter *writer = kn_alloc(sizeof *writer);
    writer->kind = kind;
    writer->is_folder = is_folder;
    writer->path = kn_strdup(path);
    writer->temporary = kn_temporary_path(path);
    writer->options = *options;
    writer->options.upscale = upscale;
    writer->comment = options->comment ? kn_strdup(options->comment) : NULL;
    writer->options.comment = writer->comment;
    writer->width = options->width * upscale;
    writer->height = options->height * upscale;
    if (kind->open == h264_open && !options->full_colour && !options->lossless) {
        writer->width += writer->width % 2;
        writer->height += writer->height % 2;
    }
    writer->picture = kn_alloc(picture_bytes(writer));
    int code = kind->open(writer);
    if (code < 0) {
        kn_video_writer_abandon(writer);
        return code;
    }
    *out = writer;
    return KN_OK;
}

/* Nearest neighbour by a whole factor; what evenness adds repeats the last column and row. */
static void scale_up(KnVideoWriter *writer, const uint8_t *rgb)
{
    const int factor = writer->options.upscale, width = writer->options.width, height = writer->options.height;
    for (int y = 0; y < writer->height; y++) {
        int from = y / factor < height ? y / factor : height - 1;
        uint8_t *to = writer->picture + (size_t)y * writer->width * 3;
        for (int x = 0; x < writer->width; x++, to += 3) {
            int column = x / factor < width ? x / factor : width - 1;
            memcpy(to, rgb + ((size_t)from * width + column) * 3, 3);
        }
    }
}

int kn_video_writer_add(KnVideoWriter *writer, const uint8_t *rgb)
{
    kn_activity_advance();
    scale_up(writer, rgb);
    KN_TRY(writer->kind->add(writer));
    writer->count++;
    return KN_OK;
}

int kn_video_writer_finish(KnVideoWriter *writer)
{
    int code = writer->count > 0 ? writer->kind->finish(writer)
                                 : kn_fail(KN_EINPUT, "%s: a video needs at least one frame", writer->path);
    if (code < 0)
        kn_video_writer_abandon(writer);
    else
        release(writer);
    return code;
}

int kn_video_write(const char *path, const uint8_t *rgb, int64_t frames, const KnVideoWriteOptions *options)
{
    KnVideoWriter *writer;
    KN_TRY(kn_video_writer_open(&writer, path, options));
    for (int64_t i = 0; i < frames; i++) {
        int code = kn_video_writer_add(writer, rgb + (size_t)i * (size_t)options->width * (size_t)options->height * 3);
        if (code < 0) {
            kn_video_writer_abandon(writer);
            return code;
        }
    }
    return kn_video_writer_finish(writer);
}
