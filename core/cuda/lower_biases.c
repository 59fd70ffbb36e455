/* Biases of products whose results are bfloat16, rounded to it: each by itself, once per change of the parameters, or
 * where they lie in one buffer (weights that were gathered) all that lies between the first and the last of them at
 * once. A block's biases lie together, with norms' weights between them and without its matrices. */
#include "core/cuda/lower.h"

#include "core/base/memory.h"

#include <stdlib.h>

typedef struct Together {
    int64_t first, end; /* of the buffer's elements */
    KnTensor *rounded;
} Together;

struct KnCudaBiases {
    Together *together; /* by the buffer's id */
};

static int is_rounded(const KnNode *product)
{
    const KnTensor *bias = product->op->id == KN_OP_MATMUL ? product->inputs[2] : NULL;
    return bias && bias->dtype == KN_F32 && product->outputs[0]->dtype == KN_BF16;
}

/* NULL: it lies by itself, or where it may change. */
static KnTensor *buffer_of(const KnTensor *bias)
{
    return kn_tensor_root(bias, NULL)->role == KN_ROLE_VALUE ? bias->base : NULL;
}

static int64_t place_of(const KnTensor *bias)
{
    return (int64_t)(bias->base_offset / sizeof(float));
}

struct KnCudaBiases *kn_cuda_biases_begin(const KnGraph *graph)
{
    struct KnCudaBiases *b = kn_alloc(sizeof *b);
    b->together = kn_alloc((size_t)(graph->tensor_count + 1) * sizeof *b->together);
    for (int i = 0; i < graph->node_count; i++) {
        const KnTensor *bias = is_rounded(graph->nodes[i]) ? graph->nodes[i]->inputs[2] : NULL;
        if (!bias || !buffer_of(bias))
            continue;
        Together *t = &b->together[buffer_of(bias)->id];
        int64_t first = place_of(bias), end = first + kn_tensor_elements(bias);
        t->first = t->end == 0 || first < t->first ? first : t->first;
        t->end = end > t->end ? end : t->end;
    }
    return b;
}

void kn_cuda_round_bias(struct KnCudaBiases *b, KnGraph *graph, KnNode *product)
{
    KnTensor *bias = product->inputs[2], *buffer = is_rounded(product) ? buffer_of(bias) : NULL;
    if (buffer) {
        Together *t = &b->together[buffer->id];
        int64_t count = t->end - t->first;
        if (!t->rounded)
            t->rounded = kn_cast(graph, kn_view(graph, buffer, t->first, 1, &count), KN_BF16);
        product->inputs[2] = kn_view(graph, t->rounded, place_of(bias) - t->first, bias->dims, bias->shape);
    } else if (is_rounded(product)) {
        product->inputs[2] = kn_cast(graph, bias, KN_BF16);
    }
}

void kn_cuda_biases_end(struct KnCudaBiases *b)
{
    free(b->together);
    free(b);
}
