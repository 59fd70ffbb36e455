/* Writing video: what a player or another program finds in our files is what was given, or there is no file. */
#include "data/support.h"

#include <malloc.h>
#include <math.h>
#include <sys/stat.h>

enum { W = 32, H = 24, FRAMES = 6, BYTES = W * H * 3 };

/* A smooth coloured picture that moves: like a generated clip. */
static void draw_smooth(uint8_t *rgb, int width, int height, int number)
{
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++, rgb += 3) {
            double dx = x - width * 0.4 - number, dy = y - height * 0.5;
            int inside = dx * dx + dy * dy < height * height * 0.07;
            rgb[0] = (uint8_t)(inside ? 230 : 110);
            rgb[1] = (uint8_t)(inside ? 40 : 110);
            rgb[2] = (uint8_t)(inside ? 40 : 112);
        }
}

static uint8_t *smooth_clip(int width, int height)
{
    size_t bytes = (size_t)width * (size_t)height * 3;
    uint8_t *clip = kn_alloc(bytes * FRAMES);
    for (int i = 0; i < FRAMES; i++)
        draw_smooth(clip + bytes * (size_t)i, width, height, i);
    return clip;
}

static void read_all(const char *path, int width, int height, int frames, uint8_t *into)
{
    KnVideo *video;
    const uint8_t *rgb;
    size_t bytes = (size_t)width * (size_t)height * 3;
    assert_ok(kn_video_open(&video, path, NULL, NULL));
    assert_int_equal(kn_video_info(video)->width, width);
    assert_int_equal(kn_video_info(video)->height, height);
    for (int i = 0; i < frames; i++) {
        assert_ok(kn_video_next(video, &rgb, NULL));
        memcpy(into + bytes * (size_t)i, rgb, bytes);
    }
    assert_int_equal(kn_video_next(video, &rgb, NULL), KN_END);
    kn_video_close(video);
}

static double psnr(const uint8_t *a, const uint8_t *b, size_t count)
{
    double sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += (a[i] - b[i]) * (a[i] - b[i]);
    return sum > 0 ? 10 * log10(255.0 * 255.0 * (double)count / sum) : 99;
}

/* How faithful each way of writing is, on a tiny clip. */
static const struct {
    const char *file;
    KnVideoWriteOptions options;
    double least_psnr;
} ways[] = {
    {"plain.mp4", {.width = W, .height = H, .fps = 8}, 28},
    {"upscaled.mp4", {.width = W, .height = H, .fps = 8, .upscale = 8}, 36},
    {"full.mp4", {.width = W, .height = H, .fps = 8, .full_colour = 1}, 42},
    {"lossless.mp4", {.width = W, .height = H, .fps = 8, .lossless = 1}, 99},
    {"lossless.mkv", {.width = W, .height = H, .fps = 29.97, .lossless = 1}, 99},
    {"odd.mov", {.width = W - 1, .height = H - 1, .fps = 8, .full_colour = 1}, 42},
    {"few_colours.gif", {.width = W, .height = H, .fps = 8}, 99},
    {"pixel.mp4", {.width = 2, .height = 2, .fps = 8, .full_colour = 1}, 20},
};

static void each_way_of_writing_is_as_faithful_as_stated(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        const KnVideoWriteOptions *options = &ways[i].options;
        int factor = options->upscale ? options->upscale : 1, width = options->width * factor;
        int height = options->height * factor;
        size_t small = (size_t)options->width * (size_t)options->height * 3, large = small * (size_t)(factor * factor);
        uint8_t *clip = smooth_clip(options->width, options->height), *got = kn_alloc(large * FRAMES);
        assert_ok(kn_video_write(test_path(ways[i].file), clip, FRAMES, options));
        read_all(test_path(ways[i].file), width, height, FRAMES, got);
        uint8_t *expected = kn_alloc(large * FRAMES);
        for (int f = 0; f < FRAMES; f++)
            for (int y = 0; y < height; y++)
                for (int x = 0; x < width; x++)
                    memcpy(expected + large * (size_t)f + (size_t)(y * width + x) * 3,
                           clip + small * (size_t)f + (size_t)((y / factor) * options->width + x / factor) * 3, 3);
        double quality = psnr(got, expected, large * FRAMES);
        print_message("%-16s %.1f dB\n", ways[i].file, quality);
        if (quality < ways[i].least_psnr)
            fail_msg("%s: %.1f dB", ways[i].file, quality);
        free(expected);
        free(got);
        free(clip);
    }
}

static void odd_sizes_in_420_repeat_the_last_column_and_row(void **state)
{
    (void)state;
    uint8_t *clip = smooth_clip(31, 23), *got = kn_alloc(BYTES * FRAMES);
    assert_ok(kn_video_write(test_path("odd.mp4"), clip, FRAMES,
                             &(KnVideoWriteOptions){.width = 31, .height = 23, .fps = 8}));
    read_all(test_path("odd.mp4"), 32, 24, FRAMES, got);
    free(got);
    free(clip);
}

static void players_find_what_they_need(void **state)
{
    (void)state;
    NEED_COMMAND("ffprobe");
    uint8_t *clip = smooth_clip(W, H);
    assert_ok(kn_video_write(test_path("tagged.mp4"), clip, FRAMES,
                             &(KnVideoWriteOptions){.width = W, .height = H, .fps = 8, .comment = "a \"prompt\"; é"}));
    shell("ffprobe -v error -count_frames -show_entries stream=codec_name,pix_fmt,color_range,color_space,"
          "color_primaries,color_transfer,avg_frame_rate,nb_read_frames,duration:format_tags=comment -of flat "
          "tagged.mp4 > probe.txt");
    char *text;
    size_t size;
    assert_ok(kn_file_read(test_path("probe.txt"), &text, &size));
    static const char *const lines[] = {
        "codec_name=\"h264\"",       "pix_fmt=\"yuv420p\"",      "color_range=\"tv\"",     "color_space=\"bt709\"",
        "color_primaries=\"bt709\"", "color_transfer=\"bt709\"", "avg_frame_rate=\"8/1\"", "nb_read_frames=\"6\"",
        "duration=\"0.750000\"",     "a \\\"prompt\\\"; é"};
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++)
        if (!strstr(text, lines[i]))
            fail_msg("no %s in:\n%s", lines[i], text);
    free(text);
    char *bytes; /* the index comes before the data */
    assert_ok(kn_file_read(test_path("tagged.mp4"), &bytes, &size));
    assert_true((char *)memmem(bytes, size, "moov", 4) < (char *)memmem(bytes, size, "mdat", 4));
    free(bytes);
    KnVideo *video;
    assert_ok(kn_video_open(&video, test_path("tagged.mp4"), NULL, NULL));
    assert_string_equal(kn_video_info(video)->comment, "a \"prompt\"; é");
    kn_video_close(video);
    free(clip);
}

/* ffmpeg decodes our file to the colours that we gave. */
static void another_decoder_sees_our_colours(void **state)
{
    (void)state;
    NEED_COMMAND("ffmpeg");
    static const uint8_t colour[3] = {240, 220, 50};
    uint8_t rgb[64 * 64 * 3];
    for (size_t i = 0; i < sizeof rgb; i++)
        rgb[i] = colour[i % 3];
    assert_ok(
        kn_video_write(test_path("yellow.mp4"), rgb, 1, &(KnVideoWriteOptions){.width = 64, .height = 64, .fps = 8}));
    shell("ffmpeg -v error -y -i yellow.mp4 -sws_flags accurate_rnd+full_chroma_int -pix_fmt rgb24 -f rawvideo y.rgb");
    char *bytes;
    size_t size;
    assert_ok(kn_file_read(test_path("y.rgb"), &bytes, &size));
    assert_int_equal(size, sizeof rgb);
    for (size_t i = 0; i < size; i++)
        assert_in_range((uint8_t)bytes[i], colour[i % 3] - 3, colour[i % 3] + 3);
    free(bytes);
}

static void the_same_frames_give_the_same_bytes(void **state)
{
    (void)state;
    static const char *const files[] = {"x.mp4", "x.gif", "x.mkv"};
    uint8_t *clip = smooth_clip(W, H);
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        char *first, *second;
        size_t size, again;
        const KnVideoWriteOptions options = {.width = W, .height = H, .fps = 8};
        assert_ok(kn_video_write(test_path(files[i]), clip, FRAMES, &options));
        assert_ok(kn_file_read(test_path(files[i]), &first, &size));
        mallopt(M_PERTURB, 77 + (int)i); /* fresh memory holds other rubbish */
        assert_ok(kn_video_write(test_path(files[i]), clip, FRAMES, &options));
        mallopt(M_PERTURB, 0);
        assert_ok(kn_file_read(test_path(files[i]), &second, &again));
        if (size != again)
            fail_msg("%s: %zu bytes, then %zu", files[i], size, again);
        assert_memory_equal(first, second, size);
        free(first);
        free(second);
    }
    free(clip);
}

static void numbered_images_and_folders_hold_every_frame(void **state)
{
    (void)state;
    uint8_t *clip = smooth_clip(W, H), got[BYTES];
    const KnVideoWriteOptions options = {.width = W, .height = H, .fps = 8};
    assert_ok(kn_video_write(test_path("n-%03d.png"), clip, FRAMES, &options));
    assert_ok(kn_video_write(test_path("frames/"), clip, FRAMES, &options));
    read_all(test_path("n-005.png"), W, H, 1, got);
    assert_memory_equal(got, clip + 5 * BYTES, BYTES);
    read_all(test_path("frames/frame-0002.png"), W, H, 1, got);
    assert_memory_equal(got, clip + 2 * BYTES, BYTES);
    assert_fails(kn_video_write(test_path("one.png"), clip, 2, &options), KN_EINPUT, "%04d");
    assert_false(kn_file_exists(test_path("one.png")));
    free(clip);
}

static void gif_keeps_its_timing_and_many_colours_well(void **state)
{
    (void)state;
    uint8_t *clip = kn_alloc(64 * 64 * 3 * FRAMES), *got = kn_alloc(64 * 64 * 3 * FRAMES);
    for (int f = 0; f < FRAMES; f++)
        for (int i = 0; i < 64 * 64; i++) {
            uint8_t *pixel = clip + ((size_t)f * 64 * 64 + (size_t)i) * 3;
            pixel[0] = (uint8_t)(i % 64 * 4);
            pixel[1] = (uint8_t)(i / 64 * 4);
            pixel[2] = (uint8_t)(40 * f);
        }
    assert_ok(kn_video_write(test_path("t.gif"), clip, FRAMES,
                             &(KnVideoWriteOptions){.width = 64, .height = 64, .fps = 12.5}));
    read_all(test_path("t.gif"), 64, 64, FRAMES, got);
    double quality = psnr(clip, got, 64 * 64 * 3 * FRAMES);
    print_message("GIF of 24,576 colours: %.1f dB\n", quality);
    assert_true(quality > 25);
    KnVideo *video;
    assert_ok(kn_video_open(&video, test_path("t.gif"), NULL, NULL));
    assert_true(fabs(kn_video_info(video)->fps - 12.5) < 0.1);
    kn_video_close(video);
    free(got);
    free(clip);
}

static const struct {
    const char *file;
    KnVideoWriteOptions options;
    int code;
    const char *sentence;
} refusals[] = {
    {"x.avi", {.width = 8, .height = 8, .fps = 8}, KN_EINPUT, "suffix"},
    {"x", {.width = 8, .height = 8, .fps = 8}, KN_EINPUT, "suffix"},
    {"x.mp4", {.width = 0, .height = 8, .fps = 8}, KN_EINPUT, "0x8"},
    {"x.mp4", {.width = 8, .height = 8, .fps = 0}, KN_EINPUT, "frames a second"},
    {"x.mp4", {.width = 8, .height = 8, .fps = 8, .upscale = 100000}, KN_EINPUT, "scaled up"},
    {"x.mp4", {.width = 8, .height = 8, .fps = 8, .crf = 99}, KN_EINPUT, "CRF"},
    {"x.gif", {.width = 8, .height = 8, .fps = 60}, KN_EINPUT, "GIF"},
    {"none/x.mp4", {.width = 8, .height = 8, .fps = 8}, KN_EIO, "none/x.mp4"},
    {"none/x.gif", {.width = 8, .height = 8, .fps = 8}, KN_EIO, "none/x.gif"},
    {"none/x.png", {.width = 8, .height = 8, .fps = 8}, KN_EIO, "none/"},
};

static void what_cannot_be_written_is_refused_and_leaves_nothing(void **state)
{
    (void)state;
    uint8_t rgb[8 * 8 * 3] = {0};
    mkdir(test_path("bad"), 0700);
    for (size_t i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        char *path = kn_path_join(test_path("bad"), refusals[i].file);
        assert_fails(kn_video_write(path, rgb, 1, &refusals[i].options), refusals[i].code, refusals[i].sentence);
        free(path);
    }
    KnVideoWriter *writer;
    const KnVideoWriteOptions options = {.width = 8, .height = 8, .fps = 8};
    assert_ok(kn_video_writer_open(&writer, test_path("bad/empty.mp4"), &options));
    assert_fails(kn_video_writer_finish(writer), KN_EINPUT, "at least one frame");
    assert_ok(kn_video_writer_open(&writer, test_path("bad/given-up.mp4"), &options));
    assert_ok(kn_video_writer_add(writer, rgb));
    kn_video_writer_abandon(writer);
    KnStringList left = {0};
    assert_ok(kn_list_directory(test_path("bad"), &left));
    assert_int_equal(left.count, 0);
    kn_string_list_clear(&left);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_way_of_writing_is_as_faithful_as_stated),
        cmocka_unit_test(odd_sizes_in_420_repeat_the_last_column_and_row),
        cmocka_unit_test(players_find_what_they_need),
        cmocka_unit_test(another_decoder_sees_our_colours),
        cmocka_unit_test(the_same_frames_give_the_same_bytes),
        cmocka_unit_test(numbered_images_and_folders_hold_every_frame),
        cmocka_unit_test(gif_keeps_its_timing_and_many_colours_well),
        cmocka_unit_test(what_cannot_be_written_is_refused_and_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, make_test_folder, remove_test_folder);
}
