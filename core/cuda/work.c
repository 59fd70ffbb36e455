/* What the kernels behind a node read and write, by arithmetic of their passes (*.cu), for plans. Most ops are one
 * kernel that moves each operand once; the exceptions are the rows of a table. */
#include "core/cuda/cuda.h"
#include "core/cuda/slabs.h"

enum { CACHE_FASTER = 3 };

static KnKernelWork one_pass(const KnNode *node)
{
    KnCost cost = {0};
    node->op->cost(node, &cost);
    return (KnKernelWork){.name = node->op->name, .launches = cost.bytes > 0, .bytes = cost.bytes};
}

static double bytes_of(const KnTensor *tensor)
{
    return tensor ? (double)kn_tensor_bytes(tensor) : 0;
}

/* `sums` floats of each slab are added up, which lie in the cache still. A thread has KN_SUMS_AT_ONCE slabs under way,
 * KN_SLAB_WARPS of them share a sum. */
static KnKernelWork add_slabs(double sums, double read)
{
    return (KnKernelWork){.name = "add_slabs",
                          .launches = 1,
                          .bytes = 4 * (sums + read),
                          .at_once = 4 * sums * KN_SLAB_WARPS * KN_SUMS_AT_ONCE * CACHE_FASTER};
}

/* The two kernels of core/cuda/row_sum.h: slabs of tokens, then the slabs' sums. A thread of the first has
 * KN_SUMS_AT_ONCE tokens' vectors under way. Of the blocks of one slab those of one row are at work, since the tokens
 * of a clip lie together. */
static int row_sum(KnKernelWork *list, const KnTensor *x, int64_t rows)
{
    int64_t tokens = kn_tensor_rows(x), columns = kn_tensor_columns(x);
    int64_t lanes = KN_VECTOR_BYTES / (int64_t)kn_dtype_bytes(x->dtype);
    int wide = columns % lanes == 0;
    int64_t slabs = kn_cuda_row_sum_slabs(tokens, rows, columns);
    int64_t word = wide ? KN_VECTOR_BYTES : KN_VECTOR_BYTES / lanes;
    double size = (double)(rows * columns), threads = (double)slabs * (double)(wide ? columns / lanes : columns);
    list[0] = (KnKernelWork){.name = "row_sum",
                             .launches = tokens > 0,
                             .bytes = bytes_of(x) + 4 * size * (double)slabs,
                             .at_once = threads * (double)word * KN_SUMS_AT_ONCE};
    if (slabs == 1)
        return 1;
    list[1] = add_slabs(size, size * (double)slabs);
    return 2;
}

static int sum_rows(const KnNode *node, KnKernelWork *list)
{
    return row_sum(list, node->inputs[0], 1);
}

static int scatter_rows(const KnNode *node, KnKernelWork *list)
{
    list[0] = (KnKernelWork){.name = "check_index", .launches = 1, .bytes = bytes_of(node->inputs[1])};
    return 1 + row_sum(list + 1, node->inputs[0], kn_tensor_rows(node->outputs[0]));
}

/* The two kernels of core/cuda/row_pass.h: one pass over x, the gradient and what else is added, that writes dx and of
 * each slab the sums of one row, since the tokens of a clip lie together; then the slabs' sums. */
static int row_pass(const KnNode *node, KnKernelWork *list, const KnTensor *added, int64_t rows, int results)
{
    const KnTensor *x = node->inputs[0];
    int64_t tokens = kn_tensor_rows(x), columns = kn_tensor_columns(x);
    double slabs = kn_cuda_row_pass_slabs(tokens, rows, columns), sums = slabs * (double)(columns * results);
    double threads = slabs * (double)columns / KN_PASS_COLUMNS;
    list[0] = (KnKernelWork){.name = node->op->name,
                             .launches = tokens > 0,
                             .bytes = 3 * bytes_of(x) + bytes_of(added) + 4 * sums,
                             .at_once = 2 * threads * KN_PASS_BYTES_AT_ONCE};
    if (results == 0)
        return 1;
    list[1] = add_slabs((double)(rows * columns * results), sums);
    return 2;
}

/* core/cuda/norm_gate.cu: the same with the branch and its gradient, a token at a time. In float32 it is two passes;
 * one is as near as plans need it. */
static int norm_gate_backward(const KnNode *node, KnKernelWork *list)
{
    int count = row_pass(node, list, node->inputs[6], kn_tensor_rows(node->inputs[8]), 4);
    list[0].bytes += 2 * bytes_of(node->inputs[7]);
    return count;
}

static int layer_norm_backward(const KnNode *node, KnKernelWork *list)
{
    const KnTensor *scale = node->inputs[4];
    if (node->input_count > 7)
        return norm_gate_backward(node, list);
    const KnTensor *added = node->input_count > 6 ? node->inputs[6] : NULL;
    return row_pass(node, list, added, scale ? kn_tensor_rows(scale) : 1, node->output_count - 1);
}

/* May turn the gradient by positions and a table. */
static int turning_backward(const KnNode *node, KnKernelWork *list, int results)
{
    int count = row_pass(node, list, NULL, 1, results);
    for (int i = 4; i < node->input_count; i++)
        list[0].bytes += bytes_of(node->inputs[i]);
    return count;
}

static int rms_norm_backward(const KnNode *node, KnKernelWork *list)
{
    return turning_backward(node, list, node->output_count - 1);
}

static int rms_norm_split_backward(const KnNode *node, KnKernelWork *list)
{
    return turning_backward(node, list, 1);
}

/* With the sum of what it writes, or by one kernel. */
static int activation_backward(const KnNode *node, KnKernelWork *list)
{
    if (node->output_count > 1)
        return row_pass(node, list, NULL, 1, 1);
    list[0] = one_pass(node);
    return 1;
}

static int modulate_backward(const KnNode *node, KnKernelWork *list)
{
    return row_pass(node, list, NULL, kn_tensor_rows(node->inputs[1]), node->output_count - 1);
}

static int several(const KnNode *node, KnKernelWork *list, int launches)
{
    list[0] = one_pass(node);
    list[0].launches = launches;
    return 1;
}

static int concatenate(const KnNode *node, KnKernelWork *list)
{
    return several(node, list, 2);
}

static int pad(const KnNode *node, KnKernelWork *list)
{
    return several(node, list, 3);
}

int kn_cuda_alike_groups(const KnGroupAttributes *p, int first)
{
    int64_t width = p->cuts[first + 1] - p->cuts[first];
    int count = 1;
    while (first + count < p->groups && p->cuts[first + count + 1] - p->cuts[first + count] == width)
        count++;
    return count;
}

static int groups(const KnNode *node, KnKernelWork *list)
{
    const KnGroupAttributes *p = (const KnGroupAttributes *)node->attributes;
    int launches = 0;
    for (int i = 0; i < p->groups; i += kn_cuda_alike_groups(p, i))
        launches++;
    return several(node, list, launches);
}

/* One kernel for each tensor, one for all of their blocks' sums. */
static int reduce(const KnNode *node, KnKernelWork *list)
{
    return several(node, list, node->op->id == KN_OP_SUM_OF_SQUARES ? node->input_count + 1 : 2);
}

static int (*const special[KN_OP_COUNT])(const KnNode *node, KnKernelWork *list) = {
    [KN_OP_SUM_ROWS] = sum_rows,
    [KN_OP_SCATTER_ROWS] = scatter_rows,
    [KN_OP_LAYER_NORM_BACKWARD] = layer_norm_backward,
    [KN_OP_RMS_NORM_BACKWARD] = rms_norm_backward,
    [KN_OP_RMS_NORM_SPLIT_BACKWARD] = rms_norm_split_backward,
    [KN_OP_MODULATE_BACKWARD] = modulate_backward,
    [KN_OP_GATED_RESIDUAL_BACKWARD] = modulate_backward,
    [KN_OP_ACTIVATION_BACKWARD] = activation_backward,
    [KN_OP_CONCATENATE] = concatenate,
    [KN_OP_PAD] = pad,
    [KN_OP_GROUP_COLUMNS] = groups,
    [KN_OP_UNGROUP_COLUMNS] = groups,
    [KN_OP_MASKED_MSE] = reduce,
    [KN_OP_SUM_OF_SQUARES] = reduce,
};

int kn_cuda_kernels(const KnNode *node, KnKernelWork kernels[KN_MOST_KERNELS])
{
    KnCost cost = {0};
    node->op->cost(node, &cost);
    if (cost.matmul_flops + cost.attention_flops > 0) /* and what is made of products: bound by arithmetic */
        return 0;
    if (special[node->op->id])
        return special[node->op->id](node, kernels);
    kernels[0] = one_pass(node);
    return kernels[0].launches;
}
