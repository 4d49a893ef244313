/* Matrix products: micro-tiles of up to IFL_TILE_ROWS rows by C x 16 columns held in registers.
 *
 * Every output is one ascending-k chain. A chain may rest in memory between blocks of k (its f32
 * value is the whole state), so blocking over k changes no bits; neither does the tile's shape.
 * - few rows: bf16 weights are widened in registers, straight from the panel (bandwidth-bound);
 * - many rows: a block of a panel is widened once into a tile that stays in L1, then used by all
 * rows;
 * - matmul_f32: B is f32 already; A, of any strides, is copied into tiles [k][rows] first. */

#define MATMUL_K_DIRECT 512 /* k-block of the direct path: 32 KiB of a bf16 panel */
#define MATMUL_K_TILE 256   /* k-block of a widened tile: 16 KiB per 16 columns */
#define MATMUL_A_ROWS 96    /* rows of A packed at a time by matmul_f32 */

/* y[r, c] over R rows and C lanes of columns; `columns` of them are real. b advances b_step per k;
 * lane group c starts at b + (c / 2) * b_panel + (c % 2) * 16. a[r * a_row + k * a_col]. */
#define MATMUL_TILE(R, C, LOAD_B)                                                                  \
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
    }                                                                                              \
    for (int64_t kk = 0; kk < k; kk++) {                                                           \
        _Pragma("GCC unroll 4") for (int c = 0; c < (C); c++) {                                    \
            lanes bv = LOAD_B(b + (c / 2) * b_panel + (c % 2) * 16);                               \
            _Pragma("GCC unroll 16") for (int r = 0; r < (R); r++) acc[r][c] =                     \
                lanes_fma(lanes_set(a[r * a_row]), bv, acc[r][c]);                                 \
        }                                                                                          \
        a += a_col;                                                                                \
        b += b_step;                                                                               \
    }                                                                                              \
    _Pragma("GCC unroll 16") for (int r = 0; r < (R); r++) {                                       \
        _Pragma("GCC unroll 4") for (int c = 0; c < (C); c++) {                                    \
            if (columns >= (c + 1) * 16)                                                           \
                lanes_store(y + r * ldy + c * 16, acc[r][c]);                                      \
            else if (columns > c * 16)                                                             \
                lanes_store_n(y + r * ldy + c * 16, acc[r][c], columns - c * 16);                  \
        }                                                                                          \
    }

/* Direct: bf16 panels, rows of x. One function per row count, for its own register allocation. */
#define MATMUL_DIRECT(R)                                                                           \
    BODY void matmul_direct_##R(float *y, int64_t ldy, const float *a, int64_t a_row,              \
                                const uint16_t *b, int64_t b_panel, int64_t k, int64_t columns,    \
                                bool resume) {                                                     \
        const int64_t a_col = 1, b_step = IFL_PANEL;                                               \
        MATMUL_TILE(R, IFL_DIRECT_COLS(R), lanes_load_bf16)                                        \
    }
IFL_TILE_CASES(MATMUL_DIRECT)

/* Widened: f32 tile [k][16 * IFL_TILE_COLS], rows of x. */
#define MATMUL_WIDE(R)                                                                             \
    BODY void matmul_wide_##R(float *y, int64_t ldy, const float *a, int64_t a_row,                \
                              const float *b, int64_t k, int64_t columns, bool resume) {           \
        const int64_t a_col = 1, b_step = 16 * IFL_TILE_COLS, b_panel = 0;                         \
        MATMUL_TILE(R, IFL_TILE_COLS, lanes_load)                                                  \
    }
IFL_TILE_CASES(MATMUL_WIDE)

/* Packed: f32 panels, A in [k][R]. */
#define MATMUL_PACKED(R)                                                                           \
    BODY void matmul_packed_##R(float *y, int64_t ldy, const float *a, const float *b, int64_t k,  \
                                int64_t columns, bool resume) {                                    \
        const int64_t a_row = 1, a_col = (R), b_step = IFL_PANEL, b_panel = 0;                     \
        MATMUL_TILE(R, IFL_TILE_COLS, lanes_load)                                                  \
    }
IFL_TILE_CASES(MATMUL_PACKED)

/* Splits m rows into the fewest tiles, as evenly as possible: 8 rows are 4 + 4, not 6 + 2. */
static inline int64_t matmul_rows_of_tile(int64_t rows_left) {
    int64_t tiles = (rows_left + IFL_TILE_ROWS - 1) / IFL_TILE_ROWS;
    return (rows_left + tiles - 1) / tiles;
}

static inline int64_t matmul_min(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static void matmul_direct(float *y, int64_t ldy, const float *x, int64_t ldx, const uint16_t *w,
                          int64_t b_panel, int64_t rows, int64_t k, int64_t columns, bool resume) {
    switch (rows) {
#define MATMUL_CASE(R)                                                                             \
    case R:                                                                                        \
        for (int64_t c = 0; c < columns; c += 16 * IFL_DIRECT_COLS(R))                             \
            matmul_direct_##R(y + c, ldy, x, ldx, w + (c / 32) * b_panel + c % 32,                 \
                              columns - c > 32 ? b_panel : 0, k, columns - c, resume);             \
        break;
        IFL_TILE_CASES(MATMUL_CASE)
#undef MATMUL_CASE
    default:
        break;
    }
}

static void matmul_wide(float *y, int64_t ldy, const float *x, int64_t ldx, const float *tile,
                        int64_t rows, int64_t k, int64_t columns, bool resume) {
    switch (rows) {
#define MATMUL_CASE(R)                                                                             \
    case R:                                                                                        \
        matmul_wide_##R(y, ldy, x, ldx, tile, k, columns, resume);                                 \
        break;
        IFL_TILE_CASES(MATMUL_CASE)
#undef MATMUL_CASE
    default:
        break;
    }
}

static void matmul_packed(float *y, int64_t ldy, const float *a, const float *b, int64_t rows,
                          int64_t k, int64_t columns, bool resume) {
    switch (rows) {
#define MATMUL_CASE(R)                                                                             \
    case R:                                                                                        \
        matmul_packed_##R(y, ldy, a, b, k, columns, resume);                                       \
        break;
        IFL_TILE_CASES(MATMUL_CASE)
#undef MATMUL_CASE
    default:
        break;
    }
}

/* Few rows: two panels at a time, so that a single row has enough independent chains. */
static void matmul_few_rows(float *y, int64_t ldy, const float *x, int64_t ldx,
                            const uint16_t *w_panels, int64_t m, int64_t n, int64_t k,
                            int64_t panel_begin, int64_t panel_end) {
    int64_t k_block = m <= IFL_TILE_ROWS ? k : MATMUL_K_DIRECT;
    for (int64_t p = panel_begin; p < panel_end; p += 2) {
        int64_t columns = matmul_min(n, matmul_min(p + 2, panel_end) * IFL_PANEL) - p * IFL_PANEL;
        const uint16_t *w = w_panels + p * k * IFL_PANEL;
        int64_t k0 = 0;
        do {
            int64_t depth = matmul_min(k_block, k - k0);
            for (int64_t i = 0, rows; i < m; i += rows) {
                rows = matmul_rows_of_tile(m - i);
                matmul_direct(y + i * ldy + p * IFL_PANEL, ldy, x + i * ldx + k0, ldx,
                              w + k0 * IFL_PANEL, k * IFL_PANEL, rows, depth, columns, k0 > 0);
            }
            k0 += depth;
        } while (k0 < k);
    }
}

static void matmul_many_rows(float *y, int64_t ldy, const float *x, int64_t ldx,
                             const uint16_t *w_panels, int64_t m, int64_t n, int64_t k,
                             int64_t panel_begin, int64_t panel_end) {
    enum { WIDTH = 16 * IFL_TILE_COLS };
    float tile[MATMUL_K_TILE * WIDTH] __attribute__((aligned(64)));
    int64_t column_end = matmul_min(n, panel_end * IFL_PANEL);
    for (int64_t column = panel_begin * IFL_PANEL; column < column_end; column += WIDTH) {
        const uint16_t *w = w_panels + (column / IFL_PANEL) * k * IFL_PANEL + column % IFL_PANEL;
        int64_t k0 = 0;
        do {
            int64_t depth = matmul_min(MATMUL_K_TILE, k - k0);
            for (int64_t kk = 0; kk < depth; kk++)
                for (int c = 0; c < WIDTH; c += 16)
                    lanes_store(tile + kk * WIDTH + c,
                                lanes_load_bf16(w + (k0 + kk) * IFL_PANEL + c));
            for (int64_t i = 0, rows; i < m; i += rows) {
                rows = matmul_rows_of_tile(m - i);
                matmul_wide(y + i * ldy + column, ldy, x + i * ldx + k0, ldx, tile, rows, depth,
                            column_end - column, k0 > 0);
            }
            k0 += depth;
        } while (k0 < k);
    }
}

BODY void matmul_body(float *y, int64_t ldy, const float *x, int64_t ldx, const uint16_t *w_panels,
                      int64_t m, int64_t n, int64_t k, int64_t panel_begin, int64_t panel_end) {
    if (m < IFL_EXPAND_ROWS)
        matmul_few_rows(y, ldy, x, ldx, w_panels, m, n, k, panel_begin, panel_end);
    else
        matmul_many_rows(y, ldy, x, ldx, w_panels, m, n, k, panel_begin, panel_end);
}

/* a_tiles: for each row tile [depth][rows]. */
static void matmul_pack_a(float *a_tiles, const float *a, int64_t a_row, int64_t a_col, int64_t m,
                          int64_t depth) {
    for (int64_t i = 0, rows; i < m; i += rows) {
        rows = matmul_rows_of_tile(m - i);
        float *out = a_tiles + i * depth;
        if (a_row == 1) {
            for (int64_t kk = 0; kk < depth; kk++)
                for (int64_t r = 0; r < rows; r++)
                    out[kk * rows + r] = a[i + r + kk * a_col];
        } else {
            for (int64_t r = 0; r < rows; r++)
                for (int64_t kk = 0; kk < depth; kk++)
                    out[kk * rows + r] = a[(i + r) * a_row + kk * a_col];
        }
    }
}

BODY void matmul_f32_body(float *c, int64_t ldc, const float *a, int64_t a_row, int64_t a_col,
                          const float *b_panels, int64_t m, int64_t n, int64_t k,
                          int64_t panel_begin, int64_t panel_end, bool accumulate) {
    enum { WIDTH = 16 * IFL_TILE_COLS };
    float a_tiles[MATMUL_A_ROWS * MATMUL_K_TILE] __attribute__((aligned(64)));
    int64_t column_end = matmul_min(n, panel_end * IFL_PANEL);
    for (int64_t i0 = 0; i0 < m; i0 += MATMUL_A_ROWS) {
        int64_t m_block = matmul_min(MATMUL_A_ROWS, m - i0), k0 = 0;
        do {
            int64_t depth = matmul_min(MATMUL_K_TILE, k - k0);
            matmul_pack_a(a_tiles, a + i0 * a_row + k0 * a_col, a_row, a_col, m_block, depth);
            for (int64_t column = panel_begin * IFL_PANEL; column < column_end; column += WIDTH) {
                const float *b =
                    b_panels + ((column / IFL_PANEL) * k + k0) * IFL_PANEL + column % IFL_PANEL;
                for (int64_t i = 0, rows; i < m_block; i += rows) {
                    rows = matmul_rows_of_tile(m_block - i);
                    matmul_packed(c + (i0 + i) * ldc + column, ldc, a_tiles + i * depth, b, rows,
                                  depth, column_end - column, accumulate || k0 > 0);
                }
            }
            k0 += depth;
        } while (k0 < k);
    }
}
