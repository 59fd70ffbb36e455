/* The one header that a kernel's file includes. Under nvcc it is CUDA; under another compiler it is the emulated device
 * (core/cuda/emulator), on which the same source runs as C++17, one fiber for each CUDA thread, for tests.
 *
 *     KN_LAUNCH(kernel, grid, threads, shared_bytes, stream, arguments...);  a template with commas in parentheses
 *     KN_DYNAMIC_SHARED(float, sums);                                        float *sums, dynamic shared memory
 *
 * docs/cuda.md says how kernels are written and proven. */
#ifndef KN_CUDA_KERNEL_H
#define KN_CUDA_KERNEL_H

#include <stdint.h>

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#define KN_LAUNCH(kernel, grid, threads, shared_bytes, stream, ...)                                                    \
    kernel<<<(grid), (threads), (shared_bytes), (stream)>>>(__VA_ARGS__)

#define KN_DYNAMIC_SHARED(type, name)                                                                                  \
    extern __shared__ __align__(16) unsigned char kn_dynamic_shared[];                                                 \
    type *name = reinterpret_cast<type *>(kn_dynamic_shared)

#else

#include <cuda_runtime_api.h>
#include <vector_functions.h>

#include <cuda_bf16.h>

#include "core/cuda/emulator/builtins.h"
#include "core/cuda/emulator/launch.h"

#endif

#endif
