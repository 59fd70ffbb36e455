/* What the drawing files share: a page, its colours and its text. For core/base/draw*.c alone. */
#ifndef KN_BASE_DRAW_PAGE_H
#define KN_BASE_DRAW_PAGE_H

#include "core/base/draw.h"

#include <cairo.h>

#define KN_INK 0x1F2430
#define KN_SOFT_INK 0x6B7280

void kn_page_colour(cairo_t *cr, unsigned rgb, double alpha);
void kn_page_font(cairo_t *cr, double size, int bold);

/* cairo refuses a whole drawing for one malformed byte: such text is shown with question marks, NULL as "". free() it.
 */
char *kn_page_printable(const char *text);
double kn_page_text_width(cairo_t *cr, const char *text); /* of printable text */

/* `align` 0 puts the left end at x, 0.5 the middle, 1 the right end; y is the baseline. Any text, or NULL. */
void kn_page_text(cairo_t *cr, double x, double y, double align, const char *text);

/* KN_EINPUT when `what`, part of the picture `path`, has no pixels or too many. */
int kn_page_check(const char *path, const char *what, double width, double height);

int kn_page_surface(cairo_surface_t **surface, const char *path, int width, int height);
int kn_page_image(cairo_surface_t **surface, const char *path, const KnImage *image);

/* Surface and pen for a page filled with its paper colour. */
int kn_page_open(cairo_surface_t **surface, cairo_t **cr, const char *path, int width, int height, unsigned paper);

/* Writes the PNG atomically; releases pen (may be NULL) and surface whatever happens. */
int kn_page_save(cairo_surface_t *surface, cairo_t *cr, const char *path);

#endif
