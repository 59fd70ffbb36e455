/* Which rank holds the others up: the time that each spends on its own work in a step, without waiting for others. */
#ifndef KN_TRAIN_RANKS_H
#define KN_TRAIN_RANKS_H

#include "core/graph/comm.h"

/* A rank is called slow where it works so much longer than the median. */
#define KN_SLOW_RANK_FACTOR 1.25

typedef struct KnRankTimes {
    KnComm *comm;
    double work; /* of the steps since the last report */
    int64_t steps;
    double waited;   /* by the communicator's count, when the present step began */
    float *of_ranks; /* [ranks]: seconds a step in the last report */
    int slowest;     /* in it */
    double median;   /* in it */
} KnRankTimes;

void kn_rank_times_create(KnRankTimes *times, KnComm *comm);
void kn_rank_times_destroy(KnRankTimes *times);

void kn_rank_times_begin(KnRankTimes *times);               /* a step begins ... */
void kn_rank_times_end(KnRankTimes *times, double seconds); /* ... and has taken so long on this rank */

/* Collective, now and then: a report over the steps since the last one. Warns, on the first rank, of one that is slow,
 * by number and host. */
int kn_rank_times_report(KnRankTimes *times);

#endif
