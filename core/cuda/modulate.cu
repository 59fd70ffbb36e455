/* Modulation by a conditioning row of each token, and the gated residual; in float32, rounded once. */
#include "core/cuda/row_sum.h"

namespace
{

/* out = base + x (one + factor[row]) + term[row]; what is NULL is left out. */
template <class T, int LANES> __global__ void __launch_bounds__(KN_THREADS) modulate_kernel(KnCudaModulate m)
{
    const int64_t token = blockIdx.x, row = kn_row_of(m.row_of, token, m.rows, m.fault), start = token * m.columns;
    const T *x = (const T *)m.x + start, *base = m.base ? (const T *)m.base + start : nullptr;
    T *out = (T *)m.out + start;
    for (int64_t c = (int64_t)threadIdx.x * LANES; c < m.columns; c += KN_THREADS * LANES) {
        float values[LANES], factor[LANES], term[LANES] = {}, under[LANES] = {};
        kn_read<LANES>(x + c, values);
        kn_read_floats<LANES>(m.factor + row * m.columns + c, factor);
        if (m.term)
            kn_read_floats<LANES>(m.term + row * m.columns + c, term);
        if (base)
            kn_read<LANES>(base + c, under);
#pragma unroll
        for (int k = 0; k < LANES; k++)
            values[k] = under[k] + (values[k] * (m.one + factor[k]) + term[k]);
        kn_write<LANES>(out + c, values);
    }
}

/* Sums of grad other and grad. */
template <class T> struct ModulateSums {
    static constexpr int results = 2;
    const T *other, *grad;
    int64_t columns;
    template <int LANES> __device__ void add(int64_t token, int64_t column, float (&sums)[2][LANES]) const
    {
        float v[LANES], g[LANES];
        kn_read<LANES>(other + token * columns + column, v);
        kn_read<LANES>(grad + token * columns + column, g);
#pragma unroll
        for (int k = 0; k < LANES; k++) {
            sums[0][k] += g[k] * v[k];
            sums[1][k] += g[k];
        }
    }
};

template <class T> cudaError_t modulate(const KnCudaModulate &m, cudaStream_t stream)
{
    constexpr int lanes = KnLanes<T>::count;
    if (m.columns % lanes == 0 && kn_aligned(m.x, m.base, m.out) && kn_aligned(m.factor, m.term))
        KN_LAUNCH((modulate_kernel<T, lanes>), (unsigned)m.tokens, KN_THREADS, 0, stream, m);
    else
        KN_LAUNCH((modulate_kernel<T, 1>), (unsigned)m.tokens, KN_THREADS, 0, stream, m);
    return cudaGetLastError();
}

template <class T>
cudaError_t modulate_sums(const KnCudaModulate &m, const void *other, float *factor_sum, float *term_sum,
                          float *workspace, cudaStream_t stream)
{
    KnRowSum sum = {m.row_of, m.tokens, m.rows, m.columns, {factor_sum, term_sum}, 0, workspace};
    ModulateSums<T> f = {(const T *)other, (const T *)m.x, m.columns};
    return kn_row_sum<T>(f, sum, kn_aligned(other, m.x), stream);
}

} // namespace

cudaError_t kn_cuda_modulate(int bf16, const KnCudaModulate *m, cudaStream_t stream)
{
    if (m->tokens == 0 || m->columns == 0)
        return cudaSuccess;
    return bf16 ? modulate<__nv_bfloat16>(*m, stream) : modulate<float>(*m, stream);
}

cudaError_t kn_cuda_modulate_sums(int bf16, const KnCudaModulate *m, const void *other, float *factor_sum,
                                  float *term_sum, float *workspace, cudaStream_t stream)
{
    return bf16 ? modulate_sums<__nv_bfloat16>(*m, other, factor_sum, term_sum, workspace, stream)
                : modulate_sums<float>(*m, other, factor_sum, term_sum, workspace, stream);
}
