/* Labels: slow */
/* Parts: layouts */
/* The CUDA backend, whose plugin is linked to libraries that need no GPU (tests/emulated), against one process on the
 * CPU: each gradient, the loss, the norm and the updated weights, alone and on 2 and 4 ranks that exchange by the
 * emulated NCCL, for every way of cutting them, at every ZeRO stage in turn. The model has 6 heads, which 4 ranks share
 * unevenly. By `mpirun -n 4` of this program. */
#include "dist/mpirun.h"
#include "layouts/step.h"
#include "built_path.h"

#include "core/graph/devices.h"

/* The largest difference over all ranks, on each of them. */
static int gather_worst(KnComm *comm, Trial *trial)
{
    typedef struct Worst {
        float value, weight;
        char name[sizeof trial->worst_name];
    } Worst;
    Worst mine = {trial->worst, trial->worst_weight, ""}, *all = kn_alloc((size_t)comm->ranks * sizeof *all);
    memcpy(mine.name, trial->worst_name, sizeof mine.name);
    int code = comm->table->all_gather(comm, &mine, all, sizeof mine, "differences");
    for (int rank = 0; rank < comm->ranks && code == KN_OK; rank++) {
        if (all[rank].value > trial->worst) {
            trial->worst = all[rank].value;
            memcpy(trial->worst_name, all[rank].name, sizeof mine.name);
        }
        trial->worst_weight = fmaxf(trial->worst_weight, all[rank].weight);
    }
    free(all);
    return code;
}

static int try_layout(KnComm *comm, Trial *trial)
{
    float most = world_tolerance(trial->world);
    KN_TRY(trial_run(comm, trial));
    KN_TRY(gather_worst(comm, trial));
    int good = trial->worst <= most && trial->worst_weight <= most;
    if (comm->rank == 0)
        trial_print(trial, good ? "" : "TOO FAR");
    return good ? KN_OK : kn_fail(KN_EFORMAT, "this layout differs from one process");
}

/* With two packs, and with four for as many replicas. */
typedef struct Worlds {
    World two, four;
} Worlds;

/* Of all layouts of as many ranks those that are this group's turn. */
static int try_layouts(KnComm *comm, const Worlds *worlds, KnBackend *backend, int first, int every)
{
    KnParallelConfig list[64];
    int count = list_layouts(comm->ranks, list);
    for (int k = first; k < count; k += every) {
        const World *world = list[k].data * list[k].shard > 2 ? &worlds->four : &worlds->two;
        list[k].zero = 3 - k % 4;
        list[k].text = k / 2 % 2 ? KN_TEXT_ROWS_CUT : KN_TEXT_ROWS_WHOLE;
        KN_TRY(try_layout(comm, &(Trial){.world = world, .backend = backend, .parallel = list[k]}));
    }
    return KN_OK;
}

/* One layout on each rank by itself; those of two ranks on two pairs at once; those of four. */
static int scenario_layouts(KnComm *comm)
{
    Worlds worlds;
    KnBackend *backend;
    KnComm *alone, *pair;
    char *plugin = plugin_path("kinora-cuda-emulated.so");
    setenv("KINORA_CUDA_PLUGIN", plugin, 1);
    setenv("KINORA_EMULATED_REGISTERED", "1", 1);
    world_create(&worlds.two, &(WorldOptions){"adamw", KN_PARALLEL_FAST, .packs = 2, .heads = 6});
    world_create(&worlds.four, &(WorldOptions){"adamw", KN_PARALLEL_FAST, .packs = 4, .heads = 6});
    KN_TRY(kn_cuda_backend_open(plugin, comm->local_rank, &backend));
    KN_TRY(kn_comm_self_open(&alone));
    KN_TRY(comm->table->split(comm, comm->rank / 2, "pair", &pair));
    if (comm->rank == 0)
        KN_TRY(try_layouts(alone, &worlds, backend, 0, 1));
    KN_TRY(try_layouts(pair, &worlds, backend, comm->rank / 2, 2));
    KN_TRY(try_layouts(comm, &worlds, backend, 0, 1));
    pair->table->destroy(pair);
    alone->table->destroy(alone);
    kn_backend_close(backend);
    world_destroy(&worlds.two);
    world_destroy(&worlds.four);
    free(plugin);
    return KN_OK;
}

static const Scenario scenarios[] = {{"layouts", scenario_layouts}};

static void every_gradient_agrees_with_the_cpu(void **state)
{
    (void)state;
    succeeds_on(4, "layouts");
    print_message("%s", output);
    assert_int_equal(occurrences("ranks: data"), 1 + 5 + 15);
    assert_int_equal(occurrences("TOO FAR"), 0);
}

static int run_all(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_gradient_agrees_with_the_cpu)};
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
