/* Attention as cuDNN's graphs: the operations in which its fused kernels recognize themselves, as its frontend
 * (NVIDIA/cudnn-frontend, scaled_dot_product_flash_attention.h) puts them; another order finds no engine.
 *
 * forward    s = scale q k^T; p = softmax(s); out = p v; stats = max s + log of the sum of exponentials
 * backward   delta = sum of grad_out out; p = exp(s - stats); dv = p^T grad_out; ds = p (grad_out v^T - delta) scale;
 *            dk = ds^T q; dq = ds k
 *
 * The last product is taken from ds as it lies in the workspace, whole, in bfloat16. The other way, adding to dq in
 * float32 as ds is made, takes less memory, but adds in any order. */
#include "core/cuda/cudnn/library.h"

#include "core/base/error.h"

#include <math.h>

enum {
    UID_Q = 1,
    UID_K,
    UID_V,
    UID_OUT,
    UID_STATS,
    UID_GRAD_OUT,
    UID_DQ,
    UID_DK,
    UID_DV,
    UID_DELTA,
    UID_QUERY_LENGTHS,
    UID_KEY_LENGTHS,
    UID_QUERY_OFFSETS,
    UID_KEY_OFFSETS,
    UID_STATS_OFFSETS,
    UID_SCALE,
    UID_HIDDEN,
    UID_ONE,
};

/* The graph with its shape, and what ragged rows need, which is NULL where all spans are full. */
typedef struct Builder {
    KnCudnnGraph *graph;
    const KnCudnnShape *n;
    KnCudnnTensor query_lengths, key_lengths, query_offsets, key_offsets, stats_offsets, scale;
} Builder;

static KnCudnnTensor number(Builder *b, int64_t uid)
{
    return kn_cudnn_tensor(
        b->graph,
        &(KnCudnnTensorKind){
            .uid = uid, .type = CUDNN_DATA_FLOAT, .dims = {1, 1, 1, 1}, .strides = {1, 1, 1, 1}, .by_value = 1});
}

static KnCudnnTensor list(Builder *b, int64_t uid, cudnnDataType_t type, int64_t count)
{
    if (!b->n->ragged)
        return NULL;
    return kn_cudnn_tensor(
        b->graph, &(KnCudnnTensorKind){.uid = uid, .type = type, .dims = {count, 1, 1, 1}, .strides = {1, 1, 1, 1}});
}

static Builder begin(KnCudnnGraph *graph, const KnCudnnShape *n)
{
    Builder b = {.graph = graph, .n = n};
    b.query_lengths = list(&b, UID_QUERY_LENGTHS, CUDNN_DATA_INT32, n->spans);
    b.key_lengths = list(&b, UID_KEY_LENGTHS, CUDNN_DATA_INT32, n->spans);
    b.query_offsets = list(&b, UID_QUERY_OFFSETS, CUDNN_DATA_INT64, n->spans + 1);
    b.key_offsets = list(&b, UID_KEY_OFFSETS, CUDNN_DATA_INT64, n->spans + 1);
    b.stats_offsets = list(&b, UID_STATS_OFFSETS, CUDNN_DATA_INT64, n->spans + 1);
    b.scale = number(&b, UID_SCALE);
    return b;
}

/* [spans, heads, rows, size] as it lies in rows of all heads; transposed: its last two the other way round. */
static KnCudnnTensor rows_of(Builder *b, int64_t uid, int of_keys, int transposed)
{
    const KnCudnnShape *n = b->n;
    const int64_t rows = of_keys ? n->keys : n->queries, row = n->row_heads * n->size;
    KnCudnnTensorKind kind = {.uid = uid,
                              .type = CUDNN_DATA_BFLOAT16,
                              .dims = {n->spans, n->heads, rows, n->size},
                              .strides = {rows * row, n->size, row, 1},
                              .offsets = of_keys ? b->key_offsets : b->query_offsets};
    if (transposed) {
        kind.dims[2] = n->size, kind.dims[3] = rows;
        kind.strides[2] = 1, kind.strides[3] = row;
    }
    return kn_cudnn_tensor(b->graph, &kind);
}

/* [spans, heads, queries, 1] */
static KnCudnnTensor statistic(Builder *b, int64_t uid)
{
    const KnCudnnShape *n = b->n;
    KnCudnnTensorKind kind = {.uid = uid,
                              .type = CUDNN_DATA_FLOAT,
                              .dims = {n->spans, n->heads, n->queries, 1},
                              .strides = {n->heads * n->queries, n->queries, 1, 1}};
    if (uid == UID_STATS && n->ragged) {
        kind.strides[0] = n->row_heads * n->queries, kind.strides[1] = 1, kind.strides[2] = n->row_heads;
        kind.offsets = b->stats_offsets;
    }
    return kn_cudnn_tensor(b->graph, &kind);
}

/* [spans, heads, queries, keys], within the graph. */
static KnCudnnTensor scores(Builder *b, cudnnDataType_t type)
{
    const KnCudnnShape *n = b->n;
    return kn_cudnn_tensor(
        b->graph, &(KnCudnnTensorKind){.type = type,
                                       .dims = {n->spans, n->heads, n->queries, n->keys},
                                       .strides = {n->heads * n->queries * n->keys, n->queries * n->keys, n->keys, 1}});
}

static KnCudnnTensor scores_transposed(Builder *b)
{
    const KnCudnnShape *n = b->n;
    return kn_cudnn_tensor(
        b->graph, &(KnCudnnTensorKind){.type = CUDNN_DATA_BFLOAT16,
                                       .dims = {n->spans, n->heads, n->keys, n->queries},
                                       .strides = {n->heads * n->queries * n->keys, n->queries * n->keys, 1, n->keys}});
}

static KnCudnnTensor pointwise(Builder *b, cudnnPointwiseMode_t mode, KnCudnnTensor x, KnCudnnTensor with,
                               KnCudnnTensor y)
{
    kn_cudnn_pointwise(b->graph,
                       &(KnCudnnPointwise){.mode = mode, .type = CUDNN_DATA_FLOAT, .x = x, .b = with, .y = y});
    return y;
}

static KnCudnnTensor combined(Builder *b, cudnnPointwiseMode_t mode, KnCudnnTensor x, KnCudnnTensor with)
{
    return pointwise(b, mode, x, with, scores(b, CUDNN_DATA_FLOAT));
}

/* Whether a score's place along an axis lies before its span's length. */
static KnCudnnTensor within(Builder *b, KnCudnnTensor x, int64_t axis, KnCudnnTensor lengths)
{
    KnCudnnTensor place = scores(b, CUDNN_DATA_INT32), inside = scores(b, CUDNN_DATA_BOOLEAN);
    kn_cudnn_pointwise(
        b->graph, &(KnCudnnPointwise){
                      .mode = CUDNN_POINTWISE_GEN_INDEX, .type = CUDNN_DATA_INT32, .axis = axis, .x = x, .y = place});
    kn_cudnn_pointwise(
        b->graph,
        &(KnCudnnPointwise){
            .mode = CUDNN_POINTWISE_CMP_LT, .type = CUDNN_DATA_BOOLEAN, .x = place, .b = lengths, .y = inside});
    return inside;
}

/* -inf outside of the span. */
static KnCudnnTensor masked(Builder *b, KnCudnnTensor x)
{
    if (!b->n->ragged)
        return x;
    KnCudnnTensor row = within(b, x, 2, b->query_lengths), column = within(b, x, 3, b->key_lengths);
    KnCudnnTensor both = scores(b, CUDNN_DATA_BOOLEAN), y = scores(b, CUDNN_DATA_FLOAT);
    kn_cudnn_pointwise(
        b->graph,
        &(KnCudnnPointwise){
            .mode = CUDNN_POINTWISE_LOGICAL_AND, .type = CUDNN_DATA_BOOLEAN, .x = row, .b = column, .y = both});
    kn_cudnn_pointwise(b->graph, &(KnCudnnPointwise){.mode = CUDNN_POINTWISE_BINARY_SELECT,
                                                     .type = CUDNN_DATA_FLOAT,
                                                     .x = x,
                                                     .b = number(b, UID_HIDDEN),
                                                     .t = both,
                                                     .y = y});
    return y;
}

/* [queries, keys] = [queries, size] [size, keys] */
static KnCudnnTensor product_over_size(Builder *b, KnCudnnTensor queries, KnCudnnTensor keys_transposed)
{
    KnCudnnTensor c = scores(b, CUDNN_DATA_FLOAT);
    kn_cudnn_product(
        b->graph,
        &(KnCudnnProduct){
            .a = queries, .b = keys_transposed, .c = c, .m_lengths = b->query_lengths, .n_lengths = b->key_lengths});
    return c;
}

static void product_over_keys(Builder *b, KnCudnnTensor a, KnCudnnTensor keys, KnCudnnTensor c)
{
    kn_cudnn_product(
        b->graph,
        &(KnCudnnProduct){.a = a, .b = keys, .c = c, .m_lengths = b->query_lengths, .k_lengths = b->key_lengths});
}

static void product_over_queries(Builder *b, KnCudnnTensor a, KnCudnnTensor queries, KnCudnnTensor c)
{
    KnCudnnTensor transposed = scores_transposed(b);
    kn_cudnn_reshape(b->graph, a, transposed);
    kn_cudnn_product(
        b->graph,
        &(KnCudnnProduct){
            .a = transposed, .b = queries, .c = c, .m_lengths = b->key_lengths, .k_lengths = b->query_lengths});
}

static void build_forward(Builder *b)
{
    KnCudnnTensor q = rows_of(b, UID_Q, 0, 0), k = rows_of(b, UID_K, 1, 1), v = rows_of(b, UID_V, 1, 0);
    KnCudnnTensor most = statistic(b, 0), sum = statistic(b, 0), stats = statistic(b, UID_STATS);
    KnCudnnTensor s = masked(b, combined(b, CUDNN_POINTWISE_MUL, product_over_size(b, q, k), b->scale));
    kn_cudnn_reduce(b->graph, CUDNN_REDUCE_TENSOR_MAX, s, most);
    s = combined(b, CUDNN_POINTWISE_EXP, combined(b, CUDNN_POINTWISE_SUB, s, most), NULL);
    kn_cudnn_reduce(b->graph, CUDNN_REDUCE_TENSOR_ADD, s, sum);
    KnCudnnTensor logarithm = pointwise(b, CUDNN_POINTWISE_LOG, sum, NULL, statistic(b, 0));
    pointwise(b, CUDNN_POINTWISE_ADD, most, logarithm, stats);
    KnCudnnTensor p = pointwise(b, CUDNN_POINTWISE_DIV, s, sum, scores(b, CUDNN_DATA_BFLOAT16));
    product_over_keys(b, p, v, rows_of(b, UID_OUT, 0, 0));
}

static KnCudnnTensor build_delta(Builder *b, KnCudnnTensor grad_out)
{
    const KnCudnnShape *n = b->n;
    KnCudnnTensor products =
        kn_cudnn_tensor(b->graph, &(KnCudnnTensorKind){.type = CUDNN_DATA_FLOAT,
                                                       .dims = {n->spans, n->heads, n->queries, n->size},
                                                       .strides = {n->heads * n->queries * n->size,
                                                                   n->queries * n->size, n->heads * n->size, 1}});
    KnCudnnTensor sum = statistic(b, 0);
    pointwise(b, CUDNN_POINTWISE_MUL, grad_out, rows_of(b, UID_OUT, 0, 0), products);
    kn_cudnn_reduce(b->graph, CUDNN_REDUCE_TENSOR_ADD, products, sum);
    return pointwise(b, CUDNN_POINTWISE_MUL, sum, number(b, UID_ONE), statistic(b, UID_DELTA));
}

static void build_backward(Builder *b)
{
    KnCudnnTensor q = rows_of(b, UID_Q, 0, 0), k = rows_of(b, UID_K, 1, 1), v = rows_of(b, UID_V, 1, 1);
    KnCudnnTensor grad_out = rows_of(b, UID_GRAD_OUT, 0, 0), delta = build_delta(b, grad_out);
    KnCudnnTensor s = combined(b, CUDNN_POINTWISE_MUL, product_over_size(b, q, k), b->scale);
    s = masked(b, combined(b, CUDNN_POINTWISE_SUB, s, statistic(b, UID_STATS)));
    KnCudnnTensor p = combined(b, CUDNN_POINTWISE_EXP, s, NULL);
    product_over_queries(b, p, grad_out, rows_of(b, UID_DV, 1, 0));
    KnCudnnTensor ds = combined(b, CUDNN_POINTWISE_SUB, product_over_size(b, grad_out, v), delta);
    ds = combined(b, CUDNN_POINTWISE_MUL, combined(b, CUDNN_POINTWISE_MUL, ds, p), b->scale);
    product_over_queries(b, ds, q, rows_of(b, UID_DK, 1, 0));
    KnCudnnTensor keys = rows_of(b, 0, 1, 0);
    kn_cudnn_reshape(b->graph, k, keys);
    product_over_keys(b, ds, keys, rows_of(b, UID_DQ, 0, 0));
}

void kn_cudnn_attention(KnCudnnGraph *graph, const KnCudnnShape *shape)
{
    Builder b = begin(graph, shape);
    KN_ASSERT(shape->heads <= shape->row_heads);
    (shape->backward ? build_backward : build_forward)(&b);
}

/* ---- running ---- */

enum { MOST_ARGUMENTS = 20 };
typedef struct Arguments {
    int64_t uids[MOST_ARGUMENTS];
    void *addresses[MOST_ARGUMENTS];
    int64_t count;
} Arguments;

static void give(Arguments *arguments, int64_t uid, const void *address)
{
    KN_ASSERT(arguments->count < MOST_ARGUMENTS);
    arguments->uids[arguments->count] = uid;
    arguments->addresses[arguments->count++] = (void *)address;
}

static void give_lists(Arguments *arguments, const KnCudnnCall *call, float *hidden)
{
    give(arguments, UID_QUERY_LENGTHS, call->query_lengths);
    give(arguments, UID_KEY_LENGTHS, call->key_lengths);
    give(arguments, UID_QUERY_OFFSETS, call->query_offsets);
    give(arguments, UID_KEY_OFFSETS, call->key_offsets);
    give(arguments, UID_STATS_OFFSETS, call->stats_offsets);
    give(arguments, UID_HIDDEN, hidden);
}

static void give_gradients(Arguments *arguments, const KnCudnnCall *call, float *one)
{
    give(arguments, UID_GRAD_OUT, call->grad_out);
    give(arguments, UID_DQ, call->dq);
    give(arguments, UID_DK, call->dk);
    give(arguments, UID_DV, call->dv);
    give(arguments, UID_DELTA, call->delta);
    give(arguments, UID_ONE, one);
}

int kn_cudnn_run(KnCudnn *cudnn, const KnCudnnPlan *plan, const KnCudnnCall *call, cudaStream_t stream)
{
    float scale = call->scale, hidden = -INFINITY, one = 1;
    Arguments arguments = {.count = 0};
    KnCudnnGraph graph = {.cudnn = cudnn};
    KN_ASSERT(cudnn->handle);
    give(&arguments, UID_Q, call->q);
    give(&arguments, UID_K, call->k);
    give(&arguments, UID_V, call->v);
    give(&arguments, UID_OUT, call->out);
    give(&arguments, UID_STATS, call->stats);
    give(&arguments, UID_SCALE, &scale);
    if (plan->shape.ragged)
        give_lists(&arguments, call, &hidden);
    if (plan->shape.backward)
        give_gradients(&arguments, call, &one);
    KN_TRY(kn_cudnn_check(cudnn, cudnn->cudnnSetStream(cudnn->handle, stream), "choosing a stream"));
    cudnnBackendDescriptor_t pack = kn_cudnn_descriptor(&graph, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    kn_cudnn_set(&graph, pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, arguments.count, arguments.uids);
    kn_cudnn_set(&graph, pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, arguments.count,
                 arguments.addresses);
    kn_cudnn_set(&graph, pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &call->workspace);
    kn_cudnn_finalize(&graph, pack, "the operands of attention");
    if (graph.code == KN_OK)
        graph.code = kn_cudnn_check(cudnn, cudnn->cudnnBackendExecute(cudnn->handle, plan->plan, pack), "attention");
    kn_cudnn_graph_clear(&graph);
    return graph.code;
}
