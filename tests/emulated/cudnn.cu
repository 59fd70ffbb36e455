/* Who stands behind the door to cuDNN where there is no GPU: attention from its formulas, in float32, one thread for
 * each row, that reads lengths and places as the library does and writes no other rows.
 *
 *     KINORA_EMULATED_CUDNN=absent   it is not installed
 *     KINORA_EMULATED_CUDNN=refuse   it has no plan for any shape */
#include "core/cuda/cudnn/cudnn.h"
#include "core/cuda/kernel.h"

extern "C" {
#include "core/base/error.h"
}

#include <cmath>
#include <cstdlib>
#include <cstring>

struct KnCudnn {
    KnCudnnPlan *plans;
};

struct KnCudnnPlan {
    KnCudnnPlan *next;
    KnCudnnShape shape;
};

namespace
{

constexpr int THREADS = 64, MOST_SIZE = 128;

/* One head of one span: its rows of each operand, and how far apart they are. */
struct Head {
    int64_t queries, keys, stride, stats_stride, q, k, stats, delta;
};

__device__ Head head_of(const KnCudnnShape &n, const KnCudnnCall &c, int64_t span, int64_t head)
{
    const int64_t row = n.row_heads * n.size, column = head * n.size;
    Head h = {n.queries, n.keys, row, 1, span * n.queries * row + column, span * n.keys * row + column, 0, 0};
    h.stats = h.delta = (span * n.heads + head) * n.queries;
    if (!n.ragged)
        return h;
    h.queries = c.query_lengths[span];
    h.keys = c.key_lengths[span];
    h.q = c.query_offsets[span] + column;
    h.k = c.key_offsets[span] + column;
    h.stats = c.stats_offsets[span] + head;
    h.stats_stride = n.row_heads;
    return h;
}

__device__ float value(const void *rows, int64_t at)
{
    return __bfloat162float(((const __nv_bfloat16 *)rows)[at]);
}

__device__ float dot(const void *a, int64_t at_a, const void *b, int64_t at_b, int64_t size)
{
    float sum = 0;
    for (int64_t i = 0; i < size; i++)
        sum += value(a, at_a + i) * value(b, at_b + i);
    return sum;
}

__device__ void write(void *rows, int64_t at, const float *values, float factor, int64_t size)
{
    for (int64_t i = 0; i < size; i++)
        ((__nv_bfloat16 *)rows)[at + i] = __float2bfloat16_rn(values[i] * factor);
}

/* Which row, head and span a thread has; false: none. */
__device__ bool place(int64_t rows, const KnCudnnShape &n, int64_t &row, int64_t &head, int64_t &span)
{
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    row = i % rows;
    head = i / rows % n.heads;
    span = i / rows / n.heads;
    return span < n.spans;
}

__global__ void __launch_bounds__(THREADS) forward_kernel(KnCudnnShape n, KnCudnnCall c)
{
    int64_t i, head, span;
    float out[MOST_SIZE] = {}, most = -INFINITY, sum = 0;
    if (!place(n.queries, n, i, head, span))
        return;
    const Head h = head_of(n, c, span, head);
    if (i >= h.queries)
        return;
    const int64_t q = h.q + i * h.stride;
    for (int64_t j = 0; j < h.keys; j++)
        most = fmaxf(most, c.scale * dot(c.q, q, c.k, h.k + j * h.stride, n.size));
    for (int64_t j = 0; j < h.keys; j++) {
        const float p = expf(c.scale * dot(c.q, q, c.k, h.k + j * h.stride, n.size) - most);
        sum += p;
        for (int64_t x = 0; x < n.size; x++)
            out[x] += p * value(c.v, h.k + j * h.stride + x);
    }
    write(c.out, q, out, 1 / sum, n.size);
    c.stats[h.stats + i * h.stats_stride] = most + logf(sum);
}

/* The score's probability and gradient; delta of query i is there. */
__device__ void score(const KnCudnnShape &n, const KnCudnnCall &c, const Head &h, int64_t i, int64_t j, float &p,
                      float &ds)
{
    const int64_t q = h.q + i * h.stride, k = h.k + j * h.stride;
    p = expf(c.scale * dot(c.q, q, c.k, k, n.size) - c.stats[h.stats + i * h.stats_stride]);
    ds = p * (dot(c.grad_out, q, c.v, k, n.size) - c.delta[h.delta + i]) * c.scale;
}

__global__ void __launch_bounds__(THREADS) queries_kernel(KnCudnnShape n, KnCudnnCall c)
{
    int64_t i, head, span;
    float dq[MOST_SIZE] = {};
    if (!place(n.queries, n, i, head, span))
        return;
    const Head h = head_of(n, c, span, head);
    if (i >= h.queries)
        return;
    c.delta[h.delta + i] = dot(c.grad_out, h.q + i * h.stride, c.out, h.q + i * h.stride, n.size);
    for (int64_t j = 0; j < h.keys; j++) {
        float p, ds;
        score(n, c, h, i, j, p, ds);
        for (int64_t x = 0; x < n.size; x++)
            dq[x] += ds * value(c.k, h.k + j * h.stride + x);
    }
    write(c.dq, h.q + i * h.stride, dq, 1, n.size);
}

__global__ void __launch_bounds__(THREADS) keys_kernel(KnCudnnShape n, KnCudnnCall c)
{
    int64_t j, head, span;
    float dk[MOST_SIZE] = {}, dv[MOST_SIZE] = {};
    if (!place(n.keys, n, j, head, span))
        return;
    const Head h = head_of(n, c, span, head);
    if (j >= h.keys)
        return;
    for (int64_t i = 0; i < h.queries; i++) {
        float p, ds;
        score(n, c, h, i, j, p, ds);
        for (int64_t x = 0; x < n.size; x++) {
            dk[x] += ds * value(c.q, h.q + i * h.stride + x);
            dv[x] += p * value(c.grad_out, h.q + i * h.stride + x);
        }
    }
    write(c.dk, h.k + j * h.stride, dk, 1, n.size);
    write(c.dv, h.k + j * h.stride, dv, 1, n.size);
}

__global__ void __launch_bounds__(THREADS) touch_kernel(unsigned char *workspace, size_t bytes)
{
    if (threadIdx.x == 0)
        workspace[0] = workspace[bytes - 1] = 0xff;
}

bool is_set_to(const char *value)
{
    const char *text = getenv("KINORA_EMULATED_CUDNN");
    return text && strcmp(text, value) == 0;
}

} // namespace

int kn_cudnn_open(KnCudnn **cudnn, const char *)
{
    if (is_set_to("absent"))
        return kn_fail(KN_EPEER, "the emulated cuDNN is not here");
    *cudnn = new KnCudnn();
    return KN_OK;
}

void kn_cudnn_close(KnCudnn *cudnn)
{
    while (cudnn && cudnn->plans) {
        KnCudnnPlan *plan = cudnn->plans;
        cudnn->plans = plan->next;
        delete plan;
    }
    delete cudnn;
}

const char *kn_cudnn_version(const KnCudnn *)
{
    return "emulated";
}

char *kn_cudnn_properties(KnCudnn *)
{
    return nullptr;
}

int kn_cudnn_plan(KnCudnn *cudnn, const KnCudnnShape *shape, KnCudnnPlan **plan)
{
    if (is_set_to("refuse"))
        return kn_fail(KN_EPEER, "the emulated cuDNN has no plan");
    for (*plan = cudnn->plans; *plan; *plan = (*plan)->next)
        if (memcmp(&(*plan)->shape, shape, sizeof *shape) == 0)
            return KN_OK;
    *plan = cudnn->plans = new KnCudnnPlan{cudnn->plans, *shape};
    return KN_OK;
}

size_t kn_cudnn_plan_bytes(const KnCudnnPlan *plan)
{
    const KnCudnnShape &n = plan->shape;
    return n.backward ? (size_t)(2 * n.spans * n.heads * n.queries * n.keys) : 1000;
}

int kn_cudnn_run(KnCudnn *, const KnCudnnPlan *plan, const KnCudnnCall *call, cudaStream_t stream)
{
    const KnCudnnShape &n = plan->shape;
    const auto blocks = [&](int64_t rows) { return (unsigned)((rows * n.heads * n.spans + THREADS - 1) / THREADS); };
    KN_LAUNCH(touch_kernel, 1, THREADS, 0, stream, (unsigned char *)call->workspace, kn_cudnn_plan_bytes(plan));
    if (n.backward) {
        KN_LAUNCH(queries_kernel, blocks(n.queries), THREADS, 0, stream, n, *call);
        KN_LAUNCH(keys_kernel, blocks(n.keys), THREADS, 0, stream, n, *call);
    } else {
        KN_LAUNCH(forward_kernel, blocks(n.queries), THREADS, 0, stream, n, *call);
    }
    return cudaGetLastError() == cudaSuccess ? KN_OK : kn_fail(KN_EPEER, "the emulated cuDNN could not launch");
}
