/* The yardsticks of instructions that only profile `bf16` uses (kernels/cpu/peak.inc.h has the
 * others). */
#ifndef IFL_KERNELS_CPU_PEAK_X86_H
#define IFL_KERNELS_CPU_PEAK_X86_H

#include <stdint.h>

#if defined(__x86_64__)
/* Twelve independent chains of AVX-512's product of bf16 pairs; returns the FLOP done. */
int64_t ifl_peak_avx512bf16(int64_t iterations, float *out);
/* Four independent tiles of AMX's product; asks the kernel for the tile registers by itself. 0 FLOP
 * when it refuses. */
int64_t ifl_peak_amx(int64_t iterations, float *out);
#endif

#endif
