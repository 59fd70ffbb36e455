/* Errors: how every part of Kinora reports what went wrong.
 *
 * A function that can fail for a reason outside the program (a file, an input, the configuration, memory, a peer)
 * returns int: KN_OK or one of the negative codes below, and leaves one plain sentence for the user in a
 * thread-local buffer. Callers pass the code up with KN_TRY. The sentence names the file, line, key, rank or number
 * at fault and what to do. A broken invariant of our own is KN_ASSERT, which stays on in every build. */
#ifndef KN_BASE_ERROR_H
#define KN_BASE_ERROR_H

#include <stddef.h>

enum {
    KN_OK = 0,
    KN_EINPUT = -1,       /* the user gave something impossible: a flag, a key, a value */
    KN_EIO = -2,          /* the operating system refused: missing file, no permission, full disk */
    KN_EFORMAT = -3,      /* a file is damaged, truncated or foreign */
    KN_EMEMORY = -4,      /* not enough memory */
    KN_EPEER = -5,        /* another rank failed or vanished */
    KN_EINTERRUPTED = -6, /* a signal asked for a clean end */
    KN_END = -7           /* a stream has no more items; no sentence is left */
};

/* Records the sentence (printf style, no newline) and returns `code`, so that one writes
 * `return kn_fail(KN_EIO, "cannot open %s: %s", path, strerror(errno));`. */
int kn_fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Puts "prefix: " before the recorded sentence (to add a file name on the way up) and returns `code`. */
int kn_fail_prefix(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The sentence of this thread's last failure; never NULL. Valid until the thread's next kn_fail. */
const char *kn_error_message(void);

/* Evaluates an int expression and returns its code from the enclosing function if it is negative. */
#define KN_TRY(expression)                                                                                             \
    do {                                                                                                               \
        int kn_try_code_ = (expression);                                                                               \
        if (kn_try_code_ < 0)                                                                                          \
            return kn_try_code_;                                                                                       \
    } while (0)

/* The same for functions with something to release: jumps to `label` with `code` set. */
#define KN_TRY_GOTO(code, expression, label)                                                                           \
    do {                                                                                                               \
        (code) = (expression);                                                                                         \
        if ((code) < 0)                                                                                                \
            goto label;                                                                                                \
    } while (0)

/* Aborts with file, line and condition: for what can only be a bug of ours. */
#define KN_ASSERT(condition) ((condition) ? (void)0 : kn_assert_failed(#condition, __FILE__, __LINE__))
void kn_assert_failed(const char *condition, const char *file, int line) __attribute__((noreturn));

#endif
