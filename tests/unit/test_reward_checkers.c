#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "rewards/number.h"
#include "tests/reward_cases.h"

static void test_exact_compares_trimmed_bytes(void **state) {
    (void)state;
    EXPECT("exact", "",
           {{"12", " 12\n", 1},
            {" 12 ", "12", 1},
            {"12", "12.", 0},
            {"12", "1 2", 0},
            {"12", "", 0},
            {"12", "112", 0},
            {"Paris", "paris", 0},
            {"", "", -1},
            {" \n", "x", -1}});
}

static void test_exact_reads_behind_the_last_marker(void **state) {
    (void)state;
    const char *meta = "{\"after\":\"#\"}";
    EXPECT("exact", meta,
           {{"501", "424+7*11=501+7*00=#501", 1},
            {"501", "#501\n", 1},
            {"501", "#500#501", 1},
            {"501", "#501#500", 0},
            {"501", "501", 0},
            {"501", "#", 0},
            {"501", "#501#", 0},
            {"501", "#0501", 0},
            {"501", "", 0}});
    EXPECT("exact", "{\"after\":\"\"}", {{"501", "#501", -1}});
    EXPECT("exact", "{\"after\":7}", {{"501", "#501", -1}});
    EXPECT("exact", "{\"after\":", {{"501", "#501", -1}});
    EXPECT("exact", "[1]", {{"501", "#501", -1}});
}

static void test_exact_end_refuses_cut_answers(void **state) {
    (void)state;
    const char *meta = "{\"after\":\"#\",\"end\":true}";
    assert_true(check_bytes("exact", "501", meta, "#501", 4, IFL_FINISH_EOS).reward == 1.0f);
    assert_true(check_bytes("exact", "501", meta, "#501", 4, IFL_FINISH_STOP).reward == 1.0f);
    ifl_reward cut = check_bytes("exact", "501", meta, "#501", 4, IFL_FINISH_LENGTH);
    assert_int_equal(cut.status, IFL_REWARD_WRONG);
    assert_true(cut.reward == 0.0f);
    cut = check_bytes("exact", "501", "{\"after\":\"#\"}", "#501", 4, IFL_FINISH_LENGTH);
    assert_true(cut.reward == 1.0f);
}

static void test_numeric_reads_boxes(void **state) {
    (void)state;
    EXPECT("numeric", "",
           {{"5", "so \\boxed{5}.", 1},
            {"5", "\\boxed{$5$}", 1},
            {"5", "\\boxed{\\text{5}}", 1},
            {"5", "\\boxed{5\\text{ apples}}", 1},
            {"5", "\\boxed{5 apples}", 1},
            {"5", "\\boxed{x = 5}", 1},
            {"5", "\\boxed{5.}", 1},
            {"5", "\\boxed{{5}}", 1},
            {"5", "\\boxed{5cm}", 1},
            {"5", "\\boxed{5^\\circ}", 1},
            {"1234", "\\boxed{1{,}234}", 1},
            {"1234", "\\boxed{1,234}", 1},
            {"12", "\\boxed{\\$12}", 1},
            {"12", "\\boxed{12\\%}", 1},
            {"0.75", "\\boxed{\\frac{3}{4}}", 1},
            {"-0.75", "\\boxed{-\\dfrac{3}{4}}", 1},
            {"5", "the box \\boxed{4} is wrong; 5", 0},
            {"5", "7 \\boxed{5} 9", 1},
            /* traps */
            {"5", "\\boxed{x}", 0},
            {"5", "\\boxed{}", 0},
            {"5", "\\boxed{5x}", 0},
            {"5", "\\boxed{5\\sqrt{2}}", 0},
            {"5", "\\boxed{\\sqrt{5}}", 0},
            {"5", "\\boxed{5!}", 0},
            {"5", "\\boxed{5^2}", 0},
            {"2", "\\boxed{5^2}", 0},
            {"10", "\\boxed{10^{3}}", 0},
            {"3", "\\boxed{10^{3}}", 0},
            {"5", "\\boxed{5 million}", 0},
            {"5", "\\boxed{5 dozens}", 0},
            {"5", "\\boxed{5 \\pi}", 0},
            {"5", "\\boxed{4 or 5}", 0},
            {"5", "\\boxed{5, 6}", 0},
            {"6", "\\boxed{5,6}", 0},
            {"5", "\\boxed{(5, 6)}", 0},
            {"3", "\\boxed{{1} + {2}}", 0},
            {"5", "\\boxed{5", 1}, /* not a box: the last number */
            {"5", "\\boxed{3}\\boxed{5", 0}});
}

static void test_numeric_refuses_hedges(void **state) {
    (void)state;
    EXPECT("numeric", "",
           {{"5", "\\boxed{4} \\boxed{5}", 0},
            {"4", "\\boxed{4} \\boxed{5}", 0},
            {"5", "\\boxed{5} and again \\boxed{5.0}", 1},
            {"5", "\\boxed{x} \\boxed{5}", 0},
            {"5", "\\boxed{\\boxed{5}}", 0},
            {"5", "#### 4\n#### 5", 0},
            {"5", "#### 5\n#### 5", 1},
            {"5", "#### 4 or 5", 0},
            {"5", "#### 5 or 4", 0},
            {"5", "4-5", 0},
            {"5", "4/5", 0},
            {"5", "4:5", 0}});
}

static void test_numeric_reads_behind_hashes(void **state) {
    (void)state;
    EXPECT("numeric", "",
           {{"72", "48/2 = <<48/2=24>>24\n#### 72", 1},
            {"72", "#### 72\nand 80 more words", 1},
            {"1080", "#### $1,080.", 1},
            {"1080", "#### 1,080 dollars", 1},
            {"-3", "####-3", 1},
            {"10", "#### 10%", 1},
            {"72", "#### Solution\n70 + 2\n#### 72", 1}, /* a heading is no answer */
            {"72", "72\n#### 73", 0},
            {"73", "73 ####", 1}});
}

static void test_numeric_falls_back_to_the_last_number(void **state) {
    (void)state;
    EXPECT("numeric", "",
           {{"12", " 12", 1},
            {"12", "The answer is 12.", 1},
            {"12", "3 + 9 = 12", 1},
            {"9", "3 + 9 = 12", 0},
            {"12345.5", "about $12,345.50!", 1},
            {"-5", "it is -5", 1},
            {"-5",
             "it is \xe2\x88\x92"
             "5",
             1},
            {"-5", "$-5", 1},
            {"-5", "-$5", 1},
            {"5", "x-5", 1},
            {"5", "it is -5", 0},
            {".5", "0.50", 1},
            {"0.5", "a .5 share", 1},
            {"0.5", "1/2", 1},
            {"1/3", "2/6", 1},
            {"1/3", "0.3333333333333333", 0},
            {"1.5", "1 1/2", 0}, /* refused rather than read as a half */
            {"0.5", "1 1/2", 0},
            {"1000", "1e3", 1},
            {"3", "1e3", 0},
            {"1", "1e3", 0},
            {"0.001", "1E-3", 1},
            {"12", "12%", 1},
            {"0", "-0", 1},
            {"0", "0.000", 1},
            {"7", "007", 1},
            {"23", "1,23", 0},
            {"1", "1,23", 0},
            {"1234567", "1,234,567", 1},
            {"567", "1234,567", 0},
            {"3", "1.2.3", 0},
            {"2", "H2", 0},
            {"2", "x2 y_2 v1.2", 0},
            {"5", "2026-11-5", 0},
            {"5", "", 0},
            {"5", "five", 0},
            {"5", "1/0", 0},
            {"0", "0/5", 1},
            {"5", "5/1", 1}});
}

static void test_numeric_is_exact_where_doubles_are_not(void **state) {
    (void)state;
    EXPECT("numeric", "",
           {{"9007199254740993", "9007199254740992", 0},
            {"9007199254740993", "9007199254740993", 1},
            {"0.1", "0.10000000000000000555", 0},
            {"123456789012345678901234567890", "123456789012345678901234567890", 1},
            {"123456789012345678901234567890", "123456789012345678901234567891", 0},
            {"1e400", "2e400", 0},
            {"1e400", "10e399", 1},
            {"1e9999", "1e99999", 0},
            {"2/3", "0.66666666666666666667", 0},
            {"10/4", "2.5", 1},
            {"100/40", "25e-1", 1}});
}

static void test_numeric_task_without_a_number_is_a_bad_task(void **state) {
    (void)state;
    EXPECT("numeric", "",
           {{"", "5", -1},
            {"five", "5", -1},
            {"5 apples", "5", -1},
            {"1,23", "5", -1},
            {"1/0", "5", -1},
            {"4 or 5", "5", -1},
            {"1e10000", "5", -1},
            {"$1,000.", "1000", 1},
            {"50%", "50", 1},
            {"\\frac{1}{2}", "0.5", 1}});
}

static void test_number_digits_are_bounded(void **state) {
    (void)state;
    char digits[IFL_NUMBER_DIGITS_MAX + 8];
    memset(digits, '7', sizeof digits);
    ifl_number a;
    assert_true(ifl_number_parse(digits, IFL_NUMBER_DIGITS_MAX, &a));
    assert_true(ifl_number_equal(&a, &a));
    assert_false(ifl_number_parse(digits, IFL_NUMBER_DIGITS_MAX + 1, &a));
}

static void test_format_matches_a_pattern(void **state) {
    (void)state;
    EXPECT("format", "{\"regex\":\"\\\\A<think>.*?</think>\\\\s*\\\\d+\\\\z\"}",
           {{"", "<think>hm</think> 12", 1},
            {"", "hm 12", 0},
            {"", "<think>hm</think> 12 and more", 0},
            {"", "", 0}});
    EXPECT("format", "{\"regex\":\"(\"}", {{"", "x", -1}});
    EXPECT("format", "{\"regex\":\"\"}", {{"", "x", -1}});
    EXPECT("format", "{}", {{"", "x", -1}});
    EXPECT("format", "", {{"", "x", -1}});
    EXPECT("format", "{\"regex\":5}", {{"", "x", -1}});
}

static void test_format_backtracking_is_undecided_in_bounded_time(void **state) {
    (void)state;
    char text[64];
    memset(text, 'a', sizeof text);
    clock_t begin = clock();
    ifl_reward r = check_bytes("format", "", "{\"regex\":\"^(a+)+$\"}", text, sizeof text, 0);
    assert_int_equal(r.status, IFL_REWARD_OK);
    text[63] = 'b';
    r = check_bytes("format", "", "{\"regex\":\"^(a+)+$\"}", text, sizeof text, 0);
    assert_int_equal(r.status, IFL_REWARD_UNDECIDED);
    assert_true((double)(clock() - begin) / CLOCKS_PER_SEC < BIG_S);
}

static void test_unknown_checker_is_a_bad_task(void **state) {
    (void)state;
    ifl_reward r = check_bytes("exactly", "5", "", "5", 1, IFL_FINISH_EOS);
    assert_int_equal(r.status, IFL_REWARD_BAD_TASK);
    unsetenv(IFL_REWARD_TEST_FAULTS);
    r = check_bytes("test_fault", "ok", "", "5", 1, IFL_FINISH_EOS);
    assert_int_equal(r.status, IFL_REWARD_BAD_TASK);
}

static void test_results_name_checker_and_version(void **state) {
    (void)state;
    const ifl_checker *all[32];
    int n = ifl_checker_list(all, 32);
    assert_true(n >= 4);
    for (int i = 0; i < n; i++) {
        assert_ptr_equal(ifl_checker_find(all[i]->name), all[i]);
        assert_true(all[i]->version[0] && all[i]->help[0]);
    }
    assert_string_equal(check_bytes("exact", "5", "", "5", 1, IFL_FINISH_EOS).checker, "exact/1");
}

/* NUL bytes, invalid UTF-8 and hostile megabytes: an answer comes, in time, and no sanitizer
 * speaks. */
static void test_hostile_bytes_are_handled_in_bounded_time(void **state) {
    (void)state;
    static const char *const seeds[] = {
        "\\boxed{", "\\boxed{5}", "####",       "#### 5\n", "1,",       "1,234",     "-",
        "-5",       "\\frac{1",   "\\frac{1}{", "\\text{",  "{",        "}",         "5",
        "5.",       "1/",         "5e",         "^5",       "\xff\xfe", "a\xe2\x88", "\xe2\x88\x92",
        "$",        "5 ",         "x5",         "\\"};
    char *text = malloc(BIG);
    assert_non_null(text);
    for (size_t i = 0; i <= sizeof seeds / sizeof *seeds; i++) {
        if (i == sizeof seeds / sizeof *seeds) {
            memset(text, 0, BIG);
        } else {
            size_t n = strlen(seeds[i]);
            for (size_t at = 0; at < BIG; at++)
                text[at] = seeds[i][at % n];
        }
        static const char *const checkers[] = {"exact", "numeric", "format", "gsm8k", "math"};
        for (int c = 0; c < 5; c++) {
            const char *meta = c == 2 ? "{\"regex\":\"5+\\\\.$\"}" : "{\"after\":\"#\"}";
            clock_t begin = clock();
            ifl_reward r = check_bytes(checkers[c], "5", meta, text, BIG, IFL_FINISH_LENGTH);
            assert_true(ifl_reward_is_verdict(r.status) || r.status == IFL_REWARD_UNDECIDED);
            double took = (double)(clock() - begin) / CLOCKS_PER_SEC;
            if (took > BIG_S)
                fail_msg("%s on 1 MiB of '%s' took %.2f s of CPU time", checkers[c],
                         i < sizeof seeds / sizeof *seeds ? seeds[i] : "NUL", took);
        }
    }
    free(text);
    ifl_reward nul = check_bytes("exact", "5", "", "5\0", 2, IFL_FINISH_EOS);
    assert_true(nul.reward == 0.0f);
    nul = check_bytes("numeric", "5", "", "x\0 5\xff", 5, IFL_FINISH_EOS);
    assert_true(nul.reward == 1.0f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exact_compares_trimmed_bytes),
        cmocka_unit_test(test_exact_reads_behind_the_last_marker),
        cmocka_unit_test(test_exact_end_refuses_cut_answers),
        cmocka_unit_test(test_numeric_reads_boxes),
        cmocka_unit_test(test_numeric_refuses_hedges),
        cmocka_unit_test(test_numeric_reads_behind_hashes),
        cmocka_unit_test(test_numeric_falls_back_to_the_last_number),
        cmocka_unit_test(test_numeric_is_exact_where_doubles_are_not),
        cmocka_unit_test(test_numeric_task_without_a_number_is_a_bad_task),
        cmocka_unit_test(test_number_digits_are_bounded),
        cmocka_unit_test(test_format_matches_a_pattern),
        cmocka_unit_test(test_format_backtracking_is_undecided_in_bounded_time),
        cmocka_unit_test(test_unknown_checker_is_a_bad_task),
        cmocka_unit_test(test_results_name_checker_and_version),
        cmocka_unit_test(test_hostile_bytes_are_handled_in_bounded_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
