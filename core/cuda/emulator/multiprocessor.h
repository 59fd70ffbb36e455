/* A multiprocessor: it runs the blocks of a launch one after another, each CUDA thread on a fiber of its own.
 *
 * A thread runs until it waits, at a barrier for all threads of its block that have not returned, or in a warp
 * operation for the lanes of its mask. When nobody can run, all must stand at the same barrier, which then opens;
 * everything else is a bug of the kernel, and the process dies saying who waits where.
 *
 * Which thread goes next is left open by CUDA. KINORA_EMULATED_THREADS=forward (in order, the default), backward, or
 * random[:SEED], where mostly the one goes that became ready last, so that some warps run far ahead of others: a
 * barrier that is missing after a read shows in no other order.
 *
 * Barriers and __syncwarp order memory, for ThreadSanitizer; shuffles and votes order nothing, as CUDA has it. */
#ifndef KN_CUDA_EMULATOR_MULTIPROCESSOR_H
#define KN_CUDA_EMULATOR_MULTIPROCESSOR_H

#include <stddef.h>
#include <stdint.h>
#include <vector_types.h>

namespace kn_emulated
{

/* Where in the kernel's source a thread waits. */
struct Site {
    const char *what, *file;
    int line;
};

constexpr Site here(const char *what, const char *file = __builtin_FILE(), int line = __builtin_LINE())
{
    return {what, file, line};
}

enum State : uint8_t { NOT_STARTED, RUNNING, AT_BARRIER, AT_WARP_OPERATION, RETURNED };
enum WarpOperation : uint8_t { SHUFFLE, BALLOT, SYNCWARP };

struct Context;

struct Thread {
    uint3 index;
    unsigned number; /* in its block */
    Context *fiber;
    State state;
    WarpOperation operation;
    unsigned mask, whole_warp_syncs;
    uint8_t copies;   /* whether it has copies under way (tensor_core.h) */
    int source;       /* lane */
    const Site *site; /* while it waits */
    uint64_t given, received;
};

struct Block {
    uint3 index;
    dim3 threads, grid;
    char *shared; /* dynamic shared memory */
};

/* What is launched. */
struct Launch {
    const char *kernel;
    dim3 grid, threads;
    size_t shared_bytes;
    void (*call)(void *arguments); /* the kernel, for one thread */
    void *arguments;
};

/* The thread that runs now, and its block. ThreadSanitizer's blocks run on several threads of the host. */
#ifdef KN_EMULATED_TSAN
#define KN_EACH_MULTIPROCESSOR __thread
#else
#define KN_EACH_MULTIPROCESSOR
#endif
extern KN_EACH_MULTIPROCESSOR __attribute__((visibility("hidden"))) Thread *thread;
extern KN_EACH_MULTIPROCESSOR __attribute__((visibility("hidden"))) Block *block;

/* Waits for the block; gives how many of its threads came with a vote. */
int barrier(int vote, const Site &site);

/* Waits for the lanes of `mask`. SHUFFLE gives what lane `source` gave, all ones where that lane has returned or is not
 * in the mask (a NaN); BALLOT gives the lanes that gave other than 0. */
uint64_t warp_operation(WarpOperation operation, unsigned mask, uint64_t given, int source, const Site &site);

/* Runs blocks first, first + step, ... of the launch on the multiprocessor of the calling thread of the host, which is
 * made for its first launch and kept. */
void multiprocessor_run(const Launch &launch, uint64_t first, uint64_t step);

} // namespace kn_emulated

#endif
