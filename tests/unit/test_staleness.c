/* learner/staleness.h: a simulated run in which answers take any time: no group is ever too old,
 * and none waits without need. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>

#include "common/rng.h"
#include "learner/staleness.h"

static void test_earliest_deadline_first_then_arrival(void **state) {
    (void)state;
    /* step 10, at most 4 old: oldest 5 is due now, 6 in step 11 */
    const ifl_stale_group groups[] = {{8, 1}, {5, 4}, {6, 2}, {6, 3}, {9, 0}};
    int32_t chosen[4];
    assert_true(ifl_staleness_choose(groups, 5, 10, 4, 3, 4, 4, chosen));
    assert_true(chosen[0] == 1 && chosen[1] == 2 && chosen[2] == 3);
    assert_true(ifl_staleness_choose(groups, 5, 10, 4, 4, 4, 4, chosen));
    assert_int_equal(chosen[3], 0);
}

static void test_a_place_is_kept_for_what_is_due_and_not_here_yet(void **state) {
    (void)state;
    /* Both places of step 10 are spoken for: one by the first, one by an incomplete group. */
    const ifl_stale_group groups[] = {{5, 1}, {5, 0}, {9, 2}};
    int32_t chosen[2];
    assert_true(ifl_staleness_choose(groups, 3, 10, 2, 1, 2, 4, chosen));
    assert_int_equal(chosen[0], 0);
    assert_false(ifl_staleness_choose(groups, 3, 10, 2, 2, 2, 4, chosen)); /* waits */
    const ifl_stale_group later[] = {{5, 1}, {6, 0}, {9, 2}};
    assert_true(ifl_staleness_choose(later, 3, 10, 2, 2, 2, 4, chosen)); /* 11 has room */
    /* Three that are due in step 11 need a place of this one, though none is due now. */
    const ifl_stale_group crowd[] = {{6, 0}, {6, 0}, {6, 0}, {9, 1}, {9, 2}};
    assert_true(ifl_staleness_choose(crowd, 5, 10, 2, 1, 2, 4, chosen));
    assert_false(ifl_staleness_choose(crowd, 5, 10, 2, 2, 2, 4, chosen));
}

static void test_nothing_complete_or_too_late(void **state) {
    (void)state;
    const ifl_stale_group none[] = {{9, 0}};
    int32_t chosen[1];
    assert_false(ifl_staleness_choose(none, 1, 10, 1, 1, 1, 4, chosen));
    const ifl_stale_group late[] = {{9, 1}, {2, 2}}; /* the step drops it */
    assert_true(ifl_staleness_choose(late, 2, 10, 1, 1, 1, 4, chosen));
    assert_int_equal(chosen[0], 1);
}

enum { PER_STEP = 4, OPEN_MAX = 64 };

/* Groups open as long as (max + 1) * PER_STEP are under way, under the version of that moment; each
 * takes a time with a long tail; a step trains PER_STEP of them. Returns the highest lag, or -1 for
 * a standstill. */
static int64_t simulate(int32_t max, uint64_t seed, bool fresh) {
    ifl_stale_group groups[OPEN_MAX];
    double ends[OPEN_MAX];
    uint64_t n_completed = 0, draw = 0;
    int32_t n = 0;
    int64_t worst = 0;
    double now = 0.0;
    for (int64_t step = 1; step <= 400; step++) {
        int32_t chosen[PER_STEP];
        for (int tries = 0;; tries++) {
            while (n < (max + 1) * PER_STEP) {
                ifl_rng_key key = {.seed = seed, .purpose = IFL_RNG_TEST};
                double u = (double)ifl_rng_uniform(&key, draw++, 0);
                ends[n] = now + 0.2 / (u * u); /* now and then a hundred times the rest */
                groups[n++] = (ifl_stale_group){step - 1, 0};
            }
            bool taken = false;
            if (fresh) {
                taken = ifl_staleness_choose(groups, n, step, PER_STEP, PER_STEP, PER_STEP, max,
                                             chosen);
            } else { /* the first that are complete */
                int32_t k = 0;
                for (uint64_t c = 1; c <= n_completed && k < PER_STEP; c++)
                    for (int32_t g = 0; g < n && k < PER_STEP; g++)
                        if (groups[g].completed == c) chosen[k++] = g;
                taken = k == PER_STEP;
            }
            if (taken) break;
            int32_t next = -1;
            for (int32_t g = 0; g < n; g++)
                if (groups[g].completed == 0 && (next < 0 || ends[g] < ends[next])) next = g;
            if (next < 0) return -1;
            if (ends[next] > now) now = ends[next];
            groups[next].completed = ++n_completed;
        }
        for (int32_t i = 0; i < PER_STEP; i++) {
            int64_t lag = step - 1 - groups[chosen[i]].oldest;
            if (lag > worst) worst = lag;
        }
        int32_t kept = 0;
        for (int32_t g = 0; g < n; g++) {
            bool gone = false;
            for (int32_t i = 0; i < PER_STEP; i++)
                gone = gone || chosen[i] == g;
            groups[kept] = groups[g];
            ends[kept] = ends[g];
            kept += !gone;
        }
        n = kept;
        now += 1.0;
    }
    return worst;
}

static void test_no_group_is_ever_older_than_the_bound(void **state) {
    (void)state;
    int n_beyond = 0;
    for (int32_t max = 0; max <= 8; max += 2)
        for (uint64_t seed = 1; seed <= 10; seed++) {
            int64_t lag = simulate(max, seed, true);
            assert_true(lag >= 0 && lag <= max);
            n_beyond += simulate(max, seed, false) > max;
        }
    assert_true(n_beyond > 30); /* taking what comes first doesn't hold it */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_earliest_deadline_first_then_arrival),
        cmocka_unit_test(test_a_place_is_kept_for_what_is_due_and_not_here_yet),
        cmocka_unit_test(test_nothing_complete_or_too_late),
        cmocka_unit_test(test_no_group_is_ever_older_than_the_bound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
