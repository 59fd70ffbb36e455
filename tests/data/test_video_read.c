/* Reading video: every way a file may hide what its pictures look like, and when. Pictures are made here, encoded by
 * our writer without loss, or by the ffmpeg command for what our writer does not write. */
#include "data/support.h"

#include <math.h>
#include <sys/resource.h>
#include <sys/stat.h>

static KnVideo *open_video(const char *path, double fps)
{
    KnVideo *video;
    KnVideoFault fault;
    assert_ok(kn_video_open(&video, path, &(KnVideoOptions){.fps = fps}, &fault));
    assert_int_equal(fault, KN_VIDEO_FAULT_NONE);
    return video;
}

static int count_frames(KnVideo *video)
{
    const uint8_t *rgb;
    int count = 0, code;
    while ((code = kn_video_next(video, &rgb, NULL)) == 0)
        count++;
    assert_int_equal(code, KN_END);
    return count;
}

/* ---- colour ---- */

typedef struct Encoding {
    const char *name, *file, *arguments;
    int gray, tolerance; /* gray: expect the luma of BT.601 in all channels */
    double alpha;
    int width, height; /* 0 = small */
} Encoding;

#define TO(matrix, range, format)                                                                                      \
    "-vf scale=out_color_matrix=" matrix ":out_range=" range ":flags=accurate_rnd+full_chroma_int,format=" format
#define TAG(matrix, range) " -colorspace " matrix " -color_range " range " -c:v ffv1"
#define FFV1 " -c:v ffv1"

static const Encoding encodings[] = {
    {"601 limited", "a.mkv", TO("bt601", "tv", "yuv420p") TAG("smpte170m", "tv"), 0, 3, 1, 0, 0},
    {"709 limited", "b.mkv", TO("bt709", "tv", "yuv420p") TAG("bt709", "tv"), 0, 3, 1, 0, 0},
    {"601 full", "c.mkv", TO("bt601", "pc", "yuv420p") TAG("smpte170m", "pc"), 0, 3, 1, 0, 0},
    {"709 full", "d.mkv", TO("bt709", "pc", "yuv420p") TAG("bt709", "pc"), 0, 3, 1, 0, 0},
    {"709 10 bits", "e.mkv", TO("bt709", "tv", "yuv420p10le") TAG("bt709", "tv"), 0, 3, 1, 0, 0},
    {"601 4:2:2 10 bits full", "f.mkv", TO("bt601", "pc", "yuv422p10le") TAG("smpte170m", "pc"), 0, 3, 1, 0, 0},
    {"709 4:4:4", "g.mkv", TO("bt709", "tv", "yuv444p") TAG("bt709", "tv"), 0, 3, 1, 0, 0},
    {"2020 12 bits", "h.mkv", TO("bt2020", "tv", "yuv420p12le") TAG("bt2020nc", "tv"), 0, 3, 1, 0, 0},
    {"untagged small is 601", "i.mkv", TO("bt601", "tv", "yuv420p") FFV1, 0, 3, 1, 0, 0},
    {"untagged large is 709", "j.mkv", TO("bt709", "tv", "yuv420p") FFV1, 0, 3, 1, 1280, 720},
    {"JPEG", "k.jpg", "-vf format=yuvj444p -q:v 1 -frames:v 1", 0, 4, 1, 0, 0},
    {"PNG", "l.png", "-frames:v 1", 0, 0, 1, 0, 0},
    {"half transparent PNG", "m.png", "-vf format=rgba,colorchannelmixer=aa=0.5 -frames:v 1", 0, 2, 0.5, 0, 0},
    {"RGB", "n.mkv", "-vf format=gbrp" FFV1, 0, 0, 1, 0, 0},
    {"10-bit RGB", "o.mkv", "-vf format=gbrp10le" FFV1, 0, 3, 1, 0, 0},
    {"YUV with alpha", "p.mkv", TO("bt709", "tv", "yuva444p") TAG("bt709", "tv"), 0, 4, 1, 0, 0},
    {"GIF", "q.gif",
     "-filter_complex 'split[a][b];[a]palettegen=reserve_transparent=0[p];[b][p]paletteuse=dither=none'", 0, 4, 1, 0,
     0},
    {"gray", "r.mkv", "-vf format=gray" FFV1, 1, 2, 1, 0, 0},
    {"gray 10 bits", "s.mkv", "-vf format=gray10le" FFV1, 1, 2, 1, 0, 0},
    {"gray PNG", "t.png", "-vf format=gray -frames:v 1", 1, 2, 1, 0, 0},
};

static const uint8_t left_colour[3] = {200, 30, 60}, right_colour[3] = {40, 90, 220};

static void make_halves(const char *path, int width, int height)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    fprintf(file, "P6\n%d %d\n255\n", width, height);
    for (int i = 0; i < width * height; i++)
        fwrite(i % width < width / 2 ? left_colour : right_colour, 1, 3, file);
    fclose(file);
}

static void expect_colour(const Encoding *encoding, const uint8_t *pixel, const uint8_t *colour)
{
    double luma = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2];
    for (int c = 0; c < 3; c++) {
        double expected = (encoding->gray ? luma : colour[c]) * encoding->alpha;
        if (fabs(pixel[c] - expected) > encoding->tolerance)
            fail_msg("%s: channel %d is %d, not %.1f", encoding->name, c, pixel[c], expected);
    }
}

static void check_encoding(const Encoding *e, int width, int height)
{
    KnVideo *video = open_video(test_path(e->file), 0);
    assert_int_equal(kn_video_info(video)->width, e->width ? e->width : 64);
    assert_int_equal(kn_video_info(video)->height, e->height ? e->height : 48);
    assert_ok(kn_video_set_size(video, width, height));
    const uint8_t *rgb;
    assert_ok(kn_video_next(video, &rgb, NULL));
    const uint8_t *middle = rgb + (size_t)(height / 2 * width) * 3;
    expect_colour(e, middle + (size_t)(width / 4) * 3, left_colour);
    expect_colour(e, middle + (size_t)(width * 3 / 4) * 3, right_colour);
    expect_colour(e, rgb, left_colour); /* the corners too */
    expect_colour(e, rgb + (size_t)(width * height - 1) * 3, right_colour);
    kn_video_close(video);
}

static void colours_are_right_in_every_encoding(void **state)
{
    (void)state;
    NEED_COMMAND("ffmpeg");
    for (size_t i = 0; i < sizeof encodings / sizeof encodings[0]; i++) {
        const Encoding *e = &encodings[i];
        int width = e->width ? e->width : 64, height = e->height ? e->height : 48;
        make_halves(test_path("halves.ppm"), width, height);
        shell("ffmpeg -v error -y -i halves.ppm %s %s", e->arguments, e->file);
        check_encoding(e, width, height);
        check_encoding(e, width * 2 / 3, height * 2 / 3);
    }
}

/* ---- geometry ---- */

/* Sets the display matrix of an MP4's only track: a, b, c, d. */
static void patch_matrix(const char *path, const int m[4])
{
    char *bytes;
    size_t size;
    assert_ok(kn_file_read(path, &bytes, &size));
    char *box = memmem(bytes, size, "tkhd", 4);
    assert_non_null(box);
    unsigned char *matrix = (unsigned char *)box + 4 + 40; /* in a version 0 box */
    const int values[9] = {m[0], m[1], 0, m[2], m[3], 0, 0, 0, 16384};
    for (int i = 0; i < 9; i++) {
        uint32_t fixed = (uint32_t)values[i] << 16;
        for (int b = 0; b < 4; b++)
            matrix[4 * i + b] = (unsigned char)(fixed >> (24 - 8 * b));
    }
    put_file(path, bytes, size);
    free(bytes);
}

static void every_orientation_is_laid_upright(void **state)
{
    (void)state;
    enum { W = 48, H = 32 };
    static const int matrices[8][4] = {{1, 0, 0, 1},  {-1, 0, 0, -1}, {0, 1, -1, 0}, {0, -1, 1, 0},
                                       {-1, 0, 0, 1}, {1, 0, 0, -1},  {0, 1, 1, 0},  {0, -1, -1, 0}};
    uint8_t *coded = kn_alloc(W * H * 3);
    draw_frame(coded, W, H, 0);
    for (int i = 0; i < 8; i++) {
        const int *m = matrices[i];
        const char *path = test_path("turned.mp4");
        make_exact_video(path, W, H, 2, 10);
        patch_matrix(path, m);
        KnVideo *video = open_video(path, 0);
        const KnVideoInfo *info = kn_video_info(video);
        assert_int_equal(info->width, m[0] ? W : H);
        assert_int_equal(info->height, m[0] ? H : W);
        const uint8_t *rgb;
        assert_ok(kn_video_next(video, &rgb, NULL));
        for (int y = 0; y < H; y++)
            for (int x = 0; x < W; x++) {
                /* x' = a x + c y, y' = b x + d y, moved back into the picture */
                int to_x = m[0] * x + m[2] * y + (m[0] + m[2] < 0 ? info->width - 1 : 0);
                int to_y = m[1] * x + m[3] * y + (m[1] + m[3] < 0 ? info->height - 1 : 0);
                if (memcmp(coded + (y * W + x) * 3, rgb + (to_y * info->width + to_x) * 3, 3) != 0)
                    fail_msg("orientation %d: pixel %d,%d is not at %d,%d", i, x, y, to_x, to_y);
            }
        kn_video_close(video);
    }
    free(coded);
}

static void pixels_become_square(void **state)
{
    (void)state;
    NEED_COMMAND("ffmpeg");
    shell("ffmpeg -v error -y -f lavfi -i testsrc=s=64x48:r=10:d=0.3 -vf setsar=2/1 -c:v ffv1 wide.mkv");
    shell("ffmpeg -v error -y -f lavfi -i testsrc=s=64x48:r=10:d=0.3 -vf setsar=1/2 -c:v ffv1 tall.mkv");
    KnVideo *video = open_video(test_path("wide.mkv"), 0);
    assert_int_equal(kn_video_info(video)->width, 128);
    assert_int_equal(kn_video_info(video)->height, 48);
    assert_int_equal(count_frames(video), 3);
    kn_video_close(video);
    video = open_video(test_path("tall.mkv"), 0);
    assert_int_equal(kn_video_info(video)->width, 64);
    assert_int_equal(kn_video_info(video)->height, 96);
    kn_video_close(video);
}

/* ---- time ---- */

static void frames_are_placed_by_time(void **state)
{
    (void)state;
    enum { FRAMES = 30, NATIVE = 10 };
    static const double rates[] = {0, 10, 5, 20, 7, 24, 29.97, 3, 0.5};
    make_exact_video(test_path("steady.mp4"), 32, 32, FRAMES, NATIVE);
    for (size_t i = 0; i < sizeof rates / sizeof rates[0]; i++) {
        KnVideo *video = open_video(test_path("steady.mp4"), rates[i]);
        double fps = rates[i] > 0 ? rates[i] : NATIVE, seconds;
        const uint8_t *rgb;
        int n = 0, code;
        while ((code = kn_video_next(video, &rgb, &seconds)) == 0) {
            /* the last k with k / native < (n + 1/2) / fps */
            int newest = (int)ceil((n + 0.5) / fps * NATIVE - 1e-6) - 1;
            assert_int_equal(frame_number(rgb), newest < FRAMES ? newest : FRAMES - 1);
            assert_true(fabs(seconds - n / fps) < 1e-9);
            n++;
        }
        assert_int_equal(code, KN_END);
        assert_true(fabs(n - FRAMES / (double)NATIVE * fps) <= 0.5 + 1e-9);
        kn_video_close(video);
    }
}

static void variable_rates_are_made_steady(void **state)
{
    (void)state;
    NEED_COMMAND("ffmpeg");
    /* ten frames a tenth of a second apart, then five that stand for four tenths each */
    make_exact_video(test_path("source.mp4"), 32, 32, 15, 10);
    shell("ffmpeg -v error -y -i source.mp4 -vf 'setpts=if(lt(N\\,10)\\,N\\,10+4*(N-10))/10/TB' -fps_mode passthrough "
          "-c:v ffv1 -pix_fmt gbrp variable.mkv");
    KnVideo *video = open_video(test_path("variable.mkv"), 10);
    const uint8_t *rgb;
    for (int n = 0; n < 26; n++) {
        assert_ok(kn_video_next(video, &rgb, NULL));
        assert_int_equal(frame_number(rgb), n < 10 ? n : 10 + (n - 10) / 4);
    }
    kn_video_close(video);
}

static void skipping_is_reading_without_looking(void **state)
{
    (void)state;
    make_exact_video(test_path("skip.mp4"), 32, 32, 20, 10);
    KnVideo *video = open_video(test_path("skip.mp4"), 7);
    const uint8_t *rgb;
    for (int i = 0; i < 9; i++)
        assert_ok(kn_video_skip(video));
    assert_ok(kn_video_next(video, &rgb, NULL));
    assert_int_equal(frame_number(rgb), (int)ceil(9.5 / 7 * 10) - 1);
    while (kn_video_skip(video) == 0)
        continue;
    assert_int_equal(kn_video_next(video, &rgb, NULL), KN_END);
    kn_video_close(video);
}

static void an_edit_list_hides_what_it_hides(void **state)
{
    (void)state;
    NEED_COMMAND("ffmpeg");
    /* copying from second 1 cuts at the key frame before and hides the frames up to second 1 by an edit list */
    shell("ffmpeg -v error -y -f lavfi -i testsrc=s=64x64:r=10:d=4 -c:v libx264 -g 40 -bf 0 whole.mp4");
    shell("ffmpeg -v error -y -ss 1 -i whole.mp4 -c copy edited.mp4");
    KnVideo *video = open_video(test_path("edited.mp4"), 0);
    assert_int_equal(count_frames(video), 30);
    kn_video_close(video);
}

static void an_image_is_one_frame(void **state)
{
    (void)state;
    uint8_t rgb[24 * 16 * 3];
    const uint8_t *got;
    draw_frame(rgb, 24, 16, 3);
    const char *path = test_path("picture %03d.png"); /* not a pattern when read */
    const KnVideoWriteOptions options = {.width = 24, .height = 16, .fps = 1};
    assert_ok(kn_video_write(test_path("picture.png"), rgb, 1, &options));
    assert_int_equal(rename(test_path("picture.png"), path), 0);
    KnVideo *video = open_video(path, 8);
    assert_true(kn_video_info(video)->is_image);
    assert_true(kn_video_info(video)->fps == 0);
    assert_ok(kn_video_next(video, &got, NULL));
    assert_memory_equal(got, rgb, sizeof rgb);
    assert_int_equal(kn_video_next(video, &got, NULL), KN_END);
    kn_video_close(video);
}

static void a_still_in_a_format_of_animations_is_an_image(void **state)
{
    (void)state;
    NEED_COMMAND("ffmpeg");
    static const struct {
        const char *file, *arguments;
    } stills[] = {{"still.gif", ""}, {"still.apng", "-f apng"}, {"still.avif", "-c:v libaom-av1 -still-picture 1"}};
    for (size_t i = 0; i < sizeof stills / sizeof stills[0]; i++) {
        char command[256];
        snprintf(command, sizeof command,
                 "ffmpeg -v error -y -f lavfi -i color=red:s=32x24:r=10 -frames:v 1 %s %s || true", stills[i].arguments,
                 stills[i].file);
        shell(command);
        int64_t bytes;
        if (kn_file_size(test_path(stills[i].file), &bytes) < 0 || bytes == 0)
            continue; /* this FFmpeg writes no such file */
        KnVideo *video = open_video(test_path(stills[i].file), 8);
        assert_true(kn_video_info(video)->is_image);
        assert_true(kn_video_info(video)->fps == 0);
        assert_int_equal(count_frames(video), 1);
        kn_video_close(video);
    }
    shell("ffmpeg -v error -y -f lavfi -i testsrc2=s=32x24:r=10 -frames:v 12 moving.gif");
    KnVideo *video = open_video(test_path("moving.gif"), 0);
    assert_false(kn_video_info(video)->is_image);
    assert_int_equal(count_frames(video), 12);
    kn_video_close(video);
}

/* ---- damage ---- */

static const struct {
    const char *name, *content;
    KnVideoFault fault;
    const char *sentence;
} broken_files[] = {
    {"absent.mp4", NULL, KN_VIDEO_FAULT_MISSING, "missing"},
    {"empty.mp4", "", KN_VIDEO_FAULT_EMPTY, "empty file"},
    {"words.mp4", "these are words, not a video; these are words\n", KN_VIDEO_FAULT_UNREADABLE, "unreadable"},
    {"list.mp4", "#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/x.ts\n", KN_VIDEO_FAULT_UNREADABLE, "unreadable"},
    {"folder.mp4", "/", KN_VIDEO_FAULT_UNREADABLE, "folder"},
};

static void what_is_no_video_is_told_by_its_reason(void **state)
{
    (void)state;
    KnVideo *video;
    KnVideoFault fault;
    for (size_t i = 0; i < sizeof broken_files / sizeof broken_files[0]; i++) {
        const char *path = test_path(broken_files[i].name), *content = broken_files[i].content;
        if (content && strcmp(content, "/") == 0)
            mkdir(path, 0700);
        else if (content)
            put_text(path, content);
        assert_true(kn_video_open(&video, path, NULL, &fault) < 0);
        assert_null(video);
        assert_int_equal(fault, broken_files[i].fault);
        assert_non_null(strstr(kn_error_message(), broken_files[i].sentence));
        assert_non_null(strstr(kn_error_message(), broken_files[i].name));
    }
    if (!have_command("ffmpeg"))
        return;
    shell("ffmpeg -v error -y -f lavfi -i sine=d=0.2 sound.mp4");
    assert_fails(kn_video_open(&video, test_path("sound.mp4"), NULL, &fault), KN_EFORMAT, "no video stream");
    assert_int_equal(fault, KN_VIDEO_FAULT_NO_VIDEO);
    shell("ffmpeg -v error -y -f lavfi -i color=s=16400x16 -frames:v 1 panorama.png");
    assert_fails(kn_video_open(&video, test_path("panorama.png"), NULL, &fault), KN_EFORMAT,
                 "panorama.png: too large: pictures of 16400x16, the longest side that is read is 16384");
    assert_int_equal(fault, KN_VIDEO_FAULT_TOO_LARGE);
}

static void damage_in_the_middle_is_survived_and_counted(void **state)
{
    (void)state;
    NEED_COMMAND("ffmpeg");
    shell("ffmpeg -v error -y -f lavfi -i testsrc2=s=160x120:r=10:d=6 -c:v libx264 -g 10 -bf 0 whole.mkv");
    char *bytes;
    size_t size;
    assert_ok(kn_file_read(test_path("whole.mkv"), &bytes, &size));
    for (size_t i = size / 2; i < size / 2 + size / 10; i++)
        bytes[i] = (char)(i * 131);
    put_file(test_path("damaged.mkv"), bytes, size);
    KnVideo *video = open_video(test_path("damaged.mkv"), 0);
    assert_int_equal(count_frames(video), 60); /* holes are filled with the frame before */
    assert_true(kn_video_damaged(video) > 0);
    kn_video_close(video);
    free(bytes);
}

static void no_truncation_or_flipped_bytes_crash(void **state)
{
    (void)state;
    make_exact_video(test_path("whole.mp4"), 32, 32, 4, 10);
    char *bytes;
    size_t size;
    assert_ok(kn_file_read(test_path("whole.mp4"), &bytes, &size));
    const char *path = test_path("broken.mp4");
    for (size_t i = 0; i < 300; i++) {
        size_t at = i * (size - 1) / 300;
        char kept = bytes[at];
        if (i % 2)
            bytes[at] = (char)(kept ^ (1 << i % 8));
        put_file(path, bytes, i % 2 ? size : at);
        bytes[at] = kept;
        KnVideo *video;
        const uint8_t *rgb;
        if (kn_video_open(&video, path, NULL, NULL) < 0)
            continue;
        for (int n = 0; n < 1000 && kn_video_next(video, &rgb, NULL) == 0; n++)
            continue;
        kn_video_close(video);
    }
    free(bytes);
}

/* ---- resources ---- */

static void threads_do_not_change_the_bits(void **state)
{
    (void)state;
    enum { BYTES = 50 * 33 * 3 };
    uint8_t *first = kn_alloc(BYTES);
    make_exact_video(test_path("t.mp4"), 96, 64, 12, 10);
    for (int threads = 1; threads <= 3; threads++) {
        KnVideo *video;
        const uint8_t *rgb;
        assert_ok(kn_video_open(&video, test_path("t.mp4"), &(KnVideoOptions){.threads = threads}, NULL));
        assert_ok(kn_video_set_size(video, 50, 33));
        for (int i = 0; i < 12; i++)
            assert_ok(kn_video_next(video, &rgb, NULL));
        if (threads == 1)
            memcpy(first, rgb, BYTES);
        assert_memory_equal(first, rgb, BYTES);
        kn_video_close(video);
    }
    free(first);
}

static void memory_does_not_grow_with_length(void **state)
{
    (void)state;
    make_exact_video(test_path("long.mp4"), 128, 128, 1500, 30);
    KnVideo *video = open_video(test_path("long.mp4"), 0);
    struct rusage early = {0}, late;
    const uint8_t *rgb;
    int n = 0;
    while (kn_video_next(video, &rgb, NULL) == 0)
        if (++n == 100)
            getrusage(RUSAGE_SELF, &early);
    getrusage(RUSAGE_SELF, &late);
    assert_int_equal(n, 1500);
    assert_true(late.ru_maxrss - early.ru_maxrss < 8 * 1024); /* the frames would be 70 MiB */
    kn_video_close(video);
}

/* ---- real clips ---- */

static const struct {
    const char *name;
    int width, height, frames, rotation;
} real[] = {
    {"bikes.mp4", 640, 272, 250, 0},     {"carphone.mp4", 193, 144, 120, 0},  {"realshort.mp4", 320, 240, 36, 0},
    {"hiker_tiny.mp4", 368, 240, 49, 0}, {"rotated_90.mov", 320, 568, 3, 90}, {"rotated_180.mov", 568, 320, 3, 180},
    {"unordered_pts.mov", 50, 50, 4, 0}, {"pancake.mkv", 426, 240, 310, 0},   {"newtonscradle.gif", 200, 150, 37, 0},
    {"corrupted.mp4", 1280, 720, 50, 0},
};

static void real_clips_have_their_frames_and_sizes(void **state)
{
    (void)state;
    const char *folder = real_clips();
    if (!folder)
        skip();
    for (size_t i = 0; i < sizeof real / sizeof real[0]; i++) {
        char *path = kn_path_join(folder, real[i].name);
        KnVideo *video = open_video(path, 0);
        const KnVideoInfo *info = kn_video_info(video);
        assert_int_equal(info->width, real[i].width);
        assert_int_equal(info->height, real[i].height);
        assert_int_equal(info->rotation, real[i].rotation);
        assert_int_equal(count_frames(video), real[i].frames);
        assert_int_equal(kn_video_damaged(video) > 0, strcmp(real[i].name, "corrupted.mp4") == 0);
        kn_video_close(video);
        free(path);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(colours_are_right_in_every_encoding),
        cmocka_unit_test(every_orientation_is_laid_upright),
        cmocka_unit_test(pixels_become_square),
        cmocka_unit_test(frames_are_placed_by_time),
        cmocka_unit_test(variable_rates_are_made_steady),
        cmocka_unit_test(skipping_is_reading_without_looking),
        cmocka_unit_test(an_edit_list_hides_what_it_hides),
        cmocka_unit_test(an_image_is_one_frame),
        cmocka_unit_test(a_still_in_a_format_of_animations_is_an_image),
        cmocka_unit_test(what_is_no_video_is_told_by_its_reason),
        cmocka_unit_test(damage_in_the_middle_is_survived_and_counted),
        cmocka_unit_test(no_truncation_or_flipped_bytes_crash),
        cmocka_unit_test(threads_do_not_change_the_bits),
        cmocka_unit_test(memory_does_not_grow_with_length),
        cmocka_unit_test(real_clips_have_their_frames_and_sizes),
    };
    return cmocka_run_group_tests(tests, make_test_folder, remove_test_folder);
}
