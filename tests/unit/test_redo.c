/* What a resumed run has to do again, from logs of one, two and three processes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "learner/redo.h"

static char folder[64];
static ifl_rollout_log *log_now;
static ifl_error err;

static void must(ifl_status st) {
    if (st != IFL_OK) fail_msg("%s", err.text);
}

static int folder_make(void **state) {
    (void)state;
    snprintf(folder, sizeof folder, "/tmp/ifl_redo_XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int folder_remove(void **state) {
    (void)state;
    char command[96];
    ifl_rollout_log_close(log_now);
    log_now = NULL;
    snprintf(command, sizeof command, "rm -r %s", folder);
    return system(command);
}

/* A learner process begins; the one before it is dead. */
static void process(int64_t step, uint64_t next_serial) {
    const ifl_rollout_log_options options = {0};
    ifl_rollout_log_close(log_now);
    must(ifl_rollout_log_open(&log_now, folder, &options, &err));
    must(ifl_rollout_log_run_started(log_now, 1, step, next_serial, &err));
}

/* Sample 0 of a group of one; its token tells answers apart. */
static void answer(uint64_t serial, int64_t version, int32_t token) {
    const int32_t prompt[2] = {4, 5};
    ifl_trajectory *traj = NULL;
    must(ifl_rollout_log_leased(log_now, serial, IFL_PURPOSE_TRAIN, 1, serial + 100, 0, &err));
    must(ifl_trajectory_create(&traj, prompt, 2, &err));
    traj->task_serial = serial;
    traj->group_size = 1;
    must(ifl_trajectory_append(traj, token, -0.5f, version, &err));
    traj->finish = IFL_FINISH_EOS;
    traj->temperature = traj->top_p = 1;
    must(ifl_rollout_log_trajectory(log_now, traj, &err));
    ifl_trajectory_free(traj);
}

static void published(int64_t version, uint64_t content) {
    must(ifl_rollout_log_published(log_now, version, (ifl_hash){content, 1}, &err));
}

/* A step of two takes of one group each, and the version that it makes. */
static void step_of(int64_t step, uint64_t first, uint64_t second, uint64_t content) {
    must(ifl_rollout_log_taken(log_now, step, &first, 1, &err));
    must(ifl_rollout_log_taken(log_now, step, &second, 1, &err));
    published(step, content);
    ifl_rollout_key keys[2] = {{first, 0, IFL_PURPOSE_TRAIN}, {second, 0, IFL_PURPOSE_TRAIN}};
    must(ifl_rollout_log_trained(log_now, step, keys, 2, &err));
}

static ifl_redo *redo_read(int64_t step, const uint64_t *open, int32_t n_open,
                           uint64_t next_serial) {
    ifl_redo *redo = NULL;
    must(ifl_rollout_log_flush(log_now, &err));
    must(ifl_redo_read(&redo, folder, step, open, n_open, next_serial, &err));
    return redo;
}

/* The token of the answer that the entry points at. */
static int32_t token_of(const ifl_redo_answer *a) {
    ifl_rollout_reader *reader;
    ifl_record record;
    ifl_trajectory *traj;
    must(ifl_rollout_reader_open(&reader, folder, &err));
    must(ifl_rollout_reader_seek(reader, a->segment, a->offset, &err));
    must(ifl_rollout_reader_next(reader, &record, &err));
    assert_int_equal(record.type, IFL_RECORD_TRAJECTORY);
    must(ifl_trajectory_decode(&traj, record.meta, record.n_meta, record.payload, record.n_payload,
                               &err));
    int32_t token = traj->tokens[2];
    ifl_trajectory_free(traj);
    ifl_rollout_reader_close(reader);
    return token;
}

/* Steps 1 and 2, a checkpoint of 1 with serial 2 open; then half of step 3. */
static void first_process(void) {
    process(0, 0);
    published(0, 10);
    answer(0, 0, 20);
    answer(1, 0, 21);
    answer(2, 0, 22);
    step_of(1, 1, 0, 11);
    must(ifl_rollout_log_checkpoint(log_now, 1, &err));
    answer(3, 1, 23);
    step_of(2, 2, 3, 12);
    answer(4, 2, 24);
    answer(5, 1, 25);
    uint64_t serial = 5;
    must(ifl_rollout_log_taken(log_now, 3, &serial, 1, &err));
    must(ifl_rollout_log_leased(log_now, 6, IFL_PURPOSE_TRAIN, 1, 106, 0, &err));
}

static void check_first(const ifl_redo *redo) {
    assert_int_equal(redo->n_takes, 3);
    assert_int_equal(redo->takes[0].step, 2);
    assert_int_equal(redo->takes[0].serials[0], 2);
    assert_int_equal(redo->takes[1].serials[0], 3);
    assert_int_equal(redo->takes[2].step, 3);
    assert_int_equal(redo->takes[2].serials[0], 5);
    assert_int_equal(redo->last_version, 2);
    assert_int_equal(redo->next_serial, 7);
    assert_int_equal(redo->n_answers, 4);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(redo->answers[i].task_serial, 2 + i);
        assert_int_equal(token_of(&redo->answers[i]), 22 + i);
    }
    assert_int_equal(redo->answers[2].version_newest, 2);
    assert_int_equal(ifl_redo_version_content(redo, 2)->low, 12);
    assert_int_equal(ifl_redo_version_content(redo, 1)->low, 11);
    assert_null(ifl_redo_version_content(redo, 3));
}

static void test_one_process(void **state) {
    (void)state;
    uint64_t open = 2;
    first_process();
    ifl_redo *redo = redo_read(1, &open, 1, 3);
    check_first(redo);
    ifl_redo_free(redo);
    /* From the start, without a checkpoint: all of it. */
    redo = redo_read(0, NULL, 0, 0);
    assert_int_equal(redo->n_answers, 6);
    assert_int_equal(redo->n_takes, 5);
    assert_int_equal(redo->takes[0].serials[0], 1);
    assert_int_equal(redo->last_version, 2);
    ifl_redo_free(redo);
    /* From a step that the log knows nothing of: nothing. */
    redo = redo_read(7, NULL, 0, 0);
    assert_int_equal(redo->n_answers, 0);
    assert_int_equal(redo->n_takes, 0);
    ifl_redo_free(redo);
}

/* Of a process that dies before it has caught up only the answers count: those that it has put
 * back, and those that it had leased meanwhile. */
static void test_died_before_caught_up(void **state) {
    (void)state;
    uint64_t open = 2;
    first_process();
    process(1, 3);
    published(1, 11);
    answer(2, 0, 22);
    answer(7, 1, 27);
    step_of(2, 2, 7, 99);
    ifl_redo *redo = redo_read(1, &open, 1, 3);
    assert_int_equal(redo->n_answers, 5);
    assert_int_equal(redo->answers[4].task_serial, 7);
    assert_int_equal(token_of(&redo->answers[4]), 27);
    redo->n_answers = 4;
    assert_int_equal(redo->next_serial, 8);
    redo->next_serial = 7;
    check_first(redo);
    assert_int_equal(redo->n_processes, 2);
    assert_int_equal(redo->processes[1].begin, 1);
    ifl_redo_free(redo);
}

/* One that has caught up takes the place of what came before it, from where it began. */
static void test_caught_up(void **state) {
    (void)state;
    uint64_t open = 2;
    first_process();
    process(1, 3);
    published(1, 11);
    answer(3, 1, 43);
    step_of(2, 3, 2, 52);
    must(ifl_rollout_log_caught_up(log_now, 1, &err));
    answer(4, 2, 44);
    ifl_redo *redo = redo_read(1, &open, 1, 3);
    assert_int_equal(redo->n_takes, 2);
    assert_int_equal(redo->takes[0].serials[0], 3);
    assert_int_equal(redo->last_version, 2);
    assert_int_equal(redo->n_answers, 3);
    assert_int_equal(token_of(&redo->answers[0]), 22); /* from before the checkpoint */
    assert_int_equal(token_of(&redo->answers[1]), 43);
    assert_int_equal(token_of(&redo->answers[2]), 44);
    assert_int_equal(ifl_redo_version_content(redo, 2)->low, 52);
    assert_int_equal(redo->next_serial, 5);
    ifl_redo_free(redo);
}

/* Killed when a step had all its groups, and before its version was published. */
static void test_taken_and_not_published(void **state) {
    (void)state;
    first_process();
    answer(7, 2, 27);
    uint64_t serial = 7;
    must(ifl_rollout_log_taken(log_now, 3, &serial, 1, &err));
    ifl_redo *redo = redo_read(1, NULL, 0, 3);
    assert_int_equal(redo->n_takes, 4);
    assert_int_equal(redo->last_version, 2);
    ifl_redo_free(redo);
}

/* A process gave up and generated an answer of the checkpoint's open group again: that one counts,
 * also for who resumes after it. */
static void test_newest_answer(void **state) {
    (void)state;
    uint64_t open = 2;
    first_process();
    process(1, 3);
    must(ifl_rollout_log_caught_up(log_now, 1, &err));
    published(1, 11);
    answer(2, 1, 92);
    ifl_redo *redo = redo_read(1, &open, 1, 3);
    assert_int_equal(redo->n_answers, 1);
    assert_int_equal(token_of(&redo->answers[0]), 92);
    assert_int_equal(redo->n_takes, 0);
    ifl_redo_free(redo);
}

/* Tokens of a version that no whole step leads to cannot be vouched for. */
static void test_version_without_step(void **state) {
    (void)state;
    first_process();
    answer(6, 3, 26);
    ifl_redo *redo = redo_read(1, NULL, 0, 3);
    for (int64_t i = 0; i < redo->n_answers; i++)
        assert_true(redo->answers[i].task_serial != 6);
    ifl_redo_free(redo);
}

/* Given up: kept as such, unless there is an answer. */
static void test_dropped(void **state) {
    (void)state;
    first_process();
    must(ifl_rollout_log_dropped(log_now, (ifl_rollout_key){6, 0, IFL_PURPOSE_TRAIN},
                                 ifl_drop_reason_name(IFL_DROP_INVALID), &err));
    must(ifl_rollout_log_dropped(log_now, (ifl_rollout_key){4, 0, IFL_PURPOSE_TRAIN},
                                 ifl_drop_reason_name(IFL_DROP_STALE), &err));
    ifl_redo *redo = redo_read(1, NULL, 0, 3);
    assert_int_equal(redo->n_answers, 4);
    assert_false(redo->answers[1].dropped);
    assert_int_equal(redo->answers[3].task_serial, 6);
    assert_true(redo->answers[3].dropped);
    assert_int_equal(redo->answers[3].drop_reason, IFL_DROP_INVALID);
    ifl_redo_free(redo);
}

/* With dynamic sampling a step takes more groups than it trains on: only its version tells that it
 * had all of them. */
static void test_steps_of_any_size(void **state) {
    (void)state;
    const uint64_t groups[3] = {0, 1, 2}, next[2] = {3, 4};
    process(0, 0);
    published(0, 10);
    for (uint64_t serial = 0; serial < 5; serial++)
        answer(serial, serial < 3 ? 0 : 1, 20);
    must(ifl_rollout_log_taken(log_now, 1, groups, 2, &err));
    must(ifl_rollout_log_taken(log_now, 1, groups + 2, 1, &err));
    published(1, 11);
    must(ifl_rollout_log_taken(log_now, 2, next, 2,
                               &err)); /* as many as a step has, but no version */
    ifl_redo *redo = redo_read(0, NULL, 0, 0);
    assert_int_equal(redo->last_version, 1);
    assert_int_equal(redo->n_takes, 3);
    assert_int_equal(redo->n_answers, 5);
    ifl_redo_free(redo);
    published(2, 12);
    answer(5, 2, 20);
    redo = redo_read(0, NULL, 0, 0);
    assert_int_equal(redo->last_version, 2);
    assert_int_equal(redo->n_answers, 6);
    ifl_redo_free(redo);
}

static void drawn(uint64_t serial, uint64_t item) {
    must(ifl_rollout_log_drawn(log_now, serial, 1, item, &err));
}

/* Tasks of groups that have to be open again: as the last process that stands has drawn them. */
static void test_drawn(void **state) {
    (void)state;
    const uint64_t open = 2;
    process(0, 0);
    for (uint64_t serial = 0; serial < 4; serial++) {
        drawn(serial, 10 + serial);
        answer(serial, 0, 20);
    }
    step_of(1, 0, 1, 11);
    step_of(2, 2, 3, 12);
    drawn(4, 14);
    process(1, 3); /* dies before it has caught up */
    drawn(3, 93);
    ifl_redo *redo = redo_read(1, &open, 1, 3);
    const ifl_task_pick *pick = ifl_redo_pick(redo, 3);
    assert_true(pick && pick->source == 1 && pick->item == 13);
    assert_int_equal(ifl_redo_pick(redo, 2)->item, 12);
    assert_int_equal(ifl_redo_pick(redo, 4)->item, 14); /* opened, and never leased */
    assert_null(ifl_redo_pick(redo, 1));                /* closed at the checkpoint */
    assert_null(ifl_redo_pick(redo, 5));
    ifl_redo_free(redo);
    process(1, 3);
    drawn(3, 93);
    must(ifl_rollout_log_caught_up(log_now, 1, &err));
    redo = redo_read(1, &open, 1, 3);
    assert_int_equal(ifl_redo_pick(redo, 3)->item, 93);
    assert_null(ifl_redo_pick(redo, 4));
    ifl_redo_free(redo);
}

/* What lies before the damage is not known any more, a process that begins after it is. */
static void test_damaged(void **state) {
    (void)state;
    char path[96];
    first_process();
    must(ifl_rollout_log_flush(log_now, &err));
    snprintf(path, sizeof path, "%s/%06d.ifl", folder, ifl_rollout_log_segment(log_now));
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    fseek(f, 200, SEEK_SET);
    int byte = fgetc(f);
    fseek(f, 200, SEEK_SET);
    fputc(byte ^ 4, f);
    fclose(f);
    ifl_redo *redo = redo_read(1, NULL, 0, 3);
    assert_non_null(strstr(redo->damage, "000001.ifl: offset "));
    assert_int_equal(redo->n_takes + redo->n_answers + redo->n_versions, 0);
    ifl_redo_free(redo);
    process(1, 3);
    published(1, 11);
    answer(3, 1, 53);
    answer(4, 1, 54);
    step_of(2, 3, 4, 62);
    redo = redo_read(1, NULL, 0, 3);
    assert_non_null(strstr(redo->damage, "000001.ifl: offset "));
    assert_int_equal(redo->n_takes, 2);
    assert_int_equal(redo->n_answers, 2);
    assert_int_equal(redo->last_version, 2);
    ifl_redo_free(redo);
}

int main(void) {
#define REDO_TEST(f) cmocka_unit_test_setup_teardown(f, folder_make, folder_remove)
    const struct CMUnitTest tests[] = {
        REDO_TEST(test_one_process),
        REDO_TEST(test_died_before_caught_up),
        REDO_TEST(test_caught_up),
        REDO_TEST(test_taken_and_not_published),
        REDO_TEST(test_newest_answer),
        REDO_TEST(test_version_without_step),
        REDO_TEST(test_dropped),
        REDO_TEST(test_drawn),
        REDO_TEST(test_steps_of_any_size),
        REDO_TEST(test_damaged),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
