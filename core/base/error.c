/* The thread-local sentence behind core/base/error.h. */
#include "core/base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MESSAGE_BYTES = 2048 };
static _Thread_local char message[MESSAGE_BYTES];

int kn_fail(int code, const char *format, ...)
{
    char text[MESSAGE_BYTES]; /* the arguments may point into the present message */
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    memcpy(message, text, sizeof text);
    return code;
}

int kn_fail_prefix(int code, const char *format, ...)
{
    char text[MESSAGE_BYTES];
    va_list arguments;
    va_start(arguments, format);
    int used = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (used >= 0 && used + 2 < (int)sizeof text) {
        size_t room = sizeof text - (size_t)used - 3, length = strnlen(message, room);
        memcpy(text + used, ": ", 2);
        memcpy(text + used + 2, message, length);
        text[(size_t)used + 2 + length] = '\0';
    }
    memcpy(message, text, sizeof text);
    return code;
}

const char *kn_error_message(void)
{
    return message;
}

void kn_assert_failed(const char *condition, const char *file, int line)
{
    fprintf(stderr, "kinora: internal error at %s:%d: %s\n", file, line, condition);
    abort();
}
