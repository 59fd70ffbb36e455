/* Who makes which request of a job: processes on any hosts that see one folder, without a server.
 *
 * Three things in the folder are all there is. Locks (core/base/locks.h, in .kinora-job): one for each request, held by
 * whoever makes it and gone with its process, so that others take over; one for each process that is at work; one for
 * adding to the report. The report (infer/report.h): a request with a line is settled. The videos: one that stands as
 * asked is skipped. Whoever comes while nobody is at work begins a new job, in which former failures are tried again;
 * whoever comes while others are must bring the same requests and the same model.
 *
 * One process speaks for a worker. Where several ranks make a video together, one of them joins, and tells the others
 * which requests are next. */
#ifndef KN_INFER_CLAIMS_H
#define KN_INFER_CLAIMS_H

#include "infer/generate.h"
#include "infer/report.h"

typedef struct KnClaims KnClaims;

/* The job's requests have passed kn_generate_check_requests; all is borrowed. KN_EINPUT where others are making
 * something else in the folder, KN_EIO where it cannot be written or has no locks. */
int kn_claims_join(KnClaims **claims, const char *folder, const KnModelFile *file, const KnGenerateJob *job, int rank);
void kn_claims_destroy(KnClaims *claims); /* releases what is held; NULL is fine */

/* The requests that this worker makes next in one pass: indices [job->count], *count of them, this worker's share of
 * what is left at most. After a short sleep none where others are making all that is left; KN_END when every request is
 * settled. */
int kn_claims_next(KnClaims *claims, int *indices, int *count);

/* The request is made, or cannot be made for this reason. */
int kn_claims_settle(KnClaims *claims, int index, KnReportStatus status, const char *reason, double seconds);

const KnReport *kn_claims_report(const KnClaims *claims);
int kn_claims_read(KnClaims *claims); /* takes notice of what others have settled */

/* When all is settled. *last becomes 1 for the last of all processes: the report is in order then, what killed ones
 * left is removed, and no new job begins in the folder before kn_claims_destroy. */
int kn_claims_leave(KnClaims *claims, int *last);

#endif
