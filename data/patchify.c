/* Cutting frames into patches and putting them together again; both are one walk over (t, y, x) boxes that moves single
 * elements, specialised by element size. RGB bytes to patches, the way of every prepared video, take a lane of their
 * own: a line is split into planes by vector instructions, then moved in runs of one patch's width. */
#include "data/patchify.h"

#include "core/base/error.h"

#include <string.h>

/* Compiled again for AVX2 and chosen at run time; sanitizers cannot run before the loader has. */
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__clang__)
#define KN_VECTOR_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define KN_VECTOR_CLONES
#endif

enum { SPLIT_PIXELS = 1024 }; /* planes of a stretch of line, on the stack */

int64_t kn_patch_tokens(const KnPatchLayout *layout)
{
    return (layout->frames / layout->patch[0]) * (layout->height / layout->patch[1]) *
           (layout->width / layout->patch[2]);
}

int64_t kn_patch_dim(const KnPatchLayout *layout)
{
    return layout->channels * layout->patch[0] * layout->patch[1] * layout->patch[2];
}

/* One line of a patch: `count` pixels of `channels` interleaved values, to or from planes `plane` elements apart. */
#define DEFINE_LINE(name, type)                                                                                        \
    static void name(int to_patches, type *restrict pixels, type *restrict patch, int64_t count, int64_t channels,     \
                     int64_t plane)                                                                                    \
    {                                                                                                                  \
        for (int64_t c = 0; c < channels; c++) {                                                                       \
            type *line = patch + c * plane;                                                                            \
            if (to_patches)                                                                                            \
                for (int64_t x = 0; x < count; x++)                                                                    \
                    line[x] = pixels[x * channels + c];                                                                \
            else                                                                                                       \
                for (int64_t x = 0; x < count; x++)                                                                    \
                    pixels[x * channels + c] = line[x];                                                                \
        }                                                                                                              \
    }
DEFINE_LINE(move_line_1, uint8_t)
DEFINE_LINE(move_line_2, uint16_t)
DEFINE_LINE(move_line_4, uint32_t)

static void move_line(int to_patches, size_t element_bytes, char *pixels, char *patch, int64_t count, int64_t channels,
                      int64_t plane)
{
    if (element_bytes == 1)
        move_line_1(to_patches, (uint8_t *)pixels, (uint8_t *)patch, count, channels, plane);
    else if (element_bytes == 2)
        move_line_2(to_patches, (uint16_t *)(void *)pixels, (uint16_t *)(void *)patch, count, channels, plane);
    else
        move_line_4(to_patches, (uint32_t *)(void *)pixels, (uint32_t *)(void *)patch, count, channels, plane);
}

static void move(const KnPatchLayout *layout, int to_patches, char *frames, char *patches)
{
    const int64_t pt = layout->patch[0], ph = layout->patch[1], pw = layout->patch[2], channels = layout->channels;
    const int64_t plane = pt * ph * pw, columns = layout->width / pw;
    const size_t bytes = layout->element_bytes;
    KN_ASSERT(layout->frames % pt == 0 && layout->height % ph == 0 && layout->width % pw == 0);
    KN_ASSERT(bytes == 1 || bytes == 2 || bytes == 4);
    for (int64_t t = 0; t < layout->frames; t++) {
        for (int64_t y = 0; y < layout->height; y++) {
            char *pixels = frames + (size_t)((t * layout->height + y) * layout->width * channels) * bytes;
            int64_t first_token = ((t / pt) * (layout->height / ph) + y / ph) * columns;
            int64_t inside = ((t % pt) * ph + y % ph) * pw;
            for (int64_t column = 0; column < columns; column++) {
                char *patch = patches + (size_t)((first_token + column) * plane * channels + inside) * bytes;
                move_line(to_patches, bytes, pixels + (size_t)(column * pw * channels) * bytes, patch, pw, channels,
                          plane);
            }
        }
    }
}

KN_VECTOR_CLONES static void split_rgb(const uint8_t *restrict rgb, int64_t count, uint8_t *restrict r,
                                       uint8_t *restrict g, uint8_t *restrict b)
{
    for (int64_t x = 0; x < count; x++) {
        r[x] = rgb[3 * x];
        g[x] = rgb[3 * x + 1];
        b[x] = rgb[3 * x + 2];
    }
}

/* `count` patches' runs of `pw` bytes, `stride` apart in the patches. */
static void place_runs(const uint8_t *plane, int64_t count, int64_t pw, int64_t stride, uint8_t *patches)
{
    if (pw == 8) { /* a constant size is one move */
        for (int64_t i = 0; i < count; i++)
            memcpy(patches + i * stride, plane + i * 8, 8);
        return;
    }
    for (int64_t i = 0; i < count; i++)
        memcpy(patches + i * stride, plane + i * pw, (size_t)pw);
}

static void patchify_rgb(const KnPatchLayout *layout, const uint8_t *frames, uint8_t *patches)
{
    const int64_t pt = layout->patch[0], ph = layout->patch[1], pw = layout->patch[2];
    const int64_t plane = pt * ph * pw, columns = layout->width / pw, stretch = SPLIT_PIXELS / pw;
    uint8_t r[SPLIT_PIXELS], g[SPLIT_PIXELS], b[SPLIT_PIXELS];
    for (int64_t line = 0; line < layout->frames * layout->height; line++) {
        int64_t t = line / layout->height, y = line % layout->height;
        int64_t first_token = ((t / pt) * (layout->height / ph) + y / ph) * columns;
        uint8_t *to = patches + first_token * 3 * plane + ((t % pt) * ph + y % ph) * pw;
        for (int64_t column = 0; column < columns; column += stretch) {
            int64_t count = columns - column < stretch ? columns - column : stretch;
            split_rgb(frames + (line * layout->width + column * pw) * 3, count * pw, r, g, b);
            place_runs(r, count, pw, 3 * plane, to + column * 3 * plane);
            place_runs(g, count, pw, 3 * plane, to + column * 3 * plane + plane);
            place_runs(b, count, pw, 3 * plane, to + column * 3 * plane + 2 * plane);
        }
    }
}

void kn_patchify(const KnPatchLayout *layout, const void *frames, void *patches)
{
    KN_ASSERT(layout->height % layout->patch[1] == 0 && layout->width % layout->patch[2] == 0);
    if (layout->channels == 3 && layout->element_bytes == 1 && layout->patch[2] <= SPLIT_PIXELS &&
        layout->frames % layout->patch[0] == 0)
        patchify_rgb(layout, frames, patches);
    else
        move(layout, 1, (char *)frames, patches);
}

void kn_unpatchify(const KnPatchLayout *layout, const void *patches, void *frames)
{
    move(layout, 0, frames, (char *)patches);
}
