/* RMS norm of rows of which only some columns are here: the sum of squares of a row, and the norm given the sum of all
 * its columns, with their gradients. With r = 1/sqrt(squares / total + eps), y = x r weight and h = grad weight:
 * dx = h r, dsquares = -r^3 / (2 total) sum(h x), and dweight is a sum over rows (row_sum.h). */
#include "core/cpu/simd/kernels.h"
#include "core/cpu/simd/row_sum.h"

#include <math.h>

typedef struct Split {
    int64_t columns;
    float total_columns, eps;
    const void *x, *grad;
    const float *weight, *squares, *rstd;
    void *out;
    float *per_row; /* squares, rstd or the gradient of squares */
} Split;

KN_V_INLINE void row_squares(const void *arguments, int64_t first, int64_t last, const int bf16)
{
    const Split n = *(const Split *)arguments;
    for (int64_t l = first; l < last; l++) {
        KnV sums[4] = {0};
        KN_VECTORS_OF_SUMS(0, n.columns, c, lanes, s, {
            KnV x = kn_v_read(n.x, l * n.columns + c, lanes, bf16);
            sums[s] = kn_v_fma(x, x, sums[s]);
        });
        n.per_row[l] = kn_v_total4(sums);
    }
}
KN_FOR_BOTH_DTYPES(row_squares);

static int run_row_squares(const KnCall *call)
{
    const KnTensor *x = call->node->inputs[0];
    Split n = {.columns = kn_tensor_columns(x), .x = call->inputs[0], .per_row = call->outputs[0]};
    kn_parallel_for(kn_loop_rows(kn_tensor_rows(x), n.columns), row_squares_ranges[kn_is_bf16(x)], &n);
    return KN_OK;
}

/* dx = 2 x dsquares */
KN_V_INLINE void row_squares_backward(const void *arguments, int64_t first, int64_t last, const int bf16)
{
    const Split n = *(const Split *)arguments;
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
    Split n = {
        .columns = kn_tensor_columns(x), .x = call->inputs[0], .squares = call->inputs[1], .out = call->outputs[0]};
    kn_parallel_for(kn_loop_rows(kn_tensor_rows(x), n.columns), row_squares_backward_ranges[kn_is_bf16(x)], &n);
    return KN_OK;
}

static Split split_of(const KnCall *call)
{
    const KnSplitNormAttributes *p = (const KnSplitNormAttributes *)call->node->attributes;
    return (Split){.columns = kn_tensor_columns(call->node->inputs[0]),
                   .total_columns = (float)p->total_columns,
                   .eps = p->eps,
                   .x = call->inputs[0],
                   .out = call->outputs[0]};
}

KN_V_INLINE void rms_norm_split(const void *arguments, int64_t first, int64_t last, const int bf16)
{
    const Split n = *(const Split *)arguments;
    for (int64_t l = first; l < last; l++) {
        const int64_t start = l * n.columns;
        const float rstd = 1.0f / sqrtf(n.squares[l] / n.total_columns + n.eps);
        n.per_row[l] = rstd;
        KN_VECTORS(0, n.columns, c, lanes, {
            KnV norm = kn_v_read(n.x, start + c, lanes, bf16) * rstd;
            kn_v_write(n.out, start + c, norm * kn_v_read(n.weight, c, lanes, 0), lanes, bf16);
        });
    }
}
KN_FOR_BOTH_DTYPES(rms_norm_split);

static int run_rms_norm_split(const KnCall *call)
{
    const KnTensor *x = call->node->inputs[0];
    Split n = split_of(call);
    n.weight = call->inputs[1];
    n.squares = call->inputs[2];
    n.per_row = call->outputs[1];
    kn_parallel_for(kn_loop_rows(kn_tensor_rows(x), n.columns), rms_norm_split_ranges[kn_is_bf16(x)], &n);
    return KN_OK;
}

KN_V_INLINE void rms_norm_split_backward(const void *arguments, int64_t first, int64_t last, const int bf16)
{
    const Split n = *(const Split *)arguments;
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

static size_t rms_norm_split_backward_bytes(const KnNode *node)
{
    const KnTensor *x = node->inputs[0];
    return KN_ISA_NAME(kn_row_sum_bytes)(kn_tensor_rows(x), kn_tensor_columns(x), 1, 1);
}

static int run_rms_norm_split_backward(const KnCall *call)
{
    const KnTensor *x = call->node->inputs[0];
    Split n = split_of(call);
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

const KnCpuKernel KN_ISA_NAME(kn_cpu_row_squares) = {run_row_squares, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_row_squares_backward) = {run_row_squares_backward, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_rms_norm_split) = {run_rms_norm_split, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_rms_norm_split_backward) = {run_rms_norm_split_backward,
                                                                 rms_norm_split_backward_bytes};
