/* The mesh: which rank does what, from `parallel:` of the configuration.
 *
 *     rank = (((data * Z + shard) * C + cfg) * R + ring) * U + ulysses) * T + tensor
 *
 * so that the axes that speak most lie on neighbouring ranks. `data` and `shard` ranks take other packs (together: the
 * replicas); `ring` and `ulysses` ranks share one pack's tokens (together: the sequence); `tensor` ranks share each
 * matrix; `cfg` ranks share the two forwards of guidance and exist in `generate` alone.
 * What a replica holds of parameters, gradients and optimizer is cut (ZeRO) over shard x ring x ulysses and copied over
 * `data`. */
#ifndef KN_DIST_MESH_H
#define KN_DIST_MESH_H

#include "core/base/config.h"
#include "core/graph/comm.h"

typedef enum KnAxis {
    KN_AXIS_DATA,
    KN_AXIS_SHARD,
    KN_AXIS_CFG,
    KN_AXIS_RING,
    KN_AXIS_ULYSSES,
    KN_AXIS_TENSOR,
    KN_AXIS_COUNT
} KnAxis;

/* Groups of ranks that collectives run over: those that differ in the named axes alone. */
typedef enum KnGroup {
    KN_GROUP_DATA,     /* data */
    KN_GROUP_ZERO,     /* shard x ring x ulysses: who cuts the state among themselves */
    KN_GROUP_SUM,      /* data x shard x ring x ulysses: whose gradients are summed */
    KN_GROUP_SEQUENCE, /* ring x ulysses */
    KN_GROUP_RING,
    KN_GROUP_ULYSSES,
    KN_GROUP_TENSOR,
    KN_GROUP_CFG,
    KN_GROUP_COUNT
} KnGroup;
const char *kn_group_name(KnGroup group);

typedef struct KnMesh {
    int sizes[KN_AXIS_COUNT];
    int coordinates[KN_AXIS_COUNT]; /* of this rank */
    int rank, ranks;
} KnMesh;

/* "data=2,ulysses=4,zero=3": sets what it names and leaves the rest. KN_EINPUT names the word that is wrong. */
int kn_mesh_parse(const char *text, KnParallelConfig *parallel);

/* Resolves `auto` against the number of ranks. KN_EINPUT with the sentence that says which number to change. */
int kn_mesh_create(KnMesh *mesh, const KnParallelConfig *config, int rank, int ranks);

/* Of a group: how many ranks it has and which of them this one is. */
int kn_mesh_group_size(const KnMesh *mesh, KnGroup group);
int kn_mesh_group_rank(const KnMesh *mesh, KnGroup group);
/* How far apart in the job two neighbours of a group are. */
int64_t kn_mesh_group_stride(const KnMesh *mesh, KnGroup group);

/* Which pack of `data x shard` this rank works on. */
int kn_mesh_replicas(const KnMesh *mesh);
int kn_mesh_replica(const KnMesh *mesh);

/* "data 2 x shard 2 x ulysses 2", axes of one left out; "one rank" when all are. free() it. */
char *kn_mesh_describe(const KnMesh *mesh);

/* {"data": 2, "ulysses": 2}: data, and what is more than 1. free() it. */
char *kn_mesh_to_json(const KnMesh *mesh);

/* One communicator for each group, by KnGroup; NULL where it has one member. Collective over `world`. */
typedef struct KnMeshComms {
    KnComm *world;
    KnComm *groups[KN_GROUP_COUNT];
} KnMeshComms;
int kn_mesh_comms_create(KnMeshComms *comms, const KnMesh *mesh, KnComm *world);
void kn_mesh_comms_destroy(KnMeshComms *comms);

#endif
