/* Gathering frames for a contact sheet. Large frames are shrunk as they come, so that a sheet needs little memory. */
#include "infer/sheet.h"

#include "core/base/draw.h"
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/memory.h"
#include "data/video_read.h"
#include "data/video_write.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_CELLS = 120, MOST_FRAMES = 8, LARGEST_HEIGHT = 192 };

typedef struct Cell {
    char *caption;
    int mark, count;
    KnImage frames[MOST_FRAMES];
    uint8_t *pixels; /* of all frames */
} Cell;

struct KnContactSheet {
    int count;
    Cell *cells;
};

int kn_contact_sheet_check(const char *path)
{
    KnFileWriter *writer = NULL;
    if (!kn_ends_with(path, ".png"))
        return kn_fail(KN_EINPUT, "--sheet %s: the name must end in .png", path);
    char *folder = kn_path_folder(path);
    int code = kn_make_directories(folder);
    free(folder);
    KN_TRY(code);
    KN_TRY(kn_file_writer_open(&writer, path));
    kn_file_writer_abort(writer);
    return KN_OK;
}

KnContactSheet *kn_contact_sheet_create(int count)
{
    KnContactSheet *sheet = kn_alloc(sizeof *sheet);
    sheet->count = count < MOST_CELLS ? count : MOST_CELLS;
    sheet->cells = kn_alloc((size_t)sheet->count * sizeof *sheet->cells);
    return sheet;
}

void kn_contact_sheet_destroy(KnContactSheet *sheet)
{
    if (!sheet)
        return;
    for (int i = 0; i < sheet->count; i++) {
        free(sheet->cells[i].caption);
        free(sheet->cells[i].pixels);
    }
    free(sheet->cells);
    free(sheet);
}

/* The mean of boxes of factor x factor pixels. */
static void shrink(const uint8_t *rgb, int width, int factor, const KnImage *to, uint8_t *out)
{
    for (int y = 0; y < to->height; y++)
        for (int x = 0; x < to->width; x++)
            for (int c = 0; c < 3; c++) {
                unsigned sum = 0;
                for (int j = 0; j < factor; j++)
                    for (int i = 0; i < factor; i++)
                        sum +=
                            rgb[((size_t)(y * factor + j) * (size_t)width + (size_t)(x * factor + i)) * 3 + (size_t)c];
                *out++ = (uint8_t)((sum + (unsigned)(factor * factor) / 2) / (unsigned)(factor * factor));
            }
}

void kn_contact_sheet_set(KnContactSheet *sheet, int index, const KnRequest *request, const uint8_t *pixels,
                          const char *caption, int mark)
{
    if (index >= sheet->count)
        return;
    Cell *cell = &sheet->cells[index];
    int width = (int)request->size.width, height = (int)request->size.height;
    int frames = (int)request->frames, factor = (height + LARGEST_HEIGHT - 1) / LARGEST_HEIGHT;
    factor = factor > width ? width : factor;
    KnImage image = {.width = width / factor, .height = height / factor};
    size_t bytes = (size_t)image.width * (size_t)image.height * 3;
    cell->caption = kn_strdup(caption);
    cell->mark = mark;
    cell->count = frames < MOST_FRAMES ? frames : MOST_FRAMES;
    cell->pixels = kn_alloc((size_t)cell->count * bytes);
    for (int i = 0; i < cell->count; i++) {
        int from = cell->count > 1 ? i * (frames - 1) / (cell->count - 1) : 0;
        cell->frames[i] = image;
        cell->frames[i].pixels = cell->pixels + (size_t)i * bytes;
        shrink(pixels + (size_t)from * (size_t)width * (size_t)height * 3, width, factor, &image,
               cell->pixels + (size_t)i * bytes);
    }
}

/* Frames of one file, at the request's own size (a video may be shown larger), from frame `first` on. */
static int read_frames(const char *path, const KnRequest *request, int64_t first, int64_t count, uint8_t *pixels)
{
    size_t bytes = (size_t)request->size.width * (size_t)request->size.height * 3;
    KnVideo *video = NULL;
    const uint8_t *rgb = NULL;
    KN_TRY(kn_video_open(&video, path, &(KnVideoOptions){0}, NULL));
    int code = kn_video_set_size(video, (int)request->size.width, (int)request->size.height);
    for (int64_t i = first; code == KN_OK && i < first + count; i++) {
        code = kn_video_next(video, &rgb, NULL);
        if (code == KN_OK)
            memcpy(pixels + (size_t)i * bytes, rgb, bytes);
    }
    kn_video_close(video);
    return code == KN_END ? kn_fail(KN_EFORMAT, "%s has fewer frames than were made", path) : code;
}

static int read_all_frames(const KnRequest *request, uint8_t *pixels)
{
    char *path = kn_video_frame_path(request->out, 0);
    int code = KN_OK;
    if (!path)
        return read_frames(request->out, request, 0, request->frames, pixels);
    for (int64_t i = 0; i < request->frames && code == KN_OK; i++) {
        free(path);
        path = kn_video_frame_path(request->out, i);
        code = read_frames(path, request, i, 1, pixels);
    }
    free(path);
    return code;
}

int kn_contact_sheet_read(KnContactSheet *sheet, int index, const KnRequest *request)
{
    void *pixels = NULL;
    if (index >= sheet->count)
        return KN_OK;
    KN_TRY(kn_alloc_large(&pixels, (size_t)(request->frames * request->size.width * request->size.height * 3),
                          "a clip's pixels"));
    int code = read_all_frames(request, pixels);
    if (code == KN_OK)
        kn_contact_sheet_set(sheet, index, request, pixels, request->prompt, 0);
    kn_free_large(pixels);
    return code;
}

int kn_contact_sheet_write(const KnContactSheet *sheet, const char *path, const char *title, const char *subtitle)
{
    KnSheetCell *cells = kn_alloc((size_t)sheet->count * sizeof *cells);
    int count = 0;
    for (int i = 0; i < sheet->count; i++)
        if (sheet->cells[i].pixels)
            cells[count++] = (KnSheetCell){.caption = sheet->cells[i].caption,
                                           .frame_count = sheet->cells[i].count,
                                           .frames = sheet->cells[i].frames,
                                           .mark = sheet->cells[i].mark};
    int code =
        kn_draw_sheet(path, &(KnSheet){.title = title, .subtitle = subtitle, .cell_count = count, .cells = cells});
    free(cells);
    return code;
}
