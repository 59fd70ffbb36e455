/* Packing of weights as a graph rewrite.
 *
 * The forward multiplies by a weight and the backward by the same weight the other way round: two packings. Both are
 * made from the float32 parameter itself where a cast to bf16 stood between, so that nobody needs the cast. A packing
 * used by several products (a block's recomputed forward) is made once. */
#include "core/cpu/lower.h"

#include "core/base/error.h"
#include "core/cpu/matmul.h"
#include "core/graph/edit.h"
#include "core/ops/ops.h"

#include <stdlib.h>

typedef struct Packing {
    const KnTensor *source;
    KnTensor *packed;
    int transpose;
    KnDtype dtype;
} Packing;

typedef struct Packings {
    int count, capacity;
    Packing *list;
} Packings;

static KnTensor *source_of(KnTensor *b)
{
    int is_cast = b->producer && b->producer->op->id == KN_OP_CAST;
    return is_cast ? b->producer->inputs[0] : b;
}

static KnTensor *packed_of(Packings *packings, KnGraph *graph, const KnNode *product)
{
    const KnMatmulAttributes *p = (const KnMatmulAttributes *)product->attributes;
    KnDtype dtype = product->inputs[1]->dtype;
    KnTensor *source = source_of(product->inputs[1]);
    for (int i = 0; i < packings->count; i++) {
        const Packing *old = &packings->list[i];
        if (old->source == source && old->transpose == p->transpose_b && old->dtype == dtype)
            return old->packed;
    }
    size_t bytes = kn_matmul_packed_bytes(p->k, p->n, dtype);
    KnTensor *packed = kn_pack_matrix(graph, source, p->transpose_b, dtype, bytes);
    packed->producer->prologue = 1;
    KN_RESERVE(packings->list, packings->count, packings->capacity);
    packings->list[packings->count++] = (Packing){source, packed, p->transpose_b, dtype};
    return packed;
}

static int is_constant(const KnTensor *tensor)
{
    return tensor->role == KN_ROLE_PARAMETER || (tensor->producer && tensor->producer->prologue);
}

void kn_cpu_lower(KnGraph *graph)
{
    Packings packings = {0};
    KnNodeList old;
    kn_graph_mark_prologue(graph);
    kn_graph_take_nodes(graph, &old);
    for (int i = 0; i < old.count; i++) {
        KnNode *node = old.nodes[i];
        KnMatmulAttributes *p = (KnMatmulAttributes *)node->attributes;
        if (node->op->id == KN_OP_MATMUL && !node->prologue && !p->packed_b && is_constant(node->inputs[1])) {
            node->inputs[1] = packed_of(&packings, graph, node);
            p->packed_b = 1;
        }
        kn_graph_put_node(graph, node);
    }
    free(old.nodes);
    free(packings.list);
}
