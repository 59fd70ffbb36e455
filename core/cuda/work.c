/* What the kernels behind a node read and write, by arithmetic of their passes (*.cu), for plans. Most ops are one
 * kernel that moves each operand once; the exceptions are the rows of a table. */
#include "core/cuda/cuda.h"

enum { VECTOR_BYTES = 16, UNROLLED = 4, SLAB_WARPS = 8, CACHE_FASTER = 3 };

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

/* The two kernels of core/cuda/row_sum.h: slabs of tokens, then the slabs' sums, which lie in the cache still. A thread
 * of the first has UNROLLED tokens' vectors of each operand under way, one of the second (SLAB_WARPS for each sum) as
 * many slabs. Of the blocks of one slab those of one row are at work, since the tokens of a clip lie together. */
static int row_sum(KnKernelWork *list, const KnTensor *x, int operands, int64_t rows, int results)
{
    int64_t tokens = kn_tensor_rows(x), columns = kn_tensor_columns(x);
    int64_t lanes = VECTOR_BYTES / (int64_t)kn_dtype_bytes(x->dtype);
    int wide = columns % lanes == 0;
    int64_t slabs = kn_cuda_row_sum_slabs(tokens, rows, columns), word = wide ? VECTOR_BYTES : VECTOR_BYTES / lanes;
    double size = (double)(rows * columns * results), read = operands * bytes_of(x);
    double threads = (double)slabs * (double)(wide ? columns / lanes : columns);
    list[0] = (KnKernelWork){.name = "row_sum",
                             .launches = tokens > 0,
                             .bytes = read + 4 * size * (double)slabs,
                             .at_once = threads * (double)word * operands * UNROLLED};
    if (slabs == 1)
        return 1;
    list[1] = (KnKernelWork){.name = "add_slabs",
                             .launches = 1,
                             .bytes = 4 * size * (double)(slabs + 1),
                             .at_once = 4.0 * (double)(rows * columns) * SLAB_WARPS * UNROLLED * CACHE_FASTER};
    return 2;
}

static int sum_rows(const KnNode *node, KnKernelWork *list)
{
    return row_sum(list, node->inputs[0], 1, 1, 1);
}

static int scatter_rows(const KnNode *node, KnKernelWork *list)
{
    list[0] = (KnKernelWork){.name = "check_index", .launches = 1, .bytes = bytes_of(node->inputs[1])};
    return 1 + row_sum(list + 1, node->inputs[0], 1, kn_tensor_rows(node->outputs[0]), 1);
}

/* The gradient of x in one pass over x and the gradient, and sums over tokens in another. */
static int norm_backward(const KnNode *node, KnKernelWork *list, int64_t rows, int results)
{
    const KnTensor *x = node->inputs[0];
    list[0] = (KnKernelWork){.name = node->op->name, .launches = 1, .bytes = 3 * bytes_of(x)};
    return 1 + (results ? row_sum(list + 1, x, 2, rows, results) : 0);
}

static int layer_norm_backward(const KnNode *node, KnKernelWork *list)
{
    const KnTensor *scale = node->inputs[4];
    return norm_backward(node, list, scale ? kn_tensor_rows(scale) : 1, node->output_count > 1 ? 2 : 0);
}

static int rms_norm_backward(const KnNode *node, KnKernelWork *list)
{
    return norm_backward(node, list, 1, 1);
}

static int modulate_backward(const KnNode *node, KnKernelWork *list)
{
    const KnTensor *x = node->inputs[0];
    list[0] = (KnKernelWork){.name = node->op->name, .launches = 1, .bytes = 2 * bytes_of(x)};
    return 1 + row_sum(list + 1, x, 2, kn_tensor_rows(node->inputs[1]), 2);
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

static int reduce(const KnNode *node, KnKernelWork *list)
{
    return several(node, list, 2);
}

static int (*const special[KN_OP_COUNT])(const KnNode *node, KnKernelWork *list) = {
    [KN_OP_SUM_ROWS] = sum_rows,
    [KN_OP_SCATTER_ROWS] = scatter_rows,
    [KN_OP_LAYER_NORM_BACKWARD] = layer_norm_backward,
    [KN_OP_RMS_NORM_BACKWARD] = rms_norm_backward,
    [KN_OP_RMS_NORM_SPLIT_BACKWARD] = rms_norm_backward,
    [KN_OP_MODULATE_BACKWARD] = modulate_backward,
    [KN_OP_GATED_RESIDUAL_BACKWARD] = modulate_backward,
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
