/* Parallel loops over fixed blocks; see parallel.h. */
#include "core/cpu/parallel.h"

#include "core/cpu/backend.h"

/* Elements below which one thread is faster: about 10 microseconds of work. */
enum { KN_ALONE_BELOW = 32768 };

int kn_parallel_team(int64_t elements)
{
    return elements < KN_ALONE_BELOW ? 1 : kn_cpu_threads();
}

void kn_parallel_for(KnLoop loop, KnRange range, const void *arguments)
{
    int64_t block = loop.block > 0 ? loop.block : 1, blocks = (loop.count + block - 1) / block;
    int team = blocks > 1 ? kn_parallel_team(loop.count * loop.work) : 1;
    if (team == 1) {
        for (int64_t first = 0; first < loop.count; first += block)
            range(arguments, first, first + block < loop.count ? first + block : loop.count);
        return;
    }
#pragma omp parallel for num_threads(team) schedule(static)
    for (int64_t i = 0; i < blocks; i++) {
        int64_t first = i * block, last = first + block;
        range(arguments, first, last < loop.count ? last : loop.count);
    }
}
