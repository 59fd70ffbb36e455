/* What the CUDA backend makes of products and of what follows them: biases, GELU and sums in cuBLASLt's epilogues; and
 * of gated residuals and the norms that follow them. The plugin is linked to libraries that need no GPU
 * (tests/emulated); then the same by our own kernels for products. With a GPU at hand, `test_products --gpu` runs the
 * same on it, by kinora-cuda.so, and says which form of GELU cuBLASLt has. */
#include "built_path.h"
#include "cuda/trial.h"

#include "core/base/bf16.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/graph/devices.h"
#include "core/ops/ops.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { SKIPPED = 77 };

static int on_gpu;

/* ---- references ---- */

/* a [m, k] b [n, k]^T + bias */
static double *linear(const double *a, const double *b, const double *bias, int64_t m, int64_t n, int64_t k)
{
    double *c = kn_alloc((size_t)(m * n + 1) * sizeof *c);
    for (int64_t i = 0; i < m * n; i++) {
        c[i] = bias ? bias[i % n] : 0;
        for (int64_t j = 0; j < k; j++)
            c[i] += a[i / n * k + j] * b[i % n * k + j];
    }
    return c;
}

static double gelu_tanh(double x)
{
    return 0.5 * x * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x)));
}

static double gelu_exact(double x)
{
    return 0.5 * x * erfc(-x / sqrt(2));
}

/* A half unit in the last place of bfloat16; on hardware also what its tanh is off. */
static void assert_gelu(double got, double x)
{
    double most = 0.0041 * fabs(gelu_tanh(x)) + (on_gpu ? 1e-3 * (1 + fabs(x)) : 1e-5);
    if (!(fabs(got - gelu_tanh(x)) <= most))
        fail_msg("GELU(%g) is %g, should be %g", x, got, gelu_tanh(x));
}

static double rounded_to(double x, KnFp8Format format)
{
    const int mantissa = format == KN_E5M2 ? 2 : 3, least = format == KN_E5M2 ? -14 : -6;
    const double most = format == KN_E5M2 ? 57344 : 448;
    int exponent;
    frexp(x, &exponent);
    const double unit = ldexp(1, (exponent - 1 > least ? exponent - 1 : least) - mantissa);
    const double value = nearbyint(x / unit) * unit;
    return fabs(value) > most ? copysign(most, x) : value;
}

/* Gives a bf16 leaf values that the format holds. */
static void coarsen(Trial *t, int which, KnFp8Format format)
{
    for (int64_t i = 0; i < kn_tensor_elements(t->leaves[which]); i++) {
        t->values[which][i] = rounded_to(t->values[which][i], format);
        ((uint16_t *)t->memory[which])[i] = kn_bf16_from_float((float)t->values[which][i]);
    }
}

/* ---- GELU ---- */

enum { ROWS = 24, IN = 16, OUT = 40 };

typedef struct Layer {
    Trial t;
    KnTensor *before, *after;
    double *truth;
} Layer;

static Layer make_layer(KnDtype dtype, int64_t in)
{
    Layer l = {.t = trial_begin()};
    KnTensor *x = leaf(&l.t, KN_ROLE_INPUT, dtype, ROWS, in, 1);
    KnTensor *weight = leaf(&l.t, KN_ROLE_PARAMETER, KN_F32, OUT, in, 1);
    KnTensor *bias = leaf(&l.t, KN_ROLE_PARAMETER, KN_F32, 1, OUT, 2);
    l.before = kn_linear(l.t.graph, x, weight, bias);
    l.after = kn_activation(l.t.graph, l.before, KN_GELU_TANH);
    l.truth = linear(l.t.values[0], l.t.values[1], l.t.values[2], ROWS, OUT, in);
    return l;
}

static void end_layer(Layer *l)
{
    free(l->truth);
    trial_end(&l->t);
}

static void gelu_is_part_of_the_product(void **state)
{
    (void)state;
    Layer l = make_layer(KN_BF16, IN);
    double errors[2] = {0};
    int count = 0;
    run(&l.t, &l.after, 1);
    assert_int_equal(count_nodes(&l.t, KN_OP_ACTIVATION), 0);
    double *got = read_values(&l.t, l.after);
    for (int i = 0; i < ROWS * OUT; i++) {
        assert_gelu(got[i], l.truth[i]);
        if (l.truth[i] > -2) /* where the forms differ by less than bfloat16 shows */
            continue;
        errors[0] += fabs(got[i] - gelu_tanh(l.truth[i]));
        errors[1] += fabs(got[i] - gelu_exact(l.truth[i]));
        count++;
    }
    printf("GELU below -2: mean error %.3g against the form with tanh, %.3g against the one with erf\n",
           errors[0] / count, errors[1] / count);
    assert_true(count > 20);
    assert_true(errors[0] < errors[1]);
    free(got);
    end_layer(&l);
}

/* Of two readers the one is the GELU, which then stays a pass. */
static void gelu_stays_apart_where_others_read_what_enters_it(void **state)
{
    (void)state;
    Layer l = make_layer(KN_BF16, IN);
    KnTensor *other = kn_scale(l.t.graph, l.before, 2);
    run(&l.t, (KnTensor *[]){l.after, other}, 2);
    assert_int_equal(count_nodes(&l.t, KN_OP_ACTIVATION), 1);
    assert_int_equal(count_nodes(&l.t, KN_OP_MATMUL), 1);
    double *after = read_values(&l.t, l.after), *twice = read_values(&l.t, other);
    for (int i = 0; i < ROWS * OUT; i++) {
        assert_gelu(after[i], l.truth[i]);
        assert_true(fabs(twice[i] - 2 * l.truth[i]) <= 0.0041 * fabs(2 * l.truth[i]) + 1e-5);
    }
    free(after);
    free(twice);
    end_layer(&l);
}

static void gelu_stays_apart_in_float32_and_of_odd_sizes(void **state)
{
    (void)state;
    for (int odd = 0; odd < 2; odd++) {
        Layer l = make_layer(odd ? KN_BF16 : KN_F32, odd ? IN + 1 : IN);
        run(&l.t, &l.after, 1);
        assert_int_equal(count_nodes(&l.t, KN_OP_ACTIVATION), 1);
        double *got = read_values(&l.t, l.after);
        for (int i = 0; i < ROWS * OUT; i++)
            assert_true(fabs(got[i] - gelu_tanh(l.truth[i])) <=
                        (odd ? 0.02 * (fabs(l.truth[i]) + 0.01) : 1e-5 * (fabs(l.truth[i]) + 1)));
        free(got);
        end_layer(&l);
    }
}

/* ---- sums ---- */

/* sum [OUT, IN] += gradient [ROWS, OUT]^T x [ROWS, IN], in float64. */
static double *added(const Trial *t, int sum, int gradient, int x)
{
    double *out = kn_alloc((size_t)OUT * IN * sizeof *out);
    for (int i = 0; i < OUT * IN; i++) {
        out[i] = sum < 0 ? 0 : t->values[sum][i];
        for (int r = 0; r < ROWS; r++)
            out[i] += t->values[gradient][r * OUT + i / IN] * t->values[x][r * IN + i % IN];
    }
    return out;
}

/* The values are such that float32 holds every sum. */
static void assert_sums(const Trial *t, const KnTensor *tensor, int sum, int gradient, int x)
{
    double *got = read_values(t, tensor), *truth = added(t, sum, gradient, x);
    for (int i = 0; i < OUT * IN; i++)
        if (got[i] != truth[i])
            fail_msg("sum %d is %g, should be %g", i, got[i], truth[i]);
    free(got);
    free(truth);
}

static void a_gradient_is_added_by_its_product(void **state)
{
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        Trial t = trial_begin();
        KnTensor *gradient = leaf(&t, KN_ROLE_INPUT, bf16 ? KN_BF16 : KN_F32, ROWS, OUT, 2);
        KnTensor *x = leaf(&t, KN_ROLE_INPUT, bf16 ? KN_BF16 : KN_F32, ROWS, IN, 2);
        KnTensor *sum = leaf(&t, KN_ROLE_STATE, KN_F32, OUT, IN, 9);
        KnTensor *product = kn_matmul(t.graph, gradient, 1, x, 0, NULL, KN_F32);
        kn_accumulate(t.graph, sum, product);
        run(&t, NULL, 0);
        assert_int_equal(t.graph->node_count, 1);
        assert_sums(&t, sum, 2, 0, 1);
        trial_end(&t);
    }
}

/* Gradients of which the ranks keep ranges: the sum is a view of a buffer that begins as zeros. */
static void a_gradient_is_added_to_part_of_a_buffer(void **state)
{
    (void)state;
    Trial t = trial_begin();
    int64_t elements = 8 + OUT * IN;
    KnTensor *gradient = leaf(&t, KN_ROLE_INPUT, KN_BF16, ROWS, OUT, 2),
             *x = leaf(&t, KN_ROLE_INPUT, KN_BF16, ROWS, IN, 2);
    KnTensor *product = kn_matmul(t.graph, gradient, 1, x, 0, NULL, KN_F32);
    KnTensor *buffer = kn_zeros(t.graph, KN_F32, 1, &elements);
    KnTensor *part = kn_view(t.graph, buffer, 8, 2, (int64_t[]){OUT, IN});
    kn_accumulate(t.graph, part, product);
    KnTensor *result = kn_scale(t.graph, part, 1);
    run(&t, &result, 1);
    assert_int_equal(count_nodes(&t, KN_OP_ACCUMULATE), 0);
    assert_sums(&t, result, -1, 0, 1);
    trial_end(&t);
}

static void a_product_of_no_rows_adds_nothing(void **state)
{
    (void)state;
    Trial t = trial_begin();
    KnTensor *gradient = leaf(&t, KN_ROLE_INPUT, KN_BF16, 0, OUT, 2), *x = leaf(&t, KN_ROLE_INPUT, KN_BF16, 0, IN, 2);
    KnTensor *sum = leaf(&t, KN_ROLE_STATE, KN_F32, OUT, IN, 9);
    kn_accumulate(t.graph, sum, kn_matmul(t.graph, gradient, 1, x, 0, NULL, KN_F32));
    run(&t, NULL, 0);
    double *got = read_values(&t, sum);
    for (int i = 0; i < OUT * IN; i++)
        assert_true(got[i] == t.values[2][i]);
    free(got);
    trial_end(&t);
}

/* Another reader wants the product itself. */
static void a_product_with_other_readers_is_added_by_itself(void **state)
{
    (void)state;
    Trial t = trial_begin();
    KnTensor *gradient = leaf(&t, KN_ROLE_INPUT, KN_BF16, ROWS, OUT, 2),
             *x = leaf(&t, KN_ROLE_INPUT, KN_BF16, ROWS, IN, 2);
    KnTensor *sum = leaf(&t, KN_ROLE_STATE, KN_F32, OUT, IN, 9);
    KnTensor *product = kn_matmul(t.graph, gradient, 1, x, 0, NULL, KN_F32);
    kn_accumulate(t.graph, sum, product);
    KnTensor *other = kn_scale(t.graph, product, 1);
    run(&t, &other, 1);
    assert_int_equal(count_nodes(&t, KN_OP_ACCUMULATE), 1);
    assert_sums(&t, sum, 2, 0, 1);
    assert_sums(&t, other, -1, 0, 1);
    trial_end(&t);
}

/* The product must see its operand as it was before. */
static void a_product_does_not_move_past_a_change_of_its_operand(void **state)
{
    (void)state;
    Trial t = trial_begin();
    KnTensor *gradient = leaf(&t, KN_ROLE_STATE, KN_F32, ROWS, OUT, 2),
             *x = leaf(&t, KN_ROLE_INPUT, KN_F32, ROWS, IN, 2);
    KnTensor *sum = leaf(&t, KN_ROLE_STATE, KN_F32, OUT, IN, 9), *more = leaf(&t, KN_ROLE_INPUT, KN_F32, ROWS, OUT, 2);
    KnTensor *product = kn_matmul(t.graph, gradient, 1, x, 0, NULL, KN_F32);
    kn_accumulate(t.graph, gradient, more);
    kn_accumulate(t.graph, sum, product);
    run(&t, NULL, 0);
    assert_sums(&t, sum, 2, 0, 1);
    trial_end(&t);
}

/* ---- adding another tensor ---- */

static double rounded_as(KnDtype dtype, double value)
{
    return dtype == KN_BF16 ? (double)kn_bf16_to_float(kn_bf16_from_float((float)value)) : value;
}

/* Values are such that float32 holds each sum, and bfloat16 what it is rounded to once. */
static void assert_rounded(const Trial *t, const KnTensor *tensor, const double *truth)
{
    double *got = read_values(t, tensor);
    for (int64_t i = 0; i < kn_tensor_elements(tensor); i++)
        if (got[i] != rounded_as(tensor->dtype, truth[i]))
            fail_msg("element %d is %.9g, should be %.9g", (int)i, got[i], rounded_as(tensor->dtype, truth[i]));
    free(got);
}

static void assert_counts(const Trial *t, int products, int additions)
{
    assert_int_equal(count_nodes(t, KN_OP_MATMUL), products);
    assert_int_equal(count_nodes(t, KN_OP_ADD), additions);
}

static void add_values(double *sum, const double *values, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        sum[i] += values[i];
}

/* The trial's end: the sum is right and made by so many products and additions. Frees the truth. */
static void finish(Trial *t, KnTensor *sum, double *truth, int products, int additions)
{
    run(t, &sum, 1);
    assert_counts(t, products, additions);
    assert_rounded(t, sum, truth);
    free(truth);
    trial_end(t);
}

/* Weights that were gathered: two products' biases, and something between them. */
static void biases_of_one_buffer_are_rounded_at_once(void **state)
{
    (void)state;
    Trial t = trial_begin();
    int64_t count = OUT;
    KnTensor *x = leaf(&t, KN_ROLE_INPUT, KN_BF16, ROWS, IN, 2), *w = leaf(&t, KN_ROLE_INPUT, KN_BF16, OUT, IN, 2);
    KnTensor *all = leaf(&t, KN_ROLE_INPUT, KN_F32, 4, OUT, 9), *buffer = kn_scale(t.graph, all, 1), *out[2];
    for (int i = 0; i < 2; i++)
        out[i] = kn_matmul(t.graph, x, 0, w, 1, kn_view(t.graph, buffer, (1 + 2 * i) * OUT, 1, &count), KN_BF16);
    run(&t, out, 2);
    assert_int_equal(count_nodes(&t, KN_OP_CAST), 1);
    for (int i = 0; i < 2; i++) {
        double *truth = linear(t.values[0], t.values[1], t.values[2] + (1 + 2 * i) * OUT, ROWS, OUT, IN);
        assert_rounded(&t, out[i], truth);
        free(truth);
    }
    trial_end(&t);
}

static void an_addition_is_part_of_its_product(void **state)
{
    static const struct {
        KnDtype dtype, result;
        int64_t m, n, k;
        int has_bias, product_first;
    } rows[] = {
        {KN_BF16, KN_BF16, 24, 40, 16, 0, 0}, {KN_BF16, KN_BF16, 24, 40, 16, 1, 1}, {KN_BF16, KN_BF16, 7, 5, 3, 1, 0},
        {KN_BF16, KN_F32, 24, 40, 16, 0, 1},  {KN_BF16, KN_F32, 1, 13, 9, 0, 0},    {KN_F32, KN_F32, 24, 40, 16, 1, 0},
        {KN_F32, KN_F32, 5, 31, 1, 0, 1},     {KN_BF16, KN_BF16, 0, 40, 16, 1, 0},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int64_t m = rows[i].m, n = rows[i].n, k = rows[i].k;
        Trial t = trial_begin();
        KnTensor *a = leaf(&t, KN_ROLE_INPUT, rows[i].dtype, m, k, 1);
        KnTensor *b = leaf(&t, KN_ROLE_INPUT, rows[i].dtype, n, k, 1);
        KnTensor *other = leaf(&t, KN_ROLE_INPUT, rows[i].result, m, n, 9);
        KnTensor *bias = rows[i].has_bias ? leaf(&t, KN_ROLE_PARAMETER, KN_F32, 1, n, 2) : NULL;
        KnTensor *product = kn_matmul(t.graph, a, 0, b, 1, bias, rows[i].result);
        KnTensor *sum = rows[i].product_first ? kn_add(t.graph, product, other) : kn_add(t.graph, other, product);
        double *truth = linear(t.values[0], t.values[1], bias ? t.values[3] : NULL, m, n, k);
        add_values(truth, t.values[2], m * n);
        finish(&t, sum, truth, 1, 0);
    }
}

/* As the gradients of q, k and v: the first product is as it was, each other one adds what was there. */
static void sums_of_products_are_made_by_them(void **state)
{
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        Trial t = trial_begin();
        KnDtype dtype = bf16 ? KN_BF16 : KN_F32;
        KnTensor *sum = NULL;
        double *truth = NULL;
        for (int i = 0; i < 3; i++) {
            KnTensor *a = leaf(&t, KN_ROLE_INPUT, dtype, ROWS, IN, 1), *b = leaf(&t, KN_ROLE_INPUT, dtype, OUT, IN, 1);
            KnTensor *product = kn_matmul(t.graph, a, 0, b, 1, NULL, dtype);
            double *values = linear(t.values[2 * i], t.values[2 * i + 1], NULL, ROWS, OUT, IN);
            sum = sum ? kn_add(t.graph, sum, product) : product;
            for (int64_t j = 0; j < ROWS * OUT && truth; j++)
                values[j] += rounded_as(dtype, truth[j]);
            free(truth);
            truth = values;
        }
        finish(&t, sum, truth, 3, 0);
    }
}

static void an_addition_stays_apart_where_its_product_has_other_readers(void **state)
{
    (void)state;
    for (int twice = 0; twice < 2; twice++) { /* another node, or the addition itself */
        Trial t = trial_begin();
        KnTensor *a = leaf(&t, KN_ROLE_INPUT, KN_F32, ROWS, IN, 1), *b = leaf(&t, KN_ROLE_INPUT, KN_F32, OUT, IN, 1);
        KnTensor *other = leaf(&t, KN_ROLE_INPUT, KN_F32, ROWS, OUT, 9);
        KnTensor *product = kn_matmul(t.graph, a, 0, b, 1, NULL, KN_F32);
        KnTensor *keep[2] = {kn_add(t.graph, twice ? product : other, product), twice ? NULL : product};
        if (!twice)
            keep[1] = kn_scale(t.graph, product, 1);
        double *alone = linear(t.values[0], t.values[1], NULL, ROWS, OUT, IN);
        double *truth = linear(t.values[0], t.values[1], NULL, ROWS, OUT, IN);
        add_values(truth, twice ? alone : t.values[2], ROWS * OUT);
        run(&t, keep, 2 - twice);
        assert_counts(&t, 1, 1);
        assert_rounded(&t, keep[0], truth);
        if (!twice)
            assert_rounded(&t, keep[1], alone);
        free(alone);
        free(truth);
        trial_end(&t);
    }
}

/* Between product and addition the other operand changes, which the sum must see, or one of the product's, which it
 * must not. */
static void an_addition_sees_what_it_would_have_seen(void **state)
{
    (void)state;
    for (int of_product = 0; of_product < 2; of_product++) {
        Trial t = trial_begin();
        KnTensor *a = leaf(&t, KN_ROLE_STATE, KN_F32, ROWS, OUT, 1), *b = leaf(&t, KN_ROLE_INPUT, KN_F32, OUT, OUT, 1);
        KnTensor *other = leaf(&t, KN_ROLE_STATE, KN_F32, ROWS, OUT, 9);
        KnTensor *more = leaf(&t, KN_ROLE_INPUT, KN_F32, ROWS, OUT, 2);
        KnTensor *product = kn_matmul(t.graph, a, 0, b, 1, NULL, KN_F32);
        kn_accumulate(t.graph, of_product ? a : other, more);
        KnTensor *sum = kn_add(t.graph, other, product);
        double *truth = linear(t.values[0], t.values[1], NULL, ROWS, OUT, OUT);
        add_values(truth, t.values[2], ROWS * OUT);
        if (!of_product)
            add_values(truth, t.values[3], ROWS * OUT);
        finish(&t, sum, truth, 1, of_product);
    }
}

/* A sum is not what cuBLASLt's GELU was measured for, and a product over nothing is not cuBLASLt's. */
static void other_sums_stay_passes(void **state)
{
    (void)state;
    for (int nothing = 0; nothing < 2; nothing++) {
        Trial t = trial_begin();
        int64_t in = nothing ? 0 : IN;
        KnTensor *a = leaf(&t, KN_ROLE_INPUT, KN_BF16, ROWS, in, 1), *b = leaf(&t, KN_ROLE_INPUT, KN_BF16, OUT, in, 1);
        KnTensor *other = leaf(&t, KN_ROLE_INPUT, KN_BF16, ROWS, OUT, 1);
        KnTensor *sum = kn_add(t.graph, other, kn_matmul(t.graph, a, 0, b, 1, NULL, KN_BF16));
        KnTensor *after = kn_activation(t.graph, sum, KN_GELU_TANH);
        double *truth = linear(t.values[0], t.values[1], NULL, ROWS, OUT, in);
        add_values(truth, t.values[2], ROWS * OUT);
        run(&t, &after, 1);
        assert_counts(&t, 1, nothing);
        assert_int_equal(count_nodes(&t, KN_OP_ACTIVATION), 1);
        double *got = read_values(&t, after);
        for (int i = 0; i < ROWS * OUT; i++)
            assert_gelu(got[i], rounded_as(KN_BF16, truth[i]));
        free(got);
        free(truth);
        trial_end(&t);
    }
}

/* ---- gated residuals and norms ---- */

/* The norm of a gated residual that others read too, its statistics, the sum and all gradients, one after another;
 * `apart`: norm and residual have an index each, of the same rows. */
static double *run_norm_of_residual(KnDtype dtype, int64_t columns, int apart, int64_t *count)
{
    enum { LINES = 77, KEPT = 7 };
    Trial t = trial_begin();
    KnTensor *x = leaf(&t, KN_ROLE_INPUT, dtype, LINES, columns, 4),
             *y = leaf(&t, KN_ROLE_INPUT, dtype, LINES, columns, 4);
    KnTensor *gate = leaf(&t, KN_ROLE_INPUT, KN_F32, 3, columns, 2),
             *scale = leaf(&t, KN_ROLE_INPUT, KN_F32, 3, columns, 2);
    KnTensor *rows = leaf(&t, KN_ROLE_INPUT, KN_I32, LINES, 1, 3), *same = leaf(&t, KN_ROLE_INPUT, KN_I32, LINES, 1, 3);
    KnTensor *target = leaf(&t, KN_ROLE_INPUT, KN_F32, LINES, columns, 4),
             *weight = leaf(&t, KN_ROLE_INPUT, KN_F32, LINES, 1, 2);
    memcpy(t.memory[5], t.memory[4], LINES * sizeof(int32_t));
    KnTensor *sum = kn_gated_residual(t.graph, x, y, kn_scale(t.graph, gate, 1 / 3.0f), rows);
    KnTensor *norm = kn_layer_norm_modulated(t.graph, sum, scale, scale, apart ? same : rows, 1e-6f);
    KnTensor *loss = kn_masked_mse(t.graph, kn_add(t.graph, sum, norm), target, weight);
    KnTensor *kept[KEPT] = {norm, norm->producer->outputs[1], sum};
    kn_gradient(t.graph, loss, (KnTensor *[]){x, y, gate, scale}, 4, kept + 3, kn_add);
    *count = (4 * LINES + 6) * columns + 2 * LINES;
    double *all = kn_alloc((size_t)*count * sizeof *all), *at = all;
    run(&t, kept, KEPT);
    assert_int_equal(count_nodes(&t, KN_OP_GATED_RESIDUAL), apart);
    assert_int_equal(count_nodes(&t, KN_OP_GATED_RESIDUAL_BACKWARD), apart);
    for (int i = 0; i < KEPT; i++) {
        double *values = read_values(&t, kept[i]);
        for (int64_t j = 0; j < kn_tensor_elements(kept[i]); j++)
            *at++ = values[j] + 0.0; /* of zeros without their sign */
        free(values);
    }
    assert_true(at == all + *count);
    trial_end(&t);
    return all;
}

/* So that a block that is computed again, with the norm alone, has the bits of its first time. In rows of any length,
 * also of more columns than one kernel has. */
static void a_norm_that_makes_its_residual_has_the_bits_of_both_passes(void **state)
{
    static const int64_t columns[] = {13, 1544, 5128};
    (void)state;
    for (int i = 0; i < 6; i++) {
        int64_t count;
        double *together = run_norm_of_residual(i % 2 ? KN_BF16 : KN_F32, columns[i / 2], 0, &count);
        double *apart = run_norm_of_residual(i % 2 ? KN_BF16 : KN_F32, columns[i / 2], 1, &count);
        assert_memory_equal(together, apart, (size_t)count * sizeof *apart);
        free(together);
        free(apart);
    }
}

/* ---- 8 bits ---- */

enum { TOKENS = 40, WIDTH = 32, INNER = 48 };

/* A half unit in the last place of bfloat16; on hardware also what its sums of 8-bit products leave out. */
static int is_near(double got, double truth)
{
    return fabs(got - truth) <= 0.0041 * fabs(truth) + (on_gpu ? 0.02 : 0);
}

static void skip_without_8_bits(void)
{
    if (!cuda->supports(cuda, &(KnNode){.op = kn_op(KN_OP_QUANTIZE)}))
        skip();
}

/* Values of the leaves are such that e4m3 and e5m2 with a scale of a power of two hold them. */
static void products_of_blocks_are_of_8_bits(void **state)
{
    (void)state;
    skip_without_8_bits();
    Trial t = trial_begin();
    KnTensor *x = leaf(&t, KN_ROLE_INPUT, KN_BF16, TOKENS, WIDTH, 1);
    KnTensor *weight = leaf(&t, KN_ROLE_PARAMETER, KN_F32, INNER, WIDTH, 1);
    KnTensor *bias = leaf(&t, KN_ROLE_PARAMETER, KN_F32, 1, INNER, 2);
    KnTensor *scales = leaf(&t, KN_ROLE_STATE, KN_F32, 2, 2, 1);
    KnTensor *gradient = leaf(&t, KN_ROLE_INPUT, KN_BF16, TOKENS, INNER, 1);
    KnTensor *sum = leaf(&t, KN_ROLE_STATE, KN_F32, INNER, WIDTH, 2);
    scales->name = KN_FP8_LEAF;
    memset(t.memory[3], 0, 4 * sizeof(float));
    coarsen(&t, 4, KN_E5M2);
    kn_block_begin(t.graph);
    KnTensor *rounded = kn_cast(t.graph, weight, KN_BF16);
    KnTensor *y = kn_matmul(t.graph, x, 0, rounded, 1, bias, KN_BF16);
    KnTensor *twice = kn_scale(t.graph, y, 2);
    t.graph->in_backward = 1;
    KnTensor *dx = kn_matmul(t.graph, gradient, 0, rounded, 0, NULL, KN_BF16);
    kn_accumulate(t.graph, sum, kn_matmul(t.graph, gradient, 1, x, 0, NULL, KN_F32));
    t.graph->in_backward = 0;
    kn_block_end(t.graph);
    assert_int_equal(kn_fp8_sites(t.graph), 2);
    run(&t, (KnTensor *[]){twice, dx}, 2);
    assert_int_equal(count_nodes(&t, KN_OP_QUANTIZE), 3);
    assert_int_equal(count_nodes(&t, KN_OP_ACCUMULATE), 0);
    assert_int_equal(count_nodes(&t, KN_OP_CAST), 1); /* of the bias: the weight is rounded from its master */
    double *got = read_values(&t, twice), *truth = linear(t.values[0], t.values[1], t.values[2], TOKENS, INNER, WIDTH);
    for (int i = 0; i < TOKENS * INNER; i++)
        assert_true(is_near(got[i], 2 * truth[i]));
    free(got);
    got = read_values(&t, dx);
    for (int i = 0; i < TOKENS * WIDTH; i++) {
        double value = 0;
        for (int j = 0; j < INNER; j++)
            value += t.values[4][i / WIDTH * INNER + j] * t.values[1][j * WIDTH + i % WIDTH];
        assert_true(is_near(got[i], value));
    }
    free(got);
    got = read_values(&t, sum);
    for (int i = 0; i < INNER * WIDTH; i++) {
        double value = t.values[5][i];
        for (int j = 0; j < TOKENS; j++)
            value += t.values[4][j * INNER + i / WIDTH] * t.values[0][j * WIDTH + i % WIDTH];
        assert_true(on_gpu ? is_near(got[i], value) : got[i] == value);
    }
    free(got);
    got = read_values(&t, scales);
    assert_true(got[0] == 0 && got[1] == 0 && got[2] == 1 && got[3] == 1); /* the largest |x| and |gradient| */
    free(got);
    free(truth);
    trial_end(&t);
}

/* The same rounding by hand, of values that 8 bits do not hold: the scale is given, and saturates. */
static void operands_are_rounded_by_the_scale_that_is_given(void **state)
{
    (void)state;
    skip_without_8_bits();
    Trial t = trial_begin();
    KnTensor *x = leaf(&t, KN_ROLE_INPUT, KN_BF16, TOKENS, WIDTH, 9);
    KnTensor *weight = leaf(&t, KN_ROLE_PARAMETER, KN_F32, INNER, WIDTH, 1);
    KnTensor *scales = leaf(&t, KN_ROLE_STATE, KN_F32, 2, 2, 1);
    const float given[4] = {64, 0, 1, 0};
    scales->name = KN_FP8_LEAF;
    memcpy(t.memory[2], given, sizeof given);
    kn_block_begin(t.graph);
    KnTensor *y = kn_linear(t.graph, x, weight, NULL);
    kn_block_end(t.graph);
    run(&t, &y, 1);
    for (int i = 0; i < TOKENS * WIDTH; i++)
        t.values[0][i] = rounded_to(t.values[0][i] * 64, KN_E4M3) / 64;
    double *got = read_values(&t, y), *truth = linear(t.values[0], t.values[1], NULL, TOKENS, INNER, WIDTH);
    for (int i = 0; i < TOKENS * INNER; i++)
        assert_true(is_near(got[i], truth[i]));
    free(got);
    free(truth);
    got = read_values(&t, scales);
    assert_true(got[2] == 9);
    free(got);
    trial_end(&t);
}

/* The cross-attention's residual. */
static void an_addition_is_part_of_a_product_of_8_bits(void **state)
{
    (void)state;
    skip_without_8_bits();
    Trial t = trial_begin();
    KnTensor *x = leaf(&t, KN_ROLE_INPUT, KN_BF16, TOKENS, WIDTH, 1);
    KnTensor *weight = leaf(&t, KN_ROLE_PARAMETER, KN_F32, INNER, WIDTH, 1);
    KnTensor *bias = leaf(&t, KN_ROLE_PARAMETER, KN_F32, 1, INNER, 2);
    KnTensor *other = leaf(&t, KN_ROLE_INPUT, KN_BF16, TOKENS, INNER, 9);
    KnTensor *scales = leaf(&t, KN_ROLE_STATE, KN_F32, 2, 2, 1);
    scales->name = KN_FP8_LEAF;
    memset(t.memory[4], 0, 4 * sizeof(float));
    kn_block_begin(t.graph);
    KnTensor *sum = kn_add(t.graph, other, kn_linear(t.graph, x, weight, bias));
    kn_block_end(t.graph);
    run(&t, &sum, 1);
    assert_int_equal(count_nodes(&t, KN_OP_QUANTIZE), 2);
    assert_counts(&t, 1, 0);
    double *got = read_values(&t, sum), *truth = linear(t.values[0], t.values[1], t.values[2], TOKENS, INNER, WIDTH);
    add_values(truth, t.values[3], TOKENS * INNER);
    for (int i = 0; i < TOKENS * INNER; i++)
        assert_true(is_near(got[i], truth[i]));
    free(got);
    free(truth);
    trial_end(&t);
}

static void other_products_stay_as_they_are(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) { /* outside of blocks; of a width that 16 does not divide */
        Trial t = trial_begin();
        KnTensor *x = leaf(&t, KN_ROLE_INPUT, KN_BF16, TOKENS, i ? 24 : WIDTH, 1);
        KnTensor *weight = leaf(&t, KN_ROLE_PARAMETER, KN_F32, INNER, i ? 24 : WIDTH, 1);
        KnTensor *scales = leaf(&t, KN_ROLE_STATE, KN_F32, 2, 2, 1);
        scales->name = KN_FP8_LEAF;
        if (i)
            kn_block_begin(t.graph);
        KnTensor *y = kn_linear(t.graph, x, weight, NULL);
        if (i)
            kn_block_end(t.graph);
        run(&t, &y, 1);
        assert_int_equal(count_nodes(&t, KN_OP_QUANTIZE), 0);
        trial_end(&t);
    }
}

/* ---- shapes ---- */

static int wrong_elements(const Trial *t, const KnTensor *result, const double *truth)
{
    double *got = read_values(t, result);
    int64_t count = kn_tensor_elements(result);
    int wrong = 0;
    for (int64_t i = 0; i < count; i++) {
        double most = (result->dtype == KN_BF16 ? 0.0041 : 1e-6) * (fabs(truth[i]) + 1e-3);
        wrong += !(fabs(got[i] - truth[i]) <= most);
    }
    free(got);
    return wrong;
}

/* op(a) op(b) + bias, a stored as [k, m] and b as [n, k] where transposed, in float64. */
static double *multiplied(const Trial *t, const KnTensor *bias, const int64_t size[3], int transposes)
{
    int64_t m = size[0], n = size[1], k = size[2];
    double *truth = kn_alloc((size_t)(m * n + 1) * sizeof *truth);
    for (int64_t i = 0; i < m * n; i++) {
        int64_t row = i / n, column = i % n;
        truth[i] = bias ? t->values[2][column] : 0;
        for (int64_t j = 0; j < k; j++)
            truth[i] += t->values[0][transposes & 1 ? j * m + row : row * k + j] *
                        t->values[1][transposes & 2 ? column * k + j : j * n + column];
    }
    return truth;
}

/* Sizes about those of tiles, and such that rows are whole pieces of 16 bytes or not. */
static void products_are_right_of_every_shape(void **state)
{
    static const int64_t sizes[][3] = {{1, 1, 1},      {7, 17, 1},    {1, 257, 33}, {129, 7, 17}, {64, 136, 72},
                                       {136, 264, 40}, {17, 129, 96}, {2, 8, 257},  {257, 1, 24}};
    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int kind = 0; kind < 12; kind++) { /* transposes, and bf16, bf16 into float32 or float32 */
            int transposes = kind % 4;
            int64_t m = sizes[i][0], n = sizes[i][1], k = sizes[i][2];
            KnDtype dtype = kind / 4 < 2 ? KN_BF16 : KN_F32, to = kind / 4 < 1 ? KN_BF16 : KN_F32;
            Trial t = trial_begin();
            KnTensor *a = leaf(&t, KN_ROLE_INPUT, dtype, transposes & 1 ? k : m, transposes & 1 ? m : k, 1);
            KnTensor *b = leaf(&t, KN_ROLE_INPUT, dtype, transposes & 2 ? n : k, transposes & 2 ? k : n, 1);
            KnTensor *bias = i % 2 ? leaf(&t, KN_ROLE_PARAMETER, KN_F32, 1, n, 2) : NULL;
            KnTensor *product = kn_matmul(t.graph, a, transposes & 1, b, transposes >> 1, bias, to);
            double *truth = multiplied(&t, bias, sizes[i], transposes);
            run(&t, &product, 1);
            int wrong = wrong_elements(&t, product, truth);
            if (wrong)
                fail_msg("%lld x %lld x %lld, kind %d: %d elements are wrong", (long long)m, (long long)n, (long long)k,
                         kind, wrong);
            free(truth);
            trial_end(&t);
        }
}

/* Operands that begin two or four bytes past a multiple of 16. */
static void products_are_right_of_unaligned_operands(void **state)
{
    (void)state;
    for (int kind = 0; kind < 8; kind++) {
        int transposes = kind % 4;
        const int64_t size[3] = {72, 136, 40};
        Trial t = trial_begin();
        KnTensor *whole = leaf(&t, KN_ROLE_INPUT, kind < 4 ? KN_BF16 : KN_F32, 1, 1 + size[0] * size[2], 1);
        KnTensor *b =
            leaf(&t, KN_ROLE_INPUT, whole->dtype, size[transposes & 2 ? 1 : 2], size[transposes & 2 ? 2 : 1], 1);
        KnTensor *a =
            kn_view(t.graph, whole, 1, 2, (int64_t[]){size[transposes & 1 ? 2 : 0], size[transposes & 1 ? 0 : 2]});
        KnTensor *product = kn_matmul(t.graph, a, transposes & 1, b, transposes >> 1, NULL, KN_F32);
        double *kept = t.values[0];
        t.values[0]++;
        double *truth = multiplied(&t, NULL, size, transposes);
        t.values[0] = kept;
        run(&t, &product, 1);
        assert_int_equal(wrong_elements(&t, product, truth), 0);
        free(truth);
        trial_end(&t);
    }
}

/* ---- all of them ---- */

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gelu_is_part_of_the_product),
        cmocka_unit_test(gelu_stays_apart_where_others_read_what_enters_it),
        cmocka_unit_test(gelu_stays_apart_in_float32_and_of_odd_sizes),
        cmocka_unit_test(a_gradient_is_added_by_its_product),
        cmocka_unit_test(a_gradient_is_added_to_part_of_a_buffer),
        cmocka_unit_test(a_product_of_no_rows_adds_nothing),
        cmocka_unit_test(a_product_with_other_readers_is_added_by_itself),
        cmocka_unit_test(a_product_does_not_move_past_a_change_of_its_operand),
        cmocka_unit_test(biases_of_one_buffer_are_rounded_at_once),
        cmocka_unit_test(an_addition_is_part_of_its_product),
        cmocka_unit_test(sums_of_products_are_made_by_them),
        cmocka_unit_test(an_addition_stays_apart_where_its_product_has_other_readers),
        cmocka_unit_test(an_addition_sees_what_it_would_have_seen),
        cmocka_unit_test(other_sums_stay_passes),
        cmocka_unit_test(a_norm_that_makes_its_residual_has_the_bits_of_both_passes),
        cmocka_unit_test(products_of_blocks_are_of_8_bits),
        cmocka_unit_test(operands_are_rounded_by_the_scale_that_is_given),
        cmocka_unit_test(an_addition_is_part_of_a_product_of_8_bits),
        cmocka_unit_test(other_products_stay_as_they_are),
        cmocka_unit_test(products_are_right_of_every_shape),
        cmocka_unit_test(products_are_right_of_unaligned_operands),
    };
    on_gpu = argc > 1 && strcmp(argv[1], "--gpu") == 0;
    char *path = plugin_path(on_gpu ? "kinora-cuda.so" : "kinora-cuda-emulated.so");
    if (access(path, R_OK) != 0) {
        printf("%s: built without CUDA: skipped\n", path);
        return SKIPPED;
    }
    int failures = 0;
    for (int own = 0; own < 2; own++) { /* by cuBLASLt, then by our own kernels */
        if (own)
            setenv("KINORA_CUBLASLT", "0", 1);
        if (kn_cuda_backend_open(path, 0, &cuda) < 0) {
            printf("%s\n", kn_error_message());
            return 1;
        }
        failures +=
            _cmocka_run_group_tests(own ? "own kernels" : "cuBLASLt", tests, sizeof tests / sizeof *tests, NULL, NULL);
        kn_backend_close(cuda);
    }
    free(path);
    return failures != 0;
}
