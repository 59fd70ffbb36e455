/* Sums that products make as they are written, by cuBLASLt's beta: a float32 product that is added to state, and a
 * product that nobody but an addition reads, which adds the other operand. The sum is then rounded once.
 *
 * The product runs where the addition was. Of two products the later one adds the earlier one. Who reads what is the
 * same in a block that is computed again, so its bits are those of the first time. */
#include "core/cuda/lower.h"

static const KnMatmulAttributes *product_of(const KnNode *node)
{
    return (const KnMatmulAttributes *)node->attributes;
}

static int share_memory(const KnTensor *a, const KnTensor *b)
{
    return a && b && kn_tensor_root(a, NULL) == kn_tensor_root(b, NULL);
}

/* Whether a node that changes memory, or gives it away, names the tensor. */
static int touches(const KnNode *node, const KnTensor *tensor)
{
    for (int k = 0; node->op->has_effect && k < node->input_count; k++)
        if (share_memory(node->inputs[k], tensor))
            return 1;
    return 0;
}

int kn_cuda_is_changed(const KnNodeList *nodes, const KnTensor *tensor, int after, int before)
{
    for (int i = after + 1; i < before; i++)
        if (touches(nodes->nodes[i], tensor))
            return 1;
    return 0;
}

/* Whether it may run where the addition is. */
static int can_add(const KnNodeList *nodes, const int *readers, const KnNode *product, const KnNode *addition)
{
    const KnMatmulAttributes *p = product_of(product);
    int to_state = addition->op->id == KN_OP_ACCUMULATE;
    if (product->prologue || readers[product->outputs[0]->id] != 1 || (to_state ? product->inputs[2] != NULL : !p->k))
        return 0;
    return !kn_cuda_is_changed(nodes, product->inputs[0], product->id, addition->id) &&
           !kn_cuda_is_changed(nodes, product->inputs[1], product->id, addition->id);
}

static KnNode *find_product(const KnNodeList *nodes, const int *readers, const KnNode *addition)
{
    KnNode *found = NULL;
    for (int k = addition->op->id == KN_OP_ACCUMULATE; k < 2; k++) {
        KnNode *maker = addition->inputs[k]->producer;
        if (maker && maker->op->id == KN_OP_MATMUL && (!found || maker->id > found->id) &&
            can_add(nodes, readers, maker, addition))
            found = maker;
    }
    return found;
}

void kn_cuda_find_additions(const KnNodeList *nodes, const int *readers, KnNode **product, char *gone)
{
    for (int i = 0; i < nodes->count; i++) {
        const KnNode *node = nodes->nodes[i];
        if (node->op->id != KN_OP_ACCUMULATE && node->op->id != KN_OP_ADD)
            continue;
        product[i] = find_product(nodes, readers, node);
        if (product[i])
            gone[product[i]->id] = 1;
    }
}

KnNode *kn_cuda_add_to(KnNode *product, const KnNode *addition)
{
    int to_state = addition->op->id == KN_OP_ACCUMULATE;
    product->inputs[3] = addition->inputs[!to_state && addition->inputs[0] == product->outputs[0]];
    product->input_count = 4;
    product->output_count = addition->output_count;
    if (!to_state) {
        product->outputs[0] = addition->outputs[0];
        product->outputs[0]->producer = product;
    }
    return product;
}
