/* Norms, modulation and sums over rows. */
#include "core/cuda/cuda.h"
#include "core/cuda/slabs.h"

static size_t sum_bytes(const KnTensor *x, int64_t rows)
{
    int64_t tokens = kn_tensor_rows(x), columns = kn_tensor_columns(x);
    int64_t slabs = kn_cuda_row_sum_slabs(tokens, rows, columns);
    return slabs > 1 ? (size_t)(slabs * rows * columns) * sizeof(float) : 0;
}

static size_t pass_bytes(const KnNode *node, int64_t rows)
{
    const KnTensor *x = node->inputs[0];
    return (size_t)kn_cuda_row_pass_floats(kn_tensor_rows(x), rows, kn_tensor_columns(x)) * sizeof(float);
}

static size_t one_row_pass_bytes(const KnNode *node)
{
    return pass_bytes(node, 1);
}

static KnCudaNorm norm_of(KnCuda *cuda, const KnCall *call, float eps)
{
    const KnTensor *x = call->node->inputs[0];
    return (KnCudaNorm){.tokens = kn_tensor_rows(x),
                        .columns = kn_tensor_columns(x),
                        .total_columns = kn_tensor_columns(x),
                        .eps = eps,
                        .x = call->inputs[0],
                        .y = call->outputs[0],
                        .workspace = call->workspace,
                        .fault = cuda->fault};
}

static float eps_of(const KnCall *call)
{
    return ((const KnNormAttributes *)call->node->attributes)->eps;
}

/* ---- layer norm ---- */

static cudaError_t run_layer_norm(KnCuda *cuda, const KnCall *call)
{
    KnCudaNorm norm = norm_of(cuda, call, eps_of(call));
    norm.weight = call->inputs[1];
    norm.bias = call->inputs[2];
    norm.scale = call->inputs[3];
    norm.shift = call->inputs[4];
    norm.row_of = call->inputs[5];
    norm.scale_rows = norm.scale ? kn_tensor_rows(call->node->inputs[3]) : 0;
    norm.stats = call->outputs[1];
    if (call->node->input_count > 6) {
        norm.branch = call->inputs[6];
        norm.gate = call->inputs[7];
        norm.scale_rows = kn_tensor_rows(call->node->inputs[7]);
        norm.residual = call->outputs[2];
    }
    return kn_cuda_layer_norm(kn_cuda_bf16_of(call), &norm, cuda->stream);
}

/* With the backward of the gated residual that the norm was of. */
static cudaError_t run_layer_norm_gate_backward(KnCuda *cuda, const KnCall *call, const KnCudaNorm *norm)
{
    const KnNode *node = call->node;
    KnCudaModulateBackward gate = {.tokens = norm->tokens,
                                   .columns = norm->columns,
                                   .rows = kn_tensor_rows(node->inputs[8]),
                                   .x = call->inputs[7],
                                   .grad = norm->y,
                                   .factor = call->inputs[8],
                                   .row_of = call->inputs[5],
                                   .out = call->outputs[3],
                                   .factor_sum = call->outputs[4],
                                   .out_sum = node->output_count > 5 ? call->outputs[5] : NULL,
                                   .workspace = call->workspace,
                                   .fault = cuda->fault};
    return kn_cuda_layer_norm_gate_backward(kn_cuda_bf16_of(call), norm, &gate, cuda->stream);
}

static size_t layer_norm_backward_bytes(const KnNode *node)
{
    const KnTensor *scale = node->inputs[4];
    if (node->input_count > 7) /* kn_cuda_layer_norm_gate_backward */
        return 2 * pass_bytes(node, kn_tensor_rows(node->inputs[8]));
    return node->output_count > 1 ? pass_bytes(node, scale ? kn_tensor_rows(scale) : 1) : 0;
}

static cudaError_t run_layer_norm_backward(KnCuda *cuda, const KnCall *call)
{
    KnCudaNorm norm = norm_of(cuda, call, eps_of(call));
    norm.stats = call->inputs[1];
    norm.grad = call->inputs[2];
    norm.weight = call->inputs[3];
    norm.scale = call->inputs[4];
    norm.row_of = norm.scale ? call->inputs[5] : NULL; /* which may be the gate's alone */
    norm.scale_rows = norm.scale ? kn_tensor_rows(call->node->inputs[4]) : 0;
    norm.added = call->node->input_count > 6 ? call->inputs[6] : NULL;
    norm.sums[0] = call->node->output_count > 1 ? call->outputs[1] : NULL;
    norm.sums[1] = call->node->output_count > 1 ? call->outputs[2] : NULL;
    if (call->node->input_count > 7)
        return run_layer_norm_gate_backward(cuda, call, &norm);
    return kn_cuda_layer_norm_backward(kn_cuda_bf16_of(call), &norm, cuda->stream);
}

/* ---- RMS norm ---- */

/* Where the lowering pass gave it positions and a table. */
static void turn(KnCudaNorm *norm, const KnCuda *cuda, const KnCall *call, const KnRopeAttributes *p, int positions,
                 int64_t group)
{
    if (call->node->input_count <= positions)
        return;
    norm->rope = kn_cuda_rope_of(cuda, call, p, positions);
    norm->group = group ? group : norm->columns;
}

static void turn_whole(KnCudaNorm *norm, const KnCuda *cuda, const KnCall *call, int positions)
{
    const KnNormAttributes *p = (const KnNormAttributes *)call->node->attributes;
    turn(norm, cuda, call, &p->rope, positions, p->group);
}

static cudaError_t run_rms_norm(KnCuda *cuda, const KnCall *call)
{
    KnCudaNorm norm = norm_of(cuda, call, eps_of(call));
    norm.weight = call->inputs[1];
    norm.stats = call->outputs[1];
    turn_whole(&norm, cuda, call, 3);
    return kn_cuda_rms_norm(kn_cuda_bf16_of(call), &norm, cuda->stream);
}

static cudaError_t run_rms_norm_split(KnCuda *cuda, const KnCall *call)
{
    const KnSplitNormAttributes *p = (const KnSplitNormAttributes *)call->node->attributes;
    KnCudaNorm norm = norm_of(cuda, call, p->eps);
    norm.total_columns = p->total_columns;
    norm.weight = call->inputs[1];
    norm.squares = call->inputs[2];
    norm.stats = call->outputs[1];
    turn(&norm, cuda, call, &p->rope, 3, p->group);
    return kn_cuda_rms_norm(kn_cuda_bf16_of(call), &norm, cuda->stream);
}

static cudaError_t run_rms_norm_backward(KnCuda *cuda, const KnCall *call)
{
    KnCudaNorm norm = norm_of(cuda, call, 0);
    norm.stats = call->inputs[1];
    norm.weight = call->inputs[2];
    norm.grad = call->inputs[3];
    norm.sums[0] = call->outputs[1];
    norm.sums[1] = call->node->output_count > 2 ? call->outputs[2] : NULL;
    turn_whole(&norm, cuda, call, 4);
    return kn_cuda_rms_norm_backward(kn_cuda_bf16_of(call), &norm, cuda->stream);
}

static cudaError_t run_rms_norm_split_backward(KnCuda *cuda, const KnCall *call)
{
    const KnSplitNormAttributes *p = (const KnSplitNormAttributes *)call->node->attributes;
    KnCudaNorm norm = norm_of(cuda, call, 0);
    norm.total_columns = p->total_columns;
    norm.stats = call->inputs[1];
    norm.weight = call->inputs[2];
    norm.grad = call->inputs[3];
    norm.sums[0] = call->outputs[1];
    turn(&norm, cuda, call, &p->rope, 4, p->group);
    norm.split = 1;
    norm.dsquares = call->outputs[2];
    return kn_cuda_rms_norm_backward(kn_cuda_bf16_of(call), &norm, cuda->stream);
}

static cudaError_t run_row_squares(KnCuda *cuda, const KnCall *call)
{
    KnCudaNorm norm = norm_of(cuda, call, 0);
    norm.y = NULL;
    norm.dsquares = call->outputs[0];
    return kn_cuda_row_squares(kn_cuda_bf16_of(call), &norm, cuda->stream);
}

static cudaError_t run_row_squares_backward(KnCuda *cuda, const KnCall *call)
{
    KnCudaNorm norm = norm_of(cuda, call, 0);
    norm.squares = call->inputs[1];
    return kn_cuda_row_squares_backward(kn_cuda_bf16_of(call), &norm, cuda->stream);
}

/* ---- modulation ---- */

/* Inputs 1 and `row_input` are the factor and the tokens' rows. */
static KnCudaModulate modulate_of(KnCuda *cuda, const KnCall *call, int factor_input, int row_input)
{
    const KnTensor *x = call->node->inputs[0];
    return (KnCudaModulate){.tokens = kn_tensor_rows(x),
                            .columns = kn_tensor_columns(x),
                            .rows = kn_tensor_rows(call->node->inputs[factor_input]),
                            .factor = call->inputs[factor_input],
                            .row_of = call->inputs[row_input],
                            .out = call->outputs[0],
                            .fault = cuda->fault};
}

static cudaError_t run_modulate(KnCuda *cuda, const KnCall *call)
{
    KnCudaModulate m = modulate_of(cuda, call, 1, 3);
    m.x = call->inputs[0];
    m.term = call->inputs[2];
    m.one = 1;
    return kn_cuda_modulate(kn_cuda_bf16_of(call), &m, cuda->stream);
}

static cudaError_t run_gated_residual(KnCuda *cuda, const KnCall *call)
{
    KnCudaModulate m = modulate_of(cuda, call, 2, 3);
    m.x = call->inputs[1];
    m.base = call->inputs[0];
    return kn_cuda_modulate(kn_cuda_bf16_of(call), &m, cuda->stream);
}

/* Of both: input 0 is what the factor was applied to, 1 the factor, 2 the rows, 3 the gradient. */
static KnCudaModulateBackward backward_of(KnCuda *cuda, const KnCall *call)
{
    const KnTensor *x = call->node->inputs[0];
    return (KnCudaModulateBackward){.tokens = kn_tensor_rows(x),
                                    .columns = kn_tensor_columns(x),
                                    .rows = kn_tensor_rows(call->node->inputs[1]),
                                    .x = call->inputs[0],
                                    .grad = call->inputs[3],
                                    .factor = call->inputs[1],
                                    .row_of = call->inputs[2],
                                    .out = call->outputs[0],
                                    .factor_sum = call->outputs[1],
                                    .workspace = call->workspace,
                                    .fault = cuda->fault};
}

static size_t backward_bytes(const KnNode *node)
{
    return pass_bytes(node, kn_tensor_rows(node->inputs[1]));
}

static cudaError_t run_modulate_backward(KnCuda *cuda, const KnCall *call)
{
    KnCudaModulateBackward backward = backward_of(cuda, call);
    backward.one = 1;
    backward.sum = call->outputs[2];
    return kn_cuda_modulate_backward(kn_cuda_bf16_of(call), &backward, cuda->stream);
}

static cudaError_t run_gated_residual_backward(KnCuda *cuda, const KnCall *call)
{
    KnCudaModulateBackward backward = backward_of(cuda, call);
    backward.out_sum = call->node->output_count > 2 ? call->outputs[2] : NULL;
    return kn_cuda_modulate_backward(kn_cuda_bf16_of(call), &backward, cuda->stream);
}

/* ---- sums over rows ---- */

static cudaError_t run_sum_rows(KnCuda *cuda, const KnCall *call)
{
    const KnTensor *x = call->node->inputs[0];
    return kn_cuda_sum_rows(kn_cuda_is_bf16(x), call->inputs[0], call->outputs[0], kn_tensor_rows(x),
                            kn_tensor_columns(x), call->workspace, cuda->stream);
}

static size_t sum_rows_bytes(const KnNode *node)
{
    return sum_bytes(node->inputs[0], 1);
}

static size_t scatter_rows_bytes(const KnNode *node)
{
    return sum_bytes(node->inputs[0], kn_tensor_rows(node->outputs[0]));
}

static cudaError_t run_scatter_rows(KnCuda *cuda, const KnCall *call)
{
    const KnTensor *x = call->node->inputs[0];
    return kn_cuda_scatter_rows(kn_cuda_is_bf16(x), call->inputs[0], call->inputs[1], call->outputs[0],
                                kn_tensor_rows(x), kn_tensor_rows(call->node->outputs[0]), kn_tensor_columns(x),
                                call->workspace, cuda->fault, cuda->stream);
}

const KnCudaOp kn_cuda_op_layer_norm = {run_layer_norm, NULL};
const KnCudaOp kn_cuda_op_layer_norm_backward = {run_layer_norm_backward, layer_norm_backward_bytes};
const KnCudaOp kn_cuda_op_rms_norm = {run_rms_norm, NULL};
const KnCudaOp kn_cuda_op_rms_norm_backward = {run_rms_norm_backward, one_row_pass_bytes};
const KnCudaOp kn_cuda_op_row_squares = {run_row_squares, NULL};
const KnCudaOp kn_cuda_op_row_squares_backward = {run_row_squares_backward, NULL};
const KnCudaOp kn_cuda_op_rms_norm_split = {run_rms_norm_split, NULL};
const KnCudaOp kn_cuda_op_rms_norm_split_backward = {run_rms_norm_split_backward, one_row_pass_bytes};
const KnCudaOp kn_cuda_op_modulate = {run_modulate, NULL};
const KnCudaOp kn_cuda_op_modulate_backward = {run_modulate_backward, backward_bytes};
const KnCudaOp kn_cuda_op_gated_residual = {run_gated_residual, NULL};
const KnCudaOp kn_cuda_op_gated_residual_backward = {run_gated_residual_backward, backward_bytes};
const KnCudaOp kn_cuda_op_sum_rows = {run_sum_rows, sum_rows_bytes};
const KnCudaOp kn_cuda_op_scatter_rows = {run_scatter_rows, scatter_rows_bytes};
