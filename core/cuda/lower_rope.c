/* Rotary positions in the pass of the RMS norm before them: a norm that nobody but kn_rope reads gives its result
 * turned (self-attention's queries and keys), where it was, and its backward turns the gradient back as it reads it.
 * What lay between is not written. */
#include "core/cuda/lower.h"

static int is_norm(const KnNode *node)
{
    return node->op->id == KN_OP_RMS_NORM || node->op->id == KN_OP_RMS_NORM_SPLIT;
}

static KnRopeAttributes *rope_of(KnNode *norm)
{
    if (norm->op->id == KN_OP_RMS_NORM || norm->op->id == KN_OP_RMS_NORM_BACKWARD)
        return &((KnNormAttributes *)norm->attributes)->rope;
    return &((KnSplitNormAttributes *)norm->attributes)->rope;
}

/* Whether what `node` reads is the same at `earlier`. */
static int is_there(const KnNodeList *nodes, const KnTensor *tensor, const KnNode *earlier, const KnNode *node)
{
    return (!tensor->producer || tensor->producer->id < earlier->id) &&
           !kn_cuda_is_changed(nodes, tensor, earlier->id, node->id);
}

/* Positions and table become inputs of the norm. */
static void take(KnNode *norm, const KnNode *rope, int positions, char *gone)
{
    *rope_of(norm) = *(const KnRopeAttributes *)rope->attributes;
    norm->inputs[positions] = rope->inputs[1];
    norm->inputs[positions + 1] = rope->inputs[2];
    norm->input_count = positions + 2;
    gone[rope->id] = 1;
}

static void turn_result(const KnNodeList *nodes, const int *readers, char *gone, const KnNode *rope)
{
    KnNode *norm = rope->inputs[0]->producer;
    if (!norm || !is_norm(norm) || norm->input_count > 3 || norm->outputs[0] != rope->inputs[0] ||
        readers[rope->inputs[0]->id] != 1)
        return;
    for (int k = 1; k < 3; k++)
        if (!is_there(nodes, rope->inputs[k], norm, rope))
            return;
    take(norm, rope, 3, gone);
    norm->outputs[0] = rope->outputs[0];
    norm->outputs[0]->producer = norm;
}

static void turn_gradient(const KnNodeList *nodes, const int *readers, char *gone, KnNode *backward)
{
    KnNode *rope = backward->inputs[3]->producer;
    if (!rope || rope->op->id != KN_OP_ROPE || gone[rope->id] || readers[backward->inputs[3]->id] != 1)
        return;
    for (int k = 0; k < 3; k++)
        if (kn_cuda_is_changed(nodes, rope->inputs[k], rope->id, backward->id))
            return;
    take(backward, rope, 4, gone);
    backward->inputs[3] = rope->inputs[0];
}

void kn_cuda_turn_in_norms(const KnNodeList *nodes, const int *readers, char *gone)
{
    for (int i = 0; i < nodes->count; i++) {
        KnNode *node = nodes->nodes[i];
        if (node->op->id == KN_OP_ROPE)
            turn_result(nodes, readers, gone, node);
        else if (node->op->id == KN_OP_RMS_NORM_BACKWARD || node->op->id == KN_OP_RMS_NORM_SPLIT_BACKWARD)
            turn_gradient(nodes, readers, gone, node);
    }
}
