/* Ranks that make videos together: `--mesh` of generate and eval.
 *
 * The mesh without its `data` axis is one group, which shares every video (infer/sampler.h) and speaks as one worker;
 * `data` groups make different videos. A command that wants all ranks for the same videos takes them as one group, in
 * which `data` ranks share the clips of a pass. */
#ifndef KN_INFER_WORKERS_H
#define KN_INFER_WORKERS_H

#include "dist/layout.h"
#include "dist/model_file.h"

typedef struct KnWorkers {
    KnComm *world;
    KnComm *comm; /* this rank's group; NULL where that is this rank alone */
    int groups, group;
    KnParallelConfig parallel; /* of a group */
    KnLayout layout;
    KnBackend *backend; /* what this rank computes on; NULL before a model is open */
} KnWorkers;

/* Gives the ranks of a host their share of its processors.
 * `mesh` NULL: each rank is a group of its own, or all of them are data ranks of one group. Collective. KN_EINPUT where
 * the mesh does not fit the ranks. */
int kn_workers_create(KnWorkers *workers, const char *mesh, int one_group, KnComm *world);

/* Opens the model with this rank's part of the weights: all of them, but the tensor part with tensor, and a range of
 * them where zero is 3, as it is by default with shard; then what computes (`device` as in infer/device.h), where the
 * weights have twins. Collective over all workers. */
int kn_workers_open_model(KnWorkers *workers, const char *path, const char *device, KnModelFile *file);

/* Closes the model too. Before the communicator is closed; a second time does nothing. */
void kn_workers_destroy(KnWorkers *workers, KnModelFile *file);

/* What kn_sampler_create wants: NULL for one rank alone. */
const KnLayout *kn_workers_layout(const KnWorkers *workers);
int kn_workers_rank(const KnWorkers *workers); /* in the group */

#endif
