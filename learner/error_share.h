/* Ends a run whose checkers fail, instead of training on the few answers that they let through.
 * What counts is the share of failures (checker_error, unavailable) among the last answers; a task
 * that is bad and an answer that is beyond a checker are none. */
#ifndef IFL_LEARNER_ERROR_SHARE_H
#define IFL_LEARNER_ERROR_SHARE_H

#include "common/config.h"
#include "common/trajectory.h"

typedef struct ifl_error_share {
    int32_t window;
    double max_share;
    bool *failed; /* [window] ring */
    int32_t n, at, n_failed;
    char first[512]; /* the first failure of those in the ring */
} ifl_error_share;

/* Of reward.errors_window and reward.errors_max_share. */
ifl_status ifl_error_share_create(ifl_error_share *out, const ifl_config *config, ifl_error *err);
void ifl_error_share_clear(ifl_error_share *share); /* a zeroed one is fine */

/* One answer. IFL_PEER when the window is full and more than the share allowed has failed: `err`
 * names the checker and the first reason. */
ifl_status ifl_error_share_add(ifl_error_share *share, const ifl_reward *reward,
                               const char *task_id, ifl_error *err);

#endif
