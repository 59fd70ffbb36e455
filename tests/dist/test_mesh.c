/* A mesh from text: what it sets, and the sentence for each mistake. */
#include "base/support.h"
#include "dist/mesh.h"

static const KnParallelConfig before = {.shard = 1, .ulysses = 1, .ring = 1, .tensor = 1, .cfg = 1, .zero = 3};

static void named_axes_are_set_and_others_left(void **state)
{
    KnParallelConfig c = before;
    (void)state;
    assert_ok(kn_mesh_parse("data=2,ulysses=4,zero=0", &c));
    assert_int_equal(c.data, 2);
    assert_int_equal(c.ulysses, 4);
    assert_int_equal(c.zero, 0);
    assert_int_equal(c.shard * c.ring * c.tensor * c.cfg, 1);
    assert_ok(kn_mesh_parse("cfg=2,ring=3,shard=5,tensor=7", &c));
    assert_int_equal(c.cfg, 2);
    assert_int_equal(c.ring, 3);
    assert_int_equal(c.shard, 5);
    assert_int_equal(c.tensor, 7);
    assert_int_equal(c.ulysses, 4);
}

static void every_mistake_is_named(void **state)
{
    static const char *const mistakes[][2] = {
        {"", "\"\" is no part of a mesh"},
        {"ring", "\"ring\" is no part of a mesh"},
        {"=2", "\"=2\" is no part of a mesh"},
        {"ring=2,", "\"\" is no part of a mesh"},
        {"ring=", "ring=: ring is a number from 1 to 65536"},
        {"ring=0", "ring=0: ring is a number from 1"},
        {"ring=2x", "ring=2x: ring is a number"},
        {"ring=2;cfg=2", "ring=2;cfg=2: ring is a number"},
        {"cfg=3", "cfg=3: cfg is a number from 1 to 2"},
        {"ring=2,cfg=2,ring=4", "ring=4: the mesh says ring twice"},
        {"zero=4", "zero=4: zero is a number from 0 to 3"},
        {"shard=99999999999999999999", "shard is a number from 1 to"},
        {"ulises=2", "no axis \"ulises\"; did you mean ulysses?"},
        {"pipeline=2", "no axis \"pipeline\": it is made of data, shard"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof mistakes / sizeof *mistakes; i++) {
        KnParallelConfig c = before;
        assert_fails(kn_mesh_parse(mistakes[i][0], &c), KN_EINPUT, mistakes[i][1]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(named_axes_are_set_and_others_left),
        cmocka_unit_test(every_mistake_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
