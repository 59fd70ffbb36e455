/* Randomness without state: Philox4x32-10, a counter-based generator.
 *
 * A number is a function of (seed, purpose, step, sample, element) alone: nothing has to be saved to resume, and
 * nothing depends on how work is divided among threads or ranks. A key fixes the first four; `element` counts within.
 * For one seed, keys that differ in purpose, step or sample give different streams, provably (a key is the image of
 * the three under a bijection). The bits are the same on every CPU: floating-point results use only IEEE
 * operations in a fixed order, no library function.
 * Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. */
#ifndef KN_BASE_RANDOM_H
#define KN_BASE_RANDOM_H

#include <stdint.h>

/* What the numbers are for. The numeric values are part of every run's results: append, never renumber. */
typedef enum KnRandomPurpose {
    KN_RANDOM_INIT = 1,    /* initial weights; sample = parameter */
    KN_RANDOM_NOISE = 2,   /* the noise of a training clip */
    KN_RANDOM_SIGMA = 3,   /* its noise level */
    KN_RANDOM_CAPTION = 4, /* which of its captions */
    KN_RANDOM_DROPOUT = 5, /* whether its caption is dropped */
    KN_RANDOM_MASK = 6,    /* which of its patches are given */
    KN_RANDOM_SHUFFLE = 7, /* the order of an epoch; step = epoch */
    KN_RANDOM_SYNTH = 8,   /* procedural clips */
    KN_RANDOM_SAMPLE = 9,  /* the noise that a generated video starts from */
    KN_RANDOM_VALIDATION = 10,
    KN_RANDOM_SPLIT = 11, /* which clips are set aside */
    KN_RANDOM_BENCH = 12,
    KN_RANDOM_TEST = 13
} KnRandomPurpose;

typedef struct KnRandomKey {
    uint32_t key[2], counter[2]; /* the counter's upper half; its lower half is element / 4 */
} KnRandomKey;

KnRandomKey kn_random_key(uint64_t seed, KnRandomPurpose purpose, uint64_t step, uint64_t sample); /* step < 2^48 */

/* Independent values for every element. Do not draw two kinds of value from one (key, element): they are correlated. */
uint32_t kn_random_bits(KnRandomKey key, uint64_t element);
double kn_random_uniform(KnRandomKey key, uint64_t element);             /* in [0, 1), 53 bits */
float kn_random_normal(KnRandomKey key, uint64_t element);               /* mean 0, variance 1; |x| < 6.8 */
uint64_t kn_random_below(KnRandomKey key, uint64_t element, uint64_t n); /* 0 .. n-1; bias under n / 2^64; n > 0 */

/* out[i] = kn_random_normal(key, first_element + i), bit for bit, and much faster. */
void kn_random_normal_fill(KnRandomKey key, uint64_t first_element, float *out, int64_t count);

/* A random order of 0 .. n-1. */
void kn_random_permutation(KnRandomKey key, int64_t *out, int64_t n);

#endif
