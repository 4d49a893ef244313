/* One optimizer step over the groups it consumes: advantages, packing, loss, backward, AdamW. */
#ifndef IFL_LEARNER_STEP_H
#define IFL_LEARNER_STEP_H

#include "learner/groups.h"
#include "learner/guard.h"
#include "learner/loss.h"
#include "learner/optimizer.h"

/* What a step was like; means over the trajectories it trained unless said otherwise. */
typedef struct ifl_step_report {
    int64_t step;
    int32_t n_groups, n_groups_skipped, n_groups_zero_variance;
    int32_t n_trajectories; /* B */
    int32_t n_masked;       /* never judged, or truncated with learner.truncated = mask */
    int32_t n_truncated, n_multi_version;
    int32_t n_stale;        /* trajectories dropped for age */
    int64_t n_tokens_stale; /* tokens masked for age, of those that train */
    int32_t n_drawn;        /* answers judged, trained or not ... */
    double drawn_length; /* ... and their mean length: beside length_mean it shows what age costs */
    double kl_reward;    /* mean KL estimate that was taken off the rewards; 0 without */
    int64_t n_tokens;    /* loss tokens of those trajectories */
    int64_t n_tokens_backward; /* of them, with an advantage other than 0 or a reference */
    double reward_mean, reward_std, advantage_mean;
    double length_mean, length_p95, length_max, length_correct, length_wrong;
    double lag_mean; /* versions, over n_tokens */
    int64_t lag_max;
    ifl_loss_report loss;     /* over n_tokens_backward */
    int32_t n_foreign;        /* trajectories of another numerics profile, of n_trajectories */
    int64_t n_tokens_foreign; /* of n_tokens */
    ifl_loss_sums foreign;    /* .foreign alone: what adds up over a run */
    ifl_guard_counts guard;   /* over n_tokens_backward */
    ifl_optimizer_report optimizer;
    bool refused; /* non-finite gradient: no update was made */
    double forward_backward_s, optimizer_s;
} ifl_step_report;

typedef struct ifl_stepper ifl_stepper;

/* Borrows everything. One step at a time. */
ifl_status ifl_stepper_create(ifl_stepper **out, const ifl_config *config, const ifl_model *model,
                              ifl_optimizer *optimizer, ifl_thread_pool *pool, const ifl_ops *ops,
                              ifl_error *err);
void ifl_stepper_free(ifl_stepper *stepper);
int64_t ifl_stepper_bytes(const ifl_config *config, const ifl_model *model, int n_threads);

/* The reference of kl.*, of the same model; borrowed from now on. Needed where kl.coef > 0. */
void ifl_stepper_set_reference(ifl_stepper *stepper, const ifl_weights *reference);

/* A step is begin, any number of adds, end. Lock-step modes add the whole batch at once, in serial
 * order, so that its bytes repeat; `pipeline` adds groups as they come in, so that the actors get
 * new work all through the step and not in one burst. */
void ifl_stepper_begin(ifl_stepper *stepper, int64_t step);

/* Takes in these groups (ascending serial): forward and backward of them and of those that wait,
 * under `weights`, the newest version (step - 1), as soon as that is worth it. The groups are
 * borrowed until ifl_stepper_end. outcomes[g][i] and skipped[g] are filled in for
 * ifl_dispatch_close. IFL_PARITY: the forward gives a covered log-prob other bits than the actor
 * recorded (learner/guard.h); nothing of that pack has gone into the gradients, and
 * ifl_stepper_guard says which token. */
ifl_status ifl_stepper_add(ifl_stepper *stepper, const ifl_weights *weights, ifl_group **groups,
                           int32_t n_groups, ifl_member_outcome **outcomes, bool *skipped,
                           ifl_error *err);

/* What the step has trained, with its advantages; those of 0 only count where they have a gradient
 * (keep_zero). From ifl_stepper_end until the groups are given back. */
const ifl_pack_item *ifl_stepper_items(const ifl_stepper *stepper, int32_t *n, bool *keep_zero);

/* Of the step under way, or the last one. */
ifl_guard_counts ifl_stepper_guard(const ifl_stepper *stepper);

/* The rest of the groups; then divides by what the loss averages over, clips, and moves the
 * masters. */
ifl_status ifl_stepper_end(ifl_stepper *stepper, const ifl_weights *weights,
                           ifl_step_report *report, ifl_error *err);

#endif
