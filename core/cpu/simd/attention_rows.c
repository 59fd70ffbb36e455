/* Attention's handling of whole rows: checking spans, zeros where no span is, results turned back into rows. */
#include "core/cpu/simd/attention.h"

#include <math.h>

int KN_ISA_NAME(kn_attention_check)(const KnAttentionCall *c)
{
    for (int64_t s = 0; s < c->span_count; s++) {
        const int32_t *span = c->spans + 4 * s;
        if (span[0] < 0 || span[1] < 0 || span[2] < 0 || span[3] < 0 || (int64_t)span[0] + span[1] > c->query_rows ||
            (int64_t)span[2] + span[3] > c->key_rows)
            return kn_fail(KN_EINPUT, "attention: span %lld (%d, %d, %d, %d) leaves the %lld queries or %lld keys",
                           (long long)s, span[0], span[1], span[2], span[3], (long long)c->query_rows,
                           (long long)c->key_rows);
    }
    return KN_OK;
}

static void clear_rows(const KnAttentionCall *c, char *out, float *lse, int64_t first, int64_t last)
{
    if (first >= last)
        return;
    kn_attention_clear_rows(c, out, first, last);
    for (int64_t head = 0; lse && head < c->heads; head++)
        for (int64_t row = first; row < last; row++)
            lse[head * c->query_rows + row] = -INFINITY;
}

void KN_ISA_NAME(kn_attention_clear)(const KnAttentionCall *c, char *out, float *lse)
{
    int64_t end = 0;
    for (int64_t s = 0; s < c->span_count; s++) {
        const int32_t *span = c->spans + 4 * s;
        if (span[1] == 0 || span[3] == 0)
            continue;
        if (span[0] < end) { /* not in order: gaps are not seen so simply */
            clear_rows(c, out, lse, 0, c->query_rows);
            return;
        }
        clear_rows(c, out, lse, end, span[0]);
        end = (int64_t)span[0] + span[1];
    }
    clear_rows(c, out, lse, end, c->query_rows);
}

/* A square of KN_LANES rows and columns, or what there is of it. */
KN_V_INLINE void turn_square(const float *sums, int64_t ld, int depth, int count, KnV scale, char *out, int64_t stride,
                             int bf16)
{
    KnV square[KN_LANES];
#pragma GCC unroll 16
    for (int i = 0; i < KN_LANES; i++)
        square[i] = i < depth ? kn_v_load(sums + i * ld) * scale : (KnV){0};
    kn_v_transpose(square);
    if (depth == KN_LANES && count == KN_LANES) {
#pragma GCC unroll 16
        for (int i = 0; i < KN_LANES; i++)
            kn_v_write(out + i * stride, 0, square[i], KN_LANES, bf16);
        return;
    }
    for (int i = 0; i < count; i++)
        kn_v_write(out + i * stride, 0, square[i], depth, bf16);
}

void KN_ISA_NAME(kn_attention_turn)(const KnAttentionCall *c, const float *sums, int64_t ld, int64_t count,
                                    const float *scale, float scalar, char *out)
{
    const int64_t element = c->element_bytes, stride = c->width * element;
    for (int64_t row = 0; row < count; row += KN_LANES) {
        const KnV by = scale ? kn_v_load(scale + row) : kn_v_set(scalar);
        const int rows = count - row < KN_LANES ? (int)(count - row) : KN_LANES;
        for (int64_t at = 0; at < c->head_size; at += KN_LANES) {
            const int depth = c->head_size - at < KN_LANES ? (int)(c->head_size - at) : KN_LANES;
            char *to = out + row * stride + at * element;
            if (c->dtype == KN_BF16)
                turn_square(sums + at * ld + row, ld, depth, rows, by, to, stride, 1);
            else
                turn_square(sums + at * ld + row, ld, depth, rows, by, to, stride, 0);
        }
    }
}
