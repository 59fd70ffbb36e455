/* Large allocations: a size that the machine or a control group does not have is refused before it is asked for. */
#include "base/support.h"
#include "core/base/memory.h"

#include <string.h>

/* Where a refusal fails, the system shall end this test and nobody else. */
static void be_the_first_victim(void)
{
    FILE *file = fopen("/proc/self/oom_score_adj", "we");
    if (file && (fputs("1000", file) < 0 || fclose(file)))
        print_message("cannot offer this process to the system's memory killer\n");
}

static void what_is_not_free_is_refused_with_both_sizes(void **state)
{
    (void)state;
    void *memory = &memory;
    char needed[64];
    be_the_first_victim();
    size_t bytes = kn_memory_free() + ((size_t)1 << 30);
    snprintf(needed, sizeof needed, "not enough memory for a test: %.1f MiB needed, ", (double)bytes / 1048576.0);
    assert_fails(kn_alloc_large(&memory, bytes, "a test"), KN_EMEMORY, needed);
    assert_non_null(strstr(kn_error_message(), "MiB are free"));
    assert_null(memory);
    assert_fails(kn_memory_check(SIZE_MAX, "a test"), KN_EMEMORY, "not enough memory for a test");
}

static void what_is_free_is_zeroed_and_aligned(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 1, 100, (size_t)17 << 20};
    assert_true(kn_memory_free() > (size_t)32 << 20);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        void *memory;
        assert_ok(kn_alloc_large(&memory, sizes[i], "a test"));
        const unsigned char *bytes = memory;
        assert_int_equal((uintptr_t)bytes % 64, 0);
        for (size_t k = 0; k < sizes[i]; k += 997)
            assert_int_equal(bytes[k], 0);
        kn_free_large(memory);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_not_free_is_refused_with_both_sizes),
        cmocka_unit_test(what_is_free_is_zeroed_and_aligned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
