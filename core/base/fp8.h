/* Scales of 8-bit floats, for the host and for kernels. A value times the scale is rounded to e4m3 or e5m2; a power of
 * two loses nothing itself, there or back. */
#ifndef KN_BASE_FP8_H
#define KN_BASE_FP8_H

#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define KN_FP8_FUNCTION __host__ __device__ __forceinline__
#else
#define KN_FP8_FUNCTION static inline
#endif

#define KN_FP8_MOST_E4M3 448.0f
#define KN_FP8_MOST_E5M2 57344.0f

/* The largest power of two by which values up to `largest` stay within `most`, and no greater than 2^60; 0 where
 * `largest` is 0 or no number. */
KN_FP8_FUNCTION float kn_fp8_scale(float largest, float most)
{
    const float limit = 1152921504606846976.0f;
    float ratio = largest > 0 && largest < 3e38f ? most / largest : 0;
    uint32_t bits;
    ratio = ratio < limit ? ratio : limit;
    memcpy(&bits, &ratio, sizeof bits);
    bits &= 0x7f800000u;
    memcpy(&ratio, &bits, sizeof bits);
    return ratio;
}

#endif
