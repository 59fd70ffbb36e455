/* Signals that ask for a clean end: SIGTERM, SIGUSR1 (what Slurm is told to send before the time limit) and SIGINT.
 *
 * The handler only sets a flag; loops look at it between micro-batches, all ranks agree by kn_comm_stop_agree
 * (dist/comm.h), save, and end. A second SIGINT ends the process at once, as usual. */
#ifndef KN_DIST_SIGNALS_H
#define KN_DIST_SIGNALS_H

void kn_signals_install(void);

/* The number of the signal that asked this process to stop, or 0. */
int kn_stop_requested(void);

/* "SIGTERM", ... for sentences. */
const char *kn_signal_name(int number);

#endif
