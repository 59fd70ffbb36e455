/* What attention's forward and backward share: the operands of one call, its products, and scratch.
 *
 * All products go through the block kernels of core/cpu/matmul_kernel.h, with operands packed here as they like them:
 * sums stay unscaled float32 between products, and the pass over a tile of scores writes its result in the form of
 * the next product's operand. */
#ifndef KN_CPU_SIMD_ATTENTION_H
#define KN_CPU_SIMD_ATTENTION_H

#include "core/base/error.h"
#include "core/cpu/matmul_kernel.h"
#include "core/cpu/simd/kernel.h"
#include "core/cpu/simd/kernels.h"

typedef struct KnAttentionCall {
    const char *q, *k, *v;
    int64_t query_rows, key_rows, width, heads, head_size, span_count;
    const int32_t *spans;
    int64_t element_bytes;
    KnDtype dtype;
    int partial;
    float scale;
    const KnMatmulKernel *kernel;
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
                             .head_size = p->heads ? width / p->heads : 0,
                             .span_count = node->inputs[3]->shape[0],
                             .spans = inputs ? inputs[3] : NULL,
                             .element_bytes = (int64_t)kn_dtype_bytes(q->dtype),
                             .dtype = q->dtype,
                             .partial = p->partial,
                             .scale = p->scale,
                             .kernel = kn_matmul_kernel_in_use(q->dtype)};
}

/* Address of (row, head) in a [rows, width] operand or result. */
static inline char *kn_attention_at(const KnAttentionCall *c, const void *base, int64_t row, int64_t head)
{
    return (char *)base + (row * c->width + head * c->head_size) * c->element_bytes;
}

/* Bytes of a packed panel of 16 columns that is k deep. */
static inline int64_t kn_attention_panel_bytes(const KnAttentionCall *c, int64_t k)
{
    return (int64_t)kn_matmul_packed_bytes(k, KN_PANEL, c->dtype);
}

static inline int64_t kn_attention_panels(int64_t columns)
{
    return (columns + KN_PANEL - 1) / KN_PANEL;
}

typedef enum KnAttentionForm {
    KN_ROWS_ARE_K,       /* B of a product that sums over the rows */
    KN_ROWS_ARE_COLUMNS, /* B of a product whose result has the rows as columns */
    KN_ROWS_ARE_K_OF_A   /* A of a product that sums over the rows, with one result row for each column */
} KnAttentionForm;

/* The matrix product's own files are not compiled for avx512bf16. */
#if defined(KN_ISA_IS_avx512bf16)
#define KN_ATTENTION_PACK_BLOCK kn_matmul_pack_block_avx512
#else
#define KN_ATTENTION_PACK_BLOCK KN_ISA_NAME(kn_matmul_pack_block)
#endif

/* Packs rows of one head of q, k, v or a gradient. */
static inline void kn_attention_pack(const KnAttentionCall *c, const void *from, int64_t row, int64_t rows,
                                     int64_t head, KnAttentionForm form, char *packed, int64_t panel_bytes)
{
    int transposed = form == KN_ROWS_ARE_COLUMNS;
    KnPackBlock block = {.k = transposed ? c->head_size : rows,
                         .n = transposed ? rows : c->head_size,
                         .x = kn_attention_at(c, from, row, head),
                         .ldx = c->width,
                         .x_type = c->dtype,
                         .type = c->dtype,
                         .transposed = transposed,
                         .rows_packing = form == KN_ROWS_ARE_K_OF_A && c->kernel->rows_packing,
                         .packed = packed,
                         .panel_bytes = panel_bytes};
    block.last_k = block.k;
    block.last_panel = kn_attention_panels(block.n);
    KN_ATTENTION_PACK_BLOCK(&block);
}

/* Refuses spans that point outside of the rows. */
int KN_ISA_NAME(kn_attention_check)(const KnAttentionCall *call);

/* Zeros rows [first, last) of a result. */
static inline void kn_attention_clear_rows(const KnAttentionCall *c, char *out, int64_t first, int64_t last)
{
    size_t bytes = (size_t)((last - first) * c->width * c->element_bytes);
    if (bytes)
        memset(kn_attention_at(c, out, first, 0), 0, bytes);
}

/* Zeros the rows of `out` (and lse = -inf, if there is one) that belong to no span with keys. */
void KN_ISA_NAME(kn_attention_clear)(const KnAttentionCall *call, char *out, float *lse);

/* rows[i][first..] = scale[i] columns[first..][i]: writes `count` rows of one head of a result, from `out` on, from
 * sums [head_size][ld] that are stored the other way round. scale NULL: `scalar` for all. */
void KN_ISA_NAME(kn_attention_turn)(const KnAttentionCall *call, const float *sums, int64_t ld, int64_t count,
                                    const float *scale, float scalar, char *out);

/* A piece of scratch: takes `bytes`, 64-byte aligned, from *at. With a NULL start it only counts. */
static inline void *kn_attention_take(char **at, int64_t bytes)
{
    void *piece = *at;
    *at += (bytes + 63) / 64 * 64;
    return piece;
}

/* Threads for `units` units and `flops` operations in all, whose scratch is `each` bytes a thread: the workspace was
 * planned for the threads of that time. */
static inline int kn_attention_team(size_t workspace_bytes, size_t each, int64_t units, double flops)
{
    enum { WORTH_A_THREAD = 1 << 20 };
    int64_t room = (int64_t)(workspace_bytes / each), threads = kn_cpu_threads();
    threads = room < threads ? room : threads;
    threads = units < threads ? units : threads;
    threads = threads > 1 ? threads : 1;
    return flops < (double)threads * WORTH_A_THREAD ? 1 + (int)(flops / WORTH_A_THREAD) : (int)threads;
}

#endif
