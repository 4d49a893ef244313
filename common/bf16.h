/* bf16 values as the upper 16 bits of an f32. */
#ifndef IFL_COMMON_BF16_H
#define IFL_COMMON_BF16_H

#include <stdint.h>
#include <string.h>

static inline float ifl_bf16_to_f32(uint16_t b) {
    uint32_t u = (uint32_t)b << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* Round to nearest even; NaN becomes the canonical 0x7fc0. */
static inline uint16_t ifl_bf16_from_f32(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

#endif
