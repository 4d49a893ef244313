/* matmul in profile `bf16` on an instruction that multiplies pairs of bf16: acc = fma(high, high,
 * acc), then fma(low, low, acc), both flushed. Fed with pairs (k + 2, k) of the even k and of the
 * odd k, low first, it makes the half-chains of x32 in their order. The panel's pairs (k, k + 1)
 * become such words two by two: in registers for few rows, once into a tile in L1 for many. A's
 * words are made for a block of rows at a time. The two half-chains of a tile lie in registers, the
 * totals on the stack. */

enum {
    DOT_K = 256,    /* k of a block: its tile of B takes 16 KiB, a row of A 512 bytes */
    DOT_ROWS = 192, /* rows of A made into words at a time */
    DOT_WORDS = DOT_K / 2,
};

/* Words of one row for k in [0, depth), zeros up to the next multiple of 32; x holds bf16 values.
 * For each four k: the word of the even ones, then of the odd ones. */
static void dot_pack_row(uint32_t *words_out, const float *x, int64_t depth) {
    int64_t k = 0;
    for (; k + 32 <= depth; k += 32)
        words_store(words_out + k / 2, words_of_values(x + k));
    if (k < depth) {
        float tail[32] = {0};
        memcpy(tail, x + k, (size_t)(depth - k) * sizeof *x);
        words_store(words_out + k / 2, words_of_values(tail));
    }
}

/* One tile over n_blocks blocks of 32 k. LOAD_B makes `even` and `odd` of column group c and quad
 * q. */
#define DOT_TILE(R, C, LOAD_B, AHEAD)                                                              \
    X32_BEGIN(R, C)                                                                                \
    for (int64_t block = 0; block < n_blocks; block++, a += 16) {                                  \
        X32_IN_MEMORY(total);                                                                      \
        lanes acc_even[R][C], acc_odd[R][C];                                                       \
        _Pragma("GCC unroll 16") for (int r = 0; r < (R); r++) {                                   \
            _Pragma("GCC unroll 4") for (int c = 0; c < (C); c++) acc_even[r][c] = acc_odd[r][c] = \
                lanes_zero();                                                                      \
        }                                                                                          \
        for (int q = 0; q < 8; q++) {                                                              \
            words even[C], odd[C];                                                                 \
            _Pragma("GCC unroll 4") for (int c = 0; c < (C); c++) LOAD_B;                          \
            _Pragma("GCC unroll 16") for (int r = 0; r < (R); r++) {                               \
                uint32_t a_even = a[r * DOT_WORDS + 2 * q], a_odd = a[r * DOT_WORDS + 2 * q + 1];  \
                _Pragma("GCC unroll 4") for (int c = 0; c < (C); c++) {                            \
                    acc_even[r][c] = lanes_dot(acc_even[r][c], a_even, even[c]);                   \
                    acc_odd[r][c] = lanes_dot(acc_odd[r][c], a_odd, odd[c]);                       \
                }                                                                                  \
            }                                                                                      \
            AHEAD;                                                                                 \
        }                                                                                          \
        _Pragma("GCC unroll 16") for (int r = 0; r < (R); r++) {                                   \
            _Pragma("GCC unroll 4") for (int c = 0; c < (C); c++) {                                \
                float *at = total + (r * (C) + c) * 16;                                            \
                lanes sum = lanes_add(acc_even[r][c], acc_odd[r][c]);                              \
                lanes_store(at, lanes_add(lanes_load(at), sum));                                   \
            }                                                                                      \
        }                                                                                          \
    }                                                                                              \
    X32_END(R, C)

/* Straight from the panels: group c at b + (c / 2) * b_panel + (c % 2) * 32, pair p at + p * 64. */
#define DOT_LOAD_PAIRS                                                                             \
    {                                                                                              \
        const uint16_t *pairs = b + (block * 16 + 2 * q) * 64 + (c / 2) * b_panel + (c % 2) * 32;  \
        words v0 = words_load(pairs), v1 = words_load(pairs + 64);                                 \
        even[c] = words_even(v0, v1);                                                              \
        odd[c] = words_odd(v0, v1);                                                                \
    }
#define DOT_AHEAD                                                                                  \
    for (int line = 0; line < 4; line++, ahead += (uintptr_t)ahead_step)                           \
    __builtin_prefetch((const void *)ahead, 0, 2)
/* From a tile of dot_fill_tile. */
#define DOT_LOAD_TILE                                                                              \
    {                                                                                              \
        const uint32_t *at = tile + ((block * 8 + q) * 4 + c) * 16;                                \
        even[c] = words_load(at);                                                                  \
        odd[c] = words_load(at + 32);                                                              \
    }

#define DOT_FN(R)                                                                                  \
    BODY void dot_direct_##R(float *y, int64_t ldy, const uint32_t *a, const uint16_t *b,          \
                             int64_t b_panel, int64_t n_blocks, int64_t columns, bool resume,      \
                             uintptr_t ahead, int64_t ahead_step) {                                \
        DOT_TILE(R, IFL_DOT_COLS(R), DOT_LOAD_PAIRS, DOT_AHEAD);                                   \
    }                                                                                              \
    BODY void dot_tile_##R(float *y, int64_t ldy, const uint32_t *a, const uint32_t *tile,         \
                           int64_t n_blocks, int64_t columns, bool resume) {                       \
        DOT_TILE(R, 2, DOT_LOAD_TILE, (void)0);                                                    \
    }
IFL_DOT_CASES(DOT_FN)

static inline int64_t dot_rows_of_tile(int64_t rows_left) {
    int64_t tiles = (rows_left + IFL_DOT_ROWS - 1) / IFL_DOT_ROWS;
    return (rows_left + tiles - 1) / tiles;
}

static void dot_direct(float *y, int64_t ldy, const uint32_t *a, const uint16_t *b, int64_t b_panel,
                       int64_t rows, int64_t n_blocks, int64_t columns, bool resume,
                       uintptr_t ahead, int64_t ahead_step) {
    switch (rows) {
#define DOT_CASE(R)                                                                                \
    case R:                                                                                        \
        for (int64_t c = 0; c < columns; c += 16 * IFL_DOT_COLS(R)) {                              \
            dot_direct_##R(y + c, ldy, a, b + (c / 32) * b_panel + c % 32 * 2,                     \
                           columns - c > 32 ? b_panel : 0, n_blocks, columns - c, resume, ahead,   \
                           ahead_step);                                                            \
            ahead += (uintptr_t)(n_blocks * 32 * ahead_step);                                      \
        }                                                                                          \
        break;
        IFL_DOT_CASES(DOT_CASE)
#undef DOT_CASE
    default:
        break;
    }
}

static void dot_tile(float *y, int64_t ldy, const uint32_t *a, const uint32_t *tile, int64_t rows,
                     int64_t n_blocks, int64_t columns, bool resume) {
    switch (rows) {
#define DOT_CASE(R)                                                                                \
    case R:                                                                                        \
        dot_tile_##R(y, ldy, a, tile, n_blocks, columns, resume);                                  \
        break;
        IFL_DOT_CASES(DOT_CASE)
#undef DOT_CASE
    default:
        break;
    }
}

/* A panel's block of k as words: [quad][even, odd][32]. */
static void dot_fill_tile(uint32_t *tile, const uint16_t *w, int64_t n_blocks) {
    for (int64_t q = 0; q < n_blocks * 8; q++)
        for (int c = 0; c < 2; c++) {
            words v0 = words_load(w + 2 * q * 64 + c * 32),
                  v1 = words_load(w + (2 * q + 1) * 64 + c * 32);
            words_store(tile + (q * 4 + c) * 16, words_even(v0, v1));
            words_store(tile + (q * 4 + 2 + c) * 16, words_odd(v0, v1));
        }
}

BODY void matmul_x32_body(float *y, int64_t ldy, const float *x, int64_t ldx,
                          const uint16_t *w_panels, int64_t m, int64_t n, int64_t k,
                          int64_t panel_begin, int64_t panel_end) {
    uint32_t a[DOT_ROWS * DOT_WORDS] __attribute__((aligned(64)));
    uint32_t tile[DOT_WORDS * IFL_PANEL] __attribute__((aligned(64)));
    int64_t panel_elements = ifl_panel_elements(k);
    for (int64_t i0 = 0; i0 < m; i0 += DOT_ROWS) {
        int64_t m_block = matmul_min(DOT_ROWS, m - i0), k0 = 0;
        bool few = m_block < IFL_BLOCK_ROWS(true);
        int64_t n_tiles = (m_block + IFL_DOT_ROWS - 1) / IFL_DOT_ROWS;
        int64_t step = few && m_block == 1 ? IFL_DOT_COLS(1) / 2 : 1; /* panels at a time */
        int64_t passes = n_tiles * (m_block <= IFL_DOT_ROWS / 2 ? 1 : 2);
        do {
            int64_t depth = matmul_min(DOT_K, k - k0),
                    n_blocks = (depth + IFL_DEPTH - 1) / IFL_DEPTH;
            for (int64_t i = 0; i < m_block; i++)
                dot_pack_row(a + i * DOT_WORDS, x + (i0 + i) * ldx + k0, depth);
            for (int64_t p = panel_begin; p < panel_end; p += step) {
                int64_t columns =
                    matmul_min(n, matmul_min(p + step, panel_end) * IFL_PANEL) - p * IFL_PANEL;
                const uint16_t *w = w_panels + p * panel_elements + k0 * IFL_PANEL;
                float *out = y + i0 * ldy + p * IFL_PANEL;
                uintptr_t ahead = (uintptr_t)(w + panel_elements);
                if (!few) dot_fill_tile(tile, w, n_blocks);
                for (int64_t i = 0, rows; i < m_block; i += rows) {
                    rows = dot_rows_of_tile(m_block - i);
                    if (few)
                        dot_direct(out + i * ldy, ldy, a + i * DOT_WORDS, w, panel_elements, rows,
                                   n_blocks, columns, k0 > 0, ahead,
                                   step == 1 ? 2 * IFL_PANEL / passes : 0);
                    else
                        dot_tile(out + i * ldy, ldy, a + i * DOT_WORDS, tile, rows, n_blocks,
                                 columns, k0 > 0);
                }
            }
            k0 += depth;
        } while (k0 < k);
    }
}
