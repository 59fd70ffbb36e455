/* The one op test table: every op, shape and dtype is a row; the harness does with each row what there is to do.
 *
 * A row's build function makes leaves with values and calls the ops under test. The harness evaluates that graph in
 * float64 with references of its own (reference.c, written from the formulas, not from the kernels), differentiates it
 * numerically there, and compares what a backend computes: every output, and every gradient that the graph's own
 * gradient pass builds. Nothing here names a backend's kernels, so that each backend is tested by the same table. */
#ifndef KN_TESTS_OPS_TEST_H
#define KN_TESTS_OPS_TEST_H

#include "core/graph/executor.h"
#include "core/ops/ops.h"

enum { OP_MOST_LEAVES = 16 };

enum {
    OP_LARGE = 1,         /* crosses the kernels' thresholds for threads; only some gradients are checked */
    OP_ONE_DTYPE = 2,     /* has no bf16 form */
    OP_NO_GRADIENT = 4,   /* forward only */
    OP_SPEED = 8,         /* only measured */
    OP_BF16_INSIDE = 16,  /* the op itself computes in bf16: compared with a relative L2 error */
    OP_BF16_PRODUCT = 32, /* bf16 operands are made on the way: softmax's probabilities, a sum with a bias */
    OP_LAST = 64,         /* only the last node's results are looked at: backends may make it part of others */
};

typedef struct OpTrial OpTrial;

typedef struct OpCase {
    const char *name;
    KnTensor *(*build)(OpTrial *trial, const int64_t *n); /* returns what the loss sees; NULL: only states change */
    int64_t n[6];
    int flags;
} OpCase;

extern const OpCase op_cases[];
extern const int op_case_count;

/* One row with one dtype. */
struct OpTrial {
    const OpCase *row;
    KnDtype dtype;
    KnGraph *graph;
    int leaf_count;
    KnTensor *leaves[OP_MOST_LEAVES];
    double *values[OP_MOST_LEAVES]; /* what the leaves hold, exactly representable in their dtype */
    int wanted[OP_MOST_LEAVES];     /* gradients are checked */
    uint64_t random;
};

/* --- leaves, for build functions (cases.c) --- */

typedef struct LeafKind {
    KnRole role;
    KnDtype dtype;
    int wanted;
    double center, spread; /* values are uniform in center +- spread */
} LeafKind;

KnTensor *leaf(OpTrial *trial, LeafKind kind, int dims, const int64_t *shape);
/* [rows, columns] in the trial's dtype, and in f32; both differentiable. */
KnTensor *leaf_x(OpTrial *trial, int64_t rows, int64_t columns);
KnTensor *leaf_f32(OpTrial *trial, int64_t rows, int64_t columns);
/* i32 [count] with indices in [low, high); i32 of any shape with given values. */
KnTensor *leaf_index(OpTrial *trial, int64_t count, int64_t low, int64_t high);
KnTensor *leaf_given(OpTrial *trial, int dims, const int64_t *shape, const int32_t *values);
double trial_uniform(OpTrial *trial); /* in [0, 1) */

/* --- float64 (reference.c) --- */

typedef void (*Reference)(const KnNode *node, double *const *in, double *const *out);
Reference op_reference(KnOpId id); /* NULL for ops that only gradients or lowering place */

/* --- the harness (harness.c) --- */

/* Runs the row with each dtype: forward, gradients, 1, 2 and 3 threads. Fails the cmocka test with a sentence. */
void op_check(const OpCase *row, KnBackend *backend);
/* 1 if the backend has all ops of the row. */
int op_supported(const OpCase *row, KnBackend *backend, const char **missing);
/* Marks in seen[KN_OP_COUNT] the ops that the row's graph, gradient and lowering contain. */
void op_mark(const OpCase *row, KnBackend *backend, int *seen);
/* Times every node of the row and prints a line for each (measure.c). */
void op_measure(const OpCase *row, KnBackend *backend);

OpTrial *trial_create(const OpCase *row, KnDtype dtype);
void trial_destroy(OpTrial *trial);
void trial_store(const KnTensor *tensor, const double *from, void *to);
void trial_load(const KnTensor *tensor, const void *from, double *to);

#endif
