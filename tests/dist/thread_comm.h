/* A communicator whose ranks are threads of one process: everything that ranks agree on runs without mpirun, under the
 * sanitizers, with any number of ranks. thread_ranks_run(ranks, function, argument) runs `function(comm, argument)` on
 * each and gives back the codes; the sentence of rank 0 is left to the caller. */
#ifndef KN_TESTS_THREAD_COMM_H
#define KN_TESTS_THREAD_COMM_H

#include "core/base/error.h"
#include "core/base/memory.h"
#include "dist/comm.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { THREAD_RANKS_MAX = 8 };

typedef struct ThreadWorld {
    int ranks;
    pthread_barrier_t barrier;
    const void *parts[THREAD_RANKS_MAX];
} ThreadWorld;

typedef struct ThreadComm {
    KnComm base;
    ThreadWorld *world;
} ThreadComm;

typedef int (*ThreadRankFunction)(KnComm *comm, void *argument);

typedef struct ThreadRank {
    ThreadComm comm;
    ThreadRankFunction function;
    void *argument;
    int code;
    char sentence[1024];
} ThreadRank;

static int thread_barrier(KnComm *comm, const char *name)
{
    (void)name;
    pthread_barrier_wait(&((ThreadComm *)comm)->world->barrier);
    return KN_OK;
}

static int thread_all_gather(KnComm *comm, const void *mine, void *all, size_t bytes_each, const char *name)
{
    ThreadWorld *world = ((ThreadComm *)comm)->world;
    world->parts[comm->rank] = mine;
    thread_barrier(comm, name);
    for (int rank = 0; rank < comm->ranks; rank++)
        if (bytes_each)
            memmove((char *)all + (size_t)rank * bytes_each, world->parts[rank], bytes_each);
    return thread_barrier(comm, name);
}

static int thread_broadcast(KnComm *comm, void *bytes, size_t count, int root, const char *name)
{
    ThreadWorld *world = ((ThreadComm *)comm)->world;
    world->parts[comm->rank] = bytes;
    thread_barrier(comm, name);
    if (comm->rank != root && count)
        memcpy(bytes, world->parts[root], count);
    return thread_barrier(comm, name);
}

static const KnCommTable thread_table = {
    .kind = "threads", .all_gather = thread_all_gather, .broadcast = thread_broadcast, .barrier = thread_barrier};

static void *thread_rank_run(void *argument)
{
    ThreadRank *rank = argument;
    rank->code = rank->function(&rank->comm.base, rank->argument);
    snprintf(rank->sentence, sizeof rank->sentence, "%s", kn_error_message());
    return NULL;
}

/* The first rank's code; all ranks must come to the same code and sentence. */
static int thread_ranks_run(int ranks, ThreadRankFunction function, void *argument)
{
    ThreadWorld world = {.ranks = ranks};
    ThreadRank members[THREAD_RANKS_MAX];
    pthread_t threads[THREAD_RANKS_MAX];
    pthread_barrier_init(&world.barrier, NULL, (unsigned)ranks);
    for (int r = 0; r < ranks; r++) {
        members[r] = (ThreadRank){.function = function, .argument = argument};
        members[r].comm.base = (KnComm){&thread_table, r, ranks, r, ranks};
        members[r].comm.world = &world;
        pthread_create(&threads[r], NULL, thread_rank_run, &members[r]);
    }
    for (int r = 0; r < ranks; r++)
        pthread_join(threads[r], NULL);
    pthread_barrier_destroy(&world.barrier);
    for (int r = 1; r < ranks; r++) {
        KN_ASSERT(members[r].code == members[0].code);
        KN_ASSERT(members[0].code == KN_OK || strcmp(members[r].sentence, members[0].sentence) == 0);
    }
    return members[0].code < 0 ? kn_fail(members[0].code, "%s", members[0].sentence) : members[0].code;
}

#endif
