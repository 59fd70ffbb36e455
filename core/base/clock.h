/* The clock for measuring: seconds since some moment, never set back. */
#ifndef KN_BASE_CLOCK_H
#define KN_BASE_CLOCK_H

double kn_seconds_now(void);

#endif
