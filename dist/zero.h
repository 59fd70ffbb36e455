/* ZeRO: who holds what of a block's parameters, gradients and optimizer state, and gathering weights before use.
 *
 * The buffer of each block is cut into one contiguous range for each rank of KN_GROUP_ZERO, at rows of parameters; the
 * matrices that Muon updates as wholes are not cut. By stage (Rajbhandari et al., 2020, "ZeRO"): 1 cuts moments and
 * averages, 2 also gradients, 3 also weights, which are then gathered block by block, the next block's while the
 * present one computes, and again for the backward; what is used in bfloat16 is rounded before. */
#ifndef KN_DIST_ZERO_H
#define KN_DIST_ZERO_H

#include "core/model/parameters.h"
#include "dist/mesh.h"

typedef struct KnZero {
    const KnParameterSet *set; /* of this rank's tensor part */
    int stage;                 /* 0 where the group has one rank */
    int ranks, rank;
    int64_t *cuts; /* [blocks, ranks + 1], elements of the block */
} KnZero;

/* `part`: of `whole`, what this tensor rank has (dist/split.h). The cuts are made in the whole, so that tensor ranks
 * with the same ZeRO rank hold parts of the same matrices. */
void kn_zero_create(KnZero *zero, const KnParameterSet *whole, const KnParameterSet *part, const KnMesh *mesh,
                    int stage, int whole_matrices);
void kn_zero_destroy(KnZero *zero);

const int64_t *kn_zero_cuts(const KnZero *zero, int block); /* [ranks + 1] */

/* What of the buffers is held here from a stage on: kn_zero_values(zero, 3, ...) for weights, 2 for gradients, 1 for
 * moments and averages. Zeroed. */
int kn_zero_values(const KnZero *zero, int from_stage, KnParameterValues *values, const char *what);
size_t kn_zero_bytes(const KnZero *zero, int from_stage);

/* Elements [*first, *first + *count) of a parameter are held in `values`; a pointer to the first of them, or NULL with
 * *count 0. */
float *kn_zero_part(const KnParameterValues *values, const KnParameter *parameter, int64_t *first, int64_t *count);

/* Stage 3: replaces the graph's parameter leaves by parts of gathered buffers. shards[block] receives the state leaf of
 * this rank's range; NULL for blocks that the graph does not use. After recomputation. */
void kn_zero_gather(KnGraph *graph, const KnZero *zero, KnTensor **shards);

#endif
