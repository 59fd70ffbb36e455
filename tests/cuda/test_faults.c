/* What is wrong with a node's data, found while the device computes: the read after it says so in the words that the
 * CPU has, names the op, and the backend goes on with the next run. The plugin is linked to libraries that need no GPU
 * (kinora-cuda-emulated.so). */
#include "base/support.h"
#include "plugin_path.h"

#include "core/cpu/backend.h"
#include "core/graph/devices.h"
#include "core/ops/ops.h"

#include <unistd.h>

enum { ROWS = 4, TOKENS = 6, COLUMNS = 8 };

static KnBackend *cuda;
static float values[TOKENS * COLUMNS];

typedef struct Case {
    int dims;
    int64_t shape[2]; /* of the index, whose `at`th number is `wild` */
    int at;
    int32_t wild;
    KnTensor *(*build)(KnGraph *graph, KnTensor *x, KnTensor *table, KnTensor *index);
    const char *sentence;
} Case;

static KnTensor *build_gather(KnGraph *graph, KnTensor *x, KnTensor *table, KnTensor *index)
{
    (void)x;
    return kn_gather_rows(graph, table, index);
}

static KnTensor *build_modulate(KnGraph *graph, KnTensor *x, KnTensor *table, KnTensor *index)
{
    return kn_modulate(graph, x, table, table, index);
}

static KnTensor *build_modulate_backward(KnGraph *graph, KnTensor *x, KnTensor *table, KnTensor *index)
{
    const KnNode *node = kn_modulate(graph, x, table, table, index)->producer;
    KnTensor *gradients[KN_MAX_INPUTS] = {0};
    node->op->gradient(graph, node, &x, (int[KN_MAX_INPUTS]){1}, gradients);
    return gradients[0];
}

static KnTensor *build_rope(KnGraph *graph, KnTensor *x, KnTensor *table, KnTensor *index)
{
    return kn_rope(graph, x, index, table, &(KnRopeAttributes){.heads = 1, .axis_pairs = {2, 1, 1}});
}

static KnTensor *build_attention(KnGraph *graph, KnTensor *x, KnTensor *table, KnTensor *index)
{
    (void)table;
    return kn_attention(graph, x, x, x, index, 1, 1);
}

static const Case cases[] = {
    {1, {TOKENS}, 2, 4, build_gather, "gather_rows: index 4 at position 2 does not name one of 4 rows"},
    {1, {TOKENS}, 5, -1, build_modulate, "modulate: index -1 at position 5 does not name one of 4 rows"},
    {1,
     {TOKENS},
     3,
     4,
     build_modulate_backward,
     "modulate_backward: index 4 at position 3 does not name one of 4 rows"},
    {2, {TOKENS, 3}, 7, 99, build_rope, "rope: index 99 at position 7 does not name one of 4 rows"},
    {2, {2, 4}, 5, 7, build_attention, "attention: span 1 "},
};

/* Runs the case's node with an index of zeros, but for the wild number; the code of the run and the read. */
static int run_case(const Case *c, KnBackend *backend, int32_t wild)
{
    int32_t index[TOKENS * 3] = {0};
    float result[TOKENS * COLUMNS];
    KnGraph *graph = kn_graph_create();
    KnExecutor *executor;
    KnTensor *x = kn_leaf(graph, KN_ROLE_INPUT, KN_F32, 2, (int64_t[]){TOKENS, COLUMNS}, "x");
    KnTensor *table = kn_leaf(graph, KN_ROLE_INPUT, KN_F32, 2, (int64_t[]){ROWS, COLUMNS}, "table");
    KnTensor *places = kn_leaf(graph, KN_ROLE_INPUT, KN_I32, c->dims, c->shape, "index");
    KnTensor *out = c->build(graph, x, table, places);
    index[c->at] = wild;
    kn_graph_finish(graph, &out, 1);
    assert_ok(kn_executor_create(&executor, graph, backend, &out, 1));
    kn_executor_bind(executor, x, values);
    kn_executor_bind(executor, table, values);
    kn_executor_bind(executor, places, index);
    int code = kn_executor_run(executor);
    if (code == KN_OK)
        code = kn_executor_read(executor, out, result);
    kn_executor_destroy(executor);
    kn_graph_destroy(graph);
    return code;
}

static void a_wild_index_is_told_as_on_the_cpu(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const Case *c = &cases[i];
        assert_fails(run_case(c, kn_cpu_backend(), c->wild), KN_EINPUT, c->sentence);
        assert_fails(run_case(c, cuda, c->wild), KN_EINPUT, c->sentence);
        assert_ok(run_case(c, cuda, 0));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_wild_index_is_told_as_on_the_cpu)};
    char *path = plugin_path("kinora-cuda-emulated.so");
    if (kn_cuda_backend_open(path, 0, &cuda) < 0) {
        printf("%s\n", kn_error_message());
        return 1;
    }
    int failures = cmocka_run_group_tests(tests, NULL, NULL);
    kn_backend_close(cuda);
    free(path);
    return failures != 0;
}
