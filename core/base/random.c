/* Philox4x32-10 and what is drawn from it.
 *
 * The fill works on groups of blocks held as one array per counter word, in loops without branches, so that the
 * compiler vectorizes them; it is compiled once for each instruction set and the loader picks one. The normal is
 * Box-Muller with a logarithm and a sine of our own: IEEE operations in a fixed order and -ffp-contract=off make
 * every version give the same bits. The scalar function runs the same code on a group of one block.
 * Sources: Salmon et al., SC 2011 (the rounds and constants); Box and Muller, 1958; D. Lemire, "Fast random integer
 * generation in an interval", 2019 (kn_random_below, without the rejection). */
#include "core/base/random.h"

#include "core/base/error.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define EACH_ISA __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define EACH_ISA
#endif

enum { ROUNDS = 10, GROUP = 64 /* blocks of four numbers */ };

/* One block: the generator as published. */
static inline __attribute__((always_inline)) void philox(const uint32_t key[2], const uint32_t counter[4],
                                                         uint32_t out[4])
{
    uint32_t k0 = key[0], k1 = key[1];
    uint32_t x0 = counter[0], x1 = counter[1], x2 = counter[2], x3 = counter[3];
#pragma GCC unroll 10
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t a = (uint64_t)0xD2511F53u * x0, b = (uint64_t)0xCD9E8D57u * x2;
        uint32_t y0 = (uint32_t)(b >> 32) ^ x1 ^ k0, y2 = (uint32_t)(a >> 32) ^ x3 ^ k1;
        x0 = y0;
        x1 = (uint32_t)b;
        x2 = y2;
        x3 = (uint32_t)a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = x0;
    out[1] = x1;
    out[2] = x2;
    out[3] = x3;
}

KnRandomKey kn_random_key(uint64_t seed, KnRandomPurpose purpose, uint64_t step, uint64_t sample)
{
    KN_ASSERT(step < (uint64_t)1 << 48 && (unsigned)purpose < 1 << 16);
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t what[4] = {(uint32_t)step, (uint32_t)(step >> 32) | (uint32_t)purpose << 16, (uint32_t)sample,
                        (uint32_t)(sample >> 32)};
    uint32_t out[4];
    philox(key, what, out);
    return (KnRandomKey){{out[0], out[1]}, {out[2], out[3]}};
}

static void block_of(KnRandomKey key, uint64_t element, uint32_t out[4])
{
    uint64_t block = element / 4;
    uint32_t counter[4] = {(uint32_t)block, (uint32_t)(block >> 32), key.counter[0], key.counter[1]};
    philox(key.key, counter, out);
}

uint32_t kn_random_bits(KnRandomKey key, uint64_t element)
{
    uint32_t out[4];
    block_of(key, element, out);
    return out[element % 4];
}

/* 64 bits for one element: half a block, so elements are spread over twice as many blocks. */
static uint64_t bits64(KnRandomKey key, uint64_t element)
{
    uint32_t out[4];
    block_of(key, 2 * element, out);
    return (uint64_t)out[element % 2 * 2] << 32 | out[element % 2 * 2 + 1];
}

double kn_random_uniform(KnRandomKey key, uint64_t element)
{
    return (double)(bits64(key, element) >> 11) * 0x1p-53;
}

uint64_t kn_random_below(KnRandomKey key, uint64_t element, uint64_t n)
{
    KN_ASSERT(n > 0);
    return (uint64_t)((unsigned __int128)bits64(key, element) * n >> 64);
}

/* The logarithm of w / 2^32, w > 0, in float: w = m 2^e with m in [sqrt(1/2), sqrt(2)), and
 * log m = 2 atanh((m - 1) / (m + 1)) by its series, whose next term is under 2^-30. */
static inline float log_fraction(uint32_t w)
{
    union {
        float value;
        uint32_t bits;
    } m = {.value = (float)w};
    uint32_t shifted = m.bits - 0x3f3504f3u; /* the bits of sqrt(1/2) */
    int32_t exponent = (int32_t)(shifted >> 23);
    m.bits = (shifted & 0x7fffffu) + 0x3f3504f3u;
    float s = (m.value - 1.0f) / (m.value + 1.0f), s2 = s * s;
    float series = s2 * (1.0f / 3 + s2 * (1.0f / 5 + s2 * (1.0f / 7 + s2 * (1.0f / 9))));
    return (float)(exponent - 32) * 0.693147180559945f + (2.0f * s + 2.0f * s * series);
}

/* Box-Muller on two words: a radius from the first, an angle of w / 2^32 turns from the second. */
static inline void normal_pair(uint32_t radius_bits, uint32_t angle_bits, float *even, float *odd)
{
    float radius = __builtin_sqrtf(-2.0f * log_fraction(radius_bits | 1)); /* | 1: never the logarithm of 0 */
    uint32_t quarter = (angle_bits + 0x20000000u) >> 30; /* nearest quarter turn; 4 wraps to 0 in the sum */
    float x = (float)(int32_t)(angle_bits - (quarter << 30)) * 0x1.921fb6p-30f; /* within an eighth: 2 pi / 2^32 */
    float x2 = x * x;
    float sine = x + x * x2 * (-1.0f / 6 + x2 * (1.0f / 120 + x2 * (-1.0f / 5040 + x2 * (1.0f / 362880))));
    float cosine =
        1.0f + x2 * (-0.5f + x2 * (1.0f / 24 + x2 * (-1.0f / 720 + x2 * (1.0f / 40320 + x2 * (-1.0f / 3628800)))));
    float c = quarter & 1 ? sine : cosine, s = quarter & 1 ? cosine : sine;
    *even = radius * ((quarter + 1) & 2 ? -c : c);
    *odd = radius * (quarter & 2 ? -s : s);
}

/* The normals of blocks first .. first + GROUP - 1. */
EACH_ISA static void normal_group(KnRandomKey key, uint64_t first, float *restrict out)
{
    uint32_t x0[GROUP], x1[GROUP], x2[GROUP], x3[GROUP];
    for (int i = 0; i < GROUP; i++) {
        uint64_t block = first + (uint64_t)i;
        uint32_t counter[4] = {(uint32_t)block, (uint32_t)(block >> 32), key.counter[0], key.counter[1]}, words[4];
        philox(key.key, counter, words);
        x0[i] = words[0];
        x1[i] = words[1];
        x2[i] = words[2];
        x3[i] = words[3];
    }
    for (int i = 0; i < GROUP; i++) {
        normal_pair(x0[i], x1[i], out + 4 * i, out + 4 * i + 1);
        normal_pair(x2[i], x3[i], out + 4 * i + 2, out + 4 * i + 3);
    }
}

float kn_random_normal(KnRandomKey key, uint64_t element)
{
    uint32_t words[4];
    float pair[2];
    block_of(key, element, words);
    const uint32_t *half = words + element % 4 / 2 * 2;
    normal_pair(half[0], half[1], &pair[0], &pair[1]);
    return pair[element % 2];
}

void kn_random_normal_fill(KnRandomKey key, uint64_t first_element, float *out, int64_t count)
{
    int64_t i = 0;
    for (; i < count && (first_element + (uint64_t)i) % 4; i++)
        out[i] = kn_random_normal(key, first_element + (uint64_t)i);
    for (; count - i >= 4 * GROUP; i += 4 * GROUP)
        normal_group(key, (first_element + (uint64_t)i) / 4, out + i);
    if (i < count) {
        float rest[4 * GROUP];
        normal_group(key, (first_element + (uint64_t)i) / 4, rest);
        for (int64_t j = 0; i + j < count; j++)
            out[i + j] = rest[j];
    }
}

void kn_random_permutation(KnRandomKey key, int64_t *out, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = i;
    for (int64_t i = n - 1; i > 0; i--) {
        int64_t j = (int64_t)kn_random_below(key, (uint64_t)i, (uint64_t)i + 1);
        int64_t held = out[i];
        out[i] = out[j];
        out[j] = held;
    }
}
