/* Written with a target for each function, not for the file: it needs no flags of its own, and
 * nothing of it runs before bench_peaks.c has seen an op table that only exists where the
 * instruction does. */
#if defined(__x86_64__)
#include "kernels/cpu/peak_x86.h"

#include "kernels/cpu/implementations.h"

#include <immintrin.h>
#include <string.h>

__attribute__((target("avx512f,avx512bf16"))) int64_t ifl_peak_avx512bf16(int64_t iterations,
                                                                          float *out) {
    enum { CHAINS = 12 }; /* latency times throughput of the instruction, and some */
    __m512 acc[CHAINS];
    const __m512bh a = (__m512bh)_mm512_set1_epi32(0x3f7f3f7f),
                   b = (__m512bh)_mm512_set1_epi32(0x38003800);
    for (int i = 0; i < CHAINS; i++)
        acc[i] = _mm512_set1_ps((float)i);
    for (int64_t n = 0; n < iterations; n++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++)
            acc[i] = _mm512_dpbf16_ps(acc[i], a, b);
    }
    __m512 sum = _mm512_setzero_ps();
    for (int i = 0; i < CHAINS; i++)
        sum = _mm512_add_ps(sum, acc[i]);
    float lanes[16];
    _mm512_storeu_ps(lanes, sum);
    *out = lanes[0];
    return iterations * CHAINS * 16 * 2 * 2;
}

typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

__attribute__((target("amx-tile,amx-bf16"))) int64_t ifl_peak_amx(int64_t iterations, float *out) {
    uint16_t operand[16 * 32];
    float result[16 * 16];
    tile_config config;
    if (ifl_amx_absent()) return 0;
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int t = 0; t < 8; t++) {
        config.row_bytes[t] = 64;
        config.rows[t] = 16;
    }
    for (int i = 0; i < 16 * 32; i++)
        operand[i] = 0x3800; /* 2^-15 */
    _tile_loadconfig(&config);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, operand, 64);
    _tile_loadd(5, operand, 64);
    _tile_loadd(6, operand, 64);
    _tile_loadd(7, operand, 64);
    for (int64_t n = 0; n < iterations; n++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, result, 64);
    _tile_release();
    *out = result[0];
    return iterations * 4 * 16 * 16 * 32 * 2;
}
#else
typedef int ifl_peak_x86_absent; /* an empty translation unit is not C */
#endif
