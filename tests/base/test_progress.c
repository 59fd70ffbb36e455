/* Progress lines as a log file or a terminal receives them. Standard error is caught in a temporary file, or in a
 * pseudo-terminal. */
#include "core/base/log.h"
#include "core/base/progress.h"

#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static int saved_error = -1, caught = -1;

static void catch_into(int descriptor)
{
    fflush(stderr);
    saved_error = dup(STDERR_FILENO);
    caught = descriptor;
    dup2(descriptor, STDERR_FILENO);
}

static void restore_error(void)
{
    fflush(stderr);
    dup2(saved_error, STDERR_FILENO);
    close(saved_error);
}

static int temporary_file(void)
{
    char name[] = "/tmp/kinora-progress-XXXXXX";
    int descriptor = mkstemp(name);
    assert_true(descriptor >= 0);
    unlink(name);
    return descriptor;
}

/* Ends catching and returns what was written. */
static char *text_caught(void)
{
    static char text[65536];
    restore_error();
    lseek(caught, 0, SEEK_SET);
    ssize_t length = read(caught, text, sizeof text - 1);
    close(caught);
    text[length > 0 ? length : 0] = '\0';
    return text;
}

static void work(int64_t total, double interval, int steps)
{
    KnProgress progress;
    kn_progress_begin(&progress,
                      &(KnProgressOptions){.label = "train", .unit = "steps", .total = total, .interval = interval});
    for (int i = 1; i <= steps; i++) {
        usleep(2000);
        kn_progress_update(&progress, i, "loss %.2f", 1.0 / i);
    }
    kn_progress_end(&progress, NULL);
}

static int count_lines(const char *text)
{
    int lines = 0;
    for (; *text; text++)
        lines += *text == '\n';
    return lines;
}

static void a_file_gets_few_plain_lines_with_share_rate_eta_and_extra(void **state)
{
    (void)state;
    catch_into(temporary_file());
    work(100, 0.12, 100);
    const char *text = text_caught();
    assert_non_null(strstr(text, "kinora: train  "));
    assert_non_null(strstr(text, "/100 steps  "));
    assert_non_null(strstr(text, "%  "));
    assert_non_null(strstr(text, " steps/s  ETA 0:0"));
    assert_non_null(strstr(text, "loss 0.0"));
    assert_non_null(strstr(text, "train  100 steps in 0:0"));
    assert_null(strchr(text, '\r'));
    assert_null(strchr(text, '\033'));
    assert_in_range(count_lines(text), 2, 12); /* 100 updates in 0.2 s or, on a busy machine, more */
}

static void short_work_leaves_its_summary_alone(void **state)
{
    (void)state;
    catch_into(temporary_file());
    work(3, 0, 3);
    const char *text = text_caught();
    assert_int_equal(count_lines(text), 1);
    assert_non_null(strstr(text, "train  3 steps in "));
    assert_non_null(strstr(text, "loss 0.33"));
}

static void work_that_stops_half_way_says_how_far_it_came(void **state)
{
    (void)state;
    catch_into(temporary_file());
    work(8, 0, 3);
    assert_non_null(strstr(text_caught(), "train  stopped at 3 of 8 steps after "));
}

static void an_unknown_total_shows_neither_share_nor_eta(void **state)
{
    (void)state;
    catch_into(temporary_file());
    work(0, 0.05, 60);
    const char *text = text_caught();
    assert_null(strchr(text, '%'));
    assert_null(strstr(text, "ETA"));
    assert_non_null(strstr(text, "train  60 steps in "));
}

static void a_total_that_turns_out_smaller_counts(void **state)
{
    (void)state;
    KnProgress progress;
    catch_into(temporary_file());
    kn_progress_begin(&progress, &(KnProgressOptions){.label = "train", .unit = "steps", .total = 8});
    kn_progress_set_total(&progress, 3);
    kn_progress_update(&progress, 3, NULL);
    kn_progress_end(&progress, NULL);
    assert_non_null(strstr(text_caught(), "train  3 steps in "));
}

static void quiet_programs_and_other_ranks_are_silent(void **state)
{
    (void)state;
    catch_into(temporary_file());
    kn_log_set_quiet(1);
    work(10, 0.001, 10);
    kn_log_set_quiet(0);
    kn_log_set_rank(1, 2);
    work(10, 0.001, 10);
    kn_log_set_rank(0, 1);
    assert_string_equal(text_caught(), "");
}

static void a_resumed_run_counts_only_its_own_work_in_the_rate(void **state)
{
    (void)state;
    KnProgress progress;
    catch_into(temporary_file());
    kn_progress_begin(&progress,
                      &(KnProgressOptions){.label = "train", .unit = "steps", .total = 1000002, .start = 1000000});
    usleep(150000);
    kn_progress_update(&progress, 1000001, NULL);
    double rate = progress.rate;
    kn_progress_end(&progress, NULL);
    text_caught();
    assert_true(rate > 0 && rate < 10);
}

static void a_terminal_gets_one_redrawn_line_and_log_lines_above_it(void **state)
{
    (void)state;
    char text[8192];
    size_t length = 0;
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || grantpt(master) || unlockpt(master))
        skip();
    int slave = open(ptsname(master), O_RDWR | O_NOCTTY);
    assert_true(slave >= 0);
    catch_into(slave);
    KnProgress progress;
    kn_progress_begin(&progress, &(KnProgressOptions){.label = "train", .unit = "steps", .total = 4});
    kn_progress_update(&progress, 1, "a text far too long for eighty columns, %s",
                       "which must be cut, or the line wraps");
    kn_log("a line between");
    kn_progress_update(&progress, 4, NULL);
    kn_progress_end(&progress, "done");
    restore_error();
    fcntl(master, F_SETFL, O_NONBLOCK);
    for (ssize_t got; length < sizeof text - 1 && (got = read(master, text + length, sizeof text - 1 - length)) > 0;)
        length += (size_t)got;
    text[length] = '\0';
    close(slave);
    close(master);
    const char *first = strstr(text, "\rtrain  1/4 steps  25%"),
               *between = strstr(text, "\r\033[Kkinora: a line between");
    assert_non_null(first);
    assert_non_null(between);
    assert_true(between > first && between - first <= 80 + 4);
    assert_null(memchr(first, '\n', (size_t)(between - first)));
    assert_non_null(strstr(between, "\ntrain  1/4 steps")); /* the status stands again below the log line */
    assert_non_null(strstr(between, "kinora: train  4 steps in 0:00"));
}

static void durations_read_as_people_write_them(void **state)
{
    (void)state;
    static const struct {
        double seconds;
        const char *text;
    } rows[] = {{0, "0:00"},          {7.4, "0:07"},   {59.6, "1:00"}, {754, "12:34"}, {11109, "3:05:09"},
                {183900, "2d 03:05"}, {INFINITY, "?"}, {NAN, "?"},     {-1, "?"}};
    char text[16];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_string_equal(kn_progress_duration(rows[i].seconds, text), rows[i].text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_gets_few_plain_lines_with_share_rate_eta_and_extra),
        cmocka_unit_test(short_work_leaves_its_summary_alone),
        cmocka_unit_test(work_that_stops_half_way_says_how_far_it_came),
        cmocka_unit_test(an_unknown_total_shows_neither_share_nor_eta),
        cmocka_unit_test(a_total_that_turns_out_smaller_counts),
        cmocka_unit_test(quiet_programs_and_other_ranks_are_silent),
        cmocka_unit_test(a_resumed_run_counts_only_its_own_work_in_the_rate),
        cmocka_unit_test(a_terminal_gets_one_redrawn_line_and_log_lines_above_it),
        cmocka_unit_test(durations_read_as_people_write_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
