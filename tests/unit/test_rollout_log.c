#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/rollout_ledger.h"

static char root[64];
static char folder[96]; /* a fresh one per test */

static int root_make(void **state) {
    (void)state;
    snprintf(root, sizeof root, "/tmp/ifl_rollouts_XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}

static int root_remove(void **state) {
    (void)state;
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", root);
    return system(command);
}

static int folder_next(void **state) {
    (void)state;
    static int n;
    snprintf(folder, sizeof folder, "%s/%d", root, n++);
    return 0;
}

static void must(ifl_status st, const ifl_error *err) {
    if (st != IFL_OK) fail_msg("%s", err->text);
}

static ifl_rollout_log *log_open(int64_t segment_bytes) {
    ifl_rollout_log *log = NULL;
    ifl_error err = {0};
    const ifl_rollout_log_options options = {.segment_bytes = segment_bytes};
    must(ifl_rollout_log_open(&log, folder, &options, &err), &err);
    return log;
}

static void trajectory_write(ifl_rollout_log *log, uint64_t serial, int32_t sample,
                             uint8_t purpose) {
    const int32_t prompt[3] = {4, 5, 6};
    ifl_trajectory *traj = NULL;
    ifl_error err = {0};
    must(ifl_trajectory_create(&traj, prompt, 3, &err), &err);
    traj->task_serial = serial;
    traj->sample = sample;
    traj->group_size = 4;
    traj->purpose = purpose;
    snprintf(traj->task_id, sizeof traj->task_id, "task-%llu", (unsigned long long)serial);
    for (int32_t i = 0; i < 5; i++)
        must(ifl_trajectory_append(traj, 7 + i, -0.5f, 1 + i / 3, &err), &err);
    traj->finish = IFL_FINISH_EOS;
    traj->temperature = 1;
    traj->top_p = 1;
    must(ifl_rollout_log_trajectory(log, traj, &err), &err);
    ifl_trajectory_free(traj);
}

static ifl_rollout_key key_of(uint64_t serial, int32_t sample) {
    return (ifl_rollout_key){serial, sample, IFL_PURPOSE_TRAIN};
}

/* Leases and stores a group of 4. */
static void group_write(ifl_rollout_log *log, uint64_t serial) {
    ifl_error err = {0};
    must(ifl_rollout_log_leased(log, serial, IFL_PURPOSE_TRAIN, 4, serial + 100, 0, &err), &err);
    for (int32_t sample = 0; sample < 4; sample++)
        trajectory_write(log, serial, sample, IFL_PURPOSE_TRAIN);
}

static void group_train(ifl_rollout_log *log, uint64_t serial, int64_t step) {
    ifl_error err = {0};
    ifl_rollout_key keys[4];
    for (int32_t i = 0; i < 4; i++)
        keys[i] = key_of(serial, i);
    must(ifl_rollout_log_trained(log, step, keys, 4, &err), &err);
}

static ifl_rollout_balance balance(void) {
    ifl_rollout_ledger *ledger = NULL;
    ifl_rollout_balance b;
    ifl_error err = {0};
    must(ifl_rollout_ledger_read(&ledger, folder, &err), &err);
    ifl_rollout_ledger_balance(ledger, &b);
    ifl_rollout_ledger_free(ledger);
    return b;
}

/* A process that goes on from `resumed`, every serial so far below its cursor. */
static void started(ifl_rollout_log *log, int64_t resumed) {
    ifl_error err = {0};
    must(ifl_rollout_log_run_started(log, 1, resumed, 1000, &err), &err);
}

static void ended(ifl_rollout_log *log, int64_t step, const ifl_rollout_key *keys, int32_t n) {
    ifl_error err = {0};
    must(ifl_rollout_log_run_ended(log, step, "done", keys, n, &err), &err);
}

static void test_every_record_reads_back(void **state) {
    (void)state;
    ifl_error err = {0};
    ifl_rollout_log *log = log_open(0);
    const ifl_group_member members[2] = {{0, IFL_REWARD_OK, 1}, {3, IFL_REWARD_UNDECIDED, 0.5f}};
    started(log, 7);
    must(ifl_rollout_log_leased(log, 1ull << 63, IFL_PURPOSE_EVAL, 4, 99, 2, &err), &err);
    trajectory_write(log, 5, 1, IFL_PURPOSE_TRAIN);
    must(ifl_rollout_log_group_closed(log, 5, IFL_PURPOSE_TRAIN, members, 2, &err), &err);
    group_train(log, 5, 3);
    must(ifl_rollout_log_dropped(log, key_of(6, 2), "stale", &err), &err);
    must(ifl_rollout_log_masked(log, key_of(6, 3), "undecided", &err), &err);
    must(ifl_rollout_log_checkpoint(log, 3, &err), &err);
    must(ifl_rollout_log_drawn(log, 1ull << 40, 3, 1ull << 39, &err), &err);
    ended(log, 3, (ifl_rollout_key[]){key_of(8, 0)}, 1);
    ifl_rollout_log_close(log);

    ifl_rollout_reader *reader = NULL;
    ifl_record r;
    must(ifl_rollout_reader_open(&reader, folder, &err), &err);
    must(ifl_rollout_reader_next(reader, &r, &err), &err);
    assert_int_equal(r.type, IFL_RECORD_RUN_STARTED);
    assert_int_equal(r.step, 7);
    assert_int_equal(r.task_serial, 1000);
    must(ifl_rollout_reader_next(reader, &r, &err), &err);
    assert_int_equal(r.type, IFL_RECORD_LEASED);
    assert_true(r.task_serial == 1ull << 63 && r.lease_id == 99 && r.attempt == 2);
    assert_true(r.group_size == 4 && r.purpose == IFL_PURPOSE_EVAL);
    must(ifl_rollout_reader_next(reader, &r, &err), &err);
    ifl_trajectory *traj = NULL;
    must(ifl_trajectory_decode(&traj, r.meta, r.n_meta, r.payload, r.n_payload, &err), &err);
    assert_true(traj->task_serial == 5 && traj->n_tokens == 8);
    ifl_trajectory_free(traj);
    must(ifl_rollout_reader_next(reader, &r, &err), &err);
    assert_true(r.type == IFL_RECORD_GROUP_CLOSED && r.n_members == 2);
    assert_true(r.members[1].sample == 3 && r.members[1].reward == 0.5f);
    must(ifl_rollout_reader_next(reader, &r, &err), &err);
    assert_true(r.type == IFL_RECORD_TRAINED && r.step == 3 && r.n_keys == 4);
    assert_true(r.keys[3].task_serial == 5 && r.keys[3].sample == 3);
    must(ifl_rollout_reader_next(reader, &r, &err), &err);
    assert_string_equal(r.reason, "stale");
    must(ifl_rollout_reader_next(reader, &r, &err), &err);
    assert_int_equal(r.type, IFL_RECORD_MASKED);
    must(ifl_rollout_reader_next(reader, &r, &err), &err);
    assert_int_equal(r.type, IFL_RECORD_CHECKPOINT);
    must(ifl_rollout_reader_next(reader, &r, &err), &err);
    assert_int_equal(r.type, IFL_RECORD_DRAWN);
    assert_true(r.task_serial == 1ull << 40 && r.source == 3 && r.item == 1ull << 39);
    must(ifl_rollout_reader_next(reader, &r, &err), &err);
    assert_true(r.type == IFL_RECORD_RUN_ENDED && r.n_keys == 1);
    assert_string_equal(r.reason, "done");
    assert_int_equal(ifl_rollout_reader_next(reader, &r, &err), IFL_NOTFOUND);
    ifl_rollout_reader_close(reader);
}

static void test_segments_rotate_and_a_new_process_begins_a_new_one(void **state) {
    (void)state;
    for (int process = 0; process < 2; process++) {
        ifl_rollout_log *log = log_open(400);
        for (uint64_t serial = 0; serial < 3; serial++)
            group_write(log, (uint64_t)process * 10 + serial);
        ifl_rollout_log_close(log);
    }
    char path[160];
    snprintf(path, sizeof path, "%s/000004.ifl", folder);
    assert_int_equal(access(path, F_OK), 0);
    ifl_rollout_balance b = balance();
    assert_int_equal(b.leased, 24);
    assert_int_equal(b.stored, 24);
}

static void test_books_balance_and_count_reasons(void **state) {
    (void)state;
    ifl_error err = {0};
    ifl_rollout_log *log = log_open(0);
    started(log, 0);
    for (uint64_t serial = 0; serial < 4; serial++)
        group_write(log, serial);
    group_train(log, 0, 1);
    for (int32_t i = 0; i < 4; i++) {
        if (i < 3)
            must(ifl_rollout_log_dropped(log, key_of(1, i), "stale", &err), &err);
        else
            must(ifl_rollout_log_masked(log, key_of(1, i), "undecided", &err), &err);
    }
    group_train(log, 2, 2);
    ifl_rollout_key in_flight[4];
    for (int32_t i = 0; i < 4; i++)
        in_flight[i] = key_of(3, i);
    ended(log, 2, in_flight, 4);
    ifl_rollout_log_close(log);
    ifl_rollout_balance b = balance();
    assert_int_equal(b.leased, 16);
    assert_int_equal(b.trained, 8);
    assert_int_equal(b.dropped, 3);
    assert_int_equal(b.masked, 1);
    assert_int_equal(b.in_flight, 4);
    assert_int_equal(b.lost, 0);
    assert_int_equal(b.steps, 2);
    assert_true(ifl_rollout_balance_holds(&b));
}

static void test_a_key_nobody_names_is_lost_only_in_a_run_that_ended(void **state) {
    (void)state;
    ifl_rollout_log *log = log_open(0);
    started(log, 0);
    group_write(log, 0);
    group_write(log, 1);
    group_train(log, 0, 1);
    ifl_error err = {0};
    must(ifl_rollout_log_flush(log, &err), &err);
    ifl_rollout_balance b = balance(); /* a crash here: nothing is lost yet */
    assert_int_equal(b.in_flight, 4);
    assert_int_equal(b.lost, 0);
    ended(log, 1, (ifl_rollout_key[]){key_of(1, 0), key_of(1, 1), key_of(1, 2)}, 3);
    ifl_rollout_log_close(log);
    b = balance();
    assert_int_equal(b.in_flight, 3);
    assert_int_equal(b.lost, 1);
    assert_false(ifl_rollout_balance_holds(&b));
}

static void test_resume_undoes_later_steps(void **state) {
    (void)state;
    ifl_rollout_log *log = log_open(0);
    ifl_error err = {0};
    started(log, 0);
    for (uint64_t serial = 0; serial < 3; serial++) {
        group_write(log, serial);
        group_train(log, serial, (int64_t)serial + 1);
    }
    ifl_rollout_log_close(log); /* killed after step 3; the last checkpoint is step 1 */
    log = log_open(0);
    started(log, 1);
    ifl_rollout_log_flush(log, &err);
    ifl_rollout_balance b = balance();
    assert_int_equal(b.trained, 4);
    assert_int_equal(b.in_flight, 8);
    group_train(log, 1, 2); /* from the log */
    must(ifl_rollout_log_leased(log, 2, IFL_PURPOSE_TRAIN, 4, 1000, 0, &err), &err);
    group_train(log, 2, 3);
    ended(log, 3, NULL, 0);
    ifl_rollout_log_close(log);
    b = balance();
    assert_int_equal(b.trained, 12);
    assert_int_equal(b.trained_twice, 0);
    assert_int_equal(b.leased, 12);
    assert_int_equal(b.processes, 2);
    assert_true(ifl_rollout_balance_holds(&b));
}

static void test_leases_beyond_the_cursor_of_a_resume_are_undone(void **state) {
    (void)state;
    ifl_error err = {0};
    ifl_rollout_log *log = log_open(0);
    started(log, 0);
    for (uint64_t serial = 0; serial < 4; serial++)
        group_write(log, serial);
    group_train(log, 0, 1);
    group_train(log, 1, 2);
    ifl_rollout_log_close(log); /* killed; the checkpoint is step 1, its cursor 3, and 1 was open */
    log = log_open(0);
    must(ifl_rollout_log_run_started(log, 1, 1, 3, &err), &err);
    must(ifl_rollout_log_leased(log, 1, IFL_PURPOSE_TRAIN, 4, 1000, 0, &err), &err);
    group_train(log, 1, 2);
    ended(log, 2, NULL, 0); /* before it comes to serial 3 */
    ifl_rollout_log_close(log);
    ifl_rollout_balance b = balance();
    assert_int_equal(b.leased, 12);
    assert_int_equal(b.trained, 8);
    assert_int_equal(b.stored, 12);
    assert_int_equal(b.lost, 4); /* serial 2 lay below the cursor, and nobody says where it is */

    log = log_open(0);
    must(ifl_rollout_log_run_started(log, 1, 2, 2, &err), &err);
    must(ifl_rollout_log_leased(log, 3, IFL_PURPOSE_TRAIN, 4, 2000, 0, &err), &err);
    trajectory_write(log, 3, 0, IFL_PURPOSE_TRAIN);
    ended(log, 2, (ifl_rollout_key[]){key_of(3, 0), key_of(3, 1), key_of(3, 2), key_of(3, 3)}, 4);
    ifl_rollout_log_close(log);
    b = balance();
    assert_int_equal(b.leased, 12); /* 2 is undone now, 3 is leased again */
    assert_int_equal(b.in_flight, 4);
    assert_int_equal(b.stored, 9);
    assert_true(ifl_rollout_balance_holds(&b));
}

static void test_contradictions_are_found(void **state) {
    (void)state;
    ifl_error err = {0};
    ifl_rollout_log *log = log_open(0);
    started(log, 0);
    group_write(log, 0);
    group_train(log, 0, 1);
    group_train(log, 0, 2); /* twice */
    group_write(log, 1);
    group_train(log, 1, 2);
    must(ifl_rollout_log_dropped(log, key_of(1, 0), "stale", &err), &err); /* two fates */
    group_train(log, 9, 2);                                                /* never leased */
    must(ifl_rollout_log_leased(log, 5, IFL_PURPOSE_TRAIN, 4, 1, 0, &err), &err);
    group_train(log, 5, 2); /* never stored */
    ended(log, 2, NULL, 0);
    ifl_rollout_log_close(log);
    ifl_rollout_balance b = balance();
    assert_int_equal(b.trained_twice, 4);
    assert_int_equal(b.conflicting, 1);
    assert_int_equal(b.unleased, 4);
    assert_int_equal(b.trained_unstored, 4);
    assert_false(ifl_rollout_balance_holds(&b));
}

static int64_t file_size(const char *path) {
    struct stat s;
    return stat(path, &s) ? -1 : (int64_t)s.st_size;
}

/* Reads all records; the number that came before the end or the error. */
static int records_read(ifl_status *st, int64_t *torn, ifl_error *err) {
    ifl_rollout_reader *reader = NULL;
    ifl_record r;
    int n = 0;
    must(ifl_rollout_reader_open(&reader, folder, err), err);
    while ((*st = ifl_rollout_reader_next(reader, &r, err)) == IFL_OK)
        n++;
    *torn = ifl_rollout_reader_torn_bytes(reader);
    ifl_rollout_reader_close(reader);
    return n;
}

static void test_every_torn_tail_ends_the_reading_quietly(void **state) {
    (void)state;
    char path[160];
    ifl_rollout_log *log = log_open(0);
    started(log, 0);
    group_write(log, 0);
    ifl_rollout_log_close(log);
    snprintf(path, sizeof path, "%s/000001.ifl", folder);
    int last = 6;
    for (int64_t size = file_size(path) - 1; size >= 0; size -= 3) {
        ifl_status st;
        int64_t torn;
        ifl_error err = {0};
        assert_int_equal(truncate(path, size), 0);
        int n = records_read(&st, &torn, &err);
        if (st != IFL_NOTFOUND) fail_msg("cut at %lld: %s", (long long)size, err.text);
        assert_true(n <= last);
        last = n;
    }
    assert_int_equal(last, 0);
}

static void test_zeros_at_the_end_are_a_torn_tail(void **state) {
    (void)state;
    char path[160];
    ifl_rollout_log *log = log_open(0);
    started(log, 0);
    ifl_rollout_log_close(log);
    snprintf(path, sizeof path, "%s/000001.ifl", folder);
    assert_int_equal(truncate(path, file_size(path) + 5000), 0);
    ifl_status st;
    int64_t torn;
    ifl_error err = {0};
    assert_int_equal(records_read(&st, &torn, &err), 1);
    assert_int_equal(st, IFL_NOTFOUND);
    assert_int_equal(torn, 5000);
}

static void test_a_changed_byte_in_the_middle_is_reported_with_file_and_offset(void **state) {
    (void)state;
    char path[160];
    ifl_rollout_log *log = log_open(0);
    started(log, 0);
    for (uint64_t serial = 0; serial < 3; serial++)
        group_write(log, serial);
    ended(log, 1, NULL, 0);
    ifl_rollout_log_close(log);
    snprintf(path, sizeof path, "%s/000001.ifl", folder);
    int64_t size = file_size(path);
    const int64_t last_record = 32 + 16; /* header, and meta "step, 0 keys, done" */
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    for (int64_t at = 0; at < size - last_record; at += 7) {
        ifl_status st;
        int64_t torn;
        ifl_error err = {0};
        fseek(f, (long)at, SEEK_SET);
        int byte = fgetc(f);
        fseek(f, (long)at, SEEK_SET);
        fputc(byte ^ 0x40, f);
        fflush(f);
        records_read(&st, &torn, &err);
        if (st != IFL_FORMAT) fail_msg("byte %lld: status %d", (long long)at, st);
        assert_non_null(strstr(err.text, "000001.ifl: offset "));
        fseek(f, (long)at, SEEK_SET);
        fputc(byte, f);
        fflush(f);
    }
    fclose(f);
}

static void test_random_bytes_never_crash_the_reader(void **state) {
    (void)state;
    char path[160];
    ifl_rollout_log *log = log_open(0);
    started(log, 0);
    group_write(log, 0);
    group_train(log, 0, 1);
    ifl_rollout_log_close(log);
    snprintf(path, sizeof path, "%s/000001.ifl", folder);
    int64_t size = file_size(path);
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    uint64_t rng = 3;
    for (int trial = 0; trial < 300; trial++) {
        rng = rng * 6364136223846793005u + 1442695040888963407u;
        fseek(f, (long)((rng >> 20) % (uint64_t)size), SEEK_SET);
        fputc((int)(rng >> 40) & 0xff, f);
        fflush(f);
        ifl_rollout_ledger *ledger = NULL;
        ifl_error err = {0};
        ifl_rollout_ledger_read(&ledger, folder, &err);
        ifl_rollout_ledger_free(ledger);
    }
    fclose(f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_every_record_reads_back, folder_next),
        cmocka_unit_test_setup(test_segments_rotate_and_a_new_process_begins_a_new_one,
                               folder_next),
        cmocka_unit_test_setup(test_books_balance_and_count_reasons, folder_next),
        cmocka_unit_test_setup(test_a_key_nobody_names_is_lost_only_in_a_run_that_ended,
                               folder_next),
        cmocka_unit_test_setup(test_resume_undoes_later_steps, folder_next),
        cmocka_unit_test_setup(test_leases_beyond_the_cursor_of_a_resume_are_undone, folder_next),
        cmocka_unit_test_setup(test_contradictions_are_found, folder_next),
        cmocka_unit_test_setup(test_every_torn_tail_ends_the_reading_quietly, folder_next),
        cmocka_unit_test_setup(test_zeros_at_the_end_are_a_torn_tail, folder_next),
        cmocka_unit_test_setup(test_a_changed_byte_in_the_middle_is_reported_with_file_and_offset,
                               folder_next),
        cmocka_unit_test_setup(test_random_bytes_never_crash_the_reader, folder_next),
    };
    return cmocka_run_group_tests(tests, root_make, root_remove);
}
