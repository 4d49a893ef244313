#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "learner/error_share.h"

/* Feeds answers, one letter each: k right, w wrong, e checker error, u unavailable, b bad task, d
 * undecided. Returns how many went in before the run was ended; -1: all. */
static int feed(int32_t window, double share, const char *answers, ifl_error *err) {
    ifl_config *config = malloc(sizeof *config);
    ifl_error_share s;
    int ended = -1;
    assert_non_null(config);
    ifl_config_defaults(config);
    config->reward.errors_window = window;
    config->reward.errors_max_share = share;
    assert_int_equal(ifl_error_share_create(&s, config, err), IFL_OK);
    for (int i = 0; answers[i] && ended < 0; i++) {
        ifl_reward r = {.status = answers[i] == 'k'   ? IFL_REWARD_OK
                                  : answers[i] == 'w' ? IFL_REWARD_WRONG
                                  : answers[i] == 'e' ? IFL_REWARD_CHECKER_ERROR
                                  : answers[i] == 'u' ? IFL_REWARD_UNAVAILABLE
                                  : answers[i] == 'b' ? IFL_REWARD_BAD_TASK
                                                      : IFL_REWARD_UNDECIDED};
        char task[16], reason[32];
        snprintf(task, sizeof task, "t%d", i);
        snprintf(reason, sizeof reason, "reason %d", i);
        snprintf(r.checker, sizeof r.checker, "py=x/1");
        if (!ifl_reward_is_verdict(r.status)) ifl_reward_set_reason(&r, reason);
        ifl_status st = ifl_error_share_add(&s, &r, task, err);
        if (st != IFL_OK) {
            assert_int_equal(st, IFL_PEER);
            ended = i;
        }
    }
    ifl_error_share_clear(&s);
    free(config);
    return ended;
}

static void test_ends_where_more_than_the_share_fails(void **state) {
    (void)state;
    ifl_error err = {0};
    assert_int_equal(feed(4, 0.5, "eee", &err), -1); /* the window isn't full */
    assert_int_equal(feed(4, 0.5, "eeee", &err), 3);
    assert_non_null(strstr(err.text, "4 of the last 4 answers"));
    assert_non_null(strstr(err.text, "checker py=x/1, task t0: checker_error: reason 0"));
    assert_int_equal(feed(4, 0.5, "ekekekekek", &err), -1);
    assert_int_equal(feed(4, 0.5, "kkkkeekeu", &err), 7);
    assert_non_null(strstr(err.text, "3 of the last 4"));
    assert_non_null(strstr(err.text, "task t4"));
    /* An old failure that has left the window isn't the first any more. */
    assert_int_equal(feed(4, 0.5, "ekkkkkuuu", &err), 8);
    assert_non_null(strstr(err.text, "task t6: unavailable: reason 6"));
    assert_int_equal(feed(4, 1.0, "eeeeeeeeee", &err), -1);
    assert_int_equal(feed(1, 0.5, "ke", &err), 1);
}

static void test_bad_tasks_and_undecided_answers_are_no_failures(void **state) {
    (void)state;
    ifl_error err = {0};
    assert_int_equal(feed(4, 0.001, "bdwkbdwkbbbbdddd", &err), -1);
    assert_int_equal(feed(4, 0.001, "bdwkbdwkbbbbddde", &err), 15);
}

static void test_reasons_are_one_line_of_text(void **state) {
    (void)state;
    ifl_reward r = {0};
    ifl_reward_set_reason(&r, "a\nb\x01 \xc3\xa9 \xff");
    assert_string_equal(r.reason, "a?b? \xc3\xa9 ?");
    char text[600];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    memcpy(text + IFL_REWARD_WHY_MAX - 2, "\xc3\xa9", 2); /* would be cut in two */
    ifl_reward_set_reason(&r, text);
    assert_int_equal(strlen(r.reason), IFL_REWARD_WHY_MAX - 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ends_where_more_than_the_share_fails),
        cmocka_unit_test(test_bad_tasks_and_undecided_answers_are_no_failures),
        cmocka_unit_test(test_reasons_are_one_line_of_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
