/* The second half of attention: o_s of one split, and its merge. 16 outputs are 16 lanes; the keys
 * of a split are walked once per chunk of outputs, from a copy of the chunk when enough rows share
 * it (rows of V lie far apart and would evict each other from L1).
 *
 * Profile `f32` reads V by keys, `bf16` by pairs of keys: v[t], or v[t / 2] for the keys t and t +
 * 1, points at D floats, or at D pairs; a chunk of outputs begins d floats, or d pairs, further on.
 */

enum { PAIR = 2 }; /* keys of one row of V in profile `bf16`, elements of it per output */

/* o[r * ldo + c * 16 ..] continued over keys [begin, end). */
#define ATTENTION_PV_TILE(R, C)                                                                    \
    lanes acc[R][C];                                                                               \
    _Pragma("GCC unroll 16") for (int r = 0; r < (R); r++) {                                       \
        _Pragma("GCC unroll 4") for (int c = 0; c < (C); c++) acc[r][c] =                          \
            lanes_load(o + (r * (C) + c) * 16);                                                    \
    }                                                                                              \
    for (int t = begin; t < end; t++) {                                                            \
        const float *vt = (const float *)v[t] + d;                                                 \
        _Pragma("GCC unroll 4") for (int c = 0; c < (C); c++) {                                    \
            lanes vv = lanes_load(vt + c * 16);                                                    \
            _Pragma("GCC unroll 16") for (int r = 0; r < (R); r++)                                 \
                lanes_fma_into(&acc[r][c], lanes_set(p[r * IFL_KV_SPLIT + t]), vv);                \
        }                                                                                          \
    }                                                                                              \
    _Pragma("GCC unroll 16") for (int r = 0; r < (R); r++) {                                       \
        _Pragma("GCC unroll 4") for (int c = 0; c < (C); c++)                                      \
            lanes_store(o + (r * (C) + c) * 16, acc[r][c]);                                        \
    }
#define ATTENTION_PV_FN(R)                                                                         \
    BODY void attention_pv_wide_##R(float *o, const float *p, const void *const *v, int64_t d,     \
                                    int begin, int end) {                                          \
        ATTENTION_PV_TILE(R, IFL_DIRECT_COLS(R));                                                  \
    }                                                                                              \
    BODY void attention_pv_tile_##R(float *o, const float *p, const void *const *v, int64_t d,     \
                                    int begin, int end) {                                          \
        ATTENTION_PV_TILE(R, IFL_TILE_COLS);                                                       \
    }
IFL_TILE_CASES(ATTENTION_PV_FN)

/* The same over whole blocks of 32 keys, begin and end multiples of 32. */
#define X32_PV_TILE(R, C)                                                                          \
    float *total = o;                                                                              \
    for (int t = begin; t < end; t += IFL_DEPTH)                                                   \
        X32_BLOCK(R, C, IFL_DEPTH, p[r * IFL_KV_SPLIT + t + 2 * i],                                \
                  lanes_load_even((const uint16_t *)v[t / 2 + i] + (d + c * 16) * PAIR),           \
                  p[r * IFL_KV_SPLIT + t + 2 * i + 1],                                             \
                  lanes_load_odd((const uint16_t *)v[t / 2 + i] + (d + c * 16) * PAIR), (void)0);
#define X32_PV_FN(R)                                                                               \
    BODY void x32_pv_wide_##R(float *o, const float *p, const void *const *v, int64_t d,           \
                              int begin, int end) {                                                \
        X32_PV_TILE(R, IFL_DIRECT_COLS(R));                                                        \
    }                                                                                              \
    BODY void x32_pv_tile_##R(float *o, const float *p, const void *const *v, int64_t d,           \
                              int begin, int end) {                                                \
        X32_PV_TILE(R, IFL_TILE_COLS);                                                             \
    }
IFL_TILE_CASES(X32_PV_FN)

static void attention_pv_rows(bool x32, bool wide, int64_t rows, float *o, const float *p,
                              const void *const *v, int64_t d, int begin, int end) {
    switch (rows) {
#define ATTENTION_CASE(R)                                                                          \
    case R:                                                                                        \
        if (wide)                                                                                  \
            (x32 ? x32_pv_wide_##R : attention_pv_wide_##R)(o, p, v, d, begin, end);               \
        else                                                                                       \
            (x32 ? x32_pv_tile_##R : attention_pv_tile_##R)(o, p, v, d, begin, end);               \
        break;
        IFL_TILE_CASES(ATTENTION_CASE)
#undef ATTENTION_CASE
    default:
        break;
    }
}

/* One row over keys [begin, end): a lone row, or the ragged ends of a tile. */
#define ATTENTION_PV_ROW(C)                                                                        \
    BODY void attention_pv_row_##C(float *o, const float *p, const void *const *v, int64_t d,      \
                                   int begin, int end) {                                           \
        ATTENTION_PV_TILE(1, C);                                                                   \
    }                                                                                              \
    BODY void x32_pv_row_##C(float *o, const float *p, const void *const *v, int64_t d, int begin, \
                             int end) {                                                            \
        X32_PV_TILE(1, C);                                                                         \
    }
ATTENTION_PV_ROW(1)
ATTENTION_PV_ROW(2)
ATTENTION_PV_ROW(4)

static void attention_pv_row_of(bool x32, float *o, const float *p, const void *const *v, int64_t d,
                                int cols, int begin, int end) {
    if (cols == 4)
        (x32 ? x32_pv_row_4 : attention_pv_row_4)(o, p, v, d, begin, end);
    else if (cols == 2)
        (x32 ? x32_pv_row_2 : attention_pv_row_2)(o, p, v, d, begin, end);
    else
        (x32 ? x32_pv_row_1 : attention_pv_row_1)(o, p, v, d, begin, end);
}

/* Copies n pairs (a multiple of 4) and keeps one half of each. */
static void attention_half_pairs(uint32_t *out, const uint16_t *pairs, int n, bool first) {
    typedef uint32_t quad __attribute__((vector_size(16)));
    const uint16_t halves[PAIR] = {first ? 0xffffu : 0, first ? 0 : 0xffffu};
    uint32_t keep;
    memcpy(&keep, halves, sizeof keep);
    const quad mask = {keep, keep, keep, keep};
    for (int i = 0; i < n; i += 4) {
        quad pair;
        memcpy(&pair, pairs + i * PAIR, sizeof pair);
        pair &= mask;
        memcpy(out + i, &pair, sizeof pair);
    }
}

/* One row over the blocks that hold keys [begin, end), all of them its own. A key of such a block
 * that the row doesn't see reads as +0, and so does its p: another row's NaN must not come in. */
static void x32_pv_row(float *o, const float *p, const void *const *v, int64_t d, int cols,
                       int begin, int end) {
    enum { PAIRS_MAX = 4 * 16 };
    static const uint32_t zeros[PAIRS_MAX];
    int t = begin;
    while (t < end) {
        int block = t / IFL_DEPTH * IFL_DEPTH, next = block + IFL_DEPTH;
        if (t == block && next <= end) {
            next = end / IFL_DEPTH * IFL_DEPTH;
            attention_pv_row_of(true, o, p + t, v + t / PAIR, d, cols, 0, next - t);
        } else {
            const void *masked_v[IFL_DEPTH / PAIR];
            float masked_p[IFL_DEPTH];
            uint32_t halves[2][PAIRS_MAX]; /* one pair at either end may be seen in half */
            int n_halves = 0;
            for (int i = 0; i < IFL_DEPTH / PAIR; i++) {
                int first = block + PAIR * i, second = first + 1;
                bool see_first = first >= begin && first < end,
                     see_second = second >= begin && second < end;
                masked_p[PAIR * i] = see_first ? p[first] : 0.0f;
                masked_p[PAIR * i + 1] = see_second ? p[second] : 0.0f;
                masked_v[i] = zeros;
                if (!see_first && !see_second) continue;
                const uint16_t *pairs = (const uint16_t *)v[first / PAIR] + d * PAIR;
                masked_v[i] = pairs;
                if (see_first && see_second) continue;
                attention_half_pairs(halves[n_halves], pairs, cols * 16, see_first);
                masked_v[i] = halves[n_halves++];
            }
            attention_pv_row_of(true, o, masked_p, masked_v, 0, cols, 0, IFL_DEPTH);
        }
        t = next;
    }
}

static void attention_pv_row(bool x32, float *o, const float *p, const void *const *v, int64_t d,
                             int cols, int begin, int end) {
    if (begin >= end) return;
    if (x32)
        x32_pv_row(o, p, v, d, cols, begin, end);
    else
        attention_pv_row_of(false, o, p, v, d, cols, begin, end);
}

/* Continues o_s of all rows ([row][cols * 16], at `tile`) over keys [t0, t1) of the split. In
 * profile `bf16` t0 and t1 cut no block of 32 keys that has visible ones on both sides. */
static void attention_pv_keys(float *tile, const attention_call *call, const attention_range *range,
                              const float *p, const void *const *v, int64_t d, bool wide, int cols,
                              int t0, int t1) {
    uint32_t mode = call->x32 ? ifl_rounding_enter_flush() : 0;
    for (int64_t r = 0, rows; r < call->n_rows; r += rows) {
        rows = matmul_rows_of_tile(call->n_rows - r);
        float *o = tile + r * cols * 16;
        const float *pr = p + r * IFL_KV_SPLIT;
        int lo[IFL_TILE_ROWS], hi[IFL_TILE_ROWS], common_lo = t0, common_hi = t1;
        for (int64_t i = 0; i < rows; i++) {
            lo[i] = range->lo[r + i] > t0 ? range->lo[r + i] : t0;
            hi[i] = range->hi[r + i] < t1 ? range->hi[r + i] : t1;
            if (lo[i] > common_lo) common_lo = lo[i];
            if (hi[i] < common_hi) common_hi = hi[i];
        }
        if (call->x32) { /* whole blocks together, others row by row */
            common_lo = (common_lo + IFL_DEPTH - 1) / IFL_DEPTH * IFL_DEPTH;
            common_hi = common_hi / IFL_DEPTH * IFL_DEPTH;
        }
        bool common = common_lo < common_hi && rows > 1;
        for (int64_t i = 0; i < rows; i++)
            attention_pv_row(call->x32, o + i * cols * 16, pr + i * IFL_KV_SPLIT, v, d, cols, lo[i],
                             common ? common_lo : hi[i]);
        if (!common) continue;
        attention_pv_rows(call->x32, wide, rows, o, pr, v, d, common_lo, common_hi);
        for (int64_t i = 0; i < rows; i++)
            attention_pv_row(call->x32, o + i * cols * 16, pr + i * IFL_KV_SPLIT, v, d, cols,
                             common_hi, hi[i]);
    }
    if (call->x32) ifl_rounding_leave_flush(mode);
}

/* Merges o_s of one chunk of outputs, `columns` of them real, into o. */
static void attention_merge(float *const *o, const attention_call *call,
                            const attention_range *range, const float *tile, int64_t d, int cols,
                            int64_t columns, const float *factor, const bool *started) {
    for (int64_t r = 0; r < call->n_rows; r++) {
        if (range->lo[r] >= range->hi[r]) continue;
        lanes c_s = lanes_set(factor[r]);
        float *out = o[r] + d;
        for (int64_t c = 0; c < columns; c += 16) {
            lanes o_s = lanes_load(tile + r * cols * 16 + c);
            if (call->x32) o_s = lanes_add(o_s, lanes_zero());
            int64_t n = columns - c < 16 ? columns - c : 16;
            lanes merged =
                started[r] ? lanes_fma(c_s, o_s, lanes_load_n(out + c, n)) : lanes_mul(c_s, o_s);
            lanes_store_n(out + c, merged, n);
        }
    }
}

/* Few rows: V is read once from memory, a few keys at a time with all their outputs, so that the
 * reads run along V's rows; o_s of all outputs stays in L1. */
static void attention_pv_few(float *const *o, const attention_call *call,
                             const attention_range *range, const float *p, const void *const *v,
                             bool wide, int cols, const float *factor, const bool *started) {
    float tile[ATTENTION_PACK_ROWS * IFL_HEAD_DIM_MAX] __attribute__((aligned(64)));
    int64_t head_dim = call->head_dim, n_rows = call->n_rows;
    int keys = head_dim <= 64 ? IFL_KV_SPLIT : head_dim <= 128 ? 64 : call->x32 ? IFL_DEPTH : 16;
    int begin = call->x32 ? range->lo_min / IFL_DEPTH * IFL_DEPTH : range->lo_min;
    memset(tile, 0, (size_t)(n_rows * head_dim) * sizeof *tile);
    for (int t = begin; t < range->hi_max; t += keys) {
        int end = t + keys < range->hi_max ? t + keys : range->hi_max;
        int next = end + keys < range->hi_max ? end + keys : range->hi_max;
        for (int64_t d = 0; d < head_dim; d += cols * 16) {
            /* The hardware doesn't foresee this walk: 6.5 GB/s without, 11 with (SPEED.md). */
            int rows_end = call->x32 ? (next + 1) / PAIR : next;
            for (int ahead = call->x32 ? end / PAIR : end; ahead < rows_end; ahead++)
                for (int c = 0; c < cols; c++) /* an output's element or pair takes 4 bytes */
                    __builtin_prefetch((const char *)v[ahead] + (d + c * 16) * 4, 0, 2);
            attention_pv_keys(tile + d * n_rows, call, range, p, v, d, wide, cols, t, end);
        }
    }
    for (int64_t d = 0; d < head_dim; d += cols * 16)
        attention_merge(o, call, range, tile + d * n_rows, d, cols, cols * 16, factor, started);
}

/* One chunk of V, dense and padded with zeros: [key][WIDTH] floats, or [pair][WIDTH] pairs, which
 * single keys become when a page holds no more (page_tokens 1). */
static void attention_copy_v(uint32_t *packed, const attention_call *call,
                             const attention_range *range, const void *const *v, int64_t d,
                             int64_t columns) {
    enum { WIDTH = IFL_TILE_COLS * 16 };
    static const uint16_t zeros[16];
    bool single = call->x32 && call->page_mask == 0;
    int step = call->x32 ? PAIR : 1;
    for (int t = range->lo_min / step; t * step < range->hi_max; t++)
        for (int64_t c = 0; c < WIDTH; c += 16) {
            uint32_t *to = packed + t * WIDTH + c;
            int64_t n = columns - c > 16 ? 16 : columns - c;
            if (n <= 0) {
                memset(to, 0, 16 * sizeof *to);
            } else if (!single) {
                memcpy(to, (const uint32_t *)v[t] + d + c, (size_t)n * sizeof *to);
                memset(to + n, 0, (size_t)(16 - n) * sizeof *to);
            } else {
                uint16_t ends[PAIR][16] = {{0}};
                const uint16_t *half[PAIR];
                for (int i = 0; i < PAIR; i++) {
                    int key = PAIR * t + i;
                    half[i] = zeros;
                    if (key < range->lo_min || key >= range->hi_max) continue;
                    half[i] = (const uint16_t *)v[key] + d + c;
                    if (n == 16) continue;
                    memcpy(ends[i], half[i], (size_t)n * sizeof *half[i]);
                    half[i] = ends[i];
                }
                lanes_interleave(to, half[0], half[1]);
            }
        }
}

/* Many rows, or a head whose outputs don't fill the chunks: each chunk of V is copied dense first.
 */
static void attention_pv_many(float *const *o, const attention_call *call,
                              const attention_range *range, const float *p, const void *const *v,
                              const float *factor, const bool *started) {
    enum { WIDTH = IFL_TILE_COLS * 16 };
    uint32_t packed[IFL_KV_SPLIT * WIDTH] __attribute__((aligned(64)));
    float tile[IFL_ATTENTION_ROWS_MAX * WIDTH] __attribute__((aligned(64)));
    const void *v_packed[IFL_KV_SPLIT];
    for (int t = 0; t < IFL_KV_SPLIT; t++)
        v_packed[t] = packed + t * WIDTH;
    for (int64_t d = 0; d < call->head_dim; d += WIDTH) {
        int64_t columns = matmul_min(WIDTH, call->head_dim - d);
        attention_copy_v(packed, call, range, v, d, columns);
        memset(tile, 0, (size_t)(call->n_rows * WIDTH) * sizeof *tile);
        attention_pv_keys(tile, call, range, p, v_packed, 0, false, IFL_TILE_COLS, range->lo_min,
                          range->hi_max);
        attention_merge(o, call, range, tile, d, IFL_TILE_COLS, columns, factor, started);
    }
}

static void attention_pv(float *const *o, const attention_call *call, const attention_range *range,
                         const float *p, const float *factor, const bool *started) {
    const void *v[IFL_KV_SPLIT];
    const ifl_kv_view *view = call->view;
    int step = call->x32 && call->page_mask > 0 ? PAIR : 1;
    for (int t = range->lo_min / step; t * step < range->hi_max; t++) {
        int64_t at = range->begin + t * step, page = view->pages[at >> call->page_shift];
        v[t] = (const char *)view->v + page * call->page_bytes +
               (at & call->page_mask) * call->head_dim * call->element_bytes;
    }
    int cols = IFL_TILE_COLS;
    bool wide = false;
    if (call->n_rows == 1) {
        cols = call->head_dim % 64 == 0 ? 4 : call->head_dim % 32 == 0 ? 2 : 1;
    } else if (call->n_rows <= IFL_TILE_ROWS &&
               call->head_dim % (16 * attention_wide_cols(call->n_rows)) == 0) {
        cols = attention_wide_cols(call->n_rows);
        wide = true;
    }
    bool in_place = call->n_rows < ATTENTION_PACK_ROWS && call->head_dim % (16 * cols) == 0;
    if (in_place && !(call->x32 && call->page_mask == 0))
        attention_pv_few(o, call, range, p, v, wide, cols, factor, started);
    else
        attention_pv_many(o, call, range, p, v, factor, started);
}
