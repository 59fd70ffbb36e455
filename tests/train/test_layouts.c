/* Parts: layouts */
/* Every way of cutting 1, 2, 3, 4, 6 and 8 ranks into data x shard x ring x ulysses x tensor, at every ZeRO stage in
 * turn, against one process. The model has 12 heads. Ranks are threads. */
#include "base/support.h"
#include "dist/thread_comm.h"
#include "layouts/step.h"

#include "core/cpu/backend.h"

static int run_rank(KnComm *comm, void *argument)
{
    return trial_run(comm, argument);
}

static void try_layout(const World *w, const KnParallelConfig *p, int *failures)
{
    int ranks = (int)(p->data * p->shard * p->ulysses * p->ring * p->tensor);
    Trial trial = {.world = w, .backend = kn_cpu_backend(), .parallel = *p};
    int code = thread_ranks_run(ranks, run_rank, &trial);
    int good = code == KN_OK && trial.worst <= world_tolerance(w) && trial.worst_weight <= world_tolerance(w);
    *failures += !good;
    trial_print(&trial, code < 0 ? kn_error_message() : good ? "" : "TOO FAR");
}

#if defined(__SANITIZE_ADDRESS__)
enum { MOST_RANKS = 4 }; /* every kind of layout is among them, and sanitizers take their time */
#else
enum { MOST_RANKS = 8 };
#endif

typedef struct Choice {
    const char *optimizer;
    KnParallelMode mode;
    int least_tensor, most_tensor;
    int ranks[8]; /* ends with 0 */
    int least;    /* layouts there must be */
} Choice;

/* Every chosen layout, each with another ZeRO stage. A replica has two packs or more. */
static void try_all(const Choice *choice)
{
    int failures = 0, tried = 0;
    for (const int *ranks = choice->ranks; *ranks && *ranks <= MOST_RANKS; ranks++) {
        World w;
        KnParallelConfig list[64];
        world_create(&w, &(WorldOptions){choice->optimizer, choice->mode, .packs = 2 * *ranks, .heads = 12});
        int count = list_layouts(*ranks, list);
        for (int k = 0; k < count; k++) {
            if (list[k].tensor < choice->least_tensor || list[k].tensor > choice->most_tensor)
                continue;
            list[k].text = tried / 2 % 2 ? KN_TEXT_ROWS_CUT : KN_TEXT_ROWS_WHOLE;
            list[k].zero = 3 - tried++ % 4;
            list[k].mode = choice->mode;
            try_layout(&w, &list[k], &failures);
        }
        world_destroy(&w);
    }
    print_message("%d layouts\n", tried);
    assert_true(tried >= choice->least || MOST_RANKS < 8);
    assert_int_equal(failures, 0);
}

static void every_layout_agrees_with_one_process(void **state)
{
    (void)state;
    try_all(&(Choice){"adamw", KN_PARALLEL_FAST, 1, 8, {1, 2, 3, 4, 6, 8}, 80});
}

/* Five ranks share the heads unevenly, three and six the feed-forward layer's width. */
static void muon_updates_matrices_that_tensor_ranks_have_cut(void **state)
{
    (void)state;
    try_all(&(Choice){"muon", KN_PARALLEL_FAST, 2, 8, {2, 3, 4, 5, 6}, 17});
}

static void the_invariant_mode_gives_every_layout_the_same_bits(void **state)
{
    (void)state;
    try_all(&(Choice){"muon", KN_PARALLEL_LAYOUT_INVARIANT, 1, 1, {1, 2, 3, 4, 6, 8}, 40});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_layout_agrees_with_one_process),
        cmocka_unit_test(muon_updates_matrices_that_tensor_ranks_have_cut),
        cmocka_unit_test(the_invariant_mode_gives_every_layout_the_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
