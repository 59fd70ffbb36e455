/* Labels: slow waits */
/* Ranks that are late: who names them, with what words, when the job ends, and that nothing is left running. By
 * `mpirun -n K` of this program (mpirun.h), with a limit of two seconds. */
#include "core/base/activity.h"
#include "core/base/file.h"
#include "mpirun.h"

#include <fcntl.h>
#include <signal.h>

#define LIMIT 2.0

static int scenario_frozen(KnComm *comm)
{
    kn_comm_set_watchdog(comm, LIMIT);
    KN_TRY(comm->table->barrier(comm, "first"));
    if (comm->rank == 1)
        raise(SIGSTOP);
    return comm->table->barrier(comm, "step 7");
}

static int scenario_rank_zero_frozen(KnComm *comm)
{
    kn_comm_set_watchdog(comm, LIMIT);
    if (comm->rank == 0)
        raise(SIGSTOP);
    return comm->table->barrier(comm, "step 7");
}

/* Sums are under way when the rank stops. */
static int scenario_frozen_while_summing(KnComm *comm)
{
    enum { COUNT = 1 << 22, SUMS = 40 };
    float *values = kn_alloc(COUNT * sizeof *values);
    kn_comm_set_watchdog(comm, LIMIT);
    for (int i = 0; i < SUMS; i++) {
        KnCommTicket ticket;
        KN_TRY(comm->table->all_reduce_start(comm, values, COUNT, KN_F32, "gradients", &ticket));
        if (comm->rank == 1 && i == 3) {
            pause_seconds(0.005);
            raise(SIGSTOP);
        }
        KN_TRY(comm->table->wait(comm, ticket));
    }
    free(values);
    return KN_OK;
}

/* Rank 1 has stopped in main. */
static int scenario_frozen_at_start(KnComm *comm)
{
    return comm->table->barrier(comm, "step 7");
}

/* The link to rank 0 and to the launcher is cut, as far as a single host can play it. */
static int scenario_first_host_gone(KnComm *comm)
{
    kn_comm_set_watchdog(comm, LIMIT);
    if (comm->rank == 0) {
        kill(getppid(), SIGSTOP);
        raise(SIGSTOP);
    }
    return comm->table->barrier(comm, "step 7");
}

static int scenario_killed(KnComm *comm)
{
    if (comm->rank == 1)
        raise(SIGKILL);
    return comm->table->barrier(comm, "step 7");
}

static int scenario_stuck(KnComm *comm)
{
    kn_comm_set_watchdog(comm, LIMIT);
    KN_TRY(comm->table->barrier(comm, "first"));
    kn_activity_set("step 3, pack 1");
    kn_activity_op("matmul");
    if (comm->rank == 1)
        pause_seconds(100);
    return comm->table->barrier(comm, "step 7");
}

/* Thrice the limit, but getting on all the time. Who waited is counted. */
static int scenario_slow(KnComm *comm)
{
    kn_comm_set_watchdog(comm, LIMIT);
    for (int i = 0; i < 30 && comm->rank == 1; i++) {
        kn_activity_set("step 3, pack %d", i);
        pause_seconds(0.1 * LIMIT);
    }
    KN_TRY(comm->table->barrier(comm, "step 7"));
    double waited = kn_comm_waited_seconds(comm);
    int as_expected = comm->rank == 1 ? waited < 0.25 * LIMIT : waited > 2.5 * LIMIT && waited < 5 * LIMIT;
    return as_expected ? KN_OK : kn_fail(KN_EPEER, "rank %d has waited %.1f s", comm->rank, waited);
}

/* Rank 0 waits for rank 1, which waits for the last one: that one is named. */
static int scenario_chain(KnComm *comm)
{
    KnComm *front, *back;
    kn_comm_set_watchdog(comm, LIMIT);
    KN_TRY(comm->table->split(comm, comm->rank < 2 ? 0 : comm->rank, "front", &front));
    KN_TRY(comm->table->split(comm, comm->rank > 0 ? 0 : 1, "back", &back));
    kn_activity_set("far away");
    if (comm->rank == comm->ranks - 1)
        pause_seconds(100);
    if (comm->rank > 0)
        KN_TRY(back->table->barrier(back, "second"));
    return front->table->barrier(front, "first");
}

static int scenario_circle(KnComm *comm)
{
    KnComm *one, *two;
    kn_comm_set_watchdog(comm, LIMIT);
    KN_TRY(comm->table->split(comm, 0, "one", &one));
    KN_TRY(comm->table->split(comm, 0, "two", &two));
    return comm->rank == 0 ? one->table->barrier(one, "heads") : two->table->barrier(two, "tails");
}

static const Scenario scenarios[] = {
    {"frozen", scenario_frozen},
    {"rank_zero_frozen", scenario_rank_zero_frozen},
    {"frozen_at_start", scenario_frozen_at_start},
    {"frozen_while_summing", scenario_frozen_while_summing},
    {"first_host_gone", scenario_first_host_gone},
    {"killed", scenario_killed},
    {"stuck", scenario_stuck},
    {"slow", scenario_slow},
    {"chain", scenario_chain},
    {"circle", scenario_circle},
};

/* ---- the test around them ---- */

/* Starting and ending take their time on a crowded machine. */
#define WITHIN (LIMIT + 20)

static void a_frozen_rank_is_named_and_ends_the_job(void **state)
{
    char host[64] = "";
    (void)state;
    gethostname(host, sizeof host - 1);
    char *sentence =
        kn_format("s in call 2, barrier 'step 7' of 0 bytes, for rank 1 on host %s, which does not answer: its "
                  "process is stopped or gone, or the link to its host is down (start again with --resume",
                  host);
    fails_on(2, "frozen", sentence, 1, WITHIN);
    fails_on(4, "frozen", sentence, 1, WITHIN);
    free(sentence);
    fails_on(3, "frozen_while_summing", "for rank 1 on host", 1, WITHIN);
    assert_int_equal(occurrences("which does not answer"), 1);
}

/* Each of the others may say it: rank 0, which would say it once for all, cannot. */
static void the_others_end_by_themselves_where_rank_zero_is_frozen(void **state)
{
    (void)state;
    int code = run_scenario(3, "rank_zero_frozen");
    if (code == 0 || occurrences("in call 1, barrier 'step 7' of 0 bytes, for rank 0 on host") == 0)
        print_error("code %d:\n%s\n", code, output);
    assert_true(code != 0 && code < 124);
    assert_true(occurrences("in call 1, barrier 'step 7' of 0 bytes, for rank 0 on host") >= 1);
}

static void a_rank_that_does_not_start_ends_the_job(void **state)
{
    (void)state;
    double start = seconds(CLOCK_MONOTONIC);
    int code = run_scenario(3, "frozen_at_start");
    int said = occurrences("has waited 2 s for the other ranks to start");
    if (code == 0 || code >= 124 || said < 1)
        print_error("code %d:\n%s\n", code, output);
    assert_true(code != 0 && code < 124);
    assert_true(said >= 1 && said <= 2 && occurrences("rank 1 has waited") == 0);
    assert_true(seconds(CLOCK_MONOTONIC) - start < WITHIN);
}

static void a_killed_rank_ends_the_job(void **state)
{
    (void)state;
    int code = run_scenario(3, "killed");
    assert_int_equal(code, 128 + SIGKILL); /* mpirun's own words and code */
    assert_int_equal(occurrences("process rank 1"), 1);
}

static void a_rank_that_stands_still_is_named_with_what_it_does(void **state)
{
    static const char sentence[] =
        "which is at step 3, pack 1 (matmul) for 2 s, after call 1, barrier 'first' of 0 bytes "
        "(start again with --resume; a larger run.watchdog_seconds waits longer)";
    (void)state;
    fails_on(2, "stuck", sentence, 1, WITHIN);
    fails_on(4, "stuck", sentence, 1, WITHIN);
}

static void a_rank_that_gets_on_is_named_and_waited_for(void **state)
{
    (void)state;
    succeeds_on(3, "slow");
    int warnings = occurrences("warning: rank 0 has waited"), all = occurrences("warning: ");
    if (warnings < 2 || warnings != all)
        print_error("%s\n", output);
    assert_true(warnings >= 2 && warnings == all);
    assert_true(occurrences("for rank 1 on host") == warnings && occurrences("which is at step 3, pack ") == warnings);
}

static void the_end_of_a_chain_of_waiting_ranks_is_named(void **state)
{
    (void)state;
    fails_on(3, "chain",
             "error: rank 1 has waited 2 s in call 1 of back, barrier 'second' of 0 bytes, for rank 2 on host", 1,
             WITHIN);
    fails_on(2, "circle", "which waits itself for rank", 1, WITHIN);
    assert_int_equal(occurrences("warning"), 0);
}

/* Processes that mpirun forwards nothing for any more: their words go to a file once it wakes. */
static void ranks_that_reach_nobody_end_themselves(void **state)
{
    enum { RANKS = 3 };
    (void)state;
    pid_t launcher = fork();
    if (launcher == 0) {
        int nowhere = open("/dev/null", O_RDWR);
        dup2(nowhere, STDOUT_FILENO);
        dup2(nowhere, STDERR_FILENO);
        execlp("mpirun", "mpirun", "--oversubscribe", "--bind-to", "none", "-n", "3", program, "first_host_gone", NULL);
        _exit(1);
    }
    double start = seconds(CLOCK_MONOTONIC);
    while (still_running("first_host_gone") < RANKS && seconds(CLOCK_MONOTONIC) < start + WITHIN)
        pause_seconds(0.01);
    start = seconds(CLOCK_MONOTONIC);
    while (still_running("first_host_gone") > 1 && seconds(CLOCK_MONOTONIC) < start + WITHIN + 6)
        pause_seconds(0.05);
    int left = still_running("first_host_gone"), status;
    kill(launcher, SIGCONT);
    assert_int_equal(waitpid(launcher, &status, 0), launcher);
    assert_int_equal(left, 1); /* rank 0, which is stopped */
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) != 0);
    assert_int_equal(left_running("first_host_gone"), 0);
}

static int run_all(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_frozen_rank_is_named_and_ends_the_job),
        cmocka_unit_test(the_others_end_by_themselves_where_rank_zero_is_frozen),
        cmocka_unit_test(a_rank_that_does_not_start_ends_the_job),
        cmocka_unit_test(a_killed_rank_ends_the_job),
        cmocka_unit_test(a_rank_that_stands_still_is_named_with_what_it_does),
        cmocka_unit_test(a_rank_that_gets_on_is_named_and_waited_for),
        cmocka_unit_test(the_end_of_a_chain_of_waiting_ranks_is_named),
        cmocka_unit_test(ranks_that_reach_nobody_end_themselves),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

static void freeze_before_the_start(void)
{
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");
    setenv("KINORA_START_SECONDS", "2", 1);
    if (rank && strcmp(rank, "1") == 0)
        raise(SIGSTOP);
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "frozen_at_start") == 0)
        freeze_before_the_start();
    return mpirun_main(argc, argv, scenarios, sizeof scenarios / sizeof *scenarios, run_all);
}
