/* Attention to keys that come in parts: span tables cut to a part, and the results of two parts made one.
 *
 * Merged, each head of each row is the mean of both parts, weighed by its share of the sum of exponentials. It is a
 * pass over memory: the shares of a tile of rows are found a vector of rows at a time, then the tile is read and
 * written along its rows. */
#include "core/cpu/simd/kernel.h"
#include "core/cpu/simd/kernels.h"

#include <math.h>

enum { TILE_ROWS = 16, TILE_HEADS = 16 };

typedef struct Merge {
    int64_t rows, columns, heads;
    const void *a, *b;
    const float *lse_a, *lse_b;
    void *out;
    float *lse;
    int a_bf16, b_bf16, out_bf16;
} Merge;

typedef struct Shares {
    float a[TILE_HEADS][TILE_ROWS], b[TILE_HEADS][TILE_ROWS];
} Shares;

/* exp(lse - top), and exactly 0 of nothing. */
KN_V_INLINE KnV weight_of(KnV lse, KnV top)
{
    return kn_v_select(lse == kn_v_set(-INFINITY), (KnV){0}, kn_v_exp(lse - top));
}

/* Of rows [first, first + count) of one head; merges their log-sum-exp on the way. */
static void find_shares(const Merge *m, int64_t head, int64_t first, int64_t count, float *share_a, float *share_b)
{
    const int64_t start = head * m->rows + first;
    KN_VECTORS(0, count, at, lanes, {
        KnV a = kn_v_read(m->lse_a + start, at, lanes, 0), b = kn_v_read(m->lse_b + start, at, lanes, 0);
        KnV top = kn_v_max(a, b);
        KnVi nothing = top == kn_v_set(-INFINITY);
        KnV of_a = weight_of(a, top), of_b = weight_of(b, top), total = of_a + of_b;
        KnV share = 1.0f / kn_v_select(nothing, kn_v_set(1), total);
        kn_v_write(m->lse + start, at, top + kn_v_log(total), lanes, 0);
        kn_v_write(share_a, at, of_a * share, lanes, 0);
        kn_v_write(share_b, at, of_b * share, lanes, 0);
    });
}

/* Heads [head, head + heads) of rows [first, first + count). */
static void merge_tile(const Merge *m, int64_t first, int64_t count, int64_t head, int64_t heads)
{
    const int64_t size = m->columns / m->heads;
    Shares shares;
    for (int64_t h = 0; h < heads; h++)
        find_shares(m, head + h, first, count, shares.a[h], shares.b[h]);
    for (int64_t i = 0; i < count; i++)
        for (int64_t h = 0; h < heads; h++) {
            const int64_t start = (first + i) * m->columns + (head + h) * size;
            const KnV share_a = kn_v_set(shares.a[h][i]), share_b = kn_v_set(shares.b[h][i]);
            KN_VECTORS(start, start + size, at, lanes, {
                KnV of_b = kn_v_read(m->b, at, lanes, m->b_bf16) * share_b;
                KnV mean = kn_v_fma(kn_v_read(m->a, at, lanes, m->a_bf16), share_a, of_b);
                kn_v_write(m->out, at, mean, lanes, m->out_bf16);
            });
        }
}

static void merge_rows(const void *arguments, int64_t first, int64_t last)
{
    const Merge *m = arguments;
    for (int64_t row = first; row < last; row += TILE_ROWS) {
        const int64_t rows = last - row < TILE_ROWS ? last - row : TILE_ROWS;
        for (int64_t head = 0; head < m->heads; head += TILE_HEADS)
            merge_tile(m, row, rows, head, m->heads - head < TILE_HEADS ? m->heads - head : TILE_HEADS);
    }
}

static int run_attention_merge(const KnCall *call)
{
    const KnTensor *a = call->node->inputs[0], *lse = call->node->inputs[1];
    Merge m = {.rows = kn_tensor_rows(a),
               .columns = kn_tensor_columns(a),
               .heads = lse->shape[0],
               .a = call->inputs[0],
               .lse_a = call->inputs[1],
               .b = call->inputs[2],
               .lse_b = call->inputs[3],
               .out = call->outputs[0],
               .lse = call->outputs[1],
               .a_bf16 = kn_is_bf16(a),
               .b_bf16 = kn_is_bf16(call->node->inputs[2]),
               .out_bf16 = kn_is_bf16(call->node->outputs[0])};
    kn_parallel_for((KnLoop){.count = m.rows, .block = TILE_ROWS, .work = m.columns}, merge_rows, &m);
    return KN_OK;
}

/* One (start, length) cut to [first, first + count). */
static void cut_range(const int32_t *range, int64_t first, int64_t count, int32_t *cut)
{
    int64_t begin = range[0] > first ? range[0] : first, end = (int64_t)range[0] + range[1];
    end = end < first + count ? end : first + count;
    cut[0] = begin < end ? (int32_t)(begin - first) : 0;
    cut[1] = begin < end ? (int32_t)(end - begin) : 0;
}

static int run_span_window(const KnCall *call)
{
    const KnSpanWindowAttributes *p = (const KnSpanWindowAttributes *)call->node->attributes;
    const int32_t *spans = call->inputs[0];
    int32_t *out = call->outputs[0];
    for (int64_t s = 0; s < kn_tensor_rows(call->node->inputs[0]); s++) {
        const int32_t *span = spans + 4 * s;
        if (span[0] < 0 || span[1] < 0 || span[2] < 0 || span[3] < 0)
            return kn_fail(KN_EINPUT, "span_window: span %lld (%d, %d, %d, %d) has a negative number", (long long)s,
                           span[0], span[1], span[2], span[3]);
        cut_range(span, p->q_first, p->q_count, out + 4 * s);
        cut_range(span + 2, p->k_first, p->k_count, out + 4 * s + 2);
    }
    return KN_OK;
}

const KnCpuKernel KN_ISA_NAME(kn_cpu_attention_merge) = {run_attention_merge, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_span_window) = {run_span_window, NULL};
