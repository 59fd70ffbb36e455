/* safetensors: what is written reads back, also by hand from the bytes; every kind of damage is one sentence. */
#include "base/support.h"
#include "core/base/safetensors.h"

#include <fcntl.h>
#include <math.h>
#include <unistd.h>

static const float floats[6] = {1.5f, -2.25f, 0.0f, 1e-30f, 3e30f, -0.0f};
static const uint16_t bf16s[4] = {0x3f80, 0xc000, 0x7f80, 0x0001};
static const uint16_t f16s[3] = {0x3c00, 0xc000, 0x0001};
static const int32_t ints[2] = {-7, 1 << 30};
static const int64_t longs[1] = {INT64_MIN};
static const uint8_t bytes3[3] = {0, 128, 255};

static const KnSafetensor sample[] = {
    {"z.weight", KN_SAFETENSORS_F32, 2, {2, 3}, floats},
    {"a.bf16", KN_SAFETENSORS_BF16, 1, {4}, bf16s},
    {"u8 \"quoted\" \xc3\xa9", KN_SAFETENSORS_U8, 3, {1, 3, 1}, bytes3},
    {"half", KN_SAFETENSORS_F16, 1, {3}, f16s}, /* starts at an odd byte */
    {"empty", KN_SAFETENSORS_F32, 2, {0, 5}, NULL},
    {"scalar", KN_SAFETENSORS_I64, 0, {0}, longs},
    {"ints", KN_SAFETENSORS_I32, 1, {2}, ints},
};
enum { SAMPLE = sizeof sample / sizeof *sample };
static const KnSafetensorsPair pairs[] = {{"format", "pt"}, {"step", "12"}};

static void what_is_written_reads_back(void **state)
{
    (void)state;
    KnSafetensorsSet *set;
    const char *path = test_path("s.safetensors");
    assert_ok(kn_safetensors_write(path, sample, SAMPLE, pairs, 2));
    assert_ok(kn_safetensors_open(&set, path));
    assert_int_equal(kn_safetensors_count(set), SAMPLE);
    for (int i = 0; i < SAMPLE; i++) {
        const KnSafetensor *tensor = kn_safetensors_find(set, sample[i].name);
        assert_non_null(tensor);
        assert_ptr_equal(tensor, kn_safetensors_at(set, i)); /* in the given order */
        assert_int_equal(tensor->type, sample[i].type);
        assert_int_equal(tensor->dims, sample[i].dims);
        for (int d = 0; d < tensor->dims; d++)
            assert_int_equal(tensor->shape[d], sample[i].shape[d]);
        if (kn_safetensor_bytes(tensor))
            assert_memory_equal(tensor->data, sample[i].data, kn_safetensor_bytes(tensor));
        assert_string_equal(kn_safetensors_path(set, tensor), path);
    }
    assert_null(kn_safetensors_find(set, "absent"));
    assert_string_equal(kn_safetensors_metadata(set, "step"), "12");
    assert_null(kn_safetensors_metadata(set, "absent"));
    kn_safetensors_close(set);
    kn_safetensors_close(NULL);
}

static void the_bytes_are_the_published_layout(void **state)
{
    (void)state;
    char *bytes;
    size_t size;
    uint64_t header;
    assert_ok(kn_safetensors_write(test_path("l.safetensors"), sample, 2, NULL, 0));
    assert_ok(kn_file_read(test_path("l.safetensors"), &bytes, &size));
    memcpy(&header, bytes, 8);
    static const char expected[] = "{\"z.weight\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
                                   "\"a.bf16\":{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[24,32]}}";
    assert_memory_equal(bytes + 8, expected, sizeof expected - 1);
    for (size_t i = 8 + sizeof expected - 1; i < 8 + header; i++)
        assert_int_equal(bytes[i], ' ');
    assert_int_equal((8 + header) % 64, 0);
    assert_int_equal(size, 8 + header + 32);
    assert_memory_equal(bytes + 8 + header, floats, 24);
    free(bytes);
}

static void floats_of_every_width_are_read(void **state)
{
    (void)state;
    KnSafetensorsSet *set;
    float out[6];
    assert_ok(kn_safetensors_write(test_path("f.safetensors"), sample, SAMPLE, NULL, 0));
    assert_ok(kn_safetensors_open(&set, test_path("f.safetensors")));
    assert_ok(kn_safetensors_read_f32(set, "z.weight", out, 6));
    assert_memory_equal(out, floats, sizeof floats);
    assert_ok(kn_safetensors_read_f32(set, "a.bf16", out, 4));
    assert_true(out[0] == 1 && out[1] == -2 && isinf(out[2]) && out[3] == 0x1p-133f);
    assert_ok(kn_safetensors_read_f32(set, "half", out, 3));
    assert_true(out[0] == 1 && out[1] == -2 && out[2] == 0x1p-24f);
    assert_ok(kn_safetensors_read_f32(set, "empty", out, 0));
    assert_fails(kn_safetensors_read_f32(set, "z.weight", out, 5), KN_EFORMAT,
                 "/f.safetensors: tensor z.weight has shape [2, 3], hence 6 elements; 5 are needed");
    assert_fails(kn_safetensors_read_f32(set, "ints", out, 2), KN_EFORMAT, "tensor ints has dtype I32, not floating");
    assert_fails(kn_safetensors_read_f32(set, "gone", out, 2), KN_EFORMAT, "/f.safetensors has no tensor gone");
    kn_safetensors_close(set);
}

static void a_stream_in_pieces_equals_the_whole(void **state)
{
    (void)state;
    KnSafetensorsWriter *writer;
    char *whole, *pieces;
    size_t whole_size, pieces_size;
    assert_ok(kn_safetensors_write(test_path("w1"), sample, 2, pairs, 2));
    assert_ok(kn_safetensors_writer_open(&writer, test_path("w2"), sample, 2, pairs, 2));
    for (int i = 0; i < 24; i++)
        assert_ok(kn_safetensors_writer_write(writer, (const char *)floats + i, 1));
    assert_ok(kn_safetensors_writer_write(writer, bf16s, 8));
    assert_ok(kn_safetensors_writer_commit(writer));
    assert_ok(kn_file_read(test_path("w1"), &whole, &whole_size));
    assert_ok(kn_file_read(test_path("w2"), &pieces, &pieces_size));
    assert_int_equal(whole_size, pieces_size);
    assert_memory_equal(whole, pieces, whole_size);
    free(whole);
    free(pieces);
}

static void what_cannot_be_written_leaves_nothing(void **state)
{
    (void)state;
    KnSafetensorsWriter *writer;
    const char *path = test_path("never");
    KnSafetensor twice[2] = {sample[0], sample[0]}, reserved = sample[0], broken = sample[0];
    reserved.name = "__metadata__";
    broken.name = "\xff";
    KnSafetensorsPair bad = {"key", "\xff"};
    assert_fails(kn_safetensors_write(path, twice, 2, NULL, 0), KN_EINPUT, "two tensors are called z.weight");
    assert_fails(kn_safetensors_write(path, &reserved, 1, NULL, 0), KN_EINPUT, "no tensor may be called __metadata__");
    assert_fails(kn_safetensors_write(path, &broken, 1, NULL, 0), KN_EINPUT, "name of tensor 0 is not UTF-8");
    assert_fails(kn_safetensors_write(path, sample, 1, &bad, 1), KN_EINPUT, "metadata is not UTF-8");
    assert_fails(kn_safetensors_write(test_path("no/folder"), sample, 1, NULL, 0), KN_EIO, "no/folder: No such file");
    assert_ok(kn_safetensors_writer_open(&writer, path, sample, 1, NULL, 0));
    assert_ok(kn_safetensors_writer_write(writer, floats, 20));
    assert_fails(kn_safetensors_writer_commit(writer), KN_EINPUT, "tensors have 24 bytes, but 20 were given");
    assert_ok(kn_safetensors_writer_open(&writer, path, sample, 1, NULL, 0));
    kn_safetensors_writer_abort(writer);
    assert_false(kn_file_exists(path));
}

/* A file of this header and so many zero bytes of data. */
static int open_header(const char *header, size_t data_bytes)
{
    char *file = calloc(1, 8 + strlen(header) + data_bytes);
    uint64_t length = strlen(header);
    memcpy(file, &length, 8);
    memcpy(file + 8, header, length);
    put_file(test_path("bad"), file, 8 + length + data_bytes);
    free(file);
    KnSafetensorsSet *set;
    int code = kn_safetensors_open(&set, test_path("bad"));
    kn_safetensors_close(set);
    return code;
}

#define TENSOR(name, type, shape, offsets)                                                                             \
    "\"" name "\":{\"dtype\":\"" type "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static void every_lie_of_a_header_is_one_sentence(void **state)
{
    (void)state;
    static const struct {
        const char *header;
        size_t data_bytes;
        const char *sentence; /* NULL: a good file */
    } rows[] = {
        {"{" TENSOR("a", "F32", "[2]", "[0,8]") "}   ", 8, NULL},
        {"{}", 0, NULL},
        {"{" TENSOR("e", "F32", "[0]", "[0,0]") "," TENSOR("a", "U8", "[1]", "[0,1]") "}", 1, NULL},
        {"{" TENSOR("a", "F32", "[0,9223372036854775807]", "[0,0]") "}", 0, "impossibly large"},
        {"", 4, "header is not JSON"},
        {"[]", 0, "header is not JSON"},
        {" {}", 0, "header is not JSON"},
        {"{", 0, "header is not JSON: "},
        {"{} x", 0, "header is not JSON: "},
        {"{\"a\":1,\"a\":1}", 0, "duplicate object key"},
        {"{\"\xff\":1}", 0, "header is not JSON: "},
        {"{\"a\":3}", 0, "tensor a is not described by an object"},
        {"{\"a\":{}}", 0, "tensor a has no dtype"},
        {"{\"a\":{\"dtype\":\"F32\"}}", 0, "tensor a has no shape"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[]}}", 0, "tensor a has no valid data_offsets"},
        {"{" TENSOR("a", "F8_E4M3", "[2]", "[0,2]") "}", 2, "dtype F8_E4M3; F32, BF16"},
        {"{" TENSOR("a", "F32", "[1.0]", "[0,4]") "}", 4, "not made of counts"},
        {"{" TENSOR("a", "F32", "[-1]", "[0,4]") "}", 4, "not made of counts"},
        {"{" TENSOR("a", "F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]") "}", 4, "at most 8 dimensions"},
        {"{" TENSOR("a", "F32", "[4294967296,4294967296]", "[0,0]") "}", 0, "impossibly large"},
        {"{" TENSOR("a", "F32", "[99999999999999999999]", "[0,0]") "}", 0, "header is not JSON: "},
        {"{" TENSOR("a", "F32", "[2]", "[0]") "}", 8, "no valid data_offsets"},
        {"{" TENSOR("a", "F32", "[2]", "[8,0]") "}", 8, "no valid data_offsets"},
        {"{" TENSOR("a", "F32", "[2]", "[-8,0]") "}", 8, "no valid data_offsets"},
        {"{" TENSOR("a", "F32", "[2]", "[\"0\",8]") "}", 8, "no valid data_offsets"},
        {"{" TENSOR("a", "F32", "[2]", "[0,8]") "}", 7,
         "is truncated: tensor a ends at byte 8 of the data, of which "
         "there are 7"},
        {"{" TENSOR("a", "F32", "[2]", "[0,4]") "}", 8, "takes 4 bytes, but its shape needs 8"},
        {"{" TENSOR("a", "F32", "[2]", "[0,8]") "}", 9, "the last 1 bytes belong to no tensor"},
        {"{" TENSOR("a", "F32", "[2]", "[1,9]") "}", 9, "1 bytes before tensor a belong to no tensor"},
        {"{" TENSOR("a", "F32", "[2]", "[0,8]") "," TENSOR("b", "F32", "[2]", "[4,12]") "}", 12,
         "tensors a and b overlap"},
        {"{" TENSOR("a", "F32", "[2]", "[0,8]") "," TENSOR("b", "F32", "[2]", "[0,8]") "}", 8,
         "tensors a and b overlap"},
        {"{\"__metadata__\":[]}", 0, "__metadata__ is not an object"},
        {"{\"__metadata__\":{\"a\":1}}", 0, "__metadata__ a is not a string"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (rows[i].sentence)
            assert_fails(open_header(rows[i].header, rows[i].data_bytes), KN_EFORMAT, rows[i].sentence);
        else
            assert_ok(open_header(rows[i].header, rows[i].data_bytes));
        assert_true(!rows[i].sentence || strstr(kn_error_message(), test_path("bad")));
    }
}

static void foreign_and_truncated_files(void **state)
{
    (void)state;
    KnSafetensorsSet *set;
    char *bytes;
    size_t size;
    assert_fails(kn_safetensors_open(&set, test_path("absent")), KN_EIO, "absent: No such file");
    put_text(test_path("foreign"), "#!/bin/sh\nexit 0\n");
    assert_fails(kn_safetensors_open(&set, test_path("foreign")), KN_EFORMAT, "truncated or not a safetensors file");
    put_file(test_path("long"), "\x0b\0\0\0\0\0\0\0{}        ", 18);
    assert_fails(kn_safetensors_open(&set, test_path("long")), KN_EFORMAT, "announces a header of 11 bytes and has 18");
    assert_ok(kn_safetensors_write(test_path("t"), sample, SAMPLE, pairs, 2));
    assert_ok(kn_file_read(test_path("t"), &bytes, &size));
    for (size_t cut = 0; cut < size; cut++) {
        put_file(test_path("cut"), bytes, cut);
        int code = kn_safetensors_open(&set, test_path("cut"));
        if (code != KN_EFORMAT || !strstr(kn_error_message(), "cut") || set)
            fail_msg("cut to %zu gave %d, %s", cut, code, kn_error_message());
    }
    free(bytes);
}

/* Each byte of a small file, each bit and a few values: opened and read in full, or one sentence. */
static void every_flipped_byte_is_survived(void **state)
{
    (void)state;
    char *bytes;
    size_t size;
    assert_ok(kn_safetensors_write(test_path("flipped"), sample, SAMPLE, pairs, 2));
    assert_ok(kn_file_read(test_path("flipped"), &bytes, &size));
    int descriptor = open(test_path("flipped"), O_WRONLY);
    assert_true(descriptor >= 0);
    for (size_t i = 0; i < size; i++)
        for (int change = 0; change < 10; change++) {
            char changed = (char)(change < 8 ? bytes[i] ^ 1 << change : change == 8 ? '0' : '"');
            assert_int_equal(pwrite(descriptor, &changed, 1, (off_t)i), 1);
            KnSafetensorsSet *set;
            kn_fail(KN_OK, "%s", "");
            int code = kn_safetensors_open(&set, test_path("flipped"));
            assert_true(code == KN_OK || strstr(kn_error_message(), "flipped"));
            unsigned sum = 0;
            for (int t = 0; set && t < kn_safetensors_count(set); t++) {
                const KnSafetensor *tensor = kn_safetensors_at(set, t);
                for (size_t b = 0; b < kn_safetensor_bytes(tensor); b++)
                    sum += ((const unsigned char *)tensor->data)[b];
            }
            assert_true(sum < 1u << 20);
            kn_safetensors_close(set);
            assert_int_equal(pwrite(descriptor, &bytes[i], 1, (off_t)i), 1);
        }
    close(descriptor);
    free(bytes);
}

static void write_one(const char *name, int index)
{
    assert_ok(kn_safetensors_write(test_path(name), &sample[index], 1, pairs, 2));
}

static void a_sharded_model_is_one_set(void **state)
{
    (void)state;
    KnSafetensorsSet *set;
    assert_ok(kn_make_directories(test_path("model")));
    const char *index = test_path("model/m.safetensors.index.json");
    write_one("model/m-00001-of-00002.safetensors", 0);
    write_one("model/m-00002-of-00002.safetensors", 1);
    assert_fails(kn_safetensors_open(&set, test_path("model")), KN_EINPUT, "holds several files *.safetensors");
    put_text(index, "{\"metadata\":{},\"weight_map\":{\"z.weight\":\"m-00001-of-00002.safetensors\","
                    "\"a.bf16\":\"m-00002-of-00002.safetensors\"}}");
    const char *const ways[] = {test_path("model"), index};
    for (int i = 0; i < 2; i++) {
        assert_ok(kn_safetensors_open(&set, ways[i]));
        assert_int_equal(kn_safetensors_count(set), 2);
        const KnSafetensor *tensor = kn_safetensors_find(set, "a.bf16");
        assert_memory_equal(tensor->data, bf16s, sizeof bf16s);
        assert_non_null(strstr(kn_safetensors_path(set, tensor), "model/m-00002-of-00002.safetensors"));
        assert_string_equal(kn_safetensors_metadata(set, "format"), "pt");
        kn_safetensors_close(set);
    }
    static const char *const rows[][2] = {
        {"{", "index.json:1:1: "},
        {"[]", "has no weight_map"},
        {"{\"weight_map\":{}}", "has no weight_map"},
        {"{\"weight_map\":{\"x\":\"m-00001-of-00002.safetensors\"}}",
         "tensor x is not in m-00001-of-00002.safetensors, where this index says it is"},
        {"{\"weight_map\":{\"a.bf16\":\"m-00001-of-00002.safetensors\",\"z.weight\":\"m-00002-of-00002.safetensors\"}}",
         "is not in m-0000"},
        {"{\"weight_map\":{\"x\":\"gone.safetensors\"}}", "model/gone.safetensors: No such file"},
        {"{\"weight_map\":{\"x\":\"../bad\"}}", "tensor x is in no file of this folder"},
        {"{\"weight_map\":{\"x\":3}}", "tensor x is in no file of this folder"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        put_text(index, rows[i][0]);
        int code = kn_safetensors_open(&set, index);
        if (code >= 0 || !strstr(kn_error_message(), rows[i][1]))
            fail_msg("row %zu gave %d, %s", i, code, kn_error_message());
    }
    write_one("model/m-00002-of-00002.safetensors", 0);
    put_text(index, "{\"weight_map\":{\"z.weight\":\"m-00001-of-00002.safetensors\","
                    "\"a.bf16\":\"m-00002-of-00002.safetensors\"}}");
    assert_fails(kn_safetensors_open(&set, index), KN_EFORMAT, "tensor z.weight is both in ");
    assert_ok(kn_make_directories(test_path("nothing/x.safetensors")));
    assert_fails(kn_safetensors_open(&set, test_path("nothing")), KN_EFORMAT, "x.safetensors is a folder");
    assert_ok(kn_remove_tree(test_path("nothing/x.safetensors")));
    assert_fails(kn_safetensors_open(&set, test_path("nothing")), KN_EFORMAT, "nothing holds no .safetensors file");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_reads_back),
        cmocka_unit_test(the_bytes_are_the_published_layout),
        cmocka_unit_test(a_stream_in_pieces_equals_the_whole),
        cmocka_unit_test(what_cannot_be_written_leaves_nothing),
        cmocka_unit_test(every_lie_of_a_header_is_one_sentence),
        cmocka_unit_test(foreign_and_truncated_files),
        cmocka_unit_test(every_flipped_byte_is_survived),
        cmocka_unit_test(a_sharded_model_is_one_set),
        cmocka_unit_test(floats_of_every_width_are_read),
    };
    return cmocka_run_group_tests(tests, make_test_folder, remove_test_folder);
}
