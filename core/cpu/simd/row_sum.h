/* Sums over tokens, sorted by the row that each token points at: what gradients of modulations, gates, norms' weights,
 * biases and gathers have in common. For every row r of `rows` and column c:
 *     out0[r][c] = sum of g[l][c] * (x[l][c] - mean[l]) * rstd[l]      (x NULL: of g; mean or rstd NULL: 0 and 1)
 *     out1[r][c] = sum of g[l][c]                                      (unless out1 is NULL)
 * over the tokens l that point at r, in order. Runs of up to 128 tokens are summed one after the other, then the runs'
 * sums in order: the same bits whatever the number of threads. Rows that nobody points at become zeros. */
#ifndef KN_CPU_SIMD_ROW_SUM_H
#define KN_CPU_SIMD_ROW_SUM_H

#include "core/cpu/simd/kernel.h"

typedef struct KnRowSum {
    const KnNode *node; /* named in errors */
    int64_t tokens, columns, rows;
    const int32_t *row_of; /* per token; NULL: all tokens point at row 0 */
    int allow_negative;    /* tokens with a negative row are left out; otherwise they are an error */
    const void *g, *x;     /* [tokens, columns] of one dtype */
    int bf16;
    const float *mean, *rstd; /* per token, `stride` floats apart */
    int64_t stride;
    void *out0; /* f32, or bf16 if out0_bf16 */
    int out0_bf16;
    float *out1;
} KnRowSum;

/* Workspace for `outputs` (1 or 2) results. */
size_t KN_ISA_NAME(kn_row_sum_bytes)(int64_t tokens, int64_t columns, int64_t rows, int outputs);
int KN_ISA_NAME(kn_row_sum)(const KnRowSum *sum, void *workspace);

#endif
