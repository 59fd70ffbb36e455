/* Parts: packed */
/* On a GPU: attention by cuDNN against our own kernels, by kinora-cuda.so, in errors and in speed; skipped without one.
 * After each case it prints what was found, so that a run that is cut off says what it can. `test_cudnn_gpu SECONDS`
 * begins no case after that many (12). */
#include "built_path.h"
#include "packed/packed.h"

#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/cuda/cudnn/cudnn.h"
#include "core/graph/devices.h"

#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SKIPPED = 77, RUNS = 10, LARGE_RUNS = 2, DEFAULT_SECONDS = 12 };

/* Those of one shape share plans, and each adds one difficulty. */
static const PackedCase cases[] = {
    {.name = "dense 4096 x 4096",
     .queries = 4096,
     .keys = 4096,
     .heads = 12,
     .size = 128,
     .span_count = 1,
     .spans = {{0, 4096, 0, 4096}}},
    {.name = "four spans, full",
     .queries = 4096,
     .keys = 4096,
     .heads = 12,
     .size = 128,
     .span_count = 4,
     .spans = {{0, 1024, 0, 1024}, {1024, 1024, 1024, 1024}, {2048, 1024, 2048, 1024}, {3072, 1024, 3072, 1024}}},
    {.name = "odd lengths, gaps",
     .queries = 4096,
     .keys = 4096,
     .heads = 12,
     .size = 128,
     .span_count = 4,
     .spans = {{5, 1000, 0, 960}, {1005, 1561, 1000, 1563}, {2600, 1, 2600, 64}, {2700, 1300, 2700, 1300}}},
    {.name = "two spans, two empty",
     .queries = 4096,
     .keys = 4096,
     .heads = 12,
     .size = 128,
     .span_count = 4,
     .spans = {{0, 2000, 0, 2000}, {2000, 1500, 2000, 1500}, {0}, {0}}},
    {.name = "scores near -113, 64 modulo 128",
     .queries = 4096,
     .keys = 4096,
     .heads = 12,
     .size = 128,
     .span_count = 4,
     .cold = 1,
     .spans = {{0, 960, 0, 960}, {1000, 960, 1000, 960}, {2000, 960, 2000, 960}, {3000, 960, 3000, 960}}},
    {.name = "rows of NaN in the gaps (may fail)",
     .queries = 4096,
     .keys = 4096,
     .heads = 12,
     .size = 128,
     .span_count = 4,
     .nan_outside = 1,
     .spans = {{0, 1000, 0, 1000}, {1200, 1000, 1200, 1000}, {2400, 77, 2400, 77}, {3000, 1000, 3000, 1000}}},
    {.name = "text, 4096 x 512",
     .queries = 4096,
     .keys = 512,
     .heads = 12,
     .size = 128,
     .span_count = 1,
     .spans = {{0, 4096, 0, 512}}},
    {.name = "dense 4096 x 4096",
     .queries = 4096,
     .keys = 4096,
     .heads = 24,
     .size = 64,
     .span_count = 1,
     .spans = {{0, 4096, 0, 4096}}},
    {.name = "a pack to its texts",
     .queries = 4096,
     .keys = 1024,
     .heads = 24,
     .size = 64,
     .span_count = 3,
     .spans = {{0, 2048, 0, 300}, {2048, 2040, 512, 226}, {0}}},
    {.name = "dense 8192 x 8192",
     .queries = 8192,
     .keys = 8192,
     .heads = 12,
     .size = 128,
     .span_count = 1,
     .spans = {{0, 8192, 0, 8192}}},
    {.name = "text, 32760 x 512",
     .queries = 32760,
     .keys = 512,
     .heads = 12,
     .size = 128,
     .span_count = 1,
     .spans = {{0, 32760, 0, 512}}},
    {.name = "dense 32760 x 32760",
     .queries = 32760,
     .keys = 32760,
     .heads = 12,
     .size = 128,
     .span_count = 1,
     .spans = {{0, 32760, 0, 32760}}},
};

static int say_failure(const char *name, const char *what)
{
    printf("FAILED: %s, %s: %s\n", name, what, kn_error_message());
    fflush(stdout);
    return 1;
}

/* Milliseconds and TFLOP/s of forward, and of the backward, whose time is that of both less the forward's. */
static int print_speed(PackedRun *run, const char *who)
{
    int runs = run->c->queries > 16384 ? LARGE_RUNS : RUNS;
    double forward, both, flops = packed_flops(run->c);
    if (packed_time(run, PACKED_FORWARD, runs, &forward) < 0 || packed_time(run, PACKED_BOTH, runs, &both) < 0)
        return say_failure(run->c->name, who);
    printf("  %-5s forward %8.3f ms %4.0f TFLOP/s, backward %8.3f ms %4.0f TFLOP/s\n", who, 1e3 * forward,
           flops / forward * 1e-12, 1e3 * (both - forward), 2.5 * flops / (both - forward) * 1e-12);
    return 0;
}

static int print_errors(const PackedRun *run, const PackedRun *own)
{
    static const double bounds[PACKED_RESULTS] = {0.01, 1e-3, 0.02, 0.02, 0.02};
    int failures = 0;
    printf("  differences from our own kernels:");
    for (int i = 0; i < PACKED_RESULTS; i++) {
        double error = packed_error(run, own, i);
        double bound = run->c->cold && i == PACKED_DQ ? INFINITY : bounds[i]; /* there, nothing but rounding is left */
        int bad = !(error <= bound);
        printf(" %s %.2g%s", packed_name(i), error, bad ? " (TOO LARGE)" : "");
        failures += bad;
    }
    printf("\n");
    return failures != 0;
}

static int compare(PackedRun *own, PackedRun *run, const PackedCase *c, KnBackend *cuda)
{
    uint64_t bits[2];
    int failures = 0;
    setenv("KINORA_CUDNN", "0", 1);
    if (packed_create(own, c, cuda) < 0 || packed_read(own, NULL) < 0)
        return say_failure(c->name, "our own kernels");
    failures += print_speed(own, "own");
    setenv("KINORA_CUDNN", "1", 1);
    double start = kn_seconds_now();
    if (packed_create(run, c, cuda) < 0)
        return say_failure(c->name, "making the graph for cuDNN");
    printf("  plans took %.2f s; workspaces %.1f and %.1f MiB\n", kn_seconds_now() - start,
           (double)run->by_library[0] / 1048576, (double)run->by_library[1] / 1048576);
    if (!run->by_library[0] || !run->by_library[1])
        failures += say_failure(c->name, run->by_library[0] ? "the backward is not by cuDNN" : "not by cuDNN");
    fflush(stdout);
    for (int i = 0; i < 2; i++)
        if (packed_poison(run) < 0 || packed_read(run, &bits[i]) < 0)
            return say_failure(c->name, "running by cuDNN");
    failures += print_errors(run, own);
    if (bits[0] != bits[1])
        failures += printf("  BITS DIFFER between two runs\n") > 0;
    failures += print_speed(run, "cuDNN");
    fflush(stdout);
    return failures;
}

static int check_case(const PackedCase *c, KnBackend *cuda)
{
    PackedRun own = {0}, run = {0};
    printf("%s, %lld heads of %lld\n", c->name, (long long)c->heads, (long long)c->size);
    int failures = compare(&own, &run, c, cuda);
    packed_destroy(&run);
    packed_destroy(&own);
    return c->nan_outside ? 0 : failures;
}

/* What plans can be built from elsewhere (docs/gpu.md), asked of the plugin's own door. */
static void print_properties(const char *path)
{
    KnCudnn *cudnn;
    void *plugin = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
    __typeof__(kn_cudnn_open) *open = plugin ? (__typeof__(open))dlsym(plugin, "kn_cudnn_open") : NULL;
    __typeof__(kn_cudnn_properties) *properties =
        plugin ? (__typeof__(properties))dlsym(plugin, "kn_cudnn_properties") : NULL;
    __typeof__(kn_cudnn_close) *close_it = plugin ? (__typeof__(close_it))dlsym(plugin, "kn_cudnn_close") : NULL;
    if (!open || !properties || !close_it || open(&cudnn, NULL) < 0)
        return;
    char *text = properties(cudnn);
    printf("cuDNN's description of the device: %s\n", text ? text : "none");
    free(text);
    close_it(cudnn);
}

int main(int argc, char **argv)
{
    KnBackend *cuda;
    double start = kn_seconds_now(), most = argc > 1 ? atof(argv[1]) : DEFAULT_SECONDS;
    int failures = 0;
    char *path = plugin_path("kinora-cuda.so");
    if (access(path, R_OK) != 0 || kn_cuda_backend_open(path, 0, &cuda) < 0) {
        printf("%s: skipped\n", access(path, R_OK) != 0 ? "built without CUDA" : kn_error_message());
        free(path);
        return SKIPPED;
    }
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (kn_seconds_now() - start > most) {
            printf("no time for %s\n", cases[i].name);
            continue;
        }
        failures += check_case(&cases[i], cuda);
    }
    print_properties(path);
    kn_backend_close(cuda);
    free(path);
    printf("%s after %.1f s\n", failures ? "FAILED" : "passed", kn_seconds_now() - start);
    return failures != 0;
}
