/* Reading and adding lines of a shared report. The file is opened anew each time: on NFS that is what makes the lines
 * of other hosts visible. */
#include "infer/report.h"

#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/text.h"
#include "data/index.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char *const status_names[] = {"open", "made", "skipped", "failed"};
enum { STATUSES = sizeof status_names / sizeof status_names[0] };

const char *kn_report_status_name(KnReportStatus status)
{
    return status_names[status];
}

/* Of one request. */
typedef struct Entry {
    KnReportStatus status;
    char *line;   /* in this job; NULL while it is open */
    char *former; /* how it was made in an earlier one */
} Entry;

struct KnReport {
    char *path, *folder;
    const KnRequest *requests;
    Entry *entries;
    int count, rank;
    int counts[STATUSES];
    int64_t start, offset; /* bytes: where this job begins; up to where lines are known */
};

KnReport *kn_report_create(const char *folder, const KnRequest *requests, int count, int rank)
{
    KnReport *report = kn_alloc(sizeof *report);
    *report = (KnReport){.path = kn_path_join(folder, "report.jsonl"),
                         .folder = kn_strdup(folder),
                         .requests = requests,
                         .entries = kn_alloc((size_t)count * sizeof(Entry)),
                         .count = count,
                         .rank = rank,
                         .counts = {count}};
    return report;
}

void kn_report_destroy(KnReport *report)
{
    if (!report)
        return;
    for (int i = 0; i < report->count; i++) {
        free(report->entries[i].line);
        free(report->entries[i].former);
    }
    free(report->entries);
    free(report->folder);
    free(report->path);
    free(report);
}

const char *kn_report_path(const KnReport *report)
{
    return report->path;
}

KnReportStatus kn_report_status(const KnReport *report, int index)
{
    return report->entries[index].status;
}

int kn_report_count(const KnReport *report, KnReportStatus status)
{
    return report->counts[status];
}

/* The video's name as seen from the report. */
static const char *name_of(const KnReport *report, int index)
{
    const char *out = report->requests[index].out;
    size_t length = strlen(report->folder);
    while (length > 0 && report->folder[length - 1] == '/')
        length--;
    if (strncmp(out, report->folder, length) || out[length] != '/')
        return out;
    while (out[length] == '/')
        length++;
    return out + length;
}

/* ---- reading ---- */

static int find_status(const char *name)
{
    for (int i = 0; name && i < STATUSES; i++)
        if (!strcmp(status_names[i], name))
            return i;
    return KN_REPORT_OPEN;
}

static void settle(KnReport *report, int index, KnReportStatus status, const char *line)
{
    Entry *entry = &report->entries[index];
    report->counts[entry->status]--;
    report->counts[status]++;
    entry->status = status;
    free(entry->line);
    entry->line = kn_strdup(line);
}

/* Lines of other programs, and of requests that are no longer asked for, mean nothing here. */
static void take_line(KnReport *report, const char *line, int is_former)
{
    json_t *object = json_loads(line, 0, NULL);
    json_int_t index = json_integer_value(json_object_get(object, "request")) - 1;
    int status = find_status(json_string_value(json_object_get(object, "status")));
    if (index >= 0 && index < report->count && status != KN_REPORT_OPEN) {
        json_t *name = kn_json_text(name_of(report, (int)index));
        Entry *entry = &report->entries[index];
        if (!is_former) {
            settle(report, (int)index, (KnReportStatus)status, line);
        } else if (status != KN_REPORT_FAILED && json_equal(name, json_object_get(object, "name"))) {
            free(entry->former);
            entry->former = kn_strdup(line);
        }
        json_decref(name);
    }
    json_decref(object);
}

/* Whole lines from where they are known on; the descriptor's file may end with the beginning of one. */
static int read_lines(KnReport *report, int descriptor)
{
    struct stat status;
    if (fstat(descriptor, &status) != 0)
        return kn_fail(KN_EIO, "cannot read %s: %s", report->path, strerror(errno));
    if (status.st_size < report->offset)
        return kn_fail(KN_EIO, "%s was shortened by another program: start again", report->path);
    size_t size = (size_t)(status.st_size - report->offset);
    char *bytes = kn_alloc(size + 1), *line = bytes;
    ssize_t got = pread(descriptor, bytes, size, report->offset);
    int reason = errno;
    for (char *end; got > 0 && (end = memchr(line, '\n', (size_t)(bytes + got - line))) != NULL; line = end + 1) {
        *end = '\0';
        take_line(report, line, report->offset < report->start);
        report->offset += end + 1 - line;
    }
    free(bytes);
    return got < 0 ? kn_fail(KN_EIO, "cannot read %s: %s", report->path, strerror(reason)) : KN_OK;
}

static int open_report(const KnReport *report, int flags)
{
    int descriptor = open(report->path, flags | O_CLOEXEC, 0666);
    if (descriptor < 0)
        kn_fail(KN_EIO, "cannot open %s: %s", report->path, strerror(errno));
    return descriptor;
}

int kn_report_read(KnReport *report)
{
    int descriptor = open_report(report, O_RDONLY);
    if (descriptor < 0)
        return KN_EIO;
    int code = read_lines(report, descriptor);
    close(descriptor);
    return code;
}

/* ---- beginning and end ---- */

int kn_report_join(KnReport *report, int64_t start)
{
    report->start = start;
    return kn_report_read(report);
}

int kn_report_begin(KnReport *report, int64_t *start)
{
    KnText kept = {0};
    int code = KN_OK;
    if (kn_file_exists(report->path))
        code = kn_report_join(report, INT64_MAX);
    for (int i = 0; i < report->count; i++)
        if (report->entries[i].former)
            kn_text_appendf(&kept, "%s\n", report->entries[i].former);
    report->start = report->offset = *start = (int64_t)kept.length;
    if (code == KN_OK)
        code = kn_file_write(report->path, kept.bytes, kept.length);
    kn_text_clear(&kept);
    return code;
}

int kn_report_finish(const KnReport *report)
{
    KnText text = {0};
    for (int i = 0; i < report->count; i++)
        if (report->entries[i].line)
            kn_text_appendf(&text, "%s\n", report->entries[i].line);
    int code = kn_file_write(report->path, text.bytes, text.length);
    kn_text_clear(&text);
    return code;
}

/* ---- adding ---- */

static void add_maker(const KnReport *report, json_t *object)
{
    char host[256] = "", stamp[32];
    time_t now = time(NULL);
    struct tm parts;
    gethostname(host, sizeof host - 1);
    gmtime_r(&now, &parts);
    strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%SZ", &parts);
    json_object_set_new(object, "host", kn_json_text(host));
    json_object_set_new(object, "pid", json_integer(getpid()));
    json_object_set_new(object, "rank", json_integer(report->rank));
    json_object_set_new(object, "time", json_string(stamp));
}

/* A skipped video has the cost and the maker that an earlier report names. */
static char *line_of(const KnReport *report, const KnReportEntry *entry)
{
    static const char *const kept[] = {"seconds", "tokens", "host", "pid", "rank", "time"};
    const KnRequest *request = &report->requests[entry->index];
    const char *known = report->entries[entry->index].former;
    json_t *object = json_object(), *former = known ? json_loads(known, 0, NULL) : NULL;
    json_object_set_new(object, "request", json_integer(entry->index + 1));
    json_object_set_new(object, "name", kn_json_text(name_of(report, entry->index)));
    json_object_set_new(object, "prompt", kn_json_text(request->prompt));
    json_object_set_new(object, "seed", json_integer(request->seed));
    json_object_set_new(object, "status", json_string(status_names[entry->status]));
    if (entry->reason)
        json_object_set_new(object, "reason", kn_json_text(entry->reason));
    json_object_set_new(object, "seconds", json_real(entry->seconds));
    json_object_set_new(object, "tokens", json_integer(entry->tokens));
    add_maker(report, object);
    for (size_t i = 0; i < sizeof kept / sizeof kept[0]; i++)
        if (entry->status == KN_REPORT_SKIPPED && json_object_get(former, kept[i]))
            json_object_set(object, kept[i], json_object_get(former, kept[i]));
    char *line = json_dumps(object, JSON_COMPACT | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(6));
    json_decref(former);
    json_decref(object);
    KN_ASSERT(line);
    return line;
}

/* In one write behind the last whole line; what was there of another goes, and so does what was written of this one
 * where the disk is full. */
static int append(KnReport *report, int descriptor, const char *line)
{
    char *bytes = kn_format("%s\n", line);
    size_t length = strlen(bytes);
    ssize_t written = -1;
    int failed = ftruncate(descriptor, report->offset) != 0 ||
                 (written = pwrite(descriptor, bytes, length, report->offset)) != (ssize_t)length;
    int reason = !failed ? 0 : written >= 0 ? ENOSPC : errno;
    free(bytes);
    if (!failed) {
        report->offset += (int64_t)length;
        return KN_OK;
    }
    if (ftruncate(descriptor, report->offset) != 0)
        kn_warn("%s ends with half a line", report->path);
    return kn_fail(KN_EIO, "cannot write %s: %s", report->path, strerror(reason));
}

int kn_report_add(KnReport *report, const KnReportEntry *entry)
{
    int descriptor = open_report(report, O_RDWR);
    if (descriptor < 0)
        return KN_EIO;
    char *line = line_of(report, entry);
    int code = read_lines(report, descriptor);
    if (code == KN_OK)
        code = append(report, descriptor, line);
    if (close(descriptor) != 0 && code == KN_OK)
        code = kn_fail(KN_EIO, "cannot write %s: %s", report->path, strerror(errno));
    if (code == KN_OK)
        settle(report, entry->index, entry->status, line);
    free(line);
    return code;
}
