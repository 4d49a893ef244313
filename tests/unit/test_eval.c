/* Evaluation: the statistics, the file of results, and the paired comparison of two of them. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "common/run_dir.h"
#include "learner/eval_figures.h"

#define FAILED IFL_REWARD_CHECKER_ERROR

static char folder[64], path[96];

static void assert_close(double got, double want, double tolerance) {
    if (!(fabs(got - want) <= tolerance)) fail_msg("got %.17g, wanted %.17g", got, want);
}

static void must(ifl_status st, const ifl_error *err) {
    if (st != IFL_OK) fail_msg("%s", err->text);
}

/* --- Statistics
 * ------------------------------------------------------------------------------------- */

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

static void test_avg_at_k_leaves_unscored_samples_out(void **state) {
    (void)state;
    const int32_t right[3] = {0, 2, 4}, all[3] = {4, 4, 4};
    ifl_task_mean m = ifl_avg_at_k(right, all, 3);
    assert_close(m.mean, 0.5, 0);
    assert_true(m.n_tasks == 3 && m.n_left_out == 0);
    /* Half of the second task's samples and all of the first one's could not be judged: the rest
     * decides. As zeros they would give 0.5 again. */
    const int32_t judged[3] = {0, 2, 4};
    m = ifl_avg_at_k(right, judged, 3);
    assert_close(m.mean, 1.0, 0);
    assert_true(m.n_tasks == 2 && m.n_left_out == 1);
    m = ifl_avg_at_k(right, judged, 1);
    assert_true(isnan(m.mean) && m.n_tasks == 0 && m.n_left_out == 1);
}

static void test_pass_at_k_leaves_out_tasks_with_too_few_judged_samples(void **state) {
    (void)state;
    const int32_t right[4] = {0, 2, 4, 0}, all[4] = {4, 4, 4, 4}, judged[4] = {4, 4, 4, 3};
    ifl_task_mean m = ifl_pass_at_k_mean(right, all, 3, 4);
    assert_close(m.mean, 2.0 / 3, 1e-15);
    m = ifl_pass_at_k_mean(right, all, 3, 1);
    assert_close(m.mean, 0.5, 1e-15);
    m = ifl_pass_at_k_mean(right, judged, 4, 4);
    assert_close(m.mean, 2.0 / 3, 1e-15); /* 0.5 if the failed one counted as wrong */
    assert_true(m.n_tasks == 3 && m.n_left_out == 1);
    m = ifl_pass_at_k_mean(right, judged, 4, 3);
    assert_true(m.n_tasks == 4 && m.n_left_out == 0);
    m = ifl_pass_at_k_mean(right, judged, 4, 5);
    assert_true(isnan(m.mean) && m.n_left_out == 4);
}

/* --- Results and their figures
 * ---------------------------------------------------------------------- */

static ifl_eval_row *add(ifl_eval_results *r, const char *source, const char *id,
                         ifl_reward_status status, float reward) {
    ifl_error err = {0};
    char definition[256];
    snprintf(definition, sizeof definition, "{\"id\":\"%s\"}", id);
    must(ifl_eval_results_add(r, source, id, definition, &err), &err);
    ifl_eval_row *row = &r->rows[r->n_rows - 1];
    row->status = status;
    row->reward = reward;
    return row;
}

/* 10 tasks of "easy", the first n_easy right, and 30 of "hard", the first n_hard right. */
static void results_make(ifl_eval_results *r, int n_easy, int n_hard) {
    memset(r, 0, sizeof *r);
    for (int i = 0; i < 40; i++) {
        char id[32];
        snprintf(id, sizeof id, "t%d", i);
        bool easy = i % 4 == 0;
        add(r, easy ? "easy" : "hard", id, IFL_REWARD_OK,
            easy ? i / 4 < n_easy : i - i / 4 - 1 < n_hard);
    }
}

static ifl_eval_figures figures(const ifl_eval_results *r, int32_t source) {
    ifl_eval_figures f;
    ifl_error err = {0};
    must(ifl_eval_figures_make(&f, r, source, &err), &err);
    return f;
}

static ifl_eval_gain compare(const ifl_eval_results *before, const ifl_eval_results *after,
                             const char *source) {
    ifl_eval_gain g;
    ifl_error err = {0};
    must(ifl_eval_compare(&g, before, after, source, &err), &err);
    return g;
}

static void test_figures_are_given_for_each_source(void **state) {
    (void)state;
    ifl_eval_results r;
    results_make(&r, 9, 6);
    assert_int_equal(r.n_sources, 2);
    ifl_eval_figures all = figures(&r, -1), easy = figures(&r, 0), hard = figures(&r, 1);
    assert_true(all.n == 40 && easy.n == 10 && hard.n == 30);
    assert_close(all.accuracy, 15.0 / 40, 0);
    assert_close(easy.accuracy, 0.9, 0);
    assert_close(hard.accuracy, 0.2, 0);
    ifl_interval w = ifl_wilson95(6, 30);
    assert_true(hard.interval.low == w.low && hard.interval.high == w.high);
    /* An answer whose checker failed is in no denominator, whatever its reward says. */
    r.rows[1].status = FAILED;
    r.rows[2].reward = (float)NAN;
    hard = figures(&r, 1);
    assert_true(hard.n == 28 && hard.n_right == 4 && hard.n_unscored == 2);
    r.rows[3].reward = 0.5f; /* a part of the points is not the answer */
    assert_true(figures(&r, 1).n_right == 3);
    ifl_eval_results_clear(&r);
    ifl_eval_figures none = figures(&r, -1);
    assert_true(none.n == 0 && isnan(none.accuracy));
    json_t *json = ifl_eval_figures_json(&none, NULL);
    assert_true(json_is_null(json_object_get(json, "accuracy")));
    json_decref(json);
}

static void test_samples_are_judged_by_source(void **state) {
    (void)state;
    ifl_eval_results r = {.k = 4};
    ifl_eval_row *row = add(&r, "a", "1", IFL_REWARD_OK, 1);
    row->n_judged = 4, row->n_right = 2;
    row = add(&r, "b", "2", FAILED, 0);
    row->n_judged = 3, row->n_right = 0;
    ifl_eval_figures all = figures(&r, -1), b = figures(&r, 1);
    assert_close(all.avg.mean, 0.25, 0);
    assert_close(all.pass.mean, 1.0, 0);
    assert_true(all.pass.n_left_out == 1 && all.n_samples_unscored == 1);
    assert_true(isnan(b.pass.mean) && b.pass.n_left_out == 1 && b.avg.mean == 0.0);
    ifl_eval_results_clear(&r);
}

/* --- Comparison
 * ------------------------------------------------------------------------------------- */

static void test_comparison_is_overall_and_per_source(void **state) {
    (void)state;
    ifl_eval_results before, after;
    results_make(&before, 4, 3);
    results_make(&after, 9, 12);
    ifl_eval_gain all = compare(&before, &after, NULL), easy = compare(&before, &after, "easy");
    ifl_eval_gain hard = compare(&before, &after, "hard"), none = compare(&before, &after, "none");
    assert_true(all.paired.n_tasks == 40 && easy.paired.n_tasks == 10);
    assert_close(all.paired.difference, 14.0 / 40, 1e-15);
    assert_close(easy.paired.difference, 0.5, 1e-15);
    assert_close(hard.paired.difference, 0.3, 1e-15);
    assert_close(hard.before, 0.1, 1e-15);
    assert_close(hard.after, 0.4, 1e-15);
    assert_true(hard.paired.interval.low > 0.1 && hard.paired.interval.high < 0.5);
    assert_int_equal(all.paired.n_resamples, 10000);
    assert_true(none.paired.n_tasks == 0 && isnan(none.before));
    char text[256];
    ifl_eval_gain_text(&easy, text, sizeof text);
    assert_non_null(strstr(text, "+50.0 points (95 %: "));
    assert_non_null(strstr(text, "0.4000 to 0.9000 on 10 tasks"));
    assert_null(strstr(text, "left out"));
    ifl_eval_results_clear(&before);
    ifl_eval_results_clear(&after);
}

static void test_comparison_pairs_tasks_not_places(void **state) {
    (void)state;
    ifl_eval_results before, after;
    results_make(&before, 4, 3);
    results_make(&after, 9, 12);
    ifl_eval_gain g = compare(&before, &after, NULL), turned;
    for (size_t i = 0; i < 20; i++) { /* the other way round: other pairs if places counted */
        ifl_eval_row row = after.rows[i];
        after.rows[i] = after.rows[39 - i];
        after.rows[39 - i] = row;
    }
    turned = compare(&before, &after, NULL);
    assert_memory_equal(&g.paired, &turned.paired, sizeof g.paired);
    assert_true(g.n_only_before == 0 && g.n_only_after == 0 && g.n_unscored == 0);
    ifl_eval_results_clear(&before);
    ifl_eval_results_clear(&after);
}

static void test_comparison_leaves_out_what_was_not_judged_and_counts_it(void **state) {
    (void)state;
    ifl_eval_results before, after;
    results_make(&before, 10, 0);
    results_make(&after, 10, 0);
    for (int i = 0; i < 5; i++)
        after.rows[4 * i].status = FAILED; /* 5 of the right ones */
    before.rows[4].status = FAILED;        /* one of these again */
    before.rows[1].status = FAILED;
    ifl_eval_gain g = compare(&before, &after, NULL);
    assert_true(g.n_unscored == 6 && g.paired.n_tasks == 34);
    /* As zeros they would be a loss of 5 of 40. */
    assert_true(g.paired.difference == 0.0 && g.before == g.after);
    char text[256];
    ifl_eval_gain_text(&g, text, sizeof text);
    assert_non_null(strstr(text, "left out: 6 not judged, 0 on one side only"));
    ifl_eval_results_clear(&before);
    ifl_eval_results_clear(&after);
}

static void test_a_task_of_the_same_name_is_not_the_same_task(void **state) {
    (void)state;
    ifl_eval_results before, after;
    results_make(&before, 4, 3);
    results_make(&after, 4, 3);
    after.rows[7].task++;                        /* its definition has changed */
    add(&after, "easy", "t1", IFL_REWARD_OK, 1); /* an id of another source */
    add(&after, "new", "x", IFL_REWARD_OK, 1);
    ifl_eval_gain g = compare(&before, &after, NULL);
    assert_true(g.paired.n_tasks == 39 && g.n_only_before == 1 && g.n_only_after == 3);
    after.rows[8].id[0] = 'u'; /* the same definition under another id: who knows */
    g = compare(&before, &after, NULL);
    assert_true(g.paired.n_tasks == 38 && g.n_only_before == 2 && g.n_only_after == 4);
    after.rows[8].id[0] = 't';
    /* One that comes twice on one side and three times on the other makes two pairs. */
    for (int i = 0; i < 5; i++)
        add(i < 2 ? &before : &after, "twice", "y", IFL_REWARD_OK, i == 2);
    g = compare(&before, &after, "twice");
    assert_true(g.paired.n_tasks == 2 && g.n_only_after == 1);
    assert_close(g.paired.difference, 0.5, 0);
    ifl_eval_results_clear(&before);
    ifl_eval_results_clear(&after);
}

/* --- The file
 * --------------------------------------------------------------------------------------- */

static void test_results_come_back_from_their_file(void **state) {
    (void)state;
    ifl_eval_results r, back;
    ifl_error err = {0};
    results_make(&r, 4, 3);
    r.k = 8;
    r.version = 41;
    strcpy(r.model, "runs/\"a\"/model");
    strcpy(r.run_uuid, "0123456789abcdef0123456789abcdef");
    r.rows[0].answer = strdup(" 12\n\t\"\\ \x01 \xc3\xa9 \xe2\x82\xac");
    r.rows[1].answer = strdup("");
    r.rows[2].status = FAILED;
    r.rows[3].reward = (float)NAN;
    r.rows[5].reward = -0.25f;
    r.rows[6].n_judged = 7;
    r.rows[6].n_right = 3;
    r.rows[7].task = UINT64_MAX;
    must(ifl_eval_results_write(&r, path, &err), &err);
    must(ifl_eval_results_read(&back, path, &err), &err);
    assert_true(back.n_rows == r.n_rows && back.k == 8 && back.version == 41);
    assert_string_equal(back.model, r.model);
    assert_string_equal(back.run_uuid, r.run_uuid);
    for (size_t i = 0; i < r.n_rows; i++) {
        const ifl_eval_row *a = &r.rows[i], *b = &back.rows[i];
        assert_string_equal(a->id, b->id);
        assert_string_equal(r.sources[a->source], back.sources[b->source]);
        assert_true(a->task == b->task && a->status == b->status);
        assert_true(a->n_judged == b->n_judged && a->n_right == b->n_right);
        assert_true(ifl_eval_judged(a->status, a->reward) == ifl_eval_judged(b->status, b->reward));
        if (ifl_eval_judged(a->status, a->reward)) assert_true(a->reward == b->reward);
        assert_true(!a->answer == !b->answer);
        if (a->answer) assert_string_equal(a->answer, b->answer);
    }
    ifl_eval_gain g = compare(&r, &back, NULL);
    assert_true(g.paired.n_tasks == 38 && g.paired.difference == 0.0 && g.n_unscored == 2);
    ifl_eval_results_clear(&r);
    ifl_eval_results_clear(&back);
}

static void test_a_long_answer_is_cut_between_characters(void **state) {
    (void)state;
    enum { N = 300001 };
    ifl_eval_results r = {0}, back;
    ifl_error err = {0};
    char *answer = add(&r, "a", "1", IFL_REWARD_OK, 1)->answer = malloc(N + 1);
    assert_non_null(answer);
    for (int i = 0; i < N; i++)
        answer[i] = i % 3 == 0 ? '\xe2' : i % 3 == 1 ? '\x82' : '\xac';
    answer[N / 3 * 3] = '\0';
    must(ifl_eval_results_write(&r, path, &err), &err);
    must(ifl_eval_results_read(&back, path, &err), &err);
    size_t n = strlen(back.rows[0].answer);
    assert_true(n % 3 == 0 && n > 200000 && memcmp(back.rows[0].answer, answer, n) == 0);
    ifl_eval_results_clear(&r);
    ifl_eval_results_clear(&back);
}

#define HEAD "{\"inflight_eval\":1,\"model\":\"m\",\"version\":0,\"k\":2,\"n\":2}\n"
#define ROW                                                                                        \
    "{\"id\":\"1\",\"data_source\":\"a\",\"task\":\"00000000000000ff\",\"status\":\"ok\","         \
    "\"reward\":1.0}\n"

static void test_damaged_files_are_refused_by_line(void **state) {
    (void)state;
    static const struct {
        const char *text, *why;
        ifl_status status;
    } cases[] = {
        {"", "the file is empty", IFL_FORMAT},
        {"[1]\n", ":1: not a JSON object", IFL_FORMAT},
        {ROW, "no file of", IFL_FORMAT},
        {"{\"inflight_eval\":2}\n" ROW, ":1: format 2", IFL_UNSUPPORTED},
        {"{\"inflight_eval\":1,\"n\":0,\"k\":-1}\n", ":1: k ", IFL_FORMAT},
        {HEAD ROW "{\"id\":\"2\",\"da", ":3: not a JSON object", IFL_FORMAT},
        {HEAD ROW, "1 tasks, its first line says 2", IFL_FORMAT},
        {"{\"inflight_eval\":1,\"k\":2}\n" ROW, ":1: n, ", IFL_FORMAT},
        {HEAD "\n", ":2: not a JSON object", IFL_FORMAT},
        {HEAD "{\"id\":2}\n", ":2: id", IFL_FORMAT},
        {HEAD "{\"id\":\"1\",\"data_source\":null}\n", ":2: data_source", IFL_FORMAT},
        {HEAD "{\"id\":\"1\",\"data_source\":\"a\",\"task\":\"xyz\"}\n", ":2: task", IFL_FORMAT},
        {HEAD "{\"id\":\"1\",\"data_source\":\"a\",\"task\":\"00000000000000ff\",\"status\":\"no\"}"
              "\n",
         ":2: status", IFL_FORMAT},
        {HEAD "{\"id\":\"1\",\"data_source\":\"a\",\"task\":\"00000000000000ff\",\"status\":\"ok\"}"
              "\n",
         ":2: reward", IFL_FORMAT},
        {HEAD "{\"id\":\"1\",\"data_source\":\"a\",\"task\":\"00000000000000ff\",\"status\":\"ok\","
              "\"reward\":1,\"samples\":2,\"samples_right\":3}\n",
         ":2: samples_right", IFL_FORMAT},
    };
    ifl_eval_results r;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ifl_error err = {0};
        must(ifl_file_write_atomic(path, cases[i].text, strlen(cases[i].text), &err), &err);
        assert_int_equal(ifl_eval_results_read(&r, path, &err), cases[i].status);
        if (!strstr(err.text, cases[i].why)) fail_msg("\"%s\": no \"%s\"", err.text, cases[i].why);
    }
    ifl_error err = {0};
    must(ifl_file_write_atomic(path, HEAD ROW ROW, strlen(HEAD ROW ROW), &err), &err);
    must(ifl_eval_results_read(&r, path, &err), &err);
    assert_true(r.n_rows == 2 && r.rows[0].task == 255 && r.k == 2);
    ifl_eval_results_clear(&r);
    assert_int_equal(ifl_eval_results_read(&r, "/nowhere/at/all", &err), IFL_NOTFOUND);
}

static void test_sources_have_a_limit(void **state) {
    (void)state;
    ifl_eval_results r = {0};
    ifl_error err = {0};
    char name[IFL_NAME_MAX + 1];
    for (int i = 0; i < IFL_SOURCES_MAX; i++) {
        snprintf(name, sizeof name, "s%d", i);
        add(&r, name, "1", IFL_REWARD_OK, 1);
    }
    assert_int_equal(ifl_eval_results_add(&r, "one more", "1", "{}", &err), IFL_LIMIT);
    memset(name, 'x', IFL_NAME_MAX);
    name[IFL_NAME_MAX] = '\0';
    assert_int_equal(ifl_eval_results_add(&r, name, "1", "{}", &err), IFL_LIMIT);
    assert_int_equal(r.n_rows, IFL_SOURCES_MAX);
    ifl_eval_results_clear(&r);
}

static int folder_make(void **state) {
    (void)state;
    strcpy(folder, "/tmp/inflight-test-XXXXXX");
    if (!mkdtemp(folder)) return -1;
    snprintf(path, sizeof path, "%s/results.jsonl", folder);
    return 0;
}

static int folder_remove(void **state) {
    (void)state;
    unlink(path);
    return rmdir(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_wilson_interval_inverts_the_score_test),
        cmocka_unit_test(test_pass_at_k_is_unbiased),
        cmocka_unit_test(test_paired_bootstrap_finds_a_gain_and_none),
        cmocka_unit_test(test_avg_at_k_leaves_unscored_samples_out),
        cmocka_unit_test(test_pass_at_k_leaves_out_tasks_with_too_few_judged_samples),
        cmocka_unit_test(test_figures_are_given_for_each_source),
        cmocka_unit_test(test_samples_are_judged_by_source),
        cmocka_unit_test(test_comparison_is_overall_and_per_source),
        cmocka_unit_test(test_comparison_pairs_tasks_not_places),
        cmocka_unit_test(test_comparison_leaves_out_what_was_not_judged_and_counts_it),
        cmocka_unit_test(test_a_task_of_the_same_name_is_not_the_same_task),
        cmocka_unit_test(test_results_come_back_from_their_file),
        cmocka_unit_test(test_a_long_answer_is_cut_between_characters),
        cmocka_unit_test(test_damaged_files_are_refused_by_line),
        cmocka_unit_test(test_sources_have_a_limit),
    };
    return cmocka_run_group_tests(tests, folder_make, folder_remove);
}
