/* Gated residuals in the passes of layer norms that read their sums.
 *
 * - Forward, the norm that is the first to read a sum makes it and, while it is in registers, its norm. Two of a block;
 *   the norm may be the next block's. The node stays where the norm was: what a block needs of its own, such as
 *   gathered weights, is there by then.
 * - Backward, a norm that makes the whole gradient of the sum (lower_sums.c) makes with it those of the branch and of
 *   the gate. The node stays where the norm was, if the branch is there: of a block that is computed again it may not
 *   be. Chunks of tokens stay as they are, as they do there. */
#include "core/cuda/lower.h"

#include "core/base/memory.h"

#include <stdlib.h>

/* ---- forward ---- */

static void find_first_readers(const KnNodeList *nodes, KnNode **first)
{
    for (int i = 0; i < nodes->count; i++) {
        KnNode *node = nodes->nodes[i];
        node->id = i;
        for (int k = 0; k < node->input_count; k++)
            if (node->inputs[k] && !first[node->inputs[k]->id])
                first[node->inputs[k]->id] = node;
    }
}

/* Both take their rows by one index. */
static int have_rows_in_common(const KnNode *residual, const KnNode *norm)
{
    const KnTensor *scale = norm->inputs[3], *gate = residual->inputs[2];
    return !scale || (norm->inputs[5] == residual->inputs[3] && kn_tensor_rows(scale) == kn_tensor_rows(gate));
}

static int can_make(const KnNodeList *nodes, const KnNode *norm, const KnNode *residual)
{
    const KnTensor *sum = residual->outputs[0];
    if (!norm || norm->op->id != KN_OP_LAYER_NORM || sum->base || norm->again != residual->again ||
        !have_rows_in_common(residual, norm))
        return 0;
    for (int k = 0; k < residual->input_count; k++)
        if (kn_cuda_is_changed(nodes, residual->inputs[k], residual->id, norm->id))
            return 0;
    return 1;
}

static void make_within(KnNode *norm, const KnNode *residual)
{
    norm->inputs[0] = residual->inputs[0];
    norm->inputs[5] = residual->inputs[3];
    norm->inputs[6] = residual->inputs[1];
    norm->inputs[7] = residual->inputs[2];
    norm->input_count = 8;
    norm->outputs[norm->output_count++] = residual->outputs[0];
    residual->outputs[0]->producer = norm;
}

void kn_cuda_lower_residuals(KnGraph *graph)
{
    KnNode **first = kn_alloc((size_t)(graph->tensor_count + 1) * sizeof *first);
    KnNodeList old;
    kn_graph_take_nodes(graph, &old);
    find_first_readers(&old, first);
    char *gone = kn_alloc((size_t)old.count + 1);
    for (int i = 0; i < old.count; i++) {
        const KnNode *residual = old.nodes[i];
        KnNode *norm = residual->op->id == KN_OP_GATED_RESIDUAL ? first[residual->outputs[0]->id] : NULL;
        gone[i] = (char)can_make(&old, norm, residual);
        if (gone[i])
            make_within(norm, residual);
    }
    for (int i = 0; i < old.count; i++)
        if (!gone[i])
            kn_graph_put_node(graph, old.nodes[i]);
    free(gone);
    free(first);
    free(old.nodes);
}

/* ---- backward ---- */

static int can_make_gradients(const KnNodeList *nodes, const KnNode *norm, const KnNode *residual)
{
    const KnTensor *scale, *x;
    if (!norm || norm->op->id != KN_OP_LAYER_NORM_BACKWARD || norm->outputs[0] != residual->inputs[3] ||
        norm->input_count != 7 || norm->output_count != 3)
        return 0;
    x = norm->inputs[0];
    scale = norm->inputs[4];
    if (x->base || (scale && (norm->inputs[5] != residual->inputs[2] ||
                              kn_tensor_rows(scale) != kn_tensor_rows(residual->inputs[1]))))
        return 0;
    for (int k = 0; k < 4; k++) {
        const KnNode *maker = residual->inputs[k]->producer;
        if ((maker && maker->id > norm->id) || kn_cuda_is_changed(nodes, residual->inputs[k], norm->id, residual->id))
            return 0;
    }
    return 1;
}

static void make_gradients_within(KnNode *norm, const KnNode *residual)
{
    norm->inputs[5] = residual->inputs[2];
    norm->inputs[7] = residual->inputs[0];
    norm->inputs[8] = residual->inputs[1];
    norm->input_count = 9;
    for (int k = 0; k < residual->output_count; k++) {
        norm->outputs[norm->output_count++] = residual->outputs[k];
        residual->outputs[k]->producer = norm;
    }
}

void kn_cuda_lower_residual_gradients(KnGraph *graph)
{
    KnNodeList old;
    kn_graph_take_nodes(graph, &old);
    for (int i = 0; i < old.count; i++)
        old.nodes[i]->id = i;
    for (int i = 0; i < old.count; i++) {
        KnNode *node = old.nodes[i];
        KnNode *norm = node->op->id == KN_OP_GATED_RESIDUAL_BACKWARD ? node->inputs[3]->producer : NULL;
        if (can_make_gradients(&old, norm, node))
            make_gradients_within(norm, node);
        else
            kn_graph_put_node(graph, node);
    }
    free(old.nodes);
}
