/* Patches and shards: exact round trips, one sentence for everything that is not a whole shard, and no byte that can
 * change unseen. */
#include "data/support.h"

#include "core/base/hash.h"
#include "data/dataset.h"
#include "data/patchify.h"
#include "data/shard.h"

#include <pthread.h>
#include <sys/stat.h>

/* ---- patchify ---- */

/* Every element against its place by definition. */
static void check_order(const KnPatchLayout *layout)
{
    const int64_t T = layout->frames, H = layout->height, W = layout->width, C = layout->channels;
    const int64_t pt = layout->patch[0], ph = layout->patch[1], pw = layout->patch[2], dim = C * pt * ph * pw;
    const size_t size = layout->element_bytes, bytes = (size_t)(T * H * W * C) * size;
    uint8_t *frames = kn_alloc(bytes), *patches = kn_alloc(bytes), *back = kn_alloc(bytes);
    for (size_t i = 0; i < bytes; i++)
        frames[i] = (uint8_t)(i * 7 + i / 253);
    assert_int_equal(kn_patch_tokens(layout), (T / pt) * (H / ph) * (W / pw));
    assert_int_equal(kn_patch_dim(layout), dim);
    kn_patchify(layout, frames, patches);
    for (int64_t t = 0; t < T; t++)
        for (int64_t y = 0; y < H; y++)
            for (int64_t x = 0; x < W; x++)
                for (int64_t c = 0; c < C; c++) {
                    int64_t token = (t / pt * (H / ph) + y / ph) * (W / pw) + x / pw;
                    int64_t element = ((c * pt + t % pt) * ph + y % ph) * pw + x % pw;
                    if (memcmp(patches + (size_t)(token * dim + element) * size,
                               frames + (size_t)(((t * H + y) * W + x) * C + c) * size, size) != 0)
                        fail_msg("t %d, y %d, x %d, channel %d", (int)t, (int)y, (int)x, (int)c);
                }
    kn_unpatchify(layout, patches, back);
    assert_memory_equal(back, frames, bytes);
    free(frames);
    free(patches);
    free(back);
}

static void patches_are_in_the_order_that_is_stated(void **state)
{
    (void)state;
    static const KnPatchLayout layouts[] = {
        {4, 6, 8, 3, {2, 3, 2}, 2},     {4, 16, 40, 3, {2, 8, 8}, 1}, {2, 6, 35, 3, {1, 2, 7}, 1},
        {1, 2, 2100, 3, {1, 1, 10}, 1}, {2, 4, 6, 16, {1, 2, 2}, 2},  {1, 4, 2048, 3, {1, 4, 2048}, 1},
    };
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++)
        check_order(&layouts[i]);
}

static void patchify_and_back_is_exact_for_any_layout(void **state)
{
    (void)state;
    static const KnPatchLayout layouts[] = {
        {1, 1, 1, 1, {1, 1, 1}, 1},  {2, 8, 8, 3, {2, 8, 8}, 1},   {3, 5, 7, 16, {1, 5, 7}, 4},
        {6, 4, 10, 5, {3, 2, 5}, 2}, {1, 64, 2, 4, {1, 16, 1}, 1},
    };
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++) {
        const KnPatchLayout *layout = &layouts[i];
        size_t bytes = (size_t)(kn_patch_tokens(layout) * kn_patch_dim(layout)) * layout->element_bytes;
        uint8_t *frames = kn_alloc(bytes), *patches = kn_alloc(bytes), *back = kn_alloc(bytes);
        for (size_t j = 0; j < bytes; j++)
            frames[j] = (uint8_t)(j * 31 + j / 251);
        kn_patchify(layout, frames, patches);
        kn_unpatchify(layout, patches, back);
        assert_memory_equal(frames, back, bytes);
        free(frames);
        free(patches);
        free(back);
    }
}

/* ---- writing and reading ---- */

static const KnShardFormat pixels = {.kind = KN_VALUE_PIXELS, .patch = {2, 4, 4}, .channels = 3, .config_hash = "abc"};
enum { DIM = 3 * 2 * 4 * 4 };

static void fill_patches(uint8_t *patches, int64_t tokens, int seed)
{
    for (int64_t i = 0; i < tokens * DIM; i++)
        patches[i] = (uint8_t)(i * 13 + i / 97 + seed * 41);
}

/* Adds a clip of grid frames x 3 x 5 tokens, one grid frame at a time. */
static void add_clip(KnShardWriter *writer, int frames, int seed, int captions, int keep)
{
    static const char *const texts[] = {"a red circle", "ein Kreis, grün", "third"};
    uint8_t *patches = kn_alloc((size_t)frames * 15 * DIM);
    fill_patches(patches, frames * 15, seed);
    const KnClip clip = {.grid = {0, 3, 5}, .fps = 8, .segment = seed, .start_seconds = seed * 0.5};
    assert_ok(kn_shard_writer_clip_begin(writer, &clip));
    for (int f = 0; f < frames; f++)
        assert_ok(kn_shard_writer_clip_add(writer, patches + (size_t)f * 15 * DIM, 1));
    if (keep)
        assert_ok(kn_shard_writer_clip_end(writer, texts, captions));
    else
        assert_ok(kn_shard_writer_clip_drop(writer));
    free(patches);
}

static void write_shard(const char *path, const KnShardFormat *format, int clips, int frames)
{
    KnShardWriter *writer;
    assert_ok(kn_shard_writer_open(&writer, path, format));
    assert_ok(kn_shard_writer_source(writer, &(KnSource){.path = "/videos/one.mp4", .bytes = 1234}));
    for (int i = 0; i < clips; i++) {
        add_clip(writer, frames + 3 * (i % 2), 100 + i, 1, 0); /* dropped: must leave no trace */
        add_clip(writer, frames + i % 3, i, i % 4 > 2 ? 0 : i % 4, 1);
    }
    kn_shard_writer_source_end(writer, &(KnSource){.complete = 1, .damaged = 2});
    assert_ok(kn_shard_writer_source(writer, &(KnSource){.path = "/videos/two.mp4", .bytes = 0}));
    kn_shard_writer_source_end(writer, &(KnSource){.complete = 1, .reason = "empty file", .detail = "two is empty"});
    assert_false(kn_file_exists(path));
    assert_ok(kn_shard_writer_finish(writer));
    assert_true(kn_file_exists(path));
}

static void a_shard_gives_back_what_was_written(void **state)
{
    (void)state;
    enum { CLIPS = 9, MOST = 20 };
    const char *path = test_path("round.h5");
    write_shard(path, &pixels, CLIPS, MOST - 2); /* several chunks */
    KnShard *shard;
    assert_ok(kn_shard_open(&shard, path));
    assert_int_equal(kn_shard_clip_count(shard), CLIPS);
    assert_int_equal(kn_shard_format(shard)->patch_dim, DIM);
    assert_string_equal(kn_shard_format(shard)->config_hash, "abc");
    uint8_t *expected = kn_alloc(MOST * 15 * DIM), *got = kn_alloc(MOST * 15 * DIM);
    for (int i = CLIPS - 1; i >= 0; i--) {
        const KnClip *clip = kn_shard_clip(shard, i);
        assert_int_equal(clip->grid[0], MOST - 2 + i % 3);
        assert_int_equal(clip->tokens, clip->grid[0] * 15);
        assert_int_equal(clip->frames, clip->grid[0] * 2);
        assert_int_equal(clip->height, 12);
        assert_int_equal(clip->width, 20);
        assert_int_equal(clip->segment, i);
        assert_true(clip->fps == 8 && clip->start_seconds == i * 0.5);
        assert_string_equal(clip->source, "/videos/one.mp4");
        assert_int_equal(clip->captions, i % 4 > 2 ? 0 : i % 4);
        if (clip->captions == 2)
            assert_string_equal(kn_shard_caption(shard, i, 1), "ein Kreis, grün");
        fill_patches(expected, clip->tokens, i);
        assert_ok(kn_shard_read_clip(shard, i, got));
        assert_memory_equal(got, expected, (size_t)clip->tokens * DIM);
        unsigned char digest[32];
        kn_sha256(expected, (size_t)clip->tokens * DIM, digest);
        assert_memory_equal(digest, clip->sha256, 32);
    }
    assert_int_equal(kn_shard_source_count(shard), 2);
    assert_int_equal(kn_shard_source(shard, 0)->damaged, 2);
    assert_string_equal(kn_shard_source(shard, 1)->reason, "empty file");
    assert_ok(kn_shard_verify(shard));
    kn_shard_rest(shard);
    assert_ok(kn_shard_read_clip(shard, 0, got));
    kn_shard_close(shard);
    free(expected);
    free(got);
}

static void latents_are_stored_as_16_bits(void **state)
{
    (void)state;
    const KnShardFormat latents = {.kind = KN_VALUE_LATENTS, .patch = {1, 2, 2}, .channels = 16, .autoencoder = "wan"};
    uint16_t patches[2 * 64], got[2 * 64];
    for (int i = 0; i < 2 * 64; i++)
        patches[i] = (uint16_t)(i * 511);
    KnShardWriter *writer;
    KnShard *shard;
    assert_ok(kn_shard_writer_open(&writer, test_path("latents.h5"), &latents));
    assert_ok(kn_shard_writer_source(writer, &(KnSource){.path = "x"}));
    assert_ok(kn_shard_writer_clip_begin(writer, &(KnClip){.grid = {0, 1, 2}}));
    assert_ok(kn_shard_writer_clip_add(writer, patches, 1));
    assert_ok(kn_shard_writer_clip_end(writer, NULL, 0));
    assert_ok(kn_shard_writer_finish(writer));
    assert_ok(kn_shard_open(&shard, test_path("latents.h5")));
    assert_int_equal(kn_shard_format(shard)->element_bytes, 2);
    assert_string_equal(kn_shard_format(shard)->autoencoder, "wan");
    assert_ok(kn_shard_read_clip(shard, 0, got));
    assert_memory_equal(got, patches, sizeof got);
    kn_shard_close(shard);
}

static void another_program_reads_it(void **state)
{
    (void)state;
    NEED_COMMAND("h5dump");
    write_shard(test_path("other.h5"), &pixels, 3, 2);
    shell("h5dump -y -w 0 -d /patches -s '30,0' -c '1,96' other.h5 > dump.txt");
    char *text;
    size_t size;
    assert_ok(kn_file_read(test_path("dump.txt"), &text, &size));
    char *data = strstr(text, "DATA {");
    assert_non_null(data);
    uint8_t expected[15 * 3 * DIM];
    fill_patches(expected, 15 * 3, 1); /* clip 1 begins at token 30 */
    char *at = data + 6;
    for (int i = 0; i < DIM; i++)
        assert_int_equal(strtol(at, &at, 10), expected[i]), at += strspn(at, ", \n");
    free(text);
    shell("h5dump -d /clip/fps -d /clip/sha256 -d /caption/offsets -a /version -a /value_kind other.h5 > dump.txt");
}

/* ---- damage ---- */

/* Opening and verifying finds it, with a sentence that names the file. */
static int is_caught(const char *path)
{
    KnShard *shard;
    int code = kn_shard_open(&shard, path);
    if (code == KN_OK) {
        code = kn_shard_verify(shard);
        kn_shard_close(shard);
    }
    return code < 0 && strstr(kn_error_message(), path) != NULL;
}

static void a_name_that_is_not_utf8_is_told_all_the_same(void **state)
{
    (void)state;
    const char *path = test_path("caf\xe9.h5");
    char *text;
    write_shard(path, &pixels, 2, 2);
    assert_ok(kn_shard_describe(path, 1, 1, &text));
    assert_non_null(strstr(text, "caf\\\\xe9.h5"));
    free(text);
    assert_ok(kn_shard_describe(path, 1, 0, &text));
    assert_non_null(strstr(text, "caf\\xe9.h5: shard, format version 1"));
    free(text);
}

static void every_flipped_byte_is_caught(void **state)
{
    (void)state;
    const char *path = test_path("flipped.h5");
    write_shard(path, &pixels, 2, 1);
    struct stat status;
    assert_int_equal(stat(path, &status), 0);
    assert_false(is_caught(path));
    FILE *file = fopen(path, "r+b");
    setvbuf(file, NULL, _IONBF, 0);
    /* all bytes would take a minute: both ends, and a step between that meets every structure and bit */
    for (long at = 0; at < status.st_size; at += at < 1024 || at > status.st_size - 1024 ? 1 : 31) {
        fseek(file, at, SEEK_SET);
        int kept = fgetc(file);
        fseek(file, at, SEEK_SET);
        fputc(kept ^ (1 << at % 8), file);
        if (!is_caught(path))
            fail_msg("byte %ld of %ld changed unseen", at, (long)status.st_size);
        fseek(file, at, SEEK_SET);
        fputc(kept, file);
    }
    fclose(file);
    assert_false(is_caught(path));
}

static void every_truncation_is_caught(void **state)
{
    (void)state;
    write_shard(test_path("whole.h5"), &pixels, 2, 1);
    char *bytes;
    size_t size;
    assert_ok(kn_file_read(test_path("whole.h5"), &bytes, &size));
    const char *path = test_path("cut.h5");
    put_file(path, bytes, size);
    for (size_t length = size; length-- > 0;) {
        if (length % 101 && length > 300 && length < size - 300)
            continue;
        assert_int_equal(truncate(path, (off_t)length), 0);
        assert_true(is_caught(path));
    }
    free(bytes);
}

static void what_is_no_shard_is_refused_in_one_sentence(void **state)
{
    (void)state;
    KnShard *shard;
    put_text(test_path("empty.h5"), "");
    put_text(test_path("words.h5"), "words, words, words");
    char *bytes;
    size_t size;
    write_shard(test_path("v.h5"), &pixels, 1, 1);
    assert_ok(kn_file_read(test_path("v.h5"), &bytes, &size));
    char *footer = memmem(bytes, size, "kinora-shard 1", 14);
    while (footer && footer != bytes + size - 128)
        footer = memmem(footer + 1, (size_t)(bytes + size - footer - 1), "kinora-shard 1", 14);
    assert_non_null(footer);
    footer[13] = '7';
    put_file(test_path("future.h5"), bytes, size);
    put_file(test_path("foreign.h5"), bytes, size - 128);
    free(bytes);
    assert_fails(kn_shard_open(&shard, test_path("absent.h5")), KN_EIO, "absent.h5: cannot be opened");
    assert_fails(kn_shard_open(&shard, test_folder), KN_EFORMAT, "not a regular file");
    assert_fails(kn_shard_open(&shard, test_path("empty.h5")), KN_EFORMAT, "empty");
    assert_fails(kn_shard_open(&shard, test_path("words.h5")), KN_EFORMAT, "not a shard");
    assert_fails(kn_shard_open(&shard, test_path("future.h5")), KN_EFORMAT, "version 7");
    assert_fails(kn_shard_open(&shard, test_path("foreign.h5")), KN_EFORMAT, "truncated, damaged or foreign");
}

static void a_writer_that_gives_up_leaves_nothing(void **state)
{
    (void)state;
    mkdir(test_path("given-up"), 0700);
    KnShardWriter *writer;
    assert_ok(kn_shard_writer_open(&writer, test_path("given-up/x.h5"), &pixels));
    assert_ok(kn_shard_writer_source(writer, &(KnSource){.path = "x"}));
    add_clip(writer, 40, 1, 1, 1);
    kn_shard_writer_abandon(writer);
    assert_fails(kn_shard_writer_open(&writer, test_path("no-folder/x.h5"), &pixels), KN_EIO, "no-folder/x.h5");
    KnStringList left = {0};
    assert_ok(kn_list_directory(test_path("given-up"), &left));
    assert_int_equal(left.count, 0);
    kn_string_list_clear(&left);
}

/* ---- data sets ---- */

static void write_index(const char *folder, const char *format, int complete, int clips, const char *shards)
{
    char text[512], path[512];
    snprintf(text, sizeof text, "{\"format\": \"%s\", \"complete\": %s, \"clips\": %d, \"shards\": [%s]}", format,
             complete ? "true" : "false", clips, shards);
    snprintf(path, sizeof path, "%s/index.json", folder);
    put_text(path, text);
}

static void make_dataset(const char *name, const KnShardFormat *format)
{
    char path[512];
    mkdir(test_path(name), 0700);
    snprintf(path, sizeof path, "%s/clips-00000.h5", test_path(name));
    write_shard(path, format, 3, 2);
    write_index(test_path(name), "kinora-dataset", 1, 3, "{\"file\": \"clips-00000.h5\"}");
}

static void folders_that_are_no_data_set_are_refused(void **state)
{
    (void)state;
    KnDataset *dataset;
    const KnShardFormat other_patch = {.kind = KN_VALUE_PIXELS, .patch = {2, 8, 2}, .channels = 3};
    make_dataset("good", &pixels);
    make_dataset("other", &other_patch);
    mkdir(test_path("bare"), 0700);
    const struct {
        const char *folders[2];
        int count, code;
        const char *sentence;
    } cases[] = {
        {{"nowhere", NULL}, 1, KN_EIO, "no such folder"},
        {{"bare", NULL}, 1, KN_EFORMAT, "no index.json"},
        {{"good", "other"}, 2, KN_EINPUT, "--patch"},
        {{"good", "nowhere"}, 2, KN_EIO, "nowhere"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *folders[2] = {test_path(cases[i].folders[0]),
                                  cases[i].folders[1] ? test_path(cases[i].folders[1]) : ""};
        assert_fails(kn_dataset_open(&dataset, folders, cases[i].count), cases[i].code, cases[i].sentence);
    }
    const char *good = test_path("good"), *twice[2] = {good, good};
    write_index(good, "kinora-dataset", 0, 3, "{\"file\": \"clips-00000.h5\"}");
    assert_fails(kn_dataset_open(&dataset, &good, 1), KN_EFORMAT, "not finished");
    write_index(good, "something", 1, 3, "{\"file\": \"clips-00000.h5\"}");
    assert_fails(kn_dataset_open(&dataset, &good, 1), KN_EFORMAT, "not the index");
    write_index(good, "kinora-dataset", 1, 2, "{\"file\": \"clips-00000.h5\"}");
    assert_fails(kn_dataset_open(&dataset, &good, 1), KN_EFORMAT, "states 2 clips");
    write_index(good, "kinora-dataset", 1, 3, "{\"file\": \"clips-00001.h5\"}");
    assert_fails(kn_dataset_open(&dataset, &good, 1), KN_EIO, "clips-00001.h5");
    write_index(good, "kinora-dataset", 1, 3, "{\"file\": \"clips-00000.h5\"}");
    assert_ok(kn_dataset_open(&dataset, twice, 2)); /* the same folder twice is twice the weight, not a mistake */
    assert_int_equal(kn_dataset_clip_count(dataset), 6);
    kn_dataset_close(dataset);
}

typedef struct Reader {
    KnDataset *dataset;
    int failures;
} Reader;

static void *read_many(void *argument)
{
    Reader *reader = argument;
    uint8_t *got = kn_alloc(4 * 15 * DIM), *expected = kn_alloc(4 * 15 * DIM);
    for (int i = 0; i < 200; i++) {
        const KnClip *clip = kn_dataset_clip(reader->dataset, i % 3);
        fill_patches(expected, clip->tokens, (int)clip->segment);
        if (kn_dataset_read_clip(reader->dataset, i % 3, got) != 0 ||
            memcmp(got, expected, (size_t)clip->tokens * DIM) != 0)
            reader->failures++;
    }
    free(got);
    free(expected);
    return NULL;
}

static void threads_may_read_at_once(void **state)
{
    (void)state;
    make_dataset("threads", &pixels);
    const char *folder = test_path("threads");
    KnDataset *dataset;
    assert_ok(kn_dataset_open(&dataset, &folder, 1));
    Reader readers[3];
    pthread_t threads[3];
    for (int i = 0; i < 3; i++) {
        readers[i] = (Reader){dataset, 0};
        pthread_create(&threads[i], NULL, read_many, &readers[i]);
    }
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
        assert_int_equal(readers[i].failures, 0);
    }
    kn_dataset_close(dataset);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(patches_are_in_the_order_that_is_stated),
        cmocka_unit_test(patchify_and_back_is_exact_for_any_layout),
        cmocka_unit_test(a_shard_gives_back_what_was_written),
        cmocka_unit_test(latents_are_stored_as_16_bits),
        cmocka_unit_test(another_program_reads_it),
        cmocka_unit_test(a_name_that_is_not_utf8_is_told_all_the_same),
        cmocka_unit_test(every_flipped_byte_is_caught),
        cmocka_unit_test(every_truncation_is_caught),
        cmocka_unit_test(what_is_no_shard_is_refused_in_one_sentence),
        cmocka_unit_test(a_writer_that_gives_up_leaves_nothing),
        cmocka_unit_test(folders_that_are_no_data_set_are_refused),
        cmocka_unit_test(threads_may_read_at_once),
    };
    return cmocka_run_group_tests(tests, make_test_folder, remove_test_folder);
}
