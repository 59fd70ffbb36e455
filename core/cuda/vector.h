/* Elements in memory as floats in registers, N at a time: the fewest and widest accesses are 16 bytes, which is
 * N = kn_lanes<T>; N = 1 takes what is not aligned so. */
#ifndef KN_CUDA_VECTOR_H
#define KN_CUDA_VECTOR_H

#include "core/cuda/kernel.h"

typedef __nv_bfloat16 KnBf16;

template <class T> constexpr int kn_lanes = 16 / (int)sizeof(T);

template <int N> __device__ __forceinline__ void kn_load(float (&values)[N], const float *from)
{
    if constexpr (N == 1) {
        values[0] = *from;
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            const float4 four = *reinterpret_cast<const float4 *>(from + i);
            values[i] = four.x;
            values[i + 1] = four.y;
            values[i + 2] = four.z;
            values[i + 3] = four.w;
        }
    }
}

template <int N> __device__ __forceinline__ void kn_load(float (&values)[N], const KnBf16 *from)
{
    if constexpr (N == 1) {
        values[0] = __bfloat162float(*from);
    } else {
        static_assert(N == 8, "16 bytes");
        const uint4 bits = *reinterpret_cast<const uint4 *>(from);
        const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            values[2 * i] = __uint_as_float(words[i] << 16);
            values[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
        }
    }
}

template <int N> __device__ __forceinline__ void kn_store(float *to, const float (&values)[N])
{
    if constexpr (N == 1) {
        *to = values[0];
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 4)
            *reinterpret_cast<float4 *>(to + i) = make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]);
    }
}

__device__ __forceinline__ unsigned kn_bf16_pair(float low, float high)
{
    const __nv_bfloat162_raw pair = __floats2bfloat162_rn(low, high);
    return (unsigned)pair.x | (unsigned)pair.y << 16;
}

template <int N> __device__ __forceinline__ void kn_store(KnBf16 *to, const float (&values)[N])
{
    if constexpr (N == 1) {
        *to = __float2bfloat16(values[0]);
    } else {
        static_assert(N == 8, "16 bytes");
        *reinterpret_cast<uint4 *>(to) =
            make_uint4(kn_bf16_pair(values[0], values[1]), kn_bf16_pair(values[2], values[3]),
                       kn_bf16_pair(values[4], values[5]), kn_bf16_pair(values[6], values[7]));
    }
}

#endif
