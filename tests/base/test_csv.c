/* CSV: the grammar of RFC 4180 with what editors and spreadsheets add to it. */
#include "base/support.h"
#include "core/base/csv.h"

enum { ROOM = 4 };

/* All records as text: fields in [], records ended by |. */
static const char *read_all(const char *name, const char *bytes, size_t size, int *code)
{
    static char text[512];
    KnArena *arena = kn_arena_create();
    KnCsv csv = kn_csv_begin(name, bytes, size);
    KnCsvField fields[ROOM];
    int count;
    text[0] = '\0';
    while ((*code = kn_csv_record(&csv, arena, fields, ROOM, &count)) == KN_OK) {
        for (int i = 0; i < count && i < ROOM; i++)
            snprintf(text + strlen(text), sizeof text - strlen(text), "[%s]", fields[i].text);
        strcat(text, count > ROOM ? "+|" : "|");
    }
    kn_arena_destroy(arena);
    return text;
}

static void records_are_read_as_rfc_4180_says(void **state)
{
    (void)state;
    static const struct {
        const char *text, *expected;
    } rows[] = {
        {"", ""},
        {"a,b\n1,2\n", "[a][b]|[1][2]|"},
        {"a,b\r\n1,2", "[a][b]|[1][2]|"},
        {"a\rb", "[a]|[b]|"},
        {"\xef\xbb\xbf"
         "a,b\n",
         "[a][b]|"},
        {",\n", "[][]|"},
        {"\n", "[]|"},
        {"\"a,b\",\"say \"\"hi\"\"\"\n", "[a,b][say \"hi\"]|"},
        {"\"two\r\nlines\",x\n", "[two\r\nlines][x]|"},
        {"\"\",\"\"\"\"\n", "[][\"]|"},
        {"caf\xc3\xa9,\xe6\xb1\xbd\xe8\xbb\x8a\n", "[caf\xc3\xa9][\xe6\xb1\xbd\xe8\xbb\x8a]|"},
        {" a , b \n", "[ a ][ b ]|"},
        {"1,2,3,4,5\n", "[1][2][3][4]+|"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        int code;
        assert_string_equal(read_all("x.csv", rows[i].text, strlen(rows[i].text), &code), rows[i].expected);
        assert_int_equal(code, KN_END);
    }
    int code;
    assert_string_equal(read_all("x.tsv", "a\tb,c\n", 6, &code), "[a][b,c]|");
}

static void a_misplaced_quote_is_named_with_its_line(void **state)
{
    (void)state;
    static const struct {
        const char *text, *part;
    } rows[] = {
        {"a\n\"b", "x.csv:2: a quote is opened and never closed"},
        {"a\nb\"c\n", "x.csv:2: a quote inside an unquoted field"},
        {"\"two\nlines\"\n\"b\"c\n", "x.csv:3: text after a closing quote"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        int code;
        read_all("x.csv", rows[i].text, strlen(rows[i].text), &code);
        assert_fails(code, KN_EFORMAT, rows[i].part);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(records_are_read_as_rfc_4180_says),
        cmocka_unit_test(a_misplaced_quote_is_named_with_its_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
