/* The CUDA runtime that needs no GPU: that it does what CUDA does, and shows the mistakes that a program can make with
 * it. Each scenario runs in a process of its own, since the environment is read when the device begins. */
#include "core/cuda/kernels.h"

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { COUNT = 1000, BYTES = COUNT * 4, SKIPPED = 77 };

/* ---- scenarios in processes of their own ---- */

static char words[65536]; /* what the last one said on stderr */

/* "NAME=value" settings, NULL for none; gives the exit status, or minus the signal that ended it. */
static int run(int (*scenario)(void), const char *first, const char *second)
{
    FILE *file = tmpfile();
    fflush(NULL);
    pid_t child = fork();
    int status;
    if (child == 0) {
        dup2(fileno(file), STDERR_FILENO);
        signal(SIGSEGV, SIG_DFL); /* cmocka's handler would go on with the next test */
        putenv((char *)(first ? first : "KINORA_EMULATED_NONE=1"));
        putenv((char *)(second ? second : "KINORA_EMULATED_NONE=1"));
        _exit(scenario());
    }
    waitpid(child, &status, 0);
    rewind(file);
    words[fread(words, 1, sizeof words - 1, file)] = '\0';
    fclose(file);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static void succeeds(int (*scenario)(void), const char *first, const char *second)
{
    int status = run(scenario, first, second);
    if (status == SKIPPED)
        skip();
    if (status != 0)
        fail_msg("ended with %d: %s", status, words);
}

static void dies(int (*scenario)(void), const char *first)
{
    if (run(scenario, first, NULL) == 0)
        fail_msg("went on: %s", words);
}

static void says(const char *expected)
{
    if (!strstr(words, expected))
        fail_msg("\"%s\" is not in: %s", expected, words);
}

#if defined(__SANITIZE_ADDRESS__) /* it has words of its own */
#define SAYS_OF_FAULT(expected) (void)(expected)
#else
#define SAYS_OF_FAULT(expected) says(expected)
#endif

/* In scenarios: the process ends, having said what is wrong. */
#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "line %d: " #condition "\n", __LINE__);                                                    \
            _exit(1);                                                                                                  \
        }                                                                                                              \
    } while (0)
#define OK(call) CHECK((call) == cudaSuccess)

static float *device_floats(void)
{
    float *values;
    OK(cudaMalloc((void **)&values, BYTES));
    return values;
}

static float *pinned_floats(float value)
{
    float *values;
    OK(cudaMallocHost((void **)&values, BYTES));
    for (int i = 0; i < COUNT; i++)
        values[i] = value;
    return values;
}

static cudaStream_t stream(void)
{
    cudaStream_t made;
    OK(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking));
    return made;
}

static cudaEvent_t event(void)
{
    cudaEvent_t made;
    OK(cudaEventCreateWithFlags(&made, cudaEventDisableTiming));
    return made;
}

/* ---- streams ---- */

/* A value goes up on one stream and comes back on another; `from_last`: the first of the two was made last. */
static float send_round(int from_last, int waits)
{
    float *up = pinned_floats(5), *back = pinned_floats(0), *on_device = device_floats();
    cudaStream_t first = stream(), second = stream();
    cudaStream_t from = from_last ? second : first, to = from_last ? first : second;
    cudaEvent_t sent = event();
    OK(cudaMemcpyAsync(on_device, up, BYTES, cudaMemcpyHostToDevice, from));
    OK(cudaEventRecord(sent, from));
    if (waits)
        OK(cudaStreamWaitEvent(to, sent, 0));
    OK(cudaMemcpyAsync(back, on_device, BYTES, cudaMemcpyDeviceToHost, to));
    OK(cudaStreamSynchronize(to));
    return back[COUNT - 1];
}

static int waits_for_both(void)
{
    CHECK(send_round(0, 1) == 5);
    CHECK(send_round(1, 1) == 5);
    return 0;
}

static int misses_a_wait(void)
{
    return send_round(0, 0) == 5 ? 0 : 1;
}

static int misses_a_wait_from_last(void)
{
    return send_round(1, 0) == 5 ? 0 : 1;
}

static void a_missing_event_wait_is_seen_in_one_of_two_orders(void **state)
{
    (void)state;
    succeeds(waits_for_both, "KINORA_EMULATED_ORDER=1", NULL);
    succeeds(waits_for_both, "KINORA_EMULATED_ORDER=2", NULL);
    succeeds(misses_a_wait, "KINORA_EMULATED_ORDER=1", NULL);
    dies(misses_a_wait, "KINORA_EMULATED_ORDER=2");
    dies(misses_a_wait_from_last, "KINORA_EMULATED_ORDER=1");
    succeeds(misses_a_wait_from_last, "KINORA_EMULATED_ORDER=2", NULL);
}

static int reads_before_it_synchronizes(void)
{
    float *back = pinned_floats(7), *on_device = device_floats();
    cudaStream_t only = stream();
    OK(cudaMemsetAsync(on_device, 0, BYTES, only));
    OK(cudaMemcpyAsync(back, on_device, BYTES, cudaMemcpyDeviceToHost, only));
    CHECK(back[0] == 7);
    OK(cudaStreamSynchronize(only));
    CHECK(back[0] == 0);
    return 0;
}

static void what_is_not_waited_for_has_not_happened(void **state)
{
    (void)state;
    succeeds(reads_before_it_synchronizes, "KINORA_EMULATED_ORDER=1", NULL);
    succeeds(reads_before_it_synchronizes, "KINORA_EMULATED_ORDER=2", NULL);
}

static void CUDART_CB note(void *argument)
{
    *(int *)argument = 1;
}

static int measures_and_calls(void)
{
    float *on_device = device_floats(), milliseconds;
    int called = 0;
    cudaStream_t only = stream();
    cudaEvent_t begin, end;
    OK(cudaEventCreate(&begin));
    OK(cudaEventCreate(&end));
    CHECK(cudaEventElapsedTime(&milliseconds, begin, end) == cudaErrorInvalidResourceHandle);
    OK(cudaEventRecord(begin, only));
    OK(cudaMemsetAsync(on_device, 0, BYTES, only));
    OK(cudaLaunchHostFunc(only, note, &called));
    OK(cudaEventRecord(end, only));
    CHECK(cudaStreamQuery(only) == cudaErrorNotReady);
    OK(cudaEventSynchronize(end));
    OK(cudaStreamQuery(only));
    OK(cudaEventQuery(end));
    OK(cudaEventElapsedTime(&milliseconds, begin, end));
    CHECK(milliseconds >= 0 && milliseconds < 60000);
    CHECK(called);
    OK(cudaEventDestroy(begin));
    OK(cudaEventDestroy(end));
    OK(cudaStreamDestroy(only));
    return 0;
}

static void events_measure_and_host_functions_are_called_in_turn(void **state)
{
    (void)state;
    succeeds(measures_and_calls, "KINORA_EMULATED_ORDER=1", NULL);
}

/* ---- memory ---- */

static int begins_as_nan_at_new_addresses(void)
{
    float *first = device_floats(), *back = pinned_floats(0);
    OK(cudaMemcpy(back, first, BYTES, cudaMemcpyDeviceToHost));
    for (int i = 0; i < COUNT; i++)
        CHECK(isnan(back[i]));
    OK(cudaFree(first));
    for (int i = 0; i < 100; i++) {
        float *next = device_floats();
        CHECK(next != first);
        OK(cudaFree(next));
    }
    return 0;
}

static int has_no_more_than_it_has(void)
{
    void *memory, *more;
    size_t left, total;
    OK(cudaMalloc(&memory, 600000));
    OK(cudaMemGetInfo(&left, &total));
    CHECK(total == 1000000 && left < 400000);
    CHECK(cudaMalloc(&more, 600000) == cudaErrorMemoryAllocation && !more);
    CHECK(cudaGetLastError() == cudaErrorMemoryAllocation && cudaGetLastError() == cudaSuccess);
    OK(cudaFree(memory));
    OK(cudaMalloc(&more, 600000));
    return 0;
}

static void memory_begins_as_nan_and_ends(void **state)
{
    (void)state;
    succeeds(begins_as_nan_at_new_addresses, NULL, NULL);
    succeeds(has_no_more_than_it_has, "KINORA_EMULATED_MEMORY=1000000", NULL);
}

static int reads_as_the_host(void)
{
    float *x = device_floats();
    volatile float *on_device = x;
    if (getenv("KINORA_EMULATED_PROTECT") && pkey_alloc(0, 0) < 0)
        return SKIPPED;
    OK(kn_cuda_scale(0, x, 2, x, COUNT, NULL));
    OK(cudaDeviceSynchronize());
    return on_device[0] == 0;
}

static int protected_device_works(void)
{
    if (pkey_alloc(0, 0) < 0)
        return SKIPPED;
    return waits_for_both();
}

static void a_host_that_reads_the_devices_memory_dies(void **state)
{
    (void)state;
    succeeds(reads_as_the_host, NULL, NULL);
    succeeds(protected_device_works, "KINORA_EMULATED_PROTECT=1", NULL);
    dies(reads_as_the_host, "KINORA_EMULATED_PROTECT=1");
    SAYS_OF_FAULT("the host's code uses the device's memory");
}

static int reads_freed_memory(void)
{
    volatile float *on_device = device_floats();
    OK(cudaFree((void *)on_device));
    return on_device[0] == 0;
}

static int uses_freed_memory(void)
{
    float *freed = device_floats(), *back = pinned_floats(0), *x = device_floats();
    OK(cudaFree(freed));
    CHECK(cudaMemcpy(back, freed, BYTES, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
    CHECK(cudaFree(freed) == cudaErrorInvalidValue);
    CHECK(kn_cuda_scale(0, freed, 2, x, COUNT, NULL) == cudaErrorIllegalAddress);
    KnCudaNorm norm = {.tokens = 1, .columns = COUNT, .total_columns = COUNT, .x = x, .y = x, .stats = freed};
    CHECK(kn_cuda_layer_norm(0, &norm, NULL) == cudaErrorIllegalAddress);
    return 0;
}

static int writes_beyond_the_end(void)
{
    float *x = device_floats();
    void *y;
    OK(cudaMalloc(&y, BYTES - 4));
    OK(cudaMemset(x, 0, BYTES));
    OK(kn_cuda_scale(0, x, 2, y, COUNT, NULL));
    OK(cudaFree(y));
    return 0;
}

static void memory_that_was_freed_or_has_ended_is_not_used(void **state)
{
    (void)state;
    dies(reads_freed_memory, NULL);
    dies(writes_beyond_the_end, NULL);
    succeeds(uses_freed_memory, NULL, NULL);
    says("argument 2 leads to memory that has been freed");
    says("argument 1 holds a pointer to memory that has been freed");
    says("from memory that has been freed");
}

static int copies_in_wrong_directions(void)
{
    float *on_device = device_floats(), *pinned = pinned_floats(0), pageable[COUNT] = {0};
    const struct {
        void *to, *from;
        enum cudaMemcpyKind kind;
        size_t bytes;
        cudaError_t expected;
    } copies[] = {
        {on_device, pinned, cudaMemcpyHostToDevice, BYTES, cudaSuccess},
        {on_device, pageable, cudaMemcpyHostToDevice, BYTES, cudaSuccess},
        {on_device, on_device, cudaMemcpyDeviceToDevice, BYTES, cudaSuccess},
        {pinned, on_device, cudaMemcpyDeviceToHost, BYTES, cudaSuccess},
        {pageable, on_device, cudaMemcpyDefault, BYTES, cudaSuccess},
        {on_device, pinned, cudaMemcpyDeviceToHost, BYTES, cudaErrorInvalidValue},
        {pinned, on_device, cudaMemcpyHostToDevice, BYTES, cudaErrorInvalidValue},
        {on_device, pageable, cudaMemcpyDeviceToDevice, BYTES, cudaErrorInvalidValue},
        {pinned, on_device, cudaMemcpyHostToHost, BYTES, cudaErrorInvalidValue},
        {pinned, on_device, cudaMemcpyDeviceToHost, BYTES + 1, cudaErrorInvalidValue},
        {on_device + 1, pinned, cudaMemcpyHostToDevice, BYTES, cudaErrorInvalidValue},
    };
    for (size_t i = 0; i < sizeof copies / sizeof *copies; i++)
        CHECK(cudaMemcpy(copies[i].to, copies[i].from, copies[i].bytes, copies[i].kind) == copies[i].expected);
    CHECK(cudaMemset(pinned, 0, BYTES) == cudaErrorInvalidValue);
    return 0;
}

/* Memory that is not pinned is read when the copy is called, as CUDA stages it. */
static int overwrites_what_it_sent(void)
{
    float pageable[COUNT] = {3}, *back = pinned_floats(0), *on_device = device_floats();
    cudaStream_t only = stream();
    OK(cudaMemcpyAsync(on_device, pageable, BYTES, cudaMemcpyHostToDevice, only));
    pageable[0] = 4;
    OK(cudaMemcpyAsync(back, on_device, BYTES, cudaMemcpyDeviceToHost, only));
    OK(cudaStreamSynchronize(only));
    CHECK(back[0] == 3);
    return 0;
}

static int registers_memory(void)
{
    float *values = malloc(BYTES), stats[2], *x = device_floats();
    KnCudaNorm norm = {.tokens = 1, .columns = COUNT, .total_columns = COUNT, .x = x, .y = x, .stats = stats};
    CHECK(kn_cuda_scale(0, values, 2, values, COUNT, NULL) == cudaErrorIllegalAddress);
    CHECK(kn_cuda_layer_norm(0, &norm, NULL) == cudaErrorIllegalAddress);
    OK(cudaHostRegister(values, BYTES, 0));
    CHECK(cudaHostRegister(values, BYTES, 0) == cudaErrorHostMemoryAlreadyRegistered);
    cudaGetLastError();
    OK(kn_cuda_scale(0, values, 2, values, COUNT, NULL));
    OK(cudaDeviceSynchronize());
    OK(cudaHostUnregister(values));
    CHECK(cudaHostUnregister(values) == cudaErrorHostMemoryNotRegistered);
    free(values);
    return 0;
}

static void memory_of_the_wrong_side_is_refused(void **state)
{
    (void)state;
    succeeds(copies_in_wrong_directions, NULL, NULL);
    says("a copy of 4000 bytes to memory that is the device's");
    says("a copy of 4000 bytes from memory that is the host's");
    succeeds(overwrites_what_it_sent, "KINORA_EMULATED_ORDER=1", NULL);
    succeeds(registers_memory, NULL, NULL);
    says("argument 2 leads to memory of the host's that is not pinned");
    says("argument 1 holds a pointer to memory of the host's that is not pinned");
}

/* ---- faults ---- */

static int launch_fails_once(void)
{
    float *x = device_floats();
    CHECK(kn_cuda_scale(0, x, 2, x, COUNT, NULL) == cudaErrorUnknown);
    OK(kn_cuda_scale(0, x, 2, x, COUNT, NULL));
    return 0;
}

static int second_malloc_fails(void)
{
    void *memory;
    OK(cudaMalloc(&memory, 8));
    CHECK(cudaMalloc(&memory, 8) == cudaErrorMemoryAllocation);
    OK(cudaMalloc(&memory, 8));
    return 0;
}

static int has_no_device(void)
{
    int count;
    CHECK(cudaGetDeviceCount(&count) == cudaErrorNoDevice && count == 0);
    CHECK(cudaSetDevice(0) == cudaErrorInvalidDevice);
    return 0;
}

static void planned_faults_are_errors(void **state)
{
    (void)state;
    succeeds(launch_fails_once, "KINORA_EMULATED_CUDA=cudaLaunchKernel:1", NULL);
    succeeds(second_malloc_fails, "KINORA_EMULATED_CUDA=cudaMalloc:2", NULL);
    succeeds(has_no_device, "KINORA_EMULATED_DEVICES=0", NULL);
}

/* ---- graphs ---- */

typedef struct Step {
    float *in, *a, *b, *out;
    cudaStream_t main, side;
    cudaEvent_t forked, joined;
} Step;

static Step step_create(void)
{
    return (Step){.in = pinned_floats(0),
                  .a = device_floats(),
                  .b = device_floats(),
                  .out = pinned_floats(0),
                  .main = stream(),
                  .side = stream(),
                  .forked = event(),
                  .joined = event()};
}

/* in -> a, then on the side stream a -> b, then back on the main one b -> out. */
static void queue_step(const Step *step)
{
    OK(cudaMemcpyAsync(step->a, step->in, BYTES, cudaMemcpyHostToDevice, step->main));
    OK(cudaEventRecord(step->forked, step->main));
    OK(cudaStreamWaitEvent(step->side, step->forked, 0));
    OK(cudaMemcpyAsync(step->b, step->a, BYTES, cudaMemcpyDeviceToDevice, step->side));
    OK(cudaEventRecord(step->joined, step->side));
}

static int replays_a_step(void)
{
    Step step = step_create();
    cudaGraph_t graph;
    cudaGraphExec_t instance;
    OK(cudaStreamBeginCapture(step.main, cudaStreamCaptureModeGlobal));
    queue_step(&step);
    OK(cudaStreamWaitEvent(step.main, step.joined, 0));
    OK(cudaMemcpyAsync(step.out, step.b, BYTES, cudaMemcpyDeviceToHost, step.main));
    OK(cudaStreamEndCapture(step.main, &graph));
    OK(cudaGraphInstantiate(&instance, graph, 0));
    OK(cudaGraphDestroy(graph));
    OK(cudaDeviceSynchronize());
    CHECK(step.out[0] == 0); /* nothing has run yet */
    for (int run_number = 1; run_number <= 3; run_number++) {
        step.in[COUNT - 1] = (float)run_number;
        OK(cudaGraphLaunch(instance, step.main));
        OK(cudaStreamSynchronize(step.main));
        CHECK(step.out[COUNT - 1] == (float)run_number);
    }
    OK(cudaGraphExecDestroy(instance));
    OK(cudaMemcpyAsync(step.b, step.in, BYTES, cudaMemcpyHostToDevice, step.side)); /* is a stream again */
    OK(cudaDeviceSynchronize());
    return 0;
}

static int replays_a_kernel(void)
{
    Step step = step_create();
    cudaGraph_t graph;
    cudaGraphExec_t instance;
    OK(cudaStreamBeginCapture(step.main, cudaStreamCaptureModeGlobal));
    OK(cudaMemcpyAsync(step.a, step.in, BYTES, cudaMemcpyHostToDevice, step.main));
    OK(kn_cuda_scale(0, step.a, 2, step.b, COUNT, step.main));
    OK(cudaMemcpyAsync(step.out, step.b, BYTES, cudaMemcpyDeviceToHost, step.main));
    OK(cudaStreamEndCapture(step.main, &graph));
    OK(cudaGraphInstantiate(&instance, graph, 0));
    for (int value = 1; value <= 3; value++) {
        step.in[COUNT - 1] = (float)value;
        OK(cudaGraphLaunch(instance, step.main));
        OK(cudaStreamSynchronize(step.main));
        CHECK(step.out[COUNT - 1] == 2 * (float)value);
    }
    OK(cudaGraphExecDestroy(instance));
    OK(cudaGraphDestroy(graph));
    return 0;
}

static int captures_what_cannot_be(void)
{
    Step step = step_create();
    cudaGraph_t graph;
    void *memory;
    OK(cudaStreamBeginCapture(step.main, cudaStreamCaptureModeGlobal));
    queue_step(&step);
    CHECK(cudaStreamEndCapture(step.main, &graph) == cudaErrorStreamCaptureUnjoined && !graph);

    OK(cudaStreamBeginCapture(step.main, cudaStreamCaptureModeGlobal));
    CHECK(cudaMalloc(&memory, 8) == cudaErrorStreamCaptureUnsupported);
    CHECK(cudaStreamSynchronize(step.main) == cudaErrorStreamCaptureUnsupported);
    CHECK(cudaStreamEndCapture(step.main, &graph) == cudaErrorStreamCaptureInvalidated);

    OK(cudaEventRecord(step.forked, step.side));
    OK(cudaStreamBeginCapture(step.main, cudaStreamCaptureModeGlobal));
    CHECK(cudaStreamWaitEvent(step.main, step.forked, 0) == cudaErrorStreamCaptureIsolation);
    CHECK(cudaStreamEndCapture(step.side, &graph) == cudaErrorStreamCaptureUnmatched);
    CHECK(cudaStreamEndCapture(step.main, &graph) == cudaErrorStreamCaptureInvalidated);
    OK(cudaDeviceSynchronize());
    return 0;
}

typedef struct Meanwhile {
    cudaStream_t captured;
    cudaEvent_t recorded;
    cudaError_t allocated, asked, ended;
} Meanwhile;

/* What another thread does while this one captures. */
static void *allocate_and_ask(void *argument)
{
    Meanwhile *meanwhile = argument;
    cudaGraph_t graph;
    void *memory;
    meanwhile->allocated = cudaMalloc(&memory, 8);
    meanwhile->asked = cudaEventQuery(meanwhile->recorded);
    meanwhile->ended = cudaStreamEndCapture(meanwhile->captured, &graph);
    return NULL;
}

static Meanwhile capture_beside_another_thread(const Step *step, enum cudaStreamCaptureMode mode, cudaError_t ends)
{
    Meanwhile meanwhile = {.captured = step->main, .recorded = step->joined};
    pthread_t thread;
    cudaGraph_t graph;
    OK(cudaStreamBeginCapture(step->main, mode));
    CHECK(pthread_create(&thread, NULL, allocate_and_ask, &meanwhile) == 0 && pthread_join(thread, NULL) == 0);
    if (mode != cudaStreamCaptureModeRelaxed)
        CHECK(cudaStreamEndCapture(step->main, &graph) == ends);
    return meanwhile;
}

static int captures_beside_other_threads(void)
{
    Step step = step_create();
    cudaGraph_t graph;
    OK(cudaEventRecord(step.joined, step.side));
    OK(cudaDeviceSynchronize());
    Meanwhile other =
        capture_beside_another_thread(&step, cudaStreamCaptureModeGlobal, cudaErrorStreamCaptureInvalidated);
    CHECK(other.allocated == cudaErrorStreamCaptureUnsupported && other.asked == cudaErrorStreamCaptureUnsupported);
    CHECK(other.ended == cudaErrorStreamCaptureWrongThread);
    other = capture_beside_another_thread(&step, cudaStreamCaptureModeThreadLocal, cudaSuccess);
    CHECK(other.allocated == cudaSuccess && other.asked == cudaSuccess);
    CHECK(other.ended == cudaErrorStreamCaptureWrongThread);
    other = capture_beside_another_thread(&step, cudaStreamCaptureModeRelaxed, cudaSuccess);
    CHECK(other.allocated == cudaSuccess && other.asked == cudaSuccess && other.ended == cudaSuccess);

    OK(cudaStreamBeginCapture(step.main, cudaStreamCaptureModeThreadLocal));
    CHECK(cudaEventQuery(step.joined) == cudaErrorStreamCaptureUnsupported);
    CHECK(cudaStreamEndCapture(step.main, &graph) == cudaErrorStreamCaptureInvalidated);
    return 0;
}

static void graphs_run_again_and_again(void **state)
{
    (void)state;
    succeeds(replays_a_step, "KINORA_EMULATED_ORDER=1", NULL);
    succeeds(replays_a_step, "KINORA_EMULATED_ORDER=2", "KINORA_EMULATED_PROTECT=1");
    succeeds(replays_a_kernel, NULL, NULL);
    succeeds(captures_what_cannot_be, NULL, NULL);
    succeeds(captures_beside_other_threads, NULL, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_missing_event_wait_is_seen_in_one_of_two_orders),
        cmocka_unit_test(what_is_not_waited_for_has_not_happened),
        cmocka_unit_test(events_measure_and_host_functions_are_called_in_turn),
        cmocka_unit_test(memory_begins_as_nan_and_ends),
        cmocka_unit_test(a_host_that_reads_the_devices_memory_dies),
        cmocka_unit_test(memory_that_was_freed_or_has_ended_is_not_used),
        cmocka_unit_test(memory_of_the_wrong_side_is_refused),
        cmocka_unit_test(planned_faults_are_errors),
        cmocka_unit_test(graphs_run_again_and_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
