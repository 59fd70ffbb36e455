/* Pictures for people: contact sheets, line charts and plain PNG files. Only core/base/draw*.c know cairo.
 *
 * Every PNG is made in memory and then written atomically: under its name stands a whole picture or none. All
 * functions return KN_OK, KN_EINPUT (nothing to draw), KN_EMEMORY or KN_EIO; nothing is kept of the arguments. */
#ifndef KN_BASE_DRAW_H
#define KN_BASE_DRAW_H

#include <stdint.h>

typedef struct KnImage {
    int width, height;
    const uint8_t *pixels; /* RGB, 3 bytes a pixel, rows from the top without padding; borrowed */
} KnImage;

int kn_draw_png(const char *path, const KnImage *image);

/* A contact sheet: cells of one strip of frames with a caption under it, laid out in columns under a title. */
typedef struct KnSheetCell {
    const char *caption; /* NULL = none; broken into three lines at most, then cut with an ellipsis */
    int frame_count;
    const KnImage *frames; /* side by side; cells of one sheet may differ in size and count */
    int mark;              /* a dot before the caption: 1 green (right), -1 red (wrong), 0 none */
} KnSheetCell;

typedef struct KnSheet {
    const char *title, *subtitle; /* NULL = none */
    int cell_count;
    const KnSheetCell *cells;
    int columns;      /* cells in a row; 0 = chosen for a pleasant shape */
    int frame_height; /* height in pixels at which a frame is drawn, scaled by whole numbers where it grows; 0 = 96 */
} KnSheet;

int kn_draw_sheet(const char *path, const KnSheet *sheet);

/* A line chart: named series over a common x axis. */
typedef struct KnSeries {
    const char *name; /* for the legend */
    int count;
    const double *x, *y; /* x finite and ascending; where y is not finite (or not positive on a log axis) is a gap */
    int smooth;          /* 1: the raw points faint, a moving average over about 2% of them strong */
    int markers;         /* 1: a dot on every point (few points: validation) */
} KnSeries;

typedef struct KnChart {
    const char *title, *subtitle, *x_label, *y_label; /* NULL = none */
    int log_y;
    int series_count;
    const KnSeries *series;
    int width, height; /* pixels; 0 = 1280 x 720 */
} KnChart;

int kn_draw_chart(const char *path, const KnChart *chart);

#endif
