/* A chain of square products, each of the former's result with one matrix whose rows have norm 1, so that values stay
 * as large as they were: what the numbers are changes a device's clock. */
#include "train/peak.h"

#include "core/base/bf16.h"
#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/random.h"
#include "core/cpu/matmul.h"
#include "core/cpu/parallel.h"
#include "core/graph/twin.h"
#include "core/ops/ops.h"

#include <math.h>
#include <string.h>

enum { SMALL = 256, LARGE = 8192, PRODUCTS = 8, RUNS = 5 };
static const double ENOUGH = 0.2;      /* seconds */
static const double LARGE_PAYS = 1e11; /* FLOP/s from which on large products take some tenths of a second */

typedef struct Chain {
    int64_t n;
    KnDtype dtype;
    KnGraph *graph;
    KnTensor *first, *factor, *last;
    KnExecutor *executor;
    void *values[2];
} Chain;

static void fill_rows(const void *arguments, int64_t first, int64_t last)
{
    const Chain *c = arguments;
    const float norm = 1 / sqrtf((float)c->n);
    float row[LARGE];
    for (int64_t i = first; i < last; i++) {
        kn_random_normal_fill(kn_random_key(1, KN_RANDOM_BENCH, 0, 1), (uint64_t)(i * c->n), row, c->n);
        for (int64_t j = 0; j < c->n; j++)
            row[j] *= norm;
        for (int k = 0; k < 2; k++)
            for (int64_t j = 0; j < c->n; j++)
                if (c->dtype == KN_F32)
                    ((float *)c->values[k])[i * c->n + j] = row[j];
                else
                    ((uint16_t *)c->values[k])[i * c->n + j] = kn_bf16_from_float(row[j]);
    }
}

static int place(Chain *c, KnBackend *backend, KnTensor *leaf, int k)
{
    size_t bytes = kn_tensor_bytes(leaf);
    KN_TRY(kn_twin_create(backend, c->values[k], bytes, "a matrix to measure products with"));
    kn_executor_bind(c->executor, leaf, c->values[k]);
    return kn_twin_push(backend, c->values[k], bytes);
}

static int set_up(Chain *c, KnBackend *backend)
{
    const int64_t shape[2] = {c->n, c->n};
    c->graph = kn_graph_create();
    c->first = c->last = kn_leaf(c->graph, KN_ROLE_STATE, c->dtype, 2, shape, "first");
    c->factor = kn_leaf(c->graph, KN_ROLE_STATE, c->dtype, 2, shape, "factor");
    for (int i = 0; i < PRODUCTS; i++)
        c->last = kn_matmul(c->graph, c->last, 0, c->factor, 1, NULL, c->dtype);
    kn_graph_finish(c->graph, &c->last, 1);
    for (int k = 0; k < 2; k++)
        KN_TRY(kn_alloc_large(&c->values[k], kn_tensor_bytes(c->factor), "a matrix to measure products with"));
    kn_parallel_for((KnLoop){.count = c->n, .block = 16, .work = c->n}, fill_rows, c);
    KN_TRY(kn_executor_create(&c->executor, c->graph, backend, &c->last, 1));
    KN_TRY(place(c, backend, c->first, 0));
    return place(c, backend, c->factor, 1);
}

static void tear_down(Chain *c, KnBackend *backend)
{
    kn_executor_destroy(c->executor);
    for (int k = 0; k < 2; k++) {
        kn_twin_destroy(backend, c->values[k]);
        kn_free_large(c->values[k]);
    }
    kn_graph_destroy(c->graph);
}

static int run_chain(Chain *c, KnBackend *backend, double *best)
{
    double began = kn_seconds_now();
    for (int i = -1; i < RUNS && (i < 1 || kn_seconds_now() < began + ENOUGH); i++) {
        double start = kn_seconds_now();
        KN_TRY(kn_executor_run(c->executor));
        KN_TRY(kn_twin_pull(backend, c->values[0], sizeof(float))); /* waits */
        double flops = 2.0 * PRODUCTS * pow((double)c->n, 3) / (kn_seconds_now() - start);
        *best = i >= 0 ? fmax(*best, flops) : *best;
    }
    return KN_OK;
}

static int measure(KnBackend *backend, KnDtype dtype, int64_t n, double *flops)
{
    Chain chain = {.n = n, .dtype = dtype};
    int code = set_up(&chain, backend);
    if (code == KN_OK)
        code = run_chain(&chain, backend, flops);
    tear_down(&chain, backend);
    return code;
}

int kn_measure_peak(KnBackend *backend, KnDtype dtype, double *flops)
{
    *flops = 0;
    if (!backend->memory) {
        *flops = kn_matmul_peak(dtype, 0.3) * 1e9;
        return KN_OK;
    }
    KN_TRY(measure(backend, dtype, SMALL, flops));
    return *flops > LARGE_PAYS ? measure(backend, dtype, LARGE, flops) : KN_OK;
}
