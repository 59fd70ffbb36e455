/* The CPU kernels' team of threads: every block is done exactly once, slots are never shared, whatever else happens. */
#include "core/cpu/backend.h"
#include "core/cpu/team.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { MOST_BLOCKS = 4096, MOST_SLOTS = 8 };

/* Plain variables on purpose: a sanitizer for threads sees whether the team orders the accesses. */
typedef struct Count {
    int64_t blocks;
    int threads, input;
    int done[MOST_BLOCKS];
    int taken[MOST_SLOTS]; /* 1 while a block of that slot runs */
    int64_t by_slot[MOST_SLOTS];
    atomic_int faults;
} Count;

static void count_block(void *argument, int64_t block, int slot)
{
    Count *count = argument;
    if (slot < 0 || slot >= count->threads || block < 0 || block >= count->blocks || count->taken[slot]) {
        atomic_fetch_add(&count->faults, 1);
        return;
    }
    count->taken[slot] = 1;
    count->done[block] += count->input;
    count->by_slot[slot]++;
    count->taken[slot] = 0;
}

static int64_t faults_of_run(Count *count, int threads, int64_t blocks)
{
    memset(count->done, 0, (size_t)blocks * sizeof *count->done);
    count->blocks = blocks;
    count->threads = threads;
    count->input++;
    kn_team_run_on(threads, blocks, count_block, count);
    int64_t faults = atomic_load(&count->faults);
    for (int64_t i = 0; i < blocks; i++)
        faults += count->done[i] != count->input;
    return faults;
}

static int many(int usual) /* KN_TEAM_TIMES=20 for a long run by hand */
{
    const char *times = getenv("KN_TEAM_TIMES");
    return times ? usual * atoi(times) : usual;
}

static void every_block_is_done_once_by_any_number_of_threads(void **state)
{
    (void)state;
    Count *count = calloc(1, sizeof *count);
    const int64_t blocks[] = {0, 1, 2, 3, 7, 8, 9, 64, 1000, MOST_BLOCKS};
    for (int round = 0; round < many(20); round++)
        for (size_t b = 0; b < sizeof blocks / sizeof *blocks; b++)
            for (int threads = 1; threads <= MOST_SLOTS; threads++)
                assert_int_equal(faults_of_run(count, threads, blocks[b]), 0);
    free(count);
}

static void tiny_jobs_follow_each_other_without_mixing(void **state)
{
    (void)state;
    Count *count = calloc(1, sizeof *count);
    for (int threads = 2; threads <= MOST_SLOTS; threads++)
        for (int i = 0; i < many(5000); i++)
            assert_int_equal(faults_of_run(count, threads, 1 + i % 13), 0);
    free(count);
}

static void sleepers_wake_for_a_job(void **state)
{
    (void)state;
    Count *count = calloc(1, sizeof *count);
    for (int i = 0; i < many(200); i++) {
        assert_int_equal(faults_of_run(count, 1 + i % MOST_SLOTS, 100), 0);
        usleep((useconds_t)(i % 10 * 30));
    }
    free(count);
}

static void note_slot(void *argument, int64_t block, int slot)
{
    (void)block;
    int *seen = argument;
    seen[slot] = 1;
    usleep(100);
}

/* How many threads took part in jobs of 10 milliseconds, of as many as it takes to see all. */
static int threads_seen(int threads)
{
    int seen[MOST_SLOTS] = {0}, count = 0;
    for (int i = 0; i < 1000 && count < threads; i++) {
        kn_team_run_on(threads, 100, note_slot, seen);
        count = 0;
        for (int slot = 0; slot < MOST_SLOTS; slot++)
            count += seen[slot];
    }
    return count;
}

static void all_threads_take_part_in_long_jobs(void **state)
{
    (void)state;
    for (int threads = 1; threads <= MOST_SLOTS; threads++)
        assert_int_equal(threads_seen(threads), threads);
}

typedef struct Outer {
    Count inner[4];
    atomic_int faults;
} Outer;

static void start_inner(void *argument, int64_t block, int slot)
{
    (void)slot;
    Outer *outer = argument;
    if (faults_of_run(&outer->inner[block], 3, 50) || outer->inner[block].by_slot[0] != 50)
        atomic_fetch_add(&outer->faults, 1);
    outer->inner[block].by_slot[0] = 0;
}

static void a_job_inside_a_block_is_done_by_its_thread(void **state)
{
    (void)state;
    Outer *outer = calloc(1, sizeof *outer);
    for (int i = 0; i < many(500); i++)
        kn_team_run_on(4, 4, start_inner, outer);
    assert_int_equal(atomic_load(&outer->faults), 0);
    free(outer);
}

static void *call_often(void *argument)
{
    Count *count = argument;
    int64_t faults = 0;
    for (int i = 0; i < many(5000); i++)
        faults += faults_of_run(count, 1 + i % 5, 1 + i % 37);
    return (void *)(intptr_t)faults;
}

static void several_callers_do_not_disturb_each_other(void **state)
{
    (void)state;
    enum { CALLERS = 3 };
    pthread_t callers[CALLERS];
    Count *counts = calloc(CALLERS, sizeof *counts);
    for (int i = 0; i < CALLERS; i++)
        assert_int_equal(pthread_create(&callers[i], NULL, call_often, &counts[i]), 0);
    for (int i = 0; i < CALLERS; i++) {
        void *faults = NULL;
        pthread_join(callers[i], &faults);
        assert_null(faults);
    }
    free(counts);
}

static void *resize_often(void *argument)
{
    atomic_int *stop = argument;
    for (int i = 0; !atomic_load(stop); i++) {
        kn_cpu_set_threads(1 + i % MOST_SLOTS);
        usleep(50);
    }
    return NULL;
}

static void the_number_of_threads_may_change_meanwhile(void **state)
{
    (void)state;
    atomic_int stop = 0;
    pthread_t resizer;
    Count *count = calloc(1, sizeof *count);
    count->threads = MOST_SLOTS;
    kn_cpu_set_threads(1);
    assert_int_equal(pthread_create(&resizer, NULL, resize_often, &stop), 0);
    for (int i = 0; i < many(5000); i++) {
        count->blocks = 1 + i % 29;
        count->input = 1;
        memset(count->done, 0, (size_t)count->blocks * sizeof *count->done);
        kn_team_run(count->blocks, count_block, count);
        assert_int_equal(atomic_load(&count->faults), 0);
        for (int64_t b = 0; b < count->blocks; b++)
            assert_int_equal(count->done[b], 1);
    }
    atomic_store(&stop, 1);
    pthread_join(resizer, NULL);
    kn_cpu_set_threads(0);
    free(count);
}

/* The child's workers are new: it must neither wait for those of its parent nor go without. */
static void a_forked_child_makes_its_own_team(void **state)
{
    (void)state;
    Count *count = calloc(1, sizeof *count);
    assert_int_equal(faults_of_run(count, 4, 100), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        alarm(60);
        _exit(threads_seen(3) == 3 && faults_of_run(count, 4, 100) == 0 ? 0 : 1);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_int_equal(faults_of_run(count, 4, 100), 0);
    free(count);
}

static atomic_int signalled_elsewhere;
static pthread_t main_thread;

static void on_signal(int signal)
{
    (void)signal;
    if (!pthread_equal(pthread_self(), main_thread))
        atomic_store(&signalled_elsewhere, 1);
}

/* A signal to the process reaches a thread of the program, whose system call it is meant to interrupt. */
static void workers_take_no_signals(void **state)
{
    (void)state;
    Count *count = calloc(1, sizeof *count);
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART}, before;
    main_thread = pthread_self();
    sigaction(SIGUSR1, &action, &before);
    assert_int_equal(faults_of_run(count, MOST_SLOTS, 100), 0);
    sigset_t usr1;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &usr1, NULL); /* so that only a worker could take it */
    kill(getpid(), SIGUSR1);
    usleep(20000);
    assert_int_equal(atomic_load(&signalled_elsewhere), 0);
    pthread_sigmask(SIG_UNBLOCK, &usr1, NULL);
    sigaction(SIGUSR1, &before, NULL);
    free(count);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_block_is_done_once_by_any_number_of_threads),
        cmocka_unit_test(tiny_jobs_follow_each_other_without_mixing),
        cmocka_unit_test(sleepers_wake_for_a_job),
        cmocka_unit_test(all_threads_take_part_in_long_jobs),
        cmocka_unit_test(a_job_inside_a_block_is_done_by_its_thread),
        cmocka_unit_test(several_callers_do_not_disturb_each_other),
        cmocka_unit_test(the_number_of_threads_may_change_meanwhile),
        cmocka_unit_test(a_forked_child_makes_its_own_team),
        cmocka_unit_test(workers_take_no_signals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
