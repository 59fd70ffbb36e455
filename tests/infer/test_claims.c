/* Who makes what: workers on one folder get shares that do not overlap, take over from those that vanish, and know who
 * goes last. Each KnClaims stands for a process, since locks belong to an open file. */
#include "base/support.h"
#include "core/base/log.h"
#include "core/cpu/backend.h"
#include "dist/comm.h"
#include "infer/claims.h"
#include "infer/output.h"
#include "infer/tiny_model.h"

enum { COUNT = 9, FRAME_BYTES = 16 * 12 * 3, FRAMES = 2 };

static KnModelFile model;

typedef struct Job {
    const char *folder;
    KnRequest requests[COUNT];
    KnGenerateJob job;
} Job;

/* Nine equal requests in a folder of their own. */
static Job *make_job(KnArena *arena, const char *folder)
{
    Job *job = kn_arena_alloc(arena, sizeof *job);
    job->folder = kn_arena_strdup(arena, test_path(folder));
    for (int i = 0; i < COUNT; i++) {
        KnRequest *request = &job->requests[i];
        kn_request_defaults(request, NULL, arena);
        request->out = kn_arena_format(arena, "%s/%d.mp4", job->folder, i);
        request->prompt = "x";
        request->size = (KnArgSize){16, 12};
        request->frames = FRAMES;
        request->seed = i;
    }
    job->job =
        (KnGenerateJob){.model = &model.model, .weights = &model.weights, .requests = job->requests, .count = COUNT};
    assert_ok(kn_generate_check_requests(&job->job));
    return job;
}

static KnClaims *join(Job *job)
{
    KnClaims *claims;
    assert_ok(kn_claims_join(&claims, job->folder, &model, &job->job, 0));
    return claims;
}

/* Takes what is next and checks that it is these, given as digits. */
static void assert_next(KnClaims *claims, const char *expected)
{
    int indices[COUNT], count;
    char found[COUNT + 1] = "";
    assert_ok(kn_claims_next(claims, indices, &count));
    for (int i = 0; i < count; i++)
        found[i] = (char)('0' + indices[i]);
    assert_string_equal(found, expected);
}

static void settle(KnClaims *claims, const char *digits, KnReportStatus status)
{
    for (; *digits; digits++)
        assert_ok(kn_claims_settle(claims, *digits - '0', status, NULL, 1));
}

static void write_video(Job *job, int index)
{
    static uint8_t pixels[FRAMES * FRAME_BYTES];
    assert_ok(kn_output_write(&job->requests[index], &model, kn_cpu_backend(), pixels));
}

static void workers_share_what_is_left(void **state)
{
    (void)state;
    KnArena *arena = kn_arena_create();
    Job *job = make_job(arena, "shared");
    KnClaims *a = join(job), *b = join(job), *c = join(job);
    int indices[COUNT], count, last;
    assert_next(a, "012");
    assert_next(b, "345");
    assert_next(c, "678");
    settle(b, "345", KN_REPORT_MADE);
    assert_next(b, ""); /* nothing is free, but not all is settled */
    settle(a, "012", KN_REPORT_MADE);
    settle(c, "678", KN_REPORT_FAILED);
    assert_int_equal(kn_claims_next(b, indices, &count), KN_END);
    assert_ok(kn_claims_leave(b, &last));
    assert_int_equal(last, 0);
    assert_ok(kn_claims_read(a));
    assert_ok(kn_claims_leave(a, &last));
    assert_int_equal(last, 0);
    assert_ok(kn_claims_read(c));
    assert_ok(kn_claims_leave(c, &last));
    assert_int_equal(last, 1);
    kn_claims_destroy(a);
    kn_claims_destroy(b);
    kn_claims_destroy(c);
    KnClaims *again = join(job); /* nobody is there: a new job, and nothing stands */
    assert_next(again, "012345678");
    kn_claims_destroy(again);
    kn_arena_destroy(arena);
}

static void others_take_over_from_one_that_vanishes(void **state)
{
    (void)state;
    KnArena *arena = kn_arena_create();
    Job *job = make_job(arena, "vanished");
    KnClaims *a = join(job), *b = join(job);
    assert_next(a, "01234");
    assert_next(b, "5678");
    settle(b, "5678", KN_REPORT_MADE);
    settle(a, "0", KN_REPORT_MADE);
    write_video(job, 1); /* made, but not told */
    kn_claims_destroy(a);
    assert_next(b, "234");
    assert_int_equal(kn_report_status(kn_claims_report(b), 1), KN_REPORT_SKIPPED);
    kn_claims_destroy(b);
    kn_arena_destroy(arena);
}

static void other_requests_are_refused_while_somebody_works(void **state)
{
    (void)state;
    KnArena *arena = kn_arena_create();
    Job *job = make_job(arena, "busy"), *other = make_job(arena, "busy");
    KnClaims *a = join(job), *b;
    other->requests[3].seed = 100;
    assert_fails(kn_claims_join(&b, other->folder, &model, &other->job, 0), KN_EINPUT,
                 "other processes are making other videos in");
    kn_claims_destroy(a);
    a = join(other);
    kn_claims_destroy(a);
    kn_arena_destroy(arena);
}

static void clips_of_other_settings_go_into_another_pass(void **state)
{
    (void)state;
    KnArena *arena = kn_arena_create();
    Job *job = make_job(arena, "mixed");
    job->requests[1].steps = job->requests[4].steps = 7;
    job->requests[2].guidance = 1;
    KnClaims *a = join(job);
    assert_next(a, "035678");
    settle(a, "035678", KN_REPORT_MADE);
    assert_next(a, "14");
    settle(a, "14", KN_REPORT_MADE);
    assert_next(a, "2");
    kn_claims_destroy(a);
    kn_arena_destroy(arena);
}

static void what_stands_as_asked_is_skipped(void **state)
{
    (void)state;
    KnArena *arena = kn_arena_create();
    Job *job = make_job(arena, "stands"), *other;
    KnClaims *a = join(job);
    for (int i = 0; i < COUNT; i++)
        write_video(job, i);
    kn_claims_destroy(a);
    other = make_job(arena, "stands");
    other->requests[2].prompt = "y";
    other->requests[5].upscale = 2;
    other->requests[7].seed = 70;
    a = join(other);
    assert_next(a, "257");
    assert_int_equal(kn_report_count(kn_claims_report(a), KN_REPORT_SKIPPED), COUNT - 3);
    kn_claims_destroy(a);
    model.hash[0] ^= 1;
    a = join(job);
    assert_next(a, "012345678");
    model.hash[0] ^= 1;
    kn_claims_destroy(a);
    kn_arena_destroy(arena);
}

static int set_up(void **state)
{
    KnComm *comm;
    if (make_test_folder(state))
        return -1;
    kn_log_set_quiet(1);
    make_tiny_model(test_path("model"), NULL);
    if (kn_comm_open(&comm) < 0 || kn_model_open(&model, comm, test_path("model")) < 0)
        return -1;
    return kn_comm_close(comm, KN_OK);
}

static int tear_down(void **state)
{
    kn_model_close(&model);
    return remove_test_folder(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(workers_share_what_is_left),
        cmocka_unit_test(others_take_over_from_one_that_vanishes),
        cmocka_unit_test(other_requests_are_refused_while_somebody_works),
        cmocka_unit_test(clips_of_other_settings_go_into_another_pass),
        cmocka_unit_test(what_stands_as_asked_is_skipped),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
