/* Contact sheets: strips of frames with captions, in columns under a title.
 *
 * Small frames grow by whole numbers without smoothing, so that a viewer sees the pixels that were made; large ones
 * shrink with a filter. A strip too long for a page is broken into lines. */
#include "core/base/draw_page.h"
#include "core/base/error.h"
#include "core/base/memory.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SHEET_PAPER 0xF4F4F2
#define GREEN 0x16A34A
#define RED 0xDC2626
enum { MARGIN = 28, FRAME_GAP = 2, CELL_GAP = 22, CAPTION_LINE = 18, CAPTION_LINES = 3, STRIP_MAX = 1800 };
#define CAPTION_SIZE 13.0

typedef struct CellLayout {
    double scale;
    int frame_width, frame_height; /* of the largest frame, as drawn */
    int per_line, lines;           /* frames in a line of the strip, and lines */
    int width, height;             /* of the whole strip */
    int caption_lines;
    char caption[CAPTION_LINES][256];
} CellLayout;

static int drawn_side(int side, double scale)
{
    int drawn = (int)(side * scale + 0.5);
    return drawn > 0 ? drawn : 1;
}

static void lay_out_strip(CellLayout *layout, const KnSheetCell *cell, int target)
{
    int width = 1, height = 1;
    for (int i = 0; i < cell->frame_count; i++) {
        width = cell->frames[i].width > width ? cell->frames[i].width : width;
        height = cell->frames[i].height > height ? cell->frames[i].height : height;
    }
    layout->scale = height <= target ? (double)(target / height) : (double)target / height;
    layout->frame_width = drawn_side(width, layout->scale);
    layout->frame_height = drawn_side(height, layout->scale);
    layout->per_line = (STRIP_MAX + FRAME_GAP) / (layout->frame_width + FRAME_GAP);
    if (layout->per_line > cell->frame_count)
        layout->per_line = cell->frame_count;
    if (layout->per_line < 1)
        layout->per_line = 1;
    layout->lines = (cell->frame_count + layout->per_line - 1) / layout->per_line;
    layout->width = layout->per_line * (layout->frame_width + FRAME_GAP) - FRAME_GAP;
    layout->height = layout->lines * (layout->frame_height + FRAME_GAP) - FRAME_GAP;
}

/* The bytes of `text` that fit into `room` pixels, ending between words where that leaves anything. */
static size_t fitting_bytes(cairo_t *cr, const char *text, double room)
{
    char part[256];
    size_t best = 0, best_word = 0;
    for (size_t end = 1; end < sizeof part - 4; end++) {
        if ((text[end] & 0xC0) == 0x80)
            continue;
        memcpy(part, text, end);
        part[end] = '\0';
        if (kn_page_text_width(cr, part) > room)
            break;
        best = end;
        if (text[end] == ' ' || text[end] == '\0')
            best_word = end;
        if (text[end] == '\0')
            break;
    }
    return best_word ? best_word : best;
}

static void lay_out_caption(CellLayout *layout, cairo_t *cr, const KnSheetCell *cell, double room)
{
    if (!cell->caption || !cell->caption[0])
        return;
    char *clean = kn_page_printable(cell->caption);
    const char *rest = clean;
    while (*rest && layout->caption_lines < CAPTION_LINES) {
        int last = layout->caption_lines == CAPTION_LINES - 1;
        size_t bytes = fitting_bytes(cr, rest, room);
        int cut = last && rest[bytes];
        if (cut)
            bytes = fitting_bytes(cr, rest, room - kn_page_text_width(cr, "\u2026"));
        if (!bytes)
            break;
        snprintf(layout->caption[layout->caption_lines++], sizeof layout->caption[0], "%.*s%s", (int)bytes, rest,
                 cut ? "\u2026" : "");
        rest += bytes;
        rest += strspn(rest, " ");
    }
    free(clean);
}

typedef struct SheetLayout {
    CellLayout *cells;
    int *row_height, *row_caption;
    int columns, rows, column_width, top, width, height;
} SheetLayout;

static void size_page(SheetLayout *page, const KnSheet *sheet)
{
    page->rows = (sheet->cell_count + page->columns - 1) / page->columns;
    page->width = 2 * MARGIN + page->columns * (page->column_width + CELL_GAP) - CELL_GAP;
    page->height = page->top + MARGIN - CELL_GAP;
    for (int row = 0; row < page->rows; row++) {
        page->row_height[row] = page->row_caption[row] = 0;
        for (int i = row * page->columns; i < (row + 1) * page->columns && i < sheet->cell_count; i++) {
            int caption = page->cells[i].caption_lines * CAPTION_LINE + (page->cells[i].caption_lines ? 6 : 0);
            page->row_height[row] =
                page->cells[i].height > page->row_height[row] ? page->cells[i].height : page->row_height[row];
            page->row_caption[row] = caption > page->row_caption[row] ? caption : page->row_caption[row];
        }
        page->height += page->row_height[row] + page->row_caption[row] + CELL_GAP;
    }
}

/* The number of columns whose page comes nearest to 4:3 and is at most 2400 pixels wide. */
static void choose_columns(SheetLayout *page, const KnSheet *sheet)
{
    int best = 1;
    double best_distance = INFINITY;
    for (int columns = 1; columns <= sheet->cell_count; columns++) {
        page->columns = columns;
        size_page(page, sheet);
        double distance = fabs(log((double)page->width / page->height / (4.0 / 3)));
        if (columns > 1 && page->width > 2400)
            break;
        if (distance < best_distance) {
            best_distance = distance;
            best = columns;
        }
    }
    page->columns = best;
}

static void lay_out_sheet(SheetLayout *page, cairo_t *cr, const KnSheet *sheet)
{
    int target = sheet->frame_height > 0 ? sheet->frame_height : 96;
    page->column_width = 150;
    for (int i = 0; i < sheet->cell_count; i++) {
        lay_out_strip(&page->cells[i], &sheet->cells[i], target);
        if (page->cells[i].width > page->column_width)
            page->column_width = page->cells[i].width;
    }
    kn_page_font(cr, CAPTION_SIZE, 0);
    for (int i = 0; i < sheet->cell_count; i++)
        lay_out_caption(&page->cells[i], cr, &sheet->cells[i], page->column_width - (sheet->cells[i].mark ? 16 : 0));
    page->top =
        MARGIN + (sheet->title ? 34 : 0) + (sheet->subtitle ? 22 : 0) + (sheet->title || sheet->subtitle ? 10 : 0);
    page->columns = sheet->columns > 0 ? sheet->columns : 0;
    if (page->columns > sheet->cell_count)
        page->columns = sheet->cell_count;
    if (!page->columns)
        choose_columns(page, sheet);
    size_page(page, sheet);
}

static int draw_frame(cairo_t *cr, const char *path, const KnImage *frame, const CellLayout *layout, int x, int y)
{
    cairo_surface_t *surface;
    KN_TRY(kn_page_image(&surface, path, frame));
    cairo_save(cr);
    cairo_translate(cr, x, y);
    cairo_rectangle(cr, 0, 0, drawn_side(frame->width, layout->scale), drawn_side(frame->height, layout->scale));
    cairo_clip(cr);
    cairo_scale(cr, layout->scale, layout->scale);
    cairo_set_source_surface(cr, surface, 0, 0);
    cairo_pattern_set_filter(cairo_get_source(cr), layout->scale >= 1 ? CAIRO_FILTER_NEAREST : CAIRO_FILTER_GOOD);
    cairo_pattern_set_extend(cairo_get_source(cr), CAIRO_EXTEND_PAD);
    cairo_paint(cr);
    cairo_restore(cr);
    cairo_surface_destroy(surface);
    return KN_OK;
}

static int draw_cell(cairo_t *cr, const char *path, const KnSheetCell *cell, const CellLayout *layout, int x, int y,
                     int strip_height)
{
    for (int i = 0; i < cell->frame_count; i++)
        KN_TRY(draw_frame(cr, path, &cell->frames[i], layout,
                          x + i % layout->per_line * (layout->frame_width + FRAME_GAP),
                          y + i / layout->per_line * (layout->frame_height + FRAME_GAP)));
    double baseline = y + strip_height + 6 + CAPTION_SIZE;
    int indent = cell->mark ? 16 : 0;
    if (cell->mark && layout->caption_lines) {
        kn_page_colour(cr, cell->mark > 0 ? GREEN : RED, 1);
        cairo_arc(cr, x + 5, baseline - 4.5, 4.5, 0, 2 * M_PI);
        cairo_fill(cr);
    }
    kn_page_font(cr, CAPTION_SIZE, 0);
    kn_page_colour(cr, KN_INK, 1);
    for (int line = 0; line < layout->caption_lines; line++)
        kn_page_text(cr, x + indent, baseline + line * CAPTION_LINE, 0, layout->caption[line]);
    return KN_OK;
}

static int draw_cells(cairo_t *cr, const char *path, const KnSheet *sheet, const SheetLayout *page)
{
    if (sheet->title) {
        kn_page_font(cr, 22, 1);
        kn_page_colour(cr, KN_INK, 1);
        kn_page_text(cr, MARGIN, MARGIN + 20, 0, sheet->title);
    }
    if (sheet->subtitle) {
        kn_page_font(cr, 14, 0);
        kn_page_colour(cr, KN_SOFT_INK, 1);
        kn_page_text(cr, MARGIN, MARGIN + (sheet->title ? 34 : 0) + 14, 0, sheet->subtitle);
    }
    int y = page->top;
    for (int row = 0; row < page->rows; row++) {
        for (int column = 0; column < page->columns; column++) {
            int i = row * page->columns + column;
            if (i < sheet->cell_count)
                KN_TRY(draw_cell(cr, path, &sheet->cells[i], &page->cells[i],
                                 MARGIN + column * (page->column_width + CELL_GAP), y, page->row_height[row]));
        }
        y += page->row_height[row] + page->row_caption[row] + CELL_GAP;
    }
    return KN_OK;
}

static double title_width(cairo_t *cr, const KnSheet *sheet)
{
    char *title = kn_page_printable(sheet->title), *subtitle = kn_page_printable(sheet->subtitle);
    kn_page_font(cr, 22, 1);
    double width = kn_page_text_width(cr, title);
    kn_page_font(cr, 14, 0);
    if (kn_page_text_width(cr, subtitle) > width)
        width = kn_page_text_width(cr, subtitle);
    free(title);
    free(subtitle);
    return width;
}

int kn_draw_sheet(const char *path, const KnSheet *sheet)
{
    if (sheet->cell_count < 1)
        return kn_fail(KN_EINPUT, "cannot draw %s: a contact sheet of no cells", path);
    SheetLayout page = {.cells = kn_alloc((size_t)sheet->cell_count * sizeof(CellLayout)),
                        .row_height = kn_alloc((size_t)sheet->cell_count * sizeof(int)),
                        .row_caption = kn_alloc((size_t)sheet->cell_count * sizeof(int))};
    cairo_surface_t *ruler = NULL, *surface = NULL;
    cairo_t *cr = NULL;
    int code;
    KN_TRY_GOTO(code, kn_page_surface(&ruler, path, 1, 1), done); /* texts are measured before the page exists */
    cr = cairo_create(ruler);
    lay_out_sheet(&page, cr, sheet);
    double least_width = title_width(cr, sheet) + 2 * MARGIN;
    cairo_destroy(cr);
    cairo_surface_destroy(ruler);
    if (least_width > page.width && least_width < STRIP_MAX)
        page.width = (int)ceil(least_width);
    KN_TRY_GOTO(code, kn_page_check(path, "the contact sheet", page.width, page.height), done);
    KN_TRY_GOTO(code, kn_page_open(&surface, &cr, path, page.width, page.height, SHEET_PAPER), done);
    code = draw_cells(cr, path, sheet, &page);
    if (code == KN_OK) {
        code = kn_page_save(surface, cr, path);
    } else {
        cairo_destroy(cr);
        cairo_surface_destroy(surface);
    }
done:
    free(page.cells);
    free(page.row_height);
    free(page.row_caption);
    return code;
}
