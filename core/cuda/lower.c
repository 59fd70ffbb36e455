/* What the graph is rewritten to for GPUs: what cuBLASLt does in a product's epilogue becomes part of the product, and
 * rotary positions, and what lays columns in groups for other ranks, part of the norm before them (lower_rope.c).
 *
 * - Biases of products whose results are bfloat16 are rounded to it, since cuBLASLt adds only such biases for free
 *   (lower_biases.c).
 * - A GELU of such a product, in graphs without a backward: one that keeps what enters it takes longer than a pass of
 *   its own, and a block that is computed again must have the bits of its first time. In float32 it stays a pass:
 *   cuBLASLt's tanh is approximate.
 * - Adding a product to a sum, or to another tensor (lower_add.c).
 * - What the backward's passes sum beside their results (lower_sums.c).
 * - A gated residual that a layer norm reads (lower_residual.c).
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
    struct KnCudaBiases *biases;
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

static void put(Lowering *l, int place)
{
    KnNode *node = l->old.nodes[place];
    if (l->gone[place])
        return;
    if (l->product[place])
        node = kn_cuda_add_to(l->product[place], node);
    else if (node->op->id == KN_OP_MATMUL && can_apply_gelu(l, node))
        apply_gelu(l, node);
    if (node->op->id == KN_OP_MATMUL) {
        kn_cuda_round_bias(l->biases, l->graph, node);
        kn_cuda_fp8_lower(l->fp8, l->graph, node);
    }
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
    kn_cuda_lower_residuals(graph);
    kn_cuda_lower_sums(graph);
    kn_cuda_lower_residual_gradients(graph);
    kn_graph_mark_prologue(graph);
    l.fp8 = kn_cuda_fp8_begin(graph);
    l.biases = kn_cuda_biases_begin(graph);
    kn_graph_take_nodes(graph, &l.old);
    find_readers(&l);
    kn_cuda_find_additions(&l.old, l.readers, l.product, l.gone);
    kn_cuda_turn_in_norms(&l.old, l.readers, l.gone);
    kn_cuda_group_in_norms(&l.old, l.readers, l.gone);
    for (int i = 0; i < l.old.count; i++)
        put(&l, i);
    kn_cuda_fp8_end(l.fp8);
    kn_cuda_biases_end(l.biases);
    free(l.readers);
    free(l.activation);
    free(l.product);
    free(l.gone);
    free(l.old.nodes);
}
