/* Scales of 8-bit products from step to step (train.precision fp8), by "delayed scaling" (Micikevicius et al., 2022): a
 * step rounds tokens and gradients by what the largest magnitudes of the KN_FP8_WINDOW steps before it were, on any
 * rank. Where nothing is known yet, a pass finds the scale of what it rounds itself (core/ops/ops.h, kn_quantize).
 *
 * The magnitudes are saved, and the scales follow from them: a run that is resumed goes on as one that was not. */
#ifndef KN_TRAIN_FP8_H
#define KN_TRAIN_FP8_H

#include "core/graph/comm.h"
#include "core/graph/executor.h"

enum { KN_FP8_WINDOW = 16 };
#define KN_CHECKPOINT_FP8 "fp8.largest"

typedef struct KnFp8State {
    int used;       /* by this run */
    int64_t sites;  /* 0: not known yet */
    float *largest; /* [KN_FP8_WINDOW, sites], the last step's first; 0 before the run's first */
    float *table;   /* [2, sites]: what the graphs' leaf KN_FP8_LEAF is bound to */
} KnFp8State;

/* KN_EINPUT where the backend has no such products, with a sentence that begins with `what` asked for them. */
int kn_fp8_check(KnBackend *backend, const char *what);

/* Makes room for so many sites; what has been loaded of as many stays. */
void kn_fp8_state_create(KnFp8State *state, int64_t sites);
void kn_fp8_state_destroy(KnFp8State *state);
void kn_fp8_state_forget(KnFp8State *state); /* the magnitudes, as before the first step */

int kn_fp8_state_place(KnFp8State *state, KnBackend *backend); /* on the device, if there is one */
void kn_fp8_state_withdraw(KnFp8State *state, KnBackend *backend);

/* The scales that follow from the magnitudes, to the device: after loading. */
int kn_fp8_state_push(KnFp8State *state, KnBackend *backend);
/* Collective: the same after a step, whose largest magnitudes the device has. Those that are no numbers are left out.
 */
int kn_fp8_state_step(KnFp8State *state, KnComm *comm, KnBackend *backend);

#endif
