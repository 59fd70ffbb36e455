/* Saving while the program goes on: what is saved is the state at begin, failures leave everything usable, and boxes
 * may change between saves. Ranks are threads. */
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/memory.h"
#include "dist/checkpoint.h"
#include "dist/comm.h"
#include "thread_comm.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <time.h>

#include <cmocka.h>

static char root[4096];

enum { ROWS = 12, COLUMNS = 1000 };

/* A matrix whose rows the ranks share; every value tells step, row and column. */
typedef struct Rank {
    KnComm *comm;
    KnCheckpointSaver *saver;
    KnCheckpointTensor tensor;
    float *values;
    int64_t width;
} Rank;

static void take_rows(Rank *rank, int64_t first, int64_t count)
{
    rank->tensor = (KnCheckpointTensor){.name = "matrix",
                                        .type = KN_SAFETENSORS_F32,
                                        .dims = 2,
                                        .shape = {ROWS, rank->width},
                                        .start = {first, 0},
                                        .count = {count, rank->width},
                                        .data = rank->values};
}

static void take_even_rows(Rank *rank)
{
    int64_t first = ROWS * rank->comm->rank / rank->comm->ranks;
    take_rows(rank, first, ROWS * (rank->comm->rank + 1) / rank->comm->ranks - first);
}

static float value_at(int64_t step, int64_t row, int64_t column)
{
    return (float)(step * 100000 + row * 1000 + column % 1000);
}

static void fill(const Rank *rank, int64_t step)
{
    for (int64_t i = 0; i < rank->tensor.count[0] * rank->width; i++)
        rank->values[i] = value_at(step, rank->tensor.start[0] + i / rank->width, i % rank->width);
}

static int begin(Rank *rank, const char *run_dir, int64_t step, KnCheckpointReport *report)
{
    char config[64]; /* gone when begin returns */
    snprintf(config, sizeof config, "run: {seed: %d}\n", (int)step);
    KnCheckpointSave save = {
        .run_dir = run_dir, .meta = {.step = step, .config = config}, .tensors = &rank->tensor, .count = 1};
    int code = kn_checkpoint_begin(rank->saver, &save, report);
    memset(config, 'x', sizeof config);
    return code;
}

static Rank open_rank(KnComm *comm, int64_t width)
{
    Rank rank = {.comm = comm, .values = kn_alloc((size_t)(ROWS * width) * sizeof(float)), .width = width};
    kn_checkpoint_saver_create(&rank.saver, comm);
    take_even_rows(&rank);
    return rank;
}

static void close_rank(Rank *rank)
{
    kn_checkpoint_saver_destroy(rank->saver);
    free(rank->values);
}

/* As the trainer does: a step, an agreement, and a poll once nobody writes. */
static int poll_until_done(Rank *rank, KnCheckpointReport *report, int *steps)
{
    unsigned char any = 0;
    report->done = 0;
    for (*steps = 0; !report->done; ++*steps) {
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        KN_TRY(kn_comm_any(rank->comm, (unsigned char)kn_checkpoint_is_writing(rank->saver), &any));
        if (!any)
            KN_TRY(kn_checkpoint_poll(rank->saver, report));
    }
    return KN_OK;
}

static void check_saved(const char *run_dir, int64_t step, int64_t width)
{
    char *path = kn_format("%s/checkpoints/step-%08lld", run_dir, (long long)step);
    float *values = kn_alloc((size_t)(ROWS * width) * sizeof(float));
    KnCheckpoint *checkpoint;
    assert_int_equal(kn_checkpoint_open(&checkpoint, path, KN_CHECK_HASHES), KN_OK);
    KnCheckpointTensor all = *kn_checkpoint_find(checkpoint, "matrix");
    all.data = values;
    assert_int_equal(kn_checkpoint_load(checkpoint, &all, 1), KN_OK);
    for (int64_t i = 0; i < ROWS * width; i++)
        if (values[i] != value_at(step, i / width, i % width))
            fail_msg("element %lld of step %lld is %f", (long long)i, (long long)step, (double)values[i]);
    char *config = kn_format("run: {seed: %d}\n", (int)step);
    assert_string_equal(kn_checkpoint_meta(checkpoint)->config, config);
    kn_checkpoint_close(checkpoint);
    free(config);
    free(values);
    free(path);
}

/* ---- the state at begin is saved, whatever happens to it afterwards ---- */

static int three_saves(KnComm *comm, void *argument)
{
    Rank rank = open_rank(comm, COLUMNS);
    KnCheckpointReport report;
    int steps = 0, code = KN_OK;
    for (int64_t step = 1; step <= 3 && code == KN_OK; step++) {
        if (step == 3) /* other boxes than in the former saves: all rows on one rank */
            take_rows(&rank, 0, comm->rank == comm->ranks - 1 ? ROWS : 0);
        fill(&rank, step);
        code = begin(&rank, argument, step, &report);
        fill(&rank, 9); /* training goes on */
        KN_ASSERT(code < 0 || (!report.done && kn_checkpoint_is_under_way(rank.saver)));
        if (code == KN_OK)
            code = poll_until_done(&rank, &report, &steps);
        KN_ASSERT(code < 0 || (report.step == step && report.bytes > ROWS * COLUMNS * 4 && report.seconds > 0));
        KN_ASSERT(code < 0 || (report.held_seconds > 0 && report.copied_seconds <= report.held_seconds));
        KN_ASSERT(!kn_checkpoint_is_under_way(rank.saver));
    }
    close_rank(&rank);
    return code;
}

static void the_state_at_begin_is_saved(void **state)
{
    (void)state;
    for (int ranks = 1; ranks <= 3; ranks++) {
        char *run = kn_format("%s/begin-%d", root, ranks);
        assert_int_equal(thread_ranks_run(ranks, three_saves, run), KN_OK);
        for (int64_t step = 1; step <= 3; step++)
            check_saved(run, step, COLUMNS);
        free(run);
    }
}

/* ---- finish waits; so does a save that is given up ---- */

static int begin_and_finish(KnComm *comm, void *argument)
{
    Rank rank = open_rank(comm, COLUMNS);
    KnCheckpointReport report;
    fill(&rank, 1);
    int code = begin(&rank, argument, 1, &report);
    if (code == KN_OK)
        code = kn_checkpoint_finish(rank.saver, &report);
    KN_ASSERT(code < 0 || report.done);
    if (code == KN_OK)
        code = kn_checkpoint_finish(rank.saver, &report); /* nothing is under way any more */
    KN_ASSERT(code < 0 || !report.done);
    fill(&rank, 2);
    if (code == KN_OK)
        code = begin(&rank, argument, 2, &report);
    close_rank(&rank); /* given up */
    return code;
}

static void finish_waits_and_what_is_given_up_leaves_nothing(void **state)
{
    (void)state;
    for (int ranks = 1; ranks <= 3; ranks++) {
        char *run = kn_format("%s/finish-%d", root, ranks), *folder = kn_path_join(run, "checkpoints");
        KnStringList names = {0};
        assert_int_equal(thread_ranks_run(ranks, begin_and_finish, run), KN_OK);
        check_saved(run, 1, COLUMNS);
        assert_int_equal(kn_list_directory(folder, &names), KN_OK);
        for (int i = 0; i < names.count; i++)
            assert_true(!strcmp(names.items[i], "step-00000001") || kn_is_temporary_name(names.items[i]));
        kn_string_list_clear(&names);
        free(folder);
        free(run);
    }
}

/* ---- a full disk ---- */

/* The second save does not fit; once there is room, the third does. */
static int save_on_small_disk(KnComm *comm, void *argument)
{
    enum { WIDE = 8000 }; /* 375 KiB in all */
    const char *run_dir = argument;
    char *first = kn_format("%s/checkpoints/step-00000001", run_dir);
    Rank rank = open_rank(comm, WIDE);
    KnCheckpointReport report;
    int code = KN_OK, steps;
    for (int64_t step = 1; step <= 3; step++) {
        fill(&rank, step);
        code = begin(&rank, run_dir, step, &report);
        if (code == KN_OK)
            code = poll_until_done(&rank, &report, &steps);
        if (step != 2)
            continue;
        KN_ASSERT(code == KN_EIO && report.done && !kn_checkpoint_is_under_way(rank.saver));
        KN_ASSERT(strstr(kn_error_message(), "No space left on device"));
        KN_ASSERT(comm->ranks == 1 || strncmp(kn_error_message(), "rank ", 5) == 0);
        if (comm->rank == 0) {
            KnCheckpoint *former;
            KN_ASSERT(kn_checkpoint_open(&former, first, KN_CHECK_HASHES) == KN_OK);
            kn_checkpoint_close(former);
            KN_ASSERT(kn_remove_tree(first) == KN_OK);
        }
        comm->table->barrier(comm, "room");
    }
    close_rank(&rank);
    free(first);
    return code;
}

static void after_a_full_disk_saving_goes_on(void **state)
{
    (void)state;
    char *run = kn_format("%s/small", root), *folder = kn_path_join(run, "checkpoints");
    assert_int_equal(kn_make_directories(run), KN_OK);
    if (mount("none", run, "tmpfs", 0, "size=640k") != 0) {
        print_message("SKIPPED: a small file system cannot be mounted here (%s)\n", strerror(errno));
        free(folder);
        free(run);
        skip();
    }
    for (int ranks = 1; ranks <= 3; ranks++) {
        KnStringList names = {0};
        int code = thread_ranks_run(ranks, save_on_small_disk, run);
        assert_int_equal(code, KN_OK);
        check_saved(run, 3, 8000);
        assert_int_equal(kn_list_directory(folder, &names), KN_OK);
        assert_int_equal(names.count, 1);
        kn_string_list_clear(&names);
        assert_int_equal(kn_remove_tree(folder), KN_OK);
    }
    assert_int_equal(umount(run), 0);
    free(folder);
    free(run);
}

int main(void)
{
    const char *base = getenv("TMPDIR");
    snprintf(root, sizeof root, "%s/kinora-async-XXXXXX", base ? base : "/tmp");
    if (!mkdtemp(root))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_state_at_begin_is_saved),
        cmocka_unit_test(finish_waits_and_what_is_given_up_leaves_nothing),
        cmocka_unit_test(after_a_full_disk_saving_goes_on),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    return kn_remove_tree(root) < 0 || failed;
}
