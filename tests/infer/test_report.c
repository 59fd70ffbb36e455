/* The report that processes share: whole lines, settled for all, and nothing forgotten. */
#include "base/support.h"
#include "infer/report.h"

#include <jansson.h>
#include <unistd.h>

enum { COUNT = 3 };
static KnRequest requests[COUNT];

static KnReport *open_report(void)
{
    static char names[COUNT][300];
    for (int i = 0; i < COUNT; i++) {
        snprintf(names[i], sizeof names[i], "%s/%d.mp4", test_folder, i);
        kn_request_init(&requests[i]);
        requests[i].prompt = i == 1 ? "caf\xc3\xa9 \"quoted\"\nnext line" : "x";
        requests[i].out = names[i];
        requests[i].seed = 10 + i;
    }
    return kn_report_create(test_folder, requests, COUNT, 4);
}

static KnReport *begin_anew(void)
{
    KnReport *report = open_report();
    int64_t start;
    unlink(kn_report_path(report));
    assert_ok(kn_report_begin(report, &start));
    assert_int_equal(start, 0);
    return report;
}

static void add(KnReport *report, int index, KnReportStatus status, const char *reason, double seconds)
{
    assert_ok(kn_report_add(report, &(KnReportEntry){index, status, reason, seconds, 96}));
}

/* Line `number` from 0, parsed; NULL where there are fewer. Every line must be whole. */
static json_t *line_of(const KnReport *report, int number)
{
    char *bytes, *at;
    size_t size;
    json_t *found = NULL;
    assert_ok(kn_file_read(kn_report_path(report), &bytes, &size));
    at = bytes;
    for (int i = 0; at < bytes + size; i++) {
        char *end = strchr(at, '\n');
        assert_non_null(end);
        *end = '\0';
        json_t *object = json_loads(at, 0, NULL);
        assert_true(json_is_object(object));
        if (i == number)
            found = json_incref(object);
        json_decref(object);
        at = end + 1;
    }
    free(bytes);
    return found;
}

static void assert_text(const json_t *object, const char *key, const char *expected)
{
    assert_string_equal(json_string_value(json_object_get(object, key)), expected);
}

static void a_line_says_what_became_of_a_request(void **state)
{
    (void)state;
    KnReport *report = begin_anew();
    add(report, 1, KN_REPORT_FAILED, "no caf\xe9.png", 1.5);
    json_t *line = line_of(report, 0);
    assert_int_equal(json_integer_value(json_object_get(line, "request")), 2);
    assert_text(line, "name", "1.mp4");
    assert_text(line, "prompt", "caf\xc3\xa9 \"quoted\"\nnext line");
    assert_int_equal(json_integer_value(json_object_get(line, "seed")), 11);
    assert_text(line, "status", "failed");
    assert_text(line, "reason", "no caf\\xe9.png");
    assert_true(json_real_value(json_object_get(line, "seconds")) == 1.5);
    assert_int_equal(json_integer_value(json_object_get(line, "tokens")), 96);
    assert_int_equal(json_integer_value(json_object_get(line, "pid")), getpid());
    assert_int_equal(json_integer_value(json_object_get(line, "rank")), 4);
    assert_int_equal(strlen(json_string_value(json_object_get(line, "time"))), strlen("2000-01-01T00:00:00Z"));
    json_decref(line);
    kn_report_destroy(report);
}

static void what_one_settles_is_settled_for_all(void **state)
{
    (void)state;
    KnReport *one = begin_anew(), *other = open_report();
    assert_ok(kn_report_join(other, 0));
    add(one, 2, KN_REPORT_MADE, NULL, 1);
    assert_int_equal(kn_report_status(other, 2), KN_REPORT_OPEN);
    assert_ok(kn_report_read(other));
    assert_int_equal(kn_report_status(other, 2), KN_REPORT_MADE);
    add(other, 0, KN_REPORT_FAILED, "why", 1);
    add(one, 1, KN_REPORT_MADE, NULL, 1); /* reads the other's line on the way */
    assert_int_equal(kn_report_status(one, 0), KN_REPORT_FAILED);
    assert_int_equal(kn_report_count(one, KN_REPORT_OPEN), 0);
    assert_int_equal(kn_report_count(one, KN_REPORT_MADE), 2);
    assert_ok(kn_report_finish(one));
    for (int i = 0; i < COUNT; i++) { /* in order now */
        json_t *line = line_of(one, i);
        assert_int_equal(json_integer_value(json_object_get(line, "request")), i + 1);
        json_decref(line);
    }
    kn_report_destroy(one);
    kn_report_destroy(other);
}

static void half_a_line_is_cut_off(void **state)
{
    (void)state;
    KnReport *report = begin_anew(), *other = open_report();
    add(report, 0, KN_REPORT_MADE, NULL, 1);
    FILE *file = fopen(kn_report_path(report), "a");
    fprintf(file, "{\"request\":2,\"status\":\"made\",\"prompt\":\"%0500d", 0);
    assert_int_equal(fclose(file), 0);
    assert_ok(kn_report_join(other, 0));
    assert_int_equal(kn_report_status(other, 1), KN_REPORT_OPEN);
    add(other, 2, KN_REPORT_MADE, NULL, 1);
    json_t *line = line_of(other, 1), *none = line_of(other, 2);
    assert_int_equal(json_integer_value(json_object_get(line, "request")), 3);
    assert_null(none);
    json_decref(line);
    kn_report_destroy(report);
    kn_report_destroy(other);
}

static void a_new_job_tries_failures_again_and_remembers_who_made_the_rest(void **state)
{
    (void)state;
    KnReport *former = begin_anew();
    int64_t start;
    add(former, 0, KN_REPORT_MADE, NULL, 3.25);
    add(former, 1, KN_REPORT_FAILED, "why", 1);
    kn_report_destroy(former);
    KnReport *report = open_report();
    assert_ok(kn_report_begin(report, &start));
    assert_true(start > 0);
    assert_int_equal(kn_report_count(report, KN_REPORT_OPEN), COUNT);
    KnReport *other = open_report();
    assert_ok(kn_report_join(other, start));
    assert_int_equal(kn_report_count(other, KN_REPORT_OPEN), COUNT);
    add(other, 0, KN_REPORT_SKIPPED, NULL, 0);
    add(other, 1, KN_REPORT_SKIPPED, NULL, 0);
    add(other, 2, KN_REPORT_MADE, NULL, 2);
    assert_ok(kn_report_finish(other));
    json_t *line = line_of(other, 0), *failed = line_of(other, 1), *none = line_of(other, COUNT);
    assert_text(line, "status", "skipped");
    assert_true(json_real_value(json_object_get(line, "seconds")) == 3.25);
    assert_true(json_real_value(json_object_get(failed, "seconds")) == 0); /* not that of failing */
    assert_null(none);
    json_decref(line);
    json_decref(failed);
    kn_report_destroy(report);
    kn_report_destroy(other);
}

static void a_report_that_shrinks_is_not_trusted(void **state)
{
    (void)state;
    KnReport *report = begin_anew();
    add(report, 0, KN_REPORT_MADE, NULL, 1);
    assert_int_equal(truncate(kn_report_path(report), 5), 0);
    assert_fails(kn_report_read(report), KN_EIO, "was shortened by another program");
    kn_report_destroy(report);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_line_says_what_became_of_a_request),
        cmocka_unit_test(what_one_settles_is_settled_for_all),
        cmocka_unit_test(half_a_line_is_cut_off),
        cmocka_unit_test(a_new_job_tries_failures_again_and_remembers_who_made_the_rest),
        cmocka_unit_test(a_report_that_shrinks_is_not_trusted),
    };
    return cmocka_run_group_tests(tests, make_test_folder, remove_test_folder);
}
