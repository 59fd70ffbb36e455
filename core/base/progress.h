/* Progress: how far a long piece of work has come, its rate and the time left.
 *
 * On a terminal one line is redrawn in place (log lines scroll past above it); elsewhere a plain line is written every
 * few seconds at most, so that a log file stays readable. Silent when kn_log is quiet (--json) and on ranks other than
 * 0. Everything goes to standard error. Call it from one thread only.
 *
 *     KnProgress progress;
 *     kn_progress_begin(&progress, &(KnProgressOptions){.label = "train", .unit = "steps", .total = 1000});
 *     for (...)
 *         kn_progress_update(&progress, step + 1, "loss %.4f", loss);
 *     kn_progress_end(&progress, NULL);
 *
 * prints `train  412/1000 steps  41%  23.1 steps/s  ETA 0:25  loss 0.1234`. */
#ifndef KN_BASE_PROGRESS_H
#define KN_BASE_PROGRESS_H

#include <stdint.h>

typedef struct KnProgressOptions {
    const char *label; /* what is being done: "train" */
    const char *unit;  /* what is counted, in the plural: "steps" */
    int64_t total;     /* how many there will be; 0 = unknown (no share and no ETA) */
    int64_t start;     /* how many were done before (a resumed run): not counted in the rate */
    double interval;   /* seconds between plain lines; 0 = 5. A terminal is redrawn ten times a second at most */
} KnProgressOptions;

typedef struct KnProgress {
    KnProgressOptions options; /* the strings are borrowed until kn_progress_end */
    int shown, on_terminal;
    int64_t done, seen;                /* done: by the caller; seen: at the last rate measurement */
    double began, seen_at, printed_at; /* seconds, monotonic */
    double rate;                       /* units per second, averaged over the last half minute or so */
    char extra[160];
} KnProgress;

void kn_progress_begin(KnProgress *progress, const KnProgressOptions *options);

/* `done` counts from 0 to total. `extra` (printf style, NULL = none) ends the line. Cheap enough for every item. */
void kn_progress_update(KnProgress *progress, int64_t done, const char *extra, ...)
    __attribute__((format(printf, 3, 4)));

/* For work that turns out to be less or more than was thought. */
void kn_progress_set_total(KnProgress *progress, int64_t total);

/* Says what was done in which time, and leaves the cursor on a fresh line. With `extra` NULL the last one stays.
 * Calling it again, or after a failure half-way, is fine: it says how far the work came. */
void kn_progress_end(KnProgress *progress, const char *extra, ...) __attribute__((format(printf, 2, 3)));

/* "0:07", "12:34", "3:05:09", "2d 03:05" for a time in seconds. Writes to `text` (16 bytes) and returns it. */
char *kn_progress_duration(double seconds, char text[16]);

#endif
