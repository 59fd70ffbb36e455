/* The configuration: defaults, files over base files over --set, the sentence for every mistake, and the way back. */
#include "base/support.h"
#include "core/base/config.h"

#include <unistd.h>

static int load_text(KnConfig *config, const char *text, const char *override)
{
    put_text(test_path("c.yaml"), text);
    kn_config_init(config);
    return kn_config_load(config, test_path("c.yaml"), &override, override ? 1 : 0);
}

static void defaults_are_a_sensible_small_model(void **state)
{
    (void)state;
    KnConfig config;
    kn_config_init(&config);
    assert_ok(kn_config_check(&config));
    assert_ok(kn_config_load(&config, NULL, NULL, 0));
    assert_null(config.run_dir); /* commands ask for it */
    assert_int_equal(config.model.hidden, 128);
    assert_int_equal(config.model.patch[0], 2);
    assert_int_equal(config.model.patch[2], 8);
    assert_true(config.model.cross_attn_norm);
    assert_int_equal(config.text.kind, KN_TEXT_TRAINED);
    assert_int_equal(config.flow.prediction, KN_PREDICT_SAMPLE);
    assert_true(config.flow.given_none == 1 && config.flow.given_random == 0);
    assert_string_equal(config.optimizer.name, "muon");
    assert_true(config.optimizer.lr == 4e-3 && config.optimizer.ema == 0.998);
    assert_int_equal(config.optimizer.schedule, KN_SCHEDULE_LINEAR);
    assert_int_equal(config.parallel.data, 0);
    assert_int_equal(config.train.precision, KN_PRECISION_BF16);
    assert_string_equal(config.sample.solver, "euler");
    assert_int_equal(config.data.shards.count, 0);
    kn_config_clear(&config);
    assert_null(config.optimizer.name);
    kn_config_clear(&config);
}

static void every_type_is_read(void **state)
{
    (void)state;
    KnConfig config;
    assert_ok(load_text(&config,
                        "run: {dir: runs/a, seed: 9007199254740993}\n"
                        "model:\n"
                        "  hidden: 256\n"
                        "  heads: 4\n"
                        "  patch: [1, 2, 2]\n"
                        "  eps: 1e-5\n"
                        "  cross_attn_norm: false\n"
                        "  text:\n"
                        "    kind: none\n"
                        "data:\n"
                        "  shards: [a, 'b c', 7]\n"
                        "train:\n" /* a section whose keys are all commented out */
                        "optimizer:\n"
                        "  warmup_steps: 1e3\n"
                        "sample:\n"
                        "  prompts: a red circle\n"
                        "parallel: {data: auto}\n",
                        "train.steps=2e3"));
    assert_string_equal(config.run_dir, "runs/a");
    assert_true(config.run_seed == 9007199254740993); /* not a double */
    assert_int_equal(config.model.hidden, 256);
    assert_int_equal(config.model.patch[0], 1);
    assert_int_equal(config.model.patch[1], 2);
    assert_true(config.model.eps == 1e-5);
    assert_false(config.model.cross_attn_norm);
    assert_int_equal(config.text.kind, KN_TEXT_NONE);
    assert_int_equal(config.data.shards.count, 3);
    assert_string_equal(config.data.shards.items[1], "b c");
    assert_string_equal(config.data.shards.items[2], "7");
    assert_int_equal(config.optimizer.warmup_steps, 1000);
    assert_int_equal(config.sample.prompts.count, 1);
    assert_string_equal(config.sample.prompts.items[0], "a red circle");
    assert_int_equal(config.train.steps, 2000);
    kn_config_clear(&config);
}

static void overrides_are_yaml_and_the_last_wins(void **state)
{
    (void)state;
    static const char *const overrides[] = {
        "train.steps=5", "train.steps=7",   "data.shards=[a,b]", "data.shards=one",     "model.patch=[4, 16,16]",
        "run.dir=x=y",   "sample.frames=4", "parallel.data=2",   "model.text.layers=0", "train.threads='3'"};
    KnConfig config;
    kn_config_init(&config);
    assert_ok(kn_config_load(&config, NULL, overrides, 9));
    assert_int_equal(config.train.steps, 7);
    assert_int_equal(config.data.shards.count, 1);
    assert_string_equal(config.data.shards.items[0], "one");
    assert_int_equal(config.model.patch[0], 4);
    assert_string_equal(config.run_dir, "x=y");
    assert_int_equal(config.parallel.data, 2);
    assert_fails(kn_config_load(&config, NULL, overrides, 10), KN_EINPUT,
                 "--set train.threads='3': train.threads must be an integer from 0 to 65536, not \"3\"");
    kn_config_clear(&config);
}

static void every_mistake_in_a_file_is_one_sentence(void **state)
{
    (void)state;
    static const struct {
        const char *text, *sentence;
        int code;
    } rows[] = {
        /* keys */
        {"model:\n  hiden: 5\n", "/c.yaml:2:3: unknown key model.hiden; did you mean model.hidden?", KN_EINPUT},
        {"modle:\n  hidden: 5\n", "/c.yaml:1:1: unknown key modle; did you mean model?", KN_EINPUT},
        {"model:\n  text:\n    layer: 1\n",
         "/c.yaml:3:5: unknown key model.text.layer; did you mean model.text.layers?", KN_EINPUT},
        {"train:\n  lr: 1\n", "/c.yaml:2:3: unknown key train.lr; did you mean optimizer.lr?", KN_EINPUT},
        {"hidden: 5\n", "/c.yaml:1:1: unknown key hidden; did you mean model.hidden?", KN_EINPUT},
        {"train.steps: 5\n", "/c.yaml:1:1: unknown key train.steps; write it inside its section, without a dot",
         KN_EINPUT},
        {"train:\n  zzzzzz: 1\n", "unknown key train.zzzzzz; the keys here are steps, packs, checkpoint_every",
         KN_EINPUT},
        {"zzzzzz: 1\n", "unknown key zzzzzz; the sections are base, run, model, data, flow", KN_EINPUT},
        {"train:\n  steps: 1\n  steps: 2\n", "/c.yaml:3:3: the key steps appears twice", KN_EFORMAT},
        {"train: 5\n", "/c.yaml:1:1: train is a section: write its keys below it", KN_EINPUT},
        {"model:\n  text: none\n", "/c.yaml:2:3: model.text is a section", KN_EINPUT},
        {"- a\n", "/c.yaml:1:1: a configuration is made of sections", KN_EINPUT},
        {"model: [\n", "/c.yaml:2:1: ", KN_EFORMAT},
        /* types */
        {"train:\n  steps: many\n", "/c.yaml:2:3: train.steps must be an integer of at least 1, not many", KN_EINPUT},
        {"train:\n  steps: 1.5\n", "not 1.5", KN_EINPUT},
        {"train:\n  steps: '5'\n", "not \"5\"", KN_EINPUT},
        {"train:\n  steps: 0x10\n", "not 0x10", KN_EINPUT},
        {"train:\n  steps: 5 steps\n", "not 5 steps", KN_EINPUT},
        {"train:\n  steps: [5]\n", "train.steps must be an integer of at least 1, not a list", KN_EINPUT},
        {"train:\n  steps: {a: 5}\n", "not a section", KN_EINPUT},
        {"train:\n  steps:\n", "/c.yaml:2:3: train.steps has no value", KN_EINPUT},
        {"train:\n  steps: ~\n", "/c.yaml:2:3: train.steps has no value", KN_EINPUT},
        {"run:\n  seed: 99999999999999999999\n", "run.seed must be an integer of at least 0", KN_EINPUT},
        {"run:\n  seed: 1e300\n", "run.seed must be an integer of at least 0", KN_EINPUT},
        {"run:\n  watchdog_seconds: -1\n", "run.watchdog_seconds must be a number from 0 to", KN_EINPUT},
        {"run:\n  dir: [a]\n", "run.dir must be a text, not a list", KN_EINPUT},
        {"flow:\n  shift: fast\n", "flow.shift must be a number above 0, at most 1000, not fast", KN_EINPUT},
        {"flow:\n  shift: nan\n", "not nan", KN_EINPUT},
        {"flow:\n  shift: inf\n", "not inf", KN_EINPUT},
        {"optimizer:\n  clip_norm: 1e999\n", "optimizer.clip_norm must be a number of at least 0, not 1e999",
         KN_EINPUT},
        {"model:\n  cross_attn_norm: yes\n", "model.cross_attn_norm must be true or false, not yes", KN_EINPUT},
        {"model:\n  recompute: yes\n", "model.recompute must be none, block, or a size such as 2GiB, not yes",
         KN_EINPUT},
        {"model:\n  recompute: 2GiBs\n", "such as 2GiB, not 2GiBs", KN_EINPUT},
        {"model:\n  recompute: 0\n", "such as 2GiB, not 0", KN_EINPUT},
        {"model:\n  recompute: -1MiB\n", "such as 2GiB, not -1MiB", KN_EINPUT},
        {"flow:\n  prediction: noise\n", "/c.yaml:2:3: flow.prediction must be one of velocity, sample, not noise",
         KN_EINPUT},
        {"optimizer:\n  name: sgd\n", "optimizer.name must be one of adamw, muon, not sgd", KN_EINPUT},
        {"optimizer:\n  name: mu\n", "optimizer.name must be one of adamw, muon, not mu", KN_EINPUT},
        {"model:\n  patch: 8\n", "model.patch must be a list of three integers, each from 1 to 1024, not 8", KN_EINPUT},
        {"model:\n  patch: [8, 8]\n", "model.patch must be a list of three integers", KN_EINPUT},
        {"model:\n  patch: [0, 8, 8]\n",
         "/c.yaml:2:3: model.patch must be a list of three integers, each from 1 to "
         "1024, not 0",
         KN_EINPUT},
        {"data:\n  shards: {a: b}\n", "data.shards must be a list of texts, not a section", KN_EINPUT},
        {"data:\n  shards: [a, [b]]\n", "data.shards must be a list of texts, but its item 2 is a list", KN_EINPUT},
        /* values */
        {"model:\n  layers: 0\n", "/c.yaml:2:3: model.layers must be an integer from 1 to 4096, not 0", KN_EINPUT},
        {"model:\n  hidden: -8\n", "not -8", KN_EINPUT},
        {"data:\n  tokens: 0\n", "data.tokens must be an integer of at least 1, not 0", KN_EINPUT},
        {"flow:\n  caption_dropout: 1.5\n", "flow.caption_dropout must be a number from 0 to 1, not 1.5", KN_EINPUT},
        {"optimizer:\n  ema: 1\n", "optimizer.ema must be a number from 0 to below 1, not 1", KN_EINPUT},
        {"optimizer:\n  lr: 0\n", "optimizer.lr must be a number above 0, at most 100, not 0", KN_EINPUT},
        {"flow:\n  given:\n    first: -1\n", "/c.yaml:3:5: flow.given.first must be a number from 0 to 1000000",
         KN_EINPUT},
        {"flow:\n  given: {none: 1e308, first: 1e308}\n", /* whose sum is no number */
         "/c.yaml:2:11: flow.given.none must be a number from 0 to 1000000, not 1e308", KN_EINPUT},
        {"train:\n  keep_every: -1\n", "train.keep_every must be an integer", KN_EINPUT},
        {"train:\n  on_nonfinite: warn\n", "train.on_nonfinite must be one of skip, rollback, not warn", KN_EINPUT},
        {"train:\n  spike_zscore: -2\n", "train.spike_zscore must be a number from 0 to 1000000, not -2", KN_EINPUT},
        {"train:\n  offload: all\n", "train.offload must be one of none, optimizer, not all", KN_EINPUT},
        {"train:\n  on_spike: stop\n", "train.on_spike must be one of skip, rollback, warn, not stop", KN_EINPUT},
        /* several keys */
        {"model:\n  heads: 3\n", "/c.yaml:2:3: model.heads (3) does not divide model.hidden (128)", KN_EINPUT},
        {"model:\n  hidden: 129\n", "/c.yaml:2:3: model.heads (2) does not divide model.hidden (129)", KN_EINPUT},
        {"model:\n  hidden: 6\n", "/c.yaml:2:3: model.hidden / model.heads, the head size, is 6 / 2 = 3", KN_EINPUT},
        {"model:\n  freq_dim: 33\n", "/c.yaml:2:3: model.freq_dim is 33 and must be even", KN_EINPUT},
        {"model:\n  text_dim: 33\n  text:\n    layers: 1\n",
         "/c.yaml:2:3: model.text.heads (2) does not divide model.text_dim (33)", KN_EINPUT},
        {"flow:\n  given:\n    none: 0\n", "/c.yaml:3:5: all weights of flow.given are 0", KN_EINPUT},
        {"data:\n  text_tokens: 8\n", "/c.yaml:2:3: data.text_tokens (8) holds not even one caption", KN_EINPUT},
        {"sample:\n  width: 36\ntrain:\n  sample_every: 5\n",
         "/c.yaml:2:3: sample.width is 36, not a multiple of the 8 in model.patch: set it to 40", KN_EINPUT},
        {"sample:\n  frames: 1\ntrain:\n  sample_every: 5\n", "sample.frames is 1, not a multiple of the 2", KN_EINPUT},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        KnConfig config;
        assert_fails(load_text(&config, rows[i].text, NULL), rows[i].code, rows[i].sentence);
        kn_config_clear(&config);
    }
}

static void every_mistake_in_set_names_the_argument(void **state)
{
    (void)state;
    static const char *const rows[][2] = {
        {"train.steps", "--set train.steps: write it as key=value"},
        {"train.steps=", "--set train.steps=: train.steps has no value"},
        {"train.step=5", "--set train.step=5: unknown key train.step; did you mean train.steps?"},
        {"trian.steps=5", "--set trian.steps=5: unknown key trian.steps; did you mean train.steps?"},
        {"steps=5", "--set steps=5: unknown key steps; did you mean"},
        {"train=5", "--set train=5: train is a section: name one of its keys"},
        {"=5", "--set =5: unknown key"},
        {"base=x.yaml", "--set base=x.yaml: base can only stand at the top of the file"},
        {"train.steps=x", "--set train.steps=x: train.steps must be an integer of at least 1, not x"},
        {"data.shards=[a", "--set data.shards=[a:2:1: did not find"},
        {"model.heads=3", "--set model.heads=3: model.heads (3) does not divide"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        KnConfig config;
        int code = load_text(&config, "model: {hidden: 128}\n", rows[i][0]);
        if (code >= 0 || !strstr(kn_error_message(), rows[i][1]))
            fail_msg("%s gave %d, %s", rows[i][0], code, kn_error_message());
        kn_config_clear(&config);
    }
}

static void base_files_come_first_and_are_relative(void **state)
{
    (void)state;
    KnConfig config;
    assert_ok(kn_make_directories(test_path("configs/more")));
    put_text(test_path("configs/root.yaml"), "train: {steps: 1, packs: 1}\nmodel: {hidden: 64, heads: 3}\n");
    put_text(test_path("configs/more/middle.yaml"), "train: {packs: 2}\nbase: ../root.yaml\n");
    put_text(test_path("leaf.yaml"), "base: configs/more/middle.yaml\ntrain: {keep_last: 9}\nmodel: {heads: 2}\n");
    kn_config_init(&config);
    assert_ok(kn_config_load(&config, test_path("leaf.yaml"), NULL, 0));
    assert_int_equal(config.train.steps, 1);
    assert_int_equal(config.train.packs, 2);
    assert_int_equal(config.train.keep_last, 9);
    assert_int_equal(config.model.hidden, 64);
    /* a mistake in a base file names that file */
    assert_fails(kn_config_load(&config, test_path("configs/more/middle.yaml"), NULL, 0), KN_EINPUT,
                 "configs/more/../root.yaml:2:21: model.heads (3)");
    kn_config_clear(&config);
}

static void base_files_that_cannot_be_used(void **state)
{
    (void)state;
    static const char *const rows[][2] = {
        {"base: none.yaml\n", "/c.yaml:1:1: cannot open "},
        {"base: [a]\n", "/c.yaml:1:1: base must be the name of one file"},
        {"base:\n", "/c.yaml:1:1: base must be the name of one file"},
        {"base: c.yaml\n", "/c.yaml:1:1: base files form a circle"},
        {"base: other.yaml\n", "/other.yaml:2:1: base files form a circle"},
    };
    put_text(test_path("other.yaml"), "\nbase: ./c.yaml\n");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        KnConfig config;
        int code = load_text(&config, rows[i][0], NULL);
        if (code >= 0 || !strstr(kn_error_message(), rows[i][1]))
            fail_msg("%s gave %d, %s", rows[i][0], code, kn_error_message());
        kn_config_clear(&config);
    }
    char name[32], text[64];
    for (int i = 0; i < 20; i++) {
        snprintf(name, sizeof name, "chain%d.yaml", i);
        snprintf(text, sizeof text, "base: chain%d.yaml\n", i + 1);
        put_text(test_path(name), text);
    }
    KnConfig config;
    kn_config_init(&config);
    assert_fails(kn_config_load(&config, test_path("chain0.yaml"), NULL, 0), KN_EINPUT, "more than 16 base files");
    assert_fails(kn_config_load(&config, test_path("absent.yaml"), NULL, 0), KN_EIO, "absent.yaml: No such file");
    kn_config_clear(&config);
}

static void the_resolved_file_reads_back_to_the_same(void **state)
{
    (void)state;
    static const char *const overrides[] = {"optimizer.lr=0.1",
                                            "optimizer.eps=1.2345678901234567e-9",
                                            "run.dir=\"odd \\\"name\\\" \\\\ \\t: #\"",
                                            "parallel.data=4",
                                            "sample.prompts=[\"caf\xc3\xa9, [x]\", '', \"a\\nb\"]",
                                            "run.seed=12345678901234567"};
    KnConfig config, again;
    for (int count = 0; count <= 6; count += 6) {
        kn_config_init(&config);
        assert_ok(kn_config_load(&config, NULL, overrides, count));
        char *yaml = kn_config_to_yaml(&config);
        assert_ok(load_text(&again, yaml, NULL));
        char *repeated = kn_config_to_yaml(&again);
        assert_string_equal(yaml, repeated);
        assert_true(again.optimizer.eps == config.optimizer.eps && again.run_seed == config.run_seed);
        assert_int_equal(again.sample.prompts.count, config.sample.prompts.count);
        for (int i = 0; i < config.sample.prompts.count; i++)
            assert_string_equal(again.sample.prompts.items[i], config.sample.prompts.items[i]);
        assert_true(count == 0 || strcmp(again.run_dir, config.run_dir) == 0);
        free(yaml);
        free(repeated);
        kn_config_clear(&config);
        kn_config_clear(&again);
    }
}

static void the_hash_follows_what_changes_the_result(void **state)
{
    (void)state;
    static const struct {
        const char *override;
        int same;
    } rows[] = {{"run.dir=elsewhere", 1}, {"train.threads=2", 1}, {"run.watchdog_seconds=5", 1},
                {"train.log_every=1", 1}, {"sample.steps=3", 1},  {"run.seed=1", 0},
                {"model.layers=5", 0},    {"data.shards=[a]", 0}, {"train.precision=f32", 0}};
    KnConfig config;
    char plain[65], changed[65];
    kn_config_init(&config);
    kn_config_hash(&config, plain);
    kn_config_clear(&config);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        kn_config_init(&config);
        assert_ok(kn_config_load(&config, NULL, &rows[i].override, 1));
        kn_config_hash(&config, changed);
        if ((strcmp(plain, changed) == 0) != rows[i].same)
            fail_msg("%s", rows[i].override);
        kn_config_clear(&config);
    }
}

/* Every line "  key: value" of the resolved file is a key that --set accepts and the help explains. */
static void every_key_can_be_set_and_is_explained(void **state)
{
    (void)state;
    KnConfig config;
    kn_config_init(&config);
    char *yaml = kn_config_to_yaml(&config), *help = kn_config_help();
    char prefix[3][32] = {"", "", ""}, key[128], override[256];
    int keys = 0;
    for (char *save, *line = strtok_r(yaml, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        int level = (int)strspn(line, " ") / 2;
        char *colon = strchr(line, ':');
        *colon = 0;
        snprintf(prefix[level], sizeof prefix[level], "%s", line + 2 * level);
        if (!colon[1])
            continue;
        snprintf(key, sizeof key, "%s.%s%s%s", prefix[0], prefix[1], level > 1 ? "." : "", level > 1 ? prefix[2] : "");
        snprintf(override, sizeof override, "%s=%s", key, colon + 2);
        const char *argument = override;
        assert_ok(kn_config_load(&config, NULL, &argument, 1));
        if (!strstr(help, key))
            fail_msg("%s is not explained", key);
        keys++;
    }
    assert_true(keys > 60);
    free(yaml);
    free(help);
    kn_config_clear(&config);
}

static void what_a_program_filled_in_is_checked_too(void **state)
{
    (void)state;
    KnConfig config;
    kn_config_init(&config);
    config.model.heads = 0;
    assert_fails(kn_config_check(&config), KN_EINPUT, "model.heads must be an integer from 1 to 4096, not 0");
    config.model.heads = 5;
    assert_fails(kn_config_check(&config), KN_EINPUT, "model.heads (5) does not divide model.hidden (128)");
    config.model.heads = 2;
    config.model.patch[1] = 0;
    assert_fails(kn_config_check(&config), KN_EINPUT, "model.patch must be");
    kn_config_clear(&config);
}

static void every_flipped_byte_is_survived(void **state)
{
    (void)state;
    char text[] = "base: b.yaml\nrun: {dir: x}\nmodel:\n  patch: [1, 2, 2]\n  text:\n    kind: none\n"
                  "data:\n  shards: ['a']\ntrain:\n  steps: 5\n  precision: f32\n";
    put_text(test_path("b.yaml"), "flow: {shift: 2}\n");
    for (size_t i = 0; i < sizeof text - 1; i++) {
        static const char values[] = {0, '\n', ' ', ':', '[', '\'', '-', '&', '0', 'x', '\t', (char)0xff};
        char kept = text[i];
        for (size_t j = 0; j < sizeof values; j++) {
            KnConfig config;
            text[i] = values[j];
            put_file(test_path("c.yaml"), text, sizeof text - 1);
            kn_config_init(&config);
            kn_fail(KN_OK, "%s", "");
            int code = kn_config_load(&config, test_path("c.yaml"), NULL, 0);
            assert_true(code == KN_OK || strstr(kn_error_message(), "c.yaml"));
            kn_config_clear(&config);
        }
        text[i] = kept;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_a_sensible_small_model),
        cmocka_unit_test(every_type_is_read),
        cmocka_unit_test(overrides_are_yaml_and_the_last_wins),
        cmocka_unit_test(every_mistake_in_a_file_is_one_sentence),
        cmocka_unit_test(every_mistake_in_set_names_the_argument),
        cmocka_unit_test(base_files_come_first_and_are_relative),
        cmocka_unit_test(base_files_that_cannot_be_used),
        cmocka_unit_test(the_resolved_file_reads_back_to_the_same),
        cmocka_unit_test(the_hash_follows_what_changes_the_result),
        cmocka_unit_test(every_key_can_be_set_and_is_explained),
        cmocka_unit_test(what_a_program_filled_in_is_checked_too),
        cmocka_unit_test(every_flipped_byte_is_survived),
    };
    return cmocka_run_group_tests(tests, make_test_folder, remove_test_folder);
}
