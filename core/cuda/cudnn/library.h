/* What the files behind the door share. */
#ifndef KN_CUDA_CUDNN_LIBRARY_H
#define KN_CUDA_CUDNN_LIBRARY_H

#include "core/cuda/cudnn/cudnn.h"

#include <cudnn.h>
#include <stddef.h>

#define KN_CUDNN_FUNCTIONS(F)                                                                                          \
    F(cudnnGetVersion)                                                                                                 \
    F(cudnnGetErrorString)                                                                                             \
    F(cudnnGetLastErrorString)                                                                                         \
    F(cudnnCreate)                                                                                                     \
    F(cudnnDestroy)                                                                                                    \
    F(cudnnSetStream)                                                                                                  \
    F(cudnnBackendCreateDescriptor)                                                                                    \
    F(cudnnBackendDestroyDescriptor)                                                                                   \
    F(cudnnBackendSetAttribute)                                                                                        \
    F(cudnnBackendGetAttribute)                                                                                        \
    F(cudnnBackendFinalize)                                                                                            \
    F(cudnnBackendExecute)

struct KnCudnn {
    void *file;
#define KN_CUDNN_FIELD(name) __typeof__(name) *name;
    KN_CUDNN_FUNCTIONS(KN_CUDNN_FIELD)
#undef KN_CUDNN_FIELD
    char version[32];
    cudnnHandle_t handle;                 /* NULL: the device is only described, by ... */
    cudnnBackendDescriptor_t description; /* ... this */
    struct KnCudnnPlan *plans;            /* plan.c */
};

/* KN_OK or a sentence; `what` says what was tried. */
int kn_cudnn_check(const KnCudnn *cudnn, cudnnStatus_t status, const char *what);

/* ---- graph.c: a graph of operations while it is built. After an error nothing more is done, and `code` has it. ----
 */

enum { KN_CUDNN_MOST_DESCRIPTORS = 160, KN_CUDNN_MOST_OPERATIONS = 40 };
typedef struct KnCudnnGraph {
    const KnCudnn *cudnn;
    int code, count, operation_count;
    cudnnBackendDescriptor_t descriptors[KN_CUDNN_MOST_DESCRIPTORS]; /* all that were made for it */
    cudnnBackendDescriptor_t operations[KN_CUDNN_MOST_OPERATIONS];   /* in the order in which they were appended */
} KnCudnnGraph;

typedef cudnnBackendDescriptor_t KnCudnnTensor; /* NULL: none */

typedef struct KnCudnnTensorKind {
    int64_t uid; /* 0: exists only within the graph */
    cudnnDataType_t type;
    int64_t dims[4], strides[4];
    KnCudnnTensor offsets; /* where each span begins */
    int by_value;          /* a number in the host's memory */
} KnCudnnTensorKind;

KnCudnnTensor kn_cudnn_tensor(KnCudnnGraph *graph, const KnCudnnTensorKind *kind);

/* y = mode(x, b, t), computed in `type`; `axis` is for indices alone. */
typedef struct KnCudnnPointwise {
    cudnnPointwiseMode_t mode;
    cudnnDataType_t type;
    KnCudnnTensor x, b, t, y;
    int64_t axis;
} KnCudnnPointwise;
void kn_cudnn_pointwise(KnCudnnGraph *graph, const KnCudnnPointwise *op);
void kn_cudnn_reduce(KnCudnnGraph *graph, cudnnReduceTensorOp_t op, KnCudnnTensor x, KnCudnnTensor y);
/* The same elements with other dimensions and strides. */
void kn_cudnn_reshape(KnCudnnGraph *graph, KnCudnnTensor x, KnCudnnTensor y);

/* c = a b; the lengths, by span, bound rows of a and c, columns of b and c, or what is summed over. */
typedef struct KnCudnnProduct {
    KnCudnnTensor a, b, c, m_lengths, n_lengths, k_lengths;
} KnCudnnProduct;
void kn_cudnn_product(KnCudnnGraph *graph, const KnCudnnProduct *op);

/* A descriptor that is none of the above; and its attributes. */
cudnnBackendDescriptor_t kn_cudnn_descriptor(KnCudnnGraph *graph, cudnnBackendDescriptorType_t type);
void kn_cudnn_set(KnCudnnGraph *graph, cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                  cudnnBackendAttributeType_t type, int64_t count, const void *values);
void kn_cudnn_finalize(KnCudnnGraph *graph, cudnnBackendDescriptor_t descriptor, const char *what);
void kn_cudnn_graph_clear(KnCudnnGraph *graph);

/* ---- attention.c ---- */

void kn_cudnn_attention(KnCudnnGraph *graph, const KnCudnnShape *shape);

/* ---- plan.c ---- */

struct KnCudnnPlan {
    struct KnCudnnPlan *next;
    KnCudnnShape shape;
    int refused; /* there is none for this shape */
    cudnnBackendDescriptor_t plan;
    size_t workspace_bytes;
    KnCudnnGraph graph; /* what the plan refers to */
};
void kn_cudnn_plans_clear(KnCudnn *cudnn);

#endif
