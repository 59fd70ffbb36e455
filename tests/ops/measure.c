/* The speed of every op: each node of a row's graph is run alone, again and again, with its operands in memory of
 * their own. The yardsticks are measured at the same moment: copying as many bytes as the node reads and writes (so a
 * node whose operands fit a cache is compared with copies in that cache), and the matrix product's peak. On one thread
 * it is that thread's own time that counts, so that a busy machine tells nearly the same as a quiet one. */
#include "ops/ops_test.h"

#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/cpu/backend.h"
#include "core/cpu/matmul.h"
#include "core/cpu/parallel.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now_seconds(void)
{
    struct timespec now;
    clock_gettime(kn_cpu_threads() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

typedef struct Job {
    int (*run)(void *arguments);
    void *arguments;
} Job;

/* Seconds of the fastest of several runs; the machine may be shared. */
static double fastest(Job job)
{
    double best = 1e9, end = now_seconds() + 0.06;
    job.run(job.arguments);
    for (int i = 0; i < 5 || now_seconds() < end; i++) {
        double start = now_seconds();
        job.run(job.arguments);
        double seconds = now_seconds() - start;
        best = seconds < best ? seconds : best;
        if (i >= 2 && now_seconds() > end + 0.5)
            break;
    }
    return best;
}

typedef struct Copying {
    char *to;
    const char *from;
} Copying;

static void copy_block(const void *arguments, int64_t first, int64_t last)
{
    const Copying *copying = arguments;
    memcpy(copying->to + first, copying->from + first, (size_t)(last - first));
}

typedef struct CopyJob {
    Copying copying;
    int64_t bytes;
} CopyJob;

static int copy_all(void *arguments)
{
    CopyJob *job = arguments;
    kn_parallel_for((KnLoop){.count = job->bytes, .block = 32768, .work = 1}, copy_block, &job->copying);
    return 0;
}

/* Bytes per second, read and written, of a copy that touches `bytes` in all. */
static double copy_speed(double bytes)
{
    void *memory;
    int64_t half = (int64_t)bytes / 2 + 64;
    if (kn_alloc_large(&memory, (size_t)(2 * half), "a copy") < 0)
        return 0;
    memset(memory, 1, (size_t)(2 * half));
    CopyJob job = {.copying = {.to = memory, .from = (char *)memory + half}, .bytes = half};
    double seconds = fastest((Job){copy_all, &job});
    kn_free_large(memory);
    return 2 * (double)half / seconds;
}

typedef struct NodeJob {
    KnBackend *backend;
    KnCall call;
} NodeJob;

static int run_node(void *arguments)
{
    NodeJob *job = arguments;
    return job->backend->run(job->backend, &job->call);
}

static void print_line(const KnNode *node, const char *dtype, double seconds)
{
    KnCost cost = {0};
    const KnTensor *shape = node->inputs[0];
    node->op->cost(node, &cost);
    double flops = cost.matmul_flops + cost.attention_flops;
    printf("%-24s %-4s [%5lld,%5lld] %9.1f us", node->op->name, dtype, (long long)kn_tensor_rows(shape),
           (long long)kn_tensor_columns(shape), 1e6 * seconds);
    if (flops > 0) {
        KnDtype dtype_of_product = shape->dtype == KN_BF16 || node->op->id == KN_OP_ORTHOGONALIZE ? KN_BF16 : KN_F32;
        double peak = kn_matmul_peak(dtype_of_product, 0.05);
        printf(" %8.1f GFLOP/s %4.0f%% of the product's peak\n", 1e-9 * flops / seconds,
               100e-9 * flops / seconds / peak);
    } else {
        double copy = copy_speed(cost.bytes);
        printf(" %8.2f GB/s    %4.0f%% of a copy\n", 1e-9 * cost.bytes / seconds, 100 * cost.bytes / seconds / copy);
    }
    fflush(stdout);
}

static void measure_dtype(const OpCase *row, KnDtype dtype, KnBackend *backend)
{
    OpTrial *trial = trial_create(row, dtype);
    KnTensor *output = row->build(trial, row->n), *gradients[OP_MOST_LEAVES];
    int first_loss_node = trial->graph->node_count, wanted_count = 0, last_loss_node;
    if (output && !(row->flags & OP_NO_GRADIENT)) {
        LeafKind data = {.role = KN_ROLE_INPUT, .dtype = KN_F32, .spread = 1};
        KnTensor *wanted[OP_MOST_LEAVES], *loss = output;
        for (int i = 0; i < trial->leaf_count; i++)
            if (trial->wanted[i])
                wanted[wanted_count++] = trial->leaves[i];
        if (output->dims) {
            int64_t rows = kn_tensor_rows(output);
            KnTensor *target = leaf(trial, data, output->dims, output->shape), *weight = leaf(trial, data, 1, &rows);
            loss = kn_masked_mse(trial->graph, output, target, weight);
        }
        last_loss_node = trial->graph->node_count + (output->dims ? 1 : 0); /* the loss's own backward node */
        kn_gradient(trial->graph, loss, wanted, wanted_count, gradients, kn_add);
    } else {
        last_loss_node = first_loss_node;
    }
    void **memory = kn_alloc((size_t)trial->graph->tensor_count * sizeof *memory);
    for (int i = 0; i < trial->graph->tensor_count; i++)
        KN_ASSERT(kn_alloc_large(&memory[i], kn_tensor_bytes(trial->graph->tensors[i]) + 64, "a tensor") == KN_OK);
    for (int i = 0; i < trial->leaf_count; i++)
        trial_store(trial->leaves[i], trial->values[i], memory[trial->leaves[i]->id]);
    for (int i = 0; i < trial->graph->node_count; i++) {
        const KnNode *node = trial->graph->nodes[i];
        NodeJob job = {.backend = backend, .call = {.node = node}};
        for (int k = 0; k < node->input_count; k++)
            job.call.inputs[k] = node->inputs[k] ? memory[node->inputs[k]->id] : NULL;
        for (int k = 0; k < node->output_count; k++)
            job.call.outputs[k] = memory[node->outputs[k]->id];
        size_t workspace = backend->workspace_bytes(backend, node);
        KN_ASSERT(kn_alloc_large(&job.call.workspace, workspace + 64, "a workspace") == KN_OK);
        run_node(&job); /* what comes later needs the values */
        if (i < first_loss_node || i >= last_loss_node)
            print_line(node, kn_dtype_name(dtype), fastest((Job){run_node, &job}));
        kn_free_large(job.call.workspace);
    }
    for (int i = 0; i < trial->graph->tensor_count; i++)
        kn_free_large(memory[i]);
    free(memory);
    trial_destroy(trial);
}

void op_measure(const OpCase *row, KnBackend *backend)
{
    measure_dtype(row, KN_F32, backend);
    if (!(row->flags & OP_ONE_DTYPE))
        measure_dtype(row, KN_BF16, backend);
}
