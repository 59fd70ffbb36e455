/* What a training step will need and take, by walking the very graphs that would run: no memory, no communicator.
 *
 * One rank stands for all: the first, or where heads are cut unevenly the last, which has more. Memory is what that
 * rank allocates: what is bound to the graphs, and their arenas. Time is simulated (dist/timeline.h) on a device that
 * is described (dist/device.h). */
#ifndef KN_TRAIN_STEP_PLAN_H
#define KN_TRAIN_STEP_PLAN_H

#include "core/base/config.h"
#include "dist/timeline.h"
#include "train/pass_graph.h"

/* Rows of the memory report, in bytes. */
typedef enum KnStepMemory {
    KN_STEP_PARAMETERS,
    KN_STEP_GRADIENTS,
    KN_STEP_OPTIMIZER, /* moments and averaged weights */
    KN_STEP_INPUTS,
    KN_STEP_WEIGHTS, /* what follows down to temporary: alive in the pass's arena at its fullest */
    KN_STEP_ACTIVATIONS,
    KN_STEP_EXCHANGED, /* buffers that exchanges arrive in */
    KN_STEP_TEMPORARY,
    KN_STEP_WORKSPACE,
    KN_STEP_GAPS,
    KN_STEP_UPDATE, /* the update's arena */
    KN_STEP_PEAK,   /* all of the above */
    KN_STEP_ARENA,  /* the pass's arena: weights down to gaps */
    KN_STEP_MEMORY_ROWS
} KnStepMemory;
const char *kn_step_memory_name(KnStepMemory row);

typedef struct KnStepPlan {
    double memory[KN_STEP_MEMORY_ROWS];
    double offloaded; /* bytes in the host's memory instead (train.offload) */
    KnTimeline time;
    double host;    /* seconds outside of graphs: filling packs, clearing gradients, the bus of what is offloaded */
    double seconds; /* of the step */
    double flops;   /* of products and attention, of all ranks, recomputation not counted */
    double forward_flops; /* of the forwards among them */
    double tokens;        /* of all ranks */
    int blocks, recomputed;
} KnStepPlan;

/* A pass that was built for a plan, for the next plan to use where its graph has the same sizes: other numbers of data
 * and shard ranks change but the time of exchanges, and of the memory the ranges of a block that are summed. Starts as
 * {0}. */
typedef struct KnPassMemo {
    int64_t sizes[10];
    int zero_ranks;
    KnPassGraph pass;
    double memory[KN_STEP_MEMORY_ROWS]; /* of its arena and inputs */
    double flops, forward_flops;
} KnPassMemo;
enum { KN_PASS_MEMOS = 4 }; /* two depths, and the last pass of a step beside the others */
void kn_pass_memos_clear(KnPassMemo *memos);

typedef struct KnStepPlanOptions {
    const KnConfig *config; /* data.shards are not read */
    const KnDevice *device;
    KnBackend *cpu;         /* for devices whose backend is "cpu" */
    KnBackend *cuda;        /* for others; NULL: graphs as they are, without workspaces */
    int ranks;              /* of the job; one stands for all */
    int64_t clip_tokens;    /* tokens of one clip, which attend to each other; 0: one clip fills the pack */
    int64_t layers;         /* instead of model.layers; 0: those */
    KnPassMemo *memos;      /* [KN_PASS_MEMOS], or NULL */
    int sampling;           /* one forward of one pack, and what that needs, instead of a training step */
    KnKernelTimes *kernels; /* noted here; NULL: not at all */
} KnStepPlanOptions;

/* Whether moments and averaged weights are in the host's memory, not the device's. */
int kn_step_plan_offloads(const KnStepPlanOptions *options);

/* KN_EINPUT where the layout cannot run, with the sentence that `train` would end with. */
int kn_step_plan(KnStepPlan *plan, const KnStepPlanOptions *options);

/* The same for models of many layers, from the plans of two small depths: blocks are alike, so all figures grow by the
 * same amount with each. Exact but for gaps. Where model.recompute is a budget, kn_step_plan itself. */
int kn_step_plan_estimate(KnStepPlan *plan, const KnStepPlanOptions *options);

/* Of the device's peak by its data sheet. */
double kn_step_plan_peak_share(const KnStepPlan *plan, const KnStepPlanOptions *options);
/* FLOP a second and rank as other benchmarks count them: a training step as three forwards. */
double kn_step_plan_rate(const KnStepPlan *plan, const KnStepPlanOptions *options);

#endif
