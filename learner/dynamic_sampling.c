#include "learner/dynamic_sampling.h"

#include <math.h>

#include "learner/advantage.h"

static bool member_judged(const ifl_config *config, const ifl_member *m) {
    return m->state == IFL_MEMBER_STORED && ifl_reward_is_verdict(m->traj->reward.status) &&
           isfinite(ifl_advantage_reward(config, m->traj));
}

ifl_group_signal ifl_group_signal_of(const ifl_config *config, const ifl_group *group) {
    float lowest = INFINITY, highest = -INFINITY;
    int32_t n = 0;
    for (int32_t i = 0; i < group->n_members; i++) {
        const ifl_member *m = &group->members[i];
        if (!member_judged(config, m)) continue;
        float reward = ifl_advantage_reward(config, m->traj);
        lowest = fminf(lowest, reward);
        highest = fmaxf(highest, reward);
        n++;
    }
    if (n < 2) return IFL_SIGNAL_NONE;
    if (lowest != highest) return IFL_SIGNAL_SOME;
    return lowest > 0.0f ? IFL_SIGNAL_RIGHT : IFL_SIGNAL_WRONG;
}

void ifl_sampling_counts_add(ifl_sampling_counts *to, const ifl_sampling_counts *from) {
    to->n_drawn += from->n_drawn;
    to->n_kept += from->n_kept;
    to->n_right += from->n_right;
    to->n_wrong += from->n_wrong;
    to->n_unjudged += from->n_unjudged;
    to->n_answers += from->n_answers;
    to->n_answers_passed += from->n_answers_passed;
    to->reward += from->reward;
    to->length += from->length;
    to->length_passed += from->length_passed;
    to->n_masked_passed += from->n_masked_passed;
}

int32_t ifl_dynamic_sampling_next(const ifl_config *config, const ifl_sampling_counts *counts,
                                  int32_t take) {
    int64_t per_step = config->rollout.prompts_per_step;
    int64_t missing = per_step - counts->n_kept;
    int64_t left = per_step * config->rollout.dynamic_sampling_max - counts->n_drawn;
    if (missing > left) missing = left;
    return (int32_t)(missing < take ? missing : take);
}

static void group_count(const ifl_config *config, const ifl_group *group, ifl_group_signal signal,
                        ifl_sampling_counts *c) {
    bool kept = signal == IFL_SIGNAL_SOME;
    c->n_drawn++;
    c->n_kept += kept;
    c->n_right += signal == IFL_SIGNAL_RIGHT;
    c->n_wrong += signal == IFL_SIGNAL_WRONG;
    c->n_unjudged += signal == IFL_SIGNAL_NONE;
    for (int32_t i = 0; i < group->n_members; i++) {
        const ifl_member *m = &group->members[i];
        if (m->state != IFL_MEMBER_STORED) continue;
        if (!member_judged(config, m)) {
            c->n_masked_passed += !kept;
            continue;
        }
        double length = ifl_trajectory_n_policy(m->traj);
        c->n_answers++;
        c->reward += (double)ifl_advantage_reward(config, m->traj);
        c->length += length;
        c->n_answers_passed += !kept;
        if (!kept) c->length_passed += length;
    }
}

int32_t ifl_dynamic_sampling_choose(const ifl_config *config, ifl_group **groups, int32_t n,
                                    ifl_member_outcome *const *outcomes, bool *skipped,
                                    ifl_group **spare, ifl_sampling_counts *counts) {
    int32_t n_kept = 0, n_passed = 0;
    for (int32_t g = 0; g < n; g++) {
        ifl_group_signal signal = ifl_group_signal_of(config, groups[g]);
        group_count(config, groups[g], signal, counts);
        if (signal == IFL_SIGNAL_SOME)
            groups[n_kept++] = groups[g];
        else
            spare[n_passed++] = groups[g];
    }
    for (int32_t p = 0; p < n_passed; p++) {
        ifl_group *group = groups[n_kept + p] = spare[p];
        bool unjudged = ifl_group_signal_of(config, group) == IFL_SIGNAL_NONE;
        skipped[n_kept + p] = true;
        for (int32_t i = 0; i < group->n_members; i++)
            outcomes[n_kept + p][i] = (ifl_member_outcome){
                member_judged(config, &group->members[i]) ? IFL_END_DROPPED : IFL_END_MASKED,
                unjudged ? IFL_DROP_SKIPPED : IFL_DROP_ZERO_VARIANCE};
    }
    return n_kept;
}
