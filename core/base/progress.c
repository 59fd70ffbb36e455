/* Progress lines: how many, which share, how fast, how long still.
 *
 * The rate is an exponential average whose memory is half a minute, fed at most ten times a second, so that it follows
 * a change of pace without jumping at each item. Drawing goes through kn_log_status, which keeps log lines and the
 * redrawn line apart. */
#include "core/base/progress.h"

#include "core/base/activity.h"
#include "core/base/clock.h"
#include "core/base/log.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define REDRAW_SECONDS 0.1
#define PLAIN_SECONDS 5.0
#define RATE_MEMORY_SECONDS 30.0

char *kn_progress_duration(double seconds, char text[16])
{
    if (!(seconds >= 0) || seconds > 86400.0 * 999)
        return strcpy(text, "?");
    int64_t whole = (int64_t)(seconds + 0.5);
    int days = (int)(whole / 86400), hours = (int)(whole / 3600 % 24), minutes = (int)(whole / 60 % 60);
    if (days)
        snprintf(text, 16, "%dd %02d:%02d", days, hours, minutes);
    else if (hours)
        snprintf(text, 16, "%d:%02d:%02d", hours, minutes, (int)(whole % 60));
    else
        snprintf(text, 16, "%d:%02d", minutes, (int)(whole % 60));
    return text;
}

void kn_progress_begin(KnProgress *progress, const KnProgressOptions *options)
{
    *progress = (KnProgress){.options = *options, .done = options->start, .seen = options->start};
    progress->shown = kn_log_is_shown();
    progress->on_terminal = isatty(STDERR_FILENO);
    progress->began = progress->seen_at = kn_seconds_now();
    progress->printed_at = progress->on_terminal ? 0 : progress->began;
    if (progress->options.interval <= 0)
        progress->options.interval = PLAIN_SECONDS;
}

static void measure_rate(KnProgress *progress, double now)
{
    double passed = now - progress->seen_at;
    if (passed < REDRAW_SECONDS || progress->done <= progress->seen)
        return;
    double recent = (double)(progress->done - progress->seen) / passed;
    double age = now - progress->began;
    double memory = age < RATE_MEMORY_SECONDS ? age : RATE_MEMORY_SECONDS; /* at first: the plain average */
    double weight = memory > passed ? passed / memory : 1.0;
    progress->rate += weight * (recent - progress->rate);
    progress->seen = progress->done;
    progress->seen_at = now;
}

/* Three significant digits, and for slow work the time of one instead: "23.1 steps/s", "12.5 s each". */
static int format_rate(char *text, size_t bytes, double rate, const char *unit)
{
    if (rate >= 0.5)
        return snprintf(text, bytes, "  %.*f %s/s", rate < 10 ? 2 : rate < 100 ? 1 : 0, rate, unit);
    if (rate > 0)
        return snprintf(text, bytes, "  %.1f s each", 1.0 / rate);
    return 0;
}

static int clamp_written(int written, size_t room)
{
    return written < 0 ? 0 : written >= (int)room ? (int)room - 1 : written;
}

static void format_line(const KnProgress *progress, double now, char *line, size_t bytes)
{
    const KnProgressOptions *options = &progress->options;
    char left[16];
    size_t used = 0;
#define APPEND(...) (used += (size_t)clamp_written(snprintf(line + used, bytes - used, __VA_ARGS__), bytes - used))
    if (options->total > 0)
        APPEND("%s  %lld/%lld %s  %.0f%%", options->label, (long long)progress->done, (long long)options->total,
               options->unit, floor(100.0 * (double)progress->done / (double)options->total));
    else
        APPEND("%s  %lld %s", options->label, (long long)progress->done, options->unit);
    used += (size_t)clamp_written(format_rate(line + used, bytes - used, progress->rate, options->unit), bytes - used);
    if (options->total > progress->done && progress->rate > 0) {
        double since = now - progress->seen_at;
        double seconds = (double)(options->total - progress->seen) / progress->rate - since;
        APPEND("  ETA %s", kn_progress_duration(seconds > 0 ? seconds : 0, left));
    }
    if (progress->extra[0])
        APPEND("  %s", progress->extra);
#undef APPEND
}

/* A line longer than the terminal would wrap and could not be redrawn. UTF-8 is cut between characters. */
static void fit_terminal(char *line)
{
    struct winsize size;
    size_t columns = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 8 ? size.ws_col : 80;
    size_t seen = 0;
    for (char *at = line; *at; at++) {
        if ((*at & 0xC0) != 0x80 && ++seen == columns) {
            *at = '\0';
            return;
        }
    }
}

static void show(KnProgress *progress, double now)
{
    char line[400];
    format_line(progress, now, line, sizeof line);
    if (progress->on_terminal) {
        fit_terminal(line);
        kn_log_status(line);
    } else {
        kn_log("%s", line);
    }
    progress->printed_at = now;
}

void kn_progress_update(KnProgress *progress, int64_t done, const char *extra, ...)
{
    progress->done = done;
    kn_activity_advance();
    if (!progress->shown)
        return;
    if (extra) {
        va_list arguments;
        va_start(arguments, extra);
        vsnprintf(progress->extra, sizeof progress->extra, extra, arguments);
        va_end(arguments);
    }
    double now = kn_seconds_now();
    measure_rate(progress, now);
    if (now - progress->printed_at < (progress->on_terminal ? REDRAW_SECONDS : progress->options.interval))
        return;
    show(progress, now);
}

void kn_progress_set_total(KnProgress *progress, int64_t total)
{
    progress->options.total = total;
}

void kn_progress_end(KnProgress *progress, const char *extra, ...)
{
    if (!progress->shown)
        return;
    const KnProgressOptions *options = &progress->options;
    char taken[16], rate[64] = "";
    double seconds = kn_seconds_now() - progress->began;
    if (extra) {
        va_list arguments;
        va_start(arguments, extra);
        vsnprintf(progress->extra, sizeof progress->extra, extra, arguments);
        va_end(arguments);
    }
    if (seconds > 0)
        format_rate(rate, sizeof rate, (double)(progress->done - options->start) / seconds, options->unit);
    if (progress->on_terminal)
        kn_log_status(NULL);
    const char *gap = progress->extra[0] ? "  " : "";
    if (options->total > progress->done)
        kn_log("%s  stopped at %lld of %lld %s after %s%s%s%s", options->label, (long long)progress->done,
               (long long)options->total, options->unit, kn_progress_duration(seconds, taken), rate, gap,
               progress->extra);
    else
        kn_log("%s  %lld %s in %s%s%s%s", options->label, (long long)progress->done, options->unit,
               kn_progress_duration(seconds, taken), rate, gap, progress->extra);
    progress->shown = 0;
}
