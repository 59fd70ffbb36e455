/* Launches: the device's limits, and the grid on one multiprocessor. */
#include "core/cuda/emulator/launch.h"
#include "core/cuda/emulator/fiber.h"

#include <pthread.h>

namespace kn_emulated
{

static constexpr unsigned GRID_LIMIT_X = 2147483647, GRID_LIMIT_YZ = 65535;
static constexpr unsigned THREADS_LIMIT = 1024, THREADS_LIMIT_Z = 64;

static int is_grid(dim3 grid)
{
    return grid.x && grid.y && grid.z && grid.x <= GRID_LIMIT_X && grid.y <= GRID_LIMIT_YZ && grid.z <= GRID_LIMIT_YZ;
}

static int is_block(dim3 threads)
{
    return threads.x && threads.y && threads.z && threads.x <= THREADS_LIMIT && threads.y <= THREADS_LIMIT &&
           threads.z <= THREADS_LIMIT_Z && threads.x * threads.y * threads.z <= THREADS_LIMIT;
}

int is_launchable(const Launch &launch, const void *kernel)
{
    const dim3 &grid = launch.grid, &threads = launch.threads;
    size_t limit = emulated_shared_limit(kernel);
    if (!is_grid(grid))
        emulated_refuse(cudaErrorInvalidConfiguration, "kernel %s: a grid of (%u, %u, %u) blocks cannot be launched",
                        launch.kernel, grid.x, grid.y, grid.z);
    else if (!is_block(threads))
        emulated_refuse(cudaErrorInvalidConfiguration, "kernel %s: a block of (%u, %u, %u) threads cannot be launched",
                        launch.kernel, threads.x, threads.y, threads.z);
    else if (launch.shared_bytes > limit)
        emulated_refuse(cudaErrorInvalidValue,
                        "kernel %s: %zu bytes of dynamic shared memory, it may have %zu (cudaFuncSetAttribute)",
                        launch.kernel, launch.shared_bytes, limit);
    else if (cudaError_t planned = emulated_planned_fault("cudaLaunchKernel"))
        emulated_refuse(planned, "kernel %s: its launch fails as planned", launch.kernel);
    else
        return 1;
    return 0;
}

int is_argument(const Launch &launch, int position, const void *pointer)
{
    const char *why = pointer ? emulated_why_unreachable(pointer) : nullptr;
    if (why)
        emulated_refuse(cudaErrorIllegalAddress, "kernel %s: argument %d leads to %s", launch.kernel, position, why);
    return !why;
}

#ifdef KN_EMULATED_TSAN

/* Blocks of different multiprocessors are unordered, those of one are not. Each is a thread of the host that waits for
 * launches, one at a time. */
static constexpr unsigned MULTIPROCESSORS = 2;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t begun = PTHREAD_COND_INITIALIZER, ended = PTHREAD_COND_INITIALIZER;
static const Launch *present;
static uint64_t launches;
static unsigned running, started;

static void *run_multiprocessor(void *number)
{
    uint64_t done = 0;
    pthread_mutex_lock(&mutex);
    for (;;) {
        while (launches == done)
            pthread_cond_wait(&begun, &mutex);
        const Launch *launch = present;
        done = launches;
        pthread_mutex_unlock(&mutex);
        multiprocessor_run(*launch, (uintptr_t)number, MULTIPROCESSORS);
        pthread_mutex_lock(&mutex);
        if (--running == 0)
            pthread_cond_signal(&ended);
    }
    return nullptr;
}

void run_grid(const Launch &launch)
{
    pthread_mutex_lock(&mutex);
    present = &launch;
    running = MULTIPROCESSORS;
    launches++;
    for (pthread_t worker; started < MULTIPROCESSORS; started++)
        if (pthread_create(&worker, nullptr, run_multiprocessor, (void *)(uintptr_t)started) == 0)
            pthread_detach(worker);
    pthread_cond_broadcast(&begun);
    while (running)
        pthread_cond_wait(&ended, &mutex);
    pthread_mutex_unlock(&mutex);
}

#else

void run_grid(const Launch &launch)
{
    multiprocessor_run(launch, 0, 1);
}

#endif

} // namespace kn_emulated
