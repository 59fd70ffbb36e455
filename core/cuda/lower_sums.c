/* Sums that a node of the backward makes beside its results, while it has them in registers; each would else be a pass
 * that reads them again.
 *
 * - A bias's gradient: the sum over rows of what RMS norm, a gated residual or GELU's backward writes.
 * - The gradient of a residual: what layer norm's backward writes, added to the gradient that goes round the norm.
 *
 * Chunks of a node's tokens (dist/invariant.h), whose operands are views, stay as they are: their bits may not depend
 * on how many of them a rank has. */
#include "core/cuda/lower.h"

#include "core/base/memory.h"
#include "core/graph/edit.h"

#include <stdlib.h>

typedef struct Sums {
    KnNodeList old;
    int *readers; /* per tensor: how many operands it is, or lends its memory to */
} Sums;

/* Of nodes that can give the sum of output 0 over its rows: how many outputs they have without it. */
static int outputs_without_sum(const KnNode *node)
{
    switch (node->op->id) {
    case KN_OP_RMS_NORM_BACKWARD:
    case KN_OP_GATED_RESIDUAL_BACKWARD:
        return 2;
    case KN_OP_ACTIVATION_BACKWARD:
        return ((const KnActivationAttributes *)node->attributes)->kind == KN_GELU_TANH ? 1 : 0;
    default:
        return 0;
    }
}

static int can_give_sum(const Sums *s, const KnNode *maker, const KnNode *sum)
{
    const KnTensor *x = sum->inputs[0];
    return outputs_without_sum(maker) == maker->output_count && maker->outputs[0] == x && !maker->inputs[0]->base &&
           !kn_cuda_is_changed(&s->old, x, maker->id, sum->id);
}

static void give_sum(KnNode *maker, const KnNode *sum)
{
    maker->outputs[maker->output_count++] = sum->outputs[0];
    sum->outputs[0]->producer = maker;
}

/* The layer norm's backward stays where it is: the other gradient must be there by then. */
static int can_add(const Sums *s, const KnNode *norm, const KnNode *add, const KnTensor *other)
{
    return norm && norm->op->id == KN_OP_LAYER_NORM_BACKWARD && norm->input_count == 6 &&
           s->readers[norm->outputs[0]->id] == 1 && !norm->inputs[0]->base &&
           (!other->producer || other->producer->id < norm->id) &&
           !kn_cuda_is_changed(&s->old, other, norm->id, add->id);
}

static int add_within(const Sums *s, const KnNode *add)
{
    for (int k = 0; k < 2; k++) {
        KnNode *norm = add->inputs[k]->producer;
        KnTensor *other = add->inputs[1 - k], *sum = add->outputs[0];
        if (!can_add(s, norm, add, other) || norm->outputs[0] != add->inputs[k])
            continue;
        norm->inputs[norm->input_count++] = other;
        norm->outputs[0] = sum;
        sum->producer = norm;
        return 1;
    }
    return 0;
}

static int is_made_elsewhere(const Sums *s, const KnNode *node)
{
    KnNode *maker = node->op->id == KN_OP_SUM_ROWS ? node->inputs[0]->producer : NULL;
    if (!maker || !can_give_sum(s, maker, node))
        return node->op->id == KN_OP_ADD && add_within(s, node);
    give_sum(maker, node);
    return 1;
}

static void find_readers(Sums *s)
{
    for (int i = 0; i < s->old.count; i++) {
        KnNode *node = s->old.nodes[i];
        node->id = i;
        for (int k = 0; k < node->input_count; k++)
            if (node->inputs[k])
                s->readers[node->inputs[k]->id]++;
    }
}

void kn_cuda_lower_sums(KnGraph *graph)
{
    Sums s = {.readers = kn_alloc((size_t)(graph->tensor_count + 1) * sizeof *s.readers)};
    kn_graph_take_nodes(graph, &s.old);
    find_readers(&s);
    char *gone = kn_alloc((size_t)s.old.count + 1);
    for (int i = 0; i < s.old.count; i++)
        gone[i] = (char)is_made_elsewhere(&s, s.old.nodes[i]);
    for (int i = 0; i < s.old.count; i++)
        if (!gone[i])
            kn_graph_put_node(graph, s.old.nodes[i]);
    free(gone);
    free(s.readers);
    free(s.old.nodes);
}
