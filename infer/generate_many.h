/* A job of many videos, shared among all who work on it: the groups of ranks of one start, and whoever else starts the
 * same command on the same folder (infer/claims.h). A group is one worker: its first rank claims and settles, and all
 * of its ranks make what it has claimed and write it in turns. */
#ifndef KN_INFER_GENERATE_MANY_H
#define KN_INFER_GENERATE_MANY_H

#include "infer/generate.h"
#include "infer/report.h"
#include "infer/workers.h"

typedef struct KnManyOptions {
    const KnModelFile *file;
    KnRequest *requests;
    int count;
    KnArena *arena;
    const char *folder; /* of report.jsonl */
    const char *sheet;  /* contact sheet, drawn by the last who leaves; NULL: none */
    int silent;         /* no progress line */
} KnManyOptions;

/* What became of all requests, whoever made them; empty on ranks that are not the first of their group. */
typedef struct KnManyResult {
    KnReportStatus *statuses; /* [count]; free() it */
    int made, skipped, failed;
    char *report; /* its path; free() it */
} KnManyResult;

/* Collective. What is wrong with the requests themselves or with the folder fails before anything is made; later a
 * request that cannot be made is reported and the others go on. */
int kn_generate_many(const KnManyOptions *options, const KnWorkers *workers, KnManyResult *result);

#endif
