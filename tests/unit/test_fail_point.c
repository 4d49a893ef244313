/* Fail points: the grammar, when they act, and what the log and whole files do when the system
 * refuses. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "common/clock.h"
#include "common/fail_point.h"
#include "common/file_write.h"
#include "common/rollout_log.h"

static char folder[64];

static void must(ifl_status st, const ifl_error *err) {
    if (st != IFL_OK) fail_msg("%s: %s", ifl_status_text(st), err->text);
}

static int setup(void **state) {
    (void)state;
    strcpy(folder, "/tmp/ifl_fail_XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    char command[128];
    ifl_fail_points_arm("", NULL);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

static void arm(const char *text) {
    ifl_error err = {0};
    if (ifl_fail_points_arm(text, &err) != IFL_OK) fail_msg("%s", err.text);
}

static void test_an_unknown_name_or_action_lists_what_there_is(void **state) {
    (void)state;
    ifl_error err = {0};
    assert_int_equal(ifl_fail_points_arm("log.sinc=kill", &err), IFL_USAGE);
    assert_non_null(strstr(err.text, "log.sinc"));
    assert_non_null(strstr(err.text, "log.sync"));
    assert_non_null(strstr(err.text, "clock.wall"));
    static const char *const wrong[] = {
        "log.sync",           "log.sync=die",      "log.sync=tear",   "log.sync=exit(",
        "log.sync=exit(256)", "log.sync=kill@0",   "log.sync=kill@x", "log.sync=error(EPIPE)",
        "log.sync=kill kill", "actor.step=jump(1)"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        if (ifl_fail_points_arm(wrong[i], &err) != IFL_USAGE) fail_msg("taken: %s", wrong[i]);
}

static void test_a_point_acts_at_the_passing_that_was_named(void **state) {
    (void)state;
    arm("log.sync=error(EIO)@3; actor.step=error(ENOSPC)@2+");
    int got[5];
    for (int i = 0; i < 5; i++)
        got[i] = ifl_fail_point(IFL_FAIL_LOG_SYNC);
    for (int i = 0; i < 5; i++)
        assert_int_equal(got[i], i == 2 ? EIO : 0);
    for (int i = 0; i < 5; i++)
        assert_int_equal(ifl_fail_point(IFL_FAIL_ACTOR_STEP), i >= 1 ? ENOSPC : 0);
    assert_int_equal(ifl_fail_point(IFL_FAIL_LOG_WRITE), 0);
    arm("");
    assert_int_equal(ifl_fail_point(IFL_FAIL_ACTOR_STEP), 0);
}

static void test_a_chance_is_the_same_for_the_same_seed(void **state) {
    (void)state;
    int n = 0;
    bool first[1000];
    for (int round = 0; round < 2; round++) {
        arm("file.sync=error(EIO)@10/7");
        for (int i = 0; i < 1000; i++) {
            bool now = ifl_fail_point(IFL_FAIL_FILE_SYNC) == EIO;
            if (round == 0) first[i] = now;
            assert_true(now == first[i]);
            n += now;
        }
    }
    assert_in_range(n, 2 * 50, 2 * 150);
}

static void test_the_wall_clock_jumps_and_the_monotonic_one_does_not(void **state) {
    (void)state;
    int64_t before = ifl_clock_wall_ms(), steady = ifl_clock_ns();
    arm("clock.wall=jump(3600000)");
    int64_t after = ifl_clock_wall_ms();
    assert_in_range(after - before, 3600000, 3660000);
    assert_in_range(ifl_clock_ns() - steady, 0, 60000000000ll);
    arm("clock.wall=jump(-3600000)");
    assert_in_range(ifl_clock_wall_ms() - before, 0, 60000);
}

static int64_t size_of(const char *name) {
    char path[128];
    struct stat s;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return stat(path, &s) ? -1 : s.st_size;
}

static void test_a_full_disk_leaves_whole_records_and_room_lets_the_log_go_on(void **state) {
    (void)state;
    ifl_error err = {0};
    ifl_rollout_log *log;
    ifl_rollout_log_options options = {.durable = true};
    must(ifl_rollout_log_open(&log, folder, &options, &err), &err);
    must(ifl_rollout_log_leased(log, 1, 0, 4, 11, 0, &err), &err);
    must(ifl_rollout_log_flush(log, &err), &err);
    int64_t before = size_of("000001.ifl");
    arm("log.write=error(ENOSPC)@1+");
    must(ifl_rollout_log_leased(log, 2, 0, 4, 12, 0, &err), &err);
    for (int i = 0; i < 3; i++)
        assert_int_equal(ifl_rollout_log_flush(log, &err), IFL_FULL);
    assert_int_equal(size_of("000001.ifl"), before);
    arm("");
    must(ifl_rollout_log_flush(log, &err), &err);
    must(ifl_rollout_log_leased(log, 3, 0, 4, 13, 0, &err), &err);
    ifl_rollout_log_close(log);
    ifl_rollout_reader *reader;
    ifl_record record;
    must(ifl_rollout_reader_open(&reader, folder, &err), &err);
    for (uint64_t serial = 1; serial <= 3; serial++) {
        must(ifl_rollout_reader_next(reader, &record, &err), &err);
        assert_int_equal(record.task_serial, serial);
    }
    assert_int_equal(ifl_rollout_reader_next(reader, &record, &err), IFL_NOTFOUND);
    assert_int_equal(ifl_rollout_reader_torn_bytes(reader), 0);
    ifl_rollout_reader_close(reader);
}

static void test_after_a_failed_sync_nothing_is_written_any_more(void **state) {
    (void)state;
    ifl_error err = {0};
    ifl_rollout_log *log;
    ifl_rollout_log_options options = {.durable = true};
    must(ifl_rollout_log_open(&log, folder, &options, &err), &err);
    must(ifl_rollout_log_leased(log, 1, 0, 4, 11, 0, &err), &err);
    arm("log.sync=error(EIO)@1");
    assert_int_equal(ifl_rollout_log_flush(log, &err), IFL_IO);
    assert_non_null(strstr(err.text, "000001.ifl"));
    int64_t before = size_of("000001.ifl");
    assert_int_equal(ifl_rollout_log_leased(log, 2, 0, 4, 12, 0, &err), IFL_IO);
    assert_int_equal(ifl_rollout_log_flush(log, &err), IFL_IO);
    ifl_rollout_log_close(log);
    assert_int_equal(size_of("000001.ifl"), before);
}

/* Runs `body` in a child, which must die by SIGKILL. */
static void dies(void (*body)(void)) {
    pid_t child = fork();
    if (child == 0) {
        body();
        _exit(1);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static void torn_log(void) {
    ifl_rollout_log *log;
    ifl_rollout_log_options options = {.durable = true};
    if (ifl_rollout_log_open(&log, folder, &options, NULL) != IFL_OK) return;
    ifl_rollout_log_leased(log, 1, 0, 4, 11, 0, NULL);
    ifl_rollout_log_flush(log, NULL);
    ifl_rollout_log_leased(log, 2, 0, 4, 12, 0, NULL);
    ifl_fail_points_arm("log.write=tear", NULL);
    ifl_rollout_log_flush(log, NULL);
}

static void test_a_torn_record_ends_a_segment_quietly(void **state) {
    (void)state;
    ifl_error err = {0};
    dies(torn_log);
    ifl_rollout_reader *reader;
    ifl_record record;
    must(ifl_rollout_reader_open(&reader, folder, &err), &err);
    must(ifl_rollout_reader_next(reader, &record, &err), &err);
    assert_int_equal(ifl_rollout_reader_next(reader, &record, &err), IFL_NOTFOUND);
    assert_true(ifl_rollout_reader_torn_bytes(reader) > 0);
    ifl_rollout_reader_close(reader);
}

static char target[128];

static void torn_file(void) {
    ifl_fail_points_arm("file.write=tear", NULL);
    ifl_file_write_whole(target, "the new one, longer", 19, NULL);
}

static void test_a_file_is_whole_or_what_it_was(void **state) {
    (void)state;
    ifl_error err = {0};
    snprintf(target, sizeof target, "%s/file", folder);
    must(ifl_file_write_whole(target, "old", 3, &err), &err);
    static const struct {
        const char *text;
        ifl_status want;
    } refusals[] = {{"file.write=error(ENOSPC)", IFL_FULL},
                    {"file.sync=error(EIO)", IFL_IO},
                    {"file.rename=error(EROFS)", IFL_IO}};
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        arm(refusals[i].text);
        assert_int_equal(ifl_file_write_whole(target, "the new one", 11, &err), refusals[i].want);
        assert_int_equal(size_of("file"), 3);
    }
    dies(torn_file);
    assert_int_equal(size_of("file"), 3);
    arm("");
    must(ifl_file_write_whole(target, "the new one", 11, &err), &err);
    assert_int_equal(size_of("file"), 11);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_an_unknown_name_or_action_lists_what_there_is),
        cmocka_unit_test_setup_teardown(test_a_point_acts_at_the_passing_that_was_named, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_a_chance_is_the_same_for_the_same_seed, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_the_wall_clock_jumps_and_the_monotonic_one_does_not,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(
            test_a_full_disk_leaves_whole_records_and_room_lets_the_log_go_on, setup, teardown),
        cmocka_unit_test_setup_teardown(test_after_a_failed_sync_nothing_is_written_any_more, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_a_torn_record_ends_a_segment_quietly, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_file_is_whole_or_what_it_was, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
