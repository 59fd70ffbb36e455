/* The kernels of this instruction set, one for each op, as core/cpu/simd/table.c collects them. */
#ifndef KN_CPU_SIMD_KERNELS_H
#define KN_CPU_SIMD_KERNELS_H

#include "core/cpu/backend.h"
#include "core/cpu/simd/isa.h"

/* KERNEL(op id without KN_OP_, kernel name without kn_cpu_) */
#define KN_CPU_KERNELS(KERNEL)                                                                                         \
    KERNEL(MATMUL, matmul)                                                                                             \
    KERNEL(PACK_MATRIX, pack_matrix)                                                                                   \
    KERNEL(SUM_ROWS, sum_rows)                                                                                         \
    KERNEL(ATTENTION, attention)                                                                                       \
    KERNEL(ATTENTION_BACKWARD, attention_backward)                                                                     \
    KERNEL(ATTENTION_MERGE, attention_merge)                                                                           \
    KERNEL(SPAN_WINDOW, span_window)                                                                                   \
    KERNEL(LAYER_NORM, layer_norm)                                                                                     \
    KERNEL(LAYER_NORM_BACKWARD, layer_norm_backward)                                                                   \
    KERNEL(RMS_NORM, rms_norm)                                                                                         \
    KERNEL(RMS_NORM_BACKWARD, rms_norm_backward)                                                                       \
    KERNEL(ROW_SQUARES, row_squares)                                                                                   \
    KERNEL(ROW_SQUARES_BACKWARD, row_squares_backward)                                                                 \
    KERNEL(RMS_NORM_SPLIT, rms_norm_split)                                                                             \
    KERNEL(RMS_NORM_SPLIT_BACKWARD, rms_norm_split_backward)                                                           \
    KERNEL(MODULATE, modulate)                                                                                         \
    KERNEL(MODULATE_BACKWARD, modulate_backward)                                                                       \
    KERNEL(GATED_RESIDUAL, gated_residual)                                                                             \
    KERNEL(GATED_RESIDUAL_BACKWARD, gated_residual_backward)                                                           \
    KERNEL(ROPE, rope)                                                                                                 \
    KERNEL(TIMESTEP_EMBEDDING, timestep_embedding)                                                                     \
    KERNEL(ACTIVATION, activation)                                                                                     \
    KERNEL(ACTIVATION_BACKWARD, activation_backward)                                                                   \
    KERNEL(ADD, add)                                                                                                   \
    KERNEL(ADD_ROW, add_row)                                                                                           \
    KERNEL(MULTIPLY, multiply)                                                                                         \
    KERNEL(SCALE, scale)                                                                                               \
    KERNEL(CAST, cast)                                                                                                 \
    KERNEL(GATHER_ROWS, gather_rows)                                                                                   \
    KERNEL(SCATTER_ROWS, scatter_rows)                                                                                 \
    KERNEL(CONCATENATE, concatenate)                                                                                   \
    KERNEL(SLICE, slice)                                                                                               \
    KERNEL(PAD, pad)                                                                                                   \
    KERNEL(SWAP_AXES, swap_axes)                                                                                       \
    KERNEL(GROUP_COLUMNS, group_columns)                                                                               \
    KERNEL(UNGROUP_COLUMNS, ungroup_columns)                                                                           \
    KERNEL(SPLIT_COLUMNS, split_columns)                                                                               \
    KERNEL(JOIN_COLUMNS, join_columns)                                                                                 \
    KERNEL(MASKED_MSE, masked_mse)                                                                                     \
    KERNEL(MASKED_MSE_BACKWARD, masked_mse_backward)                                                                   \
    KERNEL(SUM_OF_SQUARES, sum_of_squares)                                                                             \
    KERNEL(ACCUMULATE, accumulate)                                                                                     \
    KERNEL(ADAMW, adamw)                                                                                               \
    KERNEL(MOMENTUM, momentum)                                                                                         \
    KERNEL(ORTHOGONALIZE, orthogonalize)                                                                               \
    KERNEL(DESCEND, descend)                                                                                           \
    KERNEL(EMA, ema)                                                                                                   \
    KERNEL(COLLECTIVE_START, collective_start)                                                                         \
    KERNEL(COLLECTIVE_WAIT, collective_wait)                                                                           \
    KERNEL(REPLICATE, replicate)                                                                                       \
    KERNEL(VIEW, view)                                                                                                 \
    KERNEL(ZEROS, zeros)

#define KN_CPU_DECLARE_KERNEL(id, name) extern const KnCpuKernel KN_ISA_NAME(kn_cpu_##name);
KN_CPU_KERNELS(KN_CPU_DECLARE_KERNEL)
#undef KN_CPU_DECLARE_KERNEL

/* By KnOpId; NULL is an op that this backend does not have. */
extern const KnCpuKernel *const KN_ISA_NAME(kn_cpu_kernel_table)[KN_OP_COUNT];

#endif
