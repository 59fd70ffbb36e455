/* The matmul op on core/cpu/matmul.h, the packing of its constant operands, and the sum over rows. */
#include "core/cpu/matmul.h"
#include "core/cpu/simd/kernels.h"
#include "core/cpu/simd/row_sum.h"

static KnMatmul product_of(const KnNode *node)
{
    const KnMatmulAttributes *p = (const KnMatmulAttributes *)node->attributes;
    return (KnMatmul){.m = p->m,
                      .n = p->n,
                      .k = p->k,
                      .type = node->inputs[0]->dtype,
                      .a_form = p->transpose_a ? KN_TRANSPOSED : KN_PLAIN,
                      .b_form = p->packed_b      ? KN_PACKED
                                : p->transpose_b ? KN_TRANSPOSED
                                                 : KN_PLAIN,
                      .c_type = node->outputs[0]->dtype};
}

static size_t matmul_bytes(const KnNode *node)
{
    KnMatmul product = product_of(node);
    return kn_matmul_workspace_bytes(&product);
}

static int run_matmul(const KnCall *call)
{
    KnMatmul product = product_of(call->node);
    product.a = call->inputs[0];
    product.b = call->inputs[1];
    product.bias = call->inputs[2];
    product.c = call->outputs[0];
    kn_matmul_run(&product, call->workspace);
    return KN_OK;
}

static int run_pack_matrix(const KnCall *call)
{
    const KnPackAttributes *p = (const KnPackAttributes *)call->node->attributes;
    KnMatmulPack pack = {.k = p->k,
                         .n = p->n,
                         .type = p->dtype,
                         .b = call->inputs[0],
                         .b_type = call->node->inputs[0]->dtype,
                         .b_form = p->transpose ? KN_TRANSPOSED : KN_PLAIN,
                         .packed = call->outputs[0]};
    kn_matmul_pack(&pack);
    return KN_OK;
}

static size_t sum_rows_bytes(const KnNode *node)
{
    const KnTensor *x = node->inputs[0];
    return KN_ISA_NAME(kn_row_sum_bytes)(kn_tensor_rows(x), kn_tensor_columns(x), 1, 1);
}

static int run_sum_rows(const KnCall *call)
{
    const KnTensor *x = call->node->inputs[0];
    KnRowSum sum = {.node = call->node,
                    .tokens = kn_tensor_rows(x),
                    .columns = kn_tensor_columns(x),
                    .rows = 1,
                    .g = call->inputs[0],
                    .bf16 = kn_is_bf16(x),
                    .out0 = call->outputs[0]};
    return KN_ISA_NAME(kn_row_sum)(&sum, call->workspace);
}

const KnCpuKernel KN_ISA_NAME(kn_cpu_matmul) = {run_matmul, matmul_bytes};
const KnCpuKernel KN_ISA_NAME(kn_cpu_pack_matrix) = {run_pack_matrix, NULL};
const KnCpuKernel KN_ISA_NAME(kn_cpu_sum_rows) = {run_sum_rows, sum_rows_bytes};
