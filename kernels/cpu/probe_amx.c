/* The bf16 product instructions, one at a time, for kernels/probe_isa.c, which asks the CPU first.
 */
#if defined(__x86_64__)
#include "kernels/cpu/implementations.h"
#include "kernels/cpu/x86/tiles_amx.h"

void ifl_vdpbf16ps_native(float *c, const uint16_t *a, const uint16_t *b) {
    __m512 acc = _mm512_loadu_ps(c);
    acc = _mm512_dpbf16_ps(acc, (__m512bh)_mm512_loadu_si512(a), (__m512bh)_mm512_loadu_si512(b));
    _mm512_storeu_ps(c, acc);
}

void ifl_tdpbf16ps_native(float *c, const uint16_t *a, const uint16_t *b) {
    tile_shapes shapes __attribute__((aligned(64))) = {.palette = 1};
    for (int t = 0; t < 3; t++) {
        shapes.row_bytes[t] = 64;
        shapes.rows[t] = 16;
    }
    tile_config(&shapes);
    tile_load(0, c, 64);
    tile_load(1, a, 64);
    tile_load(2, b, 64);
    tile_dot(0, 1, 2);
    tile_store(0, c, 64);
    tile_release();
}
#else
typedef int ifl_probe_amx_absent; /* an empty translation unit is not C */
#endif
