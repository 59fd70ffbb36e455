/* Simulated time: a rank's graph run on a device that is only described.
 *
 * One stream computes the nodes in order; what ranks exchange runs on one further stream, on CPUs one for each group,
 * from its start node or the end of the former exchange on. A wait node takes what is left of it: that is the exposed
 * part, the rest is hidden. All ranks are taken to be equally fast and to start together. */
#ifndef KN_DIST_TIMELINE_H
#define KN_DIST_TIMELINE_H

#include "dist/kernel_times.h"
#include "dist/mesh.h"

/* All exchanges of one name (numbers left away), kind and group. */
typedef struct KnExchangeTime {
    char name[40];
    const char *kind, *group;
    double count, bytes, seconds, exposed; /* bytes that this rank sends */
} KnExchangeTime;

enum { KN_EXCHANGE_NAMES = 24 };

typedef struct KnTimeline {
    double now;
    double by_kind[KN_TIME_KINDS];
    double exposed; /* of all exchanges */
    KnExchangeTime exchanges[KN_EXCHANGE_NAMES];
    int exchange_count;
    KnKernelTimes *kernels; /* the caller's, or NULL: not noted */
} KnTimeline;

typedef struct KnTimelineRun {
    const KnGraph *graph;
    const KnBackend *backend; /* whose kernels run it; NULL: one for each node */
    const KnDevice *device;
    const KnMesh *mesh;
    int prologue;
    double ranges; /* 1, or where the graph was built for another number of ZeRO ranks how many times as long a rank's
                      range of a block is now: data ranks sum those */
} KnTimelineRun;

/* Runs the graph from timeline->now on. */
void kn_timeline_run(KnTimeline *timeline, const KnTimelineRun *run);

/* Behind `timeline`, so many times what another one took. */
void kn_timeline_add(KnTimeline *timeline, const KnTimeline *other, double times);

/* Of one exchange alone: the ring algorithms' messages over the slowest link of the group, or the measured curve. */
typedef struct KnExchange {
    const char *kind; /* "all_reduce", "reduce_scatter", "all_gather", "all_to_all", "send_receive" */
    KnGroup group;
    double bytes; /* all_reduce, all_to_all, send_receive: what a rank brings; else: of all ranks together */
} KnExchange;
double kn_exchange_seconds(const KnExchange *exchange, const KnDevice *device, const KnMesh *mesh);

#endif
