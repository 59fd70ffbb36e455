/* The string builder, lists, UTF-8 and nearest names. */
#include "base/support.h"
#include "core/base/text.h"

static void builder_grows_and_is_taken(void **state)
{
    (void)state;
    KnText text = {0};
    for (int i = 0; i < 1000; i++)
        kn_text_appendf(&text, "%d,", i);
    assert_int_equal(text.length, 10 * 2 + 90 * 3 + 900 * 4);
    assert_int_equal(strlen(text.bytes), text.length);
    kn_text_appendn(&text, "a\0b", 3);
    assert_memory_equal(text.bytes + text.length - 3, "a\0b", 4);
    char *taken = kn_text_take(&text);
    assert_memory_equal(taken, "0,1,2,3,", 8);
    free(taken);
    assert_null(text.bytes);
    taken = kn_text_take(&text); /* of an empty builder: an empty string */
    assert_string_equal(taken, "");
    free(taken);
    kn_text_append(&text, "left behind");
    kn_text_clear(&text);
    assert_int_equal(text.length, 0);
}

static void list_keeps_copies_and_sorts_by_bytes(void **state)
{
    (void)state;
    KnStringList list = {0};
    kn_string_list_sort(&list);
    char name[16];
    for (int i = 99; i >= 0; i--) {
        snprintf(name, sizeof name, "n%02d", i);
        kn_string_list_add(&list, name);
    }
    kn_string_list_add(&list, "Zebra");
    kn_string_list_sort(&list);
    assert_int_equal(list.count, 101);
    assert_string_equal(list.items[0], "Zebra"); /* capitals come first whatever the locale */
    assert_string_equal(list.items[1], "n00");
    assert_string_equal(list.items[100], "n99");
    kn_string_list_clear(&list);
    assert_int_equal(list.count, 0);
}

static void prefixes_and_suffixes(void **state)
{
    (void)state;
    assert_true(kn_starts_with("train.steps", "train."));
    assert_false(kn_starts_with("tr", "train"));
    assert_true(kn_starts_with("x", ""));
    assert_true(kn_ends_with("a.safetensors", ".safetensors"));
    assert_false(kn_ends_with("s", ".safetensors"));
    assert_true(kn_ends_with("x", ""));
}

static void utf8_is_judged_by_the_standard(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t length;
        int good;
    } rows[] = {
        {"", 0, 1},
        {"plain", 5, 1},
        {"a\0b", 3, 1},
        {"\xc3\xa9", 2, 1},
        {"\xe2\x82\xac", 3, 1},
        {"\xf0\x9f\x8e\xac", 4, 1},
        {"\xf4\x8f\xbf\xbf", 4, 1}, /* U+10FFFF */
        {"\xf4\x90\x80\x80", 4, 0}, /* one more */
        {"\xc3", 1, 0},
        {"\xe2\x82", 2, 0},
        {"\x80", 1, 0},
        {"\xff", 1, 0},
        {"\xc0\xaf", 2, 0}, /* overlong '/' */
        {"\xc1\xbf", 2, 0},
        {"\xe0\x80\xaf", 3, 0},
        {"\xf0\x80\x80\xaf", 4, 0},
        {"\xed\xa0\x80", 3, 0}, /* a surrogate */
        {"\xc3(", 2, 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (kn_is_utf8(rows[i].text, rows[i].length) != rows[i].good)
            fail_msg("row %zu", i);
}

static void nearest_name_is_found_and_strangers_are_not(void **state)
{
    (void)state;
    static const char *const names[] = {"hidden", "layers", "heads", "ffn", "checkpoint_every"};
    static const struct {
        const char *name, *expected;
    } rows[] = {
        {"hiden", "hidden"}, {"hdiden", "hidden"}, /* a swap */
        {"head", "heads"},   {"layres", "layers"}, {"checkpoints_evry", "checkpoint_every"},
        {"fn", "ffn"},       {"heads", "heads"},   {"wavelength", NULL},
        {"", NULL},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *found = kn_nearest(rows[i].name, names, 5);
        if (!found != !rows[i].expected || (found && strcmp(found, rows[i].expected) != 0))
            fail_msg("%s gave %s", rows[i].name, found ? found : "nothing");
    }
    assert_null(kn_nearest("x", NULL, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(builder_grows_and_is_taken),
        cmocka_unit_test(list_keeps_copies_and_sorts_by_bytes),
        cmocka_unit_test(prefixes_and_suffixes),
        cmocka_unit_test(utf8_is_judged_by_the_standard),
        cmocka_unit_test(nearest_name_is_found_and_strangers_are_not),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
