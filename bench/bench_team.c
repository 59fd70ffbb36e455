/* What it costs to share work out: the team of threads (core/cpu/team.h) against OpenMP's, alone and with processes
 * beside it that never rest.
 *
 *     bench_team [--threads N] [--beside N] [--seconds S]
 *
 * Prints one row for each workload: microseconds a job, of all jobs in S seconds. */
#include "core/base/memory.h"
#include "core/cpu/backend.h"
#include "core/cpu/matmul.h"
#include "core/cpu/team.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST_JOBS = 2000000, ROWS = 1024, WIDTH = 128, BLOCK_ROWS = 128 };

typedef void (*Share)(int threads, int64_t blocks, KnTeamBlock block, void *argument);

static void share_by_caller(int threads, int64_t blocks, KnTeamBlock block, void *argument)
{
    (void)threads;
    for (int64_t i = 0; i < blocks; i++)
        block(argument, i, 0);
}

static void share_by_openmp(int threads, int64_t blocks, KnTeamBlock block, void *argument)
{
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t i = 0; i < blocks; i++)
        block(argument, i, 0);
}

static const struct {
    const char *name;
    Share share;
} ways[] = {{"caller alone", share_by_caller}, {"OpenMP", share_by_openmp}, {"team", kn_team_run_on}};

static double microseconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return 1e6 * (double)now.tv_sec + 1e-3 * (double)now.tv_nsec;
}

/* --- Workloads ---------------------------------------------------------------------------------------------------- */

static long turns_of_5_microseconds;

static void do_nothing(void *argument, int64_t block, int slot)
{
    (void)argument, (void)block, (void)slot;
}

static void turn(long turns)
{
    for (long i = 0; i < turns; i++)
        __asm__ volatile("" ::: "memory");
}

static void work_5_microseconds(void *argument, int64_t block, int slot)
{
    (void)argument, (void)block, (void)slot;
    turn(turns_of_5_microseconds);
}

static void multiply_rows(void *argument, int64_t block, int slot)
{
    (void)slot;
    KnMatmul product = *(const KnMatmul *)argument;
    product.m = BLOCK_ROWS;
    product.a = (const uint16_t *)product.a + block * BLOCK_ROWS * product.k;
    product.c = (uint16_t *)product.c + block * BLOCK_ROWS * product.n;
    kn_matmul_serial(&product, NULL);
}

static void rest(double microseconds)
{
    double end = microseconds_now() + microseconds;
    while (microseconds_now() < end)
        ;
}

static KnMatmul product;

static const struct {
    const char *name;
    KnTeamBlock block;
    int64_t blocks; /* 0: one for each thread */
    double rest;    /* microseconds between jobs */
} workloads[] = {
    {"nothing", do_nothing, 0, 0},
    {"2 blocks of 5 us", work_5_microseconds, 2, 0},
    {"2 blocks of 5 us, 200 us apart", work_5_microseconds, 2, 200},
    {"32 blocks of 5 us", work_5_microseconds, 32, 0},
    {"[1024,128] x [128,128] bf16", multiply_rows, ROWS / BLOCK_ROWS, 0},
};

static void prepare(void)
{
    double fastest = 1e9;
    for (int i = 0; i < 200; i++) {
        double start = microseconds_now();
        turn(20000);
        double took = microseconds_now() - start;
        fastest = took < fastest ? took : fastest;
    }
    turns_of_5_microseconds = (long)(20000 * 5 / fastest);
    static uint16_t a[ROWS * WIDTH], b[WIDTH * WIDTH], c[ROWS * WIDTH];
    void *packed = aligned_alloc(64, kn_matmul_packed_bytes(WIDTH, WIDTH, KN_BF16));
    kn_matmul_pack_serial(
        &(KnMatmulPack){.k = WIDTH, .n = WIDTH, .type = KN_BF16, .b = b, .b_type = KN_BF16, .packed = packed});
    product = (KnMatmul){.m = ROWS,
                         .n = WIDTH,
                         .k = WIDTH,
                         .type = KN_BF16,
                         .a = a,
                         .b = packed,
                         .b_form = KN_PACKED,
                         .c = c,
                         .c_type = KN_BF16};
}

/* --- Measuring ---------------------------------------------------------------------------------------------------- */

static int compare_floats(const void *a, const void *b)
{
    float left = *(const float *)a, right = *(const float *)b;
    return (left > right) - (left < right);
}

static void measure(size_t workload, size_t way, int threads, double seconds, float *times)
{
    int64_t blocks = workloads[workload].blocks ? workloads[workload].blocks : threads, count = 0;
    double start = microseconds_now(), total = 0;
    while (count < MOST_JOBS && microseconds_now() - start < 1e6 * seconds) {
        rest(workloads[workload].rest);
        double before = microseconds_now();
        ways[way].share(threads, blocks, workloads[workload].block, &product);
        times[count] = (float)(microseconds_now() - before);
        total += times[count++];
    }
    qsort(times, (size_t)count, sizeof *times, compare_floats);
    printf("| %-30s | %-12s | %8.1f | %8.1f | %8.1f | %9.1f | %8.1f |\n", workloads[workload].name, ways[way].name,
           times[count / 2], times[count * 99 / 100], times[count * 999 / 1000], times[count - 1],
           total / (double)count);
    fflush(stdout);
}

static void never_rest(void)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;)
        turn(1000);
}

int main(int count, char **arguments)
{
    int threads = kn_cpu_threads(), beside = 0;
    double seconds = 1;
    for (int i = 1; i + 1 < count; i += 2) {
        if (strcmp(arguments[i], "--threads") == 0)
            threads = atoi(arguments[i + 1]);
        else if (strcmp(arguments[i], "--beside") == 0)
            beside = atoi(arguments[i + 1]);
        else if (strcmp(arguments[i], "--seconds") == 0)
            seconds = atof(arguments[i + 1]);
    }
    float *times = malloc(MOST_JOBS * sizeof *times);
    prepare();
    for (int i = 0; i < beside; i++)
        if (fork() == 0)
            never_rest();
    printf("%d threads, %d busy processes beside; microseconds a job\n", threads, beside);
    printf("| %-30s | %-12s | %8s | %8s | %8s | %9s | %8s |\n", "job", "done by", "median", "p99", "p99.9", "worst",
           "mean");
    printf("|---|---|---|---|---|---|---|\n");
    fflush(stdout);
    for (size_t workload = 0; workload < sizeof workloads / sizeof *workloads; workload++)
        for (size_t way = 0; way < sizeof ways / sizeof *ways; way++) {
            pid_t child = fork(); /* so that idle threads of one way do not disturb the other */
            if (child == 0) {
                measure(workload, way, threads, seconds, times);
                _exit(0);
            }
            waitpid(child, NULL, 0);
        }
    return 0; /* the busy processes end with this one */
}
