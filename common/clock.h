/* Time. Deadlines and leases use the monotonic clock, so a wall-clock jump moves none of them. */
#ifndef IFL_COMMON_CLOCK_H
#define IFL_COMMON_CLOCK_H

#include <stdint.h>

int64_t ifl_clock_ns(void);          /* monotonic, nanoseconds */
int64_t ifl_clock_thread_ns(void);   /* CPU time of the calling thread, nanoseconds */
static inline double ifl_clock_s(void) { return (double)ifl_clock_ns() * 1e-9; }
int64_t ifl_clock_wall_ms(void);     /* Unix time, milliseconds; for people only */
void ifl_sleep_ms(int64_t ms);

#endif
