/* Writing the rollout log. Layouts of the records other than trajectories, all in meta:
 *     RUN_STARTED   seed i64, resumed step i64
 *     LEASED        serial u64, lease u64, group size u32, attempt u32, purpose u8
 *     GROUP_CLOSED  serial u64, n u32, purpose u8, then n x (sample u32, status u8, reward f32)
 *     TRAINED       step i64, n u32, then n keys
 *     DROPPED, MASKED  key, reason (rest of meta, no NUL)
 *     CHECKPOINT    step i64
 *     RUN_ENDED     step i64, n u32, then n keys, then the reason
 * A key is serial u64, sample u32, purpose u8. A CHECKPOINT may follow a TRAINED of the same step.
 */
#include "common/rollout_log.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/byte_io.h"
#include "common/clock.h"
#include "common/config.h"
#include "common/memory.h"
#include "common/rollout_record.h"
#include "common/run_dir.h"

#define SEGMENT_BYTES_DEFAULT ((int64_t)256 << 20)

struct ifl_rollout_log {
    char folder[IFL_PATH_MAX];
    char path[IFL_PATH_MAX]; /* of the current segment */
    FILE *f;
    int32_t number;
    int64_t segment_written;
    ifl_rollout_log_options options;
    uint8_t *scratch; /* a record's meta while it is built */
    size_t scratch_cap;
};

static ifl_status segment_open(ifl_rollout_log *log, ifl_error *err) {
    if (log->number >= IFL_SEGMENTS_MAX)
        return ifl_fail(err, IFL_LIMIT, "%s: already %d segments", log->folder, log->number);
    log->number++;
    int n = snprintf(log->path, sizeof log->path, "%s/%06d.ifl", log->folder, log->number);
    if (n < 0 || (size_t)n >= sizeof log->path)
        return ifl_fail(err, IFL_LIMIT, "%s: path too long", log->folder);
    int fd = open(log->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0)
        return ifl_fail(err, IFL_IO, "%s: cannot create the segment: %s", log->path,
                        strerror(errno));
    log->f = fdopen(fd, "wb");
    if (!log->f) {
        close(fd);
        return ifl_fail(err, IFL_NOMEM, "%s: out of memory", log->path);
    }
    log->segment_written = 0;
    return log->options.durable ? ifl_dir_sync(log->folder, err) : IFL_OK;
}

ifl_status ifl_rollout_log_open(ifl_rollout_log **out, const char *folder,
                                const ifl_rollout_log_options *options, ifl_error *err) {
    ifl_status st;
    *out = NULL;
    IFL_TRY(ifl_dir_create(folder, err));
    ifl_rollout_log *log = calloc(1, sizeof *log);
    if (!log) return ifl_fail(err, IFL_NOMEM, "%s: out of memory", folder);
    log->options = *options;
    if (log->options.segment_bytes <= 0) log->options.segment_bytes = SEGMENT_BYTES_DEFAULT;
    int n = snprintf(log->folder, sizeof log->folder, "%s", folder);
    if (n < 0 || (size_t)n >= sizeof log->folder) {
        st = ifl_fail(err, IFL_LIMIT, "%s: path too long", folder);
        goto fail;
    }
    int32_t *numbers = NULL, n_numbers = 0;
    IFL_TRY_GOTO(st, ifl_rollout_segments(folder, &numbers, &n_numbers, err), fail);
    log->number = n_numbers ? numbers[n_numbers - 1] : 0;
    free(numbers);
    IFL_TRY_GOTO(st, segment_open(log, err), fail);
    *out = log;
    return IFL_OK;
fail:
    ifl_rollout_log_close(log);
    return st;
}

int32_t ifl_rollout_log_segment(const ifl_rollout_log *log) {
    return log->number;
}

void ifl_rollout_log_close(ifl_rollout_log *log) {
    if (!log) return;
    if (log->f) {
        fflush(log->f);
        if (log->options.durable) fdatasync(fileno(log->f));
        fclose(log->f);
    }
    free(log->scratch);
    free(log);
}

ifl_status ifl_rollout_log_flush(ifl_rollout_log *log, ifl_error *err) {
    if (fflush(log->f) || (log->options.durable && fdatasync(fileno(log->f))))
        return ifl_fail(err, IFL_IO, "%s: cannot write: %s", log->path, strerror(errno));
    return IFL_OK;
}

static ifl_status record_write(ifl_rollout_log *log, ifl_record_type type, const void *meta,
                               size_t n_meta, const void *payload, size_t n_payload,
                               ifl_error *err) {
    if (n_meta > IFL_RECORD_BYTES_MAX || n_payload > IFL_RECORD_BYTES_MAX ||
        n_meta + n_payload > IFL_RECORD_BYTES_MAX)
        return ifl_fail(err, IFL_LIMIT, "%s: a record of %zu bytes, wanted at most %d", log->path,
                        n_meta + n_payload, IFL_RECORD_BYTES_MAX);
    int64_t total = (int64_t)(IFL_RECORD_HEADER_BYTES + n_meta + n_payload);
    if (log->segment_written && log->segment_written + total > log->options.segment_bytes) {
        IFL_TRY(ifl_rollout_log_flush(log, err));
        fclose(log->f);
        log->f = NULL;
        IFL_TRY(segment_open(log, err));
    }
    uint8_t header[IFL_RECORD_HEADER_BYTES];
    IFL_TRY(ifl_record_header_make(header, type, ifl_clock_wall_ms(), meta, n_meta, payload,
                                   n_payload, err));
    if (fwrite(header, 1, sizeof header, log->f) != sizeof header ||
        (n_meta && fwrite(meta, 1, n_meta, log->f) != n_meta) ||
        (n_payload && fwrite(payload, 1, n_payload, log->f) != n_payload))
        return ifl_fail(err, IFL_IO, "%s: cannot write: %s", log->path, strerror(errno));
    log->segment_written += total;
    return IFL_OK;
}

/* A writer over scratch of at least n bytes. */
static ifl_status meta_begin(ifl_rollout_log *log, size_t n, ifl_byte_writer *w, ifl_error *err) {
    void *p = log->scratch;
    ifl_status st = ifl_grow(&p, &log->scratch_cap, n, 1, err);
    log->scratch = p;
    *w = (ifl_byte_writer){log->scratch, log->scratch + log->scratch_cap, false};
    return st;
}

static ifl_status meta_end(ifl_rollout_log *log, ifl_record_type type, const ifl_byte_writer *w,
                           ifl_error *err) {
    IFL_ASSERT(!w->bad); /* meta_begin was given too little */
    return record_write(log, type, log->scratch, (size_t)(w->at - log->scratch), NULL, 0, err);
}

static void key_put(ifl_byte_writer *w, ifl_rollout_key key) {
    ifl_put_u64(w, key.task_serial);
    ifl_put_u32(w, (uint32_t)key.sample);
    ifl_put_u8(w, key.purpose);
}

ifl_status ifl_rollout_log_run_started(ifl_rollout_log *log, int64_t seed, int64_t resumed_step,
                                       uint64_t next_serial, ifl_error *err) {
    ifl_byte_writer w;
    IFL_TRY(meta_begin(log, 24, &w, err));
    ifl_put_u64(&w, (uint64_t)seed);
    ifl_put_u64(&w, (uint64_t)resumed_step);
    ifl_put_u64(&w, next_serial);
    return meta_end(log, IFL_RECORD_RUN_STARTED, &w, err);
}

ifl_status ifl_rollout_log_leased(ifl_rollout_log *log, uint64_t task_serial, uint8_t purpose,
                                  int32_t group_size, uint64_t lease_id, int32_t attempt,
                                  ifl_error *err) {
    IFL_ASSERT(group_size >= 1 && group_size <= IFL_RECORD_MEMBERS_MAX && attempt >= 0);
    ifl_byte_writer w;
    IFL_TRY(meta_begin(log, 32, &w, err));
    ifl_put_u64(&w, task_serial);
    ifl_put_u64(&w, lease_id);
    ifl_put_u32(&w, (uint32_t)group_size);
    ifl_put_u32(&w, (uint32_t)attempt);
    ifl_put_u8(&w, purpose);
    return meta_end(log, IFL_RECORD_LEASED, &w, err);
}

ifl_status ifl_rollout_log_trajectory_raw(ifl_rollout_log *log, const void *meta, size_t n_meta,
                                          const void *payload, size_t n_payload, ifl_error *err) {
    return record_write(log, IFL_RECORD_TRAJECTORY, meta, n_meta, payload, n_payload, err);
}

ifl_status ifl_rollout_log_trajectory(ifl_rollout_log *log, const ifl_trajectory *traj,
                                      ifl_error *err) {
    uint8_t *meta = NULL, *payload = NULL;
    size_t n_meta = 0, n_payload = 0;
    IFL_TRY(ifl_trajectory_encode(traj, &meta, &n_meta, &payload, &n_payload, err));
    ifl_status st = ifl_rollout_log_trajectory_raw(log, meta, n_meta, payload, n_payload, err);
    free(meta);
    free(payload);
    return st;
}

ifl_status ifl_rollout_log_group_closed(ifl_rollout_log *log, uint64_t task_serial, uint8_t purpose,
                                        const ifl_group_member *members, int32_t n_members,
                                        ifl_error *err) {
    IFL_ASSERT(n_members >= 0 && n_members <= IFL_RECORD_MEMBERS_MAX);
    ifl_byte_writer w;
    IFL_TRY(meta_begin(log, 16 + 9 * (size_t)n_members, &w, err));
    ifl_put_u64(&w, task_serial);
    ifl_put_u32(&w, (uint32_t)n_members);
    ifl_put_u8(&w, purpose);
    for (int32_t i = 0; i < n_members; i++) {
        uint32_t bits;
        memcpy(&bits, &members[i].reward, sizeof bits);
        ifl_put_u32(&w, (uint32_t)members[i].sample);
        ifl_put_u8(&w, members[i].status);
        ifl_put_u32(&w, bits);
    }
    return meta_end(log, IFL_RECORD_GROUP_CLOSED, &w, err);
}

static ifl_status keys_write(ifl_rollout_log *log, ifl_record_type type, int64_t step,
                             const ifl_rollout_key *keys, int32_t n_keys, const char *reason,
                             ifl_error *err) {
    IFL_ASSERT(n_keys >= 0);
    ifl_byte_writer w;
    size_t n_reason = strnlen(reason, IFL_REASON_MAX - 1);
    IFL_TRY(meta_begin(log, 16 + IFL_RECORD_KEY_BYTES * (size_t)n_keys + n_reason, &w, err));
    ifl_put_u64(&w, (uint64_t)step);
    ifl_put_u32(&w, (uint32_t)n_keys);
    for (int32_t i = 0; i < n_keys; i++)
        key_put(&w, keys[i]);
    ifl_put_bytes(&w, reason, n_reason);
    return meta_end(log, type, &w, err);
}

ifl_status ifl_rollout_log_trained(ifl_rollout_log *log, int64_t step, const ifl_rollout_key *keys,
                                   int32_t n_keys, ifl_error *err) {
    return keys_write(log, IFL_RECORD_TRAINED, step, keys, n_keys, "", err);
}

ifl_status ifl_rollout_log_run_ended(ifl_rollout_log *log, int64_t step, const char *reason,
                                     const ifl_rollout_key *in_flight, int32_t n_in_flight,
                                     ifl_error *err) {
    return keys_write(log, IFL_RECORD_RUN_ENDED, step, in_flight, n_in_flight, reason, err);
}

static ifl_status fate_write(ifl_rollout_log *log, ifl_record_type type, ifl_rollout_key key,
                             const char *reason, ifl_error *err) {
    ifl_byte_writer w;
    IFL_TRY(meta_begin(log, IFL_RECORD_KEY_BYTES + IFL_REASON_MAX, &w, err));
    key_put(&w, key);
    ifl_put_bytes(&w, reason, strnlen(reason, IFL_REASON_MAX - 1));
    return meta_end(log, type, &w, err);
}

ifl_status ifl_rollout_log_dropped(ifl_rollout_log *log, ifl_rollout_key key, const char *reason,
                                   ifl_error *err) {
    return fate_write(log, IFL_RECORD_DROPPED, key, reason, err);
}

ifl_status ifl_rollout_log_masked(ifl_rollout_log *log, ifl_rollout_key key, const char *reason,
                                  ifl_error *err) {
    return fate_write(log, IFL_RECORD_MASKED, key, reason, err);
}

ifl_status ifl_rollout_log_checkpoint(ifl_rollout_log *log, int64_t step, ifl_error *err) {
    ifl_byte_writer w;
    IFL_TRY(meta_begin(log, 8, &w, err));
    ifl_put_u64(&w, (uint64_t)step);
    return meta_end(log, IFL_RECORD_CHECKPOINT, &w, err);
}

ifl_status ifl_rollout_log_taken(ifl_rollout_log *log, int64_t step, const uint64_t *serials,
                                 int32_t n, ifl_error *err) {
    ifl_byte_writer w;
    IFL_TRY(meta_begin(log, 16 + IFL_RECORD_KEY_BYTES * (size_t)n, &w, err));
    ifl_put_u64(&w, (uint64_t)step);
    ifl_put_u32(&w, (uint32_t)n);
    for (int32_t i = 0; i < n; i++)
        key_put(&w, (ifl_rollout_key){serials[i], 0, IFL_PURPOSE_TRAIN});
    return meta_end(log, IFL_RECORD_TAKEN, &w, err);
}

ifl_status ifl_rollout_log_published(ifl_rollout_log *log, int64_t version, ifl_hash content,
                                     ifl_error *err) {
    ifl_byte_writer w;
    IFL_TRY(meta_begin(log, 24, &w, err));
    ifl_put_u64(&w, (uint64_t)version);
    ifl_put_u64(&w, content.low);
    ifl_put_u64(&w, content.high);
    return meta_end(log, IFL_RECORD_PUBLISHED, &w, err);
}

ifl_status ifl_rollout_log_caught_up(ifl_rollout_log *log, int64_t step, ifl_error *err) {
    ifl_byte_writer w;
    IFL_TRY(meta_begin(log, 8, &w, err));
    ifl_put_u64(&w, (uint64_t)step);
    return meta_end(log, IFL_RECORD_CAUGHT_UP, &w, err);
}
