/* Losses and advantages against losses.txt, which tests/golden/make_losses.py computes with
 * automatic differentiation; and the properties that no golden file shows. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "learner/advantage.h"
#include "learner/loss.h"

#define TOKENS_MAX 256
#define GROUP_MAX 16

/* Coefficients are floats made from doubles: one rounding. */
static void assert_rounded(double got, double want) {
    if (!(fabs(got - want) <= 1e-7 * fabs(want) + 1e-12))
        fail_msg("got %.17g, wanted %.17g", got, want);
}

/* Sums over a few dozen doubles in another order. */
static void assert_same_sum(double got, double want) {
    if (!(fabs(got - want) <= 1e-11 * (1 + fabs(want))))
        fail_msg("got %.17g, wanted %.17g", got, want);
}

typedef struct columns {
    int32_t n;
    ifl_logprob logprobs[TOKENS_MAX];
    float mu[TOKENS_MAX], advantages[TOKENS_MAX], loss_weights[TOKENS_MAX], want[TOKENS_MAX];
    int32_t lengths[TOKENS_MAX];
    int64_t versions[TOKENS_MAX];
} columns;

static ifl_loss_tokens columns_view(const columns *c, int32_t begin, int32_t n) {
    return (ifl_loss_tokens){.n = n,
                             .logprobs = c->logprobs + begin,
                             .behaviour_logprobs = c->mu + begin,
                             .advantages = c->advantages + begin,
                             .loss_weights = c->loss_weights + begin,
                             .trajectory_tokens = c->lengths + begin,
                             .versions = c->versions + begin};
}

static ifl_loss_options options_of(ifl_loss_kind kind) {
    return (ifl_loss_options){.kind = kind,
                              .importance_cap = IFL_LOSS_IMPORTANCE_CAP,
                              .clip_low = IFL_LOSS_CLIP,
                              .clip_high =
                                  kind == IFL_LOSS_DAPO ? IFL_LOSS_CLIP_HIGH_DAPO : IFL_LOSS_CLIP,
                              .max_new_tokens = 40};
}

typedef struct golden_case {
    ifl_loss_kind kind;
    ifl_loss_counts counts;
    columns c;
    double value, ess, k3, abs, max;
} golden_case;

static ifl_loss_kind kind_of(const char *name) {
    static const char *const names[] = {"reinforce", "grpo", "dr_grpo", "dapo"};
    const ifl_loss_kind kinds[] = {IFL_LOSS_REINFORCE, IFL_LOSS_GRPO, IFL_LOSS_DR_GRPO,
                                   IFL_LOSS_DAPO};
    for (int i = 0; i < 4; i++)
        if (strcmp(name, names[i]) == 0) return kinds[i];
    fail_msg("unknown kind %s", name);
    return IFL_LOSS_REINFORCE;
}

static void check_group(FILE *f, ifl_loss_kind kind) {
    int n = 0;
    assert_int_equal(fscanf(f, " group %d", &n), 1);
    assert_in_range(n, 1, GROUP_MAX);
    ifl_reward_status statuses[GROUP_MAX];
    float rewards[GROUP_MAX], got[GROUP_MAX];
    double want[GROUP_MAX];
    for (int i = 0; i < n; i++) {
        double reward;
        int valid;
        assert_int_equal(fscanf(f, "%lf %d %lf", &reward, &valid, &want[i]), 3);
        rewards[i] = (float)reward;
        statuses[i] = valid ? IFL_REWARD_OK : IFL_REWARD_CHECKER_ERROR;
    }
    ifl_advantage_group(kind, n, statuses, rewards, got);
    for (int i = 0; i < n; i++)
        assert_rounded((double)got[i], want[i]);
}

/* Reads the next case; false at the end. Advantages are checked on the way. */
static bool golden_next(FILE *f, golden_case *g) {
    char name[32];
    int n_groups, n_tokens;
    long long n_traj, n_dapo;
    if (fscanf(f, " loss %31s groups %d tokens %d trajectories %lld dapo_tokens %lld", name,
               &n_groups, &n_tokens, &n_traj, &n_dapo) != 5)
        return false;
    memset(g, 0, sizeof *g);
    g->kind = kind_of(name);
    g->counts = (ifl_loss_counts){n_traj, n_dapo};
    for (int i = 0; i < n_groups; i++)
        check_group(f, g->kind);
    assert_int_equal(fscanf(f, " value %lf ess %lf k3 %lf abs %lf max %lf", &g->value, &g->ess,
                            &g->k3, &g->abs, &g->max),
                     5);
    assert_in_range(n_tokens, 1, TOKENS_MAX);
    g->c.n = n_tokens;
    for (int i = 0; i < n_tokens; i++) {
        double p, mu, a, want;
        assert_int_equal(fscanf(f, "%lf %lf %lf %d %lf", &p, &mu, &a, &g->c.lengths[i], &want), 5);
        g->c.logprobs[i] = (ifl_logprob){.logprob = (float)p, .entropy = 0.5f};
        g->c.mu[i] = (float)mu;
        g->c.advantages[i] = (float)a;
        g->c.loss_weights[i] = 1.0f;
        g->c.want[i] = (float)want;
    }
    return true;
}

static FILE *golden_open(void) {
    FILE *f = fopen(IFL_GOLDEN_DIR "/losses.txt", "r");
    assert_non_null(f);
    char line[256];
    assert_non_null(fgets(line, sizeof line, f)); /* the comment */
    return f;
}

static void test_values_and_gradients_match_autodiff(void **state) {
    (void)state;
    FILE *f = golden_open();
    static golden_case g;
    int n_cases = 0;
    while (golden_next(f, &g)) {
        n_cases++;
        ifl_loss_options options = options_of(g.kind);
        ifl_loss_tokens tokens = columns_view(&g.c, 0, g.c.n);
        ifl_loss_sums sums = {0};
        float c[TOKENS_MAX];
        ifl_loss_coefficients(&options, &g.counts, &tokens, 5, c, &sums);
        for (int i = 0; i < g.c.n; i++)
            assert_rounded((double)c[i], (double)g.c.want[i]);
        ifl_loss_report r = ifl_loss_report_get(&sums);
        assert_same_sum(r.loss, g.value);
        assert_same_sum(r.ess, g.ess);
        assert_same_sum(r.k3, g.k3);
        assert_same_sum(r.abs_log_ratio_mean, g.abs);
        assert_same_sum(r.ratio_max, g.max);
        assert_same_sum(r.entropy, 0.5);
        assert_int_equal(r.n_tokens, g.c.n);
    }
    fclose(f);
    assert_int_equal(n_cases, 4);
}

static void test_golden_gradients_tell_the_losses_apart(void **state) {
    (void)state;
    FILE *f = golden_open();
    static golden_case g;
    while (golden_next(f, &g))
        for (int other = 0; other < 4; other++) {
            if ((ifl_loss_kind)other == g.kind) continue;
            ifl_loss_options options = options_of((ifl_loss_kind)other);
            ifl_loss_tokens tokens = columns_view(&g.c, 0, g.c.n);
            ifl_loss_sums sums = {0};
            float c[TOKENS_MAX];
            ifl_loss_coefficients(&options, &g.counts, &tokens, 5, c, &sums);
            int n_off = 0;
            for (int i = 0; i < g.c.n; i++)
                n_off += fabs((double)(c[i] - g.c.want[i])) > 1e-5 * fabs((double)g.c.want[i]);
            assert_true(n_off > 0);
        }
    fclose(f);
}

static void test_packs_add_up_to_the_step(void **state) {
    (void)state;
    FILE *f = golden_open();
    static golden_case g;
    assert_true(golden_next(f, &g));
    fclose(f);
    ifl_loss_options options = options_of(g.kind);
    ifl_loss_sums sums = {0};
    float c[TOKENS_MAX];
    for (int begin = 0; begin < g.c.n; begin += 10) {
        int n = g.c.n - begin < 10 ? g.c.n - begin : 10;
        ifl_loss_tokens tokens = columns_view(&g.c, begin, n);
        ifl_loss_coefficients(&options, &g.counts, &tokens, 5, c + begin, &sums);
    }
    for (int i = 0; i < g.c.n; i++)
        assert_rounded((double)c[i], (double)g.c.want[i]);
    assert_same_sum(ifl_loss_report_get(&sums).loss, g.value);
}

/* One token with the given ratio and advantage; returns its coefficient. */
static double one_token(ifl_loss_kind kind, double w, double a, float loss_weight,
                        ifl_loss_report *r) {
    columns c = {.n = 1};
    c.mu[0] = -2.0f;
    c.logprobs[0].logprob = (float)(-2.0 + log(w));
    c.advantages[0] = (float)a;
    c.loss_weights[0] = loss_weight;
    c.lengths[0] = 4;
    c.versions[0] = 3;
    ifl_loss_options options = options_of(kind);
    ifl_loss_counts counts = {.n_trajectories = 2, .n_loss_tokens = 10};
    ifl_loss_tokens tokens = columns_view(&c, 0, 1);
    ifl_loss_sums sums = {0};
    float coefficient;
    ifl_loss_coefficients(&options, &counts, &tokens, 6, &coefficient, &sums);
    if (r) *r = ifl_loss_report_get(&sums);
    return (double)coefficient;
}

static void assert_near(double got, double want) {
    if (!(fabs(got - want) <= 2e-6 * (1 + fabs(want))))
        fail_msg("got %.9g, wanted %.9g", got, want);
}

static void test_signs_norms_and_clips(void **state) {
    (void)state;
    ifl_loss_report r;
    /* A good token's log-prob must rise under minimisation: its coefficient is negative. */
    assert_near(one_token(IFL_LOSS_REINFORCE, 1.0, 1.0, 1.0f, &r), -0.5);
    assert_true(r.clip_high == 0 && r.clip_low == 0);
    assert_near(one_token(IFL_LOSS_REINFORCE, 1.0, -1.0, 1.0f, NULL), 0.5);
    assert_near(one_token(IFL_LOSS_REINFORCE, 20.0, 1.0, 1.0f, &r), -2.5); /* cap 5 */
    assert_near(r.clip_high, 1.0);
    assert_near(r.ratio_max, 20.0); /* statistics come before the clamp */
    assert_near(one_token(IFL_LOSS_REINFORCE, 0.01, 1.0, 1.0f, NULL), -0.005);
    assert_near(one_token(IFL_LOSS_REINFORCE, 1.0, 1.0, 0.25f, NULL), -0.125); /* loss weight */

    assert_near(one_token(IFL_LOSS_GRPO, 1.1, 1.0, 1.0f, NULL), -1.1 / 8);     /* 1/B 1/L_i */
    assert_near(one_token(IFL_LOSS_DR_GRPO, 1.1, 1.0, 1.0f, NULL), -1.1 / 80); /* 1/B 1/40 */
    assert_near(one_token(IFL_LOSS_DAPO, 1.1, 1.0, 1.0f, NULL), -1.1 / 10);    /* 1/N */
    /* Clipped exactly where the clipped branch is the smaller: A > 0 above, A < 0 below. */
    assert_near(one_token(IFL_LOSS_GRPO, 1.25, 1.0, 1.0f, &r), 0.0);
    assert_near(r.clip_high, 1.0);
    assert_near(one_token(IFL_LOSS_DAPO, 1.25, 1.0, 1.0f, NULL),
                -0.125); /* its upper side is 0.28 */
    assert_near(one_token(IFL_LOSS_DAPO, 1.29, 1.0, 1.0f, NULL), 0.0);
    assert_near(one_token(IFL_LOSS_GRPO, 0.7, -1.0, 1.0f, &r), 0.0);
    assert_near(r.clip_low, 1.0);
    assert_near(one_token(IFL_LOSS_GRPO, 0.7, 1.0, 1.0f, NULL), -0.7 / 8);
    assert_near(one_token(IFL_LOSS_GRPO, 3.0, -1.0, 1.0f, NULL), 3.0 / 8);
}

/* A token that an actor of another numerics profile recorded: mu is its own, so the ratio of this
 * step's forward to it is applied under every loss, and cut at the cap under every loss. */
static void test_a_foreign_token_weighs_min_of_cap_and_ratio_under_every_loss(void **state) {
    (void)state;
    static const ifl_loss_kind kinds[] = {IFL_LOSS_REINFORCE, IFL_LOSS_GRPO, IFL_LOSS_DR_GRPO,
                                          IFL_LOSS_DAPO};
    static const double norms[] = {1.0 / 2, 1.0 / 8, 1.0 / 80, 1.0 / 10};
    static const double ratios[] = {0.3, 0.97, 1.0, 1.04, 4.9, 20.0};
    enum { N = sizeof ratios / sizeof *ratios };
    for (int k = 0; k < 4; k++) {
        columns c = {.n = 2 * N};
        uint8_t foreign[2 * N];
        for (int i = 0; i < 2 * N; i++) { /* a foreign one, and the same as the learner's own */
            double w = ratios[i / 2];
            c.mu[i] = -2.0f;
            c.logprobs[i].logprob = (float)(-2.0 + log(w));
            c.advantages[i] = -1.0f; /* where the clipped losses bound the ratio from below only */
            c.loss_weights[i] = 1.0f;
            c.lengths[i] = 4;
            foreign[i] = i % 2 == 0;
        }
        ifl_loss_options options = options_of(kinds[k]);
        ifl_loss_counts counts = {.n_trajectories = 2, .n_loss_tokens = 10};
        ifl_loss_tokens tokens = columns_view(&c, 0, 2 * N);
        tokens.foreign = foreign;
        ifl_loss_sums sums = {0};
        float out[2 * N];
        ifl_loss_coefficients(&options, &counts, &tokens, 1, out, &sums);
        double weights = 0, w1 = 0, w2 = 0, k3 = 0;
        for (int i = 0; i < N; i++) {
            double w = ratios[i], want = fmin(w, IFL_LOSS_IMPORTANCE_CAP);
            bool clipped = kinds[k] != IFL_LOSS_REINFORCE && w < 1 - IFL_LOSS_CLIP;
            if (clipped) want = 0.0; /* the trust region's, foreign or not */
            assert_near((double)out[2 * i], norms[k] * want);
            weights += want;
            w1 += w;
            w2 += w * w;
            k3 += w - 1 - log(w);
            /* The learner's own token at that ratio, which lag alone has made. */
            double own = kinds[k] == IFL_LOSS_REINFORCE ? want : clipped ? 0.0 : w;
            assert_near((double)out[2 * i + 1], norms[k] * own);
        }
        ifl_loss_foreign f = ifl_loss_report_get(&sums).foreign;
        assert_int_equal(f.n_tokens, N);
        assert_near(f.weight_mean, weights / N);
        assert_near(f.ess, w1 * w1 / (N * w2));
        assert_near(f.k3, k3 / N);
        /* Two steps' sums added are a run's. */
        ifl_loss_sums run = {0};
        ifl_loss_foreign_add(&run, &sums);
        ifl_loss_foreign_add(&run, &sums);
        assert_int_equal(ifl_loss_foreign_get(&run).n_tokens, 2 * N);
        assert_near(ifl_loss_foreign_get(&run).weight_mean, f.weight_mean);
        assert_near(ifl_loss_foreign_get(&run).ess, f.ess);
    }
    ifl_loss_foreign none = ifl_loss_foreign_get(&(ifl_loss_sums){0});
    assert_true(none.n_tokens == 0 && none.weight_mean == 1.0 && none.ess == 1.0 && none.k3 == 0.0);
}

static void test_lag_counts_from_the_step_before(void **state) {
    (void)state;
    ifl_loss_report r;
    one_token(IFL_LOSS_REINFORCE, 1.0, 1.0, 1.0f, &r); /* version 3 in step 6 */
    assert_near(r.lag_mean, 2.0);
    assert_int_equal(r.lag_max, 2);
}

static void test_equal_bits_have_ratio_one(void **state) {
    (void)state;
    ifl_loss_report r;
    one_token(IFL_LOSS_REINFORCE, 1.0, 1.0, 1.0f, &r);
    assert_true(r.exact_share == 1.0 && r.ess == 1.0 && r.ratio_max == 1.0 && r.k3 == 0.0);
}

static void test_non_finite_logprob_poisons_its_coefficient_only(void **state) {
    (void)state;
    columns c = {.n = 3};
    for (int i = 0; i < 3; i++) {
        c.mu[i] = -1.0f;
        c.logprobs[i].logprob = -1.0f;
        c.advantages[i] = c.loss_weights[i] = 1.0f;
        c.lengths[i] = 3;
    }
    c.logprobs[1].logprob = NAN;
    ifl_loss_options options = options_of(IFL_LOSS_REINFORCE);
    ifl_loss_counts counts = {1, 3};
    ifl_loss_tokens tokens = columns_view(&c, 0, 3);
    ifl_loss_sums sums = {0};
    float out[3];
    ifl_loss_coefficients(&options, &counts, &tokens, 1, out, &sums);
    assert_true(isnan(out[1]) && out[0] == -1.0f && out[2] == -1.0f);
    ifl_loss_report r = ifl_loss_report_get(&sums);
    assert_int_equal(r.n_non_finite, 1);
    assert_int_equal(r.n_tokens, 2);
    assert_true(isfinite(r.loss) && r.ess == 1.0);
}

static void test_absurd_ratios_stay_finite(void **state) {
    (void)state;
    columns c = {.n = 2};
    for (int i = 0; i < 2; i++) {
        c.mu[i] = i ? -5000.0f : -0.1f;
        c.logprobs[i].logprob = i ? -0.1f : -5000.0f;
        c.advantages[i] = -1.0f;
        c.loss_weights[i] = 1.0f;
        c.lengths[i] = 2;
    }
    ifl_loss_options options = options_of(IFL_LOSS_GRPO);
    ifl_loss_counts counts = {1, 2};
    ifl_loss_tokens tokens = columns_view(&c, 0, 2);
    ifl_loss_sums sums = {0};
    float out[2];
    ifl_loss_coefficients(&options, &counts, &tokens, 1, out, &sums);
    ifl_loss_report r = ifl_loss_report_get(&sums);
    assert_true(isfinite(out[0]) && isfinite(out[1]) && isfinite(r.loss) && isfinite(r.ess));
    assert_int_equal(sums.n_ratio_cut, 2);
    assert_near(r.ess, 0.5); /* one token carries everything */
}

static void test_empty_step_reports_neutral_figures(void **state) {
    (void)state;
    ifl_loss_sums sums = {0};
    ifl_loss_report r = ifl_loss_report_get(&sums);
    assert_true(r.ess == 1.0 && r.loss == 0.0 && r.n_tokens == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values_and_gradients_match_autodiff),
        cmocka_unit_test(test_golden_gradients_tell_the_losses_apart),
        cmocka_unit_test(test_packs_add_up_to_the_step),
        cmocka_unit_test(test_signs_norms_and_clips),
        cmocka_unit_test(test_a_foreign_token_weighs_min_of_cap_and_ratio_under_every_loss),
        cmocka_unit_test(test_lag_counts_from_the_step_before),
        cmocka_unit_test(test_equal_bits_have_ratio_one),
        cmocka_unit_test(test_non_finite_logprob_poisons_its_coefficient_only),
        cmocka_unit_test(test_absurd_ratios_stay_finite),
        cmocka_unit_test(test_empty_step_reports_neutral_figures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
