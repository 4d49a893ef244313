/* Attention over a paged KV cache, in tiles of rows. The order per row is that of kernels/ops.h;
 * what is free, and chosen here, is which rows and which 16 keys (or outputs) share registers.
 *
 * Scores: 16 keys are 16 lanes, a K block is [D][16] (profile `bf16`: [D / 2][16][2]) as the cache
 * stores it; pages of fewer than 16 tokens (the learner's 1) are gathered into such a block first,
 * once for all rows. PV: attention_pv.inc.h.
 *
 * All scores of a call are kept when they fit (64 Ki of them); longer contexts go in groups of
 * rows, and the longest ones compute their scores twice, since every maximum must be known before
 * the first merge. Scratch is on the stack: less than 512 KiB. */

enum {
    ATTENTION_SCORES = 65536, /* floats kept: rows x splits x 256 */
    ATTENTION_GROUP_MIN = 16, /* smaller groups of rows would reread K and V too often */
    ATTENTION_PACK_ROWS = 8,  /* rows from which copying a chunk of V pays */
    ATTENTION_BLOCKS = 2,     /* key blocks gathered at a time */
};

typedef struct attention_call {
    const ifl_kv_view *view;
    int64_t head_dim;
    int64_t n_rows;
    float scale;
    int64_t first[IFL_ATTENTION_ROWS_MAX], stop[IFL_ATTENTION_ROWS_MAX]; /* visible keys */
    float *q_tiles; /* per row tile [D][rows] */
    int page_shift; /* t >> page_shift is t's page, t & page_mask its place there */
    int64_t page_mask;
    bool x32; /* profile `bf16` */
    int64_t element_bytes, page_bytes;
} attention_call;

/* The visible keys [lo, hi) of each row inside one split, relative to the split's first key. */
typedef struct attention_range {
    int64_t begin; /* absolute position of the split */
    int lo[IFL_ATTENTION_ROWS_MAX], hi[IFL_ATTENTION_ROWS_MAX];
    int lo_min, hi_max; /* over the rows that see anything; lo_min >= hi_max: none does */
} attention_range;

static void attention_range_of(attention_range *range, const attention_call *call, int64_t split) {
    range->begin = split * IFL_KV_SPLIT;
    range->lo_min = IFL_KV_SPLIT;
    range->hi_max = 0;
    for (int64_t r = 0; r < call->n_rows; r++) {
        int64_t lo = call->first[r] - range->begin, hi = call->stop[r] - range->begin;
        lo = lo < 0 ? 0 : lo > IFL_KV_SPLIT ? IFL_KV_SPLIT : lo;
        hi = hi < 0 ? 0 : hi > IFL_KV_SPLIT ? IFL_KV_SPLIT : hi;
        range->lo[r] = (int)lo;
        range->hi[r] = (int)hi;
        if (lo >= hi) continue;
        if (lo < range->lo_min) range->lo_min = (int)lo;
        if (hi > range->hi_max) range->hi_max = (int)hi;
    }
}

/* --- Scores ---------------------------------------------------------------------------------- */

/* score[r * 256 + c * 16 ..] for R rows and the first n_blocks of C key blocks. */
#define ATTENTION_SCORES_TILE(R, C, AHEAD)                                                         \
    const float *k[C];                                                                             \
    for (int c = 0; c < (C); c++)                                                                  \
        k[c] = (const float *)blocks[c];                                                           \
    lanes acc[R][C];                                                                               \
    _Pragma("GCC unroll 16") for (int r = 0; r < (R); r++) {                                       \
        _Pragma("GCC unroll 4") for (int c = 0; c < (C); c++) acc[r][c] = lanes_zero();            \
    }                                                                                              \
    for (int64_t d = 0; d < head_dim; d++) {                                                       \
        _Pragma("GCC unroll 4") for (int c = 0; c < (C); c++) {                                    \
            lanes kv = lanes_load(k[c] + d * 16);                                                  \
            if (AHEAD) __builtin_prefetch(k[c] + d * 16 + (AHEAD), 0, 2);                          \
            _Pragma("GCC unroll 16") for (int r = 0; r < (R); r++)                                 \
                lanes_fma_into(&acc[r][c], lanes_set(q[d * (R) + r]), kv);                         \
        }                                                                                          \
    }                                                                                              \
    lanes scales = lanes_set(scale);                                                               \
    _Pragma("GCC unroll 16") for (int r = 0; r < (R); r++) {                                       \
        _Pragma("GCC unroll 4") for (int c = 0; c < (C); c++) {                                    \
            if (c < n_blocks)                                                                      \
                lanes_store(score + r * IFL_KV_SPLIT + c * 16, lanes_mul(acc[r][c], scales));      \
        }                                                                                          \
    }
#define ATTENTION_SCORES_FN(R)                                                                     \
    BODY void attention_scores_wide_##R(float *score, const float *q, const void *const *blocks,   \
                                        int64_t head_dim, float scale, int n_blocks) {             \
        ATTENTION_SCORES_TILE(R, IFL_DIRECT_COLS(R), 512);                                         \
    }                                                                                              \
    BODY void attention_scores_tile_##R(float *score, const float *q, const void *const *blocks,   \
                                        int64_t head_dim, float scale, int n_blocks) {             \
        ATTENTION_SCORES_TILE(R, IFL_TILE_COLS, 0);                                                \
    }
IFL_TILE_CASES(ATTENTION_SCORES_FN)

#define X32_SCORES_TILE(R, C, AHEAD)                                                               \
    const uint16_t *k[C];                                                                          \
    for (int c = 0; c < (C); c++)                                                                  \
        k[c] = (const uint16_t *)blocks[c];                                                        \
    float total[(R) * (C)*16] __attribute__((aligned(64))) = {0};                                  \
    for (int64_t d = 0, half = 0; d < head_dim; d += IFL_DEPTH, q += IFL_DEPTH * (R))              \
        X32_BLOCK(                                                                                 \
            R, C, (int)matmul_min(IFL_DEPTH, head_dim - d), q[2 * i * (R) + r],                    \
            lanes_load_even(k[c] + (d / 2 + i) * 32), q[(2 * i + 1) * (R) + r],                    \
            lanes_load_odd(k[c] + (d / 2 + i) * 32), /* half a line at each step of both halves */ \
            for (int c = 0; (AHEAD) && c < (C); c++)                                               \
                __builtin_prefetch(k[c] + half * 16 + (AHEAD), 0, 2);                              \
            half++);                                                                               \
    lanes scales = lanes_set(scale);                                                               \
    for (int r = 0; r < (R); r++)                                                                  \
        for (int c = 0; c < (C); c++)                                                              \
            if (c < n_blocks)                                                                      \
                lanes_store(score + r * IFL_KV_SPLIT + c * 16,                                     \
                            lanes_mul(lanes_load(total + (r * (C) + c) * 16), scales));
#define X32_SCORES_FN(R)                                                                           \
    BODY void x32_scores_wide_##R(float *score, const float *q, const void *const *blocks,         \
                                  int64_t head_dim, float scale, int n_blocks) {                   \
        X32_SCORES_TILE(R, IFL_DIRECT_COLS(R), 1024);                                              \
    }                                                                                              \
    BODY void x32_scores_tile_##R(float *score, const float *q, const void *const *blocks,         \
                                  int64_t head_dim, float scale, int n_blocks) {                   \
        X32_SCORES_TILE(R, IFL_TILE_COLS, 0);                                                      \
    }
IFL_TILE_CASES(X32_SCORES_FN)

static void attention_scores_rows(bool x32, bool wide, int64_t rows, float *score, const float *q,
                                  const void *const *k, int64_t head_dim, float scale,
                                  int n_blocks) {
    switch (rows) {
#define ATTENTION_CASE(R)                                                                          \
    case R:                                                                                        \
        if (wide)                                                                                  \
            (x32 ? x32_scores_wide_##R : attention_scores_wide_##R)(score, q, k, head_dim, scale,  \
                                                                    n_blocks);                     \
        else                                                                                       \
            (x32 ? x32_scores_tile_##R : attention_scores_tile_##R)(score, q, k, head_dim, scale,  \
                                                                    n_blocks);                     \
        break;
        IFL_TILE_CASES(ATTENTION_CASE)
#undef ATTENTION_CASE
    default:
        break;
    }
}

static int attention_wide_cols(int64_t rows) {
    switch (rows) {
#define ATTENTION_CASE(R)                                                                          \
    case R:                                                                                        \
        return IFL_DIRECT_COLS(R);
        IFL_TILE_CASES(ATTENTION_CASE)
#undef ATTENTION_CASE
    default:
        return IFL_TILE_COLS;
    }
}

/* Copies keys [t, t + 16) into `block` of words, [D][16] (or pairs [D / 2][16]); keys outside
 * [t_min, t_max) read as 0. A page is one such block of b < 16 keys. */
static void attention_gather(uint32_t *block, const attention_call *call, int64_t t, int64_t t_min,
                             int64_t t_max) {
    const ifl_kv_view *view = call->view;
    static const uint32_t zeros[IFL_LANES] = {0};
    int64_t b = view->page_tokens, n_words = call->x32 ? call->head_dim / 2 : call->head_dim;
    const uint32_t *key[IFL_LANES];
    for (int64_t j = 0; j < 16; j++) {
        key[j] = NULL;
        if (t + j >= t_min && t + j < t_max)
            key[j] =
                (const uint32_t *)((const char *)view->k +
                                   view->pages[(t + j) >> call->page_shift] * call->page_bytes) +
                ((t + j) & call->page_mask);
    }
    int64_t w = 0;
    if (b == 1)
        for (; w + 16 <= n_words; w += 16) {
            const void *rows[IFL_LANES];
            for (int j = 0; j < 16; j++)
                rows[j] = key[j] ? key[j] + w : zeros;
            lanes_transpose(block + w * 16, rows);
        }
    for (; w < n_words; w++)
        for (int j = 0; j < 16; j++) {
            uint32_t word = 0;
            if (key[j]) memcpy(&word, key[j] + w * b, sizeof word);
            memcpy(block + w * 16 + j, &word, sizeof word);
        }
}

/* Scores of all rows for one split: score[row * 256 + t]. Blocks that no row of a tile sees are
 * skipped; entries of invisible keys are whatever came out. */
static void attention_scores(float *score, const attention_call *call,
                             const attention_range *range) {
    uint32_t gathered[ATTENTION_BLOCKS * IFL_HEAD_DIM_MAX * 16] __attribute__((aligned(64)));
    const ifl_kv_view *view = call->view;
    int64_t head_dim = call->head_dim;
    bool gather = view->page_tokens < 16;
    bool wide = !gather && call->n_rows <= IFL_TILE_ROWS;
    int cols = wide ? attention_wide_cols(call->n_rows) : IFL_TILE_COLS;
    uint32_t mode = call->x32 ? ifl_rounding_enter_flush() : 0;
    for (int t0 = range->lo_min / 16 * 16; t0 < range->hi_max; t0 += cols * 16) {
        const void *k[4] = {NULL};
        int n_blocks = 0;
        for (; n_blocks < cols && t0 + n_blocks * 16 < range->hi_max; n_blocks++) {
            int64_t t = range->begin + t0 + n_blocks * 16;
            if (gather) {
                k[n_blocks] = gathered + n_blocks * head_dim * 16;
                attention_gather(gathered + n_blocks * head_dim * 16, call, t,
                                 range->begin + range->lo_min, range->begin + range->hi_max);
            } else {
                int64_t page = view->pages[t >> call->page_shift];
                k[n_blocks] = (const char *)view->k + page * call->page_bytes +
                              (t & call->page_mask) * head_dim * call->element_bytes;
            }
        }
        for (int c = n_blocks; c < 4; c++)
            k[c] = k[0];
        for (int64_t r = 0, rows; r < call->n_rows; r += rows) {
            rows = matmul_rows_of_tile(call->n_rows - r);
            bool seen = false;
            for (int64_t i = r; i < r + rows; i++)
                seen |= range->lo[i] < range->hi[i] && range->lo[i] < t0 + cols * 16 &&
                        range->hi[i] > t0;
            if (seen)
                attention_scores_rows(call->x32, wide, rows, score + r * IFL_KV_SPLIT + t0,
                                      call->q_tiles + r * head_dim, k, head_dim, call->scale,
                                      n_blocks);
        }
    }
    if (call->x32) ifl_rounding_leave_flush(mode);
}

/* Selects the invisible entries of the blocks [lo / 16, hi / 16] out; returns the maximum of the
 * rest. */
static float attention_mask(float *score, int lo, int hi) {
    float minus_infinity = ifl_f32_of_bits(0xff800000u);
    int begin = lo / 16 * 16, end = (hi + 15) / 16 * 16;
    for (int t = begin; t < lo; t++)
        score[t] = minus_infinity;
    for (int t = hi; t < end; t++)
        score[t] = minus_infinity;
    return row_max(score + begin, end - begin);
}

/* Scores, masked, become p in place, in profile `bf16` rounded after the sum; returns the lane sum.
 * p of an invisible key is +0, which the sum does not notice; the PV chain leaves it out. */
static float attention_exp(float *score, int lo, int hi, float split_max, bool x32) {
    lanes max = lanes_set(split_max), sum = lanes_zero();
    for (int t = lo / 16 * 16; t < hi; t += 16) {
        lanes_store(score + t, lanes_exp(lanes_sub(lanes_load(score + t), max)));
        if (t < lo)
            for (int j = t; j < lo; j++)
                score[j] = 0.0f;
        if (t + 16 > hi)
            for (int j = hi; j < t + 16; j++)
                score[j] = 0.0f;
        lanes p = lanes_load(score + t);
        sum = lanes_add(sum, p);
        if (x32) lanes_store(score + t, lanes_round_bf16(p));
    }
    return lanes_tree(sum);
}

#include "kernels/cpu/attention_pv.inc.h"

/* --- The op ---------------------------------------------------------------------------------- */

static void attention_group(float *const *o, const float *const *q, attention_call *call,
                            int64_t begin, int64_t end, ifl_lse *lse) {
    float scores[ATTENTION_SCORES] __attribute__((aligned(64)));
    ifl_lse splits[ATTENTION_SCORES / IFL_KV_SPLIT]; /* [split][row], when the scores are kept */
    ifl_lse row[IFL_ATTENTION_ROWS_MAX], fresh[IFL_ATTENTION_ROWS_MAX];
    bool started[IFL_ATTENTION_ROWS_MAX] = {false};
    float factor[IFL_ATTENTION_ROWS_MAX];
    attention_range range;
    int64_t n_rows = call->n_rows, per_split = n_rows * IFL_KV_SPLIT;
    bool keep = (end - begin) * per_split <= ATTENTION_SCORES;

    for (int64_t r = 0, rows; r < n_rows; r += rows) {
        rows = matmul_rows_of_tile(n_rows - r);
        for (int64_t i = 0; i < rows; i++)
            for (int64_t d = 0; d < call->head_dim; d++)
                call->q_tiles[r * call->head_dim + d * rows + i] = q[r + i][d];
    }
    for (int64_t r = 0; r < n_rows; r++)
        row[r] = (ifl_lse){.max = ifl_f32_of_bits(0xff800000u), .sum = 0.0f};

    for (int64_t s = begin; s < end; s++) {
        float *score = scores + (keep ? (s - begin) * per_split : 0);
        attention_range_of(&range, call, s);
        attention_scores(score, call, &range);
        for (int64_t r = 0; r < n_rows; r++) {
            if (range.lo[r] >= range.hi[r]) continue;
            float max = attention_mask(score + r * IFL_KV_SPLIT, range.lo[r], range.hi[r]);
            row[r].max = max > row[r].max ? max : row[r].max;
            if (!keep) continue;
            ifl_lse *split = &splits[(s - begin) * n_rows + r];
            split->max = max;
            split->sum =
                attention_exp(score + r * IFL_KV_SPLIT, range.lo[r], range.hi[r], max, call->x32);
        }
    }
    for (int64_t s = begin; s < end; s++) {
        float *score = scores + (keep ? (s - begin) * per_split : 0);
        const ifl_lse *split = keep ? &splits[(s - begin) * n_rows] : fresh;
        attention_range_of(&range, call, s);
        if (!keep) {
            attention_scores(score, call, &range);
            for (int64_t r = 0; r < n_rows; r++) {
                if (range.lo[r] >= range.hi[r]) continue;
                float *p = score + r * IFL_KV_SPLIT;
                fresh[r].max = attention_mask(p, range.lo[r], range.hi[r]);
                fresh[r].sum = attention_exp(p, range.lo[r], range.hi[r], fresh[r].max, call->x32);
            }
        }
        for (int64_t r = 0; r < n_rows; r++) {
            if (range.lo[r] >= range.hi[r]) continue;
            factor[r] = ifl_exp_scalar(split[r].max - row[r].max);
            row[r].sum = started[r] ? __builtin_fmaf(factor[r], split[r].sum, row[r].sum)
                                    : factor[r] * split[r].sum;
        }
        attention_pv(o, call, &range, score, factor, started);
        for (int64_t r = 0; r < n_rows; r++)
            if (range.lo[r] < range.hi[r]) started[r] = true;
    }
    const int64_t n = call->head_dim;
    for (int64_t r = 0; r < n_rows; r++) {
        lanes sum = lanes_set(row[r].sum);
        float *out = o[r];
        LANES_LOOP(n, { STORE(out, lanes_div(LOAD(out), sum)); });
        if (lse) lse[r] = row[r];
    }
}

static void attention_any(bool x32, float *const *o, const float *const *q, const int32_t *pos,
                          int64_t n_rows, const ifl_kv_view *view, int64_t head_dim, float scale,
                          int32_t window, ifl_lse *lse) {
    float q_tiles[IFL_ATTENTION_ROWS_MAX * IFL_HEAD_DIM_MAX] __attribute__((aligned(64)));
    attention_call call = {.view = view,
                           .head_dim = head_dim,
                           .scale = scale,
                           .q_tiles = q_tiles,
                           .page_shift = __builtin_ctz((unsigned)view->page_tokens),
                           .page_mask = view->page_tokens - 1,
                           .x32 = x32,
                           .element_bytes = x32 ? 2 : 4,
                           .page_bytes = view->page_stride * (x32 ? 2 : 4)};
    for (int64_t r0 = 0, rows; r0 < n_rows; r0 += rows) {
        int64_t begin = INT64_MAX, end = 0;
        for (int64_t r = r0; r < n_rows; r++) {
            int64_t first = window > 0 && pos[r] - window + 1 > 0 ? pos[r] - window + 1 : 0;
            call.first[r - r0] = first;
            call.stop[r - r0] = (int64_t)pos[r] + 1;
            begin = matmul_min(begin, first / IFL_KV_SPLIT);
            if (pos[r] / IFL_KV_SPLIT + 1 > end) end = pos[r] / IFL_KV_SPLIT + 1;
        }
        rows = n_rows - r0;
        int64_t fit = ATTENTION_SCORES / IFL_KV_SPLIT / (end - begin);
        if (rows > fit && fit >= ATTENTION_GROUP_MIN) rows = fit;
        call.n_rows = rows;
        attention_group(o + r0, q + r0, &call, begin, end, lse ? lse + r0 : NULL);
    }
}

BODY void attention_body(float *const *o, const float *const *q, const int32_t *pos, int64_t n_rows,
                         const ifl_kv_view *view, int64_t head_dim, float scale, int32_t window,
                         ifl_lse *lse) {
    attention_any(false, o, q, pos, n_rows, view, head_dim, scale, window, lse);
}

BODY void attention_x32_body(float *const *o, const float *const *q, const int32_t *pos,
                             int64_t n_rows, const ifl_kv_view *view, int64_t head_dim, float scale,
                             int32_t window, ifl_lse *lse) {
    attention_any(true, o, q, pos, n_rows, view, head_dim, scale, window, lse);
}

/* The view reads; a store goes to the same place, which the caller owns. */
BODY void kv_store_body(const ifl_kv_view *view, int64_t t, const float *k, const float *v,
                        int64_t head_dim) {
    int64_t b = view->page_tokens < 16 ? view->page_tokens : 16;
    int64_t page = view->pages[t / view->page_tokens] * view->page_stride,
            j = t % view->page_tokens;
    float *key = (float *)(uintptr_t)view->k + page + (j / b) * (head_dim * b) + j % b;
    float *value = (float *)(uintptr_t)view->v + page + j * head_dim;
    for (int64_t d = 0; d < head_dim; d++)
        key[d * b] = k[d];
    memcpy(value, v, (size_t)head_dim * sizeof *value);
}

BODY void kv_store_bf16_body(const ifl_kv_view *view, int64_t t, const float *k, const float *v,
                             int64_t head_dim) {
    int64_t b = view->page_tokens < 16 ? view->page_tokens : 16;
    int64_t f = view->page_tokens < 2 ? 1 : 2;
    int64_t page = view->pages[t / view->page_tokens] * view->page_stride,
            j = t % view->page_tokens;
    uint16_t *key = (uint16_t *)(uintptr_t)view->k + page + (j / b) * (head_dim * b) + j % b * 2;
    uint16_t *value = (uint16_t *)(uintptr_t)view->v + page + (j / f) * (head_dim * f) + j % f;
    for (int64_t d = 0; d < head_dim; d++) {
        uint32_t k_bits, v_bits;
        memcpy(&k_bits, &k[d], sizeof k_bits);
        memcpy(&v_bits, &v[d], sizeof v_bits);
        key[(d / 2) * (2 * b) + d % 2] = (uint16_t)(k_bits >> 16);
        value[d * f] = (uint16_t)(v_bits >> 16);
    }
}
