/* Conversions of stored weights: f16 and f32 to bf16, with an account of what rounding changed. */
#ifndef IFL_COMMON_ROUNDING_H
#define IFL_COMMON_ROUNDING_H

#include "common/bf16.h"

/* Adds up over calls; zero-initialise. */
typedef struct ifl_rounding_stats {
    int64_t n_values;
    int64_t n_changed;   /* values that are no bf16 values */
    int64_t n_nonfinite; /* NaN or infinite after rounding */
    double max_relative; /* largest |rounded - value| / |value| over finite values */
} ifl_rounding_stats;

float ifl_f16_to_f32(uint16_t h); /* exact; subnormals, infinities and NaN payloads kept */

/* Round to nearest even. `stats` may be NULL. */
void ifl_round_to_bf16(const float *in, int64_t n, uint16_t *out, ifl_rounding_stats *stats);

/* Counts values that are bf16 already. */
void ifl_rounding_count_bf16(const uint16_t *values, int64_t n, ifl_rounding_stats *stats);

#endif
