/* The tables behind kernels/ops.h. A build for another architecture has no x86 ones. */
#ifndef IFL_KERNELS_CPU_IMPLEMENTATIONS_H
#define IFL_KERNELS_CPU_IMPLEMENTATIONS_H

#include "kernels/ops.h"

const ifl_ops *ifl_ops_generic(ifl_profile profile);
int64_t ifl_peak_fma_generic(int64_t iterations, float *out);
float ifl_peak_read_generic(const float *x, int64_t n);
#if defined(__x86_64__)
const ifl_ops *ifl_ops_avx2(ifl_profile profile);
const ifl_ops *ifl_ops_avx512(ifl_profile profile);
const ifl_ops *ifl_ops_avx512bf16(ifl_profile profile);
int64_t ifl_peak_fma_avx2(int64_t iterations, float *out);
float ifl_peak_read_avx2(const float *x, int64_t n);
int64_t ifl_peak_fma_avx512(int64_t iterations, float *out);
float ifl_peak_read_avx512(const float *x, int64_t n);
#endif

#endif
