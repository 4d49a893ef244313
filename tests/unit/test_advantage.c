/* Group advantages: hand-worked figures. The comparison with an independent computation is in
 * test_loss.c, from the same golden file. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "learner/advantage.h"

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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reinforce_leaves_one_out),
        cmocka_unit_test(test_member_without_a_reward_leaves_the_group),
        cmocka_unit_test(test_nan_reward_leaves_the_group),
        cmocka_unit_test(test_one_valid_member_skips_the_group),
        cmocka_unit_test(test_equal_rewards_give_exact_zeros),
        cmocka_unit_test(test_grpo_divides_by_the_sample_deviation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
