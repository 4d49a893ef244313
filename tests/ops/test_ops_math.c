/* exp and log against double precision over the whole range of floats, gradients against finite
 * differences in double, and no libm exp or log behind our backs.
 *
 * IFL_TEST_EXHAUSTIVE=1 sweeps all 2^32 inputs instead of every 97th. */
#include "ops_testing.h"

#include <math.h>

/* --- exp and log ---------------------------------------------------------------------------------
 */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum {
    SWEEP_STRIDE = 1009,
    SWEEP_CHUNK = 4096
}; /* ten times slower there; the claim is the plain build's */
#else
enum { SWEEP_STRIDE = 97, SWEEP_CHUNK = 4096 };
#endif

/* |got - want| in units of the last place of want as an f32 (subnormals: of 2^-149). */
static double ulps(float got, double want) {
    int e;
    frexp(want, &e);
    return fabs((double)got - want) / ldexp(1.0, e < -125 ? -149 : e - 24);
}

typedef void (*sweep_fn)(float *y, const float *x, int64_t n);
typedef double (*exact_fn)(double x);

/* Walks the floats, checks `fast` against `ref` bit for bit and, where `exact` is finite and rounds
 * to a finite float, measures the error; returns the largest, in ulp. */
static double sweep(sweep_fn fast, sweep_fn ref, exact_fn exact) {
    float x[SWEEP_CHUNK], y[SWEEP_CHUNK], want[SWEEP_CHUNK];
    const char *flag = getenv("IFL_TEST_EXHAUSTIVE");
    uint64_t stride = flag && strcmp(flag, "1") == 0 ? 1 : SWEEP_STRIDE;
    double worst = 0;
    for (uint64_t u = 0; u < 0x100000000u;) {
        int n = 0;
        for (; n < SWEEP_CHUNK && u < 0x100000000u; n++, u += stride)
            x[n] = testing_float((uint32_t)u);
        fast(y, x, n);
        ref(want, x, n);
        for (int i = 0; i < n; i++) {
            if (isnan(want[i])) {
                assert_true(isnan(y[i]));
                assert_true(isnan(exact((double)x[i])));
                continue;
            }
            assert_int_equal(testing_bits(y[i]), testing_bits(want[i]));
            double right = exact((double)x[i]);
            if (isinf(want[i])) {
                assert_true(isinf((float)right));
                continue;
            }
            double error = ulps(y[i], right);
            if (error > worst) worst = error;
        }
    }
    return worst;
}

static void test_exp_is_within_its_bound_and_equal_everywhere(void **state) {
    (void)state;
    double worst =
        sweep(ifl_ops_best(IFL_PROFILE_F32)->exp, ifl_ops_ref(IFL_PROFILE_F32)->exp, exp);
    print_message("exp: worst error %.4f ulp\n", worst);
    assert_true(worst <= 1.0);
}

static void test_log_is_within_its_bound_and_equal_everywhere(void **state) {
    (void)state;
    double worst =
        sweep(ifl_ops_best(IFL_PROFILE_F32)->log, ifl_ops_ref(IFL_PROFILE_F32)->log, log);
    print_message("log: worst error %.4f ulp\n", worst);
    assert_true(worst <= 0.8);
}

static void test_exp_of_every_implementation_at_the_edges(void **state) {
    (void)state;
    const ifl_ops *all[8];
    int n = ifl_ops_list(IFL_PROFILE_F32, all, 8);
    float x[64], y[64], want[64];
    static const float edges[] = {0.0f,      -0.0f,     88.72283f, 88.722839f, 88.73f,    89.0f,
                                  1e30f,     INFINITY,  -87.33f,   -87.34f,    -103.97f,  -103.98f,
                                  -104.0f,   -1e30f,    -INFINITY, NAN,        1e-45f,    -1e-40f,
                                  0.346573f, 0.346575f, 1.0f,      -1.0f,      -103.2789f};
    enum { EDGES = sizeof edges / sizeof *edges };
    for (int i = 0; i < 64; i++)
        x[i] = edges[i % EDGES];
    ifl_ops_ref(IFL_PROFILE_F32)->exp(want, x, 64);
    assert_true(want[0] == 1.0f && want[1] == 1.0f);
    assert_true(want[4] == INFINITY && want[7] == INFINITY && isfinite(want[2]));
    assert_true(want[11] == 0.0f && want[14] == 0.0f && want[10] > 0.0f && isnan(want[15]));
    for (int i = 1; i < n; i++) {
        all[i]->exp(y, x, 64);
        for (int j = 0; j < 64; j++)
            assert_true(isnan(want[j]) ? isnan(y[j]) : testing_bits(y[j]) == testing_bits(want[j]));
    }
}

/* --- Gradients ------------------------------------------------------------------------------- */

/* The f32 results carry a few rounding errors of 6e-8 each, relative to terms of order 1. */
#define GRADIENT_TOLERANCE 4e-6

static void expect_close(double got, double want, double scale) {
    double error = fabs(got - want) / (scale > 1.0 ? scale : 1.0);
    if (!(error <= GRADIENT_TOLERANCE)) print_error("got %.9g, want %.9g\n", got, want);
    assert_true(error <= GRADIENT_TOLERANCE); /* false for a NaN */
}

static double silu(double g) {
    return g / (1.0 + exp(-g));
}
static double gelu(double g) {
    return 0.5 * g * (1.0 + tanh(0.7978845608 * (g + 0.044715 * g * g * g)));
}

static void check_gated(double (*activation)(double), bool is_silu) {
    enum { N = 200 };
    const double h = 1e-5;
    testing_rng rng = {7};
    float *g = testing_floats(&rng, N, KIND_PLAIN), *u = testing_floats(&rng, N, KIND_PLAIN);
    float *dy = testing_floats(&rng, N, KIND_PLAIN), dg[N], du[N];
    for (int i = 0; i < N; i++)
        g[i] *= i % 3 ? 3.0f : 12.0f;
    const ifl_ops *ops = ifl_ops_best(IFL_PROFILE_F32);
    (is_silu ? ops->silu_mul_backward : ops->gelu_mul_backward)(dg, du, dy, g, u, N);
    for (int i = 0; i < N; i++) {
        double x = (double)g[i], d = (double)dy[i];
        double slope = (activation(x + h) - activation(x - h)) / (2 * h);
        expect_close((double)dg[i], d * (double)u[i] * slope, 1);
        expect_close((double)du[i], d * activation(x), fabs(activation(x)));
    }
    free(g);
    free(u);
    free(dy);
}

static void test_gradient_of_silu_mul(void **state) {
    (void)state;
    check_gated(silu, true);
}
static void test_gradient_of_gelu_mul(void **state) {
    (void)state;
    check_gated(gelu, false);
}

enum { NORM_ROWS = 3, NORM_N = 37 };

/* sum over all elements of dy * rmsnorm(x, w), in double. */
static double norm_loss(const double *x, const double *w, const float *dy, double offset,
                        double eps) {
    double loss = 0;
    for (int r = 0; r < NORM_ROWS; r++) {
        double squares = 0;
        for (int c = 0; c < NORM_N; c++)
            squares += x[r * NORM_N + c] * x[r * NORM_N + c];
        double inverse = 1.0 / sqrt(squares / NORM_N + eps);
        for (int c = 0; c < NORM_N; c++)
            loss += (double)dy[r * NORM_N + c] * x[r * NORM_N + c] * inverse * (offset + w[c]);
    }
    return loss;
}

static void test_gradient_of_rmsnorm(void **state) {
    (void)state;
    const double h = 1e-5;
    const ifl_ops *ops = ifl_ops_best(IFL_PROFILE_F32);
    testing_rng rng = {8};
    float *x = testing_floats(&rng, NORM_ROWS * NORM_N, KIND_PLAIN);
    float *w = testing_floats(&rng, NORM_N, KIND_PLAIN);
    float *dy = testing_floats(&rng, NORM_ROWS * NORM_N, KIND_PLAIN);
    float y[NORM_ROWS * NORM_N], dx[NORM_ROWS * NORM_N], dw[NORM_N] = {0}, r[NORM_ROWS];
    double xd[NORM_ROWS * NORM_N], wd[NORM_N];
    for (int offset = 0; offset < 2; offset++) {
        float eps = 1e-6f;
        memset(dw, 0, sizeof dw);
        ops->rmsnorm(y, NORM_N, x, NORM_N, w, (float)offset, eps, NORM_ROWS, NORM_N, r);
        ops->rmsnorm_backward(dx, NORM_N, dw, dy, NORM_N, x, NORM_N, w, (float)offset, r, NORM_ROWS,
                              NORM_N, false);
        for (int i = 0; i < NORM_ROWS * NORM_N; i++)
            xd[i] = (double)x[i];
        for (int i = 0; i < NORM_N; i++)
            wd[i] = (double)w[i];
        for (int i = 0; i < NORM_ROWS * NORM_N + NORM_N; i++) {
            double *at = i < NORM_ROWS * NORM_N ? &xd[i] : &wd[i - NORM_ROWS * NORM_N], was = *at;
            *at = was + h;
            double up = norm_loss(xd, wd, dy, offset, (double)eps);
            *at = was - h;
            double down = norm_loss(xd, wd, dy, offset, (double)eps);
            *at = was;
            double got = (double)(i < NORM_ROWS * NORM_N ? dx[i] : dw[i - NORM_ROWS * NORM_N]);
            expect_close(got, (up - down) / (2 * h), fabs(got));
        }
        /* accumulate_dx adds */
        ops->rmsnorm_backward(dx, NORM_N, NULL, dy, NORM_N, x, NORM_N, w, (float)offset, r, 1,
                              NORM_N, true);
        ops->rmsnorm_backward(y, NORM_N, NULL, dy, NORM_N, x, NORM_N, w, (float)offset, r, 1,
                              NORM_N, false);
        for (int i = 0; i < NORM_N; i++)
            assert_true(dx[i] == y[i] + y[i]);
    }
    free(x);
    free(w);
    free(dy);
}

enum { SOFT_N = 53 };

/* sum_t dp_t softmax(scale * score)_t, and log softmax(x)_target, in double. */
static double soft_loss(const double *score, double scale, const float *dp, int target) {
    double max = -INFINITY, sum = 0, loss = 0;
    for (int t = 0; t < SOFT_N; t++)
        max = fmax(max, score[t] * scale);
    for (int t = 0; t < SOFT_N; t++)
        sum += exp(score[t] * scale - max);
    if (!dp) return score[target] * scale - max - log(sum);
    for (int t = 0; t < SOFT_N; t++)
        loss += (double)dp[t] * exp(score[t] * scale - max) / sum;
    return loss;
}

static void test_gradient_of_softmax_and_logprob(void **state) {
    (void)state;
    const double h = 1e-5;
    const ifl_ops *ops = ifl_ops_best(IFL_PROFILE_F32);
    testing_rng rng = {9};
    float *score = testing_floats(&rng, SOFT_N, KIND_PLAIN),
          *dp = testing_floats(&rng, SOFT_N, KIND_PLAIN);
    float scaled[SOFT_N], p[SOFT_N], ds[SOFT_N], dlogit[SOFT_N], scale = 0.75f, delta = 0;
    double point[SOFT_N];
    const int target = 11;
    for (int t = 0; t < SOFT_N; t++)
        score[t] *= 4.0f;
    ops->scale(scaled, score, scale, SOFT_N);
    ifl_lse lse = ops->block_lse(scaled, SOFT_N, p);
    for (int t = 0; t < SOFT_N; t++)
        delta += p[t] / lse.sum * dp[t];
    ops->softmax_backward(p, ds, score, dp, scale, lse, delta, SOFT_N);
    ops->logprob_backward(dlogit, scaled, 1.0f, lse, target, SOFT_N);
    for (int t = 0; t < SOFT_N; t++)
        point[t] = (double)score[t];
    for (int t = 0; t < SOFT_N; t++) {
        double was = point[t], side[2][2];
        for (int s = 0; s < 2; s++) {
            point[t] = was + (s ? -h : h);
            side[0][s] = soft_loss(point, (double)scale, dp, 0);
            side[1][s] = soft_loss(point, (double)scale, NULL, target);
        }
        point[t] = was;
        expect_close((double)ds[t], (side[0][0] - side[0][1]) / (2 * h), 1);
        expect_close((double)dlogit[t] * (double)scale, (side[1][0] - side[1][1]) / (2 * h), 1);
    }
    free(score);
    free(dp);
}

/* dX = dY W and dW = dY^T X through the packings that the learner uses, against sums in double. */
static void test_products_of_the_backward_pass(void **state) {
    (void)state;
    enum { M = 45, N = 70, K = 50 }; /* y[M, N] = x[M, K] w[N, K] */
    const ifl_ops *all[8];
    int n_ops = ifl_ops_list(IFL_PROFILE_F32, all, 8);
    testing_rng rng = {10};
    float *x = testing_floats(&rng, M * K, KIND_PLAIN),
          *dy = testing_floats(&rng, M * N, KIND_PLAIN);
    uint16_t *w = testing_bf16(&rng, N * K, KIND_PLAIN);
    uint16_t *panels = calloc((size_t)ifl_panels_elements(N, K), sizeof *panels);
    float *w_rows = calloc((size_t)(ifl_panels(K) * N * IFL_PANEL), sizeof *w_rows);
    float *x_panels = calloc((size_t)(ifl_panels(K) * M * IFL_PANEL), sizeof *x_panels);
    float *dx = calloc(M * K, sizeof *dx), *dw = calloc(N * K, sizeof *dw);
    assert_true(panels && w_rows && x_panels && dx && dw);
    ifl_pack_bf16(panels, w, N, K);
    for (int o = 0; o < n_ops; o++) {
        const ifl_ops *ops = all[o];
        /* dX in two parts of N, as the learner does for a head too large for its scratch. */
        for (int64_t begin = 0; begin < N; begin += 32) {
            int64_t end = begin + 32 < N ? begin + 32 : N;
            ops->unpack_for_dx(w_rows, panels, N, K, begin, end, 0, ifl_panels(K));
            ops->matmul_f32(dx, K, dy + begin, N, 1, w_rows, M, K, end - begin, 0, ifl_panels(K),
                            begin > 0);
        }
        ops->pack_f32(x_panels, x, K, M, K, 0, ifl_panels(K));
        ops->matmul_f32(dw, K, dy, 1, N, x_panels, N, K, M, 0, ifl_panels(K), false);
        for (int i = 0; i < M; i++)
            for (int k = 0; k < K; k++) {
                double want = 0;
                for (int n = 0; n < N; n++)
                    want += (double)dy[i * N + n] * (double)ifl_bf16_to_f32(w[n * K + k]);
                expect_close((double)dx[i * K + k], want, 1);
            }
        for (int n = 0; n < N; n++)
            for (int k = 0; k < K; k++) {
                double want = 0;
                for (int i = 0; i < M; i++)
                    want += (double)dy[i * N + n] * (double)x[i * K + k];
                expect_close((double)dw[n * K + k], want, 1);
            }
    }
    free(x);
    free(dy);
    free(w);
    free(panels);
    free(w_rows);
    free(x_panels);
    free(dx);
    free(dw);
}

static void test_adamw_is_the_published_step(void **state) {
    (void)state;
    float w = 0.5f, m = 0.1f, v = 0.02f, g = 0.3f;
    uint16_t b = 0;
    ifl_ops_best(IFL_PROFILE_F32)
        ->adamw(&w, &m, &v, &b, &g, 2.0f, 1e-2f, 0.9f, 0.99f, 1e-8f, 0.1f, 0.19f, 0.0199f, 1);
    double md = 0.9 * 0.1 + 0.1 * 0.6, vd = 0.99 * 0.02 + 0.01 * 0.36;
    double wd = 0.5 - 1e-2 * (md / 0.19 / (sqrt(vd / 0.0199) + 1e-8) + 0.1 * 0.5);
    expect_close((double)m, md, 1);
    expect_close((double)v, vd, 1);
    expect_close((double)w, wd, 1);
    assert_int_equal(b, ifl_bf16_from_f32(w));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exp_is_within_its_bound_and_equal_everywhere),
        cmocka_unit_test(test_log_is_within_its_bound_and_equal_everywhere),
        cmocka_unit_test(test_exp_of_every_implementation_at_the_edges),
        cmocka_unit_test(test_gradient_of_silu_mul),
        cmocka_unit_test(test_gradient_of_gelu_mul),
        cmocka_unit_test(test_gradient_of_rmsnorm),
        cmocka_unit_test(test_gradient_of_softmax_and_logprob),
        cmocka_unit_test(test_products_of_the_backward_pass),
        cmocka_unit_test(test_adamw_is_the_published_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
