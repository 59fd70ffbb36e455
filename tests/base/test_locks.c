/* Locks in a file: who holds them, and that they go with their process. */
#include "base/support.h"
#include "core/base/locks.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void one_of_two_holds_a_lock(void **state)
{
    (void)state;
    KnLocks *a, *b;
    assert_ok(kn_locks_open(&a, test_path("locks")));
    assert_ok(kn_locks_open(&b, test_path("locks")));
    assert_int_equal(kn_locks_try(a, 5), 1);
    assert_int_equal(kn_locks_try(b, 5), 0);
    assert_int_equal(kn_locks_try(b, 6), 1);
    assert_ok(kn_locks_release(a, 5));
    assert_int_equal(kn_locks_try(b, 5), 1);
    kn_locks_close(b);
    assert_ok(kn_locks_wait(a, 5));
    kn_locks_close(a);
}

/* The system lists locks by holder, not by place. */
static void the_locks_of_all_others_are_counted(void **state)
{
    (void)state;
    static const int64_t places[] = {90, 3, 4, 50, 51, 12};
    enum { OTHERS = sizeof places / sizeof places[0] };
    KnLocks *mine, *others[OTHERS];
    assert_ok(kn_locks_open(&mine, test_path("counted")));
    for (int i = 0; i < OTHERS; i++) {
        assert_ok(kn_locks_open(&others[i], test_path("counted")));
        assert_int_equal(kn_locks_try(others[i], places[i]), 1);
    }
    assert_int_equal(kn_locks_try(mine, 20), 1);
    assert_int_equal(kn_locks_count(mine, 0, 100), OTHERS);
    assert_int_equal(kn_locks_count(mine, 4, 47), 3); /* 4, 12, 50 */
    assert_int_equal(kn_locks_count(mine, 13, 37), 0);
    for (int i = 0; i < OTHERS; i++)
        kn_locks_close(others[i]);
    assert_int_equal(kn_locks_count(mine, 0, 100), 0);
    kn_locks_close(mine);
}

static void a_killed_process_holds_nothing(void **state)
{
    (void)state;
    KnLocks *mine;
    int pipe_ends[2];
    char told;
    assert_int_equal(pipe(pipe_ends), 0);
    pid_t child = fork();
    if (child == 0) {
        KnLocks *locks;
        if (kn_locks_open(&locks, test_path("killed")) == KN_OK && kn_locks_try(locks, 7) == 1)
            (void)!write(pipe_ends[1], "x", 1);
        for (;;)
            pause();
    }
    assert_int_equal(read(pipe_ends[0], &told, 1), 1);
    assert_ok(kn_locks_open(&mine, test_path("killed")));
    assert_int_equal(kn_locks_try(mine, 7), 0);
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, NULL, 0), child);
    assert_int_equal(kn_locks_try(mine, 7), 1);
    kn_locks_close(mine);
    close(pipe_ends[0]);
    close(pipe_ends[1]);
}

static void a_note_is_read_by_others(void **state)
{
    (void)state;
    KnLocks *a, *b;
    char note[KN_LOCKS_NOTE_BYTES];
    assert_ok(kn_locks_open(&a, test_path("noted")));
    assert_ok(kn_locks_open(&b, test_path("noted")));
    assert_ok(kn_locks_read_note(b, note));
    assert_string_equal(note, "");
    assert_ok(kn_locks_write_note(a, "a long note"));
    assert_ok(kn_locks_write_note(a, "short"));
    assert_ok(kn_locks_read_note(b, note));
    assert_string_equal(note, "short");
    kn_locks_close(a);
    kn_locks_close(b);
}

static void a_file_that_cannot_be_opened_is_named(void **state)
{
    (void)state;
    KnLocks *locks;
    assert_fails(kn_locks_open(&locks, test_path("nowhere/locks")), KN_EIO, "nowhere/locks");
    assert_null(locks);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_of_two_holds_a_lock),
        cmocka_unit_test(the_locks_of_all_others_are_counted),
        cmocka_unit_test(a_killed_process_holds_nothing),
        cmocka_unit_test(a_note_is_read_by_others),
        cmocka_unit_test(a_file_that_cannot_be_opened_is_named),
    };
    return cmocka_run_group_tests(tests, make_test_folder, remove_test_folder);
}
