/* RMS norm with its gradients: of whole rows, and of rows of which only some columns are here, in two ops, the sum of
 * squares and the norm given the sum of all columns. With r = 1/sqrt(squares / total + eps), y = x r weight and h =
 * grad weight, dweight is a sum over rows (row_sum.h); of whole rows dx = r (h - n mean(h n)) with n = x r; of split
 * ones dx = h r and dsquares = -r^3 / (2 total) sum(h x). */
#include "core/cpu/simd/kernels.h"
#include "core/cpu/simd/row_sum.h"

#include <math.h>

typedef struct Rms {
    int64_t columns;
    float total_columns, eps;
    const void *x, *grad;
    const float *weight, *squares, *rstd; /* squares NULL: of the columns that are here, which are all */
    void *out;
    float *per_row; /* squares, rstd or the gradient of squares */
} Rms;

KN_V_INLINE float squares_of_row(const void *x, int64_t at, int64_t columns, const int bf16)
{
    KnV sums[4] = {0};
    KN_VECTORS_OF_SUMS(0, columns, c, lanes, s, {
        KnV value = kn_v_read(x, at + c, lanes, bf16);
        sums[s] = kn_v_fma(value, value, sums[s]);
    });
    return kn_v_total4(sums);
}

KN_V_INLINE void row_squares(const void *arguments, int64_t first, int64_t last, const int bf16)
{
    const Rms n = *(const Rms *)arguments;
    for (int64_t l = first; l < last; l++)
        n.per_row[l] = squares_of_row(n.x, l * n.columns, n.columns, bf16);
}
KN_FOR_BOTH_DTYPES(row_squares);

static int run_row_squares(const KnCall *call)
{
    const KnTensor *x = call->node->inputs[0];
    Rms n = {.columns = kn_tensor_columns(x), .x = call->inputs[0], .per_row = call->outputs[0]};
    kn_parallel_for(kn_loop_rows(kn_tensor_rows(x), n.columns), row_squares_ranges[kn_is_bf16(x)], &n);
    return KN_OK;
}

/* dx = 2 x dsquares */
KN_V_INLINE void row_squares_backward(const void *arguments, int64_t first, int64_t last, const int bf16)
{
    const Rms n = *(const Rms *)arguments;
    for (int64_t l = first; l < last; l++) {
        const KnV factor = kn_v_set(2 * n.squares[l]);
        KN_VECTORS(l * n.columns, (l + 1) * n.columns, at, lanes,
                   { kn_v_write(n.out, at, kn_v_read(n.x, at, lanes, bf16) * factor, lanes, bf16); });
    }
}
KN_FOR_BOTH_DTYPES(row_squares_backward);

static int run_row_squares_backward(const KnCall *call)
{
    const KnTensor *x = call->node->inputs[0];
    Rms n = {
        .columns = kn_tensor_columns(x), .x = call->inputs[0], .squares = call->inputs[1], .out = call->outputs[0]};
    kn_parallel_for(kn_loop_rows(kn_tensor_rows(x), n.columns), row_squares_backward_ranges[kn_is_bf16(x)], &n);
    return KN_OK;
}

static Rms split_of(const KnCall *call)
{
    const KnSplitNormAttributes *p = (const KnSplitNormAttributes *)call->node->attributes;
    return (Rms){.columns = kn_tensor_columns(call->node->inputs[0]),
                 .total_columns = (float)p->total_columns,
                 .eps = p->eps,
                 .x = call->inputs[0],
                 .out = call->outputs[0]};
}

KN_V_INLINE void rms_norm(const void *arguments, int64_t first, int64_t last, const int bf16)
{
    const Rms n = *(const Rms *)arguments;
    for (int64_t l = first; l < last; l++) {
        const int64_t start = l * n.columns;
        const float squares = n.squares ? n.squares[l] : squares_of_row(n.x, start, n.columns, bf16);
        const float rstd = 1.0f / sqrtf(squares / n.total_columns + n.eps);
        n.per_row[l] = rstd;
        KN_VECTORS(0, n.columns, c, lanes, {
            KnV norm = kn_v_read(n.x, start + c, lanes, bf16) * rstd;
            kn_v_write(n.out, start + c, norm * kn_v_read(n.weight, c, lanes, 0), lanes, bf16);
        });
    }
}
KN_FOR_BOTH_DTYPES(rms_norm);

static int run_rms_norm(const KnCall *call)
{
    const KnTensor *x = call->node->inputs[0];
    int64_t columns = kn_tensor_columns(x);
    Rms n = {.columns = columns,
             .total_columns = (float)columns,
             .eps = ((const KnNormAttributes *)call->node->attributes)->eps,
             .x = call->inputs[0],
             .weight = call->inputs[1],
             .out = call->outputs[0],
             .per_row = call->outputs[1]};
    kn_parallel_for(kn_loop_rows(kn_tensor_rows(x), columns), rms_norm_ranges[kn_is_bf16(x)], &n);
    return KN_OK;
}

static int run_rms_norm_split(const KnCall *call)
{
    const KnTensor *x = call->node->inputs[0];
    Rms n = split_of(call);
    n.weight = call->inputs[1];
    n.squares = call->inputs[2];
    n.per_row = call->outputs[1];
    kn_parallel_for(kn_loop_rows(kn_tensor_rows(x), n.columns), rms_norm_ranges[kn_is_bf16(x)], &n);
    return KN_OK;
}

KN_V_INLINE void rms_norm_backward(const void *arguments, int64_t first, int64_t last, const int bf16)
{
    const Rms n = *(const Rms *)arguments;
    int64_t columns = n.columns;
    for (int64_t l = first; l < last; l++) {
        int64_t at = l * columns;
        float rstd = n.rstd[l];
        KnV products[4] = {0};
        KN_VECTORS_OF_SUMS(0, columns, c, lanes, s, {
            KnV h = kn_v_read(n.grad, at + c, lanes, bf16) * kn_v_read(n.weight, c, lanes, 0);
            products[s] = kn_v_fma(h, kn_v_read(n.x, at + c, lanes, bf16) * rstd, products[s]);
        });
        float mean_hn = kn_v_total4(products) / (float)columns;
        KN_VECTORS(0, columns, c, lanes, {
            KnV h = kn_v_read(n.grad, at + c, lanes, bf16) * kn_v_read(n.weight, c, lanes, 0);
            KnV norm = kn_v_read(n.x, at + c, lanes, bf16) * rstd;
            kn_v_write(n.out, at + c, (h - norm * mean_hn) * rstd, lanes, bf16);
        });
    }
}
KN_FOR_BOTH_DTYPES(rms_norm_backward);

static size_t rms_norm_backward_bytes(const KnNode *node)
{
    const KnTensor *x = node->inputs[0];
    return KN_ISA_NAME(kn_row_sum_bytes)(kn_tensor_rows(x), kn_tensor_columns(x), 1, 1);
}

static int run_rms_norm_backward(const KnCall *call)
{
    const KnTensor *x = call->node->inputs[0];
    int64_t tokens = kn_tensor_rows(x), columns = kn_tensor_columns(x);
    Rms n = {.columns = columns,
             .x = call->inputs[0],
             .rstd = call->inputs[1],
             .weight = call->inputs[2],
             .grad = call->inputs[3],
             .out = call->outputs[0]};
    KnRowSum sum = {.node = call->node,
                    .tokens = tokens,
                    .columns = columns,
                    .rows = 1,
                    .g = n.grad,
                    .x = n.x,
                    .bf16 = kn_is_bf16(x),
                    .rstd = n.rstd,
                    .stride = 1,
                    .out0 = call->outputs[1]};
    kn_parallel_for(kn_loop_rows(tokens, columns), rms_norm_backward_ranges[kn_is_bf16(x)], &n);
    return KN_ISA_NAME(kn_row_sum)(&sum, call->workspace);
}

KN_V_INLINE void rms_norm_split_backward(const void *arguments, int64_t first, int64_t last, const int bf16)
{
    const Rms n = *(const Rms *)arguments;
    for (int64_t l = first; l < last; l++) {
        const int64_t start = l * n.columns;
        const float rstd = n.rstd[l];
        KnV sums[4] = {0};
        KN_VECTORS_OF_SUMS(0, n.columns, c, lanes, s, {
            KnV h = kn_v_read(n.grad, start + c, lanes, bf16) * kn_v_read(n.weight, c, lanes, 0);
            sums[s] = kn_v_fma(h, kn_v_read(n.x, start + c, lanes, bf16), sums[s]);
            kn_v_write(n.out, start + c, h * rstd, lanes, bf16);
        });
        n.per_row[l] = -0.5f * rstd * rstd * rstd / n.total_columns * kn_v_total4(sums);
    }
}
KN_FOR_BOTH_DTYPES(rms_norm_split_backward);

static int run_rms_norm_split_backward(const KnCall *call)
{
    const KnTensor *x = call->node->inputs[0];
    Rms n = split_of(call);
    n.rstd = call->inputs[1];
    n.weight = call->inputs[2];
    n.grad = call->inputs[3];
    n.per_row = call->outputs[2];
    KnRowSum sum = {.node = call->node,
                    .tokens = kn_tensor_rows(x),
                    .columns = n.columns,
                    .rows = 1,
                    .g = n.grad,
                    .x = n.x,
                    .bf16 = kn_is_bf16(x),
                    .rstd = n.rstd,
                    .stride = 1,
                    .out0 = call->outputs[1]};
    kn_parallel_for(kn_loop_rows(kn_tensor_rows(x), n.columns), rms_norm_split_backward_ranges[kn_is_bf16(x)], &n);
    return KN_ISA_NAME(kn_row_sum)(&sum, call->workspace);
}

const KnCpuKernel KN_ISA_NAME(kn_cpu_rms_norm) = {run_rms_norm, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_rms_norm_backward) = {run_rms_norm_backward, rms_norm_backward_bytes};
const KnCpuKernel KN_ISA_NAME(kn_cpu_row_squares) = {run_row_squares, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_row_squares_backward) = {run_row_squares_backward, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_rms_norm_split) = {run_rms_norm_split, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_rms_norm_split_backward) = {run_rms_norm_split_backward, rms_norm_backward_bytes};
