/* What attention's forward and backward share: the operands of one call, block sizes, and scratch. */
#ifndef KN_CPU_SIMD_ATTENTION_H
#define KN_CPU_SIMD_ATTENTION_H

#include "core/cpu/matmul.h"
#include "core/cpu/simd/kernels.h"

enum {
    KN_ATTENTION_QUERIES = 64, /* query rows in a block of scores */
    KN_ATTENTION_KEYS = 512,   /* keys in a block of scores */
    KN_ATTENTION_CHUNK = 512   /* query rows that share one packing of keys */
};

typedef struct KnAttentionCall {
    const char *q, *k, *v;
    int64_t query_rows, key_rows, width, heads, head_size, span_count;
    const int32_t *spans;
    size_t element_bytes;
    KnDtype dtype;
    float scale;
} KnAttentionCall;

static inline KnAttentionCall kn_attention_call(const KnNode *node, void *const *inputs)
{
    const KnAttentionAttributes *p = (const KnAttentionAttributes *)node->attributes;
    const KnTensor *q = node->inputs[0];
    int64_t width = kn_tensor_columns(q);
    return (KnAttentionCall){.q = inputs ? inputs[0] : NULL,
                             .k = inputs ? inputs[1] : NULL,
                             .v = inputs ? inputs[2] : NULL,
                             .query_rows = kn_tensor_rows(q),
                             .key_rows = kn_tensor_rows(node->inputs[1]),
                             .width = width,
                             .heads = p->heads,
                             .head_size = width / p->heads,
                             .span_count = node->inputs[3]->shape[0],
                             .spans = inputs ? inputs[3] : NULL,
                             .element_bytes = kn_dtype_bytes(q->dtype),
                             .dtype = q->dtype,
                             .scale = p->scale};
}

/* Address of (row, head) in a [rows, width] operand. */
static inline const char *kn_attention_at(const KnAttentionCall *c, const void *base, int64_t row, int64_t head)
{
    return (const char *)base + (size_t)(row * c->width + head * c->head_size) * c->element_bytes;
}

/* Refuses spans that point outside of the rows. */
int KN_ISA_NAME(kn_attention_check)(const KnAttentionCall *call);

/* A piece of scratch: takes `bytes`, 64-byte aligned, from *at. With a NULL start it only counts. */
static inline void *kn_attention_take(char **at, size_t bytes)
{
    void *piece = *at;
    *at += (bytes + 63) / 64 * 64;
    return piece;
}

/* Threads for a region whose scratch is `each` bytes a thread: the workspace was planned for those of that time. */
static inline int kn_attention_team(size_t workspace_bytes, size_t each)
{
    size_t room = workspace_bytes / each, threads = (size_t)kn_cpu_threads();
    return (int)(room < threads ? room : threads);
}

#endif
