/* How many threads the CPU kernels use: what the run was told, or all processors that it may run on. */
#include "core/cpu/backend.h"

#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

static atomic_int chosen_threads, usable_processors;

void kn_cpu_set_threads(int threads)
{
    atomic_store(&chosen_threads, threads > 0 ? threads : 0);
}

static int count_processors(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        return CPU_COUNT(&set);
    long online = sysconf(_SC_NPROCESSORS_ONLN); /* more than a cpu_set_t has room for */
    return online > 0 ? (int)online : 1;
}

int kn_cpu_threads(void)
{
    int threads = atomic_load_explicit(&chosen_threads, memory_order_relaxed);
    if (threads > 0)
        return threads;
    int usable = atomic_load_explicit(&usable_processors, memory_order_relaxed);
    if (usable == 0)
        atomic_store_explicit(&usable_processors, usable = count_processors(), memory_order_relaxed);
    return usable;
}
