/* Templates: prompts, names, seeds and options from a table, and every mistake that one makes in either. */
#include "base/support.h"
#include "infer/request_list.h"

typedef struct Made {
    KnArena *arena;
    KnRequest base, *requests;
    int count;
} Made;

static Made begin(void)
{
    Made made = {.arena = kn_arena_create()};
    kn_request_defaults(&made.base, NULL, made.arena);
    return made;
}

static int read_from(Made *made, const char *template, const char *csv, const char *folder)
{
    put_text(test_path("t.csv"), csv);
    free(made->requests);
    KnRequestSource source = {test_path("t.csv"), folder, &made->base, made->arena};
    return kn_request_read_table(&source, template, &made->requests, &made->count);
}

static void end(Made *made)
{
    free(made->requests);
    kn_arena_destroy(made->arena);
}

static void each_row_fills_the_template(void **state)
{
    (void)state;
    static const struct {
        const char *template, *csv, *prompt, *out;
    } rows[] = {
        {"a {color} car in {city}", "color,city\nred,Paris\n", "a red car in Paris", "v/0001-red-Paris.mp4"},
        {"{ color }{color}", "color\nred\n", "redred", "v/0001-red-red.mp4"},
        {"no variable", "color\nred\n", "no variable", "v/0001.mp4"},
        {"{{color}} {color}", "color\nred\n", "{color} red", "v/0001-red.mp4"},
        {"{{{color}}}", "color\nred\n", "{red}", "v/0001-red.mp4"},
        {"{a b}", "a b\n\"x, \"\"y\"\"\"\n", "x, \"y\"", "v/0001-x-y.mp4"},
        {"{a}", "a,b\n,x\n", "", "v/0001.mp4"},
        {"{a}", " a \n {b} \n", " {b} ", "v/0001-b.mp4"}, /* a cell is no template */
        {"{stadt}", "stadt\nK\xc3\xb6ln / Bonn\n", "K\xc3\xb6ln / Bonn", "v/0001-K\xc3\xb6ln-Bonn.mp4"},
        {"{a}", "a,frames\nx,1\n", "x", "v/0001-x.png"},
        {"{a}", "a,name\nx,shot-7\n", "x", "v/shot-7.mp4"},
        {"{a}", "a,name\nx,\n", "x", "v/0001-x.mp4"},
        {"hello {name}", "name\nAnna\n", "hello Anna", "v/0001-Anna.mp4"}, /* a variable, which may come twice */
        {"{a}", "a,out,name\nx,b/c.gif,d\n", "x", "v/b/c.gif"},
        {"{prompt}, in oil", "prompt\na cat\n", "a cat, in oil", "v/0001-a-cat.mp4"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        Made made = begin();
        assert_ok(read_from(&made, rows[i].template, rows[i].csv, "v"));
        assert_int_equal(made.count, 1);
        assert_string_equal(made.requests[0].prompt, rows[i].prompt);
        assert_string_equal(made.requests[0].out, rows[i].out);
        end(&made);
    }
}

static void columns_of_options_set_them(void **state)
{
    (void)state;
    Made made = begin();
    made.base.seed = 40;
    made.base.steps = 5;
    assert_ok(read_from(&made, "{a}",
                        "a,seed,steps,guidance,lossless,first-frame,negative,solver,note\r\n"
                        "x,,,,,,,,\r\n"
                        "y,7,9,2.5,true,in.png,dull,heun,any\r\n"
                        "\r\n"
                        "z,,,,false,,,,\r\n",
                        "v"));
    assert_int_equal(made.count, 3);
    assert_int_equal(made.requests[0].seed, 40);
    assert_int_equal(made.requests[0].steps, 5);
    assert_null(made.requests[0].first_frame);
    assert_int_equal(made.requests[1].seed, 7);
    assert_int_equal(made.requests[1].steps, 9);
    assert_true(made.requests[1].guidance == 2.5);
    assert_int_equal(made.requests[1].lossless, 1);
    assert_string_equal(made.requests[1].first_frame, "in.png");
    assert_string_equal(made.requests[1].negative, "dull");
    assert_string_equal(made.requests[1].solver, "heun");
    assert_int_equal(made.requests[2].seed, 42);
    assert_int_equal(made.requests[2].lossless, 0);
    assert_string_equal(made.requests[2].out, "v/0003-z.mp4");
    end(&made);
}

static void a_long_name_is_cut_between_characters(void **state)
{
    (void)state;
    char csv[400] = "a\n";
    for (int i = 0; i < 60; i++)
        strcat(csv, "\xe6\xb1\xbd");
    Made made = begin();
    assert_ok(read_from(&made, "{a}", csv, "v"));
    const char *out = made.requests[0].out; /* "v/0001-", 31 characters of three bytes, ".mp4" */
    assert_int_equal(strlen(out), 7 + 31 * 3 + 4);
    assert_string_equal(out + 7 + 31 * 3 - 3, "\xe6\xb1\xbd.mp4");
    end(&made);
}

static void every_mistake_is_named(void **state)
{
    (void)state;
    static const struct {
        const char *template, *csv, *part;
    } rows[] = {
        {"{a}", "", "t.csv is empty"},
        {"{a}", "a\n", "t.csv has no rows below its first line"},
        {"{a}", "a\n\n\n", "t.csv has no rows below its first line"},
        {"{colour}", "color\nred\n", "t.csv has no column \"colour\"; did you mean color?"},
        {"{x}", "color,city\nred,Paris\n", "has no column \"x\"; there are: color, city"},
        {"{Color}", "color\nred\n", "has no column \"Color\"; did you mean color?"},
        {"a {color", "color\nred\n", "--template: no } closes \"{color\": write {{ for a brace"},
        {"a {co{lor}", "color\nred\n", "--template: no } closes \"{co{lor}\""},
        {"a color} car", "color\nred\n", "--template: no { opens what } closes after \"a color\": write }}"},
        {"a {} car", "color\nred\n", "--template: {} names no column"},
        {"a {  } car", "color\nred\n", "--template: {} names no column"},
        {"{a}", "a,b,a\n1,2,3\n", "t.csv:1: the columns 1 and 3 are both called \"a\""},
        {"{a}", "a,b\n1,2\n1,2,3\n", "t.csv:3: 3 fields where the first line has 2"},
        {"{a}", "a,b\n\"1\n2\",2\n1\n", "t.csv:4: 1 fields where the first line has 2"},
        {"{a}", "a\n\"1\n", "t.csv:2: a quote is opened and never closed"},
        {"{a}", "a,seed\nx,seven\n", "t.csv:2: seed must be a whole number"},
        {"{a}", "a,seed\nx,1.5\n", "t.csv:2: seed must be a whole number"},
        {"{a}", "a,seed\nx,-1\n", "t.csv:2: seed is -1"},
        {"{a}", "a,seed\nx,99999999999999999999\n", "t.csv:2: seed must be a whole number"},
        {"{a}", "a,guidance\nx,much\n", "t.csv:2: guidance must be a number"},
        {"{a}", "a,guidance\nx,nan\n", "t.csv:2: guidance must be a number"},
        {"{a}", "a,lossless\nx,yes\n", "t.csv:2: lossless must be true or false"},
        {"{a}", "a,solver\nx,rk4\n", "t.csv:2: solver is \"rk4\", it must be one of euler|heun|unipc"},
        {"{a}", "a,steps\nx,0\n", "t.csv:2: steps is 0"},
        {"{a}", "a,name\nx,one\ny,one\n", "t.csv:3: \"out\" is v/one.mp4, as in line 2 already"},
        {"{a}", "a,out\nx,one.mp4\ny,one.gif\n", "t.csv:3: \"out\" is v/one.gif, whose description v/one.json is"},
        {"{a}", "a\ncaf\xe9\n", "t.csv is not UTF-8 text"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        Made made = begin();
        int code = read_from(&made, rows[i].template, rows[i].csv, "v");
        if (code >= 0 || !strstr(kn_error_message(), rows[i].part))
            fail_msg("row %zu gave %d, \"%s\"; expected \"%s\"", i, code, kn_error_message(), rows[i].part);
        assert_null(made.requests);
        end(&made);
    }
    Made made = begin();
    assert_fails(read_from(&made, "{a}", "a\nx\n", NULL), KN_EINPUT, "t.csv:2: no \"out\" says where the video goes");
    end(&made);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_row_fills_the_template),
        cmocka_unit_test(columns_of_options_set_them),
        cmocka_unit_test(a_long_name_is_cut_between_characters),
        cmocka_unit_test(every_mistake_is_named),
    };
    return cmocka_run_group_tests(tests, make_test_folder, remove_test_folder);
}
