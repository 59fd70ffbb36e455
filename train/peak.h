/* How fast matrix products can be on a backend, as the measure of a step. */
#ifndef KN_TRAIN_PEAK_H
#define KN_TRAIN_PEAK_H

#include "core/graph/executor.h"

/* FLOP/s of products of `dtype`, measured in some tenths of a second: on the CPU by its kernel alone, on a device by
 * products of 8192 x 8192 x 8192, of 256 where those would take long. KN_EMEMORY where they do not fit. */
int kn_measure_peak(KnBackend *backend, KnDtype dtype, double *flops);

#endif
