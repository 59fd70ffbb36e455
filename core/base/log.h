/* Logging: the only way that code below the command functions speaks to the user.
 *
 * A line goes to standard error as "kinora: text" (with the rank, when there are several) and, when a log file is
 * set, to that file with a time stamp. Information is printed by rank 0 only; warnings and errors by every rank. */
#ifndef KN_BASE_LOG_H
#define KN_BASE_LOG_H

/* Sets this process's place among the ranks; until called it is rank 0 of 1. */
void kn_log_set_rank(int rank, int ranks);

/* Sends a copy of every line, of every level, to `path` (appending); NULL stops it. Returns 0 or KN_EIO. */
int kn_log_set_file(const char *path);

/* Quiet drops information on the terminal (warnings stay); used by --json commands and tests. */
void kn_log_set_quiet(int quiet);

void kn_log(const char *format, ...) __attribute__((format(printf, 1, 2)));
void kn_warn(const char *format, ...) __attribute__((format(printf, 1, 2)));
void kn_log_error(const char *format, ...) __attribute__((format(printf, 1, 2))); /* the last words of a command */

/* Whether information is printed here: not quiet, and rank 0. */
int kn_log_is_shown(void);

/* The line that core/base/progress.c redraws at the foot of a terminal (NULL or "" takes it away): log lines scroll
 * past above it. Only when standard error is a terminal. */
void kn_log_status(const char *line);

#endif
