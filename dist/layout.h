/* The layout of one rank: its place in the mesh, its communicators, its parameters, and what of their buffers it holds.
 *
 * Everything that follows from `parallel:` for a model and a rank, in one struct that graphs, optimizer and checkpoints
 * are built from. */
#ifndef KN_DIST_LAYOUT_H
#define KN_DIST_LAYOUT_H

#include "core/graph/executor.h"
#include "dist/split.h"
#include "dist/zero.h"

typedef struct KnLayout {
    const KnModel *model; /* the whole; must outlive the layout */
    KnMesh mesh;
    KnMeshComms comms;  /* all NULL where the layout is only planned */
    KnMeshComms device; /* of a backend with a device: the same groups, for its memory */
    KnComm *device_world;
    KnBackend *backend;  /* which takes its memory from device_world */
    KnParameterSet part; /* the parameters of this tensor rank */
    KnZero zero;
    int invariant; /* parallel.mode layout_invariant */
    KnTextRows text;
} KnLayout;

typedef struct KnLayoutOptions {
    const KnParallelConfig *parallel;
    int whole_matrices; /* the optimizer updates matrices as wholes */
    int training;       /* refuses cfg */
    KnComm *world;      /* collective; or NULL for the layout of `rank` of `ranks` without communicators */
    int rank, ranks;
} KnLayoutOptions;

/* KN_EINPUT with the number to change where the mesh does not fit the ranks. */
int kn_layout_create(KnLayout *layout, const KnModel *model, const KnLayoutOptions *options);
void kn_layout_destroy(KnLayout *layout);

/* Collective over the world: communicators of the groups for the memory of the backend's device, which the backend
 * takes from them until the layout is destroyed; what was taken is to be released before. No-op without a device, or on
 * one rank. */
int kn_layout_use_device(KnLayout *layout, KnBackend *backend);

/* What executors exchange by, by KnGroup. */
KnComm *const *kn_layout_comms(const KnLayout *layout);

/* Which box of a whole parameter lies in `values`, contiguous from `data` on: rows [start[0], start[0] + count[0]) and
 * columns likewise (of the first two dimensions; the others are whole). data is NULL where nothing of it is held. */
typedef struct KnBox {
    int64_t start[2], count[2];
    float *data;
} KnBox;
KnBox kn_layout_box(const KnLayout *layout, const KnParameterValues *values, int parameter);

/* Draws the initial values of what is held: the same as kn_parameter_values_init for the whole. */
void kn_layout_init(const KnLayout *layout, KnParameterValues *values, uint64_t seed);

#endif
