#include "learner/step.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "common/memory.h"
#include "common/rng.h"
#include "learner/advantage.h"
#include "learner/pack.h"

/* Rows that are worth a forward and backward of their own. Every pack reads and widens all weights
 * and reads and writes all gradients, which costs as much as some 15 to 40 rows, whatever the
 * model; so groups that come in one by one wait for each other, up to this. */
#define PART_ROWS 512

typedef struct step_sums {
    double reward, reward2, advantage, length, lag;
    double correct_length, wrong_length;
    int32_t n_correct, n_wrong, n_lengths;
    int64_t n_loss_tokens; /* N: of the groups whose rewards differ */
    double kl_reward;
    int64_t n_kl_reward;
    double drawn_length;
} step_sums;

struct ifl_stepper {
    const ifl_config *config;
    const ifl_model *model;
    ifl_optimizer *optimizer;
    ifl_trainer *trainer;
    int32_t rows_max, items_max;
    ifl_pack_item *items; /* [items_max] of the step; the first n_done have been trained on */
    int32_t n_items, n_done;
    int64_t rows_waiting; /* of the items behind n_done, about */
    float *rewards;       /* [items_max], as trained (a control may permute them) */
    ifl_reward_status *statuses;
    float *advantages; /* [items_max] */
    double *lengths;
    ifl_logprob *logprobs;        /* [rows_max] */
    float *coefficients;          /* [rows_max] */
    const ifl_weights *reference; /* NULL: none */
    float *reference_logprobs;    /* [rows_max] */
    uint8_t *foreign;             /* [rows_max] of a pack's targets */
    uint8_t *covered;             /* [rows_max + 1] tokens of one trajectory, for the guard */
    bool flip;                    /* a test's: see parity.flip_bit */
    ifl_thread_pool *pool;
    const ifl_ops *ops;
    /* The step under way. */
    ifl_step_report report;
    step_sums sums;
    ifl_loss_sums loss;
};

/* A pack holds at least one whole trajectory of the longest kind. */
static int32_t stepper_rows(const ifl_config *config, const ifl_model *model) {
    int32_t rows = config->learner.pack_tokens;
    int32_t longest = config->data.prompt_tokens_max + config->rollout.max_new_tokens;
    if (longest > model->config.max_positions) longest = model->config.max_positions;
    return rows > longest ? rows : longest;
}

int64_t ifl_stepper_bytes(const ifl_config *config, const ifl_model *model, int n_threads) {
    return ifl_trainer_bytes(model, stepper_rows(config, model),
                             ifl_config_activation_bytes(config), n_threads);
}

ifl_status ifl_stepper_create(ifl_stepper **out, const ifl_config *config, const ifl_model *model,
                              ifl_optimizer *optimizer, ifl_thread_pool *pool, const ifl_ops *ops,
                              ifl_error *err) {
    *out = NULL;
    ifl_stepper *s = ifl_alloc(1, sizeof *s);
    if (!s) return ifl_fail(err, IFL_NOMEM, "learner: out of memory");
    ifl_status st = IFL_OK;
    s->config = config;
    s->model = model;
    s->optimizer = optimizer;
    s->pool = pool;
    s->ops = ops ? ops : ifl_ops_best(model->numerics);
    s->rows_max = stepper_rows(config, model);
    s->items_max = config->rollout.prompts_per_step * config->rollout.group_size;
    s->items = ifl_alloc((size_t)s->items_max, sizeof *s->items);
    s->rewards = ifl_alloc((size_t)s->items_max, sizeof *s->rewards);
    s->statuses = ifl_alloc((size_t)s->items_max, sizeof *s->statuses);
    s->advantages = ifl_alloc((size_t)s->items_max, sizeof *s->advantages);
    s->lengths = ifl_alloc((size_t)s->items_max, sizeof *s->lengths);
    s->logprobs = ifl_alloc((size_t)s->rows_max, sizeof *s->logprobs);
    s->coefficients = ifl_alloc((size_t)s->rows_max, sizeof *s->coefficients);
    s->reference_logprobs = ifl_alloc((size_t)s->rows_max, sizeof *s->reference_logprobs);
    s->foreign = ifl_alloc((size_t)s->rows_max, sizeof *s->foreign);
    s->covered = ifl_alloc((size_t)s->rows_max + 1, sizeof *s->covered);
    s->flip = strcmp(config->parity.flip_bit, "train") == 0;
    if (!s->items || !s->rewards || !s->statuses || !s->advantages || !s->lengths || !s->logprobs ||
        !s->coefficients || !s->reference_logprobs || !s->foreign || !s->covered)
        st = ifl_fail(err, IFL_NOMEM, "learner: out of memory for steps of %d trajectories",
                      s->items_max);
    if (st == IFL_OK)
        st = ifl_trainer_create(&s->trainer, model, s->rows_max,
                                ifl_config_activation_bytes(config), pool, ops, err);
    if (st != IFL_OK) {
        ifl_stepper_free(s);
        return st;
    }
    *out = s;
    return IFL_OK;
}

void ifl_stepper_free(ifl_stepper *s) {
    if (!s) return;
    ifl_trainer_free(s->trainer);
    ifl_free(s->items);
    ifl_free(s->rewards);
    ifl_free(s->statuses);
    ifl_free(s->advantages);
    ifl_free(s->lengths);
    ifl_free(s->logprobs);
    ifl_free(s->coefficients);
    ifl_free(s->reference_logprobs);
    ifl_free(s->foreign);
    ifl_free(s->covered);
    ifl_free(s);
}

void ifl_stepper_set_reference(ifl_stepper *s, const ifl_weights *reference) {
    s->reference = reference;
}

/* --- The reference
 * ----------------------------------------------------------------------------------- */

/* Log-probs of a pack's targets under the reference, into s->reference_logprobs. */
static ifl_status step_reference(ifl_stepper *s, const ifl_packed *packed, ifl_error *err) {
    IFL_TRY(ifl_trainer_forward(s->trainer, s->reference, &packed->pack, s->logprobs, err));
    for (int32_t i = 0; i < packed->pack.n_targets; i++)
        s->reference_logprobs[i] = s->logprobs[i].logprob;
    return IFL_OK;
}

/* kl.in = reward: takes kl.coef times the KL estimate of each answer, from the log-probs that its
 * tokens were sampled with, off its reward. Groups and places as in step_rewards. */
static ifl_status step_kl_rewards(ifl_stepper *s, ifl_group **groups, int32_t n_groups,
                                  ifl_error *err) {
    int32_t n = 0, at = 0;
    for (int32_t g = 0; g < n_groups; g++)
        n += groups[g]->n_members;
    ifl_pack_item *items = ifl_alloc((size_t)n, sizeof *items);
    int32_t *places = ifl_alloc((size_t)n, sizeof *places);
    double *sums = ifl_alloc((size_t)n, sizeof *sums);
    ifl_pack_set *set = NULL;
    ifl_status st = items && places && sums
                        ? IFL_OK
                        : ifl_fail(err, IFL_NOMEM, "learner: out of memory for the KL of rewards");
    n = 0;
    for (int32_t g = 0; g < n_groups && st == IFL_OK; at += groups[g]->n_members, g++)
        for (int32_t i = 0; i < groups[g]->n_members; i++)
            if (ifl_reward_is_verdict(s->statuses[at + i]) && /* a control may have moved it here */
                groups[g]->members[i].state == IFL_MEMBER_STORED) {
                items[n] = (ifl_pack_item){groups[g]->members[i].traj, 1.0f};
                places[n++] = at + i;
            }
    ifl_pack_options options = {s->config->learner.pack_tokens, s->rows_max, true};
    if (st == IFL_OK) st = ifl_pack_build(&set, items, n, &options, err);
    for (int32_t p = 0; st == IFL_OK && p < set->n_packs; p++) {
        const ifl_packed *packed = &set->packs[p];
        st = step_reference(s, packed, err);
        for (int32_t i = 0; st == IFL_OK && i < packed->pack.n_targets; i++)
            sums[packed->target_items[i]] +=
                ifl_loss_kl(s->config->kl.estimator,
                            (double)packed->loss_tokens.behaviour_logprobs[i] -
                                (double)s->reference_logprobs[i],
                            NULL);
    }
    for (int32_t i = 0; st == IFL_OK && i < n; i++) {
        s->rewards[places[i]] -= (float)(s->config->kl.coef * sums[i]);
        s->sums.kl_reward += sums[i];
        s->sums.n_kl_reward++;
    }
    ifl_pack_set_free(set);
    ifl_free(items);
    ifl_free(places);
    ifl_free(sums);
    return st;
}

/* --- Rewards and advantages
 * -------------------------------------------------------------------------- */

/* Collects the stored members' rewards; group g's member i sits at first[g] + i. Dropped members
 * keep IFL_REWARD_NONE, which never trains. */
static int32_t step_rewards(ifl_stepper *s, int64_t step, ifl_group **groups, int32_t n_groups) {
    int32_t n = 0;
    for (int32_t g = 0; g < n_groups; g++)
        for (int32_t i = 0; i < groups[g]->n_members; i++, n++) {
            const ifl_member *m = &groups[g]->members[i];
            bool stored = m->state == IFL_MEMBER_STORED;
            s->statuses[n] = stored ? m->traj->reward.status : IFL_REWARD_NONE;
            s->rewards[n] = stored ? ifl_advantage_reward(s->config, m->traj) : 0.0f;
        }
    if (strcmp(s->config->learner.control, "shuffled") != 0) return n;
    /* Control: the same rewards, handed to the wrong answers, by a keyed Fisher-Yates shuffle. */
    ifl_rng_key key = {(uint64_t)s->config->run.seed, (uint64_t)step, IFL_RNG_ORDER};
    for (int32_t i = n - 1; i > 0; i--) {
        int32_t j = (int32_t)ifl_rng_below(&key, (uint64_t)i, 0, (uint64_t)i + 1);
        float reward = s->rewards[i];
        ifl_reward_status status = s->statuses[i];
        s->rewards[i] = s->rewards[j];
        s->statuses[i] = s->statuses[j];
        s->rewards[j] = reward;
        s->statuses[j] = status;
    }
    return n;
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static bool step_is_foreign(const ifl_stepper *s, const ifl_trajectory *traj) {
    return !ifl_hash_equal(traj->profile, s->model->profile);
}

/* An answer without advantage has no gradient, unless a reference gives it one. */
static bool step_keeps_zero(const ifl_stepper *s) {
    return s->config->kl.coef > 0.0 && s->config->kl.in == IFL_KL_IN_LOSS;
}

/* Tokens that staleness.max_versions leaves out: with mask their loss weights become 0. Returns how
 * many there are. */
static int64_t step_stale_tokens(const ifl_stepper *s, int64_t step, ifl_trajectory *traj,
                                 bool mask) {
    int64_t limit = s->config->staleness.max_versions, n = 0;
    for (int32_t i = 0; i < traj->n_runs; i++) {
        const ifl_version_run *run = &traj->runs[i];
        if (step - 1 - run->version <= limit) continue;
        n += run->n_tokens;
        if (mask)
            memset(traj->loss_weights + run->begin, 0,
                   (size_t)run->n_tokens * sizeof *traj->loss_weights);
    }
    return n;
}

static void step_trajectory(ifl_stepper *s, int64_t step, const ifl_trajectory *traj, float reward,
                            float advantage, ifl_step_report *r, step_sums *sums) {
    int64_t n_tokens = ifl_pack_loss_tokens(traj);
    r->n_trajectories++;
    r->n_tokens += n_tokens;
    if (advantage != 0.0f || step_keeps_zero(s)) r->n_tokens_backward += n_tokens;
    r->n_truncated += traj->finish == IFL_FINISH_LENGTH;
    if (step_is_foreign(s, traj)) {
        r->n_foreign++;
        r->n_tokens_foreign += n_tokens;
    }
    for (int32_t i = 1; i < traj->n_runs; i++)
        if (traj->runs[i].version != traj->runs[0].version) {
            r->n_multi_version++;
            break;
        }
    for (int32_t i = 0; i < traj->n_runs; i++) {
        int64_t lag = step - 1 - traj->runs[i].version;
        if (traj->loss_weights[traj->runs[i].begin] == 0.0f) continue; /* masked */
        sums->lag += (double)lag * traj->runs[i].n_tokens;
        if (lag > r->lag_max) r->lag_max = lag;
    }
    sums->reward += (double)reward;
    sums->reward2 += (double)reward * (double)reward;
    sums->advantage += (double)advantage;
    s->lengths[sums->n_lengths++] = (double)n_tokens;
    sums->length += (double)n_tokens;
    if (reward > 0.0f) {
        sums->correct_length += (double)n_tokens;
        sums->n_correct++;
    } else {
        sums->wrong_length += (double)n_tokens;
        sums->n_wrong++;
    }
}

/* Advantages of all the groups, at the places of their rewards. */
static ifl_status step_advantages(ifl_stepper *s, ifl_group **groups, int32_t n_groups,
                                  ifl_advantage_stats *stats, ifl_error *err) {
    ifl_loss_kind kind = s->config->learner.loss;
    int32_t n = 0;
    for (int32_t g = 0; g < n_groups; n += groups[g]->n_members, g++)
        stats[g] = ifl_advantage_group(kind, groups[g]->n_members, s->statuses + n, s->rewards + n,
                                       s->advantages + n);
    if (kind != IFL_LOSS_REINFORCE_PP) return IFL_OK;
    bool *valid = ifl_alloc((size_t)n, sizeof *valid);
    int32_t *tokens = ifl_alloc((size_t)n, sizeof *tokens), at = 0;
    ifl_status st = valid && tokens
                        ? IFL_OK
                        : ifl_fail(err, IFL_NOMEM, "learner: out of memory for advantages");
    for (int32_t g = 0; g < n_groups && st == IFL_OK; at += groups[g]->n_members, g++)
        for (int32_t i = 0; i < groups[g]->n_members; i++) {
            valid[at + i] = !stats[g].skipped && ifl_reward_is_verdict(s->statuses[at + i]) &&
                            isfinite(s->rewards[at + i]) &&
                            groups[g]->members[i].state == IFL_MEMBER_STORED;
            if (valid[at + i]) tokens[at + i] = ifl_pack_loss_tokens(groups[g]->members[i].traj);
        }
    if (st == IFL_OK) ifl_advantage_normalise(n, valid, tokens, s->advantages);
    ifl_free(valid);
    ifl_free(tokens);
    return st;
}

/* Whether age keeps an answer out: with mask one of which nothing is left, with drop and wait one
 * with any token too old. (With wait none should be; what a lost actor's lease had promised may.)
 */
static bool step_too_old(const ifl_stepper *s, int64_t step, ifl_trajectory *traj,
                         ifl_step_report *r, step_sums *sums) {
    const char *policy = s->config->staleness.policy;
    r->n_drawn++;
    sums->drawn_length += (double)ifl_trajectory_n_policy(traj);
    if (s->config->staleness.max_versions == 0 || strcmp(policy, "throttle") == 0) return false;
    bool mask = strcmp(policy, "mask") == 0;
    int64_t n = step_stale_tokens(s, step, traj, mask);
    if (!mask) return n > 0;
    if (n > 0 && ifl_pack_loss_tokens(traj) == 0) return true;
    r->n_tokens_stale += n;
    return false;
}

/* Decides every member's outcome and gathers the items that train. */
static void step_members(ifl_stepper *s, int64_t step, ifl_group **groups, int32_t n_groups,
                         const ifl_advantage_stats *stats, ifl_member_outcome **outcomes,
                         bool *skipped, ifl_step_report *r, step_sums *sums) {
    bool mask = strcmp(s->config->learner.truncated, "mask") == 0;
    bool all_count = s->config->learner.loss == IFL_LOSS_REINFORCE_PP || step_keeps_zero(s);
    int32_t at = 0;
    for (int32_t g = 0; g < n_groups; at += groups[g]->n_members, g++) {
        ifl_group *group = groups[g];
        skipped[g] = stats[g].skipped;
        r->n_groups++;
        r->n_groups_skipped += stats[g].skipped;
        r->n_groups_zero_variance += !stats[g].skipped && stats[g].zero_variance;
        for (int32_t i = 0; i < group->n_members; i++) {
            ifl_member_outcome *outcome = &outcomes[g][i];
            *outcome = (ifl_member_outcome){IFL_END_TRAINED, IFL_DROP_SKIPPED};
            const ifl_member *m = &group->members[i];
            if (m->state != IFL_MEMBER_STORED) continue;
            if (!ifl_reward_is_verdict(s->statuses[at + i]) || !isfinite(s->rewards[at + i])) {
                outcome->end = IFL_END_MASKED;
                r->n_masked++;
            } else if (stats[g].skipped) {
                outcome->end = IFL_END_DROPPED;
            } else if (step_too_old(s, step, m->traj, r, sums)) {
                bool masked = strcmp(s->config->staleness.policy, "mask") == 0;
                *outcome =
                    (ifl_member_outcome){masked ? IFL_END_MASKED : IFL_END_DROPPED, IFL_DROP_STALE};
                r->n_stale++;
            } else if (mask && m->traj->finish == IFL_FINISH_LENGTH) {
                outcome->end = IFL_END_MASKED; /* its reward was part of the baseline */
                r->n_masked++;
            } else {
                step_trajectory(s, step, m->traj, s->rewards[at + i], s->advantages[at + i], r,
                                sums);
                if (all_count || !stats[g].zero_variance)
                    sums->n_loss_tokens += ifl_pack_loss_tokens(m->traj);
                bool first = s->n_items == s->n_done ||
                             s->items[s->n_items - 1].traj->task_serial != m->traj->task_serial;
                if (s->advantages[at + i] != 0.0f)
                    s->rows_waiting +=
                        m->traj->n_tokens - (first ? 0 : ifl_trajectory_n_prompt(m->traj));
                s->items[s->n_items++] = (ifl_pack_item){m->traj, s->advantages[at + i]};
            }
        }
    }
}

/* --- The step
 * ---------------------------------------------------------------------------------------- */

/* Trains on the items that wait. */
static ifl_status step_packs(ifl_stepper *s, const ifl_weights *weights, ifl_error *err) {
    double begin = ifl_clock_s();
    ifl_pack_item *items = s->items + s->n_done;
    int32_t n_items = s->n_items - s->n_done;
    s->n_done = s->n_items;
    s->rows_waiting = 0;
    /* What the loss averages over is known at the end of the step only: sums here, one division
     * there. */
    const ifl_loss_counts counts = {1, 1};
    ifl_loss_options loss = ifl_loss_options_of(s->config);
    bool with_reference = step_keeps_zero(s);
    ifl_pack_options options = {s->config->learner.pack_tokens, s->rows_max, with_reference};
    ifl_pack_set *set = NULL;
    ifl_pack_sort(items, n_items);
    ifl_status st = ifl_pack_build(&set, items, n_items, &options, err);
    if (st != IFL_OK) return st;
    for (int32_t p = 0; p < set->n_packs && st == IFL_OK; p++) {
        ifl_packed *packed = &set->packs[p];
        if (with_reference) st = step_reference(s, packed, err);
        if (st != IFL_OK) break;
        st = ifl_trainer_forward(s->trainer, weights, &packed->pack, s->logprobs, err);
        if (st != IFL_OK) break;
        for (int32_t i = 0; i < packed->pack.n_targets; i++)
            s->foreign[i] = step_is_foreign(s, items[packed->target_items[i]].traj);
        ifl_guard_check(packed, items, s->logprobs, s->foreign, weights->version, s->covered,
                        s->rows_max + 1, &s->flip, &s->report.guard);
        if (s->report.guard.tokens_differing > 0) {
            st =
                ifl_fail(err, IFL_PARITY, "step %lld: %lld log-probs differ from the recorded ones",
                         (long long)s->report.step, (long long)s->report.guard.tokens_differing);
            break;
        }
        ifl_loss_tokens tokens = packed->loss_tokens;
        tokens.logprobs = s->logprobs;
        tokens.foreign = s->foreign;
        tokens.reference_logprobs = with_reference ? s->reference_logprobs : NULL;
        ifl_loss_coefficients(&loss, &counts, &tokens, s->report.step, s->coefficients, &s->loss);
        st = ifl_trainer_backward(s->trainer, weights, &packed->pack, s->coefficients, err);
    }
    ifl_pack_set_free(set);
    s->report.forward_backward_s += ifl_clock_s() - begin;
    return st;
}

const ifl_pack_item *ifl_stepper_items(const ifl_stepper *s, int32_t *n, bool *keep_zero) {
    *n = s->n_items;
    *keep_zero = step_keeps_zero(s);
    return s->items;
}

ifl_guard_counts ifl_stepper_guard(const ifl_stepper *s) {
    return s->report.guard;
}

void ifl_stepper_begin(ifl_stepper *s, int64_t step) {
    s->n_items = s->n_done = 0;
    s->rows_waiting = 0;
    s->report = (ifl_step_report){.step = step};
    s->sums = (step_sums){0};
    s->loss = (ifl_loss_sums){0};
    ifl_trainer_zero_gradients(s->trainer);
}

ifl_status ifl_stepper_add(ifl_stepper *s, const ifl_weights *weights, ifl_group **groups,
                           int32_t n_groups, ifl_member_outcome **outcomes, bool *skipped,
                           ifl_error *err) {
    int64_t step = s->report.step;
    ifl_advantage_stats *stats = ifl_alloc((size_t)n_groups, sizeof *stats);
    if (!stats) return ifl_fail(err, IFL_NOMEM, "learner: out of memory for advantages");
    step_rewards(s, step, groups, n_groups);
    ifl_status st = IFL_OK;
    if (s->config->kl.coef > 0.0 && s->config->kl.in == IFL_KL_IN_REWARD)
        st = step_kl_rewards(s, groups, n_groups, err);
    if (st == IFL_OK) st = step_advantages(s, groups, n_groups, stats, err);
    if (st == IFL_OK)
        step_members(s, step, groups, n_groups, stats, outcomes, skipped, &s->report, &s->sums);
    ifl_free(stats);
    IFL_TRY(st);
    return s->rows_waiting >= PART_ROWS ? step_packs(s, weights, err) : IFL_OK;
}

typedef struct step_scale {
    const ifl_ops *ops;
    float *gradients;
    float factor;
} step_scale;

static void step_scale_range(void *context, int64_t begin, int64_t end, int thread) {
    (void)thread;
    const step_scale *scale = context;
    scale->ops->scale(scale->gradients + begin, scale->gradients + begin, scale->factor,
                      end - begin);
}

ifl_status ifl_stepper_end(ifl_stepper *s, const ifl_weights *weights, ifl_step_report *out,
                           ifl_error *err) {
    IFL_TRY(step_packs(s, weights, err));
    ifl_step_report *r = &s->report;
    const step_sums *sums = &s->sums;
    double begin = ifl_clock_s();
    int64_t over =
        ifl_loss_is_over_tokens(s->config->learner.loss) ? sums->n_loss_tokens : r->n_trajectories;
    if (over < 1) over = 1;
    step_scale scale = {s->ops, ifl_trainer_gradients(s->trainer), 1.0f / (float)over};
    ifl_parallel_for(s->pool, s->model->n_elements, 65536, step_scale_range, &scale);
    /* A non-finite gradient is refused and counted, and the run goes on with the old weights; so
     * does a step without a single gradient, which must not move weights by momentum alone. */
    ifl_error refused = {0};
    if (r->n_tokens_backward > 0) {
        ifl_status st = ifl_optimizer_step(s->optimizer, scale.gradients, &r->optimizer, &refused);
        r->refused = st == IFL_LIMIT;
        if (r->refused)
            ifl_warn("step %lld: %s; the weights stay as they are", (long long)r->step,
                     refused.text);
        if (st != IFL_OK && !r->refused) {
            if (err) *err = refused;
            return st;
        }
    }
    r->optimizer_s = ifl_clock_s() - begin;
    if (r->n_drawn > 0) r->drawn_length = sums->drawn_length / r->n_drawn;

    r->loss = ifl_loss_report_get(&s->loss);
    if (sums->n_kl_reward > 0) r->kl_reward = sums->kl_reward / (double)sums->n_kl_reward;
    ifl_loss_foreign_add(&r->foreign, &s->loss);
    r->loss.loss /= (double)over;
    if (r->n_trajectories > 0) {
        double n = r->n_trajectories;
        r->reward_mean = sums->reward / n;
        r->reward_std = sqrt(fmax(0.0, sums->reward2 / n - r->reward_mean * r->reward_mean));
        r->advantage_mean = sums->advantage / n;
        r->length_mean = sums->length / n;
        qsort(s->lengths, (size_t)sums->n_lengths, sizeof *s->lengths, compare_doubles);
        r->length_p95 = s->lengths[(int32_t)(0.95 * (sums->n_lengths - 1))];
        r->length_max = s->lengths[sums->n_lengths - 1];
        r->length_correct =
            sums->n_correct > 0 ? sums->correct_length / sums->n_correct : (double)NAN;
        r->length_wrong = sums->n_wrong > 0 ? sums->wrong_length / sums->n_wrong : (double)NAN;
        r->lag_mean = r->n_tokens > 0 ? sums->lag / (double)r->n_tokens : 0.0;
    }
    *out = *r;
    return IFL_OK;
}
