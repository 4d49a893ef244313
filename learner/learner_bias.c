/* The learner's side of the bias ledger: which trajectories, with whose weights, and when to warn.
 */
#include <math.h>

#include "common/log.h"
#include "learner/learner_internal.h"

ifl_status learner_bias_open(learner *l, ifl_error *err) {
    const ifl_config *c = l->config;
    l->bias_options = (ifl_bias_options){c->ledger.sample, c->ledger.positions,
                                         (uint64_t)c->run.seed, ifl_loss_options_of(c)};
    if (c->ledger.sample <= 0.0) return IFL_OK;
    IFL_TRY(ifl_held_versions_open(&l->bias_versions, l->store, err));
    IFL_TRY(ifl_metrics_open(&l->bias_file, l->options->run->ledger, 0, err));
    IFL_TRY(ifl_bias_bootstrap_create(&l->bias_bootstrap, err));
    return ifl_bias_ledger_create(&l->bias, l->model, &l->bias_options, l->pool,
                                  ifl_ops_best(l->model->numerics), err);
}

void learner_bias_close(learner *l) {
    ifl_held_versions_close(&l->bias_versions);
    ifl_bias_ledger_free(l->bias);
    ifl_bias_bootstrap_free(l->bias_bootstrap);
    ifl_metrics_close(l->bias_file);
}

static void bias_alarm(learner *l, ifl_bias_entry entry, double budget) {
    double nats = ifl_bias_nats(&l->bias_step, entry);
    if (budget <= 0.0 || !(nats > budget)) return;
    l->bias_alarms++;
    ifl_warn("step %lld: the bias ledger's %s is %.3g nats per token, ledger.budget_%s is %.3g "
             "(%lld tokens scored)",
             (long long)l->bias_step.step, ifl_bias_entry_name(entry), nats,
             ifl_bias_entry_name(entry), budget, (long long)l->bias_step.n_tokens);
}

static void bias_alarms(learner *l) {
    const ifl_config *c = l->config;
    const ifl_bias_record *r = &l->bias_step;
    if (r->n_differing > 0) {
        l->bias_alarms++;
        ifl_warn("step %lld: %lld of %lld log-probs scored again have other bits than recorded: "
                 "inflight replay says which",
                 (long long)r->step, (long long)r->n_differing, (long long)r->n_tokens);
    }
    if (r->n_untelescoped > 0)
        ifl_warn("step %lld: the differences of %lld tokens do not add up to their log r",
                 (long long)r->step, (long long)r->n_untelescoped);
    bias_alarm(l, IFL_BIAS_TRUNCATION, c->ledger.budget_truncation);
    bias_alarm(l, IFL_BIAS_STALE_KV, c->ledger.budget_stale_kv);
    bias_alarm(l, IFL_BIAS_LAG, c->ledger.budget_lag);
    bias_alarm(l, IFL_BIAS_TOTAL, c->ledger.budget_total);
}

static ifl_status bias_item(learner *l, const ifl_pack_item *item, int64_t step, ifl_error *err) {
    ifl_bias_record *r = &l->bias_step;
    if (!ifl_held_versions_add(&l->bias_versions, step - 1) ||
        !ifl_held_versions_add_all(&l->bias_versions, item->traj) ||
        !ifl_held_versions_add_moved(&l->bias_versions, item->traj, step - 1)) {
        r->n_not_scored++;
        return IFL_OK;
    }
    ifl_bias_record one = {.step = r->step, .version = r->version};
    IFL_TRY(ifl_bias_score(l->bias, ifl_held_versions_get, &l->bias_versions, item->traj,
                           item->advantage, step, &one, err));
    ifl_bias_merge(r, &one);
    if (one.n_trajectories == 0) return IFL_OK;
    ifl_bias_part part = ifl_bias_part_of(&one, item->traj->task_serial, item->traj->sample);
    ifl_bias_bootstrap_add(l->bias_bootstrap, &part);
    return ifl_bias_write_trajectory(l->bias_file, step, item->traj, item->advantage, &one, err);
}

ifl_status learner_bias(learner *l, int64_t step, ifl_error *err) {
    l->bias_step = (ifl_bias_record){.step = step, .version = step - 1};
    if (!l->bias) return IFL_OK;
    ifl_bias_bootstrap_reset(l->bias_bootstrap);
    int32_t n;
    bool keep_zero;
    const ifl_pack_item *items = ifl_stepper_items(l->stepper, &n, &keep_zero);
    ifl_status st = IFL_OK;
    for (int32_t i = 0; i < n && st == IFL_OK; i++) {
        if (items[i].advantage == 0.0f && !keep_zero) continue;
        if (ifl_pack_loss_tokens(items[i].traj) == 0) continue;
        if (ifl_bias_selects(&l->bias_options, items[i].traj))
            st = bias_item(l, &items[i], step, err);
    }
    ifl_held_versions_release(&l->bias_versions);
    IFL_TRY(st);
    if (l->bias_step.n_trajectories + l->bias_step.n_not_scored == 0) return IFL_OK;
    ifl_bias_bootstrap_get(l->bias_bootstrap, &l->bias_step);
    bias_alarms(l);
    return ifl_bias_write(l->bias_file, &l->bias_step, err);
}
