/* The text of kernels/cpu/matmul_amx.inc.h around tiles in plain C, so that every host tests it.
 * What would fault on a real one (tiles without shapes, shapes that don't fit each other) is an
 * assertion here. */
#include "common/status.h"
#include "kernels/cpu/implementations.h"
#include "kernels/cpu/rounding.h"
#include "kernels/ref/bf16_dot.h"

#include <stdlib.h>
#include <string.h>

#define TILE_ROWS_MAX 16
#define TILE_BYTES_MAX 64

typedef struct tile_shapes { /* as in kernels/cpu/x86/tiles_amx.h */
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;

static _Thread_local tile_shapes tile_now;
static _Thread_local unsigned char tiles[8][TILE_ROWS_MAX][TILE_BYTES_MAX];

static void tile_config(const tile_shapes *s) {
    IFL_ASSERT(s->palette == 1 && s->start_row == 0);
    for (int t = 0; t < 8; t++)
        IFL_ASSERT(s->rows[t] <= TILE_ROWS_MAX && s->row_bytes[t] <= TILE_BYTES_MAX &&
                   (s->rows[t] == 0) == (s->row_bytes[t] == 0));
    tile_now = *s;
    memset(tiles, 0, sizeof tiles);
}
static void tile_release(void) {
    memset(&tile_now, 0, sizeof tile_now);
    memset(tiles, 0, sizeof tiles);
}
static void tile_must_exist(int t) {
    IFL_ASSERT(tile_now.palette == 1 && tile_now.rows[t] > 0);
}
static void tile_zero(int t) {
    tile_must_exist(t);
    memset(tiles[t], 0, sizeof tiles[t]);
}
static void tile_load(int t, const void *from, int64_t stride) {
    tile_zero(t);
    for (int r = 0; r < tile_now.rows[t]; r++)
        memcpy(tiles[t][r], (const char *)from + r * stride, tile_now.row_bytes[t]);
}
static void tile_store(int t, void *to, int64_t stride) {
    tile_must_exist(t);
    for (int r = 0; r < tile_now.rows[t]; r++)
        memcpy((char *)to + r * stride, tiles[t][r], tile_now.row_bytes[t]);
}

__attribute__((noinline)) static void tile_dot_default(int c, int a, int b) {
    uint16_t a_row[TILE_BYTES_MAX / 2], b_all[TILE_ROWS_MAX * TILE_BYTES_MAX / 2];
    float c_row[TILE_BYTES_MAX / 4];
    int n_pairs = tile_now.row_bytes[a] / 4, n_columns = tile_now.row_bytes[c] / 4;
    memcpy(b_all, tiles[b], sizeof b_all);
    for (int r = 0; r < tile_now.rows[c]; r++) {
        memcpy(a_row, tiles[a][r], sizeof a_row);
        memcpy(c_row, tiles[c][r], sizeof c_row);
        for (int n = 0; n < n_columns; n++)
            c_row[n] =
                ifl_tdpbf16ps_element(c_row[n], a_row, b_all + 2 * n, TILE_BYTES_MAX / 2, n_pairs);
        memcpy(tiles[c][r], c_row, sizeof c_row);
    }
}
/* The instruction does not look at MXCSR; our arithmetic does. */
static void tile_dot(int c, int a, int b) {
    tile_must_exist(c);
    IFL_ASSERT(tile_now.rows[c] == tile_now.rows[a] &&
               tile_now.row_bytes[c] == tile_now.row_bytes[b] &&
               tile_now.row_bytes[a] == 4 * tile_now.rows[b]);
    uint32_t saved = ifl_rounding_enter();
    tile_dot_default(c, a, b);
    ifl_rounding_leave(saved);
}

#include "kernels/cpu/matmul_amx.inc.h"

/* All but matmul is the generic text's. */
const ifl_ops *testing_ops_amx_emulated(void);
const ifl_ops *testing_ops_amx_emulated(void) {
    static ifl_ops table;
    table = *ifl_ops_generic(IFL_PROFILE_BF16);
    table.name = "amx-emulated";
    table.matmul = matmul_amx_body;
    return &table;
}
