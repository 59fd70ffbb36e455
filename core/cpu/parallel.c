/* Parallel loops over fixed blocks; see parallel.h. */
#include "core/cpu/parallel.h"

#include "core/cpu/backend.h"
#include "core/cpu/team.h"

/* Elements below which one thread is as fast: about 5 microseconds of work. */
enum { KN_ALONE_BELOW = 16384 };

typedef struct Call {
    const KnLoop *loop;
    KnRange range;
    const void *arguments;
} Call;

static void run_block(void *argument, int64_t index, int slot)
{
    (void)slot;
    const Call *call = argument;
    int64_t first = index * call->loop->block, last = first + call->loop->block;
    call->range(call->arguments, first, last < call->loop->count ? last : call->loop->count);
}

void kn_parallel_for(KnLoop loop, KnRange range, const void *arguments)
{
    loop.block = loop.block > 0 ? loop.block : 1;
    Call call = {&loop, range, arguments};
    int alone = loop.count * loop.work < KN_ALONE_BELOW;
    kn_team_run_on(alone ? 1 : kn_cpu_threads(), (loop.count + loop.block - 1) / loop.block, run_block, &call);
}
