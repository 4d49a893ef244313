/* The op table for AVX2 with FMA. Nothing here may run before ops.c has asked the CPU. */
#if defined(__x86_64__)
#include "kernels/cpu/implementations.h"
#include "kernels/cpu/x86/lanes_avx2.h"

#define IFL_OPS_TABLE avx2_table
#include "kernels/cpu/ops.inc.h"

#define IFL_PEAK_FMA ifl_peak_fma_avx2
#define IFL_PEAK_READ ifl_peak_read_avx2
#define IFL_PEAK_CHAINS 6 /* 12 registers */
#include "kernels/cpu/peak.inc.h"

const ifl_ops *ifl_ops_avx2(ifl_profile profile) {
    return &avx2_table[profile];
}
#else
typedef int ifl_ops_avx2_absent; /* an empty translation unit is not C */
#endif
