#include "actor/parity_mutants.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "actor/parity_products.h"
#include "common/bf16.h"
#include "kernels/cpu/rounding.h"

static const ifl_ops *base; /* what the table under way was made of */

static bool x32(void) {
    return base->profile == IFL_PROFILE_BF16;
}

/* The compiler knows nothing of MXCSR: what runs under another setting is a function of its own. */
#define APART __attribute__((noinline))

static uint32_t products_enter(void) {
    return x32() ? ifl_rounding_enter_flush() : ifl_rounding_enter();
}
static void products_leave(uint32_t saved) {
    if (x32())
        ifl_rounding_leave_flush(saved);
    else
        ifl_rounding_leave(saved);
}

/* --- Attention
 * -------------------------------------------------------------------------------------------- */

typedef struct attention_style {
    int64_t split; /* keys */
    bool libm;     /* exp by the C library */
    bool fused;    /* scale and maximum in one step, as -ffp-contract=fast has it */
} attention_style;

/* A key of one row alone has weight 1: its output is the value, and its maximum is the score. So
 * the cache is read here without a word about its layout. */
static void keys_read(const float *q, const ifl_kv_view *view, int64_t head_dim, float scale,
                      int64_t begin, int64_t n, float *score, float *v) {
    float *o_rows[IFL_ATTENTION_ROWS_MAX];
    const float *q_rows[IFL_ATTENTION_ROWS_MAX];
    int32_t pos[IFL_ATTENTION_ROWS_MAX];
    ifl_lse lse[IFL_ATTENTION_ROWS_MAX];
    for (int64_t i = 0; i < n; i++) {
        o_rows[i] = v + i * head_dim;
        q_rows[i] = q;
        pos[i] = (int32_t)(begin + i);
    }
    base->attention(o_rows, q_rows, pos, n, view, head_dim, scale, 1, lse);
    for (int64_t i = 0; i < n; i++)
        score[i] = lse[i].max;
}

static APART void weigh(float *p, const float *score, float scale, float max, int64_t n,
                        const attention_style *style) {
    for (int64_t i = 0; i < n; i++)
        p[i] = style->fused ? fmaf(score[i], scale, -max) : score[i] - max;
    if (!style->libm) {
        base->exp(p, p, n);
        return;
    }
    for (int64_t i = 0; i < n; i++)
        p[i] = expf(p[i]);
}

static APART float scaled_max(const float *score, float scale, int64_t n) {
    float max = -INFINITY;
    for (int64_t i = 0; i < n; i++)
        max = score[i] * scale > max ? score[i] * scale : max;
    return max + 0.0f;
}

/* o[d] of one split whose visible keys are [begin, end), v[t - begin]. */
static APART void values_add(float *o, const float *p, const float *v, int64_t begin, int64_t end,
                             int64_t head_dim) {
    for (int64_t d = 0; d < head_dim; d++) {
        float acc = 0.0f, half[2] = {0.0f, 0.0f};
        for (int64_t t = begin; t < end; t++) {
            const float *at = v + (t - begin) * head_dim + d;
            if (!x32()) {
                acc = fmaf(p[t - begin], *at, acc);
                continue;
            }
            float rounded = ifl_bf16_to_f32(ifl_bf16_from_f32(p[t - begin]));
            half[t % 2] = fmaf(rounded, *at, half[t % 2]);
            if (t % IFL_DEPTH < IFL_DEPTH - 1 && t + 1 < end) continue;
            acc = acc + (half[0] + half[1]);
            half[0] = half[1] = 0.0f;
        }
        o[d] = acc;
    }
}

static APART float lanes_of(const float *p, int64_t begin, int64_t end) {
    float lanes[IFL_LANES] = {0};
    for (int64_t t = begin; t < end; t++)
        lanes[t % IFL_LANES] += p[t - begin];
    for (int width = IFL_LANES / 2; width > 0; width /= 2)
        for (int l = 0; l < width; l++)
            lanes[l] += lanes[l + width];
    return lanes[0];
}

enum {
    SPLITS_MAX = 16, /* of a row: what fits on the stack */
    VALUES_MAX = IFL_ATTENTION_ROWS_MAX * IFL_HEAD_DIM_MAX,
};

static APART void splits_merge(float *o, ifl_lse *out, const ifl_lse *splits, const float *parts,
                               int64_t n, int64_t head_dim) {
    float max = splits[0].max, factor[SPLITS_MAX] = {0}, sum = 0.0f;
    for (int64_t s = 1; s < n; s++)
        max = splits[s].max > max ? splits[s].max : max;
    for (int64_t s = 0; s < n; s++)
        factor[s] = splits[s].max - max;
    base->exp(factor, factor, n);
    for (int64_t s = 0; s < n; s++)
        sum = s == 0 ? factor[0] * splits[0].sum : fmaf(factor[s], splits[s].sum, sum);
    for (int64_t d = 0; d < head_dim; d++) {
        float acc = factor[0] * parts[d];
        for (int64_t s = 1; s < n; s++)
            acc = fmaf(factor[s], parts[s * head_dim + d], acc);
        o[d] = acc / sum;
    }
    *out = (ifl_lse){max, sum};
}

/* False where the stack has no room. */
static bool attention_row(float *o, const float *q, int32_t last, const ifl_kv_view *view,
                          int64_t head_dim, float scale, int32_t window, ifl_lse *lse,
                          const attention_style *style) {
    float score[IFL_KV_SPLIT], p[IFL_KV_SPLIT], parts[SPLITS_MAX * IFL_HEAD_DIM_MAX];
    float v[VALUES_MAX]; /* of one split */
    int64_t first = window > 0 && last - window + 1 > 0 ? last - window + 1 : 0, n = 0;
    ifl_lse splits[SPLITS_MAX];
    if (last / style->split - first / style->split >= SPLITS_MAX) return false;
    if (style->split * head_dim > VALUES_MAX) return false;
    for (int64_t t = first; t <= last; n++) {
        int64_t stop = (t / style->split + 1) * style->split;
        if (stop > last + 1) stop = last + 1;
        for (int64_t at = t; at < stop; at += IFL_ATTENTION_ROWS_MAX) {
            int64_t now = stop - at < IFL_ATTENTION_ROWS_MAX ? stop - at : IFL_ATTENTION_ROWS_MAX;
            keys_read(q, view, head_dim, style->fused ? 1.0f : scale, at, now, score + at - t,
                      v + (at - t) * head_dim);
        }
        uint32_t saved = ifl_rounding_enter();
        splits[n].max = scaled_max(score, style->fused ? scale : 1.0f, stop - t);
        weigh(p, score, scale, splits[n].max, stop - t, style);
        splits[n].sum = lanes_of(p, t, stop);
        ifl_rounding_leave(saved);
        saved = products_enter();
        values_add(parts + n * head_dim, p, v, t, stop, head_dim);
        products_leave(saved);
        t = stop;
    }
    uint32_t saved = ifl_rounding_enter();
    splits_merge(o, lse, splits, parts, n, head_dim);
    ifl_rounding_leave(saved);
    return true;
}

#define ATTENTION_ARGUMENTS                                                                        \
    float *const *o, const float *const *q, const int32_t *pos, int64_t n_rows,                    \
        const ifl_kv_view *view, int64_t head_dim, float scale, int32_t window, ifl_lse *lse

static void attention_as(ATTENTION_ARGUMENTS, attention_style style) {
    for (int64_t r = 0; r < n_rows; r++) {
        ifl_lse row;
        if (!attention_row(o[r], q[r], pos[r], view, head_dim, scale, window, &row, &style))
            base->attention(o + r, q + r, pos + r, 1, view, head_dim, scale, window, &row);
        if (lse) lse[r] = row;
    }
}

static void attention_honest(ATTENTION_ARGUMENTS) {
    attention_as(o, q, pos, n_rows, view, head_dim, scale, window, lse,
                 (attention_style){.split = IFL_KV_SPLIT});
}
static void attention_libm(ATTENTION_ARGUMENTS) {
    attention_as(o, q, pos, n_rows, view, head_dim, scale, window, lse,
                 (attention_style){.split = IFL_KV_SPLIT, .libm = true});
}
static void attention_contracted(ATTENTION_ARGUMENTS) {
    attention_as(o, q, pos, n_rows, view, head_dim, scale, window, lse,
                 (attention_style){.split = IFL_KV_SPLIT, .fused = true});
}

/* More splits where there are few rows to share out, as decode kernels have it. */
static void attention_split(ATTENTION_ARGUMENTS) {
    if (n_rows >= 16)
        base->attention(o, q, pos, n_rows, view, head_dim, scale, window, lse);
    else
        attention_as(o, q, pos, n_rows, view, head_dim, scale, window, lse,
                     (attention_style){.split = IFL_KV_SPLIT / 2});
}

/* --- Rows and log-sum-exps
 * -------------------------------------------------------------------------------- */

static APART float norm_factor(const float *x, float eps, int64_t n, int n_lanes, bool unfused) {
    float lanes[IFL_LANES] = {0};
    for (int64_t c = 0; c < n; c++) {
        float *lane = &lanes[c % n_lanes];
        *lane = unfused ? x[c] * x[c] + *lane : fmaf(x[c], x[c], *lane);
    }
    for (int width = n_lanes / 2; width > 0; width /= 2)
        for (int l = 0; l < width; l++)
            lanes[l] += lanes[l + width];
    return 1.0f / sqrtf(lanes[0] / (float)n + eps);
}

static APART void norm_row(float *y, const float *x, const float *w, float offset, float r,
                           int64_t n) {
    for (int64_t c = 0; c < n; c++)
        y[c] = (x[c] * r) * (offset + w[c]);
}

static void rmsnorm_as(float *y, int64_t ldy, const float *x, int64_t ldx, const float *w,
                       float offset, float eps, int64_t m, int64_t n, float *r, int n_lanes,
                       bool unfused) {
    uint32_t saved = ifl_rounding_enter();
    for (int64_t i = 0; i < m; i++) {
        float ri = norm_factor(x + i * ldx, eps, n, n_lanes, unfused);
        norm_row(y + i * ldy, x + i * ldx, w, offset, ri, n);
        if (r) r[i] = ri;
    }
    ifl_rounding_leave(saved);
}

#define NORM_ARGUMENTS                                                                             \
    float *y, int64_t ldy, const float *x, int64_t ldx, const float *w, float offset, float eps,   \
        int64_t m, int64_t n, float *r

static void rmsnorm_honest(NORM_ARGUMENTS) {
    rmsnorm_as(y, ldy, x, ldx, w, offset, eps, m, n, r, IFL_LANES, false);
}
static void rmsnorm_unfused(NORM_ARGUMENTS) {
    rmsnorm_as(y, ldy, x, ldx, w, offset, eps, m, n, r, IFL_LANES, true);
}
/* Another block size from a number of rows on. */
static void rmsnorm_blocks(NORM_ARGUMENTS) {
    rmsnorm_as(y, ldy, x, ldx, w, offset, eps, m, n, r, m >= 2 ? IFL_LANES / 2 : IFL_LANES, false);
}

static APART void rope_unfused_heads(float *x, int64_t ldx, const float *cosines,
                                     const float *sines, int64_t m, int64_t head_dim) {
    int64_t half = head_dim / 2;
    for (int64_t h = 0; h < m; h++)
        for (int64_t i = 0; i < half; i++) {
            float a = x[h * ldx + i], b = x[h * ldx + half + i];
            x[h * ldx + i] = a * cosines[i] - b * sines[i];
            x[h * ldx + half + i] = b * cosines[i] + a * sines[i];
        }
}

static void rope_unfused(float *x, int64_t ldx, const float *cosines, const float *sines, int64_t m,
                         int64_t head_dim) {
    uint32_t saved = ifl_rounding_enter();
    rope_unfused_heads(x, ldx, cosines, sines, m, head_dim);
    ifl_rounding_leave(saved);
}

static APART ifl_lse block_sum(const float *x, float *p, float max, int64_t n, bool libm) {
    float lanes[IFL_LANES] = {0};
    for (int64_t i = 0; i < n; i++) {
        float e = x[i] - max;
        if (libm)
            e = expf(e);
        else
            base->exp(&e, &e, 1);
        lanes[i % IFL_LANES] += e;
        if (p) p[i] = e;
    }
    for (int width = IFL_LANES / 2; width > 0; width /= 2)
        for (int l = 0; l < width; l++)
            lanes[l] += lanes[l + width];
    return (ifl_lse){max, lanes[0]};
}

static ifl_lse block_lse_as(const float *x, int64_t n, float *p, bool libm) {
    uint32_t saved = ifl_rounding_enter();
    ifl_lse out = block_sum(x, p, scaled_max(x, 1.0f, n), n, libm);
    ifl_rounding_leave(saved);
    return out;
}
static ifl_lse block_lse_honest(const float *x, int64_t n, float *p) {
    return block_lse_as(x, n, p, false);
}
static ifl_lse block_lse_libm(const float *x, int64_t n, float *p) {
    return block_lse_as(x, n, p, true);
}

static APART ifl_lse merge_blocks(const ifl_lse *blocks, int64_t n) {
    ifl_lse out = {blocks[0].max, 0.0f};
    for (int64_t b = 1; b < n; b++)
        out.max = blocks[b].max > out.max ? blocks[b].max : out.max;
    for (int64_t b = 0; b < n; b++) {
        float c = blocks[b].max - out.max;
        base->exp(&c, &c, 1);
        out.sum = c * blocks[b].sum + out.sum;
    }
    return out;
}
static ifl_lse merge_lse_unfused(const ifl_lse *blocks, int64_t n) {
    uint32_t saved = ifl_rounding_enter();
    ifl_lse out = merge_blocks(blocks, n);
    ifl_rounding_leave(saved);
    return out;
}

/* log p = x - log-sum-exp in the place of (x - max) - log(sum): right to the last digit but one. */
static APART ifl_lse merge_to_one_number(ifl_lse lse) {
    float log_sum;
    base->log(&log_sum, &lse.sum, 1);
    return (ifl_lse){lse.max + log_sum, 1.0f};
}
static ifl_lse merge_lse_second(const ifl_lse *blocks, int64_t n) {
    uint32_t saved = ifl_rounding_enter();
    ifl_lse out = merge_to_one_number(base->merge_lse(blocks, n));
    ifl_rounding_leave(saved);
    return out;
}

/* --- Gradients
 * -------------------------------------------------------------------------------------------- */

static atomic_uint gradient_calls;

/* Two halves of a sum in the order in which they happen to arrive. */
static void matmul_f32_unordered(float *c, int64_t ldc, const float *a, int64_t a_row,
                                 int64_t a_col, const float *b_panels, int64_t m, int64_t n,
                                 int64_t k, int64_t panel_begin, int64_t panel_end,
                                 bool accumulate) {
    uint32_t call = atomic_fetch_add_explicit(&gradient_calls, 1, memory_order_relaxed);
    int64_t half = k / 2;
    if (half == 0 || (call * 2654435761u) >> 31 == 0) {
        base->matmul_f32(c, ldc, a, a_row, a_col, b_panels, m, n, k, panel_begin, panel_end,
                         accumulate);
        return;
    }
    for (int64_t panel = panel_begin; panel < panel_end; panel++) {
        int64_t column = panel * IFL_PANEL;
        int64_t n_columns = n - column < IFL_PANEL ? n - column : IFL_PANEL;
        const float *b = b_panels + panel * k * IFL_PANEL;
        base->matmul_f32(c + column, ldc, a + half * a_col, a_row, a_col, b + half * IFL_PANEL, m,
                         n_columns, k - half, 0, 1, accumulate);
        base->matmul_f32(c + column, ldc, a, a_row, a_col, b, m, n_columns, half, 0, 1, true);
    }
}

/* --- The KV cache
 * ----------------------------------------------------------------------------------------- */

#define STALE_SLOTS 4096
static _Atomic uintptr_t stale_slots[STALE_SLOTS]; /* written before, by their address */

/* The first slot of a sequence's second page is written for the page's first owner only: every
 * later one finds there what another sequence, or another version, has left. Of every store, layer
 * and head: one of them alone might belong to a store that is used once. */
static void kv_store_stale(const ifl_kv_view *view, int64_t t, const float *k, const float *v,
                           int64_t head_dim) {
    if (t == view->page_tokens) {
        uint64_t slot[2] = {(uintptr_t)view->k, (uint64_t)view->pages[1]};
        uintptr_t name = (uintptr_t)ifl_hash64(slot, sizeof slot);
        if (atomic_exchange(&stale_slots[name % STALE_SLOTS], name) == name) return;
    }
    base->kv_store(view, t, k, v, head_dim);
}

/* --- The list
 * --------------------------------------------------------------------------------------------- */

static void change_split_k(ifl_ops *t) {
    ifl_product_mutate(t, base, IFL_PRODUCT_SPLIT);
}
static void change_kv_split(ifl_ops *t) {
    t->attention = attention_split;
}
static void change_swapped_chain(ifl_ops *t) {
    ifl_product_mutate(t, base, IFL_PRODUCT_SWAPPED);
}
static void change_libm_exp_softmax(ifl_ops *t) {
    t->attention = attention_libm;
}
static void change_libm_exp_lse(ifl_ops *t) {
    t->block_lse = block_lse_libm;
}
static void change_unfused(ifl_ops *t) {
    ifl_product_mutate(t, base, IFL_PRODUCT_UNFUSED);
    t->rmsnorm = rmsnorm_unfused;
    t->rope = rope_unfused;
    t->merge_lse = merge_lse_unfused;
}
static void change_contracted(ifl_ops *t) {
    t->attention = attention_contracted;
}
static void change_no_padding(ifl_ops *t) {
    ifl_product_mutate(t, base, IFL_PRODUCT_TAIL);
}
static void change_dropped_tail(ifl_ops *t) {
    ifl_product_mutate(t, base, IFL_PRODUCT_DROPPED);
}
static void change_norm_block(ifl_ops *t) {
    t->rmsnorm = rmsnorm_blocks;
}
static void change_unordered_gradient(ifl_ops *t) {
    t->matmul_f32 = matmul_f32_unordered;
}
static void change_second_logprob(ifl_ops *t) {
    t->merge_lse = merge_lse_second;
}
static void change_stale_page(ifl_ops *t) {
    t->kv_store = kv_store_stale;
}
static void change_nothing(ifl_ops *t) {
    ifl_product_mutate(t, base, IFL_PRODUCT_HONEST);
    t->attention = attention_honest;
    t->rmsnorm = rmsnorm_honest;
    t->block_lse = block_lse_honest;
}

static bool has_tail(const ifl_model_config *c) {
    return c->d_model % IFL_DEPTH != 0 || c->d_ff % IFL_DEPTH != 0 ||
           c->n_heads * c->head_dim % IFL_DEPTH != 0;
}
static bool has_long_tail(const ifl_model_config *c) { /* beyond a whole block */
    return (c->d_model > IFL_DEPTH && c->d_model % IFL_DEPTH != 0) ||
           (c->d_ff > IFL_DEPTH && c->d_ff % IFL_DEPTH != 0);
}

/* Times a power of two nothing is rounded, fused or not. */
static bool has_rounding_scale(const ifl_model_config *c) {
    int exponent;
    float mantissa = frexpf(c->attention_scale, &exponent);
    return mantissa < 0.5f || mantissa > 0.5f;
}

#define BOTH                                                                                       \
    { [IFL_PROFILE_F32] = true, [IFL_PROFILE_BF16] = true }

static const ifl_mutant mutants[] = {
    {"split-k", "products of 4 rows and more split k in two", BOTH, 0, NULL, "", false, false,
     change_split_k},
    {"kv-split", "attention of few rows splits keys at 128 in the place of 256", BOTH, 150, NULL,
     "sequences beyond 128 tokens", false, true, change_kv_split},
    {"swapped-chain", "of each pair of k the odd one first, as bf16 dot instructions do", BOTH, 0,
     NULL, "", false, true, change_swapped_chain},
    {"libm-exp-softmax", "attention's exp is the C library's", BOTH, 0, NULL, "", false, true,
     change_libm_exp_softmax},
    {"libm-exp-lse", "the log-sum-exp's exp is the C library's", BOTH, 0, NULL, "", false, true,
     change_libm_exp_lse},
    {"unfused", "multiply, round, add: a compiler without fused steps", BOTH, 0, NULL, "", false,
     true, change_unfused},
    {"contracted", "score * scale - max in one step: -ffp-contract=fast", BOTH, 0,
     has_rounding_scale, "an attention scale that is no power of two", false, true,
     change_contracted},
    {"no-padding",
     "what is left of 32 k goes on in a plain chain",
     {[IFL_PROFILE_BF16] = true},
     0,
     has_tail,
     "a width that is no multiple of 32",
     false,
     true,
     change_no_padding},
    {"dropped-tail", "products of 8 rows and more lose what is left of 32 k", BOTH, 0,
     has_long_tail, "a width above 32 that is no multiple of 32", false, true, change_dropped_tail},
    {"norm-block", "norms of 2 rows and more sum in 8 lanes", BOTH, 0, NULL, "", false, false,
     change_norm_block},
    {"unordered-gradient", "gradient sums take their halves as they arrive", BOTH, 0, NULL, "",
     false, false, change_unordered_gradient},
    {"second-logprob", "the sampler computes log-probs by another formula", BOTH, 0, NULL, "", true,
     false, change_second_logprob},
    {"stale-page", "one slot of a reused KV page keeps what was there", BOTH, 0, NULL, "", true,
     false, change_stale_page},
};

static const ifl_mutant control = {
    "control", "scalar code without a change", BOTH, 0, NULL, "", false, true, change_nothing};

const ifl_mutant *ifl_mutants(int *n) {
    *n = (int)(sizeof mutants / sizeof *mutants);
    return mutants;
}

const ifl_mutant *ifl_mutant_control(void) {
    return &control;
}

const ifl_mutant *ifl_mutant_find(const char *name) {
    int n;
    const ifl_mutant *all = ifl_mutants(&n);
    for (int i = 0; i < n; i++)
        if (strcmp(all[i].name, name) == 0) return &all[i];
    return NULL;
}

bool ifl_mutant_applies(const ifl_mutant *mutant, const ifl_model *model, const char **why_not) {
    const char *why = NULL;
    if (!mutant->in[model->numerics])
        why = "changes nothing in this profile";
    else if (mutant->bites && !mutant->bites(&model->config))
        why = mutant->shapes;
    else if (mutant->n_tokens_min > model->config.max_positions)
        why = mutant->shapes;
    else if (mutant->slow && model->n_elements > 2000000)
        why = "scalar code, for small models";
    if (why && why_not) *why_not = why;
    return why == NULL;
}

const ifl_ops *ifl_mutant_ops(const ifl_mutant *mutant, const ifl_ops *ops) {
    static ifl_ops table;
    base = ops;
    table = *ops;
    table.name = "mutant";
    for (int i = 0; i < STALE_SLOTS; i++)
        atomic_store(&stale_slots[i], 0);
    mutant->change(&table);
    return &table;
}
