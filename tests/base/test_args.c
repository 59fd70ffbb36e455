/* The option table: every kind of value, both spellings, help, and a table of mistakes with the sentence they must
 * give. */
#include "core/base/args.h"
#include "core/base/error.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

typedef struct Options {
    int fast, json;
    const char *out, *dtype;
    int64_t count, seed;
    double rate;
    KnArgSize size;
    KnArgInts patch;
    KnArgList captions;
} Options;

#define FIELD(name) offsetof(Options, name)
static const KnArg rows[] = {
    {.name = "out",
     .kind = KN_ARG_STRING,
     .offset = FIELD(out),
     .metavariable = "DIR",
     .meaning = "folder to write",
     .required = 1},
    {.name = "dtype",
     .kind = KN_ARG_CHOICE,
     .offset = FIELD(dtype),
     .metavariable = "f32|bf16",
     .fallback = "bf16",
     .meaning = "number format of the pass"},
    {.name = "count",
     .kind = KN_ARG_INT,
     .offset = FIELD(count),
     .metavariable = "N",
     .fallback = "100",
     .meaning = "clips to write",
     .low = 1,
     .high = 1000},
    {.name = "seed", .kind = KN_ARG_INT, .offset = FIELD(seed), .metavariable = "S", .meaning = "seed"},
    {.name = "rate",
     .kind = KN_ARG_FLOAT,
     .offset = FIELD(rate),
     .metavariable = "F",
     .fallback = "0.5",
     .meaning = "frames a second",
     .low = 0,
     .high = 240},
    {.name = "size",
     .kind = KN_ARG_SIZE,
     .offset = FIELD(size),
     .metavariable = "WxH",
     .fallback = "32x16",
     .meaning = "picture size",
     .low = 1,
     .high = 4096},
    {.name = "patch",
     .kind = KN_ARG_INTS,
     .offset = FIELD(patch),
     .metavariable = "T,H,W",
     .fallback = "2,8,8",
     .meaning = "patch size"},
    {.name = "captions",
     .kind = KN_ARG_STRINGS,
     .offset = FIELD(captions),
     .metavariable = "FILE",
     .fallback = "captions.csv",
     .meaning = "table of captions"},
    {.name = "fast", .kind = KN_ARG_FLAG, .offset = FIELD(fast), .meaning = "skip checks"},
    {.name = "json", .kind = KN_ARG_FLAG, .offset = FIELD(json), .meaning = "print one JSON object"},
};
static const KnArgSpec spec = {.command = "prep",
                               .usage = "--out DIR [options] INPUT...\n--resume DIR",
                               .description = "Turns videos into shards.",
                               .examples =
                                   "kinora prep --out shards videos\nmpirun -n 2 kinora prep --out shards videos",
                               .args = rows,
                               .arg_count = sizeof rows / sizeof *rows,
                               .least_positionals = 1,
                               .most_positionals = 2};

/* Splits at spaces; the words must outlive the parse, as argv does. */
static int parse(const char *line, Options *options, KnArgList *positionals)
{
    static char copy[512];
    static char *words[32];
    int count = 0;
    strcpy(copy, line);
    for (char *word = strtok(copy, " "); word; word = strtok(NULL, " "))
        words[count++] = word;
    return kn_args_parse(&spec, count, words, options, positionals);
}

static void values_of_every_kind_are_read_in_both_spellings(void **state)
{
    (void)state;
    static const char *const lines[] = {
        "prep --out d --dtype f32 --count 7 --seed -3 --rate 2.5 --size 64x48 --patch 1,2,2,9 --fast in",
        "prep in --out=d --dtype=f32 --count=7 --seed=-3 --rate=25e-1 --size=64X48 --patch=1,2,2,9 --fast",
    };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        Options options = {0};
        KnArgList inputs = {0};
        assert_int_equal(parse(lines[i], &options, &inputs), KN_OK);
        assert_string_equal(options.out, "d");
        assert_string_equal(options.dtype, "f32");
        assert_int_equal(options.count, 7);
        assert_int_equal(options.seed, -3);
        assert_true(options.rate == 2.5);
        assert_int_equal(options.size.width, 64);
        assert_int_equal(options.size.height, 48);
        assert_int_equal(options.patch.count, 4);
        assert_int_equal(options.patch.values[3], 9);
        assert_int_equal(options.fast, 1);
        assert_int_equal(options.json, 0);
        assert_int_equal(inputs.count, 1);
        assert_string_equal(inputs.items[0], "in");
        kn_args_clear(&spec, &options, &inputs);
        assert_null(inputs.items);
    }
}

static void absent_options_get_their_fallback_and_others_keep_the_fields_value(void **state)
{
    (void)state;
    Options options = {.seed = 42};
    KnArgList inputs = {0};
    assert_int_equal(parse("prep --out d in", &options, &inputs), KN_OK);
    assert_string_equal(options.dtype, "bf16");
    assert_int_equal(options.count, 100);
    assert_int_equal(options.seed, 42);
    assert_true(options.rate == 0.5);
    assert_int_equal(options.size.width, 32);
    assert_int_equal(options.patch.count, 3);
    assert_int_equal(options.captions.count, 1);
    assert_string_equal(options.captions.items[0], "captions.csv");
    kn_args_clear(&spec, &options, &inputs);
}

static void repeated_options_add_up_in_lists_and_else_the_last_one_counts(void **state)
{
    (void)state;
    Options options = {0};
    KnArgList inputs = {0};
    assert_int_equal(parse("prep --captions a --out x --count 1 --captions=b in --out y --count 2", &options, &inputs),
                     KN_OK);
    assert_int_equal(options.captions.count, 2);
    assert_string_equal(options.captions.items[0], "a");
    assert_string_equal(options.captions.items[1], "b");
    assert_string_equal(options.out, "y");
    assert_int_equal(options.count, 2);
    kn_args_clear(&spec, &options, &inputs);
}

static void positionals_keep_their_order_and_two_dashes_end_the_options(void **state)
{
    (void)state;
    Options options = {0};
    KnArgList inputs = {0};
    assert_int_equal(parse("prep one --out d -- --fast", &options, &inputs), KN_OK);
    assert_int_equal(inputs.count, 2);
    assert_string_equal(inputs.items[0], "one");
    assert_string_equal(inputs.items[1], "--fast");
    assert_int_equal(options.fast, 0);
    kn_args_clear(&spec, &options, &inputs);
    inputs = (KnArgList){0};
    assert_int_equal(parse("prep - --out=--odd", &options, &inputs), KN_OK);
    assert_string_equal(inputs.items[0], "-");
    assert_string_equal(options.out, "--odd");
    kn_args_clear(&spec, &options, &inputs);
}

static void every_mistake_is_named(void **state)
{
    (void)state;
    static const struct {
        const char *line, *expected;
    } mistakes[] = {
        {"prep --out d --cuont 3 in", "unknown option --cuont; did you mean --count?"},
        {"prep --out d --captoins=f in", "did you mean --captions?"},
        {"prep --out d --xylophone in", "unknown option --xylophone; `kinora prep --help`"},
        {"prep --out d -f in", "unknown option -f"},
        {"prep in", "--out DIR is missing"},
        {"prep in --out", "--out needs a value: --out DIR"},
        {"prep --out --fast in", "--out needs a value"},
        {"prep --out d", "too few arguments; usage: kinora prep --out DIR [options] INPUT..."},
        {"prep --out d a b c", "unexpected argument \"c\""},
        {"prep --out d --fast=1 in", "--fast takes no value, but got \"1\""},
        {"prep --out d --dtype fp8 in", "--dtype: \"fp8\" is not one of f32|bf16"},
        {"prep --out d --dtype f3 in", "--dtype: \"f3\" is not one of f32|bf16"},
        {"prep --out d --dtype= in", "--dtype: \"\" is not one of f32|bf16"},
        {"prep --out d --count 3.5 in", "--count: \"3.5\" is not a whole number"},
        {"prep --out d --count= in", "--count: \"\" is not a whole number"},
        {"prep --out d --count 99999999999999999999 in", "is not a whole number"},
        {"prep --out d --count 0 in", "--count: 0 is too small, the least is 1"},
        {"prep --out d --count 1001 in", "--count: 1001 is too large, the most is 1000"},
        {"prep --out d --rate nan in", "--rate: \"nan\" is not a number"},
        {"prep --out d --rate 1e999 in", "--rate: \"1e999\" is not a number"},
        {"prep --out d --rate 3fps in", "--rate: \"3fps\" is not a number"},
        {"prep --out d --rate -1 in", "--rate: -1 is too small"},
        {"prep --out d --size 32 in", "--size: \"32\" is not a size such as 640x480"},
        {"prep --out d --size 32x in", "--size: \"32x\" is not a size"},
        {"prep --out d --size 32x0 in", "--size: \"32x0\" is not a size"},
        {"prep --out d --size 32x32x3 in", "--size: \"32x32x3\" is not a size"},
        {"prep --out d --size 32x9999 in", "--size: 32x9999 is too large, the most is 4096"},
        {"prep --out d --patch 2,,8 in", "--patch: \"2,,8\" is not a list of whole numbers"},
        {"prep --out d --patch 2,8, in", "--patch: \"2,8,\" is not a list of whole numbers"},
        {"prep --out d --patch 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17 in", "more than 16 numbers"},
        {"prep --out d --captions a --captions b --bad in", "unknown option --bad"},
    };
    for (size_t i = 0; i < sizeof mistakes / sizeof *mistakes; i++) {
        Options options = {0};
        KnArgList inputs = {0};
        assert_int_equal(parse(mistakes[i].line, &options, &inputs), KN_EINPUT);
        if (!strstr(kn_error_message(), mistakes[i].expected))
            fail_msg("%s\n  gave: %s\n  not:  %s", mistakes[i].line, kn_error_message(), mistakes[i].expected);
        assert_null(inputs.items); /* nothing is left to release */
        assert_null(options.captions.items);
    }
}

static void help_shows_usage_defaults_and_examples_and_wins_over_mistakes(void **state)
{
    (void)state;
    static const char *const expected[] = {
        "Usage:\n  kinora prep --out DIR [options] INPUT...\n  kinora prep --resume DIR\n",
        "Turns videos into shards.",
        "--out DIR",
        "folder to write (required)",
        "--dtype f32|bf16",
        "number format of the pass [bf16]",
        "table of captions (may be repeated) [captions.csv]",
        "Examples:\n  kinora prep --out shards videos\n  mpirun -n 2 kinora prep",
    };
    char *help = kn_args_help(&spec);
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++)
        if (!strstr(help, expected[i]))
            fail_msg("--help lacks \"%s\":\n%s", expected[i], help);
    free(help);
    Options options = {0};
    KnArgList inputs = {0};
    assert_int_equal(parse("prep --nonsense --help", &options, &inputs), KN_END);
    assert_int_equal(parse("prep -h", &options, &inputs), KN_END);
    assert_int_equal(parse("prep --out d -- --help", &options, &inputs), KN_OK);
    kn_args_clear(&spec, &options, &inputs);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_of_every_kind_are_read_in_both_spellings),
        cmocka_unit_test(absent_options_get_their_fallback_and_others_keep_the_fields_value),
        cmocka_unit_test(repeated_options_add_up_in_lists_and_else_the_last_one_counts),
        cmocka_unit_test(positionals_keep_their_order_and_two_dashes_end_the_options),
        cmocka_unit_test(every_mistake_is_named),
        cmocka_unit_test(help_shows_usage_defaults_and_examples_and_wins_over_mistakes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
