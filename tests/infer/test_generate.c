/* `kinora generate` as a whole, on a tiny model of random weights: what decides a video's bytes, what does not, and
 * what is refused before anything is made. */
#include "base/support.h"
#include "core/base/log.h"
#include "core/cpu/backend.h"
#include "data/video_read.h"
#include "data/video_write.h"
#include "infer/commands.h"
#include "infer/inspect.h"
#include "infer/tiny_model.h"

#include <jansson.h>
#include <unistd.h>

enum { W = 16, H = 12, FRAMES = 6, BYTES = W * H * 3 };
#define PROMPT "a red circle moves left on a gray background"

/* Runs the command with --model and a small size before the given options (NULL-terminated). */
static int generate_from(const char *model, const char *const *options)
{
    const char *arguments[64] = {"generate"};
    int count = 1;
    if (model) {
        static const char *const small[] = {"--size", "16x12", "--frames", "6", "--steps", "3"};
        arguments[count++] = "--model";
        arguments[count++] = model;
        for (size_t i = 0; i < sizeof small / sizeof small[0]; i++)
            arguments[count++] = small[i];
    }
    for (; *options; options++)
        arguments[count++] = *options;
    return kn_command_generate(count, (char **)(uintptr_t)arguments);
}

#define GENERATE(...) generate_from(test_path("model"), (const char *const[]){__VA_ARGS__, NULL})
#define GENERATE_ANEW(...) generate_from(NULL, (const char *const[]){__VA_ARGS__, NULL})

static void assert_same_bytes(const char *a, const char *b)
{
    char *first, *second;
    size_t first_size, second_size;
    assert_ok(kn_file_read(a, &first, &first_size));
    assert_ok(kn_file_read(b, &second, &second_size));
    assert_int_equal(first_size, second_size);
    assert_memory_equal(first, second, first_size);
    free(first);
    free(second);
}

static void assert_other_bytes(const char *a, const char *b)
{
    char *first, *second;
    size_t first_size, second_size;
    assert_ok(kn_file_read(a, &first, &first_size));
    assert_ok(kn_file_read(b, &second, &second_size));
    assert_false(first_size == second_size && !memcmp(first, second, first_size));
    free(first);
    free(second);
}

/* The frames of a file, which must be `frames` of width x height. */
static void read_frames(const char *path, int width, int height, int frames, uint8_t *into)
{
    KnVideo *video;
    const uint8_t *rgb;
    assert_ok(kn_video_open(&video, path, &(KnVideoOptions){0}, NULL));
    assert_int_equal(kn_video_info(video)->width, width);
    assert_int_equal(kn_video_info(video)->height, height);
    for (int i = 0; i < frames; i++, into += width * height * 3) {
        assert_ok(kn_video_next(video, &rgb, NULL));
        memcpy(into, rgb, (size_t)(width * height * 3));
    }
    assert_int_equal(kn_video_next(video, &rgb, NULL), KN_END);
    kn_video_close(video);
}

static json_t *read_json(const char *path)
{
    json_error_t error;
    json_t *object = json_load_file(path, 0, &error);
    if (!object)
        fail_msg("%s: %s", path, error.text);
    return object;
}

/* ---- what decides the bytes ---- */

static void the_same_request_makes_the_same_bytes(void **state)
{
    (void)state;
    assert_ok(GENERATE("--prompt", PROMPT, "--out", test_path("a.mp4")));
    assert_ok(GENERATE("--prompt", PROMPT, "--out", test_path("b.mp4")));
    assert_same_bytes(test_path("a.mp4"), test_path("b.mp4"));
    assert_ok(GENERATE("--prompt", PROMPT, "--out", test_path("c.mp4"), "--seed", "1"));
    assert_other_bytes(test_path("a.mp4"), test_path("c.mp4"));
    assert_ok(GENERATE("--prompt", "a blue square", "--out", test_path("d.mp4")));
    assert_other_bytes(test_path("a.mp4"), test_path("d.mp4"));
}

static void threads_do_not_change_a_bit(void **state)
{
    (void)state;
    static const char *const dtypes[] = {"f32", "bf16"};
    for (int d = 0; d < 2; d++)
        for (int threads = 1; threads <= 3; threads++) {
            char name[32];
            snprintf(name, sizeof name, "t%d-%d.mp4", d, threads);
            kn_cpu_set_threads(threads);
            assert_ok(GENERATE("--prompt", PROMPT, "--lossless", "--dtype", dtypes[d], "--out", test_path(name)));
            snprintf(name, sizeof name, "t%d-1.mp4", d);
            if (threads > 1) {
                char other[32];
                snprintf(other, sizeof other, "t%d-%d.mp4", d, threads);
                assert_same_bytes(test_path(name), test_path(other));
            }
        }
    kn_cpu_set_threads(0);
}

static void neighbours_do_not_change_a_bit(void **state)
{
    (void)state;
    put_text(test_path("many.jsonl"),
             "{\"prompt\": \"a blue square\", \"out\": \"m1.mp4\", \"width\": 32, \"height\": 32, \"frames\": 4}\n"
             "{\"prompt\": \"" PROMPT "\", \"out\": \"m2.mp4\", \"seed\": 5}\n"
             "{\"prompt\": \"a red square\", \"out\": \"m3.mp4\", \"frames\": 2}\n"
             "{\"prompt\": \"" PROMPT "\", \"out\": \"m4.mp4\", \"seed\": 5, \"solver\": \"heun\"}\n"
             "{\"prompt\": \"" PROMPT "\", \"out\": \"m5.mp4\", \"seed\": 5, \"guidance\": 1}\n");
    assert_ok(GENERATE("--prompts", test_path("many.jsonl"), "--out", test_path("many"), "--lossless"));
    assert_ok(GENERATE("--prompt", PROMPT, "--seed", "5", "--lossless", "--out", test_path("alone.mp4")));
    assert_same_bytes(test_path("alone.mp4"), test_path("many/m2.mp4"));
    assert_other_bytes(test_path("alone.mp4"), test_path("many/m4.mp4"));
    assert_other_bytes(test_path("alone.mp4"), test_path("many/m5.mp4"));
    assert_ok(
        GENERATE("--prompt", PROMPT, "--seed", "5", "--lossless", "--guidance", "1", "--out", test_path("alone.mp4")));
    assert_same_bytes(test_path("alone.mp4"), test_path("many/m5.mp4"));
    assert_true(kn_file_exists(test_path("many/sheet.png")));
    uint8_t pixels[2 * BYTES];
    read_frames(test_path("many/m3.mp4"), W, H, 2, pixels);
}

static void a_video_says_how_it_was_made_and_is_made_again(void **state)
{
    (void)state;
    assert_ok(GENERATE("--prompt", PROMPT, "--negative", "blue", "--seed", "9", "--guidance", "2.5", "--shift", "4.2",
                       "--solver", "unipc", "--spacing", "linspace", "--upscale", "3", "--full-colour", "--out",
                       test_path("first.mp4")));
    json_t *made = read_json(test_path("first.json"));
    assert_string_equal(json_string_value(json_object_get(made, "prompt")), PROMPT);
    assert_string_equal(json_string_value(json_object_get(made, "program")), "kinora " KINORA_VERSION);
    assert_int_equal(strlen(json_string_value(json_object_get(made, "model_hash"))), 64);
    assert_int_equal(json_integer_value(json_object_get(made, "seed")), 9);
    json_decref(made);
    assert_ok(GENERATE_ANEW("--from", test_path("first.json"), "--out", test_path("again.mp4")));
    assert_same_bytes(test_path("first.mp4"), test_path("again.mp4"));
    assert_ok(GENERATE_ANEW("--from", test_path("first.json"), "--seed", "10", "--out", test_path("varied.mp4")));
    assert_other_bytes(test_path("first.mp4"), test_path("varied.mp4"));
    /* without --out, beside the JSON under its own name */
    assert_int_equal(unlink(test_path("first.mp4")), 0);
    assert_ok(GENERATE_ANEW("--from", test_path("first.json")));
    assert_same_bytes(test_path("first.mp4"), test_path("again.mp4"));
}

static void another_model_is_refused_unless_named(void **state)
{
    (void)state;
    assert_ok(GENERATE("--prompt", PROMPT, "--out", test_path("m.mp4")));
    json_t *made = read_json(test_path("m.json"));
    json_object_set_new(made, "model_hash",
                        json_string("00000000000000000000000000000000000000000000000000000000000000ff"));
    assert_int_equal(json_dump_file(made, test_path("m.json"), 0), 0);
    json_decref(made);
    assert_fails(GENERATE_ANEW("--from", test_path("m.json"), "--out", test_path("n.mp4")), KN_EINPUT,
                 "was made by a model with the hash 000000000000");
    assert_false(kn_file_exists(test_path("n.mp4")));
    assert_ok(generate_from(test_path("model"),
                            (const char *const[]){"--from", test_path("m.json"), "--out", test_path("n.mp4"), NULL}));
    assert_same_bytes(test_path("m.mp4"), test_path("n.mp4"));
}

static void a_model_keeps_the_settings_of_its_run(void **state)
{
    (void)state;
    uint8_t pixels[4 * 24 * 16 * 3];
    make_tiny_model(test_path("configured"), "sample: {width: 24, height: 16, frames: 4, steps: 2, fps: 5}\n");
    assert_ok(GENERATE_ANEW("--model", test_path("configured"), "--prompt", PROMPT, "--out", test_path("own.mp4")));
    read_frames(test_path("own.mp4"), 24, 16, 4, pixels);
}

/* ---- given frames ---- */

static void draw_ramp(uint8_t *rgb, int width, int height, int number)
{
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++, rgb += 3) {
            rgb[0] = (uint8_t)(7 * x + 20 * number);
            rgb[1] = (uint8_t)(11 * y);
            rgb[2] = (uint8_t)(x * y + number);
        }
}

static void a_given_picture_is_in_the_video_exactly(void **state)
{
    (void)state;
    uint8_t first[BYTES], last[BYTES], pixels[FRAMES * BYTES];
    KnVideoWriteOptions options = {.width = W, .height = H, .fps = 8};
    draw_ramp(first, W, H, 0);
    draw_ramp(last, W, H, 9);
    assert_ok(kn_video_write(test_path("first.png"), first, 1, &options));
    assert_ok(kn_video_write(test_path("last.png"), last, 1, &options));
    assert_ok(GENERATE("--prompt", PROMPT, "--lossless", "--first-frame", test_path("first.png"), "--last-frame",
                       test_path("last.png"), "--out", test_path("given.mp4")));
    read_frames(test_path("given.mp4"), W, H, FRAMES, pixels);
    for (int i = 0; i < 2; i++) { /* a patch is two frames long */
        assert_memory_equal(pixels + i * BYTES, first, BYTES);
        assert_memory_equal(pixels + (4 + i) * BYTES, last, BYTES);
        assert_memory_not_equal(pixels + (2 + i) * BYTES, first, BYTES);
        assert_memory_not_equal(pixels + (2 + i) * BYTES, last, BYTES);
    }
    assert_ok(GENERATE_ANEW("--from", test_path("given.json"), "--out", test_path("given2.mp4")));
    assert_same_bytes(test_path("given.mp4"), test_path("given2.mp4"));
    assert_ok(kn_video_write(test_path("first.png"), last, 1, &options));
    assert_fails(GENERATE_ANEW("--from", test_path("given.json"), "--out", test_path("given3.mp4")), KN_EINPUT,
                 "first.png is not the file it was");
}

static void a_larger_picture_is_scaled_and_cut_in_the_middle(void **state)
{
    (void)state;
    enum { WIDE = 4 * W, HIGH = 2 * H };
    uint8_t wide[WIDE * HIGH * 3], pixels[FRAMES * BYTES];
    for (int i = 0; i < WIDE * HIGH; i++) { /* half of the width remains: the middle, which is white */
        int x = i % WIDE, inside = x >= W && x < 3 * W;
        memset(wide + 3 * i, inside ? 255 : 0, 3);
    }
    assert_ok(kn_video_write(test_path("wide.png"), wide, 1, &(KnVideoWriteOptions){WIDE, HIGH, .fps = 8}));
    assert_ok(GENERATE("--prompt", PROMPT, "--lossless", "--first-frame", test_path("wide.png"), "--out",
                       test_path("wide.mp4")));
    read_frames(test_path("wide.mp4"), W, H, FRAMES, pixels);
    for (int y = 0; y < H; y++)
        for (int x = 2; x < W - 2; x++)
            assert_in_range(pixels[(y * W + x) * 3], 250, 255);
}

static void an_extended_video_goes_on_from_its_last_frames(void **state)
{
    (void)state;
    uint8_t source[5 * BYTES], pixels[8 * BYTES];
    KnVideoWriteOptions options = {.width = W, .height = H, .fps = 8, .lossless = 1};
    for (int i = 0; i < 5; i++)
        draw_ramp(source + i * BYTES, W, H, i);
    assert_ok(kn_video_write(test_path("source.mp4"), source, 5, &options));
    assert_ok(GENERATE("--prompt", PROMPT, "--lossless", "--extend", test_path("source.mp4"), "--fps", "8",
                       "--extend-frames", "4", "--out", test_path("more.mp4")));
    read_frames(test_path("more.mp4"), W, H, FRAMES, pixels);
    assert_memory_equal(pixels, source + BYTES, 4 * BYTES);
    assert_memory_not_equal(pixels + 4 * BYTES, source + 4 * BYTES, BYTES);
    /* half of eight frames by default */
    assert_ok(GENERATE("--prompt", PROMPT, "--lossless", "--extend", test_path("source.mp4"), "--fps", "8", "--frames",
                       "8", "--out", test_path("more.mp4")));
    read_frames(test_path("more.mp4"), W, H, 8, pixels);
    assert_memory_equal(pixels, source + BYTES, 4 * BYTES);
    json_t *made = read_json(test_path("more.json"));
    assert_int_equal(json_integer_value(json_object_get(made, "extend_frames")), 4);
    json_decref(made);
}

/* ---- kinds of output ---- */

static void one_frame_is_an_image(void **state)
{
    (void)state;
    uint8_t image[BYTES], clip[2 * BYTES];
    assert_ok(GENERATE("--prompt", PROMPT, "--frames", "1", "--out", test_path("image.png")));
    read_frames(test_path("image.png"), W, H, 1, image);
    assert_ok(GENERATE("--prompt", PROMPT, "--frames", "2", "--lossless", "--out", test_path("short.mp4")));
    read_frames(test_path("short.mp4"), W, H, 2, clip);
    assert_memory_equal(image, clip, BYTES);
}

static void the_suffix_chooses_the_kind_of_file(void **state)
{
    (void)state;
    assert_ok(GENERATE("--prompt", PROMPT, "--out", test_path("x.gif")));
    assert_true(kn_file_exists(test_path("x.json")));
    assert_ok(GENERATE("--prompt", PROMPT, "--out", test_path("x-%02d.png")));
    assert_true(kn_file_exists(test_path("x-05.png")));
    assert_ok(GENERATE("--prompt", PROMPT, "--out", test_path("pictures/"), "--upscale", "2"));
    uint8_t pixels[4 * BYTES];
    read_frames(test_path("pictures/frame-0005.png"), 2 * W, 2 * H, 1, pixels);
    assert_true(kn_file_exists(test_path("pictures.json")));
}

static void a_folder_holds_the_frames_of_its_video_alone(void **state)
{
    (void)state;
    json_t *found;
    assert_ok(GENERATE("--prompt", PROMPT, "--out", test_path("whole/")));
    put_text(test_path("whole/note.txt"), "mine");
    assert_ok(GENERATE("--prompt", PROMPT, "--frames", "4", "--out", test_path("whole/")));
    assert_true(kn_file_exists(test_path("whole/frame-0003.png")));
    assert_false(kn_file_exists(test_path("whole/frame-0004.png")));
    assert_true(kn_file_exists(test_path("whole/note.txt")));
    assert_ok(kn_inspect_video_json(test_path("whole.json"), 1, &found));
    json_decref(found);
    put_text(test_path("whole/frame-0003.png"), "another picture");
    assert_fails(kn_inspect_video_json(test_path("whole.json"), 1, &found), KN_EFORMAT, "is not the video that");
}

/* ---- what is refused ---- */

static void what_cannot_be_made_is_refused_first(void **state)
{
    (void)state;
    uint8_t frame[BYTES] = {0};
    assert_ok(kn_video_write(test_path("black.png"), frame, 1, &(KnVideoWriteOptions){W, H, .fps = 8}));
    assert_ok(kn_make_directories(test_path("sealed")));
    put_text(test_path("text.txt"), "not a picture");
    put_text(test_path("taken"), "a file where a folder should be");
    put_text(test_path("bad.jsonl"), "{\"prompt\": \"x\", \"out\": \"ok.mp4\"}\n{\"prompt\": \"x\", \"width\": 17}\n");
    const struct {
        int code;
        const char *part, *options[8];
    } rows[] = {
        {KN_EINPUT, "nothing to generate", {NULL}},
        {KN_EINPUT, "go together: give both", {"--template", "a {color} car"}},
        {KN_EINPUT, "go together: give both", {"--prompts", "bad.jsonl", "--variables", "x.csv"}},
        {KN_EINPUT, "exclude each other", {"--prompt", "x", "--template", "y", "--variables", "x.csv"}},
        {KN_EINPUT, "exclude each other", {"--prompt", "x", "--prompts", "y.jsonl"}},
        {KN_EINPUT, "nothing says where the video goes", {"--prompt", "x"}},
        {KN_EINPUT,
         "width 17 is no multiple of the patch's 4: use 16 or 20",
         {"--prompt", "x", "--out", "x.mp4", "--size", "17x12"}},
        {KN_EINPUT,
         "height 2 is no multiple of the patch's 4: use 4 or 8",
         {"--prompt", "x", "--out", "x.mp4", "--size", "16x2"}},
        {KN_EINPUT,
         "frames 5 is no multiple of the patch's 2: use 4 or 6",
         {"--prompt", "x", "--out", "x.mp4", "--frames", "5"}},
        {KN_EINPUT, "frames 4096 is more than the 2048", {"--prompt", "x", "--out", "x.mp4", "--frames", "4096"}},
        {KN_EINPUT, "the suffix must be", {"--prompt", "x", "--out", "x.avi"}},
        {KN_EINPUT, "a PNG holds one frame of 6", {"--prompt", "x", "--out", "x.png"}},
        {KN_EINPUT, "must end in .png", {"--prompt", "x", "--out", "x.mp4", "--sheet", "x.jpg"}},
        {KN_EIO, "taken", {"--prompt", "x", "--out", "taken/x.mp4"}},
        {KN_EIO, "no-such.png", {"--prompt", "x", "--out", "x.mp4", "--first-frame", "no-such.png"}},
        {KN_EFORMAT, "text.txt", {"--prompt", "x", "--out", "x.mp4", "--first-frame", "text.txt"}},
        {KN_EINPUT,
         "all 2 frames are given",
         {"--prompt", "x", "--out", "x.mp4", "--frames", "2", "--first-frame", "black.png"}},
        {KN_EINPUT, "has 1 frames", {"--prompt", "x", "--out", "x.mp4", "--extend", "black.png"}},
        {KN_EINPUT, "no multiple of the 2 frames", {"--prompt", "x", "--extend", "black.png", "--extend-frames", "3"}},
        {KN_EINPUT, "leaves none to generate", {"--prompt", "x", "--extend", "black.png", "--extend-frames", "6"}},
        {KN_EINPUT,
         "both say how the video begins",
         {"--prompt", "x", "--extend", "black.png", "--first-frame", "black.png"}},
        {KN_EINPUT, "0002.mp4: width 17", {"--prompts", "bad.jsonl", "--out", "bad"}},
        {KN_EIO, "no-such.jsonl", {"--prompts", "no-such.jsonl"}},
        {KN_EIO, "no-such.json", {"--from", "no-such.json"}},
        {KN_EFORMAT, "text.txt:1:", {"--from", "text.txt"}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const char *options[9] = {0};
        memcpy(options, rows[i].options, sizeof rows[i].options);
        int code = generate_from(test_path("model"), options);
        if (code != rows[i].code || !strstr(kn_error_message(), rows[i].part))
            fail_msg("row %zu gave %d, \"%s\"; expected %d with \"%s\"", i, code, kn_error_message(), rows[i].code,
                     rows[i].part);
    }
    assert_false(kn_file_exists(test_path("x.mp4")));
    assert_false(kn_file_exists(test_path("x.json.tmp")));
    assert_false(kn_file_exists(test_path("bad/ok.mp4"))); /* all or nothing was checked before */
    assert_fails(GENERATE_ANEW("--model", test_path("nowhere"), "--prompt", "x", "--out", "x.mp4"), KN_EIO,
                 "there is no model at");
    assert_fails(GENERATE_ANEW("--prompt", "x", "--out", "x.mp4"), KN_EINPUT, "--model is missing");
}

static int set_up(void **state)
{
    if (make_test_folder(state))
        return -1;
    kn_log_set_quiet(1);
    make_tiny_model(test_path("model"), NULL);
    return chdir(test_folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_same_request_makes_the_same_bytes),
        cmocka_unit_test(threads_do_not_change_a_bit),
        cmocka_unit_test(neighbours_do_not_change_a_bit),
        cmocka_unit_test(a_video_says_how_it_was_made_and_is_made_again),
        cmocka_unit_test(another_model_is_refused_unless_named),
        cmocka_unit_test(a_model_keeps_the_settings_of_its_run),
        cmocka_unit_test(a_given_picture_is_in_the_video_exactly),
        cmocka_unit_test(a_larger_picture_is_scaled_and_cut_in_the_middle),
        cmocka_unit_test(an_extended_video_goes_on_from_its_last_frames),
        cmocka_unit_test(one_frame_is_an_image),
        cmocka_unit_test(the_suffix_chooses_the_kind_of_file),
        cmocka_unit_test(a_folder_holds_the_frames_of_its_video_alone),
        cmocka_unit_test(what_cannot_be_made_is_refused_first),
    };
    return cmocka_run_group_tests(tests, set_up, remove_test_folder);
}
