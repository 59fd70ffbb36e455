/* bfloat16 and IEEE half to and from float: round to nearest, ties to even; NaN stays NaN (quiet), infinities and
 * subnormals are exact. Plain integer code, the same bits on every CPU; vectorizes. */
#ifndef KN_BASE_BF16_H
#define KN_BASE_BF16_H

#include <stdint.h>
#include <string.h>

static inline uint32_t kn_float_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float kn_bits_float(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float kn_bf16_to_float(uint16_t value)
{
    return kn_bits_float((uint32_t)value << 16);
}

static inline uint16_t kn_bf16_from_float(float value)
{
    uint32_t bits = kn_float_bits(value);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    uint32_t nan = (bits >> 16) | 0x40; /* rounding could carry a NaN into infinity or zero */
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded);
}

static inline float kn_f16_to_float(uint16_t value)
{
    uint32_t sign = (uint32_t)(value & 0x8000) << 16, magnitude = value & 0x7fff;
    if (magnitude >= 0x7c00) { /* infinity or NaN */
        uint32_t quiet = magnitude > 0x7c00 ? 0x400000 : 0;
        return kn_bits_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13 | quiet);
    }
    if (magnitude < 0x400) { /* zero or subnormal: a multiple of 2^-24 */
        float small = (float)magnitude * 0x1p-24f;
        return kn_bits_float(sign | kn_float_bits(small));
    }
    return kn_bits_float(sign | ((magnitude << 13) + ((127 - 15) << 23)));
}

static inline uint16_t kn_f16_from_float(float value)
{
    uint32_t bits = kn_float_bits(value), magnitude = bits & 0x7fffffff;
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    if (magnitude > 0x7f800000)
        return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
    if (magnitude >= 0x477ff000) /* 65520 and more round to infinity */
        return (uint16_t)(sign | 0x7c00);
    if (magnitude < 0x38800000) { /* below 2^-14: adding 0.5 rounds to the multiple of 2^-24 that subnormals are */
        uint32_t rounded = kn_float_bits(kn_bits_float(magnitude) + 0.5f) - 0x3f000000;
        return (uint16_t)(sign | rounded);
    }
    uint32_t rounded = magnitude - ((127 - 15) << 23) + 0xfff + (magnitude >> 13 & 1);
    return (uint16_t)(sign | rounded >> 13);
}

#endif
