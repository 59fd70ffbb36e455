/* Memory plan, backend table and executor: from a finished graph to results.
 *
 * The plan gives every intermediate an offset in one arena by liveness, before anything is allocated; the executor
 * allocates exactly that, binds leaves to memory that callers own, and runs the nodes in order on a backend.
 * Callers see the host's memory alone. On a backend with a device, inputs are copied there before each run, and
 * parameters and state live there, as twins of what they are bound to (core/graph/twin.h). A run is then only queued,
 * and inputs may change at once; from the second run with the same addresses on it is recorded and replayed
 * (core/graph/replay.h).
 * Prologue nodes (casts and packings of parameters) run at the first run and after kn_executor_parameters_changed. */
#ifndef KN_GRAPH_EXECUTOR_H
#define KN_GRAPH_EXECUTOR_H

#include "core/graph/comm.h"
#include "core/graph/graph.h"

typedef struct KnBackend KnBackend;

/* What a kernel gets: its node's operands as plain addresses. */
typedef struct KnCall {
    const KnNode *node;
    void *inputs[KN_MAX_INPUTS]; /* NULL where the node has none */
    void *outputs[KN_MAX_OUTPUTS];
    void *workspace;        /* 64-byte aligned, uninitialized */
    size_t workspace_bytes; /* what the backend asked for when the plan was made */
    KnComm *const *comms;   /* for collective nodes, by group; NULL when there are none */
    int64_t *tickets;       /* collective tickets, by tensor id of what arrives */
} KnCall;

/* Where the host leaves what is to be copied to the device. */
typedef struct KnStaging KnStaging;

/* Memory that the host cannot address. Copies follow what was queued before them; `read` waits until the bytes are
 * there and reports what went wrong on the device meanwhile, `write` gives the host its memory back at once. */
typedef struct KnDeviceMemory {
    int (*write)(KnBackend *backend, void *device, const void *host, size_t bytes);
    int (*read)(KnBackend *backend, void *host, const void *device, size_t bytes);
    int (*zero)(KnBackend *backend, void *device, size_t bytes);
    /* Pinned memory of the host's that the device uses as its own, across the bus. */
    int (*allocate_pinned)(KnBackend *backend, void **memory, size_t bytes, const char *what);
    void (*release_pinned)(KnBackend *backend, void *memory);
    /* A write that the host fills in place: `stage` gives *room for as many bytes as the staging was created for, and
     * waits only while the device still reads what was sent from there; `send` copies from it. */
    int (*staging_create)(KnBackend *backend, KnStaging **staging, size_t bytes);
    int (*stage)(KnBackend *backend, KnStaging *staging, void **room);
    int (*send)(KnBackend *backend, KnStaging *staging, void *device, size_t bytes);
    void (*staging_destroy)(KnBackend *backend, KnStaging *staging);
} KnDeviceMemory;

/* Work that was recorded, to be done as often as it is replayed. */
typedef struct KnRecording KnRecording;

/* What a backend offers whose `run` returns before the work is done. */
typedef struct KnQueue {
    /* Notes when the device has done all that was queued so far, as moment number `index`. */
    int (*mark)(KnBackend *backend, int index);
    /* Waits, then gives the seconds from each of the moments 0 .. count to the next. */
    int (*seconds)(KnBackend *backend, int count, double *seconds);
    /* What is queued between the two is not done, but recorded with its addresses. Without a `recording` to fill, as
     * after a failure, it is dropped, and the sentence of that stays. */
    int (*record_begin)(KnBackend *backend);
    int (*record_end)(KnBackend *backend, KnRecording **recording);
    int (*replay)(KnBackend *backend, KnRecording *recording);
    void (*recording_destroy)(KnBackend *backend, KnRecording *recording);
} KnQueue;

typedef struct KnTwins KnTwins;

/* What kernels of one name do for a node, for plans. */
typedef struct KnKernelWork {
    const char *name;
    int launches;
    double bytes;   /* that they read and write in all */
    double at_once; /* bytes that are under way at once at most; 0: more than any device asks for */
} KnKernelWork;
enum { KN_MOST_KERNELS = 4 };

/* A backend is a table of functions; `ops` kernels are found by op id. */
struct KnBackend {
    const char *name;
    const char *device;           /* its kind, "NVIDIA H100 80GB HBM3"; NULL without a device */
    const char *device_id;        /* that of no other device, "GPU-5c1a..."; NULL without a device */
    const KnDeviceMemory *memory; /* NULL: computes in the host's memory */
    const KnQueue *queue;         /* NULL: work is done when `run` returns */
    KnTwins *twins;               /* of core/graph/twin.c */
    int64_t twin_changes;         /* how often one came or went */
    void *stream;                 /* of a device: what its work is queued on, for communicators (dist/comm.h) */
    KnComm *comm;                 /* of a device: from which its memory comes (KnCommTable.allocate); NULL: its own */
    int exchanges_in_order;       /* of its ranks, in the order of their starts: each waits for the one before */
    int (*supports)(KnBackend *backend, const KnNode *node);
    size_t (*workspace_bytes)(KnBackend *backend, const KnNode *node);
    int (*run)(KnBackend *backend, const KnCall *call); /* 0 or KN_E* */
    /* Rewrites a finished graph into the backend's favoured form (packed weights ...); may be NULL. */
    void (*lower)(KnBackend *backend, KnGraph *graph);
    /* By which kernels a node runs, as far as they are bound by memory; 0: by one that is not, which may also have some
     * of these beside it. For plans; may be NULL.
     */
    int (*kernels)(const KnNode *node, KnKernelWork kernels[KN_MOST_KERNELS]);
    int (*allocate)(KnBackend *backend, void **memory, size_t bytes, const char *what);
    void (*release)(KnBackend *backend, void *memory);
    void (*close)(KnBackend *backend); /* of a plugin's backend, which is its own memory; else NULL */
};

typedef struct KnPlan {
    size_t arena_bytes;                          /* the peak; exactly what the executor allocates */
    size_t live_peak_bytes;                      /* most bytes alive at one node; the rest of the arena is gaps */
    size_t category_bytes[KN_MEMORY_CATEGORIES]; /* leaves: their sizes; others: alive at that node */
    size_t *offsets;                             /* per tensor id; SIZE_MAX for leaves and dead tensors */
    size_t *workspace_offsets, *workspace_bytes; /* per node id */
    int tensor_count, node_count;
} KnPlan;

/* Liveness plan; `keep` tensors stay readable after the run. */
void kn_plan_make(KnPlan *plan, const KnGraph *graph, KnBackend *backend, KnTensor *const *keep, int keep_count);
void kn_plan_clear(KnPlan *plan);
char *kn_plan_report(const KnPlan *plan); /* a small table for people; free() it */

typedef struct KnExecutor KnExecutor;

/* Plans and allocates. The graph must be finished and outlive the executor. */
int kn_executor_create(KnExecutor **executor, const KnGraph *graph, KnBackend *backend, KnTensor *const *keep,
                       int keep_count);
/* In the arena of `beside` (NULL: its own), which grows where it is too small: for graphs that run in turns. What the
 * one kept, prologue included, is lost when the other runs. */
int kn_executor_create_beside(KnExecutor **executor, const KnGraph *graph, KnBackend *backend, KnTensor *const *keep,
                              int keep_count, const KnExecutor *beside);
void kn_executor_destroy(KnExecutor *executor);
const KnPlan *kn_executor_plan(const KnExecutor *executor);

/* Binds a leaf to the host's memory of kn_tensor_bytes(leaf); the caller keeps ownership and may rebind. Parameters and
 * state must have a twin before the run. */
void kn_executor_bind(KnExecutor *executor, const KnTensor *leaf, void *memory);
/* Copies a kept value or bound leaf, kn_tensor_bytes(tensor), to the host's memory `to`; after a run, until the next.
 */
int kn_executor_read(const KnExecutor *executor, const KnTensor *tensor, void *to);
/* Where nodes find it: the host's memory on a backend without a device. Valid as long. */
void *kn_executor_data(const KnExecutor *executor, const KnTensor *tensor);

/* The communicators that collective nodes name by number; a group of one rank may be NULL. The array is borrowed. */
void kn_executor_set_comms(KnExecutor *executor, KnComm *const *comms);
void kn_executor_parameters_changed(KnExecutor *executor);
int kn_executor_run(KnExecutor *executor);

/* How many runs were replays of recorded ones. */
int64_t kn_executor_replays(const KnExecutor *executor);

/* Times every node from now on, as KINORA_PROFILE=1 does from the beginning; a run then waits for its device, and none
 * is recorded. */
void kn_executor_time_nodes(KnExecutor *executor);
const double *
kn_executor_node_seconds(const KnExecutor *executor); /* by node id, of all runs so far; NULL: not timed */

/* Seconds spent in each op, when nodes are timed: a table for people. */
char *kn_executor_profile(const KnExecutor *executor); /* free() it */

#endif
