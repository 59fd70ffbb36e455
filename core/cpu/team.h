/* The CPU kernels' threads: one team for the process, made at the first job that needs it.
 *
 * A job is a number of blocks that are cut the same way whatever the number of threads, so who does a block never
 * changes a bit. The calling thread works too and waits only for blocks that another thread has begun, never for a
 * thread that has not come. Workers watch for the next job for some tens of microseconds, then sleep; while the
 * machine is busy with other things, they sleep at once, and short jobs are done by their caller. Blocks must not wait
 * for each other.
 *
 * Any thread may call. While the team is busy with one job, the jobs of other threads, and those started from inside
 * a block, are done by their caller alone. After fork() the child has no workers and makes its own at its first job;
 * a child forked from inside a block may only exec or _exit. Workers take no signals. */
#ifndef KN_CPU_TEAM_H
#define KN_CPU_TEAM_H

#include <stdint.h>

/* Does one block. `slot`, from 0 to below the number of threads, is the index of this thread's scratch: no two blocks
 * of a job that run at the same time have the same. */
typedef void (*KnTeamBlock)(void *argument, int64_t block, int slot);

/* Does blocks 0 .. blocks - 1 on at most kn_cpu_threads() threads and returns when all are done. What the caller wrote
 * before is seen in the blocks, and what they wrote afterwards. Blocks of less than some microseconds are not worth
 * it: about 1 microsecond goes for announcing a job. At most 2^24 - 1 blocks. */
void kn_team_run(int64_t blocks, KnTeamBlock block, void *argument);

/* The same on at most `threads` threads, for callers that have scratch for so many slots; 1 = the caller alone. */
void kn_team_run_on(int threads, int64_t blocks, KnTeamBlock block, void *argument);

#endif
