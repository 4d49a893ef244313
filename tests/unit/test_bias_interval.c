/* Bootstrap intervals of the bias ledger's means: keyed, of any order, as wide as theory says. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "common/rng.h"
#include "learner/bias_interval.h"

static ifl_error err;

/* An answer of ten tokens whose sum of log r is normal, with its KL at two positions. */
static ifl_bias_part part_of(uint64_t serial) {
    ifl_rng_key key = {5, 1, IFL_RNG_TEST};
    double x = ifl_rng_normal(&key, serial, 0);
    ifl_bias_part part = {.serial = serial, .sample = (int32_t)(serial % 4), .n = 10};
    for (int m = 0; m < IFL_BIAS_MEANS; m++) {
        part.means[m].log_r = -(1.0 + x) * (m + 1);
        part.means[m].k3 = 2.0 + x;
        part.means[m].kl = m == IFL_BIAS_LAG ? 1.0 + 0.1 * x : 0.0;
        part.means[m].n_kl = m == IFL_BIAS_LAG ? 2 : 0;
    }
    return part;
}

static ifl_bias_record intervals_of(int64_t n, bool backwards) {
    ifl_bias_bootstrap *b;
    ifl_bias_record record = {0};
    assert_int_equal(ifl_bias_bootstrap_create(&b, &err), IFL_OK);
    for (int64_t i = 0; i < n; i++) {
        ifl_bias_part part = part_of((uint64_t)(backwards ? n - 1 - i : i));
        ifl_bias_bootstrap_add(b, &part);
    }
    ifl_bias_bootstrap_get(b, &record);
    ifl_bias_bootstrap_free(b);
    return record;
}

static void test_intervals_are_as_wide_as_the_means_spread(void **state) {
    (void)state;
    const int64_t n = 400;
    ifl_bias_record r = intervals_of(n, false);
    double sum = 0.0;
    assert_int_equal(r.n_resampled, n);
    for (int64_t i = 0; i < n; i++)
        sum += -part_of((uint64_t)i).means[IFL_BIAS_TOTAL].log_r;
    double mean = sum / (10.0 * (double)n), scale = (IFL_BIAS_TOTAL + 1) / 10.0;
    const ifl_bias_interval *total = &r.intervals[IFL_BIAS_TOTAL];
    /* 1.96 standard errors of a unit normal over 400 answers, to a tenth. */
    assert_true(total->k1_low < mean && mean < total->k1_high);
    double width = (total->k1_high - total->k1_low) / scale;
    assert_true(width > 0.9 * 2 * 1.96 / 20.0 && width < 1.1 * 2 * 1.96 / 20.0);
    /* Nats: by k3 without positions, by k1 of truncation, by the exact KL where there is one. */
    assert_true(total->nats_low > 0.1 && total->nats_high < 0.3);
    const ifl_bias_interval *cut = &r.intervals[IFL_BIAS_TRUNCATION];
    assert_true(cut->nats_low == cut->k1_low && cut->nats_high == cut->k1_high);
    const ifl_bias_interval *lag = &r.intervals[IFL_BIAS_LAG];
    assert_true(lag->nats_low > 0.48 && lag->nats_high < 0.52 && lag->nats_low < lag->nats_high);
}

static void test_the_same_answers_give_the_same_intervals(void **state) {
    (void)state;
    ifl_bias_record a = intervals_of(200, false), b = intervals_of(200, false),
                    c = intervals_of(200, true);
    assert_memory_equal(a.intervals, b.intervals, sizeof a.intervals);
    for (int m = 0; m < IFL_BIAS_MEANS; m++) { /* other sums of the same numbers: to rounding */
        assert_true(fabs(a.intervals[m].k1_low - c.intervals[m].k1_low) < 1e-12);
        assert_true(fabs(a.intervals[m].nats_high - c.intervals[m].nats_high) < 1e-12);
    }
    ifl_bias_record fewer = intervals_of(199, false);
    assert_true(memcmp(a.intervals, fewer.intervals, sizeof a.intervals) != 0);
}

static void test_one_answer_has_no_interval(void **state) {
    (void)state;
    ifl_bias_record r = intervals_of(1, false);
    assert_int_equal(r.n_resampled, 1);
    for (int m = 0; m < IFL_BIAS_MEANS; m++)
        assert_true(isnan(r.intervals[m].nats_low) && isnan(r.intervals[m].k1_high));
    r = intervals_of(0, false);
    assert_int_equal(r.n_resampled, 0);
    assert_true(isnan(r.intervals[IFL_BIAS_LAG].k1_low));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_intervals_are_as_wide_as_the_means_spread),
        cmocka_unit_test(test_the_same_answers_give_the_same_intervals),
        cmocka_unit_test(test_one_answer_has_no_interval),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
