#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/run_dir.h"

static char folder[64];
static ifl_config *config;

static int folder_make(void **state) {
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/ifl_run_dir_XXXXXX");
    config = malloc(sizeof *config);
    if (!config || !mkdtemp(folder)) return -1;
    ifl_config_defaults(config);
    snprintf(config->run.dir, sizeof config->run.dir, "%s/runs", folder);
    return 0;
}

static int folder_remove(void **state) {
    (void)state;
    char command[128];
    free(config);
    snprintf(command, sizeof command, "rm -r %s", folder);
    return system(command);
}

static void run_named(const char *name, bool resume, bool overwrite) {
    snprintf(config->run.name, sizeof config->run.name, "%s", name);
    config->run.resume = resume;
    config->run.overwrite = overwrite;
}

static bool exists(const char *path) {
    struct stat s;
    return !stat(path, &s);
}

static void test_new_run_has_config_and_folders(void **state) {
    (void)state;
    ifl_run_dir run;
    ifl_error err = {0};
    run_named("fresh", false, false);
    if (ifl_run_dir_create(&run, config, &err) != IFL_OK) fail_msg("%s", err.text);
    assert_true(exists(run.config) && exists(run.rollouts) && exists(run.checkpoints));
    ifl_config *again = malloc(sizeof *again);
    assert_non_null(again);
    if (ifl_config_load(again, run.config, NULL, 0, &err) != IFL_OK) fail_msg("%s", err.text);
    assert_memory_equal(again, config, sizeof *config);
    free(again);
    ifl_run_dir_close(&run);
}

static void test_existing_run_is_refused_and_the_text_says_what_to_do(void **state) {
    (void)state;
    ifl_run_dir run;
    ifl_error err = {0};
    run_named("twice", false, false);
    if (ifl_run_dir_create(&run, config, &err) != IFL_OK) fail_msg("%s", err.text);
    ifl_run_dir_close(&run);
    assert_int_equal(ifl_run_dir_create(&run, config, &err), IFL_USAGE);
    assert_non_null(strstr(err.text, "run.resume=true"));
    assert_non_null(strstr(err.text, "run.overwrite=true"));
}

static void test_overwrite_moves_the_old_run_aside(void **state) {
    (void)state;
    ifl_run_dir run;
    ifl_error err = {0};
    char mark[IFL_PATH_MAX], aside[IFL_PATH_MAX];
    run_named("aside", false, false);
    if (ifl_run_dir_create(&run, config, &err) != IFL_OK) fail_msg("%s", err.text);
    ifl_run_dir_close(&run);
    snprintf(mark, sizeof mark, "%.900s/mark", run.path);
    if (ifl_file_write_atomic(mark, "x", 1, &err) != IFL_OK) fail_msg("%s", err.text);
    run_named("aside", false, true);
    for (int i = 0; i < 2; i++) {
        if (ifl_run_dir_create(&run, config, &err) != IFL_OK) fail_msg("%s", err.text);
        ifl_run_dir_close(&run);
    }
    assert_false(exists(mark));
    snprintf(aside, sizeof aside, "%.900s.1/mark", run.path);
    assert_true(exists(aside));
    snprintf(aside, sizeof aside, "%.900s.2/config.yaml", run.path);
    assert_true(exists(aside));
}

static void test_resume_uses_the_folder_and_needs_one(void **state) {
    (void)state;
    ifl_run_dir run;
    ifl_error err = {0};
    run_named("again", true, false);
    assert_int_equal(ifl_run_dir_create(&run, config, &err), IFL_NOTFOUND);
    run_named("again", false, false);
    if (ifl_run_dir_create(&run, config, &err) != IFL_OK) fail_msg("%s", err.text);
    ifl_run_dir_close(&run);
    run_named("again", true, false);
    if (ifl_run_dir_create(&run, config, &err) != IFL_OK) fail_msg("%s", err.text);
    ifl_run_dir_close(&run);
}

static void test_second_learner_is_refused_while_the_first_lives(void **state) {
    (void)state;
    ifl_run_dir run, other;
    ifl_error err = {0};
    run_named("locked", false, false);
    if (ifl_run_dir_create(&run, config, &err) != IFL_OK) fail_msg("%s", err.text);
    for (int overwrite = 0; overwrite < 2; overwrite++) {
        run_named("locked", !overwrite, overwrite);
        assert_int_equal(ifl_run_dir_create(&other, config, &err), IFL_PEER);
        assert_non_null(strstr(err.text, "in use by another learner"));
    }
    ifl_run_dir_close(&run);
    run_named("locked", true, false);
    if (ifl_run_dir_create(&other, config, &err) != IFL_OK) fail_msg("%s", err.text);
    ifl_run_dir_close(&other);
}

static void test_lock_of_a_dead_learner_is_free(void **state) {
    (void)state;
    run_named("dead", false, false);
    pid_t child = fork();
    assert_true(child >= 0);
    if (!child) {
        ifl_run_dir run;
        _exit(ifl_run_dir_create(&run, config, NULL) == IFL_OK ? 0 : 1); /* without closing */
    }
    int code;
    assert_int_equal(waitpid(child, &code, 0), child);
    assert_int_equal(code, 0);
    ifl_run_dir run;
    ifl_error err = {0};
    run_named("dead", true, false);
    if (ifl_run_dir_create(&run, config, &err) != IFL_OK) fail_msg("%s", err.text);
    ifl_run_dir_close(&run);
}

static void test_runs_open_by_name_and_by_path(void **state) {
    (void)state;
    ifl_run_dir run;
    ifl_error err = {0};
    run_named("opened", false, false);
    if (ifl_run_dir_create(&run, config, &err) != IFL_OK) fail_msg("%s", err.text);
    ifl_run_dir_close(&run);
    char path[IFL_PATH_MAX];
    snprintf(path, sizeof path, "%.900s/", run.path);
    assert_int_equal(ifl_run_dir_open(&run, config->run.dir, "opened", &err), IFL_OK);
    assert_int_equal(ifl_run_dir_open(&run, "elsewhere", path, &err), IFL_OK);
    assert_null(strstr(run.metrics, "//metrics"));
    assert_int_equal(ifl_run_dir_open(&run, config->run.dir, "nothing", &err), IFL_NOTFOUND);
    ifl_run_dir_close(&run);
}

static void test_nothing_half_made_is_left(void **state) {
    (void)state;
    char command[256];
    snprintf(command, sizeof command, "test -z \"$(ls -A %s/runs | grep '^\\.new')\"", folder);
    assert_int_equal(system(command), 0);
}

static void test_headroom_says_what_is_missing(void **state) {
    (void)state;
    ifl_error err = {0};
    assert_int_equal(ifl_disk_headroom(folder, 1, "a checkpoint", &err), IFL_OK);
    assert_int_equal(ifl_disk_headroom(folder, INT64_MAX, "a checkpoint", &err), IFL_LIMIT);
    assert_non_null(strstr(err.text, "for a checkpoint"));
    assert_int_equal(ifl_disk_headroom("/nonexistent", 1, "x", &err), IFL_IO);
}

static void test_folders_are_made_and_files_refused(void **state) {
    (void)state;
    ifl_error err = {0};
    char path[256];
    snprintf(path, sizeof path, "%s/a//b/c/", folder);
    assert_int_equal(ifl_dir_create(path, &err), IFL_OK);
    assert_int_equal(ifl_dir_create(path, &err), IFL_OK);
    snprintf(path, sizeof path, "%s/file", folder);
    assert_int_equal(ifl_file_write_atomic(path, "x", 1, &err), IFL_OK);
    assert_int_equal(ifl_dir_create(path, &err), IFL_IO);
    assert_int_equal(ifl_dir_create("", &err), IFL_LIMIT);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_new_run_has_config_and_folders),
        cmocka_unit_test(test_existing_run_is_refused_and_the_text_says_what_to_do),
        cmocka_unit_test(test_overwrite_moves_the_old_run_aside),
        cmocka_unit_test(test_resume_uses_the_folder_and_needs_one),
        cmocka_unit_test(test_second_learner_is_refused_while_the_first_lives),
        cmocka_unit_test(test_lock_of_a_dead_learner_is_free),
        cmocka_unit_test(test_runs_open_by_name_and_by_path),
        cmocka_unit_test(test_nothing_half_made_is_left),
        cmocka_unit_test(test_headroom_says_what_is_missing),
        cmocka_unit_test(test_folders_are_made_and_files_refused),
    };
    return cmocka_run_group_tests(tests, folder_make, folder_remove);
}
