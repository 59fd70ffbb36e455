/* The CSV reader behind core/base/csv.h. */
#include "core/base/csv.h"

#include "core/base/error.h"
#include "core/base/text.h"

#include <string.h>

KnCsv kn_csv_begin(const char *name, const char *bytes, size_t size)
{
    static const char mark[] = "\xef\xbb\xbf";
    size_t skipped = size >= 3 && !memcmp(bytes, mark, 3) ? 3 : 0;
    return (KnCsv){name, bytes + skipped, bytes + size, 1, kn_ends_with(name, ".tsv") ? '\t' : ','};
}

static int is_end_of_field(const KnCsv *csv)
{
    return csv->at >= csv->end || *csv->at == csv->separator || *csv->at == '\n' || *csv->at == '\r';
}

static int parse_quoted(KnCsv *csv, KnText *field)
{
    int64_t began = csv->line;
    for (csv->at++; csv->at < csv->end; csv->at++) {
        if (*csv->at == '"') {
            csv->at++;
            if (is_end_of_field(csv))
                return KN_OK;
            if (*csv->at != '"')
                return kn_fail(KN_EFORMAT, "%s:%lld: text after a closing quote: write a quote inside one as \"\"",
                               csv->name, (long long)csv->line);
        }
        csv->line += *csv->at == '\n';
        kn_text_appendn(field, csv->at, 1);
    }
    return kn_fail(KN_EFORMAT, "%s:%lld: a quote is opened and never closed", csv->name, (long long)began);
}

static int parse_plain(KnCsv *csv, KnText *field)
{
    for (; !is_end_of_field(csv); csv->at++) {
        if (*csv->at == '"')
            return kn_fail(KN_EFORMAT, "%s:%lld: a quote inside an unquoted field: put the whole field in quotes",
                           csv->name, (long long)csv->line);
        kn_text_appendn(field, csv->at, 1);
    }
    return KN_OK;
}

static int parse_field(KnCsv *csv, KnArena *arena, KnCsvField *out)
{
    KnText field = {0};
    int code = csv->at < csv->end && *csv->at == '"' ? parse_quoted(csv, &field) : parse_plain(csv, &field);
    if (code == KN_OK && out) {
        *out = (KnCsvField){kn_arena_alloc(arena, field.length + 1), field.length};
        if (field.length > 0)
            memcpy(out->text, field.bytes, field.length);
    }
    kn_text_clear(&field);
    return code;
}

int kn_csv_record(KnCsv *csv, KnArena *arena, KnCsvField *fields, int room, int *count)
{
    *count = 0;
    if (csv->at >= csv->end)
        return KN_END;
    for (;; csv->at++) {
        KN_TRY(parse_field(csv, arena, *count < room ? &fields[*count] : NULL));
        (*count)++;
        if (csv->at >= csv->end || *csv->at != csv->separator)
            break;
    }
    if (csv->at < csv->end && *csv->at == '\r')
        csv->at++;
    if (csv->at < csv->end && *csv->at == '\n')
        csv->at++;
    csv->line++;
    return KN_OK;
}
