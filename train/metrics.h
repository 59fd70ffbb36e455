/* Metrics of a run: metrics.jsonl (one object a step), TensorBoard events and the loss-curve picture.
 *
 * A resumed run keeps the lines up to its checkpoint's step and drops later ones, so that the file reads as if the run
 * had never stopped. Lines that a full disk does not take wait in memory until it does. */
#ifndef KN_TRAIN_METRICS_H
#define KN_TRAIN_METRICS_H

#include "dist/checkpoint.h"

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
    double peak_share;      /* of the measured matmul peak */
    double wait_seconds;    /* for data */
    int skipped;            /* 1: the step changed nothing */
    const char *fault;      /* what went wrong with it, by name; NULL: nothing */
    int ranks;              /* of a report on the ranks' times (train/ranks.h); 0 where this step has none */
    const float *rank_work; /* [ranks]: seconds a step that each worked and did not wait for others */
    int slowest_rank;
    double zscore; /* of the loss, in deviations above its trend; 0: not known yet */
} KnStepMetrics;

/* Opens RUN/metrics.jsonl, keeping lines of steps <= `keep_steps` (0: a new run), and a new event file. */
int kn_metrics_open(KnMetrics **metrics, const char *run_dir, int64_t keep_steps);
void kn_metrics_step(KnMetrics *metrics, const KnStepMetrics *step);
/* A line {"step", "validation_loss"}. */
void kn_metrics_validation(KnMetrics *metrics, int64_t step, double loss);
/* A line {"step", "checkpoint": {"held_seconds", "copied_seconds", "seconds", "bytes"}}. */
void kn_metrics_checkpoint(KnMetrics *metrics, const KnCheckpointReport *report);
/* Drops the lines of steps after `to`, but for those of other rollbacks, and adds {"step": bad, "rollback": {"to",
 * "fault"}}. */
int kn_metrics_rollback(KnMetrics *metrics, int64_t bad, int64_t to, const char *fault);
int kn_metrics_close(KnMetrics *metrics); /* NULL is fine */

/* Draws RUN/loss.png from RUN/metrics.jsonl; nothing when there are fewer than two steps. */
int kn_metrics_draw(const char *run_dir);

#endif
