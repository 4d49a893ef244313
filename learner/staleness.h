/* Which complete groups a step takes when no token may be more than max_versions old
 * (staleness.policy = wait). Pure.
 *
 * A group whose oldest token is, or may yet be, of version v is in time for step v + 1 +
 * max_versions and no later one: that is its deadline. Groups are taken by earliest deadline, and a
 * group that could still wait is not taken when every place of a coming step is spoken for by
 * groups with earlier deadlines, complete or not: then the step waits for those. And none is begun
 * that would find no place in time: so there is always one for each. */
#ifndef IFL_LEARNER_STALENESS_H
#define IFL_LEARNER_STALENESS_H

#include "common/status.h"

#define IFL_STALENESS_MAX 1024 /* versions */

typedef struct ifl_stale_group {
    int64_t oldest;     /* lowest version that one of its tokens has, or may yet have */
    uint64_t completed; /* order of completion, 1, 2, ...; 0 = not complete */
} ifl_stale_group;

/* chosen[now]: indices of complete groups for `step`, which still has `left` (>= now) places; each
 * later step has per_step. False: not that many may be taken yet. Groups that are too late in any
 * case come first: the step drops them. */
bool ifl_staleness_choose(const ifl_stale_group *groups, int32_t n, int64_t step, int32_t left,
                          int32_t now, int32_t per_step, int32_t max_versions, int32_t *chosen);

/* Whether one more group may be begun under version `oldest`, beside those that are under way or
 * complete (groups), when `step` still has `left` places. */
bool ifl_staleness_admits(const ifl_stale_group *groups, int32_t n, int64_t step, int32_t left,
                          int32_t per_step, int32_t max_versions, int64_t oldest);

#endif
