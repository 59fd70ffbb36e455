/* Rotary positions (Su et al., 2021) and the sinusoidal timestep embedding. */
#include "core/cuda/rope.h"
#include "core/cuda/vector.h"

#include <cmath>

namespace
{

/* A thread turns PAIRS neighbouring pairs of one head. */
template <class T, int PAIRS> __global__ void __launch_bounds__(KN_THREADS) rope_kernel(KnCudaRope r)
{
    const int64_t head_items = r.head / (2 * PAIRS), items = r.tokens * r.heads * head_items;
    for (int64_t i = kn_first(); i < items; i += kn_step()) {
        const int64_t token = i / (r.heads * head_items);
        const int first = (int)(i % head_items) * 2 * PAIRS;
        const T *x = (const T *)r.x + i * 2 * PAIRS;
        T *out = (T *)r.out + i * 2 * PAIRS;
        float values[2 * PAIRS];
        if constexpr (PAIRS > 1) {
            kn_load(x, values);
        } else {
            values[0] = kn_widen(x[0]);
            values[1] = kn_widen(x[1]);
        }
        kn_turn_pairs(r, kn_angles_of(r, token), first, values);
        if constexpr (PAIRS > 1) {
            kn_store(out, values);
        } else {
            out[0] = kn_narrow<T>(values[0]);
            out[1] = kn_narrow<T>(values[1]);
        }
    }
}

template <class T> cudaError_t rope(const KnCudaRope &r, cudaStream_t stream)
{
    constexpr int wide = KnLanes<T>::count / 2;
    const int64_t all_pairs = r.tokens * r.heads * (r.head / 2);
    if (r.head % (2 * wide) == 0 && kn_aligned(r.x, r.out))
        KN_LAUNCH((rope_kernel<T, wide>), kn_blocks(all_pairs / wide), KN_THREADS, 0, stream, r);
    else
        KN_LAUNCH((rope_kernel<T, 1>), kn_blocks(all_pairs), KN_THREADS, 0, stream, r);
    return cudaGetLastError();
}

/* Frequencies as sums of two floats, so that t f is known to a few units of 2^-45. */
constexpr int FREQUENCIES = 128;
struct Frequencies {
    float high[FREQUENCIES], low[FREQUENCIES];
    int64_t first, count;
};

/* In units of pi: t f minus the nearest multiple of 2 pi, by three parts of 2 pi (Cody and Waite, 1980). */
__device__ __forceinline__ float reduced_angle(float t, float high, float low)
{
    const float product = t * high, rest = __fmaf_rn(t, high, -product) + t * low;
    const float turns = rintf(product * 0.15915494309189535f);
    float angle = __fmaf_rn(turns, -6.28125f, product);
    angle = __fmaf_rn(turns, -1.9352436065673828e-3f, angle);
    angle = __fmaf_rn(turns, -6.3627332508112500e-8f, angle);
    return (angle + rest) * 0.31830988618379067f;
}

__global__ void __launch_bounds__(KN_THREADS)
    timestep_kernel(const float *timesteps, float *out, int64_t rows, int64_t pairs, Frequencies f)
{
    for (int64_t i = kn_first(); i < rows * f.count; i += kn_step()) {
        const int64_t row = i / f.count, k = i % f.count;
        const float angle = reduced_angle(timesteps[row], f.high[k], f.low[k]);
        out[row * 2 * pairs + f.first + k] = cospif(angle);
        out[row * 2 * pairs + pairs + f.first + k] = sinpif(angle);
    }
}

} // namespace

cudaError_t kn_cuda_rope(int bf16, const KnCudaRope *rope_of, cudaStream_t stream)
{
    if (rope_of->tokens * rope_of->heads * rope_of->head == 0)
        return cudaSuccess;
    return bf16 ? rope<__nv_bfloat16>(*rope_of, stream) : rope<float>(*rope_of, stream);
}

cudaError_t kn_cuda_timestep_embedding(const float *timesteps, float *out, int64_t rows, int64_t pairs,
                                       cudaStream_t stream)
{
    for (int64_t first = 0; first < pairs && rows; first += FREQUENCIES) {
        Frequencies f = {};
        f.first = first;
        f.count = pairs - first < FREQUENCIES ? pairs - first : FREQUENCIES;
        for (int64_t i = 0; i < f.count; i++) {
            const double frequency = std::exp(-std::log(10000.0) * (double)(first + i) / (double)pairs);
            f.high[i] = (float)frequency;
            f.low[i] = (float)(frequency - (double)f.high[i]);
        }
        KN_LAUNCH(timestep_kernel, kn_blocks(rows * f.count), KN_THREADS, 0, stream, timesteps, out, rows, pairs, f);
        if (cudaError_t error = cudaGetLastError())
            return error;
    }
    return cudaSuccess;
}
