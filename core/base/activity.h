/* What this process is doing at present, for ranks that wait for it and want to know.
 *
 * The words say where the program is ("step 12, pack 1"), the op what runs just now, and a count advances with all that
 * gets done: a process whose count stands still is stuck. Any thread may call; it costs some nanoseconds. */
#ifndef KN_BASE_ACTIVITY_H
#define KN_BASE_ACTIVITY_H

#include <stddef.h>
#include <stdint.h>

/* New words (printf style). Advances. */
void kn_activity_set(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The op that begins now, a name that lasts; NULL: none is running. Advances. */
void kn_activity_op(const char *name);

/* Something got done. */
void kn_activity_advance(void);

int64_t kn_activity_count(void);

/* "step 12, pack 1 (matmul)"; empty where nothing was ever set. */
void kn_activity_describe(char *text, size_t size);

#endif
