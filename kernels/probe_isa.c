#include "kernels/probe_isa.h"

#include "common/rng.h"
#include "kernels/cpu/implementations.h"
#include "kernels/cpu/rounding.h"
#include "kernels/ops.h"
#include "kernels/ref/bf16_dot.h"

#include <string.h>

enum { LANES_MAX = 256, OPERANDS_MAX = 512 };

/* --- The instructions ------------------------------------------------------------------------- */

static const struct isa_shape {
    const char *name;
    int lanes, operands, n_pairs; /* elements of c, of a and of b; pairs of one element of c */
    int64_t rounds, rounds_short;
} isa_shapes[IFL_ISA_COUNT] = {
    [IFL_ISA_VDPBF16PS] = {"VDPBF16PS", 16, 32, 1, 100000, 100},
    [IFL_ISA_TDPBF16PS] = {"TDPBF16PS", 256, 512, 16, 5000, 4},
};

const char *ifl_isa_name(ifl_isa isa) {
    return isa_shapes[isa].name;
}

ifl_isa_fn ifl_isa_native(ifl_isa isa, const char **absent) {
    *absent = "an instruction of x86-64";
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool pairs = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bf16");
    *absent = isa == IFL_ISA_TDPBF16PS ? ifl_amx_absent() : NULL;
    if (!*absent && !pairs) *absent = "this CPU has no AVX512-BF16";
    if (!*absent) return isa == IFL_ISA_TDPBF16PS ? ifl_tdpbf16ps_native : ifl_vdpbf16ps_native;
#endif
    (void)isa;
    return NULL;
}

/* Where the k-th pair of element `lane` lies in a and in b. */
static void isa_pair(ifl_isa isa, int lane, int k, int *a, int *b) {
    bool tiles = isa == IFL_ISA_TDPBF16PS;
    *a = tiles ? lane / 16 * 32 + 2 * k : 2 * lane;
    *b = tiles ? k * 32 + lane % 16 * 2 : 2 * lane;
}

static float isa_published(ifl_isa isa, int lane, float c, const uint16_t *a, const uint16_t *b) {
    int at_a, at_b;
    isa_pair(isa, lane, 0, &at_a, &at_b);
    return isa == IFL_ISA_TDPBF16PS ? ifl_tdpbf16ps_element(c, a + at_a, b + at_b, 32, 16)
                                    : ifl_vdpbf16ps_element(c, a + at_a, b + at_b);
}

/* --- Inputs ----------------------------------------------------------------------------------- */

typedef enum {
    KIND_PLAIN,
    KIND_DENORMAL,   /* operands; the other one takes any size */
    KIND_UNDERFLOW,  /* products and sums about 2^-126 */
    KIND_EDGE,       /* sums that round to 2^-126 or just not */
    KIND_CANCELLING, /* few values, so that sums return to zero and to what they were */
    KIND_HUGE,
    KIND_ZEROS,
    KIND_ANY,
    KIND_COUNT
} isa_kind;
static const char *const kind_names[KIND_COUNT] = {
    "plain", "denormal", "underflow", "edge", "cancelling", "huge", "zeros", "any bits"};

typedef struct isa_words {
    ifl_rng_key key;
    uint64_t position;
    uint32_t words[4];
    int left;
} isa_words;

static uint32_t isa_word(isa_words *w) {
    if (w->left == 0) {
        ifl_rng_words(&w->key, w->position++, 0, w->words);
        w->left = 4;
    }
    return w->words[--w->left];
}

/* A bf16 value of a kind; `second`: an operand b. 7 bits of fraction, 8 of exponent, the sign. */
static uint16_t isa_operand(isa_words *words, isa_kind kind, int64_t round, bool second) {
    static const uint8_t fractions[4] = {0, 1, 0x40, 0x7f}, edges[4] = {64, 52, 51, 63};
    uint32_t w = isa_word(words), sign = w & 0x8000u, fraction = w & 0x7fu, pick = w >> 16;
    uint32_t exponent = 0;
    switch (kind) {
    case KIND_DENORMAL:
        exponent = second ? pick % 255 : pick % 3;
        break;
    case KIND_UNDERFLOW:
        exponent = 58 + pick % 10;
        break;
    case KIND_EDGE:
        exponent = edges[pick % 4];
        fraction = pick % 16 < 12 ? 0 : fractions[(w >> 8) % 4];
        break;
    case KIND_CANCELLING:
        exponent = 127 + pick % 3 * 10;
        fraction = fractions[(w >> 8) % 4] & 0x41u;
        break;
    case KIND_HUGE:
        exponent = 184 + pick % 12;
        break;
    case KIND_ZEROS:
        exponent = pick % 4 ? 0 : 127;
        fraction = pick % 8 < 6 ? 0 : fraction;
        if (round % 2) return (uint16_t)((second ? 0x8000u : 0) | fraction); /* all products -0 */
        break;
    case KIND_ANY:
        if (pick % 128 == 0) return (uint16_t)(sign | (pick % 256 ? 0x7f80u : 0x7fc0u));
        return (uint16_t)w;
    default:
        exponent = 120 + pick % 16;
        break;
    }
    return (uint16_t)(sign | exponent << 7 | fraction);
}

static float isa_accumulator(isa_words *words, isa_kind kind) {
    uint32_t w = isa_word(words), sign = w & 0x80000000u, fraction = w & 0x7fffffu, bits;
    uint32_t pick = isa_word(words);
    float f;
    switch (kind) {
    case KIND_DENORMAL:
        bits = (pick % 2 ? 0 : pick >> 8 & 0x7fu) << 23 | fraction;
        break;
    case KIND_UNDERFLOW:
        bits = pick % 5 << 23 | fraction;
        break;
    case KIND_EDGE:
        bits = pick % 3 == 0 ? 0 : 0x00800000u + fraction % 8 - 4;
        break;
    case KIND_CANCELLING:
        bits = (127 + pick % 5 * 10) << 23 | (fraction & 0x400000u);
        break;
    case KIND_HUGE:
        bits = (240 + pick % 15) << 23 | fraction;
        break;
    case KIND_ZEROS:
        bits = pick % 4 ? 0 : 127u << 23;
        break;
    case KIND_ANY:
        bits = pick & 0x7fffffffu;
        break;
    default:
        bits = (120 + pick % 16) << 23 | fraction;
        break;
    }
    bits |= sign;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* --- The comparison --------------------------------------------------------------------------- */

static uint32_t isa_bits(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}
static bool isa_same(float x, float y) {
    return isa_bits(x) == isa_bits(y) || (x != x && y != y);
}

static bool isa_lane_differs(ifl_isa isa, ifl_isa_fn fn, int lane, const float *c,
                             const uint16_t *a, const uint16_t *b, float *got, float *want) {
    float all[LANES_MAX];
    memcpy(all, c, (size_t)isa_shapes[isa].lanes * sizeof *c);
    fn(all, a, b);
    *got = all[lane];
    *want = isa_published(isa, lane, c[lane], a, b);
    return !isa_same(*got, *want);
}

/* Pairs without which the lane still differs say nothing: they become zeros. */
static void isa_describe(ifl_isa isa, ifl_isa_fn fn, int lane, isa_kind kind, const float *c,
                         const uint16_t *a_all, const uint16_t *b_all, char *text, size_t size) {
    uint16_t a[OPERANDS_MAX], b[OPERANDS_MAX];
    float got, want;
    memcpy(a, a_all, sizeof a);
    memcpy(b, b_all, sizeof b);
    size_t n = (size_t)snprintf(text, size, "%s inputs, c %08x", kind_names[kind],
                                (unsigned)isa_bits(c[lane]));
    for (int k = 0; k < isa_shapes[isa].n_pairs; k++)
        for (int half = 0; half < 2; half++) {
            int at_a, at_b;
            isa_pair(isa, lane, k, &at_a, &at_b);
            uint16_t *p = &a[at_a + half], *q = &b[at_b + half], was_p = *p, was_q = *q;
            *p = *q = 0;
            if (isa_lane_differs(isa, fn, lane, c, a, b, &got, &want)) continue;
            *p = was_p;
            *q = was_q;
            if (n < size)
                n += (size_t)snprintf(text + n, size - n, ", a[%d] %04x b %04x", 2 * k + half,
                                      was_p, was_q);
        }
    isa_lane_differs(isa, fn, lane, c, a, b, &got, &want);
    if (n < size)
        snprintf(text + n, size - n, ": got %08x, published %08x", (unsigned)isa_bits(got),
                 (unsigned)isa_bits(want));
}

/* Behind a call, so that no arithmetic moves across the change of rounding mode. */
__attribute__((noinline)) static void isa_compare_default(ifl_isa isa, ifl_isa_fn fn, uint64_t seed,
                                                          int64_t n_rounds, ifl_isa_count *out) {
    const struct isa_shape *shape = &isa_shapes[isa];
    uint16_t a[OPERANDS_MAX] = {0}, b[OPERANDS_MAX] = {0};
    float c[LANES_MAX], got[LANES_MAX];
    *out = (ifl_isa_count){0};
    for (int kind = 0; kind < KIND_COUNT; kind++) {
        isa_words words = {.key = {seed, (uint64_t)kind, IFL_RNG_TEST}};
        for (int64_t round = 0; round < n_rounds; round++) {
            for (int i = 0; i < shape->operands; i++) {
                a[i] = isa_operand(&words, (isa_kind)kind, round, false);
                b[i] = isa_operand(&words, (isa_kind)kind, round, true);
            }
            for (int lane = 0; lane < shape->lanes; lane++)
                got[lane] = c[lane] = isa_accumulator(&words, (isa_kind)kind);
            fn(got, a, b);
            for (int lane = 0; lane < shape->lanes; lane++) {
                out->compared++;
                if (isa_same(got[lane], isa_published(isa, lane, c[lane], a, b))) continue;
                if (out->differing++ == 0)
                    isa_describe(isa, fn, lane, (isa_kind)kind, c, a, b, out->first,
                                 sizeof out->first);
            }
        }
    }
}

void ifl_isa_compare(ifl_isa isa, ifl_isa_fn fn, uint64_t seed, int64_t n_rounds,
                     ifl_isa_count *out) {
    uint32_t saved = ifl_rounding_enter();
    isa_compare_default(isa, fn, seed, n_rounds, out);
    ifl_rounding_leave(saved);
}

bool ifl_isa_agrees(ifl_isa isa) {
    const char *absent;
    ifl_isa_fn fn = ifl_isa_native(isa, &absent);
    ifl_isa_count count;
    if (!fn) return false;
    ifl_isa_compare(isa, fn, 1, isa_shapes[isa].rounds_short, &count);
    return count.differing == 0;
}

static void isa_print_implementations(FILE *out) {
    for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++) {
        const ifl_ops *all[16];
        int n = ifl_ops_list((ifl_profile)profile, all, 16);
        fprintf(out, "implementations of profile %s here:", ifl_profile_name((ifl_profile)profile));
        for (int i = 0; i < n; i++)
            fprintf(out, "%s %s", i ? "," : "", all[i]->name);
        fprintf(out, "\n");
    }
}

ifl_status ifl_probe_isa(uint64_t seed, FILE *out, ifl_error *err) {
    ifl_status st = IFL_OK;
    isa_print_implementations(out);
    for (int isa = 0; isa < IFL_ISA_COUNT; isa++) {
        const char *absent;
        ifl_isa_fn fn = ifl_isa_native((ifl_isa)isa, &absent);
        ifl_isa_count count;
        if (!fn) {
            fprintf(out, "%s absent: %s\n", isa_shapes[isa].name, absent);
            continue;
        }
        ifl_isa_compare((ifl_isa)isa, fn, seed, isa_shapes[isa].rounds, &count);
        fprintf(out,
                "%s %lld results compared with the published pseudo-code, %lld differing%s%s\n",
                isa_shapes[isa].name, (long long)count.compared, (long long)count.differing,
                count.differing ? "; first: " : "", count.first);
        if (count.differing > 0 && st == IFL_OK)
            st = ifl_fail(
                err, IFL_PARITY,
                "%s is not what it is published to be on this CPU: %lld of %lld results "
                "differ; first: %s. Profile bf16 has the same bits without it, on the other "
                "implementations: report this CPU, and run in f32 until it is known",
                isa_shapes[isa].name, (long long)count.differing, (long long)count.compared,
                count.first);
        fflush(out);
    }
    return st;
}
