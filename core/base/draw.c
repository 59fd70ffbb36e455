/* A page to draw on, and plain PNG files.
 *
 * cairo in our words: colours, text whose width is known, pages that are written whole or not at all. The contact sheet
 * (draw_sheet.c) and the line chart (draw_chart.c) lay out first, with the measured width of every text, then draw
 * once. Leans on file.c for the atomic write. */
#include "core/base/draw.h"

#include "core/base/draw_page.h"
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/memory.h"
#include "core/base/text.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_PIXELS_A_SIDE = 30000 };

#define FONT "DejaVu Sans"

void kn_page_colour(cairo_t *cr, unsigned rgb, double alpha)
{
    cairo_set_source_rgba(cr, (rgb >> 16 & 255) / 255.0, (rgb >> 8 & 255) / 255.0, (rgb & 255) / 255.0, alpha);
}

void kn_page_font(cairo_t *cr, double size, int bold)
{
    cairo_select_font_face(cr, FONT, CAIRO_FONT_SLANT_NORMAL, bold ? CAIRO_FONT_WEIGHT_BOLD : CAIRO_FONT_WEIGHT_NORMAL);
    cairo_set_font_size(cr, size);
}

/* cairo refuses a whole drawing for one malformed byte: such text is shown with question marks. free() it. */
char *kn_page_printable(const char *text)
{
    char *copy = kn_strdup(text ? text : "");
    int valid = kn_is_utf8(copy, strlen(copy));
    for (char *at = copy; *at; at++)
        if ((unsigned char)*at < 32 || (!valid && (unsigned char)*at > 126))
            *at = (unsigned char)*at < 32 ? ' ' : '?';
    return copy;
}

double kn_page_text_width(cairo_t *cr, const char *text)
{
    cairo_text_extents_t extents;
    cairo_text_extents(cr, text, &extents);
    return extents.x_advance;
}

/* `align` 0 puts the left end at x, 0.5 the middle, 1 the right end; y is the baseline. */
void kn_page_text(cairo_t *cr, double x, double y, double align, const char *text)
{
    char *clean = kn_page_printable(text);
    cairo_move_to(cr, floor(x - align * kn_page_text_width(cr, clean) + 0.5), floor(y + 0.5));
    cairo_show_text(cr, clean);
    free(clean);
}

int kn_page_check(const char *path, const char *what, double width, double height)
{
    if (width < 1 || height < 1)
        return kn_fail(KN_EINPUT, "cannot draw %s: %s has no pixels", path, what);
    if (width > MOST_PIXELS_A_SIDE || height > MOST_PIXELS_A_SIDE)
        return kn_fail(KN_EINPUT, "cannot draw %s: %s would be %.0fx%.0f pixels, the most is %d a side", path, what,
                       width, height, MOST_PIXELS_A_SIDE);
    return KN_OK;
}

int kn_page_surface(cairo_surface_t **surface, const char *path, int width, int height)
{
    *surface = cairo_image_surface_create(CAIRO_FORMAT_RGB24, width, height);
    if (cairo_surface_status(*surface) == CAIRO_STATUS_SUCCESS)
        return KN_OK;
    cairo_surface_destroy(*surface);
    *surface = NULL;
    return kn_fail(KN_EMEMORY, "not enough memory to draw %s: %dx%d pixels", path, width, height);
}

/* Surface and pen for a page filled with its paper colour. */
int kn_page_open(cairo_surface_t **surface, cairo_t **cr, const char *path, int width, int height, unsigned paper)
{
    KN_TRY(kn_page_surface(surface, path, width, height));
    *cr = cairo_create(*surface);
    kn_page_colour(*cr, paper, 1);
    cairo_paint(*cr);
    return KN_OK;
}

static cairo_status_t append_bytes(void *text, const unsigned char *bytes, unsigned length)
{
    kn_text_appendn(text, (const char *)bytes, length);
    return CAIRO_STATUS_SUCCESS;
}

/* Releases pen (may be NULL) and surface whatever happens. */
int kn_page_save(cairo_surface_t *surface, cairo_t *cr, const char *path)
{
    KnText png = {0};
    cairo_status_t status = cr ? cairo_status(cr) : CAIRO_STATUS_SUCCESS;
    if (cr)
        cairo_destroy(cr);
    cairo_surface_flush(surface);
    if (status == CAIRO_STATUS_SUCCESS)
        status = cairo_surface_write_to_png_stream(surface, append_bytes, &png);
    cairo_surface_destroy(surface);
    int code = status == CAIRO_STATUS_SUCCESS
                   ? kn_file_write(path, png.bytes, png.length)
                   : kn_fail(KN_EMEMORY, "cannot draw %s: %s", path, cairo_status_to_string(status));
    kn_text_clear(&png);
    return code;
}

int kn_page_image(cairo_surface_t **surface, const char *path, const KnImage *image)
{
    KN_TRY(kn_page_check(path, "a picture", image->width, image->height));
    KN_TRY(kn_page_surface(surface, path, image->width, image->height));
    unsigned char *rows = cairo_image_surface_get_data(*surface);
    int stride = cairo_image_surface_get_stride(*surface);
    const uint8_t *rgb = image->pixels;
    cairo_surface_flush(*surface);
    for (int y = 0; y < image->height; y++) {
        uint32_t *row = (uint32_t *)(void *)(rows + (size_t)y * (size_t)stride);
        for (int x = 0; x < image->width; x++, rgb += 3)
            row[x] = (uint32_t)rgb[0] << 16 | (uint32_t)rgb[1] << 8 | rgb[2];
    }
    cairo_surface_mark_dirty(*surface);
    return KN_OK;
}

int kn_draw_png(const char *path, const KnImage *image)
{
    cairo_surface_t *surface;
    KN_TRY(kn_page_image(&surface, path, image));
    return kn_page_save(surface, NULL, path);
}
