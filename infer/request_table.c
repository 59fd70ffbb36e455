/* A template and the table of its variables: one request a row. */
#include "infer/request_list.h"

#include "core/base/csv.h"
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/text.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_COLUMNS = 256, NAME_BYTES = 100 };

/* A stretch of the template as it stands, or the cell of a column. */
typedef struct Piece {
    const char *text;
    size_t length;
    int column; /* -1: the text */
} Piece;

typedef struct Table {
    KnRequestList list;
    const char *template;
    KnCsv csv;
    KnCsvField header[MOST_COLUMNS], cells[MOST_COLUMNS];
    const char *keys[MOST_COLUMNS]; /* the request's key of each column's name, if it is one */
    int columns, name_column;
    Piece *pieces;
    int count, capacity;
} Table;

/* ---- the first row ---- */

/* Spaces around a name are a typist's, and options are known with dashes too. */
static void tidy_header(Table *table, int column)
{
    KnCsvField *field = &table->header[column];
    while (field->length > 0 && isspace((unsigned char)field->text[field->length - 1]))
        field->text[--field->length] = '\0';
    while (isspace((unsigned char)*field->text))
        field->text++, field->length--;
    char *key = kn_arena_strdup(table->list.source.arena, field->text);
    for (char *c = key; *c; c++)
        *c = *c == '-' ? '_' : *c;
    table->keys[column] = key;
}

static int find_column(const Table *table, const char *name, size_t length)
{
    for (int i = 0; i < table->columns; i++)
        if (table->header[i].length == length && !memcmp(table->header[i].text, name, length))
            return i;
    return -1;
}

static int read_header(Table *table)
{
    const char *path = table->list.source.path;
    int code = kn_csv_record(&table->csv, table->list.source.arena, table->header, MOST_COLUMNS, &table->columns);
    if (code == KN_END)
        return kn_fail(KN_EINPUT, "%s is empty: its first line must name the columns", path);
    KN_TRY(code);
    if (table->columns > MOST_COLUMNS)
        return kn_fail(KN_EINPUT, "%s:1: %d columns are more than the %d that can be read", path, table->columns,
                       MOST_COLUMNS);
    for (int i = 0; i < table->columns; i++) {
        tidy_header(table, i);
        int former = find_column(table, table->header[i].text, table->header[i].length);
        if (former < i && table->header[i].length > 0)
            return kn_fail(KN_EINPUT, "%s:1: the columns %d and %d are both called \"%s\"", path, former + 1, i + 1,
                           table->header[i].text);
    }
    return KN_OK;
}

/* ---- the template ---- */

static void add_piece(Table *table, const char *text, size_t length, int column)
{
    KN_RESERVE(table->pieces, table->count, table->capacity);
    table->pieces[table->count++] = (Piece){text, length, column};
}

static int unknown_variable(const Table *table, const char *name, size_t length)
{
    const char *names[MOST_COLUMNS], *path = table->list.source.path;
    char *wanted = kn_format("%.*s", (int)length, name);
    KnText all = {0};
    for (int i = 0; i < table->columns; i++) {
        names[i] = table->header[i].text;
        kn_text_appendf(&all, "%s%s", i ? ", " : "", names[i]);
    }
    const char *nearest = kn_nearest(wanted, names, table->columns);
    int code = nearest
                   ? kn_fail(KN_EINPUT, "--template: %s has no column \"%s\"; did you mean %s?", path, wanted, nearest)
                   : kn_fail(KN_EINPUT, "--template: %s has no column \"%s\"; there are: %s", path, wanted, all.bytes);
    kn_text_clear(&all);
    free(wanted);
    return code;
}

/* {name} at `at`, in *end what follows it. */
static int parse_variable(Table *table, const char *at, const char **end)
{
    const char *name = at + 1;
    size_t length = strcspn(name, "{}");
    if (name[length] != '}')
        return kn_fail(KN_EINPUT, "--template: no } closes \"%.20s\": write {{ for a brace", at);
    *end = name + length + 1;
    while (length > 0 && isspace((unsigned char)*name))
        name++, length--;
    while (length > 0 && isspace((unsigned char)name[length - 1]))
        length--;
    if (length == 0)
        return kn_fail(KN_EINPUT, "--template: {} names no column of %s: write {{}} for braces",
                       table->list.source.path);
    int column = find_column(table, name, length);
    if (column < 0)
        return unknown_variable(table, name, length);
    add_piece(table, NULL, 0, column);
    return KN_OK;
}

static int parse_template(Table *table)
{
    for (const char *at = table->template; *at;) {
        size_t length = strcspn(at, "{}");
        if (length > 0)
            add_piece(table, at, length, -1);
        at += length;
        if (!*at)
            break;
        if (at[0] == at[1]) {
            add_piece(table, at, 1, -1);
            at += 2;
        } else if (*at == '{') {
            KN_TRY(parse_variable(table, at, &at));
        } else {
            return kn_fail(KN_EINPUT, "--template: no { opens what } closes after \"%.*s\": write }} for a brace",
                           (int)(at - table->template), table->template);
        }
    }
    return KN_OK;
}

static int is_used(const Table *table, int column)
{
    for (int i = 0; i < table->count; i++)
        if (table->pieces[i].column == column)
            return 1;
    return 0;
}

/* ---- a row ---- */

static const char *fill_template(const Table *table)
{
    KnText text = {0};
    for (int i = 0; i < table->count; i++) {
        const Piece *piece = &table->pieces[i];
        const KnCsvField *cell = piece->column < 0 ? NULL : &table->cells[piece->column];
        kn_text_appendn(&text, cell ? cell->text : piece->text, cell ? cell->length : piece->length);
    }
    const char *filled = kn_arena_strdup(table->list.source.arena, text.bytes ? text.bytes : "");
    kn_text_clear(&text);
    return filled;
}

/* "0007-red-paris": letters of all languages stay, what is between them becomes a dash. */
static const char *name_by_values(const Table *table)
{
    char name[NAME_BYTES + 1];
    size_t length = (size_t)snprintf(name, sizeof name, "%04d", table->list.count + 1);
    for (int i = 0; i < table->count; i++) {
        if (table->pieces[i].column < 0)
            continue;
        int between = 1;
        for (const char *c = table->cells[table->pieces[i].column].text; *c && length + 1 < NAME_BYTES; c++) {
            int kept = isalnum((unsigned char)*c) || (*c & 0x80);
            if (kept && between)
                name[length++] = '-';
            if (kept)
                name[length++] = *c;
            between = !kept;
        }
    }
    while (length > 0 && !kn_is_utf8(name, length)) /* cut between characters */
        length--;
    return kn_arena_format(table->list.source.arena, "%.*s", (int)length, name);
}

static int set_options(const Table *table, const char *place, KnRequest *row)
{
    for (int i = 0; i < table->columns; i++) {
        if (table->cells[i].length == 0 || !strcmp(table->keys[i], "prompt"))
            continue;
        int code = kn_request_set_text(row, table->keys[i], table->cells[i].text, place, table->list.source.arena);
        if (code < 0 && code != KN_END)
            return code;
    }
    return KN_OK;
}

static int add_row(Table *table, int line)
{
    const char *place = kn_arena_format(table->list.source.arena, "%s:%d", table->list.source.path, line);
    KnRequest row;
    kn_request_init(&row);
    KN_TRY(set_options(table, place, &row));
    row.prompt = fill_template(table);
    int named = table->name_column >= 0 && table->cells[table->name_column].length > 0;
    const char *stem = named ? table->cells[table->name_column].text : name_by_values(table);
    return kn_request_list_add(&table->list, &row, line, stem);
}

static int read_rows(Table *table)
{
    const char *path = table->list.source.path;
    for (;;) {
        int line = (int)table->csv.line, count = 0;
        int code = kn_csv_record(&table->csv, table->list.source.arena, table->cells, MOST_COLUMNS, &count);
        if (code == KN_END)
            break;
        KN_TRY(code);
        if (count == 1 && table->cells[0].length == 0) /* an empty line */
            continue;
        if (count != table->columns)
            return kn_fail(KN_EINPUT, "%s:%d: %d fields where the first line has %d: quote those with a comma in them",
                           path, line, count, table->columns);
        KN_TRY(add_row(table, line));
    }
    if (table->list.count == 0)
        return kn_fail(KN_EINPUT, "%s has no rows below its first line, which names the columns", path);
    return KN_OK;
}

static int read_table(Table *table, const char *bytes, size_t size)
{
    const char *path = table->list.source.path;
    if (!kn_is_utf8(bytes, size) || memchr(bytes, 0, size))
        return kn_fail(KN_EINPUT, "%s is not UTF-8 text: save it as \"CSV UTF-8\"", path);
    table->csv = kn_csv_begin(path, bytes, size);
    KN_TRY(read_header(table));
    KN_TRY(parse_template(table));
    table->name_column = find_column(table, "name", strlen("name"));
    if (is_used(table, table->name_column))
        table->name_column = -1;
    return read_rows(table);
}

int kn_request_read_table(const KnRequestSource *source, const char *template, KnRequest **requests, int *count)
{
    char *bytes = NULL;
    size_t size = 0;
    *requests = NULL;
    *count = 0;
    KN_TRY(kn_file_read(source->path, &bytes, &size));
    Table *table = kn_alloc(sizeof *table);
    table->list.source = *source;
    table->template = template;
    int code = read_table(table, bytes, size);
    code = kn_request_list_finish(&table->list, code, requests, count);
    free(table->pieces);
    free(table);
    free(bytes);
    return code;
}
