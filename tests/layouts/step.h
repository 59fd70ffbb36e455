/* A training step on one rank of any layout, against one process on the CPU: the loss, the gradient of each parameter,
 * the global norm and the updated weights. What ranks are - threads or processes - and what they compute on is left to
 * the test. The model's token counts are such that nothing divides them. */
#ifndef KN_TESTS_LAYOUTS_STEP_H
#define KN_TESTS_LAYOUTS_STEP_H

#include "train/optimizer.h"
#include "train/pass.h"

enum { MOST_PACKS = 16 };

typedef struct WorldOptions {
    const char *optimizer;
    KnParallelMode mode;
    int packs, heads;
} WorldOptions;

/* What one process computes: shared by all layouts. */
typedef struct World {
    KnModel model;
    KnTrainBatch batches[MOST_PACKS];
    int packs;
    KnParameterValues gradients, weights; /* of the whole: sum of all packs; after one update */
    float stats[2], losses[MOST_PACKS];
    double norm;
    KnOptimizerConfig optimizer;
    KnParallelMode mode;
} World;

/* A layout's largest differences from that; 0 where the bits are the same. */
typedef struct Trial {
    const World *world;
    KnBackend *backend;
    KnParallelConfig parallel;
    float worst, worst_weight;
    char worst_name[128];
} Trial;

/* Asserts by cmocka that it can be done. */
void world_create(World *world, const WorldOptions *options);
void world_destroy(World *world);

/* On each rank of `comm`; several threads may share a trial. */
int trial_run(KnComm *comm, Trial *trial);

/* The largest difference of gradients, loss, norm and weights that may be. */
float world_tolerance(const World *world);

/* "4 ranks: data 2 shard 1 ... : 3.1e-07 (blocks.0.attn1.to_q.weight), weights 1.2e-07 " */
void trial_print(const Trial *trial, const char *comment);

/* All ordered products of five factors, into a list of at least 64; how many. */
int list_layouts(int ranks, KnParallelConfig *list);

#endif
