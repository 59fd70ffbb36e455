/* Who writes what: a rule that every rank evaluates alike from the boxes of all, so that nothing more need be sent.
 * Internal to the checkpoints.
 *
 * Each rank tells its boxes in a few bytes for each tensor; the plan goes through them tensor by tensor, and needs
 * memory for the ranks' boxes of one tensor only. */
#ifndef KN_DIST_CHECKPOINT_PLAN_H
#define KN_DIST_CHECKPOINT_PLAN_H

#include "core/base/text.h"
#include "dist/checkpoint_manifest.h"

typedef struct KnSavePlan {
    KnArena *arena;            /* owns all below; NULL before the first plan */
    int count;                 /* tensors */
    unsigned char *mine;       /* [count]: 1 where this rank writes its box */
    KnManifestTensor *entries; /* [count] on rank 0: where every box goes; else NULL */
} KnSavePlan;

/* What a rank tells the others of its boxes, appended to `text`. */
void kn_save_plan_tell(const KnCheckpointTensor *tensors, int count, KnText *text);

/* `told` has `ranks` such texts, `stride` bytes apart. Each box goes to the holder with the fewest bytes so far, the
 * largest tensors first. KN_EINPUT names the tensor whose boxes leave gaps or overlap, and the ranks; the plan is then
 * empty. Replaces what was in the plan. */
int kn_save_plan_make(KnSavePlan *plan, const KnCheckpointTensor *tensors, int count, const unsigned char *told,
                      size_t stride, int rank, int ranks);
void kn_save_plan_clear(KnSavePlan *plan);

#endif
