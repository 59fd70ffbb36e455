/* Claiming requests by locks. */
#include "infer/claims.h"

#include "core/base/activity.h"
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/hash.h"
#include "core/base/locks.h"
#include "infer/output.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Places of locks in the file, all behind its note. */
enum { REPORT_LOCK = 1 << 20, FIRST_PRESENCE = 1 << 21, MOST_PROCESSES = 1 << 16, FIRST_REQUEST = 1 << 24 };

struct KnClaims {
    KnLocks *locks;
    KnReport *report;
    const KnModelFile *file;
    const KnGenerateJob *job;
    KnRequestCost *costs; /* [job->count] */
    char **reasons;       /* [job->count]: why what stands there is made again; NULL */
    char *folder;
    int presence; /* which of the processes' locks this one holds */
    int waited;   /* times in a row that nothing was free */
};

/* ---- coming ---- */

/* What processes must have in common to work on one job. */
static void hash_job(const KnClaims *claims, char hash[KN_SHA256_HEX_BYTES])
{
    unsigned char digest[KN_SHA256_BYTES];
    KnSha256 *stream = kn_sha256_create();
    kn_sha256_update(stream, claims->file->hash, strlen(claims->file->hash));
    for (int i = 0; i < claims->job->count; i++) {
        json_t *object = json_object();
        kn_request_to_json(&claims->job->requests[i], object);
        char *text = json_dumps(object, JSON_COMPACT | JSON_PRESERVE_ORDER);
        kn_sha256_update(stream, text, strlen(text) + 1);
        json_decref(object);
        free(text);
    }
    kn_sha256_finish(stream, digest);
    kn_hex(digest, sizeof digest, hash);
}

/* The note of the lock file: the job's hash, and where its lines begin in the report. */
static int begin_job(KnClaims *claims, const char *hash)
{
    char note[KN_LOCKS_NOTE_BYTES];
    int64_t start = 0;
    KN_TRY(kn_report_begin(claims->report, &start));
    snprintf(note, sizeof note, "%s %lld\n", hash, (long long)start);
    return kn_locks_write_note(claims->locks, note);
}

static int join_job(KnClaims *claims, const char *hash)
{
    char note[KN_LOCKS_NOTE_BYTES];
    KN_TRY(kn_locks_read_note(claims->locks, note));
    if (strncmp(note, hash, KN_SHA256_HEX_BYTES - 1))
        return kn_fail(KN_EINPUT,
                       "other processes are making other videos in %s, by other requests, options or another model: "
                       "wait for them, or use another folder",
                       claims->folder);
    return kn_report_join(claims->report, strtoll(note + KN_SHA256_HEX_BYTES - 1, NULL, 10));
}

static int take_presence(KnClaims *claims)
{
    for (int i = 0; i < MOST_PROCESSES; i++) {
        int held = kn_locks_try(claims->locks, FIRST_PRESENCE + i);
        KN_TRY(held);
        claims->presence = FIRST_PRESENCE + i;
        if (held)
            return KN_OK;
    }
    return kn_fail(KN_EINPUT, "%d processes work on %s already: no more fit", MOST_PROCESSES, claims->folder);
}

static int count_others(KnClaims *claims)
{
    return kn_locks_count(claims->locks, FIRST_PRESENCE, MOST_PROCESSES);
}

static int enter(KnClaims *claims)
{
    char hash[KN_SHA256_HEX_BYTES];
    hash_job(claims, hash);
    KN_TRY(kn_locks_wait(claims->locks, REPORT_LOCK));
    int others = count_others(claims);
    KN_TRY(others);
    KN_TRY(others == 0 ? begin_job(claims, hash) : join_job(claims, hash));
    KN_TRY(take_presence(claims));
    return kn_locks_release(claims->locks, REPORT_LOCK);
}

int kn_claims_join(KnClaims **out, const char *folder, const KnModelFile *file, const KnGenerateJob *job, int rank)
{
    *out = NULL;
    KN_TRY(kn_make_directories(folder));
    KnClaims *claims = kn_alloc(sizeof *claims);
    *claims = (KnClaims){.report = kn_report_create(folder, job->requests, job->count, rank),
                         .file = file,
                         .job = job,
                         .costs = kn_alloc((size_t)job->count * sizeof(KnRequestCost)),
                         .reasons = kn_alloc((size_t)job->count * sizeof(char *)),
                         .folder = kn_strdup(folder)};
    for (int i = 0; i < job->count; i++)
        claims->costs[i] = kn_generate_cost(job, i);
    char *path = kn_path_join(folder, ".kinora-job");
    int code = kn_locks_open(&claims->locks, path);
    free(path);
    if (code == KN_OK)
        code = enter(claims);
    if (code == KN_OK)
        *out = claims;
    else
        kn_claims_destroy(claims);
    return code;
}

void kn_claims_destroy(KnClaims *claims)
{
    if (!claims)
        return;
    kn_locks_close(claims->locks);
    kn_report_destroy(claims->report);
    for (int i = 0; i < claims->job->count; i++)
        free(claims->reasons[i]);
    free(claims->reasons);
    free(claims->costs);
    free(claims->folder);
    free(claims);
}

const KnReport *kn_claims_report(const KnClaims *claims)
{
    return claims->report;
}

int kn_claims_read(KnClaims *claims)
{
    return kn_report_read(claims->report);
}

/* ---- settling ---- */

static int add_entry(KnClaims *claims, const KnReportEntry *entry)
{
    KN_TRY(kn_locks_wait(claims->locks, REPORT_LOCK));
    int code = kn_report_add(claims->report, entry);
    int released = kn_locks_release(claims->locks, REPORT_LOCK);
    return code < 0 ? code : released;
}

int kn_claims_settle(KnClaims *claims, int index, KnReportStatus status, const char *reason, double seconds)
{
    KN_TRY(add_entry(claims, &(KnReportEntry){.index = index,
                                              .status = status,
                                              .reason = reason ? reason : claims->reasons[index],
                                              .seconds = seconds,
                                              .tokens = claims->costs[index].tokens}));
    return kn_locks_release(claims->locks, FIRST_REQUEST + index);
}

/* ---- taking ---- */

/* Of a request whose lock is held now: 1 where it is to be made. Until then another may have settled it, or a killed
 * one have made it. */
static int is_left(KnClaims *claims, int index)
{
    char why[KN_OUTPUT_WHY_BYTES];
    KN_TRY(kn_report_read(claims->report));
    if (kn_report_status(claims->report, index) != KN_REPORT_OPEN)
        return 0;
    if (kn_output_is_made(&claims->job->requests[index], claims->file, why)) {
        KN_TRY(add_entry(
            claims,
            &(KnReportEntry){.index = index, .status = KN_REPORT_SKIPPED, .tokens = claims->costs[index].tokens}));
        return 0;
    }
    free(claims->reasons[index]);
    claims->reasons[index] = why[0] ? kn_format("made again: %s", why) : NULL;
    return 1;
}

/* 1: claimed; 0: others make it, or it needs no making. */
static int claim(KnClaims *claims, int index)
{
    int held = kn_locks_try(claims->locks, FIRST_REQUEST + index);
    if (held != 1)
        return held;
    int left = is_left(claims, index);
    kn_activity_advance(); /* ranks of the same group wait while thousands are skipped */
    if (left != 1)
        KN_TRY(kn_locks_release(claims->locks, FIRST_REQUEST + index));
    return left;
}

/* What is enough for one of all workers: nobody shall stand idle beside another's many small clips. */
static int64_t share_of_rest(const KnClaims *claims, int workers)
{
    int64_t rest = 0;
    for (int i = 0; i < claims->job->count; i++)
        if (kn_report_status(claims->report, i) == KN_REPORT_OPEN)
            rest += claims->costs[i].pass_tokens;
    return (rest + workers - 1) / workers;
}

static void sleep_longer_each_time(KnClaims *claims)
{
    enum { SHORTEST_MS = 20, MOST_DOUBLINGS = 5 };
    int doublings = claims->waited < MOST_DOUBLINGS ? claims->waited : MOST_DOUBLINGS;
    nanosleep(&(struct timespec){.tv_nsec = 1000000L * (SHORTEST_MS << doublings)}, NULL);
    claims->waited++;
}

int kn_claims_next(KnClaims *claims, int *indices, int *count)
{
    *count = 0;
    KN_TRY(kn_report_read(claims->report));
    int others = count_others(claims);
    KN_TRY(others);
    KnPassRoom room = {.enough = share_of_rest(claims, 1 + others)};
    for (int i = 0; i < claims->job->count; i++) {
        if (kn_report_status(claims->report, i) != KN_REPORT_OPEN || !kn_pass_has_room(claims->job, &room, i))
            continue;
        int claimed = claim(claims, i);
        KN_TRY(claimed);
        if (!claimed)
            continue;
        kn_pass_take(claims->job, &room, i);
        indices[(*count)++] = i;
    }
    if (*count > 0)
        claims->waited = 0;
    else if (kn_report_count(claims->report, KN_REPORT_OPEN) == 0)
        return KN_END;
    else
        sleep_longer_each_time(claims);
    return KN_OK;
}

/* ---- going ---- */

static int is_left_of(const KnClaims *claims, const char *name)
{
    for (int i = 0; i < claims->job->count; i++) {
        const char *out = claims->job->requests[i].out;
        char *json = kn_output_json_path(out);
        int is = kn_is_temporary_of(name, out) || kn_is_temporary_of(name, json);
        free(json);
        if (is)
            return 1;
    }
    return kn_is_temporary_of(name, kn_report_path(claims->report));
}

static int clean_folder(const KnClaims *claims, const char *folder)
{
    KnStringList names = {0};
    KN_TRY(kn_list_directory(folder, &names));
    int code = KN_OK;
    for (int i = 0; i < names.count && code == KN_OK; i++)
        if (kn_is_temporary_name(names.items[i]) && is_left_of(claims, names.items[i])) {
            char *path = kn_path_join(folder, names.items[i]);
            code = kn_remove_tree(path);
            free(path);
        }
    kn_string_list_clear(&names);
    return code;
}

/* What killed processes left of the job's files, in every folder that it writes to. */
static int remove_leftovers(const KnClaims *claims)
{
    KnStringList folders = {0};
    int code = KN_OK;
    kn_string_list_add(&folders, claims->folder);
    for (int i = 0; i < claims->job->count; i++) {
        char *folder = kn_path_folder(claims->job->requests[i].out);
        if (strcmp(folder, folders.items[folders.count - 1]) && kn_is_directory(folder))
            kn_string_list_add(&folders, folder);
        free(folder);
    }
    kn_string_list_sort(&folders);
    for (int i = 0; i < folders.count && code == KN_OK; i++)
        if (i == 0 || strcmp(folders.items[i - 1], folders.items[i]))
            code = clean_folder(claims, folders.items[i]);
    kn_string_list_clear(&folders);
    return code;
}

int kn_claims_leave(KnClaims *claims, int *last)
{
    KN_TRY(kn_locks_wait(claims->locks, REPORT_LOCK));
    int others = count_others(claims);
    KN_TRY(others);
    *last = others == 0;
    if (*last) {
        KN_TRY(remove_leftovers(claims));
        return kn_report_finish(claims->report);
    }
    KN_TRY(kn_locks_release(claims->locks, claims->presence));
    return kn_locks_release(claims->locks, REPORT_LOCK);
}
