/* From a graph to a plan: cuDNN's heuristics name engines, the best first, and the first that repeats its bits and can
 * be built is taken. So the choice depends on the shape, the device and the library alone. */
#include "core/cuda/cudnn/library.h"

#include "core/base/error.h"
#include "core/base/memory.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_ENGINES = 16, MOST_NOTES = CUDNN_NUMERICAL_NOTE_TYPE_COUNT };

/* The attribute of a handle is deprecated for that of a description, but all that runs today goes by the handle. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
static const cudnnBackendAttributeName_t graph_handle = CUDNN_ATTR_OPERATIONGRAPH_HANDLE;
static const cudnnBackendAttributeName_t plan_handle = CUDNN_ATTR_EXECUTION_PLAN_HANDLE;
#pragma GCC diagnostic pop

static cudnnBackendDescriptor_t finish_graph(KnCudnnGraph *graph)
{
    const KnCudnn *cudnn = graph->cudnn;
    cudnnBackendDescriptor_t made = kn_cudnn_descriptor(graph, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    kn_cudnn_set(graph, made, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, graph->operation_count,
                 graph->operations);
    if (cudnn->handle)
        kn_cudnn_set(graph, made, graph_handle, CUDNN_TYPE_HANDLE, 1, &cudnn->handle);
    kn_cudnn_finalize(graph, made, "the graph of attention");
    return made;
}

/* Engine configurations, into descriptors of the graph; how many. */
static int64_t ask(KnCudnnGraph *graph, cudnnBackendDescriptor_t operations, cudnnBackendDescriptor_t *engines)
{
    const KnCudnn *cudnn = graph->cudnn;
    cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    int64_t count = 0;
    cudnnBackendDescriptor_t heuristics = kn_cudnn_descriptor(graph, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    kn_cudnn_set(graph, heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                 &operations);
    kn_cudnn_set(graph, heuristics, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    if (cudnn->description)
        kn_cudnn_set(graph, heuristics, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                     &cudnn->description);
    kn_cudnn_finalize(graph, heuristics, "asking for engines");
    for (int i = 0; i < MOST_ENGINES; i++)
        engines[i] = kn_cudnn_descriptor(graph, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    if (graph->code == KN_OK)
        graph->code = kn_cudnn_check(cudnn,
                                     cudnn->cudnnBackendGetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                                                     CUDNN_TYPE_BACKEND_DESCRIPTOR, MOST_ENGINES,
                                                                     &count, engines),
                                     "reading engines");
    return graph->code < 0 ? 0 : count < MOST_ENGINES ? count : MOST_ENGINES;
}

static int repeats_bits(KnCudnnGraph *graph, cudnnBackendDescriptor_t configuration)
{
    const KnCudnn *cudnn = graph->cudnn;
    cudnnBackendNumericalNote_t notes[MOST_NOTES];
    int64_t count = 0;
    cudnnBackendDescriptor_t engine = kn_cudnn_descriptor(graph, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    if (!engine ||
        cudnn->cudnnBackendGetAttribute(configuration, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                                        &count, &engine) != CUDNN_STATUS_SUCCESS ||
        cudnn->cudnnBackendGetAttribute(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE, MOST_NOTES,
                                        &count, notes) != CUDNN_STATUS_SUCCESS)
        return 0;
    for (int64_t i = 0; i < count && i < MOST_NOTES; i++)
        if (notes[i] == CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC)
            return 0;
    return 1;
}

static int build_plan(KnCudnnPlan *plan, cudnnBackendDescriptor_t engine)
{
    KnCudnnGraph *graph = &plan->graph;
    const KnCudnn *cudnn = graph->cudnn;
    int64_t bytes = 0, count = 0;
    cudnnBackendDescriptor_t made = kn_cudnn_descriptor(graph, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    kn_cudnn_set(graph, made, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &engine);
    if (cudnn->handle)
        kn_cudnn_set(graph, made, plan_handle, CUDNN_TYPE_HANDLE, 1, &cudnn->handle);
    else
        kn_cudnn_set(graph, made, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                     &cudnn->description);
    kn_cudnn_finalize(graph, made, "building attention");
    if (graph->code == KN_OK)
        graph->code = kn_cudnn_check(cudnn,
                                     cudnn->cudnnBackendGetAttribute(made, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
                                                                     CUDNN_TYPE_INT64, 1, &count, &bytes),
                                     "attention's workspace");
    plan->plan = made;
    plan->workspace_bytes = (size_t)bytes;
    return graph->code;
}

static int make(KnCudnnPlan *plan)
{
    KnCudnnGraph *graph = &plan->graph;
    cudnnBackendDescriptor_t engines[MOST_ENGINES];
    kn_cudnn_attention(graph, &plan->shape);
    int64_t count = ask(graph, finish_graph(graph), engines);
    KN_TRY(graph->code);
    int code = kn_fail(KN_EPEER, "cuDNN %s names no engine for attention whose bits repeat (of %lld)",
                       graph->cudnn->version, (long long)count);
    for (int64_t i = 0; i < count; i++) {
        if (!repeats_bits(graph, engines[i]))
            continue;
        graph->code = KN_OK;
        code = build_plan(plan, engines[i]);
        if (code == KN_OK)
            break;
    }
    return code;
}

int kn_cudnn_plan(KnCudnn *cudnn, const KnCudnnShape *shape, KnCudnnPlan **plan)
{
    for (*plan = cudnn->plans; *plan; *plan = (*plan)->next)
        if (memcmp(&(*plan)->shape, shape, sizeof *shape) == 0)
            return (*plan)->refused ? kn_fail(KN_EPEER, "cuDNN has refused this attention before") : KN_OK;
    KnCudnnPlan *made = kn_alloc(sizeof *made);
    made->shape = *shape;
    made->graph.cudnn = cudnn;
    made->next = cudnn->plans;
    cudnn->plans = made;
    int code = make(made);
    made->refused = code < 0;
    if (code < 0)
        kn_cudnn_graph_clear(&made->graph);
    *plan = code < 0 ? NULL : made;
    return code;
}

size_t kn_cudnn_plan_bytes(const KnCudnnPlan *plan)
{
    return plan->workspace_bytes;
}

void kn_cudnn_plans_clear(KnCudnn *cudnn)
{
    while (cudnn->plans) {
        KnCudnnPlan *plan = cudnn->plans;
        cudnn->plans = plan->next;
        kn_cudnn_graph_clear(&plan->graph);
        free(plan);
    }
}
