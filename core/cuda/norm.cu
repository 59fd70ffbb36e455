/* Layer norm (plain, affine, modulated) and RMS norm, also of rows of which only some columns are here, and turned by
 * rotary positions in the same pass. A team of threads, a warp for rows that are not too long or else a block, takes a row and reads it once from memory; the passes
 * after the first find it in the cache. Statistics are in float32. */
#include "core/cuda/rope.h"
#include "core/cuda/row_sum.h"

namespace
{

/* The row that a thread's team takes; all threads of a team leave together where there is none. */
template <int TEAM> __device__ __forceinline__ int64_t token_of_team()
{
    return (int64_t)blockIdx.x * (KN_THREADS / TEAM) + threadIdx.x / TEAM;
}

template <int TEAM> __device__ __forceinline__ bool leads_team()
{
    return threadIdx.x % TEAM == 0;
}

template <int TEAM> __device__ __forceinline__ float team_sum(float value)
{
    return TEAM == 32 ? kn_warp_sum(value) : kn_block_sum(value);
}

/* f(column, values of x) for each vector of a row, by the threads of a team, so many under way together; fewer where
 * angles take registers too. */
constexpr int AT_ONCE = 6, TURNED_AT_ONCE = 2;
template <int TEAM, int LANES, int COUNT = AT_ONCE, class T, class F>
__device__ __forceinline__ void each(const T *row, int64_t columns, F f)
{
#pragma unroll COUNT
    for (int64_t c = (int64_t)(threadIdx.x % TEAM) * LANES; c < columns; c += TEAM * LANES) {
        float values[LANES];
        kn_read<LANES>(row + c, values);
        f(c, values);
    }
}

/* A token's row of scale and shift. */
__device__ __forceinline__ int64_t row_of(const KnCudaNorm &n, int64_t token)
{
    return n.row_of ? kn_row_of(n.row_of, token, n.scale_rows, n.fault) : 0;
}

/* What the normalized value is multiplied by: weight, 1 + scale of the token's row, or 1. */
template <int LANES>
__device__ __forceinline__ void read_factor(const KnCudaNorm &n, int64_t row, int64_t c, float (&factor)[LANES])
{
    if (n.weight)
        kn_read_floats<LANES>(n.weight + c, factor);
    else if (n.scale)
        kn_read_floats<LANES>(n.scale + row * n.columns + c, factor);
#pragma unroll
    for (int k = 0; k < LANES; k++)
        factor[k] = n.weight ? factor[k] : n.scale ? 1.0f + factor[k] : 1.0f;
}

template <int LANES>
__device__ __forceinline__ void read_term(const KnCudaNorm &n, int64_t row, int64_t c, float (&term)[LANES])
{
    if (n.bias)
        kn_read_floats<LANES>(n.bias + c, term);
    else if (n.shift)
        kn_read_floats<LANES>(n.shift + row * n.columns + c, term);
#pragma unroll
    for (int k = 0; k < LANES; k++)
        term[k] = n.bias || n.shift ? term[k] : 0.0f;
}

template <int LANES> __device__ __forceinline__ float total(const float (&values)[LANES])
{
    float sum = 0;
#pragma unroll
    for (int k = 0; k < LANES; k++)
        sum += values[k];
    return sum;
}

/* h = grad factor: what arrives before the factor. */
template <int LANES, class T>
__device__ __forceinline__ void read_unscaled(const KnCudaNorm &n, const T *grad, int64_t row, int64_t c,
                                              float (&h)[LANES])
{
    float factor[LANES];
    kn_read<LANES>(grad + c, h);
    read_factor<LANES>(n, row, c, factor);
#pragma unroll
    for (int k = 0; k < LANES; k++)
        h[k] *= factor[k];
}

/* ---- layer norm ---- */

template <class T, int TEAM, int LANES> __global__ void __launch_bounds__(KN_THREADS) layer_norm_kernel(KnCudaNorm n)
{
    const int64_t token = token_of_team<TEAM>();
    if (token >= n.tokens)
        return;
    const int64_t row = row_of(n, token);
    const T *x = (const T *)n.x + token * n.columns;
    T *y = (T *)n.y + token * n.columns;
    float sum = 0;
    each<TEAM, LANES>(x, n.columns, [&](int64_t, float(&v)[LANES]) { sum += total(v); });
    const float mean = team_sum<TEAM>(sum) / (float)n.columns;
    sum = 0;
    each<TEAM, LANES>(x, n.columns, [&](int64_t, float(&v)[LANES]) {
#pragma unroll
        for (int k = 0; k < LANES; k++)
            sum += (v[k] - mean) * (v[k] - mean);
    });
    const float rstd = rsqrtf(team_sum<TEAM>(sum) / (float)n.columns + n.eps);
    if (leads_team<TEAM>() && n.stats) {
        n.stats[2 * token] = mean;
        n.stats[2 * token + 1] = rstd;
    }
    each<TEAM, LANES>(x, n.columns, [&](int64_t c, float(&v)[LANES]) {
        float factor[LANES], term[LANES];
        read_factor<LANES>(n, row, c, factor);
        read_term<LANES>(n, row, c, term);
#pragma unroll
        for (int k = 0; k < LANES; k++)
            v[k] = (v[k] - mean) * rstd * factor[k] + term[k];
        kn_write<LANES>(y + c, v);
    });
}

/* With h = grad factor and u the normalized x: dx = rstd (h - mean(h) - u mean(h u)). */
template <class T, int TEAM, int LANES>
__global__ void __launch_bounds__(KN_THREADS) layer_norm_backward_kernel(KnCudaNorm n)
{
    const int64_t token = token_of_team<TEAM>();
    if (token >= n.tokens)
        return;
    const int64_t row = row_of(n, token);
    const T *x = (const T *)n.x + token * n.columns, *grad = (const T *)n.grad + token * n.columns;
    T *dx = (T *)n.y + token * n.columns;
    const float mean = n.stats[2 * token], rstd = n.stats[2 * token + 1];
    float sum = 0, product = 0;
    each<TEAM, LANES>(x, n.columns, [&](int64_t c, float(&v)[LANES]) {
        float h[LANES];
        read_unscaled<LANES>(n, grad, row, c, h);
#pragma unroll
        for (int k = 0; k < LANES; k++) {
            sum += h[k];
            product += h[k] * (v[k] - mean) * rstd;
        }
    });
    const float mean_h = team_sum<TEAM>(sum) / (float)n.columns, mean_hu = team_sum<TEAM>(product) / (float)n.columns;
    each<TEAM, LANES>(x, n.columns, [&](int64_t c, float(&v)[LANES]) {
        float h[LANES];
        read_unscaled<LANES>(n, grad, row, c, h);
#pragma unroll
        for (int k = 0; k < LANES; k++)
            v[k] = rstd * (h[k] - mean_h - (v[k] - mean) * rstd * mean_hu);
        kn_write<LANES>(dx + c, v);
    });
}

/* Sums of grad u and grad: gradients of weight and bias, or of scale and shift. */
template <class T> struct LayerNormSums {
    static constexpr int results = 2;
    const T *x, *grad;
    const float *stats;
    int64_t columns;
    template <int LANES> __device__ void add(int64_t token, int64_t column, float (&sums)[2][LANES]) const
    {
        float v[LANES], g[LANES];
        kn_read<LANES>(x + token * columns + column, v);
        kn_read<LANES>(grad + token * columns + column, g);
        const float mean = stats[2 * token], rstd = stats[2 * token + 1];
#pragma unroll
        for (int k = 0; k < LANES; k++) {
            sums[0][k] += g[k] * (v[k] - mean) * rstd;
            sums[1][k] += g[k];
        }
    }
};

/* ---- RMS norm; stats are rstd alone ---- */

template <class T, int TEAM, int LANES> __device__ __forceinline__ float squares_of(const T *x, int64_t columns)
{
    float sum = 0;
    each<TEAM, LANES>(x, columns, [&](int64_t, float(&v)[LANES]) {
#pragma unroll
        for (int k = 0; k < LANES; k++)
            sum += v[k] * v[k];
    });
    return team_sum<TEAM>(sum);
}

/* Where `squares` is given, they are those of all `total_columns` columns of the row. */
template <class T, int TEAM, int LANES, bool TURNS>
__global__ void __launch_bounds__(KN_THREADS) rms_norm_kernel(KnCudaNorm n)
{
    const int64_t token = token_of_team<TEAM>();
    if (token >= n.tokens)
        return;
    const T *x = (const T *)n.x + token * n.columns;
    T *y = (T *)n.y + token * n.columns;
    const float squares = n.squares ? n.squares[token] : squares_of<T, TEAM, LANES>(x, n.columns);
    const float rstd = rsqrtf(squares / (float)n.total_columns + n.eps);
    if (leads_team<TEAM>() && n.stats)
        n.stats[token] = rstd;
    const KnAngles angles = TURNS ? kn_angles_of(n.rope, token) : KnAngles{};
    each<TEAM, LANES, TURNS ? TURNED_AT_ONCE : AT_ONCE>(x, n.columns, [&](int64_t c, float(&v)[LANES]) {
        float weight[LANES];
        kn_read_floats<LANES>(n.weight + c, weight);
#pragma unroll
        for (int k = 0; k < LANES; k++)
            v[k] = v[k] * rstd * weight[k];
        if (TURNS)
            kn_turn(n.rope, angles, c, v, [&] { return kn_widen(x[c ^ 1]) * rstd * n.weight[c ^ 1]; });
        kn_write<LANES>(y + c, v);
    });
}

/* With h = grad weight and u = x rstd: dx = rstd (h - u mean(h u)); where the squares were given, dx = rstd h and
 * dsquares = -rstd^2 sum(h u) / (2 total). */
template <class T, int TEAM, int LANES, bool SPLIT>
__global__ void __launch_bounds__(KN_THREADS) rms_norm_backward_kernel(KnCudaNorm n)
{
    const int64_t token = token_of_team<TEAM>();
    if (token >= n.tokens)
        return;
    const T *x = (const T *)n.x + token * n.columns, *grad = (const T *)n.grad + token * n.columns;
    T *dx = (T *)n.y + token * n.columns;
    const float rstd = n.stats[token];
    float product = 0;
    each<TEAM, LANES>(x, n.columns, [&](int64_t c, float(&v)[LANES]) {
        float h[LANES];
        read_unscaled<LANES>(n, grad, 0, c, h);
#pragma unroll
        for (int k = 0; k < LANES; k++)
            product += h[k] * v[k] * rstd;
    });
    product = team_sum<TEAM>(product);
    const float mean = SPLIT ? 0.0f : product / (float)n.total_columns;
    if (SPLIT && leads_team<TEAM>() && n.dsquares)
        n.dsquares[token] = -0.5f * rstd * rstd * product / (float)n.total_columns;
    each<TEAM, LANES>(x, n.columns, [&](int64_t c, float(&v)[LANES]) {
        float h[LANES];
        read_unscaled<LANES>(n, grad, 0, c, h);
#pragma unroll
        for (int k = 0; k < LANES; k++)
            v[k] = rstd * (h[k] - v[k] * rstd * mean);
        kn_write<LANES>(dx + c, v);
    });
}

template <class T> struct RmsNormSums {
    static constexpr int results = 1;
    const T *x, *grad;
    const float *rstd;
    int64_t columns;
    template <int LANES> __device__ void add(int64_t token, int64_t column, float (&sums)[2][LANES]) const
    {
        float v[LANES], g[LANES];
        kn_read<LANES>(x + token * columns + column, v);
        kn_read<LANES>(grad + token * columns + column, g);
#pragma unroll
        for (int k = 0; k < LANES; k++)
            sums[0][k] += g[k] * v[k] * rstd[token];
    }
};

template <class T, int TEAM, int LANES> __global__ void __launch_bounds__(KN_THREADS) squares_kernel(KnCudaNorm n)
{
    const int64_t token = token_of_team<TEAM>();
    if (token >= n.tokens)
        return;
    const float squares = squares_of<T, TEAM, LANES>((const T *)n.x + token * n.columns, n.columns);
    if (leads_team<TEAM>())
        n.dsquares[token] = squares;
}

/* dx = 2 x dsquares */
template <class T, int TEAM, int LANES>
__global__ void __launch_bounds__(KN_THREADS) squares_backward_kernel(KnCudaNorm n)
{
    const int64_t token = token_of_team<TEAM>();
    if (token >= n.tokens)
        return;
    const float factor = 2 * n.squares[token];
    T *dx = (T *)n.y + token * n.columns;
    each<TEAM, LANES>((const T *)n.x + token * n.columns, n.columns, [&](int64_t c, float(&v)[LANES]) {
#pragma unroll
        for (int k = 0; k < LANES; k++)
            v[k] *= factor;
        kn_write<LANES>(dx + c, v);
    });
}

/* ---- launching ---- */

bool is_wide(const KnCudaNorm &n, int lanes)
{
    const bool heads_fit = !n.rope.table || n.rope.head % lanes == 0;
    return n.columns % lanes == 0 && heads_fit && kn_aligned(n.x, n.y, n.grad) && kn_aligned(n.weight, n.bias) &&
           kn_aligned(n.scale, n.shift);
}

/* A warp reads as many vectors a thread. */
constexpr int64_t MOST_OF_WARP = 12;

unsigned blocks_of(const KnCudaNorm &n, int team)
{
    const int64_t rows = KN_THREADS / team;
    return (unsigned)((n.tokens + rows - 1) / rows);
}

#define KN_NORM(name, kernel)                                                                                          \
    template <class T> cudaError_t name##_of(const KnCudaNorm &n, cudaStream_t stream)                                 \
    {                                                                                                                  \
        constexpr int lanes = KnLanes<T>::count;                                                                       \
        if (!is_wide(n, lanes))                                                                                        \
            KN_LAUNCH((kernel(T, KN_THREADS, 1)), blocks_of(n, KN_THREADS), KN_THREADS, 0, stream, n);                 \
        else if (n.columns > MOST_OF_WARP * 32 * lanes)                                                                \
            KN_LAUNCH((kernel(T, KN_THREADS, lanes)), blocks_of(n, KN_THREADS), KN_THREADS, 0, stream, n);             \
        else                                                                                                           \
            KN_LAUNCH((kernel(T, 32, lanes)), blocks_of(n, 32), KN_THREADS, 0, stream, n);                             \
        return cudaGetLastError();                                                                                     \
    }                                                                                                                  \
    cudaError_t name(int bf16, const KnCudaNorm &n, cudaStream_t stream)                                               \
    {                                                                                                                  \
        if (n.tokens == 0)                                                                                             \
            return cudaSuccess;                                                                                        \
        return bf16 ? name##_of<__nv_bfloat16>(n, stream) : name##_of<float>(n, stream);                               \
    }
#define LAYER_NORM(T, TEAM, LANES) layer_norm_kernel<T, TEAM, LANES>
#define LAYER_NORM_BACKWARD(T, TEAM, LANES) layer_norm_backward_kernel<T, TEAM, LANES>
#define RMS_NORM(T, TEAM, LANES) rms_norm_kernel<T, TEAM, LANES, false>
#define RMS_NORM_TURNED(T, TEAM, LANES) rms_norm_kernel<T, TEAM, LANES, true>
#define RMS_NORM_BACKWARD(T, TEAM, LANES) rms_norm_backward_kernel<T, TEAM, LANES, false>
#define RMS_NORM_SPLIT_BACKWARD(T, TEAM, LANES) rms_norm_backward_kernel<T, TEAM, LANES, true>
#define SQUARES(T, TEAM, LANES) squares_kernel<T, TEAM, LANES>
#define SQUARES_BACKWARD(T, TEAM, LANES) squares_backward_kernel<T, TEAM, LANES>
KN_NORM(layer_norm, LAYER_NORM)
KN_NORM(layer_norm_backward, LAYER_NORM_BACKWARD)
KN_NORM(rms_norm, RMS_NORM)
KN_NORM(rms_norm_turned, RMS_NORM_TURNED)
KN_NORM(rms_norm_backward, RMS_NORM_BACKWARD)
KN_NORM(rms_norm_split_backward, RMS_NORM_SPLIT_BACKWARD)
KN_NORM(squares, SQUARES)
KN_NORM(squares_backward, SQUARES_BACKWARD)

KnRowSum sum_of(const KnCudaNorm &n, const int32_t *row, int64_t rows)
{
    return KnRowSum{row, n.tokens, rows, n.columns, {n.sums[0], n.sums[1]}, 0, n.workspace};
}

template <class T> cudaError_t layer_norm_sums(const KnCudaNorm &n, cudaStream_t stream)
{
    LayerNormSums<T> f = {(const T *)n.x, (const T *)n.grad, n.stats, n.columns};
    return kn_row_sum<T>(f, sum_of(n, n.row_of, n.scale ? n.scale_rows : 1), kn_aligned(n.x, n.grad), stream);
}

template <class T> cudaError_t rms_norm_sums(const KnCudaNorm &n, cudaStream_t stream)
{
    RmsNormSums<T> f = {(const T *)n.x, (const T *)n.grad, n.stats, n.columns};
    return kn_row_sum<T>(f, sum_of(n, nullptr, 1), kn_aligned(n.x, n.grad), stream);
}

} // namespace

cudaError_t kn_cuda_layer_norm(int bf16, const KnCudaNorm *n, cudaStream_t stream)
{
    return layer_norm(bf16, *n, stream);
}

cudaError_t kn_cuda_layer_norm_backward(int bf16, const KnCudaNorm *n, cudaStream_t stream)
{
    cudaError_t error = n->y ? layer_norm_backward(bf16, *n, stream) : cudaSuccess;
    if (error != cudaSuccess)
        return error;
    return bf16 ? layer_norm_sums<__nv_bfloat16>(*n, stream) : layer_norm_sums<float>(*n, stream);
}

cudaError_t kn_cuda_rms_norm(int bf16, const KnCudaNorm *n, cudaStream_t stream)
{
    return n->rope.table ? rms_norm_turned(bf16, *n, stream) : rms_norm(bf16, *n, stream);
}

cudaError_t kn_cuda_rms_norm_backward(int bf16, const KnCudaNorm *n, cudaStream_t stream)
{
    cudaError_t error = cudaSuccess;
    if (n->y)
        error = n->split ? rms_norm_split_backward(bf16, *n, stream) : rms_norm_backward(bf16, *n, stream);
    if (error != cudaSuccess)
        return error;
    return bf16 ? rms_norm_sums<__nv_bfloat16>(*n, stream) : rms_norm_sums<float>(*n, stream);
}

cudaError_t kn_cuda_row_squares(int bf16, const KnCudaNorm *n, cudaStream_t stream)
{
    return squares(bf16, *n, stream);
}

cudaError_t kn_cuda_row_squares_backward(int bf16, const KnCudaNorm *n, cudaStream_t stream)
{
    return squares_backward(bf16, *n, stream);
}
