/* bfloat16 and half against definitions written independently: exact values, nearest neighbours, ties, NaN. */
#include "base/support.h"
#include "core/base/bf16.h"

#include <math.h>

/* The value of a small IEEE format from its fields, in double. */
static double value_of(uint16_t bits, int exponent_bits, int mantissa_bits)
{
    int exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1), bias = (1 << (exponent_bits - 1)) - 1;
    double mantissa = bits & ((1 << mantissa_bits) - 1), scale = ldexp(1, -mantissa_bits);
    double magnitude = exponent == (1 << exponent_bits) - 1 ? (mantissa != 0 ? NAN : INFINITY)
                       : exponent == 0                      ? ldexp(mantissa * scale, 1 - bias)
                                                            : ldexp(1 + mantissa * scale, exponent - bias);
    return bits & 0x8000 ? -magnitude : magnitude;
}

typedef struct Format {
    int exponent_bits, mantissa_bits;
    float (*to_float)(uint16_t);
    uint16_t (*from_float)(float);
} Format;
static const Format formats[] = {{8, 7, kn_bf16_to_float, kn_bf16_from_float},
                                 {5, 10, kn_f16_to_float, kn_f16_from_float}};

static void every_value_goes_to_float_and_back(void **state)
{
    (void)state;
    for (int f = 0; f < 2; f++)
        for (uint32_t bits = 0; bits < 0x10000; bits++) {
            double expected = value_of((uint16_t)bits, formats[f].exponent_bits, formats[f].mantissa_bits);
            float wide = formats[f].to_float((uint16_t)bits);
            uint16_t back = formats[f].from_float(wide);
            uint16_t quiet = (uint16_t)(1 << (formats[f].mantissa_bits - 1));
            if (isnan(expected))
                assert_true(isnan(wide) && back == (bits | quiet));
            else
                assert_true((double)wide == expected && back == bits);
        }
}

/* Between two neighbours a < b: just below the middle goes to a, just above to b, the middle to the even one. */
static void rounding_is_to_nearest_even(void **state)
{
    (void)state;
    for (int f = 0; f < 2; f++) {
        int infinity = ((1 << formats[f].exponent_bits) - 1) << formats[f].mantissa_bits;
        for (int bits = 0; bits < infinity - 1; bits++)
            for (int sign = 0; sign < 2; sign++) {
                float a = formats[f].to_float((uint16_t)bits), b = formats[f].to_float((uint16_t)(bits + 1));
                float middle = (float)(((double)a + b) / 2), turn = sign ? -1.0f : 1.0f;
                int top = sign << 15, even = bits + (bits & 1);
                assert_int_equal(formats[f].from_float(turn * middle), top | even);
                assert_int_equal(formats[f].from_float(turn * nextafterf(middle, 0)), top | bits);
                assert_int_equal(formats[f].from_float(turn * nextafterf(middle, INFINITY)), top | (bits + 1));
            }
    }
}

static void extremes(void **state)
{
    (void)state;
    assert_int_equal(kn_bf16_from_float(3.4e38f), 0x7f80); /* above the largest bf16 by more than half a step */
    assert_int_equal(kn_f16_from_float(65519.996f), 0x7bff);
    assert_int_equal(kn_f16_from_float(65520.0f), 0x7c00);
    assert_int_equal(kn_f16_from_float(-1e30f), 0xfc00);
    assert_int_equal(kn_f16_from_float(0x1p-25f), 0);
    assert_int_equal(kn_f16_from_float(-0x1p-149f), 0x8000);
    uint32_t signalling[] = {0x7f800001, 0xff800001, 0x7fbfffff, 0x7fffffff};
    for (int i = 0; i < 4; i++) {
        float nan;
        memcpy(&nan, &signalling[i], sizeof nan);
        assert_true(isnan(kn_bf16_to_float(kn_bf16_from_float(nan))));
        assert_true(isnan(kn_f16_to_float(kn_f16_from_float(nan))));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_value_goes_to_float_and_back),
        cmocka_unit_test(rounding_is_to_nearest_even),
        cmocka_unit_test(extremes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
