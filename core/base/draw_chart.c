/* Line charts: named series over one x axis, linear or logarithmic upwards.
 *
 * A few outlying raw points must not flatten the curve: the range comes from the smoothed line and from the middle 98%
 * of the raw points, and what lies outside is clipped at the plot's edge. */
#include "core/base/draw_page.h"
#include "core/base/error.h"
#include "core/base/memory.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TICKS_MAX = 64 };

#define PAPER 0xFFFFFF
#define GRID 0xE6E8EC
#define FINE_GRID 0xF2F3F5
static const unsigned palette[] = {0x2563EB, 0xE4572E, 0x16A34A, 0x9333EA, 0xD97706, 0x0891B2, 0xDB2777, 0x4B5563};
enum { PALETTE_COUNT = sizeof palette / sizeof *palette };

typedef struct Axis {
    double low, high; /* in axis units: logarithms on a log axis */
    double from, to;  /* pixels */
    int is_log, tick_count, decimals;
    double ticks[TICKS_MAX]; /* in axis units */
    int labelled[TICKS_MAX];
} Axis;

static double to_axis(const Axis *axis, double value)
{
    return axis->is_log ? (value > 0 ? log10(value) : NAN) : value;
}

static double to_pixel(const Axis *axis, double in_axis_units)
{
    return axis->from + (in_axis_units - axis->low) / (axis->high - axis->low) * (axis->to - axis->from);
}

/* 1, 2 or 5 times a power of ten: the least such step that makes at most `most` intervals of `range`. */
static double nice_step(double range, int most)
{
    double raw = range / most, power = pow(10, floor(log10(raw)));
    static const double multiples[] = {1, 2, 5, 10};
    for (int i = 0; i < 4; i++)
        if (multiples[i] * power >= raw * (1 - 1e-9))
            return multiples[i] * power;
    return 10 * power;
}

static void add_tick(Axis *axis, double at, int labelled)
{
    double slack = 1e-9 * (axis->high - axis->low);
    if (axis->tick_count == TICKS_MAX || at < axis->low - slack || at > axis->high + slack)
        return;
    axis->labelled[axis->tick_count] = labelled;
    axis->ticks[axis->tick_count++] = at;
}

static void set_linear_ticks(Axis *axis, int most)
{
    double step = nice_step(axis->high - axis->low, most);
    double exponent = floor(log10(step) + 1e-9);
    axis->decimals = exponent < 0 ? (int)-exponent : 0;
    double first = ceil(axis->low / step - 1e-9);
    for (int i = 0; i < TICKS_MAX; i++)
        add_tick(axis, (first + i) * step, 1); /* which leaves out what lies beyond the axis */
}

/* Labels at 1, 2 and 5 of each decade when there are few decades, else at the decades alone; lines at every digit. */
static void set_log_ticks(Axis *axis)
{
    double decades = axis->high - axis->low;
    int stride = decades > 12 ? (int)ceil(decades / 12) : 1;
    for (int decade = (int)floor(axis->low); decade <= (int)ceil(axis->high); decade += stride)
        for (int digit = 1; digit < (decades > 5 ? 2 : 10); digit++) {
            int labelled = digit == 1 || decades < 1 || (decades < 2.5 && (digit == 2 || digit == 5));
            add_tick(axis, decade + log10(digit), labelled);
        }
}

static void set_range(Axis *axis, double low, double high)
{
    if (!(low <= high)) {
        low = axis->is_log ? -1 : 0;
        high = axis->is_log ? 0 : 1;
    }
    if (high - low < 1e-12 * fabs(high) + 1e-300) {
        double half = axis->is_log ? 0.15 : fabs(high) > 0 ? 0.1 * fabs(high) : 0.5;
        low -= half;
        high += half;
    }
    axis->low = low;
    axis->high = high;
}

/* "12,000", "0.25", "1e-05": `decimals` places, and powers only where plain digits would be longer. */
static void format_number(char *text, size_t bytes, double value, int decimals)
{
    double size = fabs(value);
    if (size >= 1e7 || decimals > 6) {
        snprintf(text, bytes, "%.3g", value);
        return;
    }
    char plain[64];
    snprintf(plain, sizeof plain, "%.*f", decimals, size < 1e-12 ? 0.0 : value);
    size_t digits = strcspn(plain, "."), used = 0, first = plain[0] == '-';
    for (size_t i = 0; plain[i] && used + 2 < bytes; i++) {
        if (i > first && i < digits && (digits - i) % 3 == 0)
            text[used++] = ',';
        text[used++] = plain[i];
    }
    text[used] = '\0';
}

static void format_tick(char *text, size_t bytes, const Axis *axis, double tick)
{
    if (axis->is_log)
        snprintf(text, bytes, "%.6g", pow(10, tick));
    else
        format_number(text, bytes, tick, axis->decimals);
}

/* A centred moving average over 1/50 of the points, cut at the ends; what is not finite is left out. */
static double *moving_average(const KnSeries *series)
{
    int half = series->count / 100 > 0 ? series->count / 100 : 1;
    double *mean = kn_alloc((size_t)series->count * sizeof *mean);
    double sum = 0;
    int low = 0, high = 0, inside = 0;
    for (int i = 0; i < series->count; i++) {
        for (; high < series->count && high <= i + half; high++)
            if (isfinite(series->y[high])) {
                sum += series->y[high];
                inside++;
            }
        for (; low < i - half; low++)
            if (isfinite(series->y[low])) {
                sum -= series->y[low];
                inside--;
            }
        mean[i] = inside ? sum / inside : NAN;
    }
    return mean;
}

static int compare_doubles(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

/* Widens [low, high] to the middle `share` of the values that the axis can show. */
static void widen(const Axis *axis, const double *values, int count, double share, double *low, double *high)
{
    double *shown = kn_alloc((size_t)count * sizeof *shown);
    int kept = 0;
    for (int i = 0; i < count; i++) {
        double value = to_axis(axis, values[i]);
        if (isfinite(value))
            shown[kept++] = value;
    }
    if (kept) {
        qsort(shown, (size_t)kept, sizeof *shown, compare_doubles);
        int cut = (int)((kept - 1) * (1 - share) / 2);
        *low = fmin(*low, shown[cut]);
        *high = fmax(*high, shown[kept - 1 - cut]);
    }
    free(shown);
}

typedef struct Plot {
    const KnChart *chart;
    Axis x, y;
    double **smoothed; /* a row per series; NULL where it is not smoothed */
} Plot;

static void find_ranges(Plot *plot)
{
    double x_low = INFINITY, x_high = -INFINITY, y_low = INFINITY, y_high = -INFINITY;
    for (int i = 0; i < plot->chart->series_count; i++) {
        const KnSeries *series = &plot->chart->series[i];
        widen(&plot->x, series->x, series->count, 1, &x_low, &x_high);
        widen(&plot->y, series->y, series->count, plot->smoothed[i] ? 0.98 : 1, &y_low, &y_high);
        if (plot->smoothed[i])
            widen(&plot->y, plot->smoothed[i], series->count, 1, &y_low, &y_high);
    }
    set_range(&plot->x, x_low, x_high);
    set_range(&plot->y, y_low, y_high);
    double room = 0.04 * (plot->y.high - plot->y.low);
    int touches_zero = !plot->y.is_log && plot->y.low >= 0 && plot->y.low < 0.3 * plot->y.high;
    plot->y.low = touches_zero ? 0 : plot->y.low - room;
    plot->y.high += room;
}

static double widest_label(cairo_t *cr, const Axis *axis)
{
    double widest = 0;
    char label[64];
    for (int i = 0; i < axis->tick_count; i++)
        if (axis->labelled[i]) {
            format_tick(label, sizeof label, axis, axis->ticks[i]);
            widest = fmax(widest, kn_page_text_width(cr, label));
        }
    return widest;
}

static void draw_grid(cairo_t *cr, const Plot *plot)
{
    const Axis *x = &plot->x, *y = &plot->y;
    char label[64];
    cairo_set_line_width(cr, 1);
    kn_page_font(cr, 13, 0);
    for (int i = 0; i < y->tick_count; i++) {
        double at = floor(to_pixel(y, y->ticks[i])) + 0.5;
        kn_page_colour(cr, y->labelled[i] ? GRID : FINE_GRID, 1);
        cairo_move_to(cr, x->from, at);
        cairo_line_to(cr, x->to, at);
        cairo_stroke(cr);
        if (!y->labelled[i])
            continue;
        format_tick(label, sizeof label, y, y->ticks[i]);
        kn_page_colour(cr, KN_SOFT_INK, 1);
        kn_page_text(cr, x->from - 10, at + 4.5, 1, label);
    }
    for (int i = 0; i < x->tick_count; i++) {
        double at = floor(to_pixel(x, x->ticks[i])) + 0.5;
        kn_page_colour(cr, KN_SOFT_INK, 1);
        cairo_move_to(cr, at, y->from);
        cairo_line_to(cr, at, y->from + 5);
        cairo_stroke(cr);
        format_tick(label, sizeof label, x, x->ticks[i]);
        kn_page_text(cr, at, y->from + 21, 0.5, label);
    }
    kn_page_colour(cr, KN_SOFT_INK, 1);
    cairo_move_to(cr, x->from, floor(y->from) + 0.5);
    cairo_line_to(cr, x->to, floor(y->from) + 0.5);
    cairo_stroke(cr);
}

/* The polyline of a series. Where several points share a pixel column only its lowest and highest are drawn, so that
 * a run of a million steps costs no more than the page has columns. */
static void trace(cairo_t *cr, const Plot *plot, const KnSeries *series, const double *values)
{
    int pen_down = 0;
    for (int i = 0; i < series->count;) {
        double x = to_pixel(&plot->x, series->x[i]), column = floor(2 * x);
        double low = INFINITY, high = -INFINITY, last = NAN;
        for (; i < series->count && floor(2 * to_pixel(&plot->x, series->x[i])) == column; i++) {
            last = to_pixel(&plot->y, to_axis(&plot->y, values[i]));
            low = fmin(low, last);
            high = fmax(high, last);
        }
        if (low <= high) {
            (pen_down ? cairo_line_to : cairo_move_to)(cr, x, low);
            cairo_line_to(cr, x, high);
        }
        pen_down = isfinite(last);
        if (pen_down)
            cairo_line_to(cr, x, last);
    }
}

static void draw_markers(cairo_t *cr, const Plot *plot, const KnSeries *series)
{
    for (int i = 0; i < series->count; i++) {
        double x = to_pixel(&plot->x, series->x[i]), y = to_pixel(&plot->y, to_axis(&plot->y, series->y[i]));
        if (!isfinite(x) || !isfinite(y))
            continue;
        cairo_new_sub_path(cr);
        cairo_arc(cr, x, y, 3.5, 0, 2 * M_PI);
        cairo_fill(cr);
    }
}

static void draw_series(cairo_t *cr, const Plot *plot)
{
    cairo_save(cr);
    cairo_rectangle(cr, plot->x.from, plot->y.to - 2, plot->x.to - plot->x.from + 4, plot->y.from - plot->y.to + 2);
    cairo_clip(cr);
    cairo_set_line_join(cr, CAIRO_LINE_JOIN_ROUND);
    cairo_set_line_cap(cr, CAIRO_LINE_CAP_ROUND);
    for (int pass = 0; pass < 2; pass++) /* every raw line lies under every strong one */
        for (int i = 0; i < plot->chart->series_count; i++) {
            const KnSeries *series = &plot->chart->series[i];
            unsigned colour = palette[i % PALETTE_COUNT];
            if (pass == 0 && !plot->smoothed[i])
                continue;
            kn_page_colour(cr, colour, pass == 0 ? 0.22 : 1);
            cairo_set_line_width(cr, pass == 0 ? 1 : 2.2);
            trace(cr, plot, series, pass && plot->smoothed[i] ? plot->smoothed[i] : series->y);
            cairo_stroke(cr);
            if (pass && series->markers)
                draw_markers(cr, plot, series);
        }
    cairo_restore(cr);
}

/* The last finite value of what is drawn strong. */
static double last_value(const Plot *plot, int series)
{
    const double *values = plot->smoothed[series] ? plot->smoothed[series] : plot->chart->series[series].y;
    for (int i = plot->chart->series[series].count; i-- > 0;)
        if (isfinite(values[i]))
            return values[i];
    return NAN;
}

/* One line over the plot: swatch, name and last value of each series. */
static void draw_legend(cairo_t *cr, const Plot *plot, double y)
{
    double x = plot->x.from;
    for (int i = 0; i < plot->chart->series_count; i++) {
        char value[48];
        char *name = kn_page_printable(plot->chart->series[i].name);
        kn_page_colour(cr, palette[i % PALETTE_COUNT], 1);
        cairo_set_line_width(cr, 3);
        cairo_move_to(cr, x, y - 4.5);
        cairo_line_to(cr, x + 20, y - 4.5);
        cairo_stroke(cr);
        kn_page_font(cr, 14, 0);
        kn_page_colour(cr, KN_INK, 1);
        kn_page_text(cr, x + 28, y, 0, name);
        x += 28 + kn_page_text_width(cr, name) + 8;
        if (isfinite(last_value(plot, i))) {
            snprintf(value, sizeof value, "%.3g", last_value(plot, i));
            kn_page_colour(cr, KN_SOFT_INK, 1);
            kn_page_text(cr, x, y, 0, value);
            x += kn_page_text_width(cr, value);
        }
        x += 30;
        free(name);
    }
}

static void draw_plot(cairo_t *cr, Plot *plot, int width, int height)
{
    const KnChart *chart = plot->chart;
    double top = 26;
    find_ranges(plot);
    if (plot->y.is_log)
        set_log_ticks(&plot->y);
    else
        set_linear_ticks(&plot->y, height / 75 > 2 ? height / 75 : 2);
    set_linear_ticks(&plot->x, width / 120 > 2 ? width / 120 : 2);
    kn_page_font(cr, 13, 0);
    plot->x.from = 30 + widest_label(cr, &plot->y) + 10 + (chart->y_label ? 26 : 0);
    plot->x.to = width - 36;
    plot->y.from = height - 42 - (chart->x_label ? 26 : 0);
    if (chart->title) {
        kn_page_font(cr, 20, 1);
        kn_page_colour(cr, KN_INK, 1);
        kn_page_text(cr, plot->x.from, top + 16, 0, chart->title);
        top += 30;
    }
    if (chart->subtitle) {
        kn_page_font(cr, 14, 0);
        kn_page_colour(cr, KN_SOFT_INK, 1);
        kn_page_text(cr, plot->x.from, top + 14, 0, chart->subtitle);
        top += 24;
    }
    draw_legend(cr, plot, top + 20);
    plot->y.to = top + 40;
    draw_grid(cr, plot);
    draw_series(cr, plot);
    kn_page_font(cr, 14, 0);
    kn_page_colour(cr, KN_INK, 1);
    if (chart->x_label)
        kn_page_text(cr, (plot->x.from + plot->x.to) / 2, height - 20, 0.5, chart->x_label);
    if (chart->y_label) {
        cairo_save(cr);
        cairo_translate(cr, 32, (plot->y.from + plot->y.to) / 2);
        cairo_rotate(cr, -M_PI / 2);
        kn_page_text(cr, 0, 0, 0.5, chart->y_label);
        cairo_restore(cr);
    }
}

int kn_draw_chart(const char *path, const KnChart *chart)
{
    int width = chart->width > 0 ? chart->width : 1280, height = chart->height > 0 ? chart->height : 720;
    int points = 0;
    for (int i = 0; i < chart->series_count; i++)
        points += chart->series[i].count;
    if (!points)
        return kn_fail(KN_EINPUT, "cannot draw %s: the chart has no points", path);
    KN_TRY(kn_page_check(path, "the chart", width, height));
    if (width < 320 || height < 240)
        return kn_fail(KN_EINPUT, "cannot draw %s: a chart needs 320x240 pixels, not %dx%d", path, width, height);
    cairo_surface_t *surface;
    cairo_t *cr;
    KN_TRY(kn_page_open(&surface, &cr, path, width, height, PAPER));
    Plot plot = {.chart = chart, .y.is_log = chart->log_y};
    plot.smoothed = kn_alloc((size_t)chart->series_count * sizeof *plot.smoothed);
    for (int i = 0; i < chart->series_count; i++)
        if (chart->series[i].smooth && chart->series[i].count > 2)
            plot.smoothed[i] = moving_average(&chart->series[i]);
    draw_plot(cr, &plot, width, height);
    for (int i = 0; i < chart->series_count; i++)
        free(plot.smoothed[i]);
    free(plot.smoothed);
    return kn_page_save(surface, cr, path);
}
