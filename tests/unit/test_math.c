#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "rewards/math/math.h"
#include "rewards/message.h"
#include "rewards/worker.h"

#define PAIRS_PATH IFL_GOLDEN_DIR "/math_pairs.txt"
#define GSM8K_PATH IFL_GOLDEN_DIR "/../../data/gsm8k/train.jsonl"
#define N_PAIRS_MIN 300

static const char *const verdict_names[] = {"equal",     "different", "no answer",
                                            "ambiguous", "undecided", "bad task"};

static ifl_slice slice(const char *text) {
    return (ifl_slice){text, strlen(text)};
}

/* --- The table */

typedef struct pair {
    const char *kind, *gold, *answer; /* kind: the table's first column */
    int line;
} pair;

typedef struct table {
    char *text;
    pair *pairs;
    int n;
} table;

static void table_load(table *out) {
    FILE *f = fopen(PAIRS_PATH, "rb");
    assert_non_null(f);
    assert_int_equal(fseek(f, 0, SEEK_END), 0);
    size_t n = (size_t)ftell(f);
    rewind(f);
    out->text = calloc(1, n + 1);
    out->pairs = calloc(n, sizeof *out->pairs);
    assert_true(out->text && out->pairs && fread(out->text, 1, n, f) == n);
    fclose(f);
    out->n = 0;
    int number = 0;
    for (char *line = out->text, *next; line && *line; line = next) {
        next = strchr(line, '\n');
        if (next) *next++ = 0;
        number++;
        char *gold = strstr(line, " | "), *answer = gold ? strstr(gold + 3, " | ") : NULL;
        if (*line == '#' || !*line) continue;
        if (!answer) fail_msg("%s:%d: wanted 'verdict | gold | answer'", PAIRS_PATH, number);
        char *reason = strstr(answer + 3, " | ");
        if (reason) *reason = 0;
        *gold = *answer = 0;
        out->pairs[out->n++] = (pair){line, gold + 3, answer + 3, number};
    }
}

static void table_clear(table *t) {
    free(t->text);
    free(t->pairs);
}

static ifl_math_verdict verdict_of(const char *kind) {
    if (*kind == '=') return IFL_MATH_EQUAL;
    if (*kind == '!') return IFL_MATH_DIFFERENT;
    if (*kind == '?') return IFL_MATH_UNDECIDED;
    if (strcmp(kind, "bad") == 0) return IFL_MATH_BAD_TASK;
    assert_string_equal(kind, "no");
    return IFL_MATH_NO_ANSWER;
}

/* Wrong ones are printed, all of them. */
static int pair_fails(const pair *p, bool reversed) {
    const ifl_math_options options = {0};
    ifl_math_result r;
    const char *gold = reversed ? p->answer : p->gold, *answer = reversed ? p->gold : p->answer;
    ifl_math_compare(slice(gold), slice(answer), &options, &r);
    if (r.verdict == verdict_of(p->kind)) return 0;
    print_error("line %d: gold '%s', answer '%s': got %s (%s), wanted %s\n", p->line, gold, answer,
                verdict_names[r.verdict], r.reason, verdict_names[verdict_of(p->kind)]);
    return 1;
}

static int table_fails(const table *t) {
    int n_failed = 0;
    for (int i = 0; i < t->n; i++) {
        n_failed += pair_fails(&t->pairs[i], false);
        if (strcmp(t->pairs[i].kind, "=") == 0 || strcmp(t->pairs[i].kind, "!") == 0)
            n_failed += pair_fails(&t->pairs[i], true);
    }
    return n_failed;
}

static void test_pairs_have_their_verdicts_in_both_directions(void **state) {
    (void)state;
    table t;
    table_load(&t);
    assert_true(t.n >= N_PAIRS_MIN);
    int n_failed = table_fails(&t);
    if (n_failed) fail_msg("%d of the table's pairs", n_failed);
    table_clear(&t);
}

static void *table_in_thread(void *t) {
    intptr_t n_failed = table_fails(t);
    ifl_math_thread_end();
    return (void *)n_failed;
}

static void test_threads_do_not_disturb_each_other(void **state) {
    (void)state;
    table t;
    pthread_t threads[4];
    table_load(&t);
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, table_in_thread, &t), 0);
    for (int i = 0; i < 4; i++) {
        void *n_failed = NULL;
        assert_int_equal(pthread_join(threads[i], &n_failed), 0);
        assert_null(n_failed);
    }
    table_clear(&t);
}

/* --- Completions */

typedef struct completion_case {
    const char *gold, *completion;
    ifl_math_verdict verdict;
} completion_case;

static void expect_cases(const ifl_math_options *options, const completion_case *cases, size_t n) {
    for (size_t i = 0; i < n; i++) {
        ifl_math_result r;
        ifl_math_check(slice(cases[i].gold), slice(cases[i].completion), options, &r);
        if (r.verdict != cases[i].verdict)
            fail_msg("gold '%s', completion '%s': got %s (%s), wanted %s", cases[i].gold,
                     cases[i].completion, verdict_names[r.verdict], r.reason,
                     verdict_names[cases[i].verdict]);
    }
}

#define EXPECT(options, ...)                                                                       \
    do {                                                                                           \
        static const completion_case cases[] = __VA_ARGS__;                                        \
        expect_cases(options, cases, sizeof cases / sizeof *cases);                                \
    } while (0)

static void test_the_last_box_after_the_thinking_counts(void **state) {
    (void)state;
    EXPECT(&(ifl_math_options){0},
           {{"5", "so \\boxed{5}.", IFL_MATH_EQUAL},
            {"5", "so $\\boxed{ 5 }$", IFL_MATH_EQUAL},
            {"5", "so \\boxed {5}", IFL_MATH_EQUAL},
            {"5", "\\fbox{5}", IFL_MATH_EQUAL},
            {"5", "\\boxed{\\boxed{5}}", IFL_MATH_EQUAL},
            {"\\frac{1}{2}", "\\boxed{\\frac{1}{2}}", IFL_MATH_EQUAL},
            {"\\{1,2\\}", "\\boxed{\\{1,2\\}}", IFL_MATH_EQUAL},
            {"5", "<think>\\boxed{4}</think> \\boxed{5}", IFL_MATH_EQUAL},
            {"4", "<think>\\boxed{4}</think> \\boxed{5}", IFL_MATH_DIFFERENT},
            {"4", "<think>\\boxed{4}</think> done", IFL_MATH_NO_ANSWER},
            {"4", "<think>\\boxed{4}", IFL_MATH_NO_ANSWER},
            {"4", "\\boxed{4}</think> none", IFL_MATH_NO_ANSWER},
            {"4", "\\boxed{4} <think> hm", IFL_MATH_NO_ANSWER},
            {"4", "<thinking>\\boxed{4}</thinking>", IFL_MATH_NO_ANSWER},
            {"4", "It is \\boxed{3}. No, wait. It is \\boxed{4}.", IFL_MATH_EQUAL},
            {"3", "It is \\boxed{3}. No, wait. It is \\boxed{4}.", IFL_MATH_DIFFERENT},
            {"5", "\\boxed{}", IFL_MATH_NO_ANSWER},
            {"5", "\\boxed{ }", IFL_MATH_NO_ANSWER},
            {"5", "\\boxed{5", IFL_MATH_NO_ANSWER},
            {"5", "It is \\boxed{5}. So \\boxed{5", IFL_MATH_NO_ANSWER},
            {"5", "the answer is 5", IFL_MATH_NO_ANSWER},
            {"5", "", IFL_MATH_NO_ANSWER},
            {"5", "\\boxed{5=5}", IFL_MATH_DIFFERENT},
            {"5", "\\boxed{5} \\text{boxed}", IFL_MATH_EQUAL}});
}

static void test_boxes_made_to_deceive(void **state) {
    (void)state;
    EXPECT(&(ifl_math_options){0},
           {{"6", "\\boxed{6</think>7}", IFL_MATH_NO_ANSWER},
            {"6", "\\boxed{7} % \\boxed{6}", IFL_MATH_AMBIGUOUS},
            {"6", "\\boxed{7}\\phantom{\\boxed{6}}", IFL_MATH_AMBIGUOUS},
            {"6", "\\boxed{7\\boxed{6}}", IFL_MATH_DIFFERENT},
            {"6", "\\boxed{\\phantom{7}6}", IFL_MATH_DIFFERENT},
            {"6", "\\boxed{\\color{white}{7}6}", IFL_MATH_DIFFERENT},
            {"6", "\\boxed{7}\n\n\\boxed{6}", IFL_MATH_AMBIGUOUS},
            {"6", "\\boxed{1}\\boxed{2}\\boxed{6}", IFL_MATH_AMBIGUOUS},
            {"6", "It is \\boxed{6}. It is \\boxed{7}.", IFL_MATH_DIFFERENT},
            {"6,7", "\\boxed{6} \\boxed{7} \\boxed{8}", IFL_MATH_AMBIGUOUS},
            {"6", "\\boxed{6 \\text{ or } 7}", IFL_MATH_DIFFERENT},
            {"6", "\\boxed{x}=\\boxed{6}", IFL_MATH_AMBIGUOUS},
            {"6", "\\boxed{the reference answer}", IFL_MATH_DIFFERENT},
            {"6", "\\boxed{Therefore $x > 6$ is so}", IFL_MATH_DIFFERENT},
            {"6", "boxed{6}", IFL_MATH_NO_ANSWER}});
}

static void test_near_boxes_must_agree_or_be_the_list(void **state) {
    (void)state;
    EXPECT(&(ifl_math_options){0}, {{"3", "\\boxed{3}\\boxed{4}", IFL_MATH_AMBIGUOUS},
                                    {"4", "\\boxed{3}\\boxed{4}", IFL_MATH_AMBIGUOUS},
                                    {"34", "\\boxed{3}\\boxed{4}", IFL_MATH_AMBIGUOUS},
                                    {"4", "\\boxed{3} or \\boxed{4}.", IFL_MATH_AMBIGUOUS},
                                    {"4", "\\boxed{3}\n\\boxed{4}", IFL_MATH_AMBIGUOUS},
                                    {"0.5", "\\boxed{\\frac12} = \\boxed{0.5}", IFL_MATH_EQUAL},
                                    {"3,4", "\\boxed{3} and \\boxed{4}", IFL_MATH_EQUAL},
                                    {"3,5", "\\boxed{3} and \\boxed{4}", IFL_MATH_AMBIGUOUS},
                                    {"1/0", "\\boxed{3} and \\boxed{4}", IFL_MATH_BAD_TASK}});
}

static void test_boxes_option(void **state) {
    (void)state;
    EXPECT(&(ifl_math_options){.boxes = IFL_MATH_BOX_FIRST},
           {{"3", "It is \\boxed{3}. So it is \\boxed{4}.", IFL_MATH_EQUAL},
            {"4", "It is \\boxed{3}. So it is \\boxed{4}.", IFL_MATH_DIFFERENT}});
    EXPECT(&(ifl_math_options){.boxes = IFL_MATH_BOX_STRICT},
           {{"4", "It is \\boxed{3}. So it is \\boxed{4}.", IFL_MATH_AMBIGUOUS},
            {"4", "It is \\boxed{4}. So it is \\boxed{4}.", IFL_MATH_EQUAL}});
}

static void test_require_option(void **state) {
    (void)state;
    static const completion_case anchored[] = {
        {"72", "70 + 2\n#### 72", IFL_MATH_EQUAL},
        {"72", "#### 71\n#### 72\n", IFL_MATH_EQUAL},
        {"1000", "#### $1,000", IFL_MATH_EQUAL},
        {"B", "Answer: (B)", IFL_MATH_EQUAL},
        {"5", "**Answer:** $5$", IFL_MATH_EQUAL},
        {"5", "The final answer is: 5.", IFL_MATH_EQUAL},
        {"41", "So the final answer is $41$. I hope it is correct.", IFL_MATH_EQUAL},
        {"(2,9]", "Final Answer: The final answer is \\((2,9]\\). Done.", IFL_MATH_EQUAL},
        {"7", "Answer: 7. That was easy.", IFL_MATH_EQUAL},
        {"3/8", "**Answer:** **3/8**.", IFL_MATH_EQUAL},
        {"7", "Answer:\n$$\n7\n$$", IFL_MATH_EQUAL},
        {"8", "Answer: 7. Or 8.", IFL_MATH_DIFFERENT},
        {"8", "The final answer is $7$. Or $8$.", IFL_MATH_DIFFERENT},
        {"7", "The final answer is $7$ or $8$.", IFL_MATH_DIFFERENT},
        {"7", "The final answer is 7. No, the final answer is 8", IFL_MATH_DIFFERENT},
        {"7", "the answer is 7", IFL_MATH_NO_ANSWER},
        {"72", "#### 73", IFL_MATH_DIFFERENT},
        {"72", "#### 72 or 73", IFL_MATH_DIFFERENT},
        {"72", "#### 72\n\\boxed{73}", IFL_MATH_DIFFERENT},
        {"72", "####", IFL_MATH_NO_ANSWER},
        {"72", "it is 72", IFL_MATH_NO_ANSWER},
        {"72", "72", IFL_MATH_EQUAL},
        {"1/2", "<think>0</think> $\\frac12$", IFL_MATH_EQUAL},
        {"72", "70\n72", IFL_MATH_NO_ANSWER},
        {"72", "73", IFL_MATH_NO_ANSWER}};
    size_t n = sizeof anchored / sizeof *anchored;
    expect_cases(&(ifl_math_options){0}, anchored, n);
    EXPECT(&(ifl_math_options){.require = IFL_MATH_REQUIRE_BOX},
           {{"72", "#### 72", IFL_MATH_NO_ANSWER}, {"72", "\\boxed{72}", IFL_MATH_EQUAL}});
    EXPECT(&(ifl_math_options){.require = IFL_MATH_REQUIRE_NONE},
           {{"72", "#### 72", IFL_MATH_EQUAL},
            {"72", "The answer is 72.", IFL_MATH_EQUAL},
            {"x+1", "we get $x+1$ at last", IFL_MATH_EQUAL},
            {"72", "72", IFL_MATH_EQUAL},
            {"72", "", IFL_MATH_NO_ANSWER}});
}

static void test_prose_states_one_answer_where_none_is_required(void **state) {
    (void)state;
    EXPECT(&(ifl_math_options){.require = IFL_MATH_REQUIRE_NONE},
           {{"31", "There are 31 ways in all. I hope it is correct.", IFL_MATH_EQUAL},
            {"31", "There are 31 ways in all.<|im_end|>", IFL_MATH_EQUAL},
            {"\\frac{2}{7}", "Bob wins with probability 2/7.", IFL_MATH_EQUAL},
            {"60\\%", "So it has grown by 60%.", IFL_MATH_EQUAL},
            {"45", "She pays $45 for it.", IFL_MATH_EQUAL},
            {"x>2", "We see that $x > 2$ is what remains.", IFL_MATH_EQUAL},
            {"14", "The least $n$ is 14.", IFL_MATH_EQUAL},
            {"9", "Answer \\[ 9 \\]", IFL_MATH_EQUAL},
            {"D", "I take it's (D).", IFL_MATH_EQUAL},
            {"\\text{Evelyn}", "The answer is Evelyn.", IFL_MATH_EQUAL},
            {"14", "First I had 14. It is 15.", IFL_MATH_DIFFERENT},
            {"14", "It is 14 or 15.", IFL_MATH_DIFFERENT},
            {"15", "It is 14 or 15.", IFL_MATH_DIFFERENT},
            {"15", "perhaps 14 and perhaps $14$ or $15$", IFL_MATH_DIFFERENT},
            {"15", "between 14 and 15", IFL_MATH_DIFFERENT},
            {"15", "minus 15", IFL_MATH_DIFFERENT},
            {"15", "the answer is not 15", IFL_MATH_DIFFERENT},
            {"15", "15, said Bob, but 16 was right", IFL_MATH_DIFFERENT},
            {"15", "$x<15$ holds", IFL_MATH_DIFFERENT},
            {"15", "15 or more", IFL_MATH_DIFFERENT},
            {"3", "it's 3 squared", IFL_MATH_DIFFERENT},
            {"15", "14 15", IFL_MATH_DIFFERENT},
            {"15", "$14$ $15$", IFL_MATH_DIFFERENT},
            {"2", "\\pi 2", IFL_MATH_DIFFERENT},
            {"\\emptyset", "\\{\\}", IFL_MATH_EQUAL},
            {"15", "a fifteenth", IFL_MATH_DIFFERENT},
            {"A", "(A), though (B) is near", IFL_MATH_DIFFERENT},
            {"15", "<think>15</think>", IFL_MATH_NO_ANSWER},
            {"15", "<think>it is 15", IFL_MATH_NO_ANSWER},
            {"15", "\\boxed{15", IFL_MATH_NO_ANSWER}});
}

static void test_gold_may_be_a_worked_solution(void **state) {
    (void)state;
    EXPECT(&(ifl_math_options){0}, {{"so $x$ is \\boxed{5}.", "\\boxed{5}", IFL_MATH_EQUAL},
                                    {"70 + 2 = 72\n#### 72", "\\boxed{72}", IFL_MATH_EQUAL},
                                    {"the answer is $6$.", "\\boxed{6}", IFL_MATH_EQUAL},
                                    {"\\boxed{3} and \\boxed{4}", "\\boxed{3,4}", IFL_MATH_EQUAL},
                                    {"\\boxed{3} and \\boxed{4}", "\\boxed{3}", IFL_MATH_DIFFERENT},
                                    {"\\boxed{7}, again \\boxed{7}", "\\boxed{7}", IFL_MATH_EQUAL},
                                    {"", "\\boxed{5}", IFL_MATH_BAD_TASK},
                                    {"  ", "\\boxed{}", IFL_MATH_BAD_TASK},
                                    {"1/0", "nothing", IFL_MATH_BAD_TASK}});
}

/* --- Options of a comparison */

static void expect_compare(ifl_math_options options, const char *gold, const char *answer,
                           ifl_math_verdict want) {
    ifl_math_result r;
    ifl_math_compare(slice(gold), slice(answer), &options, &r);
    if (r.verdict != want)
        fail_msg("gold '%s', answer '%s': got %s (%s), wanted %s", gold, answer,
                 verdict_names[r.verdict], r.reason, verdict_names[want]);
}

static void test_comparison_options(void **state) {
    (void)state;
    ifl_math_options o = {.tol = 0.01};
    expect_compare(o, "100", "100.9", IFL_MATH_EQUAL);
    expect_compare(o, "100", "101.1", IFL_MATH_DIFFERENT);
    expect_compare(o, "\\pi", "3.14", IFL_MATH_EQUAL);
    o = (ifl_math_options){.units = IFL_MATH_UNITS_REQUIRED};
    expect_compare(o, "10 cm", "10", IFL_MATH_DIFFERENT);
    expect_compare(o, "10 cm", "10 cm", IFL_MATH_EQUAL);
    o = (ifl_math_options){.units = IFL_MATH_UNITS_IGNORED};
    expect_compare(o, "10\\text{ cm}", "10\\text{ m}", IFL_MATH_EQUAL);
    o = (ifl_math_options){.percent = IFL_MATH_PERCENT_VALUE};
    expect_compare(o, "10\\%", "0.1", IFL_MATH_EQUAL);
    expect_compare(o, "10\\%", "10", IFL_MATH_DIFFERENT);
    o = (ifl_math_options){.answer_type = IFL_MATH_TYPE_SET};
    expect_compare(o, "(1,2)", "\\{2,1\\}", IFL_MATH_EQUAL);
    o = (ifl_math_options){.answer_type = IFL_MATH_TYPE_TUPLE};
    expect_compare(o, "1,2", "2,1", IFL_MATH_DIFFERENT);
    expect_compare(o, "1,2", "(1,2)", IFL_MATH_EQUAL);
    o = (ifl_math_options){.answer_type = IFL_MATH_TYPE_INTERVAL};
    expect_compare(o, "(1,2)", "1,2", IFL_MATH_DIFFERENT);
    o = (ifl_math_options){.answer_type = IFL_MATH_TYPE_TEXT};
    expect_compare(o, "x+1", "1+x", IFL_MATH_DIFFERENT);
    o = (ifl_math_options){.answer_type = IFL_MATH_TYPE_CHOICE};
    expect_compare(o, "C", "c", IFL_MATH_EQUAL);
    expect_compare(o, "C", "\\text{(C) } 12", IFL_MATH_EQUAL);
    expect_compare(o, "C", "12", IFL_MATH_DIFFERENT);
    expect_compare(o, "12", "C", IFL_MATH_BAD_TASK);
}

static ifl_reward score(const char *gold, const char *completion, const char *meta, char *reason) {
    const ifl_reward_request request = {.id = 1,
                                        .checker = "math",
                                        .prompt = "",
                                        .completion = completion,
                                        .n_completion = strlen(completion),
                                        .answer = gold,
                                        .meta = meta,
                                        .finish = IFL_FINISH_EOS};
    ifl_reward out;
    ifl_reward_check(&request, &out, reason);
    return out;
}

static void test_checker_maps_verdicts_to_statuses(void **state) {
    (void)state;
    char reason[IFL_REWARD_REASON_MAX];
    ifl_reward r = score("1/2", "\\boxed{0.5}", "", reason);
    assert_true(r.status == IFL_REWARD_OK && r.reward == 1.0f && !reason[0]);
    r = score("1/2", "\\boxed{0.6}", "", reason);
    assert_true(r.status == IFL_REWARD_WRONG && r.reward == 0.0f && *reason);
    r = score("1/2", "nothing", "", reason);
    assert_true(r.status == IFL_REWARD_NO_ANSWER && r.reward == 0.0f && *reason);
    r = score("1/2", "\\boxed{1}\\boxed{\\frac12}", "", reason);
    assert_true(r.status == IFL_REWARD_NO_ANSWER && r.reward == 0.0f && *reason);
    r = score("(-1)^n", "\\boxed{\\cos(n\\pi)}", "", reason);
    assert_int_equal(r.status, IFL_REWARD_UNDECIDED);
    assert_non_null(strstr(reason, "neither"));
    r = score("1/0", "\\boxed{1}", "", reason);
    assert_int_equal(r.status, IFL_REWARD_BAD_TASK);
    assert_non_null(strstr(reason, "undefined"));
    r = score("72", "#### 72", "{\"require\":\"box\"}", reason);
    assert_true(r.status == IFL_REWARD_NO_ANSWER && r.reward == 0.0f);
    r = score("72", "\\boxed{70}", "{\"tol\":0.05,\"boxes\":\"first\",\"units\":\"ignored\"}",
              reason);
    assert_true(r.status == IFL_REWARD_OK && r.reward == 1.0f);
    static const char *const bad[] = {"{\"require\":\"boxes\"}",
                                      "{\"boxes\":1}",
                                      "{\"tol\":-1}",
                                      "{\"tol\":\"1\"}",
                                      "{\"tol\":0.6}",
                                      "{\"answer_type\":\"x\"}",
                                      "["};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        r = score("72", "\\boxed{72}", bad[i], reason);
        assert_int_equal(r.status, IFL_REWARD_BAD_TASK);
        assert_true(reason[0]);
    }
}

/* --- Bounds */

static char *repeated(const char *head, const char *part, int n, const char *tail) {
    size_t m = strlen(part), k = strlen(head);
    char *out = malloc(k + m * (size_t)n + strlen(tail) + 1);
    assert_non_null(out);
    memcpy(out, head, k);
    for (int i = 0; i < n; i++)
        memcpy(out + k + m * (size_t)i, part, m);
    memcpy(out + k + m * (size_t)n, tail, strlen(tail) + 1);
    return out;
}

static void expect_limit(char *answer, const char *named) {
    const ifl_math_options options = {0};
    ifl_math_result r;
    ifl_math_compare(slice("5"), slice(answer), &options, &r);
    assert_int_not_equal(r.verdict, IFL_MATH_EQUAL);
    if (!strstr(r.reason, named))
        fail_msg("'%.40s': got '%s', wanted '%s'", answer, r.reason, named);
    ifl_math_compare(slice(answer), slice("5"), &options, &r);
    assert_true(r.verdict == IFL_MATH_BAD_TASK || r.verdict == IFL_MATH_UNDECIDED);
    free(answer);
}

static void test_limits_are_named(void **state) {
    (void)state;
    expect_limit(repeated("", "9", IFL_MATH_BYTES_MAX + 1, ""), "bytes");
    expect_limit(repeated("", "9", IFL_MATH_DIGITS_MAX + 1, ""), "digits");
    expect_limit(repeated("", "(", 3000, "5"), "depth");
    expect_limit(repeated("", "-", 3000, "5"), "depth");
    expect_limit(repeated("5", "+1", 5000, ""), "parts");
    expect_limit(repeated("\\begin{pmatrix}1", "&1", 5000, "\\end{pmatrix}"), "cells");
    expect_limit(repeated("5", "+\\sin x\\cos x", 4000, ""), "");
    char *deep = repeated("", "(", 150, "5");
    char *closed = repeated(deep, ")", 150, "");
    expect_compare((ifl_math_options){0}, "5", closed, IFL_MATH_EQUAL);
    free(deep);
    free(closed);
}

typedef struct blow_up {
    const char *head, *part;
    int n;
    const char *tail;
} blow_up;

/* What is meant to take for ever doesn't, by the count of steps; the time is printed. */
static void test_blow_ups_stay_within_their_steps(void **state) {
    (void)state;
    static const blow_up cases[] = {{"9^{9^{9^9}}", "", 0, ""},
                                    {"", "(", 3000, ""},
                                    {"", "\\frac{1}{", 3000, "2"},
                                    {"", "2^{", 100, "2"},
                                    {"3248!", "+3248!", 4000, ""},
                                    {"1", "\\times 99999999999", 4000, ""},
                                    {"1", "+1e-9999", 4000, ""},
                                    {"1", "+\\binom{30000}{15000}", 2000, ""},
                                    {"(x+y+z+w+1)^{400}", "", 0, ""},
                                    {"(((x+1)^{99})^{99})^{99}", "", 0, ""},
                                    {"1", "+\\sin(\\pi x)", 3000, ""},
                                    {"1", "\\cdot(x+y+1)", 3000, ""},
                                    {"1", "/(x+y+1)", 3000, ""},
                                    {"", "\\sin(", 180, "x"},
                                    {"\\sin(10^{9000})", "", 0, ""},
                                    {"1", ",\\sqrt{2}", 4000, ""},
                                    {"1", ",x+1", 4000, ""},
                                    {"1", "+\\log_{1.001}(3)", 3000, ""},
                                    {"1", "+\\pi^{\\pi^{\\pi}}", 3000, ""},
                                    {"(0,1)", "\\cup(\\sqrt{2},\\sqrt{3})", 60, ""},
                                    {"\\pm 1", ",\\pm 1", 4000, ""},
                                    {"", " ", 65000, "5"},
                                    {"", "\\", 65000, ""},
                                    {"", "\\left", 13000, ""},
                                    {"", "\xc2\xbd", 30000, ""},
                                    {"", "\\boxed{", 3000, ""},
                                    {"", "\\text{a}", 9000, ""},
                                    {"x", "_2", 30000, ""},
                                    {"x", "=1", 30000, ""},
                                    {"0.", "3", 9999, ""},
                                    {"5", "\\%", 10000, ""}};
    const ifl_math_options options = {0};
    double worst_ms = 0;
    int64_t worst_steps = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = repeated(cases[i].head, cases[i].part, cases[i].n, cases[i].tail);
        const char *sides[] = {text, "5", "x+y", text};
        for (int k = 0; k + 1 < 4; k++) {
            ifl_math_result r;
            struct timespec begin, end;
            clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begin);
            ifl_math_compare(slice(sides[k]), slice(sides[k + 1]), &options, &r);
            clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
            double ms = (double)(end.tv_sec - begin.tv_sec) * 1e3 +
                        (double)(end.tv_nsec - begin.tv_nsec) / 1e6;
            if (ms > worst_ms) worst_ms = ms;
            if (r.n_steps > worst_steps) worst_steps = r.n_steps;
            assert_true(r.n_steps <= IFL_MATH_STEPS_MAX);
        }
        free(text);
    }
    print_message("blow-ups: at most %lld steps, %.1f ms of CPU time\n", (long long)worst_steps,
                  worst_ms);
}

/* --- GSM8K, where deploy/get-data has put it */

static void test_gsm8k_answers_are_right_and_one_more_is_wrong(void **state) {
    (void)state;
    FILE *f = fopen(GSM8K_PATH, "r");
    if (!f) {
        print_message("no data/gsm8k/train.jsonl (deploy/get-data gsm8k)\n");
        skip();
        return;
    }
    char *line = NULL, reason[IFL_REWARD_REASON_MAX], more[128];
    size_t n_line = 0;
    int n = 0, n_right = 0, n_wrong = 0;
    while (getline(&line, &n_line, f) > 0) {
        json_t *row = json_loads(line, 0, NULL);
        assert_non_null(row);
        const char *answer = json_string_value(json_object_get(row, "answer"));
        const char *completion = json_string_value(json_object_get(row, "completion"));
        assert_true(answer && completion);
        n++;
        n_right += score(answer, completion, "", reason).reward == 1.0f;
        snprintf(more, sizeof more, "#### %lld", strtoll(answer, NULL, 10) + 1);
        ifl_reward r = score(answer, more, "", reason);
        n_wrong += r.status == IFL_REWARD_WRONG && r.reward == 0.0f;
        json_decref(row);
    }
    free(line);
    fclose(f);
    print_message("GSM8K: %d rows, %d own answers right, %d answers plus one wrong\n", n, n_right,
                  n_wrong);
    assert_true(n > 7000 && n_right == n && n_wrong == n);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pairs_have_their_verdicts_in_both_directions),
        cmocka_unit_test(test_threads_do_not_disturb_each_other),
        cmocka_unit_test(test_the_last_box_after_the_thinking_counts),
        cmocka_unit_test(test_boxes_made_to_deceive),
        cmocka_unit_test(test_near_boxes_must_agree_or_be_the_list),
        cmocka_unit_test(test_boxes_option),
        cmocka_unit_test(test_require_option),
        cmocka_unit_test(test_prose_states_one_answer_where_none_is_required),
        cmocka_unit_test(test_gold_may_be_a_worked_solution),
        cmocka_unit_test(test_comparison_options),
        cmocka_unit_test(test_checker_maps_verdicts_to_statuses),
        cmocka_unit_test(test_limits_are_named),
        cmocka_unit_test(test_blow_ups_stay_within_their_steps),
        cmocka_unit_test(test_gsm8k_answers_are_right_and_one_more_is_wrong),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
