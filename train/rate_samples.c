/* Timing nodes, grouping the times, medians. */
#include "train/rate_samples.h"

#include "core/base/clock.h"
#include "core/base/error.h"
#include "train/median.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double same_size = 1.25; /* sizes nearer than this factor make one point */

void kn_rate_samples_add(KnRateSamples *samples, const char *kind, int dtype, int64_t width, double size, double rate)
{
    KN_RESERVE(samples->list, samples->count, samples->capacity);
    KnRateSample *sample = &samples->list[samples->count++];
    *sample = (KnRateSample){.dtype = dtype, .width = width, .size = size, .rate = rate};
    snprintf(sample->kind, sizeof sample->kind, "%s", kind);
}

/* --- Timing ------------------------------------------------------------------------------------------------------- */

static void add_node(KnRateSamples *samples, const KnNode *node, double seconds)
{
    KnNodeWork w = kn_node_work(node);
    if (w.work <= 0 || seconds <= 0)
        return;
    kn_rate_samples_add(samples, w.kind, (int)w.dtype, w.width, w.size, w.work / seconds);
    if (w.time == KN_TIME_MEMORY)
        kn_rate_samples_add(samples, "memory", KN_DTYPE_COUNT, 0, w.size, w.work / seconds);
}

/* One run after another: each node's time into seconds[node * runs + run], the sum over nodes into totals[run]. */
static int time_runs(KnExecutor *executor, int count, int runs, double *seconds, double *totals, double *outside)
{
    double *before = kn_alloc((size_t)count * sizeof *before);
    int code = KN_OK;
    for (int run = -1; run < runs && code == KN_OK; run++) { /* the first one warms up */
        double start = kn_seconds_now();
        memcpy(before, kn_executor_node_seconds(executor), (size_t)count * sizeof *before);
        kn_executor_parameters_changed(executor);
        code = kn_executor_run(executor);
        for (int i = 0; i < count && run >= 0; i++) {
            seconds[i * runs + run] = kn_executor_node_seconds(executor)[i] - before[i];
            totals[run] += seconds[i * runs + run];
        }
        *outside += run >= 0 ? kn_seconds_now() - start - totals[run] : 0;
    }
    free(before);
    return code;
}

int kn_rate_samples_run(KnRateSamples *samples, KnExecutor *executor, const KnGraph *graph, int runs, double *outside,
                        double *nodes)
{
    int count = graph->node_count;
    double *seconds = kn_alloc((size_t)count * (size_t)runs * sizeof *seconds), sum = 0;
    double *totals = kn_alloc((size_t)runs * sizeof *totals);
    kn_executor_time_nodes(executor);
    int code = time_runs(executor, count, runs, seconds, totals, outside);
    *nodes += count * runs;
    for (int i = 0; i < count; i++)
        sum += kn_median(seconds + i * runs, runs);
    double usual = sum > 0 ? kn_median(totals, runs) / sum : 1;
    for (int i = 0; i < count && code == KN_OK; i++)
        add_node(samples, graph->nodes[i], usual * seconds[i * runs + runs / 2]);
    free(seconds);
    free(totals);
    return code;
}

/* --- Curves ------------------------------------------------------------------------------------------------------- */

static int compare_samples(const void *left, const void *right)
{
    const KnRateSample *a = left, *b = right;
    int kind = strcmp(a->kind, b->kind);
    if (kind)
        return kind;
    if (a->dtype != b->dtype)
        return a->dtype - b->dtype;
    if (a->width != b->width)
        return a->width < b->width ? -1 : 1;
    return a->size < b->size ? -1 : a->size > b->size;
}

static int same_curve(const KnRateSample *a, const KnRateSample *b)
{
    return !strcmp(a->kind, b->kind) && a->dtype == b->dtype && a->width == b->width;
}

/* Samples [first, last) are of one curve and about one size. */
static void add_point(KnRate *rate, const KnRateSample *samples, int first, int last)
{
    double *rates = kn_alloc((size_t)(last - first) * sizeof *rates);
    for (int i = first; i < last; i++)
        rates[i - first] = samples[i].rate;
    if (rate->count < KN_RATE_POINTS)
        rate->points[rate->count++] =
            (KnRatePoint){samples[(first + last - 1) / 2].size, kn_median(rates, last - first)};
    free(rates);
}

void kn_rate_samples_fit(KnRateSamples *samples, KnDevice *device)
{
    const KnRateSample *list = samples->list;
    qsort(samples->list, (size_t)samples->count, sizeof *list, compare_samples);
    KnRate *rate = NULL;
    for (int first = 0, last; first < samples->count; first = last) {
        if (first == 0 || !same_curve(&list[first - 1], &list[first]))
            rate = kn_device_add_rate(device, list[first].kind, list[first].dtype, list[first].width);
        last = first + 1;
        while (last < samples->count && same_curve(&list[first], &list[last]) &&
               list[last].size < same_size * list[first].size)
            last++;
        add_point(rate, list, first, last);
    }
    free(samples->list);
    *samples = (KnRateSamples){0};
}
