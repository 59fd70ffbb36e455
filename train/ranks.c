/* Gathering the ranks' times. */
#include "train/ranks.h"

#include "core/base/error.h"
#include "core/base/log.h"
#include "dist/comm.h"
#include "train/median.h"

#include <stdlib.h>
#include <unistd.h>

/* Small enough for a gather that costs no more than a barrier. */
typedef struct Report {
    float seconds;
    char host[44];
} Report;

void kn_rank_times_create(KnRankTimes *times, KnComm *comm)
{
    *times = (KnRankTimes){.comm = comm, .of_ranks = kn_alloc((size_t)comm->ranks * sizeof(float))};
}

void kn_rank_times_destroy(KnRankTimes *times)
{
    free(times->of_ranks);
    *times = (KnRankTimes){0};
}

void kn_rank_times_begin(KnRankTimes *times)
{
    times->waited = kn_comm_waited_seconds(times->comm);
}

void kn_rank_times_end(KnRankTimes *times, double seconds)
{
    double work = seconds - (kn_comm_waited_seconds(times->comm) - times->waited);
    times->work += work > 0 ? work : 0;
    times->steps++;
}

int kn_rank_times_report(KnRankTimes *times)
{
    KnComm *comm = times->comm;
    Report mine = {.seconds = (float)(times->steps ? times->work / (double)times->steps : 0)};
    if (comm->ranks == 1)
        return KN_OK;
    gethostname(mine.host, sizeof mine.host - 1);
    Report *all = kn_alloc((size_t)comm->ranks * sizeof *all);
    double *seconds = kn_alloc((size_t)comm->ranks * sizeof *seconds);
    int code = comm->table->all_gather(comm, &mine, all, sizeof mine, "times of the ranks");
    times->slowest = 0;
    for (int rank = 0; rank < comm->ranks; rank++) {
        times->of_ranks[rank] = all[rank].seconds;
        seconds[rank] = (double)all[rank].seconds;
        times->slowest = all[rank].seconds > all[times->slowest].seconds ? rank : times->slowest;
    }
    times->median = kn_median(seconds, comm->ranks);
    const Report *slowest = &all[times->slowest];
    if (code == KN_OK && comm->rank == 0 && (double)slowest->seconds > KN_SLOW_RANK_FACTOR * times->median)
        kn_warn("rank %d on %s is slow: it works %.3f s a step, the median rank %.3f s; the others wait for it",
                times->slowest, slowest->host, (double)slowest->seconds, times->median);
    free(all);
    free(seconds);
    times->work = 0;
    times->steps = 0;
    return code;
}
