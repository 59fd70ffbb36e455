/* Looking after checkpoints: what is damaged is named and passed over, what many ranks wrote becomes what one would
 * have written, and pruning spares what it must. */
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/memory.h"
#include "dist/checkpoint.h"
#include "dist/checkpoint_folder.h"
#include "dist/checkpoint_tools.h"
#include "thread_comm.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char root[4096];

static void assert_sentence(const char *part)
{
    if (!strstr(kn_error_message(), part))
        fail_msg("'%s' is not in: %s", part, kn_error_message());
}

/* ---- a state: a matrix that ranks share in a grid of 2 columns, a scalar, and nothing ---- */

enum { ROWS = 10, COLUMNS = 6 };

typedef struct Case {
    const char *run_dir;
    int64_t step;
} Case;

static int save_on_rank(KnComm *comm, void *argument)
{
    const Case *what = argument;
    int16_t matrix[ROWS * COLUMNS];
    int64_t scalar = 1000 + what->step, strips = comm->ranks > 1 ? comm->ranks / 2 : 1, strip = comm->rank / 2;
    KnCheckpointTensor tensors[] = {
        {.name = "scalar", .type = KN_SAFETENSORS_I64, .data = &scalar},
        {.name = "nothing", .type = KN_SAFETENSORS_F32, .dims = 2, .shape = {0, 3}, .count = {0, 3}},
        {.name = "matrix", .type = KN_SAFETENSORS_BF16, .dims = 2, .shape = {ROWS, COLUMNS}, .data = matrix},
    };
    KnCheckpointTensor *m = &tensors[2];
    m->start[0] = ROWS * strip / strips;
    m->count[0] = ROWS * (strip + 1) / strips - m->start[0];
    m->start[1] = comm->ranks > 1 && comm->rank % 2 ? 2 : 0;
    m->count[1] = comm->ranks == 1 ? COLUMNS : comm->rank % 2 ? 4 : 2;
    for (int64_t i = 0; i < m->count[0] * m->count[1]; i++)
        matrix[i] = (int16_t)((m->start[0] + i / m->count[1]) * 100 + m->start[1] + i % m->count[1] + what->step);
    KnCheckpointSave save = {.run_dir = what->run_dir,
                             .meta = {.step = what->step, .config = "run: {}\n", .data_json = "{\"updates\": 5}"},
                             .tensors = tensors,
                             .count = 3};
    return kn_checkpoint_save(comm, &save);
}

static void save_steps(const char *run, int ranks, int64_t first, int64_t last)
{
    for (int64_t step = first; step <= last; step++) {
        Case what = {run, step};
        assert_int_equal(thread_ranks_run(ranks, save_on_rank, &what), KN_OK);
    }
}

static char *new_run(void)
{
    static int number;
    return kn_format("%s/run-%d", root, number++);
}

static char *step_path(const char *run, int64_t step)
{
    return kn_format("%s/checkpoints/step-%08lld", run, (long long)step);
}

static void put(const char *path, const char *bytes, size_t size)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

/* ---- damage ---- */

static int newest_on_rank(KnComm *comm, void *argument)
{
    char **found = argument, *mine;
    int code = kn_checkpoint_newest(comm, found[1], &mine);
    if (comm->rank == 0)
        found[0] = mine;
    else
        free(mine);
    return code;
}

/* The damaged file of step 2 is named by verify, and step 1 is the newest. */
static void expect_found(const char *run, const char *file)
{
    char *former = step_path(run, 1), *damaged = step_path(run, 2), *found[2] = {NULL, (char *)(uintptr_t)run};
    KnStringList damages = {0};
    kn_checkpoint_verify(damaged, &damages);
    assert_int_equal(damages.count, 1);
    if (!strstr(damages.items[0], file))
        fail_msg("%s is not named in: %s", file, damages.items[0]);
    kn_string_list_clear(&damages);
    assert_int_equal(thread_ranks_run(2, newest_on_rank, found), KN_OK);
    assert_string_equal(found[0], former);
    free(found[0]);
    free(damaged);
    free(former);
}

static void a_damaged_file_is_named_and_the_former_checkpoint_used(void **state)
{
    (void)state;
    char *run = new_run(), *path = step_path(run, 2);
    KnStringList names = {0};
    save_steps(run, 4, 1, 2);
    assert_int_equal(kn_list_directory(path, &names), KN_OK);
    assert_int_equal(names.count, 6);
    for (int i = 0; i < names.count; i++) {
        char *file = kn_path_join(path, names.items[i]), *bytes;
        /* the hash of the manifest cannot tell which of the two is wrong */
        const char *named = kn_starts_with(names.items[i], "manifest") ? "manifest.json" : names.items[i];
        size_t size;
        assert_int_equal(kn_file_read(file, &bytes, &size), KN_OK);
        bytes[size / 2] ^= 4;
        put(file, bytes, size);
        expect_found(run, named);
        bytes[size / 2] ^= 4;
        put(file, bytes, size / 2);
        expect_found(run, named);
        put(file, bytes, size);
        free(bytes);
        free(file);
    }
    KnStringList damages = {0};
    kn_checkpoint_verify(path, &damages); /* all as it was */
    assert_int_equal(damages.count, 0);
    for (int rank = 1; rank < 4; rank += 2) {
        char *file = kn_format("%s/rank-%05d.safetensors", path, rank);
        put(file, "x", 1);
        free(file);
    }
    kn_checkpoint_verify(path, &damages);
    assert_int_equal(damages.count, 2);
    assert_non_null(strstr(damages.items[1], "rank-00003.safetensors"));
    kn_string_list_clear(&damages);
    kn_string_list_clear(&names);
    free(path);
    free(run);
}

/* ---- consolidating ---- */

static void assert_same_file(const char *a, const char *b, const char *name)
{
    char *paths[2] = {kn_path_join(a, name), kn_path_join(b, name)}, *bytes[2];
    size_t sizes[2];
    for (int i = 0; i < 2; i++)
        assert_int_equal(kn_file_read(paths[i], &bytes[i], &sizes[i]), KN_OK);
    assert_int_equal(sizes[0], sizes[1]);
    assert_memory_equal(bytes[0], bytes[1], sizes[0]);
    for (int i = 0; i < 2; i++) {
        free(bytes[i]);
        free(paths[i]);
    }
}

static void what_many_ranks_wrote_becomes_what_one_would_have_written(void **state)
{
    (void)state;
    char *alone = new_run(), *one = step_path(alone, 3);
    save_steps(alone, 1, 3, 3);
    for (int ranks = 2; ranks <= 8; ranks += 2) {
        char *run = new_run(), *many = step_path(run, 3), *out = kn_format("%s/whole", run), *from;
        save_steps(run, ranks, 2, 3);
        assert_int_equal(kn_checkpoint_find_valid(run, &from), KN_OK);
        assert_string_equal(from, many);
        assert_int_equal(kn_checkpoint_consolidate(from, out), KN_OK);
        assert_same_file(out, one, "rank-00000.safetensors");
        KnStringList damages = {0};
        kn_checkpoint_verify(out, &damages);
        assert_int_equal(damages.count, 0);
        KnCheckpoint *checkpoint;
        assert_int_equal(kn_checkpoint_open(&checkpoint, out, KN_CHECK_HASHES), KN_OK);
        assert_int_equal(kn_checkpoint_ranks(checkpoint), 1);
        assert_int_equal(kn_checkpoint_count(checkpoint), 3);
        assert_string_equal(kn_checkpoint_meta(checkpoint)->data_json, "{\"updates\":5}");
        kn_checkpoint_close(checkpoint);
        assert_int_equal(kn_checkpoint_consolidate(from, out), KN_EINPUT);
        assert_sentence("exists already");
        free(from);
        free(out);
        free(many);
        free(run);
    }
    free(one);
    free(alone);
}

/* ---- pruning ---- */

/* "1 2 5": the steps that are there. */
static void assert_steps(const char *run, const char *expected)
{
    char *folder = kn_path_join(run, "checkpoints"), text[256] = "";
    KnStringList names = {0};
    assert_int_equal(kn_list_directory(folder, &names), KN_OK);
    for (int i = 0; i < names.count; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s%d", i ? " " : "", atoi(names.items[i] + 5));
    assert_string_equal(text, expected);
    kn_string_list_clear(&names);
    free(folder);
}

static void spoil(const char *run, int64_t step, const char *name)
{
    char *path = step_path(run, step), *file = kn_path_join(path, name);
    put(file, "x", 1);
    free(file);
    free(path);
}

static void pruning_spares_what_it_must(void **state)
{
    (void)state;
    static const struct {
        KnPruneRule rule;
        int spoilt[2]; /* steps; 0 = none */
        const char *stay;
    } cases[] = {
        {{.keep_last = 2}, {0, 0}, "7 8"},
        {{.keep_last = 2, .dry_run = 1}, {0, 0}, "1 2 3 4 5 6 7 8"},
        {{.keep_every = 3}, {0, 0}, "3 6 8"},
        {{.keep_last = 1, .keep_every = 4}, {0, 0}, "4 8"},
        {{.keep_last = 1}, {8, 0}, "7 8"},   /* 8 is damaged: 7 is the newest valid one, 8 is not touched */
        {{.keep_last = 2}, {6, 8}, "5 7 8"}, /* 6 takes nobody's place */
        {{.keep_last = 100}, {0, 0}, "1 2 3 4 5 6 7 8"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *run = new_run(), *folder;
        KnStringList removed = {0}, kept = {0};
        save_steps(run, 1, 1, 8);
        for (int s = 0; s < 2; s++)
            if (cases[i].spoilt[s])
                spoil(run, cases[i].spoilt[s], "rank-00000.safetensors");
        assert_int_equal(kn_checkpoints_folder(run, &folder), KN_OK);
        assert_int_equal(kn_checkpoint_prune_by(folder, &cases[i].rule, &removed, &kept), KN_OK);
        assert_steps(run, cases[i].stay);
        assert_int_equal(removed.count + kept.count, 8);
        kn_string_list_clear(&removed);
        kn_string_list_clear(&kept);
        free(folder);
        free(run);
    }
}

/* As a link called like a later step would be. */
static void another_step_under_a_steps_name_counts_for_nothing(void **state)
{
    (void)state;
    char *run = new_run(), *folder, *link;
    KnStringList removed = {0}, kept = {0}, damages = {0};
    KnPruneRule rule = {.keep_last = 1};
    save_steps(run, 1, 1, 3);
    assert_int_equal(kn_checkpoints_folder(run, &folder), KN_OK);
    link = kn_checkpoint_step_path(folder, 9);
    assert_int_equal(symlink("step-00000001", link), 0);
    kn_checkpoint_verify(link, &damages);
    assert_int_equal(damages.count, 1);
    assert_non_null(strstr(damages.items[0], "step-00000009 holds the checkpoint of step 1:"));
    assert_int_equal(kn_checkpoint_prune_by(folder, &rule, &removed, &kept), KN_OK);
    assert_int_equal(unlink(link), 0);
    assert_steps(run, "3");
    kn_string_list_clear(&removed);
    kn_string_list_clear(&kept);
    kn_string_list_clear(&damages);
    free(link);
    free(folder);
    free(run);
}

static void where_nothing_is_valid_nothing_is_removed(void **state)
{
    (void)state;
    char *run = new_run(), *folder, *newest;
    KnStringList removed = {0}, kept = {0};
    KnPruneRule rule = {.keep_last = 1};
    save_steps(run, 1, 1, 3);
    for (int64_t step = 1; step <= 3; step++)
        spoil(run, step, step == 2 ? "manifest.json" : "rank-00000.safetensors");
    assert_int_equal(kn_checkpoints_folder(run, &folder), KN_OK);
    assert_int_equal(kn_checkpoint_prune_by(folder, &rule, &removed, &kept), KN_EFORMAT);
    assert_sentence("none of the 3 checkpoints");
    assert_steps(run, "1 2 3");
    assert_int_equal(kn_checkpoint_find_valid(run, &newest), KN_EFORMAT);
    free(folder);
    assert_int_equal(kn_checkpoints_folder(root, &folder), KN_EINPUT);
    assert_sentence("is neither a checkpoint nor a run");
    free(run);
}

int main(void)
{
    const char *base = getenv("TMPDIR");
    snprintf(root, sizeof root, "%s/kinora-tools-XXXXXX", base ? base : "/tmp");
    if (!mkdtemp(root))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_damaged_file_is_named_and_the_former_checkpoint_used),
        cmocka_unit_test(what_many_ranks_wrote_becomes_what_one_would_have_written),
        cmocka_unit_test(pruning_spares_what_it_must),
        cmocka_unit_test(another_step_under_a_steps_name_counts_for_nothing),
        cmocka_unit_test(where_nothing_is_valid_nothing_is_removed),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    return kn_remove_tree(root) < 0 || failed;
}
