#include "common/rounding.h"

#include <math.h>
#include <stddef.h>

float ifl_f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 0x1fu, m = h & 0x3ffu, u;
    if (exponent == 31) {
        u = sign | 0x7f800000u | (m << 13);
    } else if (exponent > 0) {
        u = sign | ((exponent + 112) << 23) | (m << 13);
    } else { /* m * 2^-24: exact in f32, whose own subnormals lie far below */
        float f = (float)m * 0x1p-24f;
        return sign ? -f : f;
    }
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

void ifl_rounding_count_bf16(const uint16_t *values, int64_t n, ifl_rounding_stats *stats) {
    int64_t n_nonfinite = 0;
    for (int64_t i = 0; i < n; i++)
        n_nonfinite += (values[i] & 0x7f80u) == 0x7f80u;
    stats->n_values += n;
    stats->n_nonfinite += n_nonfinite;
}

void ifl_round_to_bf16(const float *in, int64_t n, uint16_t *out, ifl_rounding_stats *stats) {
    for (int64_t i = 0; i < n; i++)
        out[i] = ifl_bf16_from_f32(in[i]);
    if (!stats) return;
    ifl_rounding_count_bf16(out, n, stats);
    for (int64_t i = 0; i < n; i++) {
        float rounded = ifl_bf16_to_f32(out[i]);
        if (rounded == in[i] || isnan(in[i])) continue;
        stats->n_changed++;
        double relative = fabs((double)rounded - (double)in[i]) / fabs((double)in[i]);
        if (isfinite(relative) && relative > stats->max_relative) stats->max_relative = relative;
    }
}
