/* Timing what ranks exchange. */
#ifndef KN_TRAIN_CALIBRATE_EXCHANGES_H
#define KN_TRAIN_CALIBRATE_EXCHANGES_H

#include "core/graph/comm.h"
#include "train/rate_samples.h"

/* Collective. Adds samples of every kind of exchange, as wide as there are ranks, and sets the device's links and
 * overlap. With NULL or one rank there is nothing to measure: links as fast as memory. */
int kn_calibrate_exchanges(KnRateSamples *samples, KnDevice *device, KnComm *comm);

#endif
