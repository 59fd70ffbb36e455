/* Labels: waits */
/* The communicator over MPI: what ranks can do together, and what they say when they cannot, by `mpirun -n K` of this
 * program (mpirun.h) with 2, 3, 4 and 8 ranks. */
#include "comm_cases.h"
#include "core/base/file.h"
#include "dist/checkpoint.h"
#include "dist/signals.h"
#include "mpirun.h"

#include <signal.h>

/* ---- scenarios: each runs on every rank ---- */

static int check_sums(KnComm *comm, const float *values, int64_t count, int salt)
{
    for (int64_t i = 0; i < count; i++) {
        float expected = expected_sum(all_ranks(), comm->ranks, i, salt, KN_F32);
        CHECK(memcmp(&values[i], &expected, sizeof expected) == 0);
    }
    return KN_OK;
}

/* Many pieces for every rank. */
static int scenario_large_sum(KnComm *comm)
{
    enum { COUNT = 2000003 };
    CHECK(strcmp(comm->table->kind, "mpi") == 0);
    float *values = filled_values(comm->rank, COUNT, 5, KN_F32);
    KN_TRY(kn_comm_all_reduce(comm, values, COUNT, "gradients"));
    KN_TRY(check_sums(comm, values, COUNT, 5));
    free(values);
    return KN_OK;
}

static int scenario_bytes(KnComm *comm)
{
    static const size_t sizes[] = {1, 8, 64, 65, 1000, (32u << 20) + 5};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        size_t bytes = sizes[i];
        unsigned char *mine = kn_alloc(bytes), *all = kn_alloc(bytes * (size_t)comm->ranks);
        memset(mine, 10 + comm->rank, bytes);
        KN_TRY(comm->table->all_gather(comm, mine, all, bytes, "parts"));
        for (size_t k = 0; k < bytes * (size_t)comm->ranks; k++)
            CHECK(all[k] == 10 + (int)(k / bytes));
        memset(all, comm->rank, bytes);
        memcpy(all, comm->rank == comm->ranks - 1 ? "z" : "a", 1);
        KN_TRY(comm->table->broadcast(comm, all, bytes, comm->ranks - 1, "weights"));
        CHECK(all[0] == 'z');
        for (size_t k = 1; k < bytes; k++)
            CHECK(all[k] == comm->ranks - 1);
        free(mine);
        free(all);
    }
    char *texts[8], mine[16];
    snprintf(mine, sizeof mine, "%.*s", comm->rank * 3, "abcdefghijkl");
    KN_TRY(kn_comm_gather_text(comm, mine, texts, "words"));
    for (int rank = 0; rank < comm->ranks; rank++) {
        CHECK(strlen(texts[rank]) == (size_t)rank * 3 && strncmp(texts[rank], "abcdefghijkl", (size_t)rank * 3) == 0);
        free(texts[rank]);
    }
    CHECK(comm->local_ranks == comm->ranks && comm->local_rank == comm->rank);
    return KN_OK;
}

/* The main thread only computes: the sum must appear in its memory without any further call. */
static int scenario_overlap(KnComm *comm)
{
    enum { COUNT = 2000000 };
    volatile float *values = kn_alloc(COUNT * sizeof *values);
    for (int64_t i = 0; i < COUNT; i++)
        values[i] = value_of(comm->rank, i, 1, KN_F32);
    KnCommTicket ticket;
    KN_TRY(comm->table->all_reduce_start(comm, (float *)values, COUNT, KN_F32, "gradients", &ticket));
    double start = seconds(CLOCK_MONOTONIC);
    int64_t arrived = 0;
    while (arrived < COUNT && seconds(CLOCK_MONOTONIC) < start + 30)
        for (; arrived < COUNT; arrived++)
            if (values[arrived] != expected_sum(all_ranks(), comm->ranks, arrived, 1, KN_F32))
                break;
    CHECK(arrived == COUNT);
    KN_TRY(comm->table->wait(comm, ticket));
    free((void *)values);
    return KN_OK;
}

/* Waiting for a late rank leaves the core to others. */
static int scenario_polite(KnComm *comm)
{
    if (comm->rank == 1)
        pause_seconds(1.5);
    double start = seconds(CLOCK_PROCESS_CPUTIME_ID);
    KN_TRY(comm->table->barrier(comm, "late"));
    double used = seconds(CLOCK_PROCESS_CPUTIME_ID) - start;
    CHECK(used < 0.3);
    return KN_OK;
}

static int scenario_other_name(KnComm *comm)
{
    float value = 1;
    KN_TRY(comm->table->barrier(comm, "first"));
    return kn_comm_all_reduce(comm, &value, 1, comm->rank == 1 ? "bias" : "weight");
}

static int scenario_other_size(KnComm *comm)
{
    float values[200000] = {0};
    return kn_comm_all_reduce(comm, values, comm->rank == 1 ? 200000 : 199999, "weight");
}

static int scenario_other_kind(KnComm *comm)
{
    char bytes[100] = "";
    return comm->rank == 1 ? comm->table->broadcast(comm, bytes, sizeof bytes, 0, "config")
                           : comm->table->barrier(comm, "config");
}

/* The first and the last rank are a pair. */
static int make_pair(KnComm *comm, KnComm **pair)
{
    int is_member = comm->rank == 0 || comm->rank == comm->ranks - 1;
    return comm->table->split(comm, is_member ? 0 : 1 + comm->rank, "pair", pair);
}

static int scenario_other_name_in_a_group(KnComm *comm)
{
    KnComm *pair;
    KN_TRY(comm->table->barrier(comm, "first"));
    KN_TRY(make_pair(comm, &pair));
    return pair->table->barrier(pair, pair->rank == 1 ? "tails" : "heads");
}

static int scenario_other_cut(KnComm *comm)
{
    float all[100] = {0}, mine[100];
    int64_t offsets[CASE_RANKS_MAX + 1] = {0};
    KnCommTicket ticket;
    for (int rank = 0; rank < comm->ranks; rank++)
        offsets[rank + 1] = rank == comm->ranks - 1 ? 100 : 10 + (comm->rank == 1);
    KN_TRY(comm->table->reduce_scatter_start(comm, all, mine, offsets, KN_F32, "shards", &ticket));
    return comm->table->wait(comm, ticket);
}

static int scenario_other_exchange(KnComm *comm)
{
    char send[CASE_RANKS_MAX * 10] = "", receive[CASE_RANKS_MAX * 10 + 1];
    int64_t out[CASE_RANKS_MAX + 1] = {0}, in[CASE_RANKS_MAX + 1] = {0};
    KnCommTicket ticket;
    for (int rank = 0; rank < comm->ranks; rank++) {
        out[rank + 1] = out[rank] + 10;
        in[rank + 1] = in[rank] + 10 + (comm->rank == 0 && rank == 1);
    }
    KN_TRY(comm->table->all_to_all_start(comm, send, out, receive, in, "heads", &ticket));
    return comm->table->wait(comm, ticket);
}

static int scenario_other_message(KnComm *comm)
{
    char send[20] = "", receive[20];
    int to = (comm->rank + 1) % comm->ranks, from = (comm->rank + comm->ranks - 1) % comm->ranks;
    KnCommTicket ticket;
    KN_TRY(
        comm->table->send_receive_start(comm, send, comm->rank == 0 ? 11 : 10, to, receive, 10, from, "keys", &ticket));
    return comm->table->wait(comm, ticket);
}

static int scenario_early_end(KnComm *comm)
{
    return comm->rank == 1 ? KN_OK : comm->table->barrier(comm, "step 7");
}

static int scenario_one_fails(KnComm *comm)
{
    if (comm->rank == comm->ranks - 1)
        return kn_fail(KN_EIO, "cannot read the shard clips-00003.h5");
    return comm->table->barrier(comm, "step 7");
}

static int scenario_rank_zero_fails(KnComm *comm)
{
    if (comm->rank == 0)
        return kn_fail(KN_EIO, "cannot read the shard clips-00003.h5");
    return comm->table->barrier(comm, "step 7");
}

static int scenario_all_fail(KnComm *comm)
{
    (void)comm;
    return kn_fail(KN_EINPUT, "cannot read the shard clips-00003.h5");
}

/* The others are not even in a call, with a reduction under way that cannot complete. */
static int scenario_fails_while_others_compute(KnComm *comm)
{
    static float values[1000000];
    KnCommTicket ticket;
    if (comm->rank == 1) {
        pause_seconds(0.3);
        return kn_fail(KN_EIO, "cannot read the shard clips-00003.h5");
    }
    KN_TRY(comm->table->all_reduce_start(comm, values, 1000000, KN_F32, "gradients", &ticket));
    pause_seconds(100);
    return KN_OK;
}

static int scenario_agreed_failure(KnComm *comm)
{
    return kn_comm_error_agree(comm, comm->rank == 1 ? kn_fail(KN_EIO, "cannot read the shard clips-00003.h5") : KN_OK);
}

static int scenario_agreement(KnComm *comm)
{
    CHECK(kn_comm_error_agree(comm, KN_OK) == KN_OK);
    int code = kn_comm_error_agree(comm, comm->rank > 0 ? kn_fail(KN_EIO, "disk %d is full", comm->rank) : KN_OK);
    CHECK(code == KN_EIO);
    CHECK(strcmp(kn_error_message(), "rank 1: disk 1 is full") == 0);
    code = kn_comm_error_agree(comm, code);
    CHECK(strcmp(kn_error_message(), "rank 1: disk 1 is full") == 0);
    float value = 1;
    KN_TRY(kn_comm_all_reduce(comm, &value, 1, "still usable"));
    CHECK(value == (float)comm->ranks);
    return KN_OK;
}

static int scenario_stop(KnComm *comm)
{
    int stop = -1;
    kn_signals_install();
    KN_TRY(kn_comm_stop_agree(comm, &stop));
    CHECK(stop == 0);
    if (comm->rank == comm->ranks - 1)
        raise(SIGUSR1);
    KN_TRY(kn_comm_stop_agree(comm, &stop));
    CHECK(stop == 1);
    CHECK(kn_stop_requested() == (comm->rank == comm->ranks - 1 ? SIGUSR1 : 0));
    return KN_OK;
}

/* The folder of the checkpoint scenarios, made by the test; the same for all ranks. */
#define CHECKPOINT_RUN "KINORA_TEST_RUN"

static int save_weights(KnComm *comm, const char *run_dir, float weights[6], float rows[10], int64_t step)
{
    KnCheckpointTensor tensors[] = {
        {.name = "shared", .type = KN_SAFETENSORS_F32, .dims = 1, .shape = {6}, .count = {6}},
        {.name = "mine", .type = KN_SAFETENSORS_F32, .dims = 2, .shape = {comm->ranks, 10}, .count = {1, 10}},
    };
    tensors[0].data = weights;
    tensors[1].data = rows;
    tensors[1].start[0] = comm->rank;
    KnCheckpointSave save = {.run_dir = run_dir, .meta = {.step = step}, .tensors = tensors, .count = 2};
    return kn_checkpoint_save(comm, &save);
}

static int scenario_checkpoint(KnComm *comm)
{
    const char *run_dir = getenv(CHECKPOINT_RUN);
    float weights[6], rows[10], all[80], other[6];
    for (int i = 0; i < 10; i++)
        rows[i] = (float)(100 * comm->rank + i);
    for (int i = 0; i < 6; i++)
        weights[i] = (float)i / 3;
    for (int64_t step = 1; step <= 2; step++)
        KN_TRY(save_weights(comm, run_dir, weights, rows, step));
    char *path;
    KnCheckpoint *checkpoint;
    KN_TRY(kn_checkpoint_newest(comm, run_dir, &path));
    CHECK(strstr(path, "/checkpoints/step-00000002") != NULL);
    KN_TRY(kn_checkpoint_open(&checkpoint, path, KN_CHECK_HASHES));
    free(path);
    KnCheckpointTensor wanted[] = {*kn_checkpoint_find(checkpoint, "mine"), *kn_checkpoint_find(checkpoint, "shared")};
    wanted[0].data = all;
    wanted[1].data = other;
    KN_TRY(kn_checkpoint_load(checkpoint, wanted, 2));
    kn_checkpoint_close(checkpoint);
    for (int i = 0; i < 10 * comm->ranks; i++)
        CHECK(all[i] == (float)(100 * (i / 10) + i % 10));
    CHECK(memcmp(weights, other, sizeof weights) == 0);
    return KN_OK;
}

static int scenario_checkpoint_fails(KnComm *comm)
{
    float weights[6] = {0}, rows[10] = {0};
    return save_weights(comm, "/proc/no-such-place", weights, rows, 1);
}

static int scenario_promises(KnComm *comm)
{
    for (int i = 0; i < COMM_CASE_COUNT; i++)
        if (comm_cases[i].run(comm) < 0)
            return kn_fail_prefix(KN_EFORMAT, "%s", comm_cases[i].name);
    return KN_OK;
}

/* Prints seconds of a 32 MiB sum: waited for at once, hidden behind computing of the same length, and the computing. */
static int scenario_speed(KnComm *comm)
{
    enum { COUNT = 8 << 20, TURNS = 5 };
    float *values = kn_alloc(COUNT * sizeof *values);
    for (int turn = 0; turn < TURNS; turn++) {
        KnCommTicket ticket;
        KN_TRY(comm->table->barrier(comm, "start"));
        double start = seconds(CLOCK_MONOTONIC);
        KN_TRY(kn_comm_all_reduce(comm, values, COUNT, "gradients"));
        double alone = seconds(CLOCK_MONOTONIC) - start;
        KN_TRY(comm->table->all_reduce_start(comm, values, COUNT, KN_F32, "gradients", &ticket));
        volatile double sum = 0;
        start = seconds(CLOCK_MONOTONIC);
        while (seconds(CLOCK_MONOTONIC) < start + 2 * alone)
            for (int i = 0; i < 1000; i++)
                sum += sin(sum);
        start = seconds(CLOCK_MONOTONIC);
        KN_TRY(comm->table->wait(comm, ticket));
        kn_log("32 MiB over %d ranks: %.1f ms alone, %.1f ms exposed beside computing", comm->ranks, alone * 1e3,
               (seconds(CLOCK_MONOTONIC) - start) * 1e3);
        start = seconds(CLOCK_MONOTONIC);
        for (int i = 0; i < 100; i++)
            KN_TRY(comm->table->barrier(comm, "latency"));
        kn_log("barrier: %.1f us", (seconds(CLOCK_MONOTONIC) - start) * 1e4);
    }
    free(values);
    return KN_OK;
}

/* More than 2^31 bytes and elements; by hand only (17 GiB on two ranks). */
static int scenario_large(KnComm *comm)
{
    int64_t count = ((int64_t)1 << 31) + 5;
    float *values = kn_alloc((size_t)count * sizeof *values);
    for (int64_t i = 0; i < count; i++)
        values[i] = (float)(i % 1000 + comm->rank);
    KN_TRY(kn_comm_all_reduce(comm, values, count, "gradients"));
    for (int64_t i = 0; i < count; i++)
        CHECK(values[i] == (float)(i % 1000) + (float)(i % 1000 + 1));
    values[count - 1] = (float)comm->rank;
    KN_TRY(comm->table->broadcast(comm, values, (size_t)count * sizeof *values, 1, "weights"));
    CHECK(values[count - 1] == 1);
    free(values);
    return KN_OK;
}

static const Scenario scenarios[] = {
    {"promises", scenario_promises},
    {"large_sum", scenario_large_sum},
    {"bytes", scenario_bytes},
    {"overlap", scenario_overlap},
    {"polite", scenario_polite},
    {"other_name", scenario_other_name},
    {"other_size", scenario_other_size},
    {"other_kind", scenario_other_kind},
    {"other_name_in_a_group", scenario_other_name_in_a_group},
    {"other_cut", scenario_other_cut},
    {"other_exchange", scenario_other_exchange},
    {"other_message", scenario_other_message},
    {"early_end", scenario_early_end},
    {"one_fails", scenario_one_fails},
    {"rank_zero_fails", scenario_rank_zero_fails},
    {"all_fail", scenario_all_fail},
    {"fails_while_others_compute", scenario_fails_while_others_compute},
    {"agreed_failure", scenario_agreed_failure},
    {"agreement", scenario_agreement},
    {"stop", scenario_stop},
    {"checkpoint", scenario_checkpoint},
    {"checkpoint_fails", scenario_checkpoint_fails},
    {"speed", scenario_speed},
    {"large", scenario_large},
};

/* ---- the test around them ---- */

static void succeeds(const char *scenario)
{
    for (int ranks = 2; ranks <= 4; ranks++)
        succeeds_on(ranks, scenario);
}

static void fails_once(const char *scenario, const char *sentence)
{
    fails_on(2, scenario, sentence, 1, 60);
    fails_on(4, scenario, sentence, 1, 60);
}

static void every_call_keeps_its_promise(void **state)
{
    static const int ranks[] = {2, 3, 4, 8};
    (void)state;
    for (int i = 0; i < 4; i++)
        succeeds_on(ranks[i], "promises");
}

static void sums_have_the_bits_of_rank_order(void **state)
{
    (void)state;
    succeeds("large_sum");
}

static void gathers_broadcasts_and_texts_arrive(void **state)
{
    (void)state;
    succeeds("bytes");
}

static void a_sum_completes_while_the_main_thread_computes(void **state)
{
    (void)state;
    succeeds("overlap");
}

static void waiting_leaves_the_core_to_others(void **state)
{
    (void)state;
    succeeds("polite");
}

static void different_calls_are_named_and_end_the_job(void **state)
{
    (void)state;
    fails_once("other_name", "rank 0 and rank 1 have parted ways: call 2 of rank 0 is all_reduce 'weight' of 4 bytes, "
                             "call 2 of rank 1 is all_reduce 'bias' of 4 bytes");
    fails_once("other_size",
               "is all_reduce 'weight' of 799996 bytes, call 1 of rank 1 is all_reduce 'weight' of 800000");
    fails_once("other_kind", "call 1 of rank 0 is barrier 'config' of 0 bytes, call 1 of rank 1 is broadcast 'config'");
    fails_on(2, "other_name_in_a_group",
             "rank 0 and rank 1 have parted ways in pair: call 1 of rank 0 is barrier 'heads' of 0 bytes, call 1 of "
             "rank 1 is barrier 'tails' of 0 bytes",
             1, 60);
    fails_on(3, "other_name_in_a_group", "rank 0 and rank 2 have parted ways in pair: call 1 of rank 0", 1, 60);
    fails_on(3, "other_cut", "call 1 of rank 1 is reduce_scatter 'shards' of 400 bytes, cut otherwise", 1, 60);
    fails_on(3, "other_exchange",
             "rank 1 sends 10 bytes to rank 0, which expects 11 from it in call 1, all_to_all 'heads'", 1, 60);
    fails_on(3, "other_message",
             "rank 0 sends 11 bytes to rank 1, which expects 10 from it in call 1, send_receive 'keys'", 1, 60);
    fails_once("early_end", "call 1 of rank 0 is barrier 'step 7' of 0 bytes, call 1 of rank 1 is barrier 'end of the");
}

static void a_failing_rank_ends_all_with_its_sentence_once(void **state)
{
    (void)state;
    fails_once("one_fails", "cannot read the shard clips-00003.h5");
    fails_once("rank_zero_fails", "error: rank 0: cannot read the shard clips-00003.h5");
    fails_once("all_fail", "cannot read the shard clips-00003.h5");
    fails_once("fails_while_others_compute", "error: rank 1: cannot read the shard clips-00003.h5");
    fails_once("agreed_failure", "error: rank 1: cannot read the shard clips-00003.h5");
}

static void ranks_agree_on_errors_and_stay_usable(void **state)
{
    (void)state;
    succeeds("agreement");
}

static void a_signal_to_one_rank_stops_all(void **state)
{
    (void)state;
    succeeds("stop");
}

static void checkpoints_are_saved_by_all_and_found_by_all(void **state)
{
    (void)state;
    char run_dir[] = "/tmp/kinora-mpi-XXXXXX";
    assert_non_null(mkdtemp(run_dir));
    setenv(CHECKPOINT_RUN, run_dir, 1);
    succeeds("checkpoint");
    assert_int_equal(kn_remove_tree(run_dir), KN_OK);
    fails_once("checkpoint_fails", "error: rank 0: cannot");
}

static void unconnected_processes_are_refused(void **state)
{
    (void)state;
    assert_int_equal(run_command("env SLURM_STEP_NUM_TASKS=4 SLURM_PROCID=1", "agreement"), EXIT_FAILURE);
    assert_int_equal(occurrences("started as one of 4 processes by srun without --mpi=pmix"), 1);
    assert_int_equal(run_command("env PMI_SIZE=2 PMI_RANK=0", "agreement"), EXIT_FAILURE);
    assert_int_equal(occurrences("use mpirun or srun --mpi=pmix"), 1);
}

static int run_all(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_call_keeps_its_promise),
        cmocka_unit_test(sums_have_the_bits_of_rank_order),
        cmocka_unit_test(gathers_broadcasts_and_texts_arrive),
        cmocka_unit_test(a_sum_completes_while_the_main_thread_computes),
        cmocka_unit_test(waiting_leaves_the_core_to_others),
        cmocka_unit_test(different_calls_are_named_and_end_the_job),
        cmocka_unit_test(a_failing_rank_ends_all_with_its_sentence_once),
        cmocka_unit_test(ranks_agree_on_errors_and_stay_usable),
        cmocka_unit_test(a_signal_to_one_rank_stops_all),
        cmocka_unit_test(checkpoints_are_saved_by_all_and_found_by_all),
        cmocka_unit_test(unconnected_processes_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

int main(int argc, char **argv)
{
    return mpirun_main(argc, argv, scenarios, sizeof scenarios / sizeof *scenarios, run_all);
}
