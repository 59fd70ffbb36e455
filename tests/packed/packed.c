#include "packed/packed.h"

#include "core/base/bf16.h"
#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/graph/twin.h"
#include "core/ops/ops.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LEAVES = 5, SPANS = 4, TAIL_ROWS = 160 };

static int64_t rows_of_leaf(const PackedCase *c, int leaf)
{
    return leaf == 1 || leaf == 2 ? c->keys : c->queries;
}

static size_t element_bytes(const PackedCase *c)
{
    return c->in_f32 ? 4 : 2;
}

/* ---- graphs ---- */

static KnTensor *leaf_of(KnGraph *graph, const PackedCase *c, int leaf)
{
    static const char *const names[LEAVES] = {"q", "k", "v", "grad", "spans"};
    int64_t shape[2] = {leaf == SPANS ? c->span_count : rows_of_leaf(c, leaf), leaf == SPANS ? 4 : c->heads * c->size};
    KnDtype dtype = leaf == SPANS ? KN_I32 : c->in_f32 ? KN_F32 : KN_BF16;
    return kn_leaf(graph, KN_ROLE_STATE, dtype, 2, shape, names[leaf]);
}

static KnTensor *attend(KnGraph *graph, const PackedCase *c, KnTensor *const *leaves)
{
    KnTensor *out =
        kn_attention(graph, leaves[0], leaves[1], leaves[2], leaves[SPANS], c->heads, 1 / sqrtf((float)c->size));
    if (!c->unpromised)
        kn_attention_promise_packed(out);
    return out;
}

static void differentiate(KnGraph *graph, const PackedCase *c, KnTensor *const *leaves, const KnNode *node,
                          KnTensor **gradients)
{
    KnTensor *all[LEAVES] = {NULL};
    if (c->partial) {
        kn_attention_backward(graph, leaves[0], leaves[1], leaves[2], leaves[SPANS], node->outputs[0], node->outputs[1],
                              leaves[3], c->heads, 1 / sqrtf((float)c->size), 1, all);
        kn_attention_promise_packed(all[0]);
    } else {
        node->op->gradient(graph, node, (KnTensor *[]){leaves[3], NULL}, (int[]){1, 1, 1, 0}, all);
    }
    memcpy(gradients, all, 3 * sizeof *gradients);
}

static int build(PackedRun *run, int which)
{
    const PackedCase *c = run->c;
    KnTensor *leaves[LEAVES], **kept = run->kept[which];
    KnGraph *graph = run->graphs[which] = kn_graph_create();
    for (int i = 0; i < LEAVES; i++)
        leaves[i] = leaf_of(graph, c, i);
    kept[PACKED_OUT] = attend(graph, c, leaves);
    kept[PACKED_LSE] = kept[PACKED_OUT]->producer->outputs[1];
    if (which == PACKED_BOTH)
        differentiate(graph, c, leaves, kept[PACKED_OUT]->producer, kept + PACKED_DQ);
    int count = which == PACKED_BOTH ? PACKED_RESULTS : PACKED_DQ;
    if (run->backend->lower)
        run->backend->lower(run->backend, graph);
    kn_graph_finish(graph, kept, count);
    for (int i = 0; i < graph->node_count; i++) {
        const KnNode *at = graph->nodes[i];
        if (at->op->id == KN_OP_ATTENTION || at->op->id == KN_OP_ATTENTION_BACKWARD)
            run->by_library[at->op->id == KN_OP_ATTENTION_BACKWARD] =
                ((const KnAttentionAttributes *)at->attributes)->library_bytes;
    }
    KN_TRY(kn_executor_create(&run->executors[which], graph, run->backend, kept, count));
    for (int i = 0; i < LEAVES; i++)
        kn_executor_bind(run->executors[which], leaves[i], run->leaves[i]);
    return KN_OK;
}

/* ---- values ---- */

static int is_in_span(const PackedCase *c, int of_keys, int64_t row)
{
    for (int i = 0; i < c->span_count; i++) {
        const int32_t *range = c->spans[i] + 2 * of_keys;
        if (row >= range[0] && row < range[0] + range[1])
            return 1;
    }
    return 0;
}

static float value_of(const PackedCase *c, int leaf, float random)
{
    static const float centers[] = {2, -5};
    return c->cold && leaf < 2 ? centers[leaf] + 0.1f * random : random;
}

/* Random rows that bfloat16 can represent, and after the last one, rows of NaN. */
static void fill(const PackedCase *c, int leaf, void *memory)
{
    int64_t rows = rows_of_leaf(c, leaf), width = c->heads * c->size;
    uint32_t seed = 100u + (uint32_t)leaf;
    for (int64_t row = 0; row < rows + TAIL_ROWS; row++) {
        int is_nan = row >= rows || (c->nan_outside && !is_in_span(c, leaf == 1 || leaf == 2, row));
        for (int64_t i = row * width; i < (row + 1) * width; i++) {
            seed = seed * 1664525u + 1013904223u;
            float value = value_of(c, leaf, 4 * ((float)(seed >> 8) / (float)(1 << 24)) - 1.5f);
            uint16_t half = kn_bf16_from_float(is_nan ? NAN : value);
            if (c->in_f32)
                ((float *)memory)[i] = kn_bf16_to_float(half);
            else
                ((uint16_t *)memory)[i] = half;
        }
    }
}

static int make_leaf(PackedRun *run, int leaf)
{
    const PackedCase *c = run->c;
    size_t bytes = leaf == SPANS
                       ? (size_t)c->span_count * sizeof *c->spans + 64
                       : (size_t)((rows_of_leaf(c, leaf) + TAIL_ROWS) * c->heads * c->size) * element_bytes(c);
    KN_TRY(kn_alloc_large(&run->leaves[leaf], bytes, "a leaf"));
    if (leaf == SPANS)
        memcpy(run->leaves[leaf], c->spans, (size_t)c->span_count * sizeof *c->spans);
    else
        fill(c, leaf, run->leaves[leaf]);
    if (!run->backend->memory)
        return KN_OK;
    KN_TRY(kn_twin_create(run->backend, run->leaves[leaf], bytes, "a leaf"));
    return kn_twin_push(run->backend, run->leaves[leaf], bytes);
}

int packed_create(PackedRun *run, const PackedCase *c, KnBackend *backend)
{
    *run = (PackedRun){.c = c, .backend = backend};
    for (int i = 0; i < LEAVES; i++)
        KN_TRY(make_leaf(run, i));
    KN_TRY(build(run, PACKED_FORWARD));
    return build(run, PACKED_BOTH);
}

void packed_destroy(PackedRun *run)
{
    for (int i = 0; i < PACKED_GRAPHS; i++) {
        kn_executor_destroy(run->executors[i]);
        if (run->graphs[i])
            kn_graph_destroy(run->graphs[i]);
    }
    for (int i = 0; i < LEAVES; i++)
        if (run->leaves[i]) {
            kn_twin_destroy(run->backend, run->leaves[i]);
            kn_free_large(run->leaves[i]);
        }
    for (int i = 0; i < PACKED_RESULTS; i++)
        free(run->results[i]);
    *run = (PackedRun){0};
}

/* ---- running ---- */

static uint64_t hash(uint64_t h, const unsigned char *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++)
        h = (h ^ bytes[i]) * 0x100000001b3u;
    return h;
}

int packed_poison(PackedRun *run)
{
    enum { PIECE = 32 << 20 };
    const KnPlan *plan = kn_executor_plan(run->executors[PACKED_BOTH]);
    const KnTensor *out = run->kept[PACKED_BOTH][PACKED_OUT];
    unsigned char *arena = (unsigned char *)kn_executor_data(run->executors[PACKED_BOTH], out) - plan->offsets[out->id];
    void *ones = kn_alloc(PIECE);
    int code = KN_OK;
    memset(ones, 0xff, PIECE);
    for (size_t at = 0; at < plan->arena_bytes && code == KN_OK; at += PIECE)
        code = run->backend->memory->write(run->backend, arena + at, ones,
                                           plan->arena_bytes - at < PIECE ? plan->arena_bytes - at : PIECE);
    free(ones);
    return code;
}

int packed_read(PackedRun *run, uint64_t *bits)
{
    uint64_t h = 0xcbf29ce484222325u;
    KN_TRY(kn_executor_run(run->executors[PACKED_BOTH]));
    for (int i = 0; i < PACKED_RESULTS; i++) {
        const KnTensor *tensor = run->kept[PACKED_BOTH][i];
        size_t count = packed_count(run->c, i);
        void *raw = kn_alloc(count * 4);
        int code = kn_executor_read(run->executors[PACKED_BOTH], tensor, raw);
        if (code < 0) {
            free(raw);
            return code;
        }
        if (bits)
            h = hash(h, raw, kn_tensor_bytes(tensor));
        free(run->results[i]);
        run->results[i] = kn_alloc(count * sizeof(float));
        for (size_t k = 0; k < count; k++)
            run->results[i][k] = tensor->dtype == KN_F32 ? ((float *)raw)[k] : kn_bf16_to_float(((uint16_t *)raw)[k]);
        free(raw);
    }
    if (bits)
        *bits = h;
    return KN_OK;
}

static int wait_for(PackedRun *run, int graph)
{
    const KnTensor *lse = run->kept[graph][PACKED_LSE];
    void *raw = kn_alloc(kn_tensor_bytes(lse));
    int code = kn_executor_read(run->executors[graph], lse, raw);
    free(raw);
    return code;
}

int packed_time(PackedRun *run, int graph, int runs, double *seconds)
{
    KN_TRY(kn_executor_run(run->executors[graph]));
    KN_TRY(wait_for(run, graph));
    double start = kn_seconds_now();
    for (int i = 0; i < runs; i++)
        KN_TRY(kn_executor_run(run->executors[graph]));
    KN_TRY(wait_for(run, graph));
    *seconds = (kn_seconds_now() - start) / runs;
    return KN_OK;
}

/* ---- comparing ---- */

size_t packed_count(const PackedCase *c, int result)
{
    if (result == PACKED_LSE)
        return (size_t)(c->heads * c->queries);
    return (size_t)((result == PACKED_DK || result == PACKED_DV ? c->keys : c->queries) * c->heads * c->size);
}

const char *packed_name(int result)
{
    static const char *const names[PACKED_RESULTS] = {"out", "lse", "dq", "dk", "dv"};
    return names[result];
}

double packed_error(const PackedRun *run, const PackedRun *truth, int result)
{
    double error2 = 0, truth2 = 0, largest = 0;
    for (size_t i = 0; i < packed_count(run->c, result); i++) {
        double x = run->results[result][i], y = truth->results[result][i], difference = x == y ? 0 : fabs(x - y);
        error2 += difference * difference;
        truth2 += y * y;
        if (!(difference <= largest) && largest == largest)
            largest = difference;
    }
    return result == PACKED_LSE ? largest : error2 > 0 || error2 != error2 ? sqrt(error2 / truth2) : 0;
}

double packed_flops(const PackedCase *c)
{
    double pairs = 0;
    for (int i = 0; i < c->span_count; i++)
        pairs += (double)c->spans[i][1] * c->spans[i][3];
    return 4 * pairs * (double)(c->heads * c->size);
}
