/* What the graph is rewritten to for GPUs: what cuBLASLt does in a product's epilogue becomes part of the product.
 *
 * - Biases of products whose results are bfloat16 are rounded to it, once per change of the parameters, since cuBLASLt
 *   adds only such biases for free.
 * - A GELU of such a product, in graphs without a backward: one that keeps what enters it takes longer than a pass of
 *   its own, and a block that is computed again must have the bits of its first time. In float32 it stays a pass:
 *   cuBLASLt's tanh is approximate.
 * - Adding a float32 product to a sum.
 *
 * - What the backward's passes sum beside their results: lower_sums.c.
 *
 * What stays a pass of its own, since it is faster so than within a product: gradients of biases and of GELU
 * (docs/gpu.md). */
#include "core/cuda/lower.h"
#include "core/cuda/cuda.h"
#include "core/graph/edit.h"

#include "core/base/error.h"

#include <stdlib.h>

typedef struct Lowering {
    KnGraph *graph;
    struct KnCudaFp8 *fp8;
    KnNodeList old;
    int trains;          /* there is a backward, which may compute a block again, to the bit */
    int *readers;        /* per tensor: how many operands it is, or lends its memory to */
    KnNode **activation; /* per tensor: a GELU of it */
    KnNode **product;    /* per node: of an addition, the product that it becomes part of */
    char *gone;          /* per node: it is part of another, or comes later */
} Lowering;

static const KnMatmulAttributes *product_of(const KnNode *node)
{
    return (const KnMatmulAttributes *)node->attributes;
}

static int is_gelu(const KnNode *node)
{
    return node->op->id == KN_OP_ACTIVATION && ((const KnActivationAttributes *)node->attributes)->kind == KN_GELU_TANH;
}

static void find_readers(Lowering *l)
{
    for (int i = 0; i < l->old.count; i++) {
        KnNode *node = l->old.nodes[i];
        node->id = i;
        l->trains |= node->backward;
        for (int k = 0; k < node->input_count; k++) {
            if (!node->inputs[k])
                continue;
            l->readers[node->inputs[k]->id]++;
            if (is_gelu(node))
                l->activation[node->inputs[k]->id] = node;
        }
    }
}

/* ---- adding to a sum ---- */

static int share_memory(const KnTensor *a, const KnTensor *b)
{
    return a && b && kn_tensor_root(a, NULL) == kn_tensor_root(b, NULL);
}

/* Whether a node that changes memory, or gives it away, names an operand of the product. */
static int touches(const KnNode *node, const KnNode *product)
{
    if (!node->op->has_effect)
        return 0;
    for (int k = 0; k < node->input_count; k++)
        if (share_memory(node->inputs[k], product->inputs[0]) || share_memory(node->inputs[k], product->inputs[1]))
            return 1;
    return 0;
}

/* The product then runs where the addition was. */
static int can_add(const Lowering *l, const KnNode *product, const KnNode *addition)
{
    if (product->inputs[2] || product->prologue || l->readers[product->outputs[0]->id] != 1)
        return 0;
    for (int i = product->id + 1; i < addition->id; i++)
        if (touches(l->old.nodes[i], product))
            return 0;
    return 1;
}

static void find_additions(Lowering *l)
{
    for (int i = 0; i < l->old.count; i++) {
        KnNode *node = l->old.nodes[i];
        KnNode *product = node->op->id == KN_OP_ACCUMULATE ? node->inputs[1]->producer : NULL;
        if (!product || product->op->id != KN_OP_MATMUL || !can_add(l, product, node))
            continue;
        l->product[i] = product;
        l->gone[product->id] = 1;
    }
}

static KnNode *add_to(KnNode *product, const KnNode *addition)
{
    product->inputs[3] = addition->inputs[0];
    product->input_count = 4;
    product->output_count = 0;
    return product;
}

/* ---- GELU ---- */

static int can_apply_gelu(const Lowering *l, const KnNode *product)
{
    const KnMatmulAttributes *p = product_of(product);
    const KnTensor *result = product->outputs[0];
    return !l->trains && l->activation[result->id] && l->readers[result->id] == 1 && result->dtype == KN_BF16 &&
           product->inputs[0]->dtype == KN_BF16 && p->n % 8 == 0 && p->k % 8 == 0 && p->k > 0;
}

static void apply_gelu(Lowering *l, KnNode *product)
{
    KnNode *activation = l->activation[product->outputs[0]->id];
    ((KnMatmulAttributes *)product->attributes)->gelu = 1;
    product->outputs[0] = activation->outputs[0];
    product->outputs[0]->producer = product;
    l->gone[activation->id] = 1;
}

/* ---- biases ---- */

static void round_bias(Lowering *l, KnNode *product)
{
    KnTensor *bias = product->inputs[2];
    if (bias && bias->dtype == KN_F32 && product->outputs[0]->dtype == KN_BF16)
        product->inputs[2] = kn_cast(l->graph, bias, KN_BF16);
}

static void fuse_epilogue(Lowering *l, KnNode *product)
{
    round_bias(l, product);
    if (can_apply_gelu(l, product))
        apply_gelu(l, product);
}

static void put(Lowering *l, int place)
{
    KnNode *node = l->old.nodes[place];
    if (l->gone[place])
        return;
    if (l->product[place])
        node = add_to(l->product[place], node);
    else if (node->op->id == KN_OP_MATMUL)
        fuse_epilogue(l, node);
    if (node->op->id == KN_OP_MATMUL)
        kn_cuda_fp8_lower(l->fp8, l->graph, node);
    kn_graph_put_node(l->graph, node);
}

void kn_cuda_lower(KnGraph *graph)
{
    Lowering l = {.graph = graph};
    size_t tensors = (size_t)graph->tensor_count + 1, nodes = (size_t)graph->node_count + 1;
    l.readers = kn_alloc(tensors * sizeof *l.readers);
    l.activation = kn_alloc(tensors * sizeof *l.activation);
    l.product = kn_alloc(nodes * sizeof *l.product);
    l.gone = kn_alloc(nodes);
    kn_cuda_lower_sums(graph);
    kn_graph_mark_prologue(graph);
    l.fp8 = kn_cuda_fp8_begin(graph);
    kn_graph_take_nodes(graph, &l.old);
    find_readers(&l);
    find_additions(&l);
    for (int i = 0; i < l.old.count; i++)
        put(&l, i);
    kn_cuda_fp8_end(l.fp8);
    free(l.readers);
    free(l.activation);
    free(l.product);
    free(l.gone);
    free(l.old.nodes);
}
