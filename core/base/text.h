/* Text: a string that grows, a list of strings, and the small questions that everybody asks of strings.
 *
 * KnText text = {0};
 * kn_text_appendf(&text, "%d frames", frames);
 * char *line = kn_text_take(&text);           // the caller frees it; the builder is empty again */
#ifndef KN_BASE_TEXT_H
#define KN_BASE_TEXT_H

#include <stddef.h>
#include <stdint.h>

/* Starts as {0}. `bytes` is NUL-terminated once anything was appended (NULL before). */
typedef struct KnText {
    char *bytes;
    size_t length, capacity;
} KnText;

void kn_text_append(KnText *text, const char *more);
void kn_text_appendn(KnText *text, const char *more, size_t length); /* any bytes, NUL included */
void kn_text_appendf(KnText *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
char *kn_text_take(KnText *text); /* the string, never NULL, for the caller to free(); empties the builder */
void kn_text_clear(KnText *text); /* releases and empties */

/* Starts as {0}; owns its strings. */
typedef struct KnStringList {
    int count;
    char **items;
} KnStringList;

void kn_string_list_add(KnStringList *list, const char *item); /* copies */
void kn_string_list_sort(KnStringList *list);                  /* by byte value: the same on every machine */
void kn_string_list_clear(KnStringList *list);

/* A size in bytes as people write it: "2GiB", "1.5 GB", "64MiB", "4096B"; 0 where it is none, or beyond 2^62. */
int kn_parse_bytes(const char *text, int64_t *bytes);

int kn_starts_with(const char *text, const char *prefix);
int kn_ends_with(const char *text, const char *suffix);
int kn_is_utf8(const char *text, size_t length); /* well-formed: no overlong forms, no surrogates, at most U+10FFFF */

/* The candidate nearest to `name` by edit distance (a swap of neighbours counts once), for "did you mean ...";
 * NULL when none is within a third of the name's length (at least 2). Ties go to the earlier candidate. */
const char *kn_nearest(const char *name, const char *const *candidates, int count);

#endif
