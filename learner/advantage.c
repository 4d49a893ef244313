#include "learner/advantage.h"

#include <math.h>

static bool member_valid(ifl_reward_status status, float reward) {
    return status == IFL_REWARD_OK && isfinite(reward);
}

ifl_advantage_stats ifl_advantage_group(ifl_loss_kind loss, int32_t n,
                                        const ifl_reward_status *statuses, const float *rewards,
                                        float *advantages) {
    IFL_ASSERT(n >= 1);
    ifl_advantage_stats stats = {0};
    double sum = 0.0;
    float lowest = INFINITY, highest = -INFINITY;
    for (int32_t i = 0; i < n; i++) {
        advantages[i] = 0.0f;
        if (!member_valid(statuses[i], rewards[i])) continue;
        stats.n_valid++;
        sum += (double)rewards[i];
        lowest = fminf(lowest, rewards[i]);
        highest = fmaxf(highest, rewards[i]);
    }
    stats.skipped = stats.n_valid < 2;
    stats.zero_variance = stats.n_valid >= 1 && lowest == highest;
    if (stats.n_valid >= 1) stats.mean = sum / stats.n_valid;
    /* Equal rewards leave here with exact zeros: the rounded mean of equal numbers need not be
     * equal to them, and a remainder of 1e-17 over a tiny deviation would be an advantage of order
     * one. */
    if (stats.skipped || stats.zero_variance) return stats;

    double squares = 0.0;
    for (int32_t i = 0; i < n; i++)
        if (member_valid(statuses[i], rewards[i])) {
            double d = (double)rewards[i] - stats.mean;
            squares += d * d;
        }
    stats.std = sqrt(squares / (stats.n_valid - 1));

    for (int32_t i = 0; i < n; i++) {
        if (!member_valid(statuses[i], rewards[i])) continue;
        double reward = (double)rewards[i], a = 0.0;
        switch (loss) {
        case IFL_LOSS_REINFORCE:
            a = reward - (sum - reward) / (stats.n_valid - 1);
            break;
        case IFL_LOSS_GRPO:
        case IFL_LOSS_DAPO:
            a = (reward - stats.mean) / (stats.std + IFL_ADVANTAGE_STD_EPS);
            break;
        case IFL_LOSS_DR_GRPO:
            a = reward - stats.mean;
            break;
        }
        advantages[i] = (float)a;
    }
    return stats;
}
