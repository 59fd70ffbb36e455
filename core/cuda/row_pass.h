/* The backward of norms, gates and activations in one pass: the gradient of x, and what is summed over tokens while x
 * and the gradient are in registers. Only in kernels. With u = (x - mean) rstd and h = grad factor of the token's row:
 *
 *     dx = rstd (h - mean(h) - u mean(h u)) + added;    of the tokens of a row, the sums of grad u and of grad
 *
 * which is layer norm's. Others lack some of it, or sum dx over all rows: that is for P to say, see KnPass.
 *
 * A block has a slab of the tokens and goes over it once for each row that occurs there, which is once for the tokens
 * of one clip; a thread has 8 columns (4 where they are read one by one), for all of the slab, and adds in the order of
 * the tokens. The slabs' sums are then added in theirs. A token that names no row is reported, gets dx as of row 0, and
 * is left out of the sums.
 *
 * Norms of rows of more columns than a block's threads have are read twice, and their sums wait in the workspace. */
#ifndef KN_CUDA_ROW_PASS_H
#define KN_CUDA_ROW_PASS_H

#include "core/cuda/rope.h"
#include "core/cuda/row_sum.h"
#include "core/cuda/tensor_core.h"

#include <limits.h>

/* What is not there is NULL. */
struct KnRowPass {
    int64_t tokens, rows, columns, total_columns; /* total: of which mean(h u) is */
    const void *x, *grad;                         /* [tokens, columns], as what follows */
    const void *added;
    void *dx;
    const float *factor; /* [rows, columns], and `one` is added; NULL: 1 */
    float one;
    const float *stats;    /* [tokens, 2] of mean and rstd, or [tokens] of rstd */
    const int32_t *row_of; /* [tokens]; NULL: all of row 0 */
    float *dsquares;       /* [tokens]: of split RMS norm */
    float *sums[2];
    KnCudaRope rope; /* with P::turns; then the gradient's columns lie in groups of `group` */
    int64_t group;
    int slabs;
    float *workspace;
    KnCudaFault *fault;
};

struct KnPassToken {
    float mean, rstd, mean_h, mean_hu;
};

/* A pass that scales the gradient by the factor; P is such a struct, with what is different. */
struct KnPass {
    static constexpr int averages = 0;   /* over a token's columns: 1: of h u; 2: of h too */
    static constexpr int results = 2;    /* sums */
    static constexpr bool joins = false; /* the last of them is over all rows */
    static constexpr bool turns = false; /* the gradient, as kn_rope does it, before all else */
    static __device__ __forceinline__ KnPassToken token(const KnRowPass &, int64_t)
    {
        return {};
    }
    static __device__ __forceinline__ float unit(const KnPassToken &, float x)
    {
        return x;
    }
    static __device__ __forceinline__ float slope(const KnPassToken &, float h, float)
    {
        return h;
    }
    /* What is added to result `which`. */
    static __device__ __forceinline__ float summand(int which, float g, float u, float)
    {
        return which == 0 ? g * u : g;
    }
};

/* ---- one row ---- */

/* How many columns a thread has. */
static constexpr __host__ __device__ int kn_pass_columns(bool wide)
{
    return wide ? KN_PASS_COLUMNS : KN_PASS_COLUMNS / 2;
}

/* LANES columns of an operand as they lie in memory: sixteen bytes or one element. */
template <class T, int LANES> struct KnVector {
    uint4 raw;
    __device__ __forceinline__ void read(const T *from)
    {
        raw = *reinterpret_cast<const uint4 *>(from);
    }
    __device__ __forceinline__ void write(T *to) const
    {
        *reinterpret_cast<uint4 *>(to) = raw;
    }
    __device__ __forceinline__ void clear()
    {
        raw = make_uint4(0, 0, 0, 0);
    }
    /* What was found from it is found anew, where it would else stay in registers, in float. */
    __device__ __forceinline__ void renew()
    {
        raw.x = (unsigned)kn_fresh((int)raw.x);
        raw.y = (unsigned)kn_fresh((int)raw.y);
        raw.z = (unsigned)kn_fresh((int)raw.z);
        raw.w = (unsigned)kn_fresh((int)raw.w);
    }
    __device__ __forceinline__ float value(int lane) const
    {
        return kn_widen(reinterpret_cast<const T *>(&raw)[lane]);
    }
    __device__ __forceinline__ void put(int lane, float value)
    {
        reinterpret_cast<T *>(&raw)[lane] = kn_narrow<T>(value);
    }
};

template <class T> struct KnVector<T, 1> {
    T raw;
    __device__ __forceinline__ void read(const T *from)
    {
        raw = *from;
    }
    __device__ __forceinline__ void write(T *to) const
    {
        *to = raw;
    }
    __device__ __forceinline__ void clear()
    {
        raw = kn_narrow<T>(0.0f);
    }
    __device__ __forceinline__ void renew()
    {
    }
    __device__ __forceinline__ float value(int) const
    {
        return kn_widen(raw);
    }
    __device__ __forceinline__ void put(int, float value)
    {
        raw = kn_narrow<T>(value);
    }
};

template <int LANES>
__device__ __forceinline__ void kn_pass_factor(const KnRowPass &s, int row, int64_t column, float (&factor)[LANES])
{
    if (s.factor)
        kn_read_floats<LANES>(s.factor + row * s.columns + column, factor);
#pragma unroll
    for (int k = 0; k < LANES; k++)
        factor[k] = s.factor ? s.one + factor[k] : 1.0f;
}

enum { KN_OTHERS, KN_WILD, KN_COUNTED };

/* What a token is to the row. */
__device__ __forceinline__ int kn_pass_role(const KnRowPass &s, int token, int row)
{
    if (!s.row_of)
        return KN_COUNTED;
    const int named = s.row_of[token];
    if (named == row)
        return KN_COUNTED;
    return row == 0 && (named < 0 || named >= s.rows) ? KN_WILD : KN_OTHERS;
}

/* The rows between which those of the block's tokens are. */
static __device__ __forceinline__ KnRowRange kn_rows_of_slab(const KnRowPass &s, int begin, int end)
{
    __shared__ KnRowRange of_warps[KN_PASS_MOST_THREADS / 32];
    KnRowRange range = {s.row_of ? INT_MAX : 0, s.row_of ? -1 : 0};
    if (!s.row_of)
        return range;
    for (int token = begin + (int)threadIdx.x; token < end; token += (int)blockDim.x) {
        int row = s.row_of[token];
        if (row < 0 || row >= s.rows) {
            if (blockIdx.y == 0)
                kn_report(s.fault, KN_CUDA_WILD_INDEX, token, row, s.rows);
            row = 0;
        }
        range.first = row < range.first ? row : range.first;
        range.last = row > range.last ? row : range.last;
    }
#pragma unroll
    for (int offset = 16; offset; offset /= 2) {
        const int first = __shfl_xor_sync(0xffffffffu, range.first, offset),
                  last = __shfl_xor_sync(0xffffffffu, range.last, offset);
        range.first = first < range.first ? first : range.first;
        range.last = last > range.last ? last : range.last;
    }
    if (threadIdx.x % 32 == 0)
        of_warps[threadIdx.x / 32] = range;
    __syncthreads();
    for (unsigned i = 0; i < blockDim.x / 32; i++) {
        range.first = of_warps[i].first < range.first ? of_warps[i].first : range.first;
        range.last = of_warps[i].last > range.last ? of_warps[i].last : range.last;
    }
    return range;
}

/* Sums over the block's threads, to all of them, always in the same order. All threads must call it, with `turn` 0 and
 * 1 in turns: what the call before left may still be read. */
template <int COUNT> __device__ __forceinline__ void kn_pass_sums(float (&values)[COUNT], int turn)
{
    __shared__ float of_warps[2][KN_PASS_MOST_THREADS / 32][COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        values[i] = kn_warp_sum(values[i]);
    if (threadIdx.x % 32 == 0)
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            of_warps[turn][threadIdx.x / 32][i] = values[i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        values[i] = 0;
#pragma unroll 2
    for (unsigned warp = 0; warp < blockDim.x / 32; warp++)
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            values[i] += of_warps[turn][warp][i];
}

/* A token's sums over its row become what dx needs of them. */
template <class P>
__device__ __forceinline__ void kn_pass_average(const KnRowPass &s, int token, const float *sums, KnPassToken &t)
{
    if (P::averages > 1)
        t.mean_h = sums[0] / (float)s.columns;
    t.mean_hu = sums[P::averages - 1] / (float)s.total_columns;
    if (s.dsquares && threadIdx.x == 0)
        s.dsquares[token] = -0.5f * t.rstd * t.rstd * t.mean_hu;
}

template <class P> __device__ __forceinline__ int64_t kn_place_of_gradient(const KnRowPass &s, int64_t token, int64_t c)
{
    return P::turns ? kn_grouped(s.tokens, s.group, token, c) : token * s.columns + c;
}

/* The tokens that a block has under way together. */
template <class P, class T, int LANES> struct KnPassTokens {
    static constexpr int columns = kn_pass_columns(LANES > 1), vectors = columns / LANES,
                         at_once = LANES > 1 ? KN_PASS_BYTES_AT_ONCE / (KN_VECTOR_BYTES * vectors) : 1;
    KnVector<T, LANES> x[at_once][vectors], grad[at_once][vectors];
    KnPassToken t[at_once];
    int role[at_once];

    /* Is any of them the row's? */
    __device__ __forceinline__ bool find(const KnRowPass &s, int token, int end, int row)
    {
        int any = 0;
#pragma unroll
        for (int i = 0; i < at_once; i++) {
            role[i] = token + i < end ? kn_pass_role(s, token + i, row) : KN_OTHERS;
            any |= role[i];
        }
        return any;
    }

    /* A thread's vectors are `apart` columns from each other. */
    __device__ __forceinline__ void read(const KnRowPass &s, int token, int column, int apart)
    {
#pragma unroll
        for (int i = 0; i < at_once; i++) {
#pragma unroll
            for (int v = 0; v < vectors; v++) {
                const int c = column + v * apart;
                if (role[i] && c < s.columns) {
                    x[i][v].read((const T *)s.x + (token + i) * s.columns + c);
                    grad[i][v].read((const T *)s.grad + kn_place_of_gradient<P>(s, token + i, c));
                } else {
                    x[i][v].clear();
                    grad[i][v].clear();
                }
            }
            t[i] = role[i] ? P::token(s, token + i) : KnPassToken{};
        }
    }

    /* Rounded as if another pass had written it. */
    __device__ __forceinline__ void turn(const KnRowPass &s, int token, int column, int apart)
    {
#pragma unroll
        for (int i = 0; i < at_once; i++) {
            if (!role[i])
                continue;
            const KnAngles angles = kn_angles_of(s.rope, token + i);
#pragma unroll
            for (int v = 0; v < vectors; v++) {
                const int c = column + v * apart;
                float g[LANES];
                if (c >= s.columns)
                    continue;
#pragma unroll
                for (int k = 0; k < LANES; k++)
                    g[k] = grad[i][v].value(k);
                kn_turn(s.rope, angles, c, g,
                        [&] { return kn_widen(((const T *)s.grad)[kn_place_of_gradient<P>(s, token + i, c ^ 1)]); });
#pragma unroll
                for (int k = 0; k < LANES; k++)
                    grad[i][v].put(k, g[k]);
            }
        }
    }

    __device__ __forceinline__ void average(const KnRowPass &s, int token, int row, int column, int apart, int turn)
    {
        constexpr int count = P::averages;
        float sums[at_once * count] = {};
#pragma unroll
        for (int v = 0; v < vectors; v++) {
            float factor[LANES];
            if (column + v * apart >= s.columns)
                continue;
            kn_pass_factor<LANES>(s, row, column + v * apart, factor);
#pragma unroll
            for (int i = 0; i < at_once; i++)
#pragma unroll
                for (int k = 0; k < LANES; k++) {
                    const float h = grad[i][v].value(k) * factor[k];
                    if (P::averages > 1)
                        sums[i * count] += h;
                    sums[i * count + count - 1] += h * P::unit(t[i], x[i][v].value(k));
                }
        }
        kn_pass_sums(sums, turn);
#pragma unroll
        for (int i = 0; i < at_once; i++) {
            if (role[i])
                kn_pass_average<P>(s, token + i, sums + i * count, t[i]);
#pragma unroll
            for (int v = 0; v < vectors; v++) {
                x[i][v].renew();
                grad[i][v].renew();
            }
        }
    }

    /* Writes dx and adds to the thread's sums. */
    __device__ __forceinline__ void finish(const KnRowPass &s, int token, int row, int column, int apart,
                                           float (&sums)[P::results][columns])
    {
#pragma unroll
        for (int v = 0; v < vectors; v++) {
            const int c = column + v * apart;
            if (c >= s.columns)
                continue;
#pragma unroll
            for (int i = 0; i < at_once; i++) {
                const int64_t at = (token + i) * s.columns + c;
                float factor[LANES], dx[LANES], added[LANES] = {};
                if (!role[i])
                    continue;
                kn_pass_factor<LANES>(s, row, c, factor);
                if (s.added)
                    kn_read<LANES>((const T *)s.added + at, added);
#pragma unroll
                for (int k = 0; k < LANES; k++) {
                    const float g = grad[i][v].value(k), u = P::unit(t[i], x[i][v].value(k));
                    dx[k] = P::slope(t[i], g * factor[k], u);
#pragma unroll
                    for (int which = 0; which < P::results; which++)
                        if (role[i] == KN_COUNTED)
                            sums[which][v * LANES + k] += P::summand(which, g, u, dx[k]);
                    dx[k] += added[k];
                }
                if (s.dx)
                    kn_write<LANES>((T *)s.dx + at, dx);
            }
        }
    }
};

/* ---- the kernels: blocks are (slab, tile of columns) ---- */

__device__ __forceinline__ int kn_slab_begin(const KnRowPass &s, int64_t slab)
{
    return (int)(s.tokens * slab / s.slabs);
}

__device__ __forceinline__ float *kn_slab_sums(const KnRowPass &s, int which, int slab, int row)
{
    return s.workspace + (((int64_t)which * s.slabs + slab) * s.rows + row) * s.columns;
}

__device__ __forceinline__ void kn_put_range(const KnRowPass &s, int slab, const KnRowRange &range)
{
    if ((s.sums[0] || s.sums[1]) && threadIdx.x == 0 && blockIdx.y == 0)
        kn_slab_ranges(s.workspace, s.slabs, s.rows, s.columns)[slab] = range;
}

template <class P, class T, int LANES>
static __global__ void __launch_bounds__(KN_PASS_MOST_THREADS, 1) kn_row_pass_kernel(KnRowPass s)
{
    using Tokens = KnPassTokens<P, T, LANES>;
    const int slab = (int)blockIdx.x, begin = kn_slab_begin(s, slab), end = kn_slab_begin(s, slab + 1);
    const int apart = (int)blockDim.x * LANES,
              column = (int)blockIdx.y * Tokens::vectors * apart + (int)threadIdx.x * LANES;
    const KnRowRange range = kn_rows_of_slab(s, begin, end);
    int turn = 0;
    for (int row = range.first; row <= range.last; row++) {
        float sums[P::results][Tokens::columns] = {};
        for (int token = begin; token < end; token += Tokens::at_once) {
            Tokens tokens;
            if (!tokens.find(s, token, end, row))
                continue;
            tokens.read(s, token, column, apart);
            if constexpr (P::turns)
                tokens.turn(s, token, column, apart);
            if constexpr (P::averages > 0)
                tokens.average(s, token, row, column, apart, turn ^= 1);
            tokens.finish(s, token, row, column, apart, sums);
        }
#pragma unroll
        for (int which = 0; which < P::results; which++)
#pragma unroll
            for (int v = 0; v < Tokens::vectors; v++) {
                const int c = column + v * apart;
                if (s.sums[which] && c < s.columns)
                    kn_write_floats<LANES>(kn_slab_sums(s, which, slab, row) + c, sums[which] + v * LANES);
            }
    }
    kn_put_range(s, slab, range);
}

/* The same for rows of any length, one element at a time. */
template <class P, class T>
static __global__ void __launch_bounds__(KN_PASS_MOST_THREADS, 1) kn_long_row_pass_kernel(KnRowPass s)
{
    const int slab = (int)blockIdx.x, begin = kn_slab_begin(s, slab), end = kn_slab_begin(s, slab + 1);
    const KnRowRange range = kn_rows_of_slab(s, begin, end);
    int turn = 0;
    for (int row = range.first; row <= range.last; row++) {
#pragma unroll
        for (int which = 0; which < P::results; which++)
            for (int64_t c = threadIdx.x; s.sums[which] && c < s.columns; c += blockDim.x)
                kn_slab_sums(s, which, slab, row)[c] = 0;
        for (int token = begin; token < end; token++) {
            const int role = kn_pass_role(s, token, row);
            if (!role)
                continue;
            const T *x = (const T *)s.x + token * s.columns;
            const auto read = [&](int64_t c) {
                return kn_widen(((const T *)s.grad)[kn_place_of_gradient<P>(s, token, c)]);
            };
            const KnAngles angles = P::turns ? kn_angles_of(s.rope, token) : KnAngles{};
            const auto gradient = [&](int64_t c) {
                float g[1] = {read(c)};
                if constexpr (P::turns)
                    kn_turn(s.rope, angles, c, g, [&] { return read(c ^ 1); });
                return g[0];
            };
            KnPassToken t = P::token(s, token);
            float averages[P::averages] = {};
            for (int64_t c = threadIdx.x; c < s.columns; c += blockDim.x) {
                float factor[1];
                kn_pass_factor<1>(s, row, c, factor);
                const float h = gradient(c) * factor[0];
                if (P::averages > 1)
                    averages[0] += h;
                averages[P::averages - 1] += h * P::unit(t, kn_widen(x[c]));
            }
            kn_pass_sums(averages, turn ^= 1);
            kn_pass_average<P>(s, token, averages, t);
            for (int64_t c = threadIdx.x; c < s.columns; c += blockDim.x) {
                float factor[1];
                kn_pass_factor<1>(s, row, c, factor);
                const float g = gradient(c), u = P::unit(t, kn_widen(x[c]));
                const float dx = P::slope(t, g * factor[0], u);
#pragma unroll
                for (int which = 0; which < P::results; which++)
                    if (s.sums[which] && role == KN_COUNTED)
                        kn_slab_sums(s, which, slab, row)[c] += P::summand(which, g, u, dx);
                if (s.dx)
                    ((T *)s.dx)[token * s.columns + c] =
                        kn_narrow<T>(dx + (s.added ? kn_widen(((const T *)s.added)[token * s.columns + c]) : 0.0f));
            }
        }
    }
    kn_put_range(s, slab, range);
}

/* ---- launching ---- */

template <class P, class T> static void kn_launch_row_pass(const KnRowPass &s, cudaStream_t stream)
{
    constexpr int lanes = KnLanes<T>::count;
    const bool heads_fit = !P::turns || s.rope.head % lanes == 0;
    const bool wide =
        s.columns % lanes == 0 && heads_fit && kn_aligned(s.x, s.grad, s.dx) && kn_aligned(s.added, s.factor);
    const int64_t each = kn_pass_columns(wide), needed = s.columns ? (s.columns + each - 1) / each : 1;
    const int64_t tiles = P::averages > 0 ? 1 : (needed + KN_PASS_TILE_THREADS - 1) / KN_PASS_TILE_THREADS;
    const int64_t threads = ((needed + tiles - 1) / tiles + 31) / 32 * 32;
    const dim3 grid((unsigned)s.slabs, (unsigned)tiles);
    if constexpr (P::averages > 0)
        if (threads > KN_PASS_MOST_THREADS) {
            KN_LAUNCH((kn_long_row_pass_kernel<P, T>), grid, KN_PASS_MOST_THREADS, 0, stream, s);
            return;
        }
    if (wide)
        KN_LAUNCH((kn_row_pass_kernel<P, T, lanes>), grid, (unsigned)threads, 0, stream, s);
    else
        KN_LAUNCH((kn_row_pass_kernel<P, T, 1>), grid, (unsigned)threads, 0, stream, s);
}

template <class P> static cudaError_t kn_row_pass(int bf16, KnRowPass s, cudaStream_t stream)
{
    const bool sums = s.sums[0] || s.sums[1];
    if (s.rows == 0 || (s.columns == 0 && !s.dsquares) || (s.tokens == 0 && !sums))
        return cudaSuccess;
    s.slabs = kn_cuda_row_pass_slabs(s.tokens, s.rows, s.columns);
    if (bf16)
        kn_launch_row_pass<P, __nv_bfloat16>(s, stream);
    else
        kn_launch_row_pass<P, float>(s, stream);
    cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess || !sums || s.columns == 0)
        return error;
    const KnRowRange *ranges = kn_slab_ranges(s.workspace, s.slabs, s.rows, s.columns);
    return kn_add_slabs({s.workspace, ranges, s.slabs, s.rows, s.columns, {s.sums[0], s.sums[1]}, 0, P::joins ? 2 : 0},
                        P::results, stream);
}

#endif
