/* Cutting frames into patches and putting them together again; both are one walk over (t, y, x) boxes that moves
 * single elements, specialised by element size. */
#include "data/patchify.h"

#include "core/base/error.h"

#include <string.h>

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

void kn_patchify(const KnPatchLayout *layout, const void *frames, void *patches)
{
    move(layout, 1, (char *)frames, patches);
}

void kn_unpatchify(const KnPatchLayout *layout, const void *patches, void *frames)
{
    move(layout, 0, frames, (char *)patches);
}
