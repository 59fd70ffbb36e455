/* report.jsonl: what became of each request of a job, one line each.
 *
 * Several processes work from one report: what one of them adds, the others read, and a request with a line is settled
 * for all. Lines are added whole, under a lock that the caller holds; what a killed process left of one is cut off by
 * the next. The lines of an earlier job in the same folder stand before those of this one, so that what was made then
 * is not forgotten: a video that is skipped now keeps its time and its maker. At the end the report has one line for
 * each request, in their order. The format is in docs/formats.md. */
#ifndef KN_INFER_REPORT_H
#define KN_INFER_REPORT_H

#include "infer/request.h"

typedef enum KnReportStatus { KN_REPORT_OPEN, KN_REPORT_MADE, KN_REPORT_SKIPPED, KN_REPORT_FAILED } KnReportStatus;

const char *kn_report_status_name(KnReportStatus status);

typedef struct KnReport KnReport;

/* Requests are borrowed; names in the report are relative to `folder`, where report.jsonl lies. */
KnReport *kn_report_create(const char *folder, const KnRequest *requests, int count, int rank);
void kn_report_destroy(KnReport *report); /* NULL is fine */
const char *kn_report_path(const KnReport *report);

/* With the lock held and nobody else at work: keeps of an earlier report what was made, one line each. The lines of
 * this job begin at byte *start. */
int kn_report_begin(KnReport *report, int64_t *start);
/* For a job that others have begun at this byte. */
int kn_report_join(KnReport *report, int64_t start);

int kn_report_read(KnReport *report); /* takes notice of what others have added */
KnReportStatus kn_report_status(const KnReport *report, int index);
int kn_report_count(const KnReport *report, KnReportStatus status);

typedef struct KnReportEntry {
    int index;
    KnReportStatus status;
    const char *reason; /* NULL: none */
    double seconds;
    int64_t tokens;
} KnReportEntry;

int kn_report_add(KnReport *report, const KnReportEntry *entry); /* with the lock held */

/* With the lock held and all requests settled: leaves their lines alone, in order. */
int kn_report_finish(const KnReport *report);

#endif
