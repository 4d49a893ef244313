/* The eight tile registers of AMX, as kernels/cpu/matmul_amx.inc.h uses them. A tile's number is
 * part of the instruction, so these are macros over the numbers 0 to 7. What they compute is the
 * published text of the instructions; tests/ops/amx_emulated.c has the same names in plain C. */
#ifndef IFL_KERNELS_CPU_X86_TILES_AMX_H
#define IFL_KERNELS_CPU_X86_TILES_AMX_H

#include <immintrin.h>
#include <stdint.h>

/* The operand of LDTILECFG, 64 bytes. */
typedef struct tile_shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;

/* Compilers' tile intrinsics don't all say that they read memory. */
#define TILE_MEMORY() __asm__ volatile("" : : : "memory")

/* Loading the shapes costs some 200 cycles: once per matrix product. It also zeroes all tiles. */
#define tile_config(shapes)                                                                        \
    do {                                                                                           \
        TILE_MEMORY();                                                                             \
        _tile_loadconfig(shapes);                                                                  \
    } while (0)
/* Ends the use of tiles: a thread that keeps them has 8 KiB more to save at every switch. */
#define tile_release() _tile_release()
#define tile_zero(T) _tile_zero(T)
/* Rows of the tile, `stride` bytes apart. */
#define tile_load(T, from, stride)                                                                 \
    do {                                                                                           \
        TILE_MEMORY();                                                                             \
        _tile_loadd(T, from, stride);                                                              \
    } while (0)
#define tile_store(T, to, stride) _tile_stored(T, to, stride)
/* C += A x B by TDPBF16PS. */
#define tile_dot(C, A, B) _tile_dpbf16ps(C, A, B)

#endif
