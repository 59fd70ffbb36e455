/* Colour, size and orientation of decoded pictures; the idea is in the header.
 *
 * YUV to RGB is the inverse of ITU-R BT.601/709/2020's definition, for 8-bit codes:
 *   R = y + 2 (1 - Kr) v    G = y - 2 Kb (1 - Kb) / Kg u - 2 Kr (1 - Kr) / Kg v    B = y + 2 (1 - Kb) u
 * with y = (Y - 16) / 219, u, v = (C - 128) / 224 in limited range and / 255 in full range. Untagged video is taken as
 * players take it: BT.709 from 1280 columns or 577 rows up, BT.601 below; limited range. */
#include "data/video_convert.h"

#include "core/base/error.h"
#include "core/base/memory.h"

#include <libavutil/imgutils.h>
#include <libavutil/opt.h>
#include <libavutil/pixdesc.h>
#include <libswscale/swscale.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Bit-exact integer loops: compiled again for AVX2 and chosen at run time. Sanitizers cannot run before the loader. */
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__clang__)
#define KN_VECTOR_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define KN_VECTOR_CLONES
#endif

enum { MATRIX_BITS = 13, SCALE_FLAGS = SWS_BICUBIC | SWS_ACCURATE_RND | SWS_BITEXACT | SWS_FULL_CHR_H_INT };

/* What a swscale context was made for. */
typedef struct ScaleKey {
    int source_width, source_height, source_format, width, height, format;
    int range, matrix, chroma_x, chroma_y;
} ScaleKey;

typedef struct Scaler {
    struct SwsContext *context;
    ScaleKey key;
} Scaler;

/* Three planes (or one, for gray) of 8 bits. */
typedef struct Planes {
    uint8_t *data[4];
    int strides[4];
    int width, height, format;
} Planes;

struct KnConverter {
    Scaler to_planes, to_rgb, resize;
    Planes planes, rgba, split;
    uint8_t *rows; /* one converted line: r, g, b */
    int row_width;
};

/* y_offset and coefficients of one matrix and range, in units of 2^-MATRIX_BITS. */
typedef struct Matrix {
    int y_offset;
    int16_t y, rv, gu, gv, bu; /* 16 bits: products of two such are cheap in vectors */
} Matrix;

KnOrientation kn_orientation_from_matrix(const int32_t matrix[9])
{
    /* x' = a x + c y, y' = b x + d y, with y down */
    double a = matrix[0], b = matrix[1], c = matrix[3], d = matrix[4];
    if (fabs(a) + fabs(d) >= fabs(b) + fabs(c))
        return (KnOrientation){.transpose = 0, .flip_x = a < 0, .flip_y = d < 0};
    return (KnOrientation){.transpose = 1, .flip_x = c < 0, .flip_y = b < 0};
}

KnConverter *kn_converter_create(void)
{
    return kn_alloc(sizeof(KnConverter));
}

void kn_converter_destroy(KnConverter *converter)
{
    if (!converter)
        return;
    sws_freeContext(converter->to_planes.context);
    sws_freeContext(converter->to_rgb.context);
    sws_freeContext(converter->resize.context);
    av_freep(&converter->planes.data[0]);
    av_freep(&converter->rgba.data[0]);
    av_freep(&converter->split.data[0]);
    free(converter->rows);
    free(converter);
}

static int planes_ensure(Planes *planes, int width, int height, int format)
{
    if (planes->data[0] && planes->width == width && planes->height == height && planes->format == format)
        return KN_OK;
    av_freep(&planes->data[0]);
    if (av_image_alloc(planes->data, planes->strides, width, height, format, 64) < 0)
        return kn_fail(KN_EMEMORY, "not enough memory for a picture of %dx%d", width, height);
    planes->width = width;
    planes->height = height;
    planes->format = format;
    return KN_OK;
}

static int scaler_ensure(Scaler *scaler, const ScaleKey *key)
{
    if (scaler->context && memcmp(&scaler->key, key, sizeof *key) == 0)
        return KN_OK;
    sws_freeContext(scaler->context);
    scaler->context = sws_alloc_context();
    if (!scaler->context)
        return kn_fail(KN_EMEMORY, "not enough memory for a picture scaler");
    const struct {
        const char *name;
        int value;
    } options[] = {
        {"srcw", key->source_width},
        {"srch", key->source_height},
        {"src_format", key->source_format},
        {"dstw", key->width},
        {"dsth", key->height},
        {"dst_format", key->format},
        {"src_range", key->range},
        {"sws_flags", SCALE_FLAGS},
        {"src_h_chr_pos", key->chroma_x},
        {"src_v_chr_pos", key->chroma_y},
        {"dst_range", key->range},
    };
    for (size_t i = 0; i < sizeof options / sizeof options[0]; i++)
        av_opt_set_int(scaler->context, options[i].name, options[i].value, 0);
    if (sws_init_context(scaler->context, NULL, NULL) < 0) {
        sws_freeContext(scaler->context);
        scaler->context = NULL;
        const char *name = av_get_pix_fmt_name(key->source_format);
        return kn_fail(KN_EFORMAT, "pictures in pixel format %s of %dx%d cannot be converted", name ? name : "unknown",
                       key->source_width, key->source_height);
    }
    const AVPixFmtDescriptor *to = av_pix_fmt_desc_get(key->format);
    int to_rgb = (to->flags & AV_PIX_FMT_FLAG_RGB) != 0;
    const int *table = sws_getCoefficients(key->matrix);
    sws_setColorspaceDetails(scaler->context, table, key->range, table, to_rgb ? 1 : key->range, 0, 1 << 16, 1 << 16);
    scaler->key = *key;
    return KN_OK;
}

/* Pixel formats that carry full range in their name, and their plain twins. */
static int plain_format(int format, int *full_range)
{
    static const int twins[][2] = {
        {AV_PIX_FMT_YUVJ420P, AV_PIX_FMT_YUV420P}, {AV_PIX_FMT_YUVJ422P, AV_PIX_FMT_YUV422P},
        {AV_PIX_FMT_YUVJ444P, AV_PIX_FMT_YUV444P}, {AV_PIX_FMT_YUVJ440P, AV_PIX_FMT_YUV440P},
        {AV_PIX_FMT_YUVJ411P, AV_PIX_FMT_YUV411P},
    };
    for (size_t i = 0; i < sizeof twins / sizeof twins[0]; i++) {
        if (format == twins[i][0]) {
            *full_range = 1;
            return twins[i][1];
        }
    }
    return format;
}

static int matrix_of(const AVFrame *frame)
{
    switch (frame->colorspace) {
    case AVCOL_SPC_BT709:
        return SWS_CS_ITU709;
    case AVCOL_SPC_BT470BG:
    case AVCOL_SPC_SMPTE170M:
        return SWS_CS_ITU601;
    case AVCOL_SPC_FCC:
        return SWS_CS_FCC;
    case AVCOL_SPC_SMPTE240M:
        return SWS_CS_SMPTE240M;
    case AVCOL_SPC_BT2020_NCL:
    case AVCOL_SPC_BT2020_CL:
        return SWS_CS_BT2020;
    default:
        return frame->width >= 1280 || frame->height > 576 ? SWS_CS_ITU709 : SWS_CS_ITU601;
    }
}

static Matrix matrix_coefficients(int matrix, int full_range)
{
    double kr = 0.299, kb = 0.114;
    if (matrix == SWS_CS_ITU709)
        kr = 0.2126, kb = 0.0722;
    else if (matrix == SWS_CS_FCC)
        kr = 0.30, kb = 0.11;
    else if (matrix == SWS_CS_SMPTE240M)
        kr = 0.212, kb = 0.087;
    else if (matrix == SWS_CS_BT2020)
        kr = 0.2627, kb = 0.0593;
    double kg = 1 - kr - kb, one = 1 << MATRIX_BITS;
    double y = full_range ? 1 : 255.0 / 219, c = full_range ? 1 : 255.0 / 224;
    return (Matrix){.y_offset = full_range ? 0 : 16,
                    .y = (int16_t)lround(one * y),
                    .rv = (int16_t)lround(one * c * 2 * (1 - kr)),
                    .gu = (int16_t)lround(one * c * 2 * kb * (1 - kb) / kg),
                    .gv = (int16_t)lround(one * c * 2 * kr * (1 - kr) / kg),
                    .bu = (int16_t)lround(one * c * 2 * (1 - kb))};
}

static inline uint8_t clamp_byte(int value)
{
    return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

KN_VECTOR_CLONES static void convert_line(const Matrix *m, const uint8_t *restrict y, const uint8_t *restrict u,
                                          const uint8_t *restrict v, int count, uint8_t *restrict r,
                                          uint8_t *restrict g, uint8_t *restrict b)
{
    const int16_t cy = m->y, rv = m->rv, gu = m->gu, gv = m->gv, bu = m->bu;
    const int base = (1 << (MATRIX_BITS - 1)) - m->y_offset * cy;
    for (int x = 0; x < count; x++) {
        const int16_t cb = (int16_t)(u[x] - 128), cr = (int16_t)(v[x] - 128), code = y[x];
        int luma = cy * code + base;
        r[x] = clamp_byte((luma + rv * cr) >> MATRIX_BITS);
        g[x] = clamp_byte((luma - gu * cb - gv * cr) >> MATRIX_BITS);
        b[x] = clamp_byte((luma + bu * cb) >> MATRIX_BITS);
    }
}

KN_VECTOR_CLONES static void interleave_line(const uint8_t *restrict r, const uint8_t *restrict g,
                                             const uint8_t *restrict b, int count, uint8_t *restrict rgb)
{
    for (int x = 0; x < count; x++) {
        rgb[3 * x] = r[x];
        rgb[3 * x + 1] = g[x];
        rgb[3 * x + 2] = b[x];
    }
}

/* Writes line `y` of the coded picture where it belongs in the upright one of width x height. */
static void place_line(const uint8_t *r, const uint8_t *g, const uint8_t *b, int count, int y, KnOrientation to,
                       int width, int height, uint8_t *rgb)
{
    if (!to.transpose && !to.flip_x) {
        interleave_line(r, g, b, count, rgb + (size_t)(to.flip_y ? height - 1 - y : y) * width * 3);
        return;
    }
    for (int x = 0; x < count; x++) {
        int column = to.transpose ? y : x, row = to.transpose ? x : y;
        column = to.flip_x ? width - 1 - column : column;
        row = to.flip_y ? height - 1 - row : row;
        uint8_t *pixel = rgb + ((size_t)row * width + column) * 3;
        pixel[0] = r[x];
        pixel[1] = g[x];
        pixel[2] = b[x];
    }
}

/* Premultiplied over black, as separate r, g, b planes. */
static void split_rgba(const Planes *rgba, int has_alpha, Planes *split)
{
    for (int y = 0; y < rgba->height; y++) {
        const uint8_t *from = rgba->data[0] + (size_t)y * rgba->strides[0];
        for (int x = 0; x < rgba->width; x++) {
            int alpha = has_alpha ? from[4 * x + 3] : 255;
            for (int c = 0; c < 3; c++)
                split->data[c][(size_t)y * split->strides[c] + x] = (uint8_t)((from[4 * x + c] * alpha + 127) / 255);
        }
    }
}

static ScaleKey scale_key(const AVFrame *frame, int format, int to, int width, int height)
{
    ScaleKey key;
    memset(&key, 0, sizeof key);
    key.source_width = frame->width;
    key.source_height = frame->height;
    key.source_format = format;
    key.width = width;
    key.height = height;
    key.format = to;
    key.matrix = matrix_of(frame);
    key.chroma_x = key.chroma_y = -513; /* swscale's "not given" */
    const AVPixFmtDescriptor *from = av_pix_fmt_desc_get(format);
    if (from->log2_chroma_w == 1)
        key.chroma_x = frame->chroma_location == AVCHROMA_LOC_CENTER || frame->chroma_location == AVCHROMA_LOC_TOP ||
                               frame->chroma_location == AVCHROMA_LOC_BOTTOM
                           ? 128
                           : 0;
    if (from->log2_chroma_h == 1)
        key.chroma_y =
            frame->chroma_location == AVCHROMA_LOC_TOPLEFT || frame->chroma_location == AVCHROMA_LOC_TOP ? 0 : 128;
    return key;
}

/* RGB, palette and whatever has alpha: through RGBA at its own size, then resized as three independent planes. */
static int through_rgba(KnConverter *converter, const AVFrame *frame, int format, int full_range, int has_alpha,
                        int width, int height, const Planes **result)
{
    ScaleKey key = scale_key(frame, format, AV_PIX_FMT_RGBA, frame->width, frame->height);
    key.range = full_range;
    KN_TRY(scaler_ensure(&converter->to_rgb, &key));
    KN_TRY(planes_ensure(&converter->rgba, frame->width, frame->height, AV_PIX_FMT_RGBA));
    KN_TRY(planes_ensure(&converter->split, frame->width, frame->height, AV_PIX_FMT_YUV444P));
    sws_scale(converter->to_rgb.context, (const uint8_t *const *)frame->data, frame->linesize, 0, frame->height,
              converter->rgba.data, converter->rgba.strides);
    split_rgba(&converter->rgba, has_alpha, &converter->split);
    *result = &converter->split;
    if (width == frame->width && height == frame->height)
        return KN_OK;
    key = scale_key(frame, AV_PIX_FMT_YUV444P, AV_PIX_FMT_YUV444P, width, height);
    KN_TRY(scaler_ensure(&converter->resize, &key));
    KN_TRY(planes_ensure(&converter->planes, width, height, AV_PIX_FMT_YUV444P));
    sws_scale(converter->resize.context, (const uint8_t *const *)converter->split.data, converter->split.strides, 0,
              frame->height, converter->planes.data, converter->planes.strides);
    *result = &converter->planes;
    return KN_OK;
}

static int resize_planes(KnConverter *converter, const AVFrame *frame, int format, int to, int full_range, int width,
                         int height)
{
    ScaleKey key = scale_key(frame, format, to, width, height);
    key.range = full_range;
    KN_TRY(scaler_ensure(&converter->to_planes, &key));
    KN_TRY(planes_ensure(&converter->planes, width, height, to));
    sws_scale(converter->to_planes.context, (const uint8_t *const *)frame->data, frame->linesize, 0, frame->height,
              converter->planes.data, converter->planes.strides);
    return KN_OK;
}

int kn_converter_run(KnConverter *converter, const AVFrame *frame, KnOrientation orientation, int width, int height,
                     uint8_t *rgb)
{
    const AVPixFmtDescriptor *description = av_pix_fmt_desc_get(frame->format);
    if (!description || (description->flags & AV_PIX_FMT_FLAG_HWACCEL))
        return kn_fail(KN_EFORMAT, "the decoder gave pictures of an unknown pixel format");
    int coded_width = orientation.transpose ? height : width, coded_height = orientation.transpose ? width : height;
    int is_gray =
        description->nb_components == 1 && !(description->flags & (AV_PIX_FMT_FLAG_PAL | AV_PIX_FMT_FLAG_RGB));
    int has_alpha = (description->flags & (AV_PIX_FMT_FLAG_ALPHA | AV_PIX_FMT_FLAG_PAL)) != 0;
    int is_rgb = (description->flags & (AV_PIX_FMT_FLAG_RGB | AV_PIX_FMT_FLAG_PAL | AV_PIX_FMT_FLAG_BAYER)) != 0;
    int full_range = frame->color_range == AVCOL_RANGE_JPEG ||
                     ((is_gray || is_rgb) && frame->color_range == AVCOL_RANGE_UNSPECIFIED);
    int format = plain_format(frame->format, &full_range);
    const Planes *planes = &converter->planes;

    if (is_rgb || has_alpha)
        KN_TRY(through_rgba(converter, frame, format, full_range, has_alpha, coded_width, coded_height, &planes));
    else
        KN_TRY(resize_planes(converter, frame, format, is_gray ? AV_PIX_FMT_GRAY8 : AV_PIX_FMT_YUV444P, full_range,
                             coded_width, coded_height));

    if (converter->row_width < coded_width) {
        converter->rows = kn_realloc(converter->rows, (size_t)coded_width * 4);
        converter->row_width = coded_width;
    }
    uint8_t *r = converter->rows, *g = r + coded_width, *b = g + coded_width, *neutral = b + coded_width;
    memset(neutral, 128, (size_t)coded_width);
    Matrix matrix = matrix_coefficients(matrix_of(frame), full_range);
    for (int y = 0; y < coded_height; y++) {
        const uint8_t *line[3];
        for (int c = 0; c < 3; c++)
            line[c] = c && is_gray && !has_alpha ? neutral : planes->data[c] + (size_t)y * planes->strides[c];
        if (is_rgb || has_alpha) {
            place_line(line[0], line[1], line[2], coded_width, y, orientation, width, height, rgb);
            continue;
        }
        convert_line(&matrix, line[0], line[1], line[2], coded_width, r, g, b);
        place_line(r, g, b, coded_width, y, orientation, width, height, rgb);
    }
    return KN_OK;
}
