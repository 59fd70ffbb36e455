/* What passes and plans ask of the nodes of exchanges. */
#ifndef KN_DIST_EXCHANGE_NODES_H
#define KN_DIST_EXCHANGE_NODES_H

#include "core/ops/ops.h"

static inline int kn_is_exchange_start(const KnNode *node)
{
    return node->op->id == KN_OP_COLLECTIVE_START;
}

static inline int kn_is_exchange_wait(const KnNode *node)
{
    return node->op->id == KN_OP_COLLECTIVE_WAIT;
}

/* Of a start or a wait. */
static inline const KnCollective *kn_exchange_of(const KnNode *node)
{
    return *(const KnCollective *const *)node->attributes;
}

/* The id of the tensor that owns the memory. */
static inline int kn_root_id(const KnTensor *tensor)
{
    return kn_tensor_root(tensor, NULL)->id;
}

#endif
