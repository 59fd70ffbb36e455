/* Promises of data/loader.h, over shards that synth and prep made. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/memory.h"
#include "data/commands.h"
#include "data/loader.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ARGS = 32, CLIPS = 60, BUDGET = 200, PACKS = 4, MAX_TEXT = 16 };
static char folder[64];
static KnDataset *dataset;
static KnTokenizer *tokenizer;
static KnDataConfig data = {.tokens = BUDGET, .clips = 8, .validation_clips = 10};

static void command(int (*run)(int, char **), const char *words)
{
    char *line = kn_strdup(words), *argv[ARGS];
    int argc = 0;
    for (char *word = strtok(line, " "); word; word = strtok(NULL, " "))
        argv[argc++] = word;
    if (run(argc, argv))
        fail_msg("%s: %s", words, kn_error_message());
    free(line);
}

static void make_videos(const char *name, int count, const char *more)
{
    char *words = kn_format("synth moving-shapes --out %s/videos/%s --count %d %s", folder, name, count, more);
    command(kn_command_synth, words);
    free(words);
}

/* Three shapes of clips: 64, 32 and 12 tokens; every clip of the first kind has two captions, the last has none. */
static int make_dataset(void **state)
{
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/kinora-loader-XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    kn_log_set_quiet(1);
    make_videos("square", 20, "--frames 8");
    make_videos("short", 25, "--frames 4");
    make_videos("wide", 15, "--size 48x32 --frames 2");
    char *more = kn_format("%s/more.csv", folder);
    FILE *file = fopen(more, "w");
    fprintf(file, "path,caption\n");
    for (int i = 0; i < 20; i++)
        fprintf(file, "videos/square/clip-%06d.mp4,something moves\n", i);
    fclose(file);
    char *words = kn_format("prep --out %s/shards --patch 2,8,8 --captions %s --captions %s/videos/square/captions.csv "
                            "--captions %s/videos/short/captions.csv %s/videos",
                            folder, more, folder, folder, folder);
    command(kn_command_prep, words);
    free(words);
    free(more);
    char *shards = kn_format("%s/shards", folder);
    int code = kn_dataset_open(&dataset, (const char *const[]){shards}, 1);
    free(shards);
    if (code)
        fail_msg("%s", kn_error_message());
    const char **captions;
    int64_t count = kn_loader_captions(dataset, &captions);
    assert_int_equal(count, 20 * 2 + 25);
    code = kn_tokenizer_train(captions, count, 200, &tokenizer);
    free(captions);
    return code;
}

static int remove_dataset(void **state)
{
    (void)state;
    kn_dataset_close(dataset);
    kn_tokenizer_destroy(tokenizer);
    return kn_remove_tree(folder);
}

static KnLoaderOptions defaults(void)
{
    return (KnLoaderOptions){.dataset = dataset,
                             .tokenizer = tokenizer,
                             .data = &data,
                             .max_text_tokens = MAX_TEXT,
                             .packs_per_step = PACKS,
                             .seed = 3,
                             .ranks = 1};
}

static KnLoader *open_loader(KnLoaderOptions options)
{
    KnLoader *loader = NULL;
    if (kn_loader_open(&loader, &options))
        fail_msg("%s", kn_error_message());
    return loader;
}

static const KnBatch *next(KnLoader *loader)
{
    const KnBatch *batch = NULL;
    if (kn_loader_next(loader, &batch))
        fail_msg("%s", kn_error_message());
    return batch;
}

/* Everything that a step depends on, as one number. */
static uint64_t fingerprint(const KnBatch *batch)
{
    uint64_t hash = 14695981039346656037u;
#define MIX(value) hash = (hash ^ (uint64_t)(value)) * 1099511628211u
    MIX(batch->step);
    MIX(batch->index);
    MIX(batch->epoch);
    MIX(batch->pack);
    MIX(batch->step_tokens);
    MIX(batch->step_clips);
    for (int64_t i = 0; i < batch->clip_count; i++) {
        MIX(batch->clips[i].clip);
        for (int64_t t = 0; t < batch->clips[i].text_tokens; t++)
            MIX(batch->clips[i].text[t]);
    }
    const uint8_t *bytes = batch->patches;
    for (int64_t i = 0; i < batch->tokens * kn_dataset_format(dataset)->patch_dim; i++)
        MIX(bytes[i]);
#undef MIX
    return hash;
}

static void packs_hold_the_patches_of_their_clips(void **state)
{
    (void)state;
    KnLoader *loader = open_loader(defaults());
    int64_t dim = kn_dataset_format(dataset)->patch_dim;
    uint8_t *patches = malloc((size_t)(64 * dim));
    for (int p = 0; p < 8; p++) {
        const KnBatch *batch = next(loader);
        int64_t tokens = 0;
        assert_int_equal(batch->step, p / PACKS);
        assert_int_equal(batch->index, p % PACKS);
        for (int64_t i = 0; i < batch->clip_count; i++) {
            const KnBatchClip *clip = &batch->clips[i];
            const KnClip *stored = kn_dataset_clip(dataset, clip->clip);
            assert_int_equal(clip->first_token, tokens);
            assert_int_equal(clip->tokens, stored->tokens);
            assert_memory_equal(clip->grid, stored->grid, sizeof clip->grid);
            assert_int_equal(kn_dataset_read_clip(dataset, clip->clip, patches), KN_OK);
            assert_memory_equal((const uint8_t *)batch->patches + tokens * dim, patches, (size_t)(clip->tokens * dim));
            tokens += clip->tokens;
        }
        assert_int_equal(batch->tokens, tokens);
        assert_true(tokens <= BUDGET);
    }
    free(patches);
    kn_loader_close(loader);
}

static void an_epoch_sees_every_training_clip_once_and_no_validation_clip(void **state)
{
    (void)state;
    int seen[2][CLIPS] = {{0}};
    KnLoaderOptions options = defaults();
    KnLoader *loader = open_loader(options);
    int64_t packs = kn_loader_epoch_packs(loader);
    for (int64_t p = 0; p < packs; p++) {
        const KnBatch *batch = next(loader);
        assert_int_equal(batch->epoch, 0);
        assert_int_equal(batch->pack, p);
        for (int64_t i = 0; i < batch->clip_count; i++)
            seen[0][batch->clips[i].clip]++;
    }
    assert_int_equal(next(loader)->epoch, 1);
    kn_loader_close(loader);

    options.validation = 1;
    loader = open_loader(options);
    const KnBatch *batch;
    int code;
    while ((code = kn_loader_next(loader, &batch)) == KN_OK) {
        assert_int_equal(batch->step_tokens, batch->tokens);
        for (int64_t i = 0; i < batch->clip_count; i++)
            seen[1][batch->clips[i].clip]++;
    }
    assert_int_equal(code, KN_END);
    kn_loader_close(loader);
    int counts[2] = {0};
    for (int clip = 0; clip < CLIPS; clip++) {
        assert_int_equal(seen[0][clip] + seen[1][clip], 1);
        counts[0] += seen[0][clip];
        counts[1] += seen[1][clip];
    }
    assert_int_equal(counts[0], CLIPS - 10);
    assert_int_equal(counts[1], 10);
}

static void ranks_share_out_the_same_packs(void **state)
{
    (void)state;
    enum { STEPS = 12 };
    uint64_t alone[STEPS * PACKS];
    KnLoader *loader = open_loader(defaults());
    for (int p = 0; p < STEPS * PACKS; p++)
        alone[p] = fingerprint(next(loader));
    kn_loader_close(loader);
    for (int ranks = 2; ranks <= 4; ranks += 2)
        for (int rank = 0; rank < ranks; rank++) {
            KnLoaderOptions options = defaults();
            options.rank = rank;
            options.ranks = ranks;
            loader = open_loader(options);
            for (int p = rank; p < STEPS * PACKS; p += ranks)
                assert_true(fingerprint(next(loader)) == alone[p]);
            kn_loader_close(loader);
        }
}

static void a_resumed_loader_goes_on_where_the_other_stopped(void **state)
{
    (void)state;
    enum { STEPS = 15 };
    uint64_t whole[STEPS];
    KnLoaderOptions options = defaults();
    options.caption_dropout = 0.3;
    options.packs_per_step = 3; /* steps straddle epochs */
    KnLoader *loader = open_loader(options);
    for (int s = 0; s < STEPS; s++) {
        whole[s] = fingerprint(next(loader));
        next(loader);
        next(loader);
    }
    kn_loader_close(loader);
    for (int s = 0; s < STEPS; s++) {
        options.first_step = s;
        loader = open_loader(options);
        assert_true(fingerprint(next(loader)) == whole[s]);
        kn_loader_close(loader);
    }
}

static void step_totals_count_all_packs_of_the_step(void **state)
{
    (void)state;
    KnLoader *loader = open_loader(defaults());
    for (int s = 0; s < 8; s++) {
        int64_t tokens = 0, clips = 0, said_tokens = 0, said_clips = 0;
        for (int p = 0; p < PACKS; p++) {
            const KnBatch *batch = next(loader);
            tokens += batch->tokens;
            clips += batch->clip_count;
            said_tokens = batch->step_tokens;
            said_clips = batch->step_clips;
        }
        assert_int_equal(tokens, said_tokens);
        assert_int_equal(clips, said_clips);
    }
    kn_loader_close(loader);
}

static int64_t encode(const char *caption, int32_t *ids)
{
    int64_t count;
    assert_int_equal(kn_tokenizer_encode(tokenizer, caption, MAX_TEXT, ids, &count), KN_OK);
    return count;
}

static int is_caption(const KnBatchClip *clip, const char *caption)
{
    int32_t ids[MAX_TEXT];
    int64_t count = encode(caption, ids);
    return count == clip->text_tokens && !memcmp(ids, clip->text, (size_t)count * sizeof *ids);
}

static void captions_are_drawn_dropped_and_absent_as_asked(void **state)
{
    (void)state;
    int drawn[2] = {0}, dropped = 0, captioned = 0;
    KnLoaderOptions options = defaults();
    options.caption_dropout = 0.25;
    KnLoader *loader = open_loader(options);
    for (const KnBatch *batch = next(loader); batch->epoch < 12; batch = next(loader))
        for (int64_t i = 0; i < batch->clip_count; i++) {
            const KnBatchClip *clip = &batch->clips[i];
            int64_t captions = kn_dataset_clip(dataset, clip->clip)->captions;
            if (captions == 0) {
                assert_true(is_caption(clip, ""));
                continue;
            }
            captioned++;
            if (is_caption(clip, "")) {
                dropped++;
                continue;
            }
            int which = captions == 2 && is_caption(clip, kn_dataset_caption(dataset, clip->clip, 1));
            assert_true(which || is_caption(clip, kn_dataset_caption(dataset, clip->clip, 0)));
            drawn[which] += captions == 2;
        }
    kn_loader_close(loader);
    double share = (double)dropped / captioned;
    assert_true(share > 0.18 && share < 0.32);
    double second = (double)drawn[1] / (drawn[0] + drawn[1]);
    assert_true(second > 0.35 && second < 0.65);
}

static void closing_early_and_often_is_fine(void **state)
{
    (void)state;
    for (int packs = 0; packs < 6; packs++) {
        KnLoader *loader = open_loader(defaults());
        for (int p = 0; p < packs; p++)
            next(loader);
        kn_loader_close(loader);
    }
    kn_loader_close(NULL);
}

static void what_cannot_be_loaded_is_said_in_a_sentence(void **state)
{
    (void)state;
    static const struct {
        KnDataConfig data;
        const char *says;
    } cases[] = {
        {{.tokens = 63, .clips = 8}, "/videos/square/clip-"},
        {{.tokens = 63, .clips = 8}, "set data.tokens to at least 64"},
        {{.tokens = 200, .clips = 8, .text_tokens = 5}, "set data.text_tokens to at least"},
        {{.tokens = 200, .clips = 8, .validation_clips = CLIPS}, "sets aside all 60 clips"},
    };
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        KnLoaderOptions options = defaults();
        options.data = &cases[c].data;
        KnLoader *loader;
        assert_int_equal(kn_loader_open(&loader, &options), KN_EINPUT);
        assert_null(loader);
        if (!strstr(kn_error_message(), cases[c].says))
            fail_msg("\"%s\" does not say \"%s\"", kn_error_message(), cases[c].says);
    }
    KnLoaderOptions options = defaults();
    KnDataConfig none_aside = data;
    none_aside.validation_clips = 0;
    options.data = &none_aside;
    options.validation = 1;
    options.tokenizer = NULL;
    KnLoader *loader = open_loader(options);
    const KnBatch *batch;
    assert_int_equal(kn_loader_next(loader, &batch), KN_END);
    kn_loader_close(loader);
}

/* A shard that is damaged after it was opened: the thread's sentence reaches the caller, and the caller goes on. */
static void damage_found_by_the_thread_reaches_the_caller(void **state)
{
    (void)state;
    char *copy = kn_format("%s/damaged", folder), *words = kn_format("cp -r %s/shards %s", folder, copy);
    assert_int_equal(system(words), 0);
    KnDataset *damaged;
    assert_int_equal(kn_dataset_open(&damaged, (const char *const[]){copy}, 1), KN_OK);
    KnStringList names = {0};
    assert_int_equal(kn_list_directory(copy, &names), KN_OK);
    for (int i = 0; i < names.count; i++)
        if (kn_ends_with(names.items[i], ".h5")) {
            char *path = kn_path_join(copy, names.items[i]);
            int64_t size;
            assert_int_equal(kn_file_size(path, &size), KN_OK);
            FILE *file = fopen(path, "r+b");
            for (int64_t at = size / 4; at < size * 3 / 4; at += 512) {
                fseek(file, (long)at, SEEK_SET);
                fputc(0x5a, file);
            }
            fclose(file);
            free(path);
        }
    KnLoaderOptions options = defaults();
    options.dataset = damaged;
    KnLoader *loader = open_loader(options);
    const KnBatch *batch;
    int code = KN_OK;
    for (int p = 0; p < 40 && code == KN_OK; p++)
        code = kn_loader_next(loader, &batch);
    assert_true(code == KN_EFORMAT || code == KN_EIO);
    assert_non_null(strstr(kn_error_message(), copy));
    assert_int_equal(kn_loader_next(loader, &batch), code);
    kn_loader_close(loader);
    kn_dataset_close(damaged);
    kn_string_list_clear(&names);
    free(words);
    free(copy);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packs_hold_the_patches_of_their_clips),
        cmocka_unit_test(an_epoch_sees_every_training_clip_once_and_no_validation_clip),
        cmocka_unit_test(ranks_share_out_the_same_packs),
        cmocka_unit_test(a_resumed_loader_goes_on_where_the_other_stopped),
        cmocka_unit_test(step_totals_count_all_packs_of_the_step),
        cmocka_unit_test(captions_are_drawn_dropped_and_absent_as_asked),
        cmocka_unit_test(closing_early_and_often_is_fine),
        cmocka_unit_test(what_cannot_be_loaded_is_said_in_a_sentence),
        cmocka_unit_test(damage_found_by_the_thread_reaches_the_caller),
    };
    return cmocka_run_group_tests(tests, make_dataset, remove_dataset);
}
