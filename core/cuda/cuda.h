/* What the files of the CUDA backend share; nobody else includes it. They are a plugin, kinora-cuda.so, which the
 * program opens where there are GPUs (core/graph/devices.h).
 *
 *     backend.c          the table: memory, copies, and each node to its row of table.c
 *     table.c            by op: which function runs it
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
    KnCudaFault *fault; /* on the device */
} KnCuda;

typedef struct KnCudaOp {
    cudaError_t (*run)(KnCuda *cuda, const KnCall *call);
    size_t (*workspace_bytes)(const KnNode *node); /* NULL: none */
} KnCudaOp;

/* OP(op id without KN_OP_, name of its row without kn_cuda_op_) */
#define KN_CUDA_OPS(OP)                                                                                                \
    OP(ACTIVATION, activation)                                                                                         \
    OP(ACTIVATION_BACKWARD, activation_backward)                                                                       \
    OP(ADD, add)                                                                                                       \
    OP(ADD_ROW, add_row)                                                                                               \
    OP(MULTIPLY, multiply)                                                                                             \
    OP(SCALE, scale)                                                                                                   \
    OP(CAST, cast)

#define KN_CUDA_DECLARE_OP(id, name) extern const KnCudaOp kn_cuda_op_##name;
KN_CUDA_OPS(KN_CUDA_DECLARE_OP)
#undef KN_CUDA_DECLARE_OP

/* By KnOpId; NULL is an op that this backend does not have. */
extern const KnCudaOp *const kn_cuda_ops[KN_OP_COUNT];

/* The result of a function of the runtime as a code with a sentence; `what` says what was tried. */
int kn_cuda_check(cudaError_t result, const char *what);

static inline int kn_cuda_is_bf16(const KnTensor *tensor)
{
    return tensor->dtype == KN_BF16;
}

#endif
