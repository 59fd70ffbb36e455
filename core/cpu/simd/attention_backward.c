/* Attention over span tables, backward: probabilities are recomputed tile by tile from the saved log-sum-exp.
 *
 * A unit of work is (group, chunk of keys, head), a group being the spans whose keys overlap. It keeps the gradients of
 * its keys, transposed [head size, keys], while all queries pass. The queries' gradients are summed in float32 over
 * the chunks in their order: a unit adds its part of a block of queries when the unit of the chunk before has done so,
 * a pipeline in which nobody waits long. Chunks and blocks are counted from a span's first row and cut at multiples of
 * 32, where no cut changes a bit of a product: a span's bits depend neither on threads nor on other spans. The scale of
 * the scores is kept out of what is rounded. A partial backward may be given the log-sum-exp of more keys than it sees,
 * so its probabilities need not sum to one. Source: Dao, "FlashAttention-2", 2023, algorithm 2. */
#include "core/cpu/simd/attention.h"

#include "core/cpu/team.h"

#include <math.h>
#include <sched.h>
#include <stdatomic.h>

enum {
    QUERIES = 96, /* of a tile of scores */
    KEYS = 192,   /* of a chunk: whole tiles of every kernel */
    CUT = 32,
    LD = 2 * KEYS /* columns of a unit's gradients; see key_chunk */
};

typedef struct Group {
    int64_t first, count; /* in the order of spans sorted by keys */
    int64_t first_key, last_key;
    int64_t chunks; /* that are units of their own; 1: the only unit does all keys in turn */
    int64_t first_unit;
} Group;

typedef struct Backward {
    KnAttentionCall c;
    const char *out, *grad_out;
    const float *lse;
    char *dq, *dk, *dv;
    float *delta;    /* [heads, queries]: sum of grad_out * out */
    int needs_delta; /* the backward is partial, or some span has several chunks of keys */
    float *sums;     /* [heads, queries, head size]: gradients of q so far */
    int64_t *order;  /* spans by first key */
    Group *groups;
    int64_t group_count, unit_count;
    _Atomic int64_t *done; /* blocks of queries that a unit has finished */
    atomic_llong next;     /* the unit to take */
    char *scratch;         /* for each thread ... */
    size_t scratch_bytes;  /* ... so much */
} Backward;

typedef struct Scratch {
    char *kt, *vt, *k;                     /* packed keys and values of a span's part of the chunk */
    char *q, *grad;                        /* packed block of queries */
    float *scores, *dp;                    /* [QUERIES, KEYS] */
    char *p, *ds, *ds_rows;                /* probabilities and score gradients in panels; the latter in rows too */
    float *dk, *dv;                        /* [head size, LD] */
    int64_t d_panel, key_panel, row_panel; /* bytes of packed panels that are d, KEYS, QUERIES deep */
} Scratch;

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static Scratch lay_out(const KnAttentionCall *c, char *start, size_t *bytes)
{
    const int64_t d = c->head_size, d_panels = kn_attention_panels(d);
    char *at = start;
    Scratch s = {.d_panel = kn_attention_panel_bytes(c, d),
                 .key_panel = kn_attention_panel_bytes(c, KEYS),
                 .row_panel = kn_attention_panel_bytes(c, QUERIES)};
    s.kt = kn_attention_take(&at, s.d_panel * (KEYS / KN_PANEL));
    s.vt = kn_attention_take(&at, s.d_panel * (KEYS / KN_PANEL));
    s.k = kn_attention_take(&at, s.key_panel * d_panels);
    s.q = kn_attention_take(&at, s.row_panel * d_panels);
    s.grad = kn_attention_take(&at, s.row_panel * d_panels);
    s.scores = kn_attention_take(&at, QUERIES * KEYS * (int64_t)sizeof(float));
    s.dp = kn_attention_take(&at, QUERIES * KEYS * (int64_t)sizeof(float));
    s.p = kn_attention_take(&at, s.row_panel * (KEYS / KN_PANEL));
    s.ds = kn_attention_take(&at, s.row_panel * (KEYS / KN_PANEL));
    s.ds_rows = kn_attention_take(&at, QUERIES * KEYS * c->element_bytes);
    s.dk = kn_attention_take(&at, d * LD * (int64_t)sizeof(float));
    s.dv = kn_attention_take(&at, d * LD * (int64_t)sizeof(float));
    *bytes = (size_t)(at - start);
    return s;
}

/* --- The pass over a tile of scores ------------------------------------------------------------------------------- */

typedef struct Tile {
    const Backward *b;
    const Scratch *s;
    int64_t query, queries, keys, head;
    int first, last; /* of the chunks of the span */
    int fresh;       /* the unit's gradients of keys are not begun */
    float lse2[QUERIES], delta[QUERIES];
} Tile;

/* Scores become probabilities: p = 2^(scale2 score - lse2). Where a tile has all keys of its queries, delta is found
 * here, as the sum of p dp: more exact than from the rounded output, so that score gradients sum to zero. */
static void find_probabilities(Tile *t)
{
    const KnV scale2 = kn_v_set(t->b->c.scale * 1.4426950408889634f);
    for (int64_t i = 0; i < t->queries; i++) {
        float *scores = t->s->scores + i * KEYS;
        const float *dp = t->s->dp + i * KEYS;
        const KnV lse2 = kn_v_set(t->lse2[i]);
        KnV sum = {0};
        KN_VECTORS(0, t->keys, at, lanes, {
            KnV p = kn_v_exp2(kn_v_fma(kn_v_load(scores + at), scale2, -lse2));
            kn_v_store(scores + at, p);
            sum += kn_v_keep(p * kn_v_load(dp + at), lanes);
        });
        t->delta[i] = kn_v_total(sum);
    }
}

typedef struct Weights {
    KnV p, ds; /* ds = p (dp - delta) */
} Weights;

/* Of query i and the keys at `column`. */
KN_V_INLINE Weights weights_of(const Tile *t, int64_t i, int64_t column, KnV scale2, int known)
{
    const int64_t at = i * KEYS + column;
    KnV p = kn_v_load(t->s->scores + at);
    if (!known)
        p = kn_v_exp2(kn_v_fma(p, scale2, kn_v_set(-t->lse2[i])));
    return (Weights){p, p * (kn_v_load(t->s->dp + at) - t->delta[i])};
}

/* A vector of keys: weights of all queries into panels, ds into rows too. */
KN_V_INLINE void weigh_keys(const Tile *t, int64_t column, int known, int bf16)
{
    const Scratch *s = t->s;
    const KnV scale2 = kn_v_set(t->b->c.scale * 1.4426950408889634f);
    const int64_t offset = column / KN_PANEL * s->row_panel + column % KN_PANEL * 4;
    char *p = s->p + offset, *ds = s->ds + offset;
    if (!bf16) {
        for (int64_t i = 0; i < t->queries; i++) {
            Weights w = weights_of(t, i, column, scale2, known);
            kn_v_store(p + i * 64, w.p);
            kn_v_store(ds + i * 64, w.ds);
            kn_v_store(s->ds_rows + (i * KEYS + column) * 4, w.ds);
        }
        return;
    }
    uint16_t *rows = (uint16_t *)(void *)s->ds_rows + column;
    int64_t i = 0;
    for (; i < t->queries; i += 2) {
        Weights even = weights_of(t, i, column, scale2, known), odd = {{0}, {0}};
        if (i + 1 < t->queries)
            odd = weights_of(t, i + 1, column, scale2, known);
        KnVu pairs = (KnVu)kn_v_bf16_pairs(even.ds, odd.ds);
        kn_v_store(p + i * 32, kn_v_bf16_pairs(even.p, odd.p));
        kn_v_store(ds + i * 32, (KnV)pairs);
        KnVh low = __builtin_convertvector(pairs, KnVh), high = __builtin_convertvector(pairs >> 16, KnVh);
        memcpy(rows + i * KEYS, &low, sizeof low);
        memcpy(rows + (i + 1) * KEYS, &high, sizeof high);
    }
    for (; i % CUT; i += 2) {
        kn_v_store(p + i * 32, (KnV){0});
        kn_v_store(ds + i * 32, (KnV){0});
    }
}

/* Queries that see nothing at all, in the whole attention: nothing of their weights is a number. */
static void clear_blind(const Tile *t)
{
    const Scratch *s = t->s;
    const int64_t element = t->b->c.element_bytes, pair = 4 / element; /* rows of a panel side by side */
    for (int64_t i = 0; i < t->queries; i++) {
        if (t->lse2[i] != -INFINITY)
            continue;
        for (int64_t column = 0; column < t->keys; column += KN_LANES)
            memset(s->ds_rows + (i * KEYS + column) * element, 0, (size_t)(KN_LANES * element));
        for (int64_t column = 0; column < (t->keys + KN_LANES - 1) / KN_LANES * KN_LANES; column++) {
            const int64_t at = column / KN_PANEL * s->row_panel + i / pair * 64 + column % KN_PANEL * 4 + i % pair * 2;
            memset(s->p + at, 0, (size_t)element);
            memset(s->ds + at, 0, (size_t)element);
        }
    }
}

static void weigh_tile(Tile *t)
{
    const Backward *b = t->b;
    const int64_t row = t->head * b->c.query_rows + t->query;
    const int whole = !b->c.partial && t->first && t->last, bf16 = b->c.dtype == KN_BF16;
    for (int64_t i = 0; i < t->queries; i++)
        t->lse2[i] = b->lse[row + i] * 1.4426950408889634f;
    if (whole)
        find_probabilities(t);
    else
        memcpy(t->delta, b->delta + row, (size_t)t->queries * sizeof(float));
    for (int64_t column = 0; column < t->keys; column += KN_LANES) {
        if (bf16 && whole)
            weigh_keys(t, column, 1, 1);
        else if (bf16)
            weigh_keys(t, column, 0, 1);
        else
            weigh_keys(t, column, whole, 0);
    }
    if (b->c.partial)
        clear_blind(t);
}

/* --- A unit ------------------------------------------------------------------------------------------------------- */

/* scores = Q K^T or dp = dO V^T */
static void pair_product(const Tile *t, const void *rows, const char *packed, float *out)
{
    const KnAttentionCall *c = &t->b->c;
    c->kernel->block(&(KnMatmulBlock){.rows = t->queries,
                                      .columns = t->keys,
                                      .k = c->head_size,
                                      .a = kn_attention_at(c, rows, t->query, t->head),
                                      .a_stride = c->width * c->element_bytes,
                                      .b = packed,
                                      .b_stride = t->s->d_panel,
                                      .sums = out,
                                      .ld_sums = KEYS,
                                      .alpha = 1});
}

/* dv^T += dO^T P or dk^T += Q^T dS, of the columns from `out` on */
static void keys_product(const Tile *t, const char *packed_rows, const char *weights, float *out)
{
    const KnAttentionCall *c = &t->b->c;
    c->kernel->block(&(KnMatmulBlock){.rows = c->head_size,
                                      .columns = t->keys,
                                      .k = t->queries,
                                      .a = packed_rows,
                                      .a_stride = t->s->row_panel,
                                      .a_packed = 1,
                                      .b = weights,
                                      .b_stride = t->s->row_panel,
                                      .start = t->fresh ? NULL : out,
                                      .ld_start = LD,
                                      .sums = out,
                                      .ld_sums = LD,
                                      .alpha = 1});
}

/* dq += dS K, and after a span's last chunk the result */
static void queries_product(const Tile *t)
{
    const KnAttentionCall *c = &t->b->c;
    float *sums = t->b->sums + (t->head * c->query_rows + t->query) * c->head_size;
    KnMatmulBlock block = {.rows = t->queries,
                           .columns = c->head_size,
                           .k = t->keys,
                           .a = t->s->ds_rows,
                           .a_stride = KEYS * c->element_bytes,
                           .b = t->s->k,
                           .b_stride = t->s->key_panel,
                           .start = t->first ? NULL : sums,
                           .ld_start = c->head_size,
                           .sums = t->last ? NULL : sums,
                           .ld_sums = c->head_size,
                           .c = kn_attention_at(c, t->b->dq, t->query, t->head),
                           .ldc = c->width,
                           .c_type = c->dtype,
                           .alpha = c->scale};
    c->kernel->block(&block);
}

/* Waits until the unit of the chunk before has done `blocks` blocks of queries. */
static void wait_for(_Atomic int64_t *done, int64_t blocks)
{
    for (int turns = 0; atomic_load_explicit(done, memory_order_acquire) < blocks; turns++)
        if (turns > 1000)
            sched_yield();
}

typedef struct Unit {
    const Backward *b;
    const Scratch *s;
    const Group *group;
    int64_t head;
    _Atomic int64_t *done, *before; /* NULL: nobody waits */
    int64_t blocks;                 /* of queries done */
} Unit;

static void span_part(Unit *u, const int32_t *span, int64_t first, int64_t keys, int64_t column)
{
    const Backward *b = u->b;
    const Scratch *s = u->s;
    const KnAttentionCall *c = &b->c;
    Tile t = {.b = b, .s = s, .keys = keys, .head = u->head, .first = first == 0, .last = first + keys == span[3]};
    if (keys > 0) {
        kn_attention_pack(c, c->k, span[2] + first, keys, u->head, KN_ROWS_ARE_COLUMNS, s->kt, s->d_panel);
        kn_attention_pack(c, c->v, span[2] + first, keys, u->head, KN_ROWS_ARE_COLUMNS, s->vt, s->d_panel);
        kn_attention_pack(c, c->k, span[2] + first, keys, u->head, KN_ROWS_ARE_K, s->k, s->key_panel);
    }
    for (int64_t row = 0; row < span[1]; row += QUERIES) {
        t.query = span[0] + row;
        t.queries = min64(span[1] - row, QUERIES);
        t.fresh = u->group->count == 1 && row == 0;
        if (keys > 0) {
            pair_product(&t, c->q, s->kt, s->scores);
            pair_product(&t, b->grad_out, s->vt, s->dp);
            weigh_tile(&t);
            kn_attention_pack(c, b->grad_out, t.query, t.queries, u->head, KN_ROWS_ARE_K_OF_A, s->grad, s->row_panel);
            kn_attention_pack(c, c->q, t.query, t.queries, u->head, KN_ROWS_ARE_K_OF_A, s->q, s->row_panel);
            keys_product(&t, s->grad, s->p, s->dv + column);
            keys_product(&t, s->q, s->ds, s->dk + column);
        }
        u->blocks++;
        if (u->before)
            wait_for(u->before, u->blocks);
        if (keys > 0)
            queries_product(&t);
        if (u->done)
            atomic_store_explicit(u->done, u->blocks, memory_order_release);
    }
}

static int64_t cut_up(int64_t rows)
{
    return (rows + CUT - 1) / CUT * CUT;
}

/* All spans of the group against the chunk of keys from `first` on. Spans that begin elsewhere than the group are cut
 * at multiples of 32 of their own rows, and not at all if they would not be cut alone: such a part may overhang the
 * chunk's end. What overhung the end of the chunk before is there already when `goes_on`. */
static void key_chunk(Unit *u, int64_t first, int goes_on)
{
    const Backward *b = u->b;
    const Scratch *s = u->s;
    const KnAttentionCall *c = &b->c;
    const int64_t keys = min64(u->group->last_key - first, KEYS);
    for (int64_t i = 0; u->group->count > 1 && i < c->head_size; i++) {
        float *dk = s->dk + i * LD, *dv = s->dv + i * LD;
        if (goes_on) {
            memcpy(dk, dk + KEYS, KEYS * sizeof *dk);
            memcpy(dv, dv + KEYS, KEYS * sizeof *dv);
        }
        memset(dk + goes_on * KEYS, 0, (size_t)(LD - goes_on * KEYS) * sizeof *dk);
        memset(dv + goes_on * KEYS, 0, (size_t)(LD - goes_on * KEYS) * sizeof *dv);
    }
    for (int64_t i = 0; i < u->group->count; i++) {
        const int32_t *span = c->spans + 4 * b->order[u->group->first + i];
        const int64_t begin = first - span[2], end = begin + KEYS; /* of the chunk, counted from the span's start */
        int64_t from = begin > 0 ? cut_up(begin) : 0, to = end > 0 ? min64(cut_up(end), span[3]) : 0;
        if (span[3] <= KEYS && end > 0)
            from = begin > 0 ? span[3] : 0, to = span[3];
        span_part(u, span, from, to > from ? to - from : 0, span[2] + from - first);
    }
    KN_ISA_NAME(kn_attention_turn)
    (c, s->dk, LD, keys, NULL, c->scale, kn_attention_at(c, b->dk, first, u->head));
    KN_ISA_NAME(kn_attention_turn)(c, s->dv, LD, keys, NULL, 1, kn_attention_at(c, b->dv, first, u->head));
}

/* One unit, whatever block of the team's job asks for it: units are taken in order, so that nobody waits for a unit
 * that is not begun. */
static void run_unit(void *argument, int64_t block, int slot)
{
    Backward *b = argument;
    size_t bytes = 0;
    const Scratch scratch = lay_out(&b->c, b->scratch + b->scratch_bytes * (size_t)slot, &bytes);
    const int64_t index = atomic_fetch_add(&b->next, 1);
    (void)block;
    int64_t low = 0, high = b->group_count;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (b->groups[middle].first_unit <= index)
            low = middle;
        else
            high = middle;
    }
    const Group *group = &b->groups[low];
    Unit u = {.b = b, .s = &scratch, .group = group, .head = (index - group->first_unit) % b->c.heads};
    const int64_t chunk = (index - group->first_unit) / b->c.heads;
    if (group->chunks > 1) {
        u.done = b->done + index;
        u.before = chunk > 0 ? b->done + index - b->c.heads : NULL;
        key_chunk(&u, group->first_key + chunk * KEYS, 0);
        return;
    }
    for (int64_t key = group->first_key; key < group->last_key; key += KEYS)
        key_chunk(&u, key, key != group->first_key);
}

/* --- The call ----------------------------------------------------------------------------------------------------- */

enum { DELTA_ROWS = 64 };

/* Of a block of rows, for all heads. */
static void find_delta(void *argument, int64_t block, int slot)
{
    const Backward *b = argument;
    const KnAttentionCall *c = &b->c;
    const int64_t first = block * DELTA_ROWS, last = min64(first + DELTA_ROWS, c->query_rows);
    const int bf16 = c->dtype == KN_BF16;
    (void)slot;
    for (int64_t row = first; row < last; row++)
        for (int64_t head = 0; head < c->heads; head++) {
            const char *out = kn_attention_at(c, b->out, row, head);
            const char *grad = kn_attention_at(c, b->grad_out, row, head);
            KnV sum = {0};
            KN_VECTORS(0, c->head_size, at, lanes,
                       { sum = kn_v_fma(kn_v_read(out, at, lanes, bf16), kn_v_read(grad, at, lanes, bf16), sum); });
            b->delta[head * c->query_rows + row] = kn_v_total(sum);
        }
}

/* Spans sorted by first key (stable), cut where keys no longer overlap. */
static void find_groups(Backward *b)
{
    const int32_t *spans = b->c.spans;
    int64_t count = 0;
    for (int64_t s = 0; s < b->c.span_count; s++) {
        int64_t at = count;
        if (spans[4 * s + 1] == 0 || spans[4 * s + 3] == 0)
            continue;
        for (; at > 0 && spans[4 * b->order[at - 1] + 2] > spans[4 * s + 2]; at--)
            b->order[at] = b->order[at - 1];
        b->order[at] = s;
        count++;
    }
    for (int64_t i = 0; i < count; i++) {
        const int32_t *span = spans + 4 * b->order[i];
        int64_t end = (int64_t)span[2] + span[3];
        Group *last = b->group_count ? &b->groups[b->group_count - 1] : NULL;
        if (!last || span[2] >= last->last_key) {
            b->groups[b->group_count++] = (Group){.first = i, .count = 1, .first_key = span[2], .last_key = end};
            continue;
        }
        last->count++;
        last->last_key = end > last->last_key ? end : last->last_key;
    }
}

/* Where all spans begin at the same key, chunks are units of their own. */
static void find_units(Backward *b)
{
    for (int64_t g = 0; g < b->group_count; g++) {
        Group *group = &b->groups[g];
        const int32_t *last = b->c.spans + 4 * b->order[group->first + group->count - 1];
        int together = last[2] == group->first_key;
        group->chunks = together ? (group->last_key - group->first_key + KEYS - 1) / KEYS : 1;
        group->first_unit = b->unit_count;
        b->needs_delta |= group->last_key - group->first_key > KEYS;
        b->unit_count += group->chunks * b->c.heads;
    }
    for (int64_t i = 0; i < b->unit_count; i++)
        atomic_init(&b->done[i], 0);
    atomic_init(&b->next, 0);
}

/* Zeros the rows of keys that no span sees, and of queries that see no keys. */
static void clear_rest(const Backward *b)
{
    const KnAttentionCall *c = &b->c;
    int64_t end = 0;
    KN_ISA_NAME(kn_attention_clear)(c, b->dq, NULL);
    for (int64_t g = 0; g <= b->group_count; g++) {
        int64_t next = g < b->group_count ? b->groups[g].first_key : c->key_rows;
        kn_attention_clear_rows(c, b->dk, end, next);
        kn_attention_clear_rows(c, b->dv, end, next);
        end = g < b->group_count ? b->groups[g].last_key : end;
    }
}

static Backward describe(const KnNode *node, void *const *inputs, void *const *outputs, char *workspace, size_t *bytes)
{
    Backward b = {.c = kn_attention_call(node, inputs)};
    const KnAttentionCall *c = &b.c;
    char *at = workspace;
    if (inputs) {
        b.out = inputs[4];
        b.lse = inputs[5];
        b.grad_out = inputs[6];
        b.dq = outputs[0];
        b.dk = outputs[1];
        b.dv = outputs[2];
    }
    b.delta = kn_attention_take(&at, c->heads * c->query_rows * (int64_t)sizeof(float));
    b.sums = kn_attention_take(&at, c->width * c->query_rows * (int64_t)sizeof(float));
    b.order = kn_attention_take(&at, c->span_count * (int64_t)sizeof *b.order);
    b.groups = kn_attention_take(&at, c->span_count * (int64_t)sizeof *b.groups);
    b.done = kn_attention_take(&at, c->heads * (c->key_rows / KEYS + c->span_count) * (int64_t)sizeof *b.done);
    *bytes = (size_t)(at - workspace);
    return b;
}

static size_t backward_bytes(const KnNode *node)
{
    size_t shared = 0, each = 0;
    Backward b = describe(node, NULL, NULL, NULL, &shared);
    lay_out(&b.c, NULL, &each);
    return shared + each * (size_t)kn_cpu_threads();
}

static double flops_of(const KnAttentionCall *c)
{
    double pairs = 0;
    for (int64_t s = 0; s < c->span_count; s++)
        pairs += (double)c->spans[4 * s + 1] * (double)c->spans[4 * s + 3];
    return 10 * pairs * (double)c->width;
}

static int run_backward(const KnCall *call)
{
    size_t shared = 0;
    Backward b = describe(call->node, call->inputs, call->outputs, call->workspace, &shared);
    const KnAttentionCall *c = &b.c;
    KN_TRY(KN_ISA_NAME(kn_attention_check)(c));
    b.needs_delta = c->partial;
    find_groups(&b);
    find_units(&b);
    clear_rest(&b);
    lay_out(c, NULL, &b.scratch_bytes);
    b.scratch = (char *)call->workspace + shared;
    int threads = kn_attention_team(call->workspace_bytes - shared, b.scratch_bytes, b.unit_count, flops_of(c));
    if (b.needs_delta)
        kn_team_run_on(threads, (c->query_rows + DELTA_ROWS - 1) / DELTA_ROWS, find_delta, &b);
    kn_team_run_on(threads, b.unit_count, run_unit, &b);
    return KN_OK;
}

const KnCpuKernel KN_ISA_NAME(kn_cpu_attention_backward) = {run_backward, backward_bytes};
