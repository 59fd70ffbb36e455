/* Appending metrics, and drawing them. */
#include "train/metrics.h"

#include "core/base/draw.h"
#include "core/base/error.h"
#include "core/base/file.h"
#include "core/base/memory.h"
#include "train/tensorboard.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct KnMetrics {
    FILE *file;
    char *path;
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
    KnText text;
} Kept;

static void keep_line(void *context, const char *line, json_t *object)
{
    Kept *kept = context;
    if (json_integer_value(json_object_get(object, "step")) <= kept->steps)
        kn_text_appendf(&kept->text, "%s\n", line);
}

static int drop_later_lines(const char *path, int64_t steps)
{
    Kept kept = {.steps = steps};
    if (steps > 0 && kn_file_exists(path))
        KN_TRY(for_each_line(path, keep_line, &kept));
    int code = kn_file_write(path, kept.text.bytes ? kept.text.bytes : "", kept.text.length);
    kn_text_clear(&kept.text);
    return code;
}

int kn_metrics_open(KnMetrics **metrics, const char *run_dir, int64_t keep_steps)
{
    KnMetrics *made = kn_alloc(sizeof *made);
    *metrics = made;
    made->path = kn_path_join(run_dir, "metrics.jsonl");
    KN_TRY(drop_later_lines(made->path, keep_steps));
    made->file = fopen(made->path, "a");
    if (!made->file)
        return kn_fail(KN_EIO, "cannot write %s: %s", made->path, strerror(errno));
    return kn_tensorboard_open(&made->board, run_dir);
}

/* JSON has no NaN: a value that is not finite becomes null. */
static json_t *number(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

static int write_line(KnMetrics *metrics, json_t *object)
{
    char *line = json_dumps(object, JSON_COMPACT | JSON_PRESERVE_ORDER);
    json_decref(object);
    int bad = fprintf(metrics->file, "%s\n", line) < 0 || fflush(metrics->file) != 0;
    free(line);
    return bad ? kn_fail(KN_EIO, "cannot write %s: %s", metrics->path, strerror(errno)) : KN_OK;
}

int kn_metrics_step(KnMetrics *metrics, const KnStepMetrics *s)
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
    if (s->skipped)
        json_object_set_new(object, "skipped", json_true());
    KN_TRY(write_line(metrics, object));
    KN_TRY(kn_tensorboard_scalar(metrics->board, "loss/train", s->step, s->loss));
    KN_TRY(kn_tensorboard_scalar(metrics->board, "gradient_norm", s->step, s->gradient_norm));
    KN_TRY(kn_tensorboard_scalar(metrics->board, "learning_rate", s->step, s->learning_rate));
    return kn_tensorboard_scalar(metrics->board, "tokens_per_second", s->step, s->tokens_per_second);
}

int kn_metrics_validation(KnMetrics *metrics, int64_t step, double loss)
{
    json_t *object = json_pack("{sI}", "step", (json_int_t)step);
    json_object_set_new(object, "validation_loss", number(loss));
    KN_TRY(write_line(metrics, object));
    return kn_tensorboard_scalar(metrics->board, "loss/validation", step, loss);
}

int kn_metrics_close(KnMetrics *metrics)
{
    int code = KN_OK;
    if (!metrics)
        return KN_OK;
    if (metrics->file && fclose(metrics->file) != 0)
        code = kn_fail(KN_EIO, "cannot write %s: %s", metrics->path, strerror(errno));
    int board = kn_tensorboard_close(metrics->board);
    free(metrics->path);
    free(metrics);
    return code < 0 ? code : board;
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
