/* The checkers that read texts: gsm8k, exact's options, regex, format, choice. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/reward_cases.h"

static void test_gsm8k_reads_behind_the_last_hashes(void **state) {
    (void)state;
    EXPECT("gsm8k", "",
           {{"72", "48/2 = <<48/2=24>>24\n#### 72", 1},
            {"a = 5\n#### 1,234", "#### 1234", 1},
            {"#### 72", "#### 72\nand 80 more words", 1},
            {"72", "#### 71\nno:\n#### 72", 1},
            {"71", "#### 71\nno:\n#### 72", 0},
            {"72", "####72", 1},
            {"72", "#### 72.0", 1},
            {"1080", "#### $1,080.", 1},
            {"1080",
             "#### \xe2\x82\xac"
             "1080",
             1},
            {"-3", "#### -3", 1},
            {"-3", "#### 3", 0},
            {"3", "#### -3", 0},
            {"-3",
             "#### \xe2\x88\x92"
             "3",
             1},
            {"0.5", "#### 1/2", 1},
            {"0.1", "#### 0.10000000000000001", 0},
            {"9007199254740993", "#### 9007199254740992", 0},
            {"72", "#### 72 clips", 1},
            {"72", "#### **72**", 1},
            {"72", "#### 72\n#### Done", 1}, /* a heading is no answer */
            /* traps */
            {"72", "72", 0},
            {"72", "\\boxed{72}", 0},
            {"72", "#### 72 or 73", 0},
            {"72", "#### 71, 72", 0},
            {"72", "#### 70+2", 0},
            {"72", "#### 72 thousand", 0},
            {"72", "#### 1 2 3 72", 0},
            {"72", "####\n72", 0},
            {"72", "### 72", 0},
            {"72", "#### 7,2", 0},
            {"72", "", 0},
            {"72 apples", "#### 72", -1},
            {"####", "#### 72", -1},
            {"", "", -1}});
    EXPECT("gsm8k", "{\"last_number\":true}",
           {{"72", "so it is 72.", 1}, {"72", "#### 71 and 72", 0}, {"72", "70\n#### 72\n80", 1}});
    EXPECT("gsm8k", "{\"last_number\":1}", {{"72", "#### 72", -1}});
    VERDICTS("gsm8k", {{"", "72", "72", IFL_REWARD_NO_ANSWER},
                       {"", "72", "#### none", IFL_REWARD_NO_ANSWER},
                       {"", "72", "#### 71", IFL_REWARD_WRONG},
                       {"", "72", "#### 71 or 72", IFL_REWARD_WRONG},
                       {"{\"last_number\":true}", "72", "none", IFL_REWARD_NO_ANSWER}});
}

static void test_numeric_says_why_it_pays_nothing(void **state) {
    (void)state;
    VERDICTS("numeric", {{"", "5", "five", IFL_REWARD_NO_ANSWER},
                         {"", "5", "", IFL_REWARD_NO_ANSWER},
                         {"", "5", "\\boxed{4} \\boxed{5}", IFL_REWARD_NO_ANSWER},
                         {"", "5", "#### 4\n#### 5", IFL_REWARD_NO_ANSWER},
                         {"", "5", "\\boxed{4}", IFL_REWARD_WRONG},
                         {"", "5", "\\boxed{5x}", IFL_REWARD_WRONG},
                         {"", "5", "6", IFL_REWARD_WRONG}});
}

static void test_exact_folds_case_space_and_punctuation(void **state) {
    (void)state;
    VERDICTS("exact",
             {{"", "5", "", IFL_REWARD_NO_ANSWER},
              {"{\"after\":\"#\"}", "5", "5", IFL_REWARD_NO_ANSWER},
              {"{\"ignore_case\":true}", "Paris", "pARIS", IFL_REWARD_OK},
              {"{\"ignore_case\":true}", "STRASSE",
               "stra\xc3\x9f"
               "e",
               IFL_REWARD_OK},
              {"{\"ignore_case\":true}", "\xce\xa3\xce\xb1\xcf\x82", "\xcf\x83\xce\x91\xce\xa3",
               IFL_REWARD_OK},
              {"{\"ignore_case\":true}", "Paris", "Paris.", IFL_REWARD_WRONG},
              {"{\"ignore_case\":true}", "caf\xc3\xa9", "cafe\xcc\x81", IFL_REWARD_OK},
              {"", "caf\xc3\xa9", "cafe\xcc\x81", IFL_REWARD_WRONG},
              {"{\"ignore_case\":true}", "caf\xc3\xa9", "cafe", IFL_REWARD_WRONG},
              {"{\"ignore_space\":true}", "a b", " a \n\t b\xc2\xa0", IFL_REWARD_OK},
              {"{\"ignore_space\":true}", "a b", "ab", IFL_REWARD_WRONG},
              {"{\"ignore_punctuation\":true}", "New York", "\"New York!\"", IFL_REWARD_OK},
              {"{\"ignore_punctuation\":true}", "well known", "wellknown", IFL_REWARD_WRONG},
              {"{\"ignore_punctuation\":true}", "5", "-5", IFL_REWARD_WRONG},
              {"{\"ignore_punctuation\":true}", "35", "3.5", IFL_REWARD_WRONG},
              {"{\"ignore_punctuation\":true}", "5", "5%", IFL_REWARD_WRONG},
              {"{\"ignore_punctuation\":true}", "5", "5.", IFL_REWARD_OK},
              {"{\"ignore_case\":true}", "52", "5\xc2\xb2", IFL_REWARD_WRONG},
              {"{\"ignore_punctuation\":true}", "...", "...", IFL_REWARD_BAD_TASK},
              {"{\"ignore_case\":true}", "\xff", "\xff", IFL_REWARD_BAD_TASK},
              {"{\"ignore_case\":true}", "x", "\xff", IFL_REWARD_WRONG},
              {"{\"ignore_case\":3}", "x", "x", IFL_REWARD_BAD_TASK},
              {"{\"ignore_case\":true,\"ignore_space\":true,\"ignore_punctuation\":true}",
               "Hello, World", "  hello\nworld!!", IFL_REWARD_OK}});
    const char *all = "{\"ignore_case\":true,\"ignore_space\":true,\"ignore_punctuation\":true}";
    static const char *const seeds[] = {"a ",           ".",    "\xcc\x81", "\xcc\x81\xcc\xa7",
                                        "\xef\xb7\xba", "\xff", " "};
    for (size_t i = 0; i < sizeof seeds / sizeof *seeds; i++)
        expect_bounded("exact", "5", all, seeds[i]);
    expect_bounded("exact", "5", all, NULL);
}

static void test_regex_matches_whole_or_part(void **state) {
    (void)state;
    VERDICTS("regex", {{"{\"regex\":\"b+\"}", "", "abbc", IFL_REWARD_OK},
                       {"{\"regex\":\"b+\"}", "", "ac", IFL_REWARD_NO_ANSWER},
                       {"{\"regex\":\"b+\",\"mode\":\"full\"}", "", "abbc", IFL_REWARD_NO_ANSWER},
                       {"{\"regex\":\"b+\",\"mode\":\"full\"}", "", "bb", IFL_REWARD_OK},
                       {"{\"regex\":\"a|ab\",\"mode\":\"full\"}", "", "ab", IFL_REWARD_OK},
                       {"{\"regex\":\"b+\",\"mode\":\"full\"}", "", "bb\n", IFL_REWARD_NO_ANSWER},
                       {"{\"regex\":\"b\",\"mode\":\"part\"}", "", "b", IFL_REWARD_BAD_TASK},
                       {"{\"regex\":\"(\"}", "", "b", IFL_REWARD_BAD_TASK},
                       {"{\"regex\":\"\"}", "", "b", IFL_REWARD_BAD_TASK},
                       {"{\"regex\":\"\\\\C\"}", "", "b", IFL_REWARD_BAD_TASK},
                       {"{}", "", "b", IFL_REWARD_BAD_TASK},
                       {"", "", "b", IFL_REWARD_BAD_TASK}});
}

static void test_regex_compares_what_a_group_captured(void **state) {
    (void)state;
    VERDICTS(
        "regex",
        {{"{\"regex\":\"= *(\\\\w+)\",\"group\":1}", "7", "x = 7", IFL_REWARD_OK},
         {"{\"regex\":\"= *(\\\\w+)\",\"group\":1}", "7", "x = 8", IFL_REWARD_WRONG},
         {"{\"regex\":\"= *(\\\\w+)\",\"group\":1}", "7", "x = 8, y = 7", IFL_REWARD_OK},
         {"{\"regex\":\"= *(\\\\w+)\",\"group\":1,\"which\":\"first\"}", "7", "x = 8, y = 7",
          IFL_REWARD_WRONG},
         {"{\"regex\":\"= *(\\\\w+)\",\"group\":1,\"which\":\"same\"}", "7", "x = 8, y = 7",
          IFL_REWARD_NO_ANSWER},
         {"{\"regex\":\"= *(\\\\w+)\",\"group\":1,\"which\":\"same\"}", "7", "x = 7, y = 7",
          IFL_REWARD_OK},
         {"{\"regex\":\"= *(?<v>\\\\w+)\",\"group\":\"v\"}", "7", "x = 7", IFL_REWARD_OK},
         {"{\"regex\":\"= *(?<v>\\\\w+)\",\"group\":\"w\"}", "7", "x = 7", IFL_REWARD_BAD_TASK},
         {"{\"regex\":\"= *(\\\\w+)\",\"group\":2}", "7", "x = 7", IFL_REWARD_BAD_TASK},
         {"{\"regex\":\"= *(\\\\w+)\",\"group\":99999999999}", "7", "x = 7", IFL_REWARD_BAD_TASK},
         {"{\"regex\":\"= *(\\\\w+)\",\"group\":-1}", "7", "x = 7", IFL_REWARD_BAD_TASK},
         {"{\"regex\":\"= *(\\\\w*)\",\"group\":1}", "", "x = ", IFL_REWARD_BAD_TASK},
         {"{\"regex\":\"= *(.+)\",\"group\":1,\"number\":true}", "7.50", "x = 15/2", IFL_REWARD_OK},
         {"{\"regex\":\"= *(.+)\",\"group\":1,\"number\":true}", "7", "x = 7 or 8",
          IFL_REWARD_WRONG},
         {"{\"regex\":\"= *(.+)\",\"group\":1,\"number\":true}", "x", "x = 7", IFL_REWARD_BAD_TASK},
         {"{\"regex\":\"(a)|b\",\"group\":1}", "a", "b", IFL_REWARD_NO_ANSWER},
         {"{\"regex\":\"x*()\",\"group\":1}", "a", "bbb", IFL_REWARD_WRONG},
         {"{\"regex\":\"(?=ab\\\\K)\",\"group\":0}", "a", "ab", IFL_REWARD_BAD_TASK}});
    static const char *const seeds[] = {"a", "= 7 ", "=", "\xff= 7", "\xcc\x81"};
    for (size_t i = 0; i < sizeof seeds / sizeof *seeds; i++) {
        expect_bounded("regex", "7", "{\"regex\":\"= *(\\\\w+)\",\"group\":1}", seeds[i]);
        expect_bounded("regex", "7", "{\"regex\":\"x*()\",\"group\":1}", seeds[i]);
        expect_bounded("regex", "7", "{\"regex\":\"(.*)\",\"group\":1,\"mode\":\"full\"}",
                       seeds[i]);
    }
    expect_bounded("regex", "7", "{\"regex\":\"= *(\\\\w+)\",\"group\":1}", NULL);
    char text[64];
    memset(text, 'a', sizeof text);
    text[63] = 'b';
    ifl_reward r = check_bytes("regex", "7", "{\"regex\":\"^(a+)+$\",\"group\":1}", text,
                               sizeof text, IFL_FINISH_EOS);
    assert_int_equal(r.status, IFL_REWARD_UNDECIDED);
}

static void test_format_wants_one_think_block(void **state) {
    (void)state;
    VERDICTS(
        "format",
        {{"{\"think\":true}", "", "<think>hm</think>12", IFL_REWARD_OK},
         {"{\"think\":true}", "", "\n<think>\nhm\n</think>\n12\n", IFL_REWARD_OK},
         {"{\"think\":true}", "", "<think></think>12", IFL_REWARD_OK},
         {"{\"think\":true}", "", "12", IFL_REWARD_BAD_FORMAT},
         {"{\"think\":true}", "", "", IFL_REWARD_BAD_FORMAT},
         {"{\"think\":true}", "", "12<think>hm</think>12", IFL_REWARD_BAD_FORMAT},
         {"{\"think\":true}", "", "<think>hm</think> \n", IFL_REWARD_BAD_FORMAT},
         {"{\"think\":true}", "", "<think>hm 12", IFL_REWARD_BAD_FORMAT},
         {"{\"think\":true}", "", "</think><think>12", IFL_REWARD_BAD_FORMAT},
         {"{\"think\":true}", "", "<think>a</think>1<think>b</think>2", IFL_REWARD_BAD_FORMAT},
         {"{\"think\":true}", "", "<think>a<think>b</think>2", IFL_REWARD_BAD_FORMAT},
         {"{\"think\":true}", "", "<think>a</think>b</think>2", IFL_REWARD_BAD_FORMAT},
         {"{\"think\":\"opened\"}", "", "hm</think>12", IFL_REWARD_OK},
         {"{\"think\":\"opened\"}", "", "<think>hm</think>12", IFL_REWARD_BAD_FORMAT},
         {"{\"think\":\"opened\"}", "", "12", IFL_REWARD_BAD_FORMAT},
         {"{\"think\":true,\"regex\":\"\\\\d\\\\z\"}", "", "<think>hm</think>12", IFL_REWARD_OK},
         {"{\"think\":true,\"regex\":\"\\\\d\\\\z\"}", "", "<think>1</think>a",
          IFL_REWARD_BAD_FORMAT},
         {"{\"think\":\"closed\"}", "", "12", IFL_REWARD_BAD_TASK},
         {"{\"think\":false}", "", "12", IFL_REWARD_BAD_TASK}});
    expect_bounded("format", "", "{\"think\":true}", "<think>");
    expect_bounded("format", "", "{\"think\":true}", "<think></think>");
    expect_bounded("format", "", "{\"think\":true}", NULL);
}

#define CITIES "{\"options\":[\"Rome\",\"Paris\",\"New York\",\"none of these\"]}"

static void test_choice_reads_letters_and_texts(void **state) {
    (void)state;
    EXPECT("choice", CITIES,
           {{"B", "B", 1},
            {"b", "B", 1},
            {"Paris", "B", 1},
            {"B", "b", 1},
            {"B", "(B)", 1},
            {"B", "[b].", 1},
            {"B", "B.", 1},
            {"B", "**B**", 1},
            {"B", "B) Paris", 1},
            {"B", "B. paris!", 1},
            {"B", "Paris", 1},
            {"C", "new  york.", 1},
            {"B", "It lies in France.\nB", 1},
            {"B", "The answer is B.", 1},
            {"B", "the answer is (b)", 1},
            {"B", "Answer: B", 1},
            {"B", "Final answer: **B**", 1},
            {"B", "The answer is: B because it lies in France", 1},
            {"B", "The answer is Paris.", 1},
            {"B", "the answer is option B", 1},
            {"B", "so \\boxed{B}", 1},
            {"B", "so \\boxed{\\text{(B)}}.", 1},
            {"B", "so $\\boxed{\\text{Paris}}$", 1},
            {"B", "A is wrong, C too: \\boxed{B}", 1},
            {"B", "\\boxed{B} as I said: \\boxed{B}", 1},
            {"B", "<think>the answer is A</think>The answer is B", 1},
            {"A", "The answer is A", 1},
            /* wrong */
            {"A", "B", 0},
            {"A", "\\boxed{B}", 0},
            {"A", "B) Rome", 0},
            {"B", "B) Rome", 0},
            {"A", "The answer is B. Not A.", 0},
            /* traps */
            {"B", "", 0},
            {"B", "A, B", 0},
            {"B", "A B C D", 0},
            {"B", "ABCD", 0},
            {"B", "A or B", 0},
            {"A", "A or B", 0},
            {"B", "A/B", 0},
            {"B", "(A) (B)", 0},
            {"B", "A and B", 0},
            {"B", "\\boxed{A} \\boxed{B}", 0},
            {"B", "\\boxed{A,B}", 0},
            {"B", "\\boxed{}", 0},
            {"B", "\\boxed{B^2}", 0},
            {"B", "The answer is A. The answer is B.", 0},
            {"A", "The answer is a city", 0},
            {"A", "A city in France", 0},
            {"A", "I'd say so", 0},
            {"B", "B2", 0},
            {"B", "E", 0},
            {"B", "Rome Paris New York", 0},
            {"B", "A\nB\nC\nD, all are right", 0},
            /* tasks at fault */
            {"", "B", -1},
            {"E", "B", -1},
            {"London", "B", -1},
            {"AB", "B", -1}});
    EXPECT("choice", "{\"options\":[\"Rome\",\"rome.\"]}", {{"A", "A", -1}});
    EXPECT("choice", "{\"options\":[\"Rome\"]}", {{"A", "A", -1}});
    EXPECT("choice", "{\"options\":[\"Rome\",1]}", {{"A", "A", -1}});
    EXPECT("choice", "{\"options\":\"Rome\"}", {{"A", "A", -1}});
    EXPECT("choice", "", {{"A", "A", -1}});
    VERDICTS("choice", {{CITIES, "B", "who knows", IFL_REWARD_NO_ANSWER},
                        {CITIES, "B", "A or B", IFL_REWARD_NO_ANSWER},
                        {CITIES, "B", "C", IFL_REWARD_WRONG}});
    static const char *const seeds[] = {"answer is B. ",
                                        "answer is B\n",
                                        "\\boxed{B}",
                                        "\\boxed{",
                                        "answer ",
                                        "B ",
                                        "B, ",
                                        "(",
                                        "*",
                                        "answer:",
                                        "\n",
                                        "\\text{",
                                        "Paris "};
    for (size_t i = 0; i < sizeof seeds / sizeof *seeds; i++)
        expect_bounded("choice", "B", CITIES, seeds[i]);
    expect_bounded("choice", "B", CITIES, NULL);
    assert_true(check_bytes("choice", "B", CITIES, "B\0", 2, IFL_FINISH_EOS).reward == 0.0f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gsm8k_reads_behind_the_last_hashes),
        cmocka_unit_test(test_numeric_says_why_it_pays_nothing),
        cmocka_unit_test(test_exact_folds_case_space_and_punctuation),
        cmocka_unit_test(test_regex_matches_whole_or_part),
        cmocka_unit_test(test_regex_compares_what_a_group_captured),
        cmocka_unit_test(test_format_wants_one_think_block),
        cmocka_unit_test(test_choice_reads_letters_and_texts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
