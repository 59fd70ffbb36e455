/* Attention by cuDNN: which nodes, and from a node to the door's calls (core/cuda/cudnn/cudnn.h).
 *
 * Nodes are chosen when the graph is lowered, by shapes: in bfloat16, with heads of 64 or 128 columns, of packed spans,
 * where a plan can be built and the whole would take less time than by our own kernels. What a span has is read on the
 * device: a plan is for as many spans as the table has room for, each as long as the stream. KINORA_CUDNN=0 chooses
 * none, 1 all that can be.
 *
 * A call of the backward writes the gradient of all its scores to memory, since that makes its bits repeat. So its
 * spans or its heads are taken in several calls where one would need more than KINORA_CUDNN_MIB. */
#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/memory.h"
#include "core/cuda/cuda.h"
#include "core/cuda/cudnn/cudnn.h"

#include <stdlib.h>
#include <string.h>

enum { DEFAULT_MIB = 2304, ALIGNMENT = 256, LAUNCHES_BESIDE = 3, LAUNCHES_OF_CALL = 3, BF16_BYTES = 2 };

/* FLOP/s and seconds, as measured on an H200 (docs/gpu.md): forward, backward; of cuDNN for heads of 64 and of 128. */
static const double own_rates[2] = {300e12, 230e12}, library_rates[2][2] = {{400e12, 215e12}, {560e12, 410e12}};
static const double launch_seconds = 4e-6;

struct KnCudaLibrary {
    KnCudnn *cudnn; /* NULL: not to be had, or not asked for yet */
    int asked, told;
};

/* How a node is computed: its plan's shape, its calls, and where things lie in the workspace. */
typedef struct Layout {
    KnCudnnShape shape;
    int64_t span_calls, head_calls;
    size_t lists, stats, delta, workspace, bytes;
} Layout;

static const KnAttentionAttributes *attributes_of(const KnNode *node)
{
    return (const KnAttentionAttributes *)node->attributes;
}

static int is_backward(const KnNode *node)
{
    return node->op->id == KN_OP_ATTENTION_BACKWARD;
}

/* ---- choosing ---- */

static const char *setting(void)
{
    const char *text = getenv("KINORA_CUDNN");
    return text ? text : "";
}

int kn_cuda_fits_library(const KnNode *node)
{
    const KnAttentionAttributes *p = attributes_of(node);
    const KnTensor *q = node->inputs[0], *k = node->inputs[1];
    if (!p->packed || p->ring || q->dtype != KN_BF16 || p->heads == 0 || node->inputs[3]->shape[0] == 0)
        return 0;
    int64_t size = kn_tensor_columns(q) / p->heads;
    return (size == 64 || size == 128) && kn_tensor_rows(q) > 0 && kn_tensor_rows(k) > 0;
}

static int64_t rounded(int64_t n, int64_t to)
{
    return (n + to - 1) / to * to;
}

/* Most heads, a divisor of all, whose scores' gradients have room; 0: not even one. */
static int64_t heads_of_call(const KnCudnnShape *shape)
{
    const char *text = getenv("KINORA_CUDNN_MIB");
    double room = (text ? atof(text) : DEFAULT_MIB) * 1048576;
    double head = 2.0 * (double)(shape->spans * rounded(shape->queries, 64)) * (double)rounded(shape->keys, 128);
    int64_t heads = shape->row_heads;
    while (heads > 0 && (shape->row_heads % heads || head * (double)heads > room))
        heads--;
    return heads;
}

/* Without what depends on the plan; 0 where there is no room. */
static int make_layout(const KnNode *node, Layout *l)
{
    const KnAttentionAttributes *p = attributes_of(node);
    int64_t spans = node->inputs[3]->shape[0];
    *l = (Layout){.shape = {.backward = is_backward(node),
                            .ragged = 1,
                            .spans = spans,
                            .queries = kn_tensor_rows(node->inputs[0]),
                            .keys = kn_tensor_rows(node->inputs[1]),
                            .heads = p->heads,
                            .row_heads = p->heads,
                            .size = kn_tensor_columns(node->inputs[0]) / p->heads}};
    if (l->shape.backward) {
        l->shape.heads = heads_of_call(&l->shape);
        if (!l->shape.heads) {
            l->shape.spans = 1;
            l->shape.heads = heads_of_call(&l->shape);
        }
        if (!l->shape.heads)
            return 0;
    }
    l->span_calls = spans / l->shape.spans;
    l->head_calls = p->heads / l->shape.heads;
    return 1;
}

static size_t take(Layout *l, size_t bytes)
{
    size_t at = l->bytes;
    l->bytes += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return at;
}

static void place(Layout *l, const KnCudnnPlan *plan)
{
    const KnCudnnShape *n = &l->shape;
    l->bytes = 0;
    l->lists = take(l, (size_t)l->span_calls * kn_cuda_list_place(n->spans, KN_CUDA_LISTS));
    l->stats = take(l, sizeof(float) * (size_t)(n->queries * n->row_heads));
    l->delta = take(l, n->backward ? sizeof(float) * (size_t)(n->spans * n->heads * n->queries) : 0);
    l->workspace = take(l, kn_cudnn_plan_bytes(plan));
    if (n->backward) /* what our own kernels want, should rows not lie as they must */
        l->bytes += 2 * sizeof(float) * (size_t)(n->queries * n->row_heads);
}

/* Of few keys, cuDNN's backward keeps few multiprocessors at work, and ours all (attention_backward.cu). */
static int pays(const KnNode *node, const Layout *l)
{
    if (kn_attention_has_few_keys(node))
        return 0;
    double flops = 4 * attributes_of(node)->pairs * (double)kn_tensor_columns(node->inputs[0]);
    double launches = LAUNCHES_BESIDE + LAUNCHES_OF_CALL * (double)(l->span_calls * l->head_calls);
    int backward = l->shape.backward != 0;
    if (backward)
        flops *= 2.5;
    double library = flops / library_rates[l->shape.size == 128][backward] + launches * launch_seconds;
    return library < flops / own_rates[backward];
}

/* The generations for which cuDNN says that bits repeat, and on which that was seen to be fast. */
static int knows_device(const KnCuda *cuda, int backward)
{
    int major = cuda->properties.major;
    return major == 9 || (major == 10 && !backward);
}

static void tell(struct KnCudaLibrary *library)
{
    if (!library->told)
        kn_log("attention runs by Kinora's own kernels: %s", kn_error_message());
    library->told = 1;
}

static KnCudnn *library_of(KnCuda *cuda)
{
    struct KnCudaLibrary *library = cuda->library;
    if (!library)
        library = cuda->library = kn_alloc(sizeof *library);
    if (library->asked)
        return library->cudnn;
    library->asked = 1;
    if (kn_cudnn_open(&library->cudnn, NULL) == KN_OK)
        kn_log("attention of large spans runs by cuDNN %s", kn_cudnn_version(library->cudnn));
    else
        tell(library);
    return library->cudnn;
}

static void choose(KnCuda *cuda, KnNode *node)
{
    Layout layout;
    KnCudnnPlan *plan;
    if (!kn_cuda_fits_library(node) || !make_layout(node, &layout) ||
        (strcmp(setting(), "1") != 0 && !pays(node, &layout)))
        return;
    if (!knows_device(cuda, is_backward(node)) || !library_of(cuda))
        return;
    if (kn_cudnn_plan(cuda->library->cudnn, &layout.shape, &plan) < 0) {
        tell(cuda->library);
        return;
    }
    place(&layout, plan);
    ((KnAttentionAttributes *)node->attributes)->library_bytes = layout.bytes;
}

void kn_cuda_choose_attention(KnCuda *cuda, KnGraph *graph)
{
    if (!cuda->stream) /* for planning, which is the same on every machine */
        return;
    for (int i = 0; i < graph->node_count && strcmp(setting(), "0") != 0; i++) {
        KnNode *node = graph->nodes[i];
        if (node->op->id == KN_OP_ATTENTION || node->op->id == KN_OP_ATTENTION_BACKWARD)
            choose(cuda, node);
    }
}

void kn_cuda_library_close(KnCuda *cuda)
{
    if (cuda->library)
        kn_cudnn_close(cuda->library->cudnn);
    free(cuda->library);
}

/* ---- running ---- */

/* The operands of one call; columns of its first head on. */
static KnCudnnCall call_of(const Layout *l, const KnCudaAttention *a, unsigned char *memory, int64_t span_call,
                           int64_t head_call)
{
    const KnCudnnShape *n = &l->shape;
    size_t head = (size_t)(head_call * n->heads), at = head * (size_t)n->size * BF16_BYTES;
    unsigned char *lists = memory + l->lists + (size_t)span_call * kn_cuda_list_place(n->spans, KN_CUDA_LISTS);
#define LIST(list) ((void *)(lists + kn_cuda_list_place(n->spans, list)))
#define ROWS(rows) ((rows) ? (void *)((unsigned char *)(rows) + at) : NULL)
    return (KnCudnnCall){.q = ROWS(a->q),
                         .k = ROWS(a->k),
                         .v = ROWS(a->v),
                         .out = ROWS(a->out),
                         .stats = (float *)(memory + l->stats) + head,
                         .grad_out = ROWS(a->grad_out),
                         .dq = ROWS(a->dq),
                         .dk = ROWS(a->dk),
                         .dv = ROWS(a->dv),
                         .delta = (float *)(memory + l->delta),
                         .query_lengths = LIST(KN_CUDA_LENGTHS),
                         .key_lengths = LIST(KN_CUDA_LENGTHS + 1),
                         .query_offsets = LIST(KN_CUDA_OFFSETS),
                         .key_offsets = LIST(KN_CUDA_OFFSETS + 1),
                         .stats_offsets = LIST(KN_CUDA_STATS_OFFSETS),
                         .workspace = memory + l->workspace,
                         .scale = a->scale};
#undef LIST
#undef ROWS
}

static int run_calls(KnCuda *cuda, const Layout *l, const KnCudnnPlan *plan, const KnCudaAttention *a,
                     unsigned char *memory)
{
    for (int64_t s = 0; s < l->span_calls; s++)
        for (int64_t h = 0; h < l->head_calls; h++) {
            KnCudnnCall call = call_of(l, a, memory, s, h);
            KN_TRY(kn_cudnn_run(cuda->library->cudnn, plan, &call, cuda->stream));
        }
    return KN_OK;
}

static int queue(KnCuda *cuda, const KnNode *node, const KnCudaAttention *a, unsigned char *memory)
{
    Layout l;
    KnCudnnPlan *plan;
    KN_ASSERT(make_layout(node, &l));
    KN_TRY(kn_cudnn_plan(cuda->library->cudnn, &l.shape, &plan));
    place(&l, plan);
    float *stats = (float *)(memory + l.stats);
    KN_TRY(kn_cuda_check(kn_cuda_pack_spans(a, l.shape.spans, memory + l.lists, cuda->stream), "packing spans"));
    if (l.shape.backward)
        KN_TRY(kn_cuda_check(kn_cuda_pack_backward(a, stats, cuda->stream), "packing statistics"));
    KN_TRY(run_calls(cuda, &l, plan, a, memory));
    if (!l.shape.backward)
        KN_TRY(kn_cuda_check(kn_cuda_unpack_forward(a, stats, cuda->stream), "unpacking statistics"));
    return KN_OK;
}

static int is_aligned(const void *address)
{
    return (uintptr_t)address % 16 == 0;
}

int kn_cuda_is_by_library(const KnNode *node, const KnCudaAttention *a)
{
    return attributes_of(node)->library_bytes && is_aligned(a->q) && is_aligned(a->k) && is_aligned(a->v) &&
           is_aligned(a->out) && is_aligned(a->grad_out) && is_aligned(a->dq) && is_aligned(a->dk) && is_aligned(a->dv);
}

cudaError_t kn_cuda_attention_by_library(KnCuda *cuda, const KnNode *node, const KnCudaAttention *attention,
                                         void *workspace)
{
    return queue(cuda, node, attention, workspace) < 0 ? (cudaError_t)KN_CUDA_SENTENCE : cudaSuccess;
}
