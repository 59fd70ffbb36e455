/* How many threads the CPU kernels use.
 *
 * OpenMP keeps its own setting per calling thread, so kernels name the number in every parallel region
 * (num_threads(kn_cpu_threads())): the loader's or a server's thread then uses what the run was told. Regions that
 * name no number follow at least on the thread that set it. */
#include "core/cpu/backend.h"

#include <omp.h>
#include <stdatomic.h>

static atomic_int chosen_threads;

void kn_cpu_set_threads(int threads)
{
    atomic_store(&chosen_threads, threads > 0 ? threads : 0);
    omp_set_num_threads(kn_cpu_threads());
}

int kn_cpu_threads(void)
{
    int threads = atomic_load(&chosen_threads);
    return threads > 0 ? threads : omp_get_num_procs();
}
