/* The versions of one trajectory, held together while it is scored again, so that none leaves the
 * store half-way. */
#ifndef IFL_LEARNER_HELD_VERSIONS_H
#define IFL_LEARNER_HELD_VERSIONS_H

#include "common/trajectory.h"
#include "learner/version_store.h"

typedef struct ifl_held_versions {
    ifl_version_store *store; /* borrowed */
    int32_t n;
    const ifl_weights **held; /* [IFL_VERSIONS_MAX] */
} ifl_held_versions;

ifl_status ifl_held_versions_open(ifl_held_versions *out, ifl_version_store *store, ifl_error *err);
void ifl_held_versions_close(ifl_held_versions *held); /* zeroed is fine */

/* Holds one version; all that sampled the trajectory's tokens or built its KV. False when one has
 * left the store; what was held until then still is. */
bool ifl_held_versions_add(ifl_held_versions *held, int64_t version);
bool ifl_held_versions_add_all(ifl_held_versions *held, const ifl_trajectory *traj);
/* And those that IFL_HISTORY_MOVED to `version` asks for (kernels/replay.h). */
bool ifl_held_versions_add_moved(ifl_held_versions *held, const ifl_trajectory *traj,
                                 int64_t version);
void ifl_held_versions_release(ifl_held_versions *held);

/* An ifl_weights_get_fn: of the held ones. */
const ifl_weights *ifl_held_versions_get(void *held, int64_t version);

#endif
