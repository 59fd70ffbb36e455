/* Labels: slow waits */
/* The communicator over NCCL, by `mpirun -n K` of this program (mpirun.h), on libraries that need no GPU
 * (tests/emulated): what it moves, that it waits for the computing stream and makes that wait, and what it says when
 * ranks part ways, freeze or die, and when NCCL fails. */
#include "built_path.h"
#include "comm_cases.h"
#include "core/base/activity.h"
#include "mpirun.h"

#include <dlfcn.h>
#include <signal.h>

#define LIMIT 2.0

/* ---- the device, as far as tests need it ---- */

typedef struct Device {
    int (*create_stream)(void **stream, unsigned flags, int priority);
    int (*synchronize)(void *stream);
    void (*enqueue)(void *stream, int (*run)(void *argument), void *argument, void (*release)(void *argument));
    void *compute;
} Device;
static Device device;

static int find(void *library, const char *name, void *function)
{
    void *symbol = dlsym(library, name);
    if (!symbol)
        return kn_fail(KN_EFORMAT, "%s", dlerror());
    memcpy(function, &symbol, sizeof symbol);
    return KN_OK;
}

static int open_nccl(KnComm *host, KnComm **comm)
{
    char *path = built_path("libkinora-emulated.so"), *plugin = plugin_path("kinora-cuda-emulated.so");
    setenv("KINORA_EMULATED_UNIFIED", "1", 1); /* what is exchanged lies in the host's memory */
    void *library = dlopen(path, RTLD_NOW);
    KN_TRY(library ? KN_OK : kn_fail(KN_EFORMAT, "%s", dlerror()));
    KN_TRY(find(library, "cudaStreamCreateWithPriority", &device.create_stream));
    KN_TRY(find(library, "cudaStreamSynchronize", &device.synchronize));
    KN_TRY(find(library, "emulated_enqueue", &device.enqueue));
    device.create_stream(&device.compute, 0, 0);
    KN_TRY(kn_comm_nccl_open(host, plugin, device.compute, comm));
    free(path);
    free(plugin);
    return KN_OK;
}

/* ---- the promises of every communicator, with waits that last until the device is through ---- */

typedef struct Settled {
    KnComm base;
    KnComm *nccl;
} Settled;

static const KnCommTable settled_table;

static KnComm *nccl_of(KnComm *comm)
{
    return ((Settled *)comm)->nccl;
}

static KnComm *settle(KnComm *nccl)
{
    Settled *made = kn_alloc(sizeof *made);
    made->base = *nccl;
    made->base.table = &settled_table;
    made->nccl = nccl;
    return &made->base;
}

static int settled_split(KnComm *comm, int color, const char *name, KnComm **group)
{
    KnComm *made;
    KN_TRY(nccl_of(comm)->table->split(nccl_of(comm), color, name, &made));
    *group = settle(made);
    return KN_OK;
}

static int settled_wait(KnComm *comm, KnCommTicket ticket)
{
    KN_TRY(nccl_of(comm)->table->wait(nccl_of(comm), ticket));
    device.synchronize(device.compute);
    return KN_OK;
}

static int settled_all_reduce(KnComm *comm, void *values, int64_t count, KnDtype dtype, const char *name,
                              KnCommTicket *ticket)
{
    return nccl_of(comm)->table->all_reduce_start(nccl_of(comm), values, count, dtype, name, ticket);
}

static int settled_reduce_scatter(KnComm *comm, void *all, void *mine, const int64_t *offsets, KnDtype dtype,
                                  const char *name, KnCommTicket *ticket)
{
    return nccl_of(comm)->table->reduce_scatter_start(nccl_of(comm), all, mine, offsets, dtype, name, ticket);
}

static int settled_all_gather_start(KnComm *comm, const void *mine, void *all, const int64_t *offsets, const char *name,
                                    KnCommTicket *ticket)
{
    return nccl_of(comm)->table->all_gather_start(nccl_of(comm), mine, all, offsets, name, ticket);
}

static int settled_all_to_all(KnComm *comm, const void *send, const int64_t *send_offsets, void *receive,
                              const int64_t *receive_offsets, const char *name, KnCommTicket *ticket)
{
    return nccl_of(comm)->table->all_to_all_start(nccl_of(comm), send, send_offsets, receive, receive_offsets, name,
                                                  ticket);
}

static int settled_send_receive(KnComm *comm, const void *send, size_t send_bytes, int to, void *receive,
                                size_t receive_bytes, int from, const char *name, KnCommTicket *ticket)
{
    return nccl_of(comm)->table->send_receive_start(nccl_of(comm), send, send_bytes, to, receive, receive_bytes, from,
                                                    name, ticket);
}

static int settled_all_gather(KnComm *comm, const void *mine, void *all, size_t bytes_each, const char *name)
{
    return nccl_of(comm)->table->all_gather(nccl_of(comm), mine, all, bytes_each, name);
}

static int settled_broadcast(KnComm *comm, void *bytes, size_t count, int root, const char *name)
{
    return nccl_of(comm)->table->broadcast(nccl_of(comm), bytes, count, root, name);
}

static int settled_barrier(KnComm *comm, const char *name)
{
    return nccl_of(comm)->table->barrier(nccl_of(comm), name);
}

static void settled_destroy(KnComm *comm)
{
    nccl_of(comm)->table->destroy(nccl_of(comm));
    free(comm);
}

static const KnCommTable settled_table = {
    .kind = "nccl, settled",
    .split = settled_split,
    .all_reduce_start = settled_all_reduce,
    .reduce_scatter_start = settled_reduce_scatter,
    .all_gather_start = settled_all_gather_start,
    .all_to_all_start = settled_all_to_all,
    .send_receive_start = settled_send_receive,
    .wait = settled_wait,
    .all_gather = settled_all_gather,
    .broadcast = settled_broadcast,
    .barrier = settled_barrier,
    .destroy = settled_destroy,
};

static int scenario_promises(KnComm *host)
{
    KnComm *nccl;
    case_rounds_at_each_rank = case_one_order = 1;
    KN_TRY(open_nccl(host, &nccl));
    CHECK(strcmp(nccl->table->kind, "nccl") == 0);
    KnComm *comm = settle(nccl);
    for (int i = 0; i < COMM_CASE_COUNT; i++)
        if (comm_cases[i].run(comm) < 0)
            return kn_fail_prefix(KN_EFORMAT, "%s", comm_cases[i].name);
    comm->table->destroy(comm);
    return KN_OK;
}

static int scenario_even_parts(KnComm *host)
{
    enum { PART = 40000 };
    KnComm *nccl;
    KN_TRY(open_nccl(host, &nccl));
    KnComm *comm = settle(nccl);
    int64_t offsets[CASE_RANKS_MAX + 1], bytes[CASE_RANKS_MAX + 1], start = comm->rank * (int64_t)PART;
    KnCommTicket ticket;
    for (int rank = 0; rank <= comm->ranks; rank++) {
        offsets[rank] = rank * (int64_t)PART;
        bytes[rank] = 4 * offsets[rank];
    }
    float *all = filled_values(comm->rank, offsets[comm->ranks], 3, KN_F32);
    KN_TRY(comm->table->reduce_scatter_start(comm, all, all + start, offsets, KN_F32, "gradients", &ticket));
    KN_TRY(comm->table->wait(comm, ticket));
    KN_TRY(comm->table->all_gather_start(comm, all + start, all, bytes, "weights", &ticket));
    KN_TRY(comm->table->wait(comm, ticket));
    for (int64_t i = 0; i < offsets[comm->ranks]; i++)
        CHECK(has_value(all, i, KN_F32, expected_sum(all_ranks(), comm->ranks, i, 3, KN_F32)));
    free(all);
    comm->table->destroy(comm);
    return KN_OK;
}

/* ---- streams ---- */

typedef struct Slow {
    float *values;
    int64_t count;
    int rank, turn;
} Slow;

/* A kernel that takes several turns of the device. */
static int write_slowly(void *argument)
{
    Slow *slow = argument;
    if (++slow->turn < 50)
        return 0;
    for (int64_t i = 0; i < slow->count; i++)
        slow->values[i] = value_of(slow->rank, i, 9, KN_F32);
    return 1;
}

static int read_sums(void *argument)
{
    Slow *copy = argument;
    memcpy(copy->values + copy->count, copy->values, (size_t)copy->count * sizeof *copy->values);
    return 1;
}

/* The program queues a kernel, a call, a wait, a kernel and never waits itself in between. */
static int scenario_streams(KnComm *host)
{
    enum { COUNT = 100000, TURNS = 4 };
    KnComm *comm;
    Slow writes[TURNS], reads[TURNS];
    KN_TRY(open_nccl(host, &comm));
    for (int turn = 0; turn < TURNS; turn++) {
        KnCommTicket ticket;
        float *values = kn_alloc(2 * COUNT * sizeof *values);
        writes[turn] = reads[turn] = (Slow){values, COUNT, comm->rank, 0};
        device.enqueue(device.compute, write_slowly, &writes[turn], NULL);
        KN_TRY(comm->table->all_reduce_start(comm, values, COUNT, KN_F32, "gradients", &ticket));
        KN_TRY(comm->table->wait(comm, ticket));
        device.enqueue(device.compute, read_sums, &reads[turn], NULL);
    }
    device.synchronize(device.compute);
    for (int turn = 0; turn < TURNS; turn++) {
        for (int64_t i = 0; i < COUNT; i++)
            CHECK(
                has_value(reads[turn].values + COUNT, i, KN_F32, expected_sum(all_ranks(), comm->ranks, i, 9, KN_F32)));
        free(reads[turn].values);
    }
    comm->table->destroy(comm);
    return KN_OK;
}

/* ---- faults ---- */

static float sums[100000];

/* Starts sums and waits for the device as a training step does; `name` is that of the third. */
static int run_sums(KnComm *host, const char *name, int64_t count)
{
    KnComm *comm;
    KN_TRY(open_nccl(host, &comm));
    kn_comm_set_watchdog(host, LIMIT);
    for (int i = 1; i <= 4; i++) {
        KnCommTicket ticket;
        KN_TRY(comm->table->all_reduce_start(comm, sums, i == 3 ? count : 7, KN_F32, i == 3 ? name : "gradients",
                                             &ticket));
        KN_TRY(comm->table->wait(comm, ticket));
    }
    device.synchronize(device.compute);
    comm->table->destroy(comm);
    return KN_OK;
}

static int scenario_other_name(KnComm *host)
{
    return run_sums(host, host->rank == 1 ? "bias" : "weight", 100);
}

static int scenario_other_size(KnComm *host)
{
    return run_sums(host, "weight", host->rank == 1 ? 100 : 99);
}

static int scenario_group_other_name(KnComm *host)
{
    KnComm *comm, *pair;
    KnCommTicket ticket;
    KN_TRY(open_nccl(host, &comm));
    KN_TRY(comm->table->split(comm, comm->rank / 2, "pair", &pair));
    KN_TRY(pair->table->all_reduce_start(pair, sums, 5, KN_F32, host->rank == 1 ? "bias" : "weight", &ticket));
    KN_TRY(pair->table->wait(pair, ticket));
    device.synchronize(device.compute);
    return KN_OK;
}

/* The others wait for their devices. */
static int scenario_late(KnComm *host, int signal)
{
    KnComm *comm;
    KnCommTicket ticket;
    KN_TRY(open_nccl(host, &comm));
    kn_comm_set_watchdog(host, LIMIT);
    if (host->rank == 1)
        raise(signal);
    KN_TRY(comm->table->all_reduce_start(comm, sums, 1000, KN_F32, "gradients", &ticket));
    KN_TRY(comm->table->wait(comm, ticket));
    device.synchronize(device.compute);
    return comm->table->barrier(comm, "end");
}

static int scenario_frozen(KnComm *host)
{
    return scenario_late(host, SIGSTOP);
}

static int scenario_killed(KnComm *host)
{
    return scenario_late(host, SIGKILL);
}

/* A failure that the others know nothing of, while they go on. What NCCL releases together this rank cannot release. */
static int scenario_fails_itself(KnComm *host)
{
    KnComm *comm;
    KnCommTicket ticket;
    KN_TRY(open_nccl(host, &comm));
    kn_comm_set_watchdog(host, 4 * LIMIT);
    for (int i = 0; i < 3; i++) {
        if (i == 2 && host->rank == 1) {
            comm->table->destroy(comm);
            return kn_fail(KN_EFORMAT, "this clip cannot be read");
        }
        KN_TRY(comm->table->all_reduce_start(comm, sums, 1000, KN_F32, "gradients", &ticket));
        KN_TRY(comm->table->wait(comm, ticket));
    }
    device.synchronize(device.compute);
    comm->table->destroy(comm);
    return KN_OK;
}

static int planned(KnComm *host, const char *fault)
{
    if (host->rank == host->ranks - 1)
        setenv("KINORA_EMULATED_NCCL", fault, 1);
    return run_sums(host, "weight", 100);
}

static int scenario_refused(KnComm *host)
{
    return planned(host, "refuse:3");
}

static int scenario_fails(KnComm *host)
{
    return planned(host, "fail:3");
}

static int scenario_hangs(KnComm *host)
{
    return planned(host, "hang:3");
}

static int sum_and_wait(KnComm *comm, float *values, int64_t count)
{
    KnCommTicket ticket;
    KN_TRY(comm->table->all_reduce_start(comm, values, count, KN_F32, "gradients", &ticket));
    KN_TRY(comm->table->wait(comm, ticket));
    device.synchronize(device.compute);
    return KN_OK;
}

/* Every communicator knows the memory that was given after it, also from its middle on. */
static int scenario_registered(KnComm *host)
{
    enum { COUNT = 1000, FIRST = 300 };
    KnComm *comm, *pair;
    void *memory;
    setenv("KINORA_EMULATED_REGISTERED", "1", 1);
    KN_TRY(open_nccl(host, &comm));
    KN_TRY(comm->table->split(comm, comm->rank / 2, "pair", &pair));
    KN_TRY(comm->table->allocate(comm, &memory, COUNT * sizeof(float)));
    float *values = memory;
    for (int i = FIRST; i < COUNT; i++)
        values[i] = 1;
    KN_TRY(sum_and_wait(comm, values + FIRST, COUNT - FIRST));
    KN_TRY(sum_and_wait(pair, values + FIRST, COUNT - FIRST));
    KN_ASSERT(values[FIRST] == 8 && values[COUNT - 1] == 8);
    KN_ASSERT(comm->table->release(comm, sums) == 0);
    KN_ASSERT(comm->table->release(comm, memory) == 1 && comm->table->release(comm, memory) == 0);
    pair->table->destroy(pair);
    comm->table->destroy(comm);
    return KN_OK;
}

static int scenario_half_registered(KnComm *host)
{
    KnComm *comm;
    void *memory;
    KN_TRY(open_nccl(host, &comm));
    KN_TRY(comm->table->allocate(comm, &memory, sizeof sums));
    return sum_and_wait(comm, host->rank == 0 ? memory : sums, 100);
}

static int scenario_cannot_register(KnComm *host)
{
    KnComm *comm;
    void *memory;
    if (host->rank == 1)
        setenv("KINORA_EMULATED_CUDA", "ncclCommRegister:1", 1);
    KN_TRY(open_nccl(host, &comm));
    return kn_comm_error_agree(host, comm->table->allocate(comm, &memory, 100));
}

static int scenario_no_gpu(KnComm *host)
{
    KnComm *comm;
    char *path = built_path("../kinora-cuda.so");
    int code = kn_comm_nccl_open(host, path, NULL, &comm);
    free(path);
    if (code == KN_OK)
        return kn_fail(KN_EPEER, "finding the GPU failed in CUDA: not so, there is one");
    return code;
}

static int scenario_no_plugin(KnComm *host)
{
    KnComm *comm;
    return kn_comm_nccl_open(host, host->rank == 1 ? "/nowhere/kinora-cuda.so" : "/dev/null", NULL, &comm);
}

static const Scenario scenarios[] = {
    {"promises", scenario_promises},
    {"even_parts", scenario_even_parts},
    {"streams", scenario_streams},
    {"other_name", scenario_other_name},
    {"other_size", scenario_other_size},
    {"group_other_name", scenario_group_other_name},
    {"fails_itself", scenario_fails_itself},
    {"frozen", scenario_frozen},
    {"killed", scenario_killed},
    {"refused", scenario_refused},
    {"fails", scenario_fails},
    {"hangs", scenario_hangs},
    {"registered", scenario_registered},
    {"half_registered", scenario_half_registered},
    {"cannot_register", scenario_cannot_register},
    {"no_gpu", scenario_no_gpu},
    {"no_plugin", scenario_no_plugin},
};

/* ---- the test around them ---- */

/* Starting and ending take their time on a crowded machine. */
#define WITHIN (LIMIT + 20)

static void every_call_keeps_its_promise(void **state)
{
    (void)state;
    for (int ranks = 2; ranks <= 4; ranks++)
        succeeds_on(ranks, "promises");
    succeeds_on(3, "even_parts");
}

static void streams_wait_for_each_other_whichever_goes_first(void **state)
{
    static const char *const orders[] = {"1", "2"};
    (void)state;
    for (int i = 0; i < 2; i++) {
        setenv("KINORA_EMULATED_ORDER", orders[i], 1);
        succeeds_on(2, "streams");
        unsetenv("KINORA_EMULATED_ORDER");
    }
}

/* Of a call's two waits, the communication stream's for the kernel before and the computing stream's for the call. */
static void a_forgotten_wait_is_seen(void **state)
{
    static const struct {
        const char *wait, *order;
    } bugs[] = {{"3", "2"}, {"4", "1"}};
    (void)state;
    for (int i = 0; i < 2; i++) {
        setenv("KINORA_EMULATED_FORGET", bugs[i].wait, 1);
        setenv("KINORA_EMULATED_ORDER", bugs[i].order, 1);
        fails_on(2, "streams", "expected_sum", 1, WITHIN);
        unsetenv("KINORA_EMULATED_ORDER");
        unsetenv("KINORA_EMULATED_FORGET");
    }
}

static void different_calls_are_named_and_end_the_job(void **state)
{
    (void)state;
    fails_on(2, "other_name",
             "rank 0 and rank 1 have parted ways in the job: call 3 of rank 0 is all_reduce 'weight' of 400 bytes, "
             "call 3 of rank 1 is all_reduce 'bias' of 400 bytes",
             1, WITHIN);
    fails_on(4, "other_size",
             "call 3 of rank 0 is all_reduce 'weight' of 396 bytes, call 3 of rank 1 is all_reduce "
             "'weight' of 400 bytes",
             1, WITHIN);
    fails_on(4, "group_other_name", "rank 0 and rank 1 have parted ways in pair: call 1 of rank 0 is all_reduce", 1,
             WITHIN);
}

static void frozen_and_dead_ranks_end_the_job(void **state)
{
    (void)state;
    fails_on(3, "frozen", "for rank 1 on host ", 1, WITHIN);
    assert_int_equal(occurrences("which does not answer: its process is stopped or gone"), 1);
    assert_int_equal(occurrences("of the job, all_reduce 'gradients' of 4000 bytes"), 1);
    assert_int_not_equal(run_scenario(2, "killed"), 0);
    assert_int_equal(occurrences("process rank 1 with PID"), 1); /* the launcher's words */
}

static void a_rank_that_fails_by_itself_says_why(void **state)
{
    (void)state;
    fails_on(3, "fails_itself", "rank 1: this clip cannot be read", 1, WITHIN);
}

static void failures_of_nccl_are_named_and_end_the_job(void **state)
{
    (void)state;
    fails_on(2, "refused",
             "rank 1: call 3 of the job, all_reduce 'weight' of 400 bytes failed in NCCL: unhandled system error: "
             "refused as planned",
             1, WITHIN);
    fails_on(3, "fails",
             "rank 2: call 3 of the job, all_reduce 'weight' of 400 bytes failed in NCCL: a remote error: failed as "
             "planned",
             1, WITHIN);
    fails_on(2, "hangs", "all ranks have come to call 3 of the job, all_reduce 'weight' of 400 bytes, but the device",
             1, WITHIN);
}

static void memory_is_registered_by_all_ranks_or_none(void **state)
{
    (void)state;
    succeeds_on(4, "registered");
    assert_int_equal(occurrences("emulated device:"), 0); /* no complaint of it */
    fails_on(2, "half_registered", "invalid usage: registered memory meets memory that is not", 1, WITHIN);
    fails_on(2, "cannot_register",
             "rank 1: registering memory with the ranks of the job failed in NCCL: unhandled cuda error", 1, WITHIN);
}

static void a_plugin_that_cannot_work_says_why(void **state)
{
    char *plugin = built_path("../kinora-cuda.so");
    (void)state;
    if (access(plugin, R_OK) == 0) /* it is built where there is nvcc, and not under the sanitizers */
        fails_on(2, "no_gpu", "finding the GPU failed in CUDA: ", 1, WITHIN);
    free(plugin);
    fails_on(2, "no_plugin", "rank 0: cannot open the plugin for GPUs: /dev/null: ", 1, WITHIN);
}

static int run_all(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_call_keeps_its_promise),
        cmocka_unit_test(streams_wait_for_each_other_whichever_goes_first),
        cmocka_unit_test(a_forgotten_wait_is_seen),
        cmocka_unit_test(different_calls_are_named_and_end_the_job),
        cmocka_unit_test(frozen_and_dead_ranks_end_the_job),
        cmocka_unit_test(a_rank_that_fails_by_itself_says_why),
        cmocka_unit_test(failures_of_nccl_are_named_and_end_the_job),
        cmocka_unit_test(memory_is_registered_by_all_ranks_or_none),
        cmocka_unit_test(a_plugin_that_cannot_work_says_why),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

int main(int argc, char **argv)
{
    char *plugin = plugin_path("kinora-cuda-emulated.so");
    int built = access(plugin, R_OK) == 0;
    free(plugin);
    if (!built) {
        printf("built without CUDA and NCCL: skipped\n");
        return SKIPPED;
    }
    return mpirun_main(argc, argv, scenarios, sizeof scenarios / sizeof *scenarios, run_all);
}
