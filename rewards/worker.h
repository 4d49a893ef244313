/* Inside rewards/ only. */
#ifndef IFL_REWARDS_WORKER_H
#define IFL_REWARDS_WORKER_H

#include "rewards/reward.h"

/* Runs the named checker on the request, in this process. Never fails: what goes wrong is a status
 * other than OK with its reason in `reason` (IFL_REWARD_REASON_MAX bytes, "" when the status is
 * OK). */
void ifl_reward_check(const ifl_reward_request *request, ifl_reward *out, char *reason);

#endif
