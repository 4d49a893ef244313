/* The op table for any architecture. */
#include "kernels/cpu/implementations.h"
#include "kernels/cpu/lanes_generic.h"

#define IFL_OPS_TABLE generic_table
#include "kernels/cpu/ops.inc.h"

#define IFL_PEAK_FMA ifl_peak_fma_generic
#define IFL_PEAK_READ ifl_peak_read_generic
#define IFL_PEAK_CHAINS 2 /* soft fma: wide already */
#include "kernels/cpu/peak.inc.h"

#if defined(__x86_64__)
const ifl_ops *ifl_ops_generic(ifl_profile profile) {
    return &generic_table[profile];
}
#else
/* Nothing flushes here (rounding.h): the two ops that need it are the reference's, which flush by
 * hand. */
static ifl_ops generic_bf16;

__attribute__((constructor)) static void generic_bf16_make(void) {
    generic_bf16 = generic_table[IFL_PROFILE_BF16];
    generic_bf16.matmul = ifl_ops_ref(IFL_PROFILE_BF16)->matmul;
    generic_bf16.attention = ifl_ops_ref(IFL_PROFILE_BF16)->attention;
}

const ifl_ops *ifl_ops_generic(ifl_profile profile) {
    return profile == IFL_PROFILE_BF16 ? &generic_bf16 : &generic_table[profile];
}
#endif
