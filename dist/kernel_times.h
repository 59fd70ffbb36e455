/* The kernels behind a simulated run: for each name and shape how many, how long, and how near to what the device can
 * do. */
#ifndef KN_DIST_KERNEL_TIMES_H
#define KN_DIST_KERNEL_TIMES_H

#include "dist/device.h"

typedef struct KnKernelTime {
    char name[32], shape[64];
    KnTimeKind time;
    double count, seconds;
    double work;    /* FLOP, or of kernels that are bound by memory the bytes that they move */
    double fastest; /* seconds that the work would take at the device's limit; 0: there is none */
} KnKernelTime;

typedef struct KnKernelTimes {
    KnKernelTime *rows; /* in the order in which they first came */
    int count, capacity;
    double moved, least; /* bytes of all that is bound by memory, and as many if each node moved each operand once */
} KnKernelTimes;

/* How long a node takes, by the kernels of `backend` (which may say nothing of them); noted in `times` where that is
 * not NULL. */
double kn_node_seconds(const KnNode *node, const KnBackend *backend, const KnDevice *device, KnTimeKind *kind,
                       KnKernelTimes *times);

void kn_kernel_times_add(KnKernelTimes *to, const KnKernelTimes *from, double factor);
void kn_kernel_times_sort(KnKernelTimes *times); /* the longest first */
void kn_kernel_times_clear(KnKernelTimes *times);

#endif
