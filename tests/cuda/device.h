/* What tests of kernels share: arrays on the device, filled from and read back into the host's, and rounding to bf16.
 */
#ifndef KN_TESTS_CUDA_DEVICE_H
#define KN_TESTS_CUDA_DEVICE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/base/bf16.h"
#include "core/cuda/kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SUCCEEDS(call) assert_string_equal(cudaGetErrorName(call), "cudaSuccess")

static inline size_t bytes_of(KnCudaType type)
{
    return type == KN_CUDA_F32 ? 4 : 2;
}

/* Rounds values to `type` in place, and puts them on the device; to be freed by cudaFree. */
static inline void *to_device(KnCudaType type, float *values, size_t count)
{
    void *device;
    uint16_t *halves = malloc(count * sizeof *halves + 1);
    for (size_t i = 0; i < count && type == KN_CUDA_BF16; i++) {
        halves[i] = kn_bf16_from_float(values[i]);
        values[i] = kn_bf16_to_float(halves[i]);
    }
    SUCCEEDS(cudaMalloc(&device, count * bytes_of(type)));
    SUCCEEDS(cudaMemcpy(device, type == KN_CUDA_F32 ? (void *)values : halves, count * bytes_of(type),
                        cudaMemcpyHostToDevice));
    free(halves);
    return device;
}

/* Values from the device, to be freed. */
static inline float *from_device(KnCudaType type, const void *device, size_t count)
{
    float *values = malloc(count * sizeof *values + 1);
    uint16_t *halves = malloc(count * sizeof *halves + 1);
    SUCCEEDS(cudaMemcpy(type == KN_CUDA_F32 ? (void *)values : halves, device, count * bytes_of(type),
                        cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < count && type == KN_CUDA_BF16; i++)
        values[i] = kn_bf16_to_float(halves[i]);
    free(halves);
    return values;
}

/* The tests' main: in each order of CUDA threads, since none is promised. */
static inline int run_in_every_order(int (*run)(void))
{
    static const char *const orders[] = {"forward", "backward", "random:1", "random:2"};
    int failed = 0;
    for (size_t i = 0; i < sizeof orders / sizeof *orders; i++) {
        setenv("KINORA_EMULATED_THREADS", orders[i], 1);
        failed |= run();
    }
    return failed;
}

#endif
