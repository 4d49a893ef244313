/* exp and log as polynomials: the constants, and the scalar text that defines every bit.
 *
 * exp(x): x is clamped to [-104, 89] (a NaN passes), n = round(x / ln 2) by the magic constant,
 * r = x - n ln 2 in two fmas, 1 + r + r^2 q(r), then two exact-or-last multiplications by powers of
 * two, so that a subnormal result is rounded once. q: minimax for r^2 q(r) / e^r on [-0.3475,
 * 0.3475], relative error 5.3e-11. log(x): x = 2^e (1 + f) with 1 + f in [sqrt 1/2, sqrt 2); f -
 * f^2/2 + f^3 P(f) + e ln 2; P: minimax of relative error 7.6e-10. Both polynomials were fitted by
 * a Remez exchange for this file. No float is ever converted to an integer, so no input is
 * undefined. */
#ifndef IFL_KERNELS_REF_EXP_LOG_H
#define IFL_KERNELS_REF_EXP_LOG_H

#include <stdint.h>
#include <string.h>

#define IFL_EXP_MIN (-104.0f) /* exp of this and below rounds to 0 */
#define IFL_EXP_MAX 89.0f     /* exp of this and above is +inf */
#define IFL_EXP_MAGIC 0x1.8p23f
#define IFL_EXP_MAGIC_BITS 0x4b400000u
#define IFL_LOG2_E 0x1.715476p+0f
#define IFL_LN2_HI 0x1.62e4p-1f /* 15 significant bits: n * hi is exact */
#define IFL_LN2_LO 0x1.7f7d1cp-20f
#define IFL_EXP_Q0 0.5f
#define IFL_EXP_Q1 0x1.555554p-3f
#define IFL_EXP_Q2 0x1.55548cp-5f
#define IFL_EXP_Q3 0x1.111274p-7f
#define IFL_EXP_Q4 0x1.6d8eeep-10f
#define IFL_EXP_Q5 0x1.9f0716p-13f

#define IFL_LOG_P0 0x1.555548p-2f
#define IFL_LOG_P1 (-0x1.000006p-2f)
#define IFL_LOG_P2 0x1.99a4bcp-3f
#define IFL_LOG_P3 (-0x1.555c5ap-3f)
#define IFL_LOG_P4 0x1.2336e4p-3f
#define IFL_LOG_P5 (-0x1.fc1f6ap-4f)
#define IFL_LOG_P6 0x1.e6f5fcp-4f
#define IFL_LOG_P7 (-0x1.de4fa8p-4f)
#define IFL_LOG_P8 0x1.146334p-4f
#define IFL_SQRT_HALF_BITS 0x3f3504f3u

/* tanh-form GELU (Hendrycks & Gimpel 2016): sqrt(2 / pi) and the cubic's factor. */
#define IFL_GELU_A 0.7978845608f
#define IFL_GELU_B 0.044715f

static inline uint32_t ifl_bits_of_f32(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static inline float ifl_f32_of_bits(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline float ifl_exp_scalar(float x) {
    float xc = IFL_EXP_MAX < x ? IFL_EXP_MAX : x; /* comparisons let a NaN through */
    xc = IFL_EXP_MIN > xc ? IFL_EXP_MIN : xc;
    float t = __builtin_fmaf(xc, IFL_LOG2_E, IFL_EXP_MAGIC);
    float n = t - IFL_EXP_MAGIC;
    float r = __builtin_fmaf(-n, IFL_LN2_HI, xc);
    r = __builtin_fmaf(-n, IFL_LN2_LO, r);
    float q = __builtin_fmaf(IFL_EXP_Q5, r, IFL_EXP_Q4);
    q = __builtin_fmaf(q, r, IFL_EXP_Q3);
    q = __builtin_fmaf(q, r, IFL_EXP_Q2);
    q = __builtin_fmaf(q, r, IFL_EXP_Q1);
    q = __builtin_fmaf(q, r, IFL_EXP_Q0);
    float p = 1.0f + __builtin_fmaf(r * r, q, r);
    uint32_t k = ifl_bits_of_f32(t) - IFL_EXP_MAGIC_BITS; /* n as an integer, two's complement */
    uint32_t half = (k >> 1) | (k & 0x80000000u);         /* floor(n / 2) */
    float scale_a = ifl_f32_of_bits((half + 127u) << 23);
    float scale_b = ifl_f32_of_bits((k - half + 127u) << 23);
    return (p * scale_a) * scale_b;
}

static inline float ifl_log_scalar(float x) {
    uint32_t u = ifl_bits_of_f32(x);
    float bias = 0.0f;
    if (u < 0x00800000u) { /* +0 and positive subnormals: scaled into the normal range, exactly */
        u = ifl_bits_of_f32(x * 0x1p23f);
        bias = -23.0f;
    }
    /* The exponent of x relative to sqrt(1/2), as a float: the magic constant again. */
    uint32_t e_bits = (u - IFL_SQRT_HALF_BITS + (128u << 23)) >> 23;
    float e = (ifl_f32_of_bits(0x4b000000u + e_bits) - (0x1p23f + 128.0f)) + bias;
    float f = ifl_f32_of_bits(u - ((e_bits - 128u) << 23)) - 1.0f;
    float p = __builtin_fmaf(IFL_LOG_P8, f, IFL_LOG_P7);
    p = __builtin_fmaf(p, f, IFL_LOG_P6);
    p = __builtin_fmaf(p, f, IFL_LOG_P5);
    p = __builtin_fmaf(p, f, IFL_LOG_P4);
    p = __builtin_fmaf(p, f, IFL_LOG_P3);
    p = __builtin_fmaf(p, f, IFL_LOG_P2);
    p = __builtin_fmaf(p, f, IFL_LOG_P1);
    p = __builtin_fmaf(p, f, IFL_LOG_P0);
    float s = f * f;
    float y = (s * f) * p;
    y = __builtin_fmaf(e, IFL_LN2_LO, y);
    y = __builtin_fmaf(-0.5f, s, y);
    y = f + y;
    y = __builtin_fmaf(e, IFL_LN2_HI, y);
    if (x == 0.0f) return ifl_f32_of_bits(0xff800000u);
    if (!(x > 0.0f)) return ifl_f32_of_bits(0x7fc00000u);
    return x > 0x1.fffffep127f ? x : y;
}

#endif
