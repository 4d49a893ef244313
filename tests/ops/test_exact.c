/* Results that are known without a reference, at the widths in use; the elementary functions over
 * the range of floats on every instruction set; and no bit that the caller's floating-point
 * environment could change, denormals included. Groups 7, 9 and 10 of the numerics notes.
 *
 * IFL_TEST_FULL=1 sweeps every 97th float in the place of every 9973rd (test_ops_math sweeps all of
 * them for exp and log under IFL_TEST_EXHAUSTIVE=1), and gives slow implementations every width. */
#include "ops_testing.h"
#include "tests/golden_bits.h"

#include <math.h>

#include "actor/parity_mutants.h"

/* --- Products at the widths in use -------------------------------------------------------------
 */

/* Outputs and inputs of the layers of models that people bring: Gemma 3 270M, Llama 3.2 1B, Qwen2.5
 * and Qwen3 0.6B, and of the tiny shapes of these tests. */
static const struct {
    int64_t n, k;
} widths[] = {{1024, 640},  {256, 640},  {640, 1024},  {2048, 640},  {640, 2048},  {262144, 640},
              {2048, 2048}, {512, 2048}, {8192, 2048}, {2048, 8192}, {896, 896},   {128, 896},
              {4864, 896},  {896, 4864}, {1024, 1024}, {3072, 1024}, {1024, 3072}, {32, 32},
              {301, 32},    {56, 32},    {32, 56},     {48, 48},     {12, 48},     {4999, 32}};
enum { N_WIDTHS = sizeof widths / sizeof *widths, K_MAX = 8193, M_MAX = 13, N_MAX = 96 };

typedef struct products {
    float *x, *y, *b_panels;
    uint16_t *w, *panels;
} products;

static void products_open(products *p) {
    p->x = malloc(sizeof(float[M_MAX * K_MAX]));
    p->y = malloc(sizeof(float[M_MAX * N_MAX]));
    p->w = malloc(sizeof(uint16_t[N_MAX * K_MAX]));
    p->panels = malloc((size_t)ifl_panels_elements(N_MAX, K_MAX) * sizeof *p->panels);
    p->b_panels = malloc(sizeof(float[N_MAX * K_MAX]));
    assert_true(p->x && p->y && p->w && p->panels && p->b_panels);
    for (int i = 0; i < N_MAX * K_MAX; i++) {
        p->w[i] = 0x3f80;
        p->b_panels[i] = 1.0f;
    }
}

static void products_close(products *p) {
    free(p->b_panels);
    free(p->panels);
    free(p->w);
    free(p->y);
    free(p->x);
}

/* All panels of a matrix of ones are alike: two whole ones and the last, ragged one stand for them.
 */
static int64_t narrow(int64_t n) {
    return n <= N_MAX ? n : 2 * IFL_PANEL + n % IFL_PANEL;
}

/* How many outputs of a product of ones are not k; a dropped or doubled tail shows. */
static int64_t count_wrong_sums(const ifl_ops *ops, products *p, int64_t n, int64_t k, int64_t m) {
    int64_t wrong = 0;
    for (int64_t i = 0; i < m * k; i++)
        p->x[i] = 1.0f;
    ifl_pack_bf16(p->panels, p->w, n, k);
    ops->matmul(p->y, n, p->x, k, p->panels, m, n, k, 0, ifl_panels(n));
    for (int64_t i = 0; i < m * n; i++)
        wrong += !(p->y[i] >= (float)k && p->y[i] <= (float)k);
    if (ops->profile != IFL_PROFILE_F32) return wrong;
    ops->matmul_f32(p->y, n, p->x, k, 1, p->b_panels, m, n, k, 0, ifl_panels(n), false);
    for (int64_t i = 0; i < m * n; i++)
        wrong += !(p->y[i] >= (float)k && p->y[i] <= (float)k);
    return wrong;
}

static void test_a_product_of_ones_is_k_at_every_width_in_use(void **state) {
    (void)state;
    static const int64_t rows[] = {1, 4, M_MAX};
    const ifl_ops *all[16];
    int n_ops = testing_list_both(all);
    products p;
    products_open(&p);
    for (int i = 0; i < n_ops; i++)
        for (int w = 0; w < N_WIDTHS; w++)
            for (int64_t k = widths[w].k - 1; k <= widths[w].k + 1; k++)
                for (int r = 0; r < 3; r++) {
                    if (testing_is_slow(all[i]) && !testing_full() && (k > 1100 || (w + r) % 3))
                        continue;
                    if (count_wrong_sums(all[i], &p, narrow(widths[w].n), k, rows[r]) > 0)
                        fail_msg("%s, profile %d: %d rows of ones times %lld x %lld", all[i]->name,
                                 (int)all[i]->profile, (int)rows[r], (long long)widths[w].n,
                                 (long long)k);
                }
    products_close(&p);
}

static void test_a_lost_tail_is_seen(void **state) {
    (void)state;
    products p;
    products_open(&p);
    for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++) {
        const ifl_ops *mutant =
            ifl_mutant_ops(ifl_mutant_find("dropped-tail"), ifl_ops_best((ifl_profile)profile));
        assert_true(count_wrong_sums(mutant, &p, 40, 641, M_MAX) > 0);
        assert_int_equal(count_wrong_sums(mutant, &p, 40, 640, M_MAX), 0); /* has no tail */
    }
    products_close(&p);
}

/* 1e8, 1, -1e8 in every order and at every distance: what is left of the ones is the order's doing.
 */
static int64_t count_cancelling_differences(const ifl_ops *ops, products *p, int64_t n, int64_t k,
                                            uint64_t seed) {
    static const float triple[] = {1e8f, 1.0f, -1e8f};
    static float want[4 * N_MAX];
    testing_rng rng = {seed};
    enum { M = 4 };
    for (int64_t i = 0; i < M; i++)
        for (int64_t c = 0; c < k; c++) {
            int64_t turn = testing_below(&rng, 3);
            p->x[i * k + c] = i < 2 ? triple[(c + i) % 3] : triple[turn];
        }
    ops->round(p->x, M * k);
    ifl_pack_bf16(p->panels, p->w, n, k);
    ops->matmul(p->y, n, p->x, k, p->panels, M, n, k, 0, ifl_panels(n));
    ifl_ops_ref(ops->profile)->matmul(want, n, p->x, k, p->panels, M, n, k, 0, ifl_panels(n));
    int64_t differing = 0;
    for (int64_t i = 0; i < M * n; i++)
        differing += testing_bits(p->y[i]) != testing_bits(want[i]);
    return differing;
}

static void test_cancelling_sums_leave_what_the_order_says(void **state) {
    (void)state;
    const ifl_ops *all[16];
    int n_ops = testing_list_both(all);
    products p;
    products_open(&p);
    for (int i = 0; i < n_ops; i++)
        for (int w = 0; w < N_WIDTHS; w++) {
            if (strcmp(all[i]->name, "ref") == 0 || (widths[w].k > 1100 && !testing_full()))
                continue;
            int64_t k = widths[w].k + w % 3 - 1;
            if (count_cancelling_differences(all[i], &p, 33, k, (uint64_t)w) > 0)
                fail_msg("%s, profile %d, k = %lld", all[i]->name, (int)all[i]->profile,
                         (long long)k);
        }
    for (int profile = 0; profile < IFL_PROFILE_COUNT; profile++) {
        const ifl_ops *mutant =
            ifl_mutant_ops(ifl_mutant_find("swapped-chain"), ifl_ops_best((ifl_profile)profile));
        assert_true(count_cancelling_differences(mutant, &p, 33, 70, 1) > 0);
    }
    products_close(&p);
}

/* In words: beside 1e8 a one is lost, after the cancellation it stays. */
static void test_a_one_survives_only_after_the_cancellation(void **state) {
    (void)state;
    enum { WIDE = 96 };
    const ifl_ops *all[16];
    int n_ops = testing_list_both(all);
    float x[WIDE] = {0}, y = -1;
    uint16_t ones[WIDE], *panels = calloc((size_t)ifl_panels_elements(1, WIDE), 2);
    assert_non_null(panels);
    for (int k = 0; k < WIDE; k++)
        ones[k] = 0x3f80;
    ifl_pack_bf16(panels, ones, 1, WIDE);
    for (int i = 0; i < n_ops; i++) {
        x[0] = 1e8f, x[32] = 1.0f, x[64] = -1e8f;
        all[i]->round(x, WIDE);
        all[i]->matmul(&y, 1, x, WIDE, panels, 1, 1, WIDE, 0, 1);
        assert_int_equal(testing_bits(y), testing_bits(0.0f));
        x[64] = 1.0f, x[32] = -x[0];
        all[i]->matmul(&y, 1, x, WIDE, panels, 1, 1, WIDE, 0, 1);
        assert_int_equal(testing_bits(y), testing_bits(1.0f));
        x[32] = x[64] = 0.0f;
    }
    free(panels);
}

/* --- The caller's environment ------------------------------------------------------------------
 */

#if defined(__x86_64__)
/* Exceptions masked throughout: round down, up, to zero; flush-to-zero and denormals-are-zero, as
 * the start-up code of a library built with -ffast-math sets them; all of it. */
static const uint32_t environments[] = {0x1f80, 0x3f80, 0x5f80, 0x7f80,
                                        0x9fc0, 0x9f80, 0x1fc0, 0xffc0};

enum { P_M = 5, P_N = 40, P_K = 70, P_KEYS = 40, P_D = 16 };

typedef struct poisoned {
    float y[P_M * P_N], o[P_M * P_D], lse[P_M * 2], e[4][P_K];
} poisoned;

/* Denormal weights times large activations, the other way round, and sums that end among denormals.
 */
static void poisoned_run(const ifl_ops *ops, uint32_t environment, uint64_t seed, poisoned *out) {
    static float x[P_M * P_K], k[P_D], v[P_D], q[P_M * P_D];
    static uint16_t w[P_N * P_K], panels[2 * IFL_PANEL * 96];
    static char store[2 * P_KEYS * P_D * 4];
    testing_rng rng = {seed};
    float w_size = seed % 3 == 0 ? 0x1p-129f : seed % 3 == 1 ? 1.0f : 0x1p-70f;
    float x_size = seed % 3 == 0 ? 0x1p10f : seed % 3 == 1 ? 0x1p-128f : 0x1p-62f;
    memset(out, 0, sizeof *out);
    assert_true(ifl_panels_elements(P_N, P_K) <= (int64_t)(sizeof panels / sizeof *panels));
    for (int i = 0; i < P_N * P_K; i++)
        w[i] = ifl_bf16_from_f32(testing_uniform(&rng) * w_size);
    for (int i = 0; i < P_M * P_K; i++)
        x[i] = testing_uniform(&rng) * x_size;
    ops->round(x, P_M * P_K);
    ifl_pack_bf16(panels, w, P_N, P_K);
    int32_t pages[P_KEYS], pos[P_M];
    ifl_kv_view view = {store, store + sizeof store / 2, P_D, pages, 1};
    for (int t = 0; t < P_KEYS; t++) {
        pages[t] = t;
        for (int d = 0; d < P_D; d++) {
            k[d] = testing_uniform(&rng) * x_size;
            v[d] = testing_uniform(&rng) * w_size;
        }
        ops->round(k, P_D);
        ops->round(v, P_D);
        ops->kv_store(&view, t, k, v, P_D);
    }
    for (int i = 0; i < P_M * P_D; i++)
        q[i] = testing_uniform(&rng) * w_size;
    ops->round(q, P_M * P_D);
    float *o_rows[P_M];
    const float *q_rows[P_M];
    ifl_lse lse[P_M];
    for (int r = 0; r < P_M; r++) {
        o_rows[r] = out->o + r * P_D;
        q_rows[r] = q + r * P_D;
        pos[r] = P_KEYS - 1 - 7 * r;
    }
    __builtin_ia32_ldmxcsr(environment);
    ops->matmul(out->y, P_N, x, P_K, panels, P_M, P_N, P_K, 0, ifl_panels(P_N));
    ops->attention(o_rows, q_rows, pos, P_M, &view, P_D, 1.0f, 0, lse);
    ops->silu_mul(out->e[0], x, x + P_K, P_K);
    ops->gelu_mul(out->e[1], x, x + P_K, P_K);
    ops->scale(out->e[2], x, 0.3f, P_K);
    ops->add(out->e[3], x, P_K);
    uint32_t after = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(0x1f80);
    assert_int_equal(after & ~0x3fu, environment & ~0x3fu); /* given back */
    memcpy(out->lse, lse, sizeof out->lse);
}

static void test_the_environment_changes_no_bit_of_denormals(void **state) {
    (void)state;
    const ifl_ops *all[16];
    int n_ops = testing_list_both(all), n_denormal = 0;
    static poisoned want, got;
    for (int i = 0; i < n_ops; i++)
        for (uint64_t seed = 0; seed < 9; seed++) {
            poisoned_run(ifl_ops_ref(all[i]->profile), environments[0], seed, &want);
            for (int f = 0; f < P_M * P_N; f++)
                n_denormal += fabsf(want.y[f]) > 0 && fabsf(want.y[f]) < 0x1p-126f;
            for (size_t e = 0; e < sizeof environments / sizeof *environments; e++) {
                poisoned_run(all[i], environments[e], seed, &got);
                if (memcmp(&want, &got, sizeof want) != 0)
                    fail_msg("%s, profile %d, seed %d, MXCSR %x", all[i]->name,
                             (int)all[i]->profile, (int)seed, environments[e]);
            }
        }
    assert_true(n_denormal > 100); /* `f32` keeps them, so there was something to lose */
}
#endif

/* --- exp, log and what is made of them -----------------------------------------------------------
 */

enum { CHUNK = 4096, N_SWEEPS = 6 };
static const char *const sweep_names[N_SWEEPS] = {"exp",      "log",     "silu_mul",
                                                  "gelu_mul", "softcap", "rsqrt"};

static void sweep_chunk(const ifl_ops *ops, int which, float *y, const float *x, const float *ones,
                        int n) {
    static const float one = 1.0f;
    switch (which) {
    case 0:
        ops->exp(y, x, n);
        break;
    case 1:
        ops->log(y, x, n);
        break;
    case 2:
        ops->silu_mul(y, x, ones, n);
        break;
    case 3:
        ops->gelu_mul(y, x, ones, n);
        break;
    case 4:
        ops->temper(y, x, 0.7f, 30.0f, n);
        break;
    default:
        for (int i = 0; i < n; i++) { /* the norm's factor of a row of one */
            float out;
            ops->rmsnorm(&out, 1, x + i, 1, &one, 0.0f, 1e-6f, 1, 1, y + i);
        }
    }
}

/* Hash of an op over the floats; NaNs as one. */
static ifl_hash sweep(const ifl_ops *ops, int which, uint64_t stride) {
    static float x[CHUNK], y[CHUNK], ones[CHUNK];
    ifl_hasher *hasher = ifl_hasher_create();
    assert_non_null(hasher);
    for (int i = 0; i < CHUNK; i++)
        ones[i] = 1.0f;
    for (uint64_t u = 0; u < 0x100000000u;) {
        int n = 0;
        for (; n < CHUNK && u < 0x100000000u; n++, u += stride)
            x[n] = testing_float((uint32_t)u);
        sweep_chunk(ops, which, y, x, ones, n);
        for (int i = 0; i < n; i++)
            if (isnan(y[i])) y[i] = testing_float(0x7fc00000u);
        ifl_hasher_add(hasher, y, (size_t)n * sizeof *y);
    }
    ifl_hash hash = ifl_hasher_finish(hasher);
    ifl_hasher_free(hasher);
    return hash;
}

static void test_elementary_functions_have_one_hash_everywhere(void **state) {
    (void)state;
    const ifl_ops *all[8];
    int n_ops = ifl_ops_list(IFL_PROFILE_F32, all, 8), differing = 0;
    for (int which = 0; which < N_SWEEPS; which++) {
        ifl_hash want = sweep(ifl_ops_ref(IFL_PROFILE_F32), which, 9973);
        char key[64];
        snprintf(key, sizeof key, "sweep %s", sweep_names[which]);
        differing += golden_bits_differ(key, want);
        for (int i = 1; i < n_ops; i++)
            if (!ifl_hash_equal(sweep(all[i], which, 9973), want))
                fail_msg("%s of %s", sweep_names[which], all[i]->name);
        if (!testing_full()) continue;
        want = sweep(ifl_ops_ref(IFL_PROFILE_F32), which, 97);
        for (int i = 1; i < n_ops; i++)
            if (!ifl_hash_equal(sweep(all[i], which, 97), want))
                fail_msg("%s of %s", sweep_names[which], all[i]->name);
    }
    assert_int_equal(differing, 0);
}

/* The C library's exp, which some hosts round otherwise than others, has another hash. */
static void exp_of_libm(float *y, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        y[i] = expf(x[i]);
}

static void test_another_exp_has_another_hash(void **state) {
    (void)state;
    ifl_ops mutant = *ifl_ops_best(IFL_PROFILE_F32);
    mutant.exp = exp_of_libm;
    assert_false(
        ifl_hash_equal(sweep(&mutant, 0, 9973), sweep(ifl_ops_ref(IFL_PROFILE_F32), 0, 9973)));
}

/* Nothing that a forward or a backward runs asks the C library for a function that it may round as
 * it likes. What makes tables and random weights once, on the host, may. */
static void test_the_passes_link_no_libm(void **state) {
    (void)state;
    char command[1024], line[1024];
    const char *slash = strrchr(IFL_BINARY, '/');
    snprintf(command, sizeof command, "nm -A -u '%.*s/libifl_kernels.a' 2>/dev/null",
             slash ? (int)(slash - IFL_BINARY) : 0, IFL_BINARY);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    static const char *const passes[] = {":forward.c", ":head.c",  ":trainer.c",
                                         ":ops_",      ":score.c", ":replay.c"};
    static const char *const forbidden[] = {"exp",  "expf", "exp2",  "exp2f", "expm1",      "log",
                                            "logf", "log2", "log2f", "log1p", "tanh",       "tanhf",
                                            "pow",  "powf", "sinf",  "cosf",  "logf_finite"};
    int n_lines = 0, n_forbidden = 0;
    while (fgets(line, sizeof line, pipe)) {
        char *name = strstr(line, " U ");
        bool ours = false;
        for (size_t i = 0; i < sizeof passes / sizeof *passes; i++)
            ours |= strstr(line, passes[i]) != NULL;
        if (!ours || !name) continue;
        n_lines++;
        name += 3;
        name[strcspn(name, "@\n")] = '\0';
        for (size_t i = 0; i < sizeof forbidden / sizeof *forbidden; i++)
            if (strcmp(name, forbidden[i]) == 0) {
                print_error("%s\n", line);
                n_forbidden++;
            }
    }
    pclose(pipe);
    assert_int_equal(n_forbidden, 0);
    if (n_lines == 0) skip(); /* no nm here, or the library lies elsewhere */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_product_of_ones_is_k_at_every_width_in_use),
        cmocka_unit_test(test_a_lost_tail_is_seen),
        cmocka_unit_test(test_cancelling_sums_leave_what_the_order_says),
        cmocka_unit_test(test_a_one_survives_only_after_the_cancellation),
#if defined(__x86_64__)
        cmocka_unit_test(test_the_environment_changes_no_bit_of_denormals),
#endif
        cmocka_unit_test(test_elementary_functions_have_one_hash_everywhere),
        cmocka_unit_test(test_another_exp_has_another_hash),
        cmocka_unit_test(test_the_passes_link_no_libm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
