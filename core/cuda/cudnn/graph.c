/* Tensors and operations of cuDNN's graphs, each a descriptor with attributes. */
#include "core/cuda/cudnn/library.h"

#include "core/base/error.h"

#include <stdbool.h>
#include <stdio.h>

enum { ALIGNMENT = 16, FIRST_INNER_UID = 1000 };

cudnnBackendDescriptor_t kn_cudnn_descriptor(KnCudnnGraph *graph, cudnnBackendDescriptorType_t type)
{
    cudnnBackendDescriptor_t made = NULL;
    if (graph->code < 0)
        return NULL;
    KN_ASSERT(graph->count < KN_CUDNN_MOST_DESCRIPTORS);
    graph->code = kn_cudnn_check(graph->cudnn, graph->cudnn->cudnnBackendCreateDescriptor(type, &made), "a descriptor");
    if (graph->code == KN_OK)
        graph->descriptors[graph->count++] = made;
    return made;
}

void kn_cudnn_set(KnCudnnGraph *graph, cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                  cudnnBackendAttributeType_t type, int64_t count, const void *values)
{
    char what[40];
    if (graph->code < 0)
        return;
    snprintf(what, sizeof what, "attribute %d", (int)name);
    graph->code = kn_cudnn_check(graph->cudnn,
                                 graph->cudnn->cudnnBackendSetAttribute(descriptor, name, type, count, values), what);
}

/* What is not there is left out. */
static void set_descriptor(KnCudnnGraph *graph, cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                           cudnnBackendDescriptor_t value)
{
    if (value)
        kn_cudnn_set(graph, descriptor, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

void kn_cudnn_finalize(KnCudnnGraph *graph, cudnnBackendDescriptor_t descriptor, const char *what)
{
    if (graph->code == KN_OK)
        graph->code = kn_cudnn_check(graph->cudnn, graph->cudnn->cudnnBackendFinalize(descriptor), what);
}

static void append(KnCudnnGraph *graph, cudnnBackendDescriptor_t operation, const char *what)
{
    char text[80];
    snprintf(text, sizeof text, "operation %d, %s,", graph->operation_count + 1, what);
    kn_cudnn_finalize(graph, operation, text);
    KN_ASSERT(graph->operation_count < KN_CUDNN_MOST_OPERATIONS);
    graph->operations[graph->operation_count++] = operation;
}

KnCudnnTensor kn_cudnn_tensor(KnCudnnGraph *graph, const KnCudnnTensorKind *kind)
{
    char what[40];
    bool yes = true, virtual = kind->uid == 0;
    int64_t uid = kind->uid ? kind->uid : FIRST_INNER_UID + graph->count, alignment = ALIGNMENT;
    cudnnBackendDescriptor_t made = kn_cudnn_descriptor(graph, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    kn_cudnn_set(graph, made, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &kind->type);
    kn_cudnn_set(graph, made, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, kind->dims);
    kn_cudnn_set(graph, made, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, kind->strides);
    kn_cudnn_set(graph, made, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &uid);
    kn_cudnn_set(graph, made, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    kn_cudnn_set(graph, made, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &virtual);
    if (kind->by_value)
        kn_cudnn_set(graph, made, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &yes);
    set_descriptor(graph, made, CUDNN_ATTR_TENSOR_RAGGED_OFFSET_DESC, kind->offsets);
    snprintf(what, sizeof what, "tensor %lld", (long long)uid);
    kn_cudnn_finalize(graph, made, what);
    return made;
}

void kn_cudnn_pointwise(KnCudnnGraph *graph, const KnCudnnPointwise *op)
{
    char what[40];
    cudnnBackendDescriptor_t mode = kn_cudnn_descriptor(graph, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    kn_cudnn_set(graph, mode, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &op->mode);
    kn_cudnn_set(graph, mode, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &op->type);
    if (op->mode == CUDNN_POINTWISE_GEN_INDEX)
        kn_cudnn_set(graph, mode, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &op->axis);
    kn_cudnn_finalize(graph, mode, "a pointwise mode");
    cudnnBackendDescriptor_t made = kn_cudnn_descriptor(graph, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    set_descriptor(graph, made, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, mode);
    set_descriptor(graph, made, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, op->x);
    set_descriptor(graph, made, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, op->b);
    set_descriptor(graph, made, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, op->t);
    set_descriptor(graph, made, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, op->y);
    snprintf(what, sizeof what, "pointwise %d", (int)op->mode);
    append(graph, made, what);
}

void kn_cudnn_reduce(KnCudnnGraph *graph, cudnnReduceTensorOp_t op, KnCudnnTensor x, KnCudnnTensor y)
{
    cudnnDataType_t type = CUDNN_DATA_FLOAT;
    cudnnBackendDescriptor_t mode = kn_cudnn_descriptor(graph, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    kn_cudnn_set(graph, mode, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    kn_cudnn_set(graph, mode, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &op);
    kn_cudnn_finalize(graph, mode, "a reduction's mode");
    cudnnBackendDescriptor_t made = kn_cudnn_descriptor(graph, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    set_descriptor(graph, made, CUDNN_ATTR_OPERATION_REDUCTION_DESC, mode);
    set_descriptor(graph, made, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    set_descriptor(graph, made, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y);
    append(graph, made, "a reduction");
}

void kn_cudnn_reshape(KnCudnnGraph *graph, KnCudnnTensor x, KnCudnnTensor y)
{
    cudnnBackendDescriptor_t made = kn_cudnn_descriptor(graph, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    set_descriptor(graph, made, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x);
    set_descriptor(graph, made, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y);
    append(graph, made, "a reshape");
}

void kn_cudnn_product(KnCudnnGraph *graph, const KnCudnnProduct *op)
{
    cudnnDataType_t type = CUDNN_DATA_FLOAT;
    cudnnBackendDescriptor_t mode = kn_cudnn_descriptor(graph, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    kn_cudnn_set(graph, mode, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    kn_cudnn_finalize(graph, mode, "a product's mode");
    cudnnBackendDescriptor_t made = kn_cudnn_descriptor(graph, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    set_descriptor(graph, made, CUDNN_ATTR_OPERATION_MATMUL_ADESC, op->a);
    set_descriptor(graph, made, CUDNN_ATTR_OPERATION_MATMUL_BDESC, op->b);
    set_descriptor(graph, made, CUDNN_ATTR_OPERATION_MATMUL_CDESC, op->c);
    set_descriptor(graph, made, CUDNN_ATTR_OPERATION_MATMUL_DESC, mode);
    set_descriptor(graph, made, CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC, op->m_lengths);
    set_descriptor(graph, made, CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC, op->n_lengths);
    set_descriptor(graph, made, CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC, op->k_lengths);
    append(graph, made, "a product");
}

void kn_cudnn_graph_clear(KnCudnnGraph *graph)
{
    while (graph->count)
        graph->cudnn->cudnnBackendDestroyDescriptor(graph->descriptors[--graph->count]);
    graph->operation_count = 0;
}
