/* Requests: layers, prompts files with every mistake that one makes in them, and their JSON. */
#include "base/support.h"
#include "infer/request_list.h"

#include <math.h>

static KnRequest base_request(KnArena *arena)
{
    KnRequest request;
    kn_request_defaults(&request, NULL, arena);
    return request;
}

static void what_is_unset_shows_through(void **state)
{
    (void)state;
    KnArena *arena = kn_arena_create();
    KnRequest request = base_request(arena), above;
    kn_request_init(&above);
    above.steps = 7;
    above.guidance = 0; /* a value like any other */
    above.prompt = "";
    kn_request_overlay(&request, &above);
    assert_int_equal(request.steps, 7);
    assert_true(request.guidance == 0);
    assert_string_equal(request.prompt, "");
    assert_int_equal(request.frames, 8); /* the built-in values */
    assert_true(request.shift == 3);
    assert_string_equal(request.solver, "euler");
    kn_arena_destroy(arena);
}

static void a_run_decides_the_lowest_layer(void **state)
{
    (void)state;
    KnArena *arena = kn_arena_create();
    KnConfig config;
    KnRequest request;
    kn_config_init(&config);
    assert_ok(
        kn_config_parse(&config,
                        "sample: {width: 64, height: 48, frames: 12, fps: 6, steps: 9, guidance: 2, solver: heun}\n"
                        "flow: {shift: 5}\ntrain: {precision: f32}\n",
                        "test"));
    kn_request_defaults(&request, &config, arena);
    kn_config_clear(&config);
    assert_int_equal(request.size.width, 64);
    assert_int_equal(request.size.height, 48);
    assert_int_equal(request.frames, 12);
    assert_int_equal(request.steps, 9);
    assert_true(request.fps == 6 && request.guidance == 2);
    assert_true(request.shift == 5); /* sample.shift is 0: that of training */
    assert_string_equal(request.solver, "heun");
    assert_string_equal(request.dtype, "f32");
    kn_arena_destroy(arena);
}

static void another_file_forgets_the_hash_of_the_former(void **state)
{
    (void)state;
    KnArena *arena = kn_arena_create();
    KnRequest request = base_request(arena), above;
    request.first_frame = "a.png";
    request.first_frame_hash = "1234";
    kn_request_init(&above);
    kn_request_overlay(&request, &above);
    assert_string_equal(request.first_frame_hash, "1234");
    above.first_frame = "b.png";
    kn_request_overlay(&request, &above);
    assert_null(request.first_frame_hash);
    kn_arena_destroy(arena);
}

static void a_line_has_the_last_word(void **state)
{
    (void)state;
    KnArena *arena = kn_arena_create();
    KnRequest base = base_request(arena), *requests = NULL;
    int count = 0;
    base.seed = 100;
    base.steps = 5;
    put_text(test_path("p.jsonl"), "\xef\xbb\xbf{\"prompt\": \"one\"}\n\n"
                                   "  {\"prompt\": \"two\", \"out\": \"two.gif\", \"seed\": 3, \"steps\": 9}\r\n"
                                   "{\"prompt\": \"three\", \"out\": \"/abs/three.mp4\", \"frames\": 4, \"fps\": 12, "
                                   "\"lossless\": true, \"width\": 16, \"negative\": \"dull\"}");
    assert_ok(
        kn_request_read_lines(&(KnRequestSource){test_path("p.jsonl"), "videos", &base, arena}, &requests, &count));
    assert_int_equal(count, 3);
    assert_string_equal(requests[0].out, "videos/0001.mp4");
    assert_int_equal(requests[0].seed, 100);
    assert_int_equal(requests[0].steps, 5);
    assert_string_equal(requests[1].out, "videos/two.gif");
    assert_int_equal(requests[1].seed, 3);
    assert_int_equal(requests[1].steps, 9);
    assert_string_equal(requests[2].out, "/abs/three.mp4");
    assert_int_equal(requests[2].seed, 102);
    assert_int_equal(requests[2].frames, 4);
    assert_int_equal(requests[2].size.width, 16);
    assert_int_equal(requests[2].size.height, base.size.height);
    assert_true(requests[2].fps == 12 && requests[2].lossless == 1);
    assert_string_equal(requests[2].negative, "dull");
    free(requests);
    kn_arena_destroy(arena);
}

static void every_mistake_in_a_line_is_named(void **state)
{
    (void)state;
    static const struct {
        const char *text, *part;
    } rows[] = {
        {"", "holds no prompts"},
        {"\n \n", "holds no prompts"},
        {"a red circle", ":1: not a JSON object"},
        {"{\"prompt\": \"x\", \"out\": \"a.mp4\"}\n{\"prompt\": \"x\"", ":2: not a JSON object"},
        {"[1]", ":1: not a JSON object: it is another value"},
        {"{\"out\": \"a.mp4\"}", ":1: there is no \"prompt\""},
        {"{\"prompt\": \"x\"}", ":1: no \"out\""},
        {"{\"prompt\": 3, \"out\": \"a.mp4\"}", "prompt must be a text"},
        {"{\"prompt\": \"x\", \"sed\": 3}", "unknown key \"sed\"; did you mean seed?"},
        {"{\"prompt\": \"x\", \"qqqqqqqq\": 3}", "unknown key \"qqqqqqqq\"; there are: prompt"},
        {"{\"prompt\": \"x\", \"seed\": -1}", "seed is -1"},
        {"{\"prompt\": \"x\", \"seed\": 1.5}", "seed must be a whole number"},
        {"{\"prompt\": \"x\", \"steps\": 0}", "steps is 0, it must be from 1"},
        {"{\"prompt\": \"x\", \"frames\": \"8\"}", "frames must be a whole number"},
        {"{\"prompt\": \"x\", \"guidance\": 1e9}", "guidance is 1000000000"},
        {"{\"prompt\": \"x\", \"solver\": \"rk4\"}", "solver is \"rk4\", it must be one of euler|heun|unipc"},
        {"{\"prompt\": \"x\", \"solver\": \"eule\"}", "solver is \"eule\""},
        {"{\"prompt\": \"x\", \"lossless\": 1}", "lossless must be true or false"},
        {"{\"prompt\": \"x\", \"prompt\": \"y\"}", "duplicate"},
        {"{\"prompt\": \"x\", \"out\": \"\"}", ":1: \"out\" is empty"},
        {"{\"prompt\": \"x\", \"out\": \"v/a.mp4\"}\n{\"prompt\": \"y\", \"out\": \"v/a.gif\"}",
         ":2: \"out\" is v/a.gif, whose description v/a.json is that of line 1's v/a.mp4 too"},
        {"{\"prompt\": \"x\", \"out\": \"a.mp4\"}\n\n{\"prompt\": \"y\", \"out\": \"a.mp4\"}",
         ":3: \"out\" is a.mp4, as in "
         "line 1"},
        {"{\"prompt\": \"x\", \"out\": \"v/a.mp4\"}\n{\"prompt\": \"y\", \"out\": \"v/../v//./a.mp4\"}",
         ":2: \"out\" is v/../v//./a.mp4, whose description v/../v//./a.json is that of line 1's v/a.mp4 too"},
    };
    KnArena *arena = kn_arena_create();
    KnRequest base = base_request(arena), *requests = NULL;
    int count = 0;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        put_text(test_path("bad.jsonl"), rows[i].text);
        assert_fails(
            kn_request_read_lines(&(KnRequestSource){test_path("bad.jsonl"), NULL, &base, arena}, &requests, &count),
            KN_EINPUT, rows[i].part);
        assert_null(requests);
        assert_non_null(strstr(kn_error_message(), "bad.jsonl"));
    }
    assert_fails(
        kn_request_read_lines(&(KnRequestSource){test_path("none.jsonl"), NULL, &base, arena}, &requests, &count),
        KN_EIO, "none.jsonl");
    kn_arena_destroy(arena);
}

static void a_request_survives_json(void **state)
{
    (void)state;
    KnArena *arena = kn_arena_create();
    KnRequest request = base_request(arena), again;
    json_t *object = json_object();
    request.prompt = "caf\xc3\xa9 \"quoted\"";
    request.guidance = 1.0 / 3;
    request.seed = 9007199254740991;
    request.full_colour = 1;
    kn_request_to_json(&request, object);
    char *text = json_dumps(object, JSON_REAL_PRECISION(17));
    json_decref(object);
    object = json_loads(text, 0, NULL);
    kn_request_init(&again);
    assert_ok(kn_request_from_json(&again, object, NULL, "test", arena));
    assert_string_equal(again.prompt, request.prompt);
    assert_true(again.guidance == request.guidance);
    assert_int_equal(again.seed, request.seed);
    assert_int_equal(again.full_colour, 1);
    assert_int_equal(again.lossless, 0);
    assert_null(again.first_frame);
    json_decref(object);
    free(text);
    kn_arena_destroy(arena);
}

static void a_request_without_a_prompt_is_none(void **state)
{
    (void)state;
    KnArena *arena = kn_arena_create();
    KnRequest request = base_request(arena);
    assert_fails(kn_request_check(&request), KN_EINPUT, "--prompt");
    request.prompt = "x";
    assert_ok(kn_request_check(&request));
    request.prompt = "caf\xe9";
    assert_fails(kn_request_check(&request), KN_EINPUT, "the prompt is not UTF-8");
    request.prompt = "x";
    request.solver = "midpoint";
    assert_fails(kn_request_check(&request), KN_EINPUT, "solver is \"midpoint\"");
    kn_arena_destroy(arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_unset_shows_through),
        cmocka_unit_test(a_run_decides_the_lowest_layer),
        cmocka_unit_test(another_file_forgets_the_hash_of_the_former),
        cmocka_unit_test(a_line_has_the_last_word),
        cmocka_unit_test(every_mistake_in_a_line_is_named),
        cmocka_unit_test(a_request_survives_json),
        cmocka_unit_test(a_request_without_a_prompt_is_none),
    };
    return cmocka_run_group_tests(tests, make_test_folder, remove_test_folder);
}
