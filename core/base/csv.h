/* CSV as in RFC 4180: records of fields, quoted or not, read one after the other from a file in memory.
 *
 *     KnCsv csv = kn_csv_begin("cars.csv", bytes, size);
 *     while ((code = kn_csv_record(&csv, arena, fields, ROOM, &count)) == KN_OK)
 *         ...
 *
 * Lines end in LF, CRLF or CR; the mark that some editors put in front of UTF-8 is passed over. */
#ifndef KN_BASE_CSV_H
#define KN_BASE_CSV_H

#include "core/base/memory.h"

#include <stddef.h>
#include <stdint.h>

/* Where the reader stands. A name that ends in .tsv has tabs for commas. */
typedef struct KnCsv {
    const char *name, *at, *end; /* name: for sentences */
    int64_t line;                /* where the next record begins, from 1 */
    char separator;
} KnCsv;

typedef struct KnCsvField {
    char *text; /* NUL-terminated; may hold other NULs */
    size_t length;
} KnCsvField;

/* The bytes are borrowed. */
KnCsv kn_csv_begin(const char *name, const char *bytes, size_t size);

/* One record into at most `room` fields (memory of `arena`); the number found may be larger. An empty line is a record
 * of one empty field. KN_END at the end; KN_EFORMAT with `name:line: what` for a quote that is misplaced or never
 * closed. */
int kn_csv_record(KnCsv *csv, KnArena *arena, KnCsvField *fields, int room, int *count);

#endif
