/* The CPU matrix product: C[M,N] = epilogue(alpha A[M,K] B[K,N] + bias[N]), accumulated in float32.
 *
 * A and B are both f32 or both bf16, each stored plainly (rows apart by a leading dimension) or transposed; C is f32 or
 * bf16. B can also be packed ahead of time: a weight is packed once per optimizer step and multiplied many times.
 *
 * The bits of C depend on the shapes, the values and the instruction set (core/cpu/isa.h), never on the number of
 * threads nor on how rows and columns were cut among them: each element is summed over K in one fixed order.
 *
 * Nothing is allocated: the caller gives kn_matmul_workspace_bytes of scratch, 64-byte aligned. Operands must not
 * overlap C. All leading dimensions are in elements; 0 stands for "dense". Mistaken sizes are KN_ASSERTs.
 *
 *     KnMatmul product = {.m = 1024, .n = 512, .k = 128, .type = KN_BF16, .a = x, .b = packed, .b_form = KN_PACKED,
 *                         .c = y, .c_type = KN_BF16, .bias = bias};
 *     kn_matmul_run(&product, workspace);     (workspace of kn_matmul_workspace_bytes(&product)) */
#ifndef KN_CPU_MATMUL_H
#define KN_CPU_MATMUL_H

#include "core/graph/graph.h"

typedef enum KnMatrixForm {
    KN_PLAIN,      /* stored as written in the formula: A [M,K], B [K,N] */
    KN_TRANSPOSED, /* stored the other way round: A [K,M], B [N,K] */
    KN_PACKED      /* B only: written by kn_matmul_pack */
} KnMatrixForm;

typedef enum KnEpilogue { KN_EPILOGUE_NONE, KN_EPILOGUE_GELU_TANH, KN_EPILOGUE_SILU } KnEpilogue;

typedef struct KnMatmul {
    int64_t m, n, k;
    KnDtype type; /* of A and B: KN_F32 or KN_BF16 */
    const void *a;
    int64_t lda;
    KnMatrixForm a_form; /* KN_PLAIN or KN_TRANSPOSED */
    const void *b;
    int64_t ldb; /* not read when packed */
    KnMatrixForm b_form;
    void *c;
    int64_t ldc;
    KnDtype c_type;    /* KN_F32 or KN_BF16 */
    float alpha;       /* 0 stands for 1 */
    const float *bias; /* [n] or NULL */
    int accumulate;    /* C += instead of C =; C must be f32 and there is no activation */
    KnEpilogue activation;
    void *preactivation; /* [m,n] like C, of C's type and leading dimension: the values that enter the activation; or
                            NULL */
} KnMatmul;

/* Runs the product on the team of threads (core/cpu/team.h). */
void kn_matmul_run(const KnMatmul *product, void *workspace);
/* Runs it on the calling thread alone; for callers' own blocks of many small products. Same bits as
 * kn_matmul_run. Each thread needs its own workspace. */
void kn_matmul_serial(const KnMatmul *product, void *workspace);
/* Scratch that either of them needs; may be 0. Looks at sizes, types and forms only, not at pointers. */
size_t kn_matmul_workspace_bytes(const KnMatmul *product);

/* A packed B: panels of 16 columns, zero-filled to whole panels. bf16: [ceil(n/16)][k32/2][16][2] with k32 = k rounded
 * up to 32, so that a pair of k neighbours lies together; f32: [ceil(n/16)][k][16]. 64-byte aligned memory. The same
 * for every instruction set. */
size_t kn_matmul_packed_bytes(int64_t k, int64_t n, KnDtype type);

typedef struct KnMatmulPack {
    int64_t k, n;
    KnDtype type; /* of the packed values */
    const void *b;
    KnDtype b_type; /* f32 or bf16; f32 is rounded to nearest even when bf16 is packed; bf16 -> f32 is exact */
    int64_t ldb;
    KnMatrixForm b_form; /* KN_PLAIN: [k,n]; KN_TRANSPOSED: [n,k], as linear layers store their weights */
    void *packed;        /* kn_matmul_packed_bytes(k, n, type), 64-byte aligned */
} KnMatmulPack;

void kn_matmul_pack(const KnMatmulPack *pack);        /* on the team of threads */
void kn_matmul_pack_serial(const KnMatmulPack *pack); /* on the calling thread */

/* GFLOP/s (2 per multiply-add) that all threads reach together on the best product that there is for this machine:
 * packed operands in cache, no memory traffic. Measured now, for about `seconds`; the yardstick of "share of peak". */
double kn_matmul_peak(KnDtype type, double seconds);

/* The name of the kernel that would run products of this type, e.g. "avx512bf16 8x48". */
const char *kn_matmul_kernel_name(KnDtype type);

#endif
