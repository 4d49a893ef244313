/* What the op tests share: random inputs of several kinds, a sink of output bytes, a poisoned
 * floating-point environment. */
#ifndef IFL_TESTS_OPS_TESTING_H
#define IFL_TESTS_OPS_TESTING_H

#include "common/bf16.h"
#include "common/memory.h"
#include "kernels/ops.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "tests/testing.h"

static inline uint32_t testing_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}
static inline float testing_float(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* --- Random inputs --------------------------------------------------------------------------- */

typedef struct testing_rng {
    uint64_t state;
} testing_rng;

static inline uint64_t testing_u64(testing_rng *rng) { /* splitmix64 */
    uint64_t z = rng->state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
static inline int64_t testing_below(testing_rng *rng, int64_t n) {
    return (int64_t)(testing_u64(rng) % (uint64_t)n);
}
static inline int64_t testing_between(testing_rng *rng, int64_t low, int64_t high) {
    return low + testing_below(rng, high - low + 1);
}
static inline float testing_uniform(testing_rng *rng) { /* (-1, 1) */
    return (float)((double)(int64_t)testing_u64(rng) * 0x1p-63);
}

/* What kind of values a tensor holds. */
typedef enum { KIND_PLAIN, KIND_TINY, KIND_HUGE, KIND_ZEROS, KIND_WILD, KIND_COUNT } testing_kind;

static inline float testing_value(testing_rng *rng, testing_kind kind) {
    float u = testing_uniform(rng);
    switch (kind) {
    case KIND_TINY:
        return u * 0x1p-127f; /* products of these with 1 are subnormal */
    case KIND_HUGE:
        return u * 0x1p63f;
    case KIND_ZEROS:
        return testing_below(rng, 3) == 0 ? u : testing_below(rng, 2) ? -0.0f : 0.0f;
    case KIND_WILD: { /* any finite bits */
        uint32_t bits = (uint32_t)testing_u64(rng);
        return (bits & 0x7f800000u) == 0x7f800000u ? u : testing_float(bits);
    }
    default:
        return u;
    }
}
static inline testing_kind testing_any_kind(testing_rng *rng) {
    return testing_below(rng, 2) ? KIND_PLAIN : (testing_kind)testing_below(rng, KIND_COUNT);
}

/* Owned by the test; exact length, so that an overrun is seen by the sanitizer. */
static inline float *testing_floats(testing_rng *rng, int64_t n, testing_kind kind) {
    float *x = malloc((size_t)(n > 0 ? n : 1) * sizeof *x);
    assert_non_null(x);
    for (int64_t i = 0; i < n; i++)
        x[i] = testing_value(rng, kind);
    return x;
}
static inline uint16_t *testing_bf16(testing_rng *rng, int64_t n, testing_kind kind) {
    uint16_t *x = malloc((size_t)(n > 0 ? n : 1) * sizeof *x);
    assert_non_null(x);
    for (int64_t i = 0; i < n; i++)
        x[i] = ifl_bf16_from_f32(testing_value(rng, kind));
    return x;
}

/* --- The environment that an op must not care about ------------------------------------------ */

#if defined(__x86_64__)
#define TESTING_ENVIRONMENTS 2
#define TESTING_POISON 0xffc0u /* round toward zero, FTZ, DAZ; exceptions masked */
static inline void testing_environment_set(int environment) {
    if (environment) __builtin_ia32_ldmxcsr(TESTING_POISON);
}
static inline void testing_environment_reset(int environment) {
    uint32_t now = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(0x1f80);
    if (environment) assert_int_equal(now & ~0x3fu, TESTING_POISON & ~0x3fu); /* restored */
}
#else
#define TESTING_ENVIRONMENTS 1
static inline void testing_environment_set(int environment) {
    (void)environment;
}
static inline void testing_environment_reset(int environment) {
    (void)environment;
}
#endif

/* --- Output bytes ---------------------------------------------------------------------------- */

typedef struct testing_sink {
    unsigned char *bytes;
    size_t n, capacity;
    int environment;
} testing_sink;

static inline void testing_sink_put(testing_sink *sink, const void *p, size_t n) {
    assert_int_equal(ifl_grow((void **)&sink->bytes, &sink->capacity, sink->n + n, 1, NULL),
                     IFL_OK);
    memcpy(sink->bytes + sink->n, p, n);
    sink->n += n;
}
/* A NaN's payload depends on operand order and is not part of the contract. */
static inline void testing_sink_floats(testing_sink *sink, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t u = testing_bits(x[i]);
        if ((u & 0x7fffffffu) > 0x7f800000u) u = 0x7fc00000u;
        testing_sink_put(sink, &u, sizeof u);
    }
}

/* Index of the first 4-byte word that differs, or -1. */
static inline int64_t testing_sink_difference(const testing_sink *a, const testing_sink *b) {
    if (a->n != b->n) return 0;
    for (size_t i = 0; i < a->n; i += 4)
        if (memcmp(a->bytes + i, b->bytes + i, a->n - i < 4 ? a->n - i : 4) != 0)
            return (int64_t)(i / 4);
    return -1;
}

/* Runs one op call under the sink's environment. */
#define TESTING_CALL(sink, statement)                                                              \
    do {                                                                                           \
        testing_environment_set((sink)->environment);                                              \
        statement;                                                                                 \
        testing_environment_reset((sink)->environment);                                            \
    } while (0)

#endif
