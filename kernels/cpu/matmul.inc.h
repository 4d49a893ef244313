/* Matrix products: micro-tiles of up to IFL_TILE_ROWS rows by C x 16 columns held in registers.
 *
 * Every output is one ascending-k chain. A chain may rest in memory between blocks of k (its f32
 * value is the whole state), so blocking over k changes no bits; neither does the tile's shape.
 * - few rows: bf16 weights are widened in registers, straight from the panel (bandwidth-bound);
 * - many rows: a block of A is copied dense for L2, a block of a panel is widened into a tile that
 * stays in L1; every row of the block passes over the tile. matmul_f32 does the same with B in f32.
 */

#define MATMUL_K_DIRECT 512 /* k-block of the direct path: 32 KiB of a bf16 panel */
#define MATMUL_K_TILE 256   /* k-block of a widened tile: 16 KiB per 16 columns */
#define MATMUL_A_ROWS 192   /* rows of A copied at a time: 192 KiB */
#define MATMUL_AHEAD 1024   /* bytes, where two panels are walked at once */

/* y[r, c] over R rows and C lanes of columns; `columns` of them are real. Accumulators start at
 * zero, or at what y holds when `resume`. */
#define MATMUL_TILE_BEGIN(R, C)                                                                    \
    lanes acc[R][C];                                                                               \
    _Pragma("GCC unroll 16") for (int r = 0; r < (R); r++) {                                       \
        _Pragma("GCC unroll 4") for (int c = 0; c < (C); c++) {                                    \
            if (!resume)                                                                           \
                acc[r][c] = lanes_zero();                                                          \
            else if (columns >= (c + 1) * 16)                                                      \
                acc[r][c] = lanes_load(y + r * ldy + c * 16);                                      \
            else                                                                                   \
                acc[r][c] =                                                                        \
                    lanes_load_n(y + r * ldy + c * 16, columns > c * 16 ? columns - c * 16 : 0);   \
        }                                                                                          \
    }
/* acc[r][c] += A * lanes of B, for one k. */
#define MATMUL_TILE_STEP(R, C, A, LOAD_B)                                                          \
    _Pragma("GCC unroll 4") for (int c = 0; c < (C); c++) {                                        \
        lanes bv = LOAD_B;                                                                         \
        _Pragma("GCC unroll 16") for (int r = 0; r < (R); r++)                                     \
            lanes_fma_into(&acc[r][c], lanes_set(A), bv);                                          \
    }
#define MATMUL_TILE_END(R, C)                                                                      \
    _Pragma("GCC unroll 16") for (int r = 0; r < (R); r++) {                                       \
        _Pragma("GCC unroll 4") for (int c = 0; c < (C); c++) {                                    \
            if (columns >= (c + 1) * 16)                                                           \
                lanes_store(y + r * ldy + c * 16, acc[r][c]);                                      \
            else if (columns > c * 16)                                                             \
                lanes_store_n(y + r * ldy + c * 16, acc[r][c], columns - c * 16);                  \
        }                                                                                          \
    }

/* Asks for the lines of both panels a little further on: their two streams alone don't fill memory,
 * as the hardware begins anew in each page of 4 KiB. Past their ends lie the next two. */
#define MATMUL_FETCH_BOTH(b, b_panel, k_left)                                                      \
    do {                                                                                           \
        const uint16_t *next = (b) + MATMUL_AHEAD / 2;                                             \
        if ((k_left)*IFL_PANEL <= MATMUL_AHEAD / 2) next += (b_panel);                             \
        for (int line = 0; line < 2; line++) {                                                     \
            __builtin_prefetch(next + line * 32, 0, 2);                                            \
            __builtin_prefetch(next + (b_panel) + line * 32, 0, 2);                                \
        }                                                                                          \
    } while (0)

/* Direct: bf16 panels, rows of x contiguous in k; lane group c starts at b + (c / 2) * b_panel + (c
 * % 2) * 32. One function per row count, for its own register allocation. While it computes it asks
 * for what `ahead` points at, ahead_step bytes further per k, or, over two panels, for what follows
 * in them. */
#define MATMUL_DIRECT(R)                                                                           \
    BODY void matmul_direct_##R(float *y, int64_t ldy, const float *a, int64_t a_row,              \
                                const uint16_t *b, int64_t b_panel, int64_t k, int64_t columns,    \
                                bool resume, uintptr_t ahead, int64_t ahead_step) {                \
        enum { C = IFL_DIRECT_COLS(R) };                                                           \
        int64_t kk = 0;                                                                            \
        MATMUL_TILE_BEGIN(R, C)                                                                    \
        for (; kk + IFL_UNROLL <= k; kk += IFL_UNROLL) {                                           \
            _Pragma("GCC unroll 4") for (int u = 0; u < IFL_UNROLL; u += 2, b += 2 * IFL_PANEL) {  \
                if (C > 2)                                                                         \
                    MATMUL_FETCH_BOTH(b, b_panel, k - kk - u);                                     \
                else                                                                               \
                    __builtin_prefetch((const void *)ahead, 0, 2);                                 \
                MATMUL_TILE_STEP(R, C, a[r * a_row + kk + u],                                      \
                                 lanes_load_even(b + (c / 2) * b_panel + (c % 2) * 32))            \
                if (C == 2)                                                                        \
                    __builtin_prefetch((const void *)(ahead + (uintptr_t)ahead_step), 0, 2);       \
                MATMUL_TILE_STEP(R, C, a[r * a_row + kk + u + 1],                                  \
                                 lanes_load_odd(b + (c / 2) * b_panel + (c % 2) * 32))             \
                ahead += 2 * (uintptr_t)ahead_step;                                                \
            }                                                                                      \
        }                                                                                          \
        for (; kk + 2 <= k; kk += 2, b += 2 * IFL_PANEL) {                                         \
            MATMUL_TILE_STEP(R, C, a[r * a_row + kk],                                              \
                             lanes_load_even(b + (c / 2) * b_panel + (c % 2) * 32))                \
            MATMUL_TILE_STEP(R, C, a[r * a_row + kk + 1],                                          \
                             lanes_load_odd(b + (c / 2) * b_panel + (c % 2) * 32))                 \
        }                                                                                          \
        if (kk < k)                                                                                \
            MATMUL_TILE_STEP(R, C, a[r * a_row + kk],                                              \
                             lanes_load_even(b + (c / 2) * b_panel + (c % 2) * 32))                \
        MATMUL_TILE_END(R, C)                                                                      \
    }
IFL_TILE_CASES(MATMUL_DIRECT)

/* f32 tiles or panels. Wide: rows of A contiguous in k. Packed: A in [k][R]. */
#define MATMUL_F32(R)                                                                              \
    BODY void matmul_wide_##R(float *y, int64_t ldy, const float *a, int64_t a_row,                \
                              const float *b, int64_t b_step, int64_t k, int64_t columns,          \
                              bool resume) {                                                       \
        int64_t kk = 0;                                                                            \
        MATMUL_TILE_BEGIN(R, IFL_TILE_COLS)                                                        \
        for (; kk + IFL_UNROLL <= k; kk += IFL_UNROLL) {                                           \
            _Pragma("GCC unroll 8") for (int u = 0; u < IFL_UNROLL; u++, b += b_step) {            \
                MATMUL_TILE_STEP(R, IFL_TILE_COLS, a[r * a_row + kk + u], lanes_load(b + c * 16))  \
            }                                                                                      \
        }                                                                                          \
        for (; kk < k; kk++, b += b_step)                                                          \
            MATMUL_TILE_STEP(R, IFL_TILE_COLS, a[r * a_row + kk], lanes_load(b + c * 16))          \
        MATMUL_TILE_END(R, IFL_TILE_COLS)                                                          \
    }                                                                                              \
    BODY void matmul_packed_##R(float *y, int64_t ldy, const float *a, int64_t stride,             \
                                const float *b, int64_t b_step, int64_t k, int64_t columns,        \
                                bool resume) {                                                     \
        (void)stride;                                                                              \
        MATMUL_TILE_BEGIN(R, IFL_TILE_COLS)                                                        \
        int64_t kk = 0;                                                                            \
        for (; kk + IFL_UNROLL <= k; kk += IFL_UNROLL, a += IFL_UNROLL * (R)) {                    \
            _Pragma("GCC unroll 8") for (int u = 0; u < IFL_UNROLL; u++, b += b_step) {            \
                MATMUL_TILE_STEP(R, IFL_TILE_COLS, a[u * (R) + r], lanes_load(b + c * 16))         \
            }                                                                                      \
        }                                                                                          \
        for (; kk < k; kk++, a += (R), b += b_step)                                                \
            MATMUL_TILE_STEP(R, IFL_TILE_COLS, a[r], lanes_load(b + c * 16))                       \
        MATMUL_TILE_END(R, IFL_TILE_COLS)                                                          \
    }
IFL_TILE_CASES(MATMUL_F32)

static inline int64_t matmul_min(int64_t a, int64_t b) {
    return a < b ? a : b;
}

#include "kernels/cpu/x32.inc.h"

/* Splits m rows into the fewest tiles, as evenly as possible: 8 rows are 4 + 4, not 6 + 2. */
static inline int64_t matmul_rows_of_tile(int64_t rows_left) {
    int64_t tiles = (rows_left + IFL_TILE_ROWS - 1) / IFL_TILE_ROWS;
    return (rows_left + tiles - 1) / tiles;
}

static int64_t matmul_direct_cols(int64_t rows) {
    switch (rows) {
#define MATMUL_CASE(R)                                                                             \
    case R:                                                                                        \
        return IFL_DIRECT_COLS(R);
        IFL_TILE_CASES(MATMUL_CASE)
#undef MATMUL_CASE
    default:
        return 1;
    }
}

static void matmul_direct(bool x32, float *y, int64_t ldy, const float *x, int64_t ldx,
                          const uint16_t *w, int64_t b_panel, int64_t rows, int64_t k,
                          int64_t columns, bool resume, uintptr_t ahead, int64_t ahead_step) {
    switch (rows) {
#define MATMUL_CASE(R)                                                                             \
    case R:                                                                                        \
        for (int64_t c = 0; c < columns; c += 16 * IFL_DIRECT_COLS(R)) {                           \
            (x32 ? x32_direct_##R : matmul_direct_##R)(                                            \
                y + c, ldy, x, ldx, w + (c / 32) * b_panel + c % 32 * 2,                           \
                columns - c > 32 ? b_panel : 0, k, columns - c, resume, ahead, ahead_step);        \
            ahead += (uintptr_t)(k * ahead_step);                                                  \
        }                                                                                          \
        break;
        IFL_TILE_CASES(MATMUL_CASE)
#undef MATMUL_CASE
    default:
        break;
    }
}

#define MATMUL_DISPATCH(name)                                                                      \
    static void name(float *y, int64_t ldy, const float *a, int64_t a_row, const float *b,         \
                     int64_t b_step, int64_t rows, int64_t k, int64_t columns, bool resume) {      \
        switch (rows) {                                                                            \
            IFL_TILE_CASES(name##_CASE)                                                            \
        default:                                                                                   \
            break;                                                                                 \
        }                                                                                          \
    }
#define matmul_wide_CASE(R)                                                                        \
    case R:                                                                                        \
        matmul_wide_##R(y, ldy, a, a_row, b, b_step, k, columns, resume);                          \
        break;
#define matmul_packed_CASE(R)                                                                      \
    case R:                                                                                        \
        matmul_packed_##R(y, ldy, a, a_row, b, b_step, k, columns, resume);                        \
        break;
#define x32_wide_CASE(R)                                                                           \
    case R:                                                                                        \
        x32_wide_##R(y, ldy, a, a_row, b, b_step, k, columns, resume);                             \
        break;
MATMUL_DISPATCH(x32_wide)
MATMUL_DISPATCH(matmul_wide)
MATMUL_DISPATCH(matmul_packed)

/* The next tile's rows of y lie far apart: no hardware guesses them. */
static inline void matmul_fetch_rows(const float *y, int64_t ldy, int64_t rows) {
    for (int64_t i = 0; i < rows; i++)
        __builtin_prefetch(y + i * ldy, 1, 3);
}

/* Times that a tile of `rows` goes through a panel. */
static int64_t matmul_passes(int64_t rows) {
    return 2 / matmul_min(2, matmul_direct_cols(rows));
}

/* Few rows. Where a tile spans two panels (a single row needs that many chains), they go in pairs
 * and the loads alone keep memory busy. Else every panel is passed over several times; only the
 * first pass would wait for memory, so all of them fetch their share of the panel that follows. */
static void matmul_few_rows(bool x32, float *y, int64_t ldy, const float *x, int64_t ldx,
                            const uint16_t *w_panels, int64_t m, int64_t n, int64_t k,
                            int64_t panel_begin, int64_t panel_end) {
    if (m == 0) return;
    int64_t n_tiles = 0, passes = 0, step = 1;
    for (int64_t i = 0, rows; i < m; i += rows, n_tiles++) {
        rows = matmul_rows_of_tile(m - i);
        passes += matmul_passes(rows);
        if (matmul_direct_cols(rows) > 2) step = 2;
    }
    /* Bytes of the next block per k. */
    int64_t ahead_step = step == 1 ? (2 * IFL_PANEL + passes - 1) / passes : 0;
    int64_t k_block = n_tiles == 1 ? k : MATMUL_K_DIRECT;
    for (int64_t p = panel_begin; p < panel_end; p += step) {
        int64_t column_end = matmul_min(n, matmul_min(p + step, panel_end) * IFL_PANEL);
        const uint16_t *w = w_panels + p * ifl_panel_elements(k);
        int64_t k0 = 0;
        do {
            int64_t depth = matmul_min(k_block, k - k0);
            /* What follows in memory is what comes next: more of this panel, or the next one. */
            uintptr_t ahead = (uintptr_t)(w + (k0 + depth) * IFL_PANEL);
            for (int64_t i = 0, rows; i < m; i += rows) {
                rows = matmul_rows_of_tile(m - i);
                matmul_fetch_rows(y + (i + rows) * ldy + p * IFL_PANEL, ldy,
                                  matmul_min(rows, m - i - rows));
                matmul_direct(x32, y + i * ldy + p * IFL_PANEL, ldy, x + i * ldx + k0, ldx,
                              w + k0 * IFL_PANEL, ifl_panel_elements(k), rows, depth,
                              column_end - p * IFL_PANEL, k0 > 0, ahead, ahead_step);
                ahead += (uintptr_t)(matmul_passes(rows) * depth * ahead_step);
            }
            k0 += depth;
        } while (k0 < k);
    }
}

#define MATMUL_PACK_DEPTH 8 /* rows of A^T copied together */

/* Copies a block of A for reuse by all columns: it then lies dense in L2, whatever its strides
 * were. Rows contiguous in k become [m][MATMUL_K_TILE]; others (A^T, for dW) [depth][rows] per row
 * tile, a few k at a time: their lines are then read once, also where a power of two between them
 * puts them into one cache set. */
static void matmul_pack_a(float *tiles, const float *a, int64_t a_row, int64_t a_col, int64_t m,
                          int64_t depth) {
    if (a_col == 1) {
        for (int64_t i = 0; i < m; i++)
            memcpy(tiles + i * MATMUL_K_TILE, a + i * a_row, (size_t)depth * sizeof *tiles);
        return;
    }
    for (int64_t k0 = 0; k0 < depth; k0 += MATMUL_PACK_DEPTH) {
        int64_t k1 = matmul_min(depth, k0 + MATMUL_PACK_DEPTH);
        for (int64_t i = 0, rows; i < m; i += rows) {
            rows = matmul_rows_of_tile(m - i);
            float *out = tiles + i * depth;
            if (a_row == 1 && rows == IFL_TILE_ROWS) {
                /* A constant size copies fast. WIDE floats go in whole registers; what is too much
                 * is written again by the next k, so the last k copies its own alone. */
                enum { WIDE = (IFL_TILE_ROWS + 7) / 8 * 8 };
                int64_t k_wide = i + WIDE <= m ? matmul_min(k1, depth - 1) : k0, kk = k0;
                for (; kk < k_wide; kk++)
                    memcpy(out + kk * IFL_TILE_ROWS, a + i + kk * a_col, WIDE * sizeof *out);
                for (; kk < k1; kk++)
                    memcpy(out + kk * IFL_TILE_ROWS, a + i + kk * a_col,
                           IFL_TILE_ROWS * sizeof *out);
            } else {
                for (int64_t kk = k0; kk < k1; kk++)
                    for (int64_t r = 0; r < rows; r++)
                        out[kk * rows + r] = a[(i + r) * a_row + kk * a_col];
            }
        }
    }
}

/* A block of 16 * IFL_TILE_COLS columns of a panel as a dense f32 tile, from bf16 panels widened
 * ...
 */
static void matmul_widen_tile(float *tile, const uint16_t *w, int64_t depth) {
    enum { WIDTH = 16 * IFL_TILE_COLS };
    for (int64_t kk = 0; kk + 2 <= depth; kk += 2)
        for (int c = 0; c < WIDTH; c += 16) {
            const uint16_t *pairs = w + kk * IFL_PANEL + c * 2;
            lanes_store(tile + kk * WIDTH + c, lanes_load_even(pairs));
            lanes_store(tile + (kk + 1) * WIDTH + c, lanes_load_odd(pairs));
        }
    if (depth % 2)
        for (int c = 0; c < WIDTH; c += 16)
            lanes_store(tile + (depth - 1) * WIDTH + c,
                        lanes_load_even(w + (depth - 1) * IFL_PANEL + c * 2));
}

/* ... or from f32 panels. Half a panel left in place would use every other cache line, so only half
 * of L1's sets. */
static void matmul_copy_tile(float *tile, const float *b, int64_t depth) {
    enum { WIDTH = 16 * IFL_TILE_COLS };
    for (int64_t kk = 0; kk < depth; kk++)
        for (int c = 0; c < WIDTH; c += 16)
            lanes_store(tile + kk * WIDTH + c, lanes_load(b + kk * IFL_PANEL + c));
}

/* What a block of products asks for while it computes: lines of B that come next, a share of them
 * with each tile of rows. */
typedef struct matmul_ahead {
    const char *at;
    int64_t step, lines; /* bytes from one line to the next, and how many */
} matmul_ahead;

/* All rows of a block of A over one block of k and one tile (or half panel) of columns. */
static void matmul_block(bool x32, float *y, int64_t ldy, const float *a, int64_t a_row,
                         bool packed, const float *b, int64_t b_step, int64_t m, int64_t depth,
                         int64_t columns, bool resume, matmul_ahead ahead) {
    int64_t share = (ahead.lines * IFL_TILE_ROWS + m - 1) / m;
    for (int64_t i = 0, rows; i < m; i += rows) {
        rows = matmul_rows_of_tile(m - i);
        matmul_fetch_rows(y + (i + rows) * ldy, ldy, matmul_min(rows, m - i - rows));
        for (int64_t line = 0; line < share && ahead.lines > 0;
             line++, ahead.lines--, ahead.at += ahead.step)
            __builtin_prefetch(ahead.at, 0, 2);
        if (x32)
            x32_wide(y + i * ldy, ldy, a + i * a_row, a_row, b, b_step, rows, depth, columns,
                     resume);
        else if (packed)
            matmul_packed(y + i * ldy, ldy, a + i * depth, 1, b, b_step, rows, depth, columns,
                          resume);
        else
            matmul_wide(y + i * ldy, ldy, a + i * a_row, a_row, b, b_step, rows, depth, columns,
                        resume);
    }
}

/* Many rows. B is either bf16 panels w or f32 panels b (the other is NULL); `resume`: the chains go
 * on from what y holds. */
static void matmul_blocked(bool x32, float *y, int64_t ldy, const float *a, int64_t a_row,
                           int64_t a_col, const uint16_t *w, const float *b, int64_t m, int64_t n,
                           int64_t k, int64_t panel_begin, int64_t panel_end, bool resume) {
    enum { WIDTH = 16 * IFL_TILE_COLS, LINE = 64 };
    float tiles[MATMUL_A_ROWS * MATMUL_K_TILE] __attribute__((aligned(64)));
    float tile[MATMUL_K_TILE * WIDTH] __attribute__((aligned(64)));
    int64_t column_begin = panel_begin * IFL_PANEL,
            column_end = matmul_min(n, panel_end * IFL_PANEL);
    for (int64_t i0 = 0; i0 < m; i0 += MATMUL_A_ROWS) {
        int64_t m_block = matmul_min(MATMUL_A_ROWS, m - i0), k0 = 0;
        bool fill = w || (WIDTH < IFL_PANEL && m_block >= IFL_COPY_ROWS);
        bool pack =
            a_col != 1 || (m_block > IFL_TILE_ROWS && column_end - column_begin > 2 * WIDTH);
        do {
            int64_t depth = matmul_min(MATMUL_K_TILE, k - k0);
            const float *block = a + i0 * a_row + k0 * a_col;
            if (pack) matmul_pack_a(tiles, block, a_row, a_col, m_block, depth);
            for (int64_t column = column_begin; column < column_end; column += WIDTH) {
                int64_t at = ((column / IFL_PANEL) * k + k0) * IFL_PANEL + column % IFL_PANEL;
                if (w)
                    matmul_widen_tile(tile, w + ifl_panel_row(column, k) + k0 * IFL_PANEL, depth);
                else if (fill)
                    matmul_copy_tile(tile, b + at, depth);
                matmul_ahead ahead = {NULL, 0, 0};
                if (column + WIDTH < column_end) {
                    int64_t next = column + WIDTH;
                    ahead.at = w ? (const char *)(w + ifl_panel_row(next, k) + k0 * IFL_PANEL)
                                 : (const char *)(b + ((next / IFL_PANEL) * k + k0) * IFL_PANEL +
                                                  next % IFL_PANEL);
                    ahead.step = WIDTH < IFL_PANEL ? 2 * LINE : LINE;
                    ahead.lines = depth * WIDTH * (w ? 2 : 4) / LINE;
                }
                matmul_block(x32, y + i0 * ldy + column, ldy, pack ? tiles : block,
                             pack ? MATMUL_K_TILE : a_row, a_col != 1, fill ? tile : b + at,
                             fill ? WIDTH : IFL_PANEL, m_block, depth,
                             matmul_min(WIDTH, column_end - column), resume || k0 > 0, ahead);
            }
            k0 += depth;
        } while (k0 < k);
    }
}

static void matmul_any(bool x32, float *y, int64_t ldy, const float *x, int64_t ldx,
                       const uint16_t *w_panels, int64_t m, int64_t n, int64_t k,
                       int64_t panel_begin, int64_t panel_end) {
    if (m < IFL_BLOCK_ROWS(x32))
        matmul_few_rows(x32, y, ldy, x, ldx, w_panels, m, n, k, panel_begin, panel_end);
    else
        matmul_blocked(x32, y, ldy, x, ldx, 1, w_panels, NULL, m, n, k, panel_begin, panel_end,
                       false);
}

BODY void matmul_body(float *y, int64_t ldy, const float *x, int64_t ldx, const uint16_t *w_panels,
                      int64_t m, int64_t n, int64_t k, int64_t panel_begin, int64_t panel_end) {
    matmul_any(false, y, ldy, x, ldx, w_panels, m, n, k, panel_begin, panel_end);
}

#if defined(IFL_X32_DOT)
#include "kernels/cpu/x32_dot.inc.h"
#else
BODY void matmul_x32_body(float *y, int64_t ldy, const float *x, int64_t ldx,
                          const uint16_t *w_panels, int64_t m, int64_t n, int64_t k,
                          int64_t panel_begin, int64_t panel_end) {
    matmul_any(true, y, ldy, x, ldx, w_panels, m, n, k, panel_begin, panel_end);
}
#endif

BODY void matmul_f32_body(float *c, int64_t ldc, const float *a, int64_t a_row, int64_t a_col,
                          const float *b_panels, int64_t m, int64_t n, int64_t k,
                          int64_t panel_begin, int64_t panel_end, bool accumulate) {
    matmul_blocked(false, c, ldc, a, a_row, a_col, NULL, b_panels, m, n, k, panel_begin, panel_end,
                   accumulate);
}
