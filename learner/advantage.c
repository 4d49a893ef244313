#include "learner/advantage.h"

#include <math.h>

static bool member_valid(ifl_reward_status status, float reward) {
    return ifl_reward_is_verdict(status) && isfinite(reward);
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
        case IFL_LOSS_RLOO:
            a = reward - (sum - reward) / (stats.n_valid - 1);
            break;
        case IFL_LOSS_GRPO:
        case IFL_LOSS_DAPO:
        case IFL_LOSS_GSPO:
        case IFL_LOSS_CISPO:
        case IFL_LOSS_DECOUPLED_PPO:
        case IFL_LOSS_SAPO:
            a = (reward - stats.mean) / (stats.std + IFL_ADVANTAGE_STD_EPS);
            break;
        case IFL_LOSS_DR_GRPO:
        case IFL_LOSS_REINFORCE_PP:
            a = reward - stats.mean;
            break;
        }
        advantages[i] = (float)a;
    }
    return stats;
}

void ifl_advantage_normalise(int32_t n, const bool *valid, const int32_t *tokens,
                             float *advantages) {
    double count = 0.0, sum = 0.0, squares = 0.0;
    for (int32_t i = 0; i < n; i++) {
        if (!valid[i]) continue;
        count += (double)tokens[i];
        sum += (double)tokens[i] * (double)advantages[i];
    }
    if (count == 0.0) return;
    double mean = sum / count;
    for (int32_t i = 0; i < n; i++) {
        double d = (double)advantages[i] - mean;
        if (valid[i]) squares += (double)tokens[i] * d * d;
    }
    double variance = squares / count, floor = IFL_ADVANTAGE_VARIANCE_MIN;
    double std = sqrt(variance > floor ? variance : floor);
    for (int32_t i = 0; i < n; i++)
        if (valid[i]) advantages[i] = (float)(((double)advantages[i] - mean) / std);
}

double ifl_advantage_overlong(int32_t n_tokens, int32_t limit, int32_t overlong_tokens) {
    int32_t over = n_tokens - (limit - overlong_tokens);
    if (overlong_tokens < 1 || over <= 0) return 0.0;
    return over >= overlong_tokens ? -1.0 : -(double)over / overlong_tokens;
}

float ifl_advantage_reward(const ifl_config *config, const ifl_trajectory *traj) {
    return traj->reward.reward + (float)ifl_advantage_overlong(ifl_trajectory_n_policy(traj),
                                                               config->rollout.max_new_tokens,
                                                               config->learner.overlong_tokens);
}
