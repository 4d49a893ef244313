/* matmul in profile `bf16` on tiles: C [r, 16] += A [r, 32] x B [32, 16] is one instruction, whose
 * order is x32's, one block of 32 k at a time. The including file has tile_* (x86/tiles_amx.h).
 *
 * B: 16 columns of a weight panel's block of 32 k are a tile as they lie there: 16 rows of 16
 * pairs, 128 bytes apart. A: rows become bf16 in tiles of r rows, all of one height so that the
 * shapes are loaded once per call: m rows are cut into the fewest tiles, evenly; the last may lack
 * a row or more, which are zeros and are not stored. C: four tiles, 2 x 2 (32 rows of one panel)
 * or, up to 16 rows, 1 x 4 (two panels): four chains hide the instruction's latency, and 2 x 2
 * loads one tile per product. A total stays in its tile over a block of k; between blocks it rests
 * in y, as an f32 and so whole. Blocks of k: with several strips of 32 rows, a panel's block of k
 * stays in L1 while the strips pass, A in L2; with one strip, all k for which A's copy has room. */

enum {
    AMX_ROW = 16,   /* rows of a tile, and columns of one of C */
    AMX_ROWS = 192, /* rows of A copied at a time, 240 KiB */
    AMX_K = 640,    /* k of a block where strips share it: 40 KiB of a panel */
};

/* A strip's part of y: `rows` and `columns` of it are real, in tiles of `height` rows. */
typedef struct amx_out {
    float *y;
    int64_t ldy, rows, columns, height;
    bool resume; /* the chains go on from y */
} amx_out;

/* What a pass over one block of k reads. Tile t of A begins at a + t * a_tile; the first pass makes
 * it from x. The lines [line_begin, line_end) of each block of 32 k are asked for `ahead` bytes
 * before their use. */
typedef struct amx_in {
    uint16_t *a;
    const uint16_t *b;
    int64_t a_tile, b_panel, n_blocks;
    const float *x; /* NULL: A is made */
    int64_t ldx, depth;
    uintptr_t ahead;
    int line_begin, line_end;
} amx_in;

static inline int64_t amx_min(int64_t a, int64_t b) {
    return a < b ? a : b;
}
static inline int64_t amx_round_up(int64_t x, int64_t to) {
    return (x + to - 1) / to * to;
}

/* Real rows of tile row i and real columns of tile column j. */
static inline int64_t amx_rows(const amx_out *o, int64_t i) {
    return amx_min(o->height, o->rows - i * o->height);
}
static inline int64_t amx_columns(const amx_out *o, int64_t j) {
    int64_t n = o->columns - j * AMX_ROW;
    return n < 0 ? 0 : amx_min(AMX_ROW, n);
}
static inline bool amx_is_whole(const amx_out *o, int64_t i, int64_t j) {
    return amx_rows(o, i) == o->height && amx_columns(o, j) == AMX_ROW;
}
static inline float *amx_at(const amx_out *o, int64_t i, int64_t j) {
    return o->y + i * o->height * o->ldy + j * AMX_ROW;
}

/* A tile that y has no room for goes through `rest`. */
static void amx_take(float *rest, const amx_out *o, int64_t i, int64_t j) {
    memset(rest, 0, AMX_ROW * AMX_ROW * sizeof *rest);
    for (int64_t r = 0; r < amx_rows(o, i); r++)
        memcpy(rest + r * AMX_ROW, amx_at(o, i, j) + r * o->ldy,
               (size_t)amx_columns(o, j) * sizeof *rest);
}
static void amx_put(const amx_out *o, int64_t i, int64_t j, const float *rest) {
    for (int64_t r = 0; r < amx_rows(o, i); r++)
        memcpy(amx_at(o, i, j) + r * o->ldy, rest + r * AMX_ROW,
               (size_t)amx_columns(o, j) * sizeof *rest);
}

/* 32 elements of A: the upper halves of x, which holds bf16 values as f32; denormals too, since the
 * products flush. */
static inline void amx_make_row(uint16_t *restrict out, const float *restrict x) {
    for (int j = 0; j < IFL_DEPTH; j++) {
        uint32_t bits;
        memcpy(&bits, x + j, sizeof bits);
        out[j] = (uint16_t)(bits >> 16);
    }
}
/* One tile of A, with zeros past `rows` and past `left` k. */
static void amx_make_tile(uint16_t *out, const float *x, int64_t ldx, int64_t rows, int64_t height,
                          int64_t left) {
    for (int64_t r = 0; r < rows; r++, out += IFL_DEPTH, x += ldx) {
        if (left >= IFL_DEPTH) {
            amx_make_row(out, x);
        } else {
            float tail[IFL_DEPTH] = {0};
            memcpy(tail, x, (size_t)left * sizeof *tail);
            amx_make_row(out, tail);
        }
    }
    for (int64_t i = 0; i < (height - rows) * IFL_DEPTH; i++)
        out[i] = 0;
}
static void amx_make(const amx_out *o, const amx_in *in, int64_t block, int n_tiles) {
    if (!in->x || block >= in->n_blocks) return;
    for (int i = 0; i < n_tiles; i++)
        amx_make_tile(in->a + i * in->a_tile + block * o->height * IFL_DEPTH,
                      in->x + i * o->height * in->ldx + block * IFL_DEPTH, in->ldx, amx_rows(o, i),
                      o->height, in->depth - block * IFL_DEPTH);
}

#define AMX_BEGIN(T, I, J)                                                                         \
    do {                                                                                           \
        if (!o->resume) {                                                                          \
            tile_zero(T);                                                                          \
        } else if (amx_is_whole(o, I, J)) {                                                        \
            tile_load(T, amx_at(o, I, J), o->ldy * 4);                                             \
        } else {                                                                                   \
            amx_take(rest, o, I, J);                                                               \
            tile_load(T, rest, AMX_ROW * 4);                                                       \
        }                                                                                          \
    } while (0)
#define AMX_END(T, I, J)                                                                           \
    do {                                                                                           \
        if (amx_is_whole(o, I, J)) {                                                               \
            tile_store(T, amx_at(o, I, J), o->ldy * 4);                                            \
        } else if (amx_columns(o, J) > 0) {                                                        \
            tile_store(T, rest, AMX_ROW * 4);                                                      \
            amx_put(o, I, J, rest);                                                                \
        }                                                                                          \
    } while (0)
#define AMX_AHEAD(b)                                                                               \
    for (int line = in->line_begin; line < in->line_end; line++)                                   \
    __builtin_prefetch((const void *)((uintptr_t)(b) + in->ahead + (uintptr_t)line * 64), 0, 2)

#define AMX_B_STRIDE (2 * IFL_PANEL * 2)    /* bytes between pairs of k */
#define AMX_B_BLOCK (IFL_DEPTH * IFL_PANEL) /* elements of a block of 32 k */
#define AMX_B_SECOND (2 * AMX_ROW)          /* elements to the panel's second 16 columns */

/* Tiles 0 to 3: C. 4, 5: A. 6, 7: B. A block's tiles of A are made while the products of the block
 * before it run: they take the other units. */
__attribute__((noinline)) static void amx_2x2(const amx_out *o, const amx_in *in) {
    float rest[AMX_ROW * AMX_ROW] __attribute__((aligned(64)));
    const uint16_t *a = in->a, *b = in->b;
    amx_make(o, in, 0, 2);
    AMX_BEGIN(0, 0, 0);
    AMX_BEGIN(1, 0, 1);
    AMX_BEGIN(2, 1, 0);
    AMX_BEGIN(3, 1, 1);
    for (int64_t block = 0; block < in->n_blocks; block++) {
        amx_make(o, in, block + 1, 2);
        tile_load(4, a, 64);
        tile_load(6, b, AMX_B_STRIDE);
        tile_load(7, b + AMX_B_SECOND, AMX_B_STRIDE);
        tile_load(5, a + in->a_tile, 64);
        tile_dot(0, 4, 6);
        tile_dot(1, 4, 7);
        tile_dot(2, 5, 6);
        tile_dot(3, 5, 7);
        AMX_AHEAD(b);
        a += o->height * IFL_DEPTH;
        b += AMX_B_BLOCK;
    }
    AMX_END(0, 0, 0);
    AMX_END(1, 0, 1);
    AMX_END(2, 1, 0);
    AMX_END(3, 1, 1);
}

/* An odd tile of rows at the end, or a last panel without a partner. */
__attribute__((noinline)) static void amx_1x2(const amx_out *o, const amx_in *in) {
    float rest[AMX_ROW * AMX_ROW] __attribute__((aligned(64)));
    const uint16_t *a = in->a, *b = in->b;
    amx_make(o, in, 0, 1);
    AMX_BEGIN(0, 0, 0);
    AMX_BEGIN(1, 0, 1);
    for (int64_t block = 0; block < in->n_blocks; block++) {
        amx_make(o, in, block + 1, 1);
        tile_load(4, a, 64);
        tile_load(6, b, AMX_B_STRIDE);
        tile_load(7, b + AMX_B_SECOND, AMX_B_STRIDE);
        tile_dot(0, 4, 6);
        tile_dot(1, 4, 7);
        AMX_AHEAD(b);
        a += o->height * IFL_DEPTH;
        b += AMX_B_BLOCK;
    }
    AMX_END(0, 0, 0);
    AMX_END(1, 0, 1);
}

__attribute__((noinline)) static void amx_1x4(const amx_out *o, const amx_in *in) {
    float rest[AMX_ROW * AMX_ROW] __attribute__((aligned(64)));
    const uint16_t *a = in->a, *b = in->b, *next = b + in->b_panel;
    amx_make(o, in, 0, 1);
    AMX_BEGIN(0, 0, 0);
    AMX_BEGIN(1, 0, 1);
    AMX_BEGIN(2, 0, 2);
    AMX_BEGIN(3, 0, 3);
    for (int64_t block = 0; block < in->n_blocks; block++) {
        amx_make(o, in, block + 1, 1);
        tile_load(4, a, 64);
        tile_load(6, b, AMX_B_STRIDE);
        tile_load(7, b + AMX_B_SECOND, AMX_B_STRIDE);
        tile_dot(0, 4, 6);
        tile_dot(1, 4, 7);
        tile_load(6, next, AMX_B_STRIDE);
        tile_load(7, next + AMX_B_SECOND, AMX_B_STRIDE);
        tile_dot(2, 4, 6);
        tile_dot(3, 4, 7);
        AMX_AHEAD(b);
        AMX_AHEAD(next);
        a += o->height * IFL_DEPTH;
        b += AMX_B_BLOCK;
        next += AMX_B_BLOCK;
    }
    AMX_END(0, 0, 0);
    AMX_END(1, 0, 1);
    AMX_END(2, 0, 2);
    AMX_END(3, 0, 3);
}

/* The panels, one block of k: all strips of rows over one panel (or, for one tile of rows, two). */
static void amx_panels(float *y, int64_t ldy, const float *x, int64_t ldx, uint16_t *a,
                       const uint16_t *w, int64_t panel, int64_t m, int64_t n, int64_t depth,
                       int64_t height, int64_t n_tiles, int64_t panel_begin, int64_t panel_end,
                       bool resume) {
    int64_t n_blocks = (depth + IFL_DEPTH - 1) / IFL_DEPTH;
    int64_t n_strips = (n_tiles + 1) / 2, a_tile = n_blocks * height * IFL_DEPTH;
    for (int64_t p = panel_begin, step; p < panel_end; p += step) {
        step = n_tiles == 1 ? amx_min(2, panel_end - p) : 1;
        amx_in in = {.a_tile = a_tile,
                     .b = w + p * panel,
                     .b_panel = panel,
                     .n_blocks = n_blocks,
                     .ldx = ldx,
                     .depth = depth,
                     .ahead = (uintptr_t)(step * panel) * sizeof *w};
        for (int64_t s = 0; s < n_strips; s++) {
            int64_t row = 2 * s * height;
            amx_out out = {.y = y + row * ldy + p * IFL_PANEL,
                           .ldy = ldy,
                           .rows = m - row,
                           .columns = amx_min(n, (p + step) * IFL_PANEL) - p * IFL_PANEL,
                           .height = height,
                           .resume = resume};
            in.a = a + 2 * s * a_tile;
            in.x = p == panel_begin ? x + row * ldx : NULL;
            in.line_begin = (int)(IFL_DEPTH * s / n_strips); /* each strip its share of the next */
            in.line_end = (int)(IFL_DEPTH * (s + 1) / n_strips);
            if (step == 2)
                amx_1x4(&out, &in);
            else if (2 * s + 1 < n_tiles)
                amx_2x2(&out, &in);
            else
                amx_1x2(&out, &in);
        }
    }
}

static void amx_load_shapes(int64_t height) {
    tile_shapes shapes __attribute__((aligned(64))) = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        shapes.row_bytes[t] = 64;
        shapes.rows[t] = (uint8_t)(t < 6 ? height : AMX_ROW);
    }
    tile_config(&shapes);
}

__attribute__((noinline)) static void matmul_amx_body(float *y, int64_t ldy, const float *x,
                                                      int64_t ldx, const uint16_t *w_panels,
                                                      int64_t m, int64_t n, int64_t k,
                                                      int64_t panel_begin, int64_t panel_end) {
    uint16_t a[AMX_ROWS * AMX_K] __attribute__((aligned(64)));
    int64_t parts = (m + AMX_ROWS - 1) / AMX_ROWS, height_now = 0;
    int64_t m_step = parts ? amx_round_up((m + parts - 1) / parts, 2 * AMX_ROW) : 0;
    for (int64_t i0 = 0; i0 < m; i0 += m_step) {
        int64_t m_block = amx_min(m_step, m - i0), k0 = 0;
        int64_t n_tiles = (m_block + AMX_ROW - 1) / AMX_ROW;
        int64_t height = (m_block + n_tiles - 1) / n_tiles;
        int64_t k_most = n_tiles <= 2 ? AMX_ROWS * AMX_K / (2 * AMX_ROW) : AMX_K;
        int64_t k_parts = (k + k_most - 1) / k_most;
        int64_t k_step = k_parts ? amx_round_up((k + k_parts - 1) / k_parts, IFL_DEPTH) : 0;
        if (height != height_now) amx_load_shapes(height);
        height_now = height;
        do { /* once for k = 0 too: y becomes zero */
            int64_t depth = amx_min(k_step, k - k0);
            amx_panels(y + i0 * ldy, ldy, x + i0 * ldx + k0, ldx, a, w_panels + k0 * IFL_PANEL,
                       ifl_panel_elements(k), m_block, n, depth, height, n_tiles, panel_begin,
                       panel_end, k0 > 0);
            k0 += depth;
        } while (k0 < k);
    }
    tile_release();
}
