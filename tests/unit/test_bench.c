/* What `inflight bench --json` prints: every line parses, the figures of a line agree with each
 * other, and shares of the roofline are shares. Speeds themselves are nobody's claim here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/thread_pool.h"
#include "kernels/bench_cases.h"
#include "kernels/bench_figures.h"
#include "kernels/bench_ops.h"
#include "kernels/bench_peaks.h"

enum { LINES_MAX = 32, TRIES = 4 };

typedef struct json_lines {
    int n;
    json_t *line[LINES_MAX];
} json_lines;

static void lines_clear(json_lines *l) {
    for (int i = 0; i < l->n; i++)
        json_decref(l->line[i]);
    l->n = 0;
}

/* Runs the binary with `arguments`; its standard output must be nothing but JSON objects, a line
 * each. */
static void bench_run(json_lines *out, const char *arguments) {
    char command[2048], line[8192];
    snprintf(command, sizeof command,
             "'%s' bench --json --threads 1 --seconds 0.005 %s 2>/dev/null", IFL_BINARY, arguments);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    out->n = 0;
    while (fgets(line, sizeof line, f)) {
        json_error_t error;
        assert_true(out->n < LINES_MAX);
        json_t *o = json_loads(line, JSON_REJECT_DUPLICATES, &error);
        if (!o) fail_msg("bench %s: %s in %s", arguments, error.text, line);
        assert_true(json_is_object(o));
        out->line[out->n++] = o;
    }
    int status = pclose(f);
    if (status != 0) fail_msg("bench %s: status %d", arguments, WEXITSTATUS(status));
}

static double number(const json_t *o, const char *key) {
    const json_t *v = json_object_get(o, key);
    if (!json_is_number(v)) fail_msg("no number %s in %s", key, json_dumps(o, 0));
    double x = json_number_value(v);
    if (!isfinite(x)) fail_msg("%s is %g", key, x);
    return x;
}

static const char *text(const json_t *o, const char *key) {
    const char *s = json_string_value(json_object_get(o, key));
    if (!s) fail_msg("no text %s in %s", key, json_dumps(o, 0));
    return s;
}

static void assert_ordered(const json_t *o, const char *name) {
    char key[96];
    double v[3];
    static const char *const ends[] = {"min", "median", "max"};
    for (int i = 0; i < 3; i++) {
        snprintf(key, sizeof key, "%s_%s", name, ends[i]);
        v[i] = number(o, key);
    }
    if (!(v[0] > 0 && v[0] <= v[1] && v[1] <= v[2]))
        fail_msg("%s: %g %g %g", name, v[0], v[1], v[2]);
}

static void assert_close(double got, double want) {
    if (!(fabs(got - want) <= 1e-4 * fabs(want))) fail_msg("got %.9g, wanted %.9g", got, want);
}

/* --- Figures
 * -------------------------------------------------------------------------------------- */

static void test_figures_are_of_sorted_values(void **state) {
    (void)state;
    double odd[] = {5, 1, 3}, even[] = {4, 1, 2, 9}, one[] = {7};
    ifl_figures f = ifl_figures_of(odd, 3);
    assert_true(f.min == 1 && f.median == 3 && f.max == 5 && f.upper_quartile == 5);
    f = ifl_figures_of(even, 4);
    assert_true(f.min == 1 && f.median == 3 && f.max == 9 && f.upper_quartile == 9);
    f = ifl_figures_of(one, 1);
    assert_true(f.min == 7 && f.median == 7 && f.max == 7 && f.upper_quartile == 7);
}

static void test_case_counts_flop_and_bytes(void **state) {
    (void)state;
    ifl_bench_case matmul = {IFL_BENCH_MATMUL, NULL, 3, 64, 32, 0, 0, false};
    assert_true(ifl_bench_case_flop(&matmul) == 2.0 * 3 * 64 * 32);
    assert_true(ifl_bench_case_bytes(&matmul, IFL_PROFILE_F32) ==
                2.0 * 64 * 32 + 4.0 * 3 * (64 + 32));
    ifl_bench_case attention = {IFL_BENCH_ATTENTION, NULL, 2, 4, 100, 32, 16, false};
    assert_true(ifl_bench_case_flop(&attention) == 4.0 * 2 * 4 * 100 * 32);
    assert_true(ifl_bench_case_elements(&attention) == 2 * 4 * 32);
}

/* Every case of the table runs in both profiles, on operands of its own and on shared ones. */
static void test_every_case_runs(void **state) {
    (void)state;
    ifl_error err = {0};
    for (int32_t i = 0; i < ifl_bench_ops_count(); i++)
        for (int p = 0; p < IFL_PROFILE_COUNT; p++) {
            double flop;
            int64_t n_elements;
            char name[96];
            ifl_bench_ops_repeated(i, &flop, &n_elements, name, sizeof name);
            assert_true(n_elements > 0 && flop >= 0 && strlen(name) > 3);
            if (flop > 2e8) continue; /* the same code at another size */
            if (ifl_bench_ops_repeat(i, (ifl_profile)p, 1, &err) != IFL_OK)
                fail_msg("%s: %s", name, err.text);
        }
    assert_int_equal(ifl_bench_ops_repeat(-1, IFL_PROFILE_F32, 1, &err), IFL_USAGE);
    assert_int_equal(ifl_bench_ops_repeat(0, IFL_PROFILE_F32, 0, &err), IFL_USAGE);
    assert_int_equal(ifl_bench_ops_repeat(100000, IFL_PROFILE_F32, 1, &err), IFL_USAGE);
}

static void test_yardstick_measures_with_all_threads(void **state) {
    (void)state;
    ifl_error err = {0};
    ifl_thread_pool *pool = NULL;
    ifl_roofline r;
    ifl_yardstick *yardstick = NULL;
    assert_int_equal(ifl_thread_pool_create(&pool, 2, &err), IFL_OK);
    for (int p = 0; p < IFL_PROFILE_COUNT; p++) {
        const ifl_ops *ops = ifl_ops_best((ifl_profile)p);
        assert_int_equal(ifl_yardstick_create(&yardstick, ops, pool, 0, &err), IFL_OK);
        ifl_yardstick_measure(yardstick, 0.001, &r);
        assert_true(ifl_yardstick_bytes(yardstick) >= 64 << 20); /* 32 MiB a thread */
        ifl_yardstick_free(yardstick);
        assert_true(r.product_flop_per_s > 1e6 && r.product_flop_per_s < 1e15);
        assert_true(r.fma_flop_per_s > 1e6 && r.fma_flop_per_s <= 1e14);
        assert_true(r.read_bytes_per_s > 1e6 && r.read_bytes_per_s < 1e14);
        assert_non_null(r.instruction);
    }
    ifl_thread_pool_free(pool);
}

/* --- Lines
 * ---------------------------------------------------------------------------------------- */

static bool share_is_one(const json_t *o) {
    double share = number(o, "share_of_roofline");
    if (!(share > 0)) fail_msg("a share of %g", share);
    return share < 1.5;
}

/* A machine on which others run can stop the yardsticks and not the case: tried again. */
static void shares_within(const char *arguments, int n_wanted) {
    bool within = false;
    for (int try = 0; try < TRIES && !within; try++) {
        json_lines l;
        int n = 0;
        within = true;
        bench_run(&l, arguments);
        for (int i = 0; i < l.n; i++) {
            if (!json_object_get(l.line[i], "share_of_roofline")) continue;
            within = share_is_one(l.line[i]) && within;
            n++;
        }
        assert_int_equal(n, n_wanted);
        lines_clear(&l);
    }
    if (!within) fail_msg("bench %s: a share of 1.5 or more, %d times", arguments, TRIES);
}

static void test_shares_are_shares(void **state) {
    (void)state;
    shares_within("ops --case 'attention 1x64 rows 256'", 1);
    shares_within("model --model tiny-gemma3 --batch 1,3 --new-tokens 4 --repeat 2 --sequences 2 "
                  "--sequence-tokens 16",
                  5);
}

static void test_op_lines_agree_with_themselves(void **state) {
    (void)state;
    json_lines l;
    bench_run(&l, "ops --case 'M 32 N 16 K 128' model.numerics=bf16");
    assert_int_equal(l.n, 3);
    assert_string_equal(text(l.line[0], "bench"), "roofline");
    assert_string_equal(text(l.line[0], "when"), "before");
    assert_string_equal(text(l.line[2], "when"), "after");
    assert_true(number(l.line[0], "peak_gflop_per_s") > 0 &&
                number(l.line[0], "read_gbyte_per_s") > 0);
    const json_t *o = l.line[1];
    assert_string_equal(text(o, "bench"), "op");
    assert_string_equal(text(o, "numerics"), "bf16");
    assert_ordered(o, "seconds");
    assert_ordered(o, "gflop_per_s");
    assert_close(number(o, "flop"), 2.0 * 32 * 16 * 128);
    assert_close(number(o, "gflop_per_s_median"),
                 number(o, "flop") / number(o, "seconds_median") * 1e-9);
    assert_close(number(o, "roofline_seconds"),
                 number(o, "flop") / number(o, "peak_gflop_per_s") * 1e-9);
    lines_clear(&l);
}

static void test_model_lines_agree_with_themselves(void **state) {
    (void)state;
    json_lines l;
    bench_run(&l, "model --model tiny-llama --batch 2 --new-tokens 4 --repeat 3 --sequences 2 "
                  "--sequence-tokens 16");
    assert_int_equal(l.n, 4);
    static const char *const names[] = {"decode", "prefill", "train", "train"};
    static const double tokens[] = {2 * 4, 512, 2 * 16, 2 * 16};
    for (int i = 0; i < l.n; i++) {
        const json_t *o = l.line[i];
        assert_string_equal(text(o, "bench"), names[i]);
        assert_ordered(o, "tokens_per_s");
        assert_ordered(o, "seconds");
        assert_close(number(o, "tokens_per_s_median"), tokens[i] / number(o, "seconds_median"));
        assert_close(number(o, "share_of_roofline"),
                     number(o, "roofline_seconds") / number(o, "seconds_median"));
        assert_true(number(o, "flop") > 0 && number(o, "bytes") > 0 &&
                    number(o, "peak_memory_bytes") > 1 << 20);
        assert_true(json_is_false(json_object_get(o, "from_memory"))); /* some 10,000 weights */
        assert_true(number(o, "read_gbyte_per_s_before") > 0 &&
                    number(o, "read_gbyte_per_s_after") > 0);
    }
    assert_true(number(l.line[2], "trained_tokens") == 15 &&
                number(l.line[3], "trained_tokens") == 4);
    /* tiny-llama: per row and layer q 32x32, k and v 16x32, o 32x32, gate, up and down 56x32; a
     * head of 301x32. */
    double layers = 2 * (32 * 32 * 2 + 2 * 16 * 32 + 3 * 56 * 32), head = 301 * 32, attention = 0;
    for (int key = 33; key < 37; key++)
        attention += 2 * 4.0 * 4 * 8 * key;
    assert_close(number(l.line[0], "flop"), 2 * (4 * 2 * (layers + head) + attention));
    lines_clear(&l);
}

static void test_ratio_is_ours_over_the_peers(void **state) {
    (void)state;
    char folder[] = "/tmp/ifl-bench-XXXXXX", program[96], arguments[512];
    assert_non_null(mkdtemp(folder));
    snprintf(program, sizeof program, "%s/llama-batched-bench", folder);
    FILE *f = fopen(program, "w");
    assert_non_null(f);
    fprintf(f, "#!/bin/sh\n"
               "echo '|    32 |      2 |    1 |     34 |    0.1 |   320.00 |    0.2 |    10.00 |   "
               " 0.3 |   1.0 |'\n"
               "echo '|    32 |      2 |    1 |     34 |    0.1 |   320.00 |    0.2 |    12.50 |   "
               " 0.3 |   1.0 |'\n");
    fclose(f);
    assert_int_equal(chmod(program, 0755), 0);
    json_lines l;
    snprintf(arguments, sizeof arguments,
             "decode --against llama.cpp=%s,%s/models/llama3/model.gguf --repeat 1 --batch 1 "
             "--new-tokens 2",
             folder, IFL_GOLDEN_DIR);
    bench_run(&l, arguments);
    assert_int_equal(l.n, 1);
    const json_t *o = l.line[0];
    assert_string_equal(text(o, "bench"), "against");
    assert_string_equal(text(o, "peer"), "llama.cpp");
    assert_ordered(o, "ours_tokens_per_s");
    assert_ordered(o, "ratio");
    assert_close(number(o, "peer_tokens_per_s_median"), 12.5);
    assert_close(number(o, "ratio_median"), number(o, "ours_tokens_per_s_median") / 12.5);
    assert_true(number(o, "ours_peak_memory_bytes") > 1 << 20 &&
                number(o, "peer_peak_memory_bytes") > 1 << 16);
    assert_non_null(strstr(text(o, "conditions"), "does not sample"));
    assert_non_null(strstr(text(o, "peer_command"), "-npl 1,1"));
    lines_clear(&l);
    unlink(program);
    rmdir(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_figures_are_of_sorted_values),
        cmocka_unit_test(test_case_counts_flop_and_bytes),
        cmocka_unit_test(test_every_case_runs),
        cmocka_unit_test(test_yardstick_measures_with_all_threads),
        cmocka_unit_test(test_shares_are_shares),
        cmocka_unit_test(test_op_lines_agree_with_themselves),
        cmocka_unit_test(test_model_lines_agree_with_themselves),
        cmocka_unit_test(test_ratio_is_ours_over_the_peers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
