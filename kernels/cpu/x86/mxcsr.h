/* Sets and restores MXCSR. Reading it costs a few cycles, writing it some ten: write only on a
 * difference. */
#ifndef IFL_KERNELS_CPU_X86_MXCSR_H
#define IFL_KERNELS_CPU_X86_MXCSR_H

#include <stdint.h>
#include <xmmintrin.h>

#define IFL_MXCSR_FLAGS 0x3fu     /* sticky exception flags: not ours to judge */
#define IFL_MXCSR_DEFAULT 0x1f80u /* all exceptions masked, round to nearest, FTZ and DAZ off */

static inline uint32_t ifl_rounding_enter(void) {
    uint32_t saved = _mm_getcsr();
    if ((saved & ~IFL_MXCSR_FLAGS) != IFL_MXCSR_DEFAULT) _mm_setcsr(IFL_MXCSR_DEFAULT);
    return saved;
}

#define IFL_MXCSR_FLUSH 0x9fc0u /* the same, FTZ and DAZ on */

static inline uint32_t ifl_rounding_enter_flush(void) {
    uint32_t saved = _mm_getcsr();
    _mm_setcsr(IFL_MXCSR_FLUSH);
    return saved;
}

static inline void ifl_rounding_leave_flush(uint32_t saved) {
    _mm_setcsr(saved);
}

static inline void ifl_rounding_leave(uint32_t saved) {
    if ((saved & ~IFL_MXCSR_FLAGS) != IFL_MXCSR_DEFAULT) _mm_setcsr(saved);
}

#endif
