/* What is queued on the computing stream: when the device came to it, and recordings of it, which are CUDA graphs. */
#include "core/cuda/cuda.h"

#include "core/base/error.h"
#include "core/base/memory.h"

#include <stdlib.h>

/* ---- moments ---- */

struct KnCudaMoments {
    cudaEvent_t *list;
    int count, capacity;
};

static int mark(KnBackend *backend, int index)
{
    KnCuda *cuda = (KnCuda *)backend;
    if (!cuda->moments)
        cuda->moments = kn_alloc(sizeof *cuda->moments);
    struct KnCudaMoments *moments = cuda->moments;
    while (moments->count <= index) {
        KN_RESERVE(moments->list, moments->count, moments->capacity);
        KN_TRY(kn_cuda_check(cudaEventCreate(&moments->list[moments->count]), "making an event"));
        moments->count++;
    }
    return kn_cuda_check(cudaEventRecord(moments->list[index], cuda->stream), "noting the time");
}

static int seconds(KnBackend *backend, int count, double *between)
{
    const struct KnCudaMoments *moments = ((const KnCuda *)backend)->moments;
    KN_TRY(kn_cuda_check(cudaEventSynchronize(moments->list[count]), "the GPU's work"));
    for (int i = 0; i < count; i++) {
        float milliseconds = 0;
        KN_TRY(kn_cuda_check(cudaEventElapsedTime(&milliseconds, moments->list[i], moments->list[i + 1]),
                             "reading the time"));
        between[i] = 1e-3 * (double)milliseconds;
    }
    return KN_OK;
}

void kn_cuda_queue_close(KnCuda *cuda)
{
    struct KnCudaMoments *moments = cuda->moments;
    for (int i = 0; moments && i < moments->count; i++)
        cudaEventDestroy(moments->list[i]);
    if (moments)
        free(moments->list);
    free(moments);
}

/* ---- recordings ---- */

struct KnRecording {
    cudaGraphExec_t graph;
};

static const char recording_words[] = "recording the GPU's work";

/* Other threads, such as that which watches NCCL, may do meanwhile what this one may not. Errors are forgotten here and
 * below: runs go on without a recording, and would meet them. */
static int record_begin(KnBackend *backend)
{
    cudaStream_t stream = ((KnCuda *)backend)->stream;
    int code = kn_cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), recording_words);
    cudaGetLastError();
    return code;
}

static int make_recording(cudaGraph_t graph, KnRecording **recording)
{
    cudaGraphExec_t made;
    KN_TRY(kn_cuda_check(cudaGraphInstantiate(&made, graph, 0), recording_words));
    *recording = kn_alloc(sizeof **recording);
    (*recording)->graph = made;
    return KN_OK;
}

static int record_end(KnBackend *backend, KnRecording **recording)
{
    cudaGraph_t graph = NULL;
    cudaError_t result = cudaStreamEndCapture(((KnCuda *)backend)->stream, &graph);
    int code = recording ? kn_cuda_check(result, recording_words) : KN_OK;
    if (recording && code == KN_OK)
        code = make_recording(graph, recording);
    if (graph)
        cudaGraphDestroy(graph);
    cudaGetLastError();
    return code;
}

static int replay(KnBackend *backend, KnRecording *recording)
{
    return kn_cuda_check(cudaGraphLaunch(recording->graph, ((KnCuda *)backend)->stream), "replaying the GPU's work");
}

static void recording_destroy(KnBackend *backend, KnRecording *recording)
{
    (void)backend;
    cudaGraphExecDestroy(recording->graph);
    free(recording);
}

const KnQueue kn_cuda_queue = {.mark = mark,
                               .seconds = seconds,
                               .record_begin = record_begin,
                               .record_end = record_end,
                               .replay = replay,
                               .recording_destroy = recording_destroy};
