/* The matrix product on AMX tiles, by emulation, against `ref` over shapes that test_ops.c has no
 * time for; and the probe of the bf16 product instructions: it finds no fault in the published
 * arithmetic done another way, and finds each planted one. */
#include "kernels/cpu/rounding.h"
#include "kernels/probe_isa.h"
#include "kernels/ref/bf16_dot.h"
#include "ops_testing.h"

const ifl_ops *testing_ops_amx_emulated(void); /* amx_emulated.c */

/* --- Products on tiles ------------------------------------------------------------------------ */

typedef struct product {
    int64_t m, n, k, pad, begin, end;
    testing_kind kind;
} product;

/* Bytes of y and of what lies behind its rows, by `ops`; `change`: the last k of the last row. */
static testing_sink product_run(const ifl_ops *ops, const product *p, uint64_t seed, bool change) {
    testing_rng rng = {seed};
    testing_sink sink = {.environment = (int)(seed % TESTING_ENVIRONMENTS)};
    int64_t ldx = p->k + p->pad, ldy = p->n + p->pad;
    uint16_t *w = testing_bf16(&rng, p->n * p->k, p->kind);
    uint16_t *panels = malloc((size_t)ifl_panels_elements(p->n, p->k) * sizeof *panels);
    float *x = testing_floats(&rng, p->m * ldx, p->kind);
    float *y = testing_floats(&rng, p->m * ldy, KIND_PLAIN);
    assert_non_null(panels);
    ifl_pack_bf16(panels, w, p->n, p->k);
    if (change) x[(p->m - 1) * ldx + p->k - 1] += 3.0f;
    ops->round(x, p->m * ldx);
    TESTING_CALL(&sink, ops->matmul(y, ldy, x, ldx, panels, p->m, p->n, p->k, p->begin, p->end));
    testing_sink_floats(&sink, y, p->m * ldy);
    free(w);
    free(panels);
    free(x);
    free(y);
    return sink;
}

static bool product_differs(const product *p, uint64_t seed, bool change) {
    testing_sink want = product_run(ifl_ops_ref(IFL_PROFILE_BF16), p, seed, false);
    testing_sink got = product_run(testing_ops_amx_emulated(), p, seed, change);
    int64_t at = testing_sink_difference(&want, &got);
    free(want.bytes);
    free(got.bytes);
    return at >= 0;
}

static void test_products_on_tiles_have_the_bits_of_ref(void **state) {
    (void)state;
    static const product products[] = {
        {1, 33, 70, 0, 0, 2, KIND_PLAIN}, /* the hosts' own takes another way for one row */
        {2, 96, 640, 3, 0, 3, KIND_PLAIN},
        {16, 128, 96, 0, 1, 4, KIND_WILD},  /* an odd panel after a pair */
        {7, 40, 3871, 1, 0, 2, KIND_PLAIN}, /* one strip: more k than A's copy has room for */
        {31, 40, 3850, 0, 0, 2, KIND_TINY},
        {33, 50, 641, 2, 0, 2, KIND_PLAIN}, /* several strips: blocks of k */
        {35, 64, 1300, 0, 0, 2, KIND_WILD},
        {48, 70, 700, 1, 0, 3, KIND_PLAIN},
        {65, 17, 672, 0, 0, 1, KIND_ZEROS},
        {192, 33, 100, 0, 0, 2, KIND_PLAIN},
        {193, 48, 65, 5, 1, 2, KIND_PLAIN}, /* two blocks of rows */
        {200, 32, 650, 0, 0, 1, KIND_HUGE},
        {385, 20, 33, 0, 0, 1, KIND_TINY},
    };
    for (size_t i = 0; i < sizeof products / sizeof *products; i++)
        if (product_differs(&products[i], i, false))
            fail_msg("%lld x %lld x %lld differs from ref", (long long)products[i].m,
                     (long long)products[i].n, (long long)products[i].k);
}

static void test_the_comparison_sees_the_last_k_of_the_last_row(void **state) {
    (void)state;
    static const product products[] = {{3, 20, 65, 0, 0, 1, KIND_PLAIN},
                                       {37, 20, 673, 0, 0, 1, KIND_PLAIN},
                                       {193, 20, 33, 0, 0, 1, KIND_PLAIN}};
    for (size_t i = 0; i < sizeof products / sizeof *products; i++)
        assert_true(product_differs(&products[i], i, true));
}

/* --- The probe -------------------------------------------------------------------------------- */

#if defined(__x86_64__)
/* The published text on the CPU's own fused multiply-add and its own flushing: other arithmetic
 * than the probe's. */
__attribute__((noinline, target("fma"))) static void fma_chains(float *c, const uint16_t *a,
                                                                const uint16_t *b) {
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 16; n++) {
            float even = 0.0f, odd = 0.0f;
            for (int k = 0; k < 16; k++) {
                const uint16_t *p = a + m * 32 + 2 * k, *q = b + k * 32 + 2 * n;
                even = __builtin_fmaf(ifl_bf16_to_f32(p[0]), ifl_bf16_to_f32(q[0]), even);
                odd = __builtin_fmaf(ifl_bf16_to_f32(p[1]), ifl_bf16_to_f32(q[1]), odd);
            }
            c[m * 16 + n] += even + odd;
        }
}
__attribute__((noinline, target("fma"))) static void fma_pairs(float *c, const uint16_t *a,
                                                               const uint16_t *b) {
    for (int l = 0; l < 16; l++) {
        float high =
            __builtin_fmaf(ifl_bf16_to_f32(a[2 * l + 1]), ifl_bf16_to_f32(b[2 * l + 1]), c[l]);
        c[l] = __builtin_fmaf(ifl_bf16_to_f32(a[2 * l]), ifl_bf16_to_f32(b[2 * l]), high);
    }
}
static void flushed(ifl_isa_fn fn, float *c, const uint16_t *a, const uint16_t *b) {
    uint32_t saved = ifl_rounding_enter_flush();
    fn(c, a, b);
    ifl_rounding_leave_flush(saved);
}
static void tiles_by_fma(float *c, const uint16_t *a, const uint16_t *b) {
    flushed(fma_chains, c, a, b);
}
static void pairs_by_fma(float *c, const uint16_t *a, const uint16_t *b) {
    flushed(fma_pairs, c, a, b);
}

static void test_the_published_text_on_this_cpu_has_no_fault(void **state) {
    (void)state;
    ifl_isa_count count;
    if (!__builtin_cpu_supports("fma")) skip();
    ifl_isa_compare(IFL_ISA_TDPBF16PS, tiles_by_fma, 7, 100, &count);
    if (count.differing) fail_msg("%s", count.first);
    assert_int_equal(count.compared, 8 * 100 * 256);
    ifl_isa_compare(IFL_ISA_VDPBF16PS, pairs_by_fma, 7, 5000, &count);
    if (count.differing) fail_msg("%s", count.first);
    assert_int_equal(count.compared, 8 * 5000 * 16);
}
#endif

/* What an element of the tile product becomes with a defect. */
typedef float (*tile_element)(float c, const uint16_t *a, const uint16_t *b);

#define A(k) ifl_bf16_to_f32(a[k])
#define B(k) ifl_bf16_to_f32(b[(k) / 2 * 32 + (k) % 2])

static float element_from_accumulator(float c, const uint16_t *a, const uint16_t *b) {
    float even = c, odd = 0.0f;
    for (int k = 0; k < 32; k += 2) {
        even = ifl_flush_fma(A(k), B(k), even);
        odd = ifl_flush_fma(A(k + 1), B(k + 1), odd);
    }
    return ifl_flush_add(even, odd);
}
static float element_one_chain(float c, const uint16_t *a, const uint16_t *b) {
    float all = 0.0f;
    for (int k = 0; k < 32; k++)
        all = ifl_flush_fma(A(k), B(k), all);
    return ifl_flush_add(c, all);
}
/* As Intel's guide to intrinsics has it, unlike its manual: both pairs onto the accumulator. */
static float element_of_the_guide(float c, const uint16_t *a, const uint16_t *b) {
    for (int k = 0; k < 32; k++)
        c = ifl_flush_fma(A(k), B(k), c);
    return c;
}
static float element_other_sum(float c, const uint16_t *a, const uint16_t *b) {
    float even = 0.0f, odd = 0.0f;
    for (int k = 0; k < 32; k += 2) {
        even = ifl_flush_fma(A(k), B(k), even);
        odd = ifl_flush_fma(A(k + 1), B(k + 1), odd);
    }
    return ifl_flush_add(ifl_flush_add(c, even), odd);
}
static float element_reversed(float c, const uint16_t *a, const uint16_t *b) {
    float even = 0.0f, odd = 0.0f;
    for (int k = 30; k >= 0; k -= 2) {
        even = ifl_flush_fma(A(k), B(k), even);
        odd = ifl_flush_fma(A(k + 1), B(k + 1), odd);
    }
    return ifl_flush_add(c, ifl_flush_add(even, odd));
}
static float element_unfused(float c, const uint16_t *a, const uint16_t *b) {
    float sums[2] = {0.0f, 0.0f};
    for (int k = 0; k < 32; k++)
        sums[k % 2] = ifl_flush_add(sums[k % 2], ifl_flush_fma(A(k), B(k), 0.0f));
    return ifl_flush_add(c, ifl_flush_add(sums[0], sums[1]));
}
static float element_from_minus_zero(float c, const uint16_t *a, const uint16_t *b) {
    float even = -0.0f, odd = -0.0f;
    for (int k = 0; k < 32; k += 2) {
        even = ifl_flush_fma(A(k), B(k), even);
        odd = ifl_flush_fma(A(k + 1), B(k + 1), odd);
    }
    return ifl_flush_add(c, ifl_flush_add(even, odd));
}
/* Gradual underflow. */
static float element_denormals(float c, const uint16_t *a, const uint16_t *b) {
    float even = 0.0f, odd = 0.0f;
    for (int k = 0; k < 32; k += 2) {
        even = __builtin_fmaf(A(k), B(k), even);
        odd = __builtin_fmaf(A(k + 1), B(k + 1), odd);
    }
    return c + (even + odd);
}
/* Denormal operands count, denormal results don't. */
static float element_denormal_operands(float c, const uint16_t *a, const uint16_t *b) {
    float even = 0.0f, odd = 0.0f;
    for (int k = 0; k < 32; k += 2) {
        even = ifl_flush_operand(__builtin_fmaf(A(k), B(k), even));
        odd = ifl_flush_operand(__builtin_fmaf(A(k + 1), B(k + 1), odd));
    }
    return ifl_flush_operand(c + ifl_flush_operand(even + odd));
}
/* A result is flushed for being denormal before it is rounded; f32's own rounding can't tell, so
 * the step is done in double, where it need not be exact to be a defect. */
static float element_tiny_before_rounding(float c, const uint16_t *a, const uint16_t *b) {
    float sums[2] = {0.0f, 0.0f};
    for (int k = 0; k < 32; k++) {
        double exact =
            (double)ifl_flush_operand(A(k)) * (double)ifl_flush_operand(B(k)) + (double)sums[k % 2];
        bool tiny = exact < 0x1p-126 && exact > -0x1p-126;
        sums[k % 2] = tiny ? __builtin_copysignf(0.0f, exact < 0 ? -1.0f : 1.0f)
                           : ifl_flush_fma(A(k), B(k), sums[k % 2]);
    }
    return ifl_flush_add(c, ifl_flush_add(sums[0], sums[1]));
}
/* Rounded away from zero at a tie, as an adder without the even rule has it. */
static float element_truncated(float c, const uint16_t *a, const uint16_t *b) {
    float t = ifl_tdpbf16ps_element(0.0f, a, b, 32, 16);
    double sum = (double)ifl_flush_operand(c) + (double)t;
    float f = (float)sum;
    if ((double)f > sum && f > 0.0f) f = testing_float(testing_bits(f) - 1);
    return ifl_flush_operand(f);
}

static tile_element defect; /* of tiles_defective */
static void tiles_defective(float *c, const uint16_t *a, const uint16_t *b) {
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 16; n++)
            c[m * 16 + n] = defect(c[m * 16 + n], a + m * 32, b + 2 * n);
}
/* One wrong bit in one lane for one value in 65,536. */
static void tiles_rarely_wrong(float *c, const uint16_t *a, const uint16_t *b) {
    for (int l = 0; l < 256; l++)
        c[l] = ifl_tdpbf16ps_element(c[l], a + l / 16 * 32, b + l % 16 * 2, 32, 16);
    if (a[37] == 0x3f81) c[16] = testing_float(testing_bits(c[16]) ^ 1u);
}

static void pairs_lower_first(float *c, const uint16_t *a, const uint16_t *b) {
    for (int l = 0; l < 16; l++) {
        float low = ifl_flush_fma(ifl_bf16_to_f32(a[2 * l]), ifl_bf16_to_f32(b[2 * l]), c[l]);
        c[l] = ifl_flush_fma(ifl_bf16_to_f32(a[2 * l + 1]), ifl_bf16_to_f32(b[2 * l + 1]), low);
    }
}
static void pairs_denormals(float *c, const uint16_t *a, const uint16_t *b) {
    for (int l = 0; l < 16; l++) {
        float high =
            __builtin_fmaf(ifl_bf16_to_f32(a[2 * l + 1]), ifl_bf16_to_f32(b[2 * l + 1]), c[l]);
        c[l] = __builtin_fmaf(ifl_bf16_to_f32(a[2 * l]), ifl_bf16_to_f32(b[2 * l]), high);
    }
}
static void pairs_summed_first(float *c, const uint16_t *a, const uint16_t *b) {
    for (int l = 0; l < 16; l++) {
        float both =
            ifl_flush_fma(ifl_bf16_to_f32(a[2 * l + 1]), ifl_bf16_to_f32(b[2 * l + 1]), 0.0f);
        both = ifl_flush_fma(ifl_bf16_to_f32(a[2 * l]), ifl_bf16_to_f32(b[2 * l]), both);
        c[l] = ifl_flush_add(c[l], both);
    }
}

static void must_be_noticed(ifl_isa isa, ifl_isa_fn fn, int64_t n_rounds, const char *what) {
    ifl_isa_count count;
    ifl_isa_compare(isa, fn, 3, n_rounds, &count);
    if (count.differing == 0) fail_msg("%s: %s is not noticed", ifl_isa_name(isa), what);
    assert_true(count.differing <= count.compared);
    assert_non_null(strstr(count.first, " inputs, c "));
    assert_non_null(strstr(count.first, ": got "));
}

static void test_the_probe_notices_each_planted_defect(void **state) {
    (void)state;
    static const struct {
        tile_element element;
        const char *what;
    } defects[] = {
        {element_from_accumulator, "a chain that starts from the accumulator"},
        {element_one_chain, "one chain in place of two"},
        {element_of_the_guide, "one chain from the accumulator"},
        {element_other_sum, "even and odd added one after the other"},
        {element_reversed, "descending k"},
        {element_unfused, "products rounded before the sum"},
        {element_from_minus_zero, "chains from -0"},
        {element_denormals, "gradual underflow"},
        {element_denormal_operands, "denormal operands that count"},
        {element_tiny_before_rounding, "flushing before rounding"},
        {element_truncated, "truncation"},
    };
    for (size_t i = 0; i < sizeof defects / sizeof *defects; i++) {
        defect = defects[i].element;
        must_be_noticed(IFL_ISA_TDPBF16PS, tiles_defective, 4,
                        defects[i].what); /* as at start-up */
    }
    must_be_noticed(IFL_ISA_TDPBF16PS, tiles_rarely_wrong, 1000, "a rare wrong bit");
    must_be_noticed(IFL_ISA_VDPBF16PS, pairs_lower_first, 100, "the lower halves first");
    must_be_noticed(IFL_ISA_VDPBF16PS, pairs_denormals, 100, "gradual underflow");
    must_be_noticed(IFL_ISA_VDPBF16PS, pairs_summed_first, 100, "a pair summed first");
}

/* What is reported can be tried by hand: the pairs named are enough for the difference. */
static void test_the_first_difference_names_its_operands(void **state) {
    (void)state;
    ifl_isa_count count;
    ifl_isa_compare(IFL_ISA_TDPBF16PS, tiles_rarely_wrong, 3, 1000, &count);
    assert_non_null(strstr(count.first, "a[5] 3f81"));
    assert_null(strstr(count.first, "a[6]"));
}

static void test_the_command_says_what_this_host_has(void **state) {
    (void)state;
    char line[512], text[4096] = "";
    FILE *f = popen(IFL_BINARY " parity --probe-isa", "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f))
        strncat(text, line, sizeof text - strlen(text) - 1);
    assert_int_equal(pclose(f), 0);
    assert_non_null(strstr(text, "profile bf16 here: ref"));
    for (int isa = 0; isa < IFL_ISA_COUNT; isa++) {
        const char *at = strstr(text, ifl_isa_name((ifl_isa)isa)), *absent;
        assert_non_null(at);
        if (!ifl_isa_native((ifl_isa)isa, &absent)) assert_non_null(strstr(at, absent));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products_on_tiles_have_the_bits_of_ref),
        cmocka_unit_test(test_the_comparison_sees_the_last_k_of_the_last_row),
#if defined(__x86_64__)
        cmocka_unit_test(test_the_published_text_on_this_cpu_has_no_fault),
#endif
        cmocka_unit_test(test_the_probe_notices_each_planted_defect),
        cmocka_unit_test(test_the_first_difference_names_its_operands),
        cmocka_unit_test(test_the_command_says_what_this_host_has),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
