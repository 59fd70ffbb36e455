/* Scalars from tensors: the masked squared error, its gradient, and the sum of squares.
 *
 * Blocks of fixed size are summed in float32, the blocks' sums in order in double: the same bits for any number of
 * threads. */
#include "core/cpu/simd/kernel.h"
#include "core/cpu/simd/kernels.h"

typedef struct Loss {
    int64_t columns, block;
    const void *prediction;
    const float *target, *weight;
    float factor;
    void *out;
    float *sums; /* per block */
} Loss;

static double total(const float *sums, int64_t count)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += (double)sums[i];
    return sum;
}

KN_V_INLINE void masked_mse(const void *arguments, int64_t first, int64_t last, const int bf16)
{
    const Loss loss = *(const Loss *)arguments;
    float sum = 0;
    for (int64_t l = first; l < last; l++) {
        int64_t at = l * loss.columns;
        KnV sums[4] = {0};
        if (loss.weight[l] == 0) /* whatever the values, NaN too */
            continue;
        KN_VECTORS_OF_SUMS(0, loss.columns, c, lanes, s, {
            KnV d = kn_v_read(loss.prediction, at + c, lanes, bf16) - kn_v_read(loss.target, at + c, lanes, 0);
            sums[s] = kn_v_fma(d, d, sums[s]);
        });
        sum += loss.weight[l] * kn_v_total4(sums);
    }
    loss.sums[first / loss.block] = sum;
}
KN_FOR_BOTH_DTYPES(masked_mse);

static int64_t loss_blocks(KnLoop loop)
{
    return (loop.count + loop.block - 1) / loop.block;
}

static size_t masked_mse_bytes(const KnNode *node)
{
    const KnTensor *x = node->inputs[0];
    return (size_t)loss_blocks(kn_loop_rows(kn_tensor_rows(x), kn_tensor_columns(x))) * sizeof(float);
}

static int run_masked_mse(const KnCall *call)
{
    const KnTensor *x = call->node->inputs[0];
    KnLoop loop = kn_loop_rows(kn_tensor_rows(x), kn_tensor_columns(x));
    Loss loss = {.columns = kn_tensor_columns(x),
                 .block = loop.block,
                 .prediction = call->inputs[0],
                 .target = call->inputs[1],
                 .weight = call->inputs[2],
                 .sums = call->workspace};
    kn_parallel_for(loop, masked_mse_ranges[kn_is_bf16(x)], &loss);
    *(float *)call->outputs[0] = (float)total(loss.sums, loss_blocks(loop));
    return KN_OK;
}

KN_V_INLINE void masked_mse_backward(const void *arguments, int64_t first, int64_t last, const int bf16)
{
    const Loss loss = *(const Loss *)arguments;
    for (int64_t l = first; l < last; l++) {
        int64_t at = l * loss.columns;
        float factor = loss.factor * loss.weight[l];
        KN_VECTORS(0, loss.columns, c, lanes, {
            KnV d = kn_v_set(0);
            if (loss.weight[l] != 0)
                d = kn_v_read(loss.prediction, at + c, lanes, bf16) - kn_v_read(loss.target, at + c, lanes, 0);
            kn_v_write(loss.out, at + c, d * factor, lanes, bf16);
        });
    }
}
KN_FOR_BOTH_DTYPES(masked_mse_backward);

static int run_masked_mse_backward(const KnCall *call)
{
    const KnTensor *x = call->node->inputs[0];
    int64_t columns = kn_tensor_columns(x);
    Loss loss = {.columns = columns,
                 .prediction = call->inputs[0],
                 .target = call->inputs[1],
                 .weight = call->inputs[2],
                 .factor = 2.0f * (call->inputs[3] ? *(const float *)call->inputs[3] : 1.0f),
                 .out = call->outputs[0]};
    kn_parallel_for(kn_loop_rows(kn_tensor_rows(x), columns), masked_mse_backward_ranges[kn_is_bf16(x)], &loss);
    return KN_OK;
}

KN_V_INLINE void sum_of_squares(const void *arguments, int64_t first, int64_t last, const int bf16)
{
    const Loss loss = *(const Loss *)arguments;
    KnV sums[4] = {0};
    KN_VECTORS_OF_SUMS(first, last, i, lanes, s, {
        KnV x = kn_v_read(loss.prediction, i, lanes, bf16);
        sums[s] = kn_v_fma(x, x, sums[s]);
    });
    loss.sums[first / loss.block] = kn_v_total4(sums);
}
KN_FOR_BOTH_DTYPES(sum_of_squares);

static size_t sum_of_squares_bytes(const KnNode *node)
{
    int64_t most = 0;
    for (int i = 0; i < node->input_count; i++) {
        int64_t blocks = loss_blocks(kn_loop_elements(kn_tensor_elements(node->inputs[i])));
        most = blocks > most ? blocks : most;
    }
    return (size_t)most * sizeof(float);
}

static int run_sum_of_squares(const KnCall *call)
{
    double sum = 0;
    for (int i = 0; i < call->node->input_count; i++) {
        const KnTensor *x = call->node->inputs[i];
        KnLoop loop = kn_loop_elements(kn_tensor_elements(x));
        Loss loss = {.block = loop.block, .prediction = call->inputs[i], .sums = call->workspace};
        kn_parallel_for(loop, sum_of_squares_ranges[kn_is_bf16(x)], &loss);
        sum += total(loss.sums, loss_blocks(loop));
    }
    *(float *)call->outputs[0] = (float)sum;
    return KN_OK;
}

const KnCpuKernel KN_ISA_NAME(kn_cpu_masked_mse) = {run_masked_mse, masked_mse_bytes};
const KnCpuKernel KN_ISA_NAME(kn_cpu_masked_mse_backward) = {run_masked_mse_backward, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_sum_of_squares) = {run_sum_of_squares, sum_of_squares_bytes};
