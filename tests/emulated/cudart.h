/* What the other stub libraries use of the CUDA runtime's stub. */
#ifndef KN_TESTS_EMULATED_CUDART_H
#define KN_TESTS_EMULATED_CUDART_H

#include <cuda_runtime_api.h>

/* Queues work: `run(argument)` is called when its turn on the stream has come, again and again until it gives 1. It
 * must not block, since the device has one thread for all streams. */
void emulated_enqueue(cudaStream_t stream, int (*run)(void *argument), void *argument);

#endif
