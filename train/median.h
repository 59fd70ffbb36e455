/* The median of measured times. */
#ifndef KN_TRAIN_MEDIAN_H
#define KN_TRAIN_MEDIAN_H

#include <stdint.h>

/* Sorts the values; of an even number, the smaller of the two in the middle: of two ranks the slow one is not the
 * measure. At least one. */
double kn_median(double *values, int64_t count);

#endif
