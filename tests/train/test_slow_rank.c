/* A rank that works for longer than the others by a quarter of the median is called slow, by number; also one of two.
 * Ranks are threads, whose times are given. */
#include "base/support.h"
#include "dist/thread_comm.h"

#include "core/base/file.h"
#include "core/base/log.h"
#include "train/ranks.h"

typedef struct Case {
    int ranks;
    double seconds[4];
    double median;
    int slowest, is_slow;
} Case;

static int report(KnComm *comm, void *argument)
{
    const Case *c = argument;
    KnRankTimes times;
    kn_rank_times_create(&times, comm);
    for (int step = 0; step < 3; step++) {
        kn_rank_times_begin(&times);
        kn_rank_times_end(&times, c->seconds[comm->rank] * (step + 1) / 2); /* on average once that */
    }
    KN_TRY(kn_rank_times_report(&times));
    KN_ASSERT(times.slowest == c->slowest && times.median == c->median);
    for (int rank = 0; rank < c->ranks; rank++)
        KN_ASSERT((double)times.of_ranks[rank] == c->seconds[rank]);
    kn_rank_times_destroy(&times);
    return KN_OK;
}

static void the_slow_rank_is_named(void **state)
{
    static const Case cases[] = {
        {2, {1, 1.5}, 1, 1, 1},
        {2, {1.125, 1}, 1, 0, 0},
        {3, {1.5, 1.5, 1}, 1.5, 0, 0},
        {4, {3, 1, 4, 1}, 1, 2, 1},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *path = test_path("log.txt");
        char *text = NULL, name[16];
        size_t length;
        remove(path);
        assert_int_equal(kn_log_set_file(path), KN_OK);
        Case c = cases[i];
        assert_int_equal(thread_ranks_run(c.ranks, report, &c), KN_OK);
        assert_int_equal(kn_log_set_file(NULL), KN_OK);
        assert_int_equal(kn_file_read(path, &text, &length), KN_OK);
        snprintf(name, sizeof name, "rank %d on ", c.slowest);
        assert_int_equal(strstr(text, " is slow: it works ") != NULL, c.is_slow);
        assert_int_equal(strstr(text, name) != NULL, c.is_slow);
        free(text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_slow_rank_is_named)};
    return cmocka_run_group_tests(tests, make_test_folder, remove_test_folder);
}
