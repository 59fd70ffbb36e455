/* Pictures are read back with cairo and their pixels compared with what was asked: exact for images and frames,
 * "this colour appears in that area" for charts. */
#include "core/base/draw.h"
#include "core/base/error.h"

#include <cairo.h>
#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[64];

static char *in_folder(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

typedef struct Picture {
    int width, height;
    cairo_surface_t *surface;
} Picture;

static Picture read_back(const char *path)
{
    Picture picture = {.surface = cairo_image_surface_create_from_png(path)};
    assert_int_equal(cairo_surface_status(picture.surface), CAIRO_STATUS_SUCCESS);
    picture.width = cairo_image_surface_get_width(picture.surface);
    picture.height = cairo_image_surface_get_height(picture.surface);
    return picture;
}

static unsigned pixel(const Picture *picture, int x, int y)
{
    const unsigned char *row = cairo_image_surface_get_data(picture->surface) +
                               (size_t)y * (size_t)cairo_image_surface_get_stride(picture->surface);
    uint32_t value;
    memcpy(&value, row + 4 * x, 4);
    return value & 0xFFFFFF;
}

/* Pixels in [x0, x1) x [y0, y1) that differ from `rgb` by at most `slack` in each channel. */
static int count_near(const Picture *picture, unsigned rgb, int slack, int x0, int y0, int x1, int y1)
{
    int count = 0;
    for (int y = y0; y < y1; y++)
        for (int x = x0; x < x1; x++) {
            unsigned value = pixel(picture, x, y);
            int red = (int)(value >> 16) - (int)(rgb >> 16), blue = (int)(value & 255) - (int)(rgb & 255);
            int green = (int)(value >> 8 & 255) - (int)(rgb >> 8 & 255);
            count += abs(red) <= slack && abs(green) <= slack && abs(blue) <= slack;
        }
    return count;
}

static int count_all(const Picture *picture, unsigned rgb)
{
    return count_near(picture, rgb, 0, 0, 0, picture->width, picture->height);
}

static uint8_t *solid(int width, int height, unsigned rgb)
{
    uint8_t *pixels = malloc((size_t)width * (size_t)height * 3);
    for (int i = 0; i < width * height; i++) {
        pixels[3 * i] = (uint8_t)(rgb >> 16);
        pixels[3 * i + 1] = (uint8_t)(rgb >> 8);
        pixels[3 * i + 2] = (uint8_t)rgb;
    }
    return pixels;
}

static void a_png_holds_the_very_pixels(void **state)
{
    (void)state;
    enum { WIDTH = 7, HEIGHT = 3 };
    uint8_t pixels[WIDTH * HEIGHT * 3];
    for (size_t i = 0; i < sizeof pixels; i++)
        pixels[i] = (uint8_t)(i * 37 + 11);
    char *path = in_folder("exact.png");
    assert_int_equal(kn_draw_png(path, &(KnImage){WIDTH, HEIGHT, pixels}), KN_OK);
    Picture picture = read_back(path);
    assert_int_equal(picture.width, WIDTH);
    assert_int_equal(picture.height, HEIGHT);
    for (int i = 0; i < WIDTH * HEIGHT; i++)
        assert_int_equal(pixel(&picture, i % WIDTH, i / WIDTH),
                         (unsigned)pixels[3 * i] << 16 | (unsigned)pixels[3 * i + 1] << 8 | pixels[3 * i + 2]);
    cairo_surface_destroy(picture.surface);
}

static void sheet_frames_grow_by_whole_numbers_and_shrink_to_the_height(void **state)
{
    (void)state;
    static const unsigned colours[] = {0xC01020, 0x10C020, 0x1020C0, 0xC0C010};
    static const int sides[] = {4, 4, 4, 100};
    KnImage frames[4];
    for (int i = 0; i < 4; i++)
        frames[i] = (KnImage){sides[i], sides[i], solid(sides[i], sides[i], colours[i])};
    KnSheetCell cells[] = {{.caption = "two small frames", .frame_count = 2, .frames = frames},
                           {.caption = "one more", .frame_count = 1, .frames = frames + 2},
                           {.caption = "a large one", .frame_count = 1, .frames = frames + 3}};
    KnSheet sheet = {.title = "Sheet", .cell_count = 3, .cells = cells, .columns = 2, .frame_height = 14};
    char *path = in_folder("sheet.png");
    assert_int_equal(kn_draw_sheet(path, &sheet), KN_OK);
    Picture picture = read_back(path);
    for (int i = 0; i < 3; i++)
        assert_int_equal(count_all(&picture, colours[i]), 12 * 12); /* 3 times, the largest whole number under 14 / 4 */
    assert_int_equal(count_all(&picture, colours[3]), 14 * 14);
    cairo_surface_destroy(picture.surface);
    for (int i = 0; i < 4; i++)
        free((void *)frames[i].pixels);
}

static void a_pixel_of_a_frame_becomes_a_square_of_its_own_colour(void **state)
{
    (void)state;
    static const uint8_t pixels[] = {255, 0, 0, 0, 255, 0, 0, 0, 255, 10, 20, 30};
    KnImage frame = {2, 2, pixels};
    KnSheet sheet = {.cell_count = 1, .cells = &(KnSheetCell){.frame_count = 1, .frames = &frame}, .frame_height = 20};
    char *path = in_folder("square.png");
    assert_int_equal(kn_draw_sheet(path, &sheet), KN_OK);
    Picture picture = read_back(path);
    int left = picture.width, top = picture.height;
    for (int y = 0; y < picture.height; y++)
        for (int x = 0; x < picture.width; x++)
            if (pixel(&picture, x, y) == 0xFF0000) {
                left = x < left ? x : left;
                top = y < top ? y : top;
            }
    static const unsigned expected[] = {0xFF0000, 0x00FF00, 0x0000FF, 0x0A141E};
    for (int y = 0; y < 20; y++)
        for (int x = 0; x < 20; x++)
            assert_int_equal(pixel(&picture, left + x, top + y), expected[y / 10 * 2 + x / 10]);
    cairo_surface_destroy(picture.surface);
}

static void captions_are_marked_wrapped_and_survive_bad_bytes(void **state)
{
    (void)state;
    uint8_t *gray = solid(8, 8, 0x808080);
    KnImage frame = {8, 8, gray};
    KnSheetCell cells[] = {
        {.caption = "right", .frame_count = 1, .frames = &frame, .mark = 1},
        {.caption = "wrong", .frame_count = 1, .frames = &frame, .mark = -1},
        {.caption = "not \xff\xfe UTF-8 \x01", .frame_count = 1, .frames = &frame},
        {.caption = "a caption of so many words that not one, not two and not even three lines could ever hold all of "
                    "what it says",
         .frame_count = 1,
         .frames = &frame},
        {.caption = "Awordthathasnospaceanywhereandislongerthanthecolumniswideanditneverends",
         .frame_count = 1,
         .frames = &frame},
        {.caption = NULL, .frame_count = 0},
    };
    KnSheet sheet = {.title = "Marks", .subtitle = "and words", .cell_count = 6, .cells = cells, .columns = 1};
    char *path = in_folder("captions.png");
    assert_int_equal(kn_draw_sheet(path, &sheet), KN_OK);
    Picture picture = read_back(path);
    assert_true(count_all(&picture, 0x16A34A) > 20);
    assert_true(count_all(&picture, 0xDC2626) > 20);
    assert_true(picture.width < 300); /* long captions do not widen the page */
    assert_int_equal(count_near(&picture, 0xF4F4F2, 0, picture.width - 20, 0, picture.width, picture.height),
                     20 * picture.height); /* nor run into the margin */
    cairo_surface_destroy(picture.surface);
    free(gray);
}

/* The mean height of the pixels near the first series' colour in a band of columns; -1 when there are none. */
static double mean_y(const Picture *picture, double from, double to)
{
    double sum = 0;
    int count = 0, x0 = (int)(from * picture->width), x1 = (int)(to * picture->width);
    for (int y = 110; y < picture->height; y++) { /* below the legend */
        int here = count_near(picture, 0x2563EB, 24, x0, y, x1, y + 1);
        sum += (double)here * y;
        count += here;
    }
    return count ? sum / count : -1;
}

enum { POINTS = 1000 };

static Picture draw_curve(const char *name, const double *y, int smooth, int log_y)
{
    static double x[POINTS];
    for (int i = 0; i < POINTS; i++)
        x[i] = i;
    KnSeries series = {.name = "loss", .count = POINTS, .x = x, .y = y, .smooth = smooth};
    KnChart chart = {.title = "Training",
                     .x_label = "step",
                     .y_label = "loss",
                     .series_count = 1,
                     .series = &series,
                     .log_y = log_y,
                     .width = 800,
                     .height = 480};
    char *path = in_folder(name);
    assert_int_equal(kn_draw_chart(path, &chart), KN_OK);
    Picture picture = read_back(path);
    assert_int_equal(picture.width, 800);
    assert_int_equal(picture.height, 480);
    return picture;
}

static void a_falling_curve_falls_and_a_log_axis_makes_an_exponential_straight(void **state)
{
    (void)state;
    double y[POINTS];
    for (int i = 0; i < POINTS; i++)
        y[i] = exp(-i / 100.0);
    Picture picture = draw_curve("linear.png", y, 0, 0);
    double early = mean_y(&picture, 0.2, 0.22), middle = mean_y(&picture, 0.5, 0.52),
           late = mean_y(&picture, 0.8, 0.82);
    assert_true(early > 0 && early < middle && middle < late);
    assert_true(middle - early > 3 * (late - middle));
    cairo_surface_destroy(picture.surface);
    picture = draw_curve("log.png", y, 0, 1);
    early = mean_y(&picture, 0.2, 0.22), middle = mean_y(&picture, 0.5, 0.52), late = mean_y(&picture, 0.8, 0.82);
    assert_true(fabs((middle - early) - (late - middle)) < 3);
    assert_true(late - early > 100);
    cairo_surface_destroy(picture.surface);
}

static void a_spike_does_not_flatten_a_smoothed_curve(void **state)
{
    (void)state;
    double y[POINTS];
    for (int i = 0; i < POINTS; i++)
        y[i] = 2.0 - i / 1000.0 + 0.05 * sin(i * 12.9898);
    y[500] = 40;
    Picture picture = draw_curve("spike.png", y, 1, 0);
    assert_true(mean_y(&picture, 0.85, 0.9) - mean_y(&picture, 0.15, 0.2) > 40);
    cairo_surface_destroy(picture.surface);
}

static void values_that_cannot_be_shown_leave_a_gap(void **state)
{
    (void)state;
    for (int log_y = 0; log_y < 2; log_y++) {
        double y[POINTS];
        for (int i = 0; i < POINTS; i++)
            y[i] = i < 400 || i > 600 ? 1 + i / 1000.0 : log_y ? 0 : NAN;
        Picture picture = draw_curve("gap.png", y, 0, log_y);
        assert_true(mean_y(&picture, 0.2, 0.4) > 0);
        assert_true(mean_y(&picture, 0.7, 0.9) > 0);
        assert_true(mean_y(&picture, 0.51, 0.57) < 0);
        cairo_surface_destroy(picture.surface);
    }
}

static void odd_charts_are_drawn_too(void **state)
{
    (void)state;
    static const double x[] = {0, 1, 2}, one[] = {5, 5, 5}, none[] = {NAN, NAN, NAN}, tiny[] = {1e-300, 2e-300, 1e-299},
                        huge[] = {1e200, -1e200, 3e200};
    const double *const values[] = {one, none, tiny, huge};
    for (int log_y = 0; log_y < 2; log_y++)
        for (size_t i = 0; i < 4; i++)
            for (int count = 1; count <= 3; count += 2) {
                KnSeries series = {.name = "odd", .count = count, .x = x, .y = values[i], .smooth = 1, .markers = 1};
                assert_int_equal(kn_draw_chart(in_folder("odd.png"),
                                               &(KnChart){.log_y = log_y, .series_count = 1, .series = &series}),
                                 KN_OK);
            }
}

static int count_files(void)
{
    int count = 0;
    DIR *entries = opendir(folder);
    while (readdir(entries))
        count++;
    closedir(entries);
    return count;
}

static void nothing_to_draw_and_unwritable_names_are_refused_and_leave_nothing(void **state)
{
    (void)state;
    int files = count_files();
    uint8_t black[3] = {0};
    KnImage image = {1, 1, black}, empty = {0, 4, black};
    char *path = in_folder("no-such-folder/a.png");
    assert_int_equal(kn_draw_png(path, &image), KN_EIO);
    assert_non_null(strstr(kn_error_message(), path));
    path = in_folder("never.png");
    assert_int_equal(kn_draw_png(path, &empty), KN_EINPUT);
    assert_int_equal(kn_draw_sheet(path, &(KnSheet){0}), KN_EINPUT);
    assert_int_equal(kn_draw_chart(path, &(KnChart){0}), KN_EINPUT);
    KnSheetCell *cells = calloc(1000, sizeof *cells);
    for (int i = 0; i < 1000; i++)
        cells[i] = (KnSheetCell){.frame_count = 1, .frames = &image};
    assert_int_equal(kn_draw_sheet(path, &(KnSheet){.cell_count = 1000, .cells = cells, .columns = 1}), KN_EINPUT);
    assert_non_null(strstr(kn_error_message(), "the contact sheet would be"));
    cells[0].frames = &empty;
    assert_int_equal(kn_draw_sheet(path, &(KnSheet){.cell_count = 1, .cells = cells}), KN_EINPUT);
    free(cells);
    assert_int_equal(count_files(), files);
}

static int make_folder(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/kinora-draw-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    DIR *entries = opendir(folder);
    for (struct dirent *entry; entries && (entry = readdir(entries));)
        unlink(in_folder(entry->d_name));
    closedir(entries);
    cairo_debug_reset_static_data(); /* cairo's own font caches, which a leak checker would name */
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_png_holds_the_very_pixels),
        cmocka_unit_test(sheet_frames_grow_by_whole_numbers_and_shrink_to_the_height),
        cmocka_unit_test(a_pixel_of_a_frame_becomes_a_square_of_its_own_colour),
        cmocka_unit_test(captions_are_marked_wrapped_and_survive_bad_bytes),
        cmocka_unit_test(a_falling_curve_falls_and_a_log_axis_makes_an_exponential_straight),
        cmocka_unit_test(a_spike_does_not_flatten_a_smoothed_curve),
        cmocka_unit_test(values_that_cannot_be_shown_leave_a_gap),
        cmocka_unit_test(odd_charts_are_drawn_too),
        cmocka_unit_test(nothing_to_draw_and_unwritable_names_are_refused_and_leave_nothing),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
