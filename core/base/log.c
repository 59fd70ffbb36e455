/* Rank-aware lines to standard error and a log file. */
#include "core/base/log.h"

#include "core/base/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static struct {
    int rank, ranks, quiet;
    FILE *file;
    char status[512]; /* what stands at the foot of the terminal now */
} state = {.ranks = 1};

void kn_log_set_rank(int rank, int ranks)
{
    state.rank = rank;
    state.ranks = ranks;
}

int kn_log_set_file(const char *path)
{
    if (state.file)
        fclose(state.file);
    state.file = NULL;
    if (!path)
        return KN_OK;
    state.file = fopen(path, "a");
    if (!state.file)
        return kn_fail(KN_EIO, "cannot write the log file %s: %s", path, strerror(errno));
    setvbuf(state.file, NULL, _IOLBF, 0);
    return KN_OK;
}

void kn_log_set_quiet(int quiet)
{
    state.quiet = quiet;
}

int kn_log_is_shown(void)
{
    return state.rank == 0 && !state.quiet;
}

void kn_log_status(const char *line)
{
    if (!line || !line[0]) {
        if (state.status[0])
            fputs("\r\033[K", stderr);
        state.status[0] = '\0';
        return;
    }
    snprintf(state.status, sizeof state.status, "%s", line);
    fprintf(stderr, "\r%s\033[K", state.status);
}

/* Writes one line, however long; without memory for a long one, its beginning. */
static void write_line(int to_terminal, const char *level, const char *format, va_list arguments)
{
    char beginning[2048], *whole = NULL;
    va_list again;
    va_copy(again, arguments);
    int length = vsnprintf(beginning, sizeof beginning, format, arguments);
    if (length >= (int)sizeof beginning && vasprintf(&whole, format, again) < 0)
        whole = NULL;
    va_end(again);
    const char *text = whole ? whole : beginning;
    if (to_terminal && state.status[0])
        fputs("\r\033[K", stderr);
    if (to_terminal && state.ranks > 1)
        fprintf(stderr, "kinora[%d]: %s%s\n", state.rank, level, text);
    else if (to_terminal)
        fprintf(stderr, "kinora: %s%s\n", level, text);
    if (to_terminal && state.status[0])
        fputs(state.status, stderr);
    if (state.file) {
        time_t now = time(NULL);
        struct tm parts;
        char stamp[32];
        gmtime_r(&now, &parts);
        strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%SZ", &parts);
        fprintf(state.file, "%s %s%s\n", stamp, level, text);
    }
    free(whole);
}

void kn_log(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    write_line(kn_log_is_shown(), "", format, arguments);
    va_end(arguments);
}

void kn_warn(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    write_line(1, "warning: ", format, arguments);
    va_end(arguments);
}

void kn_log_error(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    write_line(1, "error: ", format, arguments);
    va_end(arguments);
}
