/* Every op over 16 lanes: one text, compiled once per instruction set by ops_generic.c, ops_avx2.c
 * and ops_avx512.c, each of which includes its lanes_*.h first. The orders are those of
 * kernels/ops.h. */
#define BODY __attribute__((noinline)) static

#include "kernels/cpu/rounding.h"

#include "kernels/cpu/matmul.inc.h"

/* --- Helpers --------------------------------------------------------------------------------- */

/* exp of kernels/ref/exp_log.h, 16 at a time. */
LANES_FN lanes lanes_exp(lanes x) {
    x = lanes_min(lanes_set(IFL_EXP_MAX), x);
    x = lanes_max(lanes_set(IFL_EXP_MIN), x);
    lanes t = lanes_fma(x, lanes_set(IFL_LOG2_E), lanes_set(IFL_EXP_MAGIC));
    lanes n = lanes_neg(lanes_sub(t, lanes_set(IFL_EXP_MAGIC)));
    lanes r = lanes_fma(n, lanes_set(IFL_LN2_HI), x);
    r = lanes_fma(n, lanes_set(IFL_LN2_LO), r);
    lanes q = lanes_fma(lanes_set(IFL_EXP_Q5), r, lanes_set(IFL_EXP_Q4));
    q = lanes_fma(q, r, lanes_set(IFL_EXP_Q3));
    q = lanes_fma(q, r, lanes_set(IFL_EXP_Q2));
    q = lanes_fma(q, r, lanes_set(IFL_EXP_Q1));
    q = lanes_fma(q, r, lanes_set(IFL_EXP_Q0));
    lanes p = lanes_add(lanes_set(1.0f), lanes_fma(lanes_mul(r, r), q, r));
    return lanes_exp_scale(p, t);
}

LANES_FN lanes lanes_tanh(lanes z) {
    lanes e = lanes_add(lanes_exp(lanes_add(z, z)), lanes_set(1.0f));
    return lanes_sub(lanes_set(1.0f), lanes_div(lanes_set(2.0f), e));
}

LANES_FN lanes lanes_gelu_tanh(lanes g) {
    lanes cubic = lanes_fma(lanes_mul(lanes_mul(lanes_set(IFL_GELU_B), g), g), g, g);
    return lanes_tanh(lanes_mul(lanes_set(IFL_GELU_A), cubic));
}

LANES_FN lanes lanes_minus_infinity(void) {
    return lanes_set(ifl_f32_of_bits(0xff800000u));
}

/* The tree over lanes that lie in memory, after a ragged tail was added there. */
LANES_FN float lanes_tree_of(const float *s) {
    return lanes_tree(lanes_load(s));
}

/* Exact maximum of n values: NaNs are passed over, a zero maximum is +0. */
static inline float row_max(const float *x, int64_t n) {
    lanes max = lanes_minus_infinity();
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        max = lanes_max(lanes_load(x + i), max);
    float m = lanes_reduce_max(max);
    for (; i < n; i++)
        m = x[i] > m ? x[i] : m;
    return m + 0.0f;
}

/* Runs a block (which reads LOAD(pointer) and writes STORE(pointer, lanes), both at element i) over
 * n elements; the tail's missing lanes read as 0 and are not written. */
#define LANES_LOOP(n, ...)                                                                         \
    do {                                                                                           \
        int64_t i = 0;                                                                             \
        for (; i + 16 <= (n); i += 16) {                                                           \
            const bool full = true;                                                                \
            __VA_ARGS__                                                                            \
        }                                                                                          \
        if (i < (n)) {                                                                             \
            const bool full = false;                                                               \
            __VA_ARGS__                                                                            \
        }                                                                                          \
    } while (0)
#define LOAD(p) (full ? lanes_load((p) + i) : lanes_load_n((p) + i, n - i))
#define STORE(p, v)                                                                                \
    do {                                                                                           \
        if (full)                                                                                  \
            lanes_store((p) + i, (v));                                                             \
        else                                                                                       \
            lanes_store_n((p) + i, (v), n - i);                                                    \
    } while (0)

#include "kernels/cpu/attention.inc.h"

/* --- Forward --------------------------------------------------------------------------------- */

BODY void rmsnorm_body(float *y, int64_t ldy, const float *x, int64_t ldx, const float *w,
                       float offset, float eps, int64_t m, int64_t n, float *r) {
    lanes offsets = lanes_set(offset);
    for (int64_t row = 0; row < m; row++) {
        const float *xr = x + row * ldx;
        float *yr = y + row * ldy;
        float s[IFL_LANES];
        lanes acc = lanes_zero();
        int64_t c = 0;
        for (; c + 16 <= n; c += 16) {
            lanes v = lanes_load(xr + c);
            acc = lanes_fma(v, v, acc);
        }
        lanes_store(s, acc);
        for (int l = 0; c + l < n; l++)
            s[l] = __builtin_fmaf(xr[c + l], xr[c + l], s[l]);
        float mean = lanes_tree_of(s) / (float)n;
        float ri = 1.0f / __builtin_sqrtf(mean + eps);
        lanes factor = lanes_set(ri);
        LANES_LOOP(
            n, { STORE(yr, lanes_mul(lanes_mul(LOAD(xr), factor), lanes_add(offsets, LOAD(w)))); });
        if (r) r[row] = ri;
    }
}

BODY void rope_body(float *x, int64_t ldx, const float *cosines, const float *sines, int64_t m,
                    int64_t head_dim) {
    const int64_t n = head_dim / 2;
    for (int64_t h = 0; h < m; h++) {
        float *low = x + h * ldx, *high = low + n;
        LANES_LOOP(n, {
            lanes a = LOAD(low), b = LOAD(high), c = LOAD(cosines), s = LOAD(sines);
            STORE(low, lanes_fma(a, c, lanes_neg(lanes_mul(b, s))));
            STORE(high, lanes_fma(b, c, lanes_mul(a, s)));
        });
    }
}

BODY void silu_mul_body(float *y, const float *gate, const float *up, int64_t n) {
    lanes one = lanes_set(1.0f);
    LANES_LOOP(n, {
        lanes g = LOAD(gate);
        STORE(y, lanes_mul(lanes_div(g, lanes_add(one, lanes_exp(lanes_neg(g)))), LOAD(up)));
    });
}

BODY void gelu_mul_body(float *y, const float *gate, const float *up, int64_t n) {
    lanes one = lanes_set(1.0f), half = lanes_set(0.5f);
    LANES_LOOP(n, {
        lanes g = LOAD(gate);
        lanes gelu = lanes_mul(lanes_mul(half, g), lanes_add(one, lanes_gelu_tanh(g)));
        STORE(y, lanes_mul(gelu, LOAD(up)));
    });
}

BODY void add_body(float *y, const float *x, int64_t n) {
    LANES_LOOP(n, { STORE(y, lanes_add(LOAD(y), LOAD(x))); });
}

BODY void add_bias_body(float *y, int64_t ldy, const float *bias, int64_t m, int64_t n) {
    for (int64_t row = 0; row < m; row++) {
        float *yr = y + row * ldy;
        LANES_LOOP(n, { STORE(yr, lanes_add(LOAD(yr), LOAD(bias))); });
    }
}

BODY void scale_body(float *y, const float *x, float factor, int64_t n) {
    lanes factors = lanes_set(factor);
    LANES_LOOP(n, { STORE(y, lanes_mul(LOAD(x), factors)); });
}

static void round_f32_body(float *x, int64_t n) {
    (void)x;
    (void)n;
}

static void round_bf16_body(float *x, int64_t n) {
    LANES_LOOP(n, { STORE(x, lanes_round_bf16(LOAD(x))); });
}

BODY void temper_body(float *y, const float *x, float temperature, float softcap, int64_t n) {
    lanes t = lanes_set(temperature), cap = lanes_set(softcap);
    if (softcap > 0.0f)
        LANES_LOOP(
            n, { STORE(y, lanes_div(lanes_mul(cap, lanes_tanh(lanes_div(LOAD(x), cap))), t)); });
    else
        LANES_LOOP(n, { STORE(y, lanes_div(LOAD(x), t)); });
}

BODY ifl_lse block_lse_body(const float *x, int64_t n, float *p) {
    ifl_lse block = {.max = row_max(x, n)};
    lanes max = lanes_set(block.max), sum = lanes_zero();
    float s[IFL_LANES], e[IFL_LANES];
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        lanes v = lanes_exp(lanes_sub(lanes_load(x + i), max));
        sum = lanes_add(sum, v);
        if (p) lanes_store(p + i, v);
    }
    lanes_store(s, sum);
    if (i < n) {
        lanes_store(e, lanes_exp(lanes_sub(lanes_load_n(x + i, n - i), max)));
        for (int l = 0; i + l < n; l++) {
            s[l] = s[l] + e[l];
            if (p) p[i + l] = e[l];
        }
    }
    block.sum = lanes_tree_of(s);
    return block;
}

BODY ifl_lse merge_lse_body(const ifl_lse *blocks, int64_t n_blocks) {
    ifl_lse all = {.max = blocks[0].max};
    for (int64_t b = 1; b < n_blocks; b++)
        all.max = blocks[b].max > all.max ? blocks[b].max : all.max;
    all.sum = ifl_exp_scalar(blocks[0].max - all.max) * blocks[0].sum;
    for (int64_t b = 1; b < n_blocks; b++)
        all.sum = __builtin_fmaf(ifl_exp_scalar(blocks[b].max - all.max), blocks[b].sum, all.sum);
    return all;
}

BODY void exp_body(float *y, const float *x, int64_t n) {
    LANES_LOOP(n, { STORE(y, lanes_exp(LOAD(x))); });
}

/* A few values per row: the scalar text is quick enough. */
BODY void log_body(float *y, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        y[i] = ifl_log_scalar(x[i]);
}

#include "kernels/cpu/backward.inc.h"
#include "kernels/cpu/table.inc.h"
