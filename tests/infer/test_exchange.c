/* `kinora import` and `kinora export`: what goes out comes back bit for bit, and folders that do not match their
 * config.json are refused by the name of the tensor. */
#include "base/support.h"
#include "core/base/log.h"
#include "core/base/safetensors.h"
#include "infer/commands.h"
#include "infer/tiny_model.h"

#define RUN(command, ...) run_with(command, (const char *const[]){#command, __VA_ARGS__, NULL})

static int run_with(int (*command)(int argc, char **argv), const char *const *arguments)
{
    int count = 0;
    while (arguments[count])
        count++;
    return command(count, (char **)(uintptr_t)arguments);
}

static void assert_same_tensors(const KnSafetensorsSet *a, const KnSafetensorsSet *b)
{
    assert_int_equal(kn_safetensors_count(a), kn_safetensors_count(b));
    for (int i = 0; i < kn_safetensors_count(a); i++) {
        const KnSafetensor *tensor = kn_safetensors_at(a, i), *other = kn_safetensors_find(b, tensor->name);
        int64_t count = kn_safetensor_elements(tensor);
        float *x = kn_alloc((size_t)count * sizeof *x), *y = kn_alloc((size_t)count * sizeof *y);
        assert_non_null(other);
        assert_int_equal(tensor->dims, other->dims);
        assert_memory_equal(tensor->shape, other->shape, (size_t)tensor->dims * sizeof *tensor->shape);
        assert_ok(kn_safetensors_read_f32(a, tensor->name, x, count));
        assert_ok(kn_safetensors_read_f32(b, tensor->name, y, count));
        assert_memory_equal(x, y, (size_t)count * sizeof *x);
        free(x);
        free(y);
    }
}

static void published_folders_keep_every_tensor(void **state)
{
    (void)state;
    static const struct {
        const char *folder, *weights;
    } rows[] = {
        {"transformer-small", "diffusion_pytorch_model.safetensors"},
        {"transformer-odd", "diffusion_pytorch_model.safetensors.index.json"}, /* two files */
        {"transformer-wide-head", "diffusion_pytorch_model.safetensors"},      /* bfloat16 */
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        KnSafetensorsSet *published, *ours;
        char *from = kn_format("%s/%s", KN_TEST_FIXTURES, rows[i].folder);
        char *weights = kn_format("%s/%s", from, rows[i].weights),
             *to = kn_format("%s/%s", test_folder, rows[i].folder);
        char *written = kn_format("%s/diffusion_pytorch_model.safetensors", to);
        assert_ok(RUN(kn_command_import, from, "--out", to));
        assert_ok(kn_safetensors_open(&published, weights));
        assert_ok(kn_safetensors_open(&ours, written));
        assert_same_tensors(published, ours);
        kn_safetensors_close(published);
        kn_safetensors_close(ours);
        free(from);
        free(weights);
        free(to);
        free(written);
    }
}

static void an_export_opens_like_the_model_itself(void **state)
{
    (void)state;
    KnSafetensorsSet *first, *second;
    char *config, *again;
    size_t size;
    make_tiny_model(test_path("tiny"), "sample: {steps: 5}\n");
    assert_ok(RUN(kn_command_export, "--model", test_path("tiny"), "--out", test_path("out/of/here")));
    assert_ok(kn_safetensors_open(&first, test_path("tiny")));
    assert_ok(kn_safetensors_open(&second, test_path("out/of/here")));
    assert_same_tensors(first, second);
    kn_safetensors_close(first);
    kn_safetensors_close(second);
    assert_ok(kn_file_read(test_path("tiny/config.json"), &config, &size));
    assert_ok(kn_file_read(test_path("out/of/here/config.json"), &again, &size));
    assert_string_equal(config, again);
    assert_true(kn_file_exists(test_path("out/of/here/text_encoder/spiece.model")));
    assert_true(kn_file_exists(test_path("out/of/here/kinora.yaml")));
    free(config);
    free(again);
}

/* ---- what does not match ---- */

/* The small fixture with one tensor left out, added, or of another shape. */
static void write_altered(const char *folder, const char *leave_out, const char *reshape, const char *add)
{
    KnSafetensorsSet *set;
    KnSafetensor tensors[256];
    int count = 0;
    char *config, *path = kn_format("%s/config.json", folder);
    char *weights = kn_format("%s/diffusion_pytorch_model.safetensors", folder);
    size_t size;
    static const float ones[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    assert_ok(kn_make_directories(folder));
    assert_ok(kn_file_read(KN_TEST_FIXTURES "/transformer-small/config.json", &config, &size));
    put_text(path, config);
    assert_ok(kn_safetensors_open(&set, KN_TEST_FIXTURES "/transformer-small/diffusion_pytorch_model.safetensors"));
    for (int i = 0; i < kn_safetensors_count(set); i++) {
        const KnSafetensor *tensor = kn_safetensors_at(set, i);
        if (leave_out && !strcmp(tensor->name, leave_out))
            continue;
        tensors[count] = *tensor;
        if (reshape && !strcmp(tensor->name, reshape)) {
            tensors[count].shape[0] = tensor->shape[1];
            tensors[count].shape[1] = tensor->shape[0];
        }
        count++;
    }
    if (add)
        tensors[count++] = (KnSafetensor){add, KN_SAFETENSORS_F32, 1, {8}, ones};
    assert_ok(kn_safetensors_write(weights, tensors, count, NULL, 0));
    kn_safetensors_close(set);
    free(config);
    free(path);
    free(weights);
}

static void tensors_that_do_not_fit_are_named(void **state)
{
    (void)state;
    static const struct {
        const char *leave_out, *reshape, *add, *part;
    } rows[] = {
        {"blocks.1.attn2.to_k.weight", NULL, NULL, "blocks.1.attn2.to_k.weight"},
        {NULL, "blocks.2.ffn.net.0.proj.weight", NULL, "tensor blocks.2.ffn.net.0.proj.weight has another shape"},
        {NULL, NULL, "blocks.0.attn2.add_k_proj.bias", "a tensor blocks.0.attn2.add_k_proj.bias, which the model"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char name[32];
        snprintf(name, sizeof name, "altered-%zu", i);
        write_altered(test_path(name), rows[i].leave_out, rows[i].reshape, rows[i].add);
        assert_fails(RUN(kn_command_import, test_path(name), "--out", test_path("never")), KN_EFORMAT, rows[i].part);
        assert_non_null(strstr(kn_error_message(), name));
        assert_false(kn_file_exists(test_path("never")));
    }
}

/* The tiny model with `from` in its config.json turned into `to`. */
static void write_misdescribed(const char *folder, const char *from, const char *to)
{
    char *config, *path = kn_format("%s/config.json", folder);
    size_t size;
    make_tiny_model(folder, NULL);
    assert_ok(kn_file_read(path, &config, &size));
    char *found = strstr(config, from);
    assert_non_null(found);
    char *altered = kn_format("%.*s%s%s", (int)(found - config), config, to, found + strlen(from));
    put_text(path, altered);
    free(config);
    free(altered);
    free(path);
}

static void descriptions_that_make_no_sense_are_named(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to, *part;
    } rows[] = {
        {"\"layers\": 0,\n      \"heads\": 1", "\"layers\": 1, \"heads\": 5", "the text encoder's 5 heads"},
        {"\"layers\": 0", "\"layers\": -1", "\"layers\" is not a whole number"},
        {"\"kind\": \"trained\"", "\"kind\": \"learned\"", "\"kind\" is neither \"none\" nor \"trained\""},
        {"\"prediction\": \"sample\"", "\"prediction\": \"x0\"", "\"prediction\" is neither \"velocity\" nor"},
        {"\"eps\": 1e-6", "\"eps\": -1", "\"eps\" is not a number above 0"},
        {"\"attention_head_dim\": 16", "\"attention_head_dim\": 15", "config.json: hidden 30 cannot be cut"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char name[32];
        snprintf(name, sizeof name, "misdescribed-%zu", i);
        write_misdescribed(test_path(name), rows[i].from, rows[i].to);
        int code = RUN(kn_command_export, "--model", test_path(name), "--out", test_path("never"));
        assert_true(code == KN_EFORMAT || code == KN_EINPUT);
        if (!strstr(kn_error_message(), rows[i].part) || !strstr(kn_error_message(), name))
            fail_msg("row %zu says: %s", i, kn_error_message());
        assert_false(kn_file_exists(test_path("never")));
    }
}

/* diffusers writes config.json without what it does not know, and leaves the text encoder's folder alone. */
static void a_vocabulary_without_its_encoder_is_passed_over(void **state)
{
    (void)state;
    KnModelFile file;
    write_misdescribed(test_path("resaved"), "\"kinora\"", "\"other\"");
    assert_ok(kn_model_open(&file, NULL, test_path("resaved")));
    assert_int_equal(file.model.text.kind, KN_TEXT_NONE);
    assert_null(file.model.tokenizer);
    kn_model_close(&file);
    assert_fails(
        RUN(kn_command_generate, "--model", test_path("resaved"), "--prompt", "x", "--out", test_path("x.mp4")),
        KN_EINPUT, "the model has no text encoder");
}

static void folders_that_are_no_model_or_full_are_refused(void **state)
{
    (void)state;
    assert_ok(kn_make_directories(test_path("empty")));
    put_text(test_path("occupied"), "");
    assert_ok(kn_make_directories(test_path("full/inside")));
    assert_fails(RUN(kn_command_import, test_path("empty"), "--out", test_path("never")), KN_EINPUT,
                 "neither a config.json nor a transformer/config.json");
    assert_fails(RUN(kn_command_import, test_path("nowhere"), "--out", test_path("never")), KN_EIO,
                 "there is no model at");
    assert_fails(RUN(kn_command_import, KN_TEST_FIXTURES "/transformer-odd", "--out", test_path("full")), KN_EINPUT,
                 "is not empty");
    assert_fails(RUN(kn_command_import, KN_TEST_FIXTURES "/transformer-odd", "--out", test_path("occupied")), KN_EINPUT,
                 "no folder");
    assert_false(kn_file_exists(test_path("never")));
}

static int set_up(void **state)
{
    kn_log_set_quiet(1);
    return make_test_folder(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_folders_keep_every_tensor),
        cmocka_unit_test(an_export_opens_like_the_model_itself),
        cmocka_unit_test(tensors_that_do_not_fit_are_named),
        cmocka_unit_test(descriptions_that_make_no_sense_are_named),
        cmocka_unit_test(a_vocabulary_without_its_encoder_is_passed_over),
        cmocka_unit_test(folders_that_are_no_model_or_full_are_refused),
    };
    return cmocka_run_group_tests(tests, set_up, remove_test_folder);
}
