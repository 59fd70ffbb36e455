/* Scalars from tensors: the masked squared error, its gradient, and the sum of squares. Each block sums its share in a
 * fixed order, one block then the blocks' sums: the same bits in each run. */
#include "core/cuda/grid.h"
#include "core/cuda/vector.h"

namespace
{

constexpr int64_t MOST_BLOCKS = KN_CUDA_SUM_BLOCKS;

__global__ void __launch_bounds__(KN_THREADS) total_kernel(const float *sums, int count, float *out)
{
    float sum = 0;
    for (int i = threadIdx.x; i < count; i += KN_THREADS)
        sum += sums[i];
    sum = kn_block_sum(sum);
    if (threadIdx.x == 0)
        *out = sum;
}

cudaError_t total(const float *sums, unsigned count, float *out, cudaStream_t stream)
{
    if (cudaError_t error = cudaGetLastError())
        return error;
    KN_LAUNCH(total_kernel, 1, KN_THREADS, 0, stream, sums, (int)count, out);
    return cudaGetLastError();
}

template <class T>
__global__ void __launch_bounds__(KN_THREADS)
    squares_kernel(const T *__restrict__ x, int64_t n, int64_t vectors, float *sums)
{
    constexpr int lanes = KnLanes<T>::count;
    float parts[lanes] = {0}, sum = 0;
    for (int64_t i = kn_first(); i < vectors; i += kn_step()) {
        float values[lanes];
        kn_load(x + i * lanes, values);
#pragma unroll
        for (int k = 0; k < lanes; k++)
            parts[k] += values[k] * values[k];
    }
    for (int64_t i = vectors * lanes + kn_first(); i < n; i += kn_step())
        sum += kn_widen(x[i]) * kn_widen(x[i]);
#pragma unroll
    for (int k = 0; k < lanes; k++)
        sum += parts[k];
    sum = kn_block_sum(sum);
    if (threadIdx.x == 0)
        sums[blockIdx.x] = sum;
}

template <class T>
cudaError_t squares(const void *const *x, const int64_t *n, int count, float *sums, float *out, cudaStream_t stream)
{
    constexpr int lanes = KnLanes<T>::count;
    unsigned used = 0;
    for (int i = 0; i < count; i++) {
        const int64_t vectors = kn_aligned(x[i]) ? n[i] / lanes : 0;
        const unsigned blocks = kn_blocks(n[i] / lanes + 1, MOST_BLOCKS);
        KN_LAUNCH((squares_kernel<T>), blocks, KN_THREADS, 0, stream, (const T *)x[i], n[i], vectors, sums + used);
        used += blocks;
    }
    return total(sums, used, out, stream);
}

/* A block takes whole rows; a weight of 0 masks a row whatever its values, NaN too. */
template <class T>
__global__ void __launch_bounds__(KN_THREADS)
    mse_kernel(const T *__restrict__ prediction, const float *__restrict__ target, const float *weight, int64_t rows,
               int64_t columns, float *sums)
{
    float sum = 0;
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        const float w = weight[row];
        float squared = 0;
        for (int64_t c = threadIdx.x; c < columns && w != 0; c += KN_THREADS) {
            const float d = kn_widen(prediction[row * columns + c]) - target[row * columns + c];
            squared += d * d;
        }
        sum += w * squared;
    }
    sum = kn_block_sum(sum);
    if (threadIdx.x == 0)
        sums[blockIdx.x] = sum;
}

template <class T>
__global__ void __launch_bounds__(KN_THREADS)
    mse_backward_kernel(const T *__restrict__ prediction, const float *__restrict__ target, const float *weight,
                        const float *grad, T *__restrict__ out, int64_t rows, int64_t columns)
{
    const float factor = 2.0f * (grad ? *grad : 1.0f);
    for (int64_t i = kn_first(); i < rows * columns; i += kn_step()) {
        const float w = weight[i / columns];
        out[i] = kn_narrow<T>(w == 0 ? 0.0f : factor * w * (kn_widen(prediction[i]) - target[i]));
    }
}

template <class T>
cudaError_t mse(const void *prediction, const float *target, const float *weight, float *sums, float *out, int64_t rows,
                int64_t columns, cudaStream_t stream)
{
    const unsigned blocks = (unsigned)(rows < MOST_BLOCKS ? rows + (rows == 0) : MOST_BLOCKS);
    KN_LAUNCH((mse_kernel<T>), blocks, KN_THREADS, 0, stream, (const T *)prediction, target, weight, rows, columns,
              sums);
    return total(sums, blocks, out, stream);
}

template <class T>
cudaError_t mse_backward(const void *prediction, const float *target, const float *weight, const float *grad, void *out,
                         int64_t rows, int64_t columns, cudaStream_t stream)
{
    if (rows * columns == 0)
        return cudaSuccess;
    KN_LAUNCH((mse_backward_kernel<T>), kn_blocks(rows * columns), KN_THREADS, 0, stream, (const T *)prediction, target,
              weight, grad, (T *)out, rows, columns);
    return cudaGetLastError();
}

} // namespace

cudaError_t kn_cuda_sum_of_squares(int bf16, const void *const *x, const int64_t *n, int count, float *sums, float *out,
                                   cudaStream_t stream)
{
    return bf16 ? squares<__nv_bfloat16>(x, n, count, sums, out, stream)
                : squares<float>(x, n, count, sums, out, stream);
}

cudaError_t kn_cuda_masked_mse(int bf16, const void *prediction, const float *target, const float *weight, float *sums,
                               float *out, int64_t rows, int64_t columns, cudaStream_t stream)
{
    return bf16 ? mse<__nv_bfloat16>(prediction, target, weight, sums, out, rows, columns, stream)
                : mse<float>(prediction, target, weight, sums, out, rows, columns, stream);
}

cudaError_t kn_cuda_masked_mse_backward(int bf16, const void *prediction, const float *target, const float *weight,
                                        const float *grad, void *out, int64_t rows, int64_t columns,
                                        cudaStream_t stream)
{
    return bf16 ? mse_backward<__nv_bfloat16>(prediction, target, weight, grad, out, rows, columns, stream)
                : mse_backward<float>(prediction, target, weight, grad, out, rows, columns, stream);
}
