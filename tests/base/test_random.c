/* Philox against the known answers of Random123 (kat_vectors), and the distributions drawn from it. */
#include "base/support.h"
#include "core/base/random.h"

#include <math.h>

/* A key is itself one Philox block of (step, purpose, sample), and the words of an element are another: both doors
 * are held against the published vectors. */
static void known_answers(void **state)
{
    (void)state;
    KnRandomKey zero = {{0, 0}, {0, 0}};
    static const uint32_t first[4] = {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8};
    for (uint64_t i = 0; i < 4; i++)
        assert_int_equal(kn_random_bits(zero, i), first[i]);

    KnRandomKey ones = kn_random_key(UINT64_MAX, (KnRandomPurpose)0xffff, ((uint64_t)1 << 48) - 1, UINT64_MAX);
    assert_int_equal(ones.key[0], 0x408f276d);
    assert_int_equal(ones.key[1], 0x41c83b0e);
    assert_int_equal(ones.counter[0], 0xa20bc7c6);
    assert_int_equal(ones.counter[1], 0x6d5451fd);

    KnRandomKey pi = kn_random_key(0x299f31d0a4093822, (KnRandomPurpose)0x85a3, 0x08d3243f6a88, 0x0370734413198a2e);
    assert_int_equal(pi.key[0], 0xd16cfe09);
    assert_int_equal(pi.key[1], 0x94fdcceb);
    assert_int_equal(pi.counter[0], 0x5001e420);
    assert_int_equal(pi.counter[1], 0x24126ea1);
}

static void every_part_of_the_key_matters(void **state)
{
    (void)state;
    KnRandomKey base = kn_random_key(1, KN_RANDOM_TEST, 2, 3);
    KnRandomKey others[] = {
        kn_random_key(2, KN_RANDOM_TEST, 2, 3),
        kn_random_key(1, KN_RANDOM_NOISE, 2, 3),
        kn_random_key(1, KN_RANDOM_TEST, 3, 3),
        kn_random_key(1, KN_RANDOM_TEST, 2, 4),
        kn_random_key((uint64_t)1 << 32 | 1, KN_RANDOM_TEST, 2, 3),
        kn_random_key(1, KN_RANDOM_TEST, (uint64_t)1 << 40 | 2, 3),
        kn_random_key(1, KN_RANDOM_TEST, 2, (uint64_t)1 << 63 | 3),
    };
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        int equal = 0;
        for (uint64_t j = 0; j < 64; j++)
            equal += kn_random_bits(base, j) == kn_random_bits(others[i], j);
        assert_int_equal(equal, 0);
    }
    assert_int_not_equal(kn_random_bits(base, 5), kn_random_bits(base, (uint64_t)4 << 32 | 5));
}

static void fill_equals_the_scalar_bit_for_bit(void **state)
{
    (void)state;
    KnRandomKey key = kn_random_key(7, KN_RANDOM_TEST, 0, 0);
    static const uint64_t starts[] = {0, 1, 2, 3, 255, ((uint64_t)1 << 34) - 300};
    static const int64_t counts[] = {0, 1, 2, 3, 5, 255, 256, 257, 1031};
    float *out = malloc(1100 * sizeof *out);
    for (size_t i = 0; i < sizeof starts / sizeof *starts; i++)
        for (size_t j = 0; j < sizeof counts / sizeof *counts; j++) {
            memset(out, 0x55, 1100 * sizeof *out);
            kn_random_normal_fill(key, starts[i], out, counts[j]);
            for (int64_t k = 0; k < counts[j]; k++) {
                float expected = kn_random_normal(key, starts[i] + (uint64_t)k);
                assert_memory_equal(&out[k], &expected, sizeof expected);
            }
            uint32_t untouched;
            memcpy(&untouched, &out[counts[j]], sizeof untouched);
            assert_int_equal(untouched, 0x55555555);
        }
    free(out);
}

/* The textbook formula in double on the same words bounds the error of the float polynomials. */
static void normals_are_box_muller(void **state)
{
    (void)state;
    KnRandomKey key = kn_random_key(11, KN_RANDOM_TEST, 0, 0);
    double worst = 0;
    for (uint64_t i = 0; i < 400000; i += 2) {
        double u = (kn_random_bits(key, i) | 1) * 0x1p-32, turn = kn_random_bits(key, i + 1) * 0x1p-32;
        double radius = sqrt(-2 * log(u));
        double even = fabs(kn_random_normal(key, i) - radius * cos(2 * M_PI * turn));
        double odd = fabs(kn_random_normal(key, i + 1) - radius * sin(2 * M_PI * turn));
        /* u near 1 is rounded to float's grid there, 2^-25: the radius, its square root, feels at most 2^-12 */
        worst = fmax(worst, fmax(even, odd) / (1 + 1 / fmax(radius, 1e-4)));
    }
    assert_true(worst < 1e-6);
}

/* Over n = 4 million values each statistic lies within five of its standard deviations. */
static void normals_have_normal_moments(void **state)
{
    (void)state;
    enum { N = 1 << 22 };
    float *values = malloc(N * sizeof *values);
    kn_random_normal_fill(kn_random_key(3, KN_RANDOM_NOISE, 1, 2), 0, values, N);
    double m[5] = {0}, neighbours = 0, pairs = 0, within = 0;
    for (int i = 0; i < N; i++) {
        double x = values[i], power = 1;
        for (int k = 1; k <= 4; k++)
            m[k] += power *= x;
        within += fabs(x) < 1.0;
        neighbours += i ? x * values[i - 1] : 0;
        pairs += i >= 4 ? x * values[i - 4] : 0;
    }
    double deviation = 5 / sqrt(N);
    assert_true(fabs(m[1] / N) < deviation);
    assert_true(fabs(m[2] / N - 1) < deviation * sqrt(2));
    assert_true(fabs(m[3] / N) < deviation * sqrt(15));
    assert_true(fabs(m[4] / N - 3) < deviation * sqrt(96));
    assert_true(fabs(within / N - 0.6826894921) < deviation * 0.4655);
    assert_true(fabs(neighbours / N) < deviation);
    assert_true(fabs(pairs / N) < deviation);
    free(values);
}

static void uniforms_fill_the_unit_interval(void **state)
{
    (void)state;
    enum { N = 1 << 20, BINS = 64 };
    KnRandomKey key = kn_random_key(5, KN_RANDOM_SIGMA, 0, 0);
    int bins[BINS] = {0};
    for (uint64_t i = 0; i < N; i++) {
        double u = kn_random_uniform(key, i);
        assert_true(u >= 0 && u < 1);
        bins[(int)(u * BINS)]++;
    }
    double chi = 0, expected = (double)N / BINS;
    for (int i = 0; i < BINS; i++)
        chi += (bins[i] - expected) * (bins[i] - expected) / expected;
    assert_true(chi > 20 && chi < 130); /* 63 degrees of freedom: mean 63, deviation 11 */
}

static void below_stays_below_and_reaches_all(void **state)
{
    (void)state;
    KnRandomKey key = kn_random_key(5, KN_RANDOM_TEST, 0, 0);
    int seen[7] = {0};
    for (uint64_t i = 0; i < 70000; i++)
        seen[kn_random_below(key, i, 7)]++;
    for (int i = 0; i < 7; i++)
        assert_true(abs(seen[i] - 10000) < 500);
    assert_int_equal(kn_random_below(key, 0, 1), 0);
    assert_true(kn_random_below(key, 0, UINT64_MAX) < UINT64_MAX);
}

static void permutations_are_permutations_and_fair(void **state)
{
    (void)state;
    enum { N = 1000 };
    int64_t order[N];
    char seen[N] = {0};
    kn_random_permutation(kn_random_key(1, KN_RANDOM_SHUFFLE, 0, 0), order, N);
    int fixed = 0;
    for (int i = 0; i < N; i++) {
        assert_in_range(order[i], 0, N - 1);
        assert_false(seen[order[i]]++);
        fixed += order[i] == i;
    }
    assert_true(fixed < 8); /* expected 1 */
    int counts[6] = {0};
    for (uint64_t epoch = 0; epoch < 60000; epoch++) {
        int64_t three[3];
        kn_random_permutation(kn_random_key(1, KN_RANDOM_SHUFFLE, epoch, 0), three, 3);
        counts[three[0] * 2 + (three[1] > three[2])]++;
    }
    for (int i = 0; i < 6; i++)
        assert_true(abs(counts[i] - 10000) < 500);
    kn_random_permutation(kn_random_key(1, KN_RANDOM_SHUFFLE, 0, 0), order, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_answers),
        cmocka_unit_test(every_part_of_the_key_matters),
        cmocka_unit_test(fill_equals_the_scalar_bit_for_bit),
        cmocka_unit_test(normals_are_box_muller),
        cmocka_unit_test(normals_have_normal_moments),
        cmocka_unit_test(uniforms_fill_the_unit_interval),
        cmocka_unit_test(below_stays_below_and_reaches_all),
        cmocka_unit_test(permutations_are_permutations_and_fair),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
