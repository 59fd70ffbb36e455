/* What the tests of this room share: a temporary folder of one's own, and assertions about codes and sentences. */
#ifndef KN_TESTS_BASE_SUPPORT_H
#define KN_TESTS_BASE_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/memory.h"

/* Group fixtures: make and remove a folder; tests name files in it by test_path. */
static char test_folder[256];

static inline int make_test_folder(void **state)
{
    (void)state;
    const char *parent = getenv("TMPDIR");
    snprintf(test_folder, sizeof test_folder, "%s/kinora-test-XXXXXX", parent && *parent ? parent : "/tmp");
    return mkdtemp(test_folder) ? 0 : -1;
}

static inline int remove_test_folder(void **state)
{
    (void)state;
    return kn_remove_tree(test_folder);
}

/* A path in the folder; one of a few static buffers, valid for the next seven calls. */
static inline const char *test_path(const char *name)
{
    static char buffers[8][512];
    static int next;
    char *buffer = buffers[next++ % 8];
    snprintf(buffer, sizeof buffers[0], "%s/%s", test_folder, name);
    return buffer;
}

static inline void put_file(const char *path, const void *bytes, size_t size)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

static inline void put_text(const char *path, const char *text)
{
    put_file(path, text, strlen(text));
}

#define assert_ok(expression)                                                                                          \
    do {                                                                                                               \
        int assert_code_ = (expression);                                                                               \
        if (assert_code_ != KN_OK)                                                                                     \
            fail_msg("%s gave %d: %s", #expression, assert_code_, kn_error_message());                                 \
    } while (0)

/* The call fails with this code and a sentence that contains `part`. */
#define assert_fails(expression, code, part)                                                                           \
    do {                                                                                                               \
        int assert_code_ = (expression);                                                                               \
        if (assert_code_ != (code) || !strstr(kn_error_message(), (part)))                                             \
            fail_msg("%s gave %d, \"%s\"; expected %d with \"%s\"", #expression, assert_code_, kn_error_message(),     \
                     (int)(code), (part));                                                                             \
    } while (0)

#endif
