/* Group advantages: how much better a trajectory was than the others of its task. Pure. */
#ifndef IFL_LEARNER_ADVANTAGE_H
#define IFL_LEARNER_ADVANTAGE_H

#include "common/config.h"
#include "common/trajectory.h"

/* Added to the standard deviation of `grpo` and `dapo`. The paper divides by the bare deviation;
 * TRL's GRPOTrainer adds this constant, and so do we, since a group whose rewards differ by
 * rounding only must not be blown up. */
#define IFL_ADVANTAGE_STD_EPS 1e-4

typedef struct ifl_advantage_stats {
    int32_t n_valid;    /* members that train: status OK and a finite reward */
    bool skipped;       /* fewer than two valid members: there is nothing to compare with */
    bool zero_variance; /* all valid rewards equal: every advantage is 0 */
    double mean, std;   /* of the valid rewards; std with n - 1 in the denominator, 0 for one */
} ifl_advantage_stats;

/* Advantages of one group of n members, n >= 1; statuses, rewards, advantages: [n].
 *
 *   reinforce, rloo         A_i = R_i - mean of the other valid members     (leave-one-out; Kool et
 *                           al. 2019)
 *   dr_grpo, reinforce_pp   A_i = R_i - mean                                 (arXiv 2503.20783)
 *   the others              A_i = (R_i - mean) / (std + 1e-4)                (arXiv 2402.03300)
 *
 * Mean and std over the valid members; std is the sample deviation (n - 1), as torch.std. A member
 * whose reward status is no verdict, or whose reward is not finite, leaves the group: its
 * advantage is 0 and it enters no mean. With fewer than two valid members the group is skipped (all
 * advantages 0). Equal rewards give exactly 0, whatever the rounding of their mean. Arithmetic in
 * double, members ascending. */
ifl_advantage_stats ifl_advantage_group(ifl_loss_kind loss, int32_t n,
                                        const ifl_reward_status *statuses, const float *rewards,
                                        float *advantages);

/* The smallest variance that a step's advantages are divided by the root of, as OpenRLHF. */
#define IFL_ADVANTAGE_VARIANCE_MIN 1e-8

/* reinforce_pp's second half, over the n trajectories of a step: A := (A - mean) / std, mean and
 * (population) variance over tokens, so that a trajectory counts tokens[i] times (arXiv 2501.03262;
 * OpenRLHF). Where valid[i] is false nothing enters and nothing changes. In double,
 * ascending. */
void ifl_advantage_normalise(int32_t n, const bool *valid, const int32_t *tokens,
                             float *advantages);

/* The reward that an answer's advantage comes from: its checker's, and overlong shaping. */
float ifl_advantage_reward(const ifl_config *config, const ifl_trajectory *traj);

/* What a reward loses for length: 0 up to limit - overlong_tokens, then in a line to -1 at the
 * limit (DAPO's soft overlong punishment, arXiv 2503.14476 eq. 13). overlong_tokens 0: nothing. */
double ifl_advantage_overlong(int32_t n_tokens, int32_t limit, int32_t overlong_tokens);

#endif
