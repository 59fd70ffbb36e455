/* Layer norm (plain, affine, modulated) with its gradients.
 *
 * A row is read two or three times, the later ones from the first-level cache: mean, then the squared distances from it
 * (never the difference of two large sums), then the result. With n = (x - mean) rstd and h the gradient that reaches
 * n, dx = rstd (h - mean(h) - n mean(h n)). Gradients of what is shared by tokens are sums over rows (row_sum.h). */
#include "core/cpu/simd/kernels.h"
#include "core/cpu/simd/row_sum.h"

#include <math.h>

typedef struct Norm {
    int64_t columns;
    float eps;
    const void *x, *grad;
    const float *weight, *bias, *scale, *shift;
    const int32_t *rows;
    void *out;
    float *stats_out;
    const float *stats;
} Norm;

static float eps_of(const KnNode *node)
{
    return ((const KnNormAttributes *)node->attributes)->eps;
}

KN_V_INLINE float sum_of_row(const void *x, int64_t at, int64_t columns, const int bf16)
{
    KnV sums[4] = {0};
    KN_VECTORS_OF_SUMS(0, columns, c, lanes, s, { sums[s] += kn_v_read(x, at + c, lanes, bf16); });
    return kn_v_total4(sums);
}

/* Sum of (x - mean)^2. */
KN_V_INLINE float sum_of_squares(const void *x, int64_t at, int64_t columns, float mean, const int bf16)
{
    KnV sums[4] = {0};
    KN_VECTORS_OF_SUMS(0, columns, c, lanes, s, {
        KnV distance = kn_v_keep(kn_v_read(x, at + c, lanes, bf16) - mean, lanes);
        sums[s] = kn_v_fma(distance, distance, sums[s]);
    });
    return kn_v_total4(sums);
}

KN_V_INLINE void layer_norm(const void *arguments, int64_t first, int64_t last, const int bf16)
{
    const Norm n = *(const Norm *)arguments;
    int64_t columns = n.columns;
    for (int64_t l = first; l < last; l++) {
        int64_t at = l * columns;
        float mean = sum_of_row(n.x, at, columns, bf16) / (float)columns;
        float variance = sum_of_squares(n.x, at, columns, mean, bf16) / (float)columns;
        float rstd = 1.0f / sqrtf(variance + n.eps);
        n.stats_out[2 * l] = mean;
        n.stats_out[2 * l + 1] = rstd;
        if (n.scale) {
            const float *scale = n.scale + n.rows[l] * columns, *shift = n.shift + n.rows[l] * columns;
            KN_VECTORS(0, columns, c, lanes, {
                KnV norm = (kn_v_read(n.x, at + c, lanes, bf16) - mean) * rstd;
                KnV y = kn_v_fma(norm, 1.0f + kn_v_read(scale, c, lanes, 0), kn_v_read(shift, c, lanes, 0));
                kn_v_write(n.out, at + c, y, lanes, bf16);
            });
        } else if (n.weight) {
            KN_VECTORS(0, columns, c, lanes, {
                KnV norm = (kn_v_read(n.x, at + c, lanes, bf16) - mean) * rstd;
                KnV y = kn_v_fma(norm, kn_v_read(n.weight, c, lanes, 0), kn_v_read(n.bias, c, lanes, 0));
                kn_v_write(n.out, at + c, y, lanes, bf16);
            });
        } else {
            KN_VECTORS(0, columns, c, lanes, {
                kn_v_write(n.out, at + c, (kn_v_read(n.x, at + c, lanes, bf16) - mean) * rstd, lanes, bf16);
            });
        }
    }
}
KN_FOR_BOTH_DTYPES(layer_norm);

static int run_layer_norm(const KnCall *call)
{
    const KnNode *node = call->node;
    const KnTensor *x = node->inputs[0];
    int64_t rows = kn_tensor_rows(x), columns = kn_tensor_columns(x);
    Norm n = {.columns = columns,
              .eps = eps_of(node),
              .x = call->inputs[0],
              .weight = call->inputs[1],
              .bias = call->inputs[2],
              .scale = call->inputs[3],
              .shift = call->inputs[4],
              .rows = call->inputs[5],
              .out = call->outputs[0],
              .stats_out = call->outputs[1]};
    if (n.scale)
        KN_TRY(kn_check_index(node, n.rows, rows, 0, kn_tensor_rows(node->inputs[3])));
    kn_parallel_for(kn_loop_rows(rows, columns), layer_norm_ranges[kn_is_bf16(x)], &n);
    return KN_OK;
}

/* What multiplies the normalized value: weight, 1 + scale[row] or 1, in elements c, c + 1, ... */
KN_V_INLINE KnV gain(const float *factor, float one, int64_t c, int lanes)
{
    return factor ? one + kn_v_read(factor, c, lanes, 0) : kn_v_set(1.0f);
}

KN_V_INLINE void layer_norm_backward(const void *arguments, int64_t first, int64_t last, const int bf16)
{
    const Norm n = *(const Norm *)arguments;
    int64_t columns = n.columns;
    for (int64_t l = first; l < last; l++) {
        int64_t at = l * columns;
        float mean = n.stats[2 * l], rstd = n.stats[2 * l + 1], one = n.scale ? 1.0f : 0.0f;
        const float *factor = n.scale ? n.scale + n.rows[l] * columns : n.weight;
        KnV sums[4] = {0}, products[4] = {0};
        KN_VECTORS_OF_SUMS(0, columns, c, lanes, s, {
            KnV h = kn_v_read(n.grad, at + c, lanes, bf16) * gain(factor, one, c, lanes);
            KnV norm = (kn_v_read(n.x, at + c, lanes, bf16) - mean) * rstd;
            sums[s] += h;
            products[s] = kn_v_fma(h, norm, products[s]);
        });
        float mean_h = kn_v_total4(sums) / (float)columns, mean_hn = kn_v_total4(products) / (float)columns;
        KN_VECTORS(0, columns, c, lanes, {
            KnV h = kn_v_read(n.grad, at + c, lanes, bf16) * gain(factor, one, c, lanes);
            KnV norm = (kn_v_read(n.x, at + c, lanes, bf16) - mean) * rstd;
            kn_v_write(n.out, at + c, (h - mean_h - norm * mean_hn) * rstd, lanes, bf16);
        });
    }
}
KN_FOR_BOTH_DTYPES(layer_norm_backward);

/* How many rows the shared factors have: 0 where there are none, 1 where all tokens share one. */
static int64_t shared_rows(const KnNode *node)
{
    return node->inputs[4] ? kn_tensor_rows(node->inputs[4]) : node->inputs[3] ? 1 : 0;
}

static size_t layer_norm_backward_bytes(const KnNode *node)
{
    const KnTensor *x = node->inputs[0];
    int64_t rows = shared_rows(node);
    return rows ? KN_ISA_NAME(kn_row_sum_bytes)(kn_tensor_rows(x), kn_tensor_columns(x), rows, 2) : 0;
}

static int run_layer_norm_backward(const KnCall *call)
{
    const KnNode *node = call->node;
    const KnTensor *x = node->inputs[0];
    int64_t tokens = kn_tensor_rows(x), columns = kn_tensor_columns(x);
    Norm n = {.columns = columns,
              .x = call->inputs[0],
              .stats = call->inputs[1],
              .grad = call->inputs[2],
              .weight = call->inputs[3],
              .scale = call->inputs[4],
              .rows = call->inputs[5],
              .out = call->outputs[0]};
    KnRowSum sum = {.node = node,
                    .tokens = tokens,
                    .columns = columns,
                    .rows = shared_rows(node),
                    .row_of = n.rows,
                    .g = n.grad,
                    .x = n.x,
                    .bf16 = kn_is_bf16(x),
                    .mean = n.stats,
                    .rstd = n.stats + 1,
                    .stride = 2,
                    .out0 = call->outputs[1],
                    .out1 = call->outputs[2]};
    if (sum.rows) /* first, since it checks the rows */
        KN_TRY(KN_ISA_NAME(kn_row_sum)(&sum, call->workspace));
    kn_parallel_for(kn_loop_rows(tokens, columns), layer_norm_backward_ranges[kn_is_bf16(x)], &n);
    return KN_OK;
}

const KnCpuKernel KN_ISA_NAME(kn_cpu_layer_norm) = {run_layer_norm, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_layer_norm_backward) = {run_layer_norm_backward, layer_norm_backward_bytes};
