/* 16 lanes as two ymm registers. */
#ifndef IFL_KERNELS_CPU_X86_LANES_AVX2_H
#define IFL_KERNELS_CPU_X86_LANES_AVX2_H

#include "common/bf16.h"
#include "kernels/ops.h"
#include "kernels/ref/exp_log.h"

#include <immintrin.h>

#define IFL_OPS_NAME "avx2"
/* 6 x 16: 12 accumulators, 2 registers of B, 1 broadcast: 15 of 16. */
#define IFL_TILE_ROWS 6
#define IFL_TILE_COLS 1
#define IFL_DIRECT_COLS(rows) ((rows) == 1 ? 4 : (rows) <= 3 ? 2 : 1)
/* Rows from which A and widened panels are copied in blocks. Widening in registers is never slower:
 * it takes no more instructions a product, and a task has fewer rows. */
#define IFL_BLOCK_ROWS(x32) ((x32) ? 64 : 256)
#define IFL_COPY_ROWS 24 /* rows from which f32 panels are copied to a dense tile */
/* Without blocks all rows of a task pass for every 16 columns: they should stay in L2. */
#define IFL_TASK_ROWS(x32) ((x32) ? IFL_TASK_ROWS_MAX : 96)
#define IFL_UNROLL 8 /* k of one turn of a loop of products, even */
#define IFL_TILE_CASES(X) X(1) X(2) X(3) X(4) X(5) X(6)

typedef struct lanes {
    __m256 a, b;
} lanes;

#define LANES_FN static inline __attribute__((always_inline))

LANES_FN lanes lanes_set(float f) {
    __m256 v = _mm256_set1_ps(f);
    return (lanes){v, v};
}
LANES_FN lanes lanes_zero(void) {
    return (lanes){_mm256_setzero_ps(), _mm256_setzero_ps()};
}
LANES_FN lanes lanes_load(const float *p) {
    return (lanes){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
LANES_FN void lanes_store(float *p, lanes x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
/* The first n of 8 lanes. */
LANES_FN __m256i lanes_first(int64_t n) {
    const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), index);
}
LANES_FN lanes lanes_load_n(const float *p, int64_t n) {
    return (lanes){_mm256_maskload_ps(p, lanes_first(n)),
                   _mm256_maskload_ps(p + 8, lanes_first(n - 8))};
}
LANES_FN void lanes_store_n(float *p, lanes x, int64_t n) {
    _mm256_maskstore_ps(p, lanes_first(n), x.a);
    _mm256_maskstore_ps(p + 8, lanes_first(n - 8), x.b);
}
/* Of 16 pairs, the first and the second of each: see `panel` in ops.h. */
LANES_FN __m256 lanes_even(const uint16_t *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256((const __m256i *)p), 16));
}
LANES_FN __m256 lanes_odd(const uint16_t *p) {
    const __m256i high = _mm256_set1_epi32((int)0xffff0000u);
    return _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256((const __m256i *)p), high));
}
LANES_FN lanes lanes_load_even(const uint16_t *p) {
    return (lanes){lanes_even(p), lanes_even(p + 16)};
}
LANES_FN lanes lanes_load_odd(const uint16_t *p) {
    return (lanes){lanes_odd(p), lanes_odd(p + 16)};
}

#define LANES_BINARY(name, op)                                                                     \
    LANES_FN lanes lanes_##name(lanes x, lanes y) {                                                \
        return (lanes){op(x.a, y.a), op(x.b, y.b)};                                                \
    }
LANES_BINARY(add, _mm256_add_ps)
LANES_BINARY(sub, _mm256_sub_ps)
LANES_BINARY(mul, _mm256_mul_ps)
LANES_BINARY(div, _mm256_div_ps)
LANES_BINARY(min, _mm256_min_ps) /* x < y ? x : y, as the instruction is defined */
LANES_BINARY(max, _mm256_max_ps) /* x > y ? x : y */

LANES_FN lanes lanes_fma(lanes x, lanes y, lanes z) {
    return (lanes){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
/* acc = fma(x, y, acc) where acc is: left to itself gcc writes some sums over a factor, then copies
 * them back. */
LANES_FN void lanes_fma_into(lanes *acc, lanes x, lanes y) {
    __asm__("vfmadd231ps %2, %1, %0" : "+x"(acc->a) : "x"(x.a), "x"(y.a));
    __asm__("vfmadd231ps %2, %1, %0" : "+x"(acc->b) : "x"(x.b), "x"(y.b));
}
LANES_FN lanes lanes_sqrt(lanes x) {
    return (lanes){_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)};
}
LANES_FN lanes lanes_neg(lanes x) {
    __m256 sign = _mm256_set1_ps(-0.0f);
    return (lanes){_mm256_xor_ps(x.a, sign), _mm256_xor_ps(x.b, sign)};
}

LANES_FN __m256 lanes_exp_scale_half(__m256 p, __m256 t) {
    __m256i k = _mm256_sub_epi32(_mm256_castps_si256(t), _mm256_set1_epi32(IFL_EXP_MAGIC_BITS));
    __m256i half = _mm256_srai_epi32(k, 1), bias = _mm256_set1_epi32(127);
    __m256i a = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    __m256i b = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(k, half), bias), 23);
    return _mm256_mul_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(a)), _mm256_castsi256_ps(b));
}
LANES_FN lanes lanes_exp_scale(lanes p, lanes t) {
    return (lanes){lanes_exp_scale_half(p.a, t.a), lanes_exp_scale_half(p.b, t.b)};
}

/* To bf16, to nearest even; a NaN becomes 0x7fc0. */
LANES_FN __m256 lanes_round_half(__m256 x) {
    __m256i u = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i sum = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
    __m256 rounded =
        _mm256_castsi256_ps(_mm256_and_si256(sum, _mm256_set1_epi32((int)0xffff0000u)));
    __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
    return _mm256_blendv_ps(rounded, nan, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}
LANES_FN lanes lanes_round_bf16(lanes x) {
    return (lanes){lanes_round_half(x.a), lanes_round_half(x.b)};
}

LANES_FN float lanes_tree(lanes x) {
    __m256 s8 = _mm256_add_ps(x.a, x.b);
    __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_shuffle_ps(s2, s2, 1)));
}
LANES_FN float lanes_reduce_max(lanes x) {
    __m256 m8 = _mm256_max_ps(x.a, x.b);
    __m128 m4 = _mm_max_ps(_mm256_castps256_ps128(m8), _mm256_extractf128_ps(m8, 1));
    __m128 m2 = _mm_max_ps(m4, _mm_movehl_ps(m4, m4));
    return _mm_cvtss_f32(_mm_max_ss(m2, _mm_shuffle_ps(m2, m2, 1)));
}

/* Eight rows of eight: unpack pairs, then quads, then halves. */
LANES_FN void lanes_transpose_8(float *out, const void *const *rows, int at) {
    __m256 r[8], s[8];
    for (int i = 0; i < 8; i++)
        r[i] = _mm256_loadu_ps((const float *)rows[i] + at);
    for (int i = 0; i < 8; i += 2) {
        s[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        s[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_shuffle_ps(s[i], s[i + 2], 0x44);
        r[i + 1] = _mm256_shuffle_ps(s[i], s[i + 2], 0xee);
        r[i + 2] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0x44);
        r[i + 3] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_ps(out + i * 16, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
        _mm256_storeu_ps(out + (i + 4) * 16, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
    }
}
/* Rows of words become columns of a 16 x 16 block: out[d * 16 + j] = rows[j][d]. */
LANES_FN void lanes_transpose(void *block, const void *const *rows) {
    float *out = block; /* only moved */
    lanes_transpose_8(out, rows, 0);
    lanes_transpose_8(out + 8, rows + 8, 0);
    lanes_transpose_8(out + 8 * 16, rows, 8);
    lanes_transpose_8(out + 8 * 16 + 8, rows + 8, 8);
}

/* 16 pairs of two rows of bf16. */
LANES_FN void lanes_interleave(uint32_t *out, const uint16_t *first, const uint16_t *second) {
    for (int i = 0; i < 16; i += 8) {
        __m256i low = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(first + i)));
        __m256i high = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(second + i)));
        _mm256_storeu_si256((__m256i *)(out + i),
                            _mm256_or_si256(low, _mm256_slli_epi32(high, 16)));
    }
}

#endif
