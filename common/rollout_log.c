/* Writing the rollout log. Layouts of the records other than trajectories, all in meta:
 *     RUN_STARTED   seed i64, resumed step i64
 *     LEASED        serial u64, lease u64, group size u32, attempt u32, purpose u8
 *     GROUP_CLOSED  serial u64, n u32, purpose u8, then n x (sample u32, status u8, reward f32)
 *     TRAINED       step i64, n u32, then n keys
 *     DROPPED, MASKED  key, reason (rest of meta, no NUL)
 *     CHECKPOINT    step i64
 *     RUN_ENDED     step i64, n u32, then n keys, then the reason
 *     DRAWN         serial u64, source u32, item u64
 * A key is serial u64, sample u32, purpose u8. A CHECKPOINT may follow a TRAINED of the same step.
 */
#include "common/rollout_log.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/byte_io.h"
#include "common/clock.h"
#include "common/config.h"
#include "common/fail_point.h"
#include "common/memory.h"
#include "common/rollout_record.h"
#include "common/run_dir.h"

#define SEGMENT_BYTES_DEFAULT ((int64_t)256 << 20)
#define BUFFER_BYTES (1 << 20)       /* beyond this it goes to the file without being asked */
#define BUFFER_BYTES_MAX (256 << 20) /* held at most while the disk has no room */

struct ifl_rollout_log {
    char folder[IFL_PATH_MAX];
    char path[IFL_PATH_MAX]; /* of the current segment */
    int fd;
    int32_t number;
    int64_t segment_written; /* bytes of whole records in the file */
    uint8_t *buffer;         /* whole records that aren't in the file yet */
    size_t n_buffer, buffer_cap;
    bool unsynced, broken; /* broken: a write or a sync has failed; nothing is tried again */
    ifl_rollout_log_options options;
    uint8_t *scratch; /* a record's meta while it is built */
    size_t scratch_cap;
};

static bool no_room(int error) {
    return error == ENOSPC || error == EDQUOT;
}

static ifl_status segment_open(ifl_rollout_log *log, ifl_error *err) {
    if (log->number >= IFL_SEGMENTS_MAX)
        return ifl_fail(err, IFL_LIMIT, "%s: already %d segments", log->folder, log->number);
    char path[IFL_PATH_MAX];
    int n = snprintf(path, sizeof path, "%s/%06d.ifl", log->folder, log->number + 1);
    if (n < 0 || (size_t)n >= sizeof path)
        return ifl_fail(err, IFL_LIMIT, "%s: path too long", log->folder);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0)
        return ifl_fail(err, no_room(errno) ? IFL_FULL : IFL_IO,
                        "%s: cannot create the segment: %s", path, strerror(errno));
    if (log->fd >= 0) close(log->fd);
    log->fd = fd;
    log->number++;
    memcpy(log->path, path, sizeof path);
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
    log->fd = -1;
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
    if (log->fd >= 0) {
        ifl_rollout_log_flush(log, NULL);
        close(log->fd);
    }
    free(log->scratch);
    free(log->buffer);
    free(log);
}

static ifl_status log_broken(ifl_rollout_log *log, const char *what, int error, ifl_error *err) {
    log->broken = true;
    return ifl_fail(err, IFL_IO,
                    "%s: cannot %s: %s; what is in memory and not on the disk is given up, and "
                    "nothing more is written",
                    log->path, what, strerror(error));
}

/* Brings the buffer into the file. Without room for all of it the file is what it was before. */
static ifl_status buffer_write(ifl_rollout_log *log, ifl_error *err) {
    if (!log->n_buffer) return IFL_OK;
    int error = ifl_fail_point(IFL_FAIL_LOG_WRITE);
    bool tear = error == IFL_FAIL_TEAR;
    size_t n = tear ? log->n_buffer / 2 : log->n_buffer, at = 0;
    if (tear) error = 0;
    while (!error && at < n) {
        ssize_t m = pwrite(log->fd, log->buffer + at, n - at, log->segment_written + (int64_t)at);
        if (m < 0 && errno != EINTR) error = errno;
        if (m == 0) error = EIO;
        if (m > 0) at += (size_t)m;
    }
    if (tear) ifl_fail_point_die();
    if (error && ftruncate(log->fd, log->segment_written) != 0)
        return log_broken(log, "take back a part of a record", errno, err);
    if (no_room(error))
        return ifl_fail(err, IFL_FULL, "%s: cannot write: %s", log->path, strerror(error));
    if (error) return log_broken(log, "write", error, err);
    log->segment_written += (int64_t)log->n_buffer;
    log->n_buffer = 0;
    log->unsynced = true;
    return IFL_OK;
}

ifl_status ifl_rollout_log_flush(ifl_rollout_log *log, ifl_error *err) {
    if (log->broken)
        return ifl_fail(err, IFL_IO, "%s: has failed before; nothing more is written", log->path);
    IFL_TRY(buffer_write(log, err));
    if (!log->options.durable || !log->unsynced) return IFL_OK;
    int error = ifl_fail_point(IFL_FAIL_LOG_SYNC);
    if (!error && fdatasync(log->fd) != 0) error = errno;
    /* Even for want of room: the kernel may have dropped the pages, and would say yes next time. */
    if (error) return log_broken(log, "sync", error, err);
    log->unsynced = false;
    ifl_fail_point(IFL_FAIL_LOG_SYNCED);
    return IFL_OK;
}

/* To the next segment, when the current one is long enough. Without room for it: later. */
static ifl_status segment_rotate(ifl_rollout_log *log, int64_t n_more, ifl_error *err) {
    int64_t n = log->segment_written + (int64_t)log->n_buffer;
    if (!n || n + n_more <= log->options.segment_bytes) return IFL_OK;
    ifl_status st = ifl_rollout_log_flush(log, err);
    if (st == IFL_OK) st = segment_open(log, err);
    return st == IFL_FULL ? IFL_OK : st;
}

static void buffer_put(ifl_rollout_log *log, const void *bytes, size_t n) {
    if (n) memcpy(log->buffer + log->n_buffer, bytes, n);
    log->n_buffer += n;
}

static ifl_status record_write(ifl_rollout_log *log, ifl_record_type type, const void *meta,
                               size_t n_meta, const void *payload, size_t n_payload,
                               ifl_error *err) {
    if (n_meta > IFL_RECORD_BYTES_MAX || n_payload > IFL_RECORD_BYTES_MAX ||
        n_meta + n_payload > IFL_RECORD_BYTES_MAX)
        return ifl_fail(err, IFL_LIMIT, "%s: a record of %zu bytes, wanted at most %d", log->path,
                        n_meta + n_payload, IFL_RECORD_BYTES_MAX);
    int64_t total = (int64_t)(IFL_RECORD_HEADER_BYTES + n_meta + n_payload);
    if (log->broken)
        return ifl_fail(err, IFL_IO, "%s: has failed before; nothing more is written", log->path);
    IFL_TRY(segment_rotate(log, total, err));
    uint8_t header[IFL_RECORD_HEADER_BYTES];
    IFL_TRY(ifl_record_header_make(header, type, ifl_clock_wall_ms(), meta, n_meta, payload,
                                   n_payload, err));
    if ((int64_t)log->n_buffer + total > BUFFER_BYTES_MAX)
        return ifl_fail(err, IFL_FULL, "%s: %zu bytes wait for room on the disk, limit %d",
                        log->path, log->n_buffer, BUFFER_BYTES_MAX);
    void *buffer = log->buffer;
    ifl_status st = ifl_grow(&buffer, &log->buffer_cap, log->n_buffer + (size_t)total, 1, err);
    log->buffer = buffer;
    IFL_TRY(st);
    buffer_put(log, header, sizeof header);
    buffer_put(log, meta, n_meta);
    buffer_put(log, payload, n_payload);
    ifl_fail_point(IFL_FAIL_LOG_APPEND);
    if (log->n_buffer < BUFFER_BYTES) return IFL_OK;
    st = buffer_write(log, err);
    return st == IFL_FULL ? IFL_OK : st;
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

ifl_status ifl_rollout_log_drawn(ifl_rollout_log *log, uint64_t task_serial, int32_t source,
                                 uint64_t item, ifl_error *err) {
    IFL_ASSERT(source >= 0 && source < IFL_SOURCES_MAX);
    ifl_byte_writer w;
    IFL_TRY(meta_begin(log, 24, &w, err));
    ifl_put_u64(&w, task_serial);
    ifl_put_u32(&w, (uint32_t)source);
    ifl_put_u64(&w, item);
    return meta_end(log, IFL_RECORD_DRAWN, &w, err);
}
