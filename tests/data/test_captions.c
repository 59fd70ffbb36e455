/* Captions: every place and format they may come from, and the line at fault when one is malformed. */
#include "data/support.h"

#include "data/captions.h"

#include <sys/stat.h>

static char *video_path(const char *name)
{
    put_text(test_path(name), "");
    char *path = realpath(test_path(name), NULL);
    assert_non_null(path);
    return path;
}

/* Finds the captions of a video and compares them, joined by |. */
static void expect_captions(KnCaptions *captions, const char *name, const char *expected)
{
    KnCaptionList list;
    char joined[1024] = "", *path = video_path(name);
    assert_ok(kn_captions_find(captions, path, "", &list));
    for (int64_t i = 0; i < list.count; i++) {
        strcat(joined, i ? "|" : "");
        strcat(joined, list.items[i]);
    }
    assert_string_equal(joined, expected);
    kn_caption_list_clear(&list);
    free(path);
}

static void a_table_of_each_format_gives_its_captions(void **state)
{
    (void)state;
    static const struct {
        const char *file, *content, *expected;
    } tables[] = {
        {"a.csv", "path,caption\nv.mp4,a red circle\n", "a red circle"},
        {"b.csv", "id,Text,VIDEO\r\n1,\"one, \"\"two\"\"\r\nthree\",v.mp4\r\n2, four ,v.mp4",
         "one, \"two\"\r\nthree|four"},
        {"c.csv", "\xef\xbb\xbfpath,caption\nv.mp4,x\n\nv.mp4,x\nother.mp4,y\n", "x"},
        {"d.csv", "path,caption\nv.mp4,\n", ""},
        {"e.tsv", "video\ttext\nv.mp4\tcommas, unquoted\n", "commas, unquoted"},
        {"f.jsonl",
         "{\"path\": \"v.mp4\", \"caption\": \"eins\"}\n\n{\"video\":\"./v.mp4\",\"text\":[\"zwei\",\"eins\"]}\n",
         "eins|zwei"},
        {"g.jsonl", "{\"path\": \"v.mp4\", \"caption\": null}", ""},
        {"h.jsonl", "\xef\xbb\xbf{\"path\": \"v.mp4\", \"caption\": \"behind a mark\"}\n", "behind a mark"},
    };
    for (size_t i = 0; i < sizeof tables / sizeof tables[0]; i++) {
        free(video_path("v.mp4"));
        KnCaptions *captions = kn_captions_create();
        put_text(test_path(tables[i].file), tables[i].content);
        assert_ok(kn_captions_load(captions, test_path(tables[i].file)));
        expect_captions(captions, "v.mp4", tables[i].expected);
        kn_captions_destroy(captions);
    }
}

static void malformed_lines_are_named(void **state)
{
    (void)state;
    static const struct {
        const char *file, *content, *sentence;
        int code;
    } cases[] = {
        {"1.csv", "", "1.csv: the file is empty", KN_EFORMAT},
        {"2.csv", "name,caption\nx,y\n", "2.csv:1: the first line must name a column \"path\" or \"video\"",
         KN_EFORMAT},
        {"3.csv", "path,words\nx,y\n", "3.csv:1: the first line must name a column \"caption\" or \"text\"",
         KN_EFORMAT},
        {"4.csv", "path,caption\na,b\nc\n", "4.csv:3: 1 fields where the first line has 2", KN_EFORMAT},
        {"5.csv", "path,caption\na,\"b\nc\n", "5.csv:2: a quote is opened and never closed", KN_EFORMAT},
        {"6.csv", "path,caption\na,\"b\nc\"d\n", "6.csv:3: text after a closing quote", KN_EFORMAT},
        {"7.csv", "path,caption\na,b\"c\n", "7.csv:2: a quote inside an unquoted field", KN_EFORMAT},
        {"8.csv", "path,caption\n,b\n", "8.csv:2: the path is empty", KN_EFORMAT},
        {"9.csv", "path,caption\na,\xff\xfe\n", "9.csv:2: the caption is not UTF-8", KN_EFORMAT},
        {"10.jsonl", "{\"path\":\"a\",\"caption\":\"b\"}\n{\"path\":\n", "10.jsonl:2: ", KN_EFORMAT},
        {"11.jsonl", "[1]\n", "11.jsonl:1: no string \"path\"", KN_EFORMAT},
        {"12.jsonl", "{\"path\":\"a\"}\n", "12.jsonl:1: no string or list \"caption\"", KN_EFORMAT},
        {"13.jsonl", "{\"path\":\"a\",\"text\":[\"x\",5]}\n", "13.jsonl:1: a caption that is not a string", KN_EFORMAT},
        {"14.xlsx", "x", "14.xlsx: a caption file must end in", KN_EINPUT},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        KnCaptions *captions = kn_captions_create();
        put_text(test_path(cases[i].file), cases[i].content);
        assert_fails(kn_captions_load(captions, test_path(cases[i].file)), cases[i].code, cases[i].sentence);
        kn_captions_destroy(captions);
    }
    KnCaptions *captions = kn_captions_create();
    assert_fails(kn_captions_load(captions, test_path("absent.csv")), KN_EIO, "absent.csv");
    kn_captions_destroy(captions);
}

static void sidecars_are_found_and_checked(void **state)
{
    (void)state;
    KnCaptions *captions = kn_captions_create();
    KnCaptionList list;
    put_text(test_path("s1.txt"), "first\n\n  second  \r\n");
    expect_captions(captions, "s1.mp4", "first|second");
    put_text(test_path("s2.json"), "{\"caption\": \"from json\", \"fps\": 3}");
    expect_captions(captions, "s2.mp4", "from json");
    put_text(test_path("s3.json"), "[\"a\", \"b\"]");
    put_text(test_path("s3.txt"), "b\nc");
    expect_captions(captions, "s3.mp4", "b|c|a");
    put_text(test_path("s4.json"), "{\"prompt\": \"settings of another program\"}");
    expect_captions(captions, "s4.mp4", "");
    put_text(test_path("m1.json"), "\xef\xbb\xbf{\"text\": \"behind a mark\"}");
    expect_captions(captions, "m1.mp4", "behind a mark");
    put_text(test_path("m2.txt"), "\xef\xbb\xbf"
                                  "behind one too\n");
    expect_captions(captions, "m2.mp4", "behind one too");
    put_text(test_path("m3.json"), "{\"caption\": null}");
    expect_captions(captions, "m3.mp4", "");
    put_text(test_path("s5.json"), "{\"caption\": 5}");
    char *path = video_path("s5.mp4");
    assert_fails(kn_captions_find(captions, path, "", &list), KN_EFORMAT, "s5.json:1:");
    free(path);
    put_text(test_path("s6.json"), "{\n\"caption\" 5}");
    path = video_path("s6.mp4");
    assert_fails(kn_captions_find(captions, path, "", &list), KN_EFORMAT, "s6.json:2:");
    free(path);
    put_text(test_path("s7.txt"), "fine\n\xc3\x28\n");
    path = video_path("s7.mp4");
    assert_fails(kn_captions_find(captions, path, "", &list), KN_EFORMAT, "s7.txt:2:");
    free(path);
    kn_captions_destroy(captions);
}

static void paths_mean_what_their_writers_meant(void **state)
{
    (void)state;
    KnCaptions *captions = kn_captions_create();
    char table[1024], *absolute;
    mkdir(test_path("meta"), 0700);
    mkdir(test_path("videos"), 0700);
    mkdir(test_path("videos/deep"), 0700);
    absolute = video_path("videos/c.mp4");
    free(video_path("meta/near.mp4"));
    free(video_path("videos/near.mp4"));
    snprintf(table, sizeof table,
             "path,caption\n../videos/a.mp4,from the table's folder\ndeep/b.mp4,by its end\n%s,absolute\n"
             "b.mp4,by its name\neep/b.mp4,half a name\nnear.mp4,next to the table\nnobody.mp4,unused\n",
             absolute);
    free(video_path("videos/a.mp4"));
    put_text(test_path("meta/t.csv"), table);
    assert_ok(kn_captions_load(captions, test_path("meta/t.csv")));
    expect_captions(captions, "videos/a.mp4", "from the table's folder");
    expect_captions(captions, "videos/deep/b.mp4", "by its end|by its name");
    expect_captions(captions, "videos/c.mp4", "absolute");
    expect_captions(captions, "meta/near.mp4", "next to the table");
    expect_captions(captions, "videos/near.mp4", ""); /* the row names another file that exists */
    kn_captions_destroy(captions);
    free(absolute);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_table_of_each_format_gives_its_captions),
        cmocka_unit_test(malformed_lines_are_named),
        cmocka_unit_test(sidecars_are_found_and_checked),
        cmocka_unit_test(paths_mean_what_their_writers_meant),
    };
    return cmocka_run_group_tests(tests, make_test_folder, remove_test_folder);
}
