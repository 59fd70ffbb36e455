/* SHA-256 against the examples of FIPS 180-4. */
#include "base/support.h"
#include "core/base/hash.h"

#define ABC "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
#define EMPTY "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
#define MILLION_A "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"

static void published_examples(void **state)
{
    (void)state;
    char hex[KN_SHA256_HEX_BYTES];
    kn_sha256_hex("abc", 3, hex);
    assert_string_equal(hex, ABC);
    kn_sha256_hex("", 0, hex);
    assert_string_equal(hex, EMPTY);
}

static void a_stream_in_pieces_equals_the_whole(void **state)
{
    (void)state;
    char piece[7919], hex[KN_SHA256_HEX_BYTES];
    memset(piece, 'a', sizeof piece);
    KnSha256 *stream = kn_sha256_create();
    for (size_t left = 1000000; left;) {
        size_t size = left < sizeof piece ? left : sizeof piece;
        kn_sha256_update(stream, piece, size);
        left -= size;
    }
    unsigned char digest[KN_SHA256_BYTES];
    kn_sha256_finish(stream, digest);
    kn_hex(digest, sizeof digest, hex);
    assert_string_equal(hex, MILLION_A);
    kn_sha256_destroy(kn_sha256_create());
    kn_sha256_destroy(NULL);
}

static void files(void **state)
{
    (void)state;
    char hex[KN_SHA256_HEX_BYTES];
    char *million = malloc(1000000);
    memset(million, 'a', 1000000);
    put_file(test_path("a"), million, 1000000);
    free(million);
    put_file(test_path("empty"), "", 0);
    assert_ok(kn_sha256_file(test_path("a"), hex));
    assert_string_equal(hex, MILLION_A);
    assert_ok(kn_sha256_file(test_path("empty"), hex));
    assert_string_equal(hex, EMPTY);
    assert_fails(kn_sha256_file(test_path("absent"), hex), KN_EIO, "/absent: No such file");
    assert_fails(kn_sha256_file(test_folder, hex), KN_EIO, "Is a directory");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_examples),
        cmocka_unit_test(a_stream_in_pieces_equals_the_whole),
        cmocka_unit_test(files),
    };
    return cmocka_run_group_tests(tests, make_test_folder, remove_test_folder);
}
