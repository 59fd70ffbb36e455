/* Sorting and taking the middle. */
#include "train/median.h"

#include <stdlib.h>

static int by_size(const void *left, const void *right)
{
    const double *a = left, *b = right;
    return *a < *b ? -1 : *a > *b;
}

double kn_median(double *values, int64_t count)
{
    qsort(values, (size_t)count, sizeof *values, by_size);
    return values[(count - 1) / 2];
}
