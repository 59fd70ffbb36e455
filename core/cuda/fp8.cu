/* Rounding to 8-bit floats: one pass over memory reads x, and writes it scaled and rounded as it is and transposed,
 * beside the largest magnitude that it saw. A block takes a tile of 64 x 64; its bytes pass through shared memory on
 * their way to the other side. The maximum is one of unsigned integers, of which no order is seen: the bits of
 * magnitudes rise as they do, those of NaN above all.
 *
 * A scale of 0 is not known yet: then the maximum of this very x is found first, by a kernel that otherwise ends at
 * once. Whether to do so is the device's to decide, so that a captured graph has it. */
#include <cuda_fp8.h>

#include "core/base/fp8.h"
#include "core/cuda/grid.h"
#include "core/cuda/vector.h"

namespace
{

constexpr int SIDE = 64, EACH = 16;

/* The lower byte is that of x. Architectures without the instruction have no products of 8 bits either: nobody calls
 * it there. */
template <bool E5M2> __device__ __forceinline__ unsigned round_pair(float x, float y)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 890
    return (void)x, (void)y, 0;
#else
    return __nv_cvt_float2_to_fp8x2(make_float2(x, y), __NV_SATFINITE, E5M2 ? __NV_E5M2 : __NV_E4M3);
#endif
}

template <bool WIDE, class T> __device__ __forceinline__ void read_each(const T *from, float (&values)[EACH])
{
    constexpr int lanes = WIDE ? KnLanes<T>::count : 1;
#pragma unroll
    for (int k = 0; k < EACH; k += lanes)
        kn_read(from + k, *reinterpret_cast<float(*)[lanes]>(values + k));
}

__device__ __forceinline__ unsigned larger(unsigned most, const float (&values)[EACH])
{
#pragma unroll
    for (int k = 0; k < EACH; k++)
        most = max(most, __float_as_uint(values[k]) & 0x7fffffffu);
    return most;
}

/* All threads must call it. */
__device__ __forceinline__ void keep_largest(unsigned most, float *largest)
{
    __shared__ unsigned warps[KN_THREADS / 32];
#pragma unroll
    for (int offset = 16; offset; offset /= 2)
        most = max(most, __shfl_xor_sync(0xffffffffu, most, offset));
    if (threadIdx.x % 32 == 0)
        warps[threadIdx.x / 32] = most;
    __syncthreads();
    if (threadIdx.x != 0)
        return;
#pragma unroll
    for (int i = 1; i < KN_THREADS / 32; i++)
        most = max(most, warps[i]);
    atomicMax(reinterpret_cast<unsigned *>(largest), most);
}

template <bool WIDE, class T>
__global__ void __launch_bounds__(KN_THREADS, 4) largest_kernel(KnCudaQuantize q, int64_t pieces)
{
    unsigned most = 0;
    if (q.scale && *q.scale != 0)
        return;
    for (int64_t i = kn_first(); i < pieces; i += kn_step()) {
        float values[EACH];
        read_each<WIDE>((const T *)q.x + i * EACH, values);
        most = larger(most, values);
    }
    keep_largest(most, q.largest);
}

/* What is infinite becomes no number: the conversion alone would make it finite, and nobody would see it. */
__device__ __forceinline__ float scaled(float x, float scale)
{
    return fmaf(x, 0.0f, x * scale);
}

/* Bytes of one row of the tile to the columns of its other side. */
template <bool E5M2> __device__ __forceinline__ void round_each(const float (&values)[EACH], float scale, uint4 &bytes)
{
    unsigned *words = reinterpret_cast<unsigned *>(&bytes);
#pragma unroll
    for (int k = 0; k < EACH; k += 4)
        words[k / 4] = round_pair<E5M2>(scaled(values[k], scale), scaled(values[k + 1], scale)) |
                       round_pair<E5M2>(scaled(values[k + 2], scale), scaled(values[k + 3], scale)) << 16;
}

template <bool E5M2, bool WIDE, class T>
__global__ void __launch_bounds__(KN_THREADS, 4) quantize_kernel(KnCudaQuantize q, int64_t padded)
{
    __shared__ unsigned tile[SIDE][SIDE / 4 + 1];
    const float most = E5M2 ? KN_FP8_MOST_E5M2 : KN_FP8_MOST_E4M3, known = q.scale ? *q.scale : 0;
    const float found = known != 0 ? known : kn_fp8_scale(*q.largest, most), scale = found != 0 ? found : 1.0f;
    const int line = threadIdx.x / 4, at = threadIdx.x % 4 * EACH;
    const int64_t first_row = (int64_t)blockIdx.y * SIDE, first_column = (int64_t)blockIdx.x * SIDE;
    const int64_t row = first_row + line, column = first_column + at;
    uint4 bytes = {0, 0, 0, 0};
    unsigned largest = 0;
    if (row < q.rows && column < q.columns) {
        float values[EACH];
        read_each<WIDE>((const T *)q.x + row * q.columns + column, values);
        largest = larger(0, values);
        round_each<E5M2>(values, scale, bytes);
        if (q.plain)
            *reinterpret_cast<uint4 *>((unsigned char *)q.plain + row * q.columns + column) = bytes;
    }
    if (known != 0)
        keep_largest(largest, q.largest);
    if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0)
        *q.inverse = 1.0f / scale;
    if (!q.transposed)
        return;
    const unsigned char *each = reinterpret_cast<const unsigned char *>(&bytes);
#pragma unroll
    for (int k = 0; k < EACH; k++)
        reinterpret_cast<unsigned char *>(tile[at + k])[line] = each[k];
    __syncthreads();
    if (first_column + line < q.columns && first_row + at < padded) {
        const unsigned *from = &tile[line][at / 4];
        const uint4 turned = {from[0], from[1], from[2], from[3]};
        *reinterpret_cast<uint4 *>((unsigned char *)q.transposed + (first_column + line) * padded + first_row + at) =
            turned;
    }
}

template <bool WIDE, class T> cudaError_t find_largest(const KnCudaQuantize &q, cudaStream_t stream)
{
    const int64_t pieces = q.rows * q.columns / EACH;
    if (!q.scale)
        if (cudaError_t error = cudaMemsetAsync(q.largest, 0, sizeof *q.largest, stream))
            return error;
    KN_LAUNCH((largest_kernel<WIDE, T>), kn_blocks(pieces, 1056), KN_THREADS, 0, stream, q, pieces);
    return cudaGetLastError();
}

template <bool WIDE, class T> cudaError_t quantize(const KnCudaQuantize &q, cudaStream_t stream)
{
    const int64_t padded = (q.rows + EACH - 1) / EACH * EACH;
    const dim3 grid((unsigned)((q.columns + SIDE - 1) / SIDE), (unsigned)((q.rows + SIDE - 1) / SIDE));
    if (cudaError_t error = find_largest<WIDE, T>(q, stream))
        return error;
    if (q.e5m2)
        KN_LAUNCH((quantize_kernel<true, WIDE, T>), grid, KN_THREADS, 0, stream, q, padded);
    else
        KN_LAUNCH((quantize_kernel<false, WIDE, T>), grid, KN_THREADS, 0, stream, q, padded);
    return cudaGetLastError();
}

} // namespace

cudaError_t kn_cuda_quantize(int bf16, const KnCudaQuantize *q, cudaStream_t stream)
{
    if (q->rows == 0 || q->columns == 0)
        return cudaSuccess;
    if (bf16)
        return kn_aligned(q->x) ? quantize<true, __nv_bfloat16>(*q, stream)
                                : quantize<false, __nv_bfloat16>(*q, stream);
    return kn_aligned(q->x) ? quantize<true, float>(*q, stream) : quantize<false, float>(*q, stream);
}
