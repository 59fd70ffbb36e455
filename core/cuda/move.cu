/* Moving rows and columns: copies of pieces, gather by index, the scatter that is its gradient, and sums over rows. */
#include "core/cuda/row_sum.h"

namespace
{

/* ---- copies ---- */

/* A thread moves one word; Index is as narrow as the number of words allows, since it is divided. */
template <class Word, class Index>
__global__ void __launch_bounds__(KN_THREADS) copy_kernel(KnCudaPieces p, Index words, Index piece_words)
{
    for (Index i = (Index)kn_first(); i < words; i += (Index)kn_step()) {
        const Index piece = i / piece_words, within = i % piece_words;
        const int64_t outer = piece / (Index)p.inner, inner = piece % (Index)p.inner;
        Word *to = (Word *)((char *)p.to + outer * p.to_outer + inner * p.to_inner) + within;
        if (p.from)
            *to = *((const Word *)((const char *)p.from + outer * p.from_outer + inner * p.from_inner) + within);
        else
            *to = Word{};
    }
}

template <class Word> cudaError_t copy_words(const KnCudaPieces &p, cudaStream_t stream)
{
    const int64_t piece_words = p.bytes / (int64_t)sizeof(Word), words = p.pieces * piece_words;
    const unsigned blocks = kn_blocks(words);
    if (words + (int64_t)blocks * KN_THREADS < INT32_MAX && p.inner < INT32_MAX)
        KN_LAUNCH((copy_kernel<Word, uint32_t>), blocks, KN_THREADS, 0, stream, p, (uint32_t)words,
                  (uint32_t)piece_words);
    else
        KN_LAUNCH((copy_kernel<Word, uint64_t>), blocks, KN_THREADS, 0, stream, p, (uint64_t)words,
                  (uint64_t)piece_words);
    return cudaGetLastError();
}

/* The largest word that all addresses, strides and sizes are multiples of. */
int64_t common_word(const KnCudaPieces &p)
{
    const int64_t bits = (int64_t)(intptr_t)p.to | (int64_t)(intptr_t)p.from | p.bytes | p.to_outer | p.to_inner |
                         (p.from ? p.from_outer | p.from_inner : 0);
    return bits % 16 == 0 ? 16 : bits % 8 == 0 ? 8 : bits % 4 == 0 ? 4 : bits % 2 == 0 ? 2 : 1;
}

/* blockIdx.y is the part; `words` of each of its rows. Indexed as a constant, parts need no local memory. */
template <class Word>
__global__ void __launch_bounds__(KN_THREADS) parts_kernel(const __grid_constant__ KnCudaParts p, int64_t words)
{
    Word *part = (Word *)p.parts[blockIdx.y];
    for (int64_t i = kn_first(); i < p.rows * words; i += kn_step()) {
        Word *in_whole = (Word *)p.whole + (i / words * p.count + blockIdx.y) * words + i % words;
        if (p.joins)
            *in_whole = part ? part[i] : Word{};
        else
            part[i] = *in_whole;
    }
}

__global__ void __launch_bounds__(KN_THREADS) split_sums_kernel(const __grid_constant__ KnCudaParts p, int64_t columns)
{
    float *part = (float *)p.parts[blockIdx.y];
    for (int64_t i = kn_first(); i < p.rows * columns; i += kn_step()) {
        const int64_t column = blockIdx.y * columns + i % columns;
        part[i] = ((const float *)p.whole)[i / columns * columns * p.count + column] + p.added[column];
    }
}

cudaError_t split_sums(const KnCudaParts &p, cudaStream_t stream)
{
    const int64_t columns = p.part / (int64_t)sizeof(float);
    KN_LAUNCH(split_sums_kernel, dim3(kn_blocks(p.rows * columns), (unsigned)p.count), KN_THREADS, 0, stream, p,
              columns);
    return cudaGetLastError();
}

template <class Word> cudaError_t copy_parts(const KnCudaParts &p, cudaStream_t stream)
{
    const int64_t words = p.part / (int64_t)sizeof(Word);
    const dim3 grid(kn_blocks(p.rows * words), (unsigned)p.count);
    KN_LAUNCH((parts_kernel<Word>), grid, KN_THREADS, 0, stream, p, words);
    return cudaGetLastError();
}

/* ---- gather and scatter ---- */

/* A block's row; columns in words. */
template <class Word>
__global__ void __launch_bounds__(KN_THREADS) gather_kernel(const Word *__restrict__ x, const int32_t *index, Word *out,
                                                            int64_t row_words, int64_t x_rows, KnCudaFault *fault)
{
    const int64_t row = blockIdx.x;
    const int32_t from = index[row];
    if (from >= x_rows && threadIdx.x == 0)
        kn_report(fault, KN_CUDA_WILD_INDEX, row, from, x_rows);
    const bool inside = from >= 0 && from < x_rows;
    for (int64_t c = threadIdx.x; c < row_words; c += KN_THREADS)
        out[row * row_words + c] = inside ? x[from * row_words + c] : Word{};
}

template <class Word>
cudaError_t gather(const void *x, const int32_t *index, void *out, int64_t rows, int64_t row_bytes, int64_t x_rows,
                   KnCudaFault *fault, cudaStream_t stream)
{
    KN_LAUNCH((gather_kernel<Word>), (unsigned)rows, KN_THREADS, 0, stream, (const Word *)x, index, (Word *)out,
              row_bytes / (int64_t)sizeof(Word), x_rows, fault);
    return cudaGetLastError();
}

template <class T> struct Taken {
    const T *x;
    int64_t columns;
    template <int LANES> __device__ void add(int64_t token, int64_t column, float (&sums)[LANES]) const
    {
        float values[LANES];
        kn_read<LANES>(x + token * columns + column, values);
#pragma unroll
        for (int k = 0; k < LANES; k++)
            sums[k] += values[k];
    }
};

__global__ void __launch_bounds__(KN_THREADS)
    check_index_kernel(const int32_t *index, int64_t count, int64_t rows, KnCudaFault *fault)
{
    for (int64_t i = kn_first(); i < count; i += kn_step())
        if (index[i] >= rows)
            kn_report(fault, KN_CUDA_WILD_INDEX, i, index[i], rows);
}

template <class T> cudaError_t add_rows(const void *x, const KnRowSum &sum, cudaStream_t stream)
{
    return kn_row_sum<T>(Taken<T>{(const T *)x, sum.columns}, sum, kn_aligned(x), stream);
}

cudaError_t add_rows(int bf16, const void *x, const KnRowSum &sum, cudaStream_t stream)
{
    return bf16 ? add_rows<__nv_bfloat16>(x, sum, stream) : add_rows<float>(x, sum, stream);
}

} // namespace

cudaError_t kn_cuda_copy_pieces(const KnCudaPieces *pieces, cudaStream_t stream)
{
    if (pieces->pieces == 0 || pieces->bytes == 0)
        return cudaSuccess;
    switch (common_word(*pieces)) {
    case 16:
        return copy_words<uint4>(*pieces, stream);
    case 8:
        return copy_words<uint2>(*pieces, stream);
    case 4:
        return copy_words<uint32_t>(*pieces, stream);
    case 2:
        return copy_words<uint16_t>(*pieces, stream);
    default:
        return copy_words<uint8_t>(*pieces, stream);
    }
}

cudaError_t kn_cuda_copy_parts(const KnCudaParts *parts, cudaStream_t stream)
{
    int64_t bits = (int64_t)(intptr_t)parts->whole | parts->part;
    for (int i = 0; i < parts->count; i++)
        bits |= (int64_t)(intptr_t)parts->parts[i];
    if (parts->rows == 0 || parts->part == 0)
        return cudaSuccess;
    if (parts->added)
        return split_sums(*parts, stream);
    if (bits % 16 == 0)
        return copy_parts<uint4>(*parts, stream);
    return bits % 4 == 0 ? copy_parts<uint32_t>(*parts, stream) : copy_parts<uint16_t>(*parts, stream);
}

cudaError_t kn_cuda_gather_rows(const void *x, const int32_t *index, void *out, int64_t rows, int64_t row_bytes,
                                int64_t x_rows, KnCudaFault *fault, cudaStream_t stream)
{
    if (rows == 0 || row_bytes == 0)
        return cudaSuccess;
    if (kn_aligned(x, out) && row_bytes % 16 == 0)
        return gather<uint4>(x, index, out, rows, row_bytes, x_rows, fault, stream);
    if (row_bytes % 4 == 0)
        return gather<uint32_t>(x, index, out, rows, row_bytes, x_rows, fault, stream);
    return gather<uint16_t>(x, index, out, rows, row_bytes, x_rows, fault, stream);
}

cudaError_t kn_cuda_scatter_rows(int bf16, const void *x, const int32_t *index, void *out, int64_t tokens, int64_t rows,
                                 int64_t columns, float *workspace, KnCudaFault *fault, cudaStream_t stream)
{
    KnRowSum sum = {index, tokens, rows, columns, kn_cuda_row_sum_slabs(tokens, rows, columns), out, bf16, workspace};
    if (tokens) {
        KN_LAUNCH(check_index_kernel, kn_blocks(tokens), KN_THREADS, 0, stream, index, tokens, rows, fault);
        if (cudaError_t error = cudaGetLastError())
            return error;
    }
    return add_rows(bf16, x, sum, stream);
}

cudaError_t kn_cuda_sum_rows(int bf16, const void *x, float *out, int64_t rows, int64_t columns, float *workspace,
                             cudaStream_t stream)
{
    KnRowSum sum = {nullptr, rows, 1, columns, kn_cuda_row_sum_slabs(rows, 1, columns), out, 0, workspace};
    return add_rows(bf16, x, sum, stream);
}
