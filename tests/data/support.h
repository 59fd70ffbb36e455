/* What the tests of this room share: pictures with known content, the ffmpeg command, the folder of real clips. */
#ifndef KN_TESTS_DATA_SUPPORT_H
#define KN_TESTS_DATA_SUPPORT_H

#include "base/support.h"

#include "data/video_read.h"
#include "data/video_write.h"

#include <unistd.h>

static inline int have_command(const char *name)
{
    char command[128];
    snprintf(command, sizeof command, "command -v %s >/dev/null 2>&1", name);
    return system(command) == 0;
}

#define NEED_COMMAND(name)                                                                                             \
    do {                                                                                                               \
        if (!have_command(name))                                                                                       \
            skip();                                                                                                    \
    } while (0)

/* Runs a shell command in the test's folder. */
static inline void shell(const char *format, ...) __attribute__((format(printf, 1, 2)));
static inline void shell(const char *format, ...)
{
    char command[4096];
    int used = snprintf(command, sizeof command, "cd '%s' && ", test_folder);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(command + used, sizeof command - (size_t)used, format, arguments);
    va_end(arguments);
    if (system(command) != 0)
        fail_msg("failed: %s", command);
}

/* Frame `number` of a picture in which every pixel tells its frame, row and column apart. */
static inline void draw_frame(uint8_t *rgb, int width, int height, int number)
{
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++, rgb += 3) {
            rgb[0] = (uint8_t)(x * 255 / width);
            rgb[1] = (uint8_t)(y * 255 / height);
            rgb[2] = (uint8_t)(number * 7 + (x ^ y) % 5);
        }
}

/* Which frame of draw_frame this is (of the first 36). */
static inline int frame_number(const uint8_t *rgb)
{
    return rgb[2] / 7;
}

/* A lossless video of such frames: what is read back is exact. */
static inline void make_exact_video(const char *path, int width, int height, int frames, double fps)
{
    uint8_t *rgb = kn_alloc((size_t)width * (size_t)height * 3);
    KnVideoWriter *writer;
    assert_ok(kn_video_writer_open(
        &writer, path, &(KnVideoWriteOptions){.width = width, .height = height, .fps = fps, .lossless = 1}));
    for (int i = 0; i < frames; i++) {
        draw_frame(rgb, width, height, i);
        assert_ok(kn_video_writer_add(writer, rgb));
    }
    assert_ok(kn_video_writer_finish(writer));
    free(rgb);
}

/* The folder of real clips, NULL where there is none. */
static inline const char *real_clips(void)
{
    static const char *const places[] = {"../../../shared/clips", "../../../../shared/clips",
                                         "../../../../../shared/clips"};
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++)
        if (access(places[i], R_OK) == 0)
            return places[i];
    return NULL;
}

#endif
