/* The rows: op x shapes. Sizes are 1, primes and powers of two; indices repeat, leave rows out and are negative where
 * that is allowed; spans are empty, share keys, and leave queries out. */
#include "core/base/error.h"
#include "ops/ops_test.h"
#include "ops/span_tables.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (int)(sizeof(array) / sizeof(array)[0])

/* n: m, n, k, transpose a | 2 transpose b | 4 bias | 8 result in f32 | 16 b is a parameter (which may be packed) */
static KnTensor *build_matmul(OpTrial *t, const int64_t *n)
{
    int transpose_a = (int)n[3] & 1, transpose_b = (int)n[3] >> 1 & 1;
    LeafKind weight = {
        .role = n[3] & 16 ? KN_ROLE_PARAMETER : KN_ROLE_INPUT, .dtype = t->dtype, .wanted = 1, .spread = 1};
    KnTensor *a = transpose_a ? leaf_x(t, n[2], n[0]) : leaf_x(t, n[0], n[2]);
    int64_t shape[2] = {transpose_b ? n[1] : n[2], transpose_b ? n[2] : n[1]};
    KnTensor *b = leaf(t, weight, 2, shape);
    KnTensor *bias = n[3] & 4 ? leaf_f32(t, 1, n[1]) : NULL;
    return kn_matmul(t->graph, a, transpose_a, b, transpose_b, bias, n[3] & 8 ? KN_F32 : t->dtype);
}

/* n: rows, in, out. The weight is a float32 parameter, cast and packed on the way. */
static KnTensor *build_linear(OpTrial *t, const int64_t *n)
{
    LeafKind weight = {.role = KN_ROLE_PARAMETER, .dtype = KN_F32, .wanted = 1, .spread = 0.5};
    KnTensor *x = leaf_x(t, n[0], n[1]);
    KnTensor *w = leaf(t, weight, 2, (int64_t[]){n[2], n[1]}), *bias = leaf_f32(t, 1, n[2]);
    return kn_linear(t->graph, x, w, bias);
}

/* n: rows, in, out, the sum's first operand is the product */
static KnTensor *build_linear_residual(OpTrial *t, const int64_t *n)
{
    KnTensor *y = build_linear(t, n), *x = leaf_x(t, n[0], n[2]);
    return n[3] ? kn_add(t->graph, y, x) : kn_add(t->graph, x, y);
}

/* Two products of one x, so that its gradient is a sum of two as well. n: rows, in, out */
static KnTensor *build_two_linears(OpTrial *t, const int64_t *n)
{
    LeafKind weight = {.role = KN_ROLE_PARAMETER, .dtype = KN_F32, .wanted = 1, .spread = 0.5};
    KnTensor *x = leaf_x(t, n[0], n[1]), *y[2];
    for (int i = 0; i < 2; i++) {
        KnTensor *w = leaf(t, weight, 2, (int64_t[]){n[2], n[1]});
        y[i] = kn_linear(t->graph, x, w, i ? leaf_f32(t, 1, n[2]) : NULL);
    }
    return kn_add(t->graph, y[0], y[1]);
}

static KnTensor *build_sum_rows(OpTrial *t, const int64_t *n)
{
    return kn_sum_rows(t->graph, leaf_x(t, n[0], n[1]));
}

typedef struct Attention {
    KnTensor *q, *k, *v, *spans;
    float scale;
} Attention;

/* n: span table, heads, head size */
static Attention attention_leaves(OpTrial *t, const int64_t *n)
{
    int64_t queries = span_tables[n[0]].queries, keys = span_tables[n[0]].keys, width = n[1] * n[2];
    Attention a = {.scale = 1 / sqrtf((float)n[2])};
    a.q = leaf_x(t, queries, width);
    a.k = leaf_x(t, keys, width);
    a.v = leaf_x(t, keys, width);
    a.spans = leaf_given(t, 2, (int64_t[]){span_tables[n[0]].count, 4}, span_tables[n[0]].spans[0]);
    return a;
}

static KnTensor *build_attention(OpTrial *t, const int64_t *n)
{
    Attention a = attention_leaves(t, n);
    return kn_attention(t->graph, a.q, a.k, a.v, a.spans, n[1], a.scale);
}

/* The log-sum-exp is any number, as that of other keys may be; every seventh query sees nothing anywhere.
 * n: span table, heads, head size */
static KnTensor *build_attention_part_backward(OpTrial *t, const int64_t *n)
{
    Attention a = attention_leaves(t, n);
    LeafKind statistic = {.role = KN_ROLE_INPUT, .dtype = KN_F32, .center = 2, .spread = 2};
    int64_t queries = kn_tensor_rows(a.q), width = kn_tensor_columns(a.q);
    KnTensor *out = leaf_x(t, queries, width), *gradients[3];
    KnTensor *lse = leaf(t, statistic, 2, (int64_t[]){n[1], queries});
    for (int64_t i = 0; i < n[1] * queries; i += 7)
        t->values[t->leaf_count - 1][i] = -INFINITY;
    kn_attention_backward(t->graph, a.q, a.k, a.v, a.spans, out, lse, leaf_x(t, queries, width), n[1], a.scale, 1,
                          gradients);
    return gradients[0];
}

/* What is added or merged of parts: the first is a part, or the float32 sum of several; so may be the result. */
enum { SUM_BEFORE = 1, SUM_AFTER = 2 };

static KnTensor *leaf_of_parts(OpTrial *t, int64_t rows, int64_t columns, int64_t sums)
{
    return sums & SUM_BEFORE ? leaf_f32(t, rows, columns) : leaf_x(t, rows, columns);
}

/* Every third row of a, and every fifth of b, saw nothing. n: rows, columns, heads, spread of the log-sum-exp, sums */
static KnTensor *build_attention_merge(OpTrial *t, const int64_t *n)
{
    LeafKind statistic = {.role = KN_ROLE_INPUT, .dtype = KN_F32, .spread = (double)n[3]};
    KnTensor *out[2], *lse[2];
    for (int part = 0; part < 2; part++) {
        out[part] = leaf_of_parts(t, n[0], n[1], part ? 0 : n[4]);
        lse[part] = leaf(t, statistic, 2, (int64_t[]){n[2], n[0]});
        for (int64_t i = 0; i < n[2] * n[0]; i += part ? 5 : 3)
            t->values[t->leaf_count - 1][i] = -INFINITY;
    }
    return kn_attention_merge(t->graph, out[0], lse[0], out[1], lse[1], n[4] & SUM_AFTER ? KN_F32 : t->dtype);
}

/* n: span table, first query, queries, first key, keys */
static KnTensor *build_span_window(OpTrial *t, const int64_t *n)
{
    KnTensor *spans = leaf_given(t, 2, (int64_t[]){span_tables[n[0]].count, 4}, span_tables[n[0]].spans[0]);
    return kn_span_window(t->graph, spans, n[1], n[2], n[3], n[4]);
}

/* n: clips, heads, head size; clips of 1 to 7 queries and 2 to 6 keys */
static KnTensor *build_attention_many(OpTrial *t, const int64_t *n)
{
    enum { MOST = 64 };
    int32_t spans[MOST][4] = {{0}}, queries = 0, keys = 0;
    for (int i = 0; i < n[0] && i < MOST; i++) {
        int32_t span[4] = {queries, 1 + 3 * i % 7, keys, 2 + 2 * i % 5};
        memcpy(spans[i], span, sizeof span);
        queries += span[1];
        keys += span[3];
    }
    KnTensor *q = leaf_x(t, queries, n[1] * n[2]), *k = leaf_x(t, keys, n[1] * n[2]);
    KnTensor *v = leaf_x(t, keys, n[1] * n[2]), *table = leaf_given(t, 2, (int64_t[]){n[0], 4}, spans[0]);
    return kn_attention(t->graph, q, k, v, table, n[1], 1 / sqrtf((float)n[2]));
}

/* n: rows, columns */
static KnTensor *build_layer_norm(OpTrial *t, const int64_t *n)
{
    return kn_layer_norm(t->graph, leaf_x(t, n[0], n[1]), NULL, NULL, 1e-6f);
}

static KnTensor *build_layer_norm_affine(OpTrial *t, const int64_t *n)
{
    KnTensor *x = leaf_x(t, n[0], n[1]), *weight = leaf_f32(t, 1, n[1]), *bias = leaf_f32(t, 1, n[1]);
    return kn_layer_norm(t->graph, x, weight, bias, 1e-6f);
}

/* n: rows, columns, conditioning rows, of which only those from n[3] on are used */
static KnTensor *build_layer_norm_modulated(OpTrial *t, const int64_t *n)
{
    KnTensor *x = leaf_x(t, n[0], n[1]), *scale = leaf_f32(t, n[2], n[1]), *shift = leaf_f32(t, n[2], n[1]);
    return kn_layer_norm_modulated(t->graph, x, scale, shift, leaf_index(t, n[0], n[3], n[2]), 1e-6f);
}

/* A residual round a norm: the gradient of x has two parts. n as of the norm */
static KnTensor *build_residual_of_layer_norm(OpTrial *t, const int64_t *n)
{
    KnTensor *norm = build_layer_norm_modulated(t, n);
    return kn_add(t->graph, norm->producer->inputs[0], norm);
}

static KnTensor *build_residual_of_plain_norm(OpTrial *t, const int64_t *n)
{
    KnTensor *x = leaf_x(t, n[0], n[1]);
    return kn_add(t->graph, kn_layer_norm(t->graph, x, NULL, NULL, 1e-6f), x);
}

static KnTensor *build_rms_norm(OpTrial *t, const int64_t *n)
{
    KnTensor *x = leaf_x(t, n[0], n[1]);
    return kn_rms_norm(t->graph, x, leaf_f32(t, 1, n[1]), 1e-6f);
}

/* What a bias was added to before; n as without it. */
static KnTensor *biased(OpTrial *t, const int64_t *n)
{
    KnTensor *x = leaf_x(t, n[0], n[1]);
    return kn_add_row(t->graph, x, leaf_f32(t, 1, n[1]));
}

static KnTensor *build_rms_norm_of_biased(OpTrial *t, const int64_t *n)
{
    KnTensor *x = biased(t, n);
    return kn_rms_norm(t->graph, x, leaf_f32(t, 1, n[1]), 1e-6f);
}

static KnTensor *build_gated_residual_of_biased(OpTrial *t, const int64_t *n)
{
    KnTensor *x = leaf_x(t, n[0], n[1]), *y = biased(t, n), *gate = leaf_f32(t, n[2], n[1]);
    return kn_gated_residual(t->graph, x, y, gate, leaf_index(t, n[0], n[3], n[2]));
}

static KnTensor *build_gelu_of_biased(OpTrial *t, const int64_t *n)
{
    return kn_activation(t->graph, biased(t, n), KN_GELU_TANH);
}

static KnTensor *build_row_squares(OpTrial *t, const int64_t *n)
{
    return kn_row_squares(t->graph, leaf_x(t, n[0], n[1]));
}

/* n: rows, columns, all columns */
static KnTensor *build_rms_norm_split(OpTrial *t, const int64_t *n)
{
    LeafKind positive = {.role = KN_ROLE_INPUT, .dtype = KN_F32, .wanted = 1, .center = 20, .spread = 15};
    KnTensor *x = leaf_x(t, n[0], n[1]), *weight = leaf_f32(t, 1, n[1]);
    return kn_rms_norm_split(t->graph, x, weight, leaf(t, positive, 1, n), n[2], 1e-6f);
}

/* One of two parts whose squares are summed, so that the other's gradient comes from the sum alone.
 * n: rows, columns, columns of the other part */
static KnTensor *build_rms_norm_of_two(OpTrial *t, const int64_t *n)
{
    KnTensor *x = leaf_x(t, n[0], n[1]), *other = leaf_x(t, n[0], n[2]), *weight = leaf_f32(t, 1, n[1]);
    KnTensor *squares = kn_add(t->graph, kn_row_squares(t->graph, x), kn_row_squares(t->graph, other));
    return kn_rms_norm_split(t->graph, x, weight, squares, n[1] + n[2], 1e-6f);
}

static KnTensor *build_modulate(OpTrial *t, const int64_t *n)
{
    KnTensor *x = leaf_x(t, n[0], n[1]), *scale = leaf_f32(t, n[2], n[1]), *shift = leaf_f32(t, n[2], n[1]);
    return kn_modulate(t->graph, x, scale, shift, leaf_index(t, n[0], n[3], n[2]));
}

static KnTensor *build_gated_residual(OpTrial *t, const int64_t *n)
{
    KnTensor *x = leaf_x(t, n[0], n[1]), *y = leaf_x(t, n[0], n[1]), *gate = leaf_f32(t, n[2], n[1]);
    return kn_gated_residual(t->graph, x, y, gate, leaf_index(t, n[0], n[3], n[2]));
}

/* The sum and its norm, which may be made together. n as of a modulated norm, affine */
static KnTensor *build_norm_of_gated_residual(OpTrial *t, const int64_t *n)
{
    KnTensor *x = leaf_x(t, n[0], n[1]), *y = leaf_x(t, n[0], n[1]), *gate = leaf_f32(t, n[2], n[1]);
    KnTensor *rows = leaf_index(t, n[0], n[3], n[2]), *sum = kn_gated_residual(t->graph, x, y, gate, rows);
    KnTensor *factor = leaf_f32(t, n[4] ? 1 : n[2], n[1]), *term = leaf_f32(t, n[4] ? 1 : n[2], n[1]);
    KnTensor *norm = n[4] ? kn_layer_norm(t->graph, sum, factor, term, 1e-6f)
                          : kn_layer_norm_modulated(t->graph, sum, factor, term, rows, 1e-6f);
    return kn_add(t->graph, sum, norm);
}

static int64_t head_size(const int64_t *n)
{
    return 2 * (n[2] + n[3] + n[4]);
}

/* n: tokens, heads, pairs of t, y, x */
static KnTensor *turned(OpTrial *t, KnTensor *x, const int64_t *n, int inverse)
{
    enum { POSITIONS = 11 };
    KnRopeAttributes attributes = {.heads = n[1], .axis_pairs = {n[2], n[3], n[4]}, .inverse = inverse};
    LeafKind table = {.role = KN_ROLE_INPUT, .dtype = KN_F32, .spread = 1};
    KnTensor *positions = leaf_index(t, 3 * n[0], 0, POSITIONS);
    KnTensor *angles = leaf(t, table, 2, (int64_t[]){POSITIONS, head_size(n)});
    return kn_rope(t->graph, x, positions, angles, &attributes);
}

/* n: tokens, heads, pairs of t, y, x, inverse */
static KnTensor *build_rope(OpTrial *t, const int64_t *n)
{
    return turned(t, leaf_x(t, n[0], n[1] * head_size(n)), n, (int)n[5]);
}

/* n: tokens, heads, pairs of t, y, x, split and twice the number of groups that heads are then cut into */
static KnTensor *build_rms_norm_turned(OpTrial *t, const int64_t *n)
{
    int64_t columns = n[1] * head_size(n), shape[] = {n[0], columns, columns + 7}, groups = n[5] / 2, cuts[9];
    KnTensor *out = turned(t, n[5] % 2 ? build_rms_norm_split(t, shape) : build_rms_norm(t, shape), n, 0);
    for (int64_t i = 0; i <= groups; i++)
        cuts[i] = groups ? n[1] * i / groups * head_size(n) : 0;
    return groups ? kn_group_columns(t->graph, out, cuts, (int)groups) : out;
}

static KnTensor *build_timestep_embedding(OpTrial *t, const int64_t *n)
{
    LeafKind timesteps = {.role = KN_ROLE_INPUT, .dtype = KN_F32, .center = 500, .spread = 500};
    return kn_timestep_embedding(t->graph, leaf(t, timesteps, 1, n), n[1]);
}

/* n: rows, columns, kind, spread of the values */
static KnTensor *build_activation(OpTrial *t, const int64_t *n)
{
    LeafKind x = {.role = KN_ROLE_INPUT, .dtype = t->dtype, .wanted = 1, .spread = (double)n[3]};
    return kn_activation(t->graph, leaf(t, x, 2, n), (KnActivation)n[2]);
}

static KnTensor *build_add(OpTrial *t, const int64_t *n)
{
    KnTensor *a = leaf_x(t, n[0], n[1]);
    return kn_add(t->graph, a, leaf_x(t, n[0], n[1]));
}

/* n: rows, columns, sums */
static KnTensor *build_add_parts(OpTrial *t, const int64_t *n)
{
    KnTensor *a = leaf_of_parts(t, n[0], n[1], n[2]);
    return kn_add_parts(t->graph, a, leaf_x(t, n[0], n[1]), n[2] & SUM_AFTER ? KN_F32 : t->dtype);
}

static KnTensor *build_add_row(OpTrial *t, const int64_t *n)
{
    KnTensor *x = leaf_x(t, n[0], n[1]);
    return kn_add_row(t->graph, x, leaf_f32(t, 1, n[1]));
}

/* a is used twice, so that its gradient is a sum. */
static KnTensor *build_multiply(OpTrial *t, const int64_t *n)
{
    KnTensor *a = leaf_x(t, n[0], n[1]), *b = leaf_x(t, n[0], n[1]);
    return n[2] ? kn_multiply(t->graph, kn_multiply(t->graph, a, b), a) : kn_multiply(t->graph, a, b);
}

static KnTensor *build_scale(OpTrial *t, const int64_t *n)
{
    return kn_scale(t->graph, leaf_x(t, n[0], n[1]), -1.75f);
}

static KnTensor *build_cast(OpTrial *t, const int64_t *n)
{
    return kn_cast(t->graph, leaf_x(t, n[0], n[1]), t->dtype == KN_F32 ? KN_BF16 : KN_F32);
}

/* n: rows of the source, columns, indices, lowest index */
static KnTensor *build_gather_rows(OpTrial *t, const int64_t *n)
{
    KnTensor *x = leaf_x(t, n[0], n[1]);
    return kn_gather_rows(t->graph, x, leaf_index(t, n[2], n[3], n[0]));
}

/* n: rows of the result, columns, indices, lowest index */
static KnTensor *build_scatter_rows(OpTrial *t, const int64_t *n)
{
    KnTensor *x = leaf_x(t, n[2], n[1]);
    return kn_scatter_rows(t->graph, x, leaf_index(t, n[2], n[3], n[0]), n[0]);
}

/* n: rows, columns, extent of the second on the axis, axis */
static KnTensor *build_concatenate(OpTrial *t, const int64_t *n)
{
    KnTensor *a = leaf_x(t, n[0], n[1]);
    KnTensor *b = n[3] == 0 ? leaf_x(t, n[2], n[1]) : leaf_x(t, n[0], n[2]);
    return kn_concatenate(t->graph, a, b, (int)n[3]);
}

/* n: rows, columns, start, length, axis */
static KnTensor *build_slice(OpTrial *t, const int64_t *n)
{
    return kn_slice(t->graph, leaf_x(t, n[0], n[1]), (int)n[4], n[2], n[3]);
}

/* n: rows, columns, start, total, axis */
static KnTensor *build_pad(OpTrial *t, const int64_t *n)
{
    return kn_pad(t->graph, leaf_x(t, n[0], n[1]), (int)n[4], n[2], n[3]);
}

/* n: rows, columns, outer, middle */
static KnTensor *build_swap_axes(OpTrial *t, const int64_t *n)
{
    return kn_swap_axes(t->graph, leaf_x(t, n[0], n[1]), n[2], n[3]);
}

/* n: rows, columns, groups, of which the first takes a third and the second nothing; the others share the rest */
static void cut_columns(const int64_t *n, int64_t *cuts)
{
    cuts[0] = 0;
    for (int64_t i = 1; i <= n[2]; i++)
        cuts[i] = i <= 2 ? n[1] / 3 : n[1] / 3 + (n[1] - n[1] / 3) * (i - 2) / (n[2] - 2);
    cuts[n[2]] = n[1];
}

static KnTensor *build_group_columns(OpTrial *t, const int64_t *n)
{
    int64_t cuts[9];
    cut_columns(n, cuts);
    KnTensor *flat = kn_group_columns(t->graph, leaf_x(t, n[0], n[1]), cuts, (int)n[2]);
    memset(cuts, 0x55, sizeof cuts); /* the graph has its own */
    return flat;
}

static KnTensor *build_ungroup_columns(OpTrial *t, const int64_t *n)
{
    int64_t cuts[9];
    cut_columns(n, cuts);
    return kn_ungroup_columns(t->graph, leaf_x(t, 1, n[0] * n[1]), n[0], cuts, (int)n[2]);
}

/* n: rows, columns of a part, parts, whether a row is added; joined in reverse order, but for the first */
static KnTensor *build_split_columns(OpTrial *t, const int64_t *n)
{
    KnTensor *parts[KN_MAX_OUTPUTS], *turned[KN_MAX_OUTPUTS] = {0}, *x = leaf_x(t, n[0], n[1] * n[2]);
    kn_split_columns(t->graph, x, n[3] ? leaf_f32(t, 1, n[1] * n[2]) : NULL, (int)n[2], parts);
    for (int64_t i = 0; i < n[2]; i++)
        turned[i] = i < n[2] - 1 || i == 0 ? parts[n[2] - 1 - i] : NULL;
    return kn_join_columns(t->graph, turned, (int)n[2]);
}

/* n: rows, columns; every third token is masked, and its prediction not even a number */
static KnTensor *build_masked_mse(OpTrial *t, const int64_t *n)
{
    LeafKind data = {.role = KN_ROLE_INPUT, .dtype = KN_F32, .spread = 1}, weights = data;
    KnTensor *prediction = leaf_x(t, n[0], n[1]), *target = leaf(t, data, 2, n), *weight = leaf(t, weights, 1, n);
    for (int64_t l = 0; l < n[0]; l += 3) {
        t->values[t->leaf_count - 1][l] = 0;
        for (int64_t c = 0; c < n[1]; c++)
            t->values[t->leaf_count - 3][l * n[1] + c] = NAN;
    }
    return kn_masked_mse(t->graph, prediction, target, weight);
}

/* n: rows, columns, how many tensors more, each with a column more than the one before */
static KnTensor *build_sum_of_squares(OpTrial *t, const int64_t *n)
{
    KnTensor *list[KN_MAX_INPUTS];
    for (int i = 0; i <= n[2]; i++)
        list[i] = leaf_x(t, n[0], n[1] + i);
    return kn_sum_of_squares(t->graph, list, (int)n[2] + 1);
}

static KnTensor *state(OpTrial *t, int dims, const int64_t *shape, double center, double spread)
{
    LeafKind kind = {.role = KN_ROLE_STATE, .dtype = KN_F32, .center = center, .spread = spread};
    return leaf(t, kind, dims, shape);
}

static KnTensor *build_accumulate(OpTrial *t, const int64_t *n)
{
    KnTensor *sum = state(t, 2, n, 0, 1);
    kn_accumulate(t->graph, sum, state(t, 2, n, 0, 1));
    return NULL;
}

/* Hyper parameters of a fourth step, and the square of the gradient's norm; `mode` 0: no clipping, 1: clipped,
 * 2: the norm is not finite, so nothing may change. */
static KnTensor *hyper_leaf(OpTrial *t, int64_t mode)
{
    static const double values[KN_HYPER_COUNT] = {[KN_HYPER_LR] = 0.125,          [KN_HYPER_LR_OTHER] = 0.0625,
                                                  [KN_HYPER_CORRECTION1] = 0.375, [KN_HYPER_CORRECTION2] = 0.0078125,
                                                  [KN_HYPER_EMA] = 0.75,          [KN_HYPER_CLIP] = 0};
    KnTensor *hyper = state(t, 1, (int64_t[]){KN_HYPER_COUNT}, 0, 0);
    for (int i = 0; i < KN_HYPER_COUNT; i++)
        t->values[t->leaf_count - 1][i] = values[i];
    t->values[t->leaf_count - 1][KN_HYPER_CLIP] = mode == 1 ? 1.5 : 0;
    return hyper;
}

static KnTensor *norm_leaf(OpTrial *t, int64_t mode)
{
    KnTensor *norm2 = state(t, 0, NULL, 9, 0);
    if (mode == 2)
        t->values[t->leaf_count - 1][0] = NAN;
    return norm2;
}

static const KnUpdateAttributes update_attributes = {
    .beta1 = 0.9f, .beta2 = 0.99f, .eps = 1e-8f, .weight_decay = 0.1f, .momentum = 0.95f, .newton_schulz_steps = 5};

/* n: rows, columns, mode */
static KnTensor *build_adamw(OpTrial *t, const int64_t *n)
{
    KnTensor *parameter = state(t, 2, n, 0, 1), *gradient = state(t, 2, n, 0, 1);
    KnTensor *moment1 = state(t, 2, n, 0, 1), *moment2 = state(t, 2, n, 0.5, 0.5);
    KnTensor *hyper = hyper_leaf(t, n[2]);
    kn_adamw(t->graph, parameter, gradient, moment1, moment2, hyper, norm_leaf(t, n[2]), &update_attributes);
    return NULL;
}

static KnTensor *build_momentum(OpTrial *t, const int64_t *n)
{
    KnTensor *u = state(t, 2, n, 0, 1), *gradient = state(t, 2, n, 0, 1), *momentum = state(t, 2, n, 0, 1);
    KnTensor *hyper = hyper_leaf(t, n[2]);
    kn_momentum(t->graph, u, gradient, momentum, hyper, norm_leaf(t, n[2]), &update_attributes);
    return NULL;
}

/* n: count, rows, columns */
static KnTensor *build_orthogonalize(OpTrial *t, const int64_t *n)
{
    kn_orthogonalize(t->graph, state(t, 3, n, 0, 1), &update_attributes);
    return NULL;
}

static KnTensor *build_descend(OpTrial *t, const int64_t *n)
{
    KnTensor *parameter = state(t, 2, n, 0, 1), *direction = state(t, 2, n, 0, 1), *hyper = hyper_leaf(t, n[2]);
    kn_descend(t->graph, parameter, direction, hyper, norm_leaf(t, n[2]), &update_attributes);
    return NULL;
}

static KnTensor *build_ema(OpTrial *t, const int64_t *n)
{
    KnTensor *average = state(t, 2, n, 0, 1), *parameter = state(t, 2, n, 0, 1), *hyper = hyper_leaf(t, n[2]);
    kn_ema(t->graph, average, parameter, hyper, norm_leaf(t, n[2]));
    return NULL;
}

static KnTensor *build_all_reduce(OpTrial *t, const int64_t *n)
{
    KnTensor *sum = state(t, 2, n, 0, 1);
    const KnCollective *alone = kn_collective_create(t->graph, KN_ALL_REDUCE, 0, 1, 0, "sum", NULL, NULL);
    kn_collective_in_place_start(t->graph, alone, sum);
    kn_collective_in_place_wait(t->graph, alone, sum);
    return NULL;
}

static KnTensor *build_exchange(OpTrial *t, const int64_t *n)
{
    KnTensor *x = leaf_x(t, n[0], n[1]);
    const KnCollective *alone = kn_collective_create(t->graph, (KnCollectiveKind)n[2], 0, 1, 0, "alone",
                                                     (int64_t[]){0, n[0] * n[1]}, (int64_t[]){0, n[0] * n[1]});
    return kn_collective(t->graph, alone, x, x->dims, x->shape);
}

static KnTensor *build_replicate(OpTrial *t, const int64_t *n)
{
    const KnCollective *alone = kn_collective_create(t->graph, KN_ALL_REDUCE, 0, 1, 0, "alone", NULL, NULL);
    return kn_replicate(t->graph, alone, leaf_x(t, n[0], n[1]));
}

/* Rows n[2] .. n[3] - 1. */
static KnTensor *build_view(OpTrial *t, const int64_t *n)
{
    return kn_view(t->graph, leaf_x(t, n[0], n[1]), n[2] * n[1], 2, (int64_t[]){n[3] - n[2], n[1]});
}

static KnTensor *build_zeros(OpTrial *t, const int64_t *n)
{
    KnTensor *x = leaf_x(t, n[0], n[1]);
    return kn_add(t->graph, x, kn_zeros(t->graph, x->dtype, 2, n));
}

enum {
    ONE = OP_ONE_DTYPE,
    FORWARD = OP_NO_GRADIENT,
    STATE = OP_ONE_DTYPE | OP_NO_GRADIENT,
    PART = OP_NO_GRADIENT | OP_BF16_PRODUCT,
    SUM = OP_LAST | OP_BF16_PRODUCT /* what is made on the way is rounded, or not where it is part of another */
};

const OpCase op_cases[] = {
    {"matmul 1x1x1", build_matmul, {1, 1, 1, 0}, 0},
    {"matmul 7x5x3", build_matmul, {7, 5, 3, 0}, 0},
    {"matmul 13x17x19 with bias", build_matmul, {13, 17, 19, 4}, 0},
    {"matmul a^T b", build_matmul, {11, 5, 23, 1}, 0},
    {"matmul a b^T", build_matmul, {5, 31, 6, 2 | 4}, 0},
    {"matmul a^T b^T", build_matmul, {9, 16, 33, 3}, 0},
    {"matmul into f32", build_matmul, {6, 7, 64, 2 | 8}, 0},
    {"matmul packed", build_matmul, {8, 33, 37, 16 | 4}, 0},
    {"matmul packed b^T", build_matmul, {3, 18, 65, 16 | 2}, 0},
    {"matmul 131x257x67", build_matmul, {131, 257, 67, 4}, OP_LARGE},
    {"linear 1x1x1", build_linear, {1, 1, 1}, 0},
    {"linear 12x7x10", build_linear, {12, 7, 10}, 0},
    {"linear 257x96x131", build_linear, {257, 96, 131}, OP_LARGE},
    {"linear and a residual 1x1x1", build_linear_residual, {1, 1, 1, 0}, SUM},
    {"linear and a residual 12x7x10", build_linear_residual, {12, 7, 10, 1}, SUM},
    {"linear and a residual 67x32x48", build_linear_residual, {67, 32, 48, 0}, SUM | OP_LARGE},
    {"linear and a residual over nothing", build_linear_residual, {5, 0, 10, 0}, SUM},
    {"two linears 9x13x7", build_two_linears, {9, 13, 7}, SUM},
    {"two linears 67x32x48", build_two_linears, {67, 32, 48}, SUM | OP_LARGE},
    {"sum_rows 1x1", build_sum_rows, {1, 1}, FORWARD},
    {"sum_rows 131x37", build_sum_rows, {131, 37}, FORWARD},
    {"sum_rows 521x261", build_sum_rows, {521, 261}, FORWARD | OP_LARGE},

#include "ops/attention_cases.inc"

    {"layer_norm 3x1", build_layer_norm, {3, 1}, FORWARD},
    {"layer_norm 1x2", build_layer_norm, {1, 2}, FORWARD}, /* its gradient is a difference of equals */
    {"layer_norm 1x3", build_layer_norm, {1, 3}, 0},
    {"layer_norm 5x17", build_layer_norm, {5, 17}, 0},
    {"layer_norm 517x131", build_layer_norm, {517, 131}, OP_LARGE},
    {"layer_norm affine 3x64", build_layer_norm_affine, {3, 64}, 0},
    {"layer_norm affine 7x13", build_layer_norm_affine, {7, 13}, 0},
    {"layer_norm affine 389x203", build_layer_norm_affine, {389, 203}, OP_LARGE},
    {"layer_norm affine 53x1544", build_layer_norm_affine, {53, 1544}, OP_LARGE},
    {"layer_norm modulated 1x3", build_layer_norm_modulated, {1, 3, 1, 0}, 0},
    {"layer_norm modulated 11x19", build_layer_norm_modulated, {11, 19, 4, 1}, 0},
    {"layer_norm modulated 6x264", build_layer_norm_modulated, {6, 264, 2, 0}, 0},
    {"layer_norm modulated 613x131", build_layer_norm_modulated, {613, 131, 3, 1}, OP_LARGE},
    {"layer_norm modulated, a row each", build_layer_norm_modulated, {311, 128, 701, 5}, OP_LARGE},
    {"layer_norm modulated 9x3200", build_layer_norm_modulated, {9, 3200, 3, 1}, OP_LARGE},
    {"layer_norm modulated 101x264", build_layer_norm_modulated, {101, 264, 5, 0}, OP_LARGE},
    {"residual of layer_norm 5x17", build_residual_of_plain_norm, {5, 17}, OP_BF16_PRODUCT},
    {"residual of layer_norm modulated 11x19", build_residual_of_layer_norm, {11, 19, 4, 1}, OP_BF16_PRODUCT},
    {"residual of layer_norm modulated 101x264",
     build_residual_of_layer_norm,
     {101, 264, 5, 0},
     OP_LARGE | OP_BF16_PRODUCT},
    {"residual of layer_norm modulated 35x6152",
     build_residual_of_layer_norm,
     {35, 6152, 3, 1},
     OP_LARGE | OP_BF16_PRODUCT},
    {"rms_norm 1x1", build_rms_norm, {1, 1}, FORWARD},
    {"rms_norm 2x2", build_rms_norm, {2, 2}, 0},
    {"rms_norm 6x29", build_rms_norm, {6, 29}, 0},
    {"rms_norm 401x197", build_rms_norm, {401, 197}, OP_LARGE},
    {"rms_norm 9x3200", build_rms_norm, {9, 3200}, OP_LARGE},
    {"rms_norm 300x256", build_rms_norm, {300, 256}, OP_LARGE},
    {"rms_norm of a biased 6x29", build_rms_norm_of_biased, {6, 29}, OP_BF16_PRODUCT},
    {"rms_norm of a biased 83x520", build_rms_norm_of_biased, {83, 520}, OP_LARGE | OP_BF16_PRODUCT},
    {"rms_norm of a biased 33x6153", build_rms_norm_of_biased, {33, 6153}, OP_LARGE | OP_BF16_PRODUCT},
    {"gelu of a biased 5x19", build_gelu_of_biased, {5, 19}, OP_BF16_PRODUCT},
    {"gelu of a biased 101x2056", build_gelu_of_biased, {101, 2056}, OP_LARGE | OP_BF16_PRODUCT},

    {"row_squares 1x1", build_row_squares, {1, 1}, 0},
    {"row_squares 7x13", build_row_squares, {7, 13}, 0},
    {"row_squares 401x197", build_row_squares, {401, 197}, OP_LARGE},
    {"rms_norm_split 1x1 of 1", build_rms_norm_split, {1, 1, 1}, 0},
    {"rms_norm_split 6x29 of 87", build_rms_norm_split, {6, 29, 87}, 0},
    {"rms_norm_split 401x197 of 197", build_rms_norm_split, {401, 197, 197}, OP_LARGE},
    {"rms_norm_split 67x296 of 300", build_rms_norm_split, {67, 296, 300}, OP_LARGE},
    {"rms_norm_split 5x6153 of 7000", build_rms_norm_split, {5, 6153, 7000}, OP_LARGE},
    {"rms_norm of two parts", build_rms_norm_of_two, {5, 17, 22}, 0},

    {"modulate 1x1", build_modulate, {1, 1, 1, 0}, 0},
    {"modulate 9x23", build_modulate, {9, 23, 3, 1}, 0},
    {"modulate 613x131", build_modulate, {613, 131, 5, 1}, OP_LARGE},
    {"modulate 45x2056", build_modulate, {45, 2056, 5, 0}, OP_LARGE},
    {"gated_residual of a biased 9x23", build_gated_residual_of_biased, {9, 23, 3, 1}, OP_BF16_PRODUCT},
    {"gated_residual of a biased 203x64", build_gated_residual_of_biased, {203, 64, 7, 0}, OP_LARGE | OP_BF16_PRODUCT},
    {"gated_residual 1x1", build_gated_residual, {1, 1, 1, 0}, 0},
    {"gated_residual 9x23", build_gated_residual, {9, 23, 3, 1}, 0},
    {"gated_residual 613x131", build_gated_residual, {613, 131, 5, 1}, OP_LARGE},
    {"gated_residual 203x64", build_gated_residual, {203, 64, 7, 0}, OP_LARGE},
    {"norm of a gated_residual 9x23", build_norm_of_gated_residual, {9, 23, 3, 1, 0}, SUM},
    {"norm of a gated_residual 9x24", build_norm_of_gated_residual, {9, 24, 3, 1, 0}, SUM},
    {"norm of a gated_residual, affine, 7x40", build_norm_of_gated_residual, {7, 40, 3, 0, 1}, SUM},
    {"norm of a gated_residual, affine, 7x29", build_norm_of_gated_residual, {7, 29, 3, 0, 1}, SUM},
    {"norm of a gated_residual 203x64", build_norm_of_gated_residual, {203, 64, 7, 0, 0}, SUM | OP_LARGE},
    {"norm of a gated_residual, affine, 35x1544", build_norm_of_gated_residual, {35, 1544, 3, 1, 1}, SUM | OP_LARGE},
    {"norm of a gated_residual 5x12296", build_norm_of_gated_residual, {5, 12296, 2, 0, 0}, SUM | OP_LARGE},

    {"rope 1 token", build_rope, {1, 1, 1, 0, 0, 0}, 0},
    {"rope 12/10/10", build_rope, {5, 3, 6, 5, 5, 0}, 0},
    {"rope inverse", build_rope, {7, 2, 4, 2, 2, 1}, 0},
    {"rope 509 tokens of 2x66", build_rope, {509, 2, 13, 10, 10, 0}, OP_LARGE},
    {"rms_norm, turned, 1 token", build_rms_norm_turned, {1, 1, 1, 0, 0, 0}, SUM},
    {"rms_norm, turned, 3x32", build_rms_norm_turned, {5, 3, 6, 5, 5, 0}, SUM},
    {"rms_norm, turned, 5x6", build_rms_norm_turned, {7, 5, 1, 1, 1, 0}, SUM},
    {"rms_norm, grouped, 4x12", build_rms_norm_turned, {7, 4, 2, 2, 2, 4}, SUM},
    {"rms_norm, turned, 25x128", build_rms_norm_turned, {9, 25, 22, 21, 21, 0}, SUM | OP_LARGE},
    {"rms_norm, turned, 300x2x128", build_rms_norm_turned, {300, 2, 22, 21, 21, 0}, SUM | OP_LARGE},
    {"rms_norm, grouped, 5x32, uneven", build_rms_norm_turned, {5, 5, 6, 5, 5, 4}, SUM},
    {"rms_norm, grouped, 28x128", build_rms_norm_turned, {9, 28, 22, 21, 21, 8}, SUM | OP_LARGE},
    {"rms_norm_split, grouped, 4x32", build_rms_norm_turned, {5, 4, 6, 5, 5, 9}, SUM},
    {"rms_norm_split, turned, 3x32", build_rms_norm_turned, {5, 3, 6, 5, 5, 1}, SUM},
    {"rms_norm_split, turned, 5x6", build_rms_norm_turned, {7, 5, 1, 1, 1, 1}, SUM},
    {"timestep_embedding", build_timestep_embedding, {7, 26}, STATE},

    {"gelu_tanh 3x7", build_activation, {3, 7, KN_GELU_TANH, 3}, 0},
    {"gelu_tanh far out", build_activation, {9, 31, KN_GELU_TANH, 40}, 0},
    {"gelu_tanh 263x259", build_activation, {263, 259, KN_GELU_TANH, 5}, OP_LARGE},
    {"gelu_exact 3x7", build_activation, {3, 7, KN_GELU_EXACT, 3}, 0},
    {"gelu_exact far out", build_activation, {9, 31, KN_GELU_EXACT, 40}, 0},
    {"gelu_exact 263x259", build_activation, {263, 259, KN_GELU_EXACT, 5}, OP_LARGE},
    {"silu 3x7", build_activation, {3, 7, KN_SILU, 3}, 0},
    {"silu far out", build_activation, {9, 31, KN_SILU, 100}, 0},
    {"silu 263x259", build_activation, {263, 259, KN_SILU, 5}, OP_LARGE},
    {"add 1x1", build_add, {1, 1}, 0},
    {"add 5x7", build_add, {5, 7}, 0},
    {"add 263x259", build_add, {263, 259}, OP_LARGE},
    {"add_parts 1x1", build_add_parts, {1, 1, SUM_AFTER}, 0},
    {"add_parts 5x7", build_add_parts, {5, 7, SUM_BEFORE | SUM_AFTER}, 0},
    {"add_parts 263x259", build_add_parts, {263, 259, SUM_BEFORE}, OP_LARGE},
    {"add_parts of no rows", build_add_parts, {0, 9, SUM_AFTER}, 0},
    {"add_row 1x1", build_add_row, {1, 1}, 0},
    {"add_row 5x19", build_add_row, {5, 19}, 0},
    {"add_row 263x259", build_add_row, {263, 259}, OP_LARGE},
    {"multiply 1x1", build_multiply, {1, 1, 0}, 0},
    {"multiply twice 5x19", build_multiply, {5, 19, 1}, ONE},
    {"multiply 263x259", build_multiply, {263, 259, 0}, OP_LARGE},
    {"scale 5x19", build_scale, {5, 19}, 0},
    {"scale 263x259", build_scale, {263, 259}, OP_LARGE},
    {"cast 5x19", build_cast, {5, 19}, 0},
    {"cast 263x259", build_cast, {263, 259}, OP_LARGE},

    {"gather_rows 1x1", build_gather_rows, {1, 1, 1, 0}, 0},
    {"gather_rows repeated and negative", build_gather_rows, {4, 9, 13, -2}, 0},
    {"gather_rows 401x197", build_gather_rows, {31, 197, 401, -3}, OP_LARGE},
    {"scatter_rows 1x1", build_scatter_rows, {1, 1, 1, 0}, 0},
    {"scatter_rows repeated and negative", build_scatter_rows, {5, 9, 13, -2}, 0},
    {"scatter_rows into few rows", build_scatter_rows, {3, 197, 701, -1}, OP_LARGE},
    {"scatter_rows into many rows", build_scatter_rows, {997, 131, 401, -5}, OP_LARGE},
    {"concatenate rows", build_concatenate, {3, 7, 5, 0}, 0},
    {"concatenate columns", build_concatenate, {3, 7, 5, 1}, 0},
    {"concatenate large columns", build_concatenate, {401, 97, 101, 1}, OP_LARGE},
    {"slice rows", build_slice, {9, 7, 2, 5, 0}, 0},
    {"slice columns", build_slice, {9, 7, 3, 1, 1}, 0},
    {"slice large rows", build_slice, {601, 197, 11, 503, 0}, OP_LARGE},
    {"pad rows", build_pad, {3, 7, 2, 8, 0}, 0},
    {"pad columns", build_pad, {3, 7, 2, 13, 1}, 0},
    {"pad columns at the end", build_pad, {3, 7, 6, 13, 1}, 0},
    {"pad large columns", build_pad, {401, 131, 7, 211, 1}, OP_LARGE},
    {"swap_axes 6x4", build_swap_axes, {6, 4, 3, 2}, 0},
    {"swap_axes 7x5 of 3", build_swap_axes, {35, 3, 7, 5}, 0},
    {"swap_axes large", build_swap_axes, {401, 132, 401, 4}, OP_LARGE},

    {"group_columns 1x1", build_group_columns, {1, 1, 1}, 0},
    {"group_columns 5x13", build_group_columns, {5, 13, 4}, 0},
    {"group_columns 401x197", build_group_columns, {401, 197, 7}, OP_LARGE},
    {"split_columns and join_columns 1x1", build_split_columns, {1, 1, 1}, 0},
    {"split_columns and join_columns 5x3", build_split_columns, {5, 3, 4}, 0},
    {"split_columns of sums", build_split_columns, {3, 7, 6, 1}, ONE},
    {"split_columns and join_columns 203x40", build_split_columns, {203, 40, 6}, OP_LARGE},
    {"ungroup_columns 1x1", build_ungroup_columns, {1, 1, 1}, 0},
    {"ungroup_columns 5x13", build_ungroup_columns, {5, 13, 4}, 0},
    {"ungroup_columns 401x197", build_ungroup_columns, {401, 197, 7}, OP_LARGE},

    {"masked_mse 2x1", build_masked_mse, {2, 1}, 0},
    {"masked_mse 11x7", build_masked_mse, {11, 7}, 0},
    {"masked_mse 401x197", build_masked_mse, {401, 197}, OP_LARGE},
    {"sum_of_squares 1x1", build_sum_of_squares, {1, 1}, FORWARD},
    {"sum_of_squares of three", build_sum_of_squares, {9, 31, 2}, FORWARD},
    {"sum_of_squares 401x197", build_sum_of_squares, {401, 197}, FORWARD | OP_LARGE},

    {"accumulate 5x19", build_accumulate, {5, 19}, STATE},
    {"accumulate 263x259", build_accumulate, {263, 259}, STATE | OP_LARGE},
    {"adamw 5x19", build_adamw, {5, 19, 0}, STATE},
    {"adamw clipped", build_adamw, {5, 19, 1}, STATE},
    {"adamw where the norm is not finite", build_adamw, {5, 19, 2}, STATE},
    {"adamw 263x259", build_adamw, {263, 259, 1}, STATE | OP_LARGE},
    {"momentum 5x19", build_momentum, {5, 19, 0}, STATE},
    {"momentum clipped", build_momentum, {5, 19, 1}, STATE},
    {"momentum where the norm is not finite", build_momentum, {5, 19, 2}, STATE},
    {"momentum 263x259", build_momentum, {263, 259, 1}, STATE | OP_LARGE},
    {"orthogonalize 1x1", build_orthogonalize, {1, 1, 1}, STATE | OP_BF16_INSIDE},
    {"orthogonalize wide", build_orthogonalize, {3, 5, 11}, STATE | OP_BF16_INSIDE},
    {"orthogonalize tall", build_orthogonalize, {2, 37, 7}, STATE | OP_BF16_INSIDE},
    {"orthogonalize stack of 5", build_orthogonalize, {5, 64, 96}, STATE | OP_BF16_INSIDE | OP_LARGE},
    {"orthogonalize one of 67x260", build_orthogonalize, {1, 67, 260}, STATE | OP_BF16_INSIDE | OP_LARGE},
    {"orthogonalize one of 260x67", build_orthogonalize, {1, 260, 67}, STATE | OP_BF16_INSIDE | OP_LARGE},
    {"descend 5x19", build_descend, {5, 19, 0}, STATE},
    {"descend where the norm is not finite", build_descend, {5, 19, 2}, STATE},
    {"descend 263x259", build_descend, {263, 259, 0}, STATE | OP_LARGE},
    {"ema 5x19", build_ema, {5, 19, 0}, STATE},
    {"ema where the norm is not finite", build_ema, {5, 19, 2}, STATE},
    {"ema 263x259", build_ema, {263, 259, 0}, STATE | OP_LARGE},
    {"all_reduce of one rank in place", build_all_reduce, {5, 19}, STATE},
    {"all_reduce of one rank", build_exchange, {5, 19, KN_ALL_REDUCE}, 0},
    {"all_reduce of one rank, used alike", build_exchange, {5, 19, KN_ALL_REDUCE_ONCE}, 0},
    {"reduce_scatter of one rank", build_exchange, {5, 19, KN_REDUCE_SCATTER}, 0},
    {"all_gather of one rank", build_exchange, {5, 19, KN_ALL_GATHER}, 0},
    {"all_to_all of one rank", build_exchange, {5, 19, KN_ALL_TO_ALL}, 0},
    {"replicate 5x19", build_replicate, {5, 19}, 0},
    {"view of rows", build_view, {7, 5, 2, 6}, FORWARD},
    {"zeros 5x19", build_zeros, {5, 19}, 0},

#include "ops/empty_cases.inc"
#include "ops/speed_cases.inc"
};

const int op_case_count = COUNT(op_cases);
