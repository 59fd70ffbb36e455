/* Attention over span tables, forward: tiled with a running maximum, never a whole matrix of scores.
 *
 * Everything is computed transposed: scores [keys, queries] = K Q^T and sums [head size, queries] = V^T P. K is then
 * read in place, queries are packed once for all keys, maxima and totals of 16 queries are the lanes of a vector, and
 * the pass over the scores writes probabilities straight into the panels that the second product reads. A unit of work
 * is (span, head, chunk of queries). Units and blocks have fixed sizes, counted from the span's first row: a span's
 * bits depend neither on threads nor on other spans. Source: Dao, "FlashAttention-2", 2023, algorithm 1. */
#include "core/cpu/simd/attention.h"

#include "core/cpu/team.h"

enum {
    QUERIES = 96, /* of a tile of scores: whole tiles of every kernel */
    KEYS = 128,
    CHUNK = 4 * QUERIES /* queries of a unit, for which a block of keys is read and packed */
};

/* How far above the reference value of the running softmax (in powers of two) a score may come before all sums are
 * scaled to a new one; the result is the same up to rounding, for probabilities are floating point. */
static const float margin = 8;

typedef struct Forward {
    KnAttentionCall c;
    char *out;
    float *lse;
    int64_t *first_unit;  /* [spans + 1] */
    float scale2;         /* scores to powers of two */
    char *scratch;        /* for each thread ... */
    size_t scratch_bytes; /* ... so much */
} Forward;

typedef struct Scratch {
    char *q, *v, *probabilities;
    float *scores;                     /* [KEYS, QUERIES] */
    float *sums;                       /* a [head size, QUERIES] for each block of the chunk */
    float *tops, *totals;              /* [CHUNK] reference value, sum of probabilities */
    int64_t q_panel, v_panel, p_panel; /* bytes */
} Scratch;

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static Scratch lay_out(const KnAttentionCall *c, char *start, size_t *bytes)
{
    char *at = start;
    Scratch s = {.q_panel = kn_attention_panel_bytes(c, c->head_size),
                 .v_panel = kn_attention_panel_bytes(c, KEYS),
                 .p_panel = kn_attention_panel_bytes(c, KEYS) + 64}; /* not a power of two: cache sets */
    s.q = kn_attention_take(&at, s.q_panel * (CHUNK / KN_PANEL));
    s.v = kn_attention_take(&at, s.v_panel * kn_attention_panels(c->head_size));
    s.probabilities = kn_attention_take(&at, s.p_panel * (QUERIES / KN_PANEL));
    s.scores = kn_attention_take(&at, KEYS * QUERIES * (int64_t)sizeof(float));
    s.sums = kn_attention_take(&at, CHUNK * c->head_size * (int64_t)sizeof(float));
    s.tops = kn_attention_take(&at, CHUNK * (int64_t)sizeof(float));
    s.totals = kn_attention_take(&at, CHUNK * (int64_t)sizeof(float));
    *bytes = (size_t)(at - start);
    return s;
}

/* --- The pass over a tile of scores ------------------------------------------------------------------------------- */

typedef struct Tile {
    const Forward *f;
    const Scratch *s;
    int64_t queries, keys;
    float *tops, *totals, *sums; /* of its queries */
    int first;                   /* nothing came before */
} Tile;

/* A vector of queries: raises the reference value where scores rose too far above it. */
KN_V_INLINE KnV raise_tops(const Tile *t, int64_t column)
{
    const float *scores = t->s->scores + column;
    KnV top[4];
    for (int i = 0; i < 4; i++)
        top[i] = kn_v_load(scores);
    int64_t key = 0;
    for (; key + 4 <= t->keys; key += 4)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++)
            top[i] = kn_v_max(kn_v_load(scores + (key + i) * QUERIES), top[i]);
    for (; key < t->keys; key++)
        top[0] = kn_v_max(kn_v_load(scores + key * QUERIES), top[0]);
    KnV found = kn_v_max(kn_v_max(top[0], top[1]), kn_v_max(top[2], top[3])) * t->f->scale2;
    if (t->first) {
        kn_v_store(t->tops + column, found);
        kn_v_store(t->totals + column, (KnV){0});
        return found;
    }
    KnV old = kn_v_load(t->tops + column);
    KnVi above = found > old + margin;
    int any = 0;
    for (int i = 0; i < KN_LANES; i++)
        any |= above[i];
    if (!any)
        return old;
    KnV top_now = kn_v_select(above, found, old), shrink = kn_v_exp2(old - top_now);
    kn_v_store(t->tops + column, top_now);
    kn_v_store(t->totals + column, kn_v_load(t->totals + column) * shrink);
    for (int64_t i = 0; i < t->f->c.head_size; i++)
        kn_v_store(t->sums + i * QUERIES + column, kn_v_load(t->sums + i * QUERIES + column) * shrink);
    return top_now;
}

/* Probabilities of a vector of queries, into their panel; totals in float32, before rounding. */
KN_V_INLINE void find_probabilities(const Tile *t, int64_t column, KnV top, int bf16)
{
    const float *scores = t->s->scores + column;
    const KnV scale = kn_v_set(t->f->scale2);
    char *out = t->s->probabilities + column / KN_PANEL * t->s->p_panel + column % KN_PANEL * 4;
    KnV even = {0}, odd = {0};
    int64_t key = 0;
    for (; key + 2 <= t->keys; key += 2) {
        KnV p0 = kn_v_exp2(kn_v_fma(kn_v_load(scores + key * QUERIES), scale, -top));
        KnV p1 = kn_v_exp2(kn_v_fma(kn_v_load(scores + (key + 1) * QUERIES), scale, -top));
        even += p0;
        odd += p1;
        if (bf16) {
            kn_v_store(out + key / 2 * 64, kn_v_bf16_pairs(p0, p1));
        } else {
            kn_v_store(out + key * 64, p0);
            kn_v_store(out + key * 64 + 64, p1);
        }
    }
    if (key < t->keys) {
        KnV p0 = kn_v_exp2(kn_v_fma(kn_v_load(scores + key * QUERIES), scale, -top));
        even += p0;
        kn_v_store(out + (bf16 ? key / 2 : key) * 64, bf16 ? kn_v_bf16_pairs(p0, (KnV){0}) : p0);
        key++;
    }
    if (bf16)
        for (key = (key + 1) / 2; key % 16; key++)
            kn_v_store(out + key * 64, (KnV){0});
    kn_v_store(t->totals + column, kn_v_load(t->totals + column) + (even + odd));
}

static void softmax_tile(const Tile *t)
{
    for (int64_t column = 0; column < t->queries; column += KN_LANES)
        if (t->f->c.dtype == KN_BF16)
            find_probabilities(t, column, raise_tops(t, column), 1);
        else
            find_probabilities(t, column, raise_tops(t, column), 0);
}

/* --- A unit ------------------------------------------------------------------------------------------------------- */

static void attend_tile(const Tile *t, const char *k, const char *q)
{
    const KnAttentionCall *c = &t->f->c;
    const Scratch *s = t->s;
    c->kernel->block(&(KnMatmulBlock){.rows = t->keys,
                                      .columns = t->queries,
                                      .k = c->head_size,
                                      .a = k,
                                      .a_stride = c->width * c->element_bytes,
                                      .b = q,
                                      .b_stride = s->q_panel,
                                      .sums = s->scores,
                                      .ld_sums = QUERIES,
                                      .alpha = 1});
    softmax_tile(t);
    c->kernel->block(&(KnMatmulBlock){.rows = c->head_size,
                                      .columns = t->queries,
                                      .k = t->keys,
                                      .a = s->v,
                                      .a_stride = s->v_panel,
                                      .a_packed = 1,
                                      .b = s->probabilities,
                                      .b_stride = s->p_panel,
                                      .start = t->first ? NULL : t->sums,
                                      .ld_start = QUERIES,
                                      .sums = t->sums,
                                      .ld_sums = QUERIES,
                                      .alpha = 1});
}

static void write_block(const Forward *f, const Tile *t, int64_t query, int64_t head)
{
    const KnAttentionCall *c = &f->c;
    float *lse = f->lse + head * c->query_rows + query;
    KN_VECTORS(0, t->queries, at, lanes, {
        KnV total = kn_v_load(t->totals + at), top = kn_v_load(t->tops + at);
        kn_v_write(lse, at, kn_v_fma(top, kn_v_set(0.6931471805599453f), kn_v_log(total)), lanes, 0);
        kn_v_store(t->totals + at, 1.0f / total);
    });
    KN_ISA_NAME(kn_attention_turn)
    (c, t->sums, QUERIES, t->queries, t->totals, 1, kn_attention_at(c, f->out, query, head));
}

static void attend_chunk(const Forward *f, const Scratch *s, const int32_t *span, int64_t head, int64_t first)
{
    const KnAttentionCall *c = &f->c;
    const int64_t rows = min64(span[1] - first, CHUNK), query = span[0] + first;
    kn_attention_pack(c, c->q, query, rows, head, KN_ROWS_ARE_COLUMNS, s->q, s->q_panel);
    for (int64_t key = 0; key < span[3]; key += KEYS) {
        Tile t = {.f = f, .s = s, .keys = min64(span[3] - key, KEYS), .first = key == 0};
        kn_attention_pack(c, c->v, span[2] + key, t.keys, head, KN_ROWS_ARE_K_OF_A, s->v, s->v_panel);
        for (int64_t row = 0; row < rows; row += QUERIES) {
            t.queries = min64(rows - row, QUERIES);
            t.tops = s->tops + row;
            t.totals = s->totals + row;
            t.sums = s->sums + row * c->head_size;
            attend_tile(&t, kn_attention_at(c, c->k, span[2] + key, head), s->q + row / KN_PANEL * s->q_panel);
            if (key + KEYS >= span[3])
                write_block(f, &t, query + row, head);
        }
    }
}

/* --- The call ----------------------------------------------------------------------------------------------------- */

static Forward describe(const KnNode *node, void *const *inputs, char *workspace, size_t *bytes)
{
    Forward f = {.c = kn_attention_call(node, inputs)};
    char *at = workspace;
    f.first_unit = kn_attention_take(&at, (f.c.span_count + 1) * (int64_t)sizeof *f.first_unit);
    f.scale2 = f.c.scale * 1.4426950408889634f;
    *bytes = (size_t)(at - workspace);
    return f;
}

static size_t attention_bytes(const KnNode *node)
{
    size_t shared = 0, each = 0;
    Forward f = describe(node, NULL, NULL, &shared);
    lay_out(&f.c, NULL, &each);
    return shared + each * (size_t)kn_cpu_threads();
}

static void run_unit(void *argument, int64_t unit, int slot)
{
    const Forward *f = argument;
    size_t bytes = 0;
    Scratch scratch = lay_out(&f->c, f->scratch + f->scratch_bytes * (size_t)slot, &bytes);
    int64_t low = 0, high = f->c.span_count; /* the span: first_unit[low] <= unit < first_unit[high] */
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (f->first_unit[middle] <= unit)
            low = middle;
        else
            high = middle;
    }
    unit -= f->first_unit[low];
    attend_chunk(f, &scratch, f->c.spans + 4 * low, unit % f->c.heads, unit / f->c.heads * CHUNK);
}

static int run_attention(const KnCall *call)
{
    size_t shared = 0;
    Forward f = describe(call->node, call->inputs, call->workspace, &shared);
    const KnAttentionCall *c = &f.c;
    double flops = 0;
    f.out = call->outputs[0];
    f.lse = call->outputs[1];
    KN_TRY(KN_ISA_NAME(kn_attention_check)(c));
    KN_ISA_NAME(kn_attention_clear)(c, f.out, f.lse);
    f.first_unit[0] = 0;
    for (int64_t s = 0; s < c->span_count; s++) {
        const int32_t *span = c->spans + 4 * s;
        int64_t chunks = span[3] > 0 ? (span[1] + CHUNK - 1) / CHUNK : 0;
        f.first_unit[s + 1] = f.first_unit[s] + chunks * c->heads;
        flops += 4.0 * (double)span[1] * (double)span[3] * (double)c->width;
    }
    const int64_t units = f.first_unit[c->span_count];
    lay_out(c, NULL, &f.scratch_bytes);
    f.scratch = (char *)call->workspace + shared;
    int threads = kn_attention_team(call->workspace_bytes - shared, f.scratch_bytes, units, flops);
    kn_team_run_on(threads, units, run_unit, &f);
    return KN_OK;
}

const KnCpuKernel KN_ISA_NAME(kn_cpu_attention) = {run_attention, attention_bytes};
