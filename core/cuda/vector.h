/* Sixteen bytes at a time: a thread reads and writes 4 floats or 8 bfloat16, and computes in float. Only in kernels. */
#ifndef KN_CUDA_VECTOR_H
#define KN_CUDA_VECTOR_H

#include "core/cuda/kernel.h"

template <class T> struct KnLanes {
    static constexpr int count = 16 / (int)sizeof(T);
};

__device__ __forceinline__ float kn_widen(float value)
{
    return value;
}

__device__ __forceinline__ float kn_widen(__nv_bfloat16 value)
{
    return __bfloat162float(value);
}

template <class T> __device__ __forceinline__ T kn_narrow(float value);

template <> __device__ __forceinline__ float kn_narrow<float>(float value)
{
    return value;
}

template <> __device__ __forceinline__ __nv_bfloat16 kn_narrow<__nv_bfloat16>(float value)
{
    return __float2bfloat16_rn(value);
}

/* `from` and `to` are aligned to 16 bytes. */
template <class T> __device__ __forceinline__ void kn_load(const T *from, float (&values)[KnLanes<T>::count])
{
    const uint4 raw = *reinterpret_cast<const uint4 *>(from);
    const T *lanes = reinterpret_cast<const T *>(&raw);
#pragma unroll
    for (int i = 0; i < KnLanes<T>::count; i++)
        values[i] = kn_widen(lanes[i]);
}

template <class T> __device__ __forceinline__ void kn_store(T *to, const float (&values)[KnLanes<T>::count])
{
    uint4 raw;
    T *lanes = reinterpret_cast<T *>(&raw);
#pragma unroll
    for (int i = 0; i < KnLanes<T>::count; i++)
        lanes[i] = kn_narrow<T>(values[i]);
    *reinterpret_cast<uint4 *>(to) = raw;
}

/* The same for LANES elements, one or sixteen bytes of them. */
template <int LANES, class T> __device__ __forceinline__ void kn_read(const T *from, float (&values)[LANES])
{
    if constexpr (LANES > 1)
        kn_load(from, values);
    else
        values[0] = kn_widen(*from);
}

template <int LANES, class T> __device__ __forceinline__ void kn_write(T *to, const float (&values)[LANES])
{
    if constexpr (LANES > 1)
        kn_store(to, values);
    else
        *to = kn_narrow<T>(values[0]);
}

/* LANES floats beside as many elements of another type; aligned to 16 bytes where they are more than one. */
template <int LANES> __device__ __forceinline__ void kn_read_floats(const float *from, float (&values)[LANES])
{
    if constexpr (LANES % 4 == 0) {
#pragma unroll
        for (int k = 0; k < LANES; k += 4)
            kn_load(from + k, *reinterpret_cast<float(*)[4]>(values + k));
    } else {
#pragma unroll
        for (int k = 0; k < LANES; k++)
            values[k] = from[k];
    }
}

template <int LANES> __device__ __forceinline__ void kn_write_floats(float *to, const float *values)
{
    if constexpr (LANES % 4 == 0) {
#pragma unroll
        for (int k = 0; k < LANES; k += 4)
            kn_store(to + k, *reinterpret_cast<const float(*)[4]>(values + k));
    } else {
#pragma unroll
        for (int k = 0; k < LANES; k++)
            to[k] = values[k];
    }
}

/* Elements of a type that is known at run time: one, or eight that are aligned to 16 bytes. */
__device__ __forceinline__ float kn_get(const void *from, int bf16, int64_t at)
{
    return bf16 ? kn_widen(((const __nv_bfloat16 *)from)[at]) : ((const float *)from)[at];
}

__device__ __forceinline__ void kn_put(void *to, int bf16, int64_t at, float value)
{
    if (bf16)
        ((__nv_bfloat16 *)to)[at] = kn_narrow<__nv_bfloat16>(value);
    else
        ((float *)to)[at] = value;
}

__device__ __forceinline__ void kn_get_eight(const void *from, int bf16, int64_t at, float (&values)[8])
{
    if (bf16)
        kn_load((const __nv_bfloat16 *)from + at, values);
    else
        kn_read_floats<8>((const float *)from + at, values);
}

__device__ __forceinline__ void kn_put_eight(void *to, int bf16, int64_t at, const float (&values)[8])
{
    if (bf16)
        kn_store((__nv_bfloat16 *)to + at, values);
    else
        kn_write_floats<8>((float *)to + at, values);
}

/* On the host: may all of these be read sixteen bytes at a time? */
static inline bool kn_aligned(const void *a, const void *b = nullptr, const void *c = nullptr)
{
    return ((reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b) | reinterpret_cast<uintptr_t>(c)) & 15) ==
           0;
}

#endif
