/* Metrics of a run: metrics.jsonl (one object a step), TensorBoard events and the loss-curve picture.
 *
 * A resumed run keeps the lines up to its checkpoint's step and drops later ones, so that the file reads as if the run
 * had never stopped. */
#ifndef KN_TRAIN_METRICS_H
#define KN_TRAIN_METRICS_H

#include <stdint.h>

typedef struct KnMetrics KnMetrics;

typedef struct KnStepMetrics {
    int64_t step;         /* counted from 1: steps done */
    double loss;          /* on velocity, mean over denoised values */
    double gradient_norm; /* before clipping */
    double learning_rate;
    int64_t clips, tokens; /* seen in this step, over all ranks */
    double seconds;
    double tokens_per_second;
    double peak_share;   /* of the measured matmul peak */
    double wait_seconds; /* for data */
    int skipped;         /* 1: the gradient was not finite and the step changed nothing */
} KnStepMetrics;

/* Opens RUN/metrics.jsonl, keeping lines of steps <= `keep_steps` (0: a new run), and a new event file. */
int kn_metrics_open(KnMetrics **metrics, const char *run_dir, int64_t keep_steps);
int kn_metrics_step(KnMetrics *metrics, const KnStepMetrics *step);
/* A line {"step", "validation_loss"}. */
int kn_metrics_validation(KnMetrics *metrics, int64_t step, double loss);
int kn_metrics_close(KnMetrics *metrics); /* NULL is fine */

/* Draws RUN/loss.png from RUN/metrics.jsonl; nothing when there are fewer than two steps. */
int kn_metrics_draw(const char *run_dir);

#endif
