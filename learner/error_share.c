#include "learner/error_share.h"

#include <stdio.h>

#include "common/memory.h"

ifl_status ifl_error_share_create(ifl_error_share *out, const ifl_config *config, ifl_error *err) {
    *out = (ifl_error_share){.window = config->reward.errors_window,
                             .max_share = config->reward.errors_max_share};
    out->failed = ifl_alloc((size_t)out->window, sizeof *out->failed);
    return out->failed
               ? IFL_OK
               : ifl_fail(err, IFL_NOMEM, "no memory for reward.errors_window %d", out->window);
}

void ifl_error_share_clear(ifl_error_share *share) {
    ifl_free(share->failed);
    share->failed = NULL;
}

ifl_status ifl_error_share_add(ifl_error_share *share, const ifl_reward *reward,
                               const char *task_id, ifl_error *err) {
    bool failed =
        reward->status == IFL_REWARD_CHECKER_ERROR || reward->status == IFL_REWARD_UNAVAILABLE;
    if (share->n == share->window)
        share->n_failed -= share->failed[share->at];
    else
        share->n++;
    if (failed && share->n_failed == 0)
        snprintf(share->first, sizeof share->first, "checker %s, task %.100s: %s: %s",
                 reward->checker, task_id, ifl_reward_status_name(reward->status),
                 reward->reason[0] ? reward->reason : "its actor's log says why");
    share->failed[share->at] = failed;
    share->n_failed += failed;
    share->at = (share->at + 1) % share->window;
    if (share->n < share->window || share->n_failed <= share->max_share * share->window)
        return IFL_OK;
    return ifl_fail(
        err, IFL_PEER,
        "%d of the last %d answers could not be judged since their checker failed, more "
        "than reward.errors_max_share (%g) allows; the first: %s. Mend it and go on with "
        "run.resume=true",
        share->n_failed, share->window, share->max_share, share->first);
}
