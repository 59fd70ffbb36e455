/* What the files of the CUDA backend share; nobody else includes it. They are a plugin, kinora-cuda.so, which the
 * program opens where there are GPUs (core/graph/devices.h).
 *
 *     backend.c          the table: memory, copies, and each node to its row of table.c
 *     table.c            by op: which function runs it
 *     lower.c            what the graph is rewritten to
 *     matmul.c           products, by cuBLASLt
 *     run_*.c            from a node's tensors and attributes to the kernels' plain numbers, one file for an op family
 *     *.cu, kernels.h    the kernels; they take primitives only
 *
 * Everything is queued on one stream, and nothing waits for the device but a read by the host. What goes wrong on the
 * device, such as an index that names no row, is left in `fault` and reported by the next read. */
#ifndef KN_CUDA_CUDA_H
#define KN_CUDA_CUDA_H

#include "core/cuda/kernels.h"
#include "core/graph/executor.h"
#include "core/ops/ops.h"

#include <cuda_runtime_api.h>

typedef struct KnCuda {
    KnBackend base;
    int device;
    cudaStream_t stream;
    char id[48];
    struct cudaDeviceProp properties;
    KnCudaFault *faults; /* on the device, by op id */
    KnCudaFault *fault;  /* of the op that runs */
    struct KnCudaMatmuls *matmuls;
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

/* Rewrites a finished graph (KnBackend.lower). */
void kn_cuda_lower(KnGraph *graph);

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
