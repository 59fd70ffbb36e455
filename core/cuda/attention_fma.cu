/* Attention in float32, without tensor cores: for float32 operands, and for bfloat16 where rows cannot be read sixteen
 * bytes at a time. Heads of any size up to 256.
 *
 * A block of 16 x 16 threads has a tile of ROWS rows a thread on one side and passes over tiles of OTHERS rows of the
 * other side. All tiles lie in shared memory as float32. Two products are all there is: `multiply` gives each thread
 * the scores of its rows with every sixteenth of the others, `accumulate` adds weighted rows to sums of which it has
 * every sixteenth column. Source: Dao, "FlashAttention-2", 2023. */
#include "core/cuda/attention.h"

namespace
{

constexpr int SIDE = 16, OTHERS = 32, COLUMNS = OTHERS / SIDE;

/* Of heads of up to D columns. */
template <int D> struct Shape {
    static constexpr int rows = D <= 128 ? 4 : 2, tile = SIDE * rows; /* a thread's, a block's */
    static constexpr int sums = D / SIDE;                             /* columns that a thread sums up */
    static constexpr int row = D + 4, weights = OTHERS + 4;           /* floats of a row in shared memory */
    static constexpr int own = tile * row, other = OTHERS * row;      /* floats of a tile of either side, ... */
    static constexpr int square = tile * weights;                     /* ... and of one of weights */
};

/* A thread's place: its rows are y * rows + i, its columns x + SIDE * j. */
__device__ __forceinline__ int place_x()
{
    return (int)threadIdx.x % SIDE;
}

__device__ __forceinline__ int place_y()
{
    return (int)threadIdx.x / SIDE;
}

/* Rows [first, first + count) of one head as float32, the rest of `rows` zeros; columns are filled up to fours. */
template <int LANES, class T>
__device__ __forceinline__ void load_lanes(float *tile, int stride, int rows, const T *x, int64_t first, int count,
                                           int64_t width, int size)
{
    const int pieces = (size + 3) / 4 * 4 / LANES;
    for (int i = (int)threadIdx.x; i < rows * pieces; i += KN_THREADS) {
        const int row = i / pieces, c = i % pieces * LANES;
        float values[LANES] = {};
        if (row < count && c < size)
            kn_read<LANES>(x + (first + row) * width + c, values);
#pragma unroll
        for (int k = 0; k < LANES; k++)
            tile[row * stride + c + k] = values[k];
    }
}

template <class T>
__device__ __forceinline__ void load(float *tile, int stride, int rows, const KnCudaAttention &a, const void *x,
                                     int64_t first, int count)
{
    const int size = (int)a.size;
    const T *head = (const T *)x + (int64_t)blockIdx.y * size;
    constexpr int lanes = KnLanes<T>::count;
    if (size % lanes == 0 && (reinterpret_cast<uintptr_t>(x) & 15) == 0)
        load_lanes<lanes>(tile, stride, rows, head, first, count, a.heads * size, size);
    else
        load_lanes<1>(tile, stride, rows, head, first, count, a.heads * size, size);
}

/* products[i][j] = the thread's row i of `own` times its row j of `other` */
template <int D>
__device__ __forceinline__ void multiply(const float *own, const float *other, int size,
                                         float (&products)[Shape<D>::rows][COLUMNS])
{
    using S = Shape<D>;
    const float *a = own + place_y() * S::rows * S::row, *b = other + place_x() * S::row;
#pragma unroll
    for (int i = 0; i < S::rows; i++)
#pragma unroll
        for (int j = 0; j < COLUMNS; j++)
            products[i][j] = 0;
    for (int c = 0; c < size; c += 4) {
        float x[S::rows][4], y[COLUMNS][4];
#pragma unroll
        for (int i = 0; i < S::rows; i++)
            kn_load(a + i * S::row + c, x[i]);
#pragma unroll
        for (int j = 0; j < COLUMNS; j++)
            kn_load(b + j * SIDE * S::row + c, y[j]);
#pragma unroll
        for (int i = 0; i < S::rows; i++)
#pragma unroll
            for (int j = 0; j < COLUMNS; j++)
#pragma unroll
                for (int k = 0; k < 4; k++)
                    products[i][j] += x[i][k] * y[j][k];
    }
}

/* sums[i][c] += weights of the thread's row i times column c of `other` */
template <int D>
__device__ __forceinline__ void accumulate(const float *weights, const float *other,
                                           float (&sums)[Shape<D>::rows][Shape<D>::sums])
{
    using S = Shape<D>;
    const float *w = weights + place_y() * S::rows * S::weights, *x = other + place_x();
#pragma unroll 4
    for (int k = 0; k < OTHERS; k++)
#pragma unroll
        for (int c = 0; c < S::sums; c++) {
            const float value = x[k * S::row + c * SIDE];
#pragma unroll
            for (int i = 0; i < S::rows; i++)
                sums[i][c] += w[i * S::weights + k] * value;
        }
}

template <int D>
__device__ __forceinline__ void put_weights(float *weights, const float (&values)[Shape<D>::rows][COLUMNS])
{
    using S = Shape<D>;
#pragma unroll
    for (int i = 0; i < S::rows; i++)
#pragma unroll
        for (int j = 0; j < COLUMNS; j++)
            weights[(place_y() * S::rows + i) * S::weights + place_x() + j * SIDE] = values[i][j];
}

/* Writes the thread's sums, times `factor` of their row, to rows of a result. */
template <class T, int D>
__device__ __forceinline__ void write_sums(const KnCudaAttention &a, void *to, int64_t first, int64_t rows,
                                           const float (&sums)[Shape<D>::rows][Shape<D>::sums],
                                           const float (&factor)[Shape<D>::rows])
{
    using S = Shape<D>;
#pragma unroll
    for (int i = 0; i < S::rows; i++) {
        const int64_t row = first + place_y() * S::rows + i;
        const int64_t start = (row * a.heads + blockIdx.y) * a.size;
#pragma unroll
        for (int c = 0; c < S::sums; c++)
            if (row < rows && place_x() + c * SIDE < a.size)
                ((T *)to)[start + place_x() + c * SIDE] = kn_narrow<T>(sums[i][c] * factor[i]);
    }
}

/* The sum or the largest over the sixteen threads that have a row together. */
__device__ __forceinline__ float row_sum(float value)
{
#pragma unroll
    for (int offset = SIDE / 2; offset; offset /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, offset);
    return value;
}

__device__ __forceinline__ float row_top(float value)
{
#pragma unroll
    for (int offset = SIDE / 2; offset; offset /= 2)
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
    return value;
}

/* Is the block's row in the span? */
__device__ __forceinline__ bool has_row(const KnSpan &span, KnSide side, int64_t row)
{
    return row >= span.first[side] && row < (int64_t)span.first[side] + span.count[side];
}

__device__ __forceinline__ int at_most(int count, int most)
{
    return count < most ? count : most;
}

/* ---- forward ---- */

template <int D> struct Softmax {
    float out[Shape<D>::rows][Shape<D>::sums], top[Shape<D>::rows], sum[Shape<D>::rows];
};

/* Scores of `keys` keys become weights, and what was summed is brought to the new largest score. */
template <int D>
__device__ __forceinline__ void weigh(const KnCudaAttention &a, const KnSpan &span, int64_t first, int keys,
                                      float (&scores)[Shape<D>::rows][COLUMNS], Softmax<D> &s)
{
#pragma unroll
    for (int i = 0; i < Shape<D>::rows; i++) {
        const bool mine = has_row(span, KN_QUERIES, first + place_y() * Shape<D>::rows + i);
        float top = s.top[i];
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) {
            const bool seen = mine && place_x() + j * SIDE < keys;
            scores[i][j] = seen ? scores[i][j] * a.scale : -INFINITY;
            top = fmaxf(top, scores[i][j]);
        }
        top = row_top(top);
        const float base = top == -INFINITY ? 0.0f : top, correction = expf(s.top[i] - base);
        s.top[i] = top;
        s.sum[i] *= correction;
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) {
            scores[i][j] = expf(scores[i][j] - base);
            s.sum[i] += scores[i][j];
        }
#pragma unroll
        for (int c = 0; c < Shape<D>::sums; c++)
            s.out[i][c] *= correction;
    }
}

template <class T, int D> __global__ void __launch_bounds__(KN_THREADS, 1) forward_kernel(KnCudaAttention a)
{
    using S = Shape<D>;
    KN_DYNAMIC_SHARED(float, shared);
    float *q = shared, *other = q + S::own, *weights = other + S::other;
    const int64_t first = (int64_t)blockIdx.x * S::tile;
    Softmax<D> s = {};
    KnSpan span;
#pragma unroll
    for (int i = 0; i < S::rows; i++)
        s.top[i] = -INFINITY;
    load<T>(q, S::row, S::tile, a, a.q, first, (int)(a.queries - first < S::tile ? a.queries - first : S::tile));
    for (KnSpanSearch search(KN_QUERIES, (int)first, S::tile); search.next(a, span);)
        for (int key = 0; key < span.count[KN_KEYS]; key += OTHERS) {
            const int keys = at_most(span.count[KN_KEYS] - key, OTHERS);
            const int64_t row = span.first[KN_KEYS] + key;
            float scores[S::rows][COLUMNS];
            __syncthreads();
            load<T>(other, S::row, OTHERS, a, a.k, row, keys);
            __syncthreads();
            multiply<D>(q, other, (int)a.size, scores);
            weigh<D>(a, span, first, keys, scores, s);
            put_weights<D>(weights, scores);
            __syncthreads();
            load<T>(other, S::row, OTHERS, a, a.v, row, keys);
            __syncthreads();
            accumulate<D>(weights, other, s.out);
        }
    float factor[S::rows];
#pragma unroll
    for (int i = 0; i < S::rows; i++) {
        const int64_t query = first + place_y() * S::rows + i;
        const float sum = row_sum(s.sum[i]);
        factor[i] = sum > 0 ? 1 / sum : 0;
        if (query < a.queries && place_x() == 0)
            a.lse[blockIdx.y * a.queries + query] = sum > 0 ? s.top[i] + logf(sum) : -INFINITY;
    }
    write_sums<T, D>(a, a.out, first, a.queries, s.out, factor);
}

/* ---- backward ---- */

/* p = exp(scale score - lse), ds = p (dp - delta), of one query and key; zeros where they are not of one span. */
__device__ __forceinline__ void weigh_backward(const KnCudaAttention &a, bool seen, float lse, float delta,
                                               float &score, float &dp)
{
    score = seen ? expf(score * a.scale - lse) : 0.0f;
    dp = seen ? score * (dp - delta) : 0.0f;
}

template <class T, int D> __global__ void __launch_bounds__(KN_THREADS, 1) dq_kernel(KnCudaAttention a)
{
    using S = Shape<D>;
    KN_DYNAMIC_SHARED(float, shared);
    float *q = shared, *grad = q + S::own, *k = grad + S::own, *v = k + S::other, *weights = v + S::other;
    const int64_t first = (int64_t)blockIdx.x * S::tile;
    const int rows = (int)(a.queries - first < S::tile ? a.queries - first : S::tile);
    float dq[S::rows][S::sums] = {}, lse[S::rows], delta[S::rows], factor[S::rows];
    KnSpan span;
#pragma unroll
    for (int i = 0; i < S::rows; i++) {
        const int row = place_y() * S::rows + i;
        lse[i] = row < rows ? kn_lse_of(a, blockIdx.y)[first + row] : INFINITY;
        delta[i] = row < rows ? kn_delta_of(a, blockIdx.y)[first + row] : 0;
        factor[i] = a.scale;
    }
    load<T>(q, S::row, S::tile, a, a.q, first, rows);
    load<T>(grad, S::row, S::tile, a, a.grad_out, first, rows);
    for (KnSpanSearch search(KN_QUERIES, (int)first, S::tile); search.next(a, span);)
        for (int key = 0; key < span.count[KN_KEYS]; key += OTHERS) {
            const int keys = at_most(span.count[KN_KEYS] - key, OTHERS);
            const int64_t row = span.first[KN_KEYS] + key;
            float scores[S::rows][COLUMNS], ds[S::rows][COLUMNS];
            __syncthreads();
            load<T>(k, S::row, OTHERS, a, a.k, row, keys);
            load<T>(v, S::row, OTHERS, a, a.v, row, keys);
            __syncthreads();
            multiply<D>(q, k, (int)a.size, scores);
            multiply<D>(grad, v, (int)a.size, ds);
#pragma unroll
            for (int i = 0; i < S::rows; i++) {
                const bool mine = has_row(span, KN_QUERIES, first + place_y() * S::rows + i);
#pragma unroll
                for (int j = 0; j < COLUMNS; j++)
                    weigh_backward(a, mine && place_x() + j * SIDE < keys, lse[i], delta[i], scores[i][j], ds[i][j]);
            }
            put_weights<D>(weights, ds);
            __syncthreads();
            accumulate<D>(weights, k, dq);
        }
    write_sums<T, D>(a, a.dq, first, a.queries, dq, factor);
}

/* Rows are keys here, and columns queries. */
template <class T, int D> __global__ void __launch_bounds__(KN_THREADS, 1) dkv_kernel(KnCudaAttention a)
{
    using S = Shape<D>;
    KN_DYNAMIC_SHARED(float, shared);
    float *k = shared, *v = k + S::own, *q = v + S::own, *grad = q + S::other, *weights = grad + S::other;
    float *weights_ds = weights + S::square;
    const int64_t first = (int64_t)blockIdx.x * S::tile;
    const int rows = (int)(a.keys - first < S::tile ? a.keys - first : S::tile);
    float dk[S::rows][S::sums] = {}, dv[S::rows][S::sums] = {}, factor[S::rows];
    KnSpan span;
    load<T>(k, S::row, S::tile, a, a.k, first, rows);
    load<T>(v, S::row, S::tile, a, a.v, first, rows);
    for (KnSpanSearch search(KN_KEYS, (int)first, S::tile); search.next(a, span);)
        for (int query = 0; query < span.count[KN_QUERIES]; query += OTHERS) {
            const int queries = at_most(span.count[KN_QUERIES] - query, OTHERS);
            const int64_t row = span.first[KN_QUERIES] + query;
            float scores[S::rows][COLUMNS], ds[S::rows][COLUMNS];
            __syncthreads();
            load<T>(q, S::row, OTHERS, a, a.q, row, queries);
            load<T>(grad, S::row, OTHERS, a, a.grad_out, row, queries);
            __syncthreads();
            multiply<D>(k, q, (int)a.size, scores);
            multiply<D>(v, grad, (int)a.size, ds);
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) {
                const bool seen = place_x() + j * SIDE < queries;
                const int64_t at = row + place_x() + j * SIDE;
                const float lse = seen ? kn_lse_of(a, blockIdx.y)[at] : 0;
                const float delta = seen ? kn_delta_of(a, blockIdx.y)[at] : 0;
#pragma unroll
                for (int i = 0; i < S::rows; i++) {
                    const bool mine = has_row(span, KN_KEYS, first + place_y() * S::rows + i);
                    weigh_backward(a, mine && seen, lse, delta, scores[i][j], ds[i][j]);
                }
            }
            put_weights<D>(weights, scores);
            put_weights<D>(weights_ds, ds);
            __syncthreads();
            accumulate<D>(weights, grad, dv);
            accumulate<D>(weights_ds, q, dk);
        }
#pragma unroll
    for (int i = 0; i < S::rows; i++)
        factor[i] = 1;
    write_sums<T, D>(a, a.dv, first, a.keys, dv, factor);
#pragma unroll
    for (int i = 0; i < S::rows; i++)
        factor[i] = a.scale;
    write_sums<T, D>(a, a.dk, first, a.keys, dk, factor);
}

/* ---- launching ---- */

template <class T, int D> cudaError_t forward(const KnCudaAttention &a, cudaStream_t stream)
{
    using S = Shape<D>;
    return kn_launch_attention(forward_kernel<T, D>, kn_tiles(a.queries, S::tile, a.heads), KN_THREADS,
                               (S::own + S::other + S::square) * sizeof(float), a, stream);
}

template <class T, int D> cudaError_t backward(const KnCudaAttention &a, cudaStream_t stream)
{
    using S = Shape<D>;
    constexpr size_t both = 2 * S::own + 2 * S::other;
    if (cudaError_t error = kn_launch_attention(dq_kernel<T, D>, kn_tiles(a.queries, S::tile, a.heads), KN_THREADS,
                                                (both + S::square) * sizeof(float), a, stream))
        return error;
    return kn_launch_attention(dkv_kernel<T, D>, kn_tiles(a.keys, S::tile, a.heads), KN_THREADS,
                               (both + 2 * S::square) * sizeof(float), a, stream);
}

template <class T> cudaError_t forward_of(const KnCudaAttention &a, cudaStream_t stream)
{
    return a.size <= 64    ? forward<T, 64>(a, stream)
           : a.size <= 128 ? forward<T, 128>(a, stream)
                           : forward<T, 256>(a, stream);
}

template <class T> cudaError_t backward_of(const KnCudaAttention &a, cudaStream_t stream)
{
    return a.size <= 64    ? backward<T, 64>(a, stream)
           : a.size <= 128 ? backward<T, 128>(a, stream)
                           : backward<T, 256>(a, stream);
}

} // namespace

cudaError_t kn_attention_fma(int bf16, const KnCudaAttention &a, cudaStream_t stream)
{
    return bf16 ? forward_of<__nv_bfloat16>(a, stream) : forward_of<float>(a, stream);
}

cudaError_t kn_attention_fma_backward(int bf16, const KnCudaAttention &a, cudaStream_t stream)
{
    return bf16 ? backward_of<__nv_bfloat16>(a, stream) : backward_of<float>(a, stream);
}
