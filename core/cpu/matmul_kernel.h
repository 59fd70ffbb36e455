/* Between the matrix product's driver (matmul.c) and its kernels, one per instruction set and type: the driver cuts
 * the product into blocks and packs what needs packing; a kernel computes one block on one thread.
 *
 * Every kernel sums an element over K in the same order wherever the element lies in a block, and a sum that is
 * carried from one K step to the next goes through memory as f32 unrounded: hence bits do not depend on the cutting.
 * The exception is AMX, whose instruction sums 32 values of K at once; all cuts of K are therefore multiples of 32. */
#ifndef KN_CPU_MATMUL_KERNEL_H
#define KN_CPU_MATMUL_KERNEL_H

#include "core/cpu/isa.h"
#include "core/cpu/matmul.h"

enum { KN_PANEL = 16 }; /* columns of a packed panel */

typedef struct KnMatmulBlock {
    int64_t rows, columns, k;
    /* A in place: `rows` rows of k elements, a_stride bytes apart. A packed: panels of 16 rows, a_stride bytes apart;
     * f32 and bf16 as packed B, or, for kernels with rows_packing, [k32/32][16][32]. */
    const char *a;
    int64_t a_stride;
    int a_packed;
    const char *b; /* packed panels, b_stride bytes apart */
    int64_t b_stride;
    const float *start; /* sums so far [rows, columns], or NULL for 0 */
    int64_t ld_start;
    float *sums; /* where to leave unfinished sums; NULL: finish into c */
    int64_t ld_sums;
    char *c, *preactivation; /* at the block's first element */
    int64_t ldc;
    KnDtype c_type;
    float alpha;
    const float *bias; /* at the block's first column, or NULL */
    int accumulate;
    KnEpilogue activation;
} KnMatmulBlock;

typedef struct KnMatmulKernel {
    const char *name;
    KnIsa isa;
    KnDtype type;
    int tile_rows, tile_columns; /* what the kernel keeps in registers */
    int rows_packing;            /* packed A is laid out as rows, not as pairs */
    void (*block)(const KnMatmulBlock *block);
} KnMatmulKernel;

/* Packs panels [first_panel, last_panel) of a matrix X[k,n] for rows [first_k, last_k); see matmul.h for the layout.
 * `packed` is where panel 0 of row first_k goes; panels are panel_bytes apart. first_k is even. In bf16, rows
 * up to the next multiple of 32 are filled with zeros. */
typedef struct KnPackBlock {
    int64_t k, n;
    const void *x;
    int64_t ldx;
    KnDtype x_type, type;
    int transposed;
    int rows_packing;
    char *packed;
    int64_t panel_bytes;
    int64_t first_k, last_k, first_panel, last_panel;
} KnPackBlock;

KN_ISA_DECLARE(void, kn_matmul_pack_block, (const KnPackBlock *block));
KN_ISA_DECLARE(void, kn_matmul_block_f32, (const KnMatmulBlock *block));
KN_ISA_DECLARE(void, kn_matmul_block_bf16, (const KnMatmulBlock *block));
void kn_matmul_block_bf16_avx512bf16(const KnMatmulBlock *block);
void kn_matmul_block_bf16_amx(const KnMatmulBlock *block);

/* The best kernel for products of `type` that needs no more than `highest`. */
const KnMatmulKernel *kn_matmul_kernel(KnDtype type, KnIsa highest);
const KnMatmulKernel *kn_matmul_kernel_in_use(KnDtype type);

/* 1 if the kernel agrees with plain C on products with odd edges, A in place and packed. Takes microseconds. */
int kn_matmul_self_test(const KnMatmulKernel *kernel);

/* For tests: products of this kernel's type use it from now on; NULL, the one chosen for the machine. */
void kn_matmul_use_kernel(const KnMatmulKernel *kernel);

#endif
