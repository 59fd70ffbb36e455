/* Memory: allocation that cannot be ignored, and a bump arena for things that die together.
 *
 * kn_alloc and friends are for sizes that the program itself chose (tables, names): they end the program with a
 * sentence when the system has none left. Sizes that come from input (arenas of a model, a whole file) go through
 * kn_alloc_large, which reports KN_EMEMORY with what was needed, before the system has to kill anyone. */
#ifndef KN_BASE_MEMORY_H
#define KN_BASE_MEMORY_H

#include <stddef.h>

void *kn_alloc(size_t bytes);                                                   /* zeroed; free() it */
void *kn_realloc(void *memory, size_t bytes);                                   /* not zeroed */
char *kn_strdup(const char *text);                                              /* free() it */
char *kn_format(const char *format, ...) __attribute__((format(printf, 1, 2))); /* printf into new memory; free() it */

/* Zeroed, 64-byte aligned (huge pages advised above 4 MiB); release with kn_free_large.
 * `what` ends the sentence "not enough memory for ...: N needed". */
int kn_alloc_large(void **memory, size_t bytes, const char *what);
void kn_free_large(void *memory);

/* Bytes that can still be had: what the machine has, or what the control groups of this process leave, if less. */
size_t kn_memory_free(void);
/* KN_EMEMORY where `bytes` are more than that, with the sentence of kn_alloc_large: for what is allocated in parts. */
int kn_memory_check(size_t bytes, const char *what);

/* A bump arena: everything allocated from it is released at once by kn_arena_destroy. Memory is zeroed. */
typedef struct KnArena KnArena;
KnArena *kn_arena_create(void);
void kn_arena_destroy(KnArena *arena); /* NULL is fine */
void *kn_arena_alloc(KnArena *arena, size_t bytes);
char *kn_arena_strdup(KnArena *arena, const char *text);
char *kn_arena_format(KnArena *arena, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Grows a heap array: KN_PUSH(items, count, capacity) makes room for items[count]. */
#define KN_RESERVE(array, count, capacity)                                                                             \
    do {                                                                                                               \
        if ((count) >= (capacity)) {                                                                                   \
            (capacity) = (capacity) ? 2 * (capacity) : 16;                                                             \
            (array) = kn_realloc((array), (size_t)(capacity) * sizeof *(array));                                       \
        }                                                                                                              \
    } while (0)

#endif
