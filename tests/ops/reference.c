/* Every op in float64, from its formula in core/ops/ops.h: slow, plain, one element after the other. */
#include "ops/ops_test.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ROWS(i) kn_tensor_rows(node->inputs[i])
#define COLUMNS(i) kn_tensor_columns(node->inputs[i])
#define ELEMENTS(i) kn_tensor_elements(node->inputs[i])
#define ATTRIBUTES(type) ((const type *)node->attributes)

static void matmul(const KnNode *node, double *const *in, double *const *out)
{
    const KnMatmulAttributes *p = ATTRIBUTES(KnMatmulAttributes);
    for (int64_t i = 0; i < p->m; i++)
        for (int64_t j = 0; j < p->n; j++) {
            double sum = in[2] ? in[2][j] : 0;
            for (int64_t k = 0; k < p->k; k++)
                sum += in[0][p->transpose_a ? k * p->m + i : i * p->k + k] *
                       in[1][p->transpose_b ? j * p->k + k : k * p->n + j];
            out[0][i * p->n + j] = sum;
        }
}

static void sum_rows(const KnNode *node, double *const *in, double *const *out)
{
    for (int64_t c = 0; c < COLUMNS(0); c++) {
        out[0][c] = 0;
        for (int64_t r = 0; r < ROWS(0); r++)
            out[0][c] += in[0][r * COLUMNS(0) + c];
    }
}

static void attend(const KnNode *node, double *const *in, double *const *out, const double *span, int64_t head)
{
    const KnAttentionAttributes *p = ATTRIBUTES(KnAttentionAttributes);
    int64_t width = COLUMNS(0), d = width / p->heads, keys = (int64_t)span[3], first = (int64_t)span[2];
    double *probability = calloc((size_t)keys + 1, sizeof *probability);
    for (int64_t q = (int64_t)span[0]; q < (int64_t)(span[0] + span[1]) && keys > 0; q++) {
        double largest = -INFINITY, sum = 0;
        for (int64_t k = 0; k < keys; k++) {
            double dot = 0;
            for (int64_t c = head * d; c < (head + 1) * d; c++)
                dot += in[0][q * width + c] * in[1][(first + k) * width + c];
            probability[k] = dot * (double)p->scale;
            largest = fmax(largest, probability[k]);
        }
        for (int64_t k = 0; k < keys; k++)
            sum += probability[k] = exp(probability[k] - largest);
        for (int64_t k = 0; k < keys; k++) {
            probability[k] /= sum;
            for (int64_t c = head * d; c < (head + 1) * d; c++)
                out[0][q * width + c] += probability[k] * in[2][(first + k) * width + c];
        }
        out[1][head * ROWS(0) + q] = largest + log(sum);
    }
    free(probability);
}

static void attention(const KnNode *node, double *const *in, double *const *out)
{
    int64_t heads = ATTRIBUTES(KnAttentionAttributes)->heads;
    for (int64_t i = 0; i < ELEMENTS(0); i++)
        out[0][i] = 0;
    for (int64_t i = 0; i < heads * ROWS(0); i++)
        out[1][i] = -INFINITY;
    for (int64_t s = 0; s < ROWS(3); s++)
        for (int64_t head = 0; head < heads; head++)
            attend(node, in, out, in[3] + 4 * s, head);
}

/* dv = p^T dO; ds = p (dO v^T - delta), p = exp(scale q k^T - lse), delta = sum of dO out; dq = scale ds k,
 * dk = scale ds^T q. */
static void part_backward(const KnNode *node, double *const *in, double *const *out, const double *span, int64_t head)
{
    const KnAttentionAttributes *p = ATTRIBUTES(KnAttentionAttributes);
    int64_t width = COLUMNS(0), d = width / p->heads;
    for (int64_t i = (int64_t)span[0]; i < (int64_t)(span[0] + span[1]); i++)
        for (int64_t j = (int64_t)span[2]; j < (int64_t)(span[2] + span[3]); j++) {
            int64_t q = i * width + head * d, k = j * width + head * d;
            double lse = in[5][head * ROWS(0) + i], score = 0, product = 0, delta = 0;
            for (int64_t c = 0; c < d; c++) {
                score += (double)p->scale * in[0][q + c] * in[1][k + c];
                product += in[6][q + c] * in[2][k + c];
                delta += in[6][q + c] * in[4][q + c];
            }
            double probability = isinf(lse) ? 0 : exp(score - lse), ds = probability * (product - delta);
            for (int64_t c = 0; c < d; c++) {
                out[0][q + c] += (double)p->scale * ds * in[1][k + c];
                out[1][k + c] += (double)p->scale * ds * in[0][q + c];
                out[2][k + c] += probability * in[6][q + c];
            }
        }
}

static void attention_backward(const KnNode *node, double *const *in, double *const *out)
{
    for (int i = 0; i < 3; i++)
        memset(out[i], 0, (size_t)ELEMENTS(i) * sizeof(double));
    for (int64_t s = 0; s < ROWS(3); s++)
        for (int64_t head = 0; head < ATTRIBUTES(KnAttentionAttributes)->heads; head++)
            part_backward(node, in, out, in[3] + 4 * s, head);
}

static void attention_merge(const KnNode *node, double *const *in, double *const *out)
{
    int64_t rows = ROWS(0), columns = COLUMNS(0), heads = ROWS(1);
    for (int64_t i = 0; i < rows * columns; i++) {
        int64_t at = i % columns / (columns / heads) * rows + i / columns;
        double a = exp(in[1][at]), b = exp(in[3][at]);
        out[0][i] = a + b > 0 ? (a * in[0][i] + b * in[2][i]) / (a + b) : 0;
        out[1][at] = log(a + b);
    }
}

/* Row by row of the window: which of them the span has. */
static void span_window(const KnNode *node, double *const *in, double *const *out)
{
    const KnSpanWindowAttributes *p = ATTRIBUTES(KnSpanWindowAttributes);
    const int64_t first[2] = {p->q_first, p->k_first}, count[2] = {p->q_count, p->k_count};
    for (int64_t i = 0; i < 2 * ROWS(0); i++) {
        double start = 0, length = 0;
        for (int64_t row = 0; row < count[i % 2]; row++) {
            double at = (double)(first[i % 2] + row);
            if (at < in[0][2 * i] || at >= in[0][2 * i] + in[0][2 * i + 1])
                continue;
            start = length++ > 0 ? start : (double)row;
        }
        out[0][2 * i] = start;
        out[0][2 * i + 1] = length;
    }
}

static void layer_norm(const KnNode *node, double *const *in, double *const *out)
{
    int64_t columns = COLUMNS(0);
    double eps = (double)ATTRIBUTES(KnNormAttributes)->eps;
    for (int64_t l = 0; l < ROWS(0); l++) {
        const double *x = in[0] + l * columns;
        double mean = 0, variance = 0;
        for (int64_t c = 0; c < columns; c++)
            mean += x[c] / (double)columns;
        for (int64_t c = 0; c < columns; c++)
            variance += (x[c] - mean) * (x[c] - mean) / (double)columns;
        out[1][2 * l] = mean;
        out[1][2 * l + 1] = 1 / sqrt(variance + eps);
        for (int64_t c = 0; c < columns; c++) {
            double y = (x[c] - mean) / sqrt(variance + eps);
            if (in[1])
                y = y * in[1][c] + in[2][c];
            if (in[3])
                y = y * (1 + in[3][(int64_t)in[5][l] * columns + c]) + in[4][(int64_t)in[5][l] * columns + c];
            out[0][l * columns + c] = y;
        }
    }
}

static void rms_norm(const KnNode *node, double *const *in, double *const *out)
{
    int64_t columns = COLUMNS(0);
    for (int64_t l = 0; l < ROWS(0); l++) {
        double square = 0;
        for (int64_t c = 0; c < columns; c++)
            square += in[0][l * columns + c] * in[0][l * columns + c] / (double)columns;
        out[1][l] = 1 / sqrt(square + (double)ATTRIBUTES(KnNormAttributes)->eps);
        for (int64_t c = 0; c < columns; c++)
            out[0][l * columns + c] = in[0][l * columns + c] * out[1][l] * in[1][c];
    }
}

static void row_squares(const KnNode *node, double *const *in, double *const *out)
{
    memset(out[0], 0, (size_t)ROWS(0) * sizeof(double));
    for (int64_t i = 0; i < ELEMENTS(0); i++)
        out[0][i / COLUMNS(0)] += in[0][i] * in[0][i];
}

static void rms_norm_split(const KnNode *node, double *const *in, double *const *out)
{
    const KnSplitNormAttributes *p = ATTRIBUTES(KnSplitNormAttributes);
    for (int64_t l = 0; l < ROWS(0); l++) {
        out[1][l] = 1 / sqrt(in[2][l] / (double)p->total_columns + (double)p->eps);
        for (int64_t c = 0; c < COLUMNS(0); c++)
            out[0][l * COLUMNS(0) + c] = in[0][l * COLUMNS(0) + c] * out[1][l] * in[1][c];
    }
}

static void modulate(const KnNode *node, double *const *in, double *const *out)
{
    for (int64_t i = 0; i < ELEMENTS(0); i++) {
        int64_t at = (int64_t)in[3][i / COLUMNS(0)] * COLUMNS(0) + i % COLUMNS(0);
        out[0][i] = in[0][i] * (1 + in[1][at]) + in[2][at];
    }
}

static void gated_residual(const KnNode *node, double *const *in, double *const *out)
{
    for (int64_t i = 0; i < ELEMENTS(0); i++)
        out[0][i] = in[0][i] + in[1][i] * in[2][(int64_t)in[3][i / COLUMNS(0)] * COLUMNS(0) + i % COLUMNS(0)];
}

static void rope(const KnNode *node, double *const *in, double *const *out)
{
    const KnRopeAttributes *p = ATTRIBUTES(KnRopeAttributes);
    int64_t columns = COLUMNS(0), d = COLUMNS(2);
    for (int64_t l = 0; l < ROWS(0); l++)
        for (int64_t pair = 0; pair < columns / 2; pair++) {
            int64_t j = pair % (d / 2), axis = j < p->axis_pairs[0]                      ? 0
                                               : j < p->axis_pairs[0] + p->axis_pairs[1] ? 1
                                                                                         : 2;
            const double *angle = in[2] + (int64_t)in[1][3 * l + axis] * d + 2 * j;
            double a = in[0][l * columns + 2 * pair], b = in[0][l * columns + 2 * pair + 1];
            double sine = p->inverse ? -angle[1] : angle[1];
            out[0][l * columns + 2 * pair] = a * angle[0] - b * sine;
            out[0][l * columns + 2 * pair + 1] = a * sine + b * angle[0];
        }
}

static void timestep_embedding(const KnNode *node, double *const *in, double *const *out)
{
    int64_t half = kn_tensor_columns(node->outputs[0]) / 2;
    for (int64_t r = 0; r < ELEMENTS(0); r++)
        for (int64_t i = 0; i < half; i++) {
            double angle = in[0][r] * pow(10000, -(double)i / (double)half);
            out[0][r * 2 * half + i] = cos(angle);
            out[0][r * 2 * half + half + i] = sin(angle);
        }
}

static double activate(double x, KnActivation kind)
{
    switch (kind) {
    case KN_GELU_TANH:
        return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case KN_GELU_EXACT:
        return 0.5 * x * erfc(-x / sqrt(2));
    case KN_SILU:
        return x / (1 + exp(-x));
    }
    abort();
}

static void activation(const KnNode *node, double *const *in, double *const *out)
{
    for (int64_t i = 0; i < ELEMENTS(0); i++)
        out[0][i] = activate(in[0][i], ATTRIBUTES(KnActivationAttributes)->kind);
}

static void add(const KnNode *node, double *const *in, double *const *out)
{
    for (int64_t i = 0; i < ELEMENTS(0); i++)
        out[0][i] = in[0][i] + in[1][i];
}

static void add_row(const KnNode *node, double *const *in, double *const *out)
{
    for (int64_t i = 0; i < ELEMENTS(0); i++)
        out[0][i] = in[0][i] + in[1][i % COLUMNS(0)];
}

static void multiply(const KnNode *node, double *const *in, double *const *out)
{
    for (int64_t i = 0; i < ELEMENTS(0); i++)
        out[0][i] = in[0][i] * in[1][i];
}

static void scale(const KnNode *node, double *const *in, double *const *out)
{
    for (int64_t i = 0; i < ELEMENTS(0); i++)
        out[0][i] = in[0][i] * (double)ATTRIBUTES(KnScaleAttributes)->factor;
}

static void copy(const KnNode *node, double *const *in, double *const *out)
{
    memcpy(out[0], in[0], (size_t)ELEMENTS(0) * sizeof(double));
}

static void gather_rows(const KnNode *node, double *const *in, double *const *out)
{
    for (int64_t i = 0; i < ELEMENTS(1); i++)
        for (int64_t c = 0; c < COLUMNS(0); c++)
            out[0][i * COLUMNS(0) + c] = in[1][i] < 0 ? 0 : in[0][(int64_t)in[1][i] * COLUMNS(0) + c];
}

static void scatter_rows(const KnNode *node, double *const *in, double *const *out)
{
    memset(out[0], 0, (size_t)kn_tensor_elements(node->outputs[0]) * sizeof(double));
    for (int64_t i = 0; i < ELEMENTS(0); i++)
        if (in[1][i / COLUMNS(0)] >= 0)
            out[0][(int64_t)in[1][i / COLUMNS(0)] * COLUMNS(0) + i % COLUMNS(0)] += in[0][i];
}

static void concatenate(const KnNode *node, double *const *in, double *const *out)
{
    int64_t columns = kn_tensor_columns(node->outputs[0]);
    for (int64_t i = 0; i < kn_tensor_elements(node->outputs[0]); i++) {
        int64_t r = i / columns, c = i % columns;
        if (ATTRIBUTES(KnSliceAttributes)->axis == 0)
            out[0][i] = r < ROWS(0) ? in[0][i] : in[1][(r - ROWS(0)) * columns + c];
        else
            out[0][i] = c < COLUMNS(0) ? in[0][r * COLUMNS(0) + c] : in[1][r * COLUMNS(1) + c - COLUMNS(0)];
    }
}

static void slice(const KnNode *node, double *const *in, double *const *out)
{
    const KnSliceAttributes *p = ATTRIBUTES(KnSliceAttributes);
    int64_t columns = kn_tensor_columns(node->outputs[0]);
    for (int64_t i = 0; i < kn_tensor_elements(node->outputs[0]); i++) {
        int64_t r = i / columns + (p->axis == 0 ? p->start : 0), c = i % columns + (p->axis == 1 ? p->start : 0);
        out[0][i] = in[0][r * COLUMNS(0) + c];
    }
}

static void pad(const KnNode *node, double *const *in, double *const *out)
{
    const KnSliceAttributes *p = ATTRIBUTES(KnSliceAttributes);
    int64_t columns = kn_tensor_columns(node->outputs[0]);
    memset(out[0], 0, (size_t)kn_tensor_elements(node->outputs[0]) * sizeof(double));
    for (int64_t i = 0; i < ELEMENTS(0); i++) {
        int64_t r = i / COLUMNS(0) + (p->axis == 0 ? p->start : 0), c = i % COLUMNS(0) + (p->axis == 1 ? p->start : 0);
        out[0][r * columns + c] = in[0][i];
    }
}

static void swap_axes(const KnNode *node, double *const *in, double *const *out)
{
    const KnSwapAttributes *p = ATTRIBUTES(KnSwapAttributes);
    for (int64_t i = 0; i < ELEMENTS(0); i++) {
        int64_t outer = i / (p->middle * p->inner), middle = i / p->inner % p->middle, inner = i % p->inner;
        out[0][(middle * p->outer + outer) * p->inner + inner] = in[0][i];
    }
}

static void split_columns(const KnNode *node, double *const *in, double *const *out)
{
    int64_t width = kn_tensor_columns(node->outputs[0]);
    for (int64_t i = 0; i < ELEMENTS(0); i++)
        out[i % COLUMNS(0) / width][i / COLUMNS(0) * width + i % width] =
            in[0][i] + (in[1] ? in[1][i % COLUMNS(0)] : 0);
}

static void join_columns(const KnNode *node, double *const *in, double *const *out)
{
    int64_t columns = kn_tensor_columns(node->outputs[0]), width = columns / node->input_count;
    for (int64_t i = 0; i < kn_tensor_elements(node->outputs[0]); i++) {
        const double *part = in[i % columns / width];
        out[0][i] = part ? part[i / columns * width + i % columns % width] : 0;
    }
}

/* Column by column, in the order of the result. */
static void group_columns(const KnNode *node, double *const *in, double *const *out)
{
    const KnGroupAttributes *p = ATTRIBUTES(KnGroupAttributes);
    int64_t at = 0;
    for (int g = 0; g < p->groups; g++)
        for (int64_t r = 0; r < ROWS(0); r++)
            for (int64_t c = p->cuts[g]; c < p->cuts[g + 1]; c++)
                out[0][at++] = in[0][r * COLUMNS(0) + c];
}

static void ungroup_columns(const KnNode *node, double *const *in, double *const *out)
{
    const KnGroupAttributes *p = ATTRIBUTES(KnGroupAttributes);
    int64_t at = 0;
    for (int g = 0; g < p->groups; g++)
        for (int64_t r = 0; r < p->rows; r++)
            for (int64_t c = p->cuts[g]; c < p->cuts[g + 1]; c++)
                out[0][r * p->cuts[p->groups] + c] = in[0][at++];
}

static void masked_mse(const KnNode *node, double *const *in, double *const *out)
{
    out[0][0] = 0;
    for (int64_t i = 0; i < ELEMENTS(0); i++)
        if (in[2][i / COLUMNS(0)] != 0)
            out[0][0] += in[2][i / COLUMNS(0)] * (in[0][i] - in[1][i]) * (in[0][i] - in[1][i]);
}

static void sum_of_squares(const KnNode *node, double *const *in, double *const *out)
{
    out[0][0] = 0;
    for (int k = 0; k < node->input_count; k++)
        for (int64_t i = 0; i < ELEMENTS(k); i++)
            out[0][0] += in[k][i] * in[k][i];
}

static void accumulate(const KnNode *node, double *const *in, double *const *out)
{
    (void)out;
    for (int64_t i = 0; i < ELEMENTS(0); i++)
        in[0][i] += in[1][i];
}

static double clip_factor(const double *hyper, double norm2)
{
    double clip = hyper[KN_HYPER_CLIP];
    return clip > 0 && sqrt(norm2) > clip ? clip / sqrt(norm2) : 1;
}

static void adamw(const KnNode *node, double *const *in, double *const *out)
{
    const KnUpdateAttributes *p = ATTRIBUTES(KnUpdateAttributes);
    const double *hyper = in[4];
    (void)out;
    if (!isfinite(in[5][0]))
        return;
    for (int64_t i = 0; i < ELEMENTS(0); i++) {
        double g = in[1][i] * clip_factor(hyper, in[5][0]), beta1 = (double)p->beta1, beta2 = (double)p->beta2;
        in[2][i] = beta1 * in[2][i] + (1 - beta1) * g;
        in[3][i] = beta2 * in[3][i] + (1 - beta2) * g * g;
        double m = in[2][i] / hyper[KN_HYPER_CORRECTION1], v = in[3][i] / hyper[KN_HYPER_CORRECTION2];
        in[0][i] -= hyper[KN_HYPER_LR_OTHER] * (m / (sqrt(v) + (double)p->eps) + (double)p->weight_decay * in[0][i]);
    }
}

/* c[n,n] = a[n,k] b[n,k]^T, or, with b = NULL, of a with itself. */
static void times_transposed(const double *a, int64_t n, int64_t k, double *c)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            c[i * n + j] = 0;
            for (int64_t l = 0; l < k; l++)
                c[i * n + j] += a[i * k + l] * a[j * k + l];
        }
}

static void newton_schulz(double *x, int64_t rows, int64_t columns)
{
    double *gram = calloc((size_t)(rows * rows), sizeof *gram), *square = calloc((size_t)(rows * rows), sizeof *gram);
    double *next = calloc((size_t)(rows * columns), sizeof *gram);
    times_transposed(x, rows, columns, gram);
    times_transposed(gram, rows, rows, square); /* A A = A A^T, A being symmetric */
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) {
            next[i * columns + j] = 3.4445 * x[i * columns + j];
            for (int64_t k = 0; k < rows; k++)
                next[i * columns + j] +=
                    (-4.7750 * gram[i * rows + k] + 2.0315 * square[i * rows + k]) * x[k * columns + j];
        }
    memcpy(x, next, (size_t)(rows * columns) * sizeof *x);
    free(gram);
    free(square);
    free(next);
}

static void momentum(const KnNode *node, double *const *in, double *const *out)
{
    double factor = (double)ATTRIBUTES(KnUpdateAttributes)->momentum;
    (void)out;
    for (int64_t i = 0; i < ELEMENTS(0) && isfinite(in[4][0]); i++) {
        double g = in[1][i] * clip_factor(in[3], in[4][0]);
        in[2][i] = factor * in[2][i] + g;
        in[0][i] = g + factor * in[2][i];
    }
}

static void orthogonalize(const KnNode *node, double *const *in, double *const *out)
{
    const int64_t *shape = node->inputs[0]->shape;
    int64_t rows = shape[1], columns = shape[2], size = rows * columns;
    (void)out;
    for (int64_t matrix = 0; matrix < shape[0]; matrix++) {
        double norm = 0, *u = in[0] + matrix * size;
        for (int64_t i = 0; i < size; i++)
            norm += u[i] * u[i];
        for (int64_t i = 0; i < size; i++)
            u[i] /= sqrt(norm);
        for (int step = 0; step < ATTRIBUTES(KnUpdateAttributes)->newton_schulz_steps; step++)
            newton_schulz(u, rows, columns);
        for (int64_t i = 0; i < size; i++)
            u[i] *= 0.2 * sqrt((double)(rows > columns ? rows : columns));
    }
}

static void descend(const KnNode *node, double *const *in, double *const *out)
{
    double decay = (double)ATTRIBUTES(KnUpdateAttributes)->weight_decay;
    (void)out;
    for (int64_t i = 0; i < ELEMENTS(0) && isfinite(in[3][0]); i++)
        in[0][i] -= in[2][KN_HYPER_LR] * (in[1][i] + decay * in[0][i]);
}

static void ema(const KnNode *node, double *const *in, double *const *out)
{
    (void)out;
    for (int64_t i = 0; i < ELEMENTS(0) && isfinite(in[3][0]); i++)
        in[0][i] += (1 - in[2][KN_HYPER_EMA]) * (in[1][i] - in[0][i]);
}

/* On one rank a sum over ranks is what it was. */
/* A group of one rank gets what it sends; in place there is nothing to do. */
static void exchange_alone(const KnNode *node, double *const *in, double *const *out)
{
    if (node->output_count)
        copy(node, in, out);
}

static void view(const KnNode *node, double *const *in, double *const *out)
{
    const KnTensor *part = node->outputs[0];
    memcpy(out[0], in[0] + part->base_offset / kn_dtype_bytes(part->dtype),
           (size_t)kn_tensor_elements(part) * sizeof(double));
}

static void zeros(const KnNode *node, double *const *in, double *const *out)
{
    (void)in;
    memset(out[0], 0, (size_t)kn_tensor_elements(node->outputs[0]) * sizeof(double));
}

static const Reference references[KN_OP_COUNT] = {
    [KN_OP_MATMUL] = matmul,
    [KN_OP_SUM_ROWS] = sum_rows,
    [KN_OP_ATTENTION] = attention,
    [KN_OP_ATTENTION_BACKWARD] = attention_backward,
    [KN_OP_ATTENTION_MERGE] = attention_merge,
    [KN_OP_SPAN_WINDOW] = span_window,
    [KN_OP_LAYER_NORM] = layer_norm,
    [KN_OP_RMS_NORM] = rms_norm,
    [KN_OP_ROW_SQUARES] = row_squares,
    [KN_OP_RMS_NORM_SPLIT] = rms_norm_split,
    [KN_OP_MODULATE] = modulate,
    [KN_OP_GATED_RESIDUAL] = gated_residual,
    [KN_OP_ROPE] = rope,
    [KN_OP_TIMESTEP_EMBEDDING] = timestep_embedding,
    [KN_OP_ACTIVATION] = activation,
    [KN_OP_ADD] = add,
    [KN_OP_ADD_ROW] = add_row,
    [KN_OP_MULTIPLY] = multiply,
    [KN_OP_SCALE] = scale,
    [KN_OP_CAST] = copy,
    [KN_OP_GATHER_ROWS] = gather_rows,
    [KN_OP_SCATTER_ROWS] = scatter_rows,
    [KN_OP_CONCATENATE] = concatenate,
    [KN_OP_SLICE] = slice,
    [KN_OP_PAD] = pad,
    [KN_OP_SWAP_AXES] = swap_axes,
    [KN_OP_GROUP_COLUMNS] = group_columns,
    [KN_OP_UNGROUP_COLUMNS] = ungroup_columns,
    [KN_OP_SPLIT_COLUMNS] = split_columns,
    [KN_OP_JOIN_COLUMNS] = join_columns,
    [KN_OP_MASKED_MSE] = masked_mse,
    [KN_OP_SUM_OF_SQUARES] = sum_of_squares,
    [KN_OP_ACCUMULATE] = accumulate,
    [KN_OP_ADAMW] = adamw,
    [KN_OP_MOMENTUM] = momentum,
    [KN_OP_ORTHOGONALIZE] = orthogonalize,
    [KN_OP_DESCEND] = descend,
    [KN_OP_EMA] = ema,
    [KN_OP_COLLECTIVE_START] = exchange_alone,
    [KN_OP_COLLECTIVE_WAIT] = exchange_alone,
    [KN_OP_REPLICATE] = copy,
    [KN_OP_VIEW] = view,
    [KN_OP_ZEROS] = zeros,
};

Reference op_reference(KnOpId id)
{
    return references[id];
}
