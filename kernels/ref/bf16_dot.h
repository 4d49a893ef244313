/* What VDPBF16PS and TDPBF16PS are published to compute (Intel 64 and IA-32 Architectures Software
 * Developer's Manual, volume 2), in plain C: every step an f32 fused multiply-add or add, rounded
 * to nearest even, denormal operands and results replaced by zeros of their sign, whatever MXCSR
 * says. Each step is done in double, where the product is exact, and flushed by hand: the caller's
 * environment must be the default one (kernels/cpu/rounding.h). */
#ifndef IFL_KERNELS_REF_BF16_DOT_H
#define IFL_KERNELS_REF_BF16_DOT_H

#include "common/bf16.h"

#include <stdint.h>
#include <string.h>

static inline float ifl_flush_operand(float x) {
    return x < 0x1p-126f && x > -0x1p-126f ? __builtin_copysignf(0.0f, x) : x;
}

/* x, exact or rounded to odd, as an f32; zero when it is denormal after rounding to 24 bits. */
static inline float ifl_flush_result(double x) {
    const double limit = 0x1p-126 - 0x1p-151; /* half way to the next smaller 24-bit number */
    if (x < limit && x > -limit)
        return __builtin_copysignf(0.0f, (float)__builtin_copysign(1.0, x));
    return (float)x;
}

/* a * b + c rounded once: the sum in double is rounded to odd (Boldo and Melquiond 2008). */
static inline float ifl_flush_fma(float a, float b, float c) {
    double p = (double)ifl_flush_operand(a) * (double)ifl_flush_operand(b);
    double z = (double)ifl_flush_operand(c);
    double s = p + z, z_part = s - p, error = (p - (s - z_part)) + (z - z_part);
    if (error < 0.0 || error > 0.0) {
        int64_t bits;
        memcpy(&bits, &s, sizeof bits);
        if ((error < 0.0) != (s < 0.0)) bits--; /* truncated towards zero ... */
        bits |= 1;                              /* ... and marked inexact */
        memcpy(&s, &bits, sizeof s);
    }
    return ifl_flush_result(s);
}

static inline float ifl_flush_add(float a, float b) {
    return ifl_flush_result((double)ifl_flush_operand(a) + (double)ifl_flush_operand(b));
}

/* One element of TDPBF16PS: c += over n_pairs pairs, those of a side by side, those of b `b_step`
 * elements apart. */
static inline float ifl_tdpbf16ps_element(float c, const uint16_t *a, const uint16_t *b,
                                          int64_t b_step, int n_pairs) {
    float even = 0.0f, odd = 0.0f;
    for (int k = 0; k < n_pairs; k++) {
        even = ifl_flush_fma(ifl_bf16_to_f32(a[2 * k]), ifl_bf16_to_f32(b[k * b_step]), even);
        odd = ifl_flush_fma(ifl_bf16_to_f32(a[2 * k + 1]), ifl_bf16_to_f32(b[k * b_step + 1]), odd);
    }
    return ifl_flush_add(c, ifl_flush_add(even, odd));
}

/* One lane of VDPBF16PS: the upper halves first. */
static inline float ifl_vdpbf16ps_element(float c, const uint16_t a[2], const uint16_t b[2]) {
    c = ifl_flush_fma(ifl_bf16_to_f32(a[1]), ifl_bf16_to_f32(b[1]), c);
    return ifl_flush_fma(ifl_bf16_to_f32(a[0]), ifl_bf16_to_f32(b[0]), c);
}

#endif
