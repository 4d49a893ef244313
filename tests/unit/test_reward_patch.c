/* The checker patch: what applies, what is refused, what is paid. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>

#include "rewards/patch.h"
#include "tests/reward_cases.h"

/* --- What applies: one file "f" (and "d/g"), the result compared byte for byte. */
typedef struct apply_case {
    const char *base, *patch;
    const char *wanted; /* NULL: refused; "" may be an empty file */
} apply_case;

static void expect_applies(const apply_case *cases, size_t n) {
    for (size_t i = 0; i < n; i++) {
        ifl_edit_files base = {.n = 0}, out = {.n = 0};
        ifl_error err = {0};
        const apply_case *c = &cases[i];
        assert_int_equal(
            ifl_edit_files_put(&base, "f", (ifl_slice){c->base, strlen(c->base)}, &err), IFL_OK);
        assert_int_equal(ifl_edit_files_put(&base, "d/g", (ifl_slice){"g\n", 2}, &err), IFL_OK);
        ifl_status st = ifl_edit_apply(&out, &base, (ifl_slice){c->patch, strlen(c->patch)}, &err);
        const ifl_edit_file *file = ifl_edit_files_find(&out, "f");
        if (c->wanted ? st != IFL_OK || !file || file->n != strlen(c->wanted) ||
                            memcmp(file->text, c->wanted, file->n) != 0
                      : st != IFL_FORMAT && st != IFL_NOTFOUND && st != IFL_LIMIT)
            fail_msg("case %zu, '%s': got status %d (%s) and '%s', wanted '%s'", i, c->patch,
                     (int)st, err.text, file ? file->text : "no file",
                     c->wanted ? c->wanted : "a refusal");
        if (st != IFL_OK) assert_int_equal(out.n, 0);
        ifl_edit_files_free(&base);
        ifl_edit_files_free(&out);
    }
}

#define APPLIES(...)                                                                               \
    do {                                                                                           \
        static const apply_case cases[] = __VA_ARGS__;                                             \
        expect_applies(cases, sizeof cases / sizeof *cases);                                       \
    } while (0)

#define HEAD "--- a/f\n+++ b/f\n"
#define FIVE "1\n2\n3\n4\n5\n"

static void test_diffs_apply_exactly_or_not_at_all(void **state) {
    (void)state;
    APPLIES({{FIVE, HEAD "@@ -2,3 +2,3 @@\n 2\n-3\n+x\n 4\n", "1\n2\nx\n4\n5\n"},
             {FIVE, "so:\n```diff\n" HEAD "@@ -2,3 +2,3 @@ f()\n 2\n-3\n+x\n 4\n```\ndone",
              "1\n2\nx\n4\n5\n"},
             {FIVE, "diff --git a/f b/f\nindex 1..2 100644\n" HEAD "@@ -3 +3,2 @@\n-3\n+x\n+y\n",
              "1\n2\nx\ny\n4\n5\n"},
             {FIVE, "--- f\n+++ f\n@@ -3 +3 @@\n-3\n+x\n", "1\n2\nx\n4\n5\n"},
             {FIVE, "--- a/f\t2024-01-01\n+++ b/f\t2024-01-01\n@@ -3 +3 @@\n-3\n+x\n",
              "1\n2\nx\n4\n5\n"},
             {FIVE, HEAD "@@ -1,2 +1,2 @@\n-1\n+a\n 2\n@@ -4,2 +4,2 @@\n 4\n-5\n+e\n",
              "a\n2\n3\n4\ne\n"},
             {FIVE, HEAD "@@ -9,1 +9,1 @@\n-3\n+x\n", "1\n2\nx\n4\n5\n"}, /* in one place only */
             {FIVE, HEAD "@@ -1,5 +0,0 @@\n-1\n-2\n-3\n-4\n-5\n", ""},
             {FIVE, HEAD "@@ -3 +3 @@\n-3\n+x\n-- \n2.39.0\n", "1\n2\nx\n4\n5\n"},
             {"1\n\n3\n", HEAD "@@ -1,3 +1,3 @@\n 1\n\n-3\n+x\n", "1\n\nx\n"}, /* blank context */
             {"a\na\n", HEAD "@@ -2 +2 @@\n-a\n+x\n", "a\nx\n"},
             /* line ends */
             {"1\r\n2\r\n", HEAD "@@ -2 +2 @@\n-2\n+x\n", "1\r\nx\r\n"},
             {FIVE, "--- a/f\r\n+++ b/f\r\n@@ -3 +3 @@\r\n-3\r\n+x\r\n", "1\n2\nx\n4\n5\n"},
             {"1\n2\r\n", HEAD "@@ -1 +1 @@\n-1\n+x\n", "x\n2\r\n"},
             {"1\n2", HEAD "@@ -1 +1 @@\n-1\n+x\n", "x\n2"},
             {"1\n2", HEAD "@@ -2 +2 @@\n-2\n\\ No newline at end of file\n+x\n", "1\nx\n"},
             {"1\n2",
              HEAD "@@ -2 +2 @@\n-2\n\\ No newline at end of file\n+x\n\\ No newline at end of "
                   "file\n",
              "1\nx"},
             {"1\n2\n", HEAD "@@ -2 +2 @@\n-2\n+2\n\\ No newline at end of file\n", "1\n2"},
             {"1\n2\n", HEAD "@@ -2 +2 @@\n-2\n\\ No newline at end of file\n+x\n", NULL},
             {"1\n2\n", HEAD "@@ -1 +1 @@\n-1\n+x\n\\ No newline at end of file\n", NULL},
             /* not there, or in several places */
             {FIVE, HEAD "@@ -3 +3 @@\n-9\n+x\n", NULL},
             {FIVE, HEAD "@@ -2,2 +2,2 @@\n 2\n-4\n+x\n", NULL},
             {"a\nb\na\n", HEAD "@@ -9 +9 @@\n-a\n+x\n", NULL},
             {FIVE, HEAD "@@ -3 +3 @@\n- 3\n+x\n", NULL},
             /* overlapping, backwards, twice */
             {FIVE, HEAD "@@ -2,2 +2,2 @@\n 2\n-3\n+x\n@@ -3,2 +3,2 @@\n-3\n+y\n 4\n", NULL},
             {FIVE, HEAD "@@ -4 +4 @@\n-4\n+x\n@@ -2 +2 @@\n-2\n+y\n", NULL},
             {FIVE, HEAD "@@ -2 +2 @@\n-2\n+y\n@@ -2 +2 @@\n-2\n+y\n", NULL},
             {FIVE, HEAD "@@ -2 +2 @@\n-2\n+y\n" HEAD "@@ -4 +4 @@\n-4\n+y\n", NULL},
             /* malformed */
             {FIVE, HEAD "@@ -3,2 +3 @@\n-3\n+x\n", NULL},
             {FIVE, HEAD "@@ -3 +3 @@\n-3\n+x\n+y\n", NULL},
             {FIVE, HEAD "@@ -3,1 +3,1 @@\n 3\n", NULL},
             {FIVE, HEAD "@@ -3 +4,2 @@\n 3\n+x", "1\n2\n3\nx\n4\n5\n"},
             {FIVE, HEAD "@@ -2,0 +3 @@\n+x\n", NULL}, /* no context */
             {FIVE, HEAD "@@ -x +3 @@\n-3\n+x\n", NULL},
             {FIVE, HEAD "@@ -99999999999 +3 @@\n-3\n+x\n", NULL},
             {FIVE, HEAD, NULL},
             {FIVE, "@@ -3 +3 @@\n-3\n+x\n", NULL},
             {FIVE, "--- a/f\n+++ b/h\n@@ -3 +3 @@\n-3\n+x\n", NULL},
             {FIVE, "--- a/h\n+++ b/h\n@@ -3 +3 @@\n-3\n+x\n", NULL},
             {FIVE, "", NULL},
             {FIVE, "change 3 to x", NULL},
             {FIVE, HEAD "@@ -3 +3 @@\n-3\n+x\nf\n<<<<<<< SEARCH\n1\n=======\n2\n>>>>>>> REPLACE\n",
              NULL},
             /* what a diff may not do */
             {FIVE, "diff --git a/f b/h\nrename from f\nrename to h\n", NULL},
             {FIVE,
              "diff --git a/h b/h\nnew file mode 120000\n--- /dev/null\n+++ b/h\n@@ -0,0 +1 "
              "@@\n+/etc/passwd\n",
              NULL},
             {FIVE,
              "diff --git a/f b/f\nold mode 100644\nnew mode 120000\n" HEAD "@@ -3 +3 @@\n-3\n+x\n",
              NULL},
             {FIVE, "diff --git a/f b/f\nGIT binary patch\nliteral 3\n", NULL},
             {FIVE, "--- /dev/null\n+++ b/f\n@@ -0,0 +1 @@\n+x\n", NULL},
             {FIVE, "--- a/f\n+++ /dev/null\n@@ -3 +0,0 @@\n-3\n", NULL},
             {FIVE, "--- /dev/null\n+++ /dev/null\n@@ -0,0 +1 @@\n+x\n", NULL}});
}

static void test_paths_stay_inside(void **state) {
    (void)state;
    static const char *const bad[] = {
        "../x", "a/../x",      "/etc/x",   "~/x",   "./x",   "a/./x", "a//x",  "a/",
        "",     ".git/config", "a/.GIT/x", "c:\\x", "c:/x",  "a\\x",  "a\x01", "\"x\"",
        "..",   ".",           "f/x",      "d",     "d/g/h", "x\x7f"};
    ifl_edit_files base = {.n = 0};
    assert_int_equal(ifl_edit_files_put(&base, "f", (ifl_slice){"1\n", 2}, NULL), IFL_OK);
    assert_int_equal(ifl_edit_files_put(&base, "d/g", (ifl_slice){"1\n", 2}, NULL), IFL_OK);
    for (size_t i = 0; i <= sizeof bad / sizeof *bad; i++) {
        const char *path = i < sizeof bad / sizeof *bad ? bad[i] : "d/new";
        static const char *const forms[] = {"--- /dev/null\n+++ b/%s\n@@ -0,0 +1 @@\n+x\n",
                                            "%s\n<<<<<<< SEARCH\n=======\nx\n>>>>>>> REPLACE\n"};
        for (int form = 0; form < 2; form++) {
            char text[256];
            ifl_edit_files out = {.n = 0};
            ifl_error err = {0};
            snprintf(text, sizeof text, form ? forms[1] : forms[0], path);
            ifl_status st = ifl_edit_apply(&out, &base, (ifl_slice){text, strlen(text)}, &err);
            if (path != bad[0] && i == sizeof bad / sizeof *bad)
                assert_int_equal(st, IFL_OK);
            else if (st != IFL_FORMAT)
                fail_msg("'%s' was taken: %s", path, err.text);
            ifl_edit_files_free(&out);
        }
    }
    ifl_edit_files_free(&base);
}

#define BLOCK(old, new) "<<<<<<< SEARCH\n" old "=======\n" new ">>>>>>> REPLACE\n"

static void test_blocks_want_one_place(void **state) {
    (void)state;
    APPLIES(
        {{FIVE, "f\n" BLOCK("3\n", "x\n"), "1\n2\nx\n4\n5\n"},
         {FIVE, "Here:\n\n`f`\n```python\n" BLOCK("3\n", "x\ny\n") "```\n", "1\n2\nx\ny\n4\n5\n"},
         {FIVE, "```\n**f**:\n" BLOCK("2\n3\n", "") "```", "1\n4\n5\n"},
         {FIVE, "f\n" BLOCK("3\n", "x\n") BLOCK("4\n", "y\n"), "1\n2\nx\ny\n5\n"},
         {FIVE, "f\n" BLOCK("3\n", "x\n") "\n" BLOCK("x\n", "y\n"), "1\n2\ny\n4\n5\n"},
         {"1\r\n2\r\n", "f\n" BLOCK("2\n", "x\n"), "1\r\nx\r\n"},
         {"1\n2", "f\n" BLOCK("2\n", "x\n"), "1\nx"},
         {"", "f\n" BLOCK("", "x\n"), "x\n"},
         {"1\n\n3\n", "f\n" BLOCK("1\n\n", ""), "3\n"},
         {FIVE, "f\n" BLOCK("9\n", "x\n"), NULL},
         {"a\nb\na\n", "f\n" BLOCK("a\n", "x\n"), NULL},
         {"a\na\na\n", "f\n" BLOCK("a\na\n", "x\n"), NULL}, /* overlapping places are two */
         {"ab\n", "f\n" BLOCK("b\n", "x\n"), NULL},         /* whole lines */
         {FIVE, "f\n" BLOCK("", "x\n"), NULL},
         {FIVE, BLOCK("3\n", "x\n"), NULL},
         {FIVE, "h\n" BLOCK("3\n", "x\n"), NULL},
         {FIVE, "f\n" BLOCK("3\n", "x\n") "and then:\n" BLOCK("4\n", "y\n"), NULL},
         {FIVE, "f\n<<<<<<< SEARCH\n3\n=======\nx\n", NULL},
         {FIVE, "f\n<<<<<<< SEARCH\n3\n>>>>>>> REPLACE\n", NULL},
         {FIVE, "f\n<<<<<<< SEARCH", NULL},
         {FIVE, "f\n<<<<<<< SEARCH\n<<<<<<< SEARCH\n3\n=======\nx\n>>>>>>> REPLACE\n", NULL}});
}

/* --- What is paid */
#define FILES                                                                                      \
    "\"files\":{\"f\":\"one\\ntwo\\nthree\\nfour\\nfive\\n\",\"t/test.py\":\"assert f\\n\"}"
#define GOLD HEAD "@@ -2,2 +2,2 @@\n two\n-three\n+THREE = 3\n"

typedef struct pay_case {
    const char *meta, *completion;
    ifl_reward_status status;
    double low, high;
} pay_case;

static void expect_pays(const char *gold, const pay_case *cases, size_t n) {
    for (size_t i = 0; i < n; i++) {
        ifl_reward r = check_bytes("patch", gold, cases[i].meta, cases[i].completion,
                                   strlen(cases[i].completion), IFL_FINISH_EOS);
        if (r.status != cases[i].status || (double)r.reward < cases[i].low - 1e-6 ||
            (double)r.reward > cases[i].high + 1e-6)
            fail_msg("case %zu, '%s': got %s, %g, wanted %s, %g .. %g", i, cases[i].completion,
                     ifl_reward_status_name(r.status), (double)r.reward,
                     ifl_reward_status_name(cases[i].status), cases[i].low, cases[i].high);
    }
}

#define PAYS(gold, ...)                                                                            \
    do {                                                                                           \
        static const pay_case cases[] = __VA_ARGS__;                                               \
        expect_pays(gold, cases, sizeof cases / sizeof *cases);                                    \
    } while (0)

#define M "{" FILES ",\"tests\":[\"t/\"],\"allow\":[\"f\",\"new/\"]}"
#define SAME HEAD "@@ -2,2 +2,2 @@\n two\n-three\n"
#define TESTS "--- a/t/test.py\n+++ b/t/test.py\n@@ -1 +1 @@\n-assert f\n+pass\n"

static void test_right_pays_one_and_alike_pays_less_than_the_cap(void **state) {
    (void)state;
    PAYS(
        GOLD,
        {{M, GOLD, IFL_REWARD_OK, 1, 1},
         {M, "f\n" BLOCK("three\n", "THREE = 3\n"), IFL_REWARD_OK, 1, 1},
         {M, "<think>" TESTS "</think>" GOLD, IFL_REWARD_OK, 1, 1},
         {M, SAME "+THREE = 4\n", IFL_REWARD_OK, 0.2, 0.49},
         {M, SAME "+something_else()\n", IFL_REWARD_OK, 0.05, 0.4},
         {M, HEAD "@@ -1,5 +1,5 @@\n-one\n+zero\n two\n three\n four\n five\n", IFL_REWARD_WRONG, 0,
          0},
         {M, "nothing to do", IFL_REWARD_NO_ANSWER, 0, 0},
         {M, "", IFL_REWARD_NO_ANSWER, 0, 0},
         {M, "f\n" BLOCK("three\n", "three\n"), IFL_REWARD_WRONG, 0, 0},
         {M, SAME "+x\n+y\n", IFL_REWARD_BAD_FORMAT, 0, 0},
         {"{" FILES ",\"format_penalty\":0.25}", SAME "+x\n+y\n", IFL_REWARD_BAD_FORMAT, -0.25,
          -0.25},
         {"{" FILES ",\"cap\":0}", SAME "+THREE = 4\n", IFL_REWARD_WRONG, 0, 0},
         /* a file that only this patch has */
         {M, GOLD "--- /dev/null\n+++ b/new/x\n@@ -0,0 +1 @@\n+x\n", IFL_REWARD_OK, 0.2, 0.49},
         {M, GOLD "--- /dev/null\n+++ b/x\n@@ -0,0 +1 @@\n+x\n", IFL_REWARD_BAD_FORMAT, 0, 0},
         {"{" FILES "}", GOLD "--- /dev/null\n+++ b/x\n@@ -0,0 +1 @@\n+x\n", IFL_REWARD_BAD_FORMAT,
          0, 0},
         /* tests are put back */
         {M, GOLD TESTS, IFL_REWARD_WRONG, -0.5, -0.5},
         {M, TESTS, IFL_REWARD_WRONG, -0.5, -0.5},
         {M, GOLD "--- /dev/null\n+++ b/t/x.py\n@@ -0,0 +1 @@\n+x\n", IFL_REWARD_WRONG, -0.5, -0.5},
         {"{" FILES ",\"tests\":[\"t/test.py\"],\"tests_penalty\":1}", GOLD TESTS, IFL_REWARD_WRONG,
          -1, -1}});
    /* The gold edits a test itself: who does so too is no cheat, who does not is right as well. */
    PAYS(GOLD TESTS, {{M, GOLD TESTS, IFL_REWARD_OK, 1, 1}, {M, GOLD, IFL_REWARD_OK, 1, 1}});
}

static void test_rejected_and_oversize_pay_less(void **state) {
    (void)state;
#define REJECTED "{" FILES ",\"rejected\":[{\"f\":\"one\\ntwo\\n3\\nfour\\nfive\\n\"}]}"
    PAYS(GOLD, {{REJECTED, GOLD, IFL_REWARD_OK, 1, 1},
                {REJECTED, SAME "+3\n", IFL_REWARD_WRONG, -0.5, 0},
                {REJECTED, SAME "+THREE = 4\n", IFL_REWARD_OK, 0.1, 0.49}});
    char big[8192] = HEAD "@@ -2,2 +2,302 @@\n two\n-three\n+THREE = 3\n";
    for (int i = 0; i < 300; i++)
        snprintf(big + strlen(big), sizeof big - strlen(big), "+x%d = %d\n", i, i);
    ifl_reward r = check_bytes("patch", GOLD, M, big, strlen(big), IFL_FINISH_EOS);
    assert_true(r.reward < 0.0f && r.reward >= -0.1f);
}

static void test_tasks_at_fault(void **state) {
    (void)state;
    static const char *const metas[] = {"",
                                        "{}",
                                        "{\"files\":{\"../f\":\"\"}}",
                                        "{\"files\":{\"f\":1}}",
                                        "{\"files\":{\"f\":\"other\\n\"}}",
                                        "{" FILES ",\"gold\":{\"f\":1}}",
                                        "{" FILES ",\"gold\":{}}",
                                        "{" FILES
                                        ",\"gold\":{\"t/test.py\":\"\"},\"tests\":[\"t/\"]}",
                                        "{" FILES ",\"noop\":true}",
                                        "{" FILES ",\"cap\":1}",
                                        "{" FILES ",\"cap\":0.5,\"oversize_penalty\":0.4}",
                                        "{" FILES ",\"rejected\":[1]}",
                                        "{" FILES ",\"rejected\":[\"no diff\"]}",
                                        "{" FILES ",\"tests\":\"t/\"}",
                                        "{" FILES ",\"allow\":[1]}"};
    for (size_t i = 0; i < sizeof metas / sizeof *metas; i++) {
        ifl_reward r = check_bytes("patch", GOLD, metas[i], GOLD, strlen(GOLD), IFL_FINISH_EOS);
        if (r.status != IFL_REWARD_BAD_TASK)
            fail_msg("%s: %s", metas[i], ifl_reward_status_name(r.status));
    }
    PAYS("", {{M, GOLD, IFL_REWARD_BAD_TASK, 0, 0},
              {"{" FILES ",\"noop\":true}", "", IFL_REWARD_OK, 1, 1},
              {"{" FILES ",\"noop\":true}", GOLD, IFL_REWARD_WRONG, -0.1, 0},
              {"{" FILES ",\"gold\":{\"f\":null}}",
               "--- a/f\n+++ /dev/null\n@@ -1,5 +0,0 @@\n-one\n-two\n-three\n-four\n-five\n",
               IFL_REWARD_OK, 1, 1}});
}

/* The seam for a checker that runs tests on the patched files. */
static void test_tests_come_first(void **state) {
    (void)state;
    static const struct {
        const char *patch;
        int passed;
        double reward;
    } cases[] = {{GOLD, 2, 1},
                 {GOLD, 1, 0},
                 {SAME "+completely.other()\n", 2, 1},
                 {GOLD TESTS, 2, -0.5},
                 {SAME "+THREE = 3\n", 0, 0}};
    json_t *meta = json_loads(M, 0, NULL);
    assert_non_null(meta);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ifl_edit_task task;
        ifl_edit_try t;
        ifl_reward r = {.status = IFL_REWARD_NONE};
        ifl_error err = {0};
        assert_int_equal(ifl_edit_task_read(&task, meta, GOLD, &err), IFL_OK);
        assert_int_equal(
            ifl_edit_try_read(&t, &task, (ifl_slice){cases[i].patch, strlen(cases[i].patch)}, &err),
            IFL_OK);
        assert_int_equal(t.status, IFL_REWARD_OK);
        assert_string_equal(ifl_edit_files_find(&t.files, "t/test.py")->text, "assert f\n");
        assert_int_equal(ifl_edit_reward(&task, &t, cases[i].passed, 2, &r, &err), IFL_OK);
        assert_true(fabs((double)r.reward - cases[i].reward) < 1e-6);
        assert_int_equal(r.tests_passed, cases[i].passed);
        ifl_edit_try_free(&t);
        ifl_edit_task_free(&task);
    }
    json_decref(meta);
}

/* Against a plain quadratic table: lines deleted and kept, for random small files. */
static double plain_similarity(const char *base, const char *a, const char *b);

static void test_similarity_is_that_of_the_definition(void **state) {
    (void)state;
    unsigned seed = 7;
    for (int round = 0; round < 300; round++) {
        char texts[3][64];
        ifl_edit_files sets[3] = {{.n = 0}, {.n = 0}, {.n = 0}};
        for (int i = 0; i < 3; i++) {
            int n = 0, lines = (int)((seed = seed * 1103515245u + 12345u) >> 16) % 12;
            for (int k = 0; k < lines; k++) {
                texts[i][n++] = (char)('a' + ((seed = seed * 1103515245u + 12345u) >> 16) % 4);
                texts[i][n++] = '\n';
            }
            texts[i][n] = '\0';
            assert_int_equal(
                ifl_edit_files_put(&sets[i], "f", (ifl_slice){texts[i], (size_t)n}, NULL), IFL_OK);
        }
        double ab = -1, ba = -1, aa = -1;
        size_t n_a, n_b;
        assert_int_equal(ifl_edit_similarity(&sets[0], &sets[1], &sets[2], &ab, &n_a, &n_b, NULL),
                         IFL_OK);
        assert_int_equal(ifl_edit_similarity(&sets[0], &sets[2], &sets[1], &ba, &n_a, &n_b, NULL),
                         IFL_OK);
        assert_int_equal(ifl_edit_similarity(&sets[0], &sets[1], &sets[1], &aa, &n_a, &n_b, NULL),
                         IFL_OK);
        assert_true(ab >= 0 && ab <= 1 && fabs(ab - ba) < 1e-12);
        assert_true(strcmp(texts[0], texts[1]) == 0 ? aa == 0.0 : aa == 1.0);
        double plain = plain_similarity(texts[0], texts[1], texts[2]);
        if (plain >= 0 && fabs(plain - ab) > 1e-12)
            fail_msg("'%s' to '%s' and '%s': %g, by the table %g", texts[0], texts[1], texts[2], ab,
                     plain);
        for (int i = 0; i < 3; i++)
            ifl_edit_files_free(&sets[i]);
    }
}

/* Longest common subsequence of one-letter lines. */
static int lcs(const char *a, const char *b) {
    int table[64][64] = {{0}};
    int n = (int)strlen(a) / 2, m = (int)strlen(b) / 2;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < m; j++)
            table[i + 1][j + 1] = a[2 * i] == b[2 * j]                ? table[i][j] + 1
                                  : table[i][j + 1] > table[i + 1][j] ? table[i][j + 1]
                                                                      : table[i + 1][j];
    return table[n][m];
}

/* Where the base is empty everything is inserted and the definition is plain; else -1. */
static double plain_similarity(const char *base, const char *a, const char *b) {
    int n_a = (int)strlen(a) / 2, n_b = (int)strlen(b) / 2, bags = 0;
    if (*base || n_a + n_b == 0) return -1;
    for (char c = 'a'; c < 'e'; c++) {
        int in_a = 0, in_b = 0;
        for (int i = 0; i < n_a; i++)
            in_a += a[2 * i] == c;
        for (int i = 0; i < n_b; i++)
            in_b += b[2 * i] == c;
        bags += in_a < in_b ? in_a : in_b;
    }
    return (2.0 * lcs(a, b) / (n_a + n_b) + 2.0 * bags / (n_a + n_b)) / 2;
}

static void test_hostile_patches_take_bounded_time(void **state) {
    (void)state;
    static const char *const seeds[] = {HEAD,
                                        HEAD "@@ -1,5 +1,5 @@\n",
                                        "--- /dev/null\n+++ b/x\n@@ -0,0 +1,500000 @@\n",
                                        "@@ -1 +1 @@\n",
                                        "-three\n",
                                        "+x\n",
                                        "\\ No newline\n",
                                        "f\n<<<<<<< SEARCH\n",
                                        "f\n" BLOCK("three\n", "three\n"),
                                        "f\n" BLOCK("three\n", "three\nthree\n"),
                                        "=======\n",
                                        ">>>>>>> REPLACE\n",
                                        "diff --git a/f b/f\n",
                                        "\n",
                                        "\r\n",
                                        "\xff"};
    for (size_t i = 0; i < sizeof seeds / sizeof *seeds; i++)
        expect_bounded("patch", GOLD, M, seeds[i]);
    expect_bounded("patch", GOLD, M, NULL);
    /* One file of 1 MiB in place of the old one: the diff against the gold stays bounded. */
    char *text = malloc(BIG);
    assert_non_null(text);
    for (int kind = 0; kind < 3; kind++) {
        size_t n = (size_t)snprintf(text, BIG, "f\n<<<<<<< SEARCH\nthree\n=======\n");
        for (int i = 0; n < BIG - 64; i++)
            n += (size_t)snprintf(text + n, 32, kind == 0 ? "%d\n" : kind == 1 ? "\n" : "%d ", i);
        n += (size_t)snprintf(text + n, BIG - n, "\n>>>>>>> REPLACE\n");
        clock_t begin = clock();
        ifl_reward r = check_bytes("patch", GOLD, M, text, n, IFL_FINISH_EOS);
        assert_true(ifl_reward_is_verdict(r.status) && r.reward < 0.2f);
        assert_true((double)(clock() - begin) / CLOCKS_PER_SEC < BIG_S);
    }
    free(text);
    ifl_reward r = check_bytes("patch", GOLD, M, GOLD "\0\0", sizeof GOLD + 1, IFL_FINISH_EOS);
    assert_true(r.reward == 1.0f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_diffs_apply_exactly_or_not_at_all),
        cmocka_unit_test(test_paths_stay_inside),
        cmocka_unit_test(test_blocks_want_one_place),
        cmocka_unit_test(test_right_pays_one_and_alike_pays_less_than_the_cap),
        cmocka_unit_test(test_rejected_and_oversize_pay_less),
        cmocka_unit_test(test_tasks_at_fault),
        cmocka_unit_test(test_tests_come_first),
        cmocka_unit_test(test_similarity_is_that_of_the_definition),
        cmocka_unit_test(test_hostile_patches_take_bounded_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
