/* Attention over span tables, backward: probabilities are recomputed tile by tile from the saved log-sum-exp.
 *
 * A unit of work is (group, head), a group being the spans whose keys touch: within it everything happens in one
 * order, so the bits do not depend on threads. Keys are the outer loop, their gradients stay in scratch; the queries'
 * gradients are summed in float32 over all keys. Source: Dao, "FlashAttention-2", 2023, algorithm 2. */
#include "core/cpu/simd/attention.h"

#include "core/base/error.h"
#include "core/cpu/simd/kernel.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

typedef struct Group {
    int64_t first, count; /* in the order of spans sorted by keys */
    int64_t first_key, last_key;
} Group;

typedef struct Backward {
    KnAttentionCall c;
    const char *out, *grad_out;
    const float *lse;
    char *dq, *dk, *dv;
    float *delta;   /* [heads, queries]: sum of grad_out * out */
    int64_t *order; /* spans by first key */
    Group *groups;
    int64_t group_count;
} Backward;

typedef struct Scratch {
    char *packed_kt, *packed_vt, *packed_k, *packed_q, *packed_grad;
    float *scores, *grad_scores; /* [queries, keys] of a tile */
    char *probabilities, *rounded;
    float *dk, *dv; /* [keys, head] */
    float *dq;      /* [all queries, head] */
    void *matmul;
} Scratch;

enum { Q = KN_ATTENTION_QUERIES, K = KN_ATTENTION_KEYS };

static KnMatmul product(const Backward *b, int64_t m, int64_t n, int64_t k)
{
    return (KnMatmul){.m = m, .n = n, .k = k, .type = b->c.dtype, .b_form = KN_PACKED, .c_type = KN_F32};
}

static size_t most_workspace(const Backward *b)
{
    int64_t d = b->c.head_size;
    KnMatmul shapes[] = {product(b, Q, K, d), product(b, Q, d, K), product(b, K, d, Q)};
    size_t most = 0;
    shapes[2].a_form = KN_TRANSPOSED;
    for (int i = 0; i < 3; i++) {
        size_t bytes = kn_matmul_workspace_bytes(&shapes[i]);
        most = bytes > most ? bytes : most;
    }
    return most;
}

static Scratch lay_out(const Backward *b, char *start, size_t *bytes)
{
    const KnAttentionCall *c = &b->c;
    int64_t d = c->head_size;
    size_t tile = (size_t)Q * K, head = (size_t)d * sizeof(float);
    char *at = start;
    Scratch s;
    s.packed_kt = kn_attention_take(&at, kn_matmul_packed_bytes(d, K, c->dtype));
    s.packed_vt = kn_attention_take(&at, kn_matmul_packed_bytes(d, K, c->dtype));
    s.packed_k = kn_attention_take(&at, kn_matmul_packed_bytes(K, d, c->dtype));
    s.packed_q = kn_attention_take(&at, kn_matmul_packed_bytes(Q, d, c->dtype));
    s.packed_grad = kn_attention_take(&at, kn_matmul_packed_bytes(Q, d, c->dtype));
    s.scores = kn_attention_take(&at, tile * sizeof(float));
    s.grad_scores = kn_attention_take(&at, tile * sizeof(float));
    s.probabilities = kn_attention_take(&at, tile * c->element_bytes);
    s.rounded = kn_attention_take(&at, tile * c->element_bytes);
    s.dk = kn_attention_take(&at, K * head);
    s.dv = kn_attention_take(&at, K * head);
    s.dq = kn_attention_take(&at, (size_t)c->query_rows * head);
    s.matmul = kn_attention_take(&at, most_workspace(b));
    *bytes = (size_t)(at - start);
    return s;
}

static void pack(const Backward *b, const void *from, int64_t row, int64_t rows, int64_t head, int transposed,
                 char *packed)
{
    const KnAttentionCall *c = &b->c;
    kn_matmul_pack_serial(&(KnMatmulPack){.k = transposed ? c->head_size : rows,
                                          .n = transposed ? rows : c->head_size,
                                          .type = c->dtype,
                                          .b = kn_attention_at(c, from, row, head),
                                          .b_type = c->dtype,
                                          .ldb = c->width,
                                          .b_form = transposed ? KN_TRANSPOSED : KN_PLAIN,
                                          .packed = packed});
}

/* p = exp(scores - lse); ds = scale p (dp - delta), both rounded to the operands' dtype for the next products. */
static void scores_to_gradients(const Backward *b, const Scratch *s, int64_t first_query, int64_t head, int64_t queries,
                                int64_t keys)
{
    const KnAttentionCall *c = &b->c;
    int bf16 = c->dtype == KN_BF16;
    for (int64_t i = 0; i < queries; i++) {
        int64_t row = head * c->query_rows + first_query + i;
        float lse = b->lse[row], delta = b->delta[row];
        KN_VECTORS(i * K, i * K + keys, at, lanes, {
            KnV p = kn_v_exp(kn_v_read(s->scores, at, lanes, 0) - lse);
            KnV ds = p * (kn_v_read(s->grad_scores, at, lanes, 0) - delta) * c->scale;
            kn_v_write(s->probabilities, at, p, lanes, bf16);
            kn_v_write(s->rounded, at, ds, lanes, bf16);
        });
    }
}

static void run(KnMatmul *m, const void *a, int64_t lda, const void *packed, float *out, int64_t ldc, const Scratch *s)
{
    m->a = a;
    m->lda = lda;
    m->b = packed;
    m->c = out;
    m->ldc = ldc;
    kn_matmul_serial(m, s->matmul);
}

/* One tile: `queries` rows from first_query against `keys` keys, whose packings begin at their own first key. */
static void tile(const Backward *b, const Scratch *s, int64_t first_query, int64_t queries, int64_t keys,
                 int64_t key_offset, int64_t head)
{
    const KnAttentionCall *c = &b->c;
    int64_t d = c->head_size;
    KnMatmul m = product(b, queries, keys, d);
    m.alpha = c->scale;
    run(&m, kn_attention_at(c, c->q, first_query, head), c->width, s->packed_kt, s->scores, K, s);
    m.alpha = 0;
    run(&m, kn_attention_at(c, b->grad_out, first_query, head), c->width, s->packed_vt, s->grad_scores, K, s);
    scores_to_gradients(b, s, first_query, head, queries, keys);
    pack(b, b->grad_out, first_query, queries, head, 0, s->packed_grad);
    pack(b, c->q, first_query, queries, head, 0, s->packed_q);
    m = product(b, keys, d, queries);
    m.a_form = KN_TRANSPOSED;
    m.accumulate = 1;
    run(&m, s->probabilities, K, s->packed_grad, s->dv + key_offset * d, d, s);
    run(&m, s->rounded, K, s->packed_q, s->dk + key_offset * d, d, s);
    m = product(b, queries, d, keys);
    m.accumulate = 1;
    run(&m, s->rounded, K, s->packed_k, s->dq + first_query * d, d, s);
}

static void write_rows(const Backward *b, const float *from, char *to, int64_t first, int64_t rows, int64_t head)
{
    const KnAttentionCall *c = &b->c;
    int bf16 = c->dtype == KN_BF16;
    for (int64_t i = 0; i < rows; i++) {
        char *out = to + (size_t)((first + i) * c->width + head * c->head_size) * c->element_bytes;
        KN_VECTORS(0, c->head_size, at, lanes,
                   { kn_v_write(out, at, kn_v_read(from + i * c->head_size, at, lanes, 0), lanes, bf16); });
    }
}

/* All spans of a group against one block of keys. */
static void key_block(const Backward *b, const Scratch *s, const Group *group, int64_t first, int64_t last,
                      int64_t head)
{
    const KnAttentionCall *c = &b->c;
    size_t bytes = (size_t)((last - first) * c->head_size) * sizeof(float);
    memset(s->dk, 0, bytes);
    memset(s->dv, 0, bytes);
    for (int64_t i = 0; i < group->count; i++) {
        const int32_t *span = c->spans + 4 * b->order[group->first + i];
        int64_t from = span[2] > first ? span[2] : first, end = (int64_t)span[2] + span[3];
        int64_t keys = (end < last ? end : last) - from;
        if (keys <= 0)
            continue;
        pack(b, c->k, from, keys, head, 1, s->packed_kt);
        pack(b, c->v, from, keys, head, 1, s->packed_vt);
        pack(b, c->k, from, keys, head, 0, s->packed_k);
        for (int64_t row = 0; row < span[1]; row += Q)
            tile(b, s, span[0] + row, span[1] - row < Q ? span[1] - row : Q, keys, from - first, head);
    }
    write_rows(b, s->dk, b->dk, first, last - first, head);
    write_rows(b, s->dv, b->dv, first, last - first, head);
}

static void run_unit(const Backward *b, const Scratch *s, const Group *group, int64_t head)
{
    const KnAttentionCall *c = &b->c;
    for (int64_t i = 0; i < group->count; i++) {
        const int32_t *span = c->spans + 4 * b->order[group->first + i];
        memset(s->dq + span[0] * c->head_size, 0, (size_t)(span[1] * c->head_size) * sizeof(float));
    }
    for (int64_t key = group->first_key; key < group->last_key; key += K)
        key_block(b, s, group, key, key + K < group->last_key ? key + K : group->last_key, head);
    for (int64_t i = 0; i < group->count; i++) {
        const int32_t *span = c->spans + 4 * b->order[group->first + i];
        write_rows(b, s->dq + span[0] * c->head_size, b->dq, span[0], span[1], head);
    }
}

static void find_delta(const Backward *b)
{
    const KnAttentionCall *c = &b->c;
    int bf16 = c->dtype == KN_BF16;
#pragma omp parallel for schedule(static) collapse(2) num_threads(kn_cpu_threads())
    for (int64_t row = 0; row < c->query_rows; row++)
        for (int64_t head = 0; head < c->heads; head++) {
            const char *out = kn_attention_at(c, b->out, row, head);
            const char *grad = kn_attention_at(c, b->grad_out, row, head);
            KnV sum = {0};
            KN_VECTORS(0, c->head_size, at, lanes,
                       { sum = kn_v_fma(kn_v_read(out, at, lanes, bf16), kn_v_read(grad, at, lanes, bf16), sum); });
            b->delta[head * c->query_rows + row] = kn_v_total(sum);
        }
}

/* Spans sorted by first key (stable), cut where keys no longer touch. */
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
    b->group_count = 0;
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

static Backward describe(const KnNode *node, void *const *inputs, void *const *outputs, char *workspace, size_t *bytes)
{
    Backward b = {.c = kn_attention_call(node, inputs)};
    char *at = workspace;
    if (inputs) {
        b.out = inputs[4];
        b.lse = inputs[5];
        b.grad_out = inputs[6];
        b.dq = outputs[0];
        b.dk = outputs[1];
        b.dv = outputs[2];
    }
    b.delta = kn_attention_take(&at, (size_t)(b.c.heads * b.c.query_rows) * sizeof(float));
    b.order = kn_attention_take(&at, (size_t)b.c.span_count * sizeof *b.order);
    b.groups = kn_attention_take(&at, (size_t)b.c.span_count * sizeof *b.groups);
    *bytes = (size_t)(at - workspace);
    return b;
}

static size_t backward_bytes(const KnNode *node)
{
    size_t shared = 0, each = 0;
    Backward b = describe(node, NULL, NULL, NULL, &shared);
    lay_out(&b, NULL, &each);
    return shared + each * (size_t)kn_cpu_threads();
}

static int run_backward(const KnCall *call)
{
    size_t shared = 0;
    Backward b = describe(call->node, call->inputs, call->outputs, call->workspace, &shared);
    KN_TRY(KN_ISA_NAME(kn_attention_check)(&b.c));
    size_t width = (size_t)b.c.width * b.c.element_bytes;
    memset(b.dq, 0, (size_t)b.c.query_rows * width);
    memset(b.dk, 0, (size_t)b.c.key_rows * width);
    memset(b.dv, 0, (size_t)b.c.key_rows * width);
    find_delta(&b);
    find_groups(&b);
    size_t each = 0;
    lay_out(&b, NULL, &each);
#pragma omp parallel num_threads(kn_attention_team(call->workspace_bytes - shared, each))
    {
        size_t bytes = each;
        Scratch scratch = lay_out(&b, (char *)call->workspace + shared + each * (size_t)omp_get_thread_num(), &bytes);
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t group = 0; group < b.group_count; group++)
            for (int64_t head = 0; head < b.c.heads; head++)
                run_unit(&b, &scratch, &b.groups[group], head);
    }
    return KN_OK;
}

const KnCpuKernel KN_ISA_NAME(kn_cpu_attention_backward) = {run_backward, backward_bytes};
