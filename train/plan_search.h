/* Every way to lay a job out: all meshes of so many ranks, ZeRO stages, with and without recomputation, fastest first.
 *
 * What cannot be is counted by its reason. Plans of deep models are estimated from few layers (kn_step_plan_estimate).
 */
#ifndef KN_TRAIN_PLAN_SEARCH_H
#define KN_TRAIN_PLAN_SEARCH_H

#include "train/step_plan.h"

typedef struct KnFoundLayout {
    KnParallelConfig parallel;
    int recompute;
    char name[96]; /* as kn_mesh_describe */
    KnStepPlan plan;
} KnFoundLayout;

typedef enum KnRefusal {
    KN_REFUSED_PACKS,  /* replicas that train.packs cannot be shared among */
    KN_REFUSED_HEADS,  /* more ranks for a matrix, or for heads, than heads */
    KN_REFUSED_NODE,   /* a tensor group over several nodes */
    KN_REFUSED_TOKENS, /* less tokens a rank than the sequence has ranks */
    KN_REFUSED_STATE,  /* parameters, gradients and optimizer alone exceed the memory */
    KN_REFUSED_MEMORY, /* the step as a whole does */
    KN_REFUSALS
} KnRefusal;
const char *kn_refusal_text(KnRefusal refusal);

typedef struct KnLayoutSearch {
    KnFoundLayout *found; /* by falling tokens a second */
    int count, capacity;
    int refused[KN_REFUSALS];
    char *examples[KN_REFUSALS]; /* the one that came closest, by memory; NULL for other reasons */
    double nearest[KN_REFUSALS];
} KnLayoutSearch;

/* Of options->config the parallel section and model.recompute are not looked at. Release with
 * kn_layout_search_clear. */
int kn_layout_search(KnLayoutSearch *search, const KnStepPlanOptions *options);
void kn_layout_search_clear(KnLayoutSearch *search);

#endif
