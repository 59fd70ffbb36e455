/* Attention's speed on the shapes that matter: short packed clips, cross-attention to captions, long clips.
 *
 *     bench_attention [--threads N] [--seconds S] [WORD]      only shapes with WORD in their line
 *
 * The best of many runs, as GFLOP/s (4 a query-key pair and column forward, 10 backward) and as a share of the matrix
 * product's peak measured between them. bench/peers/attention_torch.py prints the same lines for PyTorch. */
#include "core/base/bf16.h"
#include "core/base/memory.h"
#include "core/cpu/backend.h"
#include "core/cpu/isa.h"
#include "core/cpu/matmul.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct Shape {
    const char *name;
    int64_t clips, queries, keys, heads, head_size; /* queries and keys of one clip */
} Shape;

static const Shape shapes[] = {
    {"16 clips of 64, 2 x 64", 16, 64, 64, 2, 64},        {"16 clips of 64 to 10, 2 x 64", 16, 64, 10, 2, 64},
    {"2 clips of 2048, 6 x 64", 2, 2048, 2048, 6, 64},    {"1 clip of 8192, 6 x 64", 1, 8192, 8192, 6, 64},
    {"1 clip of 4096, 12 x 128", 1, 4096, 4096, 12, 128},
};

typedef struct Problem {
    KnGraph *graph;
    KnNode *forward, *backward;
    KnCall calls[2];
    double pairs;
} Problem;

static double seconds_per_shape = 0.5;

static void *memory_of(size_t bytes)
{
    void *memory = NULL;
    if (kn_alloc_large(&memory, bytes + 64, "the benchmark") != 0)
        abort();
    return memory;
}

static void *filled(const KnTensor *tensor, uint32_t seed)
{
    int64_t count = kn_tensor_elements(tensor);
    char *data = memory_of(kn_tensor_bytes(tensor));
    for (int64_t i = 0; i < count; i++) {
        float value = 0; /* a sum of uniforms: about normal */
        for (int k = 0; k < 4; k++) {
            seed = seed * 1664525u + 1013904223u;
            value += (float)(seed >> 8) / (float)(1 << 23) - 1;
        }
        if (tensor->dtype == KN_F32)
            ((float *)(void *)data)[i] = value;
        else
            ((uint16_t *)(void *)data)[i] = kn_bf16_from_float(value);
    }
    return data;
}

static void *spans_of(const Shape *shape)
{
    int32_t *spans = memory_of((size_t)shape->clips * 4 * sizeof *spans);
    for (int64_t i = 0; i < shape->clips; i++) {
        int32_t span[4] = {(int32_t)(i * shape->queries), (int32_t)shape->queries, (int32_t)(i * shape->keys),
                           (int32_t)shape->keys};
        memcpy(spans + 4 * i, span, sizeof span);
    }
    return spans;
}

static void bind(KnCall *call, const KnNode *node, void *const *inputs)
{
    call->node = node;
    for (int i = 0; i < node->input_count; i++)
        call->inputs[i] = inputs[i];
    for (int i = 0; i < node->output_count; i++)
        call->outputs[i] = memory_of(kn_tensor_bytes(node->outputs[i]));
    call->workspace_bytes = kn_cpu_backend()->workspace_bytes(kn_cpu_backend(), node);
    call->workspace = memory_of(call->workspace_bytes);
}

static Problem set_up(const Shape *s, KnDtype dtype)
{
    Problem p = {.graph = kn_graph_create(), .pairs = (double)(s->clips * s->queries * s->keys)};
    int64_t q_shape[2] = {s->clips * s->queries, s->heads * s->head_size};
    int64_t k_shape[2] = {s->clips * s->keys, s->heads * s->head_size};
    KnTensor *q = kn_leaf(p.graph, KN_ROLE_INPUT, dtype, 2, q_shape, "q");
    KnTensor *k = kn_leaf(p.graph, KN_ROLE_INPUT, dtype, 2, k_shape, "k");
    KnTensor *v = kn_leaf(p.graph, KN_ROLE_INPUT, dtype, 2, k_shape, "v");
    KnTensor *spans = kn_leaf(p.graph, KN_ROLE_INPUT, KN_I32, 2, (int64_t[]){s->clips, 4}, "spans");
    KnTensor *grad = kn_leaf(p.graph, KN_ROLE_INPUT, dtype, 2, q_shape, "grad"), *gradients[4];
    KnTensor *out = kn_attention(p.graph, q, k, v, spans, s->heads, 1 / sqrtf((float)s->head_size));
    p.forward = out->producer;
    p.forward->op->gradient(p.graph, p.forward, (KnTensor *[]){grad, NULL}, (int[]){1, 1, 1, 0}, gradients);
    p.backward = gradients[0]->producer;
    void *in[7] = {filled(q, 1), filled(k, 2), filled(v, 3), spans_of(s)};
    bind(&p.calls[0], p.forward, in);
    in[4] = p.calls[0].outputs[0];
    in[5] = p.calls[0].outputs[1];
    in[6] = filled(grad, 4);
    bind(&p.calls[1], p.backward, in);
    return p;
}

static void tear_down(Problem *p)
{
    for (int i = 0; i < 4; i++)
        kn_free_large(p->calls[1].inputs[i]);
    kn_free_large(p->calls[1].inputs[6]);
    for (int c = 0; c < 2; c++) {
        for (int i = 0; i < p->calls[c].node->output_count; i++)
            kn_free_large(p->calls[c].outputs[i]);
        kn_free_large(p->calls[c].workspace);
    }
    kn_graph_destroy(p->graph);
}

static void run(const KnCall *call)
{
    if (kn_cpu_backend()->run(kn_cpu_backend(), call) != 0)
        abort();
}

static double seconds_of(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* One thread's own time: others on the machine disturb it less. Several threads': the wall's. */
static double seconds_now(void)
{
    return seconds_of(kn_cpu_threads() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC);
}

static void measure(const Shape *shape, KnDtype dtype)
{
    Problem p = set_up(shape, dtype);
    double best[2] = {1e30, 1e30}, peak = 0, end = seconds_of(CLOCK_MONOTONIC) + seconds_per_shape;
    run(&p.calls[0]);
    run(&p.calls[1]);
    do {
        double now = kn_matmul_peak(dtype, 0.02), inner_end = seconds_of(CLOCK_MONOTONIC) + 0.05;
        peak = now > peak ? now : peak;
        do
            for (int i = 0; i < 2; i++) {
                double start = seconds_now();
                run(&p.calls[i]);
                double took = seconds_now() - start;
                best[i] = took < best[i] ? took : best[i];
            }
        while (seconds_of(CLOCK_MONOTONIC) < inner_end);
    } while (seconds_of(CLOCK_MONOTONIC) < end);
    double forward = 4e-9 * p.pairs * (double)(shape->heads * shape->head_size) / best[0];
    double backward = 10e-9 * p.pairs * (double)(shape->heads * shape->head_size) / best[1];
    printf("%-30s %-4s forward %9.3f ms %7.1f GFLOP/s %3.0f%%   backward %9.3f ms %7.1f GFLOP/s %3.0f%%\n", shape->name,
           kn_dtype_name(dtype), 1e3 * best[0], forward, 100 * forward / peak, 1e3 * best[1], backward,
           100 * backward / peak);
    fflush(stdout);
    tear_down(&p);
}

int main(int argc, char **argv)
{
    const char *word = "";
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--threads") && i + 1 < argc) {
            kn_cpu_set_threads(atoi(argv[++i]));
        } else if (!strcmp(argv[i], "--seconds") && i + 1 < argc) {
            seconds_per_shape = atof(argv[++i]);
        } else {
            word = argv[i];
        }
    }
    printf("%s, %d threads; the product's peak: f32 %.0f, bf16 %.0f GFLOP/s\n", kn_cpu_isa_name(kn_cpu_isa()),
           kn_cpu_threads(), kn_matmul_peak(KN_F32, 0.1), kn_matmul_peak(KN_BF16, 0.1));
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int bf16 = 0; bf16 < 2; bf16++) {
            char line[96];
            snprintf(line, sizeof line, "%s %s", shapes[i].name, bf16 ? "bf16" : "f32");
            if (strstr(line, word))
                measure(&shapes[i], bf16 ? KN_BF16 : KN_F32);
        }
    return 0;
}
