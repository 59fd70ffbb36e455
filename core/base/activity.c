/* The words behind core/base/activity.h, one set for the process. */
#include "core/base/activity.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static char words[160]; /* under the mutex */
static _Atomic(const char *) op;
static atomic_int_least64_t count;

void kn_activity_set(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    pthread_mutex_lock(&mutex);
    vsnprintf(words, sizeof words, format, arguments);
    pthread_mutex_unlock(&mutex);
    va_end(arguments);
    kn_activity_advance();
}

void kn_activity_op(const char *name)
{
    atomic_store_explicit(&op, name, memory_order_relaxed);
    kn_activity_advance();
}

void kn_activity_advance(void)
{
    atomic_fetch_add_explicit(&count, 1, memory_order_relaxed);
}

int64_t kn_activity_count(void)
{
    return atomic_load_explicit(&count, memory_order_relaxed);
}

void kn_activity_describe(char *text, size_t size)
{
    const char *running = atomic_load_explicit(&op, memory_order_relaxed);
    pthread_mutex_lock(&mutex);
    if (running)
        snprintf(text, size, "%s%s(%s)", words, words[0] ? " " : "", running);
    else
        snprintf(text, size, "%s", words);
    pthread_mutex_unlock(&mutex);
}
