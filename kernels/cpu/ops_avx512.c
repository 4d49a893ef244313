/* The op table for AVX-512 (F, BW, VL, DQ). Nothing here may run before ops.c has asked the CPU. */
#if defined(__x86_64__)
#include "kernels/cpu/implementations.h"
#include "kernels/cpu/x86/lanes_avx512.h"

#define IFL_OPS_TABLE avx512_table
#include "kernels/cpu/ops.inc.h"

#define IFL_PEAK_FMA ifl_peak_fma_avx512
#define IFL_PEAK_READ ifl_peak_read_avx512
#define IFL_PEAK_CHAINS 12 /* 12 registers */
#include "kernels/cpu/peak.inc.h"

const ifl_ops *ifl_ops_avx512(ifl_profile profile) {
    return &avx512_table[profile];
}
#else
typedef int ifl_ops_avx512_absent; /* an empty translation unit is not C */
#endif
