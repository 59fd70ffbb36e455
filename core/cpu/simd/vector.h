/* Vectors of the width that this translation unit is compiled for: 16, 8 or 4 floats.
 *
 * The compiler's own vector types carry arithmetic, comparisons and shifts; here is what they lack: fused
 * multiply-add, partial loads and stores, bf16, and the few functions that activations need. Where the instruction set
 * has no FMA, kn_v_fma rounds twice. exp after Cephes' expf: error under 2 units in the last place. */
#ifndef KN_CPU_SIMD_VECTOR_H
#define KN_CPU_SIMD_VECTOR_H

#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define KN_LANES 16
#elif defined(__AVX2__)
#define KN_LANES 8
#else
#define KN_LANES 4
#endif

typedef float KnV __attribute__((vector_size(4 * KN_LANES)));
typedef int32_t KnVi __attribute__((vector_size(4 * KN_LANES)));
typedef uint32_t KnVu __attribute__((vector_size(4 * KN_LANES)));
typedef uint16_t KnVh __attribute__((vector_size(2 * KN_LANES)));

#define KN_V_INLINE static inline __attribute__((always_inline, unused))

KN_V_INLINE KnV kn_v_set(float value)
{
    return value - (KnV){0};
}

KN_V_INLINE KnV kn_v_load(const void *from)
{
    KnV v;
    memcpy(&v, from, sizeof v);
    return v;
}

KN_V_INLINE void kn_v_store(void *to, KnV v)
{
    memcpy(to, &v, sizeof v);
}

/* The first `count` lanes (0..KN_LANES); the others are 0 and not read. */
KN_V_INLINE KnV kn_v_load_part(const float *from, int count)
{
#if KN_LANES == 16
    return (KnV)_mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1), from);
#else
    KnV v = {0};
    for (int i = 0; i < count; i++)
        v[i] = from[i];
    return v;
#endif
}

KN_V_INLINE void kn_v_store_part(float *to, KnV v, int count)
{
#if KN_LANES == 16
    _mm512_mask_storeu_ps(to, (__mmask16)((1u << count) - 1), (__m512)v);
#else
    for (int i = 0; i < count; i++)
        to[i] = v[i];
#endif
}

KN_V_INLINE KnV kn_v_fma(KnV a, KnV b, KnV c)
{
#if KN_LANES == 16
    return (KnV)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif KN_LANES == 8
    return (KnV)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

/* mask lanes are 0 or -1, as comparisons give them. */
KN_V_INLINE KnV kn_v_select(KnVi mask, KnV yes, KnV no)
{
#if KN_LANES == 16
    return (KnV)_mm512_mask_blend_ps(_mm512_movepi32_mask((__m512i)mask), (__m512)no, (__m512)yes);
#elif KN_LANES == 8
    return (KnV)_mm256_blendv_ps((__m256)no, (__m256)yes, (__m256)mask);
#else
    return (KnV)((mask & (KnVi)yes) | (~mask & (KnVi)no));
#endif
}

/* Limits v to low..high; NaN stays NaN (the instructions return their second operand then). */
KN_V_INLINE KnV kn_v_clamp(KnV v, float low, float high)
{
#if KN_LANES == 16
    return (KnV)_mm512_max_ps(_mm512_set1_ps(low), _mm512_min_ps(_mm512_set1_ps(high), (__m512)v));
#elif KN_LANES == 8
    return (KnV)_mm256_max_ps(_mm256_set1_ps(low), _mm256_min_ps(_mm256_set1_ps(high), (__m256)v));
#else
    v = kn_v_select(v > high, kn_v_set(high), v);
    return kn_v_select(v < low, kn_v_set(low), v);
#endif
}

/* Rounds to nearest even; NaN stays NaN (quiet). The instruction flushes subnormals, the code does not. */
KN_V_INLINE KnVh kn_v_to_bf16(KnV v)
{
#if defined(__AVX512BF16__)
    return (KnVh)_mm512_cvtneps_pbh((__m512)v);
#else
    KnVu bits = (KnVu)v;
    KnVu rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    KnVu nan = (bits >> 16) | 0x40;
#if KN_LANES == 16
    __mmask16 unordered = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
    return (KnVh)_mm512_cvtepi32_epi16(_mm512_mask_mov_epi32((__m512i)rounded, unordered, (__m512i)nan));
#else
    KnVu is_nan = (KnVu)(v != v);
    return __builtin_convertvector((is_nan & nan) | (~is_nan & rounded), KnVh);
#endif
#endif
}

/* Two vectors rounded to bf16, each pair of lanes in one 32-bit word, `even` in its lower half. For values that are no
 * NaN with bits set below bf16's: arithmetic on bf16 operands makes none. */
KN_V_INLINE KnV kn_v_bf16_pairs(KnV even, KnV odd)
{
#if defined(__AVX512BF16__)
    /* Lanes of the instruction's result: those of `even`, then those of `odd`. */
    const __m512i turn = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                          21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (KnV)_mm512_permutexvar_epi16(turn, (__m512i)_mm512_cvtne2ps_pbh((__m512)odd, (__m512)even));
#else
    KnVu low = (KnVu)even, high = (KnVu)odd;
    low = (low + 0x7fff + ((low >> 16) & 1)) >> 16;
    high = (high + 0x7fff + ((high >> 16) & 1)) & 0xffff0000;
    return (KnV)(low | high);
#endif
}

KN_V_INLINE KnV kn_v_from_bf16(KnVh v)
{
#if KN_LANES == 16
    return (KnV)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)v), 16);
#elif KN_LANES == 8
    return (KnV)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)v), 16);
#endif
    return (KnV)(__builtin_convertvector(v, KnVu) << 16);
}

KN_V_INLINE KnV kn_v_load_bf16(const void *from)
{
    KnVh v;
    memcpy(&v, from, sizeof v);
    return kn_v_from_bf16(v);
}

KN_V_INLINE void kn_v_store_bf16(void *to, KnV v)
{
    KnVh half = kn_v_to_bf16(v);
    memcpy(to, &half, sizeof half);
}

KN_V_INLINE void kn_v_store_bf16_part(uint16_t *to, KnV v, int count)
{
    KnVh half = kn_v_to_bf16(v);
    for (int i = 0; i < count; i++)
        to[i] = half[i];
}

KN_V_INLINE KnV kn_v_exp(KnV x)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer, kept in the low bits */
    x = kn_v_clamp(x, -87.0f, 88.0f);
    KnV shifted = kn_v_fma(x, kn_v_set(1.44269504088896341f), kn_v_set(magic));
    KnV n = shifted - magic;
    KnV r = kn_v_fma(n, kn_v_set(-0.693359375f), x);
    r = kn_v_fma(n, kn_v_set(2.12194440e-4f), r);
    KnV p = kn_v_set(1.9875691500e-4f);
    p = kn_v_fma(p, r, kn_v_set(1.3981999507e-3f));
    p = kn_v_fma(p, r, kn_v_set(8.3334519073e-3f));
    p = kn_v_fma(p, r, kn_v_set(4.1665795894e-2f));
    p = kn_v_fma(p, r, kn_v_set(1.6666665459e-1f));
    p = kn_v_fma(p, r, kn_v_set(5.0000001201e-1f));
    p = kn_v_fma(p, r * r, r + 1.0f);
    KnVu exponent = ((KnVu)shifted - (KnVu)kn_v_set(magic) + 127) << 23;
    return p * (KnV)exponent;
}

/* The larger one; `b` where either is NaN. */
KN_V_INLINE KnV kn_v_max(KnV a, KnV b)
{
#if KN_LANES == 16
    return (KnV)_mm512_max_ps((__m512)a, (__m512)b);
#elif KN_LANES == 8
    return (KnV)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return kn_v_select(a > b, a, b);
#endif
}

/* 2^x with a relative error under 2e-7 for x up to 127; exactly 1 for 0, 2^-125 for all below, NaN for NaN. */
KN_V_INLINE KnV kn_v_exp2(KnV x)
{
    const float magic = 12582912.0f; /* as in kn_v_exp */
    x = kn_v_max(kn_v_set(-125.0f), x);
    KnV shifted = x + magic, r = x - (shifted - magic);
    /* Near-minimax polynomial of 2^r on [-0.5, 0.5], its constant term held at 1. */
    KnV p = kn_v_set(0.001326472033f);
    p = kn_v_fma(p, r, kn_v_set(0.009671513923f));
    p = kn_v_fma(p, r, kn_v_set(0.05550733954f));
    p = kn_v_fma(p, r, kn_v_set(0.2402224243f));
    p = kn_v_fma(p, r, kn_v_set(0.6931470037f));
    p = kn_v_fma(p, r, kn_v_set(1.0f));
    return (KnV)((KnVu)p + ((KnVu)shifted << 23)); /* the shift drops all of `magic`, the sum wraps */
}

/* Natural logarithm of normal positive numbers, after Cephes' logf. */
KN_V_INLINE KnV kn_v_log(KnV x)
{
    KnVi bits = (KnVi)x, exponent = (bits - 0x3f3504f3) >> 23; /* so that the mantissa is in [sqrt(1/2), sqrt(2)) */
    KnV e = __builtin_convertvector(exponent, KnV), z = (KnV)(bits - (exponent << 23)) - 1.0f, z2 = z * z;
    KnV p = kn_v_set(7.0376836292e-2f);
    p = kn_v_fma(p, z, kn_v_set(-1.1514610310e-1f));
    p = kn_v_fma(p, z, kn_v_set(1.1676998740e-1f));
    p = kn_v_fma(p, z, kn_v_set(-1.2420140846e-1f));
    p = kn_v_fma(p, z, kn_v_set(1.4249322787e-1f));
    p = kn_v_fma(p, z, kn_v_set(-1.6668057665e-1f));
    p = kn_v_fma(p, z, kn_v_set(2.0000714765e-1f));
    p = kn_v_fma(p, z, kn_v_set(-2.4999993993e-1f));
    p = kn_v_fma(p, z, kn_v_set(3.3333331174e-1f));
    p = kn_v_fma(p * z2, z, kn_v_fma(e, kn_v_set(-2.12194440e-4f), -0.5f * z2));
    return kn_v_fma(e, kn_v_set(0.693359375f), z + p);
}

/* Turns a square of KN_LANES rows. */
KN_V_INLINE void kn_v_transpose(KnV *rows)
{
    KnVi lane;
#pragma GCC unroll 16
    for (int i = 0; i < KN_LANES; i++)
        lane[i] = i;
#pragma GCC unroll 4
    for (int step = 1; step < KN_LANES; step *= 2) {
        KnVi odd = (lane & step) != 0;
        KnVi low = lane + (odd & (KN_LANES - step)), high = lane + (odd & (KN_LANES - step)) + step;
#pragma GCC unroll 16
        for (int i = 0; i < KN_LANES; i++)
            if (!(i & step)) {
                KnV a = rows[i], b = rows[i + step];
                rows[i] = __builtin_shuffle(a, b, low);
                rows[i + step] = __builtin_shuffle(a, b, high);
            }
    }
}

KN_V_INLINE KnV kn_v_sigmoid(KnV x)
{
    return 1.0f / (1.0f + kn_v_exp(-x));
}

KN_V_INLINE KnV kn_v_silu(KnV x)
{
    return x * kn_v_sigmoid(x);
}

/* 0.5 x (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3). */
KN_V_INLINE KnV kn_v_gelu_tanh(KnV x)
{
    KnV inner = kn_v_fma(x * x, kn_v_set(0.044715f), kn_v_set(1.0f));
    return x * kn_v_sigmoid(1.5957691216057308f * x * inner);
}

#endif
