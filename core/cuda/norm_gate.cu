/* Layer norm's backward and that of the gated residual whose sum the norm read, by one kernel: with the gradients that
 * the norm and others have for the sum, rounded, in registers
 *
 *     dy = d gate;    of the tokens of a row, the sum of d y, and of all tokens that of dy
 *
 * come from them, beside what core/cuda/row_pass.h says of the norm. Slabs, order of sums and so the bits are those of
 * the two passes, which run in float32, which does not fit in registers, and where rows are too long or cannot be read
 * sixteen bytes at a time. */
#include "core/cuda/row_pass.h"

namespace
{

enum { OF_NORM = 2, RESULTS = 4 };

struct NormGate {
    KnRowPass norm; /* `rows`, as of the gate */
    int factor_rows;
    const void *branch;
    const float *gate;
    void *dbranch;
};

using T = __nv_bfloat16;
constexpr int LANES = KnLanes<T>::count;
static_assert(LANES == KN_PASS_COLUMNS, "a thread has one vector of a row");

/* The gate's sums, of each thread's columns: there are no registers left for them, where four blocks of 1536 columns
 * are to have room on a multiprocessor. */
constexpr int MOST_THREADS = 640;
using GateSums = float[RESULTS - OF_NORM][LANES][MOST_THREADS];

/* A thread's columns of a token. */
struct Columns {
    KnVector<T, LANES> x, grad, added, branch;

    __device__ __forceinline__ void read(const NormGate &p, int64_t at)
    {
        x.read((const T *)p.norm.x + at);
        grad.read((const T *)p.norm.grad + at);
        added.read((const T *)p.norm.added + at);
        branch.read((const T *)p.branch + at);
    }

    __device__ __forceinline__ void clear()
    {
        x.clear();
        grad.clear();
        added.clear();
        branch.clear();
    }

    __device__ __forceinline__ void add_to(float (&sums)[2], const NormGate &p, int row, int column,
                                           const KnPassToken &t) const
    {
        float factor[LANES];
        kn_pass_factor<LANES>(p.norm, row, column, factor);
#pragma unroll
        for (int k = 0; k < LANES; k++) {
            const float h = grad.value(k) * factor[k];
            sums[0] += h;
            sums[1] += h * ((x.value(k) - t.mean) * t.rstd);
        }
    }

    /* The gradient of the sum takes the place of the norm's. */
    __device__ __forceinline__ void norm(const NormGate &p, int64_t at, int row, int column, const KnPassToken &t,
                                         bool counted, float (&sums)[OF_NORM][LANES])
    {
        float factor[LANES];
        kn_pass_factor<LANES>(p.norm, row, column, factor);
#pragma unroll
        for (int k = 0; k < LANES; k++) {
            const float g = grad.value(k), u = (x.value(k) - t.mean) * t.rstd;
            const float dx = t.rstd * (g * factor[k] - t.mean_h - u * t.mean_hu);
            if (counted) {
                sums[0][k] += g * u;
                sums[1][k] += g;
            }
            grad.put(k, dx + added.value(k));
        }
        grad.write((T *)p.norm.dx + at);
    }

    __device__ __forceinline__ void gate(const NormGate &p, int64_t at, int row, int column, bool counted,
                                         GateSums &sums)
    {
        float factor[LANES];
        kn_read_floats<LANES>(p.gate + row * p.norm.columns + column, factor);
#pragma unroll
        for (int k = 0; k < LANES; k++) {
            const float g = grad.value(k), dy = g * factor[k];
            if (counted) {
                sums[0][k][threadIdx.x] += g * branch.value(k);
                sums[1][k][threadIdx.x] += dy;
            }
            branch.put(k, dy);
        }
        branch.write((T *)p.dbranch + at);
    }
};

static __device__ __forceinline__ float *sums_of(const KnRowPass &s, int which, int slab, int row)
{
    return s.workspace + (((int64_t)which * s.slabs + slab) * s.rows + row) * s.columns;
}

static __host__ __device__ __forceinline__ KnRowRange *ranges_of(const KnRowPass &s)
{
    return reinterpret_cast<KnRowRange *>(s.workspace + (int64_t)RESULTS * s.slabs * s.rows * s.columns);
}

__global__ void __launch_bounds__(KN_PASS_MOST_THREADS, 1) norm_gate_kernel(NormGate p)
{
    __shared__ GateSums of_gate;
    const KnRowPass &s = p.norm;
    const int slab = (int)blockIdx.x, begin = kn_slab_begin(s, slab), end = kn_slab_begin(s, slab + 1);
    const int column = (int)threadIdx.x * LANES;
    const bool mine = column < s.columns;
    const KnRowRange range = kn_rows_of_slab(s, begin, end);
    int turn = 0;
    for (int row = range.first; row <= range.last; row++) {
        const int factor_row = p.factor_rows > 1 ? row : 0;
        float sums[OF_NORM][LANES] = {};
#pragma unroll
        for (int k = 0; k < LANES; k++)
            of_gate[0][k][threadIdx.x] = of_gate[1][k][threadIdx.x] = 0;
        for (int token = begin; token < end; token++) {
            const int role = kn_pass_role(s, token, row);
            if (!role)
                continue;
            /* Found anew where it is used, or six addresses would stay in registers. */
            const int64_t at = kn_fresh(token) * s.columns + column;
            KnPassToken t = {s.stats[2 * token], s.stats[2 * token + 1], 0, 0};
            float averages[2] = {};
            Columns columns;
            columns.clear();
            if (mine) {
                columns.read(p, at);
                columns.add_to(averages, p, factor_row, column, t);
            }
            kn_pass_sums(averages, turn ^= 1);
            t.mean_h = averages[0] / (float)s.columns;
            t.mean_hu = averages[1] / (float)s.columns;
            columns.x.renew();
            columns.grad.renew();
            if (!mine)
                continue;
            columns.norm(p, at, factor_row, column, t, role == KN_COUNTED, sums);
            columns.gate(p, at, row, column, role == KN_COUNTED, of_gate);
        }
        if (!mine)
            continue;
#pragma unroll
        for (int which = 0; which < RESULTS; which++) {
            float values[LANES];
#pragma unroll
            for (int k = 0; k < LANES; k++)
                values[k] = which < OF_NORM ? sums[which % OF_NORM][k] : of_gate[which % OF_NORM][k][threadIdx.x];
            kn_write_floats<LANES>(sums_of(s, which, slab, row) + column, values);
        }
    }
    if (threadIdx.x == 0)
        ranges_of(s)[slab] = range;
}

bool is_one_pass(int bf16, const KnCudaNorm &n, const KnCudaModulateBackward &g)
{
    return bf16 && n.tokens > 0 && n.columns > 0 && n.columns % LANES == 0 && n.columns <= LANES * MOST_THREADS &&
           kn_aligned(n.x, n.grad, n.y) && kn_aligned(n.added, n.weight, n.scale) && kn_aligned(g.x, g.factor, g.out);
}

NormGate pass_of(const KnCudaNorm &n, const KnCudaModulateBackward &g)
{
    NormGate p = {};
    p.norm.tokens = n.tokens;
    p.norm.rows = g.rows;
    p.norm.columns = n.columns;
    p.norm.x = n.x;
    p.norm.grad = n.grad;
    p.norm.added = n.added;
    p.norm.dx = n.y;
    p.norm.factor = n.scale ? n.scale : n.weight;
    p.norm.one = n.scale ? 1 : 0;
    p.norm.stats = n.stats;
    p.norm.row_of = g.row_of;
    p.norm.slabs = kn_cuda_row_pass_slabs(n.tokens, g.rows, n.columns);
    p.norm.workspace = n.workspace;
    p.norm.fault = n.fault;
    p.factor_rows = n.scale ? (int)n.scale_rows : 1;
    p.branch = g.x;
    p.gate = g.factor;
    p.dbranch = g.out;
    return p;
}

} // namespace

cudaError_t kn_cuda_layer_norm_gate_backward(int bf16, const KnCudaNorm *n, const KnCudaModulateBackward *g,
                                             cudaStream_t stream)
{
    if (!is_one_pass(bf16, *n, *g)) {
        const cudaError_t error = kn_cuda_layer_norm_backward(bf16, n, stream);
        return error != cudaSuccess ? error : kn_cuda_modulate_backward(bf16, g, stream);
    }
    const NormGate p = pass_of(*n, *g);
    const KnRowPass &s = p.norm;
    const unsigned threads = (unsigned)(s.columns / LANES + 31) / 32 * 32;
    KN_LAUNCH(norm_gate_kernel, (unsigned)s.slabs, threads, 0, stream, p);
    if (cudaError_t error = cudaGetLastError())
        return error;
    const int of_all_rows = n->scale ? 1 << 3 : 1 << 0 | 1 << 1 | 1 << 3;
    return kn_add_slabs({s.workspace,
                         ranges_of(s),
                         s.slabs,
                         s.rows,
                         s.columns,
                         {n->sums[0], n->sums[1], g->factor_sum, g->out_sum},
                         0,
                         of_all_rows},
                        RESULTS, stream);
}
