/* Matrix products without a library, where there is none. A block of eight warps has a tile of the result and passes
 * over k: bfloat16 on tensor cores, tiles of 128 x 128, while two slices of k are on their way; float32, and rows that
 * are no pieces of 16 bytes, by multiplying and adding, tiles of 64 x 64. Each element is summed by one thread, in the
 * order of k: the same bits in each run. */
#include "core/cuda/grid.h"
#include "core/cuda/tensor_core.h"
#include "core/cuda/vector.h"

#include <cmath>

namespace
{

typedef __nv_bfloat16 Bf16;

/* ---- which tile a block has ---- */

/* Tiles of a strip of the result before those of the next, so that what they have in common stays in the cache. */
constexpr int64_t STRIP = 16;

struct Place {
    int64_t row, column;
};

template <int TILE> __device__ __forceinline__ Place place_of_block(const KnCudaProduct &p)
{
    const int64_t down = (p.m + TILE - 1) / TILE, across = (p.n + TILE - 1) / TILE;
    const int64_t strip = blockIdx.x / (STRIP * across), within = blockIdx.x % (STRIP * across);
    const int64_t first = strip * STRIP, height = down - first < STRIP ? down - first : STRIP;
    return {(first + within % height) * TILE, within / height * TILE};
}

template <int TILE> dim3 tiles_of(const KnCudaProduct &p)
{
    return dim3((unsigned)((p.m + TILE - 1) / TILE * ((p.n + TILE - 1) / TILE)), 1, (unsigned)p.count);
}

/* ---- results ---- */

__device__ __forceinline__ float gelu(float x)
{
    return 0.5f * x * (1.0f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
}

/* Writes the element of a sum, where it is one. */
__device__ __forceinline__ void finish(const KnCudaProduct &p, int64_t row, int64_t column, float sum)
{
    if (row >= p.m || column >= p.n)
        return;
    const int64_t i = (blockIdx.z * p.m + row) * p.n + column;
    float value = p.alpha * sum;
    if (p.beta != 0)
        value += p.beta * kn_get(p.d, p.c_bf16, i);
    if (p.bias)
        value += kn_get(p.bias, p.c_bf16, column);
    kn_put(p.c, p.c_bf16, i, p.gelu ? gelu(value) : value);
}

/* The same of eight in a row, 16 bytes at a time: all are there. */
__device__ __forceinline__ void add_eight(const void *x, int bf16, int64_t i, float factor, float (&values)[8])
{
    float more[8];
    kn_get_eight(x, bf16, i, more);
#pragma unroll
    for (int j = 0; j < 8; j++)
        values[j] += factor * more[j];
}

__device__ __forceinline__ void finish_eight(const KnCudaProduct &p, int64_t row, int64_t column, const float *sums)
{
    if (row >= p.m || column >= p.n)
        return;
    const int64_t i = (blockIdx.z * p.m + row) * p.n + column;
    float values[8];
    kn_read_floats<8>(sums, values);
#pragma unroll
    for (int j = 0; j < 8; j++)
        values[j] *= p.alpha;
    if (p.beta != 0)
        add_eight(p.d, p.c_bf16, i, p.beta, values);
    if (p.bias)
        add_eight(p.bias, p.c_bf16, column, 1, values);
    if (p.gelu)
#pragma unroll
        for (int j = 0; j < 8; j++)
            values[j] = gelu(values[j]);
    kn_put_eight(p.c, p.c_bf16, i, values);
}

/* ---- bfloat16 ---- */

constexpr int SIDE = 128, DEPTH = 32, OPERAND = SIDE * DEPTH, STAGES = 3;
constexpr int M = 4, N = 4; /* fragments of a warp: 64 rows, 32 columns */
constexpr size_t SHARED_BYTES = STAGES * 2 * OPERAND * sizeof(Bf16);

/* An operand [own, k], or, not ALONG_K, stored as [k, own]; own are the rows of A or the columns of B. */
struct Operand {
    const Bf16 *x;
    int64_t own, k;
};

/* Where eight elements are in a slice of an operand, rows as they are stored: permuted so that eight rows of one column
 * lie in different banks. */
template <bool ALONG_K> __device__ __forceinline__ int place(int row, int piece)
{
    return ALONG_K ? row * DEPTH + (piece ^ (row / 2 & 3)) * 8 : row * SIDE + (piece ^ (row & 7)) * 8;
}

/* Begins to copy a slice; what is outside becomes zeros. Pieces of 16 bytes are whole and aligned. */
template <bool ALONG_K>
__device__ __forceinline__ void begin_slice(Bf16 *slice, const Operand &o, int64_t own, int64_t k)
{
    constexpr int pieces = (ALONG_K ? DEPTH : SIDE) / 8, rows = KN_THREADS / pieces;
    const int piece = (int)threadIdx.x % pieces;
    const int64_t height = ALONG_K ? o.own : o.k, width = ALONG_K ? o.k : o.own;
    const int64_t column = (ALONG_K ? k : own) + piece * 8;
#pragma unroll
    for (int i = 0; i < OPERAND / 8 / KN_THREADS; i++) {
        const int within = (int)threadIdx.x / pieces + i * rows;
        const int64_t row = (ALONG_K ? own : k) + within;
        Bf16 *to = slice + place<ALONG_K>(within, piece);
        const bool there = row < height && column < width;
        const Bf16 *from = there ? o.x + row * width + column : o.x;
        kn_copy_async16(to, from, there);
    }
}

/* Fragments of 16 rows of A from `own` on, sixteen of k. */
template <bool ALONG_K> __device__ __forceinline__ void load_a(uint32_t (&a)[4], Bf16 *slice, int own, int k)
{
    const int lane = (int)threadIdx.x % 32;
    if (ALONG_K)
        kn_ldmatrix(a, slice + place<true>(own + lane % 16, k / 8 + lane / 16));
    else
        kn_ldmatrix_transposed(a, slice + place<false>(k + lane / 16 * 8 + lane % 8, own / 8 + lane / 8 % 2));
}

/* Those of 16 columns of B: two of eight. */
template <bool ALONG_K> __device__ __forceinline__ void load_b(uint32_t (&b)[4], Bf16 *slice, int own, int k)
{
    const int lane = (int)threadIdx.x % 32;
    if (ALONG_K)
        kn_ldmatrix(b, slice + place<true>(own + lane / 16 * 8 + lane % 8, k / 8 + lane / 8 % 2));
    else
        kn_ldmatrix_transposed(b, slice + place<false>(k + lane % 16, own / 8 + lane / 16));
}

template <bool A_ALONG_K, bool B_ALONG_K>
__device__ __forceinline__ void multiply_slices(Bf16 *a_slice, Bf16 *b_slice, float (&sums)[M][N][4])
{
    const int warp = (int)threadIdx.x / 32, row = warp / 4 * M * 16, column = warp % 4 * N * 8;
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
        uint32_t a[M][4], b[4];
#pragma unroll
        for (int m = 0; m < M; m++)
            load_a<A_ALONG_K>(a[m], a_slice, row + m * 16, k);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            load_b<B_ALONG_K>(b, b_slice, column + n * 8, k);
#pragma unroll
            for (int m = 0; m < M; m++) {
                kn_mma(sums[m][n], a[m], b[0], b[1]);
                kn_mma(sums[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

/* Writes the warp's sums, by way of shared memory, where each lane then finds eight neighbours. */
__device__ __forceinline__ void finish_warp(const KnCudaProduct &p, const Place &tile, float *shared,
                                            const float (&sums)[M][N][4], bool wide)
{
    constexpr int row_floats = N * 8 + 4;
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const int64_t column = tile.column + warp % 4 * N * 8 + lane % 4 * 8;
    float *own = shared + warp * 16 * row_floats;
#pragma unroll
    for (int m = 0; m < M; m++) {
        __syncwarp();
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                own[(lane / 4 + i / 2 * 8) * row_floats + n * 8 + lane % 4 * 2 + i % 2] = sums[m][n][i];
        __syncwarp();
#pragma unroll 1
        for (int within = lane / 4; within < 16; within += 8) {
            const int64_t row = tile.row + (warp / 4 * M + m) * 16 + within;
            const float *eight = own + within * row_floats + lane % 4 * 8;
            if (wide)
                finish_eight(p, row, column, eight);
            else
#pragma unroll 1
                for (int j = 0; j < 8; j++)
                    finish(p, row, column + j, eight[j]);
        }
    }
}

template <bool A_ALONG_K, bool B_ALONG_K>
__global__ void __launch_bounds__(KN_THREADS, 2) tensor_product_kernel(KnCudaProduct p, bool wide_result)
{
    KN_DYNAMIC_SHARED(Bf16, shared);
    const Place tile = place_of_block<SIDE>(p);
    const Operand a = {(const Bf16 *)p.a + blockIdx.z * p.m * p.k, p.m, p.k};
    const Operand b = {(const Bf16 *)p.b + blockIdx.z * p.n * p.k, p.n, p.k};
    float sums[M][N][4] = {};
    const auto begin = [&](int stage, int64_t k) {
        if (k < p.k) {
            Bf16 *to = shared + stage * 2 * OPERAND;
            begin_slice<A_ALONG_K>(to, a, tile.row, k);
            begin_slice<B_ALONG_K>(to + OPERAND, b, tile.column, k);
        }
        kn_close_copies();
    };
    begin(0, 0);
    begin(1, DEPTH);
    int stage = 0;
    for (int64_t k = 0; k < p.k; k += DEPTH, stage = (stage + 1) % STAGES) {
        kn_wait_copies<STAGES - 2>();
        __syncthreads(); /* this slice has come for all, and nobody reads the one before any more */
        begin((stage + 2) % STAGES, k + 2 * DEPTH);
        Bf16 *slices = shared + stage * 2 * OPERAND;
        multiply_slices<A_ALONG_K, B_ALONG_K>(slices, slices + OPERAND, sums);
    }
    kn_wait_copies<0>();
    __syncthreads();
    finish_warp(p, tile, reinterpret_cast<float *>(shared), sums, wide_result);
}

template <bool A_ALONG_K, bool B_ALONG_K> void launch_tensor(const KnCudaProduct &p, cudaStream_t stream)
{
    const bool wide_result = p.n % 8 == 0 && kn_aligned(p.c, p.beta != 0 ? p.d : nullptr, p.bias);
    KN_LAUNCH((tensor_product_kernel<A_ALONG_K, B_ALONG_K>), tiles_of<SIDE>(p), KN_THREADS, SHARED_BYTES, stream, p,
              wide_result);
}

/* Rows of both operands are pieces of 16 bytes. */
bool fits_tensor_cores(const KnCudaProduct &p)
{
    const int64_t a_width = p.transpose_a ? p.m : p.k, b_width = p.transpose_b ? p.k : p.n;
    return p.bf16 && a_width % 8 == 0 && b_width % 8 == 0 && kn_aligned(p.a, p.b);
}

/* ---- float32, and what does not fit tensor cores ---- */

constexpr int FMA_SIDE = 64, FMA_DEPTH = 16, EACH = 4, ROW = FMA_SIDE + 4; /* floats of a row in shared memory */

/* A slice [FMA_DEPTH, FMA_SIDE] of an operand that is stored as [own, k] (along_k) or [k, own]. */
template <class T>
__device__ __forceinline__ void load_slice(float *slice, const T *x, int along_k, int64_t own, int64_t owns, int64_t k,
                                           int64_t ks)
{
#pragma unroll
    for (int i = (int)threadIdx.x; i < FMA_SIDE * FMA_DEPTH; i += KN_THREADS) {
        const int row = along_k ? i / FMA_DEPTH : i % FMA_SIDE, depth = along_k ? i % FMA_DEPTH : i / FMA_SIDE;
        const int64_t r = own + row, d = k + depth;
        slice[depth * ROW + row] = r < owns && d < ks ? kn_widen(x[along_k ? r * ks + d : d * owns + r]) : 0.0f;
    }
}

template <class T> __global__ void __launch_bounds__(KN_THREADS, 2) fma_product_kernel(KnCudaProduct p)
{
    __shared__ __align__(16) float a_slice[FMA_DEPTH * ROW], b_slice[FMA_DEPTH * ROW];
    const Place tile = place_of_block<FMA_SIDE>(p);
    const T *a = (const T *)p.a + blockIdx.z * p.m * p.k, *b = (const T *)p.b + blockIdx.z * p.n * p.k;
    const int down = (int)threadIdx.x / 16 * EACH, across = (int)threadIdx.x % 16 * EACH;
    float sums[EACH][EACH] = {};
    for (int64_t k = 0; k < p.k; k += FMA_DEPTH) {
        __syncthreads();
        load_slice(a_slice, a, !p.transpose_a, tile.row, p.m, k, p.k);
        load_slice(b_slice, b, p.transpose_b, tile.column, p.n, k, p.k);
        __syncthreads();
#pragma unroll 4
        for (int d = 0; d < FMA_DEPTH; d++) {
            float x[EACH], y[EACH];
            kn_load(a_slice + d * ROW + down, x);
            kn_load(b_slice + d * ROW + across, y);
#pragma unroll
            for (int i = 0; i < EACH; i++)
#pragma unroll
                for (int j = 0; j < EACH; j++)
                    sums[i][j] += x[i] * y[j];
        }
    }
#pragma unroll
    for (int i = 0; i < EACH; i++)
#pragma unroll
        for (int j = 0; j < EACH; j++)
            finish(p, tile.row + down + i, tile.column + across + j, sums[i][j]);
}

} // namespace

cudaError_t kn_cuda_own_product(const KnCudaProduct *p, cudaStream_t stream)
{
    if (!p->bf16)
        KN_LAUNCH(fma_product_kernel<float>, tiles_of<FMA_SIDE>(*p), KN_THREADS, 0, stream, *p);
    else if (!fits_tensor_cores(*p))
        KN_LAUNCH(fma_product_kernel<Bf16>, tiles_of<FMA_SIDE>(*p), KN_THREADS, 0, stream, *p);
    else if (p->transpose_a)
        p->transpose_b ? launch_tensor<false, true>(*p, stream) : launch_tensor<false, false>(*p, stream);
    else
        p->transpose_b ? launch_tensor<true, true>(*p, stream) : launch_tensor<true, false>(*p, stream);
    return cudaGetLastError();
}
