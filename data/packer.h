/* The packer: clips of any length into packs of a fixed token budget.
 *
 * A pack is what one pass of the model sees; its budget is fixed so that graphs have static shapes, and a budget that
 * is not filled is computed for nothing. The order is a function of (seed, epoch) alone: never of ranks, threads or
 * time, so a position is just (epoch, pack) and any rank can ask for any pack.
 *
 * Every clip appears exactly once an epoch. Clips that are left at an epoch's end form its last packs, partly filled:
 * carrying them over would make an epoch depend on all earlier ones. Epochs are shuffled anew. */
#ifndef KN_DATA_PACKER_H
#define KN_DATA_PACKER_H

#include <stdint.h>

typedef struct KnPackBudget {
    int64_t tokens;      /* most tokens in a pack */
    int64_t clips;       /* most clips in a pack */
    int64_t text_tokens; /* most caption tokens in a pack; 0 = no limit */
} KnPackBudget;

typedef struct KnPackInput {
    int64_t count;              /* clips */
    const int64_t *tokens;      /* [count], each > 0 */
    const int64_t *text_tokens; /* [count]: of the longest caption of each clip; NULL = none */
} KnPackInput;

/* One epoch: pack p holds clips[first[p]] .. clips[first[p + 1] - 1]. */
typedef struct KnPackPlan {
    int64_t packs;
    int64_t *first;      /* [packs + 1] */
    int64_t *clips;      /* [count] */
    int64_t tokens;      /* used, over all packs */
    double waste;        /* share of the budget of all packs that is unused */
    double waste_inside; /* the same without the epoch's last pack */
} KnPackPlan;

/* Checks that every clip fits alone: KN_EINPUT with the sentence that names the clip (as `name(context, clip)` calls
 * it, or by its number when `name` is NULL) and the budget to set. */
int kn_packer_check(const KnPackInput *input, const KnPackBudget *budget,
                    const char *(*name)(const void *context, int64_t clip), const void *context);

/* Plans one epoch; needs an input that kn_packer_check passed. Work is proportional to the clips; release with
 * kn_pack_plan_clear. KN_EINPUT for no clips at all. */
int kn_packer_plan(const KnPackInput *input, const KnPackBudget *budget, uint64_t seed, int64_t epoch,
                   KnPackPlan *plan);
void kn_pack_plan_clear(KnPackPlan *plan);

#endif
