/* 16 lanes for any architecture: four 4-wide vectors of the compiler.
 *
 * Without a fused multiply-add in the instruction set, fma is made exact from double arithmetic:
 * the product of two f32 is exact in double; the sum is rounded to odd there (two-sum gives the
 * error, its sign the direction), and an odd-rounded value of 53 bits rounds once more to 24 bits
 * (or fewer, for subnormals) without double rounding (Boldo and Melquiond 2008). */
#ifndef IFL_KERNELS_CPU_LANES_GENERIC_H
#define IFL_KERNELS_CPU_LANES_GENERIC_H

#include "common/bf16.h"
#include "kernels/ops.h"
#include "kernels/ref/exp_log.h"

#define IFL_OPS_NAME "generic"
#define IFL_TILE_ROWS 4
#define IFL_TILE_COLS 1 /* in lanes of 16 columns */
#define IFL_DIRECT_COLS(rows) 1
/* Rows from which A and widened panels are copied in blocks. */
#define IFL_BLOCK_ROWS(x32) 8
#define IFL_COPY_ROWS 8 /* rows from which f32 panels are copied to a dense tile */
#define IFL_TASK_ROWS(x32) IFL_TASK_ROWS_MAX
#define IFL_UNROLL 2 /* k of one turn of a loop of products, even */
#define IFL_TILE_CASES(X) X(1) X(2) X(3) X(4)

typedef float lanes_quad __attribute__((vector_size(16)));
typedef uint32_t lanes_quad_bits __attribute__((vector_size(16)));
typedef struct lanes {
    lanes_quad q[4];
} lanes;

#define LANES_FN static inline __attribute__((always_inline))
#define LANES_EACH(expr)                                                                           \
    lanes out;                                                                                     \
    for (int i = 0; i < 4; i++)                                                                    \
        out.q[i] = (expr);                                                                         \
    return out

LANES_FN lanes lanes_set(float f) {
    LANES_EACH(((lanes_quad){f, f, f, f}));
}
LANES_FN lanes lanes_zero(void) {
    return lanes_set(0.0f);
}
LANES_FN lanes lanes_load(const float *p) {
    lanes out;
    memcpy(&out, p, sizeof out);
    return out;
}
LANES_FN void lanes_store(float *p, lanes a) {
    memcpy(p, &a, sizeof a);
}
LANES_FN lanes lanes_load_n(const float *p, int64_t n) {
    lanes out = lanes_zero();
    memcpy(&out, p, (size_t)n * sizeof *p);
    return out;
}
LANES_FN void lanes_store_n(float *p, lanes a, int64_t n) {
    memcpy(p, &a, (size_t)n * sizeof *p);
}
/* Of 16 pairs, the first and the second of each: see `panel` in ops.h. Which half of a word comes
 * first in memory is the byte order's. */
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define IFL_PAIR_FIRST(u) ((u) >> 16)
#define IFL_PAIR_SECOND(u) ((u)&0xffffu)
#else
#define IFL_PAIR_FIRST(u) ((u)&0xffffu)
#define IFL_PAIR_SECOND(u) ((u) >> 16)
#endif
LANES_FN lanes lanes_load_even(const uint16_t *p) {
    lanes out;
    for (int i = 0; i < 4; i++) {
        lanes_quad_bits u;
        memcpy(&u, p + 8 * i, sizeof u);
        out.q[i] = (lanes_quad)(IFL_PAIR_FIRST(u) << 16);
    }
    return out;
}
LANES_FN lanes lanes_load_odd(const uint16_t *p) {
    lanes out;
    for (int i = 0; i < 4; i++) {
        lanes_quad_bits u;
        memcpy(&u, p + 8 * i, sizeof u);
        out.q[i] = (lanes_quad)(IFL_PAIR_SECOND(u) << 16);
    }
    return out;
}
LANES_FN lanes lanes_add(lanes a, lanes b) {
    LANES_EACH(a.q[i] + b.q[i]);
}
LANES_FN lanes lanes_sub(lanes a, lanes b) {
    LANES_EACH(a.q[i] - b.q[i]);
}
LANES_FN lanes lanes_mul(lanes a, lanes b) {
    LANES_EACH(a.q[i] * b.q[i]);
}
LANES_FN lanes lanes_div(lanes a, lanes b) {
    LANES_EACH(a.q[i] / b.q[i]);
}
LANES_FN lanes lanes_neg(lanes a) {
    LANES_EACH(-a.q[i]);
}
LANES_FN lanes lanes_sqrt(lanes a) {
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++)
            a.q[i][j] = __builtin_sqrtf(a.q[i][j]);
    return a;
}
/* a < b ? a : b, and a > b ? a : b: b when either is NaN. */
LANES_FN lanes_quad lanes_select(lanes_quad_bits mask, lanes_quad a, lanes_quad b) {
    return (lanes_quad)(((lanes_quad_bits)a & mask) | ((lanes_quad_bits)b & ~mask));
}
LANES_FN lanes lanes_min(lanes a, lanes b) {
    LANES_EACH(lanes_select((lanes_quad_bits)(a.q[i] < b.q[i]), a.q[i], b.q[i]));
}
LANES_FN lanes lanes_max(lanes a, lanes b) {
    LANES_EACH(lanes_select((lanes_quad_bits)(a.q[i] > b.q[i]), a.q[i], b.q[i]));
}

#ifdef __FP_FAST_FMAF
LANES_FN lanes lanes_fma(lanes a, lanes b, lanes c) {
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++)
            c.q[i][j] = __builtin_fmaf(a.q[i][j], b.q[i][j], c.q[i][j]);
    return c;
}
#else
typedef double lanes_pair __attribute__((vector_size(16)));
typedef uint64_t lanes_pair_bits __attribute__((vector_size(16)));
typedef float lanes_half_quad __attribute__((vector_size(8)));

LANES_FN lanes_pair lanes_fma_odd(lanes_pair a, lanes_pair b, lanes_pair c) {
    lanes_pair p = a * b; /* exact: 48 bits, no overflow or underflow in double */
    lanes_pair s = p + c;
    lanes_pair c_part = s - p;
    lanes_pair error = (p - (s - c_part)) + (c - c_part);
    /* A NaN error (s infinite or NaN) must leave s alone: both comparisons are then false. */
    lanes_pair_bits inexact = (lanes_pair_bits)((error > 0) | (error < 0));
    lanes_pair_bits opposite = ((lanes_pair_bits)error ^ (lanes_pair_bits)s) >> 63;
    lanes_pair_bits truncated = (lanes_pair_bits)s - (opposite & inexact);
    return (lanes_pair)(truncated | (inexact & 1));
}

LANES_FN lanes lanes_fma(lanes a, lanes b, lanes c) {
#define LANES_WIDEN(v, i, j)                                                                       \
    __builtin_convertvector(__builtin_shufflevector(v.q[i], v.q[i], j, j + 1), lanes_pair)
    lanes out;
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        lanes_half_quad low = __builtin_convertvector(
            lanes_fma_odd(LANES_WIDEN(a, i, 0), LANES_WIDEN(b, i, 0), LANES_WIDEN(c, i, 0)),
            lanes_half_quad);
        lanes_half_quad high = __builtin_convertvector(
            lanes_fma_odd(LANES_WIDEN(a, i, 2), LANES_WIDEN(b, i, 2), LANES_WIDEN(c, i, 2)),
            lanes_half_quad);
        out.q[i] = __builtin_shufflevector(low, high, 0, 1, 2, 3);
    }
    return out;
#undef LANES_WIDEN
}
#endif
LANES_FN void lanes_fma_into(lanes *acc, lanes x, lanes y) {
    *acc = lanes_fma(x, y, *acc);
}

/* p * 2^n for the n that sits in the low bits of t = n + IFL_EXP_MAGIC, in two steps. */
LANES_FN lanes lanes_exp_scale(lanes p, lanes t) {
    lanes out;
    for (int i = 0; i < 4; i++) {
        lanes_quad_bits k = (lanes_quad_bits)t.q[i] - IFL_EXP_MAGIC_BITS;
        lanes_quad_bits half = (k >> 1) | (k & 0x80000000u);
        lanes_quad scale_a = (lanes_quad)((half + 127u) << 23);
        lanes_quad scale_b = (lanes_quad)((k - half + 127u) << 23);
        out.q[i] = (p.q[i] * scale_a) * scale_b;
    }
    return out;
}

/* To bf16, to nearest even; a NaN becomes 0x7fc0. */
LANES_FN lanes lanes_round_bf16(lanes a) {
    lanes out;
    for (int i = 0; i < 4; i++) {
        lanes_quad_bits u = (lanes_quad_bits)a.q[i];
        lanes_quad_bits rounded = (u + 0x7fffu + ((u >> 16) & 1u)) & 0xffff0000u;
        lanes_quad_bits nan = (lanes_quad_bits)((u & 0x7fffffffu) > 0x7f800000u);
        out.q[i] = (lanes_quad)((rounded & ~nan) | (nan & 0x7fc00000u));
    }
    return out;
}

#if defined(IFL_X32_DOT)
/* Pairs of bf16 (kernels/cpu/x32_dot.inc.h) as the instruction is defined: a host without it tests
 * the text around it. */
#define IFL_DOT_ROWS 3
#define IFL_DOT_COLS(rows) ((rows) == 1 ? 4 : 2)
#define IFL_DOT_CASES(X) X(1) X(2) X(3)

typedef struct words {
    uint32_t u[16];
} words;

LANES_FN words words_load(const void *p) {
    words out;
    memcpy(&out, p, sizeof out);
    return out;
}
LANES_FN void words_store(uint32_t *p, words x) {
    memcpy(p, &x, sizeof x);
}
LANES_FN words words_even(words v0, words v1) {
    words out;
    for (int i = 0; i < 16; i++)
        out.u[i] = v0.u[i] << 16 | (v1.u[i] & 0xffffu);
    return out;
}
LANES_FN words words_odd(words v0, words v1) {
    words out;
    for (int i = 0; i < 16; i++)
        out.u[i] = (v0.u[i] & 0xffff0000u) | v1.u[i] >> 16;
    return out;
}
LANES_FN words words_of_values(const float *x) {
    uint32_t bits[32];
    words out;
    memcpy(bits, x, sizeof bits);
    for (int i = 0; i < 16; i++) {
        int k = i / 2 * 4 + i % 2;
        out.u[i] = (bits[k] & 0xffff0000u) | bits[k + 2] >> 16;
    }
    return out;
}
LANES_FN lanes lanes_dot(lanes acc, uint32_t a, words b) {
    float high[16], low[16];
    uint32_t low_a = a << 16;
    float a_high, a_low;
    for (int i = 0; i < 16; i++) {
        uint32_t h = b.u[i] & 0xffff0000u, l = b.u[i] << 16;
        memcpy(&high[i], &h, sizeof h);
        memcpy(&low[i], &l, sizeof l);
    }
    a &= 0xffff0000u;
    memcpy(&a_high, &a, sizeof a);
    memcpy(&a_low, &low_a, sizeof low_a);
    acc = lanes_fma(lanes_set(a_high), lanes_load(high), acc);
    return lanes_fma(lanes_set(a_low), lanes_load(low), acc);
}
#endif

/* The fixed tree of kernels/ops.h. */
LANES_FN float lanes_tree(lanes a) {
    lanes_quad s0 = a.q[0] + a.q[2], s1 = a.q[1] + a.q[3];
    lanes_quad s = s0 + s1;
    float x = s[0] + s[2], y = s[1] + s[3];
    return x + y;
}

/* The maximum of 16 lanes without NaNs. */
LANES_FN float lanes_reduce_max(lanes a) {
    float max = a.q[0][0];
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++)
            max = a.q[i][j] > max ? a.q[i][j] : max;
    return max;
}

/* Rows of words become columns of a 16 x 16 block: out[d * 16 + j] = rows[j][d]. */
LANES_FN void lanes_transpose(void *block, const void *const *rows) {
    for (int j = 0; j < 16; j++)
        for (int d = 0; d < 16; d++)
            memcpy((char *)block + (d * 16 + j) * 4, (const char *)rows[j] + d * 4, 4);
}

/* 16 pairs of two rows of bf16. */
LANES_FN void lanes_interleave(uint32_t *out, const uint16_t *first, const uint16_t *second) {
    for (int i = 0; i < 16; i++) {
        memcpy((char *)(out + i), first + i, sizeof *first);
        memcpy((char *)(out + i) + 2, second + i, sizeof *second);
    }
}

#endif
