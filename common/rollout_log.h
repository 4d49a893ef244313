/* The only store of rollouts: append-only segments <folder>/<number>.ifl of framed records. All
 * that happens to a trajectory is a record, so that a run's books can be balanced from the files
 * alone:
 *
 *     leased = trained + masked + dropped(reason) + in flight at the end + lost
 *
 * A trajectory is identified by its key (purpose, task serial, sample). Before a record's meta and
 * payload stands a header of 32 bytes, little-endian:
 *
 *     0 magic "IFLR"   4 type u8     5 check of this header u24
 *     8 n_meta u32    12 n_payload u32
 *    16 wall clock, ms i64          24 XXH3-64 of bytes 0..24, meta and payload
 *
 * Trajectory records hold the bytes of ifl_trajectory_encode; the others a fixed layout
 * (rollout_log.c). A torn tail (a crash in mid-record) ends a segment quietly and is counted;
 * anything else that does not check is IFL_FORMAT with file and offset. */
#ifndef IFL_COMMON_ROLLOUT_LOG_H
#define IFL_COMMON_ROLLOUT_LOG_H

#include "common/trajectory.h"

#define IFL_RECORD_BYTES_MAX (64 << 20)
#define IFL_RECORD_MEMBERS_MAX 4096
#define IFL_REASON_MAX 48

typedef struct ifl_rollout_key {
    uint64_t task_serial;
    int32_t sample;
    uint8_t purpose; /* ifl_purpose */
} ifl_rollout_key;

typedef enum {
    IFL_RECORD_RUN_STARTED = 1, /* a learner process began or resumed */
    IFL_RECORD_LEASED,          /* a group went out; again with attempt + 1 when a lease ran out */
    IFL_RECORD_TRAJECTORY,      /* a finished trajectory was admitted */
    IFL_RECORD_GROUP_CLOSED,    /* the members and statuses that advantages come from */
    IFL_RECORD_TRAINED,         /* keys that step trained */
    IFL_RECORD_DROPPED,         /* one key, never trained, and why */
    IFL_RECORD_MASKED,          /* one key, left its group by its reward status */
    IFL_RECORD_CHECKPOINT,      /* this step can be resumed from */
    IFL_RECORD_RUN_ENDED,       /* an orderly end, with the keys that were in flight then */
    IFL_RECORD_TAKEN,           /* groups that a step took together, in the order of its sums */
    IFL_RECORD_PUBLISHED,       /* a version, before any actor can have it */
    IFL_RECORD_CAUGHT_UP, /* a resumed process has done again what the log says, or given up */
    IFL_RECORD_DRAWN,     /* a group's task, where more than its serial decides which one it is */
} ifl_record_type;

typedef struct ifl_group_member {
    int32_t sample;
    uint8_t status; /* ifl_reward_status */
    float reward;
} ifl_group_member;

/* --- Writing: one thread ----------------------------------------------------------------- */
typedef struct ifl_rollout_log ifl_rollout_log;

typedef struct ifl_rollout_log_options {
    int64_t segment_bytes; /* a new segment begins beyond this; 0 = 256 MiB */
    bool durable;          /* fdatasync in ifl_rollout_log_flush */
} ifl_rollout_log_options;

/* Opens a folder (created if need be) for appending: always in a new segment, so that an old torn
 * tail stays where it is. */
ifl_status ifl_rollout_log_open(ifl_rollout_log **out, const char *folder,
                                const ifl_rollout_log_options *options, ifl_error *err);
/* The number of the segment that is written now. A process's first one names it in its run. */
int32_t ifl_rollout_log_segment(const ifl_rollout_log *log);

/* Flushes and closes; NULL is fine. Check ifl_rollout_log_flush first if the last bytes matter. */
void ifl_rollout_log_close(ifl_rollout_log *log);

/* The first record of a learner process. `resumed_step`: the step it goes on from, 0 at the start;
 * what a former process trained in later steps is thereby undone, and its keys have no fate any
 * more. `next_serial`: the task cursor it goes on from; leases of later serials are undone too. */
ifl_status ifl_rollout_log_run_started(ifl_rollout_log *log, int64_t seed, int64_t resumed_step,
                                       uint64_t next_serial, ifl_error *err);
/* Samples 0 .. group_size - 1 of one task; `attempt` from 0. A later attempt leases the same keys
 * again. */
ifl_status ifl_rollout_log_leased(ifl_rollout_log *log, uint64_t task_serial, uint8_t purpose,
                                  int32_t group_size, uint64_t lease_id, int32_t attempt,
                                  ifl_error *err);
ifl_status ifl_rollout_log_trajectory(ifl_rollout_log *log, const ifl_trajectory *traj,
                                      ifl_error *err);
/* The same from encoded bytes, as they came over the wire. */
ifl_status ifl_rollout_log_trajectory_raw(ifl_rollout_log *log, const void *meta, size_t n_meta,
                                          const void *payload, size_t n_payload, ifl_error *err);
ifl_status ifl_rollout_log_group_closed(ifl_rollout_log *log, uint64_t task_serial, uint8_t purpose,
                                        const ifl_group_member *members, int32_t n_members,
                                        ifl_error *err);
ifl_status ifl_rollout_log_trained(ifl_rollout_log *log, int64_t step, const ifl_rollout_key *keys,
                                   int32_t n_keys, ifl_error *err);
/* `reason`: a short word, e.g. "zero_variance", "stale", "group_too_small", "eval_scored". */
ifl_status ifl_rollout_log_dropped(ifl_rollout_log *log, ifl_rollout_key key, const char *reason,
                                   ifl_error *err);
ifl_status ifl_rollout_log_masked(ifl_rollout_log *log, ifl_rollout_key key, const char *reason,
                                  ifl_error *err);
ifl_status ifl_rollout_log_checkpoint(ifl_rollout_log *log, int64_t step, ifl_error *err);
/* `in_flight`: every training key that is open, leased or stored and has no fate, taken from the
 * learner's own tables (leases, waiting groups), never from a difference: a key that is in none of
 * them shows as lost. */
ifl_status ifl_rollout_log_run_ended(ifl_rollout_log *log, int64_t step, const char *reason,
                                     const ifl_rollout_key *in_flight, int32_t n_in_flight,
                                     ifl_error *err);
/* serials[n] of purpose train, before the step can be felt anywhere: with the trajectories they are
 * all that is needed to do it again. */
ifl_status ifl_rollout_log_taken(ifl_rollout_log *log, int64_t step, const uint64_t *serials,
                                 int32_t n, ifl_error *err);
/* `content`: ifl_weights_hash. Before the announcement, so that whoever's tokens name a version can
 * be told from whoever's name other weights of that number. */
ifl_status ifl_rollout_log_published(ifl_rollout_log *log, int64_t version, ifl_hash content,
                                     ifl_error *err);
/* From here on this process's records take the place of what earlier ones did after the step that
 * it has resumed from (learner/redo.h); a process that ends before changes nothing. */
ifl_status ifl_rollout_log_caught_up(ifl_rollout_log *log, int64_t step, ifl_error *err);
/* The group `task_serial` was opened for task `item` of source `source` (ifl_task_pick). */
ifl_status ifl_rollout_log_drawn(ifl_rollout_log *log, uint64_t task_serial, int32_t source,
                                 uint64_t item, ifl_error *err);
/* Hands everything to the kernel, and to the disk if `durable`. Call before acknowledging a
 * trajectory; until then records may lie in memory. IFL_FULL: no room on the disk; nothing is lost,
 * the file ends with a whole record, try again later (appending goes on in memory up to 256 MiB).
 * IFL_IO: a write or a sync has failed, and so does everything from then on: what a disk has once
 * refused to keep it may claim to have the next time. */
ifl_status ifl_rollout_log_flush(ifl_rollout_log *log, ifl_error *err);

/* --- Reading ------------------------------------------------------------------------------ */
typedef struct ifl_record {
    ifl_record_type type;
    int64_t wall_ms;
    const char *file; /* segment; valid until the next call */
    int64_t offset;   /* of the record in it */
    /* trajectory: the encoded bytes, borrowed until the next call */
    const uint8_t *meta, *payload;
    size_t n_meta, n_payload;
    /* the others, by type */
    uint64_t task_serial, lease_id; /* run started: task_serial is its next_serial */
    uint8_t purpose;
    int32_t group_size, attempt;
    int64_t step, seed;
    ifl_rollout_key key;         /* dropped, masked */
    char reason[IFL_REASON_MAX]; /* dropped, masked, run ended */
    int32_t n_members;
    const ifl_group_member *members; /* group closed; borrowed until the next call */
    int32_t n_keys;
    const ifl_rollout_key *keys; /* trained, run ended, taken; borrowed until the next call */
    ifl_hash content;            /* published; its version is `step` */
    int32_t source;              /* drawn */
    uint64_t item;               /* drawn */
} ifl_record;

typedef struct ifl_rollout_reader ifl_rollout_reader;
ifl_status ifl_rollout_reader_open(ifl_rollout_reader **out, const char *folder, ifl_error *err);
void ifl_rollout_reader_close(ifl_rollout_reader *reader);
/* The next record. IFL_NOTFOUND at the end (err untouched); IFL_FORMAT names file and offset. */
ifl_status ifl_rollout_reader_next(ifl_rollout_reader *reader, ifl_record *out, ifl_error *err);
/* The next record will be the one at `offset` of this segment, as an ifl_record names them.
 * IFL_NOTFOUND: no such segment. */
ifl_status ifl_rollout_reader_seek(ifl_rollout_reader *reader, int32_t segment, int64_t offset,
                                   ifl_error *err);
/* After IFL_FORMAT: the next record will be the first one of the next segment. */
void ifl_rollout_reader_skip(ifl_rollout_reader *reader);
/* The number in a segment's path. */
int32_t ifl_rollout_segment_number(const char *file);
/* Bytes of torn tails met so far. */
int64_t ifl_rollout_reader_torn_bytes(const ifl_rollout_reader *reader);

#endif
