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
    float mu[TOKENS_MAX], q[TOKENS_MAX], reference[TOKENS_MAX], advantages[TOKENS_MAX],
        loss_weights[TOKENS_MAX];
    int32_t lengths[TOKENS_MAX], owners[TOKENS_MAX];
    int64_t versions[TOKENS_MAX];
} columns;

static ifl_loss_tokens columns_view(const columns *c, int32_t begin, int32_t n) {
    return (ifl_loss_tokens){.n = n,
                             .logprobs = c->logprobs + begin,
                             .behaviour_logprobs = c->mu + begin,
                             .proximal_logprobs = c->q + begin,
                             .advantages = c->advantages + begin,
                             .loss_weights = c->loss_weights + begin,
                             .trajectory_tokens = c->lengths + begin,
                             .trajectories = c->owners + begin,
                             .versions = c->versions + begin};
}

static const char *const kind_names[] = {"reinforce",     "grpo",         "dr_grpo", "dapo",
                                         "rloo",          "reinforce_pp", "gspo",    "cispo",
                                         "decoupled_ppo", "sapo"};
static const char *const correction_names[] = {
    "none", "tis_token", "tis_sequence", "icepop", "mis_sequence", "geometric", "k3"};
#define N_KINDS ((int)(sizeof kind_names / sizeof *kind_names))
#define N_CORRECTIONS ((int)(sizeof correction_names / sizeof *correction_names))

static int name_of(const char *name, const char *const *names, int n) {
    for (int i = 0; i < n; i++)
        if (strcmp(name, names[i]) == 0) return i;
    fail_msg("unknown name %s", name);
    return 0;
}

/* The papers' constants, through the configuration. */
static ifl_loss_options options_of(ifl_loss_kind kind) {
    static ifl_config config;
    ifl_config_defaults(&config);
    config.learner.loss = kind;
    config.rollout.max_new_tokens = 40;
    return ifl_loss_options_of(&config);
}

typedef struct golden_case {
    ifl_loss_options options;
    double value, masked, weight;
    char names[96];
    float want[TOKENS_MAX];
} golden_case;

typedef struct golden {
    FILE *f;
    ifl_loss_counts counts;
    columns c;
    double ess, k3, abs, max;
    int n_cases;
} golden;

static void check_advantages(FILE *f, ifl_loss_kind kind) {
    int n_groups, n = 0;
    char name[32];
    assert_int_equal(fscanf(f, " advantages %31s %d", name, &n_groups), 2);
    assert_string_equal(name, kind_names[kind]);
    for (int g = 0; g < n_groups; g++) {
        assert_int_equal(fscanf(f, " group %d", &n), 1);
        assert_in_range(n, 1, GROUP_MAX);
        ifl_reward_status statuses[GROUP_MAX];
        float rewards[GROUP_MAX], got[GROUP_MAX];
        double want[GROUP_MAX];
        for (int i = 0; i < n; i++) {
            int valid;
            assert_int_equal(fscanf(f, "%f %d %lf", &rewards[i], &valid, &want[i]), 3);
            statuses[i] = valid ? IFL_REWARD_OK : IFL_REWARD_CHECKER_ERROR;
        }
        ifl_advantage_group(kind, n, statuses, rewards, got);
        for (int i = 0; i < n; i++)
            assert_rounded((double)got[i], want[i]);
    }
    if (kind != IFL_LOSS_REINFORCE_PP) return;
    assert_int_equal(fscanf(f, " normalised %d", &n), 1);
    assert_in_range(n, 1, TOKENS_MAX);
    static float a[TOKENS_MAX];
    static bool valid[TOKENS_MAX];
    static int32_t tokens[TOKENS_MAX];
    static double want[TOKENS_MAX];
    for (int i = 0; i < n; i++) {
        int ok;
        assert_int_equal(fscanf(f, "%f %d %d %lf", &a[i], &ok, &tokens[i], &want[i]), 4);
        valid[i] = ok;
    }
    ifl_advantage_normalise(n, valid, tokens, a);
    for (int i = 0; i < n; i++)
        assert_rounded((double)a[i], want[i]);
}

static void golden_open(golden *g) {
    memset(g, 0, sizeof *g);
    g->f = fopen(IFL_GOLDEN_DIR "/losses.txt", "r");
    assert_non_null(g->f);
    char line[256];
    assert_non_null(fgets(line, sizeof line, g->f)); /* the comment */
    for (int k = 0; k < N_KINDS; k++)
        check_advantages(g->f, (ifl_loss_kind)k);
    long long b, n;
    assert_int_equal(fscanf(g->f, " tokens %d trajectories %lld loss_tokens %lld", &g->c.n, &b, &n),
                     3);
    assert_in_range(g->c.n, 1, TOKENS_MAX);
    g->counts = (ifl_loss_counts){b, n};
    columns *c = &g->c;
    for (int i = 0; i < c->n; i++) {
        assert_int_equal(fscanf(g->f, "%d %d %f %f %f %f %f %f", &c->owners[i], &c->lengths[i],
                                &c->loss_weights[i], &c->advantages[i], &c->logprobs[i].logprob,
                                &c->mu[i], &c->q[i], &c->reference[i]),
                         8);
        c->logprobs[i].entropy = 0.5f;
    }
    assert_int_equal(fscanf(g->f, " statistics ess %lf k3 %lf abs %lf max %lf cases %d", &g->ess,
                            &g->k3, &g->abs, &g->max, &g->n_cases),
                     5);
}

static void golden_next(golden *g, golden_case *out) {
    char kind[32], correction[32], estimator[8];
    ifl_loss_options *o = &out->options;
    *o = options_of(IFL_LOSS_GRPO);
    assert_int_equal(fscanf(g->f,
                            " case %31s %lf %lf %31s %lf %lf %lf %lf %7s %lf value %lf masked %lf "
                            "weight %lf",
                            kind, &o->clip_low, &o->clip_high, correction, &o->correction_low,
                            &o->correction_high, &o->dppo_low, &o->dppo_high, estimator,
                            &o->kl_coef, &out->value, &out->masked, &out->weight),
                     13);
    o->kind = (ifl_loss_kind)name_of(kind, kind_names, N_KINDS);
    o->correction = (ifl_correction_kind)name_of(correction, correction_names, N_CORRECTIONS);
    o->kl_estimator = (ifl_kl_estimator)(estimator[1] - '1');
    snprintf(out->names, sizeof out->names, "%s, correction %s, dppo %g, %s %g", kind, correction,
             o->dppo_low, estimator, o->kl_coef);
    for (int i = 0; i < g->c.n; i++)
        assert_int_equal(fscanf(g->f, "%f", &out->want[i]), 1);
}

static ifl_loss_report golden_run(const golden *g, const golden_case *k, int32_t parts,
                                  float *coefficients) {
    ifl_loss_sums sums = {0};
    for (int32_t begin = 0, end; begin < g->c.n; begin = end) {
        end = begin + g->c.n / parts; /* whole trajectories */
        while (end < g->c.n && g->c.owners[end] == g->c.owners[end - 1])
            end++;
        if (end > g->c.n) end = g->c.n;
        ifl_loss_tokens tokens = columns_view(&g->c, begin, end - begin);
        tokens.versions = NULL;
        if (k->options.kl_coef > 0.0) tokens.reference_logprobs = g->c.reference + begin;
        ifl_loss_coefficients(&k->options, &g->counts, &tokens, 5, coefficients + begin, &sums);
    }
    return ifl_loss_report_get(&sums);
}

/* Acceptance is 1e-5; what is left is one rounding of the file's gradients and one of ours. */
static bool coefficients_agree(const float *got, const float *want, int n) {
    for (int i = 0; i < n; i++)
        if (!(fabs((double)got[i] - (double)want[i]) <= 2e-7 * fabs((double)want[i]) + 1e-12))
            return false;
    return true;
}

static void test_values_and_gradients_match_autodiff(void **state) {
    (void)state;
    static golden g;
    static golden_case k;
    golden_open(&g);
    for (int i = 0; i < g.n_cases; i++) {
        golden_next(&g, &k);
        float c[TOKENS_MAX];
        ifl_loss_report r = golden_run(&g, &k, 1, c);
        if (!coefficients_agree(c, k.want, g.c.n)) fail_msg("gradient of %s", k.names);
        assert_same_sum(r.loss, k.value);
        assert_same_sum(r.masked, k.masked);
        assert_same_sum(r.correction_mean, k.weight);
        assert_same_sum(r.ess, g.ess);
        assert_same_sum(r.k3, g.k3);
        assert_same_sum(r.abs_log_ratio_mean, g.abs);
        assert_same_sum(r.ratio_max, g.max);
        assert_same_sum(r.entropy, 0.5);
        assert_int_equal(r.n_tokens, g.c.n);
        float parts[TOKENS_MAX]; /* packs add up to the step */
        assert_same_sum(golden_run(&g, &k, 4, parts).loss, k.value);
        assert_memory_equal(parts, c, (size_t)g.c.n * sizeof *c);
    }
    fclose(g.f);
    assert_int_equal(g.n_cases, 105);
}

/* Another loss, another correction, another estimator or none in the place of each: never the same
 * gradients. (reinforce_pp is dapo with other advantages; k1 has the gradient of a constant.) */
static void test_golden_gradients_tell_the_losses_apart(void **state) {
    (void)state;
    static golden g;
    static golden_case k;
    golden_open(&g);
    float c[TOKENS_MAX];
    int n_told = 0;
    for (int i = 0; i < g.n_cases; i++) {
        golden_next(&g, &k);
        golden_case other = k;
        bool decoupled = k.options.kind == IFL_LOSS_DECOUPLED_PPO;
        for (int kind = 0; kind < N_KINDS; kind++) {
            other.options.kind = (ifl_loss_kind)kind;
            bool twins = (kind == IFL_LOSS_DAPO && k.options.kind == IFL_LOSS_REINFORCE_PP) ||
                         (kind == IFL_LOSS_REINFORCE_PP && k.options.kind == IFL_LOSS_DAPO);
            bool refused =
                kind == IFL_LOSS_DECOUPLED_PPO && k.options.correction != IFL_CORRECTION_NONE;
            if (kind == (int)k.options.kind || twins || refused) continue;
            (void)golden_run(&g, &other, 1, c);
            if (coefficients_agree(c, k.want, g.c.n))
                fail_msg("%s as %s", k.names, kind_names[kind]);
            n_told++;
        }
        other = k;
        for (int m = 0; m < N_CORRECTIONS && !decoupled; m++) {
            other.options.correction = (ifl_correction_kind)m;
            if (m == (int)k.options.correction) continue;
            (void)golden_run(&g, &other, 1, c);
            if (coefficients_agree(c, k.want, g.c.n))
                fail_msg("%s as with %s", k.names, correction_names[m]);
            n_told++;
        }
        other = k;
        other.options.kl_coef = k.options.kl_coef > 0.0 ? 0.0 : 0.05;
        (void)golden_run(&g, &other, 1, c);
        assert_false(coefficients_agree(c, k.want, g.c.n));
    }
    fclose(g.f);
    assert_true(n_told > 1000);
}

static void test_each_loss_has_its_papers_constants(void **state) {
    (void)state;
    static const double want[][2] = {{0.2, 0.2}, {0.2, 0.2},   {0.2, 0.2}, {0.2, 0.28}, {0.2, 0.2},
                                     {0.2, 0.2}, {3e-4, 4e-4}, {1, 4},     {0.2, 0.2},  {0.2, 0.2}};
    for (int k = 0; k < N_KINDS; k++) {
        ifl_loss_options o = options_of((ifl_loss_kind)k);
        assert_true(o.clip_low == want[k][0] && o.clip_high == want[k][1]);
        assert_true(o.importance_cap == IFL_LOSS_IMPORTANCE_CAP && o.kl_coef == 0.0);
        assert_true(o.sapo_tau_positive == 1.0 && o.sapo_tau_negative == 1.05);
    }
    static ifl_config config;
    ifl_config_defaults(&config);
    config.learner.clip_high = 0.5;
    config.learner.correction = IFL_CORRECTION_ICEPOP;
    ifl_loss_options o = ifl_loss_options_of(&config);
    assert_true(o.clip_low == 0.2 && o.clip_high == 0.5);
    assert_true(o.correction_low == 0.5 && o.correction_high == 5.0);
}

static void test_overlong_answers_lose_reward_in_a_line(void **state) {
    (void)state;
    assert_true(ifl_advantage_overlong(80, 100, 20) == 0.0);
    assert_true(ifl_advantage_overlong(85, 100, 20) == -0.25);
    assert_true(ifl_advantage_overlong(100, 100, 20) == -1.0);
    assert_true(ifl_advantage_overlong(100, 100, 0) == 0.0);
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
            bool clipped = kinds[k] != IFL_LOSS_REINFORCE && w < 1 - 0.2;
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

/* A coefficient is norm, loss weight and advantage times the weight that ifl_loss_weights gives. */
static void test_weights_are_what_coefficients_multiply(void **state) {
    (void)state;
    static columns c;
    enum { N = 24 };
    int n_cut = 0;
    for (int i = 0; i < N; i++) {
        c.logprobs[i].logprob = -0.1f - 0.07f * (float)(i * 5 % 11);
        c.mu[i] = -0.1f - 0.09f * (float)(i * 7 % 13);
        c.q[i] = -0.1f - 0.08f * (float)(i * 3 % 12);
        c.advantages[i] = i < 10 ? 1.5f : -0.5f; /* two answers */
        c.owners[i] = i >= 10;
        c.lengths[i] = i < 10 ? 10 : 14;
        c.loss_weights[i] = i % 4 ? 1.0f : 0.5f;
    }
    for (int kind = 0; kind < N_KINDS; kind++)
        for (int correction = 0; correction < N_CORRECTIONS; correction++) {
            if (kind == IFL_LOSS_DECOUPLED_PPO && correction > 0) continue;
            ifl_loss_options o = options_of((ifl_loss_kind)kind);
            o.correction = (ifl_correction_kind)correction;
            o.correction_low = 0.8;
            o.correction_high = 1.2;
            ifl_loss_counts counts = {1, 1};
            ifl_loss_tokens tokens = columns_view(&c, 0, N);
            ifl_loss_sums sums = {0};
            float coefficients[N];
            double weights[N];
            ifl_loss_coefficients(&o, &counts, &tokens, 1, coefficients, &sums);
            ifl_loss_weights(&o, &tokens, weights);
            for (int i = 0; i < N; i++) {
                double norm =
                    kind == IFL_LOSS_GRPO || kind == IFL_LOSS_GSPO || kind == IFL_LOSS_SAPO
                        ? 1.0 / c.lengths[i]
                    : kind == IFL_LOSS_DR_GRPO ? 1.0 / o.max_new_tokens
                                               : 1.0;
                assert_rounded((double)coefficients[i], -norm * (double)c.loss_weights[i] *
                                                            (double)c.advantages[i] * weights[i]);
                n_cut += weights[i] == 0.0;
            }
        }
    assert_true(n_cut > 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values_and_gradients_match_autodiff),
        cmocka_unit_test(test_golden_gradients_tell_the_losses_apart),
        cmocka_unit_test(test_each_loss_has_its_papers_constants),
        cmocka_unit_test(test_overlong_answers_lose_reward_in_a_line),
        cmocka_unit_test(test_signs_norms_and_clips),
        cmocka_unit_test(test_a_foreign_token_weighs_min_of_cap_and_ratio_under_every_loss),
        cmocka_unit_test(test_lag_counts_from_the_step_before),
        cmocka_unit_test(test_equal_bits_have_ratio_one),
        cmocka_unit_test(test_non_finite_logprob_poisons_its_coefficient_only),
        cmocka_unit_test(test_absurd_ratios_stay_finite),
        cmocka_unit_test(test_empty_step_reports_neutral_figures),
        cmocka_unit_test(test_weights_are_what_coefficients_multiply),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
