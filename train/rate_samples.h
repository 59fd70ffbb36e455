/* From timed nodes to a device's curves. */
#ifndef KN_TRAIN_RATE_SAMPLES_H
#define KN_TRAIN_RATE_SAMPLES_H

#include "core/graph/executor.h"
#include "dist/device.h"

typedef struct KnRateSample {
    char kind[32];
    int dtype;
    int64_t width;
    double size, rate;
} KnRateSample;

typedef struct KnRateSamples {
    KnRateSample *list;
    int count, capacity;
} KnRateSamples;

void kn_rate_samples_add(KnRateSamples *samples, const char *kind, int dtype, int64_t width, double size, double rate);

/* Runs the executor so many times, the prologue each time, and takes the median time of every node, times what makes
 * the sum of medians the median of sums: delays by other programs meet other nodes in every run. Adds up in *outside
 * and *nodes what runs took beyond their nodes, and how many nodes there were. */
int kn_rate_samples_run(KnRateSamples *samples, KnExecutor *executor, const KnGraph *graph, int runs, double *outside,
                        double *nodes);

/* A curve for each kind, dtype and width, of medians of samples of about one size; and one of kind `memory` through all
 * that moves bytes. Frees the samples. */
void kn_rate_samples_fit(KnRateSamples *samples, KnDevice *device);

#endif
