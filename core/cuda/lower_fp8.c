/* Products of the blocks' linear layers in 8 bits: operands are e4m3, gradients e5m2, and the same sums in float32.
 *
 * cuBLASLt has one form of them, of two matrices whose rows are what is summed over. So each operand is rounded once,
 * and as it lies, transposed or both, as its products want it: x for y = x W^T and transposed for the weight's
 * gradient, the gradient for x's gradient and transposed for the weight's, the weight as it is and transposed. Rows of
 * transposed tokens are filled up with zeros to a multiple of 16; widths that are none stay bfloat16.
 *
 * Weights have the scale of what they are, found once per change of the parameters. Tokens and gradients have that of
 * the steps before, from a table (KN_FP8_LEAF): place i belongs to what enters the i-th product of the forward, or its
 * repetition, the second half to gradients in the order of the backward. */
#include "core/cuda/lower.h"

#include "core/base/memory.h"

#include <stdlib.h>

/* What becomes of a tensor. */
typedef struct Rounded {
    KnQuantizeAttributes wanted;
    int has_site;
    KnNode *node;
} Rounded;

struct KnCudaFp8 {
    KnTensor *scales;
    int64_t gradients; /* so far */
    int64_t *first;    /* per block: its first product */
    int64_t *again;    /* per block: products of its repetition so far */
    Rounded *rounded;  /* per tensor */
    int64_t tensors, products, blocks;
};

static KnMatmulAttributes *product_of(KnNode *node)
{
    return (KnMatmulAttributes *)node->attributes;
}

static int is_forward(const KnNode *node)
{
    return !node->backward || node->again;
}

static int can_round(KnNode *node)
{
    const KnMatmulAttributes *p = product_of(node);
    return kn_is_block_product(node) && !node->prologue && p->m > 0 && p->n % 16 == 0 && p->k > 0 &&
           (p->transpose_a ? p->m : p->k) % 16 == 0;
}

/* A weight is rounded from its float32 master. */
static KnTensor *source_of(const KnNode *product, int operand)
{
    KnTensor *tensor = product->inputs[operand];
    int is_weight = operand == 1 && !((const KnMatmulAttributes *)product->attributes)->transpose_a;
    int is_cast = tensor->producer && tensor->producer->op->id == KN_OP_CAST;
    return is_weight && is_cast ? tensor->producer->inputs[0] : tensor;
}

static int lies_turned(KnNode *product, int operand)
{
    return operand == 0 ? product_of(product)->transpose_a : !product_of(product)->transpose_b;
}

/* The place of what enters a product of the forward. */
static int64_t place_of(struct KnCudaFp8 *f, const KnNode *product)
{
    if (product->again)
        return f->first[product->block] + f->again[product->block]++;
    if (f->first[product->block] < 0)
        f->first[product->block] = f->products;
    return f->products++;
}

static void want(struct KnCudaFp8 *f, KnNode *product, int operand, int64_t site)
{
    Rounded *r = &f->rounded[source_of(product, operand)->id];
    *(lies_turned(product, operand) ? &r->wanted.transposed : &r->wanted.plain) = 1;
    if (site >= 0 && !r->has_site) {
        r->has_site = 1;
        r->wanted.site = site;
    }
}

static void want_gradient(struct KnCudaFp8 *f, KnNode *product)
{
    Rounded *r = &f->rounded[product->inputs[0]->id];
    r->wanted.format = KN_E5M2;
    want(f, product, 0, r->has_site ? -1 : f->scales->shape[1] / 2 + f->gradients++);
}

struct KnCudaFp8 *kn_cuda_fp8_begin(KnGraph *graph)
{
    struct KnCudaFp8 *f = kn_alloc(sizeof *f);
    f->scales = kn_leaf_find(graph, KN_FP8_LEAF);
    if (!f->scales)
        return f;
    f->blocks = kn_graph_blocks(graph);
    f->tensors = graph->tensor_count;
    f->first = kn_alloc((size_t)(f->blocks + 1) * sizeof *f->first);
    f->again = kn_alloc((size_t)(f->blocks + 1) * sizeof *f->again);
    f->rounded = kn_alloc((size_t)f->tensors * sizeof *f->rounded);
    for (int64_t b = 0; b < f->blocks; b++)
        f->first[b] = -1;
    for (int i = 0; i < graph->node_count; i++) {
        KnNode *node = graph->nodes[i];
        int64_t site = kn_is_block_product(node) && is_forward(node) ? place_of(f, node) : -1;
        if (!can_round(node))
            continue;
        if (is_forward(node))
            want(f, node, 0, site);
        else
            want_gradient(f, node);
        want(f, node, 1, -1);
    }
    return f;
}

static KnNode *rounded(struct KnCudaFp8 *f, KnGraph *graph, const KnNode *product, int operand)
{
    KnTensor *source = source_of(product, operand);
    Rounded *r = &f->rounded[source->id];
    if (!r->node) {
        r->node = kn_quantize(graph, source, r->has_site ? f->scales : NULL, &r->wanted);
        r->node->backward = product->backward;
        r->node->again = product->again;
    }
    return r->node;
}

void kn_cuda_fp8_lower(struct KnCudaFp8 *f, KnGraph *graph, KnNode *product)
{
    KnMatmulAttributes *p = product_of(product);
    if (!f->scales || !can_round(product))
        return;
    KnNode *operands[2] = {rounded(f, graph, product, 0), rounded(f, graph, product, 1)};
    for (int i = 0; i < 2; i++) {
        product->inputs[i] = operands[i]->outputs[lies_turned(product, i)];
        product->inputs[4 + i] = operands[i]->outputs[2];
    }
    product->input_count = 6;
    p->k = kn_tensor_columns(product->inputs[0]);
    p->fp8 = is_forward(product) ? KN_E4M3 : KN_E5M2;
    p->transpose_a = 0;
    p->transpose_b = 1;
}

void kn_cuda_fp8_end(struct KnCudaFp8 *f)
{
    free(f->first);
    free(f->again);
    free(f->rounded);
    free(f);
}
