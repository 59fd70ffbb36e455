/* Labels: slow */
/* cuDNN's plans for attention are built, where cuDNN is installed, for an H200 that is only described: the graphs are
 * those that its engines know, engines whose bits repeat exist, their kernels compile, and the backward keeps the
 * gradients of all scores, which is what makes its bits repeat. A driver that only nods (tests/driver) is loaded first,
 * since cuDNN gives it what it has compiled. */
#include "built_path.h"
#include "core/cuda/cudnn/cudnn.h"

#include "core/base/error.h"
#include "core/base/memory.h"

#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { SKIPPED = 77 };

/* As cuDNN 9.19 described it (docs/gpu.md). */
static const char h200[] =
    "{\"maxGridSize\": [2147483647, 65535, 65535], \"maxBlockSize\": [1024, 1024, 64], \"regsPerBlock\": 65536, "
    "\"multiProcessorCount\": 132, \"warpSize\": 32, \"maxSharedMemoryPerBlock\": 49152, "
    "\"maxSharedMemoryPerBlockOptin\": 232448, \"reservedSharedMemoryPerBlock\": 1024, \"maxRegistersPerSM\": 65536, "
    "\"maxCtasPerSM\": 32, \"maxThreadsPerBlock\": 1024, \"maxThreadsPerSM\": 2048, \"pciDeviceId\": 6, "
    "\"isTccDriver\": 0, \"supportCoopLaunch\": 1, \"totalGlobalMem\": 150109880320, \"smClockRateKHz\": 1980000, "
    "\"memClockRateKHz\": 3201000, \"l2CacheSize\": 62914560, \"cudaDeviceId\": 0, \"deviceVer\": 900, "
    "\"driverVer\": 13000, \"deviceName\": \"NVIDIA H200\"}";

static KnCudnn *cudnn;

/* {backward, ragged, spans, queries, keys, heads, heads of a row, size} */
static const KnCudnnShape shapes[] = {
    {0, 0, 1, 4096, 4096, 12, 12, 128}, {0, 0, 1, 4096, 4096, 12, 12, 64},   {0, 1, 4, 4096, 4096, 12, 12, 128},
    {0, 1, 4, 32760, 512, 12, 12, 64},  {1, 0, 1, 4096, 4096, 12, 12, 128},  {1, 0, 1, 4096, 4096, 12, 12, 64},
    {1, 1, 4, 4096, 512, 3, 12, 64},    {1, 1, 1, 32760, 32760, 1, 12, 128},
};

static void plans_are_built(void **state)
{
    (void)state;
    int failures = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const KnCudnnShape *n = &shapes[i];
        KnCudnnPlan *plan, *again;
        int code = kn_cudnn_plan(cudnn, n, &plan);
        printf("%s %s, %lld spans of %lld x %lld, %lld of %lld heads of %lld: %s, %zu bytes\n",
               n->backward ? "backward" : "forward", n->ragged ? "ragged" : "dense", (long long)n->spans,
               (long long)n->queries, (long long)n->keys, (long long)n->heads, (long long)n->row_heads,
               (long long)n->size, code < 0 ? kn_error_message() : "built", code < 0 ? 0 : kn_cudnn_plan_bytes(plan));
        failures += code < 0;
        if (code < 0)
            continue;
        assert_int_equal(kn_cudnn_plan(cudnn, n, &again), KN_OK);
        assert_ptr_equal(plan, again);
        if (n->backward)
            assert_true(kn_cudnn_plan_bytes(plan) >= (size_t)(2 * n->spans * n->heads * n->queries * n->keys));
    }
    assert_int_equal(failures, 0);
}

static void what_no_engine_takes_is_refused_with_a_sentence(void **state)
{
    (void)state;
    KnCudnnPlan *plan;
    KnCudnnShape odd = {.spans = 1, .queries = 128, .keys = 128, .heads = 2, .row_heads = 2, .size = 63};
    for (int again = 0; again < 2; again++) {
        assert_int_equal(kn_cudnn_plan(cudnn, &odd, &plan), KN_EPEER);
        assert_non_null(strstr(kn_error_message(), "cuDNN"));
        printf("%s\n", kn_error_message());
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plans_are_built),
        cmocka_unit_test(what_no_engine_takes_is_refused_with_a_sentence),
    };
    char *driver = built_path("driver/libcuda.so.1");
    if (!dlopen(driver, RTLD_NOW | RTLD_GLOBAL)) {
        printf("%s\n", dlerror());
        return 1;
    }
    free(driver);
    if (kn_cudnn_open(&cudnn, h200) < 0) {
        printf("%s: skipped\n", kn_error_message());
        return strstr(kn_error_message(), "is not here") ? SKIPPED : 1;
    }
    printf("cuDNN %s\n", kn_cudnn_version(cudnn));
    int failures = cmocka_run_group_tests(tests, NULL, NULL);
    kn_cudnn_close(cudnn);
    return failures != 0;
}
