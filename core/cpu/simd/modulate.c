/* Modulation by a conditioning row of each token, and the gated residual; sums of float32, rounded once. */
#include "core/cpu/simd/kernels.h"
#include "core/cpu/simd/row_sum.h"

typedef struct Modulation {
    int64_t columns;
    const void *x, *y; /* y: the gated branch */
    const float *scale, *shift;
    const int32_t *rows;
    void *out;
} Modulation;

/* Runs a range over rows after checking that every token's row exists. */
static int run_rows(const KnCall *call, const KnTensor *x, const KnTensor *factor, const KnRange *ranges,
                    const Modulation *m)
{
    int64_t tokens = kn_tensor_rows(x);
    KN_TRY(kn_check_index(call->node, m->rows, tokens, 0, kn_tensor_rows(factor)));
    kn_parallel_for(kn_loop_rows(tokens, m->columns), ranges[kn_is_bf16(x)], m);
    return KN_OK;
}

KN_V_INLINE void modulate(const void *arguments, int64_t first, int64_t last, const int bf16)
{
    const Modulation m = *(const Modulation *)arguments;
    for (int64_t l = first; l < last; l++) {
        int64_t at = l * m.columns;
        const float *scale = m.scale + m.rows[l] * m.columns, *shift = m.shift + m.rows[l] * m.columns;
        KN_VECTORS(0, m.columns, c, lanes, {
            KnV x = kn_v_read(m.x, at + c, lanes, bf16);
            KnV y = kn_v_fma(x, 1.0f + kn_v_read(scale, c, lanes, 0), kn_v_read(shift, c, lanes, 0));
            kn_v_write(m.out, at + c, y, lanes, bf16);
        });
    }
}
KN_FOR_BOTH_DTYPES(modulate);

static int run_modulate(const KnCall *call)
{
    const KnTensor *x = call->node->inputs[0];
    Modulation m = {.columns = kn_tensor_columns(x),
                    .x = call->inputs[0],
                    .scale = call->inputs[1],
                    .shift = call->inputs[2],
                    .rows = call->inputs[3],
                    .out = call->outputs[0]};
    return run_rows(call, x, call->node->inputs[1], modulate_ranges, &m);
}

KN_V_INLINE void modulate_backward(const void *arguments, int64_t first, int64_t last, const int bf16)
{
    const Modulation m = *(const Modulation *)arguments;
    for (int64_t l = first; l < last; l++) {
        int64_t at = l * m.columns;
        const float *scale = m.scale + m.rows[l] * m.columns;
        KN_VECTORS(0, m.columns, c, lanes, {
            KnV g = kn_v_read(m.x, at + c, lanes, bf16);
            kn_v_write(m.out, at + c, g * (1.0f + kn_v_read(scale, c, lanes, 0)), lanes, bf16);
        });
    }
}
KN_FOR_BOTH_DTYPES(modulate_backward);

static size_t modulate_backward_bytes(const KnNode *node)
{
    const KnTensor *x = node->inputs[0];
    return KN_ISA_NAME(kn_row_sum_bytes)(kn_tensor_rows(x), kn_tensor_columns(x), kn_tensor_rows(node->inputs[1]), 2);
}

static int run_modulate_backward(const KnCall *call)
{
    const KnTensor *x = call->node->inputs[0], *scale = call->node->inputs[1];
    Modulation m = {.columns = kn_tensor_columns(x),
                    .x = call->inputs[3],
                    .scale = call->inputs[1],
                    .rows = call->inputs[2],
                    .out = call->outputs[0]};
    KnRowSum sum = {.node = call->node,
                    .tokens = kn_tensor_rows(x),
                    .columns = m.columns,
                    .rows = kn_tensor_rows(scale),
                    .row_of = m.rows,
                    .g = call->inputs[3],
                    .x = call->inputs[0],
                    .bf16 = kn_is_bf16(x),
                    .out0 = call->outputs[1],
                    .out1 = call->outputs[2]};
    KN_TRY(run_rows(call, x, scale, modulate_backward_ranges, &m));
    return KN_ISA_NAME(kn_row_sum)(&sum, call->workspace);
}

KN_V_INLINE void gated_residual(const void *arguments, int64_t first, int64_t last, const int bf16)
{
    const Modulation m = *(const Modulation *)arguments;
    for (int64_t l = first; l < last; l++) {
        int64_t at = l * m.columns;
        const float *gate = m.scale + m.rows[l] * m.columns;
        KN_VECTORS(0, m.columns, c, lanes, {
            KnV x = kn_v_read(m.x, at + c, lanes, bf16), y = kn_v_read(m.y, at + c, lanes, bf16);
            kn_v_write(m.out, at + c, kn_v_fma(y, kn_v_read(gate, c, lanes, 0), x), lanes, bf16);
        });
    }
}
KN_FOR_BOTH_DTYPES(gated_residual);

static int run_gated_residual(const KnCall *call)
{
    const KnTensor *x = call->node->inputs[0];
    Modulation m = {.columns = kn_tensor_columns(x),
                    .x = call->inputs[0],
                    .y = call->inputs[1],
                    .scale = call->inputs[2],
                    .rows = call->inputs[3],
                    .out = call->outputs[0]};
    return run_rows(call, x, call->node->inputs[2], gated_residual_ranges, &m);
}

KN_V_INLINE void gated_residual_backward(const void *arguments, int64_t first, int64_t last, const int bf16)
{
    const Modulation m = *(const Modulation *)arguments;
    for (int64_t l = first; l < last; l++) {
        int64_t at = l * m.columns;
        const float *gate = m.scale + m.rows[l] * m.columns;
        KN_VECTORS(0, m.columns, c, lanes, {
            KnV g = kn_v_read(m.x, at + c, lanes, bf16);
            kn_v_write(m.out, at + c, g * kn_v_read(gate, c, lanes, 0), lanes, bf16);
        });
    }
}
KN_FOR_BOTH_DTYPES(gated_residual_backward);

static size_t gated_residual_backward_bytes(const KnNode *node)
{
    const KnTensor *y = node->inputs[0];
    return KN_ISA_NAME(kn_row_sum_bytes)(kn_tensor_rows(y), kn_tensor_columns(y), kn_tensor_rows(node->inputs[1]), 1);
}

static int run_gated_residual_backward(const KnCall *call)
{
    const KnTensor *y = call->node->inputs[0], *gate = call->node->inputs[1];
    Modulation m = {.columns = kn_tensor_columns(y),
                    .x = call->inputs[3],
                    .scale = call->inputs[1],
                    .rows = call->inputs[2],
                    .out = call->outputs[0]};
    KnRowSum sum = {.node = call->node,
                    .tokens = kn_tensor_rows(y),
                    .columns = m.columns,
                    .rows = kn_tensor_rows(gate),
                    .row_of = m.rows,
                    .g = call->inputs[3],
                    .x = call->inputs[0],
                    .bf16 = kn_is_bf16(y),
                    .out0 = call->outputs[1]};
    KN_TRY(run_rows(call, y, gate, gated_residual_backward_ranges, &m));
    return KN_ISA_NAME(kn_row_sum)(&sum, call->workspace);
}

const KnCpuKernel KN_ISA_NAME(kn_cpu_modulate) = {run_modulate, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_modulate_backward) = {run_modulate_backward, modulate_backward_bytes};
const KnCpuKernel KN_ISA_NAME(kn_cpu_gated_residual) = {run_gated_residual, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_gated_residual_backward) = {run_gated_residual_backward,
                                                                 gated_residual_backward_bytes};
