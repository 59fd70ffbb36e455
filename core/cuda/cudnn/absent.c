/* The door where cuDNN's headers were not found: nobody is behind it. */
#include "core/base/error.h"
#include "core/cuda/cudnn/cudnn.h"

int kn_cudnn_open(KnCudnn **cudnn, const char *properties)
{
    (void)cudnn;
    (void)properties;
    return kn_fail(KN_EPEER, "built without cuDNN");
}

void kn_cudnn_close(KnCudnn *cudnn)
{
    (void)cudnn;
}

const char *kn_cudnn_version(const KnCudnn *cudnn)
{
    (void)cudnn;
    return "none";
}

char *kn_cudnn_properties(KnCudnn *cudnn)
{
    (void)cudnn;
    return NULL;
}

int kn_cudnn_plan(KnCudnn *cudnn, const KnCudnnShape *shape, KnCudnnPlan **plan)
{
    (void)cudnn;
    (void)shape;
    (void)plan;
    return kn_fail(KN_EPEER, "built without cuDNN");
}

size_t kn_cudnn_plan_bytes(const KnCudnnPlan *plan)
{
    (void)plan;
    return 0;
}

int kn_cudnn_run(KnCudnn *cudnn, const KnCudnnPlan *plan, const KnCudnnCall *call, cudaStream_t stream)
{
    (void)cudnn;
    (void)plan;
    (void)call;
    (void)stream;
    return kn_fail(KN_EPEER, "built without cuDNN");
}
