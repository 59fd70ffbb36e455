/* Attention of packed spans, forward and backward, on a backend: for tests that compare a library's kernels with our
 * own. Codes are negative with a sentence. */
#ifndef KN_TESTS_PACKED_H
#define KN_TESTS_PACKED_H

#include "core/graph/executor.h"

enum { PACKED_OUT, PACKED_LSE, PACKED_DQ, PACKED_DK, PACKED_DV, PACKED_RESULTS, PACKED_MOST_SPANS = 8 };
enum { PACKED_FORWARD, PACKED_BOTH, PACKED_GRAPHS };

typedef struct PackedCase {
    const char *name;
    int64_t queries, keys, heads, size;
    int span_count;
    int32_t spans[PACKED_MOST_SPANS][4];
    int unpromised; /* nothing is said of the spans */
    int in_f32;
    int partial;     /* as a part of a ring */
    int nan_outside; /* rows of no span are NaN */
    int cold;        /* all scores lie near -113 */
} PackedCase;

typedef struct PackedRun {
    const PackedCase *c;
    KnBackend *backend;
    KnGraph *graphs[PACKED_GRAPHS];
    KnExecutor *executors[PACKED_GRAPHS];
    KnTensor *kept[PACKED_GRAPHS][PACKED_RESULTS];
    void *leaves[5];                /* q, k, v, grad_out, spans: in memory of the backend, as long as the run is */
    size_t by_library[2];           /* workspace of the forward and the backward node's library; 0: our own kernels */
    float *results[PACKED_RESULTS]; /* of packed_read */
} PackedRun;

int packed_create(PackedRun *run, const PackedCase *c, KnBackend *backend);
void packed_destroy(PackedRun *run);

/* Makes NaN of all that nodes write, workspaces too; on a device. */
int packed_poison(PackedRun *run);

/* Runs forward and backward and reads the results. `bits`: where not NULL, a hash of all their bytes. */
int packed_read(PackedRun *run, uint64_t *bits);
/* Seconds of one run of a graph: the mean of so many. */
int packed_time(PackedRun *run, int graph, int runs, double *seconds);

size_t packed_count(const PackedCase *c, int result);
const char *packed_name(int result);
/* The L2 error, relative to the L2 norm of the truth; NaN where something is NaN. Of lse: the largest difference;
 * infinite where only one is. */
double packed_error(const PackedRun *run, const PackedRun *truth, int result);
/* FLOP of the forward. */
double packed_flops(const PackedCase *c);

#endif
