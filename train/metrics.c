/* Appending metrics, and drawing them. */
#include "train/metrics.h"

#include "core/base/draw.h"
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/log.h"
#include "core/base/memory.h"
#include "train/tensorboard.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct KnMetrics {
    int file; /* descriptor, appending */
    char *path;
    KnText waiting; /* lines that the disk has not taken yet */
    int told;       /* that some wait */
    KnTensorboard *board;
};

/* Calls `visit` with each line's object; lines that are not JSON (a torn last line) are passed over. */
static int for_each_line(const char *path, void (*visit)(void *context, const char *line, json_t *object),
                         void *context)
{
    char *bytes = NULL;
    size_t size = 0;
    KN_TRY(kn_file_read(path, &bytes, &size));
    for (char *line = bytes, *end; *line; line = end) {
        end = line + strcspn(line, "\n");
        int last = *end == '\0';
        *end = '\0';
        json_t *object = json_loads(line, 0, NULL);
        if (json_is_object(object))
            visit(context, line, object);
        json_decref(object);
        end += !last;
    }
    free(bytes);
    return KN_OK;
}

typedef struct Kept {
    int64_t steps;
    int rollbacks; /* their lines are kept whatever their step */
    KnText text;
} Kept;

static void keep_line(void *context, const char *line, json_t *object)
{
    Kept *kept = context;
    if (json_integer_value(json_object_get(object, "step")) <= kept->steps ||
        (kept->rollbacks && json_object_get(object, "rollback")))
        kn_text_appendf(&kept->text, "%s\n", line);
}

static int drop_later_lines(const char *path, int64_t steps, int keep_rollbacks)
{
    Kept kept = {.steps = steps, .rollbacks = keep_rollbacks};
    if (steps > 0 && kn_file_exists(path))
        KN_TRY(for_each_line(path, keep_line, &kept));
    int code = kn_file_write(path, kept.text.bytes ? kept.text.bytes : "", kept.text.length);
    kn_text_clear(&kept.text);
    return code;
}

static int open_file(KnMetrics *metrics)
{
    metrics->file = open(metrics->path, O_WRONLY | O_APPEND | O_CLOEXEC);
    return metrics->file < 0 ? kn_fail(KN_EIO, "cannot write %s: %s", metrics->path, strerror(errno)) : KN_OK;
}

int kn_metrics_open(KnMetrics **metrics, const char *run_dir, int64_t keep_steps)
{
    KnMetrics *made = kn_alloc(sizeof *made);
    *metrics = made;
    made->path = kn_path_join(run_dir, "metrics.jsonl");
    made->file = -1;
    KN_TRY(drop_later_lines(made->path, keep_steps, 0));
    KN_TRY(open_file(made));
    return kn_tensorboard_open(&made->board, run_dir);
}

/* Writes what waits, as far as the disk takes it; 0 when nothing waits any more. */
static int flush_lines(KnMetrics *metrics)
{
    KnText *waiting = &metrics->waiting;
    while (waiting->length) {
        ssize_t written = write(metrics->file, waiting->bytes, waiting->length);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return -1;
        waiting->length -= (size_t)written;
        memmove(waiting->bytes, waiting->bytes + written, waiting->length + 1);
    }
    return 0;
}

/* JSON has no NaN: a value that is not finite becomes null. */
static json_t *number(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

static void write_line(KnMetrics *metrics, json_t *object)
{
    char *line = json_dumps(object, JSON_COMPACT | JSON_PRESERVE_ORDER);
    json_decref(object);
    kn_text_appendf(&metrics->waiting, "%s\n", line);
    free(line);
    int wait = flush_lines(metrics) != 0;
    if (wait && !metrics->told)
        kn_warn("metrics wait in memory: cannot write %s: %s", metrics->path, strerror(errno));
    metrics->told = wait;
}

/* Events are for looking at while training: the first that cannot be written is the last. */
static void add_scalar(KnMetrics *metrics, const char *tag, int64_t step, double value)
{
    if (!metrics->board || kn_tensorboard_scalar(metrics->board, tag, step, value) == KN_OK)
        return;
    kn_warn("TensorBoard gets no more events: %s", kn_error_message());
    kn_tensorboard_close(metrics->board);
    metrics->board = NULL;
}

static json_t *list_of(const float *values, int count)
{
    json_t *list = json_array();
    for (int i = 0; i < count; i++)
        json_array_append_new(list, number((double)values[i]));
    return list;
}

void kn_metrics_step(KnMetrics *metrics, const KnStepMetrics *s)
{
    json_t *object = json_pack("{sI}", "step", (json_int_t)s->step);
    json_object_set_new(object, "loss", number(s->loss));
    json_object_set_new(object, "gradient_norm", number(s->gradient_norm));
    json_object_set_new(object, "learning_rate", number(s->learning_rate));
    json_object_set_new(object, "clips", json_integer(s->clips));
    json_object_set_new(object, "tokens", json_integer(s->tokens));
    json_object_set_new(object, "seconds", number(s->seconds));
    json_object_set_new(object, "tokens_per_second", number(s->tokens_per_second));
    json_object_set_new(object, "peak_share", number(s->peak_share));
    json_object_set_new(object, "wait_seconds", number(s->wait_seconds));
    if (s->zscore != 0)
        json_object_set_new(object, "zscore", number(s->zscore));
    if (s->fault)
        json_object_set_new(object, "fault", json_string(s->fault));
    if (s->skipped)
        json_object_set_new(object, "skipped", json_true());
    if (s->ranks)
        json_object_set_new(object, "rank_work_seconds", list_of(s->rank_work, s->ranks));
    if (s->ranks)
        json_object_set_new(object, "slowest_rank", json_integer(s->slowest_rank));
    write_line(metrics, object);
    add_scalar(metrics, "loss/train", s->step, s->loss);
    add_scalar(metrics, "gradient_norm", s->step, s->gradient_norm);
    add_scalar(metrics, "learning_rate", s->step, s->learning_rate);
    add_scalar(metrics, "tokens_per_second", s->step, s->tokens_per_second);
}

void kn_metrics_validation(KnMetrics *metrics, int64_t step, double loss)
{
    json_t *object = json_pack("{sI}", "step", (json_int_t)step);
    json_object_set_new(object, "validation_loss", number(loss));
    write_line(metrics, object);
    add_scalar(metrics, "loss/validation", step, loss);
}

void kn_metrics_checkpoint(KnMetrics *metrics, const KnCheckpointReport *report)
{
    write_line(metrics, json_pack("{sI s{sf sf sf sI}}", "step", (json_int_t)report->step, "checkpoint", "held_seconds",
                                  report->held_seconds, "copied_seconds", report->copied_seconds, "seconds",
                                  report->seconds, "bytes", (json_int_t)report->bytes));
}

int kn_metrics_rollback(KnMetrics *metrics, int64_t bad, int64_t to, const char *fault)
{
    flush_lines(metrics);
    close(metrics->file);
    metrics->file = -1;
    KN_TRY(drop_later_lines(metrics->path, to, 1));
    KN_TRY(open_file(metrics));
    write_line(metrics,
               json_pack("{sI s{sI ss}}", "step", (json_int_t)bad, "rollback", "to", (json_int_t)to, "fault", fault));
    return KN_OK;
}

int kn_metrics_close(KnMetrics *metrics)
{
    int code = KN_OK;
    if (!metrics)
        return KN_OK;
    if (kn_tensorboard_close(metrics->board) < 0)
        kn_warn("TensorBoard has not all events: %s", kn_error_message());
    if (metrics->file >= 0 && (flush_lines(metrics) != 0 || close(metrics->file) != 0))
        code = kn_fail(KN_EIO, "cannot write %s: %s", metrics->path, strerror(errno));
    kn_text_clear(&metrics->waiting);
    free(metrics->path);
    free(metrics);
    return code;
}

typedef struct Points {
    int count, capacity;
    double *values; /* x, y in turn while collecting */
} Points;

typedef struct Curves {
    Points train, validation;
} Curves;

static void add_point(Points *points, const json_t *step, const json_t *value)
{
    if (!json_is_number(value))
        return;
    KN_RESERVE(points->values, 2 * points->count + 1, points->capacity);
    points->values[2 * points->count] = (double)json_integer_value(step);
    points->values[2 * points->count++ + 1] = json_number_value(value);
}

static void collect(void *context, const char *line, json_t *object)
{
    Curves *curves = context;
    const json_t *step = json_object_get(object, "step");
    (void)line;
    add_point(&curves->train, step, json_object_get(object, "loss"));
    add_point(&curves->validation, step, json_object_get(object, "validation_loss"));
}

/* Two arrays of doubles in one allocation: x then y. */
static double *split(const Points *points)
{
    double *xy = kn_alloc(2 * (size_t)points->count * sizeof *xy);
    for (int i = 0; i < points->count; i++) {
        xy[i] = points->values[2 * i];
        xy[points->count + i] = points->values[2 * i + 1];
    }
    return xy;
}

int kn_metrics_draw(const char *run_dir)
{
    Curves curves = {0};
    char *metrics_path = kn_path_join(run_dir, "metrics.jsonl"), *picture = kn_path_join(run_dir, "loss.png");
    int code = for_each_line(metrics_path, collect, &curves);
    if (code == KN_OK && curves.train.count > 1) {
        double *train = split(&curves.train), *validation = split(&curves.validation);
        KnSeries series[] = {
            {.name = "training", .count = curves.train.count, .x = train, .y = train + curves.train.count, .smooth = 1},
            {.name = "validation",
             .count = curves.validation.count,
             .x = validation,
             .y = validation + curves.validation.count,
             .markers = 1},
        };
        KnChart chart = {.title = "Loss on velocity",
                         .subtitle = run_dir,
                         .x_label = "step",
                         .log_y = 1,
                         .series_count = curves.validation.count ? 2 : 1,
                         .series = series};
        code = kn_draw_chart(picture, &chart);
        free(train);
        free(validation);
    }
    free(curves.train.values);
    free(curves.validation.values);
    free(metrics_path);
    free(picture);
    return code;
}
