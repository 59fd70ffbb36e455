/* Promises of core/model/tokenizer.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/model/tokenizer.h"

#include <stdlib.h>
#include <string.h>

enum { TINY = 4, SHAPES = 480 };
static const char *const tiny[TINY] = {"a dog runs on the beach", "a cat sleeps", "the dog sleeps", "two birds fly"};

static KnTokenizer *learn(const char *const *captions, int64_t count, int64_t vocabulary)
{
    KnTokenizer *tokenizer = NULL;
    int code = kn_tokenizer_train(captions, count, vocabulary, &tokenizer);
    if (code)
        fail_msg("%s", kn_error_message());
    return tokenizer;
}

/* Words become one piece each (and the end): the promise for tiny sets. */
static void assert_whole_words(const KnTokenizer *tokenizer, const char *text)
{
    int32_t ids[64];
    int64_t count, words = 1;
    for (const char *c = text; *c; c++)
        words += *c == ' ';
    assert_int_equal(kn_tokenizer_encode(tokenizer, text, 64, ids, &count), KN_OK);
    if (count != words + 1) {
        for (int64_t i = 0; i < count; i++)
            print_message("%s ", kn_tokenizer_piece(tokenizer, ids[i]));
        fail_msg("%lld pieces for \"%s\"", (long long)count, text);
    }
    for (int64_t i = 0; i + 1 < count; i++)
        assert_true(ids[i] > kn_tokenizer_unknown(tokenizer));
    assert_int_equal(ids[count - 1], kn_tokenizer_end(tokenizer));
}

static void every_word_of_a_tiny_caption_set_is_one_piece(void **state)
{
    (void)state;
    for (int64_t vocabulary = 60; vocabulary <= 8000; vocabulary *= 5) {
        KnTokenizer *tokenizer = learn(tiny, TINY, vocabulary);
        for (int i = 0; i < TINY; i++)
            assert_whole_words(tokenizer, tiny[i]);
        assert_true(kn_tokenizer_vocabulary(tokenizer) <= vocabulary);
        kn_tokenizer_destroy(tokenizer);
    }
}

static void every_word_of_480_shape_captions_is_one_piece(void **state)
{
    (void)state;
    static const char *const colours[] = {"red", "green", "blue", "yellow", "magenta", "cyan", "white", "orange"};
    static const char *const shapes[] = {"circle", "square", "triangle", "cross"};
    static const char *const motions[] = {"moves left", "moves right", "moves up", "moves down", "stays still"};
    static const char *const grounds[] = {"black", "gray", "brown"};
    char *captions[SHAPES];
    for (int i = 0; i < SHAPES; i++)
        captions[i] = kn_format("a %s %s %s on a %s background", colours[i % 8], shapes[i / 8 % 4], motions[i / 32 % 5],
                                grounds[i / 160]);
    for (int64_t vocabulary = 64; vocabulary <= 1024; vocabulary *= 4) {
        KnTokenizer *tokenizer = learn((const char *const *)captions, SHAPES, vocabulary);
        for (int i = 0; i < SHAPES; i++)
            assert_whole_words(tokenizer, captions[i]);
        kn_tokenizer_destroy(tokenizer);
    }
    for (int i = 0; i < SHAPES; i++)
        free(captions[i]);
}

static void every_word_of_random_tiny_sets_is_one_piece(void **state)
{
    (void)state;
    uint32_t lcg = 7;
    for (int set = 0; set < 40; set++) {
        char words[25][12], captions[20][128] = {""};
        const char *list[20];
        int word_count = 9 + set % 17;
        for (int w = 0; w < word_count; w++)
            for (int c = 0, length = 2 + w % 8; c <= length; c++) {
                lcg = lcg * 1664525 + 1013904223;
                words[w][c] = c == length ? '\0' : "etaoinshrdlu"[(lcg >> 16) % 12];
            }
        for (int i = 0; i < 20; i++) {
            for (int k = 0; k < 5; k++) {
                strcat(captions[i], k ? " " : "");
                strcat(captions[i], words[(i + k * k * set + k) % word_count]);
            }
            list[i] = captions[i];
        }
        KnTokenizer *tokenizer = learn(list, 20, 256);
        for (int i = 0; i < 20; i++)
            assert_whole_words(tokenizer, captions[i]);
        kn_tokenizer_destroy(tokenizer);
    }
}

static void the_empty_caption_is_the_end_piece_alone(void **state)
{
    (void)state;
    KnTokenizer *tokenizer = learn(tiny, TINY, 100);
    int32_t ids[8];
    int64_t count;
    assert_int_equal(kn_tokenizer_encode(tokenizer, "", 8, ids, &count), KN_OK);
    assert_int_equal(count, 1);
    assert_int_equal(ids[0], kn_tokenizer_end(tokenizer));
    assert_int_equal(kn_tokenizer_pad(tokenizer), 0);
    assert_int_equal(kn_tokenizer_end(tokenizer), 1);
    assert_int_equal(kn_tokenizer_unknown(tokenizer), 2);
    kn_tokenizer_destroy(tokenizer);
}

static void a_long_caption_loses_its_last_words_never_the_end(void **state)
{
    (void)state;
    KnTokenizer *tokenizer = learn(tiny, TINY, 100);
    int32_t whole[16], cut[16];
    int64_t whole_count, cut_count;
    assert_int_equal(kn_tokenizer_encode(tokenizer, tiny[0], 16, whole, &whole_count), KN_OK);
    for (int64_t most = 1; most <= whole_count; most++) {
        assert_int_equal(kn_tokenizer_encode(tokenizer, tiny[0], most, cut, &cut_count), KN_OK);
        assert_int_equal(cut_count, most);
        assert_memory_equal(cut, whole, (size_t)(most - 1) * sizeof *cut);
        assert_int_equal(cut[most - 1], kn_tokenizer_end(tokenizer));
    }
    kn_tokenizer_destroy(tokenizer);
}

static void capitals_and_unseen_words_are_spelt_with_known_pieces(void **state)
{
    (void)state;
    KnTokenizer *tokenizer = learn(tiny, TINY, 100);
    int32_t a[32], b[32];
    int64_t na, nb;
    assert_int_equal(kn_tokenizer_encode(tokenizer, "A  Dog RUNS", 32, a, &na), KN_OK);
    assert_int_equal(kn_tokenizer_encode(tokenizer, "a dog runs", 32, b, &nb), KN_OK);
    assert_int_equal(na, nb);
    assert_memory_equal(a, b, (size_t)na * sizeof *a);
    assert_int_equal(kn_tokenizer_encode(tokenizer, "a god", 32, a, &na), KN_OK);
    for (int64_t i = 0; i < na; i++)
        assert_int_not_equal(a[i], kn_tokenizer_unknown(tokenizer));
    assert_int_equal(kn_tokenizer_encode(tokenizer, "\xff\xfe \xe2\x82", 32, a, &na), KN_OK); /* not UTF-8 */
    assert_int_equal(a[na - 1], kn_tokenizer_end(tokenizer));
    kn_tokenizer_destroy(tokenizer);
}

static void the_same_captions_give_the_same_bytes_and_load_back(void **state)
{
    (void)state;
    KnTokenizer *a = learn(tiny, TINY, 100), *b = learn(tiny, TINY, 100), *c;
    size_t na, nb;
    const void *ma = kn_tokenizer_model(a, &na), *mb = kn_tokenizer_model(b, &nb);
    assert_int_equal(na, nb);
    assert_memory_equal(ma, mb, na);
    assert_int_equal(kn_tokenizer_load(ma, na, "copy", &c), KN_OK);
    assert_int_equal(kn_tokenizer_vocabulary(c), kn_tokenizer_vocabulary(a));
    for (int32_t id = 0; id < kn_tokenizer_vocabulary(a); id++)
        assert_string_equal(kn_tokenizer_piece(a, id), kn_tokenizer_piece(c, id));
    kn_tokenizer_destroy(a);
    kn_tokenizer_destroy(b);
    kn_tokenizer_destroy(c);
}

static void what_cannot_be_learned_is_said_in_a_sentence(void **state)
{
    (void)state;
    static const char *const blank[] = {"", "  \t"};
    KnTokenizer *tokenizer;
    assert_int_equal(kn_tokenizer_train(NULL, 0, 100, &tokenizer), KN_EINPUT);
    assert_int_equal(kn_tokenizer_train(blank, 2, 100, &tokenizer), KN_EINPUT);
    assert_non_null(strstr(kn_error_message(), "none of the 2 captions has a word"));
    assert_int_equal(kn_tokenizer_train(tiny, TINY, 5, &tokenizer), KN_EINPUT);
    assert_non_null(strstr(kn_error_message(), "5 pieces"));
    assert_null(tokenizer);
}

static void damaged_models_are_refused_or_harmless(void **state)
{
    (void)state;
    KnTokenizer *good = learn(tiny, TINY, 100), *bad;
    size_t bytes;
    const unsigned char *model = kn_tokenizer_model(good, &bytes);
    assert_int_equal(kn_tokenizer_load("not a model at all", 18, "x.model", &bad), KN_EFORMAT);
    assert_non_null(strstr(kn_error_message(), "x.model"));
    assert_int_equal(kn_tokenizer_load("", 0, "x.model", &bad), KN_EFORMAT);
    unsigned char *copy = malloc(bytes);
    uint32_t lcg = 1;
    int loaded = 0;
    for (int round = 0; round < 600; round++) {
        memcpy(copy, model, bytes);
        size_t length = bytes, reach = round % 2 ? bytes : 2500; /* anywhere, or among the pieces */
        lcg = lcg * 1664525 + 1013904223;
        if (round % 8 == 0)
            length = lcg % bytes;
        for (int flips = round % 8 ? 1 << round % 14 : 0; flips; flips--) {
            lcg = lcg * 1664525 + 1013904223;
            copy[(lcg >> 4) % reach] ^= (unsigned char)(1U << (lcg & 3));
        }
        if (kn_tokenizer_load(copy, length, "damaged", &bad))
            continue;
        int32_t ids[64];
        int64_t count;
        if (!kn_tokenizer_encode(bad, "A dog \xc2\xbd runs \xe3\x8e\x8f on the beach", 64, ids, &count))
            assert_true(count >= 1 && count <= 64);
        kn_tokenizer_destroy(bad);
        loaded++;
    }
    assert_true(loaded > 0); /* the rest of the promise: that nothing else happened */
    free(copy);
    kn_tokenizer_destroy(good);
}

static void a_missing_file_is_named(void **state)
{
    (void)state;
    KnTokenizer *tokenizer;
    assert_int_equal(kn_tokenizer_load_file("/nowhere/spiece.model", &tokenizer), KN_EIO);
    assert_non_null(strstr(kn_error_message(), "/nowhere/spiece.model"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_word_of_a_tiny_caption_set_is_one_piece),
        cmocka_unit_test(every_word_of_480_shape_captions_is_one_piece),
        cmocka_unit_test(every_word_of_random_tiny_sets_is_one_piece),
        cmocka_unit_test(the_empty_caption_is_the_end_piece_alone),
        cmocka_unit_test(a_long_caption_loses_its_last_words_never_the_end),
        cmocka_unit_test(capitals_and_unseen_words_are_spelt_with_known_pieces),
        cmocka_unit_test(the_same_captions_give_the_same_bytes_and_load_back),
        cmocka_unit_test(what_cannot_be_learned_is_said_in_a_sentence),
        cmocka_unit_test(damaged_models_are_refused_or_harmless),
        cmocka_unit_test(a_missing_file_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
