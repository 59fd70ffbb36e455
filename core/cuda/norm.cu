/* Layer norm (plain, affine, modulated; of a gated residual, which it makes) and RMS norm, also of rows of which only
 * some columns are here, and turned by rotary positions in the same pass. A team of threads, a warp for rows that are
 * not too long or else a block, takes a row and reads it once from memory: layer norm keeps it in registers, as far as
 * they go, else the passes after the first find it in the cache. Statistics are in float32. */
#include "core/cuda/rope.h"
#include "core/cuda/row_pass.h"

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

/* ---- layer norm ---- */

/* The row of a team, of which a thread keeps the first AT_ONCE vectors. */
constexpr int ADDED_AT_ONCE = 3;
template <class T, int TEAM, int LANES> struct Row {
    const T *x;
    int columns;
    KnVector<T, LANES> kept[AT_ONCE];

    __device__ __forceinline__ int column(int i) const
    {
        return ((int)threadIdx.x % TEAM + i * TEAM) * LANES;
    }

    __device__ __forceinline__ void read()
    {
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (column(i) < columns)
                kept[i].read(x + column(i));
            else
                kept[i].clear();
    }

    /* x = base + branch gate, rounded. The product is rounded before it is added, as the gated residual by itself
     * does it: a block that is computed again must have the bits of its first time. */
    static __device__ __forceinline__ float gated(float base, float branch, float gate)
    {
        return base + fmaf(branch, gate, 0.0f);
    }

    __device__ __forceinline__ void add(const T *base, const T *branch, const float *gate)
    {
        T *sum = const_cast<T *>(x);
#pragma unroll
        for (int first = 0; first < AT_ONCE; first += ADDED_AT_ONCE) {
            KnVector<T, LANES> term[ADDED_AT_ONCE];
#pragma unroll
            for (int i = 0; i < ADDED_AT_ONCE; i++) {
                const int c = column(first + i);
                kept[first + i].clear();
                term[i].clear();
                if (c < columns) {
                    kept[first + i].read(base + c);
                    term[i].read(branch + c);
                }
            }
#pragma unroll
            for (int i = 0; i < ADDED_AT_ONCE; i++) {
                const int c = column(first + i);
                float factor[LANES];
                if (c >= columns)
                    continue;
                kn_read_floats<LANES>(gate + c, factor);
#pragma unroll
                for (int k = 0; k < LANES; k++)
                    kept[first + i].put(k, gated(kept[first + i].value(k), term[i].value(k), factor[k]));
                kept[first + i].write(sum + c);
            }
        }
        for (int c = column(AT_ONCE); c < columns; c += TEAM * LANES) {
            float values[LANES], term[LANES], factor[LANES];
            kn_read<LANES>(base + c, values);
            kn_read<LANES>(branch + c, term);
            kn_read_floats<LANES>(gate + c, factor);
#pragma unroll
            for (int k = 0; k < LANES; k++)
                values[k] = gated(values[k], term[k], factor[k]);
            kn_write<LANES>(sum + c, values);
        }
    }

    /* f(column, values of x) for each vector of the thread. */
    template <class F> __device__ __forceinline__ void each(F f)
    {
        float values[LANES];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            if (column(i) >= columns)
                continue;
            kept[i].renew();
#pragma unroll
            for (int k = 0; k < LANES; k++)
                values[k] = kept[i].value(k);
            f(column(i), values);
        }
#pragma unroll 2
        for (int c = column(AT_ONCE); c < columns; c += TEAM * LANES) {
            kn_read<LANES>(x + c, values);
            f(c, values);
        }
    }
};

template <class T, int TEAM, int LANES, bool ADDS>
__global__ void __launch_bounds__(KN_THREADS, 3) layer_norm_kernel(KnCudaNorm n)
{
    const int64_t token = token_of_team<TEAM>();
    if (token >= n.tokens)
        return;
    const int64_t row = row_of(n, token), start = token * n.columns;
    T *y = (T *)n.y + start;
    Row<T, TEAM, LANES> x;
    x.x = (const T *)(ADDS ? n.residual : n.x) + start;
    x.columns = (int)n.columns;
    if constexpr (ADDS)
        x.add((const T *)n.x + start, (const T *)n.branch + start, n.gate + row * n.columns);
    else
        x.read();
    float sum = 0;
    x.each([&](int, float(&v)[LANES]) { sum += total(v); });
    const float mean = team_sum<TEAM>(sum) / (float)n.columns;
    sum = 0;
    x.each([&](int, float(&v)[LANES]) {
#pragma unroll
        for (int k = 0; k < LANES; k++)
            sum += (v[k] - mean) * (v[k] - mean);
    });
    const float rstd = rsqrtf(team_sum<TEAM>(sum) / (float)n.columns + n.eps);
    if (leads_team<TEAM>() && n.stats) {
        n.stats[2 * token] = mean;
        n.stats[2 * token + 1] = rstd;
    }
    x.each([&](int c, float(&v)[LANES]) {
        float factor[LANES], term[LANES];
        read_factor<LANES>(n, row, c, factor);
        read_term<LANES>(n, row, c, term);
#pragma unroll
        for (int k = 0; k < LANES; k++)
            v[k] = (v[k] - mean) * rstd * factor[k] + term[k];
        kn_write<LANES>(y + c, v);
    });
}

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
        kn_write<LANES>((T *)n.y + (TURNS ? kn_grouped(n.tokens, n.group, token, c) : token * n.columns + c), v);
    });
}

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
    const bool heads_fit = !n.rope.table || n.rope.head % lanes == 0; /* and groups are of whole heads */
    return n.columns % lanes == 0 && heads_fit && kn_aligned(n.x, n.y) && kn_aligned(n.weight, n.bias) &&
           kn_aligned(n.scale, n.shift) && kn_aligned(n.branch, n.gate, n.residual);
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
#define LAYER_NORM(T, TEAM, LANES) layer_norm_kernel<T, TEAM, LANES, false>
#define LAYER_NORM_OF_SUM(T, TEAM, LANES) layer_norm_kernel<T, TEAM, LANES, true>
#define RMS_NORM(T, TEAM, LANES) rms_norm_kernel<T, TEAM, LANES, false>
#define RMS_NORM_TURNED(T, TEAM, LANES) rms_norm_kernel<T, TEAM, LANES, true>
#define SQUARES(T, TEAM, LANES) squares_kernel<T, TEAM, LANES>
#define SQUARES_BACKWARD(T, TEAM, LANES) squares_backward_kernel<T, TEAM, LANES>
KN_NORM(layer_norm, LAYER_NORM)
KN_NORM(layer_norm_of_sum, LAYER_NORM_OF_SUM)
KN_NORM(rms_norm, RMS_NORM)
KN_NORM(rms_norm_turned, RMS_NORM_TURNED)
KN_NORM(squares, SQUARES)
KN_NORM(squares_backward, SQUARES_BACKWARD)

/* ---- backward: core/cuda/row_pass.h ---- */

struct LayerNormPass : KnPass {
    static constexpr int averages = 2;
    static __device__ __forceinline__ KnPassToken token(const KnRowPass &s, int64_t token)
    {
        return {s.stats[2 * token], s.stats[2 * token + 1], 0, 0};
    }
    static __device__ __forceinline__ float unit(const KnPassToken &t, float x)
    {
        return (x - t.mean) * t.rstd;
    }
    static __device__ __forceinline__ float slope(const KnPassToken &t, float h, float u)
    {
        return t.rstd * (h - t.mean_h - u * t.mean_hu);
    }
};

/* dx = rstd (h - u mean(h u)), and the sum of dx, which is the gradient of a bias before the norm. */
struct RmsNormPass : KnPass {
    static constexpr int averages = 1;
    static constexpr bool joins = true;
    static __device__ __forceinline__ KnPassToken token(const KnRowPass &s, int64_t token)
    {
        return {0, s.stats[token], 0, 0};
    }
    static __device__ __forceinline__ float unit(const KnPassToken &t, float x)
    {
        return x * t.rstd;
    }
    static __device__ __forceinline__ float slope(const KnPassToken &t, float h, float u)
    {
        return t.rstd * (h - u * t.mean_hu);
    }
    static __device__ __forceinline__ float summand(int which, float g, float u, float dx)
    {
        return which == 0 ? g * u : dx;
    }
};

/* Where the squares were given: dx = rstd h, dsquares = -rstd^2 mean(h u) / 2. */
struct RmsNormSplitPass : RmsNormPass {
    static constexpr int results = 1;
    static __device__ __forceinline__ float slope(const KnPassToken &t, float h, float)
    {
        return t.rstd * h;
    }
};

struct RmsNormTurnedPass : RmsNormPass {
    static constexpr bool turns = true;
};

struct RmsNormSplitTurnedPass : RmsNormSplitPass {
    static constexpr bool turns = true;
};

KnRowPass backward_of(const KnCudaNorm &n, const float *factor, int64_t rows, float one)
{
    KnRowPass pass = {};
    pass.tokens = n.tokens;
    pass.rows = rows;
    pass.columns = n.columns;
    pass.total_columns = n.total_columns;
    pass.x = n.x;
    pass.grad = n.grad;
    pass.added = n.added;
    pass.dx = n.y;
    pass.factor = factor;
    pass.one = one;
    pass.stats = n.stats;
    pass.row_of = n.row_of;
    pass.dsquares = n.dsquares;
    pass.sums[0] = n.sums[0];
    pass.sums[1] = n.sums[1];
    pass.rope = n.rope;
    pass.group = n.group;
    pass.workspace = n.workspace;
    pass.fault = n.fault;
    return pass;
}

} // namespace

cudaError_t kn_cuda_layer_norm(int bf16, const KnCudaNorm *n, cudaStream_t stream)
{
    return n->branch ? layer_norm_of_sum(bf16, *n, stream) : layer_norm(bf16, *n, stream);
}

cudaError_t kn_cuda_layer_norm_backward(int bf16, const KnCudaNorm *n, cudaStream_t stream)
{
    const KnRowPass pass = n->scale ? backward_of(*n, n->scale, n->scale_rows, 1) : backward_of(*n, n->weight, 1, 0);
    return kn_row_pass<LayerNormPass>(bf16, pass, stream);
}

cudaError_t kn_cuda_rms_norm(int bf16, const KnCudaNorm *n, cudaStream_t stream)
{
    return n->rope.table ? rms_norm_turned(bf16, *n, stream) : rms_norm(bf16, *n, stream);
}

cudaError_t kn_cuda_rms_norm_backward(int bf16, const KnCudaNorm *n, cudaStream_t stream)
{
    const KnRowPass pass = backward_of(*n, n->weight, 1, 0);
    if (n->rope.table)
        return n->split ? kn_row_pass<RmsNormSplitTurnedPass>(bf16, pass, stream)
                        : kn_row_pass<RmsNormTurnedPass>(bf16, pass, stream);
    return n->split ? kn_row_pass<RmsNormSplitPass>(bf16, pass, stream) : kn_row_pass<RmsNormPass>(bf16, pass, stream);
}

cudaError_t kn_cuda_row_squares(int bf16, const KnCudaNorm *n, cudaStream_t stream)
{
    return squares(bf16, *n, stream);
}

cudaError_t kn_cuda_row_squares_backward(int bf16, const KnCudaNorm *n, cudaStream_t stream)
{
    return squares_backward(bf16, *n, stream);
}
