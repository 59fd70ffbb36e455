/* What the emulated device asks of the CUDA runtime that it runs under (tests/emulated has one), in C. */
#ifndef KN_CUDA_EMULATOR_RUNTIME_H
#define KN_CUDA_EMULATOR_RUNTIME_H

#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Queues work: `run(argument)` is called on the device's thread when its turn on the stream has come, again and again
 * until it gives 1. It must not block, since the device has one thread for all streams. A graph runs captured work many
 * times: `run` frees nothing and leaves `argument` ready to be run anew; `release(argument)` comes once, after the last
 * run. `release` may be NULL. */
void emulated_enqueue(cudaStream_t stream, int (*run)(void *argument), void *argument, void (*release)(void *argument));

/* Says on stderr, in one line, what is wrong, and keeps `error` for cudaGetLastError; gives `error`. */
cudaError_t emulated_refuse(cudaError_t error, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* What keeps a kernel from using what `pointer` leads to, or NULL: that is the device's memory, or the host's where it
 * is pinned. */
const char *emulated_why_unreachable(const void *pointer);

/* Memory of the device by the driver's virtual memory, as ncclMemAlloc gives it: cudaFree does not know it. */
cudaError_t emulated_allocate_virtual(void **memory, size_t bytes);
cudaError_t emulated_free_virtual(void *memory);
int emulated_is_virtual(const void *memory, size_t bytes);

/* The error that was planned for this call of `function` (KINORA_EMULATED_CUDA), or cudaSuccess. */
cudaError_t emulated_planned_fault(const char *function);

/* How much dynamic shared memory a kernel may have: 48 KiB until cudaFuncSetAttribute raises it. */
size_t emulated_shared_limit(const void *kernel);

#ifdef __cplusplus
}
#endif

#endif
