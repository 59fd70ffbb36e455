/* Steps that go wrong: a loss or gradient that is not finite, and a loss far above its trend.
 *
 * The trend is a running mean and variance of the loss, over all steps at first and exponential later. It is part of
 * the checkpoint, so that a resumed run judges each step as the unbroken one does. Every rank has the same loss and the
 * same gradient norm, and comes to the same verdict without asking. */
#ifndef KN_TRAIN_FAULTS_H
#define KN_TRAIN_FAULTS_H

#include "core/base/config.h"

#include <stdint.h>

typedef struct KnLossTrend {
    int64_t count; /* losses seen */
    double mean, variance;
} KnLossTrend;

typedef enum KnFaultKind { KN_FAULT_NONE, KN_FAULT_NOT_FINITE, KN_FAULT_SPIKE } KnFaultKind;

typedef struct KnFault {
    KnFaultKind kind;
    KnFaultAction action; /* KN_FAULT_WARN where there is none */
    double zscore;        /* deviations above the trend; 0 until that is known */
} KnFault;

/* Judges a step's loss before its update, and adds it to the trend (a spike as what is just none, so that a level that
 * lasts becomes the trend). */
KnFault kn_fault_of_loss(KnLossTrend *trend, const KnTrainConfig *config, double loss);

/* Judges the norm of the step's gradient; an older fault of the step stays. */
void kn_fault_add_norm(KnFault *fault, const KnTrainConfig *config, double norm);

const char *kn_fault_name(KnFaultKind kind); /* "not_finite", "spike" */

#endif
