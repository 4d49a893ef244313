/* The op table: every piece of tensor maths, one name each, with its shapes and its ORDER.
 *
 * There is one table for each numerics profile. `f32`: as the ops say. `bf16`: what multiplies is bf16, and sums
 * are f32: in matmul and attention x32 takes the place of chain, and round rounds; all else is the same. The caller
 * rounds what these two read (x; q, and K and V in the cache), attention rounds p.
 *
 * Implementations: `ref` (plain scalar C, the definition), `generic`, `avx2`, `avx512`, `avx512bf16` (one source over
 * 16 lanes, kernels/cpu/ops.inc.h, compiled per instruction set), `amx` (avx512bf16 with its products on tiles,
 * kernels/cpu/matmul_amx.inc.h). All give the same bits as `ref` of
 * their profile for the ops marked EXACT; the backward ops are deterministic per implementation and also
 * have the same bits everywhere, since they use the same chains.
 *
 * Words used below:
 *   chain       acc = +0; for k ascending: acc = fma(a_k, b_k, acc)
 *   lane sum    16 lanes, lane = index mod 16, each an ascending chain of adds (or fmas) from +0; then
 *               the tree  s[l] += s[l+8], += s[l+4], += s[l+2], += s[l+1]  (l = 0 at the end)
 *   x32         profile `bf16`, the order of AMX's tile instruction, for bf16 a and b: acc = +0; for each block of 32
 *               k: even = chain over its even k from +0, odd = chain over its odd k, t = even + odd, acc = acc +
 *               t. a and b past the last k read as +0. Every step flushes: a denormal operand counts as a zero of
 *               its sign, and so does a result that is denormal after rounding to 24 bits.
 *   panel       32 outputs of a bf16 weight matrix in pairs of k: [ceil(N/32)][depth / 2][32][2], depth = K
 *               rounded up to 32; what lies past N or K holds +0. A pair is what one 32-bit lane of AMX and
 *               AVX-512-BF16 takes, and FMA paths get the even k by a shift and the odd one by a mask.
 *   f32 panel   32 columns of an f32 matrix, k-major: [ceil(N/32)][K][32]; columns past N hold +0
 * exp is ifl_ops.exp's polynomial; division and square root are IEEE; no contraction but written fmas.
 * Every maximum passes NaNs over and gives a zero as +0, so that its bits don't depend on the search.
 * NaN outputs are NaNs in every implementation, but not of one payload.
 * Ops never allocate and never touch threads: the caller splits rows and panels. Their scratch is on the
 * stack: less than 512 KiB. They set MXCSR to round-to-nearest with gradual underflow (x32: with
 * denormals flushed) and restore the caller's value. */
#ifndef IFL_KERNELS_OPS_H
#define IFL_KERNELS_OPS_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/profile.h"

#define IFL_PANEL 32        /* columns of a panel */
#define IFL_DEPTH 32        /* a weight panel's k is padded to a multiple of this */
#define IFL_LANES 16
#define IFL_KV_SPLIT 256    /* keys of one attention split, at absolute positions */
#define IFL_VOCAB_BLOCK 4096 /* logits of one log-sum-exp block, at absolute positions */
#define IFL_ATTENTION_ROWS_MAX 64
#define IFL_TASK_ROWS_MAX 192
#define IFL_HEAD_DIM_MAX 512

/* Where the keys and values of one sequence lie, for one layer and one kv head.
 * Position t lives in page pages[t / page_tokens], at offset j = t mod page_tokens. Elements are floats in `f32`,
 * bf16 in `bf16`, there in pairs (of d in K, of positions in V), as a product reads them:
 *   K element d of it: k[page * page_stride + (j / b) * (D * b) + (d / e) * (e * b) + (j % b) * e + d % e],
 *     b = min(16, page_tokens), e = 1 in `f32` and 2 in `bf16`
 *   V element d of it: v[page * page_stride + (j / f) * (D * f) + d * f + j % f],  f = min(e, page_tokens)
 * page_tokens is a power of two, D even. The learner uses page_tokens = 1 with page = row of the pack. */
typedef struct ifl_kv_view {
    const void *k, *v;
    int64_t page_stride; /* elements */
    const int32_t *pages;
    int32_t page_tokens;
} ifl_kv_view;

/* Merged log-sum-exp state of one row over vocabulary blocks. */
typedef struct ifl_lse {
    float max; /* exact maximum so far */
    float sum; /* sum of exp(x - max) */
} ifl_lse;

typedef struct ifl_ops {
    const char *name;
    ifl_profile profile;
    int32_t task_rows; /* rows of x that one call of matmul takes best, <= IFL_TASK_ROWS_MAX */

    /* --- EXACT: forward ------------------------------------------------------------------------- */

    /* y[i * ldy + n] = chain over k of x[i * ldx + k] * w[n, k], for rows i in [0, m) and the panels
     * [panel_begin, panel_end); only columns n < N are written. w: bf16 panels. m may be 0. */
    void (*matmul)(float *y, int64_t ldy, const float *x, int64_t ldx, const uint16_t *w_panels,
                   int64_t m, int64_t n, int64_t k, int64_t panel_begin, int64_t panel_end);

    /* y[i, c] = (x[i, c] * r_i) * (offset + w[c]), r_i = 1 / sqrt(mean + eps), mean = (lane sum of
     * x^2 by fma) / n. x may equal y. offset is 0, or 1 for Gemma. ld in floats. r (may be NULL)
     * receives r_i. */
    void (*rmsnorm)(float *y, int64_t ldy, const float *x, int64_t ldx, const float *w, float offset,
                    float eps, int64_t m, int64_t n, float *r);

    /* In place on m heads of D floats, stride ldx: for i < D/2, with c = cos[i], s = sin[i]:
     * a' = fma(a, c, -(b * s)), b' = fma(b, c, a * s), a = x[i], b = x[i + D/2]. */
    void (*rope)(float *x, int64_t ldx, const float *cos, const float *sin, int64_t m, int64_t head_dim);

    /* y[i] = g / (1 + exp(-g)) * u, evaluated (g / (1 + exp(-g))) * u.  n elements. */
    void (*silu_mul)(float *y, const float *gate, const float *up, int64_t n);
    /* y[i] = (0.5 * g) * (1 + t) * u with z = 0.7978845608f * fma(0.044715f * g * g, g, g),
     * t = 1 - 2 / (exp(2 z) + 1); evaluated ((0.5f * g) * (1 + t)) * u. */
    void (*gelu_mul)(float *y, const float *gate, const float *up, int64_t n);

    void (*add)(float *y, const float *x, int64_t n);                  /* y[i] = y[i] + x[i] */
    void (*add_bias)(float *y, int64_t ldy, const float *bias, int64_t m, int64_t n);
    void (*scale)(float *y, const float *x, float factor, int64_t n);  /* y[i] = x[i] * factor */
    /* A named rounding point. `f32`: nothing. `bf16`: x[i] to the nearest bf16, ties to even, in place; a NaN becomes
     * 0x7fc0. */
    void (*round)(float *x, int64_t n);

    /* Copies one position's key and value of one kv head to where `view` says position t lives (`bf16`: the upper
     * halves of the floats, which the caller has rounded). */
    void (*kv_store)(const ifl_kv_view *view, int64_t t, const float *k, const float *v,
                     int64_t head_dim);

    /* Attention of n_rows <= IFL_ATTENTION_ROWS_MAX query rows of ONE sequence and ONE kv head.
     * Row r: query q[r] (D floats), absolute position pos[r], output o[r] (D floats). Visible keys:
     * first[r] <= t <= pos[r], where first[r] = window > 0 ? max(0, pos[r] - window + 1) : 0.
     * Order, per row: splits of 256 keys at absolute positions; per split s that has a visible key:
     *   score_t = (chain over d of q_d * K[t, d]) * scale;  m_s = max over its visible t;
     *   p_t = exp(score_t - m_s);  l_s = lane sum of p_t, lane = t mod 16, invisible keys skipped;
     *   o_s[d] = chain over visible t ascending of p_t * V[t, d].
     *     (`bf16`: the product with scale flushes too; o_s is x32 over the positions t of the split, p_t rounded to bf16 after l_s; p_t and V[t] of a key that is
     *     not visible read as +0, and o_s[d] + 0 goes on, so that a block of such keys changes nothing)
     * Then m = max m_s, c_s = exp(m_s - m); the first visible split starts l = c*l_s, o = c*o_s and
     * each later one merges l = fma(c_s, l_s, l), o = fma(c_s, o_s, o). Output o[d] / l.
     * An invisible key is selected out, never multiplied. lse (may be NULL) gets {m, l} per row. */
    void (*attention)(float *const *o, const float *const *q, const int32_t *pos, int64_t n_rows,
                      const ifl_kv_view *view, int64_t head_dim, float scale, int32_t window,
                      ifl_lse *lse);

    /* y[i] = c(x[i]) / temperature; c(x) = softcap > 0 ? softcap * tanh(x / softcap) : x, with tanh as
     * in gelu_mul. In place allowed. temperature == 1 changes no bits. */
    void (*temper)(float *y, const float *x, float temperature, float softcap, int64_t n);

    /* Statistics of one vocabulary block: max = exact maximum of x[0, n), sum = lane sum of
     * exp(x_i - max), lane = i mod 16. The block starts at a multiple of IFL_VOCAB_BLOCK. n >= 1.
     * p (may be NULL) receives exp(x_i - max). */
    ifl_lse (*block_lse)(const float *x, int64_t n, float *p);

    /* Merges blocks in order: m = max of all; sum starts as c_0 * sum_0, then fma(c_b, sum_b, sum),
     * c_b = exp(max_b - m). n_blocks >= 1. */
    ifl_lse (*merge_lse)(const ifl_lse *blocks, int64_t n_blocks);

    /* Elementwise exp (max error about 1 ulp; exp(x) = 0 below -103.98, inf above 88.73, NaN kept) and
     * natural log (x > 0 normal or subnormal; log(0) = -inf, negative NaN). */
    void (*exp)(float *y, const float *x, int64_t n);
    void (*log)(float *y, const float *x, int64_t n);

    /* --- Backward and optimizer: one order too, listed beside each ------------------------------- */

    /* C[i * ldc + j] = [accumulate ? C : +0] continued by an ascending chain over k of
     * A[i * a_row + k * a_col] * B[k, j];  B in f32 panels of 32 columns: [ceil(n/32)][K][32].
     * Rows [0, m), panels [panel_begin, panel_end); only j < n is written. */
    void (*matmul_f32)(float *c, int64_t ldc, const float *a, int64_t a_row, int64_t a_col,
                       const float *b_panels, int64_t m, int64_t n, int64_t k, int64_t panel_begin,
                       int64_t panel_end, bool accumulate);

    /* Packs rows of b [k, n] (row stride ldb) into panels [panel_begin, panel_end). */
    void (*pack_f32)(float *b_panels, const float *b, int64_t ldb, int64_t k, int64_t n,
                     int64_t panel_begin, int64_t panel_end);
    /* Packs rows of b^T: b is [n, k] (row stride ldb), panels as if of the [k, n] transpose. */
    void (*pack_f32_transposed)(float *b_panels, const float *b, int64_t ldb, int64_t k, int64_t n,
                                int64_t panel_begin, int64_t panel_end);
    /* From bf16 weight panels of w [N, K] makes f32 panels of the product dY [m, N] * w [N, K]: depth
     * N' = n_end - n_begin (rows of w, n_begin a multiple of 32), columns K:
     * out[(kp * N' + n - n_begin) * 32 + j] = w[n, kp * 32 + j], +0 past K; panels kp in
     * [panel_begin, panel_end). */
    void (*unpack_for_dx)(float *out_panels, const uint16_t *w_panels, int64_t n_total, int64_t k,
                          int64_t n_begin, int64_t n_end, int64_t panel_begin, int64_t panel_end);

    /* dx = r * (g - xhat * mean(g * xhat)), g = dy * (offset + w), xhat = x * r; mean by lane sum.
     * accumulate_dx adds to dx. dw[c] = fma(dy, xhat, dw[c]), rows ascending (dw NULL: skipped); the
     * caller gives each row range its own dw and adds them in order. r as given by rmsnorm. */
    void (*rmsnorm_backward)(float *dx, int64_t lddx, float *dw, const float *dy, int64_t lddy,
                             const float *x, int64_t ldx, const float *w, float offset, const float *r,
                             int64_t m, int64_t n, bool accumulate_dx);
    void (*silu_mul_backward)(float *dgate, float *dup, const float *dy, const float *gate,
                              const float *up, int64_t n);
    void (*gelu_mul_backward)(float *dgate, float *dup, const float *dy, const float *gate,
                              const float *up, int64_t n);

    /* Turns scores into gradients, one attention row: p_t = exp(score_t * scale - m) / l for t in
     * [0, n), then ds_t = p_t * (dp_t - delta) * scale. p and ds may alias score and dp. */
    void (*softmax_backward)(float *p, float *ds, const float *score, const float *dp, float scale,
                             ifl_lse lse, float delta, int64_t n);

    /* dlogit_i = coefficient * (onehot_i - exp(x_i - lse.max) / lse.sum), onehot at `target` (relative
     * to the block; outside [0, n) = none). x: tempered logits. y may equal x. */
    void (*logprob_backward)(float *y, const float *x, float coefficient, ifl_lse lse, int64_t target,
                             int64_t n);

    /* Sum of squares: lane sum by fma, in double lanes. */
    double (*sum_squares)(const float *x, int64_t n);

    /* AdamW (Loshchilov & Hutter 2019, alg. 2), elementwise on f32 masters:
     * g = grad * grad_scale; m = b1*m + (1-b1)*g; v = b2*v + (1-b2)*g*g;
     * w -= lr * (m / bias1 / (sqrt(v / bias2) + eps) + weight_decay * w); w_bf16 = round(w). */
    void (*adamw)(float *w, float *m, float *v, uint16_t *w_bf16, const float *grad, float grad_scale,
                  float lr, float b1, float b2, float eps, float weight_decay, float bias1, float bias2,
                  int64_t n);
} ifl_ops;

/* The scalar definition. Slow. */
const ifl_ops *ifl_ops_ref(ifl_profile profile);

/* The fastest implementation that this host can run, or the one that ifl_ops_force chose. */
const ifl_ops *ifl_ops_best(ifl_profile profile);

/* All implementations that this host can run, `ref` included; returns how many (at most max). */
int ifl_ops_list(ifl_profile profile, const ifl_ops **out, int max);

/* Makes ifl_ops_best return the named one; false when this host cannot run it. Call before threads. */
bool ifl_ops_force(const char *name);

/* Bytes of one element of the KV cache. */
static inline int64_t ifl_kv_element_bytes(ifl_profile profile) {
    return profile == IFL_PROFILE_BF16 ? (int64_t)sizeof(uint16_t) : (int64_t)sizeof(float);
}

static inline int64_t ifl_panels(int64_t n) { return (n + IFL_PANEL - 1) / IFL_PANEL; }

/* Elements of one bf16 weight panel of depth k; of all panels of a matrix [n, k]. */
static inline int64_t ifl_panel_elements(int64_t k) {
    return (k + IFL_DEPTH - 1) / IFL_DEPTH * IFL_DEPTH * IFL_PANEL;
}
static inline int64_t ifl_panels_elements(int64_t n, int64_t k) { return ifl_panels(n) * ifl_panel_elements(k); }

/* Where output n's elements begin, and how far from there its k-th one is. */
static inline int64_t ifl_panel_row(int64_t n, int64_t k_total) {
    return n / IFL_PANEL * ifl_panel_elements(k_total) + n % IFL_PANEL * 2;
}
static inline int64_t ifl_panel_k(int64_t k) { return k / 2 * (2 * IFL_PANEL) + k % 2; }

/* Panels of a row-major bf16 matrix [n, k] (n rows = outputs). Not timed: once per version. */
void ifl_pack_bf16(uint16_t *panels, const uint16_t *w, int64_t n, int64_t k);

#endif
