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
const ifl_ops *ifl_ops_amx(ifl_profile profile);

/* NULL when this process may use AMX tiles, which it then has asked the kernel for; else why not. A
 * static text. */
const char *ifl_amx_absent(void);

/* One instruction each: see ifl_isa_fn in kernels/probe_isa.h. */
void ifl_vdpbf16ps_native(float *c, const uint16_t *a, const uint16_t *b);
void ifl_tdpbf16ps_native(float *c, const uint16_t *a, const uint16_t *b);

int64_t ifl_peak_fma_avx2(int64_t iterations, float *out);
float ifl_peak_read_avx2(const float *x, int64_t n);
int64_t ifl_peak_fma_avx512(int64_t iterations, float *out);
float ifl_peak_read_avx512(const float *x, int64_t n);
#endif

#endif
