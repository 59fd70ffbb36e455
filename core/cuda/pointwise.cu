/* Kernels on single elements: activations and their gradients, sums, products, casts. Each streams its operands once,
 * 128 bits at a time where the addresses allow it, and is bound by memory: bytes moved are those of the operands.
 * GELU's gradient may be summed over rows on the way (core/cuda/row_pass.h). */
#include "core/cuda/row_pass.h"

namespace
{

/* ---- functions of one element ---- */

__device__ __forceinline__ float sigmoid(float x)
{
    return 1.0f / (1.0f + __expf(-x));
}

/* 0.5 x (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3). */
struct GeluTanh {
    __device__ float operator()(float x) const
    {
        return x * sigmoid(1.5957691216057308f * x * (1.0f + 0.044715f * x * x));
    }
};

struct GeluTanhSlope {
    __device__ float operator()(float x, float grad) const
    {
        float square = x * x, s = sigmoid(1.5957691216057308f * x * (1.0f + 0.044715f * square));
        float inner = 1.5957691216057308f * (1.0f + 3 * 0.044715f * square);
        return grad * (s + x * s * (1.0f - s) * inner);
    }
};

struct GeluExact {
    __device__ float operator()(float x) const
    {
        return 0.5f * x * erfcf(-0.70710678118654752f * x);
    }
};

struct GeluExactSlope {
    __device__ float operator()(float x, float grad) const
    {
        float density = 0.39894228040143268f * expf(-0.5f * x * x);
        return grad * (0.5f * erfcf(-0.70710678118654752f * x) + x * density);
    }
};

struct Silu {
    __device__ float operator()(float x) const
    {
        return x * sigmoid(x);
    }
};

struct SiluSlope {
    __device__ float operator()(float x, float grad) const
    {
        float s = sigmoid(x);
        return grad * s * (1.0f + x * (1.0f - s));
    }
};

struct Scale {
    float factor;
    __device__ float operator()(float x) const
    {
        return factor * x;
    }
};

struct Add {
    __device__ float operator()(float a, float b) const
    {
        return a + b;
    }
};

struct Multiply {
    __device__ float operator()(float a, float b) const
    {
        return a * b;
    }
};

/* ---- maps ---- */

/* out = f(a): `vectors` of sixteen bytes, then single elements up to n. */
template <class T, class F>
__global__ void __launch_bounds__(KN_THREADS)
    map_one(F f, const T *__restrict__ a, T *__restrict__ out, int64_t n, int64_t vectors)
{
    constexpr int lanes = KnLanes<T>::count;
    for (int64_t i = kn_first(); i < vectors; i += kn_step()) {
        float x[lanes];
        kn_load(a + i * lanes, x);
#pragma unroll
        for (int k = 0; k < lanes; k++)
            x[k] = f(x[k]);
        kn_store(out + i * lanes, x);
    }
    for (int64_t i = vectors * lanes + kn_first(); i < n; i += kn_step())
        out[i] = kn_narrow<T>(f(kn_widen(a[i])));
}

/* out = f(a, b). `out` may be a or b. */
template <class T, class F>
__global__ void __launch_bounds__(KN_THREADS) map_two(F f, const T *a, const T *b, T *out, int64_t n, int64_t vectors)
{
    constexpr int lanes = KnLanes<T>::count;
    for (int64_t i = kn_first(); i < vectors; i += kn_step()) {
        float x[lanes], y[lanes];
        kn_load(a + i * lanes, x);
        kn_load(b + i * lanes, y);
#pragma unroll
        for (int k = 0; k < lanes; k++)
            x[k] = f(x[k], y[k]);
        kn_store(out + i * lanes, x);
    }
    for (int64_t i = vectors * lanes + kn_first(); i < n; i += kn_step())
        out[i] = kn_narrow<T>(f(kn_widen(a[i]), kn_widen(b[i])));
}

__global__ void __launch_bounds__(KN_THREADS) add_sum_kernel(KnCudaSum p, int64_t n, int64_t vectors)
{
    for (int64_t i = kn_first(); i < vectors; i += kn_step()) {
        float a[8], b[8];
        kn_get_eight(p.a, p.a_bf16, 8 * i, a);
        kn_get_eight(p.b, p.b_bf16, 8 * i, b);
#pragma unroll
        for (int k = 0; k < 8; k++)
            a[k] += b[k];
        kn_put_eight(p.out, p.out_bf16, 8 * i, a);
    }
    for (int64_t i = 8 * vectors + kn_first(); i < n; i += kn_step())
        kn_put(p.out, p.out_bf16, i, kn_get(p.a, p.a_bf16, i) + kn_get(p.b, p.b_bf16, i));
}

template <class T, class F> cudaError_t run_one(F f, const void *a, void *out, int64_t n, cudaStream_t stream)
{
    int64_t vectors = kn_aligned(a, out) ? n / KnLanes<T>::count : 0;
    if (n == 0)
        return cudaSuccess;
    KN_LAUNCH((map_one<T, F>), kn_blocks(vectors ? vectors : n), KN_THREADS, 0, stream, f, (const T *)a, (T *)out, n,
              vectors);
    return cudaGetLastError();
}

template <class T, class F>
cudaError_t run_two(F f, const void *a, const void *b, void *out, int64_t n, cudaStream_t stream)
{
    int64_t vectors = kn_aligned(a, b, out) ? n / KnLanes<T>::count : 0;
    if (n == 0)
        return cudaSuccess;
    KN_LAUNCH((map_two<T, F>), kn_blocks(vectors ? vectors : n), KN_THREADS, 0, stream, f, (const T *)a, (const T *)b,
              (T *)out, n, vectors);
    return cudaGetLastError();
}

template <class F> cudaError_t map(F f, int bf16, const void *a, void *out, int64_t n, cudaStream_t stream)
{
    return bf16 ? run_one<__nv_bfloat16>(f, a, out, n, stream) : run_one<float>(f, a, out, n, stream);
}

template <class F>
cudaError_t map(F f, int bf16, const void *a, const void *b, void *out, int64_t n, cudaStream_t stream)
{
    return bf16 ? run_two<__nv_bfloat16>(f, a, b, out, n, stream) : run_two<float>(f, a, b, out, n, stream);
}

/* ---- rows and casts ---- */

struct GeluPass : KnPass {
    static constexpr int results = 1;
    static __device__ __forceinline__ float slope(const KnPassToken &, float grad, float x)
    {
        return GeluTanhSlope{}(x, grad);
    }
    static __device__ __forceinline__ float summand(int, float, float, float dx)
    {
        return dx;
    }
};

/* A thread adds one column's element, or a vector of them, to its share of the rows. */
template <class T, int LANES>
__global__ void __launch_bounds__(KN_THREADS)
    add_row_kernel(const T *x, const float *__restrict__ row, T *out, int64_t rows, int64_t columns)
{
    const int64_t column = ((int64_t)blockIdx.x * KN_THREADS + threadIdx.x) * LANES;
    if (column >= columns)
        return;
    float added[LANES];
#pragma unroll
    for (int k = 0; k < LANES; k++)
        added[k] = row[column + k];
    for (int64_t r = blockIdx.y; r < rows; r += gridDim.y) {
        const int64_t at = r * columns + column;
        if constexpr (LANES > 1) {
            float values[LANES];
            kn_load(x + at, values);
#pragma unroll
            for (int k = 0; k < LANES; k++)
                values[k] += added[k];
            kn_store(out + at, values);
        } else {
            out[at] = kn_narrow<T>(kn_widen(x[at]) + added[0]);
        }
    }
}

template <class T>
cudaError_t run_add_row(const void *x, const float *row, void *out, int64_t rows, int64_t columns, cudaStream_t stream)
{
    constexpr int lanes = KnLanes<T>::count;
    if (rows == 0 || columns == 0)
        return cudaSuccess;
    unsigned down = (unsigned)(rows < 65535 ? rows : 65535);
    if (kn_aligned(x, out) && columns % lanes == 0)
        KN_LAUNCH((add_row_kernel<T, lanes>), dim3(kn_blocks(columns / lanes), down), KN_THREADS, 0, stream,
                  (const T *)x, row, (T *)out, rows, columns);
    else
        KN_LAUNCH((add_row_kernel<T, 1>), dim3(kn_blocks(columns), down), KN_THREADS, 0, stream, (const T *)x, row,
                  (T *)out, rows, columns);
    return cudaGetLastError();
}

/* Eight elements a thread: sixteen bytes of bfloat16 against twice as many of float. */
template <class From, class To>
__global__ void __launch_bounds__(KN_THREADS)
    cast_kernel(const From *__restrict__ x, To *__restrict__ out, int64_t n, int64_t vectors)
{
    constexpr int lanes = 8, from = KnLanes<From>::count, to = KnLanes<To>::count;
    for (int64_t i = kn_first(); i < vectors; i += kn_step()) {
        float values[lanes];
#pragma unroll
        for (int k = 0; k < lanes; k += from)
            kn_load(x + i * lanes + k, *reinterpret_cast<float(*)[from]>(values + k));
#pragma unroll
        for (int k = 0; k < lanes; k += to)
            kn_store(out + i * lanes + k, *reinterpret_cast<float(*)[to]>(values + k));
    }
    for (int64_t i = vectors * lanes + kn_first(); i < n; i += kn_step())
        out[i] = kn_narrow<To>(kn_widen(x[i]));
}

template <class From, class To> cudaError_t run_cast(const void *x, void *out, int64_t n, cudaStream_t stream)
{
    int64_t vectors = kn_aligned(x, out) ? n / 8 : 0;
    if (n == 0)
        return cudaSuccess;
    KN_LAUNCH((cast_kernel<From, To>), kn_blocks(vectors ? vectors : n), KN_THREADS, 0, stream, (const From *)x,
              (To *)out, n, vectors);
    return cudaGetLastError();
}

} // namespace

cudaError_t kn_cuda_activation(int kind, int bf16, const void *x, void *out, int64_t n, cudaStream_t stream)
{
    if (kind == KN_CUDA_GELU_TANH)
        return map(GeluTanh{}, bf16, x, out, n, stream);
    return kind == KN_CUDA_GELU_EXACT ? map(GeluExact{}, bf16, x, out, n, stream)
                                      : map(Silu{}, bf16, x, out, n, stream);
}

cudaError_t kn_cuda_activation_backward(int kind, int bf16, const void *x, const void *grad, void *out, int64_t n,
                                        cudaStream_t stream)
{
    if (kind == KN_CUDA_GELU_TANH)
        return map(GeluTanhSlope{}, bf16, x, grad, out, n, stream);
    return kind == KN_CUDA_GELU_EXACT ? map(GeluExactSlope{}, bf16, x, grad, out, n, stream)
                                      : map(SiluSlope{}, bf16, x, grad, out, n, stream);
}

cudaError_t kn_cuda_gelu_backward_sum(int bf16, const void *x, const void *grad, void *out, float *sum, int64_t rows,
                                      int64_t columns, float *workspace, cudaStream_t stream)
{
    KnRowPass pass = {};
    pass.tokens = rows;
    pass.rows = 1;
    pass.columns = columns;
    pass.x = x;
    pass.grad = grad;
    pass.dx = out;
    pass.sums[0] = sum;
    pass.workspace = workspace;
    return kn_row_pass<GeluPass>(bf16, pass, stream);
}

cudaError_t kn_cuda_add(int bf16, const void *a, const void *b, void *out, int64_t n, cudaStream_t stream)
{
    return map(Add{}, bf16, a, b, out, n, stream);
}

cudaError_t kn_cuda_add_parts(const KnCudaSum *sum, int64_t n, cudaStream_t stream)
{
    int64_t vectors = kn_aligned(sum->a, sum->b, sum->out) ? n / 8 : 0;
    if (n == 0)
        return cudaSuccess;
    KN_LAUNCH(add_sum_kernel, kn_blocks(vectors ? vectors : n), KN_THREADS, 0, stream, *sum, n, vectors);
    return cudaGetLastError();
}

cudaError_t kn_cuda_multiply(int bf16, const void *a, const void *b, void *out, int64_t n, cudaStream_t stream)
{
    return map(Multiply{}, bf16, a, b, out, n, stream);
}

cudaError_t kn_cuda_scale(int bf16, const void *x, float factor, void *out, int64_t n, cudaStream_t stream)
{
    return map(Scale{factor}, bf16, x, out, n, stream);
}

cudaError_t kn_cuda_add_row(int bf16, const void *x, const float *row, void *out, int64_t rows, int64_t columns,
                            cudaStream_t stream)
{
    return bf16 ? run_add_row<__nv_bfloat16>(x, row, out, rows, columns, stream)
                : run_add_row<float>(x, row, out, rows, columns, stream);
}

cudaError_t kn_cuda_cast(int from_bf16, const void *x, void *out, int64_t n, cudaStream_t stream)
{
    return from_bf16 ? run_cast<__nv_bfloat16, float>(x, out, n, stream)
                     : run_cast<float, __nv_bfloat16>(x, out, n, stream);
}
