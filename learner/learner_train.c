/* The groups of one step: taken from the desk, chosen, trained on. */
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "learner/learner_internal.h"

ifl_status learner_batch_create(learner_batch *b, const ifl_config *config, ifl_error *err) {
    int64_t n = config->rollout.prompts_per_step;
    if (config->rollout.dynamic_sampling) n *= config->rollout.dynamic_sampling_max;
    *b = (learner_batch){.n_max = (int32_t)n};
    b->groups = calloc((size_t)n, sizeof *b->groups);
    b->spare = calloc((size_t)n, sizeof *b->spare);
    b->outcomes = calloc((size_t)n, sizeof *b->outcomes);
    b->skipped = calloc((size_t)n, sizeof *b->skipped);
    b->storage = calloc((size_t)n * (size_t)config->rollout.group_size, sizeof *b->storage);
    if (!b->groups || !b->spare || !b->outcomes || !b->skipped || !b->storage)
        return ifl_fail(err, IFL_NOMEM, "learner: out of memory for %lld groups", (long long)n);
    for (int64_t i = 0; i < n; i++)
        b->outcomes[i] = b->storage + i * config->rollout.group_size;
    return IFL_OK;
}

void learner_batch_clear(learner_batch *b) {
    free(b->groups);
    free(b->spare);
    free(b->outcomes);
    free(b->skipped);
    free(b->storage);
}

/* Lock-step modes, the permuting control and a loss that normalises over the step need the whole
 * batch. */
static bool needs_whole_batch(const learner *l) {
    return l->async_k >= 0 || strcmp(l->config->learner.control, "shuffled") == 0 ||
           l->config->learner.loss == IFL_LOSS_REINFORCE_PP;
}

static ifl_status batch_take(learner *l, int64_t step, int32_t n, learner_batch *b, double *wait_s,
                             ifl_error *err) {
    double begin = ifl_clock_s();
    ifl_group **out = b->groups + b->n;
    int32_t left = l->config->rollout.prompts_per_step -
                   (l->config->rollout.dynamic_sampling ? (int32_t)l->sampling.n_kept : b->n);
    bool fresh =
        l->config->staleness.max_versions > 0 && strcmp(l->config->staleness.policy, "wait") == 0;
    if (fresh)
        IFL_TRY(ifl_dispatch_take_fresh(l->dispatch, step, left, n, IDLE_S, out, err));
    else
        IFL_TRY(ifl_dispatch_take(l->dispatch, step, n,
                                  l->async_k < 0 ? IFL_TAKE_ARRIVAL : IFL_TAKE_SERIAL, IDLE_S, out,
                                  err));
    b->n += n;
    *wait_s += ifl_clock_s() - begin;
    return IFL_OK;
}

/* Trains on groups `from` .. b->n, or those of them that are to be kept. */
static ifl_status batch_train(learner *l, const ifl_weights *weights, learner_batch *b,
                              int32_t from, int32_t n, ifl_error *err) {
    if (n == 0) return IFL_OK;
    return ifl_stepper_add(l->stepper, weights, b->groups + from, n, b->outcomes + from,
                           b->skipped + from, err);
}

/* The step's report speaks of all that was drawn. */
static void report_sampling(const learner *l, ifl_step_report *r) {
    const ifl_sampling_counts *c = &l->sampling;
    int64_t n_passed = c->n_drawn - c->n_kept;
    if (n_passed == 0) return;
    r->n_groups += (int32_t)n_passed;
    r->n_groups_skipped += (int32_t)c->n_unjudged;
    r->n_groups_zero_variance += (int32_t)(c->n_right + c->n_wrong);
    r->n_masked += (int32_t)c->n_masked_passed;
    double length = r->drawn_length * r->n_drawn + c->length_passed;
    r->n_drawn += (int32_t)c->n_answers_passed;
    if (r->n_drawn > 0) r->drawn_length = length / r->n_drawn;
}

/* Takes until the step has the groups that it needs. Lock-step modes open one for each that is
 * passed over, under the newest weights, and take the oldest ones: with async:k the lag is at most
 * k then. Which are passed over follows from the answers alone, so that a repeated run draws the
 * same. */
static ifl_status train_chosen(learner *l, int64_t step, const ifl_weights *weights,
                               learner_batch *b, int32_t take, double *wait_s, ifl_error *err) {
    const ifl_config *c = l->config;
    bool whole = needs_whole_batch(l);
    for (int32_t now; (now = ifl_dynamic_sampling_next(c, &l->sampling, take)) > 0;) {
        if (l->async_k >= 0 && b->n > 0) {
            int64_t last = step + l->async_k; /* whose batch is open already */
            if (last > c->run.steps) last = c->run.steps;
            IFL_TRY(ifl_dispatch_open_up_to(
                l->dispatch, (int32_t)(last - step) * c->rollout.prompts_per_step + now, l->step,
                err));
        }
        int32_t from = b->n;
        IFL_TRY(batch_take(l, step, now, b, wait_s, err));
        int32_t n_kept = ifl_dynamic_sampling_choose(c, b->groups + from, now, b->outcomes + from,
                                                     b->skipped + from, b->spare, &l->sampling);
        if (!whole) IFL_TRY(batch_train(l, weights, b, from, n_kept, err));
    }
    if (whole) {
        ifl_sampling_counts again = {0}; /* those to keep to the front, over all that was taken */
        int32_t n_kept = ifl_dynamic_sampling_choose(c, b->groups, b->n, b->outcomes, b->skipped,
                                                     b->spare, &again);
        IFL_TRY(batch_train(l, weights, b, 0, n_kept, err));
    }
    if (l->sampling.n_kept < c->rollout.prompts_per_step)
        ifl_warn("step %lld: of %lld groups drawn only %lld have rewards that differ, wanted %d "
                 "(rollout.dynamic_sampling_max is %d batches): it trains on these",
                 (long long)step, (long long)l->sampling.n_drawn, (long long)l->sampling.n_kept,
                 c->rollout.prompts_per_step, c->rollout.dynamic_sampling_max);
    return IFL_OK;
}

ifl_status learner_train(learner *l, int64_t step, const ifl_weights *weights, learner_batch *b,
                         double *wait_s, ifl_step_report *report, ifl_error *err) {
    int32_t n = l->config->rollout.prompts_per_step;
    int32_t take = needs_whole_batch(l) ? n : n > 16 ? n / 16 : 1;
    b->n = 0;
    l->sampling = (ifl_sampling_counts){0};
    ifl_stepper_begin(l->stepper, step);
    if (l->config->rollout.dynamic_sampling) {
        IFL_TRY(train_chosen(l, step, weights, b, take, wait_s, err));
    } else {
        while (b->n < n) {
            int32_t from = b->n, now = n - from < take ? n - from : take;
            IFL_TRY(batch_take(l, step, now, b, wait_s, err));
            IFL_TRY(batch_train(l, weights, b, from, now, err));
        }
    }
    IFL_TRY(ifl_stepper_end(l->stepper, weights, report, err));
    report_sampling(l, report);
    return IFL_OK;
}
