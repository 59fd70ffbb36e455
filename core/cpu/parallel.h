/* Parallel loops of the CPU kernels: a range cut into blocks of a fixed size, so that who computes what never changes
 * a bit of it. Small ranges run on the calling thread: waking the team (core/cpu/team.h) costs some microseconds. */
#ifndef KN_CPU_PARALLEL_H
#define KN_CPU_PARALLEL_H

#include <stddef.h>
#include <stdint.h>

/* Does items [first, last) of a loop. */
typedef void (*KnRange)(const void *arguments, int64_t first, int64_t last);

typedef struct KnLoop {
    int64_t count; /* items */
    int64_t block; /* items that one call does at most */
    int64_t work;  /* about how many elements an item touches; decides whether a team is worth its waking */
} KnLoop;

/* Calls range(arguments, ...) for all blocks of the loop, on several threads if there is enough to do. */
void kn_parallel_for(KnLoop loop, KnRange range, const void *arguments);

#endif
