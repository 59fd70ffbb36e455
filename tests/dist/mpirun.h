/* Programs that test what ranks do by starting themselves under mpirun.
 *
 * Without arguments such a program is the cmocka test, which starts `mpirun -n K itself SCENARIO` and looks at exit
 * code, output and what is left running; with an argument it is one rank of that scenario. Its main is
 *     return mpirun_main(argc, argv, scenarios, COUNT, run_all);
 */
#ifndef KN_TESTS_MPIRUN_H
#define KN_TESTS_MPIRUN_H

#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/memory.h"
#include "dist/comm.h"

#include <glob.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

enum { SKIPPED = 77 }; /* what CTest takes for it */

typedef struct Scenario {
    const char *name;
    int (*run)(KnComm *comm);
} Scenario;

static inline double seconds(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static inline void pause_seconds(double duration)
{
    struct timespec pause = {(time_t)duration, (long)((duration - floor(duration)) * 1e9)};
    nanosleep(&pause, NULL);
}

/* ---- the test's side ---- */

static char program[4096];
static char output[1 << 16];

/* How many processes run `program SCENARIO`; dead ones have no command line. */
static inline int still_running(const char *scenario)
{
    glob_t found = {0};
    int count = 0;
    glob("/proc/[0-9]*/cmdline", 0, NULL, &found);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        char words[sizeof program + 256] = "";
        FILE *file = fopen(found.gl_pathv[i], "r");
        if (!file)
            continue;
        size_t length = fread(words, 1, sizeof words - 2, file), first = strlen(words);
        fclose(file);
        count += length > first + 1 && strcmp(words, program) == 0 && strcmp(words + first + 1, scenario) == 0;
    }
    globfree(&found);
    return count;
}

static inline int left_running(const char *scenario)
{
    for (int turn = 0; turn < 40 && still_running(scenario) > 0; turn++)
        pause_seconds(0.05);
    return still_running(scenario);
}

/* Runs `prefix program SCENARIO`; its exit code, its output in `output`. */
static inline int run_command(const char *prefix, const char *scenario)
{
    char *command = kn_format("timeout -k 5 240 %s %s %s 2>&1", prefix, program, scenario);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    size_t length = fread(output, 1, sizeof output - 1, pipe);
    output[length] = '\0';
    int status = pclose(pipe);
    free(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

static inline int run_scenario(int ranks, const char *scenario)
{
    char *prefix = kn_format("mpirun --oversubscribe --bind-to none -n %d", ranks);
    int code = run_command(prefix, scenario);
    free(prefix);
    assert_int_equal(left_running(scenario), 0);
    return code;
}

static inline int occurrences(const char *words)
{
    int count = 0;
    for (const char *at = output; (at = strstr(at, words)); at += strlen(words))
        count++;
    return count;
}

static inline void succeeds_on(int ranks, const char *scenario)
{
    int code = run_scenario(ranks, scenario);
    if (code != 0)
        print_error("%s on %d ranks:\n%s\n", scenario, ranks, output);
    assert_int_equal(code, 0);
}

/* The job ends within the time, with a non-zero code and the sentence so many times. */
static inline void fails_on(int ranks, const char *scenario, const char *sentence, int times, double within)
{
    double start = seconds(CLOCK_MONOTONIC);
    int code = run_scenario(ranks, scenario);
    double lasted = seconds(CLOCK_MONOTONIC) - start;
    if (code == 0 || code >= 124 || occurrences(sentence) != times || lasted > within)
        print_error("%s on %d ranks, code %d, %.1f s:\n%s\n", scenario, ranks, code, lasted, output);
    assert_int_not_equal(code, 0);
    assert_true(code < 124); /* timeout's and signals' codes */
    assert_int_equal(occurrences(sentence), times);
    assert_true(lasted < within);
}

/* ---- a rank's side ---- */

static inline int run_rank(const Scenario *scenarios, int count, const char *name)
{
    KnComm *comm;
    int code = kn_comm_open(&comm);
    if (code < 0) {
        kn_log_error("%s", kn_error_message());
        return EXIT_FAILURE;
    }
    for (int i = 0; i < count; i++)
        if (strcmp(scenarios[i].name, name) == 0)
            return kn_comm_close(comm, scenarios[i].run(comm)) < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
    return 2;
}

static inline int mpirun_main(int argc, char **argv, const Scenario *scenarios, int count, int (*run_all)(void))
{
    if (argc == 2)
        return run_rank(scenarios, count, argv[1]);
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    if (length < 0 || system("command -v mpirun >/dev/null") != 0) {
        printf("mpirun is not installed: skipped\n");
        return SKIPPED;
    }
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
    setenv("ASAN_OPTIONS", "detect_leaks=0", 1); /* Open MPI's own */
    return run_all();
}

#endif
