/* Which row of the backend runs an op. */
#include "core/cuda/cuda.h"

#define ROW(id, name) [KN_OP_##id] = &kn_cuda_op_##name,
const KnCudaOp *const kn_cuda_ops[KN_OP_COUNT] = {KN_CUDA_OPS(ROW)};
