#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <pty.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/fail_point.h"
#include "common/metrics.h"
#include "common/status_line.h"

typedef struct seen {
    int n;
    int64_t steps[64];
    double reward;
    bool null_seen;
} seen;

static ifl_status seen_row(const json_t *row, void *user) {
    seen *s = user;
    if (s->n < 64) s->steps[s->n] = json_integer_value(json_object_get(row, "step"));
    s->n++;
    if (json_object_get(row, "rl/reward"))
        s->reward = json_number_value(json_object_get(row, "rl/reward"));
    if (json_is_null(json_object_get(row, "rl/loss"))) s->null_seen = true;
    return IFL_OK;
}

static char folder[64];

static int folder_make(void **state) {
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/ifl_metrics_XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int folder_remove(void **state) {
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", folder);
    return system(command);
}

static void row_write(ifl_metrics *m, int64_t step, double reward) {
    ifl_error err = {0};
    ifl_metrics_begin(m, "step", step);
    ifl_metrics_add(m, "rl/reward", reward);
    ifl_metrics_add(m, "rl/loss", (double)NAN);
    ifl_metrics_add_int(m, "stats/tokens", 12345678901234);
    ifl_metrics_add_text(m, "note", "a \"quoted\"\nline");
    if (ifl_metrics_end(m, &err) != IFL_OK) fail_msg("%s", err.text);
}

static void test_rows_read_back_and_not_a_number_is_null(void **state) {
    (void)state;
    char path[128];
    ifl_metrics *m = NULL;
    ifl_error err = {0};
    snprintf(path, sizeof path, "%s/a.jsonl", folder);
    if (ifl_metrics_open(&m, path, 0, &err) != IFL_OK) fail_msg("%s", err.text);
    row_write(m, 1, 0.25);
    row_write(m, 2, 0.5);
    assert_true(ifl_metrics_last(m, "rl/reward", -1) == 0.5);
    assert_true(ifl_metrics_last(m, "rl/loss", -1) == -1);
    assert_true(ifl_metrics_last(m, "stats/tokens", -1) == 12345678901234.0);
    ifl_metrics_close(m);
    seen s = {0};
    int64_t n_skipped;
    if (ifl_metrics_read(path, seen_row, &s, &n_skipped, &err) != IFL_OK) fail_msg("%s", err.text);
    assert_int_equal(s.n, 2);
    assert_int_equal(s.steps[1], 2);
    assert_true(s.reward == 0.5 && s.null_seen);
    assert_int_equal(n_skipped, 0);
}

static void test_torn_last_line_is_closed_off_and_skipped(void **state) {
    (void)state;
    char path[128];
    ifl_metrics *m = NULL;
    ifl_error err = {0};
    snprintf(path, sizeof path, "%s/b.jsonl", folder);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs("{\"kind\":\"step\",\"step\":1}\n{\"kind\":\"st", f);
    fclose(f);
    if (ifl_metrics_open(&m, path, 0, &err) != IFL_OK) fail_msg("%s", err.text);
    row_write(m, 2, 0.5);
    ifl_metrics_close(m);
    seen s = {0};
    int64_t n_skipped;
    if (ifl_metrics_read(path, seen_row, &s, &n_skipped, &err) != IFL_OK) fail_msg("%s", err.text);
    assert_int_equal(s.n, 2);
    assert_int_equal(n_skipped, 1);
}

static void test_rotation_keeps_every_row_in_order(void **state) {
    (void)state;
    char path[128], rotated[160];
    ifl_metrics *m = NULL;
    ifl_error err = {0};
    snprintf(path, sizeof path, "%s/c.jsonl", folder);
    if (ifl_metrics_open(&m, path, 500, &err) != IFL_OK) fail_msg("%s", err.text);
    for (int i = 1; i <= 40; i++)
        row_write(m, i, 0.5);
    ifl_metrics_close(m);
    snprintf(rotated, sizeof rotated, "%s.2", path);
    assert_int_equal(access(rotated, F_OK), 0);
    seen s = {0};
    int64_t n_skipped;
    if (ifl_metrics_read(path, seen_row, &s, &n_skipped, &err) != IFL_OK) fail_msg("%s", err.text);
    assert_int_equal(s.n, 40);
    for (int i = 0; i < 40; i++)
        assert_int_equal(s.steps[i], i + 1);
}

static void test_rows_without_room_on_the_disk_wait_for_it(void **state) {
    (void)state;
    char path[128];
    ifl_error err = {0};
    ifl_metrics *m;
    snprintf(path, sizeof path, "%s/full.jsonl", folder);
    assert_int_equal(ifl_metrics_open(&m, path, 0, &err), IFL_OK);
    row_write(m, 1, 0.5);
    assert_int_equal(ifl_fail_points_arm("metrics.write=error(ENOSPC)@1+", &err), IFL_OK);
    row_write(m, 2, 0.5);
    row_write(m, 3, 0.5);
    assert_int_equal(ifl_fail_points_arm("", &err), IFL_OK);
    row_write(m, 4, 0.25);
    assert_int_equal(ifl_fail_points_arm("metrics.write=error(ENOSPC)@1", &err), IFL_OK);
    row_write(m, 5, 0.25);
    ifl_metrics_close(m);
    seen s = {0};
    int64_t n_skipped = 0;
    assert_int_equal(ifl_metrics_read(path, seen_row, &s, &n_skipped, &err), IFL_OK);
    assert_int_equal(s.n, 5);
    for (int i = 0; i < 5; i++)
        assert_int_equal(s.steps[i], i + 1);
    assert_int_equal(n_skipped, 0);
}

static void test_missing_file_is_not_found(void **state) {
    (void)state;
    ifl_error err = {0};
    int64_t n_skipped;
    assert_int_equal(ifl_metrics_read("/nonexistent/m.jsonl", seen_row, NULL, &n_skipped, &err),
                     IFL_NOTFOUND);
}

/* --- The live status
 * ------------------------------------------------------------------------------ */

static ifl_status_view view_full(void) {
    ifl_status_view v;
    ifl_status_view_clear(&v);
    v.step = 17;
    v.steps = 40;
    v.reward = 0.625;
    v.accuracy = 0.871;
    v.accuracy_first = 0.35;
    v.accuracy_step = 10;
    v.actor_tokens_per_s = 15234;
    v.learner_tokens_per_s = 9876;
    v.lag_mean = 1.31;
    v.lag_max = 4;
    v.ess = 0.987;
    v.swap_stall_ms = 0.42;
    v.mean_length = 48;
    v.eta_s = 75;
    v.elapsed_s = 60;
    v.actors = 2;
    v.in_flight = 256;
    return v;
}

/* Columns on a terminal: bytes without the colour sequences. */
static int columns_of(const char *line) {
    int n = 0;
    for (const char *p = line; *p; p++) {
        if (*p == '\033') {
            while (*p && *p != 'm')
                p++;
            continue;
        }
        n++;
    }
    return n;
}

static void test_block_never_exceeds_the_width(void **state) {
    (void)state;
    ifl_status_view v = view_full();
    for (int width = 20; width <= 200; width++)
        for (int color = 0; color < 2; color++) {
            char lines[IFL_STATUS_LINES_MAX][512];
            int n;
            ifl_status_block(&v, width, color, lines, &n);
            assert_true(n >= 1 && n <= IFL_STATUS_LINES_MAX);
            for (int i = 0; i < n; i++)
                if (columns_of(lines[i]) >= width)
                    fail_msg("width %d: %d columns: %s", width, columns_of(lines[i]), lines[i]);
            if (!color) assert_null(strchr(lines[0], '\033'));
        }
}

static void test_block_shows_every_figure_when_wide(void **state) {
    (void)state;
    ifl_status_view v = view_full();
    char lines[IFL_STATUS_LINES_MAX][512], all[2048];
    int n;
    ifl_status_block(&v, 120, false, lines, &n);
    snprintf(all, sizeof all, "%s\n%s\n%s", lines[0], lines[1], lines[2]);
    static const char *const parts[] = {
        "17/40",     "ETA 1:15",  "reward 0.625", "0.871 (was 0.350)", "1.31/4",
        "ESS 0.987", "15k tok/s", "9.9k tok/s",   "0.42 ms",           "in flight 256"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (!strstr(all, parts[i])) fail_msg("no \"%s\" in:\n%s", parts[i], all);
}

static void test_unknown_figures_are_dashes(void **state) {
    (void)state;
    ifl_status_view v;
    char text[512];
    ifl_status_view_clear(&v);
    ifl_status_plain(&v, text, sizeof text);
    assert_non_null(strstr(text, "reward - accuracy -"));
    assert_null(strstr(text, "nan"));
}

static void test_a_pipe_gets_plain_lines_one_per_step(void **state) {
    (void)state;
    char *text = NULL;
    char path[128];
    snprintf(path, sizeof path, "%s/status", folder);
    FILE *f = fopen(path, "w+");
    assert_non_null(f);
    ifl_status_line *line = ifl_status_line_create(f);
    ifl_status_view v = view_full();
    for (int step = 1; step <= 3; step++)
        for (int again = 0; again < 50; again++) {
            v.step = step;
            ifl_status_line_update(line, &v);
        }
    ifl_status_line_note(line, "a note");
    ifl_status_line_free(line);
    rewind(f);
    size_t cap = 0;
    int n = 0;
    while (getline(&text, &cap, f) > 0) {
        assert_null(strchr(text, '\033'));
        assert_null(strchr(text, '\r'));
        n++;
    }
    assert_int_equal(n, 4);
    free(text);
    fclose(f);
}

static void test_a_terminal_gets_a_block_in_place_and_no_color_is_respected(void **state) {
    (void)state;
    int master, slave;
    if (openpty(&master, &slave, NULL, NULL, NULL)) skip();
    setenv("TERM", "xterm", 1);
    setenv("NO_COLOR", "1", 1);
    FILE *f = fdopen(slave, "w");
    assert_non_null(f);
    ifl_status_line *line = ifl_status_line_create(f);
    ifl_status_view v = view_full();
    ifl_status_line_update(line, &v);
    v.step++;
    ifl_status_line_update(line, &v);
    ifl_status_line_free(line);
    char got[4096] = "";
    size_t n = 0;
    struct pollfd ready = {.fd = master, .events = POLLIN};
    while (!strstr(got, "18/40") && n + 1 < sizeof got && poll(&ready, 1, 10000) == 1) {
        ssize_t k = read(master, got + n, sizeof got - 1 - n);
        assert_true(k > 0);
        n += (size_t)k;
        got[n] = 0;
    }
    assert_non_null(strstr(got, "\033[3A")); /* back over the three lines */
    assert_null(strstr(got, "\033[1m"));     /* no colour */
    assert_non_null(strstr(got, "18/40"));
    fclose(f);
    close(master);
    unsetenv("NO_COLOR");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows_read_back_and_not_a_number_is_null),
        cmocka_unit_test(test_torn_last_line_is_closed_off_and_skipped),
        cmocka_unit_test(test_rotation_keeps_every_row_in_order),
        cmocka_unit_test(test_rows_without_room_on_the_disk_wait_for_it),
        cmocka_unit_test(test_missing_file_is_not_found),
        cmocka_unit_test(test_block_never_exceeds_the_width),
        cmocka_unit_test(test_block_shows_every_figure_when_wide),
        cmocka_unit_test(test_unknown_figures_are_dashes),
        cmocka_unit_test(test_a_pipe_gets_plain_lines_one_per_step),
        cmocka_unit_test(test_a_terminal_gets_a_block_in_place_and_no_color_is_respected),
    };
    return cmocka_run_group_tests(tests, folder_make, folder_remove);
}
