/* Parts: ops */
/* The op test table on the CUDA backend, whose plugin is linked to libraries that need no GPU (tests/emulated). With a
 * GPU at hand, `test_ops_emulated --gpu` runs the same table there, by kinora-cuda.so; `--small` leaves out the large
 * rows, for a plugin that is slow because ThreadSanitizer watches it; so does the sanitizer build. */
#include "ops/ops_test.h"
#include "built_path.h"

#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/graph/devices.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#if defined(__SANITIZE_ADDRESS__)
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

enum { SKIPPED = 77 };

static KnBackend *cuda;

static void check_row(void **state)
{
    const OpCase *row = *state;
    const char *missing = "";
    if (!op_supported(row, cuda, &missing)) {
        printf("skipped: %s: the CUDA backend has no %s yet\n", row->name, missing);
        skip();
    }
    op_check(row, cuda);
}

int main(int argc, char **argv)
{
    int gpu = argc > 1 && strcmp(argv[1], "--gpu") == 0,
        small = SANITIZED || (argc > 1 && strcmp(argv[1], "--small") == 0);
    char *path = plugin_path(gpu ? "kinora-cuda.so" : "kinora-cuda-emulated.so");
    if (access(path, R_OK) != 0) {
        printf("%s: built without CUDA: skipped\n", path);
        return SKIPPED;
    }
    if (kn_cuda_backend_open(path, 0, &cuda) < 0) {
        printf("%s\n", kn_error_message());
        return 1;
    }
    struct CMUnitTest *tests = calloc((size_t)op_case_count, sizeof *tests);
    int count = 0;
    for (int i = 0; i < op_case_count; i++)
        if (!(op_cases[i].flags & (small ? OP_SPEED | OP_LARGE : OP_SPEED)))
            tests[count++] = (struct CMUnitTest){
                .name = op_cases[i].name, .test_func = check_row, .initial_state = (void *)&op_cases[i]};
    int failures = _cmocka_run_group_tests("cuda", tests, (size_t)count, NULL, NULL);
    kn_backend_close(cuda);
    free(tests);
    free(path);
    return failures != 0;
}
