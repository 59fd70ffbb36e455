/* Many requests from one file: a prompts file, or a template with a table of its variables.
 *
 * Each line or row lies over the same base. Its seed is the base's plus the number of requests before it, and a name
 * is made up (.mp4, or .png for one frame), where it has none. Relative names are taken from `folder` (NULL: the
 * working directory; then each needs a name). No two may write the same video or the same NAME.json. All of this is
 * KN_EINPUT with a sentence that begins with FILE:LINE. */
#ifndef KN_INFER_REQUEST_LIST_H
#define KN_INFER_REQUEST_LIST_H

#include "infer/request.h"

typedef struct KnRequestSource {
    const char *path, *folder;
    const KnRequest *base;
    KnArena *arena; /* of all strings */
} KnRequestSource;

/* A prompts file: one JSON object a line, empty lines are passed over. *requests is a heap array. */
int kn_request_read_lines(const KnRequestSource *source, KnRequest **requests, int *count);

/* A template, "a {color} car in {city}", for each row of a table (core/base/csv.h, UTF-8), whose first row names the
 * columns. {{ and }} are braces. A column with the name of a request's key sets it where the cell is not empty, all but
 * `prompt`. Without `out`, the column `name` names the file unless the template uses it; else the row's number and the
 * values that the template takes do. */
int kn_request_read_table(const KnRequestSource *source, const char *template, KnRequest **requests, int *count);

/* ---- for the readers ---- */

typedef struct KnRequestList {
    KnRequestSource source;
    KnRequest *requests;
    int *lines; /* of each request, for sentences */
    int count, capacity, line_capacity;
} KnRequestList;

/* Adds the base under `above`, which stands in `line` and has a prompt; `stem` is the name that is made up (NULL: the
 * request's number). */
int kn_request_list_add(KnRequestList *list, const KnRequest *above, int line, const char *stem);

/* Hands the requests over where `code` is 0 and names are unique; releases the list in any case. */
int kn_request_list_finish(KnRequestList *list, int code, KnRequest **requests, int *count);

#endif
