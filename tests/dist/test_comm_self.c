/* The communicator of one process, choosing it, and the signals that ask for a clean end; and what every communicator
 * promises (comm_cases.h), here alone and with threads as ranks. */
#include "comm_cases.h"
#include "core/base/error.h"
#include "core/base/log.h"
#include "dist/comm.h"
#include "dist/signals.h"
#include "thread_comm.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static void forget_launchers(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMIX_NAMESPACE", "SLURM_STEP_NUM_TASKS", "PMI_SIZE"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        unsetenv(names[i]);
}

static KnComm *open_alone(void)
{
    KnComm *comm;
    forget_launchers();
    assert_int_equal(kn_comm_open(&comm), KN_OK);
    assert_string_equal(comm->table->kind, "self");
    return comm;
}

static void one_process_is_rank_0_of_1_without_mpi(void **state)
{
    (void)state;
    KnComm *comm = open_alone();
    assert_int_equal(comm->rank, 0);
    assert_int_equal(comm->ranks, 1);
    assert_int_equal(comm->local_rank, 0);
    assert_int_equal(comm->local_ranks, 1);
    assert_int_equal(kn_comm_close(comm, KN_OK), KN_OK);
    setenv("OMPI_COMM_WORLD_SIZE", "1", 1); /* mpirun -n 1 needs no MPI either */
    assert_int_equal(kn_comm_open(&comm), KN_OK);
    assert_string_equal(comm->table->kind, "self");
    assert_int_equal(kn_comm_close(comm, KN_OK), KN_OK);
}

static void every_operation_gives_back_its_own(void **state)
{
    (void)state;
    KnComm *comm = open_alone();
    float values[3] = {1, -2, 0.1f}, before[3];
    memcpy(before, values, sizeof values);
    KnCommTicket ticket = -1;
    assert_int_equal(comm->table->all_reduce_start(comm, values, 3, KN_F32, "gradients", &ticket), KN_OK);
    assert_int_equal(comm->table->wait(comm, ticket), KN_OK);
    assert_memory_equal(values, before, sizeof values);
    char all[4] = "";
    assert_int_equal(comm->table->all_gather(comm, "abc", all, 4, "parts"), KN_OK);
    assert_string_equal(all, "abc");
    assert_int_equal(comm->table->all_gather(comm, all, all, 4, "in place"), KN_OK);
    assert_int_equal(comm->table->broadcast(comm, all, 4, 0, "weights"), KN_OK);
    assert_string_equal(all, "abc");
    assert_int_equal(comm->table->barrier(comm, "step"), KN_OK);
    char *text;
    assert_int_equal(kn_comm_gather_text(comm, "words", &text, "texts"), KN_OK);
    assert_string_equal(text, "words");
    free(text);
    assert_int_equal(kn_comm_close(comm, KN_OK), KN_OK);
}

static void every_call_keeps_its_promise_alone(void **state)
{
    (void)state;
    KnComm *comm = open_alone();
    for (int i = 0; i < COMM_CASE_COUNT; i++)
        if (comm_cases[i].run(comm) < 0)
            fail_msg("%s: %s", comm_cases[i].name, kn_error_message());
    assert_int_equal(kn_comm_close(comm, KN_OK), KN_OK);
}

static int run_case(KnComm *comm, void *argument)
{
    const struct CommCase *one = argument;
    return one->run(comm);
}

static void every_call_keeps_its_promise_on_threads(void **state)
{
    (void)state;
    static const int counts[] = {2, 3, 5, 8};
    for (int c = 0; c < 4; c++)
        for (int i = 0; i < COMM_CASE_COUNT; i++) {
            struct CommCase one = comm_cases[i];
            if (thread_ranks_run(counts[c], run_case, &one) < 0)
                fail_msg("%s on %d ranks: %s", one.name, counts[c], kn_error_message());
        }
}

static void a_failure_keeps_its_code_and_sentence(void **state)
{
    (void)state;
    KnComm *comm = open_alone();
    assert_int_equal(kn_comm_error_agree(comm, KN_OK), KN_OK);
    assert_int_equal(kn_comm_error_agree(comm, kn_fail(KN_EIO, "the disk is full")), KN_EIO);
    assert_string_equal(kn_error_message(), "the disk is full");
    assert_int_equal(kn_comm_close(comm, KN_EIO), KN_EIO);
    assert_string_equal(kn_error_message(), "the disk is full");
}

static int status_of_child(void (*child)(void))
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        child();
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

static void abort_alone(void)
{
    KnComm *comm;
    kn_comm_self_open(&comm);
    close(STDERR_FILENO);
    kn_fail(KN_EIO, "the disk is full");
    kn_comm_abort(comm);
}

static void abort_ends_the_process_with_a_failure(void **state)
{
    (void)state;
    int status = status_of_child(abort_alone);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), EXIT_FAILURE);
}

static void signals_ask_for_a_stop(void **state)
{
    (void)state;
    static const int numbers[] = {SIGTERM, SIGUSR1};
    KnComm *comm = open_alone();
    int stop = -1;
    kn_signals_install();
    assert_int_equal(kn_comm_stop_agree(comm, &stop), KN_OK);
    assert_int_equal(stop, 0);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        raise(numbers[i]);
        assert_int_equal(kn_stop_requested(), numbers[i]);
        assert_int_equal(kn_comm_stop_agree(comm, &stop), KN_OK);
        assert_int_equal(stop, 1);
    }
    assert_string_equal(kn_signal_name(kn_stop_requested()), "SIGUSR1");
    assert_int_equal(kn_comm_close(comm, KN_OK), KN_OK);
}

static void interrupt_once(void)
{
    kn_signals_install();
    raise(SIGINT);
}

static void interrupt_twice(void)
{
    interrupt_once();
    raise(SIGINT);
}

static void the_second_interrupt_kills(void **state)
{
    (void)state;
    int status = status_of_child(interrupt_once);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    status = status_of_child(interrupt_twice);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGINT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_process_is_rank_0_of_1_without_mpi),
        cmocka_unit_test(every_operation_gives_back_its_own),
        cmocka_unit_test(every_call_keeps_its_promise_alone),
        cmocka_unit_test(every_call_keeps_its_promise_on_threads),
        cmocka_unit_test(a_failure_keeps_its_code_and_sentence),
        cmocka_unit_test(abort_ends_the_process_with_a_failure),
        cmocka_unit_test(signals_ask_for_a_stop),
        cmocka_unit_test(the_second_interrupt_kills),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
