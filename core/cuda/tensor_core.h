/* The instructions that CUDA has no words for, one PTX instruction each: products of fragments on tensor cores, loading
 * fragments from shared memory, copies into it that go on by themselves. On the emulated device the same names do, over
 * the lanes of a warp, what the PTX manual says (core/cuda/emulator/tensor_core.h). Only in kernels.
 *
 * A register holds two bfloat16, the one with the lower index in the lower half. With g = lane / 4, t = lane % 4:
 *
 *     a[4] of A [16,16]: rows g, g + 8, g, g + 8; columns 2t, 2t + 1, and 8 more in a[2], a[3]
 *     b[2] of B [16, 8]: column g; rows 2t, 2t + 1, and 8 more in b[1]
 *     d[4] of D [16, 8]: row g in d[0], d[1], row g + 8 in d[2], d[3]; columns 2t, 2t + 1
 *
 * All lanes of a warp must call the first three together. */
#ifndef KN_CUDA_TENSOR_CORE_H
#define KN_CUDA_TENSOR_CORE_H

#include "core/cuda/kernel.h"

#ifdef __CUDACC__

/* D += A B, bfloat16 into float32. */
__device__ __forceinline__ void kn_mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ unsigned kn_shared_address(const void *shared)
{
    return (unsigned)__cvta_generic_to_shared(shared);
}

/* Four matrices of 8x8; lane 8i + j gives the address of row j of matrix i, aligned to 16 bytes. Lane 4r + c gets in
 * to[i] the elements 2c and 2c + 1 of row r of matrix i, or, transposed, of its column r. */
__device__ __forceinline__ void kn_ldmatrix(uint32_t (&to)[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(kn_shared_address(row))
                 : "memory");
}

__device__ __forceinline__ void kn_ldmatrix_transposed(uint32_t (&to)[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(kn_shared_address(row))
                 : "memory");
}

/* 16 or 4 bytes from memory, or zeros where not `there`, into shared memory: at some time before a wait is over.
 * Addresses are aligned to the size; `from` is an address even where nothing is read. */
__device__ __forceinline__ void kn_copy_async16(void *shared, const void *from, bool there)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(kn_shared_address(shared)), "l"(from),
                 "r"(there ? 16 : 0)
                 : "memory");
}

__device__ __forceinline__ void kn_copy_async4(void *shared, const void *from, bool there)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(kn_shared_address(shared)), "l"(from),
                 "r"(there ? 4 : 0)
                 : "memory");
}

/* Closes a group of the thread's copies; waits until all but the last GROUPS groups have come. */
__device__ __forceinline__ void kn_close_copies()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int GROUPS> __device__ __forceinline__ void kn_wait_copies()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}

/* 2^x, to two units in the last place; subnormal results are zeros. */
__device__ __forceinline__ float kn_exp2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* x, of which the compiler does not know that it is the same in each round of a loop: what is found from it is found
 * anew, where it would else stay in registers. */
__device__ __forceinline__ int kn_fresh(int x)
{
    asm volatile("" : "+r"(x));
    return x;
}

#else

#include "core/cuda/emulator/tensor_core.h"

#endif

/* Two neighbouring elements of a fragment, rounded. */
__device__ __forceinline__ uint32_t kn_pack(float low, float high)
{
    const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t *>(&both);
}

#endif
