/* Cutting things among ranks: tokens and heads by even, unpadded cuts, and the transformer's matrices for tensor
 * parallelism (Shoeybi et al., 2019, "Megatron-LM": rows of the first matrix, columns of the second).
 *
 * Which dimension of a parameter is cut follows from its name (the table is in split.c): queries, keys and values by
 * heads, the feed-forward layer by its width, what brings them back together by columns. The rest is whole on every
 * tensor rank. */
#ifndef KN_DIST_SPLIT_H
#define KN_DIST_SPLIT_H

#include "core/model/model.h"

/* Where part `index` of `total` things begins, of `parts`; sizes differ by one at most, and may be 0. */
static inline int64_t kn_cut(int64_t total, int64_t parts, int64_t index)
{
    return total * index / parts;
}

typedef struct KnSplit {
    int axis;             /* 0 rows, 1 columns, -1 whole */
    int64_t first, count; /* along it */
} KnSplit;

/* What tensor rank `rank` of `ranks` holds of a parameter of the whole model. */
KnSplit kn_parameter_split(const KnModelConfig *config, const KnParameter *whole, int rank, int ranks);

/* The parameters of one tensor rank: those of `whole`, by the same index, in shapes cut. */
void kn_parameter_set_split(const KnModelConfig *config, const KnParameterSet *whole, int rank, int ranks,
                            KnParameterSet *part);

#endif
