/* common/rollout_log.h: a log of one or two segments, the books that are made of it, and what a resumed run
 * would do again.
 *
 *   u8 mode     1: checksums as they are; 2: two segments
 *   u16 bytes of the first segment, if there are two; the rest */
#include <xxhash.h>

#include "common/rollout_ledger.h"
#include "common/rollout_record.h"
#include "learner/redo.h"
#include "tests/fuzz/fuzz.h"

/* Gives each record its magic and its checksums, as far as lengths lead from one to the next. */
static void segment_seal(uint8_t *bytes, size_t n) {
    for (size_t at = 0; n - at >= IFL_RECORD_HEADER_BYTES;) {
        uint8_t *header = bytes + at;
        fuzz_input in = fuzz_input_of(header + 8, 16);
        size_t n_meta = fuzz_take(&in, 4), n_payload = fuzz_take(&in, 4);
        int64_t wall_ms = (int64_t)fuzz_take(&in, 8);
        size_t left = n - at - IFL_RECORD_HEADER_BYTES;
        if (n_meta > left || n_payload > left - n_meta) return;
        uint8_t *meta = header + IFL_RECORD_HEADER_BYTES, *payload = meta + n_meta;
        ifl_record_type type = (ifl_record_type)header[4];
        if (type == IFL_RECORD_TRAJECTORY) fuzz_trajectory_seal(meta, n_meta, payload, n_payload);
        if (ifl_record_header_make(header, type, wall_ms, meta, n_meta, payload, n_payload, NULL) !=
            IFL_OK)
            abort();
        at += IFL_RECORD_HEADER_BYTES + n_meta + n_payload;
    }
}

static void segment_write(const char *name, fuzz_input content, bool seal) {
    uint8_t *copy = fuzz_copy(content);
    if (seal) segment_seal(copy, fuzz_left(&content));
    fuzz_folder_write(fuzz_folder(), name, fuzz_input_of(copy, fuzz_left(&content)));
    free(copy);
}

/* What a reader gives lies within its records. */
static void read_records(void) {
    ifl_rollout_reader *reader = NULL;
    ifl_record r;
    ifl_error err = {0};
    FUZZ_CHECK(ifl_rollout_reader_open(&reader, fuzz_folder(), &err) == IFL_OK);
    while (ifl_rollout_reader_next(reader, &r, &err) == IFL_OK) {
        int64_t sum = 0;
        for (int32_t i = 0; i < r.n_keys; i++)
            sum += r.keys[i].sample + r.keys[i].purpose;
        for (int32_t i = 0; i < r.n_members; i++)
            sum += r.members[i].sample + r.members[i].status;
        FUZZ_CHECK(sum >= 0 && strlen(r.reason) < sizeof r.reason && r.offset >= 0);
        if (r.type != IFL_RECORD_TRAJECTORY) continue;
        ifl_trajectory *traj = NULL;
        if (ifl_trajectory_decode(&traj, r.meta, r.n_meta, r.payload, r.n_payload, &err) == IFL_OK)
            (void)ifl_trajectory_check(traj, 1 << 20, &err);
        ifl_trajectory_free(traj);
    }
    FUZZ_CHECK(ifl_rollout_reader_torn_bytes(reader) >= 0);
    ifl_rollout_reader_close(reader);
}

static void read_books(void) {
    ifl_rollout_ledger *ledger = NULL;
    ifl_error err = {0};
    if (ifl_rollout_ledger_read(&ledger, fuzz_folder(), &err) != IFL_OK) return;
    ifl_rollout_balance b;
    ifl_rollout_fate fate;
    ifl_rollout_ledger_balance(ledger, &b);
    FUZZ_CHECK(b.leased >= 0 && b.trained >= 0 && b.masked >= 0 && b.dropped >= 0 &&
               b.in_flight >= 0 && b.lost >= 0);
    (void)ifl_rollout_balance_holds(&b);
    json_t *json = ifl_rollout_balance_json(&b);
    FUZZ_CHECK(json);
    json_decref(json);
    for (int32_t sample = 0; sample < 4; sample++)
        (void)ifl_rollout_ledger_find(ledger, (ifl_rollout_key){1, sample, IFL_PURPOSE_TRAIN},
                                      &fate);
    ifl_rollout_ledger_free(ledger);
}

static void read_redo(void) {
    ifl_redo *redo = NULL;
    ifl_error err = {0};
    const uint64_t open[2] = {3, 1};
    for (int64_t step = 0; step < 3; step++) {
        if (ifl_redo_read(&redo, fuzz_folder(), step, open, 2, 4, &err) != IFL_OK) return;
        FUZZ_CHECK(redo->last_version >= step && redo->next_serial >= 4);
        for (int64_t i = 0; i < redo->n_answers; i++)
            FUZZ_CHECK(redo->answers[i].version_newest <= redo->last_version &&
                       (redo->answers[i].dropped || redo->answers[i].segment > 0));
        for (int32_t i = 0; i < redo->n_takes; i++)
            FUZZ_CHECK(redo->takes[i].step > step && redo->takes[i].n >= 0);
        ifl_redo_free(redo);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_input in = fuzz_input_of(data, size), first = {0};
    int mode = (int)fuzz_take(&in, 1);
    if (mode & 2) first = fuzz_take_part(&in, fuzz_take(&in, 2));
    segment_write("000001.ifl", first, !(mode & 1));
    segment_write("000002.ifl", in, !(mode & 1));
    read_records();
    read_books();
    read_redo();
    return 0;
}
