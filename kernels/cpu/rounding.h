/* The floating-point environment of an op: round to nearest, gradual underflow, whatever the caller
 * set (another library's -ffast-math start-up code may have turned on flush-to-zero).
 * The _flush pair: denormal inputs and results are zero, as matrix instructions have it; x86 only, so
 * elsewhere the ops that want it come from kernels/ref. */
#ifndef IFL_KERNELS_CPU_ROUNDING_H
#define IFL_KERNELS_CPU_ROUNDING_H

#include <stdint.h>

#if defined(__x86_64__)
#include "kernels/cpu/x86/mxcsr.h"
#else
/* Elsewhere the default environment is the one we need; a caller that changes it is on its own. */
static inline uint32_t ifl_rounding_enter(void) {
    return 0;
}
static inline void ifl_rounding_leave(uint32_t saved) {
    (void)saved;
}
static inline uint32_t ifl_rounding_enter_flush(void) {
    return 0;
}
static inline void ifl_rounding_leave_flush(uint32_t saved) {
    (void)saved;
}
#endif

#endif
