/* CUDA's names for kernels, as far as Kinora's use them: where a thread is, barriers, warps, a few functions.
 *
 * What is missing here is missing on purpose until a kernel needs it; atomics on floats will not come, since their
 * order is open and so are then the sum's last bits. An atomic orders memory here, so that a missing fence is not
 * found. Fast functions are the exact ones. */
#ifndef KN_CUDA_EMULATOR_BUILTINS_H
#define KN_CUDA_EMULATOR_BUILTINS_H

#include "core/cuda/emulator/fiber.h"
#include "core/cuda/emulator/multiprocessor.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#define threadIdx (kn_emulated::thread->index)
#define blockIdx (kn_emulated::block->index)
#define blockDim (kn_emulated::block->threads)
#define gridDim (kn_emulated::block->grid)
#define warpSize 32

/* ---- shared memory: AddressSanitizer puts redzones round what is static; each multiprocessor needs its own ---- */

#undef __shared__
#define __shared__ static KN_EACH_MULTIPROCESSOR
#undef __constant__
#define __constant__ static
#undef __grid_constant__
#define __grid_constant__
#undef __launch_bounds__
#define __launch_bounds__(...)
#define KN_DYNAMIC_SHARED(type, name) type *name = reinterpret_cast<type *>(kn_emulated::block->shared)

/* ---- barriers ---- */

inline void __syncthreads(const kn_emulated::Site &site = kn_emulated::here("__syncthreads"))
{
    kn_emulated::barrier(0, site);
}

inline int __syncthreads_count(int vote, const kn_emulated::Site &site = kn_emulated::here("__syncthreads_count"))
{
    return kn_emulated::barrier(vote, site);
}

inline int __syncthreads_or(int vote, const kn_emulated::Site &site = kn_emulated::here("__syncthreads_or"))
{
    return kn_emulated::barrier(vote, site) != 0;
}

inline int __syncthreads_and(int vote, const kn_emulated::Site &site = kn_emulated::here("__syncthreads_and"))
{
    return kn_emulated::barrier(!vote, site) == 0;
}

/* ---- warps ---- */

namespace kn_emulated
{

inline int own_lane()
{
    return (int)(thread->number % 32);
}

template <class T> T shuffle(unsigned mask, T value, int source, const Site &site)
{
    static_assert(sizeof value <= sizeof(uint64_t), "a shuffle moves at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = warp_operation(SHUFFLE, mask, bits, source, site);
    memcpy(&value, &bits, sizeof value);
    return value;
}

} // namespace kn_emulated

inline void __syncwarp(unsigned mask = 0xffffffffu, const kn_emulated::Site &site = kn_emulated::here("__syncwarp"))
{
    kn_emulated::warp_operation(kn_emulated::SYNCWARP, mask, 0, 0, site);
}

inline unsigned __ballot_sync(unsigned mask, int vote,
                              const kn_emulated::Site &site = kn_emulated::here("__ballot_sync"))
{
    return (unsigned)kn_emulated::warp_operation(kn_emulated::BALLOT, mask, vote != 0, 0, site);
}

inline int __any_sync(unsigned mask, int vote, const kn_emulated::Site &site = kn_emulated::here("__any_sync"))
{
    return __ballot_sync(mask, vote, site) != 0;
}

inline int __all_sync(unsigned mask, int vote, const kn_emulated::Site &site = kn_emulated::here("__all_sync"))
{
    return __ballot_sync(mask, !vote, site) == 0;
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              const kn_emulated::Site &site = kn_emulated::here("__shfl_sync"))
{
    int first = kn_emulated::own_lane() & ~(width - 1);
    return kn_emulated::shuffle(mask, value, first | (source & (width - 1)), site);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 const kn_emulated::Site &site = kn_emulated::here("__shfl_up_sync"))
{
    int lane = kn_emulated::own_lane(), inside = (lane & (width - 1)) - (int)delta;
    return kn_emulated::shuffle(mask, value, inside >= 0 ? lane - (int)delta : lane, site);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   const kn_emulated::Site &site = kn_emulated::here("__shfl_down_sync"))
{
    int lane = kn_emulated::own_lane(), inside = (lane & (width - 1)) + (int)delta;
    return kn_emulated::shuffle(mask, value, inside < width ? lane + (int)delta : lane, site);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flipped, int width = 32,
                  const kn_emulated::Site &site = kn_emulated::here("__shfl_xor_sync"))
{
    int lane = kn_emulated::own_lane(), source = lane ^ flipped;
    int is_later = (source & ~(width - 1)) > (lane & ~(width - 1));
    return kn_emulated::shuffle(mask, value, is_later ? lane : source, site);
}

/* ---- memory ---- */

template <class T> T __ldg(const T *from)
{
    return *from;
}

template <class T> T __ldcs(const T *from)
{
    return *from;
}

template <class T> void __stcs(T *to, T value)
{
    *to = value;
}

inline void __threadfence()
{
}

inline int atomicAdd(int *to, int value)
{
    return __atomic_fetch_add(to, value, __ATOMIC_ACQ_REL);
}

inline unsigned atomicAdd(unsigned *to, unsigned value)
{
    return __atomic_fetch_add(to, value, __ATOMIC_ACQ_REL);
}

inline unsigned atomicMax(unsigned *to, unsigned value)
{
    unsigned old = __atomic_load_n(to, __ATOMIC_ACQUIRE);
    while (old < value && !__atomic_compare_exchange_n(to, &old, value, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        ;
    return old;
}

inline int atomicCAS(int *at, int expected, int value)
{
    __atomic_compare_exchange_n(at, &expected, value, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    return expected;
}

/* ---- functions; the C library has or will have some of these names, so they are macros ---- */

template <class T> T min(T a, T b)
{
    return b < a ? b : a;
}

template <class T> T max(T a, T b)
{
    return a < b ? b : a;
}

namespace kn_emulated
{

template <class To, class From> To same_bits(From from)
{
    static_assert(sizeof(To) == sizeof(From), "of one size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

} // namespace kn_emulated

#define rsqrtf(x) (1.0f / sqrtf(x))
#define __expf(x) expf(x)
#define __logf(x) logf(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __fdividef(x, y) ((float)(x) / (float)(y))
#define __frcp_rn(x) (1.0f / (float)(x))
#define __fmaf_rn(x, y, z) fmaf(x, y, z)
#define sinpif(x) ((float)sin(3.14159265358979324 * (double)(x)))
#define cospif(x) ((float)cos(3.14159265358979324 * (double)(x)))
#define __float_as_uint(x) kn_emulated::same_bits<unsigned>((float)(x))
#define __uint_as_float(x) kn_emulated::same_bits<float>((unsigned)(x))
#define __float_as_int(x) kn_emulated::same_bits<int>((float)(x))
#define __int_as_float(x) kn_emulated::same_bits<float>((int)(x))
#define __popc(x) __builtin_popcount(x)
#define __ffs(x) __builtin_ffs(x)
#define __clz(x) ((x) ? __builtin_clz((unsigned)(x)) : 32)
#define __umulhi(x, y) ((unsigned)((uint64_t)(unsigned)(x) * (unsigned)(y) >> 32))

#endif
