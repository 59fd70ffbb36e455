/* Modulation by a conditioning row of each token, and the gated residual; in float32, rounded once. */
#include "core/cuda/row_pass.h"

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

template <class T> cudaError_t modulate(const KnCudaModulate &m, cudaStream_t stream)
{
    constexpr int lanes = KnLanes<T>::count;
    if (m.columns % lanes == 0 && kn_aligned(m.x, m.base, m.out) && kn_aligned(m.factor, m.term))
        KN_LAUNCH((modulate_kernel<T, lanes>), (unsigned)m.tokens, KN_THREADS, 0, stream, m);
    else
        KN_LAUNCH((modulate_kernel<T, 1>), (unsigned)m.tokens, KN_THREADS, 0, stream, m);
    return cudaGetLastError();
}

/* The backward with the sum of what it writes, the gradient of a bias. */
struct GatePass : KnPass {
    static constexpr bool joins = true;
    static __device__ __forceinline__ float summand(int which, float g, float x, float dx)
    {
        return which == 0 ? g * x : dx;
    }
};

} // namespace

cudaError_t kn_cuda_modulate(int bf16, const KnCudaModulate *m, cudaStream_t stream)
{
    if (m->tokens == 0 || m->columns == 0)
        return cudaSuccess;
    return bf16 ? modulate<__nv_bfloat16>(*m, stream) : modulate<float>(*m, stream);
}

cudaError_t kn_cuda_modulate_backward(int bf16, const KnCudaModulateBackward *b, cudaStream_t stream)
{
    KnRowPass pass = {};
    pass.tokens = b->tokens;
    pass.rows = b->rows;
    pass.columns = b->columns;
    pass.x = b->x;
    pass.grad = b->grad;
    pass.dx = b->out;
    pass.factor = b->factor;
    pass.one = b->one;
    pass.row_of = b->row_of;
    pass.sums[0] = b->factor_sum;
    pass.sums[1] = b->out_sum ? b->out_sum : b->sum;
    pass.workspace = b->workspace;
    pass.fault = b->fault;
    return b->out_sum ? kn_row_pass<GatePass>(bf16, pass, stream) : kn_row_pass<KnPass>(bf16, pass, stream);
}
