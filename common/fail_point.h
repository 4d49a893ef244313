/* Fail points: named places where a test makes this program die, wait or be refused by the system.
 * Compiled in always; while none is armed, passing one costs a relaxed load and a branch.
 *
 *     INFLIGHT_FAILPOINT="log.sync=error(EIO)@3;actor.step=sleep(20)@1+"
 *     INFLIGHT_FAILPOINT=@FILE       the same text from a file, read again at each SIGUSR2
 *
 * A term is name=action[@when]. When: N, the N-th passing since it was armed (the default is 1);
 * N+, that one and all after it; N/S, each passing with chance 1 in N, drawn from seed S. Actions:
 *
 *     kill           SIGKILL to this process
 *     exit(N)        _exit with status N
 *     sleep(MS)      the passing thread waits
 *     error(NAME)    EIO, ENOSPC, EDQUOT, ENOMEM, EROFS: what the call would have said     (points
 * E) tear           half of the bytes are written, then kill                              (points
 * T) jump(MS)       the wall clock goes on from there, on or back                         (points
 * J)
 *
 * A point that acts says so in one line of the log, with its name and which passing it was. A
 * malformed term or an unknown name is IFL_USAGE; the text lists what there is. */
#ifndef IFL_COMMON_FAIL_POINT_H
#define IFL_COMMON_FAIL_POINT_H

#include <stdatomic.h>

#include "common/status.h"

/* X(id, name, what it takes beside kill, exit and sleep, where it is) */
#define IFL_FAIL_POINTS(X)                                                                         \
    X(LOG_APPEND, "log.append", "", "rollout log: a record is in the buffer, none of it written")  \
    X(LOG_WRITE, "log.write", "ET", "rollout log: the buffer goes to its segment")                 \
    X(LOG_SYNC, "log.sync", "E", "rollout log: written, before fdatasync")                         \
    X(LOG_SYNCED, "log.synced", "", "rollout log: on the disk, nobody has been told yet")          \
    X(METRICS_WRITE, "metrics.write", "E", "metrics: rows go to the file")                         \
    X(DESK_WAIT, "desk.wait", "", "learner: the training thread waits for groups")                 \
    X(STEP_BEGIN, "step.begin", "", "learner: before a step takes its first groups")               \
    X(STEP_GRADIENTS, "step.gradients", "", "learner: gradients are whole, no weight has moved")   \
    X(STEP_UPDATED, "step.updated", "", "learner: weights have moved, nothing says so yet")        \
    X(STEP_CLOSE, "step.close", "", "learner: published, before the log has what was trained")     \
    X(CHECKPOINT_BEGIN, "checkpoint.begin", "E", "checkpoint: before its temporary folder")        \
    X(CHECKPOINT_FILE, "checkpoint.file", "", "checkpoint: before each of its files")              \
    X(CHECKPOINT_INDEX, "checkpoint.index", "", "checkpoint: before the index and the marker")     \
    X(CHECKPOINT_REVEAL, "checkpoint.reveal", "", "checkpoint: whole, before it has its name")     \
    X(CHECKPOINT_DONE, "checkpoint.done", "", "checkpoint: has its name, older ones still there")  \
    X(PUBLISH_BEGIN, "publish.begin", "", "publisher: before a version is unpacked")               \
    X(PUBLISH_CHUNK, "publish.chunk", "", "publisher: between two chunks of a version")            \
    X(PUBLISH_ANNOUNCE, "publish.announce", "", "publisher: built, before anybody is told")        \
    X(PUBLISH_ANNOUNCED, "publish.announced", "", "publisher: announced")                          \
    X(FILE_WRITE, "file.write", "ET", "files that appear whole: bytes go into the temporary file") \
    X(FILE_SYNC, "file.sync", "E", "files that appear whole: before fsync")                        \
    X(FILE_RENAME, "file.rename", "E", "files that appear whole: before the rename")               \
    X(RECEIVER_BEGIN, "receiver.begin", "", "actor: the fetch of a version begins")                \
    X(RECEIVER_CHUNK, "receiver.chunk", "", "actor: a chunk is about to be staged")                \
    X(RECEIVER_READY, "receiver.ready", "", "actor: a version is staged whole and verified")       \
    X(ACTOR_STEP, "actor.step", "E", "actor: before a decode step; an error is the device's")      \
    X(ACTOR_SWAP, "actor.swap", "", "actor: a staged version is about to be swapped in")           \
    X(ACTOR_SEND, "actor.send", "", "actor: an answer is about to go into the outbox")             \
    X(LINK_SENT, "link.sent", "", "actor: a trajectory has been given to the socket")              \
    X(LINK_ACKED, "link.acked", "", "actor: an acknowledgement has come, the outbox still has it") \
    X(RELAY_CHUNK, "relay.chunk", "E", "relay: hands a chunk on; an error alters a bit of it")     \
    X(CLOCK_WALL, "clock.wall", "J", "the wall clock is read")

typedef enum {
#define IFL_FAIL_POINT_ENUM(id, name, takes, where) IFL_FAIL_##id,
    IFL_FAIL_POINTS(IFL_FAIL_POINT_ENUM)
#undef IFL_FAIL_POINT_ENUM
        IFL_FAIL_POINT_COUNT
} ifl_fail_point_id;

/* ifl_fail_point says so: write a part of it, then call ifl_fail_point_die. */
#define IFL_FAIL_TEAR (-1)

extern atomic_bool ifl_fail_points_armed; /* fail_point.c's; read through ifl_fail_point alone */
int ifl_fail_point_pass(ifl_fail_point_id point);
_Noreturn void ifl_fail_point_die(void);

/* Passes a point. 0: go on; > 0: the errno to fail with; IFL_FAIL_TEAR. Any thread. */
static inline int ifl_fail_point(ifl_fail_point_id point) {
    if (__builtin_expect(!atomic_load_explicit(&ifl_fail_points_armed, memory_order_relaxed), 1))
        return 0;
    return ifl_fail_point_pass(point);
}

/* What clock.wall has added to the wall clock so far, ms. */
int64_t ifl_fail_point_wall_ms(void);

/* Reads INFLIGHT_FAILPOINT; call before threads start. Unset is fine. IFL_USAGE, IFL_IO. */
ifl_status ifl_fail_points_setup(ifl_error *err);

/* Arms what `text` says instead of what was armed, and counts passings from 0. On failure nothing
 * changes. "" arms none. */
ifl_status ifl_fail_points_arm(const char *text, ifl_error *err);

#endif
