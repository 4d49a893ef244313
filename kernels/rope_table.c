#include "kernels/rope_table.h"

/* libm's sin, cos, exp and log may differ between hosts in the last bit; these use only IEEE
 * operations (add, multiply, divide, no contraction), so that the table is the same everywhere. */

static const double two_pi = 6.283185307179586476925286766559;

/* ln(x) for x > 0: x = m * 2^e with m in [sqrt(1/2), sqrt(2)), then the atanh series in
 * (m-1)/(m+1). */
static double table_log(double x) {
    int e = 0;
    while (x >= 1.4142135623730951) {
        x *= 0.5;
        e++;
    }
    while (x < 0.70710678118654757) {
        x *= 2.0;
        e--;
    }
    double t = (x - 1.0) / (x + 1.0);
    double t2 = t * t;
    double sum = 0.0;
    for (int k = 41; k >= 1; k -= 2)
        sum = sum * t2 + 1.0 / k;
    return 2.0 * t * sum + e * 0.693147180559945309417232121458;
}

/* e^x for moderate |x|: 2^n * e^r, |r| <= ln(2)/2, by its Taylor series. */
static double table_exp(double x) {
    double ln2 = 0.693147180559945309417232121458;
    int n = (int)(x / ln2 + (x >= 0 ? 0.5 : -0.5));
    double r = x - n * ln2;
    double sum = 1.0;
    for (int k = 22; k >= 1; k--)
        sum = 1.0 + r * sum / k;
    double scale = 1.0;
    for (int i = 0; i < (n < 0 ? -n : n); i++)
        scale *= 2.0;
    return n < 0 ? sum / scale : sum * scale;
}

/* sin and cos by reduction to [-pi/4, pi/4] (pi/2 in three parts, exact products for |x| < 2^20)
 * and Taylor series; absolute error below 1e-14 for every position a table can have. */
static void table_sincos(double x, double *s, double *c) {
    const double pio2_1 = 1.57079632673412561417e+00, pio2_2 = 6.07710050630396597660e-11,
                 pio2_3 = 2.02226624879595063154e-21;
    double fn = x * (4.0 / two_pi);
    int64_t n = (int64_t)(fn + (fn >= 0 ? 0.5 : -0.5));
    double dn = (double)n;
    double r = ((x - dn * pio2_1) - dn * pio2_2) - dn * pio2_3;
    double r2 = r * r;
    double sn = 0.0, cs = 0.0;
    for (int k = 10; k >= 1; k--)
        sn = r2 / ((2 * k) * (2 * k + 1)) * (1.0 - sn);
    for (int k = 10; k >= 1; k--)
        cs = r2 / ((2 * k - 1) * (2 * k)) * (1.0 - cs);
    sn = r * (1.0 - sn);
    cs = 1.0 - cs;
    switch ((int)(n & 3)) {
    case 0:
        *s = sn, *c = cs;
        break;
    case 1:
        *s = cs, *c = -sn;
        break;
    case 2:
        *s = -sn, *c = -cs;
        break;
    default:
        *s = -cs, *c = sn;
        break;
    }
}

static double table_clamp01(double x) {
    return x < 0.0 ? 0.0 : x > 1.0 ? 1.0 : x;
}

static double rope_frequency(const ifl_rope *rope, int32_t head_dim, int32_t i) {
    double f = table_exp(-(2.0 * i / head_dim) * table_log(rope->theta));
    switch (rope->kind) {
    case IFL_ROPE_LINEAR:
        return f / rope->factor;
    case IFL_ROPE_LLAMA3: {
        double wavelength = two_pi / f;
        double low = rope->original_positions / rope->low_freq_factor;
        double high = rope->original_positions / rope->high_freq_factor;
        if (wavelength > low) return f / rope->factor;
        if (wavelength < high) return f;
        double smooth = (rope->original_positions / wavelength - rope->low_freq_factor) /
                        (rope->high_freq_factor - rope->low_freq_factor);
        return (1.0 - smooth) * (f / rope->factor) + smooth * f;
    }
    case IFL_ROPE_YARN: {
        /* Dimensions that turn more than beta_fast times over the original context keep their
         * frequency, those below beta_slow are interpolated, a linear ramp lies between. */
        double log_theta = table_log(rope->theta);
        double lo = head_dim * table_log(rope->original_positions / (rope->beta_fast * two_pi)) /
                    (2.0 * log_theta);
        double hi = head_dim * table_log(rope->original_positions / (rope->beta_slow * two_pi)) /
                    (2.0 * log_theta);
        int64_t low = (int64_t)lo - (lo < (double)(int64_t)lo);
        int64_t high = (int64_t)hi + (hi > (double)(int64_t)hi);
        if (low < 0) low = 0;
        if (high > head_dim - 1) high = head_dim - 1;
        double width = high > low ? (double)(high - low) : 0.001;
        double ramp = table_clamp01(((double)i - (double)low) / width);
        return f / rope->factor * ramp + f * (1.0 - ramp);
    }
    default:
        return f;
    }
}

void ifl_rope_table(float *cos_out, float *sin_out, const ifl_rope *rope, int32_t head_dim,
                    int32_t n_positions) {
    int32_t half = head_dim / 2;
    double scale = rope->kind == IFL_ROPE_YARN ? rope->attention_factor : 1.0;
    for (int32_t i = 0; i < half; i++) {
        /* Hugging Face keeps the frequency in f32 and multiplies it by the position in f32.
         * Rounding the frequency and the angle at the same points keeps far positions comparable
         * with it. */
        double f = (double)(float)rope_frequency(rope, head_dim, i);
        for (int32_t t = 0; t < n_positions; t++) {
            double s, c;
            table_sincos((double)(float)(t * f), &s, &c);
            cos_out[(int64_t)t * half + i] = (float)(c * scale);
            sin_out[(int64_t)t * half + i] = (float)(s * scale);
        }
    }
}
