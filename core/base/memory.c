/* Checked allocation and bump arenas. */
#include "core/base/memory.h"

#include "core/base/error.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ARENA_BLOCK_BYTES = 64 * 1024, LARGE_ALIGNMENT = 64 };
#define HUGE_PAGE_BYTES ((size_t)2 << 20)

_Noreturn static void out_of_memory(size_t bytes)
{
    fprintf(stderr, "kinora: not enough memory: %zu bytes were refused by the system\n", bytes);
    exit(1);
}

void *kn_alloc(size_t bytes)
{
    void *memory = calloc(1, bytes ? bytes : 1);
    if (!memory)
        out_of_memory(bytes);
    return memory;
}

void *kn_realloc(void *memory, size_t bytes)
{
    void *larger = realloc(memory, bytes ? bytes : 1);
    if (!larger)
        out_of_memory(bytes);
    return larger;
}

char *kn_strdup(const char *text)
{
    size_t bytes = strlen(text) + 1;
    return memcpy(kn_alloc(bytes), text, bytes);
}

char *kn_format(const char *format, ...)
{
    va_list arguments;
    char *text = NULL;
    va_start(arguments, format);
    if (vasprintf(&text, format, arguments) < 0)
        out_of_memory(strlen(format));
    va_end(arguments);
    return text;
}

int kn_alloc_large(void **memory, size_t bytes, const char *what)
{
    size_t alignment = bytes >= 2 * HUGE_PAGE_BYTES ? HUGE_PAGE_BYTES : LARGE_ALIGNMENT;
    *memory = NULL;
    if (posix_memalign(memory, alignment, bytes ? bytes : 1) != 0)
        return kn_fail(KN_EMEMORY, "not enough memory for %s: %.1f MiB needed", what, (double)bytes / 1048576.0);
    if (alignment == HUGE_PAGE_BYTES)
        madvise(*memory, bytes, MADV_HUGEPAGE);
    memset(*memory, 0, bytes);
    return KN_OK;
}

void kn_free_large(void *memory)
{
    free(memory);
}

typedef struct ArenaBlock {
    struct ArenaBlock *next;
    size_t used, capacity;
    _Alignas(16) unsigned char bytes[];
} ArenaBlock;

struct KnArena {
    ArenaBlock *blocks;
};

KnArena *kn_arena_create(void)
{
    return kn_alloc(sizeof(KnArena));
}

void kn_arena_destroy(KnArena *arena)
{
    if (!arena)
        return;
    for (ArenaBlock *block = arena->blocks; block;) {
        ArenaBlock *next = block->next;
        free(block);
        block = next;
    }
    free(arena);
}

void *kn_arena_alloc(KnArena *arena, size_t bytes)
{
    bytes = (bytes + 15) & ~(size_t)15;
    if (!arena->blocks || arena->blocks->capacity - arena->blocks->used < bytes) {
        size_t capacity = bytes > ARENA_BLOCK_BYTES ? bytes : ARENA_BLOCK_BYTES;
        ArenaBlock *block = kn_alloc(sizeof *block + capacity);
        block->capacity = capacity;
        block->next = arena->blocks;
        arena->blocks = block;
    }
    void *memory = arena->blocks->bytes + arena->blocks->used;
    arena->blocks->used += bytes;
    return memory;
}

char *kn_arena_strdup(KnArena *arena, const char *text)
{
    size_t bytes = strlen(text) + 1;
    return memcpy(kn_arena_alloc(arena, bytes), text, bytes);
}

char *kn_arena_format(KnArena *arena, const char *format, ...)
{
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    KN_ASSERT(length >= 0);
    char *text = kn_arena_alloc(arena, (size_t)length + 1);
    vsnprintf(text, (size_t)length + 1, format, again);
    va_end(again);
    return text;
}
