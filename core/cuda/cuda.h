/* What the files of the CUDA backend share; nobody else includes it. They are a plugin, kinora-cuda.so, which the
 * program opens where there are GPUs (core/graph/devices.h).
 *
 *     backend.c          the table: memory, and each node to its row of table.c
 *     staging.c          copies to the device that nobody waits for
 *     queue.c            timing and recording what is queued
 *     table.c            by op: which function runs it
 *     lower.c            what the graph is rewritten to; lower_add.c: sums in products; lower_sums.c: sums in passes;
 *                        lower_rope.c, lower_residual.c: rotary positions and gated residuals in norms; lower_fp8.c:
 *                        products in 8 bits
 *     work.c             what kernels move, for plans
 *     matmul.c           products, by cuBLASLt or, without it, by product.cu
 *     attention_library.c  attention by cuDNN, where that is faster; cudnn/ is the door to it
 *     run_*.c            from a node's tensors and attributes to the kernels' plain numbers, one file for an op family
 *     *.cu, kernels.h    the kernels; they take primitives only
 *
 * Everything is queued on one stream, but copies from the host, which go up on another one. Nothing waits for the
 * device but a read by the host, freeing memory, staging of what would overwrite bytes still on their way, and timing.
 * What goes wrong on the device, such as an index that names no row, is left in `fault`
 * and reported by the next read. */
#ifndef KN_CUDA_CUDA_H
#define KN_CUDA_CUDA_H

#include "core/cuda/kernels.h"
#include "core/graph/executor.h"
#include "core/ops/ops.h"

#include <cuda_runtime_api.h>

typedef struct KnCuda {
    KnBackend base;
    int device;
    int has_fp8; /* products of 8-bit floats: compute capability 9 (8.9 has them, but runs the kernels of 8.0), cuBLASLt
                  */
    char id[48];
    struct cudaDeviceProp properties;
    cudaStream_t stream, copies;
    KnCudaFault *faults, *seen; /* on the device, by op id; the host's copy of them, pinned */
    KnCudaFault *fault;         /* of the op that runs */
    KnStaging *writes;          /* of what is written piece by piece */
    struct KnCudaMoments *moments;
    struct KnCudaMatmuls *matmuls;
    struct KnCudaLibrary *library; /* attention's; NULL: not asked for */
} KnCuda;

/* `run` gives back the first error of what it queued; where it leaves a sentence itself, KN_CUDA_SENTENCE. */
enum { KN_CUDA_SENTENCE = -1 };
typedef struct KnCudaOp {
    cudaError_t (*run)(KnCuda *cuda, const KnCall *call);
    size_t (*workspace_bytes)(const KnNode *node); /* NULL: none */
} KnCudaOp;

/* OP(op id without KN_OP_, name of its row without kn_cuda_op_) */
#define KN_CUDA_OPS(OP)                                                                                                \
    OP(MATMUL, matmul)                                                                                                 \
    OP(SUM_ROWS, sum_rows)                                                                                             \
    OP(QUANTIZE, quantize)                                                                                             \
    OP(LAYER_NORM, layer_norm)                                                                                         \
    OP(LAYER_NORM_BACKWARD, layer_norm_backward)                                                                       \
    OP(RMS_NORM, rms_norm)                                                                                             \
    OP(RMS_NORM_BACKWARD, rms_norm_backward)                                                                           \
    OP(ROW_SQUARES, row_squares)                                                                                       \
    OP(ROW_SQUARES_BACKWARD, row_squares_backward)                                                                     \
    OP(RMS_NORM_SPLIT, rms_norm_split)                                                                                 \
    OP(RMS_NORM_SPLIT_BACKWARD, rms_norm_split_backward)                                                               \
    OP(MODULATE, modulate)                                                                                             \
    OP(MODULATE_BACKWARD, modulate_backward)                                                                           \
    OP(GATED_RESIDUAL, gated_residual)                                                                                 \
    OP(GATED_RESIDUAL_BACKWARD, gated_residual_backward)                                                               \
    OP(ACTIVATION, activation)                                                                                         \
    OP(ACTIVATION_BACKWARD, activation_backward)                                                                       \
    OP(ADD, add)                                                                                                       \
    OP(ADD_ROW, add_row)                                                                                               \
    OP(MULTIPLY, multiply)                                                                                             \
    OP(SCALE, scale)                                                                                                   \
    OP(CAST, cast)                                                                                                     \
    OP(GATHER_ROWS, gather_rows)                                                                                       \
    OP(SCATTER_ROWS, scatter_rows)                                                                                     \
    OP(CONCATENATE, concatenate)                                                                                       \
    OP(SLICE, slice)                                                                                                   \
    OP(PAD, pad)                                                                                                       \
    OP(SWAP_AXES, swap_axes)                                                                                           \
    OP(GROUP_COLUMNS, group_columns)                                                                                   \
    OP(UNGROUP_COLUMNS, ungroup_columns)                                                                               \
    OP(SPLIT_COLUMNS, split_columns)                                                                                   \
    OP(JOIN_COLUMNS, join_columns)                                                                                     \
    OP(ROPE, rope)                                                                                                     \
    OP(TIMESTEP_EMBEDDING, timestep_embedding)                                                                         \
    OP(MASKED_MSE, masked_mse)                                                                                         \
    OP(MASKED_MSE_BACKWARD, masked_mse_backward)                                                                       \
    OP(SUM_OF_SQUARES, sum_of_squares)                                                                                 \
    OP(ACCUMULATE, accumulate)                                                                                         \
    OP(ADAMW, adamw)                                                                                                   \
    OP(MOMENTUM, momentum)                                                                                             \
    OP(ORTHOGONALIZE, orthogonalize)                                                                                   \
    OP(DESCEND, descend)                                                                                               \
    OP(EMA, ema)                                                                                                       \
    OP(ATTENTION, attention)                                                                                           \
    OP(ATTENTION_BACKWARD, attention_backward)                                                                         \
    OP(ATTENTION_MERGE, attention_merge)                                                                               \
    OP(SPAN_WINDOW, span_window)                                                                                       \
    OP(COLLECTIVE_START, collective_start)                                                                             \
    OP(COLLECTIVE_WAIT, collective_wait)                                                                               \
    OP(REPLICATE, replicate)                                                                                           \
    OP(VIEW, view)                                                                                                     \
    OP(ZEROS, zeros)

#define KN_CUDA_DECLARE_OP(id, name) extern const KnCudaOp kn_cuda_op_##name;
KN_CUDA_OPS(KN_CUDA_DECLARE_OP)
#undef KN_CUDA_DECLARE_OP

/* By KnOpId; NULL is an op that this backend does not have. */
extern const KnCudaOp *const kn_cuda_ops[KN_OP_COUNT];

/* The result of a function of the runtime as a code with a sentence; `what` says what was tried. */
int kn_cuda_check(cudaError_t result, const char *what);

/* By which kernels a node runs (KnBackend.kernels). */
int kn_cuda_kernels(const KnNode *node, KnKernelWork kernels[KN_MOST_KERNELS]);

/* How many groups from `first` on are as wide as it is: a kernel moves them together. */
int kn_cuda_alike_groups(const KnGroupAttributes *groups, int first);

/* backend.c: memory that other ranks never reach (KnBackend.comm), for cudaFree. */
int kn_cuda_allocate_unshared(KnBackend *backend, void **memory, size_t bytes, const char *what);

/* backend.c and staging.c: rows of KnDeviceMemory. */
int kn_cuda_allocate_pinned(KnBackend *backend, void **memory, size_t bytes, const char *what);
int kn_cuda_staging_create(KnBackend *backend, KnStaging **staging, size_t bytes);
int kn_cuda_stage(KnBackend *backend, KnStaging *staging, void **room);
int kn_cuda_send(KnBackend *backend, KnStaging *staging, void *device, size_t bytes);
void kn_cuda_staging_destroy(KnBackend *backend, KnStaging *staging); /* or NULL */

/* queue.c */
extern const KnQueue kn_cuda_queue;
void kn_cuda_queue_close(KnCuda *cuda);

/* run_rope.c: how rows are turned, positions and table being that input of the node and the next. */
KnCudaRope kn_cuda_rope_of(const KnCuda *cuda, const KnCall *call, const KnRopeAttributes *attributes, int positions);

/* Rewrites a finished graph (KnBackend.lower). */
void kn_cuda_lower(KnGraph *graph);

/* attention_library.c: after lowering, chooses nodes (KnAttentionAttributes.library_bytes); what is chosen is run by
 * it, with a workspace of that size. */
void kn_cuda_choose_attention(KnCuda *cuda, KnGraph *graph);
int kn_cuda_fits_library(const KnNode *node); /* by dtype and shape, whether or not it pays */
int kn_cuda_is_by_library(const KnNode *node, const KnCudaAttention *attention);
cudaError_t kn_cuda_attention_by_library(KnCuda *cuda, const KnNode *node, const KnCudaAttention *attention,
                                         void *workspace);
void kn_cuda_library_close(KnCuda *cuda);

static inline int kn_cuda_is_bf16(const KnTensor *tensor)
{
    return tensor->dtype == KN_BF16;
}

/* Whether the node's first operand is bfloat16. */
static inline int kn_cuda_bf16_of(const KnCall *call)
{
    return kn_cuda_is_bf16(call->node->inputs[0]);
}

#endif
