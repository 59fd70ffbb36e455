/* Moving rows and columns: gather and scatter by index, concatenate, slice, pad, swap of axes, groups of columns, parts
 * of them. */
#include "core/ops/rows.h"

#include <string.h>

KnTensor *kn_gather_rows(KnGraph *graph, KnTensor *x, KnTensor *index)
{
    int64_t count = kn_tensor_elements(index);
    KN_ASSERT(kn_is_float(x) && index->dtype == KN_I32);
    return kn_node_simple(graph, &kn_op_gather_rows, NULL, 0, (KnTensor *[]){x, index}, 2, x->dtype, 2,
                          (int64_t[]){count, kn_tensor_columns(x)});
}

static void gather_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs, const int *wanted,
                            KnTensor **grad_inputs)
{
    (void)wanted;
    grad_inputs[0] = kn_scatter_rows(graph, grad_outputs[0], node->inputs[1], kn_tensor_rows(node->inputs[0]));
}

KnTensor *kn_scatter_rows(KnGraph *graph, KnTensor *x, KnTensor *index, int64_t rows)
{
    KnGatherAttributes attributes = {.rows = rows};
    KN_ASSERT(kn_is_float(x) && kn_is_index(index, kn_tensor_rows(x)));
    return kn_node_simple(graph, &kn_op_scatter_rows, &attributes, sizeof attributes, (KnTensor *[]){x, index}, 2,
                          x->dtype, 2, (int64_t[]){rows, kn_tensor_columns(x)});
}

static void scatter_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs, const int *wanted,
                             KnTensor **grad_inputs)
{
    (void)wanted;
    grad_inputs[0] = kn_gather_rows(graph, grad_outputs[0], node->inputs[1]);
}

static int64_t extent(const KnTensor *x, int axis)
{
    return axis == 0 ? kn_tensor_rows(x) : kn_tensor_columns(x);
}

static KnTensor *resized(KnGraph *graph, const KnOp *op, const KnSliceAttributes *attributes, KnTensor *const *inputs,
                         int count, int64_t size)
{
    KnTensor *x = inputs[0];
    int64_t shape[2] = {attributes->axis == 0 ? size : kn_tensor_rows(x),
                        attributes->axis == 1 ? size : kn_tensor_columns(x)};
    KN_ASSERT(kn_is_float(x) && (attributes->axis == 0 || attributes->axis == 1));
    return kn_node_simple(graph, op, attributes, sizeof *attributes, inputs, count, x->dtype, 2, shape);
}

KnTensor *kn_concatenate(KnGraph *graph, KnTensor *a, KnTensor *b, int axis)
{
    KnSliceAttributes attributes = {.axis = axis};
    KN_ASSERT(a->dtype == b->dtype && extent(a, !axis) == extent(b, !axis));
    attributes.length = extent(a, axis);
    attributes.total = extent(a, axis) + extent(b, axis);
    return resized(graph, &kn_op_concatenate, &attributes, (KnTensor *[]){a, b}, 2, attributes.total);
}

static void concatenate_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs, const int *wanted,
                                 KnTensor **grad_inputs)
{
    const KnSliceAttributes *p = (const KnSliceAttributes *)node->attributes;
    if (wanted[0])
        grad_inputs[0] = kn_slice(graph, grad_outputs[0], p->axis, 0, p->length);
    if (wanted[1])
        grad_inputs[1] = kn_slice(graph, grad_outputs[0], p->axis, p->length, p->total - p->length);
}

KnTensor *kn_slice(KnGraph *graph, KnTensor *x, int axis, int64_t start, int64_t length)
{
    KnSliceAttributes attributes = {.axis = axis, .start = start, .length = length, .total = extent(x, axis)};
    KN_ASSERT(start >= 0 && length >= 0 && start + length <= attributes.total);
    return resized(graph, &kn_op_slice, &attributes, &x, 1, length);
}

static void slice_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs, const int *wanted,
                           KnTensor **grad_inputs)
{
    const KnSliceAttributes *p = (const KnSliceAttributes *)node->attributes;
    (void)wanted;
    grad_inputs[0] = kn_pad(graph, grad_outputs[0], p->axis, p->start, p->total);
}

KnTensor *kn_pad(KnGraph *graph, KnTensor *x, int axis, int64_t start, int64_t total)
{
    KnSliceAttributes attributes = {.axis = axis, .start = start, .length = extent(x, axis), .total = total};
    KN_ASSERT(start >= 0 && start + attributes.length <= total);
    return resized(graph, &kn_op_pad, &attributes, &x, 1, total);
}

static void pad_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs, const int *wanted,
                         KnTensor **grad_inputs)
{
    const KnSliceAttributes *p = (const KnSliceAttributes *)node->attributes;
    (void)wanted;
    grad_inputs[0] = kn_slice(graph, grad_outputs[0], p->axis, p->start, p->length);
}

KnTensor *kn_swap_axes(KnGraph *graph, KnTensor *x, int64_t outer, int64_t middle)
{
    KnSwapAttributes attributes = {.outer = outer, .middle = middle};
    int64_t elements = kn_tensor_elements(x);
    KN_ASSERT(kn_is_float(x) && outer > 0 && middle > 0 && elements % (outer * middle) == 0);
    attributes.inner = elements / (outer * middle);
    return kn_node_simple(graph, &kn_op_swap_axes, &attributes, sizeof attributes, &x, 1, x->dtype, x->dims, x->shape);
}

static void swap_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs, const int *wanted,
                          KnTensor **grad_inputs)
{
    const KnSwapAttributes *p = (const KnSwapAttributes *)node->attributes;
    (void)wanted;
    grad_inputs[0] = kn_swap_axes(graph, grad_outputs[0], p->middle, p->outer);
}

static KnGroupAttributes group_attributes(KnGraph *graph, int64_t rows, const int64_t *cuts, int groups)
{
    size_t bytes = ((size_t)groups + 1) * sizeof *cuts;
    KN_ASSERT(groups >= 0 && cuts[0] == 0);
    for (int i = 0; i < groups; i++)
        KN_ASSERT(cuts[i] <= cuts[i + 1]);
    return (KnGroupAttributes){
        .rows = rows, .cuts = memcpy(kn_arena_alloc(graph->arena, bytes), cuts, bytes), .groups = groups};
}

KnTensor *kn_group_columns(KnGraph *graph, KnTensor *x, const int64_t *cuts, int groups)
{
    KnGroupAttributes attributes = group_attributes(graph, kn_tensor_rows(x), cuts, groups);
    KN_ASSERT(kn_is_float(x) && cuts[groups] == kn_tensor_columns(x));
    return kn_node_simple(graph, &kn_op_group_columns, &attributes, sizeof attributes, &x, 1, x->dtype, 1,
                          (int64_t[]){kn_tensor_elements(x)});
}

static void group_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs, const int *wanted,
                           KnTensor **grad_inputs)
{
    const KnGroupAttributes *p = (const KnGroupAttributes *)node->attributes;
    (void)wanted;
    grad_inputs[0] = kn_ungroup_columns(graph, grad_outputs[0], p->rows, p->cuts, p->groups);
}

KnTensor *kn_ungroup_columns(KnGraph *graph, KnTensor *flat, int64_t rows, const int64_t *cuts, int groups)
{
    KnGroupAttributes attributes = group_attributes(graph, rows, cuts, groups);
    KN_ASSERT(kn_is_float(flat) && kn_tensor_elements(flat) == rows * cuts[groups]);
    return kn_node_simple(graph, &kn_op_ungroup_columns, &attributes, sizeof attributes, &flat, 1, flat->dtype, 2,
                          (int64_t[]){rows, cuts[groups]});
}

static void ungroup_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs, const int *wanted,
                             KnTensor **grad_inputs)
{
    const KnGroupAttributes *p = (const KnGroupAttributes *)node->attributes;
    (void)wanted;
    grad_inputs[0] = kn_group_columns(graph, grad_outputs[0], p->cuts, p->groups);
}

void kn_split_columns(KnGraph *graph, KnTensor *x, KnTensor *row, int count, KnTensor **parts)
{
    int64_t columns = kn_tensor_columns(x);
    KN_ASSERT(kn_is_float(x) && count > 0 && count <= KN_MAX_OUTPUTS && columns % count == 0);
    KN_ASSERT(!row || (x->dtype == KN_F32 && row->dtype == KN_F32 && kn_tensor_elements(row) == columns));
    KnNode *node = kn_node_append(graph, &kn_op_split_columns, NULL, 0, (KnTensor *[]){x, row}, 2);
    for (int i = 0; i < count; i++)
        parts[i] = kn_node_output(graph, node, x->dtype, 2, (int64_t[]){kn_tensor_rows(x), columns / count});
}

static void split_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs, const int *wanted,
                           KnTensor **grad_inputs)
{
    grad_inputs[0] = kn_join_columns(graph, grad_outputs, node->output_count);
    if (node->inputs[1] && wanted[1])
        grad_inputs[1] = kn_sum_rows(graph, grad_inputs[0]);
}

KnTensor *kn_join_columns(KnGraph *graph, KnTensor *const *parts, int count)
{
    const KnTensor *any = NULL;
    KN_ASSERT(count > 0 && count <= KN_MAX_OUTPUTS);
    for (int i = 0; i < count; i++)
        any = parts[i] ? parts[i] : any;
    KN_ASSERT(any && kn_is_float(any));
    int64_t rows = kn_tensor_rows(any), columns = kn_tensor_columns(any);
    for (int i = 0; i < count; i++)
        KN_ASSERT(!parts[i] || (parts[i]->dtype == any->dtype && kn_tensor_rows(parts[i]) == rows &&
                                kn_tensor_columns(parts[i]) == columns));
    return kn_node_simple(graph, &kn_op_join_columns, NULL, 0, parts, count, any->dtype, 2,
                          (int64_t[]){rows, count * columns});
}

static void join_gradient(KnGraph *graph, const KnNode *node, KnTensor *const *grad_outputs, const int *wanted,
                          KnTensor **grad_inputs)
{
    (void)wanted;
    kn_split_columns(graph, grad_outputs[0], NULL, node->input_count, grad_inputs);
}

static void move_cost(const KnNode *node, KnCost *cost)
{
    kn_cost_of_bytes(node, cost, 0);
    if (node->op == &kn_op_gather_rows || node->op == &kn_op_slice) /* only what is chosen is read */
        cost->bytes = 2.0 * (double)kn_tensor_bytes(node->outputs[0]);
}

const KnOp kn_op_gather_rows = {KN_OP_GATHER_ROWS, "gather_rows", gather_gradient, move_cost, 0};
const KnOp kn_op_scatter_rows = {KN_OP_SCATTER_ROWS, "scatter_rows", scatter_gradient, move_cost, 0};
const KnOp kn_op_concatenate = {KN_OP_CONCATENATE, "concatenate", concatenate_gradient, move_cost, 0};
const KnOp kn_op_slice = {KN_OP_SLICE, "slice", slice_gradient, move_cost, 0};
const KnOp kn_op_pad = {KN_OP_PAD, "pad", pad_gradient, move_cost, 0};
const KnOp kn_op_swap_axes = {KN_OP_SWAP_AXES, "swap_axes", swap_gradient, move_cost, 0};
const KnOp kn_op_group_columns = {KN_OP_GROUP_COLUMNS, "group_columns", group_gradient, move_cost, 0};
const KnOp kn_op_ungroup_columns = {KN_OP_UNGROUP_COLUMNS, "ungroup_columns", ungroup_gradient, move_cost, 0};
const KnOp kn_op_split_columns = {KN_OP_SPLIT_COLUMNS, "split_columns", split_gradient, move_cost, 0};
const KnOp kn_op_join_columns = {KN_OP_JOIN_COLUMNS, "join_columns", join_gradient, move_cost, 0};
