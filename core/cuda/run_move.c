/* Moving rows and columns: each op is one to three copies of pieces. */
#include "core/cuda/cuda.h"

static int64_t element_bytes(const KnTensor *x)
{
    return (int64_t)kn_dtype_bytes(x->dtype);
}

static int64_t row_bytes(const KnTensor *x)
{
    return kn_tensor_columns(x) * element_bytes(x);
}

/* Rows of `bytes`, apart by strides in bytes; a NULL source is zeros. */
static cudaError_t copy_rows(KnCuda *cuda, void *to, int64_t to_stride, const void *from, int64_t from_stride,
                             int64_t rows, int64_t bytes)
{
    KnCudaPieces pieces = {.to = to,
                           .from = from,
                           .pieces = rows,
                           .bytes = bytes,
                           .inner = 1,
                           .to_outer = to_stride,
                           .from_outer = from_stride};
    if (to_stride == bytes && (from_stride == bytes || !from)) {
        pieces.pieces = 1;
        pieces.bytes = rows * bytes;
        pieces.to_outer = pieces.from_outer = 0;
    }
    return kn_cuda_copy_pieces(&pieces, cuda->stream);
}

static cudaError_t run_gather_rows(KnCuda *cuda, const KnCall *call)
{
    const KnTensor *x = call->node->inputs[0];
    return kn_cuda_gather_rows(call->inputs[0], call->inputs[1], call->outputs[0],
                               kn_tensor_elements(call->node->inputs[1]), row_bytes(x), kn_tensor_rows(x), cuda->fault,
                               cuda->stream);
}

static cudaError_t run_concatenate(KnCuda *cuda, const KnCall *call)
{
    const KnSliceAttributes *p = (const KnSliceAttributes *)call->node->attributes;
    const KnTensor *a = call->node->inputs[0], *b = call->node->inputs[1], *out = call->node->outputs[0];
    int64_t a_row = row_bytes(a), b_row = row_bytes(b), out_row = row_bytes(out);
    char *to = call->outputs[0], *second = to + (p->axis == 0 ? kn_tensor_rows(a) * out_row : a_row);
    cudaError_t result = copy_rows(cuda, to, out_row, call->inputs[0], a_row, kn_tensor_rows(a), a_row);
    return result ? result : copy_rows(cuda, second, out_row, call->inputs[1], b_row, kn_tensor_rows(b), b_row);
}

static cudaError_t run_slice(KnCuda *cuda, const KnCall *call)
{
    const KnSliceAttributes *p = (const KnSliceAttributes *)call->node->attributes;
    const KnTensor *x = call->node->inputs[0], *out = call->node->outputs[0];
    const char *from = (const char *)call->inputs[0] + p->start * (p->axis == 0 ? row_bytes(x) : element_bytes(x));
    return copy_rows(cuda, call->outputs[0], row_bytes(out), from, row_bytes(x), kn_tensor_rows(out), row_bytes(out));
}

static cudaError_t run_pad(KnCuda *cuda, const KnCall *call)
{
    const KnSliceAttributes *p = (const KnSliceAttributes *)call->node->attributes;
    const KnTensor *x = call->node->inputs[0], *out = call->node->outputs[0];
    int64_t x_row = row_bytes(x), out_row = row_bytes(out), rows = kn_tensor_rows(out), end = p->start + p->length;
    int64_t unit = p->axis == 0 ? out_row : element_bytes(x); /* of start and end */
    int64_t outer = p->axis == 0 ? 1 : rows, all = p->axis == 0 ? rows * out_row : out_row;
    char *to = call->outputs[0];
    cudaError_t result = copy_rows(cuda, to, all, NULL, 0, outer, p->start * unit);
    if (result == cudaSuccess)
        result = copy_rows(cuda, to + p->start * unit, out_row, call->inputs[0], x_row, kn_tensor_rows(x), x_row);
    return result ? result : copy_rows(cuda, to + end * unit, all, NULL, 0, outer, all - end * unit);
}

static cudaError_t run_swap_axes(KnCuda *cuda, const KnCall *call)
{
    const KnSwapAttributes *p = (const KnSwapAttributes *)call->node->attributes;
    int64_t bytes = p->inner * element_bytes(call->node->inputs[0]);
    KnCudaPieces pieces = {.to = call->outputs[0],
                           .from = call->inputs[0],
                           .pieces = p->outer * p->middle,
                           .bytes = bytes,
                           .inner = p->outer,
                           .to_outer = p->outer * bytes,
                           .to_inner = bytes,
                           .from_outer = bytes,
                           .from_inner = p->middle * bytes};
    return kn_cuda_copy_pieces(&pieces, cuda->stream);
}

/* Between rows and groups of their columns that lie one after another; groups of one width together. */
static cudaError_t run_groups(KnCuda *cuda, const KnCall *call, int together)
{
    const KnGroupAttributes *p = (const KnGroupAttributes *)call->node->attributes;
    int64_t element = element_bytes(call->node->inputs[0]), row = p->cuts[p->groups] * element;
    cudaError_t result = cudaSuccess;
    for (int i = 0, count; i < p->groups && result == cudaSuccess; i += count) {
        count = kn_cuda_alike_groups(p, i);
        int64_t start = p->cuts[i] * element, size = (p->cuts[i + 1] - p->cuts[i]) * element;
        int64_t in_group = start * p->rows;
        char *to = call->outputs[0];
        const char *from = call->inputs[0];
        KnCudaPieces pieces = {.to = to + (together ? in_group : start),
                               .from = from + (together ? start : in_group),
                               .pieces = count * p->rows,
                               .bytes = size,
                               .inner = p->rows,
                               .to_outer = together ? p->rows * size : size,
                               .to_inner = together ? size : row,
                               .from_outer = together ? size : p->rows * size,
                               .from_inner = together ? row : size};
        result = kn_cuda_copy_pieces(&pieces, cuda->stream);
    }
    return result;
}

static cudaError_t run_group_columns(KnCuda *cuda, const KnCall *call)
{
    return run_groups(cuda, call, 1);
}

static cudaError_t run_ungroup_columns(KnCuda *cuda, const KnCall *call)
{
    return run_groups(cuda, call, 0);
}

static cudaError_t run_parts(KnCuda *cuda, const KnTensor *whole, void *memory, const float *added, void *const *parts,
                             int count, int joins)
{
    KnCudaParts p = {.whole = memory,
                     .added = added,
                     .rows = kn_tensor_rows(whole),
                     .part = row_bytes(whole) / count,
                     .count = count,
                     .joins = joins};
    for (int i = 0; i < count; i++)
        p.parts[i] = parts[i];
    return kn_cuda_copy_parts(&p, cuda->stream);
}

static cudaError_t run_split_columns(KnCuda *cuda, const KnCall *call)
{
    const KnNode *node = call->node;
    return run_parts(cuda, node->inputs[0], call->inputs[0], call->inputs[1], call->outputs, node->output_count, 0);
}

static cudaError_t run_join_columns(KnCuda *cuda, const KnCall *call)
{
    const KnNode *node = call->node;
    return run_parts(cuda, node->outputs[0], call->outputs[0], NULL, call->inputs, node->input_count, 1);
}

const KnCudaOp kn_cuda_op_gather_rows = {run_gather_rows, NULL};
const KnCudaOp kn_cuda_op_concatenate = {run_concatenate, NULL};
const KnCudaOp kn_cuda_op_slice = {run_slice, NULL};
const KnCudaOp kn_cuda_op_pad = {run_pad, NULL};
const KnCudaOp kn_cuda_op_swap_axes = {run_swap_axes, NULL};
const KnCudaOp kn_cuda_op_group_columns = {run_group_columns, NULL};
const KnCudaOp kn_cuda_op_ungroup_columns = {run_ungroup_columns, NULL};
const KnCudaOp kn_cuda_op_split_columns = {run_split_columns, NULL};
const KnCudaOp kn_cuda_op_join_columns = {run_join_columns, NULL};
