/* A CUDA driver without a device, as libcuda.so.1: cuDNN loads the kernels that it compiles for a plan into a driver,
 * and is content to be told that they are there (tests/cuda/test_cudnn_plan.c). Nothing can be run. */
#define DOES_NOTHING(name)                                                                                             \
    int name(void);                                                                                                    \
    int name(void)                                                                                                     \
    {                                                                                                                  \
        return 0;                                                                                                      \
    }

#define REFUSES(name)                                                                                                  \
    int name(void);                                                                                                    \
    int name(void)                                                                                                     \
    {                                                                                                                  \
        return 34; /* CUDA_ERROR_STUB_LIBRARY */                                                                       \
    }

/* The first argument is where a handle goes. */
#define GIVES_HANDLE(name)                                                                                             \
    int name(void **handle);                                                                                           \
    int name(void **handle)                                                                                            \
    {                                                                                                                  \
        static int something;                                                                                          \
        *handle = &something;                                                                                          \
        return 0;                                                                                                      \
    }

GIVES_HANDLE(cuLibraryLoadData)
GIVES_HANDLE(cuLibraryLoadFromFile)
GIVES_HANDLE(cuLibraryGetKernel)
GIVES_HANDLE(cuModuleLoadData)
GIVES_HANDLE(cuModuleLoadDataEx)
GIVES_HANDLE(cuModuleLoadFatBinary)
GIVES_HANDLE(cuModuleGetFunction)
REFUSES(cuCtxGetCurrent)
REFUSES(cuCtxPopCurrent)
REFUSES(cuDevicePrimaryCtxRetain)

REFUSES(cuInit)
REFUSES(cuCtxGetDevice)
REFUSES(cuCtxGetLimit)
REFUSES(cuCtxPushCurrent)
REFUSES(cuDeviceGet)
REFUSES(cuDeviceGetAttribute)
REFUSES(cuDeviceGetCount)
REFUSES(cuDevicePrimaryCtxRelease)
REFUSES(cuDevicePrimaryCtxReset)
DOES_NOTHING(cuFuncGetAttribute)
DOES_NOTHING(cuFuncSetAttribute)
DOES_NOTHING(cuKernelGetAttribute)
DOES_NOTHING(cuKernelSetAttribute)
REFUSES(cuLaunchCooperativeKernel)
REFUSES(cuLaunchKernel)
REFUSES(cuLaunchKernelEx)
DOES_NOTHING(cuLibraryUnload)
REFUSES(cuLinkAddData)
REFUSES(cuLinkAddData_v2)
REFUSES(cuLinkAddFile_v2)
REFUSES(cuLinkComplete)
REFUSES(cuLinkCreate)
REFUSES(cuLinkCreate_v2)
REFUSES(cuLinkDestroy)
REFUSES(cuMemcpyDtoH_v2)
REFUSES(cuModuleGetGlobal_v2)
DOES_NOTHING(cuModuleUnload)
REFUSES(cuOccupancyMaxActiveBlocksPerMultiprocessor)
REFUSES(cuOccupancyMaxPotentialClusterSize)
REFUSES(cuStreamGetCtx)
REFUSES(cuStreamSynchronize)
REFUSES(cuTensorMapEncodeTiled)

int cuDriverGetVersion(int *version);
int cuDriverGetVersion(int *version)
{
    *version = 0;
    return 34;
}

static int describe(const char **text)
{
    *text = "the driver of the tests";
    return 0;
}

int cuGetErrorName(int error, const char **text);
int cuGetErrorName(int error, const char **text)
{
    (void)error;
    return describe(text);
}

int cuGetErrorString(int error, const char **text);
int cuGetErrorString(int error, const char **text)
{
    (void)error;
    return describe(text);
}
