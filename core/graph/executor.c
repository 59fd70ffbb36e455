/* Running a finished graph: one arena, bound leaves, nodes in order. */
#include "core/graph/executor.h"

#include "core/base/activity.h"
#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/graph/replay.h"
#include "core/graph/twin.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Memory for intermediate values, of one executor or of several that take turns. */
typedef struct Arena {
    unsigned char *memory;
    size_t bytes;
    int users;
    const KnExecutor *holds; /* whose values are in it */
} Arena;

struct KnExecutor {
    const KnGraph *graph;
    KnBackend *backend;
    KnComm *const *comms;
    KnPlan plan;
    Arena *arena;
    void **data;      /* per tensor id, of leaves: the host's address */
    int64_t *tickets; /* per tensor id */
    /* On a device: */
    unsigned char *inputs; /* all of them, one after another */
    size_t *input_offsets; /* per tensor id; SIZE_MAX: not an input */
    size_t input_bytes;
    KnStaging *staging; /* of the inputs */
    KnReplay replay;
    int64_t bindings; /* how often a leaf moved */
    int exchanges;    /* other ranks took part */
    double *seconds;  /* per node id, when profiling */
    int64_t runs;
    int prologue_stale;
};

static void release_arena(KnExecutor *executor)
{
    Arena *arena = executor->arena;
    if (!arena || --arena->users > 0)
        return;
    if (arena->memory)
        executor->backend->release(executor->backend, arena->memory);
    free(arena);
}

/* What was in it is lost when it grows. */
static int take_arena(KnExecutor *executor, const KnExecutor *beside)
{
    Arena *arena = executor->arena = beside ? beside->arena : kn_alloc(sizeof *arena);
    KnBackend *backend = executor->backend;
    void *memory = NULL;
    arena->users++;
    if (arena->memory && arena->bytes >= executor->plan.arena_bytes)
        return KN_OK;
    if (arena->memory)
        backend->release(backend, arena->memory);
    arena->memory = NULL;
    arena->holds = NULL;
    arena->bytes = executor->plan.arena_bytes;
    KN_TRY(backend->allocate(backend, &memory, arena->bytes, "the step's intermediate values"));
    arena->memory = memory;
    return KN_OK;
}

static int make_room_for_inputs(KnExecutor *executor)
{
    enum { ALIGNMENT = 256 };
    const KnGraph *graph = executor->graph;
    size_t bytes = 0;
    void *memory;
    executor->input_offsets = kn_alloc((size_t)graph->tensor_count * sizeof *executor->input_offsets);
    for (int i = 0; i < graph->tensor_count; i++) {
        executor->input_offsets[i] = graph->tensors[i]->role == KN_ROLE_INPUT ? bytes : SIZE_MAX;
        if (graph->tensors[i]->role == KN_ROLE_INPUT)
            bytes += (kn_tensor_bytes(graph->tensors[i]) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }
    KN_TRY(executor->backend->allocate(executor->backend, &memory, bytes + ALIGNMENT, "the step's inputs"));
    executor->inputs = memory;
    executor->input_bytes = bytes;
    return executor->backend->memory->staging_create(executor->backend, &executor->staging, bytes);
}

int kn_executor_create(KnExecutor **executor, const KnGraph *graph, KnBackend *backend, KnTensor *const *keep,
                       int keep_count)
{
    return kn_executor_create_beside(executor, graph, backend, keep, keep_count, NULL);
}

int kn_executor_create_beside(KnExecutor **executor, const KnGraph *graph, KnBackend *backend, KnTensor *const *keep,
                              int keep_count, const KnExecutor *beside)
{
    KnExecutor *made = kn_alloc(sizeof *made);
    *executor = NULL;
    made->graph = graph;
    made->backend = backend;
    made->prologue_stale = 1;
    kn_plan_make(&made->plan, graph, backend, keep, keep_count);
    made->data = kn_alloc((size_t)graph->tensor_count * sizeof *made->data);
    made->tickets = kn_alloc((size_t)graph->tensor_count * sizeof *made->tickets);
    if (getenv("KINORA_PROFILE"))
        kn_executor_time_nodes(made);
    int code = take_arena(made, beside);
    if (code == KN_OK && backend->memory)
        code = make_room_for_inputs(made);
    if (code < 0) {
        kn_executor_destroy(made);
        return code;
    }
    *executor = made;
    return KN_OK;
}

void kn_executor_destroy(KnExecutor *executor)
{
    if (!executor)
        return;
    KnBackend *backend = executor->backend;
    kn_replay_clear(&executor->replay, backend);
    release_arena(executor);
    if (executor->staging)
        backend->memory->staging_destroy(backend, executor->staging);
    if (executor->inputs)
        backend->release(backend, executor->inputs);
    free(executor->input_offsets);
    kn_plan_clear(&executor->plan);
    free(executor->data);
    free(executor->tickets);
    free(executor->seconds);
    free(executor);
}

const KnPlan *kn_executor_plan(const KnExecutor *executor)
{
    return &executor->plan;
}

void kn_executor_bind(KnExecutor *executor, const KnTensor *leaf, void *memory)
{
    KN_ASSERT(leaf->role != KN_ROLE_VALUE);
    executor->bindings += leaf->role != KN_ROLE_INPUT && executor->data[leaf->id] != memory;
    executor->data[leaf->id] = memory;
}

static unsigned char *leaf_address(const KnExecutor *executor, int id)
{
    if (executor->inputs && executor->input_offsets[id] != SIZE_MAX)
        return executor->inputs + executor->input_offsets[id];
    return kn_twin_address(executor->backend, executor->data[id]);
}

void *kn_executor_data(const KnExecutor *executor, const KnTensor *tensor)
{
    size_t offset;
    int id = kn_tensor_root(tensor, &offset)->id;
    size_t at = executor->plan.offsets[id];
    unsigned char *root = at == SIZE_MAX ? leaf_address(executor, id) : executor->arena->memory + at;
    return root ? root + offset : NULL;
}

int kn_executor_read(const KnExecutor *executor, const KnTensor *tensor, void *to)
{
    size_t bytes = kn_tensor_bytes(tensor);
    const void *from = kn_executor_data(executor, tensor);
    if (executor->backend->memory && bytes)
        return executor->backend->memory->read(executor->backend, to, from, bytes);
    if (bytes)
        memcpy(to, from, bytes);
    return KN_OK;
}

static int send_inputs(KnExecutor *executor)
{
    KnBackend *backend = executor->backend;
    void *room;
    if (executor->input_bytes == 0)
        return KN_OK;
    KN_TRY(backend->memory->stage(backend, executor->staging, &room));
    for (int i = 0; i < executor->graph->tensor_count; i++) {
        size_t at = executor->input_offsets[i], bytes = kn_tensor_bytes(executor->graph->tensors[i]);
        if (at != SIZE_MAX && bytes && executor->data[i])
            memcpy((unsigned char *)room + at, executor->data[i], bytes);
    }
    return backend->memory->send(backend, executor->staging, executor->inputs, executor->input_bytes);
}

void kn_executor_set_comms(KnExecutor *executor, KnComm *const *comms)
{
    executor->bindings += executor->comms != comms; /* what was recorded holds for the former alone */
    executor->comms = comms;
}

void kn_executor_parameters_changed(KnExecutor *executor)
{
    executor->prologue_stale = 1;
}

void kn_executor_time_nodes(KnExecutor *executor)
{
    if (!executor->seconds)
        executor->seconds = kn_alloc((size_t)executor->graph->node_count * sizeof *executor->seconds);
}

const double *kn_executor_node_seconds(const KnExecutor *executor)
{
    return executor->seconds;
}

int64_t kn_executor_replays(const KnExecutor *executor)
{
    return executor->replay.count;
}

static int run_node(KnExecutor *executor, const KnNode *node)
{
    KnCall call = {.node = node,
                   .comms = executor->comms,
                   .tickets = executor->tickets,
                   .workspace = executor->arena->memory + executor->plan.workspace_offsets[node->id],
                   .workspace_bytes = executor->plan.workspace_bytes[node->id]};
    for (int k = 0; k < node->input_count; k++) {
        if (!node->inputs[k])
            continue;
        call.inputs[k] = kn_executor_data(executor, node->inputs[k]);
        KN_ASSERT(call.inputs[k] || kn_tensor_elements(node->inputs[k]) == 0); /* an unbound leaf */
    }
    for (int k = 0; k < node->output_count; k++)
        call.outputs[k] = kn_executor_data(executor, node->outputs[k]);
    kn_activity_op(node->op->name);
    KN_TRY(executor->backend->run(executor->backend, &call));
    const KnTensor *received = node->output_count ? node->outputs[0] : node->inputs[0];
    executor->exchanges |= executor->tickets[received->id] != 0;
    return KN_OK;
}

static int is_left_out(const KnExecutor *executor, const KnNode *node)
{
    return node->prologue && !executor->prologue_stale;
}

static int run_nodes(void *context)
{
    KnExecutor *executor = context;
    for (int i = 0; i < executor->graph->node_count; i++)
        if (!is_left_out(executor, executor->graph->nodes[i]))
            KN_TRY(run_node(executor, executor->graph->nodes[i]));
    return KN_OK;
}

/* Of work that is queued: the host's clock would tell how long that takes. */
static int time_queued_nodes(KnExecutor *executor, const KnQueue *queue)
{
    const KnGraph *graph = executor->graph;
    int count = 0;
    KN_TRY(queue->mark(executor->backend, 0));
    for (int i = 0; i < graph->node_count; i++) {
        if (is_left_out(executor, graph->nodes[i]))
            continue;
        KN_TRY(run_node(executor, graph->nodes[i]));
        KN_TRY(queue->mark(executor->backend, ++count));
    }
    double *seconds = kn_alloc((size_t)(count + 1) * sizeof *seconds);
    int code = queue->seconds(executor->backend, count, seconds);
    for (int i = 0, k = 0; i < graph->node_count && code == KN_OK; i++)
        if (!is_left_out(executor, graph->nodes[i]))
            executor->seconds[i] += seconds[k++];
    free(seconds);
    return code;
}

static int time_nodes(KnExecutor *executor)
{
    if (executor->backend->queue)
        return time_queued_nodes(executor, executor->backend->queue);
    for (int i = 0; i < executor->graph->node_count; i++) {
        double start = kn_seconds_now();
        if (!is_left_out(executor, executor->graph->nodes[i]))
            KN_TRY(run_node(executor, executor->graph->nodes[i]));
        executor->seconds[i] += kn_seconds_now() - start;
    }
    return KN_OK;
}

/* Exchanges cannot be recorded: a communicator announces each of them to the other ranks. */
static int run_or_replay(KnExecutor *executor)
{
    if (executor->seconds)
        return time_nodes(executor);
    if (!executor->backend->queue || executor->exchanges)
        return run_nodes(executor);
    KnAddresses addresses = {executor->arena->memory, executor->bindings, executor->backend->twin_changes};
    return kn_replay_run(&executor->replay, executor->backend, &addresses, executor->prologue_stale, run_nodes,
                         executor);
}

int kn_executor_run(KnExecutor *executor)
{
    executor->prologue_stale |= executor->arena->holds != executor;
    executor->arena->holds = executor;
    KN_TRY(send_inputs(executor));
    KN_TRY(run_or_replay(executor));
    kn_activity_op(NULL);
    executor->prologue_stale = 0;
    executor->runs++;
    return KN_OK;
}

typedef struct ProfileRow {
    const KnNode *example;
    int nodes;
    double seconds;
    KnCost cost;
} ProfileRow;

static int slower_first(const void *left, const void *right)
{
    const ProfileRow *a = left, *b = right;
    return a->seconds < b->seconds ? 1 : a->seconds > b->seconds ? -1 : 0;
}

static int same_kind(const KnNode *a, const KnNode *b)
{
    if (a->op != b->op || a->prologue != b->prologue || a->backward != b->backward)
        return 0;
    return memcmp(a->attributes, b->attributes, KN_ATTRIBUTE_BYTES) == 0;
}

char *kn_executor_profile(const KnExecutor *executor)
{
    if (!executor->seconds)
        return kn_strdup("");
    ProfileRow *rows = kn_alloc((size_t)executor->graph->node_count * sizeof *rows);
    int count = 0;
    double total = 0;
    for (int i = 0; i < executor->graph->node_count; i++) {
        const KnNode *node = executor->graph->nodes[i];
        int at = 0;
        while (at < count && !same_kind(rows[at].example, node))
            at++;
        if (at == count)
            rows[count++].example = node;
        KnCost cost = {0};
        node->op->cost(node, &cost);
        rows[at].nodes++;
        rows[at].seconds += executor->seconds[i];
        rows[at].cost.matmul_flops += cost.matmul_flops + cost.attention_flops;
        rows[at].cost.bytes += cost.bytes;
        total += executor->seconds[i];
    }
    qsort(rows, (size_t)count, sizeof *rows, slower_first);
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    KN_ASSERT(out);
    double runs = executor->runs ? (double)executor->runs : 1;
    fprintf(out, "%10s %6s %10s %9s %6s  op (milliseconds a run)\n", "ms", "%", "GFLOP/s", "GB/s", "nodes");
    for (int i = 0; i < count; i++) {
        double seconds = rows[i].seconds > 0 ? rows[i].seconds : 1e-9;
        const KnTensor *output = rows[i].example->output_count ? rows[i].example->outputs[0] : NULL;
        fprintf(out, "%10.4f %6.2f %10.1f %9.2f %6d  %s%s%s [%lld,%lld]\n", 1e3 * seconds / runs,
                100 * rows[i].seconds / total, rows[i].cost.matmul_flops * runs / seconds * 1e-9,
                rows[i].cost.bytes * runs / seconds * 1e-9, rows[i].nodes, rows[i].example->op->name,
                rows[i].example->backward ? " backward" : "", rows[i].example->prologue ? " prologue" : "",
                output ? (long long)kn_tensor_rows(output) : 0, output ? (long long)kn_tensor_columns(output) : 0);
    }
    fprintf(out, "%10.4f total\n", 1e3 * total / runs);
    fclose(out);
    free(rows);
    return text;
}
