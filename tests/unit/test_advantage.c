/* Group advantages and the statistics of evaluation: hand-worked figures. The comparison of
 * advantages with an independent computation is in test_loss.c, from the same golden file. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "learner/advantage.h"
#include "learner/eval_stats.h"

#define OK IFL_REWARD_OK

static void assert_close(double got, double want, double tolerance) {
    if (!(fabs(got - want) <= tolerance)) fail_msg("got %.17g, wanted %.17g", got, want);
}

static void test_reinforce_leaves_one_out(void **state) {
    (void)state;
    const ifl_reward_status statuses[4] = {OK, OK, OK, OK};
    const float rewards[4] = {1, 0, 0, 1};
    float a[4];
    ifl_advantage_stats s = ifl_advantage_group(IFL_LOSS_REINFORCE, 4, statuses, rewards, a);
    assert_int_equal(s.n_valid, 4);
    assert_false(s.skipped);
    assert_false(s.zero_variance);
    assert_close((double)a[0], 1.0 - 1.0 / 3, 1e-7);
    assert_close((double)a[1], -2.0 / 3, 1e-7);
    assert_close((double)a[2], -2.0 / 3, 1e-7);
    assert_close((double)a[3], 1.0 - 1.0 / 3, 1e-7);
    assert_close(s.mean, 0.5, 0);
    assert_close(s.std, sqrt(1.0 / 3), 1e-15);
}

static void test_member_without_a_reward_leaves_the_group(void **state) {
    (void)state;
    /* The third member's reward of 9 must touch nothing: an error is never a value. */
    const ifl_reward_status statuses[4] = {OK, OK, IFL_REWARD_CHECKER_ERROR, OK};
    const float rewards[4] = {1, 0, 9, 0};
    float a[4];
    ifl_advantage_stats s = ifl_advantage_group(IFL_LOSS_REINFORCE, 4, statuses, rewards, a);
    assert_int_equal(s.n_valid, 3);
    assert_close((double)a[0], 1.0, 0);
    assert_close((double)a[1], -0.5, 0);
    assert_close((double)a[2], 0.0, 0);
    assert_close((double)a[3], -0.5, 0);
    const ifl_reward_status all_ok[4] = {OK, OK, OK, OK};
    ifl_advantage_group(IFL_LOSS_REINFORCE, 4, all_ok, rewards, a);
    assert_true((double)a[0] < 0); /* with it, the same answer would look bad */
}

static void test_nan_reward_leaves_the_group(void **state) {
    (void)state;
    const ifl_reward_status statuses[3] = {OK, OK, OK};
    const float rewards[3] = {1, NAN, 0};
    float a[3];
    ifl_advantage_stats s = ifl_advantage_group(IFL_LOSS_GRPO, 3, statuses, rewards, a);
    assert_int_equal(s.n_valid, 2);
    assert_true(isfinite(a[0]) && isfinite(a[2]));
    assert_close((double)a[1], 0.0, 0);
}

static void test_one_valid_member_skips_the_group(void **state) {
    (void)state;
    const ifl_reward_status one[2] = {OK, IFL_REWARD_UNAVAILABLE};
    const ifl_reward_status none[2] = {IFL_REWARD_NONE, IFL_REWARD_UNDECIDED};
    const float rewards[2] = {1, 0};
    float a[2] = {7, 7};
    assert_true(ifl_advantage_group(IFL_LOSS_REINFORCE, 2, one, rewards, a).skipped);
    assert_close((double)a[0], 0.0, 0);
    ifl_advantage_stats s = ifl_advantage_group(IFL_LOSS_REINFORCE, 2, none, rewards, a);
    assert_true(s.skipped);
    assert_false(s.zero_variance);
    assert_int_equal(s.n_valid, 0);
}

static void test_equal_rewards_give_exact_zeros(void **state) {
    (void)state;
    /* 0.1f summed seven times and divided is not 0.1f; divided by a deviation of rounding noise
     * that would be an advantage of order one. */
    const ifl_reward_status statuses[7] = {OK, OK, OK, OK, OK, OK, OK};
    const float rewards[7] = {0.1f, 0.1f, 0.1f, 0.1f, 0.1f, 0.1f, 0.1f};
    const ifl_loss_kind kinds[] = {IFL_LOSS_REINFORCE, IFL_LOSS_GRPO, IFL_LOSS_DR_GRPO,
                                   IFL_LOSS_DAPO};
    for (size_t k = 0; k < 4; k++) {
        float a[7];
        ifl_advantage_stats s = ifl_advantage_group(kinds[k], 7, statuses, rewards, a);
        assert_true(s.zero_variance && !s.skipped);
        for (int i = 0; i < 7; i++)
            assert_true(a[i] == 0.0f);
    }
}

static void test_grpo_divides_by_the_sample_deviation(void **state) {
    (void)state;
    const ifl_reward_status statuses[2] = {OK, OK};
    const float rewards[2] = {1, 0};
    float a[2];
    ifl_advantage_group(IFL_LOSS_GRPO, 2, statuses, rewards, a);
    assert_close((double)a[0], 0.5 / (sqrt(0.5) + 1e-4), 1e-7);
    ifl_advantage_group(IFL_LOSS_DR_GRPO, 2, statuses, rewards, a);
    assert_close((double)a[0], 0.5, 0);
}

/* The definition: the ends are the proportions whose score test is just rejected at 5 %. */
static double score_statistic(double p, int n_right, int n) {
    return ((double)n_right / n - p) / sqrt(p * (1 - p) / n);
}

static void test_wilson_interval_inverts_the_score_test(void **state) {
    (void)state;
    const int cases[][2] = {{470, 500}, {1, 10}, {9, 10}, {3, 7}, {100, 100000}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ifl_interval w = ifl_wilson95(cases[i][0], cases[i][1]);
        assert_close(score_statistic(w.low, cases[i][0], cases[i][1]), 1.959964, 1e-5);
        assert_close(score_statistic(w.high, cases[i][0], cases[i][1]), -1.959964, 1e-5);
    }
    double z2 = 1.959964 * 1.959964;
    ifl_interval w = ifl_wilson95(0, 10);
    assert_close(w.low, 0.0, 0);
    assert_close(w.high, z2 / (10 + z2), 1e-6);
    w = ifl_wilson95(10, 10);
    assert_close(w.low, 10 / (10 + z2), 1e-6);
    assert_close(w.high, 1.0, 0);
    w = ifl_wilson95(0, 0);
    assert_true(w.low == 0.0 && w.high == 1.0);
}

/* 1 - C(n - c, k) / C(n, k), counted out over all subsets of size k. */
static double pass_by_enumeration(int n, int c, int k) {
    int n_subsets = 0, n_pass = 0;
    for (int set = 0; set < 1 << n; set++) {
        if (__builtin_popcount((unsigned)set) != k) continue;
        n_subsets++;
        n_pass += (set & ((1 << c) - 1)) != 0;
    }
    return (double)n_pass / n_subsets;
}

static void test_pass_at_k_is_unbiased(void **state) {
    (void)state;
    for (int n = 1; n <= 9; n++)
        for (int c = 0; c <= n; c++)
            for (int k = 1; k <= n; k++)
                assert_close(ifl_pass_at_k(n, c, k), pass_by_enumeration(n, c, k), 1e-12);
    /* The naive 1 - (1 - c/n)^k differs: the claim can fail. */
    assert_true(fabs(ifl_pass_at_k(8, 2, 4) - (1 - pow(0.75, 4))) > 0.05);
    const int32_t right[3] = {0, 2, 4};
    assert_close(ifl_avg_at_k(right, 3, 4), 0.5, 0);
    assert_close(ifl_pass_at_k_mean(right, 3, 4, 4), 2.0 / 3, 1e-15);
    assert_close(ifl_pass_at_k_mean(right, 3, 4, 1), 0.5, 1e-15);
}

static void test_paired_bootstrap_finds_a_gain_and_none(void **state) {
    (void)state;
    enum { N = 400 };
    static double before[N], after[N];
    for (int i = 0; i < N; i++) {
        before[i] = i % 4 == 0;               /* 0.25 */
        after[i] = i % 4 == 0 || i % 10 == 1; /* + about 0.05 to 0.1 */
    }
    ifl_paired p, again;
    assert_int_equal(ifl_paired_bootstrap(before, after, N, 2000, 1, &p, NULL), IFL_OK);
    assert_true(p.interval.low > 0.0);
    assert_true(p.interval.low < p.difference && p.difference < p.interval.high);
    /* Normal theory agrees: d = 0.1 and its standard error is 0.015. */
    assert_close(p.difference, 0.1, 1e-12);
    assert_close(p.interval.low, 0.1 - 1.96 * 0.015, 0.006);
    assert_close(p.interval.high, 0.1 + 1.96 * 0.015, 0.006);
    assert_int_equal(ifl_paired_bootstrap(before, after, N, 2000, 1, &again, NULL), IFL_OK);
    assert_true(p.interval.low == again.interval.low && p.interval.high == again.interval.high);
    assert_int_equal(ifl_paired_bootstrap(before, before, N, 2000, 1, &p, NULL), IFL_OK);
    assert_true(p.difference == 0.0 && p.interval.low == 0.0 && p.interval.high == 0.0);
    ifl_error err = {0};
    assert_int_equal(ifl_paired_bootstrap(before, after, N, 10, 1, &p, &err), IFL_USAGE);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reinforce_leaves_one_out),
        cmocka_unit_test(test_member_without_a_reward_leaves_the_group),
        cmocka_unit_test(test_nan_reward_leaves_the_group),
        cmocka_unit_test(test_one_valid_member_skips_the_group),
        cmocka_unit_test(test_equal_rewards_give_exact_zeros),
        cmocka_unit_test(test_grpo_divides_by_the_sample_deviation),
        cmocka_unit_test(test_wilson_interval_inverts_the_score_test),
        cmocka_unit_test(test_pass_at_k_is_unbiased),
        cmocka_unit_test(test_paired_bootstrap_finds_a_gain_and_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
