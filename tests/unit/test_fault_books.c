/* The fault harness's own checker, in its failing directions: each kind of violation, written into
 * a log by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "common/rollout_log.h"
#include "tests/faults/books.h"

static char folder[64], record[96];

static int setup(void **state) {
    (void)state;
    strcpy(folder, "/tmp/ifl_books_XXXXXX");
    if (!mkdtemp(folder)) return -1;
    snprintf(record, sizeof record, "%s/record", folder);
    return mkdir(record, 0755);
}

static int teardown(void **state) {
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static void must(ifl_status st, const ifl_error *err) {
    if (st != IFL_OK) fail_msg("%s: %s", ifl_status_text(st), err->text);
}

static ifl_rollout_log *begin(int64_t step, uint64_t next_serial) {
    ifl_error err = {0};
    ifl_rollout_log *log;
    ifl_rollout_log_options options = {0};
    must(ifl_rollout_log_open(&log, folder, &options, &err), &err);
    must(ifl_rollout_log_run_started(log, 1, step, next_serial, &err), &err);
    return log;
}

static void store(ifl_rollout_log *log, uint64_t serial, int32_t sample, int64_t version) {
    static const int32_t prompt[] = {1, 2};
    ifl_error err = {0};
    ifl_trajectory *t;
    must(ifl_trajectory_create(&t, prompt, 2, &err), &err);
    must(ifl_trajectory_append(t, 3, -0.5f, version, &err), &err);
    t->task_serial = serial;
    t->sample = sample;
    t->group_size = 2;
    t->lease_id = 10 + serial;
    t->top_p = 1.0f;
    must(ifl_rollout_log_trajectory(log, t, &err), &err);
    ifl_trajectory_free(t);
}

static void train(ifl_rollout_log *log, int64_t step, uint64_t serial) {
    ifl_rollout_key keys[2] = {{serial, 0, 0}, {serial, 1, 0}};
    ifl_error err = {0};
    must(ifl_rollout_log_trained(log, step, keys, 2, &err), &err);
}

static void lease(ifl_rollout_log *log, uint64_t serial) {
    ifl_error err = {0};
    must(ifl_rollout_log_leased(log, serial, 0, 2, 10 + serial, 0, &err), &err);
}

/* Leased, stored and trained: group 1; leased and open at the end: group 2. */
static ifl_rollout_log *sound(void) {
    ifl_rollout_log *log = begin(0, 0);
    lease(log, 1);
    store(log, 1, 0, 0);
    store(log, 1, 1, 0);
    train(log, 1, 1);
    lease(log, 2);
    return log;
}

static job_books end(ifl_rollout_log *log, bool with_open) {
    ifl_rollout_key open[2] = {{2, 0, 0}, {2, 1, 0}};
    ifl_error err = {0};
    job_books b;
    must(ifl_rollout_log_run_ended(log, 1, "finished", open, with_open ? 2 : 0, &err), &err);
    ifl_rollout_log_close(log);
    must(job_books_read(&b, folder, record, folder, &err), &err);
    return b;
}

static int64_t violations(const job_books *b) {
    return b->lost + b->stored_twice + b->trained_twice + b->trained_unstored + b->wrong_version +
           b->not_leased;
}

static void recorded(const char *lines) {
    char path[160];
    snprintf(path, sizeof path, "%s/actor-1.77", record);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(lines, f);
    fclose(f);
}

static void test_sound_books_hold(void **state) {
    (void)state;
    recorded("sent 0 1 0 11 0\nacked 0 1 0 11 1\nacked 0 1 1 11 1\nacked 0 2 1 12 2\n");
    job_books b = end(sound(), true);
    assert_int_equal(violations(&b), 0);
    assert_int_equal(b.leased, 4);
    assert_int_equal(b.trained, 2);
    assert_int_equal(b.acked, 2);
}

static void test_a_leased_key_that_is_nowhere_is_lost(void **state) {
    (void)state;
    job_books b = end(sound(), false);
    assert_int_equal(b.lost, 2);
}

static void test_what_was_acknowledged_and_is_not_in_the_log_is_lost(void **state) {
    (void)state;
    recorded("acked 0 2 1 12 1\n");
    job_books b = end(sound(), true);
    assert_int_equal(b.lost, 1);
}

static void test_a_key_stored_twice_by_one_process_is_told(void **state) {
    (void)state;
    ifl_rollout_log *log = sound();
    store(log, 1, 1, 0);
    job_books b = end(log, true);
    assert_int_equal(b.stored_twice, 1);
}

static void test_a_key_trained_in_two_steps_is_told_unless_a_resume_undid_the_first(void **state) {
    (void)state;
    ifl_rollout_log *log = sound();
    train(log, 2, 1);
    job_books b = end(log, true);
    assert_int_equal(b.trained_twice, 2);
}

static void test_a_step_that_a_resume_undid_is_trained_again(void **state) {
    (void)state;
    ifl_rollout_log_close(sound());
    ifl_rollout_log *log = begin(0, 3);
    lease(log, 1);
    store(log, 1, 0, 0);
    store(log, 1, 1, 0);
    train(log, 1, 1);
    lease(log, 2);
    job_books b = end(log, true);
    assert_int_equal(violations(&b), 0);
}

/* The first bytes of an archived version. */
static void archived(int segment, int64_t version, uint8_t content) {
    char path[160];
    uint8_t bytes[56] = {0};
    memset(bytes + 40, content, 16);
    snprintf(path, sizeof path, "%s/%06d", folder, segment);
    mkdir(path, 0755);
    snprintf(path, sizeof path, "%s/%06d/v%010lld.ifw", folder, segment, (long long)version);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, sizeof bytes, f), sizeof bytes);
    fclose(f);
}

static void test_a_version_published_again_with_other_weights_is_told(void **state) {
    (void)state;
    for (uint8_t other = 0; other < 2; other++) {
        ifl_rollout_log_close(begin(0, 0));
        archived(1 + 2 * other, 0, 7);
        ifl_rollout_log *log = begin(0, 0);
        archived(2 + 2 * other, 0, 7 + other);
        must(ifl_rollout_log_flush(log, NULL), NULL);
        job_books b = end(log, false);
        assert_int_equal(b.other_weights, other);
        assert_true(b.republished >= 1);
    }
}

static void test_trained_and_not_stored_is_told(void **state) {
    (void)state;
    ifl_rollout_log *log = sound();
    train(log, 2, 2);
    job_books b = end(log, false);
    assert_int_equal(b.trained_unstored, 2);
}

static void test_a_version_that_nobody_published_is_told(void **state) {
    (void)state;
    ifl_rollout_log *log = sound();
    store(log, 2, 0, 9);
    job_books b = end(log, true);
    assert_int_equal(b.wrong_version, 1);
}

static void test_an_answer_without_a_lease_is_told(void **state) {
    (void)state;
    ifl_rollout_log *log = sound();
    store(log, 5, 0, 0);
    job_books b = end(log, true);
    assert_int_equal(b.not_leased, 1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_sound_books_hold),
        TEST(test_a_leased_key_that_is_nowhere_is_lost),
        TEST(test_what_was_acknowledged_and_is_not_in_the_log_is_lost),
        TEST(test_a_key_stored_twice_by_one_process_is_told),
        TEST(test_a_key_trained_in_two_steps_is_told_unless_a_resume_undid_the_first),
        TEST(test_a_step_that_a_resume_undid_is_trained_again),
        TEST(test_trained_and_not_stored_is_told),
        TEST(test_a_version_published_again_with_other_weights_is_told),
        TEST(test_a_version_that_nobody_published_is_told),
        TEST(test_an_answer_without_a_lease_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
