/* The median of measured times. */
#ifndef KN_TRAIN_MEDIAN_H
#define KN_TRAIN_MEDIAN_H

#include <stdint.h>

/* Sorts the values; of an even number, the larger of the two in the middle. At least one. */
double kn_median(double *values, int64_t count);

#endif
