/* Palette by variance-based cutting: colours are counted in cells of 4x4x4 values; the box of cells with the largest
 * squared error is cut at its mean along its widest axis until there are 256 boxes (Wan, Wong and Prusinkiewicz 1990).
 * Each cell then takes the nearest box's mean. A clip of at most 256 cells of one colour each is kept exactly. */
#include "data/video_palette.h"

#include "core/base/memory.h"

#include <stdlib.h>
#include <string.h>

enum { CELL_BITS = 6, CELLS = 1 << (3 * CELL_BITS), COLOURS = 256 };

typedef struct Cell {
    int64_t count, sum[3];
    double square; /* sum of squared values */
    int key;
} Cell;

/* A run of cells[first, end). */
typedef struct Box {
    int first, end, axis;
    double error; /* squared error around the mean */
    double mean[3];
} Box;

struct KnPalette {
    Cell *all;      /* by key */
    Cell *cells;    /* those that occur */
    uint8_t *index; /* by key */
    int cell_count, box_count;
    Box boxes[COLOURS];
};

KnPalette *kn_palette_create(void)
{
    KnPalette *palette = kn_alloc(sizeof *palette);
    palette->all = kn_alloc(CELLS * sizeof *palette->all);
    palette->index = kn_alloc(CELLS);
    return palette;
}

void kn_palette_destroy(KnPalette *palette)
{
    if (!palette)
        return;
    free(palette->all);
    free(palette->cells);
    free(palette->index);
    free(palette);
}

static int key_of(const uint8_t *rgb)
{
    const int drop = 8 - CELL_BITS;
    return (rgb[0] >> drop) << (2 * CELL_BITS) | (rgb[1] >> drop) << CELL_BITS | rgb[2] >> drop;
}

void kn_palette_count(KnPalette *palette, const uint8_t *rgb, size_t pixels)
{
    for (size_t i = 0; i < pixels; i++, rgb += 3) {
        Cell *cell = &palette->all[key_of(rgb)];
        cell->count++;
        for (int c = 0; c < 3; c++) {
            cell->sum[c] += rgb[c];
            cell->square += (double)rgb[c] * rgb[c];
        }
    }
}

static void measure(const KnPalette *palette, Box *box)
{
    double count = 0, sum[3] = {0}, spread[3] = {0}, square = 0;
    for (int i = box->first; i < box->end; i++) {
        const Cell *cell = &palette->cells[i];
        count += (double)cell->count;
        square += cell->square;
        for (int c = 0; c < 3; c++) {
            double value = (double)cell->sum[c] / (double)cell->count;
            sum[c] += (double)cell->sum[c];
            spread[c] += (double)cell->count * value * value;
        }
    }
    box->error = square;
    box->axis = 0;
    for (int c = 0; c < 3; c++) {
        box->mean[c] = sum[c] / count;
        box->error -= sum[c] * box->mean[c];
        spread[c] -= sum[c] * box->mean[c];
        if (spread[c] > spread[box->axis])
            box->axis = c;
    }
}

/* Moves the cells below the mean of the widest axis to the front; gives where the others begin. */
static int partition(KnPalette *palette, const Box *box)
{
    int middle = box->first;
    for (int i = box->first; i < box->end; i++) {
        const Cell *cell = &palette->cells[i];
        if ((double)cell->sum[box->axis] > box->mean[box->axis] * (double)cell->count)
            continue;
        Cell swap = palette->cells[middle];
        palette->cells[middle++] = *cell;
        palette->cells[i] = swap;
    }
    return middle;
}

static void cut_boxes(KnPalette *palette)
{
    palette->boxes[0] = (Box){.first = 0, .end = palette->cell_count};
    palette->box_count = 1;
    measure(palette, &palette->boxes[0]);
    while (palette->box_count < COLOURS) {
        Box *worst = NULL;
        for (int i = 0; i < palette->box_count; i++) {
            Box *box = &palette->boxes[i];
            if (box->end - box->first > 1 && (!worst || box->error > worst->error))
                worst = box;
        }
        if (!worst)
            return;
        int middle = partition(palette, worst);
        if (middle == worst->first || middle == worst->end)
            middle = (worst->first + worst->end) / 2;
        Box *other = &palette->boxes[palette->box_count++];
        *other = (Box){.first = middle, .end = worst->end};
        worst->end = middle;
        measure(palette, worst);
        measure(palette, other);
    }
}

static int nearest_box(const KnPalette *palette, const Cell *cell)
{
    int best = 0;
    double least = 1e300;
    for (int i = 0; i < palette->box_count; i++) {
        double distance = 0;
        for (int c = 0; c < 3; c++) {
            double d = (double)cell->sum[c] / (double)cell->count - palette->boxes[i].mean[c];
            distance += d * d;
        }
        if (distance < least) {
            least = distance;
            best = i;
        }
    }
    return best;
}

void kn_palette_solve(KnPalette *palette)
{
    palette->cells = kn_alloc(CELLS * sizeof *palette->cells);
    for (int key = 0; key < CELLS; key++) {
        if (palette->all[key].count == 0)
            continue;
        palette->cells[palette->cell_count] = palette->all[key];
        palette->cells[palette->cell_count++].key = key;
    }
    if (palette->cell_count == 0)
        return;
    cut_boxes(palette);
    for (int i = 0; i < palette->cell_count; i++)
        palette->index[palette->cells[i].key] = (uint8_t)nearest_box(palette, &palette->cells[i]);
}

void kn_palette_colours(const KnPalette *palette, uint32_t colours[256])
{
    for (int i = 0; i < COLOURS; i++) {
        colours[i] = 0xff000000u;
        for (int c = 0; c < 3 && i < palette->box_count; c++)
            colours[i] |= (uint32_t)(palette->boxes[i].mean[c] + 0.5) << (16 - 8 * c);
    }
}

void kn_palette_apply(const KnPalette *palette, const uint8_t *rgb, size_t pixels, uint8_t *indices)
{
    for (size_t i = 0; i < pixels; i++)
        indices[i] = palette->index[key_of(rgb + 3 * i)];
}
