/* The library itself: opened at run time, its functions found by name, its errors as sentences. */
#include "core/cuda/cudnn/library.h"

#include "core/base/error.h"
#include "core/base/memory.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

/* Since when statistics of packed spans may be packed too. 9.10.0 and 9.10.1 have errors in attention. */
enum { OLDEST_VERSION = 90600, FIRST_BROKEN = 91000, LAST_BROKEN = 91001, MESSAGE_BYTES = 600 };

int kn_cudnn_check(const KnCudnn *cudnn, cudnnStatus_t status, const char *what)
{
    char message[MESSAGE_BYTES] = "";
    if (status == CUDNN_STATUS_SUCCESS)
        return KN_OK;
    cudnn->cudnnGetLastErrorString(message, sizeof message);
    message[sizeof message - 1] = '\0';
    for (char *at = message; (at = strpbrk(at, "\r\n")) != NULL;)
        *at = ' ';
    return kn_fail(KN_EPEER, "%s failed in cuDNN %s: %s (%d), last message: %s", what, cudnn->version,
                   cudnn->cudnnGetErrorString(status), (int)status, *message ? message : "none");
}

static int find_functions(KnCudnn *cudnn)
{
    cudnn->file = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);
    if (!cudnn->file)
        return kn_fail(KN_EPEER, "cuDNN is not here: %s", dlerror());
#define FIND(name)                                                                                                     \
    *(void **)&cudnn->name = dlsym(cudnn->file, #name);                                                                \
    if (!cudnn->name)                                                                                                  \
        return kn_fail(KN_EPEER, "libcudnn.so.9 has no %s", #name);
    KN_CUDNN_FUNCTIONS(FIND)
#undef FIND
    size_t version = cudnn->cudnnGetVersion();
    char *text = kn_format("%zu.%zu.%zu", version / 10000, version / 100 % 100, version % 100);
    strncpy(cudnn->version, text, sizeof cudnn->version - 1);
    free(text);
    if (version < OLDEST_VERSION || version / 10000 != 9 || (version >= FIRST_BROKEN && version <= LAST_BROKEN))
        return kn_fail(KN_EPEER, "cuDNN %s is not used: take 9.6 or a later 9, but not 9.10.0 or 9.10.1",
                       cudnn->version);
    return KN_OK;
}

static int describe_device(KnCudnn *cudnn, const char *properties)
{
    KN_TRY(kn_cudnn_check(cudnn,
                          cudnn->cudnnBackendCreateDescriptor(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &cudnn->description),
                          "a device's description"));
    KN_TRY(kn_cudnn_check(cudnn,
                          cudnn->cudnnBackendSetAttribute(cudnn->description, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION,
                                                          CUDNN_TYPE_CHAR, (int64_t)strlen(properties), properties),
                          "reading a device's description"));
    return kn_cudnn_check(cudnn, cudnn->cudnnBackendFinalize(cudnn->description), "finalizing a device's description");
}

int kn_cudnn_open(KnCudnn **cudnn, const char *properties)
{
    KnCudnn *made = kn_alloc(sizeof *made);
    int code = find_functions(made);
    if (code == KN_OK)
        code = properties ? describe_device(made, properties)
                          : kn_cudnn_check(made, made->cudnnCreate(&made->handle), "starting cuDNN");
    if (code < 0) {
        kn_cudnn_close(made);
        return code;
    }
    *cudnn = made;
    return KN_OK;
}

void kn_cudnn_close(KnCudnn *cudnn)
{
    if (!cudnn)
        return;
    kn_cudnn_plans_clear(cudnn);
    if (cudnn->description)
        cudnn->cudnnBackendDestroyDescriptor(cudnn->description);
    if (cudnn->handle)
        cudnn->cudnnDestroy(cudnn->handle);
    if (cudnn->file)
        dlclose(cudnn->file);
    free(cudnn);
}

const char *kn_cudnn_version(const KnCudnn *cudnn)
{
    return cudnn->version;
}

char *kn_cudnn_properties(KnCudnn *cudnn)
{
    cudnnBackendDescriptor_t device = NULL;
    char *text = NULL;
    int64_t bytes = 0;
    if (cudnn->cudnnBackendCreateDescriptor(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &device) != CUDNN_STATUS_SUCCESS)
        return NULL;
    if (cudnn->cudnnBackendSetAttribute(device, CUDNN_ATTR_DEVICEPROP_HANDLE, CUDNN_TYPE_HANDLE, 1, &cudnn->handle) ==
            CUDNN_STATUS_SUCCESS &&
        cudnn->cudnnBackendFinalize(device) == CUDNN_STATUS_SUCCESS &&
        cudnn->cudnnBackendGetAttribute(device, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, 0, &bytes,
                                        NULL) == CUDNN_STATUS_SUCCESS) {
        text = kn_alloc((size_t)bytes + 1);
        if (cudnn->cudnnBackendGetAttribute(device, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, bytes,
                                            &bytes, text) != CUDNN_STATUS_SUCCESS) {
            free(text);
            text = NULL;
        }
    }
    cudnn->cudnnBackendDestroyDescriptor(device);
    return text;
}
