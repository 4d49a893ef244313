/* The op table for any architecture. */
#include "kernels/cpu/implementations.h"
#include "kernels/cpu/lanes_generic.h"

#define IFL_OPS_TABLE generic_table
#include "kernels/cpu/ops.inc.h"

#define IFL_PEAK_FMA ifl_peak_fma_generic
#define IFL_PEAK_READ ifl_peak_read_generic
#define IFL_PEAK_CHAINS 2 /* soft fma: wide already */
#include "kernels/cpu/peak.inc.h"

const ifl_ops *ifl_ops_generic(ifl_profile profile) {
#if !defined(__x86_64__)
    if (profile == IFL_PROFILE_BF16)
        return ifl_ops_ref(profile); /* rounding.h: nothing flushes here */
#endif
    return &generic_table[profile];
}
