/* Measuring this machine as a device: rates of every op at a few sizes, by running small training passes. */
#ifndef KN_TRAIN_CALIBRATE_H
#define KN_TRAIN_CALIBRATE_H

#include "core/graph/comm.h"
#include "dist/device.h"

/* Measures for about half a minute with the present number of threads. `comm`: also what ranks exchange, all ranks
 * measuring at the same time (collective; the same device on every rank); NULL: one rank. Release with
 * kn_device_clear. */
int kn_calibrate(KnDevice *device, KnComm *comm);

#endif
