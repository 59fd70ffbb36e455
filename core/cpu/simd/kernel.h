/* What the kernels of core/cpu/simd share: reading and writing f32 or bf16 as vectors of float, loops over columns
 * with a partial last vector, and one body compiled for both dtypes.
 *
 * A body is an inline function with a constant last argument `bf16`; KN_FOR_BOTH_DTYPES makes a KnRange of each. */
#ifndef KN_CPU_SIMD_KERNEL_H
#define KN_CPU_SIMD_KERNEL_H

#include "core/base/bf16.h"
#include "core/base/error.h"
#include "core/cpu/backend.h"
#include "core/cpu/parallel.h"
#include "core/cpu/simd/isa.h"
#include "core/cpu/simd/vector.h"

/* Elements `at`, at + 1, ... of an f32 or bf16 array; the lanes beyond `lanes` are zeros and not read. */
KN_V_INLINE KnV kn_v_read(const void *base, int64_t at, int lanes, int bf16)
{
    if (!bf16) {
        const float *from = (const float *)base + at;
        return lanes == KN_LANES ? kn_v_load(from) : kn_v_load_part(from, lanes);
    }
    const uint16_t *from = (const uint16_t *)base + at;
    KnVh half = {0};
    memcpy(&half, from, lanes == KN_LANES ? sizeof half : (size_t)lanes * sizeof *from);
    return kn_v_from_bf16(half);
}

KN_V_INLINE void kn_v_write(void *base, int64_t at, KnV v, int lanes, int bf16)
{
    if (!bf16) {
        float *to = (float *)base + at;
        if (lanes == KN_LANES)
            kn_v_store(to, v);
        else
            kn_v_store_part(to, v, lanes);
    } else {
        uint16_t *to = (uint16_t *)base + at;
        KnVh half = kn_v_to_bf16(v);
        memcpy(to, &half, lanes == KN_LANES ? sizeof half : (size_t)lanes * sizeof *to);
    }
}

/* KN_VECTORS(first, last, at, lanes, { ... }): the block once for every vector of [first, last), `at` its first
 * element, `lanes` how many elements it has: a compile-time constant in the main loop. */
#define KN_VECTORS(first, last, at, lanes, ...)                                                                        \
    do {                                                                                                               \
        int64_t at = (first);                                                                                          \
        const int64_t kn_last_ = (last);                                                                               \
        for (; at + KN_LANES <= kn_last_; at += KN_LANES) {                                                            \
            enum { lanes = KN_LANES };                                                                                 \
            __VA_ARGS__                                                                                                \
        }                                                                                                              \
        if (at < kn_last_) {                                                                                           \
            const int lanes = (int)(kn_last_ - at);                                                                    \
            __VA_ARGS__                                                                                                \
        }                                                                                                              \
    } while (0)

/* The same with four sums in turn, to hide the latency of addition: `sum` is 0, 1, 2, 3, 0, ... and 0 at the rest. */
#define KN_VECTORS_OF_SUMS(first, last, at, lanes, sum, ...)                                                           \
    do {                                                                                                               \
        int64_t at = (first);                                                                                          \
        const int64_t kn_last_ = (last);                                                                               \
        while (at + 4 * KN_LANES <= kn_last_) {                                                                        \
            enum { lanes = KN_LANES };                                                                                 \
            _Pragma("GCC unroll 4") for (int sum = 0; sum < 4; sum++, at += KN_LANES)                                  \
            {                                                                                                          \
                __VA_ARGS__                                                                                            \
            }                                                                                                          \
        }                                                                                                              \
        for (; at < kn_last_; at += KN_LANES) {                                                                        \
            enum { sum = 0 };                                                                                          \
            const int lanes = kn_last_ - at < KN_LANES ? (int)(kn_last_ - at) : KN_LANES;                              \
            __VA_ARGS__                                                                                                \
        }                                                                                                              \
    } while (0)

/* Sum of all lanes, halves first: one fixed order. */
KN_V_INLINE float kn_v_total(KnV v)
{
    float lane[4];
#if KN_LANES == 16
    __m256 low = _mm512_castps512_ps256((__m512)v), high = _mm512_extractf32x8_ps((__m512)v, 1);
    __m256 half = _mm256_add_ps(low, high);
    _mm_storeu_ps(lane, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
#elif KN_LANES == 8
    _mm_storeu_ps(lane, _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1)));
#else
    kn_v_store(lane, v);
#endif
    return (lane[0] + lane[2]) + (lane[1] + lane[3]);
}

KN_V_INLINE float kn_v_total4(const KnV *sums)
{
    return kn_v_total((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

/* Sets the lanes from `lanes` on to zero. */
KN_V_INLINE KnV kn_v_keep(KnV v, int lanes)
{
    if (lanes == KN_LANES)
        return v;
    for (int i = lanes; i < KN_LANES; i++)
        v[i] = 0;
    return v;
}

#define KN_FOR_BOTH_DTYPES(name)                                                                                       \
    static void name##_f32(const void *arguments, int64_t first, int64_t last)                                         \
    {                                                                                                                  \
        name(arguments, first, last, 0);                                                                               \
    }                                                                                                                  \
    static void name##_bf16(const void *arguments, int64_t first, int64_t last)                                        \
    {                                                                                                                  \
        name(arguments, first, last, 1);                                                                               \
    }                                                                                                                  \
    static const KnRange name##_ranges[2] = {name##_f32, name##_bf16}

static inline int kn_is_bf16(const KnTensor *tensor)
{
    return tensor->dtype == KN_BF16;
}

/* Loops over single elements and over rows, in blocks of about 8,192 elements. */
static inline KnLoop kn_loop_elements(int64_t count)
{
    return (KnLoop){.count = count, .block = 8192, .work = 1};
}

static inline KnLoop kn_loop_rows(int64_t rows, int64_t columns)
{
    return (KnLoop){.count = rows, .block = columns >= 4096 ? 2 : 8192 / (columns > 0 ? columns : 1), .work = columns};
}

/* Refuses indices outside of [lowest, rows). */
static inline int kn_check_index(const KnNode *node, const int32_t *index, int64_t count, int32_t lowest, int64_t rows)
{
    for (int64_t i = 0; i < count; i++)
        if (index[i] < lowest || index[i] >= rows)
            return kn_fail(KN_EINPUT, "%s: index %d at position %lld does not name one of %lld rows", node->op->name,
                           index[i], (long long)i, (long long)rows);
    return KN_OK;
}

#endif
