/* learner/dynamic_sampling.h: which groups count towards a step, how many are drawn, and what
 * becomes of the others. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "learner/dynamic_sampling.h"
#include "tests/testing.h"

#define MEMBERS 3
#define NONE 1000.0f /* no trajectory: given up */
#define BAD 1001.0f  /* an answer that could not be judged */

static ifl_config *config_make(void) {
    static ifl_config c;
    ifl_config_defaults(&c);
    c.rollout.prompts_per_step = 4;
    c.rollout.dynamic_sampling = true;
    c.rollout.dynamic_sampling_max = 3;
    return &c;
}

typedef struct groups_made {
    ifl_group groups[8], *list[8], *spare[8];
    ifl_member members[8][MEMBERS];
    ifl_member_outcome storage[8][MEMBERS], *outcomes[8];
    bool skipped[8];
    int32_t n;
} groups_made;

static void group_add(groups_made *made, const float rewards[MEMBERS]) {
    const int32_t prompt[1] = {4};
    ifl_error err = {0};
    int32_t g = made->n++;
    made->outcomes[g] = made->storage[g];
    made->list[g] = &made->groups[g];
    made->groups[g] =
        (ifl_group){.task_serial = (uint64_t)g, .n_members = MEMBERS, .members = made->members[g]};
    for (int i = 0; i < MEMBERS; i++) {
        ifl_member *m = &made->members[g][i];
        m->state = rewards[i] == NONE ? IFL_MEMBER_DROPPED : IFL_MEMBER_STORED;
        if (rewards[i] == NONE) continue;
        assert_int_equal(ifl_trajectory_create(&m->traj, prompt, 1, &err), IFL_OK);
        for (int t = 0; t < g + i + 1; t++)
            assert_int_equal(ifl_trajectory_append(m->traj, 5, -0.5f, 0, &err), IFL_OK);
        m->traj->reward.status = rewards[i] == BAD ? IFL_REWARD_UNAVAILABLE : IFL_REWARD_OK;
        m->traj->reward.reward = rewards[i] == BAD ? 0.0f : rewards[i];
    }
}

static void groups_free(groups_made *made) {
    for (int32_t g = 0; g < made->n; g++)
        for (int i = 0; i < MEMBERS; i++)
            ifl_trajectory_free(made->members[g][i].traj);
}

static ifl_group_signal signal_of(const ifl_config *config, float a, float b, float c) {
    groups_made made = {0};
    const float rewards[MEMBERS] = {a, b, c};
    group_add(&made, rewards);
    ifl_group_signal signal = ifl_group_signal_of(config, made.list[0]);
    groups_free(&made);
    return signal;
}

static void test_a_group_tells_something_when_its_rewards_differ(void **state) {
    (void)state;
    const ifl_config *c = config_make();
    assert_int_equal(signal_of(c, 1, 0, 0), IFL_SIGNAL_SOME);
    assert_int_equal(signal_of(c, 0.1f, 0.1f, 0.100001f), IFL_SIGNAL_SOME);
    assert_int_equal(signal_of(c, 1, 1, 1), IFL_SIGNAL_RIGHT);
    assert_int_equal(signal_of(c, 0.1f, 0.1f, 0.1f), IFL_SIGNAL_RIGHT);
    assert_int_equal(signal_of(c, 0, 0, 0), IFL_SIGNAL_WRONG);
    assert_int_equal(signal_of(c, -1, -1, -1), IFL_SIGNAL_WRONG);
}

static void test_only_judged_answers_count(void **state) {
    (void)state;
    const ifl_config *c = config_make();
    assert_int_equal(signal_of(c, 1, 1, BAD), IFL_SIGNAL_RIGHT);
    assert_int_equal(signal_of(c, 1, 0, NONE), IFL_SIGNAL_SOME);
    assert_int_equal(signal_of(c, 1, BAD, BAD), IFL_SIGNAL_NONE);
    assert_int_equal(signal_of(c, NONE, BAD, 1), IFL_SIGNAL_NONE);
    assert_int_equal(signal_of(c, NONE, NONE, NONE), IFL_SIGNAL_NONE);
    assert_int_equal(signal_of(c, 1, INFINITY, 1), IFL_SIGNAL_RIGHT);
}

/* Its advantage comes from the shaped reward, and so does the choice. */
static void test_overlong_shaping_tells_equal_answers_apart(void **state) {
    (void)state;
    ifl_config c = *config_make();
    c.rollout.max_new_tokens = 4;
    c.learner.overlong_tokens = 2; /* lengths 1, 2, 3: the third loses a half */
    assert_int_equal(signal_of(&c, 1, 1, 1), IFL_SIGNAL_SOME);
    assert_int_equal(signal_of(&c, 1, 1, 1.5f), IFL_SIGNAL_RIGHT);
}

static void test_drawing_ends_with_enough_groups_or_at_the_bound(void **state) {
    (void)state;
    const ifl_config *c = config_make();
    ifl_sampling_counts n = {0};
    assert_int_equal(ifl_dynamic_sampling_next(c, &n, 4), 4);
    assert_int_equal(ifl_dynamic_sampling_next(c, &n, 1), 1);
    n = (ifl_sampling_counts){.n_drawn = 4, .n_kept = 1};
    assert_int_equal(ifl_dynamic_sampling_next(c, &n, 4), 3);
    n = (ifl_sampling_counts){.n_drawn = 11, .n_kept = 1};
    assert_int_equal(ifl_dynamic_sampling_next(c, &n, 4), 1); /* 12 are the bound */
    n = (ifl_sampling_counts){.n_drawn = 12, .n_kept = 1};
    assert_int_equal(ifl_dynamic_sampling_next(c, &n, 4), 0);
    n = (ifl_sampling_counts){.n_drawn = 5, .n_kept = 4};
    assert_int_equal(ifl_dynamic_sampling_next(c, &n, 4), 0);
}

static void test_what_is_passed_over_has_its_fate_and_is_counted(void **state) {
    (void)state;
    const ifl_config *c = config_make();
    static const float rewards[5][MEMBERS] = {
        {0, 0, BAD}, {1, 0, 1}, {1, 1, 1}, {1, BAD, NONE}, {0, 1, BAD}};
    groups_made made = {0};
    ifl_sampling_counts n = {0};
    for (int g = 0; g < 5; g++)
        group_add(&made, rewards[g]);
    assert_int_equal(
        ifl_dynamic_sampling_choose(c, made.list, 5, made.outcomes, made.skipped, made.spare, &n),
        2);
    static const uint64_t order[5] = {1, 4, 0, 2, 3}; /* both parts in their order */
    for (int g = 0; g < 5; g++) {
        assert_int_equal(made.list[g]->task_serial, order[g]);
        if (g >= 2) assert_true(made.skipped[g]);
    }
    assert_int_equal(made.outcomes[2][0].end, IFL_END_DROPPED);
    assert_int_equal(made.outcomes[2][0].reason, IFL_DROP_ZERO_VARIANCE);
    assert_int_equal(made.outcomes[2][2].end, IFL_END_MASKED);
    assert_int_equal(made.outcomes[3][1].reason, IFL_DROP_ZERO_VARIANCE);
    assert_int_equal(made.outcomes[4][0].end, IFL_END_DROPPED);
    assert_int_equal(made.outcomes[4][0].reason, IFL_DROP_SKIPPED);
    assert_int_equal(made.outcomes[4][1].end, IFL_END_MASKED);
    assert_int_equal(n.n_drawn, 5);
    assert_int_equal(n.n_kept, 2);
    assert_int_equal(n.n_right, 1);
    assert_int_equal(n.n_wrong, 1);
    assert_int_equal(n.n_unjudged, 1);
    assert_int_equal(n.n_answers, 2 + 3 + 3 + 1 + 2);
    assert_int_equal(n.n_answers_passed, 2 + 3 + 1);
    assert_int_equal(n.n_masked_passed, 2);
    /* Answer i of group g has g + i + 1 tokens. */
    assert_true(n.length == (1 + 2) + (2 + 3 + 4) + (3 + 4 + 5) + 4 + (5 + 6));
    assert_true(n.length_passed == (1 + 2) + (3 + 4 + 5) + 4);
    assert_true(n.reward == 0 + 2 + 3 + 1 + 1);
    /* Choosing among all of a step again changes nothing. */
    ifl_sampling_counts again = {0};
    assert_int_equal(ifl_dynamic_sampling_choose(c, made.list, 5, made.outcomes, made.skipped,
                                                 made.spare, &again),
                     2);
    for (int g = 0; g < 5; g++)
        assert_int_equal(made.list[g]->task_serial, order[g]);
    assert_memory_equal(&n, &again, sizeof n);
    groups_free(&made);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_group_tells_something_when_its_rewards_differ),
        cmocka_unit_test(test_only_judged_answers_count),
        cmocka_unit_test(test_overlong_shaping_tells_equal_answers_apart),
        cmocka_unit_test(test_drawing_ends_with_enough_groups_or_at_the_bound),
        cmocka_unit_test(test_what_is_passed_over_has_its_fate_and_is_counted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
