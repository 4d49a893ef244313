/* 16 lanes as one zmm register. */
#ifndef IFL_KERNELS_CPU_X86_LANES_AVX512_H
#define IFL_KERNELS_CPU_X86_LANES_AVX512_H

#include "common/bf16.h"
#include "kernels/ops.h"
#include "kernels/ref/exp_log.h"

#include <immintrin.h>

#define IFL_OPS_NAME "avx512"
/* 12 x 32: 24 accumulators, 2 registers of B; the broadcast is a memory operand of the fma. */
#define IFL_TILE_ROWS 12
#define IFL_TILE_COLS 2
#define IFL_DIRECT_COLS(rows) ((rows) <= 6 ? 4 : 2)
/* Rows from which A and widened panels are copied in blocks. */
#define IFL_BLOCK_ROWS(x32) 32
#define IFL_COPY_ROWS 32 /* rows from which f32 panels are copied to a dense tile */
#define IFL_TASK_ROWS(x32) IFL_TASK_ROWS_MAX
#define IFL_UNROLL 4 /* k of one turn of a loop of products, even */
#define IFL_TILE_CASES(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)

typedef __m512 lanes;

#define LANES_FN static inline __attribute__((always_inline))

LANES_FN lanes lanes_set(float f) {
    return _mm512_set1_ps(f);
}
LANES_FN lanes lanes_zero(void) {
    return _mm512_setzero_ps();
}
LANES_FN lanes lanes_load(const float *p) {
    return _mm512_loadu_ps(p);
}
LANES_FN void lanes_store(float *p, lanes x) {
    _mm512_storeu_ps(p, x);
}
/* The first n of 16 lanes. */
LANES_FN __mmask16 lanes_first(int64_t n) {
    return (__mmask16)((1u << n) - 1u);
}
LANES_FN lanes lanes_load_n(const float *p, int64_t n) {
    return _mm512_maskz_loadu_ps(lanes_first(n), p);
}
LANES_FN void lanes_store_n(float *p, lanes x, int64_t n) {
    _mm512_mask_storeu_ps(p, lanes_first(n), x);
}
/* Of 16 pairs, the first and the second of each: see `panel` in ops.h. */
LANES_FN lanes lanes_load_even(const uint16_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
}
LANES_FN lanes lanes_load_odd(const uint16_t *p) {
    return _mm512_castsi512_ps(
        _mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32((int)0xffff0000u)));
}
LANES_FN lanes lanes_add(lanes x, lanes y) {
    return _mm512_add_ps(x, y);
}
LANES_FN lanes lanes_sub(lanes x, lanes y) {
    return _mm512_sub_ps(x, y);
}
LANES_FN lanes lanes_mul(lanes x, lanes y) {
    return _mm512_mul_ps(x, y);
}
LANES_FN lanes lanes_div(lanes x, lanes y) {
    return _mm512_div_ps(x, y);
}
LANES_FN lanes lanes_min(lanes x, lanes y) {
    return _mm512_min_ps(x, y);
} /* x < y ? x : y */
LANES_FN lanes lanes_max(lanes x, lanes y) {
    return _mm512_max_ps(x, y);
} /* x > y ? x : y */
LANES_FN lanes lanes_fma(lanes x, lanes y, lanes z) {
    return _mm512_fmadd_ps(x, y, z);
}
LANES_FN void lanes_fma_into(lanes *acc, lanes x, lanes y) {
    *acc = lanes_fma(x, y, *acc);
}
LANES_FN lanes lanes_sqrt(lanes x) {
    return _mm512_sqrt_ps(x);
}
LANES_FN lanes lanes_neg(lanes x) {
    return _mm512_xor_ps(x, _mm512_set1_ps(-0.0f));
}

LANES_FN lanes lanes_exp_scale(lanes p, lanes t) {
    __m512i k = _mm512_sub_epi32(_mm512_castps_si512(t), _mm512_set1_epi32(IFL_EXP_MAGIC_BITS));
    __m512i half = _mm512_srai_epi32(k, 1), bias = _mm512_set1_epi32(127);
    __m512i a = _mm512_slli_epi32(_mm512_add_epi32(half, bias), 23);
    __m512i b = _mm512_slli_epi32(_mm512_add_epi32(_mm512_sub_epi32(k, half), bias), 23);
    return _mm512_mul_ps(_mm512_mul_ps(p, _mm512_castsi512_ps(a)), _mm512_castsi512_ps(b));
}

/* To bf16, to nearest even; a NaN becomes 0x7fc0. */
LANES_FN lanes lanes_round_bf16(lanes x) {
    __m512i u = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i sum = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
    __m512i rounded = _mm512_and_si512(sum, _mm512_set1_epi32((int)0xffff0000u));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_castsi512_ps(_mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000)));
}

#if defined(IFL_X32_DOT)
/* --- Pairs of bf16 (kernels/cpu/x32_dot.inc.h) -------------------------------------------------
 */

/* 6 x 32: two half-chains each, 24 accumulators; 4 registers of B; A is a memory operand. */
#define IFL_DOT_ROWS 6
#define IFL_DOT_COLS(rows) ((rows) == 1 ? 4 : 2)
#define IFL_DOT_CASES(X) X(1) X(2) X(3) X(4) X(5) X(6)

typedef __m512i words;

LANES_FN words words_load(const void *p) {
    return _mm512_loadu_si512(p);
}
LANES_FN void words_store(uint32_t *p, words x) {
    _mm512_storeu_si512(p, x);
}
/* Of the pairs (k, k + 1) and (k + 2, k + 3), low half first: (k + 2, k), and (k + 3, k + 1). */
LANES_FN words words_even(words v0, words v1) {
    const words low = _mm512_set1_epi32(0xffff);
    return _mm512_or_si512(_mm512_slli_epi32(v0, 16), _mm512_and_si512(v1, low));
}
LANES_FN words words_odd(words v0, words v1) {
    const words high = _mm512_set1_epi32((int)0xffff0000u);
    return _mm512_or_si512(_mm512_and_si512(v0, high), _mm512_srli_epi32(v1, 16));
}
/* The same of 32 f32 that hold bf16 values: even, odd, even, odd of each four. */
LANES_FN words words_of_values(const float *x) {
    const words first = _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29);
    const words second = _mm512_add_epi32(first, _mm512_set1_epi32(2));
    words a = _mm512_loadu_si512(x), b = _mm512_loadu_si512(x + 16);
    words k0 = _mm512_permutex2var_epi32(a, first, b), k2 = _mm512_permutex2var_epi32(a, second, b);
    const words high = _mm512_set1_epi32((int)0xffff0000u);
    return _mm512_or_si512(_mm512_and_si512(k0, high), _mm512_srli_epi32(k2, 16));
}
/* acc = fma(high, high, acc), then fma(low, low, acc), flushed whatever MXCSR says. */
LANES_FN lanes lanes_dot(lanes acc, uint32_t a, words b) {
    return _mm512_dpbf16_ps(acc, (__m512bh)b, (__m512bh)_mm512_set1_epi32((int)a));
}
#endif

LANES_FN float lanes_tree(lanes x) {
    __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_shuffle_ps(s2, s2, 1)));
}
LANES_FN float lanes_reduce_max(lanes x) {
    __m256 m8 = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 m4 = _mm_max_ps(_mm256_castps256_ps128(m8), _mm256_extractf128_ps(m8, 1));
    __m128 m2 = _mm_max_ps(m4, _mm_movehl_ps(m4, m4));
    return _mm_cvtss_f32(_mm_max_ss(m2, _mm_shuffle_ps(m2, m2, 1)));
}

/* Eight rows of eight, in ymm registers: transposing is bound by loads and stores anyway. */
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
