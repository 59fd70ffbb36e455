/* The twins of core/cuda/tensor_core.h: what the PTX manual says of mma.sync.m16n8k16, ldmatrix and cp.async, lane by
 * lane.
 *
 * A copy into shared memory is made as late as the device may make it, when its thread waits for it: who reads it
 * without a wait finds what was there before. The lanes meet without ordering memory, as the instructions do. */
#ifndef KN_CUDA_EMULATOR_TENSOR_CORE_H
#define KN_CUDA_EMULATOR_TENSOR_CORE_H

#include "core/cuda/emulator/builtins.h"

namespace kn_emulated
{

/* A and B as matrices, the latter by columns. */
struct Factors {
    alignas(16) float a[16][16], b[8][16];
};

/* Each lane gives its part and gets all, which stay until the warp meets for the second time after. */
const Factors &share_factors(const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const Site &site);
const void *const *share_rows(const void *row, const Site &site);

/* Sixteen products of bfloat16, which float32 holds exactly. */
inline float dot16(const float *x, const float *y)
{
    typedef float V __attribute__((vector_size(16)));
    V sum = {};
    for (int k = 0; k < 16; k += 4)
        sum += *(const V *)(x + k) * *(const V *)(y + k);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* The calling thread's copies that have not been made. */
struct Copy {
    void *to;
    const void *from; /* NULL: zeros */
    unsigned bytes, group;
};
struct Copies {
    static constexpr unsigned MOST = 512;
    unsigned count, groups; /* groups closed so far */
    Copy list[MOST];
};
Copies &copies_of_thread();
[[noreturn]] void refuse_copy(const char *why, const Site &site);

inline void copy_async(void *to, const void *from, unsigned bytes, bool there, const Site &site)
{
    Copies &copies = copies_of_thread();
    if (((uintptr_t)to | (uintptr_t)from) % bytes)
        refuse_copy("an address that is not a multiple of the size", site);
    if (copies.count == Copies::MOST)
        refuse_copy("more copies under way than the emulated device follows", site);
    copies.list[copies.count++] = {to, there ? from : nullptr, bytes, copies.groups};
}

inline void wait_copies(unsigned groups)
{
    Copies &copies = copies_of_thread();
    unsigned left = 0;
    for (unsigned i = 0; i < copies.count; i++) {
        const Copy &copy = copies.list[i];
        if (copy.group + groups >= copies.groups)
            copies.list[left++] = copy;
        else if (copy.from)
            memcpy(copy.to, copy.from, copy.bytes);
        else
            memset(copy.to, 0, copy.bytes);
    }
    copies.count = left;
}

} // namespace kn_emulated

inline void kn_mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                   const kn_emulated::Site &site = kn_emulated::here("mma.sync"))
{
    const kn_emulated::Factors &factors = kn_emulated::share_factors(a, b0, b1, site);
    const int g = kn_emulated::own_lane() / 4, t = kn_emulated::own_lane() % 4;
    for (int i = 0; i < 4; i++)
        d[i] += kn_emulated::dot16(factors.a[g + i / 2 * 8], factors.b[2 * t + i % 2]);
}

inline void kn_ldmatrix(uint32_t (&to)[4], const void *row,
                        const kn_emulated::Site &site = kn_emulated::here("ldmatrix"))
{
    const void *const *rows = kn_emulated::share_rows(row, site);
    const int r = kn_emulated::own_lane() / 4, c = kn_emulated::own_lane() % 4;
    for (int i = 0; i < 4; i++)
        to[i] = ((const uint32_t *)rows[8 * i + r])[c];
}

inline void kn_ldmatrix_transposed(uint32_t (&to)[4], const void *row,
                                   const kn_emulated::Site &site = kn_emulated::here("ldmatrix.trans"))
{
    const void *const *rows = kn_emulated::share_rows(row, site);
    const int r = kn_emulated::own_lane() / 4, c = kn_emulated::own_lane() % 4;
    for (int i = 0; i < 4; i++) {
        const uint32_t low = ((const uint16_t *)rows[8 * i + 2 * c])[r];
        const uint32_t high = ((const uint16_t *)rows[8 * i + 2 * c + 1])[r];
        to[i] = low | high << 16;
    }
}

inline void kn_copy_async16(void *shared, const void *from, bool there,
                            const kn_emulated::Site &site = kn_emulated::here("cp.async"))
{
    kn_emulated::copy_async(shared, from, 16, there, site);
}

inline void kn_copy_async4(void *shared, const void *from, bool there,
                           const kn_emulated::Site &site = kn_emulated::here("cp.async"))
{
    kn_emulated::copy_async(shared, from, 4, there, site);
}

inline void kn_close_copies()
{
    kn_emulated::copies_of_thread().groups++;
}

template <int GROUPS> void kn_wait_copies()
{
    kn_emulated::wait_copies(GROUPS);
}

inline int kn_fresh(int x)
{
    return x;
}

inline float kn_exp2(float x)
{
    return x < -126 ? 0.0f : exp2f(x);
}

#endif
