/* The YAML tree: what it holds, where its nodes are, what it refuses; every damaged byte ends in a sentence. */
#include "base/support.h"
#include "core/base/yaml.h"

static KnArena *arena;

static int make_arena(void **state)
{
    (void)state;
    arena = kn_arena_create();
    return 0;
}

static int destroy_arena(void **state)
{
    (void)state;
    kn_arena_destroy(arena);
    return 0;
}

static int parse(const char *text, KnYamlNode **root)
{
    return kn_yaml_parse(arena, text, strlen(text), "t.yaml", root);
}

static void a_tree_with_places(void **state)
{
    (void)state;
    KnYamlNode *root;
    assert_ok(parse("# comment\n"
                    "model:\n"
                    "  patch: [1, 'two', \"th\\\"ree\"]\n"
                    "  text:\n"
                    "    kind: trained # why\n"
                    "list:\n"
                    "- a b c\n"
                    "- {x: 1}\n"
                    "empty:\n",
                    &root));
    assert_int_equal(root->kind, KN_YAML_MAPPING);
    assert_int_equal(root->count, 3);
    const KnYamlNode *model = kn_yaml_get(root, "model"), *patch = kn_yaml_get(model, "patch");
    assert_int_equal(patch->kind, KN_YAML_SEQUENCE);
    assert_int_equal(patch->count, 3);
    assert_string_equal(patch->values[1]->text, "two");
    assert_true(patch->values[1]->quoted && !patch->values[0]->quoted);
    assert_string_equal(patch->values[2]->text, "th\"ree");
    assert_int_equal(patch->values[2]->line, 3);
    assert_int_equal(patch->values[2]->column, 21);
    assert_int_equal(model->keys[1]->line, 4);
    assert_int_equal(model->keys[1]->column, 3);
    assert_string_equal(kn_yaml_get(kn_yaml_get(model, "text"), "kind")->text, "trained");
    const KnYamlNode *list = kn_yaml_get(root, "list");
    assert_string_equal(list->values[0]->text, "a b c");
    assert_string_equal(kn_yaml_get(list->values[1], "x")->text, "1");
    assert_string_equal(kn_yaml_get(root, "empty")->text, "");
    assert_null(kn_yaml_get(root, "absent"));
    assert_null(kn_yaml_get(list, "x"));
}

static void nothing_is_an_empty_mapping(void **state)
{
    (void)state;
    static const char *const rows[] = {"", "\n\n", "# only a comment\n", "---\n", "---\n...\n"};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        KnYamlNode *root;
        assert_ok(parse(rows[i], &root));
        assert_int_equal(root->kind, KN_YAML_MAPPING);
        assert_int_equal(root->count, 0);
    }
}

static void what_is_refused_says_where(void **state)
{
    (void)state;
    static const struct {
        const char *text, *sentence;
    } rows[] = {
        {"a: 1\nb: 2\na: 3\n", "t.yaml:3:1: the key a appears twice; first in line 1"},
        {"a: &x 1\n", "t.yaml:1:4: anchors"},
        {"a: &x [1]\n", "t.yaml:1:4: anchors"},
        {"a: &x {b: 1}\n", "t.yaml:1:4: anchors"},
        {"a: *x\n", "t.yaml:1:4: aliases"},
        {"a: !!int 1\n", "t.yaml:1:4: tags (!name) are not supported: remove tag:yaml.org,2002:int"},
        {"a: ! 1\n", "t.yaml:1:4: tags"},
        {"[a, b]: 1\n", "t.yaml:1:1: a key must be a word"},
        {"a: 1\n---\nb: 2\n", "t.yaml:2:1: a second document"},
        {"a: [1, 2\n", "t.yaml:2:1: did not find expected ',' or ']'"},
        {"a: 'open\n", "t.yaml:"},
        {"a:\n\tb: 1\n", "t.yaml:2:1: found character that cannot start any token"},
        {"a: 1\n  b: 2\n", "t.yaml:2:4: mapping values are not allowed"},
        {"a: \xff\n", "t.yaml is not YAML: "},
        {"a: \"x\\0y\"\n", "t.yaml:1:4: a value contains a NUL"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        KnYamlNode *root;
        assert_fails(parse(rows[i].text, &root), KN_EFORMAT, rows[i].sentence);
        assert_null(root);
    }
}

static void depth_is_bounded(void **state)
{
    (void)state;
    char text[20001];
    memset(text, '[', sizeof text - 1);
    text[sizeof text - 1] = 0;
    KnYamlNode *root;
    assert_fails(parse(text, &root), KN_EFORMAT, "nested too deeply");
}

static void files_are_read_and_named(void **state)
{
    (void)state;
    KnYamlNode *root;
    assert_int_equal(make_test_folder(NULL), 0);
    put_text(test_path("f.yaml"), "a: [");
    assert_fails(kn_yaml_read(arena, test_path("f.yaml"), &root), KN_EFORMAT, "/f.yaml:2:1: ");
    assert_fails(kn_yaml_read(arena, test_path("absent.yaml"), &root), KN_EIO, "absent.yaml: No such file");
    assert_int_equal(remove_test_folder(NULL), 0);
}

/* Every byte of a small document set to every value: parsed or refused with a sentence, never a crash. */
static void every_flipped_byte_is_survived(void **state)
{
    (void)state;
    char text[] = "m:\n  p: [1, 'b']\nq: \"x\\n\"\nr: |\n  t\n- s: {u: v}\n";
    for (size_t i = 0; i < sizeof text - 1; i++) {
        char kept = text[i];
        for (int value = 0; value < 256; value++) {
            KnYamlNode *root;
            text[i] = (char)value;
            kn_fail(KN_OK, "untouched");
            int code = kn_yaml_parse(arena, text, sizeof text - 1, "t.yaml", &root);
            assert_true(code == KN_OK ? root != NULL : strstr(kn_error_message(), "t.yaml") != NULL);
        }
        text[i] = kept;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_tree_with_places),         cmocka_unit_test(nothing_is_an_empty_mapping),
        cmocka_unit_test(what_is_refused_says_where), cmocka_unit_test(depth_is_bounded),
        cmocka_unit_test(files_are_read_and_named),   cmocka_unit_test(every_flipped_byte_is_survived),
    };
    return cmocka_run_group_tests(tests, make_arena, destroy_arena);
}
