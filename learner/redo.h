/* What a run did after the checkpoint that it is resumed from, read from its rollout log, so that
 * it can be done again instead of anew: every answer that an actor was told is stored is still an
 * answer, and the same groups in the same order give the same weights, bit for bit.
 *
 * A log is the work of several learner processes. Each begins at a step; from where it has caught
 * up (IFL_RECORD_CAUGHT_UP) its records take the place of what earlier ones did after that step;
 * of one that ends before only the answers count. A pure reading of files:
 * learner/dispatch_redo.c acts on it. */
#ifndef IFL_LEARNER_REDO_H
#define IFL_LEARNER_REDO_H

#include "common/rollout_log.h"
#include "common/task.h"
#include "learner/groups.h"
#include "learner/version_history.h"

/* Groups that a step took together. */
typedef struct ifl_redo_take {
    int64_t step;
    int32_t n;
    uint64_t *serials; /* [n], in the order of the step's sums */
} ifl_redo_take;

/* What became of one member of a training group that has to be open again. */
typedef struct ifl_redo_answer {
    uint64_t task_serial;
    int32_t sample;
    bool dropped;                           /* given up for good, by drop_reason; else stored */
    uint8_t drop_reason;                    /* ifl_drop_reason */
    bool done;                              /* the user's */
    int32_t segment;                        /* of the log, and ... */
    int64_t offset;                         /* ... where the trajectory's record begins */
    int64_t version_oldest, version_newest; /* that its tokens or its KV name; -1 when dropped */
} ifl_redo_answer;

typedef struct ifl_redo_version {
    int64_t version;
    ifl_hash content; /* ifl_weights_hash */
} ifl_redo_version;

/* The task that a group was opened for. */
typedef struct ifl_redo_draw {
    uint64_t task_serial;
    ifl_task_pick pick;
} ifl_redo_draw;

typedef struct ifl_redo {
    int64_t step;         /* that the run goes on from */
    int64_t last_version; /* the newest that was published; `step` when none was */
    uint64_t next_serial; /* the task cursor as it was at the end */
    ifl_redo_take *takes; /* of the steps after `step` */
    int32_t n_takes;
    ifl_redo_answer *answers; /* ascending by (serial, sample) */
    int64_t n_answers;
    ifl_redo_version *versions; /* from `step` on */
    int32_t n_versions;
    ifl_redo_draw *draws; /* in the log's order; none where serials decide */
    int64_t n_draws;
    ifl_version_process *processes; /* of the run so far */
    int32_t n_processes;
    char damage[256]; /* where the log is damaged; empty when it isn't */
} ifl_redo;

/* Reads the whole log. `open` (n_open serials) and next_serial come from the checkpoint of `step`.
 * Returns owned; without answers and takes where the log has none (also without a log at all, or
 * one of builds that wrote less). Of a damaged log only the processes after the damage count. */
ifl_status ifl_redo_read(ifl_redo **out, const char *folder, int64_t step, const uint64_t *open,
                         int32_t n_open, uint64_t next_serial, ifl_error *err);
void ifl_redo_free(ifl_redo *redo); /* NULL is fine */

/* The content hash that `version` must have; NULL when the log doesn't say. */
const ifl_hash *ifl_redo_version_content(const ifl_redo *redo, int64_t version);

/* The task of a group that has to be open again; NULL when the log doesn't say. */
const ifl_task_pick *ifl_redo_pick(const ifl_redo *redo, uint64_t task_serial);

#endif
