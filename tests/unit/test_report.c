/* `inflight rollouts` and `inflight report` on a made-up run, through the binary as a user calls
 * it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/metrics.h"
#include "common/rollout_ledger.h"
#include "common/run_dir.h"
#include "common/tokenizer.h"

#define STEPS 40
#define GROUPS 3
#define GROUP_SIZE 4

static char root[64];
static ifl_tokenizer *tokenizer;
static uint64_t rng_state = 5;

static double uniform(void) {
    rng_state = rng_state * 6364136223846793005u + 1442695040888963407u;
    return (double)(rng_state >> 11) / 9007199254740992.0;
}

static void must(ifl_status st, const ifl_error *err) {
    if (st != IFL_OK) fail_msg("%s", err->text);
}

static void encode(const char *text, ifl_token_ids *ids) {
    ifl_error err = {0};
    ids->n = 0;
    must(ifl_tokenizer_encode(tokenizer, text, strlen(text), 0, ids, &err), &err);
}

/* One ladder answer of k lines, sampled across the versions step - 2 and step - 1. */
static void trajectory_write(ifl_rollout_log *log, uint64_t serial, int32_t sample, int64_t step,
                             int k) {
    static ifl_token_ids ids;
    ifl_trajectory *traj = NULL;
    ifl_error err = {0};
    char text[512];
    int x = 400 + (int)serial % 100, n = 0;
    snprintf(text, sizeof text, "%03d+7*%02d=", x, k);
    encode(text, &ids);
    must(ifl_trajectory_create(&traj, ids.ids, (int32_t)ids.n, &err), &err);
    for (int i = k - 1; i >= 0; i--)
        n += snprintf(text + n, sizeof text - (size_t)n, "%03d+7*%02d=", x += 7, i);
    snprintf(text + n, sizeof text - (size_t)n, "#%03d\n", x);
    encode(text, &ids);
    traj->task_serial = serial;
    traj->sample = sample;
    traj->group_size = GROUP_SIZE;
    snprintf(traj->task_id, sizeof traj->task_id, "ladder/<%llu>", (unsigned long long)serial);
    snprintf(traj->actor, sizeof traj->actor, "actor-%d", sample & 1);
    for (size_t i = 0; i < ids.n; i++) {
        int64_t version = i < ids.n / 2 && step > 1 ? step - 2 : step - 1;
        must(ifl_trajectory_append(traj, ids.ids[i], -0.1f, version, &err), &err);
    }
    traj->finish = IFL_FINISH_EOS;
    traj->temperature = 1;
    traj->top_p = 1;
    traj->reward.status = IFL_REWARD_OK;
    traj->reward.reward = uniform() < 0.35 + 0.6 * (double)step / STEPS ? 1 : 0;
    snprintf(traj->reward.checker, sizeof traj->reward.checker, "exact/1");
    must(ifl_rollout_log_trajectory(log, traj, &err), &err);
    ifl_trajectory_free(traj);
}

static void rollouts_write(const ifl_run_dir *run, bool lose_one) {
    ifl_rollout_log *log = NULL;
    ifl_error err = {0};
    const ifl_rollout_log_options options = {0};
    must(ifl_rollout_log_open(&log, run->rollouts, &options, &err), &err);
    must(ifl_rollout_log_run_started(log, 1, 0, 0, &err), &err);
    uint64_t serial = 0;
    for (int64_t step = 1; step <= STEPS; step++) {
        ifl_rollout_key keys[GROUPS * GROUP_SIZE];
        int32_t n = 0;
        for (int g = 0; g < GROUPS; g++, serial++) {
            must(
                ifl_rollout_log_leased(log, serial, IFL_PURPOSE_TRAIN, GROUP_SIZE, serial, 0, &err),
                &err);
            for (int32_t sample = 0; sample < GROUP_SIZE; sample++) {
                int k = uniform() < (double)step / STEPS ? 1 + (int)(uniform() * 15) : 0;
                trajectory_write(log, serial, sample, step, k);
                keys[n++] = (ifl_rollout_key){serial, sample, IFL_PURPOSE_TRAIN};
            }
        }
        must(ifl_rollout_log_trained(log, step, keys, n - (lose_one && step == STEPS), &err), &err);
    }
    must(ifl_rollout_log_run_ended(log, STEPS, "done", NULL, 0, &err), &err);
    ifl_rollout_log_close(log);
}

static void metrics_write(const ifl_run_dir *run, int n_sources) {
    ifl_metrics *m = NULL;
    ifl_error err = {0};
    must(ifl_metrics_open(&m, run->metrics, 0, &err), &err);
    for (int step = 0; step <= STEPS; step++) {
        double t = (double)step / STEPS;
        if (step) {
            ifl_metrics_begin(m, "step", step);
            ifl_metrics_add(m, "rl/reward", 0.43 + 0.5 * t + 0.05 * uniform());
            ifl_metrics_add(m, "stats/lag", 1.2 + 0.4 * uniform());
            ifl_metrics_add_int(m, "stats/max_lag", 3 + (int)(2 * uniform()));
            ifl_metrics_add(m, "completions/mean_length", 6 + 46 * t + 3 * uniform());
            ifl_metrics_add(m, "completions/p95_length", 20 + 100 * t + 3 * uniform());
            ifl_metrics_add(m, "completions/max_length", 149);
            ifl_metrics_add(m, "rl/ess", step == 7 ? (double)NAN : 0.99 + 0.009 * uniform());
            ifl_metrics_add(m, "rl/entropy", 0.5 - 0.4 * t + 0.02 * uniform());
            ifl_metrics_add(m, "throughput/actor_tokens_per_s", 15000 + 3000 * uniform());
            ifl_metrics_add(m, "throughput/learner_tokens_per_s", 9000 + 2000 * uniform());
            ifl_metrics_add(m, "swap/stall_ms_p50", 0.02 + 0.01 * uniform());
            ifl_metrics_add(m, "swap/stall_ms_p99", 0.2 + 0.1 * uniform());
            ifl_metrics_add(m, "rl/zero_variance_share", 0.5 - 0.2 * t);
            ifl_metrics_add(m, "completions/truncated_share", 0.02 * uniform());
            must(ifl_metrics_end(m, &err), &err);
        }
        if (step % 10) continue;
        double a = 0.35 + 0.6 * sqrt(t);
        ifl_metrics_begin(m, "eval", step);
        ifl_metrics_add(m, "eval/accuracy", a);
        ifl_metrics_add(m, "eval/accuracy_low", a - 0.04);
        ifl_metrics_add(m, "eval/accuracy_high", a + 0.04);
        ifl_metrics_add_int(m, "eval/n", 512);
        for (int s = 0; s < n_sources; s++) {
            static const char *const what[] = {"accuracy", "accuracy_low", "accuracy_high"};
            char key[64];
            for (int i = 0; i < 3; i++) {
                snprintf(key, sizeof key, "eval/s/%d<i>/%s", s, what[i]);
                ifl_metrics_add(m, key, a / (s + 1) + 0.04 * (i == 1 ? -1 : i == 2));
            }
            snprintf(key, sizeof key, "eval/s/%d<i>/n", s);
            ifl_metrics_add_int(m, key, 100 + s);
        }
        ifl_metrics_add_int(m, "eval/version", step);
        must(ifl_metrics_end(m, &err), &err);
    }
    ifl_metrics_close(m);
}

static void summary_write(const ifl_run_dir *run) {
    static const char text[] =
        "{\"run\":\"demo <b>\",\"steps\":40,\"wall_s\":141.2,\"accuracy_before\":0.35,"
        "\"accuracy_after\":0.95,\"accuracy_gain\":0.601,\"accuracy_gain_low\":0.55,"
        "\"accuracy_gain_high\":0.65,\"accuracy_gain_tasks\":511,"
        "\"accuracy_gain_sources\":[{\"name\":\"s/1<i>\",\"gain\":0.3,\"low\":0.25,\"high\":0.35},"
        "{\"name\":\"s/"
        "0<i>\",\"gain\":null}],\"tokens_generated\":612345,\"tokens_trained\":598211,"
        "\"swaps\":78,\"swaps_mid_trajectory\":3120,\"swap_stall_ms_p50\":0.021,"
        "\"swap_stall_ms_p99\":0.24,\"lag_mean\":1.41,\"lag_max\":4,\"ess_mean\":0.9937,"
        "\"parity_tokens_checked\":58211,\"parity_tokens_differing\":0,\"books\":{\"lost\":0}}";
    ifl_error err = {0};
    must(ifl_file_write_atomic(run->summary, text, sizeof text - 1, &err), &err);
}

static void run_make(const char *name, bool lose_one, int n_sources) {
    ifl_config *config = malloc(sizeof *config);
    ifl_run_dir run;
    ifl_error err = {0};
    assert_non_null(config);
    ifl_config_defaults(config);
    snprintf(config->run.dir, sizeof config->run.dir, "%s", root);
    snprintf(config->run.name, sizeof config->run.name, "%s", name);
    config->run.steps = STEPS;
    must(ifl_run_dir_create(&run, config, &err), &err);
    char *json = NULL;
    size_t n = 0;
    must(ifl_tokenizer_to_json(tokenizer, &json, &n, &err), &err);
    must(ifl_file_write_atomic(run.tokenizer, json, n, &err), &err);
    free(json);
    rollouts_write(&run, lose_one);
    metrics_write(&run, n_sources);
    summary_write(&run);
    ifl_run_dir_close(&run);
    free(config);
}

static int root_make(void **state) {
    (void)state;
    static const char *const specials[] = {"<pad>"};
    ifl_error err = {0};
    snprintf(root, sizeof root, "/tmp/ifl_report_XXXXXX");
    if (!mkdtemp(root)) return -1;
    if (ifl_tokenizer_char(&tokenizer, "\n0123456789+*=#", 15, specials, 1, false, &err) !=
        IFL_OK) {
        fprintf(stderr, "%s\n", err.text);
        return -1;
    }
    run_make("demo", false, 2);
    run_make("lossy", true, 1);
    run_make("many", false, 20);
    return 0;
}

static int root_remove(void **state) {
    (void)state;
    char command[128];
    ifl_tokenizer_free(tokenizer);
    if (getenv("IFL_KEEP_REPORT")) return printf("kept: %s\n", root) < 0;
    snprintf(command, sizeof command, "rm -r %s", root);
    return system(command);
}

/* Runs `inflight ...`; returns the exit code and what it printed (owned). */
static int binary_run(char **out, const char *format, ...) {
    char arguments[512], command[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(arguments, sizeof arguments, format, args);
    va_end(args);
    snprintf(command, sizeof command, "%s %s 2>&1", IFL_BINARY, arguments);
    FILE *p = popen(command, "r");
    assert_non_null(p);
    size_t n_out = 0;
    FILE *m = open_memstream(out, &n_out);
    assert_non_null(m);
    char block[4096];
    for (size_t n; (n = fread(block, 1, sizeof block, p)) > 0;)
        fwrite(block, 1, n, m);
    fclose(m);
    int code = pclose(p);
    assert_true(WIFEXITED(code));
    return WEXITSTATUS(code);
}

static int64_t lines_of(const char *text) {
    int64_t n = 0;
    for (; *text; text++)
        n += *text == '\n';
    return n;
}

static void test_check_balances_a_good_run(void **state) {
    (void)state;
    char *out;
    assert_int_equal(binary_run(&out, "rollouts --check --dir %s demo", root), 0);
    json_t *books = json_loads(out, 0, NULL);
    assert_non_null(books);
    assert_int_equal(json_integer_value(json_object_get(books, "leased")),
                     STEPS * GROUPS * GROUP_SIZE);
    assert_int_equal(json_integer_value(json_object_get(books, "trained")),
                     STEPS * GROUPS * GROUP_SIZE);
    assert_int_equal(json_integer_value(json_object_get(books, "lost")), 0);
    json_decref(books);
    free(out);
}

static void test_check_fails_when_one_is_lost(void **state) {
    (void)state;
    char *out;
    assert_int_equal(binary_run(&out, "rollouts --check --dir %s lossy", root), 65);
    assert_non_null(strstr(out, "\"lost\": 1"));
    assert_non_null(strstr(out, "do not balance: 1 lost"));
    free(out);
}

static void test_filters_choose_rows(void **state) {
    (void)state;
    char *out;
    assert_int_equal(binary_run(&out, "rollouts --json --dir %s demo", root), 0);
    assert_int_equal(lines_of(out), STEPS * GROUPS * GROUP_SIZE);
    free(out);
    assert_int_equal(binary_run(&out, "rollouts --json --step 7 --dir %s demo", root), 0);
    assert_int_equal(lines_of(out), GROUPS * GROUP_SIZE);
    json_t *row = json_loadb(out, strcspn(out, "\n"), 0, NULL);
    assert_non_null(row);
    assert_int_equal(json_integer_value(json_object_get(row, "step")), 7);
    assert_int_equal(json_integer_value(json_object_get(row, "lag_max")), 1);
    assert_true(json_array_size(json_object_get(row, "versions")) == 2);
    json_decref(row);
    free(out);
    assert_int_equal(binary_run(&out, "rollouts --json --task 'ladder/<3>' --dir %s demo", root),
                     0);
    assert_int_equal(lines_of(out), GROUP_SIZE);
    free(out);
    assert_int_equal(binary_run(&out, "rollouts --json --tail 5 --dir %s demo", root), 0);
    assert_int_equal(lines_of(out), 5);
    assert_non_null(strstr(out, "ladder/<119>"));
    free(out);
    /* Every trajectory but those of step 1 has a token of lag 1; none has lag 2. */
    assert_int_equal(binary_run(&out, "rollouts --json --min-lag 1 --dir %s demo", root), 0);
    assert_int_equal(lines_of(out), (STEPS - 1) * GROUPS * GROUP_SIZE);
    free(out);
    assert_int_equal(binary_run(&out, "rollouts --json --min-lag 2 --dir %s demo", root), 0);
    assert_int_equal(lines_of(out), 0);
    free(out);
}

static void test_text_shows_prompt_answer_versions_and_fate(void **state) {
    (void)state;
    char *out;
    assert_int_equal(binary_run(&out, "rollouts --tail 1 --dir %s demo", root), 0);
    assert_non_null(strstr(out, "trained in step 40"));
    assert_non_null(strstr(out, "prompt    4"));
    assert_non_null(strstr(out, "answer    "));
    assert_non_null(strstr(out, "v38: tokens 9.."));
    assert_non_null(strstr(out, "lag       mean"));
    free(out);
}

static void test_unknown_runs_and_options_are_refused(void **state) {
    (void)state;
    char *out;
    assert_int_equal(binary_run(&out, "rollouts --dir %s nothing", root), 65);
    assert_non_null(strstr(out, "no such run"));
    free(out);
    assert_int_equal(binary_run(&out, "rollouts --dir %s", root), 64);
    free(out);
    assert_int_equal(binary_run(&out, "rollouts --step -1 demo"), 64);
    free(out);
    assert_int_equal(binary_run(&out, "rollouts demo run.no_such_key=3"), 64);
    free(out);
    assert_int_equal(binary_run(&out, "nonsense"), 64);
    free(out);
}

static void page_read(const char *name, char **page) {
    char path[128], *out;
    assert_int_equal(binary_run(&out, "report --dir %s %s", root, name), 0);
    free(out);
    snprintf(path, sizeof path, "%s/%s/report.html", root, name);
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    size_t n = 0;
    FILE *m = open_memstream(page, &n);
    assert_non_null(m);
    for (int c; (c = fgetc(f)) != EOF;)
        fputc(c, m);
    fclose(m);
    fclose(f);
}

static void wanted(const char *page, const char *part) {
    if (!strstr(page, part)) fail_msg("the page lacks \"%s\"", part);
}

static void test_report_is_self_contained_and_escaped(void **state) {
    (void)state;
    char *page;
    page_read("demo", &page);
    assert_null(strstr(page, "<script"));
    assert_null(strstr(page, "http://"));
    assert_null(strstr(page, "https://"));
    assert_null(strstr(page, "src="));
    assert_null(strstr(page, "nan"));
    assert_null(strstr(page, "inf\""));
    assert_null(strstr(page, "demo <b>"));
    wanted(page, "demo &lt;b&gt;");
    wanted(page, "ladder/&lt;0&gt;");
    wanted(page, "prefers-color-scheme:dark");
    wanted(page, "width=device-width");
    free(page);
}

static void test_report_shows_curves_books_audit_and_rollouts(void **state) {
    (void)state;
    static const char *const parts[] = {
        "0.350 → 0.950",
        "0 differing",
        "of 58211 log-probs",
        "<b>Reward</b>",
        "Held-out accuracy",
        "<b>Lag</b>",
        "Answer length",
        "Effective sample size",
        "Entropy",
        "Throughput",
        "Swap stall",
        "Answer lengths, start and end",
        "trajectories leased",
        "<h3>Step 1</h3>",
        "<h3>Step 40</h3>",
        "policy version 39",
        "0 lost",
        "steps 1 to 4",
        "steps 37 to 40",
        "40 optimizer steps of 40",
    };
    char *page;
    page_read("demo", &page);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        wanted(page, parts[i]);
    free(page);
    page_read("lossy", &page);
    wanted(page, "class=\"bad\">1 lost");
    free(page);
}

static void test_report_shows_accuracy_by_source(void **state) {
    (void)state;
    char *page;
    page_read("demo", &page);
    wanted(page, "+60.1 points, paired 95 %: +55.0 to +65.0; n 511");
    wanted(page, "Held-out accuracy by source</b> <span>greedy, with 95 % interval");
    wanted(page, "<tr><td>all</td><td>512</td><td>0.350 ");
    wanted(page, "+60.1 <small>(+55.0 to +65.0)</small></td></tr>\n<tr><td>s/0&lt;i&gt;</td>");
    wanted(page, "s/0&lt;i&gt;</td><td>100</td><td>0.350 <small>(0.310 to 0.390)</small></td>"
                 "<td>0.950 <small>(0.910 to 0.990)</small></td><td>–</td></tr>");
    wanted(page, "s/1&lt;i&gt;</td><td>101</td><td>0.175 ");
    wanted(page, "<td>+30.0 <small>(+25.0 to +35.0)</small></td></tr>");
    assert_null(strstr(page, "s/0<i>"));
    free(page);
    page_read("lossy", &page); /* one source is the whole */
    assert_null(strstr(page, "by source"));
    free(page);
    page_read("many", &page); /* no chart of twenty lines, and sixteen in the table */
    assert_null(strstr(page, "by source</b> <span>greedy, with 95 % interval"));
    wanted(page, "<td>s/15&lt;i&gt;</td>");
    assert_null(strstr(page, "<td>s/16&lt;i&gt;</td>"));
    free(page);
}

static void test_report_of_a_run_without_anything_is_still_written(void **state) {
    (void)state;
    char command[128], *page;
    snprintf(command, sizeof command, "mkdir -p %s/bare", root);
    assert_int_equal(system(command), 0);
    page_read("bare", &page);
    wanted(page, "not recorded");
    free(page);
}

static void test_damaged_files_are_an_error_that_names_them(void **state) {
    (void)state;
    char command[256], *out;
    snprintf(command, sizeof command,
             "cp -r %s/demo %s/broken && echo '[1]' > %s/broken/summary.json", root, root, root);
    assert_int_equal(system(command), 0);
    assert_int_equal(binary_run(&out, "report --dir %s broken", root), 65);
    assert_non_null(strstr(out, "summary.json"));
    free(out);
    snprintf(command, sizeof command,
             "printf XXXX | dd of=%s/broken/rollouts/000001.ifl bs=1 seek=500 conv=notrunc 2>&1",
             root);
    assert_int_equal(system(command), 0);
    assert_int_equal(binary_run(&out, "rollouts --check --dir %s broken", root), 65);
    assert_non_null(strstr(out, "000001.ifl: offset "));
    free(out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_check_balances_a_good_run),
        cmocka_unit_test(test_check_fails_when_one_is_lost),
        cmocka_unit_test(test_filters_choose_rows),
        cmocka_unit_test(test_text_shows_prompt_answer_versions_and_fate),
        cmocka_unit_test(test_unknown_runs_and_options_are_refused),
        cmocka_unit_test(test_report_is_self_contained_and_escaped),
        cmocka_unit_test(test_report_shows_curves_books_audit_and_rollouts),
        cmocka_unit_test(test_report_shows_accuracy_by_source),
        cmocka_unit_test(test_report_of_a_run_without_anything_is_still_written),
        cmocka_unit_test(test_damaged_files_are_an_error_that_names_them),
    };
    return cmocka_run_group_tests(tests, root_make, root_remove);
}
