/* Checked allocation and bump arenas.
 *
 * Linux hands out more memory than it has and kills a process once it uses it; so a large size is compared with what is
 * free before anything is asked for: MemAvailable and swap, and the limits of the control groups that containers and
 * batch systems set. */
#include "core/base/memory.h"

#include "core/base/error.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ARENA_BLOCK_BYTES = 64 * 1024, LARGE_ALIGNMENT = 64, CHECKED_BYTES = 16 << 20 };
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

/* ---- what is free ---- */

/* The number behind `key` at the start of a line of a small file of the kernel's; `key` "" is the file's first word.
 * SIZE_MAX when there is none. */
static size_t read_number(const char *path, const char *key)
{
    char line[256];
    size_t length = strlen(key), number = SIZE_MAX;
    FILE *file = fopen(path, "re");
    while (file && number == SIZE_MAX && fgets(line, sizeof line, file)) {
        unsigned long long value;
        if (!strncmp(line, key, length) && sscanf(line + length, "%llu", &value) == 1)
            number = (size_t)value;
    }
    if (file)
        fclose(file);
    return number;
}

/* The two versions of control groups: where they are, and the files and the key of a group. */
typedef struct Groups {
    const char *root, *mark; /* of the line in /proc/self/cgroup that names this process's group */
    const char *most, *used, *pages;
} Groups;

static const Groups versions[] = {
    {"/sys/fs/cgroup", "0::", "memory.max", "memory.current", "inactive_file "},
    {"/sys/fs/cgroup/memory", ":memory:", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "},
};

static size_t read_in(const char *folder, const char *name, const char *key)
{
    char path[4300];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return read_number(path, key);
}

/* What one control group leaves: file pages that nobody used lately can be given back. */
static size_t group_free(const Groups *groups, const char *folder)
{
    size_t most = read_in(folder, groups->most, ""), used = read_in(folder, groups->used, "");
    size_t pages = read_in(folder, "memory.stat", groups->pages);
    if (most == SIZE_MAX)
        return SIZE_MAX;
    used = used == SIZE_MAX ? 0 : used;
    used -= pages == SIZE_MAX || pages > used ? 0 : pages;
    return most > used ? most - used : 0;
}

/* The least of what this process's control group and those above it leave. */
static size_t groups_free(const Groups *groups)
{
    char line[4096], folder[4200] = "";
    size_t least = SIZE_MAX;
    FILE *file = fopen("/proc/self/cgroup", "re");
    while (file && fgets(line, sizeof line, file)) {
        const char *mark = strstr(line, groups->mark);
        line[strcspn(line, "\n")] = 0;
        if (mark)
            snprintf(folder, sizeof folder, "%s%s", groups->root, mark + strlen(groups->mark));
    }
    if (file)
        fclose(file);
    while (strlen(folder) >= strlen(groups->root) && folder[0]) {
        size_t left = group_free(groups, folder);
        least = left < least ? left : least;
        *strrchr(folder, '/') = 0;
    }
    return least;
}

size_t kn_memory_free(void)
{
    size_t available = read_number("/proc/meminfo", "MemAvailable:"), swap = read_number("/proc/meminfo", "SwapFree:");
    if (available != SIZE_MAX)
        available = 1024 * (available + (swap == SIZE_MAX ? 0 : swap));
    for (size_t i = 0; i < sizeof versions / sizeof *versions; i++) {
        size_t left = groups_free(&versions[i]);
        available = left < available ? left : available;
    }
    return available;
}

int kn_memory_check(size_t bytes, const char *what)
{
    size_t free_bytes = bytes >= CHECKED_BYTES ? kn_memory_free() : SIZE_MAX;
    if (bytes <= free_bytes)
        return KN_OK;
    return kn_fail(KN_EMEMORY, "not enough memory for %s: %.1f MiB needed, %.1f MiB are free", what,
                   (double)bytes / 1048576.0, (double)free_bytes / 1048576.0);
}

int kn_alloc_large(void **memory, size_t bytes, const char *what)
{
    size_t alignment = bytes >= 2 * HUGE_PAGE_BYTES ? HUGE_PAGE_BYTES : LARGE_ALIGNMENT;
    *memory = NULL;
    KN_TRY(kn_memory_check(bytes, what));
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
