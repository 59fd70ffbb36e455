/* The door to cuDNN: attention of packed spans, forward and backward, in bfloat16, and nothing else of it.
 *
 * libcudnn.so.9 is opened at run time, so that the plugin runs without it; only its headers are needed to build. Where
 * they are missing, absent.c stands here and says so; where there is no GPU, tests/emulated/cudnn.cu, a reference that
 * reads the same tables.
 *
 * A plan is made for a shape and kept. It depends on shapes alone, and running it only queues work: spans are read on
 * the device. Codes are negative with a sentence, which has cuDNN's status and its last message. One thread at a time.
 *
 *     library.c   the library's functions, errors
 *     graph.c     tensors and operations of its graphs
 *     attention.c the two graphs, and running them
 *     plan.c      from a graph to a plan, and the plans that are kept */
#ifndef KN_CUDA_CUDNN_CUDNN_H
#define KN_CUDA_CUDNN_CUDNN_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct KnCudnn KnCudnn;
typedef struct KnCudnnPlan KnCudnnPlan;

/* Compared as bytes. */
typedef struct KnCudnnShape {
    int64_t backward;
    int64_t ragged;        /* lengths and places of spans come from the device; else all are full, one after another */
    int64_t spans;         /* of one call */
    int64_t queries, keys; /* the most that a span has */
    int64_t heads;         /* of one call */
    int64_t row_heads;     /* in a row of q, k, v, out and their gradients */
    int64_t size;          /* columns of a head */
} KnCudnnShape;

/* Addresses on the device, but for `scale`. Those of q, k, v, out, gradients and stats are of the first head of the
 * call in row 0. */
typedef struct KnCudnnCall {
    const void *q, *k, *v;
    void *out;    /* the forward writes it and `stats`, the backward reads them */
    float *stats; /* log-sum-exp (natural): ragged [rows, row_heads], else [spans, heads, queries] */
    const void *grad_out;
    void *dq, *dk, *dv;
    float *delta; /* scratch of the backward, [spans, heads, queries] */
    /* Where ragged: rows of each span, [spans], and where they begin, [spans + 1], in elements of q, of k and of stats.
     * Rows of no span are not written. */
    const int32_t *query_lengths, *key_lengths;
    const int64_t *query_offsets, *key_offsets, *stats_offsets;
    void *workspace; /* kn_cudnn_plan_bytes */
    float scale;
} KnCudnnCall;

/* For the present device. `properties` (cuDNN's JSON) describes another device than is here, for which plans can be
 * made, not run; else NULL. */
int kn_cudnn_open(KnCudnn **cudnn, const char *properties);
void kn_cudnn_close(KnCudnn *cudnn);
/* "9.19.0" */
const char *kn_cudnn_version(const KnCudnn *cudnn);
/* The properties of the present device, as above. free() it; NULL where cuDNN does not tell. */
char *kn_cudnn_properties(KnCudnn *cudnn);

/* Whose results have the same bits in each run. The plan belongs to `cudnn`; a shape that was refused once is refused
 * again at once. */
int kn_cudnn_plan(KnCudnn *cudnn, const KnCudnnShape *shape, KnCudnnPlan **plan);
size_t kn_cudnn_plan_bytes(const KnCudnnPlan *plan);
int kn_cudnn_run(KnCudnn *cudnn, const KnCudnnPlan *plan, const KnCudnnCall *call, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
