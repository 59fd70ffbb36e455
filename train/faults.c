/* Verdicts about steps. */
#include "train/faults.h"

#include <math.h>

/* The trend forgets as a mean over WINDOW steps does, and is believed after FIRST_JUDGED losses. */
enum { WINDOW = 100, FIRST_JUDGED = 20 };

static double zscore(const KnLossTrend *trend, double loss)
{
    double deviation = fmax(sqrt(trend->variance), 1e-6 * fabs(trend->mean));
    if (trend->count < FIRST_JUDGED || deviation == 0)
        return 0;
    return (loss - trend->mean) / deviation;
}

/* The mean and variance of all losses up to WINDOW of them, then exponential (Welford; West, 1979). */
static void add(KnLossTrend *trend, double loss)
{
    int64_t seen = trend->count + 1;
    double share = 1.0 / (double)(seen < WINDOW ? seen : WINDOW), difference = loss - trend->mean;
    trend->mean += share * difference;
    trend->variance = (1 - share) * (trend->variance + share * difference * difference);
    trend->count = seen;
}

KnFault kn_fault_of_loss(KnLossTrend *trend, const KnTrainConfig *config, double loss)
{
    KnFault fault = {.action = KN_FAULT_WARN};
    if (!isfinite(loss))
        return (KnFault){.kind = KN_FAULT_NOT_FINITE, .action = config->on_nonfinite};
    fault.zscore = zscore(trend, loss);
    if (config->spike_zscore > 0 && fault.zscore > config->spike_zscore) {
        fault.kind = KN_FAULT_SPIKE;
        fault.action = config->on_spike;
        loss = trend->mean + config->spike_zscore * (loss - trend->mean) / fault.zscore;
    }
    add(trend, loss);
    return fault;
}

void kn_fault_add_norm(KnFault *fault, const KnTrainConfig *config, double norm)
{
    if (!isfinite(norm) && fault->action == KN_FAULT_WARN)
        *fault = (KnFault){.kind = KN_FAULT_NOT_FINITE, .action = config->on_nonfinite, .zscore = fault->zscore};
}

const char *kn_fault_name(KnFaultKind kind)
{
    static const char *const names[] = {"none", "not_finite", "spike"};
    return names[kind];
}
