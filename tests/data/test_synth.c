/* Promises of `kinora synth`: the command itself, on real files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/hash.h"
#include "core/base/log.h"
#include "core/base/memory.h"
#include "data/commands.h"
#include "data/video_read.h"
#include "data/world.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FRAMES = 8, SIDE = 32, ARGS = 20 };
static char folder[64];

/* Runs `synth moving-shapes --out FOLDER words...`. */
static int synth(const char *words)
{
    char *line = kn_format("synth moving-shapes --out %s/clips %s", folder, words), *argv[ARGS];
    int argc = 0;
    for (char *word = strtok(line, " "); word; word = strtok(NULL, " "))
        argv[argc++] = word;
    int code = kn_command_synth(argc, argv);
    free(line);
    return code;
}

static char *inside(const char *name)
{
    return kn_format("%s/clips/%s", folder, name);
}

static int count_files(void)
{
    char *clips = inside("");
    KnStringList names = {0};
    assert_int_equal(kn_list_directory(clips, &names), KN_OK);
    int count = names.count;
    for (int i = 0; i < count; i++)
        assert_false(kn_is_temporary_name(names.items[i]));
    kn_string_list_clear(&names);
    free(clips);
    return count;
}

static int set_up(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/kinora-synth-XXXXXX");
    kn_log_set_quiet(1);
    return mkdtemp(folder) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    return kn_remove_tree(folder);
}

static void assert_file_shows(const char *name, KnWorldSplit split, uint64_t seed, uint64_t index)
{
    static uint8_t expected[FRAMES * SIDE * SIDE * 3];
    const KnWorld *world = kn_world_at(0);
    KnWorldClip clip;
    kn_world_describe(world, seed, split, index, FRAMES, SIDE, SIDE, &clip);
    kn_world_render(world, &clip, FRAMES, SIDE, SIDE, expected);
    char *path = inside(name);
    KnVideo *video;
    const uint8_t *rgb;
    assert_int_equal(kn_video_open(&video, path, &(KnVideoOptions){0}, NULL), KN_OK);
    for (int t = 0; t < FRAMES; t++) {
        assert_int_equal(kn_video_next(video, &rgb, NULL), KN_OK);
        assert_memory_equal(rgb, expected + t * SIDE * SIDE * 3, SIDE * SIDE * 3);
    }
    assert_int_equal(kn_video_next(video, &rgb, NULL), KN_END);
    assert_true(kn_video_info(video)->fps == 8);
    kn_video_close(video);
    free(path);
}

static void files_hold_exactly_the_pixels_and_captions_of_the_world(void **state)
{
    (void)state;
    assert_int_equal(synth("--count 5 --seed 4"), KN_OK);
    char *path = inside("captions.csv"), *text;
    size_t size;
    assert_int_equal(kn_file_read(path, &text, &size), KN_OK);
    char *line = strtok(text, "\n");
    assert_string_equal(line, "path,caption");
    for (uint64_t i = 0; i < 5; i++) {
        char name[32], caption[KN_WORLD_CAPTION_BYTES], expected[256];
        KnWorldClip clip;
        snprintf(name, sizeof name, "clip-%06d.mp4", (int)i);
        assert_file_shows(name, KN_WORLD_TRAIN, 4, i);
        kn_world_describe(kn_world_at(0), 4, KN_WORLD_TRAIN, i, FRAMES, SIDE, SIDE, &clip);
        kn_world_caption(kn_world_at(0), &clip.facts, caption);
        snprintf(expected, sizeof expected, "%s,%s", name, caption);
        assert_string_equal(strtok(NULL, "\n"), expected);
    }
    assert_null(strtok(NULL, "\n"));
    assert_int_equal(count_files(), 5 + 2);
    free(text);
    free(path);
}

static void held_out_clips_come_only_when_asked_for(void **state)
{
    (void)state;
    assert_int_equal(synth("--count 3 --held-out"), KN_OK);
    assert_file_shows("clip-000002.mp4", KN_WORLD_HELD_OUT, 0, 2);
}

static void odd_sizes_and_single_frames_are_written(void **state)
{
    (void)state;
    assert_int_equal(synth("--count 2 --size 45x33 --frames 1"), KN_OK);
    char *path = inside("clip-000001.mp4");
    KnVideo *video;
    assert_int_equal(kn_video_open(&video, path, &(KnVideoOptions){0}, NULL), KN_OK);
    assert_int_equal(kn_video_info(video)->width, 45);
    assert_int_equal(kn_video_info(video)->height, 33);
    kn_video_close(video);
    free(path);
}

static void a_larger_count_adds_and_changes_nothing(void **state)
{
    (void)state;
    char before[KN_SHA256_HEX_BYTES], after[KN_SHA256_HEX_BYTES], *path = inside("clip-000001.mp4");
    assert_int_equal(synth("--count 2"), KN_OK);
    assert_int_equal(kn_sha256_file(path, before), KN_OK);
    assert_int_equal(unlink(path), 0); /* and what is missing is written again, alike */
    assert_int_equal(synth("--count 4"), KN_OK);
    assert_int_equal(kn_sha256_file(path, after), KN_OK);
    assert_string_equal(before, after);
    assert_int_equal(count_files(), 4 + 2);
    free(path);
}

static void a_killed_run_goes_on_and_leaves_nothing_half_written(void **state)
{
    (void)state;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        char *argv[] = {"kinora", "synth", "moving-shapes", "--out", inside(""), "--count", "700", "--json", NULL};
        freopen("/dev/null", "w", stdout);
        execv("../kinora", argv);
        _exit(127);
    }
    usleep(500000);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    assert_int_equal(synth("--count 700"), KN_OK);
    assert_int_equal(count_files(), 700 + 2);
    for (uint64_t i = 0; i < 700; i += 69) {
        char name[32];
        snprintf(name, sizeof name, "clip-%06d.mp4", (int)i);
        assert_file_shows(name, KN_WORLD_TRAIN, 0, i);
    }
}

static void assert_refused(const char *words, const char *says)
{
    assert_int_equal(synth(words), KN_EINPUT);
    if (!strstr(kn_error_message(), says))
        fail_msg("\"%s\" does not say \"%s\"", kn_error_message(), says);
}

static void what_cannot_be_done_is_said_and_leaves_the_folder_alone(void **state)
{
    (void)state;
    assert_refused("--count 2 --frames 60", "at most 23 frames");
    assert_refused("--count 2 --size 16x64", "too narrow");
    char *clips = inside(""), *foreign = inside("holiday.mp4");
    assert_false(kn_file_exists(clips));
    assert_int_equal(kn_make_directories(clips), KN_OK);
    assert_int_equal(kn_file_write(foreign, "x", 1), KN_OK);
    assert_refused("--count 2", "is not empty and was not written by synth");
    assert_int_equal(count_files(), 1);
    assert_int_equal(unlink(foreign), 0);
    assert_int_equal(synth("--count 2"), KN_OK);
    assert_refused("--count 2 --seed 1", "other settings");
    assert_refused("--count 1", "already holds clip-000001.mp4, beyond --count 1");
    assert_int_equal(kn_file_write(foreign, "x", 1), KN_OK);
    assert_refused("--count 2", "holds holiday.mp4, which synth did not write");
    free(clips);
    free(foreign);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(files_hold_exactly_the_pixels_and_captions_of_the_world, set_up, tear_down),
        cmocka_unit_test_setup_teardown(held_out_clips_come_only_when_asked_for, set_up, tear_down),
        cmocka_unit_test_setup_teardown(odd_sizes_and_single_frames_are_written, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_larger_count_adds_and_changes_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_killed_run_goes_on_and_leaves_nothing_half_written, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_cannot_be_done_is_said_and_leaves_the_folder_alone, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
