/* Attention over span tables, forward: tiled with a running maximum, never a whole matrix of scores.
 *
 * A unit of work is (span, head, chunk of queries); a block of keys is packed once for a chunk, and both products of a
 * tile are core/cpu/matmul.h's, so that every instruction set that it knows serves here. Units and blocks have fixed
 * sizes: bits do not depend on threads. Source: Dao, "FlashAttention-2", 2023, algorithm 1. */
#include "core/cpu/simd/attention.h"

#include "core/base/error.h"
#include "core/cpu/simd/kernel.h"

#include <math.h>
#include <omp.h>
#include <string.h>

typedef struct Scratch {
    char *packed_k, *packed_v, *probabilities;
    float *scores, *sums, *maxima, *totals;
    void *matmul;
} Scratch;

int KN_ISA_NAME(kn_attention_check)(const KnAttentionCall *c)
{
    for (int64_t s = 0; s < c->span_count; s++) {
        const int32_t *span = c->spans + 4 * s;
        if (span[0] < 0 || span[1] < 0 || span[2] < 0 || span[3] < 0 || (int64_t)span[0] + span[1] > c->query_rows ||
            (int64_t)span[2] + span[3] > c->key_rows)
            return kn_fail(KN_EINPUT, "attention: span %lld (%d, %d, %d, %d) leaves the %lld queries or %lld keys",
                           (long long)s, span[0], span[1], span[2], span[3], (long long)c->query_rows,
                           (long long)c->key_rows);
    }
    return KN_OK;
}

/* scores [queries, keys] = scale q k^T */
static KnMatmul scores_product(const KnAttentionCall *c, int64_t queries, int64_t keys)
{
    return (KnMatmul){.m = queries,
                      .n = keys,
                      .k = c->head_size,
                      .type = c->dtype,
                      .lda = c->width,
                      .b_form = KN_PACKED,
                      .ldc = KN_ATTENTION_KEYS,
                      .c_type = KN_F32,
                      .alpha = c->scale};
}

/* sums [queries, head] += probabilities v */
static KnMatmul values_product(const KnAttentionCall *c, int64_t queries, int64_t keys)
{
    return (KnMatmul){.m = queries,
                      .n = c->head_size,
                      .k = keys,
                      .type = c->dtype,
                      .lda = KN_ATTENTION_KEYS,
                      .b_form = KN_PACKED,
                      .ldc = c->head_size,
                      .c_type = KN_F32,
                      .accumulate = 1};
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static Scratch lay_out(const KnAttentionCall *c, char *start, size_t *bytes)
{
    char *at = start;
    Scratch s;
    size_t tile = (size_t)KN_ATTENTION_QUERIES * KN_ATTENTION_KEYS;
    KnMatmul scores = scores_product(c, KN_ATTENTION_QUERIES, KN_ATTENTION_KEYS);
    KnMatmul values = values_product(c, KN_ATTENTION_QUERIES, KN_ATTENTION_KEYS);
    s.packed_k = kn_attention_take(&at, kn_matmul_packed_bytes(c->head_size, KN_ATTENTION_KEYS, c->dtype));
    s.packed_v = kn_attention_take(&at, kn_matmul_packed_bytes(KN_ATTENTION_KEYS, c->head_size, c->dtype));
    s.scores = kn_attention_take(&at, tile * sizeof(float));
    s.probabilities = kn_attention_take(&at, tile * c->element_bytes);
    s.sums = kn_attention_take(&at, (size_t)(KN_ATTENTION_CHUNK * c->head_size) * sizeof(float));
    s.maxima = kn_attention_take(&at, KN_ATTENTION_CHUNK * sizeof(float));
    s.totals = kn_attention_take(&at, KN_ATTENTION_CHUNK * sizeof(float));
    s.matmul = kn_attention_take(&at, larger(kn_matmul_workspace_bytes(&scores), kn_matmul_workspace_bytes(&values)));
    *bytes = (size_t)(at - start);
    return s;
}

/* One row of scores: new maximum, probabilities, and the old sums scaled to it. */
static void softmax_row(const KnAttentionCall *c, const Scratch *s, int64_t row, int64_t tile_row, int64_t keys)
{
    float *scores = s->scores + tile_row * KN_ATTENTION_KEYS, *sums = s->sums + row * c->head_size;
    void *out = s->probabilities + (size_t)(tile_row * KN_ATTENTION_KEYS) * c->element_bytes;
    KnV top = kn_v_set(s->maxima[row]), total = {0};
    KN_VECTORS(0, keys, at, lanes, {
        KnV v = kn_v_read(scores, at, lanes, 0);
        if (lanes < KN_LANES)
            for (int i = lanes; i < KN_LANES; i++)
                v[i] = s->maxima[row];
        top = kn_v_select(v > top, v, top);
    });
    float maximum = top[0];
    for (int i = 1; i < KN_LANES; i++)
        maximum = top[i] > maximum ? top[i] : maximum;
    int bf16 = c->dtype == KN_BF16;
    KN_VECTORS(0, keys, at, lanes, {
        KnV p = kn_v_keep(kn_v_exp(kn_v_read(scores, at, lanes, 0) - maximum), lanes);
        total += p;
        kn_v_write(out, at, p, lanes, bf16);
    });
    float shrink = s->maxima[row] == -INFINITY ? 0 : kn_v_exp(kn_v_set(s->maxima[row] - maximum))[0];
    s->totals[row] = s->totals[row] * shrink + kn_v_total(total);
    s->maxima[row] = maximum;
    if (shrink != 1)
        KN_VECTORS(0, c->head_size, at, lanes,
                   { kn_v_write(sums, at, kn_v_read(sums, at, lanes, 0) * shrink, lanes, 0); });
}

static void attend_block(const KnAttentionCall *c, const Scratch *s, int64_t first_query, int64_t head, int64_t row,
                         int64_t queries, int64_t keys)
{
    KnMatmul scores = scores_product(c, queries, keys);
    scores.a = kn_attention_at(c, c->q, first_query + row, head);
    scores.b = s->packed_k;
    scores.c = s->scores;
    kn_matmul_serial(&scores, s->matmul);
    for (int64_t i = 0; i < queries; i++)
        softmax_row(c, s, row + i, i, keys);
    KnMatmul values = values_product(c, queries, keys);
    values.a = s->probabilities;
    values.b = s->packed_v;
    values.c = s->sums + row * c->head_size;
    kn_matmul_serial(&values, s->matmul);
}

static void pack_keys(const KnAttentionCall *c, const Scratch *s, int64_t first, int64_t keys, int64_t head)
{
    kn_matmul_pack_serial(&(KnMatmulPack){.k = c->head_size,
                                          .n = keys,
                                          .type = c->dtype,
                                          .b = kn_attention_at(c, c->k, first, head),
                                          .b_type = c->dtype,
                                          .ldb = c->width,
                                          .b_form = KN_TRANSPOSED,
                                          .packed = s->packed_k});
    kn_matmul_pack_serial(&(KnMatmulPack){.k = keys,
                                          .n = c->head_size,
                                          .type = c->dtype,
                                          .b = kn_attention_at(c, c->v, first, head),
                                          .b_type = c->dtype,
                                          .ldb = c->width,
                                          .b_form = KN_PLAIN,
                                          .packed = s->packed_v});
}

static void write_rows(const KnAttentionCall *c, const Scratch *s, int64_t first_query, int64_t rows, int64_t head,
                       char *out, float *lse)
{
    int bf16 = c->dtype == KN_BF16;
    for (int64_t row = 0; row < rows; row++) {
        const float *sums = s->sums + row * c->head_size;
        char *to = out + (size_t)((first_query + row) * c->width + head * c->head_size) * c->element_bytes;
        float scale = s->totals[row] > 0 ? 1 / s->totals[row] : 0;
        KN_VECTORS(0, c->head_size, at, lanes,
                   { kn_v_write(to, at, kn_v_read(sums, at, lanes, 0) * scale, lanes, bf16); });
        lse[head * c->query_rows + first_query + row] =
            s->totals[row] > 0 ? s->maxima[row] + logf(s->totals[row]) : -INFINITY;
    }
}

static void attend_chunk(const KnAttentionCall *c, const Scratch *s, const int32_t *span, int64_t head, int64_t first,
                         char *out, float *lse)
{
    int64_t rows = span[1] - first < KN_ATTENTION_CHUNK ? span[1] - first : KN_ATTENTION_CHUNK;
    int64_t first_query = span[0] + first;
    memset(s->sums, 0, (size_t)(rows * c->head_size) * sizeof(float));
    for (int64_t i = 0; i < rows; i++) {
        s->maxima[i] = -INFINITY;
        s->totals[i] = 0;
    }
    for (int64_t key = 0; key < span[3]; key += KN_ATTENTION_KEYS) {
        int64_t keys = span[3] - key < KN_ATTENTION_KEYS ? span[3] - key : KN_ATTENTION_KEYS;
        pack_keys(c, s, span[2] + key, keys, head);
        for (int64_t row = 0; row < rows; row += KN_ATTENTION_QUERIES)
            attend_block(c, s, first_query, head, row,
                         rows - row < KN_ATTENTION_QUERIES ? rows - row : KN_ATTENTION_QUERIES, keys);
    }
    write_rows(c, s, first_query, rows, head, out, lse);
}

static size_t attention_bytes(const KnNode *node)
{
    KnAttentionCall c = kn_attention_call(node, NULL);
    size_t bytes = 0;
    lay_out(&c, NULL, &bytes);
    return bytes * (size_t)kn_cpu_threads();
}

static int64_t chunks_of(const int32_t *span)
{
    return (span[1] + KN_ATTENTION_CHUNK - 1) / KN_ATTENTION_CHUNK;
}

static int run_attention(const KnCall *call)
{
    KnAttentionCall c = kn_attention_call(call->node, call->inputs);
    char *out = call->outputs[0];
    float *lse = call->outputs[1];
    KN_TRY(KN_ISA_NAME(kn_attention_check)(&c));
    memset(out, 0, (size_t)(c.query_rows * c.width) * c.element_bytes);
    for (int64_t i = 0; i < c.heads * c.query_rows; i++)
        lse[i] = -INFINITY;
    int64_t most_chunks = 0;
    for (int64_t s = 0; s < c.span_count; s++)
        most_chunks = chunks_of(c.spans + 4 * s) > most_chunks ? chunks_of(c.spans + 4 * s) : most_chunks;
    size_t each = 0;
    lay_out(&c, NULL, &each);
#pragma omp parallel num_threads(kn_attention_team(call->workspace_bytes, each))
    {
        size_t bytes = each;
        Scratch scratch = lay_out(&c, (char *)call->workspace + bytes * (size_t)omp_get_thread_num(), &bytes);
#pragma omp for schedule(dynamic) collapse(3)
        for (int64_t s = 0; s < c.span_count; s++)
            for (int64_t head = 0; head < c.heads; head++)
                for (int64_t chunk = 0; chunk < most_chunks; chunk++)
                    if (chunk < chunks_of(c.spans + 4 * s))
                        attend_chunk(&c, &scratch, c.spans + 4 * s, head, chunk * KN_ATTENTION_CHUNK, out, lse);
    }
    return KN_OK;
}

const KnCpuKernel KN_ISA_NAME(kn_cpu_attention) = {run_attention, attention_bytes};
