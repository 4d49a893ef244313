/* The definition of every op of kernels/ops.h: plain scalar C, one loop per sentence of the header.
 * Read this for the order; kernels/cpu gives the same bits faster. */
#include "common/bf16.h"
#include "kernels/cpu/implementations.h"
#include "kernels/ref/bf16_dot.h"
#include "kernels/ref/exp_log.h"

#include <stddef.h>

#define BODY __attribute__((noinline)) static

static float ref_fma(float a, float b, float c) {
    return __builtin_fmaf(a, b, c);
}

/* The fixed tree over 16 lanes. */
static float ref_tree(float s[IFL_LANES]) {
    for (int step = IFL_LANES / 2; step > 0; step /= 2)
        for (int l = 0; l < step; l++)
            s[l] = s[l] + s[l + step];
    return s[0];
}

/* NaNs are passed over and a zero maximum is +0, so that the order of the search decides no bit. */
static float ref_max(const float *x, int64_t n) {
    float max = ifl_f32_of_bits(0xff800000u); /* -inf */
    for (int64_t i = 0; i < n; i++)
        max = x[i] > max ? x[i] : max;
    return max + 0.0f;
}

/* --- Forward --------------------------------------------------------------------------------- */

BODY void matmul_body(float *y, int64_t ldy, const float *x, int64_t ldx, const uint16_t *w_panels,
                      int64_t m, int64_t n, int64_t k, int64_t panel_begin, int64_t panel_end) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t c = panel_begin * IFL_PANEL; c < panel_end * IFL_PANEL && c < n; c++) {
            const uint16_t *w = w_panels + ifl_panel_row(c, k);
            float acc = 0.0f;
            for (int64_t kk = 0; kk < k; kk++)
                acc = ref_fma(x[i * ldx + kk], ifl_bf16_to_f32(w[ifl_panel_k(kk)]), acc);
            y[i * ldy + c] = acc;
        }
}

/* --- x32, by the steps of kernels/ref/bf16_dot.h -------------------------------------------------- */

/* x32 over a block's 32 pairs; x32 is these, block after block. */
static float ref_x32_block(float acc, const float a[IFL_DEPTH], const float b[IFL_DEPTH]) {
    float even = 0.0f, odd = 0.0f;
    for (int k = 0; k < IFL_DEPTH; k += 2) {
        even = ifl_flush_fma(a[k], b[k], even);
        odd = ifl_flush_fma(a[k + 1], b[k + 1], odd);
    }
    return ifl_flush_add(acc, ifl_flush_add(even, odd));
}

BODY void matmul_x32_body(float *y, int64_t ldy, const float *x, int64_t ldx,
                          const uint16_t *w_panels, int64_t m, int64_t n, int64_t k,
                          int64_t panel_begin, int64_t panel_end) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t c = panel_begin * IFL_PANEL; c < panel_end * IFL_PANEL && c < n; c++) {
            const uint16_t *w = w_panels + ifl_panel_row(c, k);
            float acc = 0.0f, a[IFL_DEPTH], b[IFL_DEPTH];
            for (int64_t k0 = 0; k0 < k; k0 += IFL_DEPTH) {
                for (int64_t j = 0; j < IFL_DEPTH; j++) {
                    bool there = k0 + j < k;
                    a[j] = there ? x[i * ldx + k0 + j] : 0.0f;
                    b[j] = there ? ifl_bf16_to_f32(w[ifl_panel_k(k0 + j)]) : 0.0f;
                }
                acc = ref_x32_block(acc, a, b);
            }
            y[i * ldy + c] = acc;
        }
}

static void round_f32_body(float *x, int64_t n) {
    (void)x;
    (void)n;
}

static void round_bf16_body(float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        x[i] = ifl_bf16_to_f32(ifl_bf16_from_f32(x[i]));
}

/* --- Rows ------------------------------------------------------------------------------------- */

BODY void rmsnorm_body(float *y, int64_t ldy, const float *x, int64_t ldx, const float *w,
                       float offset, float eps, int64_t m, int64_t n, float *r) {
    for (int64_t i = 0; i < m; i++) {
        float s[IFL_LANES] = {0};
        for (int64_t c = 0; c < n; c++) {
            float v = x[i * ldx + c];
            s[c % IFL_LANES] = ref_fma(v, v, s[c % IFL_LANES]);
        }
        float mean = ref_tree(s) / (float)n;
        float ri = 1.0f / __builtin_sqrtf(mean + eps);
        for (int64_t c = 0; c < n; c++)
            y[i * ldy + c] = (x[i * ldx + c] * ri) * (offset + w[c]);
        if (r) r[i] = ri;
    }
}

BODY void rope_body(float *x, int64_t ldx, const float *cosines, const float *sines, int64_t m,
                    int64_t head_dim) {
    int64_t half = head_dim / 2;
    for (int64_t h = 0; h < m; h++)
        for (int64_t i = 0; i < half; i++) {
            float a = x[h * ldx + i], b = x[h * ldx + half + i];
            x[h * ldx + i] = ref_fma(a, cosines[i], -(b * sines[i]));
            x[h * ldx + half + i] = ref_fma(b, cosines[i], a * sines[i]);
        }
}

BODY void silu_mul_body(float *y, const float *gate, const float *up, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        y[i] = (gate[i] / (1.0f + ifl_exp_scalar(-gate[i]))) * up[i];
}

/* tanh(z) as 1 - 2 / (exp(2z) + 1): right at both infinities without a branch. */
static float ref_tanh(float z) {
    return 1.0f - 2.0f / (ifl_exp_scalar(z + z) + 1.0f);
}

static float ref_gelu_tanh(float g) {
    return ref_tanh(IFL_GELU_A * ref_fma((IFL_GELU_B * g) * g, g, g));
}

BODY void gelu_mul_body(float *y, const float *gate, const float *up, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        y[i] = ((0.5f * gate[i]) * (1.0f + ref_gelu_tanh(gate[i]))) * up[i];
}

BODY void add_body(float *y, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        y[i] = y[i] + x[i];
}

BODY void add_bias_body(float *y, int64_t ldy, const float *bias, int64_t m, int64_t n) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t c = 0; c < n; c++)
            y[i * ldy + c] = y[i * ldy + c] + bias[c];
}

BODY void scale_body(float *y, const float *x, float factor, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i] * factor;
}

static int64_t ref_k_index(const ifl_kv_view *view, int64_t e, int64_t t, int64_t d,
                           int64_t head_dim) {
    int64_t b = view->page_tokens < 16 ? view->page_tokens : 16;
    int64_t page = view->pages[t / view->page_tokens], j = t % view->page_tokens;
    return page * view->page_stride + (j / b) * (head_dim * b) + (d / e) * (e * b) + (j % b) * e +
           d % e;
}

static int64_t ref_v_index(const ifl_kv_view *view, int64_t e, int64_t t, int64_t d,
                           int64_t head_dim) {
    int64_t f = view->page_tokens < e ? view->page_tokens : e;
    int64_t page = view->pages[t / view->page_tokens], j = t % view->page_tokens;
    return page * view->page_stride + (j / f) * (head_dim * f) + d * f + j % f;
}

static float ref_k(bool bf16, const ifl_kv_view *view, int64_t t, int64_t d, int64_t head_dim) {
    int64_t at = ref_k_index(view, bf16 ? 2 : 1, t, d, head_dim);
    return bf16 ? ifl_bf16_to_f32(((const uint16_t *)view->k)[at]) : ((const float *)view->k)[at];
}

static float ref_v(bool bf16, const ifl_kv_view *view, int64_t t, int64_t d, int64_t head_dim) {
    int64_t at = ref_v_index(view, bf16 ? 2 : 1, t, d, head_dim);
    return bf16 ? ifl_bf16_to_f32(((const uint16_t *)view->v)[at]) : ((const float *)view->v)[at];
}

/* The view reads; a store goes to the same place, which the caller owns. */
BODY void kv_store_body(const ifl_kv_view *view, int64_t t, const float *k, const float *v,
                        int64_t head_dim) {
    for (int64_t d = 0; d < head_dim; d++) {
        ((float *)(uintptr_t)view->k)[ref_k_index(view, 1, t, d, head_dim)] = k[d];
        ((float *)(uintptr_t)view->v)[ref_v_index(view, 1, t, d, head_dim)] = v[d];
    }
}

BODY void kv_store_bf16_body(const ifl_kv_view *view, int64_t t, const float *k, const float *v,
                             int64_t head_dim) {
    for (int64_t d = 0; d < head_dim; d++) {
        ((uint16_t *)(uintptr_t)view->k)[ref_k_index(view, 2, t, d, head_dim)] =
            ifl_bf16_from_f32(k[d]);
        ((uint16_t *)(uintptr_t)view->v)[ref_v_index(view, 2, t, d, head_dim)] =
            ifl_bf16_from_f32(v[d]);
    }
}

static float ref_score(const float *q, const ifl_kv_view *view, int64_t t, int64_t head_dim,
                       float scale) {
    float acc = 0.0f;
    for (int64_t d = 0; d < head_dim; d++)
        acc = ref_fma(q[d], ref_k(false, view, t, d, head_dim), acc);
    return acc * scale;
}

static float ref_score_x32(const float *q, const ifl_kv_view *view, int64_t t, int64_t head_dim,
                           float scale) {
    float acc = 0.0f, a[IFL_DEPTH], b[IFL_DEPTH];
    for (int64_t d0 = 0; d0 < head_dim; d0 += IFL_DEPTH) {
        for (int64_t j = 0; j < IFL_DEPTH; j++) {
            bool there = d0 + j < head_dim;
            a[j] = there ? q[d0 + j] : 0.0f;
            b[j] = there ? ref_k(true, view, t, d0 + j, head_dim) : 0.0f;
        }
        acc = ref_x32_block(acc, a, b);
    }
    return ifl_flush_result((double)acc * (double)ifl_flush_operand(scale));
}

/* o_s[d] over the visible keys [begin, end) of one split; p[t - begin]. */
static float ref_weighted(const float *p, const ifl_kv_view *view, int64_t begin, int64_t end,
                          int64_t d, int64_t head_dim) {
    float acc = 0.0f;
    for (int64_t t = begin; t < end; t++)
        acc = ref_fma(p[t - begin], ref_v(false, view, t, d, head_dim), acc);
    return acc;
}

static float ref_weighted_x32(const float *p, const ifl_kv_view *view, int64_t begin, int64_t end,
                              int64_t d, int64_t head_dim) {
    float acc = 0.0f, a[IFL_DEPTH], b[IFL_DEPTH];
    for (int64_t t0 = begin / IFL_DEPTH * IFL_DEPTH; t0 < end; t0 += IFL_DEPTH) {
        for (int64_t j = 0; j < IFL_DEPTH; j++) {
            int64_t t = t0 + j;
            bool seen = t >= begin && t < end;
            a[j] = seen ? ifl_bf16_to_f32(ifl_bf16_from_f32(p[t - begin])) : 0.0f;
            b[j] = seen ? ref_v(true, view, t, d, head_dim) : 0.0f;
        }
        acc = ref_x32_block(acc, a, b);
    }
    return acc + 0.0f;
}

/* One row over one split [begin, end) of visible keys: scores, maximum, p in place, lane sum. */
static ifl_lse ref_attention_split(bool x32, float *score, const float *q, const ifl_kv_view *view,
                                   int64_t begin, int64_t end, int64_t head_dim, float scale) {
    for (int64_t t = begin; t < end; t++)
        score[t - begin] = x32 ? ref_score_x32(q, view, t, head_dim, scale)
                               : ref_score(q, view, t, head_dim, scale);
    ifl_lse split = {.max = ref_max(score, end - begin)};
    float s[IFL_LANES] = {0};
    for (int64_t t = begin; t < end; t++) {
        score[t - begin] = ifl_exp_scalar(score[t - begin] - split.max);
        s[t % IFL_LANES] = s[t % IFL_LANES] + score[t - begin];
    }
    split.sum = ref_tree(s);
    return split;
}

static void ref_attention(bool x32, float *const *o, const float *const *q, const int32_t *pos,
                          int64_t n_rows, const ifl_kv_view *view, int64_t head_dim, float scale,
                          int32_t window, ifl_lse *lse) {
    for (int64_t r = 0; r < n_rows; r++) {
        int64_t first = window > 0 && pos[r] - window + 1 > 0 ? pos[r] - window + 1 : 0;
        int64_t stop = (int64_t)pos[r] + 1;
        float score[IFL_KV_SPLIT];
        ifl_lse row = {.max = ifl_f32_of_bits(0xff800000u)};
        /* Twice over the keys: the maximum of all splits must be known before the first merge. */
        for (int pass = 0; pass < 2; pass++) {
            bool started = false;
            for (int64_t begin = first; begin < stop;) {
                int64_t end = (begin / IFL_KV_SPLIT + 1) * IFL_KV_SPLIT;
                if (end > stop) end = stop;
                ifl_lse split =
                    ref_attention_split(x32, score, q[r], view, begin, end, head_dim, scale);
                if (pass == 0) {
                    row.max = split.max > row.max ? split.max : row.max;
                } else {
                    float c = ifl_exp_scalar(split.max - row.max);
                    row.sum = started ? ref_fma(c, split.sum, row.sum) : c * split.sum;
                    for (int64_t d = 0; d < head_dim; d++) {
                        float acc = (x32 ? ref_weighted_x32 : ref_weighted)(score, view, begin, end,
                                                                            d, head_dim);
                        o[r][d] = started ? ref_fma(c, acc, o[r][d]) : c * acc;
                    }
                    started = true;
                }
                begin = end;
            }
        }
        for (int64_t d = 0; d < head_dim; d++)
            o[r][d] = o[r][d] / row.sum;
        if (lse) lse[r] = row;
    }
}

BODY void attention_body(float *const *o, const float *const *q, const int32_t *pos, int64_t n_rows,
                         const ifl_kv_view *view, int64_t head_dim, float scale, int32_t window,
                         ifl_lse *lse) {
    ref_attention(false, o, q, pos, n_rows, view, head_dim, scale, window, lse);
}

BODY void attention_x32_body(float *const *o, const float *const *q, const int32_t *pos,
                             int64_t n_rows, const ifl_kv_view *view, int64_t head_dim, float scale,
                             int32_t window, ifl_lse *lse) {
    ref_attention(true, o, q, pos, n_rows, view, head_dim, scale, window, lse);
}

BODY void temper_body(float *y, const float *x, float temperature, float softcap, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        float c = softcap > 0.0f ? softcap * ref_tanh(x[i] / softcap) : x[i];
        y[i] = c / temperature;
    }
}

BODY ifl_lse block_lse_body(const float *x, int64_t n, float *p) {
    ifl_lse block = {.max = ref_max(x, n)};
    float s[IFL_LANES] = {0};
    for (int64_t i = 0; i < n; i++) {
        float e = ifl_exp_scalar(x[i] - block.max);
        s[i % IFL_LANES] = s[i % IFL_LANES] + e;
        if (p) p[i] = e;
    }
    block.sum = ref_tree(s);
    return block;
}

BODY ifl_lse merge_lse_body(const ifl_lse *blocks, int64_t n_blocks) {
    ifl_lse all = {.max = blocks[0].max};
    for (int64_t b = 1; b < n_blocks; b++)
        all.max = blocks[b].max > all.max ? blocks[b].max : all.max;
    all.sum = ifl_exp_scalar(blocks[0].max - all.max) * blocks[0].sum;
    for (int64_t b = 1; b < n_blocks; b++)
        all.sum = ref_fma(ifl_exp_scalar(blocks[b].max - all.max), blocks[b].sum, all.sum);
    return all;
}

BODY void exp_body(float *y, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        y[i] = ifl_exp_scalar(x[i]);
}

BODY void log_body(float *y, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        y[i] = ifl_log_scalar(x[i]);
}

/* --- Backward and optimizer ------------------------------------------------------------------ */

BODY void matmul_f32_body(float *c, int64_t ldc, const float *a, int64_t a_row, int64_t a_col,
                          const float *b_panels, int64_t m, int64_t n, int64_t k,
                          int64_t panel_begin, int64_t panel_end, bool accumulate) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = panel_begin * IFL_PANEL; j < panel_end * IFL_PANEL && j < n; j++) {
            const float *b = b_panels + (j / IFL_PANEL) * k * IFL_PANEL + j % IFL_PANEL;
            float acc = accumulate ? c[i * ldc + j] : 0.0f;
            for (int64_t kk = 0; kk < k; kk++)
                acc = ref_fma(a[i * a_row + kk * a_col], b[kk * IFL_PANEL], acc);
            c[i * ldc + j] = acc;
        }
}

BODY void pack_f32_body(float *b_panels, const float *b, int64_t ldb, int64_t k, int64_t n,
                        int64_t panel_begin, int64_t panel_end) {
    for (int64_t p = panel_begin; p < panel_end; p++)
        for (int64_t kk = 0; kk < k; kk++)
            for (int64_t j = 0; j < IFL_PANEL; j++) {
                int64_t col = p * IFL_PANEL + j;
                b_panels[(p * k + kk) * IFL_PANEL + j] = col < n ? b[kk * ldb + col] : 0.0f;
            }
}

BODY void pack_f32_transposed_body(float *b_panels, const float *b, int64_t ldb, int64_t k,
                                   int64_t n, int64_t panel_begin, int64_t panel_end) {
    for (int64_t p = panel_begin; p < panel_end; p++)
        for (int64_t kk = 0; kk < k; kk++)
            for (int64_t j = 0; j < IFL_PANEL; j++) {
                int64_t col = p * IFL_PANEL + j;
                b_panels[(p * k + kk) * IFL_PANEL + j] = col < n ? b[col * ldb + kk] : 0.0f;
            }
}

BODY void unpack_for_dx_body(float *out_panels, const uint16_t *w_panels, int64_t n_total,
                             int64_t k, int64_t n_begin, int64_t n_end, int64_t panel_begin,
                             int64_t panel_end) {
    (void)n_total;
    int64_t depth = n_end - n_begin;
    for (int64_t kp = panel_begin; kp < panel_end; kp++)
        for (int64_t r = n_begin; r < n_end; r++)
            for (int64_t j = 0; j < IFL_PANEL; j++) {
                int64_t col = kp * IFL_PANEL + j;
                out_panels[(kp * depth + r - n_begin) * IFL_PANEL + j] =
                    col < k ? ifl_bf16_to_f32(w_panels[ifl_panel_row(r, k) + ifl_panel_k(col)])
                            : 0.0f;
            }
}

BODY void rmsnorm_backward_body(float *dx, int64_t lddx, float *dw, const float *dy, int64_t lddy,
                                const float *x, int64_t ldx, const float *w, float offset,
                                const float *r, int64_t m, int64_t n, bool accumulate_dx) {
    for (int64_t i = 0; i < m; i++) {
        const float *dyi = dy + i * lddy, *xi = x + i * ldx;
        float *dxi = dx + i * lddx;
        float s[IFL_LANES] = {0};
        for (int64_t c = 0; c < n; c++) {
            float g = dyi[c] * (offset + w[c]);
            s[c % IFL_LANES] = ref_fma(g, xi[c] * r[i], s[c % IFL_LANES]);
        }
        float mean = ref_tree(s) / (float)n;
        for (int64_t c = 0; c < n; c++) {
            float g = dyi[c] * (offset + w[c]), xhat = xi[c] * r[i];
            float d = r[i] * (g - xhat * mean);
            if (dw) dw[c] = ref_fma(dyi[c], xhat, dw[c]);
            dxi[c] = accumulate_dx ? dxi[c] + d : d;
        }
    }
}

/* d/dg of silu: s (1 + g (1 - s)), s = 1 / (1 + exp(-g)). */
BODY void silu_mul_backward_body(float *dgate, float *dup, const float *dy, const float *gate,
                                 const float *up, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        float g = gate[i], d = dy[i], u = up[i];
        float s = 1.0f / (1.0f + ifl_exp_scalar(-g));
        dup[i] = d * (g * s);
        dgate[i] = (d * u) * (s * ref_fma(g, 1.0f - s, 1.0f));
    }
}

/* d/dg of gelu: (1 + t) / 2 + g (1 - t^2) / 2 * A (1 + 3 B g^2), t = tanh(A (g + B g^3)). */
BODY void gelu_mul_backward_body(float *dgate, float *dup, const float *dy, const float *gate,
                                 const float *up, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        float g = gate[i], d = dy[i], u = up[i];
        float t = ref_gelu_tanh(g);
        float half = 0.5f * (1.0f + t);
        float dz = IFL_GELU_A * ref_fma((3.0f * IFL_GELU_B) * g, g, 1.0f);
        float slope = (0.5f * g) * ((1.0f - t) * (1.0f + t));
        dup[i] = d * (g * half);
        dgate[i] = (d * u) * ref_fma(slope, dz, half);
    }
}

BODY void softmax_backward_body(float *p, float *ds, const float *score, const float *dp,
                                float scale, ifl_lse lse, float delta, int64_t n) {
    for (int64_t t = 0; t < n; t++) {
        float pt = ifl_exp_scalar(score[t] * scale - lse.max) / lse.sum;
        float d = (pt * (dp[t] - delta)) * scale;
        p[t] = pt;
        ds[t] = d;
    }
}

BODY void logprob_backward_body(float *y, const float *x, float coefficient, ifl_lse lse,
                                int64_t target, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        float p = ifl_exp_scalar(x[i] - lse.max) / lse.sum;
        y[i] = coefficient * ((i == target ? 1.0f : 0.0f) - p);
    }
}

BODY double sum_squares_body(const float *x, int64_t n) {
    double s[IFL_LANES] = {0};
    for (int64_t i = 0; i < n; i++) /* the square of an f32 is exact in double: a fused step */
        s[i % IFL_LANES] = s[i % IFL_LANES] + (double)x[i] * (double)x[i];
    for (int step = IFL_LANES / 2; step > 0; step /= 2)
        for (int l = 0; l < step; l++)
            s[l] = s[l] + s[l + step];
    return s[0];
}

BODY void adamw_body(float *w, float *m, float *v, uint16_t *w_bf16, const float *grad,
                     float grad_scale, float lr, float b1, float b2, float eps, float weight_decay,
                     float bias1, float bias2, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        float g = grad[i] * grad_scale;
        m[i] = b1 * m[i] + (1.0f - b1) * g;
        v[i] = b2 * v[i] + ((1.0f - b2) * g) * g;
        float step = (m[i] / bias1) / (__builtin_sqrtf(v[i] / bias2) + eps);
        w[i] = w[i] - lr * (step + weight_decay * w[i]);
        if (w_bf16) w_bf16[i] = ifl_bf16_from_f32(w[i]);
    }
}

#define IFL_OPS_NAME "ref"
#define IFL_TASK_ROWS(x32) IFL_TASK_ROWS_MAX
#define IFL_OPS_TABLE ref_table
#include "kernels/cpu/table.inc.h"

const ifl_ops *ifl_ops_ref(ifl_profile profile) {
    return &ref_table[profile];
}
