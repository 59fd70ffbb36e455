/* Rotary positions in the pass of the RMS norm before them: a norm that nobody but kn_rope reads gives its result
 * turned (self-attention's queries and keys), where it was, and its backward turns the gradient back as it reads it.
 * What lay between is not written. Where heads are other ranks' (dist/sharding.h), such a norm also writes its result
 * as it is sent, and its backward reads the gradient as it arrives. */
#include "core/cuda/cuda.h"
#include "core/cuda/lower.h"

static int is_norm(const KnNode *node)
{
    return node->op->id == KN_OP_RMS_NORM || node->op->id == KN_OP_RMS_NORM_SPLIT;
}

static int is_backward(const KnNode *node)
{
    return node->op->id == KN_OP_RMS_NORM_BACKWARD || node->op->id == KN_OP_RMS_NORM_SPLIT_BACKWARD;
}

static int is_whole(const KnNode *norm)
{
    return norm->op->id == KN_OP_RMS_NORM || norm->op->id == KN_OP_RMS_NORM_BACKWARD;
}

static KnRopeAttributes *rope_of(KnNode *norm)
{
    if (is_whole(norm))
        return &((KnNormAttributes *)norm->attributes)->rope;
    return &((KnSplitNormAttributes *)norm->attributes)->rope;
}

static int64_t *group_of(KnNode *norm)
{
    if (is_whole(norm))
        return &((KnNormAttributes *)norm->attributes)->group;
    return &((KnSplitNormAttributes *)norm->attributes)->group;
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
        else if (is_backward(node))
            turn_gradient(nodes, readers, gone, node);
    }
}

/* ---- groups ---- */

/* Groups of one width, whole heads. */
static int can_group(const KnNode *grouping, const KnNode *norm, int table)
{
    const KnGroupAttributes *p = (const KnGroupAttributes *)grouping->attributes;
    return norm->input_count == table + 1 && kn_cuda_alike_groups(p, 0) == p->groups &&
           p->cuts[1] % kn_tensor_columns(norm->inputs[table]) == 0;
}

static void take_group(KnNode *norm, const KnNode *grouping, char *gone)
{
    *group_of(norm) = ((const KnGroupAttributes *)grouping->attributes)->cuts[1];
    gone[grouping->id] = 1;
}

static void group_result(const int *readers, char *gone, const KnNode *grouping)
{
    KnNode *norm = grouping->inputs[0]->producer;
    if (!norm || !is_norm(norm) || norm->outputs[0] != grouping->inputs[0] || readers[grouping->inputs[0]->id] != 1 ||
        !can_group(grouping, norm, 4))
        return;
    take_group(norm, grouping, gone);
    norm->outputs[0] = grouping->outputs[0];
    norm->outputs[0]->producer = norm;
}

static void read_groups(const KnNodeList *nodes, const int *readers, char *gone, KnNode *backward)
{
    KnNode *grouping = backward->inputs[3]->producer;
    if (!grouping || grouping->op->id != KN_OP_UNGROUP_COLUMNS || readers[backward->inputs[3]->id] != 1 ||
        !can_group(grouping, backward, 5) || kn_cuda_is_changed(nodes, grouping->inputs[0], grouping->id, backward->id))
        return;
    take_group(backward, grouping, gone);
    backward->inputs[3] = grouping->inputs[0];
}

void kn_cuda_group_in_norms(const KnNodeList *nodes, const int *readers, char *gone)
{
    for (int i = 0; i < nodes->count; i++) {
        KnNode *node = nodes->nodes[i];
        if (node->op->id == KN_OP_GROUP_COLUMNS)
            group_result(readers, gone, node);
        else if (is_backward(node))
            read_groups(nodes, readers, gone, node);
    }
}
