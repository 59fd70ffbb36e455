/* The string builder, string lists and comparisons behind core/base/text.h. */
#include "core/base/text.h"

#include "core/base/error.h"
#include "core/base/memory.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Room for `more` further bytes and the NUL. */
static void reserve(KnText *text, size_t more)
{
    KN_ASSERT(more < SIZE_MAX / 4 - text->length);
    size_t needed = text->length + more + 1;
    if (needed <= text->capacity)
        return;
    size_t capacity = text->capacity ? 2 * text->capacity : 64;
    text->capacity = capacity > needed ? capacity : needed;
    text->bytes = kn_realloc(text->bytes, text->capacity);
}

void kn_text_appendn(KnText *text, const char *more, size_t length)
{
    reserve(text, length);
    if (length)
        memcpy(text->bytes + text->length, more, length);
    text->length += length;
    text->bytes[text->length] = 0;
}

void kn_text_append(KnText *text, const char *more)
{
    kn_text_appendn(text, more, strlen(more));
}

void kn_text_appendf(KnText *text, const char *format, ...)
{
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    KN_ASSERT(length >= 0);
    reserve(text, (size_t)length);
    vsnprintf(text->bytes + text->length, (size_t)length + 1, format, again);
    va_end(again);
    text->length += (size_t)length;
}

char *kn_text_take(KnText *text)
{
    reserve(text, 0);
    char *bytes = text->bytes;
    bytes[text->length] = 0;
    *text = (KnText){0};
    return bytes;
}

void kn_text_clear(KnText *text)
{
    free(text->bytes);
    *text = (KnText){0};
}

void kn_string_list_add(KnStringList *list, const char *item)
{
    char *copy = kn_strdup(item);
    if ((list->count & (list->count - 1)) == 0) /* full at 0 and at every power of two */
        list->items = kn_realloc(list->items, (size_t)(list->count ? 2 * list->count : 1) * sizeof *list->items);
    list->items[list->count++] = copy;
}

static int compare_strings(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

void kn_string_list_sort(KnStringList *list)
{
    if (list->count > 1)
        qsort(list->items, (size_t)list->count, sizeof *list->items, compare_strings);
}

void kn_string_list_clear(KnStringList *list)
{
    for (int i = 0; i < list->count; i++)
        free(list->items[i]);
    free(list->items);
    *list = (KnStringList){0};
}

int kn_parse_bytes(const char *text, int64_t *bytes)
{
    static const struct {
        const char *name;
        double bytes;
    } units[] = {{"B", 1},    {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40},
                 {"kB", 1e3}, {"MB", 1e6},     {"GB", 1e9},     {"TB", 1e12}};
    char *end;
    double number = strtod(text, &end);
    size_t digits = strspn(text, "0123456789.");
    if (digits == 0 || end != text + digits)
        return 0;
    end += strspn(end, " ");
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (strcmp(end, units[i].name) == 0 && number * units[i].bytes < 0x1p62) {
            *bytes = (int64_t)(number * units[i].bytes);
            return 1;
        }
    return 0;
}

int kn_starts_with(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

int kn_ends_with(const char *text, const char *suffix)
{
    size_t length = strlen(text), tail = strlen(suffix);
    return length >= tail && memcmp(text + length - tail, suffix, tail) == 0;
}

int kn_is_utf8(const char *text, size_t length)
{
    const unsigned char *bytes = (const unsigned char *)text, *end = bytes + length;
    while (bytes < end) {
        unsigned lead = *bytes++;
        if (lead < 0x80)
            continue;
        int more = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
        if (lead < 0xc2 || lead > 0xf4 || end - bytes < more)
            return 0;
        uint32_t point = lead & (0x3fu >> more);
        for (int i = 0; i < more; i++, bytes++) {
            if ((*bytes & 0xc0) != 0x80)
                return 0;
            point = point << 6 | (*bytes & 0x3f);
        }
        static const uint32_t least[4] = {0, 0x80, 0x800, 0x10000};
        if (point < least[more] || point > 0x10ffff || (point >= 0xd800 && point < 0xe000))
            return 0;
    }
    return 1;
}

/* Optimal string alignment distance: insert, delete, replace, swap two neighbours. */
static size_t edit_distance(const char *a, const char *b)
{
    size_t rows = strlen(a), columns = strlen(b);
    size_t *memory = kn_alloc(3 * (columns + 1) * sizeof *memory);
    size_t *before = memory, *previous = before + columns + 1, *current = previous + columns + 1;
    for (size_t j = 0; j <= columns; j++)
        previous[j] = j;
    for (size_t i = 1; i <= rows; i++) {
        current[0] = i;
        for (size_t j = 1; j <= columns; j++) {
            size_t best = previous[j - 1] + (a[i - 1] != b[j - 1]);
            best = previous[j] + 1 < best ? previous[j] + 1 : best;
            best = current[j - 1] + 1 < best ? current[j - 1] + 1 : best;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && before[j - 2] + 1 < best)
                best = before[j - 2] + 1;
            current[j] = best;
        }
        size_t *oldest = before;
        before = previous;
        previous = current;
        current = oldest;
    }
    size_t distance = previous[columns];
    free(memory);
    return distance;
}

const char *kn_nearest(const char *name, const char *const *candidates, int count)
{
    size_t limit = strlen(name) / 3 > 2 ? strlen(name) / 3 : 2, best = limit + 1;
    const char *nearest = NULL;
    for (int i = 0; i < count; i++) {
        size_t distance = edit_distance(name, candidates[i]);
        if (distance < best && distance < strlen(name) + strlen(candidates[i])) {
            best = distance;
            nearest = candidates[i];
        }
    }
    return nearest;
}
