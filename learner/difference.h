/* One recorded log-prob that the learner computes otherwise: the contract is broken, and the run
 * ends. Both who compare say so by the same record, the audit (learner/audit.h) and the train guard
 * (learner/guard.h). */
#ifndef IFL_LEARNER_DIFFERENCE_H
#define IFL_LEARNER_DIFFERENCE_H

#include "common/trajectory.h"

typedef struct ifl_difference {
    uint64_t task_serial;
    int32_t sample, position;         /* of the token in its trajectory */
    char actor[32];                   /* that recorded it */
    int64_t version;                  /* that sampled it; -1: a position that nobody sampled */
    int64_t version_min, version_max; /* of all its trajectory's tokens */
    int64_t kv_min, kv_max;           /* of its KV record; -1: it has none */
    float recorded, computed;         /* nats */
} ifl_difference;

ifl_difference ifl_difference_of(const ifl_trajectory *traj, int32_t position, float recorded,
                                 float computed);

/* Returns IFL_PARITY and writes which token, whose versions, both values with their bits, and what
 * to do. `by`: who computed it, e.g. "the audit's replay". checkpoint -1: the run has none yet. */
ifl_status ifl_difference_fail(const ifl_difference *difference, const char *by,
                               const char *run_path, int64_t checkpoint, ifl_error *err);

#endif
