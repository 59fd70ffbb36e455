/* The CUDA runtime without a GPU: devices and their properties, errors, planned faults. */
#include "cudart.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the environment ---- */

long long emulated_setting(const char *name, long long otherwise)
{
    const char *value = getenv(name);
    return value && *value ? strtoll(value, NULL, 10) : otherwise;
}

/* ---- errors ---- */

static _Thread_local cudaError_t last_error;

cudaError_t emulated_error(cudaError_t error)
{
    if (error != cudaSuccess && error != cudaErrorNotReady)
        last_error = error;
    return error;
}

cudaError_t emulated_refuse(cudaError_t error, const char *format, ...)
{
    char words[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(words, sizeof words, format, arguments);
    va_end(arguments);
    fprintf(stderr, "emulated device: %s\n", words);
    return emulated_error(error);
}

cudaError_t cudaGetLastError(void)
{
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError(void)
{
    return last_error;
}

static const struct {
    cudaError_t error;
    const char *name, *words;
} errors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInvalidMemcpyDirection, "cudaErrorInvalidMemcpyDirection", "invalid copy direction for memcpy"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress", "an illegal memory access was encountered"},
    {cudaErrorHostMemoryAlreadyRegistered, "cudaErrorHostMemoryAlreadyRegistered",
     "part or all of the requested memory range is already mapped"},
    {cudaErrorHostMemoryNotRegistered, "cudaErrorHostMemoryNotRegistered",
     "pointer does not correspond to a registered memory region"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureUnmatched, "cudaErrorStreamCaptureUnmatched",
     "operation cannot be performed: the stream's capture was not begun on it"},
    {cudaErrorStreamCaptureUnjoined, "cudaErrorStreamCaptureUnjoined", "capturing stream has unjoined work"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation",
     "dependency created on uncaptured work in another stream"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent",
     "operation not permitted on an event last recorded in a capturing stream"},
    {cudaErrorUnknown, "cudaErrorUnknown", "unknown error"},
};

const char *cudaGetErrorName(cudaError_t error)
{
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].error == error)
            return errors[i].name;
    return "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t error)
{
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].error == error)
            return errors[i].words;
    return "unrecognized error code";
}

cudaError_t emulated_planned_fault(const char *function)
{
    static _Atomic int calls;
    const char *plan = getenv("KINORA_EMULATED_CUDA"), *colon = plan ? strchr(plan, ':') : NULL;
    if (!colon || strlen(function) != (size_t)(colon - plan) || strncmp(plan, function, strlen(function)) != 0 ||
        ++calls != atoi(colon + 1))
        return cudaSuccess;
    return strstr(function, "alloc") || strstr(function, "Alloc") ? cudaErrorMemoryAllocation : cudaErrorUnknown;
}

/* ---- devices ---- */

enum { MULTIPROCESSORS = 132, SHARED_BYTES = 48 << 10, SHARED_BYTES_OPTIN = 227 << 10 };
static _Thread_local int current;

static int device_count(void)
{
    return (int)emulated_setting("KINORA_EMULATED_DEVICES", 8);
}

static cudaError_t check_device(int device)
{
    return device >= 0 && device < device_count() ? cudaSuccess : emulated_error(cudaErrorInvalidDevice);
}

cudaError_t cudaGetDeviceCount(int *count)
{
    KN_FAIL_IF_PLANNED();
    *count = device_count();
    return *count ? cudaSuccess : emulated_error(cudaErrorNoDevice);
}

cudaError_t cudaGetDevice(int *device)
{
    *device = current;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device)
{
    KN_FAIL_IF_PLANNED();
    cudaError_t error = check_device(device);
    if (error == cudaSuccess)
        current = device;
    return error;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device)
{
    KN_FAIL_IF_PLANNED();
    const int capability = (int)emulated_setting("KINORA_EMULATED_CAPABILITY", 90);
    size_t unused;
    *properties = (struct cudaDeviceProp){.name = "emulated device",
                                          .major = capability / 10,
                                          .minor = capability % 10,
                                          .multiProcessorCount = MULTIPROCESSORS,
                                          .warpSize = 32,
                                          .maxThreadsPerBlock = 1024,
                                          .sharedMemPerBlock = SHARED_BYTES,
                                          .sharedMemPerBlockOptin = SHARED_BYTES_OPTIN,
                                          .pciBusID = device + 1};
    properties->uuid.bytes[0] = (char)(emulated_setting("KINORA_EMULATED_FIRST", 0) + device);
    cudaMemGetInfo(&unused, &properties->totalGlobalMem);
    return check_device(device);
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device)
{
    const int capability = (int)emulated_setting("KINORA_EMULATED_CAPABILITY", 90);
    const struct {
        enum cudaDeviceAttr attribute;
        int value;
    } known[] = {
        {cudaDevAttrMultiProcessorCount, MULTIPROCESSORS},
        {cudaDevAttrComputeCapabilityMajor, capability / 10},
        {cudaDevAttrComputeCapabilityMinor, capability % 10},
        {cudaDevAttrWarpSize, 32},
        {cudaDevAttrMaxThreadsPerBlock, 1024},
        {cudaDevAttrMaxSharedMemoryPerBlock, SHARED_BYTES},
        {cudaDevAttrMaxSharedMemoryPerBlockOptin, SHARED_BYTES_OPTIN},
        {cudaDevAttrPageableMemoryAccess, emulated_setting("KINORA_EMULATED_UNIFIED", 0) != 0},
    };
    KN_FAIL_IF_PLANNED();
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].attribute == attribute) {
            *value = known[i].value;
            return check_device(device);
        }
    return emulated_refuse(cudaErrorInvalidValue, "attribute %d of a device is not emulated", (int)attribute);
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

/* ---- kernels' attributes ---- */

typedef struct SharedLimit {
    struct SharedLimit *next;
    const void *kernel;
    size_t bytes;
} SharedLimit;

static pthread_mutex_t limits_mutex = PTHREAD_MUTEX_INITIALIZER;
static SharedLimit *limits;

cudaError_t cudaFuncSetAttribute(const void *kernel, enum cudaFuncAttribute attribute, int value)
{
    KN_FAIL_IF_PLANNED();
    if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout)
        return cudaSuccess;
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 || value > SHARED_BYTES_OPTIN)
        return emulated_error(cudaErrorInvalidValue);
    SharedLimit *limit = malloc(sizeof *limit);
    pthread_mutex_lock(&limits_mutex);
    *limit = (SharedLimit){limits, kernel, (size_t)value};
    limits = limit;
    pthread_mutex_unlock(&limits_mutex);
    return cudaSuccess;
}

size_t emulated_shared_limit(const void *kernel)
{
    size_t bytes = SHARED_BYTES;
    pthread_mutex_lock(&limits_mutex);
    for (const SharedLimit *limit = limits; limit; limit = limit->next)
        if (limit->kernel == kernel) {
            bytes = limit->bytes;
            break;
        }
    pthread_mutex_unlock(&limits_mutex);
    return bytes;
}
